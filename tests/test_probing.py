"Probes against scikit-learn, and fuzzing of shapes and values"
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from references import random
from torch.nn import functional as F

from disentangle_nb.gallery import recompose
from disentangle_nb.metrics import metrics_card
from disentangle_nb.probing import (PROBES, Scorecard, as_slices, card_from_accuracy, chance_levels, check_embeddings, holdout, knn_probe, linear_probe,
                                    match_slices, mlp_probe, probe_matrices, probe_matrix, scorecard)
from disentangle_nb.results import nearest


def blobs(n, C, D, spread, seed):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(C), rng.integers(C, size=2 * n - C)]
    x = rng.normal(size=(C, D))[y] + spread * rng.normal(size=(2 * n, D))
    x = x @ rng.normal(size=(D, D))
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("seed,C,D,spread", [(0, 10, 64, 3), (1, 10, 32, 1), (2, 2, 16, 4), (3, 5, 100, 6), (4, 10, 8, 30)])
@pytest.mark.parametrize("l2", [1e-2, 1e-4])
def test_linear_probe_is_scikit_learns_optimum(seed, C, D, spread, l2):
    x, y, xt, yt = blobs(2000, C, D, spread, seed)
    p = linear_probe(x, y, l2=l2)
    mean, std = p.mean.numpy(), p.std.numpy()
    strength = (2 if C == 2 else 1) / (len(x) * l2)  # for two classes scikit-learn fits the difference of our vectors
    sk = LogisticRegression(C=strength, tol=1e-9, max_iter=20000).fit((x - mean) / std, y)
    W = p.weight.numpy()
    W = W[1:] - W[:1] if C == 2 else W
    np.testing.assert_allclose(W, sk.coef_, atol=2e-3 * np.abs(sk.coef_).max() + 1e-4)
    assert abs(p.accuracy(xt, yt) - 100 * sk.score((xt - mean) / std, yt)) <= 0.3


def test_chosen_strength_matches_scikit_learns_on_digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, valid, test = np.split(order, [800, 1000])
    p = linear_probe(x[train], y[train], x[valid], y[valid])
    z = (x - p.mean.numpy()) / p.std.numpy()
    sk = LogisticRegression(C=1 / (len(train) * p.l2), tol=1e-8, max_iter=5000).fit(z[train], y[train])
    assert abs(p.accuracy(x[test], y[test]) - 100 * sk.score(z[test], y[test])) <= 0.3
    assert p.accuracy(x[test], y[test]) > 93


def test_validation_rows_change_nothing_but_the_strength():
    x, y, xt, yt = blobs(600, 4, 10, 3, 0)
    a, b = linear_probe(x, y, xt, yt, l2=1e-2), linear_probe(x, y, l2=1e-2)
    torch.testing.assert_close(a.weight, b.weight, atol=1e-4, rtol=1e-3)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(8, 60), D=st.integers(1, 40), C=st.integers(2, 4), scale=st.sampled_from([1e-6, 1., 1e6]),
       dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), seed=st.integers(0, 99))
def test_probes_take_any_shape_and_scale(n, D, C, scale, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(n, D, generator=g) * (1 if dtype == torch.float16 else scale)).to(dtype)
    y = torch.arange(n) % C
    for p in (linear_probe(x, y), mlp_probe(x, y, epochs=2)):
        logp = p.log_prob(x)
        assert logp.shape == (n, C) and torch.isfinite(logp).all()
        assert torch.allclose(logp.exp().sum(1), torch.ones(n).to(logp), atol=1e-5)
        assert 0 <= p.accuracy(x, y) <= 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_slices_tile_the_embedding(widths):
    D = sum(widths)
    parts = as_slices(widths, D)
    assert np.concatenate([np.arange(D)[s] for s in parts]).tolist() == list(range(D))
    assert [s.stop - s.start for s in parts] == widths
    with pytest.raises(ValueError): as_slices(widths, D + 1)
    if D % len(widths) == 0: assert len(as_slices(len(widths), D)) == len(widths)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=80))
def test_holdout_keeps_every_class(y):
    y = torch.tensor(y)
    held = holdout(y)
    assert set(y[~held].tolist()) == set(y.tolist())
    for c in set(y.tolist()):
        where = torch.where(y == c)[0]
        assert held[where].tolist() == sorted(held[where].tolist())
        assert held[where].sum() == (0 if len(where) == 1 else max(1, int(0.2 * len(where) + 1e-9)))


