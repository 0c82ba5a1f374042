"The metrics card: inputs, invariances, bad input, intervals, comparison over seeds, command line, weight of the import"
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

import references as ref
from disentangle_nb.dependence import distance_correlation
from disentangle_nb.disentanglement import _knn_mi, active_codes, as_factors, capacity_readings, explicitness_es, infoc
from disentangle_nb.metrics import MetricsCard, _write, bench_metrics, compare, disentangle_metrics, load_cards, load_embeddings, metrics_card, save_cards
from disentangle_nb.probing import scorecard

QUICK = dict(mlp=False, n_boot=0, n_refit=0, n_perm=0)


def made(n=600, D=12, leak=0.3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(5, size=(n, 2))
    codes = rng.normal(size=(3, 5, D // 2))
    x = np.concatenate([codes[0][y[:, 0]], codes[1][y[:, 1]] + leak * codes[2][y[:, 0]]], 1) + 0.5 * rng.normal(size=(n, D))
    return x.astype(np.float32), y


X, Y = made()


def block(card, metric): return card.values[metric]["block"]["value"]


def test_table_is_the_scorecards():
    train, test = (X[:400], Y[:400]), (X[400:], Y[400:])
    card = metrics_card(*train, test=test, names=["a", "b"], **QUICK)
    ref = scorecard(train, test, factor_names=("a", "b"), shared=("a", "b"))
    for part, row in ref.accuracy.items(): assert card.matrices["accuracy_linear"][part] == pytest.approx(row)
    assert card.match == ref.match and card.meta["chance"] == pytest.approx(ref.chance)
    assert block(card, "leakage_points") == pytest.approx(ref.R1)
    assert block(card, "gap") == pytest.approx(np.mean(list(ref.gaps.values())))
    above = {f: {p: ref.accuracy[p][f] - ref.chance[f] for p in ref.accuracy} for f in ref.chance}
    share = [above[f][p] / above[f]["r"] for f in above for p in ("r_0", "r_1") if p != ref.match[f]]
    assert block(card, "leakage_share") == pytest.approx(np.mean(share))


def test_block_scores_are_reductions_of_the_information_table():
    for seed in range(20):
        x, y = made(n=240, seed=seed, leak=seed / 20)
        card = metrics_card(x[:160], y[:160], test=(x[160:], y[160:]), **QUICK)
        I = card.matrices["information_linear"]
        prior = {f"f{j}": -np.log(np.bincount(y[:160, j])[y[160:, j]] / 160).mean() for j in range(2)}
        N = np.array([[max(I[p][f] / prior[f], 0) for f in prior] for p in ("r_0", "r_1")])
        assert block(card, "mig") == pytest.approx(np.abs(N[0] - N[1]).mean())
        assert block(card, "modularity") == pytest.approx(np.mean([1 - N[k].min()**2 / N[k].max()**2 if N[k].max() > 0 else 0 for k in range(2)]))
        assert block(card, "infom") == pytest.approx(2 * (np.mean([N[k].max() / N[k].sum() for k in range(2) if N[k].sum() > 0]) - 0.5))
        assert block(card, "infoc") == pytest.approx(2 * (np.mean([N[:, j].max() / N[:, j].sum() for j in range(2) if N[:, j].sum() > 0]) - 0.5))
        assert card.values["infoe"]["whole"]["value"] == pytest.approx(np.mean([I["r"][f] / prior[f] for f in prior]))


def test_dimension_scores_are_the_papers():
    for seed in range(20):
        x, y = ref.random_data(seed, n=160, D=4)
        train, (xt, yt) = (x[:100], y[:100]), (x[100:], y[100:])
        dims = {k: v["dimension"]["value"] for k, v in metrics_card(*train, test=(xt, yt), **QUICK).values.items() if "dimension" in v}
        I = np.array([[ref.binned_information(v, yt[:, j]) for j in range(2)] for v in xt.T])
        H = [ref.entropy(np.bincount(yt[:, j]) / 60, np.e) for j in range(2)]
        S = np.array([[ref.sap(a.astype(float), y[:100, j], b.astype(float), yt[:, j]) for j in range(2)] for a, b in zip(x[:100].T, xt.T)])
        N = np.array([[ref.ross(v, yt[:, j]) / H[j] for j in range(2)] for v in xt.T])
        assert dims["mig"] == pytest.approx(ref.mig(I, H)) and dims["sap"] == pytest.approx(ref.mig(S, [1, 1]))
        assert dims["modularity"] == pytest.approx(ref.modularity(I)) and dims["med"] == pytest.approx(ref.med(I))
        assert dims["top_k_med"] == pytest.approx(ref.top_k_med(I, 5))
        assert (dims["infom"], dims["infoc"]) == pytest.approx(ref.infom_infoc(N), abs=1e-6)


def test_every_score_has_an_interval():
    card = metrics_card(X[:300], Y[:300], boosted=True, **{**QUICK, "mlp": True, "widths": (4,), "n_boot": 3, "n_refit": 2})
    bare = {(k, c) for k, cols in card.values.items() for c, e in cols.items() if e["low"] is None}
    assert bare == {("size", "block"), ("size", "dimension")}  # which is counted and not estimated
    for pair in card.dependence.values():
        for e in pair.values(): assert e["low"] <= e["value"] <= e["high"]


def test_sap_by_block_is_the_gap_of_balanced_accuracies():
    from disentangle_nb.probing import linear_probe
    card = metrics_card(X[:400], Y[:400], test=(X[400:], Y[400:]), **QUICK)
    S = np.array([[balanced_accuracy_score(Y[400:, j], linear_probe(X[:400, s], Y[:400, j]).predict(X[400:, s])) for j in range(2)] for s in (slice(0, 6), slice(6, 12))])
    assert block(card, "sap") == pytest.approx(np.abs(S[0] - S[1]).mean())


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 99))
def test_rotations_within_slices_and_their_order_change_no_block_score(seed):
    rng = np.random.default_rng(seed)
    Q = [np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2)]
    turned = np.concatenate([X[:, 6:] @ Q[1], X[:, :6] @ Q[0]], 1)
    a, b = (metrics_card(v, Y, **QUICK) for v in (X, turned))
    assert {f: s for f, s in b.match.items()} == {"f0": "r_1", "f1": "r_0"}
    assert block(a, "gap") == pytest.approx(block(b, "gap"), abs=4)
    for k in ("leakage_share", "mig", "sap", "modularity", "infom", "infoc", "med"): assert block(a, k) == pytest.approx(block(b, k), abs=0.08), k
    for s in ("cka_linear", "cka_rbf", "dcor", "hsic"):
        assert a.dependence["r_0~r_1"][s]["value"] == pytest.approx(b.dependence["r_0~r_1"][s]["value"], abs=1e-5)


