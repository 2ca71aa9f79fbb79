"""What is found inside EBMC: energies, reliability and groups against their definitions, and the tables."""

import pytest
import torch

from ebmc_msa.data import synthetic
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.metrics import METRICS
from ebmc_msa.evaluation.predict import label_predictions, label_targets, predict
from ebmc_msa.experiments import internals
from ebmc_msa.experiments.trust import _permute, trust_summary, trust_table, trust_tests
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.ensemble import Mixture
from ebmc_msa.model.settings import Settings
from ebmc_msa.report.internals import features, picture, tables
from ebmc_msa.training.stages import train
from figures import drawn

VALUES = Spec("sentiment", {"a": 2, "b": 2}, (), 1, mean=0.5, scale=2.0)
CLASSES = Spec("classes", {"a": 2, "b": 2}, (), 3)


@pytest.fixture(scope="module")
def looked():
    dataset = synthetic(n=(64, 32, 32))
    spec = Spec.of(dataset)
    splits = {name: SplitView.of(split, spec, torch.device("cpu")) for name, split in dataset.splits.items()}
    torch.manual_seed(0)
    model = EBMC(spec, Settings(stage1_epochs=2, stage2_epochs=2, warmup_steps=0))
    ebmc = train(model, splits["train"], splits["valid"], model.settings, 0, lambda *_: None)

    def kept():
        return predict(ebmc.model, splits["test"]).outputs, dict(ebmc.model.mixtures), ebmc.model.temperatures()

    then = kept()
    found = internals.inspect(ebmc, splits)
    now = kept()
    assert torch.equal(then[0], now[0])  # looking changes nothing
    assert then[1:] == now[1:]
    return model, splits, found, ebmc.model


def test_shares_sum_to_one(looked):
    found = looked[2]
    for shares in (*found["contribution"].values(), *found["gradient"].values()):
        assert sum(shares.values()) == pytest.approx(1)
    assert list(found["gradient"]) == ["enhance", "balance"]


def test_energy_is_that_of_the_coordinator_on_the_samples_there(looked):
    model, splits, found, _ = looked
    batch = splits["valid"].rows(torch.arange(32))
    with torch.no_grad():
        energy = model.eval()(batch).energy
    for name, here in batch.present.items():
        assert found["energy"]["valid"][name] == pytest.approx(energy[name][here].mean().item(), rel=1e-4)


def test_reliability_of_a_gaussian_that_knows_itself():
    torch.manual_seed(0)
    target = torch.randn(20_000)
    found = internals.reliability(VALUES, torch.zeros(20_000, 2), target)
    assert found["error"] == pytest.approx(0, abs=0.01)
    assert all(stated == pytest.approx(share, abs=0.02) for stated, share in found["curve"])
    sure = internals.reliability(VALUES, torch.stack([torch.zeros(20_000), torch.full((20_000,), -3.0)], 1), target)
    assert sure["error"] < -0.2
    assert sure["nll"] > found["nll"]


def test_reliability_of_a_classifier_that_knows_itself():
    torch.manual_seed(0)
    logits = torch.randn(20_000, 3)
    target = torch.distributions.Categorical(logits=logits).sample()
    found = internals.reliability(CLASSES, logits, target)
    assert all(stated == pytest.approx(share, abs=0.03) for stated, share in found["curve"])
    assert len(found["curve"]) == 5


def test_neutral_sentiment_has_no_group():
    target = torch.tensor([-0.25, -0.75, 1.0])  # 0, -1 and 2.5 in the data's units
    assert internals.groups(VALUES, target).tolist() == [-1, 0, 1]


def test_the_answer_before_permuting_is_that_of_the_model(looked):
    _, splits, found, model = looked
    predicted = label_predictions(model.spec, predict(model, splits["test"]).outputs)
    mae = (predicted - label_targets(model.spec, splits["test"].target)).abs().mean().item()
    assert found["trust"]["answer"]["clean"]["score"] == pytest.approx(-mae, rel=1e-5)
    for kinds in found["trust"].values():
        for test in kinds.values():
            assert test["lost"].shape == (32,)
            assert 0 < test["p"] <= 1


def test_weights_that_are_the_same_for_all_samples_decide_nothing(looked):
    _, splits, _, model = looked
    mixtures = dict(model.mixtures)
    model.mixtures = {names: Mixture(0.0, 0.0, mixture.bias) for names, mixture in mixtures.items()}
    even = trust_tests(model, splits["test"])["answer"]
    model.mixtures = mixtures
    for test in even.values():
        assert test["p"] == 1
        assert test["lost"].abs().max() < 1e-6


def test_trust_that_knows_the_corrupted_samples_is_seen(looked):
    """The teacher of the right modality gets the weight of a sample; permuted, the error is that of a random one."""
    _, splits, _, model = looked
    text = (torch.arange(32) % 2).bool()
    target = splits["test"].target
    outputs = {m: torch.stack([torch.where(own, target, -target), torch.zeros(32)], 1) for m, own in
               (("text", text), ("audio", ~text))}  # fmt: skip
    found = _permute(model.spec, outputs, {"text": text.float() + 1e-9, "audio": (~text).float() + 1e-9}, target)
    assert found["score"] == pytest.approx(0, abs=1e-5)
    assert found["p"] == pytest.approx(1 / 201)
    label = label_targets(model.spec, target)
    wrong = (label - label_predictions(model.spec, -target[:, None])).abs()
    assert found["lost"].numpy() == pytest.approx(wrong.numpy() / 2, rel=0.35)  # wrong in half of the permutations


def test_the_table_of_trust(looked):
    found = looked[2]
    summary = trust_summary({"ebmc": [found, found], "ebmc -imtd": [{"trust": {}}] * 2, "old": [{}, {}]})
    assert list(summary) == ["ebmc"]
    lost = found["trust"]["answer"]["clean"]["lost"].mean().item()
    assert summary["ebmc"]["answer"]["clean"]["lost"].mean == pytest.approx(lost)
    below = 2 * (found["trust"]["answer"]["clean"]["p"] < 0.05)
    row = next(line for line in trust_table(summary, METRICS["mae"]) if line.startswith("| ebmc, answer |"))
    assert row.startswith(f"| ebmc, answer | {lost:+.3f} [")
    assert row.split(" | ")[2] == f"{below} of 2"
    assert trust_table({}, METRICS["mae"]) == []


def test_tables_and_pictures_hold_every_method_and_modality(looked):
    found = looked[2]
    runs = {"ebmc": [found, found], "ebmc -emc": [found, found]}
    text = "\n".join(tables(runs))
    share = 100 * found["contribution"]["after"]["text"]
    assert f"| ebmc -emc, after balancing | {share:.0f} ± 0 |" in text
    assert "| negative log-likelihood, calibrated |" in text
    for svg in (picture(runs), features(runs)):
        assert drawn(svg)
        assert "ebmc -emc" in svg
