"Readers of the real data's layouts and of own folders, sources that are refused, and the cache"
import os
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from elsewhere import DEVICE, Elsewhere
from PIL import Image

from disentangle_nb.overlay import PairLoader, PairStream, Source, _mnist_stl10, compose, load_source, make_grid, pair_dls

data = Path(os.environ.get('DISENTANGLE_DATA', Path(__file__).parents[2]/'shared'/'data'))


def write_mnist(root, n=(40, 20)):
    raw = root/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for prefix, k in zip(('train', 't10k'), n):
        images = np.random.default_rng(k).integers(0, 256, (k, 28, 28), dtype=np.uint8)
        header = b'\0\0\x08'
        (raw/f'{prefix}-images-idx3-ubyte').write_bytes(header + b'\x03' + np.array([k, 28, 28], '>i4').tobytes() + images.tobytes())
        (raw/f'{prefix}-labels-idx1-ubyte').write_bytes(header + b'\x01' + np.array([k], '>i4').tobytes() + (np.arange(k) % 10).astype(np.uint8).tobytes())


def write_stl10_binary(root, n=(30, 20)):
    "STL-10's own layout: column-major images, labels from 1"
    (root/'stl10_binary').mkdir(parents=True)
    (root/'stl10_binary'/'class_names.txt').write_text('\n'.join(f'class{i}' for i in range(10)))
    images = {s: np.random.default_rng(k).integers(0, 256, (k, 96, 96, 3), dtype=np.uint8) for s, k in zip(('train', 'test'), n)}
    for s, x in images.items():
        (root/'stl10_binary'/f'{s}_X.bin').write_bytes(x.transpose(0, 3, 2, 1).tobytes())
        (root/'stl10_binary'/f'{s}_y.bin').write_bytes((np.arange(len(x)) % 10 + 1).astype(np.uint8).tobytes())
    return images


def test_torchvision_layouts(tmp_path, monkeypatch):
    from torchvision.datasets import STL10
    write_mnist(tmp_path)
    images = write_stl10_binary(tmp_path)
    monkeypatch.setattr(STL10, '_check_integrity', lambda self: True)  # the checksums are those of the whole data set
    source = load_source('mnist_stl10', 'train', path=tmp_path, scheme='official', valid=.2, crop='random')
    assert len(source.digits) == 32 and len(source.photos) == 24
    assert (source.photos == torch.from_numpy(images['train'][:24])).all()
    assert source.photo_labels.tolist() == [i % 10 for i in range(24)]
    assert len(load_source('mnist_stl10', 'test', path=tmp_path, scheme='official').photos) == 20
    assert len(load_source('mnist_stl10', 'train', path=tmp_path, scheme='authors', valid=.2).photos) == 36  # 80 % of 90 % of 50


def test_truncated_binary_is_refused(tmp_path):
    write_mnist(tmp_path)
    write_stl10_binary(tmp_path)  # not STL-10's checksums
    with pytest.raises(FileNotFoundError, match='STL-10 not readable'): load_source('mnist_stl10', path=tmp_path)


def test_truncated_mnist_is_refused(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path/'MNIST'/'raw'/'train-images-idx3-ubyte'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match='MNIST not readable'): load_source('mnist_stl10', path=tmp_path)


def write_folder(root, mode, size, per_class=20):
    for c in ('a', 'b', 'c'):
        (root/c).mkdir(parents=True)
        for i in range(per_class):
            noise = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(noise).convert(mode).save(root/c/f'{i:05d}.png')


def test_stl10_image_folder_in_order_of_names(tmp_path):
    write_mnist(tmp_path)
    for part in ('train', 'test'): write_folder(tmp_path/'stl10'/part, 'RGB', 96, 5)
    assert _mnist_stl10(tmp_path)['photos'][0][1].tolist() == [0, 1, 2] * 5


def test_own_folders(tmp_path):
    write_folder(tmp_path/'digits', 'L', 40)
    write_folder(tmp_path/'backgrounds', 'RGB', 120)
    parts = [load_source(str(tmp_path), s) for s in ('train', 'valid', 'test')]
    assert [len(p.photos) for p in parts] == [48, 6, 6]
    x, factors, _ = PairStream(parts[0], 'DC-BC', bs=8).batch(0)
    assert x.shape == (16, 3, 64, 64) and (factors[:8] == factors[8:])[:, [0, 2]].all()


def test_one_own_folder_on_a_named_source(tmp_path):
    write_folder(tmp_path/'shapes', 'L', 40)
    source, whole = load_source('embedded', digits=str(tmp_path/'shapes')), load_source('embedded')
    assert (source.photos == whole.photos).all() and source.classes['BC'] == whole.classes['BC']
    assert len(source.digits) == 48 and source.classes['DC'] != whole.classes['DC'] and source.name == 'own images'
    assert (load_source('embedded', backgrounds=str(tmp_path/'shapes')).digits == whole.digits).all()


