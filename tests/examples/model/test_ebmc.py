"""The models: no label in what they say, absent modalities, padding, stages."""

from dataclasses import replace

import pytest
import torch

from ebmc_msa.data import synthetic
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.missing import restrict
from ebmc_msa.data.split import Fold
from ebmc_msa.evaluation.scores import predict
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.ensemble import Vote, calibrate, fit_scale, fit_vote, vote_for
from ebmc_msa.model.settings import Settings
from ebmc_msa.training.stages import train


@pytest.fixture(scope="module")
def fold():
    dataset = synthetic(n=(64, 32, 32))
    spec = Spec.of(dataset)
    return spec, *(Fold.of(dataset.splits[name], spec, torch.device("cpu")) for name in ("train", "valid", "test"))


@pytest.fixture(scope="module")
def balanced(fold):
    spec, train_fold, valid, _ = fold
    torch.manual_seed(0)
    model = EBMC(spec, Settings(stage1_epochs=2, stage2_epochs=2))
    train(model, train_fold, valid, model.settings, 0, lambda *_: None)
    return model.eval()


def test_target_changes_no_output(balanced, fold):
    batch = fold[3].rows(torch.arange(32))
    with torch.no_grad():
        seen = balanced(batch)
        assert torch.equal(seen.outputs, balanced(replace(batch, target=None)).outputs)
    assert seen.loss > 0


@pytest.mark.parametrize("kind", [EBMC, Concat])
def test_absent_modalities_and_padding_change_nothing(kind, fold):
    spec, _, _, batch = fold
    torch.manual_seed(0)
    model = kind(spec, Settings()).eval()
    batch = batch.showing(restrict(batch.present, ("text", "audio")))
    expected = predict(model, batch).outputs
    poisoned = {name: x.clone() for name, x in batch.features.items()}
    poisoned["vision"].fill_(float("nan"))
    for i, length in enumerate(batch.lengths["text"]):
        poisoned["text"][i, length:] = float("nan")
    other = replace(batch, features=poisoned)
    assert torch.equal(predict(model, other).outputs, expected)


def test_enhanced_features_reach_the_head(balanced, fold):
    batch = fold[3]
    before = predict(balanced, batch).outputs
    state = {k: v.clone() for k, v in balanced.enhance.state_dict().items()}
    for p in balanced.enhance.parameters():
        torch.nn.init.normal_(p.data)
    assert not torch.allclose(predict(balanced, batch).outputs, before, atol=1e-2)
    balanced.enhance.load_state_dict(state)


def test_trust_is_exact_over_present_modalities(balanced, fold):
    batch = fold[3].showing(restrict(fold[3].present, ("audio", "vision")))
    trust = predict(balanced, batch).trust
    assert (trust["text"] == 0).all()
    some = batch.present["audio"] | batch.present["vision"]
    torch.testing.assert_close(sum(trust.values()), some.float())


def test_fusion_weighs_by_trust_on_held_out_data(balanced, fold):
    spec, _, valid, _ = fold
    trust = predict(balanced, valid).trust
    present = valid.present
    means = {name: trust[name][present[name]].mean() for name in spec.dims}
    weights = balanced._weights(present)
    whole = torch.stack(list(present.values())).all(0)
    for name, weight in weights.items():
        assert (weight[~present[name]] == 0).all()
        torch.testing.assert_close(weight[whole], (means[name] / sum(means.values())).expand(int(whole.sum())))
    torch.manual_seed(0)
    even = EBMC(spec, Settings())._weights(present)
    assert all((weight[whole] == weight[whole][0]).all() for weight in even.values())
    assert even["text"][whole][0] == pytest.approx(1 / 3)


def test_nothing_present_gives_a_number(balanced, fold):
    batch = fold[3].showing(restrict(fold[3].present, ()))
    assert torch.isfinite(predict(balanced, batch).outputs).all()


def test_batch_of_one_trains(fold):
    spec, train_fold, _, _ = fold
    model = EBMC(spec, Settings())
    model.start_balancing(train_fold, train_fold)
    model(train_fold.rows(torch.tensor([0]))).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_teachers_do_not_drift(balanced, fold):
    batch = fold[1].rows(torch.arange(64))
    before = balanced.teach("text", batch).clone()
    optimizer = torch.optim.SGD(balanced.parameters(), lr=0.1)
    balanced.train()
    balanced(batch).loss.backward()
    optimizer.step()
    balanced.train()
    assert torch.equal(balanced.teach("text", batch), before)


def test_scale_of_an_over_confident_classifier():
    torch.manual_seed(0)
    logits = torch.randn(20_000, 4)
    target = torch.distributions.Categorical(logits=logits).sample()
    assert fit_scale("classification", 3 * logits, target) == pytest.approx(3, rel=0.1)


def test_scale_of_an_over_confident_regression():
    torch.manual_seed(0)
    outputs = torch.stack([torch.zeros(20_000), torch.zeros(20_000)], 1)
    scale = fit_scale("gaussian", outputs, 2 * torch.randn(20_000))
    assert scale == pytest.approx(4, rel=0.1)
    torch.testing.assert_close(calibrate("gaussian", outputs, 4.0)[:, 1].exp(), torch.full((20_000,), 4.0))


def experts(task, n=2000):
    """One expert who knows, one who errs, one who guesses."""
    torch.manual_seed(0)
    target = torch.randint(3, (n,)) if task == "classification" else torch.randn(n)
    sure = torch.nn.functional.one_hot(target, 3) * 4.0 if task == "classification" else target[:, None].repeat(1, 2)
    said = {"knows": sure + torch.randn(sure.shape), "errs": -sure, "guesses": torch.randn(sure.shape)}
    if task == "gaussian":
        said = {name: torch.stack([x[:, 0], torch.zeros(n)], 1) for name, x in said.items()}
    return said, target, dict.fromkeys(said, torch.ones(n, dtype=torch.bool))


