"""The monitor: each figure against a few lines of its own, on a fusion whose answers are known."""

import math

import pytest
import torch
from torch import nn

from modbalance import EnergyCoordinator
from modbalance.diagnostics import Diagnosis, ModalityMonitor, calibration_error, gaussian_coverage, probe_outputs
from modbalance.tasks import task_loss

NAMES = ("text", "audio", "vision")
ROWS = 60


def data(rows=ROWS):
    target = torch.arange(rows) % 3
    target[::5] = 2  # the best guess is not the first class
    strength = dict(zip(NAMES, (3.0, 1.0, 0.0), strict=True))
    one_hot = nn.functional.one_hot(target, 3).double()
    features = {m: s * one_hot + torch.randn(rows, 3, dtype=torch.float64) for m, s in strength.items()}
    present = {"audio": torch.rand(rows) > 0.3, "vision": torch.rand(rows) > 0.3}
    return features, target, present


def predict(features, present):
    """Logits add up over what is there."""
    return sum(torch.where(present[m][:, None], z, 0.0) for m, z in features.items())


def accuracy(outputs, target):
    return (outputs.argmax(1) == target).double().mean().item()


def monitor(**options):
    return ModalityMonitor(NAMES, 3, **options)


def test_every_figure_on_held_out_data():
    features, target, present = data()
    alone = {m: 2 * nn.functional.one_hot(target, 3) + torch.randn_like(z) for m, z in features.items()}
    found = monitor()
    found.update(predict, features, target, present, alone=alone)
    found = found.compute()

    here = {m: present.get(m, torch.ones(ROWS, dtype=torch.bool)) for m in NAMES}
    guess = torch.bincount(target, minlength=3).double().log()

    def worth(*coalition):
        masks = {m: here[m] & torch.tensor(m in coalition) for m in NAMES}
        nothing = ~torch.stack(list(masks.values())).any(0)
        return accuracy(torch.where(nothing[:, None], guess, predict(features, masks)), target)

    full = worth(*NAMES)
    assert found.score == full == found.coalitions[NAMES]
    assert found.coalitions[()] == worth()
    for m in NAMES:
        rows, others = here[m], [n for n in NAMES if n != m]
        a, b = others
        shapley = (
            (worth(m) - worth()) / 3
            + (worth(m, a) - worth(a) + worth(m, b) - worth(b)) / 6
            + (full - worth(a, b)) / 3
        )
        assert found.shapley[m] == pytest.approx(shapley)
        assert found.drop[m] == pytest.approx(full - worth(*others))
        assert found.alone[m] == pytest.approx(accuracy(features[m][rows], target[rows]))
        probe = probe_outputs("classification", features[m][rows], target[rows], 3)
        assert found.probe[m] == pytest.approx(accuracy(probe, target[rows]))
        loss = task_loss("classification", probe, target[rows])
        energy = (0.1 * features[m][rows].square().mean(1) + loss).mean().item()
        assert found.energy[m] == pytest.approx(energy)
        reference = accuracy(probe_outputs("classification", alone[m][rows], target[rows], 3), target[rows])
        assert found.reference[m] == pytest.approx(reference)
        assert found.lag[m] == pytest.approx(reference - found.probe[m])
        assert found.lag[m] != 0
        ece = calibration_error("classification", features[m][rows], target[rows])
        assert found.calibration["ece"][m] == pytest.approx(ece)
    assert found.calibration["ece"]["all"] == pytest.approx(
        calibration_error("classification", predict(features, here), target)
    )
    assert found.shapley["text"] > found.shapley["audio"] > found.shapley["vision"]


def test_batches_count_as_one_fold_and_reset_forgets():
    features, target, present = data()
    whole, pieces = monitor(), monitor()
    whole.update(predict, features, target, present)
    pieces.update(predict, features, target)
    pieces.reset()
    for rows in torch.arange(ROWS).split(17):
        pieces.update(
            predict,
            {m: z[rows] for m, z in features.items()},
            target[rows],
            {m: mask[rows] for m, mask in present.items()},
        )
    assert pieces.compute().scalars() == pytest.approx(whole.compute().scalars())


