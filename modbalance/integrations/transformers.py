"""Callbacks of the Hugging Face `Trainer`: a `ModalityMonitor` on the evaluation set, and the step of a balancer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modbalance.diagnostics import Diagnosis, ModalityMonitor
from modbalance.integrations import check_steps
from modbalance.protocol import Balancer

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as problem:
    raise ImportError(
        "modbalance.integrations.transformers: transformers is not installed, expected version 4.50 or later; run "
        'pip install "modbalance[bert]".'
    ) from problem

__all__ = ["BalancerCallback", "MonitorCallback"]


class BalancerCallback(TrainerCallback):
    """Calls `step()` of a balancer before the optimiser's, when the gradients are unscaled and clipped.

    The model returns the loss with the balancer's term: `balance.total(loss, out)`. Methods that only add a loss term
    do not need the callback and may have it. Clipping comes first in `Trainer`: the noise of OGM-GE is not clipped.

    Args:
        balance: the balancer that the model calls.

    Raises:
        TypeError: the balancer is a solver, such as `MMPareto`: it takes the place of `loss.backward()`.

    Examples:
        >>> from modbalance.balancers import UnimodalLosses
        >>> callback = BalancerCallback(UnimodalLosses({"audio": 8, "video": 5}, 3))  # Trainer(callbacks=[callback])
    """

    def __init__(self, balance: Balancer) -> None:
        check_steps(balance, "override Trainer.training_step")
        self.balance = balance

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.balance.step()


class MonitorCallback(TrainerCallback):
    """After every evaluation, one more pass over the evaluation set for a monitor; its scalars go to `Trainer.log`.

    So they reach whatever `report_to` names: TensorBoard, W&B, MLflow; and the metrics that `evaluate()` returns. The
    extra pass is needed since a callback is shown no batch. `monitor.history` keeps one diagnosis an evaluation. On
    several processes the trainer's data loader may repeat samples to fill the last batch; they count twice.

    Args:
        trainer: the trainer that it is added to: `trainer.add_callback(MonitorCallback(trainer, monitor, update))`.
        monitor: what measures.
        update: `(monitor, model, batch)`: calls `monitor.update(predict, features, target, ...)` for your model.
        prefix: of the names that are logged. With `eval_` they are grouped with the trainer's own.
        verdict: print the verdict in words after each evaluation, on one process.

    Examples:
        >>> monitor = ModalityMonitor(["image", "text"], num_outputs=3)
        >>> def update(monitor, model, batch):
        ...     z = model.encode(batch["pixel_values"], batch["input_ids"])
        ...     monitor.update(model.fuse, z, batch["labels"])
        >>> # trainer.add_callback(MonitorCallback(trainer, monitor, update))
    """

    def __init__(
        self,
        trainer: Trainer,
        monitor: ModalityMonitor,
        update: Callable[[ModalityMonitor, Any, Any], None],
        *,
        prefix: str = "eval_balance/",
        verdict: bool = False,
    ) -> None:
        self.trainer, self.monitor, self.update = trainer, monitor, update
        self.prefix, self.verdict = prefix, verdict
        self.found: Diagnosis | None = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: nn.Module | None = None,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        model = self.trainer.model if model is None else model
        assert model is not None
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for batch in eval_dataloader:
                    self.update(self.monitor, model, batch)
        finally:
            model.train(training)
        self.found = self.monitor.compute()
        scalars = {self.prefix + name: value for name, value in self.found.scalars().items()}
        self.trainer.log(scalars)
        if metrics is not None:
            metrics.update(scalars)
        if self.verdict and state.is_world_process_zero:
            print(self.found.verdict())
        self.monitor.reset()