def test_too_few_images_of_a_class(tmp_path):
    write_folder(tmp_path/'digits', 'L', 28, 3)
    write_folder(tmp_path/'backgrounds', 'RGB', 96)
    with pytest.raises(ValueError, match='too few'): load_source(str(tmp_path), 'valid')


def test_a_part_has_two_images_of_each_class_for_a_pair(tmp_path):
    write_folder(tmp_path, 'L', 28, 15)
    with pytest.raises(ValueError, match='15 images, too few .* 20 or more'): load_source(split='valid', digits=tmp_path)


def test_an_empty_class_is_named_with_its_folder(tmp_path):
    write_folder(tmp_path/'shapes', 'L', 28)
    (tmp_path/'shapes'/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='shapes: .*empty'): load_source(digits=tmp_path/'shapes')


def test_the_cache_keeps_a_folder_as_it_is_now(tmp_path, own_cache):
    write_folder(tmp_path, 'L', 28)
    for _ in range(2):
        load_source(digits=tmp_path)
        next(tmp_path.rglob('*.png')).unlink()
    assert len(list(own_cache.glob('own_digits-*.pt'))) == 1


@pytest.mark.skipif(not (data/'MNIST').is_dir(), reason=f'no MNIST and STL-10 in {data.name}/ beside the checkout or in DISENTANGLE_DATA')
def test_real_data(tmp_path):
    sizes = [(len(s.digits), len(s.photos)) for s in (load_source('mnist_stl10', p, path=data) for p in ('train', 'valid', 'test'))]
    assert sizes == [(56_700, 10_530), (6_300, 1_170), (7_000, 1_300)]


@pytest.mark.parametrize('change, message', [
    (dict(digits=torch.zeros(40, 20, 28, dtype=torch.uint8)), 'square'),
    (dict(photos=torch.zeros(40, 96, 96, 4, dtype=torch.uint8)), '3 colours'),
    (dict(grid=make_grid(64, 28, 3, 3)), '8 names for the 9 locations')])
def test_sources_that_cannot_be_composed_are_refused(change, message):
    source = load_source(split='valid')
    few = dict(digits=source.digits[:40], digit_labels=source.digit_labels[:40], photos=source.photos[::12][:40], photo_labels=source.photo_labels[::12][:40])
    with pytest.raises(ValueError, match=message): replace(source, **few | change)


def test_locations_that_coincide_are_refused():
    with pytest.raises(ValueError, match='coincide'): make_grid(29)
    source = load_source(split='valid')
    one = replace(source, grid=make_grid(64, 28, 1, 1), classes=source.classes | {'DL': [0]})
    with pytest.raises(ValueError, match='two locations'): PairStream(one, 'DC-BC', bs=4)
    assert PairStream(one, 'DC-DL', bs=4).batch(0)[0].shape == (8, 3, 64, 64)


def test_pairs_go_to_the_gpu_where_there_is_one(monkeypatch):
    devices = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(PairLoader, 'to', lambda self, device: devices.append(device))
    dls = pair_dls(load_source(split='valid'), load_source(split='valid'), bs=4, n_batches=1, n_valid=1)
    assert devices == [torch.device('cuda')] * 2 and dls.device == torch.device('cuda')


def test_own_folders_are_read_once_and_blank_digits_are_refused(tmp_path, monkeypatch):
    for name in 'ab':
        (tmp_path/'digits'/name).mkdir(parents=True)
        for i in range(20): Image.fromarray(np.eye(28, dtype=np.uint8) * 200 + i).save(tmp_path/'digits'/name/f'{i}.png')
    first = load_source(digits=tmp_path/'digits')
    with monkeypatch.context() as unread:
        unread.setattr('disentangle_nb.overlay._read_folder', None)
        assert torch.equal(load_source(digits=tmp_path/'digits').digits, first.digits)
    Image.new('RGBA', (28, 28), (0, 0, 0, 0)).save(tmp_path/'digits'/'a'/'0.png')
    with pytest.raises(ValueError, match='1 of 40 digits .* of one grey, the first is .*0.png'): load_source(digits=tmp_path/'digits')


def test_digits_that_are_black_on_white_are_told(tmp_path):
    for name in 'ab':
        (tmp_path/'digits'/name).mkdir(parents=True)
        for i in range(20): Image.fromarray(255 - np.eye(28, dtype=np.uint8) * 200 - i).save(tmp_path/'digits'/name/f'{i}.png')
    with pytest.warns(UserWarning, match='bright at the border'): load_source(digits=tmp_path/'digits')


