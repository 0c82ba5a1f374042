"Runs that are killed, stopped, damaged, short of disk or doubled: nothing is lost, and they go on to the last bit"
import csv, errno, io, itertools, multiprocessing, os, random, signal, time, warnings
from pathlib import Path

import pytest, torch
from fastai.callback.core import Callback

from disentangle_nb import overlay, results, run, training
from disentangle_nb.losses import DisentangleLoss, HSICReg, OrthoReg, routes_of
from disentangle_nb.model import SlicedModel, small_resnet
from disentangle_nb.overlay import DamagedFile, Grid, PairStream, Source, cached, load_checked, load_source, only_writer, pair_dls, save_checked, seeded, stream_dls, write_atomic
from disentangle_nb.run import fail_plainly
from disentangle_nb.training import Checkpoint, FindCategories, FindKinds, GradCache, disentangle_learner, last_state, restore, train

resource = pytest.importorskip('resource', reason='a POSIX system is needed: signals and limits')
fork = multiprocessing.get_context('forkserver')  # children of a process that has imported torch and done nothing else
fork.set_forkserver_preload(['disentangle_nb.run'])
steps, epoch = 150, 3


def start(target, *args, **kwargs):
    process = fork.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process


def ended(process):
    process.join(600)
    assert process.exitcode is not None, 'the process hangs'
    return process.exitcode


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, 'it ended, or hangs'
        time.sleep(.002)


# A learner so small that its files cost more than its steps

def tiny_learner(folder, seed=0, loss=None, **kwargs):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    g = seeded(0)
    digits, photos = (torch.randint(256, shape, dtype=torch.uint8, generator=g) for shape in ((40, 8, 8), (40, 20, 20, 3)))
    classes = dict(DC=range(4), DL=range(2), BC=range(4))
    source = Source(digits, torch.arange(40) % 4, photos, torch.arange(40) % 4, classes, size=16, grid=Grid((4,), (0, 8)))
    dls = pair_dls(source, source, 'DC-BC', bs=4, n_batches=epoch, n_valid=1, device='cpu')
    model = SlicedModel(small_resnet((4, 8), 4), dim=8, size=16)
    return disentangle_learner(dls, model, loss or DisentangleLoss(OrthoReg(permute='redrawn')), folder=folder, **kwargs)


def go_on(folder, n=steps, **kwargs):
    warnings.simplefilter('ignore')
    with only_writer(folder):
        state = last_state(folder)
        learn = tiny_learner(folder, seed=1 if state else 0, **kwargs)
        if state: restore(learn, state)
        train(learn, n, progress=False)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    assert ended(start(go_on, folder)) == 0
    return folder


def epochs(folder):
    with open(folder/'epochs.csv') as f: return [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(f)]


def assert_same_run(a, b):
    "The same losses and the same weights, to the last bit, and nothing left over"
    assert (a/'steps.csv').read_text() == (b/'steps.csv').read_text() and epochs(a) == epochs(b)
    a, b = last_state(a), last_state(b)
    for part in ('model', 'loss'): assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    torch.testing.assert_close(a['opt']['state'], b['opt']['state'], rtol=0, atol=0)
    assert torch.equal(a['random']['cpu'], b['random']['cpu']) and a['position'] == b['position']
    assert not list(b['file'].parent.glob('.*.tmp'))


# Killed

