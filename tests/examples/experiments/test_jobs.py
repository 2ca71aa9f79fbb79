"""The comparison from the command line to its table, on a set small enough for a test."""

import json

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError
from ebmc_msa.data.files import read_tensors, write_tensors
from ebmc_msa.data.missing import missing_at_random
from ebmc_msa.experiments import command
from ebmc_msa.experiments.dataset_view import Source, read
from ebmc_msa.experiments.method import Method
from ebmc_msa.experiments.summary import measured
from figures import drawn

pytestmark = pytest.mark.slow

SHORT = ["--set", "stage1_epochs=1", "stage2_epochs=1", "dim=8"]
METHODS = ["ebmc -cce", "single", "late", "composite", "linear", "g-blend", "umt", "mmpareto"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=90)
    x = {f"x_{name}": rng.normal(size=(90, size)).astype("float32") for name, size in (("a", 4), ("b", 3), ("c", 5))}
    x["x_a"][:, 0] += 2 * y
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, y=y, split=np.arange(90) % 3, **x)
    return path


def call(data, out, *arguments):
    words = ["--data", data, "--modalities", "a", "b", "--out", out, "--seeds", "1", "2", *arguments]
    return command.main([str(word) for word in words])


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    assert call(data, out, "--methods", *METHODS, *SHORT) == 0
    return out


def test_writes_table_figures_and_plot(compared):
    content = json.loads((compared / "comparison.json").read_text())
    found = content["metrics"]["acc"]
    assert found["reference"] == "ebmc -cce"
    assert [name.split()[0] for name in found["methods"]] == ["ebmc", *METHODS[1:2], "linear", "late", "composite",
                                                             "mmpareto", "g-blend", "umt"]  # fmt: skip
    table, within = (compared / "comparison.md").read_text().split("**Contribution**")
    assert table.count("\n| ") == len(METHODS) + 1
    assert "stage1_epochs" not in table.split("\n\n", 2)[2]  # a setting of all is no part of the names
    assert within.count("| ebmc -cce, after balancing |") == 1
    for picture in ("comparison", "internals", "features"):
        assert drawn((compared / f"{picture}.svg").read_text())


def test_every_method_has_the_same_context(tmp_path):
    """`auto` turns it on where the data are conversations; its control is a variant of a method."""
    rng, talk = np.random.default_rng(0), np.arange(90) // 5
    x = {f"x_{name}": rng.normal(size=(90, 3)).astype("float32") for name in "ab"}
    order = {"conversation": talk, "order": np.arange(90)}
    np.savez(tmp_path / "talks.npz", y=rng.integers(3, size=90), split=talk % 3, **x, **order)
    methods = ["umt", "concat", "concat shuffled=True"]
    options = ["--data", tmp_path / "talks.npz", "--out", tmp_path / "out", "--seeds", "1", "--valid", *SHORT]
    assert command.main([str(word) for word in (*options, "--methods", *methods)]) == 0
    found = {path.name: read_tensors(path)["settings"] for path in (tmp_path / "out").glob("*.pt")}
    assert len(found) == 5  # UMT needs each modality alone
    assert all(settings["context"] == "gru" for settings in found.values())
    assert sorted(settings["shuffled"] for settings in found.values()) == [False] * 4 + [True]
    assert "talks, gru context" in (tmp_path / "out/valid.md").read_text()


def test_what_was_measured_on_the_test_split_is_not_shown_as_validation(compared):
    methods = {"ebmc -cce": Method.parse(" ".join(["ebmc -cce", *SHORT[1:]]))}
    assert measured(compared, methods, [1, 2], "test", "internals").keys() == {"ebmc -cce"}
    assert measured(compared, methods, [1, 2], "valid", "internals") == {}


def test_scores_are_those_of_the_stored_predictions(compared):
    runs = [read_tensors(next(compared.glob(f"linear*-{seed}.pt"))) for seed in (1, 2)]
    assert runs[0]["conditions"] == ["a", "b", "a+b"]
    accuracy = [100 * (r["test"][-1] == r["test_target"]).double().mean().item() for r in runs]
    missing = [100 * (r["test"][:2] == r["test_target"]).double().mean().item() for r in runs]
    found = json.loads((compared / "comparison.json").read_text())["metrics"]["acc"]["methods"]["linear"]
    assert found["full"]["mean"] == pytest.approx(np.mean(accuracy))
    assert found["missing"]["mean"] == pytest.approx(np.mean(missing))
    assert accuracy[0] > 50


