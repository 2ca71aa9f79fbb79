"""The step of a balancer in a trainer's hook, against the three lines by hand; a solver is refused."""

import warnings

import pytest
import torch
from torch import nn

from modbalance import EnergyCoordinator
from modbalance.balancers import OGMGE, MMPareto, UnimodalLosses
from modbalance.integrations import check_steps

DIMS = {"audio": 3, "video": 3}


class TwoViews(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"audio": nn.Linear(4, 3), "video": nn.Linear(5, 3)})
        self.head = nn.Linear(6, 2)
        self.balance = OGMGE(dict(self.encoders), 2, self.fuse, alpha=0.5, noise=0.0)

    def fuse(self, z, present=None):
        return self.head(torch.cat([z["audio"], z["video"]], 1))

    def forward(self, audio, video, labels):
        out = self.balance({"audio": self.encoders["audio"](audio), "video": self.encoders["video"](video)}, labels)
        logits = self.fuse(out.features)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def sample(i):
    generator = torch.Generator().manual_seed(i)
    audio, video = torch.randn(4, generator=generator), torch.randn(5, generator=generator)
    audio[0] += 2 * (i % 2)
    return {"audio": audio, "video": video, "labels": i % 2}


DATA = [sample(i) for i in range(16)]


def by_hand(step):
    """Two steps on all of the data."""
    model, batch = TwoViews(), torch.utils.data.default_collate(DATA)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        if step:
            model.balance.step()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def check(model):
    trained, want, without = dict(model.named_parameters()), by_hand(True), by_hand(False)
    assert not all(torch.allclose(want[name], without[name], atol=1e-4) for name in want)
    for name, p in want.items():
        torch.testing.assert_close(trained[name].detach(), p, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_lightning():
    lightning = pytest.importorskip("lightning")
    from modbalance.integrations.lightning import BalancerCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = TwoViews()

        def training_step(self, batch, _):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        module = Module()
        lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[BalancerCallback(module.model.balance)],
        ).fit(module, torch.utils.data.DataLoader(DATA, batch_size=16))
    check(module.model)


@pytest.mark.slow
def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from modbalance.integrations.transformers import BalancerCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=16,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
        )
        model = TwoViews()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        callbacks = [BalancerCallback(model.balance)]
        transformers.Trainer(
            model, arguments, train_dataset=DATA, callbacks=callbacks, optimizers=(optimizer, None)
        ).train()
    check(model)


def test_a_solver_is_refused_and_nothing_else():
    check_steps(EnergyCoordinator(DIMS, 2), "")
    check_steps(UnimodalLosses(DIMS, 2), "")
    encoders = {"audio": nn.Linear(4, 3), "video": nn.Linear(5, 3)}
    with pytest.raises(
        TypeError, match=r"MMPareto combines gradients in place of loss.backward\(\).*override Trainer.training_step"
    ):
        check_steps(MMPareto(encoders, DIMS, 2), "override Trainer.training_step")
    with pytest.raises(TypeError, match=r"balance is a Linear, expected a balancer of modbalance.balancers"):
        check_steps(nn.Linear(2, 2), "")