@settings(max_examples=60, deadline=None)
@given(K=st.integers(1, 4), nf=st.integers(1, 4), seed=st.integers(0, 999))
def test_any_number_of_slices_and_factors_is_judged(K, nf, seed):
    rng = np.random.default_rng(seed)
    names = [f"f{i}" for i in range(nf)]
    acc = {r: dict(zip(names, rng.uniform(10, 100, nf))) for r in ["r", *(f"r_{k}" for k in range(K))]}
    card = card_from_accuracy(acc, dict.fromkeys(names, 10.), names)
    matched = [s for s in card.match.values() if s]
    assert len(matched) == len(set(matched)) == min(K, nf)
    assert len(card.unmatched) == K - len(matched)
    leaks = [acc[r][f] - 10 for f in names for r in acc if r != "r" and r != card.match[f]]
    assert card.R1 == pytest.approx(np.mean(leaks) if leaks else 0)
    assert card.R2 == pytest.approx(np.mean([acc["r"][f] - max(acc[f"r_{k}"][f] for k in range(K)) for f in names]))
    assert Scorecard.from_dict(json.loads(card.to_json())) == card
    assert str(card) and card._repr_markdown_().startswith("| input |")


def test_matching_is_the_best_of_all_permutations():
    from itertools import permutations
    for seed in range(20):
        A = np.random.default_rng(seed).uniform(0, 100, (3, 3))
        acc = {"r": None, **{f"r_{k}": dict(zip("abc", A[k])) for k in range(3)}}
        match = match_slices(acc, dict(a=0, b=0, c=0), "abc")
        got = sum(acc[s][f] for f, s in match.items())
        assert got == pytest.approx(max(sum(A[p[j], j] for j in range(3)) for p in permutations(range(3))))


@pytest.mark.parametrize("probe", list(PROBES))
def test_numpy_torch_and_dataframe_give_the_same_card(probe):
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    x, y, xt, yt = blobs(200, 3, 6, 1, 0)
    two = lambda v: np.stack([v, (v + 1) % 3], 1)
    cards = [scorecard((f(x), g(two(y))), (f(xt), g(two(yt))), factor_names=("a", "b"), shared=("a", "b"), probe=probe)
             for f, g in [(np.asarray, np.asarray), (torch.tensor, torch.tensor), (pd.DataFrame, pd.DataFrame)]]
    assert cards[0] == cards[1] == cards[2]
    assert cards[0].n_train == cards[0].n_test == 200


def test_columns_of_a_data_frame_are_found_by_name():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    x, y, xt, yt = blobs(200, 3, 6, 1, 0)
    two, names = lambda v: np.stack([v, (v + 1) % 3 % 2], 1), ("a", "b")
    frame = lambda v, columns=names: pd.DataFrame(two(v), columns=names)[list(columns)]
    plain = scorecard((x, two(y)), (xt, two(yt)), factor_names=names, shared=names)
    for order in (names, names[::-1]): assert scorecard((x, frame(y, order)), (xt, frame(yt)), factor_names=names, shared=names) == plain
    with pytest.raises(ValueError, match="have columns"): scorecard((x, frame(y)), (xt, frame(yt)), factor_names=("a", "c"), shared=("a",))


@pytest.mark.parametrize("probe,read", [(linear_probe, lambda p, x: p.l2), (lambda *a: mlp_probe(*a, epochs=3, bs=16), lambda p, x: p.log_prob(x).tolist())])
def test_what_chooses_is_not_fitted(probe, read):
    x, y, _, _ = blobs(120, 3, 6, 3, 0)
    x, y = torch.tensor(x), torch.tensor(y)
    held = holdout(y)
    x[held] *= 1 + 30 * random(int(held.sum()), 6).double().abs()
    assert read(probe(x, y), x) == read(probe(x[~held], y[~held], x[held], y[held]), x)


@pytest.mark.parametrize("columns,names", [([10, 20], ["10", "20"]), ([0, 1], ["f0", "f1"])]) # the last as of a table without a head
def test_columns_named_by_numbers(columns, names):
    x, y, xt, yt = blobs(200, 3, 6, 1, 0)
    two = lambda v: np.stack([v, (v + 1) % 3 % 2], 1)
    train, test = ((e, pd.DataFrame(two(v), columns=columns)) for e, v in ((x, y), (xt, yt)))
    card = scorecard(train, test)
    assert card == scorecard((x, two(y)), (xt, two(yt)), factor_names=names) and names[1] in str(card)
    assert scorecard(train, test, shared=names[:1]).match.keys() == {names[0]}
    assert list(metrics_card(*train, slices=2, test=test, mlp=False, widths=(), n_boot=0, n_refit=0, n_perm=0).meta["factors"]) == names


