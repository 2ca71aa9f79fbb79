"""What the coordinator is for: in a plain two-encoder loop it must not fall below plain unimodal losses."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modbalance import EnergyCoordinator

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def load_views(path, views=("fou", "fac")):
    numpy = pytest.importorskip("numpy")
    content = numpy.load(path)
    split = torch.tensor(content["split"])
    x = {view: torch.tensor(content[f"x_{view}"]) for view in views}
    x = {view: (v - v[split == 0].mean(0)) / v[split == 0].std(0).clamp(min=1e-6) for view, v in x.items()}
    return x, torch.tensor(content["y"]), split


def encoder(size):
    layers = [nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
    return nn.Sequential(*layers)


def accuracy(x, y, split, remedy, optimizer, seed, fold, epochs=20):
    """Accuracy in percent on a fold after a fixed number of epochs; remedy is joint, auxiliary or coordinator."""
    torch.manual_seed(seed)
    encoders = nn.ModuleDict({view: encoder(v.shape[1]) for view, v in x.items()})
    head = nn.Linear(64 * len(x), 10)
    balance = EnergyCoordinator(dict.fromkeys(x, 64), 10)
    heads = nn.ModuleDict({view: nn.Linear(64, 10) for view in x})
    extra = {"joint": [], "auxiliary": heads.parameters(), "coordinator": balance.parameters()}[remedy]
    optimizer = OPTIMIZERS[optimizer]([*encoders.parameters(), *head.parameters(), *extra])
    rows = (split == 0).nonzero()[:, 0]
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(64):
            features = {view: encoders[view](v[batch]) for view, v in x.items()}
            loss = F.cross_entropy(head(torch.cat(list(features.values()), 1)), y[batch])
            if remedy == "auxiliary":
                loss = loss + sum(F.cross_entropy(heads[view](z), y[batch]) for view, z in features.items())
            elif remedy == "coordinator":
                loss = loss + balance(features, y[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        said = head(torch.cat([encoders[view](v) for view, v in x.items()], 1)).argmax(1)
    return 100 * (said == y)[split == fold].float().mean().item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_worse_than_unimodal_auxiliary_losses(optimizer):
    home = os.environ.get("MODBALANCE_DATA")
    if not home:
        pytest.skip("real data: set MODBALANCE_DATA to the folder that holds mfeat")
    data = load_views(Path(home) / "mfeat/mfeat.npz")
    mean = {
        remedy: sum(accuracy(*data, remedy, optimizer, seed, fold=1) for seed in range(3)) / 3
        for remedy in ("joint", "auxiliary", "coordinator")
    }
    assert mean["coordinator"] >= mean["auxiliary"] - 0.25
    assert mean["coordinator"] > mean["joint"] + 0.5
