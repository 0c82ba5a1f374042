"Dependence measures against whole-matrix formulas, hyppo and dcor"
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist, pdist

import references as ref
from references import random

from disentangle_nb.dependence import (KERNELS, cka, distance_correlation, half_sample_interval, half_samples, hsic, independence_test,
                                       median_bandwidth, seed_agreement, slice_dependence)
from disentangle_nb.regularizers import whitened

SEEDS = range(20)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("unbiased", [False, True])
def test_hsic_and_cka_are_the_whole_matrix_formulas(kernel, unbiased):
    for seed in SEEDS:
        x, y = ref.random_pair(seed)
        K, L = ref.kernel_matrix(x, kernel), ref.kernel_matrix(y, kernel)
        want = ref.hsic(K, L, unbiased)
        scale = np.sqrt(ref.hsic(K, K, unbiased) * ref.hsic(L, L, unbiased))
        assert hsic(x, y, kernel, unbiased) == pytest.approx(want, abs=1e-9 * scale)
        assert cka(x, y, kernel, unbiased) == pytest.approx(want / scale, abs=1e-8)


@pytest.mark.parametrize("unbiased", [False, True])
def test_tiles_give_what_whole_matrices_give(unbiased):
    x, y = ref.random_pair(3, n=1300)
    K, L = (np.exp(-cdist(v, v)**2 / 8) for v in (x, y))
    assert hsic(x, y, unbiased=unbiased, bandwidth=2.) == pytest.approx(ref.hsic(K, L, unbiased), rel=1e-8)


def test_bandwidth_is_the_median_distance():
    for seed in SEEDS: assert median_bandwidth(ref.random_pair(seed)[0]) == pytest.approx(np.median(pdist(ref.random_pair(seed)[0])), rel=1e-9)


def test_distance_correlation_is_dcors():
    dcor = pytest.importorskip("dcor", reason="dcor is not installed: the reference for distance correlation")
    for seed in SEEDS:
        x, y = ref.random_pair(seed)
        assert distance_correlation(x, y, bias_corrected=False) == pytest.approx(dcor.distance_correlation(x, y), abs=1e-8)
        assert distance_correlation(x, y) == pytest.approx(dcor.u_distance_correlation_sqr(x, y), abs=1e-8)


def test_debiased_rbf_cka_and_dcorr_are_hyppos():
    hyppo = pytest.importorskip("hyppo.independence", reason="hyppo is not installed: the reference for HSIC")
    for seed in SEEDS:
        x, y = ref.random_pair(seed)
        s = median_bandwidth(x)
        for bias in (False, True):
            theirs = hyppo.Hsic(bias=bias, gamma=1 / (2 * s**2)).statistic(x, y)
            if bias: theirs **= 2  # hyppo takes the root of its biased statistic
            assert cka(x, y, "rbf", debiased=not bias, bandwidth=s) == pytest.approx(theirs, abs=1e-8)
        assert distance_correlation(x, y) == pytest.approx(hyppo.Dcorr(bias=False).statistic(x, y), abs=1e-8)


def test_permutation_p_is_counted_over_whole_matrices():
    for seed in SEEDS:
        x, y = ref.random_pair(seed, n=40)
        K, L = ref.kernel_matrix(x, "rbf"), ref.kernel_matrix(y, "rbf")
        rng = np.random.default_rng(seed)
        perms = [rng.permutation(40) for _ in range(1000)]
        null = [ref.hsic(K, L[np.ix_(p, p)], True) for p in perms]
        want = np.mean(np.array(null) >= ref.hsic(K, L, True))
        assert independence_test(x, y, n_perm=499) == pytest.approx(want, abs=0.07)


def test_p_values_are_uniform_when_independent():
    rng = np.random.default_rng(0)
    p = np.array([independence_test(rng.normal(size=(25, 2)), rng.normal(size=(25, 2)), "distance", n_perm=99, seed=i) for i in range(300)])
    for a in (0.05, 0.2, 0.5): assert abs((p <= a).mean() - a) < 3 * np.sqrt(a * (1 - a) / 300) + 0.01
    assert independence_test(np.arange(3000.)[:, None], np.arange(3000.)[:, None], n_perm=49) == 0.02


def test_half_sample_intervals_cover():
    rng, hits, corr = np.random.default_rng(0), 0, 0
    for t in range(300):
        v = rng.normal(size=(120, 2)) @ np.array([[1, .6], [0, .8]])
        half = half_samples(120, 60, seed=t)
        lo, hi = half_sample_interval(v[:, 0].mean(), [v[h, 0].mean() for h in half])
        hits += lo <= 0 <= hi
        r = lambda w: np.corrcoef(w.T)[0, 1]
        lo, hi = half_sample_interval(r(v), [r(v[h]) for h in half])
        corr += lo <= 0.6 <= hi
    assert 0.91 < hits / 300 < 0.985 and 0.91 < corr / 300 < 0.985