@pytest.mark.parametrize("call", [probe_matrix, scorecard, lambda *a, factor_names: chance_levels(a[0][1], a[1][1], factor_names)])
def test_a_name_occurs_once(call):
    x, y, xt, yt = blobs(60, 3, 6, 1, 0)
    two = lambda v: np.stack([v, v], 1)
    with pytest.raises(ValueError, match=r"\['a'\] occur more than once"): call((x, two(y)), (xt, two(yt)), factor_names=("a", "a"))
    with pytest.raises(ValueError, match=r"expected \(n, 3\)"): call((x, two(y)), (xt, two(yt)), factor_names=("a", "b", "c"))


@pytest.mark.parametrize("probe", list(PROBES))
def test_one_row_is_predicted_as_among_others(probe):
    x, y, xt, _ = blobs(60, 3, 6, 1, 0)
    p = PROBES[probe](x, y)
    assert p.predict(xt[:1]).tolist() == p.predict(xt[:5])[:1].tolist()
    with pytest.raises(ValueError, match="0 rows, at least 1"): p.predict(xt[:0])


@pytest.mark.parametrize("probe", list(PROBES))
def test_labels_and_embeddings_of_another_shape_are_refused(probe):
    x, y, *_ = blobs(60, 3, 6, 1, 0)
    p = PROBES[probe](x, y)
    with pytest.raises(ValueError, match=r"labels must have shape \(60,\), got \(60, 1\)"): p.accuracy(x, y[:, None])
    with pytest.raises(ValueError, match=r"labels must have shape \(n,\)"): PROBES[probe](x, y[:, None])
    with pytest.raises(ValueError, match="embeddings are 1 wide, the probe was fitted on 6"): p.predict(x[:, :1])


def test_validation_rows_of_another_width_are_refused():
    x, y, xt, yt = blobs(60, 3, 6, 1, 0)
    with pytest.raises(ValueError, match="validation embeddings are 12 wide, train embeddings 6"):
        probe_matrix((x, y[:, None]), (xt, yt[:, None]), 2, ["f"], valid=(np.concatenate([x, x], 1), y[:, None]))


def test_few_rows_for_many_dimensions_are_not_whitened():
    g = torch.Generator().manual_seed(1)
    centres, y = 3 * torch.randn(4, 320, generator=g), torch.arange(900) % 4
    x = centres[y] + torch.randn(900, 320, generator=g)
    assert mlp_probe(x[:400], y[:400]).accuracy(x[400:], y[400:]) > 95


@pytest.mark.parametrize("fit, option", [(linear_probe, {"l2": ()}), *((linear_probe, {"l2": v}) for v in (-1, float("nan"), float("inf"), (1, -1))),
                                         *((mlp_probe, {k: v}) for k, v in (("epochs", 0), ("width", 0), ("bs", 0), ("bs", -1)))])
def test_nothing_to_choose_from_is_refused(fit, option):
    with pytest.raises(ValueError, match=next(iter(option))): fit(torch.randn(8, 2), torch.arange(8) % 2, **option)


def test_a_card_of_an_own_probe_is_saved():
    x, y, xt, yt = blobs(60, 3, 6, 1, 0)
    card = scorecard((x, y[:, None]), (xt, yt[:, None]), 2, ["f"], ["f"], probe=linear_probe)
    assert json.loads(card.to_json())["probe"] == "linear_probe"


def test_one_validation_row_is_enough():
    for fit in (linear_probe, mlp_probe): assert fit(torch.randn(6, 2), [0, 0, 0, 0, 0, 1]).predict(torch.randn(3, 2)).shape == (3,)


@pytest.mark.parametrize("n,D,close", [(210, 64, 0.05), (700, 128, 0.02), (3000, 128, 0.02)])
def test_noise_has_no_information(n, D, close):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2 * n, D)), rng.integers(10, size=2 * n)
        logp = linear_probe(x[:n], y[:n]).log_prob(x[n:]).numpy()
        assert logp[np.arange(n), y[n:]].mean() - np.log(np.bincount(y[:n])[y[n:]] / n).mean() == pytest.approx(0, abs=close)