def test_unequal_rates_pick_among_the_sets_of_modalities(data, tmp_path):
    """Utterances are read one by one here, so that each has its own set's prediction."""
    assert call(data, tmp_path, "--methods", "linear", "single", "--unequal") == 0
    page = (tmp_path / "comparison.md").read_text()
    table = page.split("at least one left: mean of 5 draws")[1].split("\n\n")[1].splitlines()
    assert "missing: a 0.1 b 0.9 | single minus it | missing: a 0.9 b 0.1" in table[0]
    test = read(Source(data, modalities=("a", "b"))).splits["test"]
    rates = [{"a": 0.1, "b": 0.9}, {"a": 0.9, "b": 0.1}]
    means = {"linear": [], "single": []}
    for name, own in means.items():
        for pattern in rates:
            by_seed = []
            for seed in (1, 2):
                run = read_tensors(tmp_path / f"{name}-{seed}.pt")
                here = [missing_at_random(test.present, pattern, draw) for draw in range(5)]
                places = torch.stack([torch.where(p["a"] & p["b"], 2, torch.where(p["a"], 0, 1)) for p in here])
                picked = run["test"].gather(0, places)
                assert torch.equal(picked, run["unequal"][" ".join(f"{m} {r}" for m, r in pattern.items())])
                by_seed.append(100 * (picked == run["test_target"]).double().mean().item())
            own.append(np.mean(by_seed))
    single, linear = (row.split(" | ") for row in table[2:4])
    assert [float(single[i].split(" ±")[0]) for i in (1, 3)] == pytest.approx(means["single"], abs=0.06)
    wanted = [a - b for a, b in zip(means["single"], means["linear"], strict=True)]
    assert [float(linear[i].split(" [")[0]) for i in (2, 4)] == pytest.approx(wanted, abs=0.06)
    stored = json.loads((tmp_path / "comparison.json").read_text())["unequal"]["acc"]
    assert [np.mean(x["linear"]["by seed"]) for x in stored.values()] == pytest.approx(means["linear"])


def test_results_without_a_protocol_or_of_another_version_are_run_again(data, tmp_path, capsys):
    for options, todo in (((), 2), (("--unequal",), 2), (("--unequal",), 0), ((), 0)):
        assert call(data, tmp_path, "--methods", "linear", *options) == 0
        assert f"{todo} of 2 to run" in capsys.readouterr().out
    path = tmp_path / "linear-1.pt"
    write_tensors(path, read_tensors(path) | {"version": 1})
    assert call(data, tmp_path, "--methods", "linear") == 0
    assert "1 of 2 to run" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call(data, tmp_path, "--methods", "linear", "--unequal", "--valid")
    assert "--valid: the test split stays closed, where --unequal is measured" in capsys.readouterr().err


def test_goes_on_where_it_stopped(data, compared, capsys):
    before = {path: path.stat().st_mtime_ns for path in compared.glob("*.pt")}
    next(compared.glob("late*-2.pt")).unlink()
    assert call(data, compared, "--methods", *METHODS, *SHORT) == 0
    assert "1 of" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in compared.glob("*.pt")}
    assert sorted(after) == sorted(before)
    assert sum(after[path] != before[path] for path in before) == 1


def test_validation_mode_never_holds_the_test_split(data, tmp_path):
    assert call(data, tmp_path, "--methods", "linear", "--valid") == 0
    assert not any(key.startswith("test") for key in read_tensors(tmp_path / "linear-1.pt"))
    assert (tmp_path / "valid.md").exists()
    assert not (tmp_path / "comparison.md").exists()
    assert set(read(Source(data, test=False)).splits) == {"train", "valid"}


def test_other_data_need_another_folder(data, compared, capsys):
    assert call(data, compared, "--methods", "linear", "--noisy", "a=1") == 2
    assert "holds results of other data" in capsys.readouterr().err


def test_noise_has_the_size_asked_for(data):
    clean = read(Source(data, modalities=("b", "a")))
    noisy = read(Source(data, modalities=("b", "a"), noisy=(("a", 2.0),)))
    assert clean.modalities == ["b", "a"]
    train = clean.splits["train"].features
    for split in ("train", "valid", "test"):
        before, after = clean.splits[split].features, noisy.splits[split].features
        assert torch.equal(before["b"], after["b"])
        size = (after["a"] - before["a"]).std(0) / train["a"].std(0)
        assert size.tolist() == pytest.approx([2] * 4, rel=0.5)


def test_a_method_reads_its_own_words_and_makes_settings():
    method = Method.parse("ebmc -emc -cce eta=0.2 patience=3")
    assert str(method) == "ebmc -cce -emc eta=0.2 patience=3"
    assert Method.parse(str(method)) == method
    found = method.settings()
    assert (found.without, found.eta, found.patience) == (("cce", "emc"), 0.2, 3)
    uneven = Method.parse("dropout modality_dropout=a=0.1,b=0.9")
    assert str(uneven) == "dropout modality_dropout=a=0.1,b=0.9"
    assert uneven.settings().modality_dropout == (("a", 0.1), ("b", 0.9))
    alone = method.alone("a")
    assert (str(alone), alone.modality, method.modality) == ("alone:a eta=0.2 patience=3", "a", "")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("emc", "'emc', expected all or some of ebmc, single"),
        ("ebmc -ecm", "'-ecm' after ebmc, expected -msd, -cce"),
        ("ebmc etta=1", "'etta=1' after ebmc"),
        ("ebmc patience=soon", "patience=soon, expected int for patience"),
        ("ebmc modality_dropout=a=2", "modality_dropout=a=2, expected a probability in"),
    ],
)
def test_misspelt_methods(method, message):
    with pytest.raises(DataError, match=message):
        Method.parse(method)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"modalities": ("a", "z")}, r"--modalities: \['z'\], expected some of \['a', 'b', 'c'\]"),
        ({"modalities": ("a",)}, "expected at least two"),
        ({"modalities": ("a", "b"), "noisy": (("c", 1.0),)}, r"--noisy: \['c'\], expected some of \['a', 'b'\]"),
    ],
)
def test_sources_that_cannot_be(data, source, message):
    with pytest.raises(DataError, match=message):
        read(Source(data, **source))
