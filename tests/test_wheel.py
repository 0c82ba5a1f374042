"The wheel: the package's modules and nothing else, and the requirements of each kind of user, who needs no other."
import configparser, email, re, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
left_out = shutil.ignore_patterns('.git', '.venv', 'runs', 'build', '_docs', '_proc', '*.egg-info', '__pycache__', '.hypothesis')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the checkout with everything in it that might slip in"
    folder = tmp_path_factory.mktemp('wheel')
    source = shutil.copytree(root, folder/'source', ignore=left_out, symlinks=True)
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', folder, source]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    path, = folder.glob('*.whl')
    return zipfile.ZipFile(path)


def test_holds_no_notebook_and_no_data(wheel):
    assert not [n for n in wheel.namelist() if re.search(r'\.(ipynb|npz|png|svg|jpe?g|pt|csv|tfrecord)$', n)]


@pytest.fixture(scope='module')
def metadata(wheel):
    name, = (n for n in wheel.namelist() if n.endswith('.dist-info/METADATA'))
    return email.message_from_bytes(wheel.read(name))


def lines(metadata, extra=''):
    "The requirements that `pip install disentangle_nb[extra]` adds, without their markers"
    split = [line.replace("'", '"').partition(';') for line in metadata.get_all('Requires-Dist')]
    return [line.strip() for line, _, marker in split if (f'extra == "{extra}"' if extra else '') in marker and bool(marker) == bool(extra)]


def required(metadata, extra=''): return {re.match(r'[\w-]+', line)[0] for line in lines(metadata, extra)}


def test_holds_the_modules_and_metadata_only(wheel):
    modules = {str(p.relative_to(root)) for p in (root/'disentangle_nb').rglob('*.py')}
    assert {n for n in wheel.namelist() if '.dist-info/' not in n} == modules | {'disentangle_nb/py.typed'}
    assert sum(i.file_size for i in wheel.infolist()) < 1_000_000


def test_holds_the_licence(wheel):
    name, = (n for n in wheel.namelist() if n.endswith('/LICENSE'))
    assert b'Apache License' in wheel.read(name)


def test_a_borrower_pays_for_torch_only(metadata): assert required(metadata) == {'torch'}


measure = {'numpy', 'scipy', 'scikit-learn'}
train = measure | {'fastcore', 'filelock', 'torchvision', 'fastai', 'pillow', 'matplotlib', 'scikit-image'}


def test_extras(metadata):
    assert set(metadata.get_all('Provides-Extra')) == {'metrics', 'train', 'dev'}
    assert required(metadata, 'metrics') == measure
    assert required(metadata, 'train') == train
    assert required(metadata, 'dev') >= train | {'nbdev', 'execnb', 'plum-dispatch', 'smalldocs', 'pytest', 'hypothesis', 'pyright'}


def test_only_development_is_pinned(metadata):
    assert not [line for line in lines(metadata, 'train') if '==' in line]
    assert {'fastai==2.8.7', 'smalldocs==0.5.4'} <= set(lines(metadata, 'dev'))


def test_metadata_is_that_of_settings(metadata):
    config = configparser.ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    cfg = config['DEFAULT']
    assert (metadata['Name'], metadata['Version'], metadata['Summary']) == (cfg['lib_name'], cfg['version'], cfg['description'])
    assert metadata['Requires-Python'] == '>=' + cfg['min_python']


def test_commands(wheel):
    name, = (n for n in wheel.namelist() if n.endswith('/entry_points.txt'))
    commands = configparser.ConfigParser()
    commands.read_string(wheel.read(name).decode())
    assert set(commands['console_scripts']) == {'disentangle_run', 'disentangle_report', 'disentangle_metrics', 'disentangle_share', 'disentangle_study', 'disentangle_gallery'}


def without(modules, code):
    "What `code` prints where `modules` cannot be imported"
    block = f'import sys\nsys.modules.update(dict.fromkeys({sorted(modules)}))'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'{block}\n{code}'], cwd=root, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


only_train = {'fastai', 'fastcore', 'filelock', 'torchvision', 'PIL', 'matplotlib', 'skimage', 'pandas', 'IPython', 'nbdev'}


def test_losses_work_with_torch_only():
    code = """
import torch, disentangle_nb.losses as losses
torch.manual_seed(0)
z0, z1 = torch.randn(2, 8, 6, requires_grad=True)
for name in losses.REGULARIZERS:
    loss = losses.DisentangleLoss(losses.make_reg(name, n_slices=2, tau=.2))(z0, z1)
    loss.backward(retain_graph=True)
    print(name, loss.isfinite().item())
from disentangle_nb.model import SlicedModel
print('model', SlicedModel(dim=6)(torch.randn(2, 3, 64, 64)).shape == (2, 6))"""
    printed = without(only_train | {'numpy', 'scipy', 'sklearn'}, code)
    assert {line.split()[1] for line in printed.splitlines()} == {'True'}


def test_metrics_work_with_their_extra():
    code = """
import numpy as np
from disentangle_nb.metrics import disentangle_metrics, load_embeddings, metrics_card
rng = np.random.default_rng(0)
y = rng.integers(3, size=(300, 2))
card = metrics_card(np.eye(3)[y].reshape(300, 6) + .1 * rng.normal(size=(300, 6)), y, n_boot=2, n_refit=0, n_perm=0, mlp=False)
print(card.match)"""
    assert without(only_train, code).strip() == "{'f0': 'r_0', 'f1': 'r_1'}"
