"Figures on the pages of results are those of the records in `results/`."
import json
from pathlib import Path

import pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory

from disentangle_nb.study import expand, read_records, recorded

root = Path(__file__).parents[1]
studies = [p for p in sorted((root/'results').glob('*.json')) if 'grid' in json.loads(p.read_text())]
pages = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if 'read_records(\'../results' in p.read_text(encoding='utf-8')]


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
    "Each record has the options of a run of the grid, the chosen weights aside"
    table, records = json.loads(study.read_text()), read_records(study.with_suffix('.jsonl'))
    runs = expand(table)
    plain = lambda o: {k: v for k, v in o.items() if k != 'lam'}
    for r in records:
        same = [o for o in runs if plain(o) == plain(r['options'])]
        assert any(o.get('lam') in ('best', r['options'].get('lam')) for o in same), r['options']
        said = {k: v for k, v in r['options'].items() if k in ('reg', 'base', 'seed', 'bs', 'steps', 'dim', 'hidden', 'tau', 'flip', 'data')}
        assert said == {k: r['config'][k] for k in said}
    assert len({json.dumps(r['options'], sort_keys=True) for r in records}) == len(records)


@pytest.mark.parametrize('study', studies, ids=lambda p: p.stem)
def test_every_record_is_listed(study): assert len(recorded(study)) == len(read_records(study.with_suffix('.jsonl')))


@pytest.mark.parametrize('study', studies, ids=lambda p: p.stem)
def test_records_hold_no_path_of_a_machine(study):
    text = study.with_suffix('.jsonl').read_text() if study.with_suffix('.jsonl').exists() else ''
    assert '"/' not in text
