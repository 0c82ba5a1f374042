"Disentanglement metrics against slow re-derivations from the papers' formulas, scikit-learn and SciPy"
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import digamma
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression, r_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, log_loss, mutual_info_score, roc_auc_score

from disentangle_nb.disentanglement import (active_codes, as_blocks, as_factors, boosted_importance, capacity_readings, dci_completeness,
                                            dci_disentanglement, each_dimension, explicitness_area, explicitness_auc, explicitness_es, infoc,
                                            infom, label_entropy, linear_importance, med, mi_matrix, mig, modularity, read_factor,
                                            refit, sap_matrix, top_gap, top_k_med)

SEEDS = range(20)


def matrix(seed):
    rng = np.random.default_rng(seed)
    M = rng.gamma(0.5, size=(int(rng.integers(2, 9)), int(rng.integers(2, 6))))
    if seed % 4 == 0: M[0] = 0  # a dead code
    return M


def data(seed, n=300, D=5):
    rng = np.random.default_rng(seed)
    y = np.stack([rng.integers(c, size=n) for c in (3, 4)], 1)
    x = rng.normal(size=(n, D)) + rng.normal(size=(3, D))[y[:, 0]] + rng.normal(size=(4, D))[y[:, 1]]
    return x.astype(np.float32), y


def entropy(p, base): return -sum(v * math.log(v, base) for v in p if v > 0)


def slow_dci(R):
    "Eastwood and Williams 2018, section 2"
    D, F = R.shape
    dis = com = 0.
    for i in range(D):
        if R[i].sum() > 0: dis += R[i].sum() / R.sum() * (1 - entropy(R[i] / R[i].sum(), F))
    for j in range(F): com += R[:, j].sum() / R.sum() * (1 - entropy(R[:, j] / R[:, j].sum(), D))
    return dis, com


def test_dci():
    for seed in SEEDS:
        R = matrix(seed)
        assert (dci_disentanglement(R), dci_completeness(R)) == pytest.approx(slow_dci(R), abs=1e-9)


def test_mig():
    for seed in SEEDS:
        I, rng = matrix(seed), np.random.default_rng(seed)
        H = rng.uniform(1, 3, I.shape[1])
        want = 0.
        for j in range(I.shape[1]):
            best, second = sorted(I[:, j], reverse=True)[:2]
            want += (best - second) / H[j] / I.shape[1]
        assert mig(I, H) == pytest.approx(want)


def test_modularity():
    for seed in SEEDS:
        I, want = matrix(seed), 0.
        for row in I:
            best = max(range(len(row)), key=lambda j: row[j])
            if row[best] == 0: continue
            t = [row[j] if j == best else 0 for j in range(len(row))]
            want += 1 - sum((v - w)**2 for v, w in zip(row, t)) / (row[best]**2 * (len(row) - 1))
        assert modularity(I) == pytest.approx(want / len(I))


def test_infom_and_infoc():
    for seed in SEEDS:
        N = matrix(seed)
        D, F = N.shape
        live = [i for i in range(D) if sum(N[i]) > 0]
        m = sum(max(N[i]) / sum(N[i]) for i in live) / len(live)
        c = sum(max(N[:, j]) / sum(N[:, j]) for j in range(F)) / F
        assert infom(N) == pytest.approx((m - 1 / F) / (1 - 1 / F))
        assert infoc(N) == pytest.approx((c - 1 / D) / (1 - 1 / D))


def slow_top_k(I, k):
    "Cao et al. 2022: of the codes that each factor claims, the k most disentangled"
    R = I / I.sum(0)
    D, F = R.shape
    dis = [1 - entropy(R[i] / R[i].sum(), F) if R[i].sum() > 0 else 0 for i in range(D)]
    keep = []
    for j in range(F):
        mine = [i for i in range(D) if max(range(F), key=lambda f: R[i, f]) == j]
        keep += sorted(mine, key=lambda i: -dis[i])[:k]
    return sum(dis[i] * R[i].sum() for i in keep) / sum(R[i].sum() for i in keep)


def test_med_and_top_k_med():
    for seed in SEEDS:
        I = matrix(seed)
        assert med(I) == pytest.approx(slow_dci(I / I.sum(0))[0])
        for k in (1, 2, 100): assert top_k_med(I, k) == pytest.approx(slow_top_k(I, k))


def test_explicitness_area_is_the_trapezoid():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        k, l, base = np.sort(rng.uniform(0, 5, 6)), rng.uniform(0, 2, 6), rng.uniform(1, 3)
        best = np.array([l[:i + 1].min() for i in range(6)])
        want = 1 - np.trapezoid(best - best.min(), k) / (0.5 * (k[-1] - k[0]) * base)
        assert explicitness_area(l, k, base) == pytest.approx(want)


