"""What is found inside EBMC: energies, reliability and groups against their definitions, and the tables."""

import pytest
import torch

from ebmc_msa.data import synthetic
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.predict import predict
from ebmc_msa.experiments import internals
from ebmc_msa.model.ebmc import EBMC
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
    model = EBMC(spec, Settings(stage1_epochs=2, stage2_epochs=2))
    ebmc = train(model, splits["train"], splits["valid"], model.settings, 0, lambda *_: None)

    def kept():
        return predict(ebmc.model, splits["test"]).outputs, dict(ebmc.model.mixtures), ebmc.model.temperatures()

    then = kept()
    found = internals.inspect(ebmc, splits)
    now = kept()
    assert torch.equal(then[0], now[0])  # looking changes nothing
    assert then[1:] == now[1:]
    return model, splits, found


def test_shares_sum_to_one(looked):
    _, _, found = looked
    for shares in (*found["contribution"].values(), *found["gradient"].values()):
        assert sum(shares.values()) == pytest.approx(1)
    assert list(found["gradient"]) == ["enhance", "balance"]


def test_energy_is_that_of_the_coordinator_on_the_samples_there(looked):
    model, splits, found = looked
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
