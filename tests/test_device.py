"Training, losses, probes and metrics on a device that is not the CPU: nothing is left behind, and the numbers are those of the CPU."
from functools import partial

import numpy as np, pytest, torch
from elsewhere import DEVICE, Elsewhere, Far

from disentangle_nb.gallery import occlusion, recompose
from disentangle_nb.losses import REGULARIZERS, DisentangleLoss, routes_of
from disentangle_nb.metrics import metrics_card
from disentangle_nb.model import SlicedModel, embed, small_resnet
from disentangle_nb.overlay import Augment, PairStream, load_source, stream_dls, to_float
from disentangle_nb.probing import knn_probe, mlp_probe, scorecard
from disentangle_nb.training import FindCategories, FindKinds, GradCache, checkpoint_state, disentangle_learner, restore, train


@pytest.fixture(autouse=True)
def unfused(monkeypatch): # torch has no fused optimisers on `meta`
    for name in ('Adam', 'AdamW'): monkeypatch.setattr(torch.optim, name, lambda *args, fused, make=getattr(torch.optim, name), **kwargs: make(*args, **kwargs))


def learner(device, base='sub', reg='none', cbs=(), kinds='DC,BC', categories=False, **options):
    torch.manual_seed(0)
    stream = PairStream(load_source(size=32), kinds, bs=16, augment=Augment(flip=True))
    model = SlicedModel(small_resnet((8,), 8), dim=8, hidden=16, size=32, categories=categories)
    return disentangle_learner(stream_dls(stream, stream, n_batches=2, n_valid=1, device=device), model, DisentangleLoss(reg, base=base, **options), cbs=cbs)


def trained(device, *args, cbs=lambda: [], **options):
    train(learn := learner(device, *args, cbs=cbs(), **options), 4, progress=False)
    return learn


def test_devices_are_told_apart():
    with Elsewhere():
        x = torch.ones(3, device=DEVICE)
        assert isinstance(x, Far) and (x + torch.tensor(1.)).sum().item() == 6 and type(x.cpu()) is torch.Tensor
        for mixed in (lambda: x + torch.ones(3), lambda: torch.ones(3)[x.long()], lambda: torch.cat([x, torch.ones(3)])):
            with pytest.raises(RuntimeError, match='on two devices'): mixed()


ROUTES = {'routes': routes_of('DC,BC')}
@pytest.mark.parametrize('options', [
    dict(), dict(base='whole', reg='hess'), dict(reg='ortho', cbs=lambda: [GradCache(8)]), dict(base='routed', reg='hsic_white', **ROUTES),
    dict(base='inferred', reg='hsic_white', start=2, cbs=lambda: [FindKinds(2, 2, n_pairs=64)], **ROUTES),
    dict(base='category', reg='hsic', kinds='DC-BC', categories=True, start=2, gain=.5, cbs=lambda: [FindCategories(2, n_pairs=64)])])
def test_training(options):
    with Elsewhere(): far = trained(DEVICE, **options)
    assert all(isinstance(t, Far) for t in far.model.state_dict().values())
    for a, b in zip(far.history.steps, trained('cpu', **options).history.steps, strict=True): assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize('n', [12, 600]) # dense and tiled
@pytest.mark.parametrize('reg', sorted(set(REGULARIZERS) - {'none'}))
def test_losses(reg, n):
    z = torch.randn(2, n, 16, generator=torch.Generator().manual_seed(n))
    def grads(device):
        torch.manual_seed(0)
        pair = [v.to(device).requires_grad_() for v in z]
        DisentangleLoss(reg)(*pair).backward()
        return [v.grad.cpu() for v in pair]
    with Elsewhere(): far = grads(DEVICE)
    torch.testing.assert_close(far, grads('cpu'))


@pytest.mark.filterwarnings('ignore:.*no-op')
def test_an_optimiser_that_goes_on_is_where_its_weights_are():
    restore(learn := learner('meta'), checkpoint_state(trained('cpu')))
    states = [t for state in learn.opt.opt.state.values() for name, t in state.items() if name != 'step']
    assert len(states) == 2 * len([*learn.model.parameters()]) and {t.device for t in states} == {DEVICE}


def test_probes_and_metrics():
    factors = torch.randint(4, (240, 2), generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.one_hot(factors, 4).flatten(1) + .4 * torch.randn(240, 8, generator=torch.Generator().manual_seed(1))
    with Elsewhere():
        far = z.to(DEVICE), factors.to(DEVICE)
        few = dict(mlp=False, n_boot=2, n_refit=2, n_perm=9)
        assert metrics_card(*far, **few).values == metrics_card(z, factors, **few).values
        assert scorecard(far, far).accuracy == scorecard((z, factors), (z, factors)).accuracy
        for probe in (partial(mlp_probe, epochs=2), knn_probe):
            assert probe(far[0], far[1][:, 0]).accuracy(z, factors[:, 0]) == probe(z, factors[:, 0]).accuracy(z, factors[:, 0])
        parts = [(slice(0, 4), np.arange(3)), (slice(4, 8), np.arange(3, 6))]
        assert (recompose(far[0], parts) == recompose(z, parts)).all()


def test_images_may_be_elsewhere_than_the_model():
    model, images = SlicedModel(small_resnet((8,), 8), dim=8, size=32), load_source(size=32).photos[:2, :32, :32].permute(0, 3, 1, 2)
    wanted = embed(model, images, to_float), occlusion(model, images, [slice(4), slice(4, 8)], patch=16, stride=16)
    with Elsewhere():
        model.to(DEVICE)
        torch.testing.assert_close((embed(model, images, to_float), occlusion(model, images, [slice(4), slice(4, 8)], patch=16, stride=16)), wanted)
