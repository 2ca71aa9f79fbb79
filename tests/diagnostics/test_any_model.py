"""The monitor on models that nobody here wrote."""

import json
import math
import re
from collections import OrderedDict

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from modbalance.diagnostics import (
    Diagnosis,
    ModalityMonitor,
    modality_subsets,
    sample_orders,
    sampled_shapley_values,
    shapley_values,
    train_alone,
    trust_permutation_test,
)
from modbalance.diagnostics.score import jackknife
from modbalance.presence import select
from modbalance.tasks import soft_labels

NAMES, ROWS = ("text", "audio"), 80


def data(weak=1.0):
    target = torch.arange(ROWS) % 3
    hot = nn.functional.one_hot(target, 3).float()
    return {"text": 4 * hot + torch.randn(ROWS, 3), "audio": weak * hot + torch.randn(ROWS, 3)}, target


def predict(z, present):
    return sum(select(x, present[m]) for m, x in z.items())


def compute(call, *arguments, **options):
    monitor = ModalityMonitor(NAMES, 3, **options)
    monitor.update(call, *arguments)
    return monitor.compute()


# A predict that ignores `present`


def test_no_verdict_where_no_coalition_changes_an_output():
    features, target = data()
    with pytest.warns(
        UserWarning, match=r"predict gave the same outputs for every coalition, so there is no verdict"
    ):
        found = compute(lambda z, present: sum(z.values()), features, target)
    assert math.isnan(found.imbalance)
    assert all(math.isnan(x) for figures in (found.shapley, found.alone, found.drop) for x in figures.values())
    assert found.score == compute(predict, features, target).score
    assert found.verdict().startswith("No verdict: all coalitions gave the same outputs")
    assert set(found.ignored) == set(NAMES)


def test_done_right_it_is_as_uneven_as_the_model():
    features, target = data()
    found = compute(lambda z, present: select(z["text"], present["text"]), features, target)
    assert found.imbalance == 1
    assert found.ignored == ("audio",)
    assert "audio contributes nothing: removing it changes no output" in found.verdict()


# What a model returns


class ModelOutput(OrderedDict):
    """As that of transformers."""


def test_outputs_in_a_dict_a_model_output_or_a_tuple():
    features, target = data()
    expected = compute(predict, features, target).scalars()
    for wrap in (
        lambda s: {"logits": s, "hidden": s.clone()},
        lambda s: ModelOutput(loss=s.mean(), logits=s),
        lambda s: (s, s[:, :2]),
        lambda s: [s.mean(), s],
        lambda s: {"M": s, "T": s[:, :1]},
    ):
        assert compute(lambda z, p, wrap=wrap: wrap(predict(z, p)), features, target).scalars() == expected


@pytest.mark.parametrize(
    ("wrap", "error", "message"),
    [
        (lambda s: {"M": s, "T": s}, ValueError, r"\['M'\] \(80, 3\), .*exactly one \(80, 3\).*output\['M'\]"),
        (lambda s: (s[:, :2],), ValueError, r"expected exactly one \(80, 3\) or one named 'logits'; return"),
        (lambda s: s.tolist()[0][0], TypeError, r"predict returned a float, expected a tensor \(80, 3\); return"),
        (lambda s: torch.full_like(s, torch.nan), ValueError, r"what predict returned given text has NaN in 80 rows"),
    ],
)
def test_outputs_that_are_doubtful_are_refused(wrap, error, message):
    features, target = data()
    with pytest.raises(error, match=message):
        compute(lambda z, p: wrap(predict(z, p)), features, target)


def test_a_column_will_do_for_one_output():
    features, target = {m: torch.randn(ROWS, 1) for m in NAMES}, torch.randn(ROWS)
    found = []
    for call in (predict, lambda z, p: predict(z, p)[:, 0]):
        monitor = ModalityMonitor(NAMES, 1, "regression")
        monitor.update(call, features, target)
        found.append(monitor.compute().scalars())
    assert found[0] == found[1]


# What goes in


def test_raw_inputs_without_a_probe():
    features, target = data()
    raw = {"text": (features["text"] * 10).round().long(), "audio": features["audio"].reshape(ROWS, 1, 1, 3)}

    def from_raw(inputs, present):
        return predict({"text": inputs["text"] / 10, "audio": inputs["audio"].flatten(1)}, present)

    rounded = {**features, "text": raw["text"] / 10}
    assert (
        compute(from_raw, raw, target, probe=False).scalars()
        == compute(predict, rounded, target, probe=False).scalars()
    )
    with pytest.raises(TypeError, match=r"features\['text'\] is a torch.int64 tensor \(80, 3\).*probe=False"):
        compute(from_raw, raw, target)
    with pytest.raises(ValueError, match=r"features has \['txt'\], expected some of \['text', 'audio'\]"):
        compute(from_raw, {"txt": raw["text"]}, target, probe=False)


