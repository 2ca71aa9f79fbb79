"""The models: labels never reach the predictions, absent modalities, padding, stages."""

import copy
from dataclasses import replace

import pytest
import torch

from ebmc_msa.data import synthetic
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.missing import restrict
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.predict import answers, predict
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.encoders import encode
from ebmc_msa.model.ensemble import FUSED, Mixture, TrustEnsemble
from ebmc_msa.model.settings import Settings
from ebmc_msa.training import checkpoint
from ebmc_msa.training.stages import train
from modbalance import EnergyCoordinator
from modbalance.functional import scale_temperature
from modbalance.presence import select


@pytest.fixture(scope="module")
def split():
    dataset = synthetic(n=(64, 32, 32))
    spec = Spec.of(dataset)
    return spec, *(
        SplitView.of(dataset.splits[name], spec, torch.device("cpu")) for name in ("train", "valid", "test")
    )


@pytest.fixture(scope="module")
def trained(split):
    spec, train_split, valid, _ = split
    torch.manual_seed(0)
    model, scores = EBMC(spec, Settings(stage1_epochs=2, stage2_epochs=2, warmup_steps=0)), [0.9, 0.8, 0.7, 0.6]
    with pytest.MonkeyPatch.context() as patch:  # else it is chance whether the second stage is undone
        patch.setattr("ebmc_msa.training.stages.evaluate", lambda *_: {"mae": scores.pop(0), "loss": 1.0})
        return train(model, train_split, valid, model.settings, 0, lambda *_: None)


@pytest.fixture(scope="module")
def balanced(trained):
    return trained.model.eval()


def test_target_changes_no_output(balanced, split):
    batch = split[3].rows(torch.arange(32))
    with torch.no_grad():
        seen = balanced(batch)
        assert torch.equal(seen.outputs, balanced(replace(batch, target=None)).outputs)
    assert seen.loss > 0


@pytest.mark.parametrize("kind", [EBMC, Concat])
def test_absent_modalities_and_padding_change_nothing(kind, split):
    spec, _, _, batch = split
    torch.manual_seed(0)
    model = kind(spec, Settings()).eval()
    batch = batch.with_present(restrict(batch.present, ("text", "audio")))
    expected = predict(model, batch).outputs
    poisoned = {name: x.clone() for name, x in batch.features.items()}
    poisoned["vision"].fill_(float("nan"))
    for i, length in enumerate(batch.lengths["text"]):
        poisoned["text"][i, length:] = float("nan")
    other = replace(batch, features=poisoned)
    assert torch.equal(predict(model, other).outputs, expected)


def test_enhanced_features_reach_the_head(balanced, split):
    batch = split[3]
    before = predict(balanced, batch).outputs
    enhance = balanced.student.enhance
    state = {k: v.clone() for k, v in enhance.state_dict().items()}
    for p in enhance.parameters():
        torch.nn.init.normal_(p.data)
    assert not torch.allclose(predict(balanced, batch).outputs, before, atol=1e-2)
    enhance.load_state_dict(state)


def test_in_joint_training_features_are_fused_as_in_a_concatenation(split, tmp_path):
    """At strength 0: no rebuilt features and equal weights, in training, on validation and in a copy that is read."""
    spec, *_, test = split
    batch, settings = test.rows(torch.arange(32)), Settings(dropout=0.0, encoder="mean")
    torch.manual_seed(0)
    model = EBMC(spec, settings).eval()
    model.strength, model.log_trust = 0.0, {"text": 0.0, "audio": -1.0, "vision": -2.0}
    checkpoint.save(tmp_path / "ebmc-0.pt", "ebmc", 0, model, settings)
    with torch.no_grad():
        mixed = {name: 2 * model.mix[name](x / 2) for name, x in encode(model.encoders, batch).items()}
        expected = model.head(sum(select(x, batch.present[name]) for name, x in mixed.items()))
        for ebmc in (model, checkpoint.read(tmp_path / "ebmc-0.pt", torch.device("cpu"))[2]):
            for outputs in (ebmc.answer(batch), ebmc(batch).outputs, ebmc.train()(batch).outputs):
                torch.testing.assert_close(outputs, expected)
            ebmc.eval().strength = 1.0
            assert not torch.allclose(ebmc.answer(batch), expected, atol=1e-3)


def test_trust_is_exact_over_present_modalities(balanced, split):
    batch = split[3].with_present(restrict(split[3].present, ("audio", "vision")))
    trust = predict(balanced, batch).trust
    assert (trust["text"] == 0).all()
    some = batch.present["audio"] | batch.present["vision"]
    torch.testing.assert_close(sum(trust.values()), some.float())


