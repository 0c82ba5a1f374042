"Disentanglement metrics against slow re-derivations from the papers' formulas, scikit-learn and SciPy"
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression, r_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mutual_info_score, roc_auc_score
from torch.nn import functional as F

import references as ref
from references import random

from disentangle_nb.disentanglement import (_log_odds, active_codes, as_blocks, as_factors, boosted_importance, boosted_trees, capacity_readings, dci_completeness,
                                            dci_disentanglement, explicitness_area, explicitness_auc, explicitness_es, infoc,
                                            infom, label_entropy, linear_importance, med, mi_matrix, mig, mlp_regressor, modularity, read_factor,
                                            refit, ridge_probe, sap_matrix, top_gap, top_k_med)
from disentangle_nb.probing import as_slices

SEEDS = range(20)


def test_dci():
    for seed in SEEDS:
        R = ref.random_matrix(seed)
        assert (dci_disentanglement(R), dci_completeness(R)) == pytest.approx(ref.dci(R), abs=1e-9)


def test_mig():
    for seed in SEEDS:
        I = ref.random_matrix(seed)
        H = np.random.default_rng(seed).uniform(1, 3, I.shape[1])
        assert mig(I, H) == pytest.approx(ref.mig(I, H))


def test_modularity():
    for seed in SEEDS: assert modularity(ref.random_matrix(seed)) == pytest.approx(ref.modularity(ref.random_matrix(seed)))


def test_infom_and_infoc():
    for seed in SEEDS:
        N = ref.random_matrix(seed)
        assert (infom(N), infoc(N)) == pytest.approx(ref.infom_infoc(N))


def test_med_and_top_k_med():
    for seed in SEEDS:
        I = ref.random_matrix(seed)
        assert med(I) == pytest.approx(ref.med(I))
        for k in (1, 2, 100): assert top_k_med(I, k) == pytest.approx(ref.top_k_med(I, k))


def test_explicitness_area_is_the_trapezoid():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        k, l, base = np.sort(rng.uniform(0, 5, 6)), rng.uniform(0, 2, 6), rng.uniform(1, 3)
        assert explicitness_area(l, k, base) == pytest.approx(ref.explicitness_area(l, k, base))


def test_mutual_information_is_scikit_learns_on_20_bins():
    for seed in SEEDS:
        x, y = ref.random_data(seed)
        x[:, 4] = 0.1
        I = mi_matrix(x, as_factors(y, y))
        for i in range(5):
            for j in range(2): assert I[i, j] == pytest.approx(ref.binned_information(x[:, i], y[:, j]), abs=1e-9)


def test_a_constant_dimension_knows_exactly_nothing():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(30, 400))
        y = np.stack([rng.integers(rng.integers(2, 12), size=n) for _ in range(2)], 1)
        x = np.concatenate([rng.normal(size=(n, 2)), np.full((n, 2), 0.1)], 1).astype(np.float32)
        I = mi_matrix(x, as_factors(y, y))
        assert (I[2:] == 0).all() and (I[:2] > 0).all()
        assert modularity(I) == pytest.approx(modularity(I[:2]) / 2) and med(I) == pytest.approx(med(I[:2])) and top_k_med(I) == pytest.approx(top_k_med(I[:2]))


def test_continuous_factor_is_binned():
    for seed in SEEDS:
        x, _ = ref.random_data(seed)
        v = x[:, 0].astype(float) + np.random.default_rng(seed).normal(size=len(x))
        I, f = mi_matrix(x, as_factors(v, v)), as_factors(v, v)[0]
        assert I[0, 0] == pytest.approx(ref.binned_information(x[:, 0], ref.bins(v)), abs=1e-9)
        assert label_entropy(f) == pytest.approx(mutual_info_score(ref.bins(v), ref.bins(v)))


