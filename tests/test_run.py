"Runs: options that are refused at once, and folders that lose nothing"
import shutil, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt, numpy as np, pytest, torch
from PIL import Image
from fastai.learner import load_learner

from disentangle_nb.losses import DisentangleLoss
from disentangle_nb.model import SlicedModel
from disentangle_nb.overlay import DamagedFile, PairStream, RankStream, load_source, pair_dls
from disentangle_nb.probing import card_from_accuracy
from disentangle_nb.results import Run, floors, judge, of_seen_classes, plot_losses, results_table, with_baseline
from disentangle_nb.run import OPTIONS, check_config, config_of, load_sources, run_options, use_bf16
from disentangle_nb.sharing import disentangle_share, load_model, save_hub
from disentangle_nb.training import Interrupted, disentangle_learner, embed_pairs, train

TINY = dict(data='embedded', steps=6, bs=12, size=32, epoch=3, dim=12, threads=1, precision='fp32', crop='random')


def go(folder, resume=False, **options): return run_options(OPTIONS | TINY | options, folder, resume, True)


@pytest.fixture(scope='module')
def finished(tmp_path_factory): return go(tmp_path_factory.mktemp('runs')/'three', kinds='DC-BC,DC-DL,DL-BC', base='routed', slices='3').folder


@pytest.fixture
def copied(finished, tmp_path): return shutil.copytree(finished, tmp_path/'copy')


@pytest.mark.parametrize('options, message', [
    (dict(start=6), 'start must be before the last of the 6 steps'), (dict(lam=float('nan')), 'lam must be between'), (dict(lam=-1), 'lam must be'),
    (dict(lr=0), 'lr must be positive'), (dict(lr=float('inf')), 'lr must be'), (dict(wd=-1), 'wd must be'), (dict(tau=float('inf')), 'tau must be'),
    (dict(contrast=5), 'contrast must be between 0 and 1'), (dict(shift=float('inf')), 'shift must be'),
    (dict(kinds='none'), 'share no factor'), (dict(kinds='DC,BC,none', base='inferred', start=3), 'leave it out'), (dict(kinds='DC,none', base='routed', slices='1'), 'leave it out'),
    (dict(reg='hess', slices='1'), 'there is one only'), (dict(hold=True, slices='1'), 'there is one only'), (dict(base='category', start=3, slices='12'), 'two at least'),
    (dict(lam=1e39), 'lam must be between'), (dict(threads=10**6), 'threads must be'), (dict(seed=10**20), 'seed must be'),
    (dict(kinds='DC,BC', base='inferred', start=3, slices='4,4,4'), r'2 \(DC, BC\), got 3; give --slices 2'),
    (dict(kinds='DC,BC', base='routed', slices='3'), 'give --slices 2'),
    (dict(base='whole', agree=.9), '--agree is for the base category'), (dict(base='whole', balance=1.), '--balance is for the base category'),
    (dict(base='category', start=3, balance=-1.), 'balance must be 0 or more'),
    (dict(digits=''), '--digits is empty'), (dict(released=''), '--released is empty'), (dict(path='nowhere'), 'give --data mnist_stl10 too'),
    (dict(reg='hes'), 'unknown regulariser'), (dict(kinds='XX'), 'unknown kind'), (dict(data='nowhere'), 'unknown source'), (dict(arch='resnet19'), 'unknown encoder'),
    (dict(slices='5'), 'does not split'), (dict(bs=1), 'too small'), (dict(tau=0), 'tau must be positive'),
    (dict(base='routed'), 'do not tell DC, BC apart'), (dict(base='inferred', kinds='DC,BC'), 'needs --start'),
    (dict(base='inferred', kinds='DC-BC,BC', start=4), 'have no names')])
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message): go(tmp_path/'run', **options)
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('options, message', [
    (dict(base='category', slices='6,6', start=0), 'needs --start'), (dict(kinds='none'), 'share no factor'), (dict(arch='resnet19'), 'unknown encoder'),
    (dict(reg='ortho', slices='2,10'), 'equally wide'), (dict(reg='hsic_white', slices='2', dim=48), 'more rows'), (dict(reg='hsic_debiased', bs=3), 'at least 4 pairs'),
    (dict(size=16), 'does not fit'), (dict(data='embedded', path=None, scheme='official'), 'give --data mnist_stl10')])
def test_wrong_options_are_refused_before_images_are_looked_for(tmp_path, options, message):
    with pytest.raises(ValueError, match=message): go(tmp_path/'run', **dict(data='mnist_stl10', path=str(tmp_path/'nowhere')) | options)


def test_options_of_a_regulariser_that_is_not_there_are_told(tmp_path):
    with pytest.warns(UserWarning, match='warmup=2, hold=True is for a regulariser, and none is chosen'), pytest.raises(ValueError, match='unknown source'):
        go(tmp_path/'run', data='nowhere', warmup=2, hold=True)


