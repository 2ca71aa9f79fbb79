"""From outputs for every coalition and features to a diagnosis."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modbalance.diagnostics.calibration import calibration_error, gaussian_coverage
from modbalance.diagnostics.contribution import imbalance
from modbalance.diagnostics.diagnosis import Diagnosis
from modbalance.diagnostics.probe import probe_outputs
from modbalance.diagnostics.score import constant_outputs, jackknife
from modbalance.functional.energy import energy
from modbalance.shapley import modality_subsets, sample_orders, sampled_shapley_values, shapley_values
from modbalance.tasks import Task, task_loss, task_uncertainty

OWNER = "ModalityMonitor"


@dataclass(frozen=True)
class Measure:
    """What a monitor measures; the arguments are those of `ModalityMonitor`."""

    modalities: tuple[str, ...]
    num_outputs: int
    task: Task
    score: Callable[[Tensor, Tensor], float]
    orders: int | None
    alpha: float
    beta: float
    gamma: float

    @property
    def coalitions(self) -> list[tuple[str, ...]]:
        """All that `predict` is asked for: every one, or with `orders` those that they, alone and drop need."""
        if self.orders is None:
            return modality_subsets(self.modalities)
        names = self.modalities
        needed = set(modality_subsets(names, {1, len(names) - 1, len(names)}))
        for order in sample_orders(names, self.orders):
            needed |= {tuple(m for m in names if m in order[:size]) for size in range(1, len(order))}
        return sorted(needed, key=lambda s: (len(s), [names.index(m) for m in s]))

    @torch.no_grad()
    def __call__(self, seen: dict[str, Tensor], gradient: dict[str, float]) -> Diagnosis:
        """The diagnosis of the rows seen, by `key`."""
        target, present = seen["target"], seen["present"]
        there = dict(zip(self.modalities, present.unbind(1), strict=True))
        ignored = self._ignored(seen, there)
        present_at_all = [m for m in self.modalities if bool(there[m].any())]
        blind = bool(present_at_all) and set(ignored) == set(present_at_all)
        if blind:
            warnings.warn(
                f"{OWNER}: predict gave the same outputs for every coalition, so there is no verdict: imbalance, "
                "Shapley values, alone and drop are NaN. Leave out what present marks as absent, for example by "
                "select(z[name], present[name]).",
                stacklevel=3,
            )
        constant = constant_outputs(self.task, target, self.num_outputs).expand(len(target), -1)

        outputs = {}
        for coalition in self.coalitions:
            something = torch.stack([there[m] for m in coalition]).any(0)
            outputs[coalition] = torch.where(something[:, None], seen[key("outputs", *coalition)], constant)
        worth = {
            coalition: self.score(predicted, target) for coalition, predicted in {(): constant, **outputs}.items()
        }
        everything = self.modalities
        if blind:
            worth = {s: x if s in ((), everything) else math.nan for s, x in worth.items()}
        shapley, errors = self._shapley(worth)
        if blind:
            shapley = dict.fromkeys(everything, math.nan)
        removed = {m: tuple(n for n in everything if n != m) for m in everything}
        if not blind:
            full = outputs[everything]
            errors["drop"] = {m: self._error_between(full, outputs[removed[m]], target) for m in everything}

        probes = self._probes(seen, "features", there)
        found = self._probes(seen, "alone", there)
        probe = {m: self._score(predicted, target[there[m]]) for m, predicted in probes.items()}
        reference = {m: self._score(predicted, target[there[m]]) for m, predicted in found.items()}
        errors |= self._probe_errors(probes, found, {m: outputs[(m,)][there[m]] for m in everything}, target, there)
        return Diagnosis(
            score=worth[everything],
            imbalance=imbalance(shapley),
            shapley=shapley,
            alone={
                m: math.nan if blind else self._score(outputs[(m,)][there[m]], target[there[m]]) for m in everything
            },
            drop={m: worth[everything] - worth[removed[m]] for m in everything},
            probe=probe,
            reference=reference,
            lag={m: x - probe[m] for m, x in reference.items() if m in probe},
            energy={
                m: self._energy(seen[key("features", m)][there[m]], predicted, target[there[m]])
                for m, predicted in probes.items()
            },
            gradient=gradient,
            calibration=self._calibration(
                {"all": (outputs[everything], target)}
                | {m: (outputs[(m,)][there[m]], target[there[m]]) for m in everything if not blind}
            ),
            coalitions=worth,
            errors={name: figures for name, figures in errors.items() if figures},
            ignored=tuple(ignored),
        )

    def _shapley(self, worth: dict[tuple[str, ...], float]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Values, and their standard errors where they are estimates."""
        if self.orders is None:
            return shapley_values(worth.__getitem__, self.modalities), {}
        values, errors = sampled_shapley_values(worth.__getitem__, self.modalities, orders=self.orders)
        return values, {"shapley": errors}

    def _ignored(self, seen: dict[str, Tensor], there: dict[str, Tensor]) -> list[str]:
        """The modalities, present somewhere, whose removal changes no output."""
        known = set(self.coalitions)
        ignored = []
        for m in self.modalities:
            rest = [(s, tuple(n for n in s if n != m)) for s in self.coalitions if m in s]
            pairs = [(key("outputs", *s), key("outputs", *t)) for s, t in rest if t in known]
            if bool(there[m].any()) and all(torch.equal(seen[a][there[m]], seen[b][there[m]]) for a, b in pairs):
                ignored.append(m)
        return ignored

    def _error_between(self, better: Tensor, worse: Tensor, target: Tensor) -> float:
        """Standard error over samples of the difference of two scores."""

        def difference(rows: Tensor) -> float:
            return self.score(better[rows], target[rows]) - self.score(worse[rows], target[rows])

        return jackknife(difference, len(target))

    def _probe_errors(
        self,
        probes: dict[str, Tensor],
        references: dict[str, Tensor],
        alone: dict[str, Tensor],
        target: Tensor,
        there: dict[str, Tensor],
    ) -> dict[str, dict[str, float]]:
        """Standard errors of the lag and of what the fused model leaves unused, over samples."""

        def between(better: dict[str, Tensor], worse: dict[str, Tensor]) -> dict[str, float]:
            errors = {}
            for m in (m for m in better if m in worse):
                y = target[there[m]]
                if len(better[m]) == len(worse[m]) == len(y):
                    errors[m] = self._error_between(better[m], worse[m], y)
            return errors

        return {"lag": between(references, probes), "unused": between(probes, alone)}

    def _score(self, outputs: Tensor, target: Tensor) -> float:
        return self.score(outputs, target) if len(outputs) else float("nan")

    def _probes(self, seen: dict[str, Tensor], kind: str, there: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-fitted probe outputs of the present rows, none for a modality with fewer than two of them."""
        target, found = seen["target"], {}
        for m in self.modalities:
            if key(kind, m) in seen:
                x, y = seen[key(kind, m)][there[m]], target[there[m]]
                found[m] = (
                    probe_outputs(self.task, x, y, self.num_outputs) if len(x) > 1 else seen[key("outputs", m)][:0]
                )
        return found

    def _energy(self, z: Tensor, outputs: Tensor, target: Tensor) -> float:
        loss, uncertainty = task_loss(self.task, outputs, target), task_uncertainty(self.task, outputs)
        weights = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        return energy(z[: len(outputs)], loss, uncertainty, normalize=True, **weights).mean().item()

    def _calibration(self, predicted: dict[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
        if self.task == "regression":
            return {}
        if self.task == "gaussian":
            nll = {m: task_loss("gaussian", *pair).mean().item() for m, pair in predicted.items()}
            return {"nll": nll, "coverage": {m: gaussian_coverage(*pair) for m, pair in predicted.items()}}
        return {"ece": {m: calibration_error(self.task, *pair) for m, pair in predicted.items()}}


def key(kind: str, *modalities: str) -> str:
    return ".".join([kind, *modalities])  # no modality has a dot in its name
