"""Units that are all but dead, as a starved encoder has them, against ridge regression without them."""

import pytest
import torch
from sklearn.linear_model import Ridge

from modbalance.diagnostics import probe_outputs, task_score

ROWS, LIVE, DEAD = 400, 8, 8


def r2(x, y):
    return task_score("regression", probe_outputs("regression", x, y, 1), y)


def by_hand(x, y):
    """Ridge on the live columns, fold by fold, as `probe_outputs` draws them."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    outputs = torch.empty(ROWS)
    for held_out in order.tensor_split(5):
        rest = torch.tensor(sorted(set(range(ROWS)) - set(held_out.tolist())))
        mean, scale = x[rest].mean(0), x[rest].std(0, unbiased=False)
        model = Ridge(alpha=0.01 * len(rest)).fit((x[rest] - mean) / scale, y[rest])
        outputs[held_out] = torch.tensor(model.predict((x[held_out] - mean) / scale), dtype=torch.float32)
    return 1 - ((y - outputs).square().sum() / (y - y.mean()).square().sum()).item()


def dead(kind):
    x = torch.zeros(ROWS, DEAD)
    if kind != "constant":
        x = 1e-8 * torch.randn(ROWS, DEAD)
    if kind == "alive in a few rows":
        rows = torch.randperm(ROWS)[:6]
        x[rows, torch.randint(DEAD, (6,))] = torch.rand(6) + 0.5
    if kind == "rounding":
        x = 100 + 4e-6 * torch.randn(ROWS, DEAD)
    return x


KINDS = ("constant", "near zero", "alive in a few rows", "rounding")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_dead_units_change_little(kind, seed):
    torch.manual_seed(seed)
    live = torch.randn(ROWS, LIVE)
    y = live @ torch.randn(LIVE) + 2 * torch.randn(ROWS)
    found = r2(torch.cat([live, dead(kind)], 1), y)
    assert found == pytest.approx(by_hand(live, y), abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_encoder_knows_nothing(kind):
    assert -0.1 < r2(dead(kind), torch.randn(ROWS)) < 0.05


def test_one_wild_row_bends_no_column():
    x = torch.randn(ROWS, LIVE)
    y = x @ torch.randn(LIVE) + torch.randn(ROWS)
    honest, x[0] = r2(x, y), 1e6 * torch.randn(LIVE)
    others = torch.arange(ROWS) > 0
    outputs = probe_outputs("regression", x, y, 1)
    assert task_score("regression", outputs[others], y[others]) == pytest.approx(honest, abs=0.05)


def test_the_scale_of_a_column_does_not_matter():
    x = torch.randn(ROWS, LIVE, dtype=torch.float64)
    y = x @ torch.randn(LIVE, dtype=torch.float64) + torch.randn(ROWS)
    assert r2(x * torch.logspace(-12, 12, LIVE), y) == pytest.approx(r2(x, y))


@pytest.mark.parametrize("task", ["classification", "multilabel", "gaussian"])
def test_other_tasks_stay_finite(task):
    target = {"classification": torch.arange(ROWS) % 2, "multilabel": torch.rand(ROWS, 1).round()}
    outputs = probe_outputs(
        task, dead("alive in a few rows"), target.get(task, torch.randn(ROWS, 1)), 1 + (task == "classification")
    )
    assert outputs.isfinite().all()
    assert outputs.abs().max() < 100
