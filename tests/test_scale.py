"Several processes against one, for every loss, for a whole training and for the command; gradient caching."
import csv, os, signal, subprocess, sys, time, weakref

import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from disentangle_nb.losses import CategoryMax, DisentangleLoss, HSICReg, InfoMax, REGULARIZERS, SubInfoMax, make_reg, routes_of
from disentangle_nb.model import SlicedModel
from disentangle_nb.overlay import Augment, PairStream, RankStream, load_source, stream_dls
from disentangle_nb.training import FindCategories, FindKinds, GradCache, Interrupted, PairLoss, RankLoss, disentangle_learner, distribute, first_then_others, from_first, last_state, process_group, train

PAIRS = 12
LOSSES = dict(infomax=InfoMax, subinfomax=SubInfoMax, **{n: (lambda n=n, **kw: make_reg(n, **kw)) for n in REGULARIZERS if n != 'none'},
              whole=lambda cls=DisentangleLoss, **kw: cls([make_reg(n, **kw) for n in ('hess', 'ortho_redrawn', 'infomin_cross', 'hsic')], lam=[0.1, 1, 0.2, 3], **kw))


class OfProbabilities(nn.Module):
    "`CategoryMax` of embeddings whose first slice is made probabilities"
    def __init__(self, n_slices): super().__init__(); self.loss = CategoryMax(n_slices=n_slices)
    def forward(self, z0, z1): return self.loss(*(torch.cat([z[:, :4].softmax(1), z[:, 4:]], 1) for z in (z0, z1)))

LOSSES['category'] = OfProbabilities


class Tiny(nn.Module):
    "A float64 encoder with a batch norm, and no bias before it: its gradient is zero but for rounding, which Adam blows up"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(48, 12, bias=False), nn.BatchNorm1d(12), nn.Tanh()).double()

    def forward(self, x): return self.net(x.double())


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return SlicedModel(Tiny(), dim=12, n_slices=3, final_norm=False).double()


class SingleLoss(DisentangleLoss):
    "Its value in float32, as fastai's recorder wants it; its gradient in float64"
    def forward(self, z0, z1, *kind): return super().forward(z0, z1, *kind).float()


def learner(folder=None, cbs=(), model=None):
    stream = PairStream(load_source(), ['DC', 'BC'], PAIRS)
    dls = stream_dls(stream, stream, n_batches=3, n_valid=1, device='cpu')
    return disentangle_learner(dls, model or tiny_model(), LOSSES['whole'](n_slices=3, cls=SingleLoss), folder=folder, cbs=cbs)


def batch(): return torch.randn(2 * PAIRS, 3, 64, 64, generator=torch.Generator().manual_seed(3)), torch.arange(PAIRS) % 2


def step(model, loss, x, kind, seed=7):
    "Value of the loss and gradient of every parameter"
    model.zero_grad()
    torch.manual_seed(seed)
    value = loss(model(x), None, kind)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def in_ranks(f, world, folder):
    "What `f(rank, folder)` returns on each of `world` gloo ranks"
    mp.spawn(_rank, (f, world, folder), nprocs=world)
    return [torch.load(folder/f'{r}.pt') for r in range(world)]


def _rank(rank, f, world, folder):
    torch.set_num_threads(1)
    with process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=world):
        group = weakref.ref(dist.group.WORLD)
        torch.save(f(rank, world, folder), folder/f'{rank}.pt')
    assert group() is None, 'the process group outlives its context, and its threads the interpreter'


def loss_steps(rank, world, folder):
    "Every loss on this rank's pairs; the global generators differ between ranks, as they may"
    x, kind = batch()
    own = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    model = tiny_model(seed=rank).eval()
    ddp = DistributedDataParallel(model)
    share = torch.cat([half[own] for half in x.chunk(2)])
    return {name: step(ddp, RankLoss(make(n_slices=3)), share, kind[own], seed=7 + 10 * rank) for name, make in LOSSES.items()}


@pytest.mark.parametrize('world', [2, 3])
def test_losses_and_gradients_equal_those_of_one_process(world, tmp_path):
    ranks, (x, kind), model = in_ranks(loss_steps, world, tmp_path), batch(), tiny_model().eval()
    for name, make in LOSSES.items():
        value, grad = step(model, PairLoss(make(n_slices=3)), x, kind)
        assert grad.abs().max() > 1e-6, name
        for rank in ranks:
            torch.testing.assert_close(rank[name][0], value, rtol=1e-9, atol=1e-9, msg=name)
            torch.testing.assert_close(rank[name][1], grad, rtol=1e-9, atol=1e-9, msg=name)


