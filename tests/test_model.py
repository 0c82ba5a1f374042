"Categories of the first slice, and the mixture that finds kinds of pairs, against SciPy and their definitions."
import numpy as np, torch
from references import random
from scipy.stats import multivariate_t
from torch import nn
from torch.nn import functional as F

from disentangle_nb.model import Categories, KindMixture, SlicedModel, difference, fit_once, log_densities


def pairs(counts, noise=.2):
    "Embeddings of pairs in which one of three factors differs: the first in `counts[0]` pairs, and so on"
    g = torch.Generator().manual_seed(0)
    values, kind = torch.randn(3, 4, 5, generator=g), torch.arange(3).repeat_interleave(torch.tensor(counts))
    first = torch.randint(4, (len(kind), 3), generator=g)
    second = first + F.one_hot(kind, 3)
    return [torch.cat([v[rows % 4] for v, rows in zip(values, r.T)], 1) + noise * torch.randn(len(kind), 15, generator=g) for r in (first, second)]


EQUAL = [300, 300, 300]


def test_categories_are_the_softmax_of_cosines_over_the_temperature():
    z, prototypes = random(5, 7), F.normalize(torch.tensor([[1., 2, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    model = Categories(3, tau=.5)
    model.prototypes.copy_(prototypes)
    cosines = F.cosine_similarity(z[:, None, :3], prototypes[None], dim=2)
    torch.testing.assert_close(model(z), torch.cat([(cosines / .5).softmax(1), z[:, 3:]], 1))


def test_densities_are_student_t_up_to_one_constant():
    a, d, log_weights = random(2, 3, 3).double(), random(20, 3, seed=1).double(), torch.tensor([.2, .8]).double().log()
    scales = torch.linalg.cholesky(a @ a.mT + torch.eye(3))
    wanted = [w.item() + multivariate_t(shape=(L @ L.T).numpy(), df=4).logpdf(d.numpy()) for w, L in zip(log_weights, scales)]
    off = log_densities(d, log_weights, scales)[0].numpy() - np.stack(wanted, 1)
    assert np.allclose(off, off[0, 0])


def test_the_scale_of_heavy_tails_is_found():
    shape = np.array([[2., .5], [.5, 1.]])
    d = torch.tensor(multivariate_t(shape=shape, df=4).rvs(20_000, random_state=0))
    L = fit_once(d, 1, 60, torch.Generator().manual_seed(0))[1][1][0]
    assert np.allclose(L @ L.T, shape, atol=.1)


def test_kinds_are_taken_as_equally_frequent():
    d = difference(*(z.double() for z in pairs([700, 100, 100], noise=.6)))
    log_weights, scales = fit_once(d, 3, 150, torch.Generator().manual_seed(0))[1]
    assert (log_densities(d, log_weights, scales)[0].softmax(1).mean(0) - 1/3).abs().max() < .01


def test_a_fit_tells_its_likelihood():
    d = difference(*(z.double() for z in pairs([400, 300, 200], noise=.6)))
    likelihood, (log_weights, scales) = fit_once(d, 3, 200, torch.Generator().manual_seed(0))
    assert log_weights.std() > .01
    assert abs(likelihood - (log_densities(d, log_weights, scales)[0].logsumexp(1).mean() - log_weights.mean())) < 1e-5


def test_the_best_restart_is_kept():
    z0, z1 = pairs(EQUAL)
    d, g = difference(z0.double(), z1.double()), torch.Generator().manual_seed(7)
    best = max((fit_once(d, 3, 4, g) for _ in range(5)), key=lambda f: f[0])[1]
    torch.testing.assert_close(KindMixture(3, 15).fit(z0, z1, restarts=5, steps=4, seed=7).scales, best[1].float())


def test_lengths_of_embeddings_do_not_matter():
    (z0, z1), s = pairs(EQUAL), .1 + 10 * torch.rand(900, 1, generator=torch.Generator().manual_seed(1))
    fitted = KindMixture(3, 15).fit(z0, z1)
    torch.testing.assert_close(fitted(z0 * s, z1 / s), fitted(z0, z1))
    torch.testing.assert_close(KindMixture(3, 15).fit(z0 * s, z1 / s).scales, fitted.scales, rtol=1e-4, atol=1e-4)


def test_weights_count_where_scales_do_not_tell():
    mixture = KindMixture(2, 2)
    mixture.log_weights.copy_(torch.tensor([.1, .9]).log())
    assert (mixture(*random(2, 9, 2)) == 1).all()


def test_encoders_with_lazy_layers_and_with_other_convolutions():
    lazy = SlicedModel(nn.Sequential(nn.Flatten(), nn.LazyLinear(8)), dim=4, size=8)
    solid = SlicedModel(nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3), nn.Flatten()), dim=4, size=8)
    for model in (lazy, solid): assert model(torch.randn(3, 3, 8, 8)).shape == (3, 4)
    kernels = [p for p in SlicedModel('small', dim=4, size=32).parameters() if p.ndim == 4]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) and p.stride(1) == 1 for p in kernels) # those of one pixel too
