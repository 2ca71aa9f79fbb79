"""The plain loop around the coordinator, on views small enough for a test."""

import numpy as np
import pytest
import torch

import coordinator_alone
from coordinator_alone import CONDITIONS, Case, load_views, main, probe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=90)
    path = tmp_path_factory.mktemp("views") / "views.npz"
    x = {f"x_{name}": (rng.normal(size=(90, 4)) + y[:, None]).astype("float32") for name in ("a", "b")}
    np.savez(path, y=y, split=np.arange(90) % 3, **x)
    return path


def test_a_row_for_each_case(data, capsys):
    main(["--data", str(data), "--pairs", "a+b", "--optimizers", "sgd", "--seeds", "1", "2", "--epochs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "validation split, 2 seeds, noise 1"
    rows = [line.split(" | ") for line in lines if line.startswith("| a+b")]
    assert [row[1] for row in rows] == list(CONDITIONS)
    assert all(len(row) == len(coordinator_alone.COLUMNS) for row in rows)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_noise_on_one_view(data, condition):
    (clean, _, _), (views, _, _) = (load_views(data, Case("a+b", c, "sgd"), 2.0) for c in (CONDITIONS[0], condition))
    changed = [(views[name] - clean[name]).std().item() for name in ("a", "b")]
    weak, strong = (2.0 * (condition == c) for c in CONDITIONS[1:])
    assert changed == pytest.approx([weak, strong], rel=0.2)


def test_probe_is_ridge_regression_on_labels():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    z = torch.randn(60, 4, generator=generator) + torch.eye(4)[y]
    train, held_out = torch.arange(40), torch.arange(40, 60)
    x = ((z - z[:40].mean(0)) / z[:40].std(0)).double().numpy()
    x = np.c_[x, np.ones(60)]
    stacked = np.r_[x[:40] / np.sqrt(40), np.sqrt(0.01) * np.eye(5)]
    weight = np.linalg.lstsq(stacked, np.r_[np.eye(3)[y[:40]] / np.sqrt(40), np.zeros((5, 3))], rcond=None)[0]
    expected = 100 * ((x[40:] @ weight).argmax(1) == y[40:].numpy()).mean()
    assert probe(z, y, train, held_out) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz is no file"),
        (["--pairs", "a+z"], "--pairs: a+z, expected two of a, b"),
    ],
)
def test_what_cannot_be(data, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(data), *arguments])
    assert message in capsys.readouterr().err