def test_numpy_torch_dataframe_and_half_precision():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    a = metrics_card(X, Y, **QUICK)
    for x, y in [(torch.tensor(X), torch.tensor(Y)), (pd.DataFrame(X), pd.DataFrame(Y, columns=["f0", "f1"])), (X.tolist(), Y.tolist())]:
        assert metrics_card(x, y, **QUICK).values == a.values
    half = metrics_card(torch.tensor(X).half(), Y, **QUICK)
    assert block(half, "mig") == pytest.approx(block(a, "mig"), abs=0.02)


def test_named_string_classes_and_continuous_columns():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pd.DataFrame(dict(kind=np.array(list("abcde"))[Y[:, 0]], size=Y[:, 1] + 0.5))
    card = metrics_card(X, frame, **QUICK)
    assert card.meta["factors"] == {"kind": 5, "size": 0} and card.meta["chance"]["size"] == 0
    as_classes = metrics_card(X, frame, discrete=[True, True], **QUICK)
    assert as_classes.meta["factors"]["size"] == 5


def test_card_is_deterministic_and_survives_json():
    opt = dict(widths=(8,), n_boot=4, n_refit=2, n_perm=9)
    a, b = metrics_card(X, Y, **opt), metrics_card(X, Y, **opt)
    assert a.values == b.values and a.dependence == b.dependence
    assert MetricsCard.from_dict(json.loads(a.to_json())) == a
    assert str(a) and a._repr_markdown_().startswith("| input |")


