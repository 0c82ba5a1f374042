"The repository is in sync: notebooks clean, modules as exported, README as `index.ipynb` gives; what stands beside the code is of this version."
import ast, filecmp, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
import yaml
from nbdev.config import get_config
from nbdev.process import NBProcessor

root = Path(__file__).parents[1]
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def run(*command, cwd=root):
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, text=True, capture_output=True)


def copy_sources(folder):
    "The files that nbdev reads, in `folder`; its commands then leave the checkout alone"
    for name in ('settings.ini', 'setup.py'): shutil.copy(root/name, folder)
    shutil.copytree(root/'nbs', folder/'nbs', symlinks=True)
    (folder/'disentangle_nb').mkdir()
    return folder


@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "A copy of the notebooks, exported and cleaned by nbdev's own commands"
    folder = copy_sources(tmp_path_factory.mktemp('fresh'))
    done = run('-c', 'from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; '
                     'nbdev_export.__wrapped__(); nbdev_clean.__wrapped__()', cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_there_are_notebooks(): assert notebooks


@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: p.stem)
def test_notebook_is_clean(notebook, fresh):
    cleaned = fresh/notebook.relative_to(root)
    assert cleaned.read_bytes() == notebook.read_bytes(), f'run `nbdev_clean --fname {notebook.relative_to(root)}`'


@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: p.stem)
def test_notebook_holds_no_error_and_no_warning(notebook):
    outputs = [o for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells'] for o in cell.get('outputs', [])]
    assert not [o['evalue'] for o in outputs if o['output_type'] == 'error']
    assert not [o['text'] for o in outputs if o.get('name') == 'stderr']


@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: p.stem)
def test_first_cell_holds_title_and_summary_only(notebook):
    "nbdev makes the page's front matter of the first cell and drops the rest of it"
    first = NBProcessor(notebook).nb.cells[0]
    assert first.cell_type == 'markdown' and re.fullmatch(r'# [^\n]+\n+> [^\n]+\n*', first.source)


def mixes_imports(cell):
    "Whether `cell` holds an import beside other code and is run when the site is built: nbdev runs each cell with an import"
    if cell.cell_type != 'code' or cell.directives_.keys() & {'export', 'exports', 'exporti', 'eval:'}: return False
    if 'nbdev_export(' in cell.source or cell.source.lstrip()[:1] in '%!': return False
    tree, imports = ast.parse(cell.source), (ast.Import, ast.ImportFrom)
    return any(isinstance(o, imports) for o in ast.walk(tree)) and not all(isinstance(o, imports) for o in tree.body)


@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: p.stem)
def test_imports_stand_in_cells_of_their_own(notebook):
    assert not [cell.source for cell in NBProcessor(notebook).nb.cells if mixes_imports(cell)]


def test_modules_are_what_the_notebooks_export(fresh):
    exported, here = ({p.name for p in (folder/'disentangle_nb').glob('*.py')} for folder in (fresh, root))
    assert exported == here, 'run `nbdev_export`, and remove modules that have no notebook'
    _, differ, errors = filecmp.cmpfiles(fresh/'disentangle_nb', root/'disentangle_nb', sorted(here), shallow=False)
    assert not differ + errors, 'run `nbdev_export`'


def test_readme_is_what_index_gives():
    done = run('.ci/readme.py', '--check')
    assert done.returncode == 0, done.stderr


def test_quarto_configuration_is_one_file():
    assert (root/'nbs/_quarto.yml').resolve() == root/'_quarto.yml'


def test_version_is_that_of_settings():
    import disentangle_nb
    assert disentangle_nb.__version__ == get_config(path=root).version


def test_citation_and_changes_name_the_version():
    version = get_config(path=root).version
    citation = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert citation['version'] == version
    assert citation['preferred-citation']['identifiers'][0]['value'] == 'arXiv:2108.06613'
    assert f'## {version}' in (root/'CHANGELOG.md').read_text(encoding='utf-8')


def test_changes_name_every_module_and_command():
    text = (root/'CHANGELOG.md').read_text(encoding='utf-8')
    modules = {p.stem for p in (root/'disentangle_nb').glob('[!_]*.py')} - {'run'}
    commands = re.findall(r'^(disentangle_\w+)=', get_config(path=root).console_scripts.replace(' ', '\n'), re.M)
    assert not [name for name in (*modules, *commands) if f'`{name}`' not in text]


def test_workflow_runs_what_we_run_on_three_systems():
    job = yaml.safe_load((root/'.github/workflows/test.yml').read_text(encoding='utf-8'))['jobs']['test']
    assert {name.split('-')[0] for name in job['strategy']['matrix']['os']} == {'ubuntu', 'macos', 'windows'}
    steps = [step.get('run', step.get('uses')) for step in job['steps']]
    assert '.ci/run' in steps
    assert next(i for i, s in enumerate(steps) if 'core.symlinks true' in s) < next(i for i, s in enumerate(steps) if 'checkout' in s)