def test_presence_as_one_tensor_and_none_for_a_modality():
    features, target = data()
    here = torch.rand(ROWS, 2) > 0.3
    by_name = compute(predict, features, target, {"text": here[:, 0], "audio": here[:, 1]}).scalars()
    assert compute(predict, features, target, here).scalars() == by_name
    with pytest.raises(
        ValueError, match=r"present is a torch.bool tensor \(80, 3\), expected bool \(80, 2\).*'text'"
    ):
        compute(predict, features, target, torch.ones(ROWS, 3, dtype=torch.bool))
    one = compute(predict, {"text": features["text"]}, target)
    assert compute(predict, {**features, "audio": None}, target).scalars() == pytest.approx(
        one.scalars(), nan_ok=True
    )


def test_soft_labels_are_judged_by_their_most_likely_class():
    features, target = data()
    hard, soft = compute(predict, features, target), compute(predict, features, soft_labels(target, 3, smoothing=0.1))
    for name in ("score", "imbalance", "shapley", "alone", "drop", "calibration"):
        assert getattr(soft, name) == getattr(hard, name)
    target[3] = -100
    assert compute(predict, features, soft_labels(target, 3)).score == compute(predict, features, target).score


def test_features_that_hold_nan_are_named():
    features, target = data()
    features["audio"][4, 1] = torch.nan
    with pytest.raises(
        ValueError, match=r"features\['audio'\] has NaN in 1 rows, expected numbers; mark the rows absent"
    ):
        compute(lambda z, p: z["text"], features, target)


# A history, a table, JSON, words


def test_history_has_one_diagnosis_an_epoch():
    features, target = data()
    monitor = ModalityMonitor(NAMES, 3)
    for _ in range(3):
        monitor.update(predict, features, target)
        monitor.compute()
        monitor.compute()
        monitor.reset()
        features["audio"] = features["audio"] + torch.randn(ROWS, 3)
    assert len(monitor.history) == 3
    assert monitor.history[0].shapley["audio"] > monitor.history[2].shapley["audio"]
    monitor.update(predict, features, target)
    assert len(monitor.history) == 3
    assert monitor.history[-1] is not monitor.compute()
    assert len(monitor.history) == 4


figures = st.floats(allow_nan=True, width=32) | st.sampled_from([-8800.123, 1e30, 0.5])


@given(st.lists(figures, min_size=6, max_size=6), st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=24))
def test_columns_of_the_table_never_touch(values, name):
    found = Diagnosis(
        values[0],
        values[1],
        dict(zip((name + "1", "b"), values[2:4], strict=True)),
        probe=dict(zip((name + "1", "b"), values[4:], strict=True)),
        calibration={"a figure with a very long name": {name + "1": values[0], "b": values[1]}},
    )
    title, *lines = str(found).splitlines()
    assert title.split() == ["all", name + "1", "b"]
    ends = [m.end() for m in re.finditer(r"\S+", title)]
    for line in lines:
        cells = [m for m in re.finditer(r"(?<=  )\S+", line.split("  (0:")[0]) if m.end() in ends]
        assert len(cells) == len(
            [c for c in re.findall(r"\S+", line.split("  (0:")[0]) if re.fullmatch(r"-?[\d.]+|nan|-?inf", c)]
        )


def test_json_and_html_hold_every_figure():
    features, target = data()
    monitor = ModalityMonitor(NAMES, 3)
    monitor.update(predict, {"text": features["text"]}, target, alone=features)
    found = monitor.compute()
    text = found.to_json(indent=2)
    assert json.loads(text)["shapley"]["text"] == found.shapley["text"]
    assert json.loads(text)["alone"]["audio"] is None
    again = Diagnosis.from_json(text)
    assert str(again) == str(found)
    assert again.coalitions.keys() == found.coalitions.keys()
    assert again.to_json() == found.to_json()
    html = found._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") == len(str(found).splitlines())
    assert f"{found.shapley['text']:.3f}" in html
    assert "<script>" not in Diagnosis(1, 0, {"<script>": 1.0})._repr_html_()