def test_the_strong_end_changes_nothing_that_can_be_read():
    for seed in range(3):
        x, y, xt, yt = blobs(700, 10, 32, 2, seed)
        a, b = linear_probe(x, y), linear_probe(x, y, l2=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5))
        assert a.l2 == b.l2 and a.accuracy(xt, yt) == pytest.approx(b.accuracy(xt, yt), abs=0.3)


@pytest.mark.parametrize("bad,error,says", [
    (np.array([["1", "2"], ["3", "4"]]), TypeError, "must be numbers, got <U1"), (np.array([[1, 2], [3, None]], object), TypeError, "must be numbers, got object"),
    (np.ones((3, 2)) * 1j, TypeError, "complex"), (torch.ones(3, 2, dtype=torch.complex64), TypeError, "complex"),
    (np.full((3, 2), 1e39), ValueError, "3 of 3 rows as float32"), ((2**40 + np.arange(8) % 4)[:, None], ValueError, "subtract their mean"), (1e8 + np.random.default_rng(0).normal(size=(9, 2)), ValueError, "subtract their mean")])
def test_what_is_no_embedding(bad, error, says):
    with pytest.raises(error, match=says): check_embeddings(bad)


def test_float64_that_float32_holds_is_taken():
    x = np.random.default_rng(0).normal(size=(50, 3)) * [1, 1e-30, 1e30] + [1e6, 0, 0]
    for v in (x, (1e8 + x).astype(np.float32).astype(float), np.full((9, 2), 1e8 + 0.1), x.astype(np.longdouble)): assert check_embeddings(v).dtype == torch.float32
    assert torch.equal(check_embeddings(x[:, ::-1]), check_embeddings(x).flip(1))


def test_gradients_are_not_followed():
    x = torch.randn(60, 4, requires_grad=True)
    p = linear_probe(x, torch.arange(60) % 3)
    assert not p.log_prob(x).requires_grad
    with torch.no_grad(): mlp_probe(x, torch.arange(60) % 3, epochs=1)


def test_validation_pair_is_used():
    x, y, xt, yt = blobs(300, 3, 6, 1, 0)
    seen = []
    class Fake:
        def accuracy(self, x, y): return 50.
    probe_matrix((x, y[:, None]), (xt, yt[:, None]), 2, ["f"], lambda *a: seen.append(a[2].shape) or Fake(), (x[:50], y[:50, None]))
    assert [tuple(s) for s in seen] == [(50, 6), (50, 3), (50, 3)]


def test_probes_are_fitted_once(monkeypatch):
    "Accuracies on several parts are those on each part alone, from probes that are fitted once"
    (x, y, xt, yt), two = blobs(300, 3, 6, 1, 0), lambda y: np.stack([y, y[::-1]], 1)
    train, tests, names = (x, two(y)), [(xt, two(yt)), (x, two(y))], ("a", "b")
    alone = [probe_matrix(train, t, factor_names=names) for t in tests]
    fits = []
    monkeypatch.setitem(PROBES, "linear", lambda *a: fits.append(1) or linear_probe(*a))
    assert probe_matrices(train, tests, factor_names=names, probe="linear") == alone
    assert len(fits) == 6 and alone[0] != alone[1]


@pytest.mark.parametrize('given, missing', [('x_valid', 'y_valid'), ('y_valid', 'x_valid')])
def test_validation_rows_and_labels_belong_together(given, missing):
    with pytest.raises(ValueError, match=f'{missing} is missing'): linear_probe(torch.randn(8, 2), torch.arange(8) % 2, **{given: torch.arange(4)})


def test_an_mlp_stops_where_held_out_rows_say():
    x, y = random(800, 32), torch.arange(800) % 10
    assert F.nll_loss(mlp_probe(x[:400], y[:400], epochs=60).log_prob(x[400:]), y[400:]) < np.log(10) + .2


def test_strength_is_chosen_on_the_validation_rows_that_are_given():
    y = torch.arange(300) % 3
    x = 3 * F.one_hot(y) + random(300, 3)
    assert linear_probe(x, y, x, (y + 1) % 3).l2 == 10 and linear_probe(x, y, x, y).l2 < 1