def test_nearest_neighbour_information_is_ross_2014():
    for seed in SEEDS:
        x, y = ref.random_data(seed, n=60, D=2)
        got = mi_matrix(x, as_factors(y[:, :1], y[:, :1]), estimator="knn")[:, 0]
        assert got == pytest.approx([ref.ross(v, y[:, 0]) for v in x.T], abs=1e-9)
        # scikit-learn adds noise and rounds, and so counts the k-th neighbour in some rows
        assert got == pytest.approx(mutual_info_classif(x.astype(float), y[:, 0], n_neighbors=10, random_state=0), abs=0.03)


@pytest.mark.parametrize("code", [lambda y, e: y * 1., lambda y, e: np.maximum(2 * y + e - 6, 0), lambda y, e: np.tanh(5 * (y - 2.)), lambda y, e: y * 1.37 + 1e-6 * e,
                                  lambda y, e: (100 + y + .05 * e).astype(np.float16), lambda y, e: torch.tensor(y + e).bfloat16()])
def test_nearest_neighbour_information_of_codes_with_ties_is_scikit_learns(code):
    rng = np.random.default_rng(0)
    y = rng.integers(5, size=2000)
    x = code(y, rng.normal(size=2000))
    known = mutual_info_classif(np.array(x.tolist())[:, None], y, n_neighbors=10, random_state=0)
    assert mi_matrix(x[:, None], as_factors(y, y), estimator="knn")[:, 0] == pytest.approx(known, abs=0.02)


def test_nearest_neighbour_information_of_a_continuous_factor_is_kraskov_2004():
    for seed in SEEDS:
        x, _ = ref.random_data(seed, n=60, D=2)
        w = x[:, 0].astype(float) + np.random.default_rng(seed).normal(size=60)
        got = mi_matrix(x, as_factors(w, w), estimator="knn")[:, 0]
        assert got == pytest.approx([ref.kraskov(v, w) for v in x.T], abs=1e-9)
        assert got == pytest.approx(mutual_info_regression(x.astype(float), w, n_neighbors=10, random_state=0), abs=0.01)


def test_nearest_neighbour_information_where_neighbours_are_few():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    lonely, w = np.array([0, 1, 2, 3, 4, 4]), np.arange(6.)
    assert mi_matrix(x, as_factors(lonely, lonely), estimator="knn").min() >= 0
    assert (mi_matrix(x, as_factors(np.arange(6), np.arange(6)), estimator="knn") == 0).all()
    assert np.isfinite(mi_matrix(x, as_factors(w, w), estimator="knn")).all()


def test_sap():
    for seed in SEEDS:
        x, y = ref.random_data(seed, D=2)
        a, b = x[:200], x[200:]
        S = sap_matrix(a, b, as_factors(y[:200], y[200:]))
        for i in range(2):
            for j in range(2): assert S[i, j] == pytest.approx(ref.sap(a[:, i].astype(float), y[:200, j], b[:, i].astype(float), y[200:, j]))
        v = (x[:, 0] + np.random.default_rng(seed).normal(size=300)).astype(float)
        S = sap_matrix(a, b, as_factors(v[:200], v[200:]))
        assert S[:, 0] == pytest.approx(r_regression(b.astype(float), v[200:])**2, abs=1e-6)
        assert top_gap(S)[0] == pytest.approx(abs(S[0, 0] - S[1, 0]))


def test_reading_is_scikit_learns_logistic_regression():
    "Explicitness is the one-versus-rest AUC, information is entropy minus log loss"
    for seed in SEEDS:
        x, labels = ref.random_data(seed)
        for y in labels.T:
            r = read_factor(x[:200], x[200:], as_factors(y[:200], y[200:])[0], l2=[1e-2])
            z = (x - r.probe.mean.numpy()) / r.probe.std.numpy()
            P = LogisticRegression(C=1 / (200 * 1e-2), tol=1e-10, max_iter=5000).fit(z[:200], y[:200]).predict_proba(z[200:])
            counts = np.bincount(y[:200])
            auc = np.mean([roc_auc_score(y[200:] == c, P[:, c]) for c in range(len(counts))])
            H, ce = log_loss(y[200:], np.tile(counts / 200, (100, 1))), log_loss(y[200:], P)
            assert explicitness_auc(r, y[200:]) == pytest.approx(auc, abs=2e-3)
            assert (r.information(), r.normalised()) == (pytest.approx(H - ce, abs=1e-3), pytest.approx(1 - ce / H, abs=1e-3))