def test_mutual_information_is_scikit_learns_on_20_bins():
    for seed in SEEDS:
        x, y = data(seed)
        x[:, 4] = 0.1
        I = mi_matrix(x, as_factors(y, y))
        for i in range(5):
            edges = np.histogram_bin_edges(x[:, i].astype(float), 20)
            b = np.digitize(x[:, i].astype(float), edges[:-1])
            for j in range(2): assert I[i, j] == pytest.approx(mutual_info_score(b, y[:, j]), abs=1e-9)


def test_continuous_factor_is_binned():
    for seed in SEEDS:
        x, _ = data(seed)
        v = x[:, 0].astype(float) + np.random.default_rng(seed).normal(size=len(x))
        bins = lambda c: np.digitize(c, np.histogram_bin_edges(c, 20)[:-1])
        I, f = mi_matrix(x, as_factors(v, v)), as_factors(v, v)[0]
        assert I[0, 0] == pytest.approx(mutual_info_score(bins(x[:, 0].astype(float)), bins(v)), abs=1e-9)
        assert label_entropy(f) == pytest.approx(mutual_info_score(bins(v), bins(v)))


def test_nearest_neighbour_information_is_ross_2014():
    for seed in SEEDS:
        x, y = data(seed, n=60, D=1)
        v, c = (x[:, 0].astype(float) - x[:, 0].astype(float).mean()) / x[:, 0].astype(float).std(), y[:, 0]
        ks, ms, ns = [], [], []
        for i in range(60):
            same = np.sort(np.abs(v[c == c[i]] - v[i]))
            k = min(10, len(same) - 1)
            ks.append(digamma(k)), ns.append(digamma(len(same)))
            ms.append(digamma((np.abs(v - v[i]) < same[k] * (1 - 1e-9)).sum()))
        want = max(0, digamma(60) + np.mean(ks) - np.mean(ns) - np.mean(ms))
        got = mi_matrix(x, as_factors(y[:, :1], y[:, :1]), estimator="knn")[0, 0]
        assert got == pytest.approx(want, abs=1e-9)
        theirs = mutual_info_classif(x.astype(float), y[:, 0], n_neighbors=10, random_state=0)[0]
        assert got == pytest.approx(theirs, abs=0.03)  # its noise and rounding count the k-th neighbour in some rows


def test_nearest_neighbour_information_of_a_continuous_factor_is_kraskov_2004():
    for seed in SEEDS:
        x, _ = data(seed, n=60, D=1)
        w = x[:, 0].astype(float) + np.random.default_rng(seed).normal(size=60)
        a, b = ((v - v.mean()) / v.std() for v in (x[:, 0].astype(float), w))
        parts = []
        for i in range(60):
            da, db = np.abs(a - a[i]), np.abs(b - b[i])
            r = np.sort(np.maximum(da, db))[10] * (1 - 1e-9)
            parts.append(digamma((da < r).sum()) + digamma((db < r).sum()))
        got = mi_matrix(x, as_factors(w, w), estimator="knn")[0, 0]
        assert got == pytest.approx(max(0, digamma(60) + digamma(10) - np.mean(parts)), abs=1e-9)
        assert got == pytest.approx(mutual_info_regression(x.astype(float), w, n_neighbors=10, random_state=0)[0], abs=0.01)


def slow_sap(x, y, xt, yt, bins=20):
    edges = np.histogram_bin_edges(x, bins)
    named = {}
    for b in range(bins):
        inside = np.array([(min(max(np.searchsorted(edges, v, side="right") - 1, 0), bins - 1)) == b for v in x])
        share = [(inside & (y == c)).sum() / (y == c).sum() for c in range(y.max() + 1)]
        named[b] = share.index(max(share))
    guess = [named[min(max(np.searchsorted(edges, v, side="right") - 1, 0), bins - 1)] for v in xt]
    return balanced_accuracy_score(yt, guess)


def test_sap():
    for seed in SEEDS:
        x, y = data(seed, D=2)
        a, b = x[:200], x[200:]
        S = sap_matrix(a, b, as_factors(y[:200], y[200:]))
        for i in range(2):
            for j in range(2): assert S[i, j] == pytest.approx(slow_sap(a[:, i].astype(float), y[:200, j], b[:, i].astype(float), y[200:, j]))
        v = (x[:, 0] + np.random.default_rng(seed).normal(size=300)).astype(float)
        S = sap_matrix(a, b, as_factors(v[:200], v[200:]))
        assert S[:, 0] == pytest.approx(r_regression(b.astype(float), v[200:])**2, abs=1e-6)
        assert top_gap(S)[0] == pytest.approx(abs(S[0, 0] - S[1, 0]))