def test_an_interrupted_download_is_taken_up_again(own_cache, tmp_path, monkeypatch):
    from disentangle_nb import overlay
    monkeypatch.delenv('DISENTANGLE_DATA', raising=False)
    (own_cache/'data'/'MNIST').mkdir(parents=True)
    asked = []
    monkeypatch.setattr('torchvision.datasets.MNIST', lambda path, train, download: asked.append(download) or overlay.os.stat(tmp_path/'missing'))
    with pytest.raises(FileNotFoundError, match='not readable'): load_source('mnist_stl10')
    with pytest.raises(FileNotFoundError, match='own is not a folder'): load_source('mnist_stl10', path=tmp_path/'own')
    assert not (tmp_path/'own').exists()
    (tmp_path/'own'/'MNIST').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='not readable'): load_source('mnist_stl10', path=tmp_path/'own')
    assert asked == [True, False]


def test_a_cache_that_cannot_be_read_is_made_again(own_cache):
    from disentangle_nb.overlay import cached
    assert cached('x', [], lambda: {'a': 1}) == {'a': 1}
    file, = own_cache.glob('x-*.pt')
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match='rebuilt'): assert cached('x', [], lambda: {'a': 2}) == {'a': 2}


def test_linked_class_folders_are_told_apart(tmp_path):
    write_folder(tmp_path/'real', 'L', 28)
    names = sorted(p.name for p in (tmp_path/'real').iterdir())
    for folder, chosen in (('a', names[:2]), ('b', names[1:])):
        (tmp_path/folder).mkdir()
        for name in chosen: (tmp_path/folder/name).symlink_to(tmp_path/'real'/name)
        assert load_source(digits=tmp_path/folder).classes['DC'] == chosen
    with pytest.raises(FileNotFoundError, match='is not a folder'): load_source(digits=tmp_path/'nowhere')


def test_what_is_no_class_and_no_image_is_left_out(tmp_path):
    write_folder(tmp_path/'digits', 'L', 28)
    (tmp_path/'digits'/'.hidden').mkdir()
    first, *_ = names = sorted(p.name for p in (tmp_path/'digits').iterdir() if p.name != '.hidden')
    for name in ('0.gif', '._0.png'): (tmp_path/'digits'/first/name).write_bytes(b'GIF89a')
    Image.new('L', (28, 28)).save(tmp_path/'digits'/'stray.png')
    with pytest.warns(UserWarning, match='2 files in .* left out; the first is .*0.gif'): source = load_source(digits=tmp_path/'digits')
    assert source.classes['DC'] == names
    for file in list((tmp_path/'digits'/first).glob('*.png'))[4:]: file.unlink()
    with pytest.raises(ValueError, match=f"class '{first}' has 4 images, too few for a valid part"), pytest.warns(UserWarning): load_source(split='valid', digits=tmp_path/'digits')


@pytest.mark.parametrize('device', ['cpu', DEVICE])
@pytest.mark.parametrize('size, item, rows, cols, n, crop', [(64, 28, 2, 4, 40, 'random'), (33, 28, 2, 2, 7, 'centre'), (32, 8, 3, 5, 1, 'random'), (9, 9, 1, 1, 5, 'centre')])
def test_composing_is_the_plain_loop(size, item, rows, cols, n, crop, device):
    rng, grid = torch.Generator().manual_seed(size), make_grid(size, item, rows, cols)
    pixels = lambda *shape: torch.randint(256, shape, dtype=torch.uint8, generator=rng)
    names = dict(DC=range(2), DL=range(len(grid)), BC=range(3))
    source = Source(pixels(6, item, item), torch.arange(6) % 2, pixels(9, size + 5, size + 5, 3), torch.arange(9) % 3, names, size, grid, crop)
    chosen = torch.stack([torch.randint(m, (n,), generator=rng) for m in (6, len(grid), 9)], 1)
    chosen[-1] = torch.tensor([5, len(grid) - 1, 8]) # the last of each
    corner = torch.randint(6, (n, 2), generator=rng) if crop == 'random' else torch.full((n, 2), 2)
    flip = torch.arange(n) % 3 == 0
    for mirrored in (flip, None):
        with Elsewhere(): images = compose(source.to(device), chosen, corner if crop == 'random' else None, mirrored).cpu()
        for image, (d, l, p), (t, r), m in zip(images, chosen.tolist(), corner.tolist(), (flip if mirrored is not None else flip & False).tolist(), strict=True):
            photo = source.photos[p, t:t+size, r:r+size].numpy()
            expected = (photo[:, ::-1] if m else photo).copy()
            y, x = grid.windows(size, item)[l]
            expected[y, x] = np.maximum(expected[y, x], source.digits[d, :, :, None].numpy())
            assert (image.permute(1, 2, 0).numpy() == expected).all()