def test_validation_rows_reach_each_probe():
    class Fake:
        def accuracy(self, x, y): return 50.
    x, y, seen = random(60, 4), torch.stack([torch.arange(60) % 3, torch.arange(60) % 2], 1), []
    scorecard((x, y), (x, y), 2, ["a", "b"], probe=lambda *given: seen.append(given) or Fake(), valid=(x[:30], y[:30]))
    for (_, _, x_valid, y_valid), f in zip(seen[:2], (0, 1)): assert torch.equal(x_valid, x[:30]) and torch.equal(y_valid, y[:30, f])


def test_slices_are_matched_by_accuracy_above_chance():
    assert match_slices({"r": {}, "r_0": dict(a=60, b=55)}, dict(a=50, b=10), ["a", "b"]) == {"a": None, "b": "r_0"}


def test_a_gap_is_to_the_best_of_the_other_slices():
    assert card_from_accuracy({"r": {"a": 90}, "r_0": {"a": 90}, "r_1": {"a": 20}, "r_2": {"a": 40}}, {"a": 10}, ["a"]).gaps == {"a": 50}


def test_options_of_probes_count():
    x, y = random(100, 4), torch.arange(100) % 3
    first = mlp_probe(x, y, epochs=2).log_prob(x)
    for options in (dict(bs=4), dict(seed=1)): assert not torch.equal(mlp_probe(x, y, epochs=2, **options).log_prob(x), first)
    assert mlp_probe(x, y, width=7, epochs=1).net[-1].in_features == 7
    assert knn_probe(x, y, k=1).accuracy(x, y) == 100


def test_a_small_spread_far_from_zero_is_read():
    y = torch.arange(400) % 2
    x = 1 + 7e-7 * ((2. * y - 1)[:, None].double() + .05 * random(400, 1).double())
    for probe in (linear_probe, mlp_probe): assert probe(x, y).accuracy(x, y) == 100


def test_neighbours_do_not_depend_on_autocast():
    x, y = random(300, 64), torch.arange(300) % 3
    probe, queries = knn_probe(x[:200], y[:200]), x[200:]
    alone = probe.log_prob(queries), nearest(x, np.arange(300)), recompose(x, [(slice(32), np.arange(9)), (slice(32, 64), np.arange(9, 18))])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = probe.log_prob(queries), nearest(x, np.arange(300)), recompose(x, [(slice(32), np.arange(9)), (slice(32, 64), np.arange(9, 18))])
    for a, b in zip(alone, inside): assert (np.asarray(a) == np.asarray(b)).all()


def test_retrieval_refuses_nan_and_too_many_neighbours():
    x = random(9, 4)
    for k in (0, 9):
        with pytest.raises(ValueError, match="between 1 and 8"): nearest(x, [0], k)
    with pytest.raises(ValueError, match="between 1 and 7"): recompose(x, [(slice(2), [0]), (slice(2, 4), [1])], 8)
    x[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"): nearest(x, [0])
    with pytest.raises(ValueError, match="NaN"): recompose(x, [(slice(2), [0]), (slice(2, 4), [1])])


def test_columns_of_embeddings_must_be_in_one_order():
    x, y = pd.DataFrame(random(60, 4).numpy(), columns=list("abcd")), np.arange(60)[:, None] % 2
    with pytest.raises(ValueError, match="in the same order"): scorecard((x, y), (x[list("dcba")], y))
    with pytest.raises(ValueError, match="in the same order"): metrics_card(x, y, test=(x[list("dcba")], y))


def test_random_states_of_gpus_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    mlp_probe(random(60, 4), torch.arange(60) % 2, epochs=1)


def embeddings_and_factors(n=60):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=g), torch.arange(n)[:, None] % 3


def test_parts_of_an_iterator_are_read_too():
    x, y = embeddings_and_factors()
    assert probe_matrices((x, y), iter([(x, y)])) == probe_matrices((x, y), [(x, y)]) != []


def test_validation_labels_are_one_column():
    x, y = embeddings_and_factors()
    for fit in (linear_probe, mlp_probe):
        with pytest.raises(ValueError, match=r'validation labels must have shape \(n,\), got \(60, 1\)'): fit(x, y[:, 0], x, y[:, :1])


def test_arrays_of_the_other_byte_order_are_read():
    x, y = embeddings_and_factors()
    swapped = x.numpy().astype(x.numpy().dtype.newbyteorder())
    assert torch.equal(linear_probe(swapped, y[:, 0].numpy().astype('>i4')).log_prob(x), linear_probe(x, y[:, 0]).log_prob(x))