def test_each_coalition_is_asked_once_a_batch_and_compute_asks_nothing():
    features, target, _ = data()
    asked = []

    def listening(z, present):
        asked.append(tuple(m for m in NAMES if present[m].any()))
        return predict(z, present)

    found = monitor()
    found.update(listening, features, target)
    assert len(asked) == len(set(asked)) == 2**3 - 1
    assert found.compute() is found.compute()
    found.update(listening, features, target)
    assert len(asked) == 2 * (2**3 - 1)
    assert len(found.compute().coalitions) == 2**3


def test_absent_rows_and_ignored_labels_change_nothing():
    features, target, present = data()
    spoilt = {m: torch.where(present[m][:, None], z, torch.nan) if m in present else z for m, z in features.items()}
    clean, other = monitor(), monitor()
    clean.update(predict, features, target, present)

    def longer(x, value):
        return torch.cat([x, torch.full_like(x[:5], value)])

    other.update(
        predict,
        {m: longer(z, torch.inf) for m, z in spoilt.items()},
        longer(target, -100),
        {m: longer(mask, True) for m, mask in present.items()},
    )
    assert other.compute().scalars() == pytest.approx(clean.compute().scalars())


def test_a_modality_that_is_nowhere():
    features, target, _ = data()
    del features["vision"]
    found = monitor()
    found.update(lambda z, present: predict(z, present), features, target)
    found = found.compute()
    assert math.isnan(found.alone["vision"])
    assert "vision" not in found.probe
    assert found.drop["vision"] == found.shapley["vision"] == 0


@pytest.mark.parametrize("task", ["multilabel", "regression", "gaussian"])
def test_other_tasks(task):
    width = {"gaussian": 4}.get(task, 2)
    features = {m: torch.randn(ROWS, width) for m in NAMES[:2]}
    target = features["text"][:, :2] + 0.1 * torch.randn(ROWS, 2)
    target = (target > 0).float() if task == "multilabel" else target
    found = ModalityMonitor(NAMES[:2], 2, task)
    found.update(predict, features, target)
    found = found.compute()
    assert found.probe["text"] > found.probe["audio"]
    assert found.energy["text"] < found.energy["audio"]
    if task == "gaussian":
        assert found.calibration["coverage"]["text"] == gaussian_coverage(features["text"], target)
        nll = task_loss("gaussian", features["audio"], target).mean().item()
        assert found.calibration["nll"]["audio"] == pytest.approx(nll)
    assert (
        set(found.calibration) == {"multilabel": {"ece"}, "regression": set(), "gaussian": {"nll", "coverage"}}[task]
    )


def test_a_score_of_ones_own_and_no_probe():
    features, target, _ = data()
    found = monitor(score=lambda outputs, y: -nn.functional.cross_entropy(outputs, y).item(), probe=False)
    found.update(predict, features, target)
    found = found.compute()
    assert found.score == pytest.approx(
        -nn.functional.cross_entropy(predict(features, dict.fromkeys(NAMES, torch.ones(ROWS).bool())), target).item()
    )
    assert found.probe == found.energy == found.lag == {}


def test_gradient_shares_are_averaged_over_the_steps_that_count():
    encoders = nn.ModuleDict({m: nn.Linear(1, 1, bias=False) for m in NAMES})
    found = monitor(probe=False)
    for gradients in ((3.0, 4.0, 1.0), (600.0, 100.0, 100.0), (0.0, 0.0, 0.0), (1.0, math.inf, 1.0)):
        for m, g in zip(NAMES, gradients, strict=True):
            encoders[m].weight.grad = torch.tensor([[g]])
        found.update_gradients(encoders)
    features, target, _ = data()
    found.update(predict, features, target)
    expected = {"text": (3 / 8 + 6 / 8) / 2, "audio": (4 / 8 + 1 / 8) / 2, "vision": (1 / 8 + 1 / 8) / 2}
    assert found.compute().gradient == pytest.approx(expected)


def test_to_moves_what_was_seen_and_what_will_be():
    features, target, _ = data()
    found = monitor()
    found.update(predict, features, target)
    assert found.to("meta") is found
    found.update(predict, features, target)
    assert {x.device.type for pieces in found._rows.values() for x in pieces} == {"meta"}


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_modes_of_torch_and_buffers_that_are_used_again_change_nothing(task):
    features, target, present = data()
    features = {m: z.float() for m, z in features.items()}
    if task == "regression":
        target = torch.randn(ROWS, 3)
    plain, other = (ModalityMonitor(NAMES, 3, task) for _ in range(2))
    plain.update(predict, features, target, present)
    expected = plain.compute().scalars()
    buffers = {m: z.clone() for m, z in features.items()}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        labels = target.clone()
        other.update(predict, buffers, labels, present)
        for x in (*buffers.values(), labels):
            x.zero_()
        assert other.compute().scalars() == expected


