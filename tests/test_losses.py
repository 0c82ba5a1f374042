"Losses and regularisers under fuzzing: slow references, symmetries, extreme values, errors, precision, copies, torch.compile."
import copy, math, pickle
from contextlib import nullcontext
from itertools import combinations, permutations

import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st

from disentangle_nb import infonce, losses as L
from disentangle_nb.dependence import cka
from disentangle_nb.losses import (BASES, CategoryMax, DisentangleLoss, HessReg, HSICReg, InferredMax, InfoMax, InfoMinReg, OrthoReg, REGULARIZERS, RoutedMax, SubInfoMax, category_loss, chance_within, info_nce_within, likeliest,
                                   info_nce, info_nce_floor, info_nce_grad, make_reg, nt_xent, routes_of, unit)

settings.register_profile('losses', max_examples=25, deadline=None, derandomize=True)
settings.load_profile('losses')

regs = [name for name in REGULARIZERS if name != 'none']
names = ['infomax', 'subinfomax', *regs]
sees_whole = {'infomax', 'hess', 'hess_sample'}                # normalise the whole z; the others normalise each slice
unequal_ok = {'infomax', 'subinfomax', 'hess', 'hess_sample', 'hsic', 'hsic_debiased', 'hsic_white'}
by_kind = ['routedmax', 'inferredmax', 'within']
every = pytest.mark.parametrize('name', names)
every_and_by_kind = pytest.mark.parametrize('name', [*names, *by_kind])


def make(name, **kw):
    if name in by_kind: return make_by_kind(name, **kw)
    return {'infomax': InfoMax, 'subinfomax': SubInfoMax}[name](**kw) if name in ('infomax', 'subinfomax') else make_reg(name, **kw)


def make_by_kind(name, n_slices=2, tau=.1):
    "A loss that takes the kinds of pairs, with kinds in turn"
    if name == 'within': return lambda z0, z1: info_nce_within(z0, z1, torch.arange(len(z0)) % 2, tau)
    found = name == 'inferredmax'
    loss = InferredMax(routes=[[k] for k in range(n_slices)], n_slices=n_slices, tau=tau) if found else RoutedMax(routes=[[0, 1]] * n_slices, n_slices=n_slices, tau=tau)
    loss.ready = True
    return lambda z0, z1: loss(z0, z1, torch.arange(len(z0)) % (n_slices if found else 2))


def smallest(name): return 4 if name in ('hsic_debiased', 'hsic_white', *by_kind) else 2


def pair(n=6, d=12, seed=0, dtype=torch.float64): return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def call(loss, z0, z1, seed=0):
    "The value of `loss` with a fixed draw of any permutation"
    torch.manual_seed(seed)
    return loss(z0, z1)


def value_and_grad(loss, z0, z1, autocast=False):
    "The value, under autocast if asked, and its gradient, taken outside it as torch advises"
    z0, z1 = (z.clone().requires_grad_() for z in (z0, z1))
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): value = call(loss, z0, z1)
    value.backward()
    return value.detach(), torch.cat([z0.grad, z1.grad])


@st.composite
def batches(draw, max_slices=8, min_pairs=4):
    "A pair of float64 projections and the number of their slices"
    k, width = draw(st.integers(1, max_slices)), draw(st.integers(2, 4))
    z0, z1 = pair(draw(st.integers(min_pairs, 7)), k * width, draw(st.integers(0, 999)))
    return z0, z1, k


taus = st.floats(0.05, 2)


# Slow references: the formulas with a loop over every index

def slices(z, k): return [[v / v.norm() for v in s] for s in z.chunk(k, 1)]


