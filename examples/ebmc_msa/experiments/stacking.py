"""Stacking: one plain network's predictions from every subset of modalities, mixed by weights fitted held out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.missing import conditions
from ebmc_msa.data.split import SplitView, by_length
from ebmc_msa.evaluation.scores import outputs_score
from ebmc_msa.model.encoders import encode, make_encoders
from ebmc_msa.model.prediction import Model, Prediction, make_head, weighted_loss
from ebmc_msa.model.settings import Settings
from ebmc_msa.training.stages import train
from modbalance.presence import masked_mean, select
from modbalance.tasks import output_width, task_loss

Subset = tuple[str, ...]


class SubsetNetwork(Model):
    """An encoder and a linear head per modality, and a fused head that gets the presence mask."""

    def __init__(self, spec: Spec, settings: Settings) -> None:
        super().__init__()
        self.spec = spec
        self.encoders = make_encoders(spec, settings)
        width = output_width(spec.task, spec.num_outputs)
        self.heads = nn.ModuleDict({name: nn.Linear(settings.dim, width) for name in spec.dims})
        self.mix = nn.Linear((settings.dim + 1) * len(spec.dims), settings.dim)
        self.head = make_head(spec, settings)

    def forward(self, batch: Batch) -> Prediction:
        features = encode(self.encoders, batch)
        outputs = self.outputs_of(features, batch, tuple(features))
        terms = {"task": outputs.new_zeros(())}
        if batch.target is not None:
            terms = {"task": weighted_loss(self.spec, outputs, batch.target).mean()}
            for name, z in features.items():
                own = weighted_loss(self.spec, self.heads[name](z), batch.target)
                terms[name] = masked_mean(own, batch.present[name])
        return Prediction(outputs, outputs, {}, {}, torch.stack(list(terms.values())).sum(), terms)

    def outputs_of(self, features: dict[str, Tensor], batch: Batch, subset: Subset) -> Tensor:
        """Outputs of the fused head for a subset of modalities; of a modality's own head for that one alone."""
        if len(subset) == 1:
            return self.heads[subset[0]](features[subset[0]])
        here = {name: batch.present[name] & (name in subset) for name in features}
        shown = [select(z, here[name]) for name, z in features.items()]
        return self.head(self.mix(torch.cat([*shown, torch.stack(list(here.values()), -1).float()], -1)))


class Stacking(Model):
    """Every subset at its own best epoch; a sample gets the mixture fitted for the modalities that it has."""

    def __init__(
        self, spec: Spec, nets: dict[int, SubsetNetwork], epochs: dict[Subset, int], held: list[Batch]
    ) -> None:
        super().__init__()
        self.spec, self.nets, self.epochs = spec, nets, epochs
        self.outputs = torch.cat([self.members(batch) for batch in held], 1)
        self.target = torch.cat([batch.target for batch in held])
        self.present = {name: torch.cat([batch.present[name] for batch in held]) for name in spec.dims}
        self.weights: dict[Subset, Tensor] = {}

    @torch.no_grad()
    def members(self, batch: Batch) -> Tensor:
        """`(subsets, B, width)`: log-probabilities, or means and log-variances."""
        encoded = {epoch: encode(net.encoders, batch) for epoch, net in self.nets.items()}
        outputs = torch.stack(
            [self.nets[epoch].outputs_of(encoded[epoch], batch, s) for s, epoch in self.epochs.items()]
        )
        return outputs.log_softmax(-1) if self.spec.task == "classification" else outputs

    def forward(self, batch: Batch) -> Prediction:
        members = self.members(batch)
        here = torch.stack(list(batch.present.values()), -1)
        outputs = members.mean(0)  # where nothing is present
        for pattern in here.unique(dim=0):
            names = tuple(name for name, there in zip(batch.present, pattern.tolist(), strict=True) if there)
            if names:
                rows = (here == pattern).all(-1)
                outputs[rows] = torch.tensordot(self.weights_for(names), members[:, rows], 1)
        return Prediction(outputs, outputs, {}, {}, outputs.new_zeros(()), {})

    def weights_for(self, names: Subset) -> Tensor:
        """One weight a subset, 0 for those that need more than `names`, fitted on validation once."""
        if names not in self.weights:
            usable = torch.tensor([set(s) <= set(names) for s in self.epochs])
            rows = torch.stack([self.present[name] for name in names]).all(0)
            weights = torch.zeros(len(usable))
            weights[usable] = mixing_weights(self.spec.task, self.outputs[usable][:, rows], self.target[rows])
            self.weights[names] = weights
        return self.weights[names]


def mixing_weights(task: str, outputs: Tensor, target: Tensor) -> Tensor:
    r"""Weights on the simplex that fit held-out data best: $\arg\min_w L(\sum_k w_k s_k)$.

    The cross-entropy of mixed log-probabilities, or the squared error of mixed means; both are convex in w.

    Args:
        outputs: of each of K members, `(K, N, width)`.
        target: `(N,)`.

    Returns:
        `(K,)`, all equal without samples.
    """
    outputs = outputs.double()
    free = torch.zeros(len(outputs), dtype=torch.float64, requires_grad=True)
    if not len(target) or len(outputs) == 1:
        return free.detach().softmax(0).float()
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        mixed = torch.tensordot(free.softmax(0), outputs, 1)
        value = (
            task_loss(task, mixed, target).mean()
            if task == "classification"
            else (mixed[:, 0] - target).square().mean()
        )
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return free.detach().softmax(0).float()


def fit_stacking(spec: Spec, settings: Settings, train_split: SplitView, valid: SplitView, seed: int) -> Stacking:
    """Train the network once, keeping the best epoch of every subset.

    It gets twice the patience: a weak modality is best later than the fused head, by which training stops.
    """
    net = SubsetNetwork(spec, settings)
    held = [valid.rows(rows) for rows in by_length(valid)]
    target = torch.cat([batch.target for batch in held])
    present = {name: torch.cat([batch.present[name] for batch in held]) for name in spec.dims}
    best: dict[Subset, tuple[float, float]] = {}
    epochs: dict[Subset, int] = {}
    states: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def keep_best(stage: str, epoch: int, entry: dict[str, Any]) -> None:
        encoded = [encode(net.encoders, batch) for batch in held]
        for subset in conditions(spec.dims).values():
            rows = torch.stack([present[name] for name in subset]).any(0)
            outputs = [net.outputs_of(features, batch, subset) for features, batch in zip(encoded, held, strict=True)]
            now = outputs_score(spec, torch.cat(outputs)[rows], target[rows])
            if subset not in best or now > best[subset]:
                best[subset], epochs[subset] = now, epoch
        if epoch in epochs.values():
            states[epoch] = {name: x.clone() for name, x in net.state_dict().items()}

    train(net, train_split, valid, replace(settings, patience=2 * settings.patience), seed, keep_best)
    nets = {}
    for epoch in sorted(set(epochs.values())):
        nets[epoch] = SubsetNetwork(spec, settings).eval()
        nets[epoch].load_state_dict(states[epoch])
    return Stacking(spec, nets, epochs, held)
