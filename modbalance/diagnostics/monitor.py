"""Two lines in a training loop that tell whether one modality starves the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from modbalance.checks import Presence, check_dims, check_inputs, check_nonnegative, check_present, given, readable
from modbalance.diagnostics.diagnosis import Diagnosis
from modbalance.diagnostics.gradients import gradient_norms
from modbalance.diagnostics.measure import OWNER, Measure, key
from modbalance.diagnostics.model_outputs import outputs_of
from modbalance.diagnostics.score import task_score
from modbalance.distributed import Sync, gather
from modbalance.presence import absent_like, select, upcast
from modbalance.task_checks import IGNORE_INDEX, check_labels, check_target, check_task
from modbalance.tasks import Task, check_outputs, labelled, output_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ModalityMonitor"]

EXACT = 8  # modalities: 255 calls of predict a batch
ORDERS = 64

Predict = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]


class ModalityMonitor:
    r"""Find out what each modality knows, what the fused model makes of it, and what is lost on the way.

    `update` with every batch of held-out data, `compute` at the end, `reset` before the next epoch; in the training
    loop, if you like, `update_gradients` after `backward()` and `update_weights` with a balancer's weights. The model
    stays as it is: `predict` states how it fuses.

    - One modality alone, the drop when one is removed and Shapley values come from the outputs for every coalition:
      2^M - 1 calls of `predict` a batch. Beyond 8 modalities Shapley values are estimated from `orders` orders of
      joining, with their standard errors. `compute` calls nothing and keeps its result until the next update.
    - Where no coalition changes an output, `predict` ignores `present`: a warning, and NaN in place of the figures.
    - A row that a coalition leaves with nothing gets the constant guess of `constant_outputs`.
    - Probe, energy and lag come from `probe_outputs` on the features that are handed over, pooled over all updates,
      and from those of the same encoder trained alone. The energy is
      $\alpha\lVert z\rVert^2 / D + \beta\,\ell + \gamma\,u$ under the probe.
    - `history` holds what was found before each reset: one diagnosis an epoch.
    - Held in memory: features and 2^M - 1 outputs of all held-out samples, on the device they came from.
    - On several processes `compute` is about what all of them saw together; all of them must call it.

    Args:
        modalities: their names, at least two.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        score: your own measure in place of `task_score`: `(outputs (N, width), target)` to a float, higher is
            better.
        probe: fit linear probes; without them no features are kept, and any inputs will do: token ids, images.
        alpha: weight of the features' size in the energy; 0.1, `EnergyCoordinator`'s.
        beta: weight of the loss in the energy; 1.
        gamma: weight of the uncertainty in the energy; 0.
        ignore_index: label of the rows that do not count; classification only.
        orders: estimate Shapley values from so many orders of joining, an even number; None is exact for up to 8
            modalities and 64 orders beyond.
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
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
        orders: int | None = None,
    ) -> None:
        check_dims(OWNER, dict.fromkeys(modalities, 1))
        check_task(OWNER, task, num_outputs, None, ignore_index)
        if "all" in modalities:
            raise ValueError(
                f'{OWNER}: modalities has "all", expected other names, since it stands for the fused model; '
                "rename the modality."
            )
        self.modalities, self.num_outputs, self.task = tuple(modalities), num_outputs, task
        self.ignore_index = ignore_index
        self.score, self.probe, self.sync = score or partial(task_score, task), probe, sync
        check_nonnegative(OWNER, alpha=alpha, beta=beta, gamma=gamma)
        orders = ORDERS if orders is None and len(self.modalities) > EXACT else orders
        self._measure = Measure(self.modalities, num_outputs, task, self.score, orders, alpha, beta, gamma)
        self.coalitions = self._measure.coalitions
        self.device: torch.device | None = None
        self._past: list[Diagnosis] = []
        self._found: Diagnosis | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything that was seen. What `compute` found goes to `history`."""
        self._past = self.history
        self._rows: dict[str, list[Tensor]] = {}
        self._gradient: Tensor | None = None
        self._weight: Tensor | None = None
        self._found = None

    @property
    def history(self) -> list[Diagnosis]:
        """What was found, epoch by epoch, the last one included: each `compute` that a `reset` or the end follows."""
        return [*self._past, *([] if self._found is None else [self._found])]

    def to(self, device: torch.device | str) -> Self:
        """Move what was seen, and keep what will be seen, on `device`."""
        self.device = torch.device(device)
        self._rows = {name: [x.to(self.device) for x in pieces] for name, pieces in self._rows.items()}
        if self._gradient is not None:
            self._gradient = self._gradient.to(self.device)
        if self._weight is not None:
            self._weight = self._weight.to(self.device)
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
        norms = torch.stack([upcast(found[name]).to(self.device) for name in self.modalities])
        total = norms.sum()
        counts = torch.isfinite(total) & (total > 0)
        step = select(torch.cat([norms / total, torch.ones_like(total)[None]]), counts.expand(len(norms) + 1))
        self._gradient = step if self._gradient is None else self._gradient + step
        self._found = None

    @torch.no_grad()
    def update_weights(self, weights: Mapping[str, Tensor | float]) -> None:
        """In the training loop: note how much of a balancer each modality gets; averaged over steps.

        Args:
            weights: one number by modality, the `weight` of `EnergyCoordinator`'s output for example; empty, as it
                is before the first observation, counts as 1 for all.

        Raises:
            ValueError: a modality is missing or unknown.
        """
        weights = weights or dict.fromkeys(self.modalities, 1.0)
        if set(weights) != set(self.modalities):
            raise ValueError(
                f"{OWNER}: weights has {sorted(weights)}, expected {sorted(self.modalities)}; "
                "pass the weight of every modality."
            )
        found = torch.stack([torch.as_tensor(weights[name], dtype=torch.float32) for name in self.modalities])
        step = torch.cat([found, torch.ones_like(found[:1])]).to(self.device)
        self._weight = step if self._weight is None else self._weight.to(step.device) + step
        self._found = None

    @torch.no_grad()
    def update(
        self,
        predict: Predict,
        features: Mapping[str, Tensor],
        target: Tensor,
        present: Presence | None = None,
        *,
        alone: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        """Take in a batch of held-out data. Put the model into eval mode before.

        Args:
            predict: `(features, present)` to outputs `(B, width)`, or to a dict, `ModelOutput` or tuple that holds
                one such tensor or `logits`: your fusion and head, with `present` a bool `(B,)` for every modality.
                What is not present must not be used: `select(z, present[m])` gives zeros in its place, the mean of
                the training features often is the better substitute. A model that starts from raw inputs may ignore
                the first argument and close over its batch.
            features: `(B, D_m)` by modality, as the encoders give them; with `probe=False` anything with B rows.
            target: as for the task's loss; rows with an ignored label do not count.
            present: bool `(B,)` by modality, or `(B, M)` with the columns in the order of `modalities`; a modality of
                `features` that is not in it is present for all.
            alone: `(B, D)` by modality, features of the same encoders trained without the others; None leaves one
                out.
        """
        features = given(features)
        there = self._presence("features", features, present, len(target))
        batch = len(there[self.modalities[0]])
        check_target(OWNER, self.task, target, batch, self.num_outputs)
        check_labels(OWNER, self.task, target, self.num_outputs, self.ignore_index)
        width = output_width(self.task, self.num_outputs)
        rows = {"target": target, "present": torch.stack(list(there.values()), 1)}
        for coalition in self.coalitions:
            masks = {m: mask & (m in coalition) for m, mask in there.items()}
            outputs = outputs_of(OWNER, predict(features, masks), batch, width)
            check_outputs(OWNER, "predict", outputs, self.task, self.num_outputs, batch)
            rows[key("outputs", *coalition)] = upcast(outputs)
        if self.probe:
            rows |= {key("features", m): select(x, there[m]) for m, x in features.items()}
            alone = given(alone or {})
            if alone:
                self._presence("alone", alone, {m: there[m] for m in alone if m in there}, batch)
                rows |= {key("alone", m): select(x, there[m]) for m, x in alone.items()}
        if self._rows and set(rows) != set(self._rows):
            raise ValueError(
                f"{OWNER}: features or alone has {sorted(set(rows) ^ set(self._rows))} in some updates only, "
                "expected the same modalities in all; mark what is absent in present."
            )
        valid = labelled(self.task, target, self.num_outputs, self.ignore_index)
        keep = slice(None) if valid is None else valid
        for name, x in rows.items():
            x = x[keep]
            if readable(x) and x.is_floating_point() and math.isnan(x.sum().item()) and name != "target":
                _check_nan(name, x, rows["present"][keep], self.modalities)
            self._rows.setdefault(name, []).append(x.to(self.device, copy=True))
        self._found = None

    def _presence(
        self, argument: str, x: Mapping[str, Tensor], present: Presence | None, batch: int
    ) -> dict[str, Tensor]:
        """The mask of every modality, after the checks that all components share."""
        if not self.probe:
            return self._presence_of_anything(x, present, batch)
        deep = [m for m, z in x.items() if not (isinstance(z, Tensor) and z.dim() == 2 and z.is_floating_point())]
        if argument == "features" and deep and set(x) <= set(self.modalities):
            z = x[deep[0]]
            what = f"a {z.dtype} tensor {tuple(z.shape)}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise TypeError(
                f"{OWNER}: features[{deep[0]!r}] is {what}, expected floating-point features (B, D) for a linear "
                "probe; pass the encoder's pooled outputs, or build the monitor with probe=False if predict starts "
                "from raw inputs."
            )
        known = x if isinstance(x, Mapping) else {}
        sizes = {m: known[m].shape[-1] if m in known and known[m].dim() else 1 for m in self.modalities}
        masks = check_inputs(OWNER, x, present, sizes, argument)
        return absent_like(masks, sizes)

    def _presence_of_anything(
        self, x: Mapping[str, object], present: Presence | None, batch: int
    ) -> dict[str, Tensor]:
        """The masks alone: `predict` knows what to do with the inputs."""
        if not isinstance(x, Mapping) or not x or not set(x) <= set(self.modalities):
            names = sorted(x) if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(
                f"{OWNER}: features has {names}, expected some of {list(self.modalities)}; correct them."
            )
        first = next((z for z in x.values() if isinstance(z, Tensor)), None)
        device = torch.device("cpu") if first is None else first.device
        masks = check_present(OWNER, present, x, dict.fromkeys(self.modalities, 0), batch, device)
        return absent_like(masks, dict.fromkeys(self.modalities, 0))

    def compute(self) -> Diagnosis:
        """What was found in everything seen since the last reset, by all processes together."""
        if self._found is None:
            seen = self._everything()
            with torch.autocast(seen["target"].device.type, enabled=False):
                device = seen["target"].device
                gradient, weight = (self._over_steps(x, device) for x in (self._gradient, self._weight))
                self._found = replace(self._measure(seen, gradient), weight=weight)
        return self._found

    def plot(self) -> Figure:
        """`modbalance.diagnostics.plot` of what was found."""
        return self.compute().plot()

    def _everything(self) -> dict[str, Tensor]:
        """The rows that all processes saw."""
        mine = {name: torch.cat(pieces) for name, pieces in self._rows.items()}
        where = mine["target"].device if mine else self.device
        counts = gather(torch.tensor([len(mine["target"]) if mine else 0], device=where), 1, sync=self.sync).tolist()
        if 0 in counts:
            raise ValueError(
                f"{OWNER}: compute with {counts} held-out samples by process, expected some on each; "
                "call monitor.update(predict, features, target) for every held-out batch before."
            )
        kept = torch.cat([torch.arange(max(counts)) < count for count in counts]).to(where)
        return {name: gather(x, max(counts), sync=self.sync)[kept] for name, x in mine.items()}

    def _over_steps(self, mine: Tensor | None, device: torch.device) -> dict[str, float]:
        """By modality the mean over the steps of all processes; empty without any."""
        mine = torch.zeros(len(self.modalities) + 1, device=device) if mine is None else mine
        *sums, steps = gather(mine[None], 1, sync=self.sync).sum(0).tolist()
        return {m: total / steps for m, total in zip(self.modalities, sums, strict=True)} if steps else {}


def _check_nan(name: str, x: Tensor, present: Tensor, modalities: Sequence[str]) -> None:
    """Of rows that have something; an output of nothing is not looked at."""
    kind, *names = name.split(".")
    there = present[:, [modalities.index(m) for m in names]].any(1)
    rows = int((x.isnan().any(1) & there).sum())
    if rows:
        what = f"{kind}[{names[0]!r}]" if kind != "outputs" else f"what predict returned given {' and '.join(names)}"
        raise ValueError(
            f"{OWNER}: {what} has NaN in {rows} rows, expected numbers; mark the rows absent in present, or correct "
            "the model."
        )