def test_the_table_and_the_scalars_hold_every_figure():
    found = Diagnosis(0.9, 0.25, {"a": 0.5, "b": 0.3}, calibration={"ece": {"all": 0.1, "a": 0.2, "b": 0.3}})
    assert found.scalars()["ece/all"] == 0.1
    assert [line.split()[0] for line in str(found).splitlines()] == ["all", "score", "Shapley", "ece", "imbalance"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: m.compute(), "compute with .0. held-out samples by process, expected some on each; call"),
        (lambda m, x, y: m.update(predict, {"txt": x["text"]}, y), "features has the modality 'txt', expected one"),
        (
            lambda m, x, y: m.update(lambda z, p: z["text"][:, :2], x, y),
            r"predict returned shape \(60, 2\), expected",
        ),
        (lambda m, x, y: m.update(predict, x, y.double()), "target is a torch.float64 tensor"),
        (
            lambda m, x, y: m.update(predict, x, y, alone={"text": x["text"][:3]}),
            r"present\['text'\] is a torch.bool tensor \(60,\), expected a bool tensor \(3,\)",
        ),
        (lambda m, x, y: m.update(predict, x, y, alone={"txt": x["text"]}), r"alone has the modality 'txt'"),
        (lambda m, x, y: m.update_gradients({"text": nn.Linear(1, 1)}), r"modules has \['text'\], expected"),
        (lambda m, x, y: [m.update(predict, x, y), m.update(predict, x, y, alone=x)], "in some updates only"),
        (lambda m, x, y: ModalityMonitor(["all", "text"], 3), 'modalities has "all", expected'),
        (lambda m, x, y: ModalityMonitor(["text"], 3), "expected a mapping of at least two"),
    ],
)
def test_errors_name_what_came_and_the_remedy(call, message):
    features, target, _ = data()
    with pytest.raises(ValueError, match=message):
        call(monitor(), features, target)


def test_a_modality_that_no_sample_has_is_named_and_none_alone_is_left_out():
    features, target, present = data()
    present["vision"] = torch.zeros(ROWS, dtype=torch.bool)
    found = monitor()
    found.update(predict, features, target, present, alone={"text": features["text"], "audio": None})
    found = found.compute()
    assert list(found.reference) == ["text"]
    assert "vision is present in no held-out sample." in found.verdict()
    assert "vision contributes nothing" not in found.verdict()


def test_weights_of_a_balancer_are_averaged_and_drawn():
    features, target, present = data()
    found = monitor()
    found.update(predict, features, target, present)
    assert found.compute().weight == {}
    found.update_weights({})  # no observation yet
    found.update_weights({"text": 0.25, "audio": torch.tensor(1.0), "vision": torch.tensor(0.0)})
    diagnosis = found.compute()
    assert diagnosis.weight == {"text": 0.625, "audio": 1.0, "vision": 0.5}
    assert diagnosis.scalars()["weight/text"] == 0.625
    assert "weight" in str(diagnosis)
    assert "How much of the balancer it got" in [axes.get_title(loc="left") for axes in found.plot().axes]
    assert Diagnosis.from_json(diagnosis.to_json()).weight == diagnosis.weight
    with pytest.raises(ValueError, match=r"weights has \['text'\], expected \['audio', 'text', 'vision'\]"):
        found.update_weights({"text": 1.0})
    found.reset()
    found.update(predict, features, target, present)
    assert found.compute().weight == {}


def test_weights_are_those_of_the_coordinator():
    features, target, _ = data()
    balance = EnergyCoordinator(dict.fromkeys(NAMES, 3), 3).double()
    found = monitor()
    for step in range(3):
        out = balance(features, target)
        found.update_weights(out.weight)
        balance.observe({m: 100 * step * z if m == "audio" else z for m, z in features.items()}, target)
    found.update(predict, features, target)
    assert found.compute().weight["audio"] == pytest.approx((1 + 1 + out.weight["audio"].item()) / 3)
    assert out.weight["audio"] < 1 == out.weight["vision"]