def test_continuous_reading_is_scikit_learns_ridge():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(300, 6)).astype(np.float32)
        y = x @ rng.normal(size=6) + 2 * rng.normal(size=300) + 5
        r = read_factor(x[:200], x[200:], as_factors(y[:200], y[200:])[0])
        p = r.probe
        z = (x - p.mean.numpy()) / p.std.numpy()
        ridge = Ridge(alpha=200 * p.l2, tol=1e-12).fit(z[:200], y[:200])
        assert p.weight[0].numpy() * p.y_std == pytest.approx(ridge.coef_, rel=1e-4, abs=1e-4)
        ss = ((y[200:] - ridge.predict(z[200:]))**2).sum() / ((y[200:] - y[:200].mean())**2).sum()
        assert r.accuracy() / 100 == pytest.approx(1 - ss, abs=1e-4)


@pytest.mark.parametrize("n,D", [(100, 128), (300, 128), (3000, 128)])
def test_a_continuous_factor_that_cannot_be_read_has_no_r_squared(n, D):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2 * n, D)), rng.normal(size=2 * n)
        r = read_factor(x[:n], x[n:], as_factors(y[:n], y[n:])[0])
        assert r.accuracy() == pytest.approx(0, abs=7) and r.information() == pytest.approx(0, abs=0.15)
        assert r.probe.predict(x[:1]).shape == (1,)


def test_linear_importance_is_the_mean_absolute_weight_and_the_logits_spread():
    for seed in SEEDS:
        x, y = ref.random_data(seed)
        fs = as_factors(y, y)
        probes = [read_factor(x, x, f, l2=[1e-2]).probe for f in fs]
        W = [np.abs(p.weight.numpy()).mean(0) for p in probes]
        assert linear_importance(x, probes, as_slices(5, 5)) == pytest.approx(np.stack([w / w.sum() for w in W], 1), abs=1e-5)
        z = [(x - p.mean.numpy()) / p.std.numpy() for p in probes]
        spread = np.array([[(z[j][:, s] @ p.weight.numpy()[:, s].T).std(0).mean() for j, p in enumerate(probes)] for s in (slice(0, 2), slice(2, 5))])
        assert linear_importance(x, probes, [slice(0, 2), slice(2, 5)]) == pytest.approx(spread / spread.sum(0), abs=1e-5)


def test_block_importance_does_not_change_under_rotation_within_blocks():
    x, y = ref.random_data(0, n=600, D=8)
    blocks = [slice(0, 4), slice(4, 8)]
    z = (x - x.mean(0)) / x.std(0)
    L = [np.linalg.cholesky(np.linalg.inv(np.cov(z[:, s].T))) for s in blocks]
    w = np.concatenate([z[:, s] @ l for s, l in zip(blocks, L)], 1)  # white within blocks: rotations keep the standardisation
    Q = [np.linalg.qr(np.random.default_rng(k).normal(size=(4, 4)))[0] for k in range(2)]
    turned = np.concatenate([w[:, s] @ q for s, q in zip(blocks, Q)], 1)
    R = [linear_importance(v, [read_factor(v, v, f, l2=[1e-2]).probe for f in as_factors(y, y)], blocks) for v in (w, turned)]
    assert R[0] == pytest.approx(R[1], abs=1e-4)


def test_boosted_importance_is_scikit_learns():
    for seed in SEEDS:
        x, y = ref.random_data(seed, n=100)
        trees = boosted_trees(x, as_factors(y, y), max_features=None, n_estimators=3)
        R, order = boosted_importance(trees), np.random.default_rng(0).permutation(100)
        sk = GradientBoostingClassifier(n_estimators=3, random_state=0).fit(x[order].astype(float), y[order, 0]).feature_importances_
        assert R[:, 0] == pytest.approx(sk)
        assert R.sum(0) == pytest.approx(1)