def test_regularisers_are_tried_without_touching_the_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for reg in ('ortho_redrawn', 'hess', 'hsic_white'): check_config(config_of(OPTIONS | dict(reg=reg)))
    assert torch.equal(torch.get_rng_state(), before)


def command(*args): return subprocess.run([Path(sys.executable).with_name('disentangle_run'), *args], capture_output=True, text=True)


def test_a_wrong_option_ends_with_one_line(tmp_path):
    done = command('--reg', 'hes', '--quiet', '--out', str(tmp_path/'run'))
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert [l for l in done.stderr.splitlines() if l.startswith('error: unknown regulariser')]


def test_help_explains_each_option():
    text = command('--help').stdout
    assert not [name for name in OPTIONS if f'  --{name} ' not in text] and '(default: embedded)' in text


def test_an_option_that_fails_later_does_not_take_the_folder(tmp_path):
    with pytest.raises(ValueError): go(tmp_path/'run', reg='infomin', slices='4,8')
    assert (go(tmp_path/'run', steps=3).folder/'figure.png').exists()


def test_images_are_those_that_were_embedded(finished):
    run = Run(finished)
    for part in ('train', 'test'):
        x = run.images(part)[:64].float() / 255 * 4 - 2
        with torch.no_grad(): z = load_model(finished)(x)
        torch.testing.assert_close(z, torch.as_tensor(run.parts[part][0][:64]), atol=1e-4, rtol=1e-4)


def test_tables_have_a_column_for_each_slice(finished):
    table = results_table([Run(finished)])
    assert table.splitlines()[0].count('r_2') == 3


def test_baseline_is_of_the_same_data_and_factors(finished):
    run, other = Run(finished), Run(finished)
    other.config = run.config | {'reg': 'none', 'base': 'sub'}
    r3 = lambda: results_table([other, run]).splitlines()[-1].split('|')[-3].strip()
    assert r3() == '0.0'
    for k, v in (('data', 'mnist_stl10'), ('size', 64), ('same', 'instance'), ('released', 'shards'), ('scheme', 'official')):
        other.config = run.config | {'reg': 'none', 'base': 'sub', k: v}
        assert r3() == ''


def test_baseline_is_of_the_same_seed_where_there_is_one():
    runs = [SimpleNamespace(config=OPTIONS | {'reg': reg, 'seed': seed, 'seconds': 1}, title=f'{reg} {seed}', card=card_from_accuracy(
        {s: {'DC': dc, 'BC': 50.} for s in ('r', 'r_0', 'r_1')}, {'DC': 10., 'BC': 10.})) for reg, seed, dc in (('none', 0, 90.), ('none', 1, 80.), ('hess', 1, 70.), ('hess', 2, 70.))]
    assert [card.R3 for card in with_baseline(runs)] == [0, 0, 5, 10]


def test_images_that_have_changed_are_refused(finished):
    run = Run(finished)
    run.parts['test'][1][0] += 1
    with pytest.raises(ValueError, match='have changed since'): run.images()


def test_images_of_the_same_factors_that_have_changed_are_refused(finished):
    run = Run(finished)
    assert len(run.config['images'].split()) == 3 and len(run.images('valid'))
    run.config['images'] = 'x ' * 3
    with pytest.raises(ValueError, match='have changed since'): run.images('valid')


def test_an_unfinished_run_goes_on_with_its_own_images_only(copied, monkeypatch):
    (copied/'scorecard.json').unlink()
    go_on = lambda: go(copied, True, kinds='DC-BC,DC-DL,DL-BC', base='routed', slices='3')
    with monkeypatch.context() as changed:
        changed.setattr('disentangle_nb.run.load_sources', lambda config: {part: replace(s, photos=255 - s.photos) for part, s in load_sources(config).items()})
        with pytest.raises(ValueError, match='other options: images was'): go_on()
    assert (go_on().folder/'scorecard.json').exists()


def test_a_folder_of_images_may_move_until_the_run_is_finished(tmp_path):
    for name in 'ab':
        (tmp_path/'here'/name).mkdir(parents=True)
        for i in range(20): Image.fromarray(np.diag(np.full(28, 9 * i + 9, np.uint8))).save(tmp_path/'here'/name/f'{i}.png')
    go(tmp_path/'run', digits=str(tmp_path/'here'))
    shutil.copytree(tmp_path/'here', tmp_path/'there')
    with pytest.raises(ValueError, match='other options: digits was'): go(tmp_path/'run', True, digits=str(tmp_path/'there'))
    images = Run(tmp_path/'run').images()
    (tmp_path/'here').rename(tmp_path/'gone')
    with pytest.raises(FileNotFoundError, match='not a folder'): Run(tmp_path/'run').images()
    assert (Run(tmp_path/'run', digits=tmp_path/'there').images() == images).all()
    (tmp_path/'gone').rename(tmp_path/'here')
    (tmp_path/'run'/'scorecard.json').unlink()
    assert go(tmp_path/'run', True, digits=str(tmp_path/'there')).config['digits'] == str(tmp_path/'there')
    Image.fromarray(np.eye(28, dtype=np.uint8)).save(tmp_path/'there'/'a'/'0.png')
    with pytest.raises(ValueError, match='have changed since'): Run(tmp_path/'run', digits=tmp_path/'there').images()
    (tmp_path/'run'/'scorecard.json').unlink()
    with pytest.raises(ValueError, match='images was'): go(tmp_path/'run', True, digits=str(tmp_path/'there'))


