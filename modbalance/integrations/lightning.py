"""Lightning callbacks: a `ModalityMonitor` on the validation loop, and the step of a balancer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from modbalance.diagnostics import Diagnosis, ModalityMonitor
from modbalance.integrations import check_steps
from modbalance.protocol import Balancer

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_info
except ImportError as problem:
    raise ImportError(
        "modbalance.integrations.lightning: lightning is not installed, expected version 2.4 or later; run "
        'pip install "lightning>=2.4".'
    ) from problem

__all__ = ["BalancerCallback", "MonitorCallback"]


class BalancerCallback(Callback):
    """Calls `step()` of a balancer when the gradients are unscaled and not yet clipped.

    `training_step` returns the loss with the balancer's term: `balance.total(loss, out)`. Methods that only add a
    loss term do not need the callback and may have it.

    Args:
        balance: the balancer that the module calls.

    Raises:
        TypeError: the balancer is a solver, such as `MMPareto`: it takes the place of `loss.backward()`.

    Examples:
        >>> from modbalance.balancers import UnimodalLosses
        >>> callback = BalancerCallback(UnimodalLosses({"audio": 8, "video": 5}, 3))  # Trainer(callbacks=[callback])
    """

    def __init__(self, balance: Balancer) -> None:
        check_steps(balance, "set automatic_optimization = False and call balance.backward(loss, out)")
        self.balance = balance

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.balance.step()


class MonitorCallback(Callback):
    """Updates a monitor with every validation batch, and logs its scalars by `LightningModule.log_dict`.

    So they reach whatever logger the trainer has: TensorBoard, W&B, MLflow. Lightning has put the model into eval
    mode and switched gradients off. The sanity check before training is left out. `monitor.history` keeps one
    diagnosis an epoch.

    Args:
        monitor: what measures.
        update: `(monitor, module, batch)`: calls `monitor.update(predict, features, target, ...)` for your model.
        encoders: `module` to its encoders by modality, for the share of the gradient; left out by default.
        prefix: of the names that are logged.
        verdict: print the verdict in words after each validation, on one process.

    Examples:
        >>> monitor = ModalityMonitor(["audio", "video"], num_outputs=3)
        >>> def update(monitor, module, batch):
        ...     inputs, target = batch
        ...     monitor.update(module.fuse, module.encode(inputs), target)
        >>> callback = MonitorCallback(monitor, update)  # Trainer(callbacks=[callback])
        >>> callback.prefix
        'balance/'
    """

    def __init__(
        self,
        monitor: ModalityMonitor,
        update: Callable[[ModalityMonitor, Any, Any], None],
        *,
        encoders: Callable[[Any], Mapping[str, nn.Module]] | None = None,
        prefix: str = "balance/",
        verdict: bool = False,
    ) -> None:
        self.monitor, self.update, self.encoders = monitor, update, encoders
        self.prefix, self.verdict = prefix, verdict
        self.found: Diagnosis | None = None

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.encoders is not None:
            self.monitor.update_gradients(self.encoders(pl_module))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self.update(self.monitor, pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.found = self.monitor.compute()
        # Every process has the same figures already.
        pl_module.log_dict(
            {self.prefix + name: value for name, value in self.found.scalars().items()}, sync_dist=False
        )
        if self.verdict:
            rank_zero_info(self.found.verdict())
        self.monitor.reset()