def test_threads_and_random_state_are_left_alone():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    metrics_card(X, Y, **{**QUICK, "mlp": True})
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_unjudged_factors_are_shown_and_enter_nothing():
    rng = np.random.default_rng(0)
    three = np.column_stack([Y, rng.integers(3, size=len(Y))])
    a, b = metrics_card(X, three, shared=["f0", "f1"], **QUICK), metrics_card(X, Y, **QUICK)
    assert a.values == b.values and a.match == b.match
    assert "f2" in a.matrices["accuracy_linear"]["r"] and "f2" not in a.matrices["importance"]["r_0"]


def test_boosted_trees_refuse_a_rare_factor_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("disentangle_nb.metrics._measure", lambda *a: pytest.fail("measured"))
    rare = np.stack([np.arange(4000) % 3, np.arange(4000) == 5], 1).astype(int)
    test = np.zeros((20, 4), np.float32), np.zeros((20, 2), int)
    with pytest.raises(ValueError, match="rare: only one value"): metrics_card(np.zeros((4000, 4), np.float32), rare, test=test, names=["common", "rare"], boosted=True, **QUICK)


def test_continuous_scores_stay_in_their_range_with_few_rows():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        w = rng.uniform(-1, 1, size=100)
        x = np.concatenate([w[:, None] + 0.1 * rng.normal(size=(100, 64)), rng.normal(size=(100, 64))], 1)
        card = metrics_card(x, w, **QUICK)
        assert 0 <= block(card, "sap") <= 1 and 0 <= block(card, "gap") <= 100
        assert "f0 100 R²" in str(card) and "f0 %" not in str(card)


def test_constant_dimensions_count_as_uninformative():
    dead = X.copy()
    dead[:, [1, 2, 7, 8]] = 0.1
    for seed in range(5):
        a, b = (metrics_card(v, Y, seed=seed, **QUICK) for v in (dead, np.delete(dead, [1, 2, 7, 8], 1)))
        value = lambda card, k: card.values[k]["dimension"]["value"]
        assert value(a, "modularity") == pytest.approx(value(b, "modularity") * 8 / 12)
        for k in ("med", "top_k_med", "mig"): assert value(a, k) == pytest.approx(value(b, k))


@pytest.mark.parametrize("seed", range(4))
def test_a_constant_slice_counts_as_uninformative(seed):
    "However the readings of the other slice and of nothing are rounded"
    x, y = made()
    dead = metrics_card(np.c_[x, np.ones((len(x), 4))], y, slices=[x.shape[1], 4], seed=seed, **QUICK)
    assert max(block(dead, "modularity"), block(dead, "infom")) < .2
    nothing = metrics_card(np.ones_like(x), y, slices=2, seed=seed, **QUICK)
    assert (block(nothing, "modularity"), block(nothing, "infom")) == (0, None)


@pytest.mark.parametrize("part", [0, 1])
def test_masked_values_are_missing_values(part):
    data = list(made())
    data[part] = np.ma.masked_equal(data[part], data[part].flat[3])
    with pytest.raises(ValueError, match="masked values: drop those rows"): metrics_card(*data, **QUICK)


def test_objects_are_typed_by_what_they_are():
    x, y = made()
    rows = [[a / 7, f"k{b}"] for a, b in y.tolist()]
    for factors in (rows, np.array(rows, object)):
        assert metrics_card(x, factors, **QUICK).meta["factors"] == {"f0": 0, "f1": len(set(y[:, 1]))}
    mixed = np.array([[a if i % 2 else str(a), b] for i, (a, b) in enumerate(y.tolist())], object)
    with pytest.raises(TypeError, match="f0: strings and numbers are mixed"): metrics_card(x, mixed, **QUICK)