def slow_nt_xent(v, tau):
    n = len(v)
    return sum(torch.log(sum((v[i] @ v[a] / tau).exp() for a in range(n) if a != i)) - v[i] @ v[(i + n//2) % n] / tau for i in range(n))


def slow_infomax(z, tau, k): return slow_nt_xent(z / z.norm(dim=1, keepdim=True), tau)


def slow_subinfomax(z, tau, k): return sum(slow_infomax(s, tau, 1) for s in z.chunk(k, 1))


def slow_infomin(z, tau, k, cross=False):
    s, n, total = slices(z, k), len(z), torch.zeros((), dtype=z.dtype)
    for p, q in permutations(range(k), 2):
        for i in range(n):
            others = [s[q if cross else p][a] for a in range(n) if a != i]
            total = total + s[p][i] @ s[q][i] / tau - torch.log(sum((s[p][i] @ o / tau).exp() for o in others))
    return total


def slow_ortho(z, tau, k, perm=None):
    s, n = slices(z, k), len(z)
    perm = slice(None) if perm is None else perm
    return sum(((s[p][i][perm] @ s[q][j]).abs() for p, q in permutations(range(k), 2) for i in range(n) for j in range(n)),
               start=torch.zeros((), dtype=z.dtype))


def autograd_of_infomax(z, tau, **kw):
    z = z / z.norm(dim=1, keepdim=True)
    if not z.requires_grad: z.requires_grad_()
    return torch.autograd.grad(slow_nt_xent(z, tau), z, **kw)[0]


def slow_hess(z, tau, k, sample=False):
    g, total = autograd_of_infomax(z, tau).chunk(k, 1), torch.zeros((), dtype=z.dtype)
    for a, b in combinations(g, 2):
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                product = a[:, i] * b[:, j]
                total = total + (product.square().sum() if sample else product.sum().square())
    return total.sqrt()


def slow_kernel(x, inverse=None, width=1):
    n = len(x)
    inverse = torch.eye(x.shape[1], dtype=x.dtype) if inverse is None else inverse
    d2 = [[(x[i] - x[j]) @ inverse @ (x[i] - x[j]) for j in range(n)] for i in range(n)]
    median = torch.stack([d2[i][j] for i in range(n) for j in range(i)]).median()
    return torch.stack([torch.stack([torch.exp(-d / (2 * width**2 * median)) for d in row]) for row in d2])


def biased(a, b):
    n = len(a)
    h = torch.eye(n, dtype=a.dtype) - 1/n
    return (a @ h @ b @ h).trace()


def song(a, b):
    "Song et al. 2012, equation 5, without its factor 1/(n (n-3))"
    n = len(a)
    a, b = (m - torch.diag(m.diag()) for m in (a, b))
    c = a @ b
    return c.trace() + a.sum() * b.sum() / ((n-1) * (n-2)) - 2 * c.sum() / (n-2)


def slow_hsic(z, tau, k, estimator=biased):
    total = torch.zeros((), dtype=z.dtype)
    for view in z.chunk(2):
        kernels = [slow_kernel(torch.stack(s)) for s in slices(view, k)]
        for a, b in combinations(kernels, 2): total = total + estimator(a, b) / (estimator(a, a) * estimator(b, b)).sqrt() / 2
    return total


def inverse_covariance(s):
    "Of the rows, with a ridge of 1e-4 of the mean variance"
    c = torch.cov(s.T, correction=0).view(s.shape[1], -1)
    return torch.linalg.inv(c + 1e-4 * c.trace() / len(c) * torch.eye(len(c), dtype=c.dtype))


def slow_hsic_white(z, tau, k):
    total = torch.zeros((), dtype=z.dtype)
    inverses = [inverse_covariance(torch.stack(s)) for s in slices(z, k)]
    for view in z.chunk(2):
        kernels = [slow_kernel(torch.stack(s), inverse, .5) for s, inverse in zip(slices(view, k), inverses)]
        for a, b in combinations(kernels, 2): total = total + song(a, b) / (song(a, a) * song(b, b)).sqrt() / 2
    return total


def drawn(z, k, fixed=False):
    generator = torch.Generator().manual_seed(0)
    if not fixed: torch.manual_seed(0)
    return torch.randperm(z.shape[1] // k, generator=generator if fixed else None)


references = dict(
    infomax=slow_infomax, subinfomax=slow_subinfomax,
    infomin=slow_infomin, infomin_cross=lambda z, tau, k: slow_infomin(z, tau, k, cross=True),
    ortho=slow_ortho, ortho_fixed=lambda z, tau, k: slow_ortho(z, tau, k, drawn(z, k, fixed=True)),
    ortho_redrawn=lambda z, tau, k: slow_ortho(z, tau, k, drawn(z, k)),
    hess=slow_hess, hess_sample=lambda z, tau, k: slow_hess(z, tau, k, sample=True),
    hsic=slow_hsic, hsic_debiased=lambda z, tau, k: slow_hsic(z, tau, k, song), hsic_white=slow_hsic_white)


def test_every_loss_has_a_reference(): assert set(references) == set(names)


@every
@settings(max_examples=8)
@given(batch=batches(max_slices=4), tau=taus)
def test_equals_the_loops(name, batch, tau):
    z0, z1, k = batch
    slow = references[name](torch.cat([z0, z1]), tau, k)
    fast = call(make(name, n_slices=k, tau=tau, reduction='sum'), z0, z1)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@every
@given(batch=batches())
def test_means_divide_as_documented(name, batch):
    z0, z1, k = batch
    views = 2 * len(z0)
    by = views**2 if name.startswith('ortho') else 1 if name.startswith('hsic') else views
    total, mean = (call(make(name, n_slices=k, reduction=r), z0, z1) for r in ('sum', 'mean'))
    torch.testing.assert_close(total, mean * by)


# Gradients

@settings(max_examples=40)
@given(batch=batches(min_pairs=2), tau=st.floats(0.02, 2))
def test_closed_form_gradient(batch, tau):
    z = unit(torch.cat(batch[:2])).requires_grad_()
    auto, = torch.autograd.grad(nt_xent(z, tau).sum(), z)
    torch.testing.assert_close(info_nce_grad(z, tau), auto, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('form', ['batch', 'sample'])
@settings(max_examples=10)
@given(batch=batches(max_slices=4, min_pairs=2), tau=taus)
def test_hess_equals_a_double_backward(form, batch, tau):
    z0, z1, k = batch
    z = torch.cat([z0, z1]).requires_grad_()
    g = autograd_of_infomax(z, tau, create_graph=True).chunk(k, 1)
    blocks = [(a.T @ b).square().sum() if form == 'batch' else torch.einsum('ni,nj->nij', a, b).square().sum() for a, b in combinations(g, 2)]
    slow = sum(blocks, start=0 * z.sum())
    slow = slow.sqrt() if blocks else slow
    fast = HessReg(n_slices=k, tau=tau, form=form, reduction='sum')(*z.chunk(2))
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(fast, z), torch.autograd.grad(slow, z)): torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('name', [name for name in names if not name.startswith('hsic')])
def test_gradcheck(name):
    "Central differences against autograd (HSIC, whose bandwidth moves with the input and gets no gradient, has the next test)"
    z0, z1 = pair(4, 6)
    loss = make(name, n_slices=2, tau=0.5)
    assert torch.autograd.gradcheck(lambda a, b: call(loss, a, b), (z0.requires_grad_(), z1.requires_grad_()))


def test_hsic_white_does_not_change_with_the_coordinates_of_a_slice():
    "An invertible matrix for each slice: nothing but the ridge notices"
    a, b = torch.randn(2, 2, 40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64) + .3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    white, plain = (HSICReg(debiased=True, normalize=False, whiten=w) for w in (True, False))
    z, turned = torch.cat([a, b], -1), torch.cat([a @ matrix, b], -1)
    torch.testing.assert_close(white(*turned), white(*z), rtol=0, atol=1e-3)
    assert not torch.allclose(plain(*turned), plain(*z), rtol=0, atol=1e-3)


@pytest.mark.parametrize('name', ['hsic', 'hsic_debiased', 'hsic_white'])
def test_hsic_units_are_constant(name):
    "With each kernel's median, and the ridge of each covariance, held where it is, numerical and automatic gradient agree"
    z0, z1 = pair(6, 8)
    white, f = name == 'hsic_white', biased if name == 'hsic' else song

    def distances(a, b, ridges):
        for s, ridge in zip(torch.stack([a, b]).chunk(2, -1), ridges):
            s = unit(s)
            eye = torch.eye(s.shape[-1], dtype=s.dtype)
            inverse = torch.linalg.inv(torch.cov(s.flatten(0, 1).T, correction=0) + ridge * eye) if white else eye
            d = s.unsqueeze(1) - s.unsqueeze(2)
            yield torch.einsum('vijc,cd,vijd->vij', d, inverse, d)

    ridges = [1e-4 * unit(s).var(0, correction=0).mean() for s in torch.cat([z0, z1]).chunk(2, 1)]
    below = torch.tril_indices(6, 6, -1).unbind()
    widths = [[m[below].median() * (.25 if white else 1) for m in d2] for d2 in distances(z0, z1, ridges)]

    def held(a, b):
        kernels = [[torch.exp(-m / (2 * w)) for m, w in zip(d2, width)] for d2, width in zip(distances(a, b, ridges), widths)]
        return sum(f(k, l) / (f(k, k) * f(l, l)).sqrt() / 2 for k, l in zip(*kernels))

    value, grad = value_and_grad(make_reg(name), z0, z1)
    expected, expected_grad = value_and_grad(held, z0, z1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert torch.autograd.gradcheck(held, (z0.requires_grad_(), z1.requires_grad_()))


# Symmetries

@every
@given(batch=batches(), seed=st.integers(0, 99))
def test_order_of_pairs_does_not_matter(name, batch, seed):
    z0, z1, k = batch
    order, loss = torch.randperm(len(z0), generator=torch.Generator().manual_seed(seed)), make(name, n_slices=k)
    torch.testing.assert_close(call(loss, z0[order], z1[order]), call(loss, z0, z1))


@every
@given(batch=batches())
def test_views_can_be_swapped(name, batch):
    z0, z1, k = batch
    loss = make(name, n_slices=k)
    torch.testing.assert_close(call(loss, z1, z0), call(loss, z0, z1))


@every
@given(batch=batches(), log_scale=st.floats(-4, 4))
def test_scale_of_z_does_not_matter(name, batch, log_scale):
    z0, z1, k = batch
    loss = make(name, n_slices=k)
    torch.testing.assert_close(call(loss, z0 * 10**log_scale, z1), call(loss, z0, z1))


@pytest.mark.parametrize('name', sorted(set(names) - sees_whole))
@given(batch=batches(), seed=st.integers(0, 99))
def test_scale_of_each_slice_of_each_view_does_not_matter(name, batch, seed):
    z0, z1, k = batch
    scale = torch.rand(len(z0), k, 1, generator=torch.Generator().manual_seed(seed), dtype=z0.dtype) + 0.1
    scaled = (z0.unflatten(1, (k, -1)) * scale).flatten(1)
    loss = make(name, n_slices=k)
    torch.testing.assert_close(call(loss, scaled, z1), call(loss, z0, z1))


@pytest.mark.parametrize('name', sorted(sees_whole))
def test_scale_of_one_slice_matters_to_losses_of_the_whole(name):
    z0, z1 = pair()
    scale = torch.tensor([3.] * 6 + [1.] * 6)
    assert not torch.allclose(make(name)(z0 * scale, z1 * scale), make(name)(z0, z1))


@pytest.mark.parametrize('name', sorted(set(names) - {'ortho_fixed', 'ortho_redrawn'}))
@given(batch=batches())
def test_order_of_slices_does_not_matter(name, batch):
    z0, z1, k = batch
    loss = make(name, n_slices=k)
    turned = (torch.cat(z.chunk(k, 1)[::-1], 1) for z in (z0, z1))
    torch.testing.assert_close(loss(*turned), loss(z0, z1))


# Slices

@every
@given(batch=batches())
def test_number_and_widths_say_the_same(name, batch):
    z0, z1, k = batch
    widths = [z0.shape[1] // k] * k
    torch.testing.assert_close(call(make(name, n_slices=widths), z0, z1), call(make(name, n_slices=k), z0, z1), rtol=0, atol=0)


@every
def test_unequal_widths(name):
    loss = make(name, n_slices=(3, 4, 5))
    if name in unequal_ok: assert call(loss, *pair()).isfinite()
    else:
        with pytest.raises(ValueError, match=r'equally wide, got widths \[3, 4, 5\]'): loss(*pair())


@pytest.mark.parametrize('name', regs)
def test_one_slice_is_an_exact_zero_with_a_graph(name):
    value, grad = value_and_grad(make_reg(name, n_slices=1), *pair(8))
    assert value == 0 and (grad == 0).all()


# Extreme values

@every_and_by_kind
@given(seed=st.integers(0, 99), log_scale=st.sampled_from([-30, -10, 0, 10, 30]), k=st.integers(1, 8), tau=st.sampled_from([0.01, 0.1, 1.]))
def test_finite_at_extremes(name, seed, log_scale, k, tau):
    z0, z1 = pair(smallest(name), 2*k, seed, torch.float32) * 10.**log_scale
    value, grad = value_and_grad(make(name, n_slices=k, tau=tau), z0, z1)
    assert value.isfinite() and grad.isfinite().all()


@every_and_by_kind
@pytest.mark.parametrize('scale', [2.**100, 2.**-100])
def test_scale_is_exact_where_squares_overflow(name, scale):
    z0, z1 = pair(dtype=torch.float32)
    loss = make(name)
    value, grad = value_and_grad(loss, z0, z1)
    scaled, scaled_grad = value_and_grad(loss, z0 * scale, z1 * scale)
    torch.testing.assert_close(scaled, value)
    torch.testing.assert_close(scaled_grad * scale, grad)


@every_and_by_kind
@pytest.mark.parametrize('tau', [0.01, 0.1])
@pytest.mark.parametrize('case', ['zeros', 'constant', 'one zero row', 'one-hot', 'identical views', 'opposite views', 'mixed sizes'])
def test_finite_at_degenerate_input(name, tau, case):
    z0, z1 = pair(smallest(name), 8, dtype=torch.float32)
    if case == 'zeros': z0, z1 = torch.zeros(2, *z0.shape)
    if case == 'constant': z0, z1 = torch.ones(2, *z0.shape)
    if case == 'one zero row': z0[0] = 0
    if case == 'one-hot': z0 = z1 = torch.eye(len(z0), 8)
    if case == 'identical views': z1 = z0
    if case == 'opposite views': z1 = -z0
    if case == 'mixed sizes': z0, z1 = z0 * 1e30, z1 * 1e-30
    value, grad = value_and_grad(make(name, tau=tau), z0, z1)
    assert value.isfinite() and grad.isfinite().all()
    if case == 'one zero row': assert (grad[0] == 0).all()


@every_and_by_kind
def test_sums_that_overflow(name):
    "Entries that are numbers, with a sum that is none, in float32 and in float16"
    z = pair(64, 16, dtype=torch.float32).abs()
    loss = make(name)
    expected = call(loss, *z)
    torch.testing.assert_close(call(loss, *(1e37 * z)), expected, rtol=1e-4, atol=1e-4)
    half = (1e4 * z).half()
    torch.testing.assert_close(call(loss, *half), call(loss, *half.float()))


@pytest.mark.parametrize('name', ['hess', 'hess_sample'])
def test_hess_where_nothing_is_left_to_learn(name):
    "A solved batch at low temperature: the gradient of the loss is exactly zero in float32, and so are R and its gradient"
    value, grad = value_and_grad(make(name, tau=0.002), *torch.eye(6).repeat(2, 1, 1))
    assert value == 0 and (grad == 0).all()


every_hsic = pytest.mark.parametrize('name', ['hsic', 'hsic_debiased', 'hsic_white'])


@every_hsic
def test_hsic_of_a_slice_that_is_one_point_is_zero(name):
    for n, d in ((4, 2), (200, 64), (300, 512)):
        point, live = torch.randn(d, generator=torch.Generator().manual_seed(n)).expand(n, d), pair(n, d, dtype=torch.float32)
        for z in (torch.cat([point, point], 1).expand(2, -1, -1), torch.cat([point.expand(2, -1, -1), live], 2)):
            value, grad = value_and_grad(make_reg(name), *z)
            assert value == 0 and (grad == 0).all()


@every_hsic
@pytest.mark.parametrize('spread', [.1, 1e-3, 1e-4])
def test_hsic_near_one_point_is_that_of_float64(name, spread):
    gen = torch.Generator().manual_seed(0)
    first, second, other = torch.randn(3, 2, 128, 16, generator=gen)
    z0, z1 = torch.randn(32, generator=gen) + spread * torch.cat([first, first + second], 2)
    value, grad = value_and_grad(make_reg(name), z0, z1)
    exact, exact_grad = value_and_grad(make_reg(name), z0.double(), z1.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=1e-3)
    assert exact > .1 and (grad - exact_grad).norm() < .02 * exact_grad.norm()


@every_hsic
def test_hsic_of_samples_most_of_which_coincide(name):
    "Both slices hold the same class, and four fifths of the pairs are of one class"
    gen = torch.Generator().manual_seed(0)
    classes = torch.eye(10)[torch.randint(10, (200,), generator=gen) * (torch.rand(200, generator=gen) < .2)]
    z = torch.cat([classes, classes], 1)
    torch.testing.assert_close(make_reg(name)(z, z), torch.tensor(1.), rtol=0, atol=1e-3)
    assert cka(classes, classes, 'rbf') == pytest.approx(1)


@pytest.mark.parametrize('name', ['hsic_debiased', 'hsic_white'])
def test_hsic_of_a_slice_in_which_one_sample_differs(name):
    "A debiased kernel of it centres to nothing but rounding: value and gradient are 0, not noise"
    gen = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(1, 3, generator=gen).expand(64, 3), torch.randn(64, 3, generator=gen)], 1)
    z[7, :3] = torch.randn(3, generator=gen)
    z.requires_grad_()
    value = HSICReg(debiased=True, whiten=name == 'hsic_white')(z, z)
    value.backward()
    assert value == 0 and not z.grad.any()


@every_hsic
@given(batch=batches())
def test_hsic_is_bounded(name, batch):
    z0, z1, k = batch
    value = make_reg(name, n_slices=k)(z0, z1)
    pairs = k * (k - 1) / 2
    assert value <= pairs + 1e-9 and value >= (0 if name == 'hsic' else -pairs) - 1e-9


def test_hsic_sees_lengths_only_if_asked():
    z0, z1 = pair()
    scaled = z0 * torch.linspace(1, 3, 6).unsqueeze(1)
    torch.testing.assert_close(HSICReg()(scaled, z1), HSICReg()(z0, z1))
    raw = HSICReg(normalize=False)
    assert not torch.allclose(raw(scaled, z1), raw(z0, z1))
    torch.testing.assert_close(raw(z0 * 1e9, z1 * 1e9), raw(z0, z1))


def test_infomax_between_its_bounds():
    z0, z1 = pair(7)
    same = torch.ones(7, 12)
    torch.testing.assert_close(info_nce(same, same).item(), math.log(13), rtol=1e-6, atol=0)
    torch.testing.assert_close(info_nce_floor(7, 1), math.log(13))
    assert 0 <= info_nce(z0, z0, tau=0.01) < info_nce(z0, -z0, tau=0.01)


# Permutations of Ortho

def test_fixed_permutation_needs_no_state():
    z0, z1 = pair()
    state = torch.get_rng_state()
    a, b = (OrthoReg(permute='fixed', seed=5)(z0, z1) for _ in range(2))
    assert a == b and torch.equal(torch.get_rng_state(), state)
    assert a != OrthoReg(permute='fixed', seed=6)(z0, z1)


def test_redrawn_permutation_follows_the_global_generator():
    z0, z1 = pair()
    reg = OrthoReg(permute='redrawn')
    state = torch.get_rng_state()
    first = [reg(z0, z1) for _ in range(5)]
    torch.set_rng_state(state)
    assert first == [reg(z0, z1) for _ in range(5)] and len(set(v.item() for v in first)) > 1


# Precision

@every
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_costs_only_the_rounding_of_the_input(name, dtype):
    z0, z1 = pair(8, 16, dtype=torch.float32).to(dtype)
    loss = make(name)
    exact, exact_grad = value_and_grad(loss, z0.float(), z1.float())
    value, grad = value_and_grad(loss, z0, z1, autocast=True)
    assert value.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad.float(), exact_grad, rtol=0.02, atol=1e-3 * exact_grad.abs().max().item())


@every
def test_float32_is_not_touched_by_autocast(name):
    z0, z1 = pair(8, 16, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16): inside = call(make(name), z0, z1)
    assert inside == call(make(name), z0, z1)


# Errors

@every
def test_wrong_batches(name):
    loss = make(name, n_slices=3)
    z0, z1 = pair()
    with pytest.raises(ValueError, match=r'one shape, got \(6, 12\) and \(5, 12\)'): loss(z0, z1[:5])
    with pytest.raises(ValueError, match=r'one shape, got \(6, 12\) and \(6, 9\)'): loss(z0, z1[:, :9])
    with pytest.raises(ValueError, match=r'\(N, D\)'): loss(z0[0], z1[0])
    with pytest.raises(ValueError, match='no negatives'): loss(z0[:1], z1[:1])
    with pytest.raises(TypeError, match='floating point, got torch.int64'): loss(z0.long(), z1.long())


@pytest.mark.parametrize('name', ['subinfomax', *regs])
def test_width_that_does_not_divide(name):
    with pytest.raises(ValueError, match='12 wide does not split into 5'): make(name, n_slices=5)(*pair())
    with pytest.raises(ValueError, match='sum to D=12'): make(name, n_slices=(5, 5))(*pair())


@every
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_nan_is_an_error_where_asked(name, bad):
    z0, z1 = pair()
    z1[2, 3] = bad
    with pytest.raises(ValueError, match='z1 holds 1 NaN or infinite values among 72'): make(name, check_finite=True)(z0, z1)
    make(name)(z0, z1)


@every
def test_wrong_options(name):
    with pytest.raises(ValueError, match='tau must be positive, got 0'): make(name, tau=0)
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', got 'none'"): make(name, reduction='none')
    with pytest.raises(ValueError, match='tau must be finite, got inf'): make(name, tau=math.inf)
    with pytest.raises(TypeError): make(name, temperature=0.1)
    for wrong in (2., '2'):
        with pytest.raises(TypeError, match='n_slices must be a whole number'): make(name, n_slices=wrong)


@every
def test_whole_numbers_of_other_libraries(name):
    for k in (np.int64(2), torch.tensor(2), np.array([6, 6]), torch.tensor([6, 6])):
        assert call(make(name, n_slices=k), *pair()) == call(make(name, n_slices=2), *pair())
    assert DisentangleLoss(make(name), lam=np.float32(.5)).lam == DisentangleLoss(make(name), lam=torch.tensor(.5)).lam == .5


def test_a_bandwidth_is_positive_and_finite():
    for width in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match='bandwidth must be'): HSICReg(width=width)
        with pytest.raises(ValueError, match='bandwidth must be'): L.slice_hsic(*pair(), width=width)


@pytest.mark.parametrize('cls, option, valid', [(InfoMinReg, 'denominator', "'same', 'cross'"), (OrthoReg, 'permute', "None, 'fixed', 'redrawn'"),
                                                (HessReg, 'form', "'batch', 'sample'")])
def test_wrong_words(cls, option, valid):
    with pytest.raises(ValueError, match=f"{option} must be one of {valid}, got 'other'"): cls(**{option: 'other'})


def test_wrong_names_and_weights():
    with pytest.raises(ValueError) as error: make_reg('hessian')
    assert all(repr(name) in str(error.value) for name in REGULARIZERS)
    with pytest.raises(ValueError, match=f"one of {', '.join(map(repr, BASES))}"): DisentangleLoss(base='all')
    with pytest.raises(ValueError, match='one for each of the 2 regularisers'): DisentangleLoss([OrthoReg(), HessReg()], lam=[1.])
    with pytest.raises(ValueError, match='at least 4 pairs, got 3'): HSICReg(debiased=True)(*pair(3))


# The whole loss

@settings(max_examples=20)
@given(batch=batches(max_slices=4), chosen=st.lists(st.sampled_from(regs), max_size=3), base=st.sampled_from(sorted(BASES)),
       lam=st.floats(0, 10), step=st.integers(0, 12), warmup=st.integers(0, 10), start=st.integers(0, 12))
def test_disentangle_loss_is_the_weighted_sum(batch, chosen, base, lam, step, warmup, start):
    z0, z1, k = batch
    routes = {'routed': {'routes': [[0]] * k}, 'inferred': {'routes': [[i] for i in range(k)]}}.get(base, {})
    kinds = [torch.arange(len(z0)) * 0] * bool(routes)
    loss = DisentangleLoss([make_reg(name, n_slices=k) for name in chosen], lam=lam, base=base, n_slices=k, warmup=warmup, start=start, **routes)
    if base == 'category': z0, z1 = (torch.cat([z.chunk(k, 1)[0].softmax(1), *z.chunk(k, 1)[1:]], 1) for z in (z0, z1))
    loss.step = step
    since = step - start
    weight = 0 if since < 0 else lam * (min(1, since / warmup) if warmup else 1)
    torch.manual_seed(0)
    alone = BASES[base](n_slices=k, **routes)
    alone.ready = since >= 0
    expected = alone(z0, z1, *kinds) + sum(weight * make_reg(name, n_slices=k)(z0, z1) for name in chosen)
    torch.manual_seed(0)
    torch.testing.assert_close(loss(z0, z1, *kinds), expected)
    assert len(loss.parts) == len(chosen) + 3
    assert math.isclose(loss.parts['lam'], weight)
    regularised = sum(weight * v for n, v in loss.parts.items() if n not in ('lam', 'loss', BASES[base].name))
    assert math.isclose(loss.parts['loss'], loss.parts[BASES[base].name] + regularised, rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 99), widths=st.lists(st.integers(1, 5), min_size=3, max_size=3), tau=st.floats(0.05, 1), kinds=st.sampled_from((['DC-BC', 'DC-DL', 'BC-DL'], ['DC', 'BC', 'DL'], ['DC-BC-DL', 'BC-DL', 'DL'])))
def test_routed_pairs_are_contrasted_by_the_slices_of_their_kind_together(seed, widths, tau, kinds):
    g = torch.Generator().manual_seed(seed)
    (z0, z1), kind = torch.randn(2, 9, sum(widths), generator=g), torch.arange(9)[torch.randperm(9, generator=g)] % 3
    routes, expected = routes_of(kinds), 0
    for n in range(3):
        s = torch.zeros(6, 6, dtype=torch.double)
        for (factor, route), a, b in zip(routes.items(), z0.split(widths, 1), z1.split(widths, 1)):
            assert (n in route) == (factor in kinds[n].split('-'))
            w = unit(torch.cat([a[kind == n], b[kind == n]]).double())
            if n in route: s += w @ w.T / tau
        expected += torch.nn.functional.cross_entropy(s.fill_diagonal_(-math.inf), torch.arange(6).roll(3))
    loss = RoutedMax(routes=routes.values(), n_slices=widths, tau=tau)
    torch.testing.assert_close(loss(z0, z1, kind).double(), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(batch=batches(max_slices=1), tau=st.floats(0.05, 1), data=st.data())
def test_contrast_within_groups(batch, tau, data):
    z0, z1, _ = batch
    group = torch.tensor(data.draw(st.lists(st.integers(-1, 3), min_size=len(z0), max_size=len(z0))))
    w = unit(torch.cat([z0, z1]).double())
    s = (w @ w.T / tau).fill_diagonal_(-math.inf)
    s[group.repeat(2)[:, None] != group.repeat(2)] = -math.inf
    each = s.logsumexp(1) - s.roll(len(z0), 1).diagonal()
    alone = (group[:, None] == group).sum(1).repeat(2) == 1
    torch.testing.assert_close(info_nce_within(z0, z1, group, tau).double(), each[~alone].sum() / len(w), rtol=1e-4, atol=1e-4)


def test_losses_that_take_kinds_check_their_batch():
    z0, z1 = pair()
    for loss, kinds in ((RoutedMax(routes=[[0], [1]]), (torch.arange(6) % 2,)), (BASES['category'](), ())):
        with pytest.raises(ValueError, match='one shape'): loss(z0, z1[:5], *kinds)
        with pytest.raises(TypeError, match='floating point'): loss(z0.long(), z1.long(), *kinds)
    for kind, message in ((torch.arange(5) % 2, 'one number for each of the 6 pairs'), (torch.arange(6)[:, None] % 2, 'one number'), (torch.arange(6) // 5, 'kind 1 has no negatives')):
        with pytest.raises(ValueError, match=message): RoutedMax(routes=[[0], [1]])(z0, z1, kind)
    for routes in ([[], []], [[0], []], []):
        with pytest.raises(ValueError, match='in its route'): RoutedMax(routes=routes)


def test_options_of_a_base_that_is_a_module_are_refused():
    with pytest.raises(TypeError, match='lamda, routes: options are for a base by name'): DisentangleLoss(HessReg(), base=InfoMax(), lamda=.1, routes=[[0]])


@pytest.mark.parametrize('check_finite', [False, True])
def test_categories_are_asked_for_probabilities(check_finite):
    z0, z1 = pair()
    loss = DisentangleLoss(base='category', n_slices=2, check_finite=check_finite)
    with pytest.raises(ValueError, match='must hold probabilities'): loss(z0, z1)
    p0, p1 = (torch.cat([s.softmax(1) for s in z.chunk(2, 1)], 1) for z in (z0, z1))
    assert loss(p0, p1).isfinite()


def test_parts_are_detached_and_on_the_device_of_the_input():
    z0, z1 = pair()
    loss = DisentangleLoss([HessReg(), OrthoReg()], lam=[0.5, 2])
    value = loss(z0.requires_grad_(), z1)
    assert value.requires_grad and not any(p.requires_grad for p in loss.parts.values())
    assert all(p.ndim == 0 and p.device == z0.device for p in loss.parts.values())
    assert list(loss.parts) == ['subinfomax', 'hess', 'ortho', 'lam_hess', 'lam_ortho', 'loss']


def test_any_module_is_a_base_or_a_regulariser():
    class Gap(torch.nn.Module):
        def forward(self, z0, z1): return (z0 - z1).square().mean()
    z0, z1 = pair()
    loss = DisentangleLoss([None, Gap()], base=Gap(), lam=2)
    torch.testing.assert_close(loss(z0, z1), 3 * Gap()(z0, z1))
    assert list(loss.parts) == ['Gap', 'Gap_2', 'lam', 'loss']


# Modules as objects

@pytest.mark.parametrize('name', names)
def test_copies_and_pickles(name):
    z0, z1 = pair()
    for loss in (make(name, n_slices=3, tau=0.3), DisentangleLoss(make(name, n_slices=3), n_slices=3, lam=0.2, warmup=4)):
        expected = call(loss, z0, z1)
        for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))): assert call(twin, z0, z1) == expected
        assert not loss.state_dict()


def test_parts_have_names_of_their_own():
    class Gap(L.SliceLoss):
        def loss(self, z0, z1): return (z0 - z1).square().mean()
    class Other(Gap): name = 'Gap_2'
    class Child(Other): pass
    loss = DisentangleLoss([Gap(), Gap(), Other(), Child()], lam=[1., 10., 100., 1000.])
    total = loss(*pair())
    assert loss.names == ['subinfomax', 'Gap', 'Gap_2', 'Gap_2_2', 'Child']
    torch.testing.assert_close(total, loss.parts['subinfomax'] + 1111 * loss.parts['Gap'])


@every
def test_compiles(name):
    "One graph without breaks. The backend needs no C++ compiler; a permutation from a generator of its own is the one thing that breaks the graph"
    torch.compiler.reset()
    z0, z1 = pair(dtype=torch.float32)
    loss = make(name)
    value, grad = value_and_grad(torch.compile(loss, backend='aot_eager', fullgraph=name != 'ortho_fixed'), z0, z1)
    expected, expected_grad = value_and_grad(loss, z0, z1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)


def test_a_warm_up_compiles_once():
    "With the setting that notebook 04 names; the first step is compiled with its number as a constant"
    from torch._dynamo.testing import CompileCounter
    torch.compiler.reset()
    z0, z1 = pair(dtype=torch.float32)
    loss, graphs = DisentangleLoss(OrthoReg(), warmup=50), CompileCounter()
    compiled = torch.compile(loss, backend=graphs)
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        for loss.step in range(6): value = compiled(z0, z1)
    torch.testing.assert_close(value, loss(z0, z1))
    assert graphs.frame_count <= 2


# Large batches: strip by strip against the dense float64 definition

def tiled(monkeypatch, strip=5):
    monkeypatch.setattr(infonce, 'DENSE_BELOW', 0)
    monkeypatch.setattr(infonce, 'STRIP', strip)


tileable = pytest.mark.parametrize('name', [n for n in names if not n.startswith('hsic')])


@tileable
@pytest.mark.parametrize('k', [1, 2, 3, 8])
@given(n=st.integers(2, 43), width=st.integers(2, 5), tau=st.floats(0.01, 1), seed=st.integers(0, 999), strip=st.sampled_from([1, 7, 128]))
@settings(max_examples=10)
def test_tiled_equals_dense(name, k, n, width, tau, seed, strip):
    loss, (z0, z1) = make(name, n_slices=k, tau=tau), pair(n, k * width, seed)
    value, grad = value_and_grad(loss, z0, z1)
    with pytest.MonkeyPatch.context() as patch:
        tiled(patch, strip)
        exact, exact_grad = value_and_grad(loss, z0, z1)
        single, single_grad = value_and_grad(loss, z0.float(), z1.float())
    top = grad.abs().max().item()
    torch.testing.assert_close(exact, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact_grad, grad, rtol=1e-7, atol=1e-9 * (1 + top))
    torch.testing.assert_close(single.double(), value, rtol=1e-4, atol=1e-4 / tau)
    assert single_grad.isfinite().all()


@tileable
@pytest.mark.parametrize('tau', [0.01, 0.1, 1])
def test_tiled_float32_is_as_near_to_float64_as_dense(name, tau, monkeypatch):
    "The error of a large batch beside the dense float32 one, and beside the rounding of the similarities"
    loss, (z0, z1) = make(name, n_slices=2, tau=tau), pair(301, 16)
    (value, grad), (_, dense_grad) = value_and_grad(loss, z0, z1), value_and_grad(loss, z0.float(), z1.float())
    tiled(monkeypatch, 50)
    single, single_grad = value_and_grad(loss, z0.float(), z1.float())
    error, dense_error = ((g.double() - grad).norm() / grad.norm() for g in (single_grad, dense_grad))
    torch.testing.assert_close(single.double(), value, rtol=2e-5, atol=1e-5)
    assert error < max(4 * dense_error, 1e-6 / tau)


@tileable
@pytest.mark.parametrize('case', ['zeros', 'constant', 'one zero row', 'one-hot', 'opposite views'])
def test_tiled_is_finite_at_degenerate_input(name, case, monkeypatch):
    tiled(monkeypatch)
    test_finite_at_degenerate_input(name, 0.01, case)


@tileable
def test_tiled_has_no_second_derivative_and_says_so(name, monkeypatch):
    tiled(monkeypatch)
    z0, z1 = pair()
    with pytest.raises(RuntimeError, match='a tiled loss has no second derivative'):
        torch.autograd.grad(call(make(name), z0.requires_grad_(), z1), z0, create_graph=True)
    with pytest.raises(RuntimeError): torch.func.grad(make(name))(*pair())


@tileable
def test_dense_has_transforms(name):
    if name == 'ortho_redrawn': pytest.skip('each call draws its own permutation')
    z0, z1 = pair()
    torch.testing.assert_close(torch.func.grad(make(name))(z0, z1), value_and_grad(make(name), z0, z1)[1][:6])


@tileable
def test_a_batch_of_default_size_limits_is_tiled(name):
    "What the constants choose: 1,025 pairs, no patch"
    loss, (z0, z1) = make(name, n_slices=2), pair(infonce.DENSE_BELOW + 1, 8)
    value, grad = value_and_grad(loss, z0, z1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infonce, 'DENSE_BELOW', 10**9)
        dense, dense_grad = value_and_grad(loss, z0, z1)
    torch.testing.assert_close(value, dense, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, dense_grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('name', by_kind)
def test_pairs_of_a_kind_are_tiled_too(name, monkeypatch):
    loss, (z0, z1) = make(name, tau=.3), pair(40)
    value, grad = value_and_grad(loss, z0, z1)
    tiled(monkeypatch)
    exact, exact_grad = value_and_grad(loss, z0, z1)
    torch.testing.assert_close(exact, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact_grad, grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('cls', [InfoMax, SubInfoMax, InfoMinReg, HessReg])
def test_a_temperature_can_be_learned_at_any_size(cls, monkeypatch):
    tau = torch.nn.Parameter(torch.tensor(.2, dtype=torch.float64))
    z0, z1 = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for below in (8, 1024):
        monkeypatch.setattr(infonce, 'DENSE_BELOW', below)
        assert torch.autograd.gradcheck(lambda t: cls(tau=t)(z0, z1), [tau])


def test_start_of_a_routed_base_delays_the_regularisers_only():
    z0, z1 = pair()
    kind = torch.arange(len(z0)) % 2
    loss = DisentangleLoss(OrthoReg(), base='routed', routes=[[0], [1]], start=10)
    torch.testing.assert_close(loss(z0, z1, kind), BASES['routed'](routes=[[0], [1]])(z0, z1, kind))


@pytest.mark.parametrize('base, reg, fits', [(2, 2, True), ([4, 4], 2, True), ([2, 6], [2, 6], True), (2, 4, False), ([2, 6], 2, False), ([2, 6], [6, 2], False)])
def test_base_and_regulariser_cut_the_same_slices(base, reg, fits):
    with nullcontext() if fits else pytest.raises(ValueError, match='cut different slices'): DisentangleLoss(HessReg(n_slices=reg), n_slices=base)
    DisentangleLoss(HessReg(n_slices=reg), base='whole', n_slices=base)


def test_gain_does_not_depend_on_the_reduction():
    z0, z1 = (torch.cat([z[:, :2].softmax(1), z[:, 2:]], 1) for z in pair())
    mean, total = (BASES['category'](n_slices=[2, z0.shape[1] - 2], reduction=r) for r in ('mean', 'sum'))
    torch.testing.assert_close(total(z0, z1), mean(z0, z1) * 2 * len(z0))
    assert mean.gain and math.isclose(mean.gain, total.gain, rel_tol=1e-6)


@pytest.mark.parametrize('rows', [1024, 1025])
def test_odd_numbers_of_rows(rows):
    from disentangle_nb.infonce import log_sum_exp, similarity
    z = unit(torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(log_sum_exp(z, z, .1), similarity(z, z, .1).logsumexp(1))


@pytest.mark.parametrize('options, message', [(dict(warmup=-5), 'warmup must be 0 steps or more'), (dict(lam=float('nan')), 'lam must be finite')])
def test_weights_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message): L.DisentangleLoss(L.HSICReg(), **options)


def test_categories_that_are_none_are_refused_and_nan_is_left_to_who_asks():
    loss, z = L.CategoryMax(n_slices=[4, 4]), torch.cat([torch.eye(4).repeat(4, 1), torch.randn(16, 4)], 1)
    assert loss(z, z).isfinite()
    for views in ((z, torch.randn(16, 8)), (torch.randn(16, 8), z)):
        with pytest.raises(ValueError, match='must hold probabilities'): loss(*views)
    z[0, 0] = float('nan')
    assert loss(z, z).isnan()


def test_half_precision_categories_do_not_overflow():
    p = torch.full((16384, 10), .1).half()
    assert L.category_loss(p, p).item() == pytest.approx(math.log(10), abs=1e-3)


def test_kinds_that_are_no_tensor_are_refused():
    z0, z1 = pair()
    kind = torch.arange(len(z0)) % 2
    for given in (kind.numpy(), kind.tolist()):
        with pytest.raises(TypeError, match='kind must be a tensor, got'): L.RoutedMax(routes=[[0], [1]])(z0, z1, given)


@pytest.mark.parametrize('kinds', [[], ['none'], [''], ['DC', 'DC'], 'DC-,BC'])
def test_kinds_that_route_nothing_are_refused(kinds):
    with pytest.raises(ValueError, match='kinds must be different names of factors'): routes_of(kinds)


@pytest.mark.parametrize('names', list(permutations(['hess', 'lam_hess', 'lam', 'loss'])))
def test_logged_names_never_meet(names):
    regs = [type(name, (L.SliceLoss,), {'name': name, 'loss': lambda self, z0, z1: z0.sum()})() for name in names]
    loss = DisentangleLoss(regs, lam=list(range(len(regs))))
    loss(*pair())
    assert len(loss.parts) == 2 * len(regs) + 2


@pytest.mark.parametrize('name', ['sub', 'infomin', 'hess', 'hsic_white'])
def test_shapes_are_told_without_values(name):
    z = torch.empty(64, 8, device='meta')
    assert BASES.get(name, lambda: make_reg(name))()(z, z).shape == ()


def test_what_are_no_rows_of_tensors_is_named():
    with pytest.raises(TypeError, match='must be tensors, got ndarray and ndarray'): info_nce(*(z.numpy() for z in pair()))
    with pytest.raises(ValueError, match='D 1 or more'): info_nce(torch.zeros(4, 0), torch.zeros(4, 0))


@pytest.mark.parametrize('given, said', [(lambda z0, z1: z0.sum(1), r'got \(4,\)'), (lambda z0, z1: 0., 'got float')])
def test_a_loss_that_is_no_number_is_named(given, said):
    class Mine(torch.nn.Module):
        name = 'mine'
        def forward(self, z0, z1): return given(z0, z1)
    with pytest.raises(ValueError, match=f'mine must give a tensor with one number, {said}'): DisentangleLoss(Mine())(torch.randn(4, 6), torch.randn(4, 6))


PAIR = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
HALVES = torch.arange(8) // 4


def with_probabilities(z): return torch.cat([z[:, :2].softmax(1), z[:, 2:]], 1)


def test_a_regulariser_by_name_has_the_temperature_of_the_whole_loss():
    assert DisentangleLoss('hess', tau=.3).regs[0].tau == .3


def test_first_stages_have_temperature_and_reduction():
    torch.testing.assert_close(InferredMax(routes=[[0], [1]], tau=.3, reduction='sum')(*PAIR, HALVES), info_nce(*PAIR, .3, 'sum'))
    category = CategoryMax(n_slices=[2, 10], tau=.3, reduction='sum')
    category.ready = False
    torch.testing.assert_close(category(*PAIR), info_nce(*PAIR[..., :2], .3, 'sum'))


def test_routed_sum_is_the_mean_times_pairs():
    total, mean = (RoutedMax(routes=[[0], [1]], reduction=r)(*PAIR, HALVES) for r in ('sum', 'mean'))
    torch.testing.assert_close(total, 8 * mean)


def test_two_pairs_of_a_found_kind_are_enough():
    loss, kind = InferredMax(routes=[[0], [1]]), torch.tensor([0] * 6 + [1] * 2)
    loss.ready = True
    torch.testing.assert_close(loss(*PAIR, kind), RoutedMax(routes=[[0], [1]])(*PAIR, kind))


def test_every_other_slice_is_contrasted_within_the_categories():
    loss, (z0, z1) = CategoryMax(n_slices=[2, 4, 6]), map(with_probabilities, PAIR)
    p, value = (z0[:, :2], z1[:, :2]), loss(z0, z1)
    group = likeliest(*p)
    within = [info_nce_within(z0[:, s], z1[:, s], group) for s in (slice(2, 6), slice(6, 12))]
    torch.testing.assert_close(value, category_loss(*p) + sum(within))
    assert math.isclose(loss.gain, (chance_within(group) - sum(within) / 2).item(), abs_tol=1e-5)


def test_a_start_needs_the_step_too():
    with pytest.raises(RuntimeError, match='count steps'): DisentangleLoss(OrthoReg(), start=5)(PAIR[0].clone().requires_grad_(), PAIR[1])


def test_spaces_in_kinds_do_not_count(): assert routes_of('DC, BC') == {'DC': [0], 'BC': [1]}


def test_the_floor_of_ten_classes(): assert math.isclose(info_nce_floor(512, 10), math.log(1 + 102.2))


def test_tiled_hess_at_low_temperatures(monkeypatch):
    monkeypatch.setattr(infonce, 'DENSE_BELOW', 0)
    def at(tau, dtype):
        z = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        value = HessReg(tau=tau)(*z)
        value.backward()
        return value.item(), z.grad.double()
    assert math.isfinite(at(.001, torch.float32)[0]) and at(.001, torch.float32)[1].isfinite().all()
    (value, grad), (exact, wanted) = (at(.012, dtype) for dtype in (torch.float32, torch.float64))
    assert math.isclose(value, exact, rel_tol=1e-3) and (grad - wanted).norm() < .01 * wanted.norm()


@pytest.mark.parametrize('name', ['warmup', 'start'])
@pytest.mark.parametrize('steps', [-1, math.nan, math.inf])
def test_schedules_are_numbers_of_steps(name, steps):
    with pytest.raises(ValueError, match=f'{name} must be 0 steps or more'): DisentangleLoss('hess', **{name: steps})


def test_arrays_are_no_tensors():
    with pytest.raises(TypeError, match='must be tensors'): DisentangleLoss()(np.ones((4, 8)), np.ones((4, 8)))