BASE = {"score": 0.9, "imbalance": 0.3, "shapley": {"a": 0.3, "b": 0.2}, "drop": {"a": 0.2, "b": 0.1}}
WORDS = {
    "starved": ({"lag": {"a": 0.0, "b": 0.2}}, "b is starved: its encoder is 0.200 behind.*EnergyCoordinator"),
    "noise": ({"lag": {"b": 0.2}, "errors": {"lag": {"b": 0.15}}}, "Nothing stands out"),
    "unused": (
        {"probe": {"b": 0.8}, "alone": {"b": 0.4}},
        "b is not used as it could be.*scores 0.400.*ModalityDropout",
    ),
    "noise alone": (
        {
            "drop": {"b": 0.0},
            "shapley": {"b": -0.1},
            "probe": {"b": -0.03},
            "alone": {"b": -0.2},
            "coalitions": {(): 0.0},
        },
        r"^b contributes nothing that can be measured: drop 0.000, Shapley value -0.100. A probe .* finds nothing",
    ),
    "nothing": ({"drop": {"a": 0.2, "b": 0.0}, "shapley": {"a": 0.5, "b": 0.0}}, "b contributes nothing that can be"),
    "covered": (
        {"drop": {"b": 0.0}, "shapley": {"b": 0.0}, "probe": {"b": 0.7}, "coalitions": {(): 0.3}},
        "b contributes nothing.*0.400 above a constant guess: others may cover it",
    ),
    "harm": ({"drop": {"a": 0.2, "b": -0.1}}, "b does harm: the score rises by 0.100 without it"),
    "uneven": ({"imbalance": 0.8}, "uneven .imbalance 0.80.*may simply know more.*train_alone"),
    "even": ({"lag": {"a": 0.0, "b": 0.0}}, r"^Nothing stands out \(imbalance 0.30\)\.$"),
}


@pytest.mark.parametrize(("figures", "words"), WORDS.values(), ids=WORDS)
def test_the_verdict(figures, words):
    assert re.search(words, Diagnosis(**{**BASE, **figures}).verdict(), re.DOTALL)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = torch.randn(20, dtype=torch.float64)
    assert jackknife(lambda rows: x[rows].mean().item(), 20) == pytest.approx(x.std().item() / math.sqrt(20))
    many = torch.randn(2000, dtype=torch.float64)
    error = jackknife(lambda rows: many[rows].mean().item(), 2000)
    assert error == pytest.approx(many.std().item() / math.sqrt(2000), rel=0.4)
    assert math.isnan(jackknife(lambda rows: 0.0, 1))


# More than eight modalities


def game(players, seed=0):
    generator = torch.Generator().manual_seed(seed)
    worth = {s: torch.rand(1, generator=generator).item() for s in modality_subsets(players, range(len(players) + 1))}
    return worth.__getitem__


def test_sampled_values_are_exact_where_nothing_interacts_and_within_their_error_elsewhere():
    players = list("abcdef")
    worth = dict(zip(players, [0.1, 0.2, 0.3, 0.0, -0.1, 0.5], strict=True))
    found = sampled_shapley_values(lambda s: sum(worth[m] for m in s), players, orders=8)
    assert found.values == pytest.approx(worth)
    assert max(found.errors.values()) < 1e-12
    value = game(players)
    exact, found = shapley_values(value, players), sampled_shapley_values(value, players, orders=400)
    deviations = [(found.values[m] - exact[m]) / found.errors[m] for m in players]
    assert max(map(abs, deviations)) < 3.5
    assert sum(found.values.values()) == pytest.approx(value(tuple(players)) - value(()))


def test_the_standard_error_is_that_of_other_seeds():
    players, value = list("abcde"), game(list("abcde"))
    runs = [sampled_shapley_values(value, players, orders=40, seed=seed) for seed in range(60)]
    spread = torch.tensor([[run.values[m] for m in players] for run in runs]).std(0)
    stated = torch.tensor([[run.errors[m] for m in players] for run in runs]).mean(0)
    torch.testing.assert_close(stated, spread, rtol=0.35, atol=0)


def test_ten_modalities_ask_for_few_coalitions_and_state_an_error():
    names = [f"m{i}" for i in range(10)]
    target = torch.randn(60)
    features = {m: target[:, None] * (i == 0) + torch.randn(60, 1) for i, m in enumerate(names)}
    monitor = ModalityMonitor(names, 1, "regression", probe=False)
    assert len(monitor.coalitions) < 2**10 / 2
    monitor.update(predict, features, target)
    found = monitor.compute()
    assert found.errors["shapley"].keys() == set(names)
    assert sum(found.shapley.values()) == pytest.approx(found.score - found.coalitions[()])
    assert "std. error" in str(found)


def test_all_orders_of_a_few_modalities_come_near_the_exact_values():
    features, target = data()
    exact = compute(predict, features, target, probe=False).shapley
    assert compute(predict, features, target, probe=False, orders=4).shapley == pytest.approx(exact)
    with pytest.raises(ValueError, match="orders is 3, expected an even number of at least 4; pass 64"):
        sample_orders("ab", 3)


# Trust, and encoders trained alone


def experts(informed):
    target = torch.randint(2, (300,))
    right = torch.rand(300) < 0.5  # which of the two experts is right
    hot = torch.eye(2)[target]
    text, audio = torch.where(right[:, None], hot, 1 - hot), torch.where(right[:, None], 1 - hot, hot)
    trust = torch.where(right, 0.9, 0.1) if informed else torch.where(torch.rand(300) < 0.5, 0.9, 0.1)
    weights = {"text": trust, "audio": 1 - trust}
    return lambda w: w["text"][:, None] * text + w["audio"][:, None] * audio, weights, target


