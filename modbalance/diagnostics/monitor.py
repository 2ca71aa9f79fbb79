"""Two lines in a training loop that tell whether one modality starves the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import Self

from modbalance.checks import check_dims, check_inputs
from modbalance.diagnostics.calibration import calibration_error, gaussian_coverage
from modbalance.diagnostics.contribution import imbalance, modality_subsets, shapley_values
from modbalance.diagnostics.diagnosis import Diagnosis
from modbalance.diagnostics.gradients import gradient_norms
from modbalance.diagnostics.probe import probe_outputs
from modbalance.diagnostics.score import constant_outputs, task_score
from modbalance.distributed import Sync, gather
from modbalance.functional.energy import energy
from modbalance.presence import absent_like, select, upcast
from modbalance.tasks import Task, check_outputs, check_target, check_task, labelled, task_loss, task_uncertainty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ModalityMonitor"]

OWNER = "ModalityMonitor"

Predict = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


class ModalityMonitor:
    r"""Find out what each modality knows, what the fused model makes of it, and what is lost on the way.

    `update` with every batch of held-out data, `compute` at the end, `reset` before the next epoch; in the training
    loop, if you like, `update_gradients` after `backward()`. The model stays as it is: `predict` says how it fuses.

    - One modality alone, the drop when one is removed and Shapley values come from the outputs for every coalition:
      2^M - 1 calls of `predict` a batch. `compute` calls nothing and keeps its result until the next update.
    - A row that a coalition leaves with nothing gets the constant guess of `constant_outputs`.
    - Probe, energy and lag come from `probe_outputs` on the features that are handed over, pooled over all updates,
      and from those of the same encoder trained alone. The energy is
      $\alpha\lVert z\rVert^2 / D + \beta\,\ell + \gamma\,u$ under the probe.
    - Held in memory: features and 2^M - 1 outputs of all held-out samples, on the device they came from.
    - On several processes `compute` is about what all of them saw together; all of them must call it.

    Args:
        modalities: their names, at least two.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        score: your own measure in place of `task_score`: `(outputs (N, width), target)` to a float, higher is
            better.
        probe: fit linear probes; without them no features are kept.
        alpha: weight of the features' size in the energy; 0.1, `EnergyCoordinator`'s.
        beta: weight of the loss in the energy; 1.
        gamma: weight of the uncertainty in the energy; 0.
        sync: True for the default process group, a process group, or False for this process alone.

    Raises:
        ValueError: a name, shape or task does not fit; `compute` before any `update`.

    Source: L. S. Shapley, 1953 (values); Guo et al., 2017 (calibration); the rest is ours.

    Examples:
        >>> features = {"audio": torch.randn(40, 8), "video": torch.randn(40, 5)}
        >>> target = (features["audio"][:, 0] > 0).long()
        >>> head = nn.Linear(13, 2)
        >>> def predict(z, present):
        ...     return head(torch.cat([select(z[name], present[name]) for name in z], 1))
        >>> monitor = ModalityMonitor(["audio", "video"], num_outputs=2)
        >>> monitor.update(predict, features, target)  # for every batch of held-out data
        >>> found = monitor.compute()
        >>> sorted(found.coalitions), found.probe["audio"] > found.probe["video"]
        ([(), ('audio',), ('audio', 'video'), ('video',)], True)
    """

    def __init__(
        self,
        modalities: Sequence[str],
        num_outputs: int,
        task: Task = "classification",
        *,
        score: Callable[[Tensor, Tensor], float] | None = None,
        probe: bool = True,
        alpha: float = 0.1,
        beta: float = 1.0,
        gamma: float = 0.0,
        sync: Sync = True,
    ) -> None:
        check_dims(OWNER, dict.fromkeys(modalities, 1))
        check_task(OWNER, task, num_outputs)
        if "all" in modalities:
            raise ValueError(
                f'{OWNER}: modalities has "all", expected other names, since it stands for the fused model; '
                "rename the modality."
            )
        self.modalities, self.num_outputs, self.task = tuple(modalities), num_outputs, task
        self.score, self.probe = score or (lambda outputs, target: task_score(task, outputs, target)), probe
        self.alpha, self.beta, self.gamma, self.sync = alpha, beta, gamma, sync
        self.coalitions = modality_subsets(self.modalities)
        self.device: torch.device | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything that was seen."""
        self._rows: dict[str, list[Tensor]] = {}
        self._gradient: Tensor | None = None
        self._found: Diagnosis | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move what was seen, and keep what will be seen, on `device`."""
        self.device = torch.device(device)
        self._rows = {name: [x.to(self.device) for x in pieces] for name, pieces in self._rows.items()}
        if self._gradient is not None:
            self._gradient = self._gradient.to(self.device)
        return self

    @torch.no_grad()
    def update_gradients(self, modules: Mapping[str, nn.Module]) -> None:
        """After `backward()`: note each modality's share of the norm of the gradient.

        Shares are averaged over steps, so that neither a loss scale nor a schedule weighs a step; a step whose
        gradients are all 0 or not finite does not count. Nothing waits for the device.

        Args:
            modules: by modality, what belongs to it alone: its encoder.
        """
        if set(modules) != set(self.modalities):
            raise ValueError(
                f"{OWNER}: modules has {sorted(modules)}, expected {sorted(self.modalities)}; "
                "pass the encoder of every modality."
            )
        found = gradient_norms(modules)
        norms = torch.stack([found[name].to(self.device) for name in self.modalities])
        total = norms.sum()
        counts = torch.isfinite(total) & (total > 0)
        step = select(torch.cat([norms / total, torch.ones_like(total)[None]]), counts.expand(len(norms) + 1))
        self._gradient = step if self._gradient is None else self._gradient + step
        self._found = None

    @torch.no_grad()
    def update(
        self,
        predict: Predict,
        features: Mapping[str, Tensor],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        *,
        alone: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take in a batch of held-out data. Put the model into eval mode before.

        Args:
            predict: `(features, present)` to outputs `(B, width)`: your fusion and head, with `present` a bool
                `(B,)` for every modality. What is not present must not be used: `select(z, present[m])` gives
                zeros in its place, the mean of the training features often is the better substitute. A model
                that starts from raw inputs may ignore the first argument and close over its batch.
            features: `(B, D_m)` by modality, as the encoders give them.
            target: as for the task's loss; rows with an ignored label do not count.
            present: bool `(B,)` by modality; a modality of `features` that is not in it is present for all.
            alone: `(B, D)` by modality, features of the same encoders trained without the others.
        """
        there = self._presence("features", features, present)
        batch = len(there[self.modalities[0]])
        check_target(OWNER, self.task, target, batch, self.num_outputs)
        rows = {"target": target, "present": torch.stack(list(there.values()), 1)}
        for coalition in self.coalitions:
            outputs = predict(features, {m: mask & (m in coalition) for m, mask in there.items()})
            check_outputs(OWNER, "predict", outputs, self.task, self.num_outputs, batch)
            rows[_key("outputs", *coalition)] = upcast(outputs)
        if self.probe:
            rows |= {_key("features", m): select(x, there[m]) for m, x in features.items()}
            if alone:
                self._presence("alone", alone, {m: there[m] for m in alone if m in there})
                rows |= {_key("alone", m): select(x, there[m]) for m, x in alone.items()}
        if self._rows and set(rows) != set(self._rows):
            raise ValueError(
                f"{OWNER}: features or alone has {sorted(set(rows) ^ set(self._rows))} in some updates only, "
                "expected the same modalities in all; mark what is absent in present."
            )
        valid = labelled(self.task, target, self.num_outputs)
        keep = slice(None) if valid is None else valid
        for name, x in rows.items():
            self._rows.setdefault(name, []).append(x[keep].to(self.device, copy=True))
        self._found = None

    def _presence(
        self, argument: str, x: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The mask of every modality, after the checks that all components share."""
        known = x if isinstance(x, Mapping) else {}
        sizes = {m: known[m].shape[-1] if m in known and known[m].dim() else 1 for m in self.modalities}
        masks = check_inputs(OWNER, x, present, sizes, argument)
        return absent_like(masks, sizes)

    def compute(self) -> Diagnosis:
        """What was found in everything seen since the last reset, by all processes together."""
        if self._found is None:
            seen = self._everything()
            with torch.autocast(seen["target"].device.type, enabled=False):
                self._found = self._diagnose(seen)
        return self._found

    def plot(self) -> Figure:
        """`modbalance.diagnostics.plot` of what was found."""
        return self.compute().plot()

    @torch.no_grad()
    def _diagnose(self, seen: dict[str, Tensor]) -> Diagnosis:
        target, present = seen["target"], seen["present"]
        there = dict(zip(self.modalities, present.unbind(1), strict=True))
        constant = constant_outputs(self.task, target, self.num_outputs).expand(len(target), -1)

        outputs = {}
        for coalition in self.coalitions:
            something = torch.stack([there[m] for m in coalition]).any(0)
            outputs[coalition] = torch.where(something[:, None], seen[_key("outputs", *coalition)], constant)
        worth = {coalition: self.score(said, target) for coalition, said in {(): constant, **outputs}.items()}
        everything = self.modalities
        shapley = shapley_values(worth.__getitem__, everything)

        probes = self._probes(seen, "features", there)
        found = self._probes(seen, "alone", there)
        probe = {m: self._score(said, target[there[m]]) for m, said in probes.items()}
        reference = {m: self._score(said, target[there[m]]) for m, said in found.items()}
        return Diagnosis(
            score=worth[everything],
            imbalance=imbalance(shapley),
            shapley=shapley,
            alone={m: self._score(outputs[(m,)][there[m]], target[there[m]]) for m in everything},
            drop={m: worth[everything] - worth[tuple(n for n in everything if n != m)] for m in everything},
            probe=probe,
            reference=reference,
            lag={m: x - probe[m] for m, x in reference.items()},
            energy={
                m: self._energy(seen[_key("features", m)][there[m]], said, target[there[m]])
                for m, said in probes.items()
            },
            gradient=self._gradient_share(constant),
            calibration=self._calibration(
                {"all": (outputs[everything], target)}
                | {m: (outputs[(m,)][there[m]], target[there[m]]) for m in everything}
            ),
            coalitions=worth,
        )

    def _everything(self) -> dict[str, Tensor]:
        """The rows that all processes saw."""
        mine = {name: torch.cat(pieces) for name, pieces in self._rows.items()}
        where = mine["target"].device if mine else self.device
        counts = gather(torch.tensor([len(mine["target"]) if mine else 0], device=where), 1, sync=self.sync).tolist()
        if 0 in counts:
            raise ValueError(
                f"{OWNER}: compute with {counts} held-out samples by process, expected some on each; "
                "call update first."
            )
        kept = torch.cat([torch.arange(max(counts)) < count for count in counts]).to(where)
        return {name: gather(x, max(counts), sync=self.sync)[kept] for name, x in mine.items()}

    def _score(self, outputs: Tensor, target: Tensor) -> float:
        return self.score(outputs, target) if len(outputs) else float("nan")

    def _probes(self, seen: dict[str, Tensor], kind: str, there: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-fitted probe outputs of the present rows, none for a modality with fewer than two of them."""
        target, found = seen["target"], {}
        for m in self.modalities:
            if _key(kind, m) in seen:
                x, y = seen[_key(kind, m)][there[m]], target[there[m]]
                found[m] = (
                    probe_outputs(self.task, x, y, self.num_outputs) if len(x) > 1 else seen[_key("outputs", m)][:0]
                )
        return found

    def _energy(self, z: Tensor, outputs: Tensor, target: Tensor) -> float:
        loss, uncertainty = task_loss(self.task, outputs, target), task_uncertainty(self.task, outputs)
        weights = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        return energy(z[: len(outputs)], loss, uncertainty, normalize=True, **weights).mean().item()

    def _gradient_share(self, like: Tensor) -> dict[str, float]:
        mine = like.new_zeros(len(self.modalities) + 1) if self._gradient is None else self._gradient
        *sums, steps = gather(mine[None], 1, sync=self.sync).sum(0).tolist()
        return {m: total / steps for m, total in zip(self.modalities, sums, strict=True)} if steps else {}

    def _calibration(self, said: dict[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
        if self.task == "regression":
            return {}
        if self.task == "gaussian":
            nll = {m: task_loss("gaussian", *pair).mean().item() for m, pair in said.items()}
            return {"nll": nll, "coverage": {m: gaussian_coverage(*pair) for m, pair in said.items()}}
        return {"ece": {m: calibration_error(self.task, *pair) for m, pair in said.items()}}


def _key(kind: str, *modalities: str) -> str:
    return ".".join([kind, *modalities])  # no modality has a dot in its name