def test_explicitness_is_the_one_versus_rest_auc_of_scikit_learn():
    for seed in SEEDS:
        x, y = data(seed)
        f = as_factors(y[:200, 1], y[200:, 1])[0]
        r = read_factor(x[:200], x[200:], f, l2=[1e-2])
        p = r.probe
        z = lambda v: (v - p.mean.numpy()) / p.std.numpy()
        P = LogisticRegression(C=1 / (200 * 1e-2), tol=1e-10, max_iter=5000).fit(z(x[:200]), y[:200, 1]).predict_proba(z(x[200:]))
        want = np.mean([roc_auc_score(y[200:, 1] == c, P[:, c]) for c in range(4)])
        assert explicitness_auc(r, y[200:, 1]) == pytest.approx(want, abs=2e-3)


def test_predictive_information_is_entropy_minus_log_loss():
    for seed in SEEDS:
        x, y = data(seed)
        f = as_factors(y[:200, 0], y[200:, 0])[0]
        r = read_factor(x[:200], x[200:], f, l2=[1e-2])
        p = r.probe
        z = lambda v: (v - p.mean.numpy()) / p.std.numpy()
        P = LogisticRegression(C=1 / (200 * 1e-2), tol=1e-10, max_iter=5000).fit(z(x[:200]), y[:200, 0]).predict_proba(z(x[200:]))
        prior = np.tile(np.bincount(y[:200, 0]) / 200, (100, 1))
        H, ce = log_loss(y[200:, 0], prior), log_loss(y[200:, 0], P)
        assert r.information() == pytest.approx(H - ce, abs=1e-3)
        assert r.normalised() == pytest.approx(1 - ce / H, abs=1e-3)


def test_continuous_reading_is_scikit_learns_ridge():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(300, 6)).astype(np.float32)
        y = x @ rng.normal(size=6) + 2 * rng.normal(size=300) + 5
        r = read_factor(x[:200], x[200:], as_factors(y[:200], y[200:])[0])
        p = r.probe
        z = (x - p.mean.numpy()) / p.std.numpy()
        ref = Ridge(alpha=200 * p.l2, tol=1e-12).fit(z[:200], y[:200])
        assert p.weight[0].numpy() * p.y_std == pytest.approx(ref.coef_, rel=1e-4, abs=1e-4)
        ss = ((y[200:] - ref.predict(z[200:]))**2).sum() / ((y[200:] - y[:200].mean())**2).sum()
        assert r.accuracy() / 100 == pytest.approx(1 - ss, abs=1e-4)


def test_linear_importance_is_the_mean_absolute_weight_and_the_logits_spread():
    for seed in SEEDS:
        x, y = data(seed)
        fs = as_factors(y, y)
        probes = [read_factor(x, x, f, l2=[1e-2]).probe for f in fs]
        W = [np.abs(p.weight.numpy()).mean(0) for p in probes]
        assert linear_importance(x, probes, each_dimension(5)) == pytest.approx(np.stack([w / w.sum() for w in W], 1), abs=1e-5)
        z = [(x - p.mean.numpy()) / p.std.numpy() for p in probes]
        spread = np.array([[(z[j][:, s] @ p.weight.numpy()[:, s].T).std(0).mean() for j, p in enumerate(probes)] for s in (slice(0, 2), slice(2, 5))])
        assert linear_importance(x, probes, [slice(0, 2), slice(2, 5)]) == pytest.approx(spread / spread.sum(0), abs=1e-5)


def test_block_importance_does_not_change_under_rotation_within_blocks():
    x, y = data(0, n=600, D=8)
    blocks = [slice(0, 4), slice(4, 8)]
    z = (x - x.mean(0)) / x.std(0)
    L = [np.linalg.cholesky(np.linalg.inv(np.cov(z[:, s].T))) for s in blocks]
    w = np.concatenate([z[:, s] @ l for s, l in zip(blocks, L)], 1)  # white within blocks: rotations keep the standardisation
    Q = [np.linalg.qr(np.random.default_rng(k).normal(size=(4, 4)))[0] for k in range(2)]
    turned = np.concatenate([w[:, s] @ q for s, q in zip(blocks, Q)], 1)
    R = [linear_importance(v, [read_factor(v, v, f, l2=[1e-2]).probe for f in as_factors(y, y)], blocks) for v in (w, turned)]
    assert R[0] == pytest.approx(R[1], abs=1e-4)


