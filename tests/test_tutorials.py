"The tutorials: each opens in Colab, says what it gives, exports nothing; and what it adds works on the command line."
import json, re, subprocess, sys
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.process import NBProcessor

from disentangle_nb.run import arguments
from disentangle_nb.study import expand, run_study

root = Path(__file__).parents[1]
tutorials = sorted((root/'nbs'/'tutorials').glob('*.ipynb'))
each = pytest.mark.parametrize('path', tutorials, ids=lambda p: p.stem)


def cells(path): return NBProcessor(path).nb.cells


def test_there_are_seven(): assert len(tutorials) == 7


@each
def test_badge_opens_this_notebook_in_colab(path):
    cfg = get_config(path=root)
    address = f'https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{cfg.branch}/nbs/tutorials/{path.name}'
    image, link = re.fullmatch(r'\[!\[Open in Colab\]\((.+)\)\]\((.+)\)', cells(path)[1].source.strip()).groups()
    assert link == address and (path.parent/image).is_file()


@each
def test_colab_installs_the_package(path):
    cfg, cell = get_config(path=root), cells(path)[2]
    assert cell.directives_['eval:'] == ['false'] and f'{cfg.lib_name}[train] @ git+{cfg.git_url}' in cell.source


@each
def test_opens_with_what_the_reader_will_have(path):
    assert 'At the end of this page you have' in cells(path)[3].source


@each
def test_exports_nothing(path):
    assert not [c for c in cells(path) if {'default_exp', 'export', 'exports', 'exporti'} & c.directives_.keys()]


@each
def test_holds_a_test(path):
    assert re.search(r'^\s*(test_eq|test_close|test)\(', '\n'.join(c.source for c in cells(path) if c.cell_type == 'code'), re.M)


def entered(name, begin):
    "A class of a tutorial, and the lines that its page puts below it in `mine.py`"
    nb = cells(root/'nbs'/'tutorials'/name)
    cls, = {c.source for c in nb if c.cell_type == 'code' and c.source.startswith(begin)}
    prose, = (c.source for c in nb if c.source.startswith('For the command line, keep'))
    return cls.split('\ntest_eq')[0], prose


@pytest.fixture
def mine(tmp_path):
    "The file that the tutorial of regularisers describes, with the encoder of its neighbour"
    cls, prose = entered('regulariser.ipynb', 'class CrossCorrelation')
    net, about = entered('your_encoder.ipynb', 'class PatchNet')
    entry, net_entry = (re.search(r'```python\n(.+?)```', text, re.S)[1] for text in (prose, about))
    imports = 'from torch import nn\nfrom disentangle_nb.infonce import SliceLoss, joined\nfrom disentangle_nb.model import split_slices\nfrom disentangle_nb.regularizers import sum_pairs\n'
    (tmp_path/'mine.py').write_text(imports + '\n'.join([net, cls, net_entry.split('if __name__')[0], entry]), encoding='utf-8')
    return json.loads(re.search(r'```json\n(.+?)```', prose, re.S)[1])


tiny = {'steps': 4, 'epoch': 4, 'bs': 8, 'size': 32, 'dim': 4, 'threads': 1}


def test_own_regulariser_on_the_command_line(mine, tmp_path):
    options = arguments(tiny | {'reg': 'crosscorr', 'lam': 10, 'quiet': True, 'out': 'run'})
    done = subprocess.run([sys.executable, 'mine.py', *options], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert 'crosscorr, λ=10' in done.stdout and (tmp_path/'run'/'scorecard.json').is_file()


def test_own_regulariser_and_encoder_in_a_study(mine, tmp_path):
    "The study file that the tutorial shows, cut to one run"
    assert {row['reg'] for row in mine['grid']} == {'none', 'crosscorr'} and expand(mine)
    path = tmp_path/'mine.json'
    path.write_text(json.dumps(mine | {'recipe': tiny, 'grid': [{'reg': 'crosscorr', 'lam': 10, 'arch': 'patches'}]}))
    record, = run_study(path, tmp_path/'runs')
    assert record['reg'] == 'crosscorr' and record['config']['arch'] == 'patches'