def test_boosted_scores_are_added():
    card = metrics_card(X, Y, boosted=True, **QUICK)
    assert card.values["informativeness_boosted"]["whole"]["value"] > 0.8
    assert 0.3 < block(card, "dci_disentanglement_boosted") <= 1 and 0 <= card.values["dci_completeness_boosted"]["dimension"]["value"] <= 1


def test_intervals_cover_the_accuracy_of_many_test_sets():
    x, y = made(n=20000, leak=0.2)
    train = x[:1000], y[:1000]
    true = block(metrics_card(*train, test=(x[1000:], y[1000:]), **QUICK), "leakage_points")
    sets = [slice(1000 + 300 * i, 1300 + 300 * i) for i in range(30)]
    cards = [metrics_card(*train, test=(x[s], y[s]), **{**QUICK, "n_boot": 20}) for s in sets]
    hits = [c.values["leakage_points"]["block"]["low"] <= true <= c.values["leakage_points"]["block"]["high"] for c in cards]
    assert np.mean(hits) > 0.8


def test_compare_is_the_paired_t_interval():
    methods = {name: [metrics_card(*made(n=200, leak=leak, seed=s), **QUICK) for s in range(4)] for name, leak in (("a", 0.1), ("b", 0.6))}
    seen = compare(methods)
    for key in ("mig/block", "mig/dimension", "leakage_points/block"):
        metric, column = key.split("/")
        a, b = (np.array([c.values[metric][column]["value"] for c in methods[k]]) for k in "ab")
        ref = stats.ttest_rel(b, a).confidence_interval(0.95)
        row = seen.rows[key]["b"]
        assert (row["mean"], row["sd"], row["diff"], row["low"], row["high"]) == pytest.approx((b.mean(), b.std(ddof=1), (b - a).mean(), ref.low, ref.high))
    assert json.loads(json.dumps(seen.to_dict()))["baseline"] == "a" and "±" in str(seen)
    with pytest.raises(ValueError, match="one card for each seed"): compare({"a": methods["a"], "b": methods["b"][:2]})
    with pytest.raises(ValueError, match="is none of"): compare(methods, baseline="c")


@pytest.mark.parametrize("change,error", [
    (dict(embeddings=X * np.nan), "NaN or infinite"), (dict(embeddings=X[:-1]), "rows of embeddings"), (dict(embeddings=X[:, 0]), r"\(n, D\)"),
    (dict(factors=Y * [1, 0]), "only one value"), (dict(factors=Y + np.array([np.nan, 0])), "NaN"), (dict(slices=5), "K must divide D"),
    (dict(slices=[5, 5]), "sum to D=12"), (dict(slices=[list(range(7)), list(range(6, 12))]), "overlap"), (dict(slices=[[0, 1], [2, 3]]), "leave out"),
    (dict(names=["a"]), "must be as many"), (dict(names="ab"), "must be as many"), (dict(names=["a", "a"]), "more than once"), (dict(discrete="yes"), "discrete"), (dict(shared=["zz"]), "must name one or more"), (dict(shared=[]), "must name one or more"),
    (dict(test=(X[:50], Y[:49])), "rows of test embeddings"), (dict(test=(X[:50, :6], Y[:50])), "6 wide"), (dict(test=(X[:4], Y[:4])), "too few"),
    (dict(test=(X[:50], Y[:50] + 5)), "absent from training")])
def test_bad_input(change, error):
    with pytest.raises(ValueError, match=error): metrics_card(**{**dict(embeddings=X, factors=Y), **QUICK, **change})