def test_refit_on_the_same_rows_changes_nothing_and_on_others_little():
    x, y = ref.random_data(0, n=600)
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


def test_explicitness_es_is_the_area_under_the_log_losses_of_the_probes():
    for seed in SEEDS:
        x, y = ref.random_data(seed, n=90)
        f = as_factors(y[:60, 0], y[60:, 0])[0]
        reads = capacity_readings(x[:60], x[60:], f, (4,))
        losses = np.array([log_loss(y[60:, 0], r.probe.log_prob(x[60:]).double().softmax(1), labels=[0, 1, 2]) for r in reads.values()])
        base = log_loss(y[60:, 0], np.tile(np.bincount(y[:60, 0]) / 60, (30, 1)), labels=[0, 1, 2])
        assert explicitness_es(reads) == pytest.approx(ref.explicitness_area(losses, np.array([0., 2.]), base), abs=1e-4)


def test_probes_that_were_fitted_already_are_used():
    x, y = ref.random_data(0, n=90)
    f = as_factors(y[:60, 0], y[60:, 0])[0]
    known = {w: read_factor(x[:60], x[60:], f, p) for w, p in ((1, "linear"), (128, "mlp"))}
    again = capacity_readings(x[:60], x[60:], f, (4, 128), known)
    assert list(again) == [1, 4, 128] and again[1] is known[1] and again[128] is known[128]
    assert capacity_readings(x[:60], x[60:], f, (128,))[128].score == pytest.approx(known[128].score)


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
    ([[0], [0]], [[0]], {}, "only one value"), ([[0], [1]], [[2]], {}, "absent from training"), ([[0.], [np.inf]], [[0.]], {}, "missing or infinite"),
    ([[0], [1]], [[0]], dict(names=["a", "b"]), "must be as many"),
    (np.array(["a", None, "b"], object), np.array(["a"], object), {}, "missing or infinite values in 1 rows"), (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), {}, "shape")])
def test_bad_factors(train, test, kw, error):
    with pytest.raises(ValueError, match=error): as_factors(train, test, **kw)


def test_missing_entries_of_a_data_frame_are_refused():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    whole = pd.DataFrame(dict(a=pd.array([0, 1, 2], dtype="Int64"), b=pd.Categorical(["x", "y", "x"])))
    assert [f.n_classes for f in as_factors(whole, whole)] == [3, 2]
    for gap in (dict(a=pd.array([0, 1, pd.NA], dtype="Int64")), dict(a=["x", "y", None]), dict(a=[0., 1., np.nan])):
        with pytest.raises(ValueError, match="missing or infinite values in 1 rows of the train factor"): as_factors(pd.DataFrame(gap), pd.DataFrame(gap))


def test_columns_of_test_data_frames_are_found_by_name():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    a, b = pd.DataFrame(dict(k=[0, 1, 1], m=[5, 6, 7])), pd.DataFrame(dict(m=[7, 5], k=[1, 0]))
    assert [(f.name, f.test.tolist()) for f in as_factors(a, b)] == [("k", [1, 0]), ("m", [2, 0])]
    assert [f.name for f in as_factors(a, b, names=["x", "y"])] == ["x", "y"]
    with pytest.raises(ValueError, match="the same names"): as_factors(a, b.rename(columns=dict(m="l")))
    with pytest.raises(ValueError, match=r"\['k'\] occur more than once"): as_factors(a.rename(columns=dict(m="k")), a.rename(columns=dict(m="k")))


def test_names_of_any_kind():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    y = np.array([[0, 5], [1, 6], [1, 7]])
    for names in (["a", "b"], ("a", "b"), np.array(["a", "b"]), pd.Index(["a", "b"])): assert [f.name for f in as_factors(y, y, names)] == ["a", "b"]
    assert as_factors(y[:, 0], y[:, 0], "digit")[0].name == "digit"
    with pytest.raises(ValueError, match=r"\['a'\] occur more than once"): as_factors(y, y, ["a", "a"])


