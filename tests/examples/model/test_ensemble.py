"""Mixtures of experts by trust: no worse than the best expert, and one for each subset of modalities."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.ensemble import FUSED, Mixture, fit_mixture, kept_experts, mixture_of_each
from ebmc_msa.model.settings import Settings
from generated import interaction


def experts(task, n=2000):
    """One expert that is right, one that errs, one that guesses."""
    torch.manual_seed(0)
    target = torch.randint(3, (n,)) if task == "classification" else torch.randn(n)
    sure = torch.nn.functional.one_hot(target, 3) * 4.0 if task == "classification" else target[:, None].repeat(1, 2)
    outputs = {"knows": sure + torch.randn(sure.shape), "errs": -sure, "guesses": torch.randn(sure.shape)}
    if task == "gaussian":
        outputs = {name: torch.stack([x[:, 0], torch.zeros(n)], 1) for name, x in outputs.items()}
    return outputs, target, dict.fromkeys(outputs, torch.ones(n, dtype=torch.bool))


@pytest.mark.parametrize("task", ["classification", "gaussian"])
def test_a_fitted_mixture_is_no_worse_than_any_expert(task):
    outputs, target, present = experts(task)
    fitted = fit_mixture(task, outputs, target, present, shrink=1e-3)

    def loss(outputs):
        if task == "gaussian":
            return (outputs[:, 0] - target).square().mean()
        return torch.nn.functional.cross_entropy(outputs, target)

    assert loss(fitted(task, outputs, present)) <= min(loss(x) for x in outputs.values()) + 0.01
    assert fitted.bias["knows"] == max(fitted.bias.values())


def test_a_mixture_with_neither_exponent_nor_bias_is_the_average():
    outputs, _, present = experts("classification", 5)
    mean = torch.stack([x.log_softmax(-1) for x in outputs.values()]).mean(0)
    mixture = Mixture(0.0, 0.0, dict.fromkeys(outputs, 0.0))
    torch.testing.assert_close(mixture("classification", outputs, present), mean)


def test_a_mixture_distrusts_inputs_out_of_distribution():
    outputs, target, present = experts("classification")
    corrupted = torch.arange(len(target)) % 2 == 0
    outputs["knows"] = torch.where(corrupted[:, None], outputs["errs"], outputs["knows"])
    scores = {"knows": torch.where(corrupted, -5.0, -0.01)}
    fitted, plain = (fit_mixture("classification", outputs, target, present, known) for known in (scores, None))
    assert fitted.ood_exponent > 0.5
    right, without = (
        torch.nn.functional.cross_entropy(mixture("classification", outputs, present, known), target)
        for mixture, known in ((fitted, scores), (plain, None))
    )
    assert right < without - 0.05


def test_every_sample_gets_the_mixture_of_its_own_subset():
    mixtures = {
        names: Mixture(float(i), i + 0.5, {"a": 10.0 + i})
        for i, names in enumerate([("a",), ("b", "a"), ("a", "b", "c")])
    }
    present = {"a": [1, 1, 1, 0], "b": [0, 1, 1, 1], "c": [0, 0, 1, 1]}
    found = mixture_of_each(mixtures, {name: torch.tensor(here, dtype=torch.bool) for name, here in present.items()})
    assert found.trust_exponent.tolist() == [0, 1, 2, 2]  # a subset without a mixture has the last one's
    assert found.ood_exponent.tolist() == [0.5, 1.5, 2.5, 2.5]
    assert found.bias["a"].tolist() == [10, 11, 12, 12]


def test_samples_that_are_alike_share_one_mixture():
    """A shortcut to what a batch with another subset in it gets for the same rows."""
    outputs, _, present = experts("classification", 8)
    one, two = Mixture(0.5, 0.0, {"knows": 0.2, "errs": -0.1}), Mixture(0.5, 0.0, {"guesses": 0.3})
    mixtures = {("b", "a"): one, ("a",): two}
    for rows, mixture in ((slice(0, 4), one), (slice(4, 8), two)):
        here = {"a": torch.ones(8, dtype=torch.bool), "b": torch.arange(8) < 4}
        assert mixture_of_each(mixtures, {name: x[rows] for name, x in here.items()}) is mixture
        some = {name: outputs[name] for name in mixture.bias}
        together = mixture_of_each(mixtures, here)("classification", outputs, present)[rows]
        torch.testing.assert_close(mixture("classification", some, present)[rows], together)
    assert mixture_of_each(mixtures, {"a": torch.zeros(3, dtype=torch.bool)}) is two  # as for any other subset


def test_without_samples_a_mixture_is_even():
    outputs, target, present = experts("gaussian", 3)
    none = torch.zeros(3, dtype=torch.bool)
    outputs, present = ({name: x[none] for name, x in given.items()} for given in (outputs, present))
    found = fit_mixture("gaussian", outputs, target[none], present)
    assert set(found.bias.values()) == {0.0}


def test_teachers_of_negligible_weight_are_left_out():
    assert kept_experts({"text": 0.4, "audio": 0.19, FUSED: 0.41}) == ["text", FUSED]
    assert kept_experts({"text": 0.9, "audio": 0.0, FUSED: 0.1}) == ["text", FUSED]


def test_an_expert_that_a_mixture_leaves_out_has_no_weight():
    outputs, _, present = experts("classification", 6)
    whole = Mixture(0.0, 0.0, {"knows": 0.0, "errs": 0.0})
    expected = whole("classification", {k: outputs[k] for k in ("knows", "errs")}, present)
    torch.testing.assert_close(whole("classification", outputs, present), expected)
    other = Mixture(0.0, 0.0, {"guesses": 0.0})
    mixed = mixture_of_each({("a",): whole, ("b",): other}, {"a": torch.arange(6) < 3, "b": torch.arange(6) >= 3})
    assert sorted(mixed.used) == ["errs", "guesses", "knows"]
    got = mixed("classification", outputs, present)
    torch.testing.assert_close(got[:3], expected[:3])
    torch.testing.assert_close(got[3:], outputs["guesses"][3:].log_softmax(-1))


def test_teachers_of_token_ids_keep_their_fractions():
    """Where a row lacks the modality the others are predicted apart."""

    class Words(nn.Module):
        def forward(self, ids, lengths=None):
            return ids[:, :4] / 3

    dataset = interaction("mixed", sizes=(8, 4, 1))
    spec = Spec.of(dataset)
    training = SplitView.of(dataset.splits["train"], spec, torch.device("cpu"))
    teachers = EBMC(spec, Settings())._new_teachers()
    teachers.branches["first"] = Words()
    batch = training.rows(torch.arange(8))
    ids, here = torch.arange(96).view(8, 12), torch.arange(8) != 3
    batch = replace(batch, features={**batch.features, "first": ids}, present={**batch.present, "first": here})
    torch.testing.assert_close(teachers.predict("first", batch), ids[:, :4] / 3 * here[:, None])
