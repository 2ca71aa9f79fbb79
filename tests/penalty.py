"""Problems that the tests of every backend of the penalty share."""

from typing import NamedTuple

import torch

from cases import CLASSES, TASKS, make_target, width

TERMS = {"alpha": 0.3, "beta": 0.8, "gamma": 0.6}
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
PRESENT = torch.tensor([[True, False, True, True], [False, False, True, True]])
OPTIONS = {
    "plain": {},
    "present": {"present": PRESENT},
    "normalize": {"normalize": True},
    "temperature": {"temperature": 2.5},
    "class_weight": {"class_weight": CLASS_WEIGHT},
    "ignore_index": {"ignore_index": 1, "present": PRESENT},
    "no_target": {"target": None},
    "no_bias": {"bias": False},
    "alpha_only": {"beta": 0.0, "gamma": 0.0},
    "beta_only": {"alpha": 0.0, "gamma": 0.0},
    "gamma_only": {"alpha": 0.0, "beta": 0.0},
}
FOR_CLASSES = {"class_weight", "ignore_index"}
CASES = [(t, o) for t in TASKS for o in OPTIONS if t == "classification" or o not in FOR_CLASSES]


class Inputs(NamedTuple):
    features: list
    weights: list
    biases: list
    target: torch.Tensor | None

    def leaves(self):
        return [x for x in (*self.features, *self.weights, *self.biases) if x is not None]

    def to(self, dtype, device=None):
        """Rounded to `dtype`, as new leaves."""

        def cast(x):
            return None if x is None else x.detach().to(device, dtype).requires_grad_()

        target = None if self.target is None else self.target.to(device)
        return Inputs(*([cast(x) for x in group] for group in self[:3]), target)


def make_inputs(task, batch=4, dims=(3, 2), classes=CLASSES, bias=True, scale=1.0, dtype=torch.float64):
    w = width(task, classes)
    raw = Inputs(
        [torch.randn(batch, d, dtype=torch.float64) for d in dims],
        [torch.randn(w, d, dtype=torch.float64) * scale for d in dims],
        [torch.randn(w, dtype=torch.float64) * scale if bias else None for _ in dims],
        make_target(task, batch, classes),
    )
    return raw.to(dtype)


def from_option(task, option):
    """Inputs and keyword arguments of one named option."""
    options = {**TERMS, **OPTIONS[option]}
    inputs = make_inputs(task, bias=options.pop("bias", True), scale=0.5)
    if option == "ignore_index":
        inputs = inputs._replace(target=torch.tensor([0, 1, 2, 1]))
    return inputs._replace(target=options.pop("target", inputs.target)), options


def random_sum(result):
    """One scalar that reaches every entry of energy and penalty with its own weight; the same each time."""
    generator = torch.Generator().manual_seed(1)
    energy, penalty = result
    a, b = (torch.randn(energy.shape, generator=generator, dtype=torch.float64).to(energy.device) for _ in range(2))
    return (a * energy).sum() + (b * penalty).sum()
