"The gallery: retrieval against plain loops and chance, and the interactive page in a browser."
import re
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from browser import desktop, in_browser, phone
from hypothesis import given, settings, strategies as st

from disentangle_nb import gallery
from disentangle_nb.gallery import (Embedded, attention_shares, disentangle_gallery, draw_recipes, explorer_html, occlusion, recompose,
                                    retrieval_accuracy, share_inside, view_data, write_explorer)
from disentangle_nb.overlay import load_source, sample

root = Path(__file__).parents[1]


def embedded(n=240, noise=.1, shared=('DC', 'BC'), seed=0):
    "Images, and an embedding of them that holds each shared factor in a slice of its own"
    images, factors = sample(load_source(split='test'), n, seed)
    def z(f, s):
        parts = [torch.eye(10)[f[:, ('DC', 'DL', 'BC').index(name)]] for name in shared]
        return (torch.cat(parts, 1) + noise * torch.randn(len(f), 10 * len(shared), generator=torch.Generator().manual_seed(s))).numpy()
    parts = {'train': (z(factors, 1), factors.numpy()), 'test': (z(factors, 2), factors.numpy())}
    return Embedded(parts, images, len(shared), shared, {'DC': list('0123456789'), 'DL': list(range(8)), 'BC': [f'<b>{i}</b>' for i in range(10)]})


@pytest.fixture(scope='module')
def split(): return embedded()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(2, 3), st.integers(20, 60))
def test_recompose_is_the_plain_loop(seed, F, n):
    rng = np.random.default_rng(seed)
    z, rows = rng.normal(size=(n, 4 * F)).astype('float32'), rng.integers(n, size=(5, F))
    columns = [slice(4 * f, 4 * f + 4) for f in range(F)]
    found = recompose(z, list(zip(columns, rows.T)), 3)
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    for row, got in zip(rows, found):
        score = {i: sum(cos(z[r, c], z[i, c]) for r, c in zip(row, columns)) for i in range(n) if i not in row}
        assert np.allclose([score[i] for i in got], sorted(score.values())[:-4:-1], atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(1, 3))
def test_recipes_differ_and_can_be_answered(seed, F):
    factors = np.random.default_rng(seed).integers(4, size=(200, F))
    rows, wanted, answers = draw_recipes(factors, 50, seed)
    for row, want, m in zip(rows, wanted, answers):
        assert all(len(set(column)) == F for column in factors[row].T)
        assert want.tolist() == [factors[r, f] for f, r in enumerate(row)]
        others = np.delete(factors, row, 0)
        assert m == sum((others == want).all(1)) > 0
        assert F == 1 or not (factors[row] == want).all(1).any()


def test_noise_retrieves_at_chance(split):
    noise = {s: (np.random.default_rng(i).normal(size=z.shape).astype('float32'), f) for i, (s, (z, f)) in enumerate(split.parts.items())}
    found = retrieval_accuracy(Embedded(noise, split.images()), q=2000)
    for name in ('top-1', 'top-5'):
        chance = found[f'chance {name}']
        assert abs(found[name] - chance) < 5 * np.sqrt(chance * (100 - chance) / 2000)


def test_three_factors_are_put_together():
    found = retrieval_accuracy(embedded(2000, .02, ('DC', 'DL', 'BC')), q=200)
    assert found['top-1'] > 95 and found['DL right'] > 95 > 20 > found['chance top-5']


def test_scale_of_a_slice_does_not_matter(split):
    (z, f), far = split.parts['test'], np.repeat([1, 1000], 10).astype('float32')
    assert retrieval_accuracy(Embedded({s: (z * far, f) for s, (z, f) in split.parts.items()}, split.images())) == retrieval_accuracy(split)


class Sees(torch.nn.Module):
    "An embedding of the pixels where `mask` is true, and of those where it is not"
    def __init__(self, mask):
        super().__init__()
        self.mask, self.one = mask, torch.nn.Parameter(torch.ones(()))

    def forward(self, x): return self.one * torch.cat([(x * m).flatten(1) for m in (self.mask, ~self.mask)], 1)


def test_occlusion_finds_what_a_model_sees(split):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:40, 20:52] = True
    maps = occlusion(Sees(mask), split.images()[:4], [slice(0, 3 * 4096), slice(3 * 4096, None)], patch=4)
    inside, outside = share_inside(maps, mask.expand(4, -1, -1))
    assert inside > 85 > 10 > outside


def test_shares_name_every_slice(split):
    mask = torch.ones(64, 64, dtype=torch.bool)
    model = Sees(mask)
    split.slices, kept = [slice(0, 3 * 4096), slice(3 * 4096, None)], split.slices
    try: shares = attention_shares(split, model, n=2, patch=16)
    finally: split.slices = kept
    assert shares['area'] == pytest.approx(19.1, abs=.1) and set(shares) == {'r_0', 'r_1', 'area'}


def test_views_are_small_and_whole():
    z = np.random.default_rng(0).normal(size=(50, 6)).astype('float32')
    view = view_data('r', z)
    assert (view['width'], len(view['xy'])) == (6, 50)
    assert np.min(view['xy']) == 0 and np.max(view['xy']) == 1000


def test_command_line_fails_plainly(tmp_path, capsys):
    with pytest.raises(SystemExit) as e: disentangle_gallery(str(tmp_path/'none'))
    assert e.value.code == 2
    assert 'no finished run' in capsys.readouterr().err


def test_page_needs_no_other_file(split):
    page = explorer_html(split, n=40, thumb=16)
    assert not re.findall(r'https?://|(?:src|href)="(?!data:)', page)
    assert '<b>' not in page.replace('<body>', '').split('<script type="application/json"')[0]


