"""The models: no label in what they say, absent modalities, padding, stages."""

from dataclasses import replace

import pytest
import torch

from batch import Spec
from calibration import calibrate, fit_scale
from data import synthetic
from evaluate import predict
from fold import Fold
from missing import restrict
from model import EBMC, Concat
from settings import Settings
from stages import train


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


def test_nothing_present_gives_a_number(balanced, fold):
    batch = fold[3].showing(restrict(fold[3].present, ()))
    assert torch.isfinite(predict(balanced, batch).outputs).all()


def test_batch_of_one_trains(fold):
    spec, train_fold, _, _ = fold
    model = EBMC(spec, Settings())
    model.start_balancing(train_fold)
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