def test_floors_are_drawn_where_they_hold(finished):
    run = Run(finished)
    assert floors(run) == {}
    run.config |= {'base': 'sub', 'kinds': ['DC-DL']}
    run.card = card_from_accuracy({'r': {'DC': 90., 'DL': 90., 'BC': 10.}, 'r_0': {'DC': 90., 'DL': 10., 'BC': 10.}}, {'DC': 10., 'DL': 12.5, 'BC': 10.}, shared=('DC', 'DL'))
    assert floors(run) == {'DL': 8, 'DC': 10, 'DC and DL': 80}
    for row in run.steps: row['infomin'] = -row['loss']
    assert plot_losses(run).get_yscale() == 'linear'
    plt.close('all')


def test_hub_folder_is_not_the_run_folder(finished):
    before = (finished/'config.json').read_bytes()
    with pytest.raises(ValueError, match='choose another'): save_hub(Run(finished), finished)
    assert (finished/'config.json').read_bytes() == before


def test_missing_figure_is_drawn(copied):
    (copied/'figure.png').unlink()
    go(copied, True, kinds='DC-BC,DC-DL,DL-BC', base='routed', slices='3')
    assert (copied/'figure.png').exists()


@pytest.mark.parametrize('name, use', [('weights.pt', load_model), ('weights.pt', lambda f: save_hub(Run(f), f/'hub')), ('embeddings.npz', lambda f: Run(f).parts),
                                       ('embeddings.npz', lambda f: save_hub(Run(f), f/'hub')),
                                       ('scorecard.json', Run), ('config.json', Run), ('steps.csv', lambda f: Run(f).steps)])
