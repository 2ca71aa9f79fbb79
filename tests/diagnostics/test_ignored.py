"""Rows with an ignored label count nowhere, as in the components: whatever label stands for them."""

import dataclasses

import pytest
import torch
from torch import nn

from modbalance.diagnostics import ModalityMonitor, train_alone
from modbalance.presence import select

SIZES = {"audio": 4, "video": 3}


def held_out(ignored):
    """Features, targets of classes 0 and 2 with every third ignored, and which rows count."""
    target = torch.arange(45) % 2 * 2
    features = {name: torch.randn(45, size) + target[:, None] for name, size in SIZES.items()}
    target[::3] = ignored
    return features, target, target != ignored


@pytest.mark.parametrize("ignored", [-100, 1])
def test_the_monitor_leaves_them_out(ignored):
    features, target, counts = held_out(ignored)
    head = nn.Linear(sum(SIZES.values()), 3)

    def predict(z, present):
        return head(torch.cat([select(z[name], present[name]) for name in SIZES], 1))

    found = []
    for rows in (slice(None), counts):
        monitor = ModalityMonitor(list(SIZES), 3, ignore_index=ignored)
        monitor.update(predict, {name: x[rows] for name, x in features.items()}, target[rows])
        found.append(dataclasses.asdict(monitor.compute()))
    assert repr(found[0]) == repr(found[1])


@pytest.mark.parametrize("ignored", [-100, 1])
def test_encoders_train_alone_on_the_others(ignored):
    features, target, counts = held_out(ignored)
    encoders = {name: nn.Linear(size, 2) for name, size in SIZES.items()}
    nothing = features, torch.full_like(target, ignored)
    options = {"num_outputs": 3, "fresh": False, "ignore_index": ignored, "learning_rate": 0.1}
    found = train_alone(encoders, [(features, target), nothing], steps=6, **options)
    rows = {name: x[counts] for name, x in features.items()}
    wanted = train_alone(encoders, [(rows, target[counts])], steps=3, **options)
    for name in SIZES:
        torch.testing.assert_close(found[name].weight, wanted[name].weight)
    untouched = train_alone(encoders, [nothing], steps=3, **options)
    assert torch.equal(untouched["audio"].weight, encoders["audio"].weight)


def test_another_label_that_is_no_class_is_refused():
    features, target, _ = held_out(-1)
    with pytest.raises(ValueError, match="target holds -1, expected classes 0 to 2 or ignore_index=-100"):
        train_alone({"audio": nn.Linear(4, 2)}, [(features, target)], 3, steps=1)
    with pytest.raises(ValueError, match="target holds -1, expected classes 0 to 2 or ignore_index=-100"):
        ModalityMonitor(list(SIZES), 3).update(lambda z, present: torch.zeros(45, 3), features, target)
