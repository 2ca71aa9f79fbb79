"""What `benchmark_kernel.py` times: the penalty by double differentiation, as one would write it, and ours."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance import kernels


class Inputs(NamedTuple):
    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    target: Tensor

    def leaves(self) -> list[Tensor]:
        return [x for group in self[:3] for x in group if x.requires_grad]

    def double(self) -> "Inputs":
        groups = ([x.detach().double().requires_grad_(x.requires_grad) for x in group] for group in self[:3])
        return Inputs(*groups, self.target.double() if self.target.is_floating_point() else self.target)


Method = Callable[[Inputs], Tensor]  # to the sum over modalities of the mean penalty


def make_inputs(shape: tuple[int, ...], task: str, heads: str, device: str, dtype: torch.dtype) -> Inputs:
    batch, dim, classes, modalities = shape
    width = 2 * classes if task == "gaussian" else classes
    target = torch.randn(batch, classes, device=device)
    target = {"classification": target.argmax(-1), "multilabel": (target > 0).float()}.get(task, target)

    def leaves(*size: int, kind: torch.dtype = torch.float32, learn: bool = heads == "trained") -> list[Tensor]:
        tensors = [torch.randn(size, device=device) / size[-1] ** 0.5 for _ in range(modalities)]
        return [x.to(kind).requires_grad_(learn) for x in tensors]

    return Inputs(leaves(batch, dim, kind=dtype, learn=True), leaves(width, dim), leaves(width), target)


def energy(task: str, z: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """The sum over samples, as one would write it down."""
    z = z.to(weight.dtype)
    s = F.linear(z, weight, bias)
    if task == "classification":
        log_p = s.log_softmax(-1)
        potential = F.cross_entropy(s, y, reduction="sum") - (log_p.exp() * log_p).sum()
    elif task == "multilabel":
        entropy = F.softplus(s) - s * s.sigmoid()
        potential = F.binary_cross_entropy_with_logits(s, y, reduction="sum") + entropy.sum()
    elif task == "regression":
        potential = F.mse_loss(s, y, reduction="sum")
    else:
        mean, log_variance = s.chunk(2, -1)
        r = log_variance.clamp(-10, 10)
        loss = 0.5 * ((mean - y).square() * (-r).exp() + r + math.log(2 * math.pi))
        potential = (loss + 0.5 * (r + math.log(2 * math.pi * math.e))).sum()
    return z.square().sum() + potential


def twice(task: str, slope: Callable[..., Tensor]) -> Method:
    """The penalty by differentiating the energy, itself to be differentiated again."""

    def run(x: Inputs) -> Tensor:
        total = x.weights[0].new_zeros(())
        for z, w, b in zip(*x[:3], strict=True):
            g = slope(lambda t, w=w, b=b: energy(task, t, w, b, x.target), z)
            total = total + g.to(w.dtype).square().sum() / len(z)
        return total

    return run


def by_autograd(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return torch.autograd.grad(function(z), z, create_graph=True)[0]


def ours(task: str, backend: str) -> Method:
    return lambda x: kernels.energy_penalty(*x, task=task, backend=backend).penalty.mean(1).sum()


def gradients(method: Method, x: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(method(x), x.leaves())