def test_damaged_files_are_named(copied, name, use):
    whole = (copied/name).read_bytes()
    (copied/name).write_bytes(whole[:len(whole) // 2] if name != 'steps.csv' else whole.replace(b'0.', b'x', 1))
    with pytest.raises(DamagedFile, match=f'{name} is damaged'): use(copied)


@pytest.mark.parametrize('text', ['{"data": ', '[1]', 'null'])
def test_damaged_options_are_named(copied, text):
    (copied/'config.json').write_text(text)
    for options in (OPTIONS, OPTIONS | TINY):
        with pytest.raises(ValueError, match='config.json is damaged'): run_options(options, copied, True, True)


@pytest.mark.parametrize('left', ['scorecard.json', None])
def test_missing_options_are_those_of_the_checkpoint(copied, left):
    config, card = Run(copied).config, Run(copied).card
    (copied/'config.json').unlink()
    if left: (copied/left).unlink()
    with pytest.raises(ValueError, match='steps was 6, now 7'): go(copied, True, steps=7)
    assert not (copied/'config.json').exists()
    again = run_options(OPTIONS | {'threads': 1}, copied, True, True)
    assert {k: again.config[k] for k in config if k not in ('seconds', 'hardware')} == {k: v for k, v in config.items() if k not in ('seconds', 'hardware')}
    assert again.card == card


def test_rows_of_classes_that_training_lacks_are_left_out():
    rng = np.random.default_rng(0)
    rows = lambda n, least: (rng.normal(size=(n, 4)).astype('float32'), np.stack([np.arange(n) % 3, np.arange(n) % 2, least + np.arange(n) % (5 - least)], 1))
    parts = dict(train=rows(60, 2), valid=rows(30, 2), test=rows(30, 1))
    with pytest.warns(UserWarning, match='of 30 images are of classes that none'): seen = of_seen_classes(parts)
    assert [len(y) for _, y in seen.values()] == [60, 30, (parts['test'][1][:, 2] > 1).sum()] and seen['test'][1][:, 2].max() == 2
    with pytest.warns(UserWarning): card, _ = judge(parts, 2, ('DC', 'BC'))
    assert card == judge(seen, 2, ('DC', 'BC'))[0]


@pytest.mark.parametrize('kept', [0, -3, -30])
def test_a_table_that_is_cut_is_named(copied, kept):
    whole = (copied/'steps.csv').read_bytes()
    (copied/'steps.csv').write_bytes(whole[:kept])
    with pytest.raises(DamagedFile, match='steps.csv is damaged'): Run(copied).steps


def test_a_card_overwrites_no_notes(copied):
    card = copied/'README.md'
    for _ in range(2): disentangle_share(str(copied))
    assert card.read_text().startswith('---')
    card.write_text('mine')
    with pytest.raises(SystemExit): disentangle_share(str(copied))
    assert card.read_text() == 'mine'


def test_a_hub_folder_is_no_project(finished, tmp_path):
    (tmp_path/'README.md').write_text('mine')
    with pytest.raises(ValueError, match='a README.md that belongs to no run'): save_hub(Run(finished), tmp_path)
    assert (tmp_path/'README.md').read_text() == 'mine'


def learner(folder=None, **kwargs):
    torch.manual_seed(0)
    dls = pair_dls(load_source(size=32), load_source(split='valid', size=32), bs=6, n_batches=5, n_valid=1, device='cpu')
    return disentangle_learner(dls, SlicedModel(dim=8, size=32), DisentangleLoss(), folder=folder, **kwargs)


def test_a_folder_of_another_training_is_refused(tmp_path):
    train(learner(tmp_path), 2, progress=False)
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match='another training'): train(learner(tmp_path), 2, progress=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == kept


def test_an_exported_learner_knows_no_folder(tmp_path):
    learn = learner(tmp_path/'run')
    train(learn, 2, progress=False)
    kept = {p.name: p.read_bytes() for p in (tmp_path/'run').iterdir()}
    learn.path = tmp_path
    learn.export()
    assert learn.history.folder == tmp_path/'run' and hasattr(learn, 'checkpoint')
    loaded = load_learner(tmp_path/'export.pkl')
    loaded.dls = learner().dls
    train(loaded, 4, progress=False)
    assert {p.name: p.read_bytes() for p in (tmp_path/'run').iterdir()} == kept


def test_steps_before_an_interrupt_stay_in_the_history(monkeypatch):
    learn = learner()
    losses, step = [], learn.loss_func.loss.forward
    def interrupted(*args):
        losses.append(len(losses))
        if len(losses) == 3: signal.raise_signal(signal.SIGINT)
        return step(*args)
    monkeypatch.setattr(learn.loss_func.loss, 'forward', interrupted)
    with pytest.raises(Interrupted): train(learn, 5, progress=False)
    train(learn, 5, progress=False)
    assert [int(row['step']) for row in learn.history.steps] == [0, 1, 2, 3, 4]


def test_ranks_embed_the_pairs_of_all():
    stream, model = PairStream(load_source(split='valid', size=32), 'DC-BC,DL', bs=8), SlicedModel(dim=8, size=32)
    for a, b in zip(embed_pairs(model, RankStream(stream, 1, 2), 20), embed_pairs(model, stream, 20)): assert torch.equal(a, b)


def test_a_resumed_run_says_what_it_goes_on_with(copied, tmp_path, capsys):
    resumed = lambda out, given: run_options(given, out, True, False)
    resumed(copied, OPTIONS | {'threads': 1})
    assert capsys.readouterr().err == f'going on with the run in {copied} and its options\n'
    with pytest.raises(ValueError, match='steps was 6, now 7'): resumed(copied, OPTIONS | TINY | {'steps': 7})
    assert capsys.readouterr().err == f'going on with the run in {copied}\n'
    resumed(tmp_path/'new', OPTIONS | TINY | {'steps': 2})
    assert capsys.readouterr().err.startswith(f'no run in {tmp_path/"new"} yet: a new one begins\n')


@pytest.mark.parametrize('capability, chosen', [(7, False), (8, True)])
def test_bfloat16_is_chosen_where_a_gpu_computes_in_it(monkeypatch, capability, chosen):
    told = dict(is_available=True, current_device=0, get_device_properties=SimpleNamespace(major=capability))
    for name, value in told.items(): monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert use_bf16('auto') == chosen


@pytest.mark.parametrize('name, text, message', [('config.json', '[]', 'it holds list'), ('weights.pt', None, 'weights.pt is damaged')])
def test_files_of_another_kind_are_named(copied, name, text, message):
    if text is None: (copied/name).write_bytes((copied/name).read_bytes()[:5000])
    else: (copied/name).write_text(text)
    with pytest.raises(ValueError, match=message): Run(copied), load_model(copied)


def test_embeddings_of_a_run_are_finite(copied):
    with np.load(copied/'embeddings.npz') as z: arrays = dict(z)
    arrays['test_embeddings'][3] = np.nan
    np.savez(copied/'embeddings.npz', **arrays)
    with pytest.raises(DamagedFile, match='test embeddings have NaN or infinite values in 1 of'): Run(copied).parts
