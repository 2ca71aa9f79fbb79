"""The callbacks in their own trainers, against a monitor that is updated by hand."""

import importlib
import sys
import warnings

import pytest
import torch
from torch import nn

from modbalance.diagnostics import ModalityMonitor
from modbalance.presence import select

NAMES = ("audio", "video")


class TwoViews(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(4, 3), "video": nn.Linear(5, 3)})
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 2)

    def encode(self, batch):
        return {name: self.drop(self.encoders[name](batch[name])) for name in NAMES}

    def fuse(self, z, present):
        return self.head(torch.cat([select(z[name], present[name]) for name in NAMES], 1))

    def forward(self, audio, video, labels):
        z = self.encode({"audio": audio, "video": video})
        everything = {name: torch.ones(len(labels), dtype=torch.bool) for name in NAMES}
        logits = self.fuse(z, everything)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def sample(i):
    generator = torch.Generator().manual_seed(i)
    audio, video = torch.randn(4, generator=generator), torch.randn(5, generator=generator)
    return {"audio": audio, "video": video, "labels": i % 2}


DATA = [sample(i) for i in range(22)]


def update(monitor, model, batch):
    model = getattr(model, "model", model)
    monitor.update(model.fuse, model.encode(batch), batch["labels"])


def by_hand(model):
    """Of the whole set at once, in eval mode."""
    monitor = ModalityMonitor(NAMES, 2)
    batch = torch.utils.data.default_collate(DATA)
    model.eval()
    with torch.no_grad():
        update(monitor, model, batch)
    return monitor.compute().scalars()


@pytest.mark.slow
def test_lightning(capsys):
    lightning = pytest.importorskip("lightning")
    from modbalance.integrations.lightning import MonitorCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = TwoViews()

        def training_step(self, batch, _):
            return self.model(**batch)["loss"]

        def validation_step(self, batch, _):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor = ModalityMonitor(NAMES, 2)
    callback = MonitorCallback(monitor, update, encoders=lambda module: module.model.encoders, verdict=True)
    loader = torch.utils.data.DataLoader(DATA, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            callbacks=[callback],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        trainer.fit(module, loader, loader)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("balance/")}
    expected = {f"balance/{name}": value for name, value in by_hand(module.model).items()}
    gradients = {name for name in logged if "gradient" in name}
    assert len(gradients) == 2
    assert {n: v for n, v in logged.items() if n not in gradients} == pytest.approx(expected, abs=1e-6)
    assert len(monitor.history) == 2


@pytest.mark.slow
def test_transformers(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from modbalance.integrations.transformers import MonitorCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=8,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            eval_strategy="steps",
            eval_steps=1,
            remove_unused_columns=False,
        )
        model, monitor = TwoViews(), ModalityMonitor(NAMES, 2)
        trainer = transformers.Trainer(model, arguments, train_dataset=DATA, eval_dataset=DATA)
        trainer.add_callback(MonitorCallback(trainer, monitor, update, verdict=True))
        trainer.train()
        metrics = trainer.evaluate()
    expected = {f"eval_balance/{name}": value for name, value in by_hand(model).items()}
    assert {n: v for n, v in metrics.items() if n.startswith("eval_balance/")} == pytest.approx(expected, abs=1e-6)
    logged = [entry for entry in trainer.state.log_history if "eval_balance/score" in entry]
    assert len(logged) == len(monitor.history) == 3
    assert "imbalance" in capsys.readouterr().out


@pytest.mark.parametrize("trainer", ["lightning", "transformers"])
def test_without_the_trainer_the_error_says_what_to_install(trainer, monkeypatch):
    for name in ("lightning.pytorch", trainer):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"modbalance.integrations.{trainer}", raising=False)
    with pytest.raises(
        ImportError, match=rf"modbalance.integrations.{trainer}: {trainer} is not installed.*pip install"
    ):
        importlib.import_module(f"modbalance.integrations.{trainer}")
