"""Encoders trained alone, for the lag: fresh copies, one modality each, a bounded number of steps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from modbalance.checks import check_positive
from modbalance.task_checks import IGNORE_INDEX, check_target, check_task
from modbalance.tasks import Task, labelled, output_width, task_loss

__all__ = ["train_alone"]

Batch: TypeAlias = tuple[Mapping[str, Any], Tensor] | tuple[Mapping[str, Any], Tensor, Mapping[str, Tensor]]


def train_alone(
    encoders: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    num_outputs: int,
    task: Task = "classification",
    *,
    steps: int = 500,
    learning_rate: float = 1e-3,
    fresh: bool = True,
    seed: int = 0,
    ignore_index: int = IGNORE_INDEX,
) -> dict[str, nn.Module]:
    """Copies of the encoders, each trained by itself with a linear head, in eval mode: `alone=` wants their features.

    An approximation: `steps` of AdamW with a constant learning rate are not your schedule. A lag under it is a lower
    bound where more steps would have trained the copy further, so raise `steps` until its probe stops rising. Your
    encoders, their gradients and torch's random numbers stay as they are.

    Args:
        encoders: by modality, `encoder(inputs[m])` to features `(B, D_m)`.
        batches: of training data, `(inputs by modality, target)` or `(inputs, target, present)` with bool `(B,)` by
            modality; gone through again until `steps` are done. A modality that is missing from the inputs, or None,
            is skipped in that batch; of one in `present` the encoder gets the present rows of all its tensors, where
            there are at least two, as a batch norm needs.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`.
        steps: updates of each copy.
        learning_rate: of AdamW.
        fresh: start from new weights, by `reset_parameters()` of every layer; False starts from the weights given,
            for encoders that were pre-trained: hand over copies from before your training.
        seed: of the new weights and whatever else is drawn.
        ignore_index: label of the rows that do not count; classification only.

    Returns:
        by modality: the trained copy, without gradients.

    Raises:
        ValueError: a layer has parameters and no `reset_parameters`, there are no batches, or a loss is not
            finite.

    Source: Wang et al., What makes training multi-modal classification networks hard?, CVPR 2020, compare with
    uni-modal training in the same way; the bound is ours.

    Examples:
        >>> encoders = {"audio": nn.Linear(4, 3), "video": nn.Linear(5, 3)}
        >>> batch = {"audio": torch.randn(8, 4), "video": torch.randn(8, 5)}, torch.arange(8) % 2
        >>> alone = train_alone(encoders, [batch], num_outputs=2, steps=5)
        >>> alone["audio"](batch[0]["audio"]).shape
        torch.Size([8, 3])
    """
    check_task("train_alone", task, num_outputs, None, ignore_index)
    check_positive("train_alone", learning_rate=learning_rate)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        copies = {name: copy.deepcopy(encoder).requires_grad_(True) for name, encoder in encoders.items()}
        if fresh:
            for name, encoder in copies.items():
                _reset(name, encoder)
        heads: dict[str, nn.Linear] = {}
        optimizers: dict[str, torch.optim.Optimizer] = {}
        for inputs, target, *rest in _cycle(batches, steps):
            for name, encoder in copies.items():
                if inputs.get(name) is None:
                    continue
                mask = rest[0].get(name) if rest else None
                x, y = inputs[name], target
                if mask is not None:
                    if mask.sum() < min(2, len(mask)):
                        continue
                    x, y = _present_rows(x, mask), target[mask]
                encoder.train()
                z = encoder(x)
                if name not in heads:
                    heads[name] = nn.Linear(z.shape[-1], output_width(task, num_outputs)).to(z)
                    parameters = [*encoder.parameters(), *heads[name].parameters()]
                    optimizers[name] = torch.optim.AdamW(parameters, lr=learning_rate)
                check_target("train_alone", task, y, len(z), num_outputs)
                losses = task_loss(task, heads[name](z), y, ignore_index=ignore_index)
                valid = labelled(task, y, num_outputs, ignore_index)
                if valid is not None and not valid.any():
                    continue
                loss = (losses if valid is None else losses[valid]).mean()
                optimizers[name].zero_grad()
                if not torch.isfinite(loss):
                    raise ValueError(
                        f"train_alone: the loss of {name!r} is {loss.item()}, expected a finite number; correct its "
                        "inputs, pass batches (inputs, target, present), or lower learning_rate."
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                optimizers[name].step()
    for encoder in copies.values():
        encoder.zero_grad(set_to_none=True)
        encoder.eval().requires_grad_(False)
    return copies


def _present_rows(x: Any, mask: Tensor) -> Any:
    """Rows of a tensor, or of each tensor in a mapping, list or tuple."""
    if isinstance(x, Tensor):
        return x[mask.to(x.device)]
    if isinstance(x, Mapping):
        return {key: _present_rows(value, mask) for key, value in x.items()}
    return type(x)(_present_rows(value, mask) for value in x) if isinstance(x, list | tuple) else x


def _cycle(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    done = 0
    while done < steps:
        before = done
        for batch in batches:
            if done == steps:
                return
            yield batch
            done += 1
        if done == before:
            raise ValueError(
                f"train_alone: batches gave {done} of {steps} batches and then none, expected something to go "
                "through again; pass a DataLoader or a list, no generator, or fewer steps."
            )


def _reset(name: str, encoder: nn.Module) -> None:
    for path, module in encoder.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"train_alone: encoders[{name!r}] has a {type(module).__name__} at {path or 'its top'!r} with "
                "parameters and no reset_parameters(), expected one to start anew; give it one, or pass fresh=False "
                "and encoders that are not trained yet."
            )