def test_interval_of_too_few_replicates_is_undefined():
    assert np.isnan(half_sample_interval(1., [])).all() and np.isnan(half_sample_interval(float("nan"), [1., 2.])).all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 40), D=st.integers(1, 6), E=st.integers(1, 6), scale=st.sampled_from([1e-3, 1., 1e3]), seed=st.integers(0, 999))
def test_invariances_and_bounds(n, D, E, scale, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, D)), rng.normal(size=(n, E))
    Q, p = np.linalg.qr(rng.normal(size=(D, D)))[0], rng.permutation(n)
    for kernel in KERNELS:
        a = cka(x, y, kernel, debiased=False)
        assert -1e-9 <= a <= 1 + 1e-9
        assert cka(y, x, kernel, debiased=False) == pytest.approx(a, abs=1e-6)
        assert cka(x[p], y[p], kernel, debiased=False) == pytest.approx(a, abs=1e-6)
        assert cka(scale * x @ Q + 1, y, kernel, debiased=False) == pytest.approx(a, abs=2e-3)
        assert hsic(x, y, kernel) >= -1e-9


@pytest.mark.parametrize("bad,error", [(lambda x: x[:-1], "same samples"), (lambda x: x * np.nan, "NaN"), (lambda x: x[:, 0], "shape")])
def test_bad_input(bad, error):
    x = np.random.default_rng(0).normal(size=(10, 2))
    for f in (hsic, cka, distance_correlation, independence_test):
        with pytest.raises(ValueError, match=error): f(x, bad(x))


def test_constant_slice_is_independent_of_everything():
    x = torch.randn(50, 4)
    x[:, :2] = 0.1
    stats = slice_dependence(x, n_perm=19, n_boot=3)["r_0~r_1"]
    for name, e in stats.items(): assert e["value"] == pytest.approx(0, abs=1e-12) and e["p"] == 1, name


def test_agreement_is_invariant_to_order_rotation_and_scale():
    x = torch.randn(200, 9)
    Q = torch.linalg.qr(torch.randn(3, 3))[0]
    y = torch.cat([5 * x[:, 6:], x[:, :3] @ Q, -x[:, 3:6]], 1)
    found = seed_agreement(x, y, slices=3)
    assert found["match"] == {"r_0": "r_1", "r_1": "r_2", "r_2": "r_0"} and found["agreement"] == pytest.approx(1, abs=1e-5)