def test_fusion_weighs_by_trust_on_held_out_data(balanced, split):
    spec, _, valid, _ = split
    trust = predict(balanced, valid).trust
    present = valid.present
    # tempered by the trust in the stage-1 model: at 1 the weights stay even
    temper = 1 - balanced.student.fused_trust
    means = {name: trust[name][present[name]].mean() ** temper for name in spec.dims}
    weights = balanced.student.fusion_weights(present)
    whole = torch.stack(list(present.values())).all(0)
    for name, weight in weights.items():
        assert (weight[~present[name]] == 0).all()
        expected = 3 * means[name] / sum(means.values())
        torch.testing.assert_close(weight[whole], expected.expand(int(whole.sum())))
    torch.manual_seed(0)
    even = EBMC(spec, Settings()).fusion_weights(present)
    assert all((weight[whole] == weight[whole][0]).all() for weight in even.values())
    assert even["text"][whole][0] == pytest.approx(1)


def test_trust_in_the_stage_1_model_tempers_what_trust_in_modalities_does(trained, split):
    """The formula anew: mean trust among the calibrated teachers and the calibrated stage-1 model."""
    spec, _, valid, _ = split
    student, stage1 = trained.student.eval(), trained.stage1
    batch = valid.rows(torch.arange(len(valid)))
    with torch.no_grad():
        outputs = student.teachers(batch).outputs
        fused = stage1(batch).outputs
    residual = (fused[:, 0] - batch.target) ** 2 / fused[:, 1].exp()
    outputs["fused"] = torch.stack([fused[:, 0], fused[:, 1] + residual.mean().log()], 1)
    present = {**batch.present, "fused": torch.ones(len(valid), dtype=torch.bool)}
    expected = student.distill.trust(outputs, None, present)["fused"].mean()
    assert 0 < student.fused_trust < 1
    assert student.fused_trust == pytest.approx(expected.item(), rel=1e-3)
    copy = EBMC(spec, student.settings)
    copy.load_state_dict(student.state_dict())
    assert copy.fused_trust == student.fused_trust


@pytest.mark.parametrize("settings", [{}, {"order": "balance-enhance"}, {"without": ("imtd",)}], ids=str)
@pytest.mark.parametrize("scores", [(0.9, 0.5, 0.8, 0.6), (0.9, 0.5, 0.8, 0.5)], ids=["worse", "as good"])
def test_a_second_stage_that_is_nowhere_as_good_is_undone(scores, settings, split, monkeypatch, tmp_path):
    spec, train_split, valid, test = split
    settings = Settings(stage1_epochs=2, stage2_epochs=2, warmup_steps=0, **settings)
    saved = []

    def run(model, told, state=None):
        monkeypatch.setattr("ebmc_msa.training.stages.evaluate", lambda *_: {"mae": told.pop(0), "loss": 1.0})
        keep = {"save": lambda state: saved.append(copy.deepcopy(state)), "state": state}
        return train(model, train_split, valid, settings, 0, lambda *_: None, **keep)

    torch.manual_seed(0)
    model = EBMC(spec, settings)
    start, trained = copy.deepcopy(model), run(model, list(scores))
    undone = scores[-1] > 0.5
    assert [(stage.epoch, stage.undone) for stage in trained.stages] == [(2, False), (2, undone)]
    batch = test.rows(torch.arange(32))
    resumed = run(start, list(scores[3:]), saved[2])  # in the middle of the second stage
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).outputs, trained.stage1(batch).outputs) == undone
        expected = trained.model.eval()(batch).outputs
        assert torch.equal(resumed.model.eval()(batch).outputs, expected)
        checkpoint.save(tmp_path / "ebmc-0.pt", "ebmc", 0, trained.model, settings)
        read = checkpoint.read(tmp_path / "ebmc-0.pt", torch.device("cpu"))[2]
        assert torch.equal(read(batch).outputs, expected)


def test_in_a_single_stage_the_fusion_stays_as_it_was_trained(split):
    spec, train_split, valid, test = split
    torch.manual_seed(0)
    model = EBMC(spec, Settings(stage1_epochs=1, stage2_epochs=1, order="joint"))
    trained = train(model, train_split, valid, model.settings, 0, lambda *_: None)
    batch = test.rows(torch.arange(32))
    with torch.no_grad():
        assert torch.equal(trained.student.eval()(batch).outputs, trained.stage1(batch).outputs)