def short_training(rank, world, folder):
    learn = distribute(learner(folder/f'run{rank}', model=tiny_model(seed=rank)), sync_bn=True)
    torch.manual_seed(100 if rank == 0 else rank)
    train(learn, 8, progress=False)
    return learn.model.state_dict(), [s['loss'] for s in learn.history.steps]


@pytest.mark.parametrize('world', [2, 3])
def test_training_equals_that_of_one_process(world, tmp_path):
    "Same weights on every rank, to the last bit; those of one process within rounding; one rank writes"
    ranks = in_ranks(short_training, world, tmp_path)
    learn = learner(tmp_path/'one')
    torch.manual_seed(100)
    train(learn, 8, progress=False)
    for state, losses in ranks:
        assert list(state) == list(learn.model.state_dict())
        for name, weight in learn.model.state_dict().items():
            assert torch.equal(state[name], ranks[0][0][name]), name
            torch.testing.assert_close(state[name], weight, rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(torch.tensor(losses), torch.tensor([s['loss'] for s in learn.history.steps]))
    assert (tmp_path/'run0'/'steps.csv').exists() and not (tmp_path/'run1').exists()
    state = last_state(tmp_path/'run0')
    assert state['position'] == 8 and list(state['model']) == list(learn.model.state_dict())


def category_training(rank, world, folder):
    torch.manual_seed(rank)
    stream, model = PairStream(load_source(), 'DC-BC', PAIRS), SlicedModel(Tiny(), dim=12, n_slices=[4, 8], categories=True).double()
    loss = SingleLoss(HSICReg(n_slices=[4, 8], debiased=True), base='category', n_slices=[4, 8], start=6, gain=.01)
    learn = disentangle_learner(stream_dls(stream, stream, n_batches=3, n_valid=1, device='cpu'), model, loss, cbs=[FindCategories(6, agree=-1, every=4, n_pairs=60)])
    train(distribute(learn), 8, progress=False)
    return learn.model.state_dict() | {'at': torch.tensor(learn.find_categories.at), **loss.state_dict()}


def test_ranks_have_the_same_categories(tmp_path):
    a, b = in_ranks(category_training, 2, tmp_path)
    assert a['categories.prototypes'].any(1).all()
    assert a['at'] == 4 and a['gained'] != 0
    assert all(torch.equal(w, b[name]) for name, w in a.items() if 'running' not in name and 'tracked' not in name)


def kinds_training(rank, world, folder):
    torch.manual_seed(rank)
    kinds = ['DC-BC', 'DC-DL', 'DL-BC']
    stream, model = PairStream(load_source(), kinds, 2 * PAIRS), tiny_model(rank)
    loss = SingleLoss(HSICReg(n_slices=3, debiased=True), base='inferred', n_slices=3, start=4, routes=routes_of(kinds).values())
    learn = disentangle_learner(stream_dls(stream, stream, n_batches=3, n_valid=1, device='cpu'), model, loss, cbs=[FindKinds(4, 3, n_pairs=400)])
    train(distribute(learn, sync_bn=True), 8, progress=False)
    return learn.find_kinds.state_dict()


def test_ranks_find_the_same_kinds(tmp_path):
    a, b = in_ranks(kinds_training, 2, tmp_path)
    assert all(torch.equal(w, b['mixture'][name]) for name, w in a['mixture'].items())
    assert all(torch.equal(w, b['teacher'][name]) for name, w in a['teacher'].items())
    assert not torch.equal(a['mixture']['scales'][0], a['mixture']['scales'][1])


def failing_first(rank, world, folder):
    def fail(): raise ValueError('known to the first only')
    for ask in (from_first, first_then_others):
        with pytest.raises(ValueError, match='known to the first only'): ask(fail)
    learn = learner()
    learn.loss_func = PairLoss(nn.Linear(1, 1))
    with pytest.raises(ValueError, match='parameters of its own'): distribute(learn)
    return rank


def test_an_error_of_the_first_rank_is_raised_on_all(tmp_path): assert in_ranks(failing_first, 2, tmp_path) == [0, 1]


def training_with_a_part_unused(rank, world, folder):
    model = tiny_model()
    model.encoder.later = nn.Linear(3, 2)
    learn = distribute(learner(model=model))
    with pytest.raises(ValueError) as e: train(learn, 3, progress=False)
    model.encoder.later.requires_grad_(False)
    train(learn, 3, progress=False)
    return str(e.value)


def test_a_parameter_without_a_gradient_is_named(tmp_path):
    for said in in_ranks(training_with_a_part_unused, 2, tmp_path): assert 'encoder.later.weight, encoder.later.bias, and ranks wait' in said


def stopped_training(rank, world, folder):
    "One rank alone is told to stop; the first is told once more while it saves, as torchrun does"
    class Strike(Callback):
        order = 64
        def after_batch(self):
            if self.training and self.dls.train.position == 5 and rank: signal.raise_signal(signal.SIGTERM)
    learn, saved = distribute(learner(folder/'run')), []
    if not rank:
        save = learn.checkpoint.after_epoch
        def slow():
            if learn.stop_on_signal.signum:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(1)
            save()
            saved.append(time.monotonic())
        learn.checkpoint.after_epoch = slow
    with pytest.raises(Interrupted, match='after step 4'): train(learn.add_cb(Strike()), 100, progress=False)
    return time.monotonic(), saved


def test_no_rank_ends_before_the_first_has_saved(tmp_path):
    (_, saved), (ended, _) = in_ranks(stopped_training, 2, tmp_path)
    assert saved[-1] < ended and last_state(tmp_path/'run')['position'] == 5


def cached_training(rank, world, folder):
    learn = distribute(learner(cbs=[GradCache(4)], model=tiny_model().eval()))
    learn.model.train = lambda mode=True: learn.model
    torch.manual_seed(100)
    train(learn, 4, progress=False)
    return [p.detach() for p in learn.model.parameters()]


def test_gradient_caching_in_ranks_equals_one_pass_of_one_process(tmp_path):
    ranks = in_ranks(cached_training, 2, tmp_path)
    learn = learner(model=tiny_model().eval())
    learn.model.train = lambda mode=True: learn.model
    torch.manual_seed(100)
    train(learn, 4, progress=False)
    for rank in ranks:
        for a, b in zip(rank, learn.model.parameters()): torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('size', [2, 5, 24, 100])
def test_cached_gradient_equals_one_pass(size):
    x, kind = batch()
    model, loss = tiny_model().eval(), PairLoss(LOSSES['whole'](n_slices=3))
    value, grad = step(model, loss, x, kind)
    cache = GradCache(size)
    cache.learn = type('Learn', (), {'model': model})
    cache.before_fit()
    cached, cached_grad = step(model, loss, x, kind)
    cache.after_fit()
    torch.testing.assert_close(cached, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cached_grad, grad, rtol=1e-9, atol=1e-12)
    assert 'forward' not in vars(model)


@pytest.mark.parametrize('world', [2, 3, 6])
def test_parts_of_ranks_do_not_overlap(world):
    source = load_source(crop='random')
    stream = PairStream(source, ['DC', 'BC'], PAIRS, augment=Augment(flip=True))
    for b in (0, 7):
        parts = [RankStream(stream, r, world).batch(b) for r in range(world)]
        x, factors, kind = stream.batch(b)
        for whole, pieces in ((x, [p[0] for p in parts]), (factors, [p[1] for p in parts])):
            assert torch.equal(torch.cat([p.unflatten(0, (2, -1)) for p in pieces], 1).flatten(0, 1), whole)
        assert torch.equal(torch.cat([p[2] for p in parts]), kind)


def test_a_rank_composes_its_own_pairs_only(monkeypatch):
    from disentangle_nb import overlay
    composed, compose = [], overlay.compose
    monkeypatch.setattr(overlay, 'compose', lambda source, rows, *args: composed.append(len(rows)) or compose(source, rows, *args))
    RankStream(PairStream(load_source(), 'DC', PAIRS), 1, 3).batch(0)
    assert composed == [2 * PAIRS // 3]


def test_a_batch_must_split_equally():
    stream = PairStream(load_source(), 'DC', 10)
    for world in (3, 10):
        with pytest.raises(ValueError, match=f'10 pairs does not split into {world} equal parts'): RankStream(stream, 0, world)


# The command under torchrun

COMMAND = """
import os, signal, sys, time
import torch
from fastai.callback.core import Callback
from disentangle_nb import results, run
results.PARTS.update(train=(300, 1), valid=(100, 2), test=(100, 3))
run.plot_run = run._save = lambda *args: None
rank, out, train = os.environ.get('RANK', '0'), sys.argv[sys.argv.index('--out') + 1], run.train

class Strike(Callback):
    "After the step STRIKE_AT, SIGKILL to rank 1, or SIGTERM to torchrun, which passes it on"
    order = 64
    def after_batch(self):
        if not self.training or self.dls.train.position != int(os.environ.get('STRIKE_AT', 0)): return
        if os.environ['STRIKE'] == 'SIGKILL' and rank == '1': os.kill(os.getpid(), signal.SIGKILL)
        if os.environ['STRIKE'] == 'SIGTERM' and rank == '0':
            os.kill(os.getppid(), signal.SIGTERM)
            while not self.stop_on_signal.signum: time.sleep(.01)

def watched(learn, *args):
    train(learn.add_cb(Strike()), *args)
    torch.save(learn.model.state_dict(), f'{out}.weights{rank}')

run.train = watched
run.disentangle_run()
"""
OPTIONS = '--data embedded --bs 12 --size 32 --steps 100 --epoch 5 --probe_every 100 --lr 1e-4 --precision fp32 --threads 1 --reg hess --start 2 --quiet'.split()


def start(folder, world, *more, **env):
    "The command on `world` processes; on one, without torchrun"
    (folder.parent/'command.py').write_text(COMMAND)
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(world), '--'] if world > 1 else []
    return subprocess.Popen([sys.executable, *torchrun, folder.parent/'command.py', *OPTIONS, '--out', folder, *more],
                            env=os.environ | {'OMP_NUM_THREADS': '1'} | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    return out


def losses(folder):
    with open(folder/'steps.csv') as f: return [float(row['loss']) for row in csv.DictReader(f)]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')/'run'
    return folder, finish(start(folder, 2))


def test_command_on_two_processes(two, tmp_path):
    "Ranks agree to the last bit, and with one process up to rounding; one of them prints and writes"
    (folder, printed), one = two, tmp_path/'one'
    finish(start(one, 1))
    ranks, alone = [torch.load(f'{folder}.weights{r}') for r in '01'], torch.load(f'{one}.weights0')
    assert all(torch.equal(w, ranks[1][name]) for name, w in ranks[0].items())
    torch.testing.assert_close(losses(folder)[:10], losses(one)[:10], rtol=1e-4, atol=1e-4)
    a, b = (torch.cat([w.flatten() for w in state.values() if w.is_floating_point()]) for state in (ranks[0], alone))
    assert (a - b).norm() < 0.01 * b.norm()
    assert {p.name for p in folder.iterdir()} == {p.name for p in one.iterdir()}
    assert printed.count('no baseline') == 1 and '2 processes' in (folder/'config.json').read_text()


def test_command_killed_stopped_and_resumed(two, tmp_path):
    "A rank killed: back to the last checkpoint; torchrun stopped: both stop after the same step, which is saved; the end is the same to the last bit"
    folder = tmp_path/'run'
    process = start(folder, 2, STRIKE='SIGKILL', STRIKE_AT='7')
    assert process.wait(600) and not (folder/'scorecard.json').exists()
    process = start(folder, 2, '--resume', STRIKE='SIGTERM', STRIKE_AT='13')
    assert process.wait(600) and not (folder/'scorecard.json').exists()
    assert last_state(folder)['position'] == 13
    assert 'stopped by SIGTERM after step 12' in process.stderr.read()
    finish(start(folder, 2, '--resume'))
    assert (folder/'steps.csv').read_text() == (two[0]/'steps.csv').read_text()
    ends = [torch.load(f'{f}.weights0') for f in (folder, two[0])]
    assert all(torch.equal(w, ends[1][name]) for name, w in ends[0].items())


def test_command_names_a_batch_that_does_not_split(tmp_path):
    process = start(tmp_path/'run', 2, '--bs', '13')
    assert process.wait(600) and not (tmp_path/'run').exists()
    assert 'a batch of 13 pairs does not split into 2 equal parts' in process.stderr.read()