@pytest.fixture(scope='module')
def page(split, tmp_path_factory):
    path = tmp_path_factory.mktemp('explorer')/'explorer.html'
    assert write_explorer(split, path, thumb=16) == path.stat().st_size
    return path


settled = 'new Promise(done => setTimeout(done, 700))'
titles = "[...document.querySelectorAll('#near h2')].map(h => [h.textContent, [...h.nextSibling.children].map(t => [t.title, t.className])])"
at_dot = '''(i, type) => { const [x, y] = place(i), box = canvas.getBoundingClientRect(), s = box.width / canvas.width;
    canvas.dispatchEvent(new PointerEvent(type, {clientX: box.left + x * s, clientY: box.top + y * s})); return over; }'''


@in_browser
def test_pointing_shows_the_image_and_its_neighbours(split, page, browser):
    browser.open(page)
    browser.run(settled)
    assert not browser.problems and not browser.requests
    hit = browser.run(f'({at_dot})(5, "pointermove")')
    factors = split.parts['test'][1]
    assert browser.run("document.querySelector('#one p').textContent") == 'DC {} · DL {} · BC <b>{}</b>'.format(*factors[hit])
    near = dict(browser.run(titles))
    assert list(near) == ['nearest by r', 'nearest by r_0', 'nearest by r_1']
    for name, word in (('r_0', f'DC {factors[hit][0]} '), ('r_1', f'BC <b>{factors[hit][2]}</b>')):
        assert all(word in title for title, _ in near[f'nearest by {name}'])
    assert browser.run("document.querySelectorAll('main b').length") == 0


@in_browser
@pytest.mark.parametrize('size', [desktop, phone], ids=['desktop', 'phone'])
def test_two_clicks_put_images_together(size, split, page, browser):
    browser.open(page, size)
    browser.run(settled)
    factors = split.parts['test'][1]
    rows, wanted, _ = draw_recipes(factors[:, [0, 2]], 1)
    a, b = rows[0].tolist()
    browser.run(f'kept = {a}, show({b})')
    (title, found), *_ = browser.run(titles)
    assert title == 'DC (r_0) of the kept image, BC (r_1) of this image'
    assert all(('right' in css) == (f'DC {wanted[0, 0]} ' in t and f'BC <b>{wanted[0, 1]}</b>' in t) for t, css in found)
    assert 'right' in found[0][1]
    browser.run('kept = null')
    first = browser.run(f'({at_dot})({a}, "click"); kept')
    assert browser.run(f'({at_dot})({a}, "click"); kept') is None and first is not None
    assert browser.run('document.documentElement.scrollWidth <= document.documentElement.clientWidth')


@in_browser
def test_choices_move_and_colour_the_dots(page, browser):
    browser.open(page)
    for k, factor in ((0, 'DL'), (2, 'BC')):
        browser.run(f"$('view').value = {k}, $('factor').value = data.factors.findIndex(f => f.name === '{factor}'), $('view').onchange()")
        browser.run(settled)
        assert browser.run('JSON.stringify(at) === JSON.stringify(view().xy)')
        assert browser.run("$('reads').textContent").startswith(f'A linear probe reads {factor} from {"r" if k == 0 else "r_1"} at ')
        assert browser.run("$('legend').children.length") == {'DL': 8, 'BC': 10}[factor]
    shown = 'ctx.getImageData(0, 0, canvas.width, canvas.height).data.reduce((n, v, i) => n + (i % 4 === 3 && v > 0), 0)'
    dots = browser.run(shown)
    browser.run("$('pictures').click()")
    browser.run(settled)
    assert browser.run(shown) > dots > 0


def test_page_of_the_site_is_in_sync():
    page = (root/'nbs/explorer.html').read_text(encoding='utf-8')
    script = gallery._MAP + gallery._MOVE + gallery._SIDE + gallery._PLAY
    assert gallery._STYLE in page and gallery._BODY in page and script in page, 'write nbs/explorer.html again: the last cell of 17_gallery'


@in_browser
def test_page_of_the_site_works(browser):
    "The explorer that the documentation shows opens from disk"
    browser.open(root/'nbs/explorer.html')
    browser.run(settled)
    assert not browser.problems and not browser.requests
    assert browser.run('data.views.map(v => v.name)') == ['r', 'r_0', 'r_1']
    assert browser.run('n') >= 300 and len(browser.run(titles)) == 3


@pytest.mark.parametrize('convert', [torch.tensor, lambda a: a.tolist(), pd.DataFrame, lambda a: a[::-1].copy()[::-1]])
def test_embeddings_and_factors_of_any_container(split, convert):
    parts = {p: tuple(map(convert, pair)) for p, pair in split.parts.items()}
    assert retrieval_accuracy(Embedded(parts, split.images())) == retrieval_accuracy(split)


def test_too_few_images_to_retrieve_from(split):
    few = Embedded({'train': split.parts['train'], 'test': tuple(a[:6] for a in split.parts['test'])}, split.images()[:6])
    with pytest.raises(ValueError, match='between 1 and 4'): retrieval_accuracy(few, k=5)


@pytest.mark.parametrize('size, patch, stride', [(50, 12, 4), (9, 9, 4), (10, 3, 3)])
def test_every_pixel_is_hidden(size, patch, stride):
    "Of an encoder that sees each pixel, none is left at 0"
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size**2, 4))
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    assert (occlusion(model, images, [slice(2), slice(2, 4)], patch, stride) > 0).all()
    for wrong in ((size + 1, 1), (2, 3)):
        with pytest.raises(ValueError, match='leave gaps'): occlusion(model, images, [slice(4)], *wrong)