def test_boosted_importance_is_scikit_learns():
    for seed in range(3):
        x, y = data(seed, n=150)
        R = boosted_importance(x, as_factors(y, y), max_features=None, n_estimators=10, max_rows=150)
        order = np.random.default_rng(0).permutation(150)
        ref = GradientBoostingClassifier(n_estimators=10, random_state=0).fit(x[order].astype(float), y[order, 0]).feature_importances_
        assert R[:, 0] == pytest.approx(ref)
        assert R.sum(0) == pytest.approx(1)


def test_refit_on_the_same_rows_changes_nothing_and_on_others_little():
    x, y = data(0, n=600)
    p = read_factor(x, x, as_factors(y, y)[0], l2=[1e-2]).probe
    assert refit(p, x, torch.tensor(y[:, 0])).weight.numpy() == pytest.approx(p.weight.numpy(), abs=1e-4)
    half = refit(p, x[:300], torch.tensor(y[:300, 0])).weight.numpy()
    assert 1e-3 < np.abs(half - p.weight.numpy()).max() < 1


def test_explicitness_es_orders_easy_and_hard():
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=900)
    easy = np.eye(4)[y] + 0.1 * rng.normal(size=(900, 4))
    v = rng.normal(size=(900, 2))
    hard = v / np.linalg.norm(v, axis=1, keepdims=True) * (1 + y[:, None] + 0.1 * rng.normal(size=(900, 1)))
    f = as_factors(y[:600], y[600:])[0]
    E = [explicitness_es(capacity_readings(e[:600].astype(np.float32), e[600:].astype(np.float32), f, (16, 64))) for e in (easy, hard)]
    assert -1 <= E[1] < E[0] <= 1


@settings(max_examples=80, deadline=None)
@given(D=st.integers(1, 8), F=st.integers(1, 5), zeros=st.floats(0, 0.9), scale=st.sampled_from([1e-9, 1., 1e9]), seed=st.integers(0, 9999))
def test_reductions_are_bounded_symmetric_and_scale_free(D, F, zeros, scale, seed):
    rng = np.random.default_rng(seed)
    M = rng.gamma(0.5, size=(D, F)) * (rng.random((D, F)) > zeros)
    p, q = rng.permutation(D), rng.permutation(F)
    for fn in (dci_disentanglement, dci_completeness, modularity, infom, infoc, med, top_k_med):
        v = fn(M)
        assert np.isnan(v) or -1e-9 <= v <= 1 + 1e-9, fn
        for other in (M[p][:, q], scale * M):
            if fn is top_k_med and zeros > 0: continue  # ties between codes are broken by their order
            assert fn(other) == pytest.approx(v, abs=1e-7, nan_ok=True), fn
    assert mig(scale * M, scale) == pytest.approx(mig(M), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=12))
def test_any_partition_is_a_block_list(owner):
    D = len(owner)
    blocks = [[i for i in range(D) if owner[i] == b] for b in sorted(set(owner))]
    order, parts = as_blocks(blocks, D)
    assert [order[s].tolist() for s in parts] == blocks


@pytest.mark.parametrize("train,test,kw,error", [
    ([[0], [0]], [[0]], {}, "only one value"), ([[0], [1]], [[2]], {}, "absent from training"), ([[0.], [np.inf]], [[0.]], {}, "NaN or infinite"),
    ([[0], [1]], [[0]], dict(names=["a", "b"]), "must be as many"), (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), {}, "shape")])
def test_bad_factors(train, test, kw, error):
    with pytest.raises(ValueError, match=error): as_factors(train, test, **kw)


def test_strings_booleans_and_numbered_classes_are_discrete():
    f = as_factors(np.array(["b", "a", "b"]), np.array(["a", "a"]))[0]
    assert f.values == ("a", "b") and f.train.tolist() == [1, 0, 1] and f.test.tolist() == [0, 0]
    assert as_factors([[True], [False]], [[True]])[0].n_classes == 2
    assert not as_factors([[0.5], [1.5]], [[1.0]])[0].discrete
    assert as_factors([[1.0], [5.0]], [[5.0]], discrete=True)[0].values == (1.0, 5.0)


def test_active_codes_by_range():
    x = np.random.default_rng(0).uniform(size=(100, 4)) * [1, 0.2, 0.01, 0]
    assert active_codes(x).tolist() == [True, True, False, False]