def test_trust_that_knows_its_sample_is_told_from_trust_that_does_not():
    knows, guesses = trust_permutation_test(*experts(True)), trust_permutation_test(*experts(False))
    assert knows.score == 1
    assert knows.permuted == pytest.approx(0.5, abs=0.05)
    assert knows.p_value == pytest.approx(1 / 201)
    assert guesses.p_value > 0.02
    assert guesses.spread == pytest.approx(math.sqrt(0.25 / 300), rel=0.3)


def test_weights_are_shuffled_among_those_that_have_the_same():
    here = torch.rand(50) < 0.5
    weights = {"text": torch.ones(50), "audio": torch.where(here, torch.rand(50) + 0.1, 0.0)}
    seen = []

    def look(w):
        seen.append(w)
        return torch.zeros(50, 2)

    trust_permutation_test(look, weights, torch.zeros(50, dtype=torch.long), permutations=20)
    assert len(seen) == 21
    for w in seen:
        assert torch.equal(w["audio"] > 0, here)
        assert torch.equal(w["audio"].sort()[0], weights["audio"].sort()[0])
    assert not all(torch.equal(w["audio"], weights["audio"]) for w in seen[1:])


def test_the_permutation_test_refuses_what_it_cannot_shuffle():
    call, weights, target = experts(True)
    with pytest.raises(ValueError, match=r"weights have shapes .*, expected \(7,\)"):
        trust_permutation_test(call, weights, target[:7])
    with pytest.raises(ValueError, match="no two of the 1 samples have the same modalities"):
        trust_permutation_test(call, {m: w[:1] for m, w in weights.items()}, target[:1])


def test_encoders_trained_alone_learn_and_leave_the_given_ones_be():
    features, target = data(weak=2.0)
    encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.1)) for m in NAMES})
    before = {name: p.clone() for name, p in encoders.named_parameters()}
    drawn = torch.get_rng_state()
    alone = train_alone(encoders, [(features, target)], 3, steps=150, learning_rate=1e-2)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in encoders.named_parameters())
    assert all(not e.training and not any(p.requires_grad for p in e.parameters()) for e in alone.values())
    monitor = ModalityMonitor(NAMES, 3)
    dead = {m: 1e-3 * torch.randn(ROWS, 3) for m in NAMES}  # encoders that learnt nothing
    monitor.update(predict, dead, target, alone={m: alone[m](features[m]) for m in NAMES})
    found = monitor.compute()
    assert found.reference["text"] > 0.9
    assert found.lag["text"] > 0.4
    assert "text is starved" in found.verdict()
    again = train_alone(encoders, [(features, target)], 3, steps=150, learning_rate=1e-2)
    torch.testing.assert_close(again["text"][0].weight, alone["text"][0].weight)


def test_a_single_present_row_trains_no_encoder_alone():
    """A batch norm cannot take it."""
    encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)) for m in NAMES})
    features, target = data(weak=2.0)
    present = {m: torch.arange(ROWS) < (1 if m == NAMES[0] else ROWS) for m in NAMES}
    alone = train_alone(encoders, [(features, target, present), (features, target)], 3, steps=4)
    assert set(alone) == set(NAMES)


def test_encoders_that_cannot_start_anew_are_refused():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.scale

    features, target = data()
    with pytest.raises(
        ValueError, match=r"encoders\['text'\] has a Scale at 'its top' with parameters and no reset_par"
    ):
        train_alone({"text": Scale()}, [(features, target)], 3)
    kept = train_alone({"text": Scale()}, [(features, target)], 3, steps=3, fresh=False)
    assert not torch.equal(kept["text"].scale, torch.ones(3))
    with pytest.raises(ValueError, match="batches gave 1 of 3 batches and then none"):
        train_alone({"text": nn.Linear(3, 2)}, iter([(features, target)]), 3, steps=3)


def test_encoders_alone_see_present_rows_only():
    x, target = torch.randn(12, 3), torch.arange(12) % 2
    here = torch.arange(12) < 8
    encoders, options = {"text": nn.Linear(3, 2)}, {"num_outputs": 2, "steps": 4}
    hidden = torch.where(here[:, None], x, torch.nan)
    alone = train_alone(encoders, [({"text": hidden}, target, {"text": here})], **options)["text"]
    expected = train_alone(encoders, [({"text": x[:8]}, target[:8])], **options)["text"]
    torch.testing.assert_close(alone.weight, expected.weight)
    with pytest.raises(ValueError, match=r"the loss of 'text' is nan, expected a finite number"):
        train_alone(encoders, [({"text": hidden}, target)], **options)