@pytest.mark.parametrize("names", [("text", "audio", "vision"), ("audio",), ()])
def test_the_answer_is_the_prediction_without_the_experts_that_do_not_count(names, balanced, split):
    batch = split[3].rows(torch.arange(32))
    batch = batch.with_present(restrict(batch.present, names))
    kept, calls = dict(balanced.mixtures), []
    handles = [
        teacher.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, teacher in balanced.student.teachers.branches.items()
    ]
    try:
        with torch.no_grad():
            torch.testing.assert_close(balanced.answer(batch), balanced(batch).outputs)
            balanced.mixtures = dict.fromkeys(kept, Mixture(1.0, 0.5, {"audio": 0.0, FUSED: 0.0}))
            calls.clear()
            answer = balanced.answer(batch)
            assert set(calls) <= {"audio"}
            torch.testing.assert_close(answer, balanced(batch).outputs)
    finally:
        balanced.mixtures = kept
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("settings", [{}, {"without": ("cce",)}, {"order": "balance-enhance"}], ids=str)
def test_the_answer_of_both_stages_is_the_output_to_the_bit(settings, split):
    spec, train_split, valid, _ = split
    torch.manual_seed(0)
    model = EBMC(spec, Settings(**settings)).eval()
    batch = split[3].rows(torch.arange(32))
    rows = torch.arange(32)
    present = {name: rows % (i + 2) != 0 for i, name in enumerate(spec.dims)}  # row 0 has nothing
    batch = batch.with_present(present)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(model.answer(batch), model(batch).outputs)
            assert torch.equal(model.answer(batch), answers(model, replace(split[3], present=present)))
        model.start_balancing(train_split, valid, {})
        model.eval()


def test_a_teacher_reads_only_the_rows_that_have_its_modality(balanced, split):
    batch = split[2].rows(torch.arange(16))
    here = torch.arange(16) % 3 == 0
    batch = batch.with_present({**batch.present, "text": here})
    branch, seen = balanced.student.teachers.branches["text"], []
    handle = branch.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        outputs = balanced.student.teachers.predict("text", batch)
        whole = branch(batch.features["text"], batch.lengths["text"])
        handle.remove()
        nothing = balanced.student.teachers.predict(
            "text", batch.with_present({**batch.present, "text": here & ~here})
        )
    assert seen[0] == here.sum()
    torch.testing.assert_close(outputs[here], whole[here])
    assert not outputs[~here].any()
    assert not nothing.any()
    assert nothing.shape == whole.shape


def test_nothing_present_gives_a_number(balanced, split):
    batch = split[3].with_present(restrict(split[3].present, ()))
    assert torch.isfinite(predict(balanced, batch).outputs).all()


def test_batch_of_one_trains(split):
    spec, train_split, _, _ = split
    model = EBMC(spec, Settings())
    model.start_balancing(train_split, train_split, {})
    model(train_split.rows(torch.tensor([0]))).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_teachers_do_not_drift(balanced, split):
    batch = split[1].rows(torch.arange(64))
    teachers = balanced.student.teachers
    before = teachers.predict("text", batch).clone()
    optimizer = torch.optim.SGD(balanced.parameters(), lr=0.1)
    balanced.train()
    balanced(batch).loss.backward()
    optimizer.step()
    balanced.train()
    assert torch.equal(teachers.predict("text", batch), before)


def test_teachers_are_kept_at_their_own_best_epochs(split):
    spec, train_split, valid, _ = split
    torch.manual_seed(0)
    model = EBMC(spec, Settings(stage1_epochs=3, stage2_epochs=0, warmup_steps=0))
    best = {}

    def save(state):
        for name, (score, weights) in state["branches"].items():
            if name not in best or score > best[name][0]:
                best[name] = score, {k: v.clone() for k, v in weights.items()}

    train(model, train_split, valid, model.settings, 0, lambda *_: None, save=save)
    settings = replace(model.settings, stage2_epochs=1)
    torch.manual_seed(0)
    ebmc = train(EBMC(spec, settings), train_split, valid, settings, 0, lambda *_: None).student
    assert best.keys() == spec.dims.keys()
    for name, (_, weights) in best.items():
        kept = ebmc.teachers.branches[name].copy.state_dict()
        assert all(torch.equal(x, kept[key]) for key, x in weights.items())


