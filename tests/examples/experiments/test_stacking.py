"""The composite: held-out mixing weights against a search, and a mixture for every set of modalities."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.missing import restrict
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.predict import predict
from ebmc_msa.experiments.stacking import fit_stacking, mixing_weights
from ebmc_msa.model.settings import Settings

SPEC = Spec("classes", {"good": 4, "noise": 4}, (), 3)


def split(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (rows,), generator=generator)
    noise = torch.randn(rows, 4, generator=generator)
    good = torch.eye(4)[target] * 2 + torch.randn(rows, 4, generator=generator)
    present = {name: torch.ones(rows, dtype=torch.bool) for name in SPEC.dims}
    present["noise"][::5] = False
    features = {"good": good, "noise": noise}
    return SplitView(features, torch.arange(rows), {}, present, target, torch.device("cpu"))


@pytest.fixture(scope="module")
def composite():
    torch.manual_seed(0)
    settings = Settings(stage1_epochs=4, stage2_epochs=0, dim=8, batch_size=16, lr=1e-2)
    return fit_stacking(SPEC, settings, split(90, 0), split(60, 1), 0)


def simplex(steps):
    for i in range(steps + 1):
        for j in range(steps + 1 - i):
            yield torch.tensor([i, j, steps - i - j], dtype=torch.float64) / steps


@pytest.mark.parametrize("task", ["classification", "gaussian"])
def test_mixing_weights_are_the_best_on_the_simplex(task):
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(4, (80,), generator=generator)
    if task == "classification":
        useful = torch.eye(4)[target] * 1.5
        said = torch.stack([useful, useful * 0.5, torch.zeros(80, 4)]) + torch.randn(3, 80, 4, generator=generator)
        said = said.log_softmax(-1).double()
    else:
        target = target.float()
        said = target[None, :, None] + torch.tensor([0.5, 1.0, 3.0])[:, None, None] * torch.randn(
            3, 80, 2, generator=generator
        )
        said = said.double()

    def loss(w):
        mixed = torch.tensordot(w, said, 1)
        return cross_entropy(mixed, target) if task == "classification" else ((mixed[:, 0] - target) ** 2).mean()

    found = mixing_weights(task, said, target)
    assert found.sum().item() == pytest.approx(1)
    assert (found >= 0).all()
    assert loss(found.double()) <= min(loss(w) for w in simplex(60)) + 1e-6


def test_mixing_weights_without_samples_are_equal():
    assert mixing_weights("gaussian", torch.zeros(4, 0, 2), torch.zeros(0)).tolist() == [0.25] * 4


def test_each_set_of_modalities_has_its_own_mixture(composite):
    assert set(composite.epochs) == {("good",), ("noise",), ("good", "noise")}
    assert composite.weights_for(("noise",)).tolist() == [0, 1, 0]
    everything = composite.weights_for(("good", "noise"))
    assert everything.sum().item() == pytest.approx(1)
    assert everything[1] < 0.1


def test_a_missing_modality_changes_nothing_beyond_its_absence(composite):
    data = split(30, 2).rows(torch.arange(30))
    hidden = data.with_present(restrict(data.present, ("good",)))
    poisoned = Batch({**hidden.features, "noise": torch.full((30, 4), 1e4)}, {}, hidden.present, hidden.target)
    said = predict(composite, hidden).outputs
    assert torch.equal(said, predict(composite, poisoned).outputs)
    torch.testing.assert_close(said, composite.members(hidden)[0])
    rows = ~data.present["noise"]
    torch.testing.assert_close(predict(composite, data).outputs[rows], said[rows])


def test_nothing_present_gives_a_number(composite):
    data = split(8, 4).rows(torch.arange(8))
    assert torch.isfinite(predict(composite, data.with_present(restrict(data.present, ()))).outputs).all()
