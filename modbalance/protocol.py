"""One way to use every balancer: call it on the features, then `backward`, then `step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, nn

from modbalance.checks import Presence, check_inputs, given
from modbalance.output import no_tensor

__all__ = ["Balancer", "BalancerOutput"]

Scale = Callable[[Tensor], Tensor]


class HasLoss(Protocol):
    @property
    def loss(self) -> Tensor: ...


class Balancer(nn.Module):
    """What every balancer answers to, three lines in a loop that are the same for all of them.

    | line | what it does |
    |---|---|
    | `out = balance(features, target, present)` | `out.features` is what you fuse, `out.loss` the term to add |
    | `balance.backward(loss, out)` | in place of `loss.backward()` |
    | `balance.step()` | changes the gradients, after `unscale_`, before clipping and `optimizer.step()` |

    A method hooks in by one of the three. `backward` is `(loss + out.loss).backward()` unless a solver combines the
    losses, and `step` does nothing unless the method changes gradients: leave out the lines that your method does
    not need. Balancers with heads of their own have parameters: hand `balance.parameters()` to the optimiser.

    Gradients may be accumulated: call and `backward` for every micro-batch, `step` once. The term of a balancer is
    a mean, so divide it as you divide your loss: `scale=lambda x: x / 4`.

    By itself it is joint training: no term, features as they came, gradients as they are.

    Examples:
        >>> balance, z = Balancer(), torch.ones(2, 3, requires_grad=True)
        >>> out = balance({"audio": z})
        >>> balance.backward(out.features["audio"].sum(), out, scale=lambda x: x / 4)
        >>> balance.step()
        >>> z.grad[0]
        tensor([0.2500, 0.2500, 0.2500])
    """

    solver = False  # whether `backward` combines gradients, so that no loss could take its place

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> Any:
        features = given(features)
        if not isinstance(features, Mapping) or not features:
            check_inputs(type(self).__name__, features, None)  # one clear error
        return BalancerOutput(no_loss(features), {}, features)

    def total(self, loss: Tensor, out: HasLoss) -> Tensor:
        """The loss to differentiate, for trainers that call `backward` themselves.

        Args:
            loss: of the fused outputs, a scalar.
            out: what this balancer returned for the batch.
        """
        return loss + out.loss

    def backward(self, loss: Tensor, out: HasLoss, *, scale: Scale | None = None) -> None:
        """In place of `loss.backward()`.

        Args:
            loss: of the fused outputs, a scalar.
            out: what this balancer returned for the batch.
            scale: applied to every loss before it is differentiated, and linear: `scaler.scale` of a `GradScaler`, or
                a division by the number of micro-batches.
        """
        total = self.total(loss, out)
        (total if scale is None else scale(total)).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Change the gradients: after `backward`, before clipping and the optimiser's step."""


@no_tensor
class BalancerOutput(NamedTuple):
    """What a balancer returns.

    Attributes:
        loss: the term to add to your own, a scalar; 0 where the method adds none.
        losses: a modality's own loss by name, scalars, unweighted; empty where the method has none.
        features: what to fuse, by modality.

    Examples:
        >>> BalancerOutput(torch.tensor(0.3), {"audio": torch.tensor(0.3)}, {}).scalars()
        {'loss': tensor(0.3000), 'loss/audio': tensor(0.3000)}
    """

    loss: Tensor
    losses: dict[str, Tensor]
    features: dict[str, Tensor]

    def scalars(self) -> dict[str, Tensor]:
        """The scalar terms by name, detached, for any logger."""
        return {"loss": self.loss.detach(), **_own(self.losses)}


class CombinedOutput(NamedTuple):
    """Of a method without a term of its own: its losses go through `backward`, or `total`."""

    losses: dict[str, Tensor]
    features: dict[str, Tensor]
    remedy: str

    @property
    def loss(self) -> NoReturn:
        raise TypeError(f"out.loss: this method has no term to add to your loss; {self.remedy}.")

    def scalars(self) -> dict[str, Tensor]:
        """The scalar terms by name, detached, for any logger."""
        return _own(self.losses)


def _own(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"loss/{name}": loss.detach() for name, loss in losses.items()}


def no_loss(features: dict[str, Tensor]) -> Tensor:
    """A zero on the device of the features, of their precision but float32 at least."""
    like = next(iter(features.values()))
    return torch.zeros((), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