def test_agreement_is_the_best_matching_of_the_debiased_cka_table():
    from itertools import permutations
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(60, 6))
        y = x[:, rng.permutation(6)] + rng.normal(size=(60, 6))
        M = np.array([[ref.cka(x[:, i:i + 2], y[:, j:j + 2], "linear", True) for j in (0, 2, 4)] for i in (0, 2, 4)])
        best = max(permutations(range(3)), key=lambda p: sum(M[i, p[i]] for i in range(3)))
        found = seed_agreement(x, y, slices=3, n_boot=20)
        assert found["matrix"] == pytest.approx(M, abs=1e-6)
        assert found["agreement"] == pytest.approx(np.mean([M[i, best[i]] for i in range(3)]), abs=1e-6)
        assert found["low"] < found["agreement"] < found["high"]
    assert np.isnan(seed_agreement(x, y, 3, n_boot=0)["low"])


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is not measured on Windows")
def test_no_kernel_matrix_is_kept():
    code = """
import torch
from disentangle_nb.bench import peak_memory
from disentangle_nb.dependence import distance_correlation
distance_correlation(torch.randn(100, 8), torch.randn(100, 8))
before, n = peak_memory("cpu"), 9000
distance_correlation(torch.randn(n, 8), torch.randn(n, 8))
print((peak_memory("cpu") - before) / (8 * n * n))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) < 0.4  # a whole float64 matrix would be 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_p_does_not_change_with_the_units(kernel):
    x, y = ref.random_pair(0, n=60)
    want = [independence_test(x, other, kernel, n_perm=39) for other in (x, y)]
    for scale in (1e-13, 1e10, 1e20): assert [independence_test(scale * x, scale * other, kernel, n_perm=39) for other in (x, y)] == want
    assert want[0] == 1 / 40


def test_a_test_without_a_statistic_is_refused():
    x, y = ref.random_pair(0)
    for width in (0, -1, np.nan, np.inf, (1, 0), (1, 2, 3)):
        for f in (hsic, independence_test):
            with pytest.raises(ValueError, match="finite and positive"): f(x, y, bandwidth=width)
    for rows in (0, 2, 3):
        with pytest.raises(ValueError, match=f"max_rows={rows}"): independence_test(x, y, max_rows=rows)
    for n in (0, -5):
        with pytest.raises(ValueError, match=f"n_perm must be 1 or more, got {n}"): independence_test(x, y, n_perm=n)


def test_half_samples_need_eight_rows():
    x, _ = ref.random_pair(0, n=7)
    x = np.c_[x, x]
    for f in (slice_dependence, lambda x, **kw: seed_agreement(x, x, **kw)):
        with pytest.raises(ValueError, match="8 rows or more, got 7: n_boot=0"): f(x)
        assert f(x, n_boot=0)
    with pytest.raises(ValueError, match="8 rows or more, got 5"): seed_agreement(*[np.repeat(x, 9, 0)] * 2, max_rows=5)
    with pytest.raises(ValueError, match="max_rows must be 1 or more, got -9"): seed_agreement(*[np.repeat(x, 9, 0)] * 2, max_rows=-9)


def test_float64_is_not_rounded():
    x, y = ref.random_pair(0)
    for kernel in KERNELS: assert cka(x + 1e7, y, kernel) == pytest.approx(cka(x, y, kernel), abs=1e-6)
    assert seed_agreement(np.c_[x, x] + 1e7, np.c_[x, x], n_boot=0)["agreement"] == pytest.approx(1)


def test_a_wide_gaussian_kernel_becomes_the_linear_one():
    for seed in SEEDS:
        x, y = random(120, 4, seed=seed), random(120, 2, seed=100 + seed)
        assert cka(x, y, "rbf", bandwidth=1e3) == pytest.approx(cka(x, y, "linear"), abs=1e-6)


def test_intervals_have_the_level_that_was_asked_for():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    wide, narrow = (slice_dependence(x, 2, n_perm=0, level=level)["r_0~r_1"]["dcor"] for level in (.95, .5))
    assert (narrow["high"] - narrow["low"]) < .5 * (wide["high"] - wide["low"])


def test_one_slice_has_no_others():
    assert np.isnan(seed_agreement(*torch.randn(2, 40, 3), 1)["others"])


def test_intervals_of_few_rows_are_scaled_to_all_of_them():
    x, width = random(4000, 4), lambda v: (lambda e: e["high"] - e["low"])(slice_dependence(v, n_perm=0)["r_0~r_1"]["cka_linear"])
    assert width(x) < .75 * width(x[:1000])


def test_each_statistic_has_the_p_value_of_its_kernel():
    a = torch.linspace(-1, 1, 200)[:, None]
    found = slice_dependence(torch.cat([a, a**2], 1), n_perm=19, n_boot=0, max_rows=100, seed=3)["r_0~r_1"]
    for name, kernel in dict(cka_linear="linear", cka_white="white", dcor="distance", hsic="rbf").items():
        assert found[name]["p"] == independence_test(a, a**2, kernel, 19, 100, seed=3)
    assert found["cka_linear"]["p"] > found["dcor"]["p"]


def test_seeds_and_rows_of_tests_reach_them():
    x = random(300, 2, seed=1)
    p = lambda **kw: slice_dependence(x, n_perm=49, n_boot=0, **kw)["r_0~r_1"]["dcor"]["p"]
    assert p(max_rows=20, seed=5) == independence_test(x[:, :1], x[:, 1:], "distance", 49, 20, seed=5) != p(seed=5)
    assert len({independence_test(x[:60, :1], x[:60, 1:], n_perm=99, seed=s) for s in range(4)}) > 1
    assert any((a != b).any() for a, b in zip(half_samples(20, 3, seed=0), half_samples(20, 3, seed=1)))


def test_agreement_by_another_kernel():
    x = random(60, 4)
    found = seed_agreement(x, x**2, kernel="rbf", n_boot=20)
    assert np.allclose(found["matrix"], [[cka(x[:, i:i+2], x[:, j:j+2]**2, "rbf") for j in (0, 2)] for i in (0, 2)])
    assert found["low"] < found["agreement"] < found["high"]


def test_agreement_with_the_slices_that_are_not_matched():
    x = random(60, 6)
    found = seed_agreement(x, x + random(60, 6, seed=1) @ random(6, 6), 3, n_boot=0)
    M, match = np.array(found["matrix"]), [int(name[2:]) for name in found["match"].values()]
    assert np.isclose(found["others"], (M.sum() - M[range(3), match].sum()) / 6)


def test_the_bandwidth_of_many_rows_is_that_of_rows_spread_over_them():
    assert abs(median_bandwidth(torch.arange(3000.)[:, None]) / 3000 - (1 - .5**.5)) < .01


def test_a_bandwidth_is_taken_of_whitened_rows_too():
    x, y = random(50, 3), random(50, 2, seed=1)
    assert np.isclose(hsic(x, y, "white", bandwidth=1.), hsic(whitened(x.double()), whitened(y.double()), bandwidth=1.))