@pytest.mark.parametrize("discrete,kinds", [(None, [True, False]), (True, [True, True]), ([True, True], [True, True]), (np.array([False, True]), [False, True]),
                                            ([None, True], [True, True]), (dict(w=True), [True, True]), (dict(k=False), [False, False])])
def test_kinds_of_factors(discrete, kinds):
    y = np.array([[0, .5], [1, .6], [1, .7]], object)
    a, b = (pytest.importorskip("pandas", reason="pandas is not installed").DataFrame(dict(k=y[:, 0].astype(int), w=y[:, 1].astype(float))) for _ in range(2))
    assert [f.discrete for f in as_factors(a, b, discrete=discrete)] == kinds


@pytest.mark.parametrize("discrete", ["True", [True], dict(z=True), dict(f0="no"), 2])
def test_kinds_that_mean_nothing(discrete):
    with pytest.raises((ValueError, TypeError), match="discrete"): as_factors([[0., 1], [1, 2]], [[0., 1]], discrete=discrete)


def test_trees_need_a_factor_that_varies_in_their_rows():
    y = np.stack([np.arange(4000) % 3, np.arange(4000) == 5], 1).astype(int)
    with pytest.raises(ValueError, match="rare: only one value in the 1000 rows"): boosted_trees(np.zeros((4000, 2)), as_factors(y, y, ["common", "rare"]))


@pytest.mark.parametrize("slices,error", [([[0, 1], [2, 4]], "indices of the 4"), ([[0.5], [1, 2, 3]], "indices of the 4"),
                                          ([[0, 1], [1, 2, 3]], "overlap"), ([[0], [2, 3]], "leave out"), (3, "must divide"), ([], "sum to D=4")])
def test_slices_that_are_no_partition(slices, error):
    with pytest.raises(ValueError, match=error): as_blocks(slices, 4)


def test_strings_booleans_and_numbered_classes_are_discrete():
    f = as_factors(np.array(["b", "a", "b"]), np.array(["a", "a"]))[0]
    assert f.values == ("a", "b") and f.train.tolist() == [1, 0, 1] and f.test.tolist() == [0, 0]
    assert as_factors([[True], [False]], [[True]])[0].n_classes == 2
    assert not as_factors([[0.5], [1.5]], [[1.0]])[0].discrete
    assert as_factors([[1.0], [5.0]], [[5.0]], discrete=True)[0].values == (1.0, 5.0)


def test_active_codes_by_range():
    x = np.random.default_rng(0).uniform(size=(100, 4)) * [1, 0.2, 0.01, 0]
    assert active_codes(x).tolist() == [True, True, False, False]


def test_a_date_that_is_missing_is_an_error():
    days = np.array(["2026-01-01", "NaT", "2026-01-02"], "datetime64[D]")
    with pytest.raises(ValueError, match="missing or infinite values in 1 rows of the train factor"): as_factors(days, days)


def test_factors_may_be_bfloat16():
    assert as_factors(torch.arange(4).bfloat16(), torch.arange(4).bfloat16(), discrete=True)[0].n_classes == 4


def test_explicitness_stays_in_its_range():
    for losses in ([3., 3., 0.], [4., 4., 4.]): assert -1 <= explicitness_area(losses, [0, 2, 3], 1.) <= 1