@pytest.mark.parametrize("task", ["classification", "gaussian"])
def test_a_fitted_vote_is_no_worse_than_any_expert(task):
    said, target, present = experts(task)
    fitted = fit_vote(task, said, target, present, shrink=1e-3)

    def loss(outputs):
        if task == "gaussian":
            return (outputs[:, 0] - target).square().mean()
        return torch.nn.functional.cross_entropy(outputs, target)

    assert loss(fitted(task, said, present)) <= min(loss(x) for x in said.values()) + 0.01
    assert fitted.bias["knows"] == max(fitted.bias.values())


def test_a_vote_with_neither_power_nor_bias_is_the_average():
    said, _, present = experts("classification", 5)
    mean = torch.stack([x.log_softmax(-1) for x in said.values()]).mean(0)
    vote = Vote(0.0, 0.0, dict.fromkeys(said, 0.0))
    torch.testing.assert_close(vote("classification", said, present), mean)


def test_a_vote_doubts_what_is_not_typical():
    said, target, present = experts("classification")
    spoilt = torch.arange(len(target)) % 2 == 0
    said["knows"] = torch.where(spoilt[:, None], said["errs"], said["knows"])
    typical = {"knows": torch.where(spoilt, -5.0, -0.01)}
    fitted, plain = (fit_vote("classification", said, target, present, known) for known in (typical, None))
    assert fitted.doubt > 0.5
    right, without = (
        torch.nn.functional.cross_entropy(vote("classification", said, present, known), target)
        for vote, known in ((fitted, typical), (plain, None))
    )
    assert right < without - 0.05


def test_every_sample_gets_the_vote_of_its_own_set():
    votes = {
        names: Vote(float(i), i + 0.5, {"a": 10.0 + i})
        for i, names in enumerate([("a",), ("b", "a"), ("a", "b", "c")])
    }
    present = {"a": [1, 1, 1, 0], "b": [0, 1, 1, 1], "c": [0, 0, 1, 1]}
    found = vote_for(votes, {name: torch.tensor(here, dtype=torch.bool) for name, here in present.items()})
    assert found.power.tolist() == [0, 1, 2, 2]  # a set without a vote has the last one's
    assert found.doubt.tolist() == [0.5, 1.5, 2.5, 2.5]
    assert found.bias["a"].tolist() == [10, 11, 12, 12]


def test_without_samples_a_vote_is_even():
    said, target, present = experts("gaussian", 3)
    none = torch.zeros(3, dtype=torch.bool)
    said, present = ({name: x[none] for name, x in given.items()} for given in (said, present))
    found = fit_vote("gaussian", said, target[none], present)
    assert set(found.bias.values()) == {0.0}


def test_teachers_are_kept_at_their_own_best_epochs(fold):
    spec, train_fold, valid, _ = fold
    torch.manual_seed(0)
    model = EBMC(spec, Settings(stage1_epochs=3, stage2_epochs=0))
    best = {}

    def tell(stage, epoch, entry):
        for name, (score, _) in model.paths.items():
            best[name] = max(best.get(name, score), score)

    train(model, train_fold, valid, model.settings, 0, tell)
    assert {name: score for name, (score, _) in model.paths.items()} == best


@pytest.mark.parametrize("names", [("text", "audio", "vision"), ("audio",)])
def test_the_answer_is_the_vote_of_all_experts(names, balanced, fold):
    shown = fold[3].showing(restrict(dict.fromkeys(fold[3].present, torch.ones(32, dtype=torch.bool)), names))
    said = predict(balanced, shown)
    batch = shown.rows(torch.arange(32))
    votes, balanced.votes = balanced.votes, {}
    with torch.no_grad():
        parts = {name: balanced.teach(name, batch) for name in balanced.teachers}
        parts["fused"] = calibrate("gaussian", balanced(batch).outputs, balanced.scales["fused"])
        parts["before"] = calibrate("gaussian", balanced.before(batch).outputs, balanced.scales["before"])
        typical = {
            name: balanced.typical[name](batch.features[name], batch.lengths[name]) for name in balanced.teachers
        }
    balanced.votes = votes
    present = batch.present | dict.fromkeys(("before", "fused"), torch.ones(32, dtype=torch.bool))
    expected = votes[names]("gaussian", parts, present, typical)
    torch.testing.assert_close(expected, said.outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("enhance-balance", {"enhance": {"alignment", "reconstruction"}}),
        ("balance-enhance", {"balance": {"gap", "descent"}}),
        ("joint", {"joint": {"alignment", "reconstruction", "gap", "descent"}}),
    ],
)
def test_order_of_the_stages(order, first, fold):
    spec, train_fold, valid, _ = fold
    torch.manual_seed(0)
    model = EBMC(spec, Settings(stage1_epochs=1, stage2_epochs=1, order=order))
    stages, before = train(model, train_fold, valid, model.settings, 0, lambda *_: None)
    assert "-".join(stage.name for stage in stages) == order
    (name, terms), *_ = first.items()
    assert stages[0].name == name
    assert terms <= stages[0].history[0]["train"].keys()
    assert before.teachers == {}
    assert model.teachers.keys() == spec.dims.keys()
    assert len(model.votes) == 7
    both = {"alignment", "reconstruction", "gap", "descent"}
    assert both <= stages[-1].history[0]["train"].keys()
    assert ("distillation" in stages[-1].history[0]["train"]) == (order != "joint")