def test_degenerate_but_defined():
    constant = X.copy()
    constant[:, 2] = 0.1
    one_factor = {f"{m}/{c}" for m in ("dci_disentanglement", "infom", "med", "modularity", "top_k_med") for c in ("block", "dimension")}
    for x, y, kw, undefined in [(constant, Y, {}, set()), (X[:40], Y[:40], dict(test=(X[40:60], Y[40:60])), set()), (np.repeat(X, 10, 1)[:100], Y[:100], {}, set()),
                                (X, Y, dict(test=(X[Y[:, 0] != 3][:80], Y[Y[:, 0] != 3][:80])), set()), (X, Y[:, 0], {}, one_factor),
                                (X, Y, dict(slices=1), {"dci_completeness/block", "gap/block", "infoc/block"}), (X, Y, dict(slices=12), set()),
                                (X * 1e-6, Y, {}, set()), (X * 1e6, Y, {}, set()), (np.zeros_like(X), Y, {}, {"infom/dimension", "infoc/dimension", "infom/block", "infoc/block", "leakage_share/block"})]:
        values = metrics_card(x, y, **{**QUICK, **kw}).values
        assert {f"{m}/{c}" for m, columns in values.items() for c, e in columns.items() if e["value"] is None} == undefined


def test_npz_files(tmp_path):
    np.savez(tmp_path / "a.npz", train_embeddings=X[:400], train_factors=Y[:400], test_embeddings=X[400:], test_factors=Y[400:])
    assert metrics_card(**load_embeddings(tmp_path / "a.npz"), **QUICK).values == metrics_card(X[:400], Y[:400], test=(X[400:], Y[400:]), **QUICK).values
    np.savez(tmp_path / "b.npz", train_embeddings=X)
    with pytest.raises(ValueError, match="expected embeddings and factors"): load_embeddings(tmp_path / "b.npz")


@pytest.mark.parametrize("said, widths", [([], [3, 4, 5]), (["--slices", "2"], [6, 6]), (["--slices", "8,4"], [8, 4])])
def test_command_goes_by_the_slices_of_the_file_unless_told(tmp_path, said, widths):
    np.savez(tmp_path / "a.npz", embeddings=X, factors=Y, factor_names=["left", "right"], slices=[3, 4, 5])
    disentangle_metrics([str(tmp_path / "a.npz"), "--linear", "--n_boot", "0", "--out", str(tmp_path / "card.json"), *said])
    card = MetricsCard.from_dict(json.loads((tmp_path / "card.json").read_text()))
    assert card.meta["widths"] == widths and list(card.matrices["accuracy_linear"]["r"]) == ["left", "right"]


def test_cards_are_kept_by_name(tmp_path):
    cards = dict(a=metrics_card(X[:100], Y[:100], **QUICK), b=metrics_card(X[:100], Y[:100], slices=1, **QUICK))
    save_cards(cards, tmp_path / "cards.json")
    assert load_cards(tmp_path / "cards.json") == cards


def run(*args):
    code = "from disentangle_nb.metrics import disentangle_metrics; disentangle_metrics()"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "e.npz", embeddings=X[:200], factors=Y[:200].astype(float), factor_names=["a", "b"], discrete=[True, False])
    return tmp_path / "e.npz"


@pytest.mark.parametrize("args,says", [
    (["none.npz"], "none.npz is missing"), (["e.npz", "--slices", "two"], "slices must be a number or widths joined by commas, got 'two'"), ([], "give an .npz file"),
    (["e.npz", "--bench"], "give an .npz file"), (["e.npz", "--names", "b,a"], r"names its factors \['a', 'b'\]: leave out --names"), (["e.npz", "--out", "e.npz"], "would be overwritten"), (["e.npz", "--discrete", "z"], r"discrete speaks of \['z'\]"),
    (["e.npz", "--out", "nowhere/c.json"], "cannot be written"), (["e.npz", "--out", "."], "cannot be written"), (["e.npz", "--figure", "c.doc"], "must end in"),
    (["e.npz", "--figure", "nowhere/c.png"], "cannot be written"), (["e.npz", "--out", "c.png", "--figure", "c.png"], "cannot hold both"), (["e.npz", "--slices", ""], "slices must be a number or widths joined by commas, got ''"), (["damaged.npz"], "damaged.npz is damaged"), (["cut.npz"], "no .npz file"), (["object.npz"], "Python objects")])
