"Several processes against one, for every loss and for a whole training; gradient caching."
import pytest, torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from disentangle_nb.losses import DisentangleLoss, InfoMax, REGULARIZERS, SubInfoMax, make_reg
from disentangle_nb.model import SlicedModel
from disentangle_nb.overlay import PairStream, load_source, stream_dls
from disentangle_nb.scale import GradCache, RankLoss, RankStream, distribute, process_group
from disentangle_nb.training import PairLoss, disentangle_learner, last_state, train

PAIRS = 12
LOSSES = dict(infomax=InfoMax, subinfomax=SubInfoMax, **{n: (lambda n=n, **kw: make_reg(n, **kw)) for n in REGULARIZERS if n != 'none'},
              whole=lambda cls=DisentangleLoss, **kw: cls([make_reg(n, **kw) for n in ('hess', 'ortho_redrawn', 'infomin_cross', 'hsic')], lam=[0.1, 1, 0.2, 3], **kw))


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
    def forward(self, z0, z1): return super().forward(z0, z1).float()


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
        torch.save(f(rank, world, folder), folder/f'{rank}.pt')


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
    stream = PairStream(load_source(), ['DC', 'BC'], PAIRS)
    for b in (0, 7):
        parts = [RankStream(stream, r, world).batch(b) for r in range(world)]
        x, factors, kind = stream.batch(b)
        for whole, pieces in ((x, [p[0] for p in parts]), (factors, [p[1] for p in parts])):
            assert torch.equal(torch.cat([p.unflatten(0, (2, -1)) for p in pieces], 1).flatten(0, 1), whole)
        assert torch.equal(torch.cat([p[2] for p in parts]), kind)


def test_a_batch_must_split_equally():
    stream = PairStream(load_source(), 'DC', 10)
    for world in (3, 10):
        with pytest.raises(ValueError, match=f'10 pairs does not split into {world} equal parts'): RankStream(stream, 0, world)