@pytest.mark.parametrize("names", [("text", "audio", "vision"), ("audio",)])
def test_the_prediction_is_the_mixture_of_all_experts(names, balanced, split):
    shown = split[3].with_present(restrict(dict.fromkeys(split[3].present, torch.ones(32, dtype=torch.bool)), names))
    got = predict(balanced, shown)
    batch = shown.rows(torch.arange(32))
    student, temperatures = balanced.student, balanced.temperatures()
    with torch.no_grad():
        raw = {name: student.teachers.predict(name, batch) for name in split[0].dims}
        raw[FUSED] = student(batch).outputs
        scores = {
            name: score(batch.features[name], batch.lengths[name]) for name, score in student.teachers.ood.items()
        }
    experts = {name: scale_temperature("gaussian", x, temperatures[name]) for name, x in raw.items()}
    present = batch.present | {FUSED: torch.ones(32, dtype=torch.bool)}
    expected = balanced.mixtures[names]("gaussian", experts, present, scores)
    torch.testing.assert_close(expected, got.outputs, atol=1e-5, rtol=1e-5)


def test_without_weight_emc_moves_nothing_but_its_probes(split):
    spec, train_split, valid, _ = split
    batch, grads, fits = train_split.rows(torch.arange(32)), {}, {}
    for name, settings in {"0": Settings(), "none": Settings(without=("emc",)), "paper": Settings(gamma=0.1)}.items():
        torch.manual_seed(0)
        model = EBMC(spec, settings)
        model.start_balancing(train_split, valid, {})
        torch.manual_seed(0)
        out = model.train()(batch)
        out.loss.backward()
        grads[name] = torch.cat([p.grad.flatten() for p in model.encoders.parameters()])
        fits[name] = "fit" in out.terms
    torch.testing.assert_close(grads["0"], grads["none"])
    assert not torch.allclose(grads["paper"], grads["none"], atol=1e-6)
    assert fits == {"0": True, "none": False, "paper": True}


def test_weights_of_emc_come_from_validation_and_are_recorded(split, monkeypatch):
    spec, train_split, valid, _ = split
    seen, saved, observe = [], [], EnergyCoordinator.observe

    def watched(self, features, target, present):
        seen.append(target)
        observe(self, features, target, present)

    def run(state=None):
        torch.manual_seed(0)
        settings = Settings(stage1_epochs=1, stage2_epochs=4, warmup_steps=0, gamma=0.5, observe=True, lr=0.03)
        model = EBMC(spec, settings)
        keep = None if state else lambda state: saved.append(copy.deepcopy(state))
        return train(model, train_split, valid, model.settings, 0, lambda *_: None, save=keep, state=state).stages

    monkeypatch.setattr(EnergyCoordinator, "observe", watched)
    monkeypatch.setattr(EBMC, "finalize", lambda self, *_: self)
    first, second = run()
    assert not any(epoch["weight"] for epoch in first.history)
    weights = [epoch["weight"] for epoch in second.history]
    assert weights[0] == dict.fromkeys(spec.dims, 1.0)
    assert min(weight for epoch in weights for weight in epoch.values()) < 1
    expected = valid.target.repeat(len(weights))  # and nothing else
    assert torch.equal(torch.cat(seen).sort().values, expected.sort().values)
    resumed = run(saved[len(first.history) + 1])  # in the middle of the second stage
    assert [epoch["weight"] for epoch in resumed[1].history] == weights
    assert resumed[1].history[-1]["valid"] == second.history[-1]["valid"]


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("enhance-balance", {"enhance": {"alignment", "reconstruction"}}),
        ("balance-enhance", {"balance": {"gap", "descent"}}),
        ("joint", {"joint": {"alignment", "reconstruction", "gap", "descent"}}),
    ],
)
def test_order_of_the_stages(order, first, split):
    spec, train_split, valid, _ = split
    torch.manual_seed(0)
    model = EBMC(spec, Settings(stage1_epochs=1, stage2_epochs=1, order=order, gamma=0.1))
    trained = train(model, train_split, valid, model.settings, 0, lambda *_: None)
    stages = trained.stages
    assert "-".join(stage.name for stage in stages) == order
    (name, terms), *_ = first.items()
    assert stages[0].name == name
    assert terms <= stages[0].history[0]["train"].keys()
    assert trained.stage1.teachers is None
    assert set(model.teachers.branches) == set(spec.dims)
    assert isinstance(trained.model, TrustEnsemble)
    assert len(trained.model.mixtures) == 7
    both = {"alignment", "reconstruction", "gap", "descent"}
    assert both <= stages[-1].history[0]["train"].keys()
    assert ("distillation" in stages[-1].history[0]["train"]) == (order != "joint")