def test_an_empty_bin_names_the_class_of_the_nearest_other():
    x = np.r_[np.zeros(20), np.full(20, 1.)][:, None]
    f, = as_factors(np.arange(40) // 20, np.array([0, 1]))
    assert sap_matrix(x, np.array([[0.3], [0.7]]), [f]).tolist() == [[1.]]


CLASSES = torch.arange(600) % 4


def test_noise_of_regressions_is_that_of_held_out_rows():
    assert mlp_regressor(random(400, 32), random(400, seed=1)).noise > .9
    x = random(1100, 40)
    y = 3 * x[:, 0] + random(1100, seed=1)
    p = ridge_probe(x[:100], y[:100])
    assert .5 < p.noise / (((p.predict(x[100:]) - y[100:])**2).mean().item() / p.y_std**2) < 2


def test_information_does_not_depend_on_units():
    x = random(600, 3)
    y = (x[:, 0] + .5 * x[:, 1] + random(600, seed=2)).double()
    one, ten = (read_factor(x[:400], x[400:], as_factors(s * y[:400], s * y[400:])[0]).information() for s in (1, 10))
    assert one == pytest.approx(ten, abs=1e-4)


def test_mlps_of_dci_es_are_as_wide_as_asked():
    x, (f,) = random(600, 3), as_factors(CLASSES[:400], CLASSES[400:])
    read = capacity_readings(x[:400], x[400:], f, (4, 16))
    assert [r.probe.net[-1].in_features for w, r in read.items() if w > 1] == [4, 16]


def test_explicitness_of_a_continuous_factor():
    x = random(600, 3)
    y = (x[:, 0]**2 + .3 * x[:, 1]).double()
    read = capacity_readings(x[:400], x[400:], as_factors(y[:400], y[400:])[0], (8, 32))
    assert explicitness_es(read) == pytest.approx(ref.explicitness_area([1 - r.accuracy() / 100 for r in read.values()], np.log2([1, 8, 32]), 1.))


def test_refitting_on_the_same_rows_changes_nothing():
    x = random(300, 3)
    y = 5 + 3 * x[:, 0].double() + random(300, seed=1)
    probe = read_factor(x, x, as_factors(y, y)[0]).probe
    torch.testing.assert_close(refit(probe, x, y).weight, probe.weight)


def test_auc_of_the_classes_that_are_present():
    x, (f,) = random(600, 4) + F.one_hot(CLASSES), as_factors(CLASSES[:400], CLASSES[400:])
    r, y = read_factor(x[:400], x[400:], f), f.test.numpy()
    i, p = np.flatnonzero(y != 1), r.probe.log_prob(x[400:]).exp().numpy()
    assert explicitness_auc(r, y, i) == pytest.approx(np.mean([roc_auc_score(y[i] == c, p[i, c]) for c in (0, 2, 3)]), abs=1e-3)


def test_small_definitions():
    f, = as_factors(CLASSES, CLASSES)
    assert boosted_trees(random(600, 4), [f], n_estimators=1)[0].max_features == "sqrt"
    assert active_codes(np.array([[0, 0], [1, .06]])).all()
    assert label_entropy(f, i=np.arange(0, 600, 4)) == 0
    assert _log_odds(torch.tensor([[100., 0, 0]]).double().log_softmax(1).numpy())[0, 0] == pytest.approx(100 - np.log(2))


def test_values_of_any_container_and_one_strength():
    x, y = random(60, 3), pd.Series(np.arange(60.)).sample(frac=1, random_state=0)
    assert ridge_probe(x, y.iloc[:60], l2=1.).l2 == 1
    torch.testing.assert_close(ridge_probe(x, np.arange(60.)[::-1]).weight, -ridge_probe(x, np.arange(60.)).weight)


def test_a_quantity_that_is_refused_is_told_why():
    with pytest.raises(ValueError, match="only one value on test"): as_factors([[-1.], [1.]], [[0.], [0.]])
    with pytest.raises(ValueError, match=r"discrete=\{'f0': False\}"): as_factors([[1], [2]], [[3]])
    with pytest.raises(TypeError, match="lists of indices"): as_blocks([[0, 1], 2.], 3)


def test_predictors_of_numbers_check_their_options():
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40.) % 7
    for l2 in (-1., (), float('nan')):
        with pytest.raises(ValueError, match='l2 must hold one strength or more'): ridge_probe(x, y, l2=l2)
    for name in ('epochs', 'width'):
        with pytest.raises(ValueError, match=f'{name} must be 1 or more, got 0'): mlp_regressor(x, y, **{name: 0})