class Halves:
    "A file that takes each piece in two halves, so that a process can die between them"
    def __init__(self, file, dying): self.file, self.second = file, dying(file.write)
    def __enter__(self): return self
    def __exit__(self, *args): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, piece):
        self.file.write(piece[:len(piece)//2])
        self.file.flush()
        self.second(piece[len(piece)//2:])


def killed_while_writing(folder, event):
    "Train, and kill this process at the `event`-th half piece, flush, rename or removal of a file"
    events = itertools.count(1)
    def dying(f):
        def wrapper(*args, **kwargs):
            if next(events) == event: os.kill(os.getpid(), signal.SIGKILL)
            return f(*args, **kwargs)
        return wrapper
    overlay.open = lambda path, mode: Halves(open(path, mode), dying) if 'w' in mode else open(path, mode)
    for name in ('fsync', 'replace', 'unlink'): setattr(os, name, dying(getattr(os, name)))
    go_on(folder)


def test_killed_at_20_moments(tmp_path, whole):
    draw = random.Random(0)
    for kill in range(20):
        if kill % 2: assert ended(start(killed_while_writing, tmp_path, draw.randint(1, 36))) == -signal.SIGKILL
        else:
            before, process = set(tmp_path.glob('*.pt')), start(go_on, tmp_path)
            wait_for(lambda: set(tmp_path.glob('*.pt')) - before, process)
            time.sleep(draw.uniform(0, .05))
            process.kill()
            assert ended(process) == -signal.SIGKILL
    assert last_state(tmp_path)['position'] < steps
    assert ended(start(go_on, tmp_path)) == 0
    assert_same_run(whole, tmp_path)


# Asked to stop

class Signal(Callback):
    def __init__(self, signum, at): self.signum, self.at = signum, at
    def before_backward(self):
        if self.dls.train.position == self.at: os.kill(os.getpid(), self.signum)


def stopped(folder, signum, at): fail_plainly(lambda: go_on(folder, cbs=[Signal(signum, at)]))


def test_signals_stop_after_the_step(tmp_path, whole):
    for signum, at in ((signal.SIGTERM, 1), (signal.SIGINT, 50), (signal.SIGTERM, 51), (signal.SIGINT, 149), (signal.SIGTERM, 150)):
        assert ended(start(stopped, tmp_path, signum, at)) == 128 + signum
        assert last_state(tmp_path)['position'] == at
    assert_same_run(whole, tmp_path)


options = dict(steps=120, epoch=4, bs=8, size=32, threads=1, precision='fp32', reg='ortho_redrawn', probe_every=3, quiet=True)


def command(folder, options=options, **kwargs):
    "The command itself, with few images to probe and no picture"
    results.PARTS.update(train=(300, 1), valid=(100, 2), test=(100, 3))
    run.validation_probe = lambda sources, slices: lambda model: {'r DC': float(sum(p.sum() for p in model.parameters()))}
    run.plot_run = run._save = lambda *args: None
    run.disentangle_run(**options, out=str(folder), **kwargs)


def test_command_killed_stopped_and_resumed(tmp_path):
    whole, broken = tmp_path/'whole', tmp_path/'broken'
    assert ended(start(command, whole)) == 0
    for signum, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = set(broken.glob('*.pt'))
        process = start(command, broken, resume=bool(before))
        wait_for(lambda: set(broken.glob('*.pt')) - before, process)
        os.kill(process.pid, signum)
        assert ended(process) == code and not (broken/'scorecard.json').exists()
    assert ended(start(command, broken)) == 2  # without --resume
    assert ended(start(command, broken, dict(threads=1, quiet=True), resume=True)) == 0  # with the options in the folder
    for name in ('steps.csv', 'scorecard.json', 'validation.json'): assert (broken/name).read_text() == (whole/name).read_text()
    assert epochs(broken) == epochs(whole)


# Damaged and foreign files

class Foreign:
    "Runs code when it is unpickled without care"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


damages = dict(truncated=lambda b: b[:-1], half=lambda b: b[:len(b)//2], empty=lambda b: b'', foreign=lambda b: b'PK' + b,
               flipped=lambda b: b[:len(b)//3] + bytes([b[len(b)//3] ^ 4]) + b[len(b)//3 + 1:], digest=lambda b: b[:20] + bytes([b[20] ^ 4]) + b[21:])


@pytest.mark.parametrize('damage', damages)
def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    tiny = tiny_learner(tmp_path)
    train(tiny, 9, progress=False)
    older, newest = sorted(tmp_path.glob('*.pt'))
    newest.write_bytes(damages[damage](newest.read_bytes()))
    with pytest.warns(UserWarning, match=f'{newest.name} is .*the checkpoint before it is used'): state = last_state(tmp_path)
    assert state['file'] == older and state['position'] == 6
    restore(again := tiny_learner(tmp_path), state)
    train(again, 9, progress=False)
    assert again.history.steps == tiny.history.steps and sorted(tmp_path.glob('*.pt')) == [older, newest]
    for path in (older, newest): path.write_bytes(damages[damage](path.read_bytes()))
    with pytest.warns(UserWarning), pytest.raises(DamagedFile, match='all 2 checkpoints'): last_state(tmp_path)


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(tmp_path, monkeypatch):
    train(tiny_learner(tmp_path), 9, progress=False)
    older, newest = sorted(tmp_path.glob('*.pt'))
    def load(path):
        if path == newest: raise OSError(5, 'Input/output error', str(path))
        return load_checked(path)
    monkeypatch.setattr(training, 'load_checked', load)
    with pytest.warns(UserWarning, match='Input/output error'): assert last_state(tmp_path)['file'] == older


def test_foreign_file_runs_no_code(tmp_path):
    save_checked(Foreign(tmp_path/'touched'), tmp_path/'a.pt')
    with pytest.raises(DamagedFile, match='foreign'): load_checked(tmp_path/'a.pt')
    assert not (tmp_path/'touched').exists()


@pytest.mark.parametrize('damage', damages)
def test_damaged_cache_is_made_again(own_cache, damage):
    cached('a', [], lambda: torch.arange(100))
    [file] = own_cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(damages[damage](good))
    with pytest.warns(UserWarning, match='rebuilt'): assert cached('a', [], lambda: torch.arange(100)).equal(torch.arange(100))
    assert list(own_cache.iterdir()) == [file] and load_checked(file).equal(torch.arange(100))


# No room on the disk

@pytest.mark.parametrize('call', ['open', 'write', 'fsync', 'replace'])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    class Full(io.FileIO): write = full
    write_atomic(tmp_path/'a', b'old')
    if call in ('fsync', 'replace'): monkeypatch.setattr(os, call, full)
    else: monkeypatch.setattr(overlay, 'open', full if call == 'open' else Full, raising=False)
    with pytest.raises(OSError, match='No space left on device: not written.*a') as e: write_atomic(tmp_path/'a', b'new')
    assert e.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ['a'] and (tmp_path/'a').read_bytes() == b'old'


class LittleRoom(Callback):
    def before_batch(self):
        if self.dls.train.position == 80: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def short_of_room(folder): fail_plainly(lambda: go_on(folder, cbs=[LittleRoom()]))


def test_no_room_for_a_checkpoint(tmp_path, whole):
    assert ended(start(short_of_room, tmp_path)) == 2
    assert last_state(tmp_path)['position'] == 78 and not list(tmp_path.glob('.*.tmp'))
    assert ended(start(go_on, tmp_path)) == 0
    assert_same_run(whole, tmp_path)


def test_no_room_for_a_cache_is_a_warning(own_cache, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.warns(UserWarning, match='going on without a cache'): assert cached('a', [], lambda: 1) == 1
    assert not list(own_cache.iterdir())


# Two runs in one folder

def hold(folder):
    with only_writer(folder):
        (folder/'held').touch()
        time.sleep(600)


def test_second_run_is_refused_until_the_first_is_dead(tmp_path):
    first = start(hold, tmp_path)
    wait_for((tmp_path/'held').exists, first)
    with pytest.raises(BlockingIOError, match='in use by another run'): go_on(tmp_path)
    assert ended(start(command, tmp_path)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', 'held']
    first.kill()
    first.join()
    with only_writer(tmp_path): pass


# A gradient scaler

class Scaled(Callback):
    order = 10
    def before_fit(self): self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=64.)
    def before_backward(self): self.learn.loss_grad = self.scaler.scale(self.loss_grad)
    def after_step(self): self.scaler.update(self.scaler.get_scale() * 2)


class Trained(torch.nn.Module):
    "A loss with parameters"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.read = torch.nn.Linear(4, 4)

    def forward(self, z0, z1): return (self.read(z0[:, :4]) - z1[:, 4:]).square().mean()


def test_parameters_of_a_loss_are_trained_and_go_on(tmp_path):
    learner = lambda folder: tiny_learner(folder, loss=DisentangleLoss(Trained()))
    train(whole := learner(tmp_path), 9, progress=False)
    max(tmp_path.glob('*.pt')).unlink()
    restore(again := learner(None), last_state(tmp_path))
    train(again, 9, progress=False)
    new, first, second = (l.loss_func.loss.regs[0].read.weight for l in (learner(None), whole, again))
    assert again.history.steps == whole.history.steps and torch.equal(first, second) and not torch.equal(first, new)


def test_scaler_goes_on(tmp_path):
    train(first := tiny_learner(tmp_path, cbs=[Scaled()]), 3, progress=False)
    state = last_state(tmp_path)
    assert state['scaler']['scale'] == first.scaler.get_scale() == 64 * 2**3
    restore(second := tiny_learner(None, cbs=[Scaled()]), state)
    train(second, 3, progress=False)
    assert second.scaler.get_scale() == 64 * 2**3


def test_a_schedule_is_checked_after_lr_find_too(tmp_path):
    train(tiny_learner(tmp_path), 8, progress=False)
    resumed = tiny_learner(tmp_path)
    restore(resumed, last_state(tmp_path))
    with resumed.no_bar(), resumed.no_logging(): resumed.lr_find(num_it=4, show_plot=False)
    with pytest.raises(ValueError, match='holds a run of other options: steps was 8, now 12'): train(resumed, 12, progress=False)


def test_lr_find_leaves_a_two_stage_learner_as_it_was():
    torch.manual_seed(0)
    stream, model = PairStream(load_source(size=32), 'DC-BC', 16), SlicedModel(small_resnet((8,), 8), dim=8, n_slices=[4, 4], size=32, categories=True)
    loss = DisentangleLoss(HSICReg(n_slices=[4, 4]), base='category', n_slices=[4, 4], start=9, gain=.1)
    learn = disentangle_learner(stream_dls(stream, stream, n_batches=3, n_valid=1, device='cpu'), model, loss, cbs=[FindCategories(9, agree=-1, every=2, n_pairs=40)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert (learn.find_categories.at, learn.find_categories.looks, loss.gained.item()) == (9, [], 0)
    train(learn, 10, progress=False)
    assert learn.find_categories.at == 2 and [step for step, _ in learn.find_categories.looks] == [2]


def test_a_checkpoint_is_kept():
    with pytest.raises(ValueError, match='keep must be 1 or more, got 0'): Checkpoint('anywhere', keep=0)


def test_a_loss_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match='must be a torch.nn.Module'): tiny_learner(None, loss=lambda z0, z1: (z0 - z1).square().mean())


@pytest.mark.parametrize('at', [2, 3])
def test_weights_that_are_not_finite_are_named_before_categories_are_sought(at):
    class Spoil(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.dls.train.position == 2: next(self.model.encoder.parameters()).data[0] = float('nan')
    torch.manual_seed(0)
    stream, model = PairStream(load_source(size=32), 'DC-BC', 16), SlicedModel(small_resnet((8,), 8), dim=8, n_slices=[4, 4], size=32, categories=True)
    learn = disentangle_learner(stream_dls(stream, stream, n_batches=4, n_valid=1, device='cpu'), model, DisentangleLoss(base='category', n_slices=[4, 4], start=at), cbs=[FindCategories(at, n_pairs=40), Spoil()])
    with pytest.raises(FloatingPointError, match='not finite' if at == 2 else 'step 2'): train(learn, 6, progress=False)


def test_the_teacher_keeps_to_the_chunks_after_a_restart(tmp_path, monkeypatch):
    cut, whole = [], training.in_chunks
    monkeypatch.setattr(training, 'in_chunks', lambda model, forward, size, x: cut.append((model, size)) or whole(model, forward, size, x))
    def sizes():
        torch.manual_seed(0)
        stream, model = PairStream(load_source(size=32), 'DC,BC', 16), SlicedModel(small_resnet((8,), 8), dim=8, size=32)
        loss = DisentangleLoss(base='inferred', start=2, routes=routes_of('DC,BC').values())
        learn = disentangle_learner(stream_dls(stream, stream, n_batches=2, n_valid=1, device='cpu'), model, loss, folder=tmp_path, cbs=[FindKinds(2, 2, n_pairs=64), GradCache(8)])
        if state := last_state(tmp_path): restore(learn, state)
        train(learn, 6, progress=False)
        return [size for model, size in cut if model is learn.find_kinds.teacher]
    assert sizes() == [8] * 6 # two epochs of two steps and a batch of validation
    (tmp_path/'checkpoint-0000006.pt').unlink()
    assert sizes() == [8] * 3