def test_command_refuses_in_one_line_before_it_measures(file, monkeypatch, capsys, args, says):
    whole = bytearray(file.read_bytes())
    (file.parent / "cut.npz").write_bytes(whole[:500])
    whole[400:440] = b"\xff" * 40
    (file.parent / "damaged.npz").write_bytes(whole)
    np.savez(file.parent / "object.npz", embeddings=X, factors=Y, factor_names=np.array(["a", "b"], object))
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr("disentangle_nb.metrics._measure", lambda *a: pytest.fail("measured"))
    with pytest.raises(SystemExit) as e: disentangle_metrics(args)
    said = capsys.readouterr()
    assert e.value.code == 2 and not said.out and said.err.count("\n") == 1
    assert re.match(f"error: .*{says}", said.err), said.err


def test_command_tells_classes_from_values(file):
    out = file.parent / "card.json"
    for said, want in (([], {"a": 5, "b": 0}), (["--discrete", "a, b"], {"a": 5, "b": 5})):
        disentangle_metrics([str(file), "--linear", "--n_boot", "0", "--out", str(out), *said])
        assert MetricsCard.from_dict(json.loads(out.read_text())).meta["factors"] == want
    assert [p.name for p in file.parent.iterdir() if p.suffix == ".tmp"] == []


def test_a_terminal_that_lacks_a_character_costs_nothing(file, monkeypatch):
    np.savez(file, embeddings=X, factors=Y * 1., factor_names=["a", "b"])
    monkeypatch.setattr("sys.stdout", terminal := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    disentangle_metrics([str(file), "--linear", "--n_boot", "0", "--out", str(file.parent / "card.json")])
    terminal.flush()
    assert b"100 R?" in terminal.buffer.getvalue() and (file.parent / "card.json").exists()


def test_an_interrupted_write_leaves_the_older_file(tmp_path):
    def fail(p):
        p.write_text("half")
        raise OSError("disk full")
    (tmp_path / "cards.json").write_text("older")
    with pytest.raises(OSError): _write(tmp_path / "cards.json", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["cards.json"] and (tmp_path / "cards.json").read_text() == "older"


def test_benchmark_takes_the_options(monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr("disentangle_nb.metrics.metrics_card", lambda x, y, slices, **kw: seen.update(kw, slices=slices) or metrics_card(x[:100], y[:100], **QUICK))
    disentangle_metrics(["--bench", "--linear", "--n_boot", "7", "--seed", "3", "--slices", "4", "--shared", "DC", "--boosted"])
    assert seen == dict(names=["DC", "DL", "BC"], slices=4, shared=["DC"], boosted=True, n_boot=7, seed=3, mlp=False)
    assert " s on " in capsys.readouterr().out


def test_command_line(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws the figure")
    np.savez(tmp_path / "e.npz", embeddings=X[:300], factors=Y[:300])
    out = run(tmp_path / "e.npz", "--names", "digit,ground", "--shared", "digit", "--slices", "6,6", "--n_boot", 3, "--linear", "--out", tmp_path / "c.json", "--figure", tmp_path / "c.png")
    assert out.returncode == 0 and "dci_disentanglement" in out.stdout, out.stderr
    assert MetricsCard.from_dict(json.loads((tmp_path / "c.json").read_text())).meta["judged"] == ["digit"]
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    assert "--boosted" in run("--help").stdout
    assert run().returncode == 2


def test_benchmark_tells_seconds_and_rows():
    card = bench_metrics(600, 16, mlp=False)
    assert card.meta["seconds"] > 0 and card.meta["n_train"] + card.meta["n_test"] == 600


def test_a_seed_or_a_method_without_a_metric_keeps_the_others():
    one = lambda **v: MetricsCard({k: {"block": {"value": x}} for k, x in v.items()}, {}, {}, {}, {})
    rows = compare({"a": [one(gap=1.), one(gap=None)], "b": [one(gap=3., extra=1.), one(gap=4., extra=2.)]}).rows
    assert rows["gap/block"]["a"]["mean"] == 1 and rows["gap/block"]["b"]["diff"] == 2
    assert rows["extra/block"]["a"]["mean"] is None and rows["extra/block"]["b"]["mean"] == 1.5


def test_a_factor_with_one_class_on_test_leaves_the_others_their_mig():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=(200, 2))
    x = np.eye(3)[y].reshape(200, 6) + .1 * rng.normal(size=(200, 6))
    card = metrics_card(x, y, test=(x[:60], y[:60] * [1, 0]), n_boot=0, n_refit=0, n_perm=0, mlp=False)
    assert 0 < card.values["mig"]["dimension"]["value"] <= 1


def three_slices(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y, c = rng.integers(5, size=(n, 2)), rng.normal(size=(3, 5, 4))
    x = np.concatenate([c[0][y[:, 0]], c[1][y[:, 1]], .4 * c[2][y[:, 0]]], 1) + .8 * rng.normal(size=(n, 12))
    return x.astype(np.float32), y


@pytest.fixture(scope="module")
def three():
    x, y = three_slices()
    return x, y, metrics_card(x[:250], y[:250], slices=3, test=(x[250:], y[250:]), **QUICK)


def test_block_scores_of_three_slices(three):
    x, y, card = three
    reference, blocks = scorecard((x[:250], y[:250]), (x[250:], y[250:]), 3), ["r_0", "r_1", "r_2"]
    accuracy, information = (lambda p, m=m: np.array(list(card.matrices[f"{m}_linear"][p].values())) for m in ("accuracy", "information"))
    assert block(card, "gap") == pytest.approx(np.mean(list(reference.gaps.values())))
    assert block(card, "informativeness") == pytest.approx(np.max([accuracy(b) for b in blocks], 0).mean() / 100)
    assert card.values["informativeness"]["whole"]["value"] == pytest.approx(accuracy("r").mean() / 100)
    others = [information(b)[j] for j, f in enumerate(card.meta["factors"]) for b in blocks if b != card.match[f]]
    assert card.values["leakage_nats_linear"]["block"]["value"] == pytest.approx(np.mean(others))
    prior = np.array([-np.log(np.bincount(y[:250, j])[y[250:, j]] / 250).mean() for j in range(2)])
    assert block(card, "top_k_med") == pytest.approx(ref.top_k_med(np.array([np.maximum(information(b) / prior, 0) for b in blocks]), 1))
    assert (block(card, "size"), card.values["size"]["dimension"]["value"]) == (2/3, 2/12)


def test_dependence_and_entropy_are_those_of_test_rows(three):
    x, y, card = three
    assert card.dependence["r_0~r_2"]["dcor"]["value"] == pytest.approx(distance_correlation(x[250:, :4], x[250:, 8:]))
    assert card.meta["entropy"]["f0"] == pytest.approx(ref.entropy(np.bincount(y[250:, 0]) / 150, np.e))


def test_dci_es_is_the_mean_over_factors():
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 400), rng.integers(1, 4, 400)
    easy = rng.integers(3, size=400)
    x = torch.tensor(np.c_[np.eye(3)[easy], radius * np.cos(angle), radius * np.sin(angle), rng.normal(size=400)]).float()
    y = np.c_[easy, radius]
    card = metrics_card(x[:250], y[:250], slices=2, test=(x[250:], y[250:]), **QUICK | dict(mlp=True, widths=(8, 32)))
    each = [explicitness_es(capacity_readings(x[:250], x[250:], f, (8, 32))) for f in as_factors(y[:250], y[250:])]
    assert abs(each[0] - each[1]) > .1 and card.values["dci_es_explicitness"]["whole"]["value"] == pytest.approx(np.mean(each), abs=.02)


def test_level_and_seed_reach_what_they_are_for():
    width = lambda level: (lambda e: e["high"] - e["low"])(metrics_card(X, Y, level=level, **QUICK | dict(n_boot=10)).values["mig"]["block"])
    assert width(.5) < .5 * width(.95)
    assert metrics_card(X, Y, seed=1, **QUICK).values != metrics_card(X, Y, **QUICK).values
    cards = {name: [metrics_card(*three_slices(seed=s), slices=3, **QUICK) for s in (k, k + 1, k + 2)] for name, k in (("a", 0), ("b", 5))}
    a, b = ([block(c, "gap") for c in cards[name]] for name in "ab")
    row, interval = compare(cards, level=.5).rows["gap/block"]["b"], stats.ttest_rel(b, a).confidence_interval(.5)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))


def test_a_factor_of_one_value_on_test_is_left_out_of_infoc():
    x, y = made(n=400)
    yt = y[300:].copy()
    yt[:, 0] = 1
    card, alone = (metrics_card(x[:300], y[:300, f], test=(x[300:], yt[:, f]), **QUICK) for f in ([0, 1], [1]))
    rows = np.arange(100)
    shares = _knn_mi(x[300:].astype(float), as_factors(y[:300], yt)[1], rows)[active_codes(x[300:])][:, None]
    assert card.values["infoc"]["dimension"]["value"] == pytest.approx(infoc(np.c_[np.zeros(len(shares)), shares]))
    both = metrics_card(x[:300], y[:300], test=(x[300:], np.ones_like(yt)), **QUICK)
    assert both.values["infom"]["dimension"]["value"] is None and both.values["infoc"]["dimension"]["value"] is None


def test_cards_with_other_judged_factors_are_not_compared():
    cards = {1: metrics_card(X, Y, names=["a", "b"], **QUICK), 2: metrics_card(X, Y, names=["a", "b"], shared=["a"], **QUICK)}
    with pytest.raises(ValueError, match="other factors are judged"): compare(cards)
    assert "1" in str(compare({1: cards[1], 2: cards[1]}))


def test_discrete_factors_are_named_beside_those_of_the_file(tmp_path, capsys):
    np.savez(tmp_path/"e.npz", embeddings=X, factors=Y.astype(float), factor_names=["DC", "BC"], discrete=[True, True])
    disentangle_metrics([str(tmp_path/"e.npz"), "--discrete", "DC", "--linear", "--n_boot", "0", "--out", str(tmp_path/"c.json")])
    assert "R²" not in capsys.readouterr().out
    card, = load_cards(tmp_path/"c.json").values()
    assert card.meta["factors"] == {"DC": 5, "BC": 5}


def test_only_files_are_overwritten(tmp_path, capsys):
    np.savez(tmp_path/"e.npz", embeddings=X, factors=Y)
    os.mkfifo(tmp_path/"pipe")
    with pytest.raises(SystemExit): disentangle_metrics([str(tmp_path/"e.npz"), "--linear", "--out", str(tmp_path/"pipe")])
    assert "cannot be written" in capsys.readouterr().err and (tmp_path/"pipe").is_fifo()
    (tmp_path/"link.json").symlink_to(tmp_path/"there.json")
    save_cards({"a": metrics_card(X, Y, **QUICK)}, tmp_path/"link.json")
    assert (tmp_path/"link.json").is_symlink() and list(load_cards(tmp_path/"there.json")) == ["a"]
    (tmp_path/"other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="other.json holds no cards"): load_cards(tmp_path/"other.json")


def test_mlps_of_dci_es_are_wider_than_one():
    with pytest.raises(ValueError, match="from 2 on"): metrics_card(X, Y, widths=(1, 8))


def test_command_reads_one_factor_without_columns(tmp_path):
    y = np.arange(120) % 3
    np.savez(tmp_path/"one.npz", embeddings=np.random.default_rng(0).normal(size=(120, 4)) + y[:, None], factors=y.astype(float), discrete=[True])
    disentangle_metrics([str(tmp_path/"one.npz"), "--linear", "--n_boot", "0", "--discrete", "f0", "--out", str(tmp_path/"card.json")])
    assert MetricsCard.from_dict(json.loads((tmp_path/"card.json").read_text())).meta["factors"] == {"f0": 3}
