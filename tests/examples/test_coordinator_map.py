"""The batch of models trains as the plain loop with EnergyCoordinator does."""

import csv

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import coordinator_map
from coordinator_cases import CONFIRMATION, OBSERVED, SCORED, TUNING, SplitData, cases, developed, synthetic
from coordinator_map import ARMS, Arm, main, train
from modbalance import EnergyCoordinator

SEEDS = (3,)


def plain_loop(data, arm, seed, optimizer, epochs):
    """Which scored rows one model gets right."""
    torch.manual_seed(seed)
    sizes = {name: [(x.shape[1], 128), (128, 128), (128, 64)] for name, x in data.x.items()}
    encoders = nn.ModuleDict(
        {
            name: nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))
            for name, pairs in sizes.items()
        }
    )
    head = nn.Linear(64 * len(data.x), 6)
    gap = "pull" if arm.pull else "paper" if arm.paper else None
    options = {"alpha": arm.alpha, "delta": arm.delta, "descent": arm.descent, "gap": gap, "joint": bool(arm.paper)}
    probes = {name: nn.Linear(64, 6).state_dict() for name in data.x}
    balance = EnergyCoordinator(dict.fromkeys(data.x, 64), 6, **options)
    for name, state in probes.items():
        balance.heads[name].load_state_dict(state)
    parameters = [*encoders.parameters(), *head.parameters(), *balance.parameters()]
    steps = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    }
    steps = steps[optimizer](parameters)
    generator, rows = torch.Generator().manual_seed(seed), (data.split == 0).nonzero()[:, 0]
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(64):
            z = {name: encoders[name](x[batch]) for name, x in data.x.items()}
            loss = cross_entropy(head(torch.cat([*z.values()], 1)), data.y[batch]) + balance(z, data.y[batch]).loss
            steps.zero_grad()
            loss.backward()
            steps.step()
        if arm.gate:
            held_out = data.split == OBSERVED
            balance.observe({name: encoders[name](x[held_out]) for name, x in data.x.items()}, data.y[held_out])
    with torch.no_grad():
        answers = head(torch.cat([encoders[name](x) for name, x in data.x.items()], 1)).argmax(1)
    return (answers == data.y)[data.split == SCORED], balance.gate.weight


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_as_the_plain_loop(optimizer):
    x, y, split = synthetic(0.9, seed=1)
    data = SplitData({name: v[::4] for name, v in x.items()}, y[::4], split[::4])
    arms = [ARMS["+ all three"], ARMS["paper's gap"], Arm(alpha=0.1, delta=0.1, pull=1.0, gate=1.0)]
    right = torch.from_numpy(train(data, arms, SEEDS, optimizer, epochs=6))
    gates = []
    for i, arm in enumerate(arms):
        for j, seed in enumerate(SEEDS):
            expected, gate = plain_loop(data, arm, seed, optimizer, epochs=6)
            assert (right[i, j] != expected).sum() <= 1  # a tie may fall either way
            gates += gate.tolist() if arm.gate else []
    assert optimizer == "sgd" or min(gates) < 1


def test_groups_share_no_data_set_and_every_case_is_there_twice():
    assert not TUNING.keys() & CONFIRMATION.keys()
    assert len(cases(TUNING)) + len(cases(CONFIRMATION)) == 90


@pytest.mark.parametrize("recut", [True, False])
def test_development_splits_leave_the_test_split_alone_and_keep_groups_together(recut):
    split, group = torch.tensor([0] * 70 + [1] * 40 + [2] * 30), torch.arange(140) // 5
    new = developed(split, group, recut)
    assert (new[split == 2] == 3).all()
    assert set(new[split < 2].tolist()) == {0, 1, 2}
    for g in group.unique():
        assert len(new[group == g].unique()) == 1
    assert recut or (new[split == 0] == 0).all()


def test_the_command_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    command = [
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "map"),
        "--only",
        "synthetic 0",
        "mosi",
        "--seeds",
        "1",
        "2",
    ]
    command += ["--epochs", "1", "--arms", "joint", "unimodal losses"]
    main(command)
    assert "left out: mosi" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "map/map.csv").read_text().splitlines()))
    assert [(row["optimizer"], row["arm"]) for row in rows] == [
        (optimizer, arm) for optimizer in ("sgd", "adam") for arm in ("joint", "unimodal losses")
    ]
    assert float(rows[1]["joint low"]) <= float(rows[1]["minus joint"]) <= float(rows[1]["joint high"])
    monkeypatch.setattr(coordinator_map, "train", None)
    main(command)
