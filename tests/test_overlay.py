"Readers of the real data's layouts, the cache under damage, and the command line: what needs files or processes"
import os, subprocess, sys
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from disentangle_nb.overlay import PairStream, _mnist_stl10, load_source

data = Path(os.environ.get('DISENTANGLE_DATA', Path(__file__).parents[2]/'shared'/'data'))
bin = Path(sys.executable).parent


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


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('DISENTANGLE_CACHE', str(tmp_path/'cache'))
    return tmp_path


def test_torchvision_layouts(home, monkeypatch):
    from torchvision.datasets import STL10
    write_mnist(home)
    images = write_stl10_binary(home)
    monkeypatch.setattr(STL10, '_check_integrity', lambda self: True)  # the checksums are those of the whole data set
    source = load_source('mnist_stl10', 'train', path=home, scheme='official', valid=.2)
    assert len(source.digits) == 32 and len(source.photos) == 24
    assert (source.photos == torch.from_numpy(images['train'][:24])).all()
    assert source.photo_labels.tolist() == [i % 10 for i in range(24)]
    assert len(load_source('mnist_stl10', 'test', path=home, scheme='official').photos) == 20
    assert len(load_source('mnist_stl10', 'train', path=home, scheme='authors', valid=.2).photos) == 36  # 80 % of 90 % of 50


def test_truncated_binary_is_refused(home):
    write_mnist(home)
    write_stl10_binary(home)  # not STL-10's checksums
    with pytest.raises(FileNotFoundError, match='STL-10 not readable'): load_source('mnist_stl10', path=home)


def test_truncated_mnist_is_refused(home):
    write_mnist(home)
    file = home/'MNIST'/'raw'/'train-images-idx3-ubyte'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match='MNIST not readable'): load_source('mnist_stl10', path=home)


def write_folder(root, mode, size, per_class=20):
    for c in ('a', 'b', 'c'):
        (root/c).mkdir(parents=True)
        for i in range(per_class):
            noise = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(noise).convert(mode).save(root/c/f'{i:05d}.png')


def test_stl10_image_folder_in_order_of_names_and_damaged_cache(home):
    write_mnist(home)
    for part in ('train', 'test'): write_folder(home/'stl10'/part, 'RGB', 96, 5)
    raw = _mnist_stl10(home)
    assert raw['photos'][0][1].tolist() == [0, 1, 2] * 5
    [cache] = (home/'cache').glob('*.pt')
    cache.write_bytes(cache.read_bytes()[:-10])
    with pytest.warns(UserWarning, match='truncated or damaged'): again = _mnist_stl10(home)
    assert (again['photos'][0][0] == raw['photos'][0][0]).all()


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


@pytest.mark.skipif(not (data/'MNIST').is_dir(), reason=f'no MNIST and STL-10 in {data.name}/ beside the checkout or in DISENTANGLE_DATA')
def test_real_data(home):
    sizes = [(len(s.digits), len(s.photos)) for s in (load_source('mnist_stl10', p, path=data) for p in ('train', 'valid', 'test'))]
    assert sizes == [(56_700, 10_530), (6_300, 1_170), (7_000, 1_300)]


tiny = ['--steps', '12', '--bs', '8', '--epoch', '4', '--size', '32', '--quiet', '--threads', '1', '--precision', 'fp32']


def run(*args): return subprocess.run([str(bin/args[0]), *args[1:]], capture_output=True, text=True)


def test_help_explains_each_option():
    text = run('disentangle_run', '--help').stdout
    for option in ('data', 'path', 'kinds', 'reg', 'lam', 'steps', 'bs', 'lr', 'tau', 'slices', 'dim', 'arch', 'seed', 'out', 'resume'):
        assert f'--{option}' in text
    assert '(default: embedded)' in text


@pytest.mark.parametrize('args, message', [
    (['--reg', 'hes'], 'unknown regulariser'), (['--kinds', 'XX'], 'unknown kind'), (['--data', 'nowhere'], 'unknown source'),
    (['--slices', '5'], 'does not split'), (['--bs', '1'], 'too small'), (['--arch', 'resnet19'], 'unknown encoder'), (['--tau', '0'], 'must be positive'),
    (['--base', 'routed'], 'do not tell DC, BC apart'), (['--base', 'inferred', '--kinds', 'DC,BC'], 'needs --start'),
    (['--base', 'inferred', '--kinds', 'DC-BC,BC', '--start', '4'], 'have no names')])
def test_wrong_options_end_with_one_line(tmp_path, args, message):
    done = run('disentangle_run', *tiny, *args, '--out', str(tmp_path/'run'))
    [line] = [l for l in done.stderr.splitlines() if l.startswith('error: ')]
    assert done.returncode == 2 and message in line and 'Traceback' not in done.stderr
