"Figures on the pages of results are those of the records in `results/`; and what was tried is what its names say."
import json, runpy
from pathlib import Path

import pytest, torch
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory

from disentangle_nb.infonce import info_nce
from disentangle_nb.losses import BASES, REGULARIZERS
from disentangle_nb.study import read_records, recorded

root = Path(__file__).parents[1]
studies = [p for p in sorted((root/'results').glob('*.json')) if 'grid' in json.loads(p.read_text())]
pages = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if all(w in p.read_text(encoding='utf-8') for w in ('read_records(', '../results/'))]


def texts(cells):
    "What each cell shows in words: Markdown, else plain text unless it names an object by its address"
    shown = []
    for cell in cells:
        for o in cell.get('outputs', []):
            data = o.get('data', {})
            text = ''.join(data.get('text/markdown') or data.get('text/plain', ''))
            if text and '<Figure' not in text and '<IPython' not in text: shown.append(text.strip())
    return shown


def test_there_are_pages_and_studies(): assert pages and studies


@pytest.mark.parametrize('page', pages, ids=lambda p: p.stem)
def test_page_shows_what_the_records_give(page):
    stored, nb = texts(json.loads(page.read_text(encoding='utf-8'))['cells']), read_nb(page)
    with working_directory(page.parent):
        CaptureShell(page).run_all(nb, exc_stop=True, preproc=lambda cell: cell.cell_type != 'code' or 'nbdev_export(' in cell.source or '#| slow' in cell.source)
    assert texts(nb.cells) == stored, f'run `python .ci/run_nbs.py {page.stem}`'


@pytest.mark.parametrize('study', studies, ids=lambda p: p.stem)
def test_records_belong_to_their_study(study):
    "Each run of the grid has one record at most, and each record is of a run and has its options"
    records = read_records(study.with_suffix('.jsonl'))
    assert len(recorded(study)) == len(records)
    for r in records:
        said = {k: v for k, v in r['options'].items() if k in ('reg', 'base', 'seed', 'bs', 'steps', 'dim', 'hidden', 'tau', 'flip', 'data')}
        assert said == {k: r['config'][k] for k in said}


@pytest.mark.parametrize('study', studies, ids=lambda p: p.stem)
def test_records_hold_no_path_of_a_machine(study):
    text = study.with_suffix('.jsonl').read_text() if study.with_suffix('.jsonl').exists() else ''
    assert '"/' not in text


@pytest.fixture
def tried():
    "The losses of results/tried.py by name, which the package forgets again"
    known = dict(REGULARIZERS), dict(BASES)
    runpy.run_path(str(root/'results/tried.py'))
    yield lambda name, **kwargs: {**REGULARIZERS, **BASES}[name](tau=.2, **kwargs)
    for there, before in zip((REGULARIZERS, BASES), known):
        for name in set(there) - set(before): del there[name]


@pytest.mark.parametrize('name', ['dcor', 'crosscov', 'joint_entropy', 'club'])
def test_what_was_tried_tells_copies_from_independent_slices(tried, name):
    a, b = torch.randn(2, 256, 8, generator=torch.Generator().manual_seed(0))
    def value(z):
        loss = tried(name)
        for _ in range(20 if name == 'club' else 1): result = loss(*z.chunk(2))
        result.backward()
        assert z.grad.isfinite().all() and z.grad.any()
        return result.item()
    assert value(torch.cat([a, a + .1 * b], 1).requires_grad_()) > value(torch.cat([a, b], 1).requires_grad_()) + .1


def test_contrast_that_was_tried(tried):
    "Negatives that are all alike in the first slice weigh the same, and similarities moved against NT-Xent make it larger"
    y, alike = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.ones(64, 4)
    conditional = tried('conditional', n_slices=(4, 8))
    conditional.ready = True
    both = info_nce(*y.chunk(2), tau=.2) + info_nce(*alike.chunk(2), tau=.2)
    torch.testing.assert_close(conditional(*torch.cat([alike, y], 1).chunk(2)), both, atol=1e-5, rtol=1e-5)
    assert tried('modified')(*y.chunk(2)) > info_nce(*y.chunk(2), tau=.2)
