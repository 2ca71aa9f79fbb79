"""EBMC assembled from its four components."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ebmc_msa.data.augment import spoil
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.missing import conditions, restrict
from ebmc_msa.data.split import Fold, by_length, said_of
from ebmc_msa.model.concat import (
    Prediction,
    encode,
    make_encoders,
    make_head,
    scales,
    task_term,
    weight_of,
    weighted_loss,
)
from ebmc_msa.model.ensemble import Vote, calibrate, fit_scale, fit_vote, vote_for
from ebmc_msa.model.ood import Typical
from ebmc_msa.model.settings import Settings
from modbalance import (
    ComplementaryEnhancer,
    EnergyCoordinator,
    SemanticDecoupler,
    Teacher,
    TrustDistiller,
)
from modbalance.distributed import mean
from modbalance.presence import masked_softmax, select
from modbalance.tasks import prediction_variance


class EBMC(nn.Module):
    """Encoders, coordinator, decoupler, enhancer, fusion by trust, head.

    Stage I trains on `L_task + zeta L_MSD + beta L_CCE` and fuses with equal weights; the coordinator only watches.
    `start_balancing` freezes the model as it is, and a teacher of each modality at its own best epoch, and opens
    stage II: the full loss, and fusion by trust. `settle` fits on validation, for every set of modalities that may
    be there, how teachers, the model before balancing and the fused head are mixed by trust into the answer.

    The other orders of `Settings.order` are there to be compared: `balance-enhance` has EMC in stage I and MSD and
    CCE from stage II on, `joint` has a single stage with all three, and teachers only for the answer.
    """

    def __init__(self, spec: Spec, settings: Settings) -> None:
        super().__init__()
        self.spec, self.settings = spec, settings
        dims = dict.fromkeys(spec.dims, settings.dim)
        lambdas = {"lambda_1": settings.lambda_1, "lambda_2": settings.lambda_2}
        weight = weight_of(spec)
        self.encoders = make_encoders(spec, settings)
        self.decouple = SemanticDecoupler(
            dims, settings.dim, spec.num_outputs, spec.task, class_weight=weight, **lambdas
        )
        self.decouple.heads = nn.ModuleDict({name: make_head(spec, settings) for name in dims})  # regularised
        self.enhance = ComplementaryEnhancer(
            dims, settings.dim, spec.num_outputs, spec.task, hide=settings.modality_dropout, class_weight=weight
        )
        self.coordinate = EnergyCoordinator(dims, spec.num_outputs, spec.task, class_weight=weight)
        self.distill = TrustDistiller(spec.num_outputs, spec.task, beyond_chance=True)
        self.mix = nn.ModuleDict({name: nn.Linear(settings.dim, settings.dim) for name in spec.dims})
        self.head = make_head(spec, settings)
        self.paths: dict[str, tuple[tuple[float, float], dict[str, Tensor]]] = {}  # best score so far, and weights
        self.teachers: dict[str, Teacher] = {}
        self.scales: dict[str, float] = {}
        self.reliability = dict.fromkeys(spec.dims, 0.0)  # logarithm of the trust in each modality on held-out data
        self.typical = nn.ModuleDict({name: Typical(spec.dims[name]) for name in scales(self.encoders)})
        self.before: Teacher | None = None  # the model when balancing began
        self.votes: dict[tuple[str, ...], Vote] = {}  # of the teachers, "before" and "fused", by what is present
        self.enhancing, self.balancing = (settings.order != other for other in ("balance-enhance", "enhance-balance"))

    def forward(self, batch: Batch) -> Prediction:
        without, factor = self.settings.without, self.settings
        taught = self._taught(batch)
        typical = self._typical(batch) if taught else None
        weights = self._weights(batch.present)
        # Energies are those of the encoders: an enhanced feature holds the other modalities too.
        balanced = self.coordinate(encode(self.encoders, batch), batch.target, batch.present)
        features = balanced.features
        parts = self.decouple(features, batch.target, batch.present)
        enhanced = None
        if self.enhancing and "cce" not in without:
            enhanced = self.enhance(
                features,
                parts.shared,
                parts.private,
                lambda z: self.head(self._fuse(z, weights)),
                batch.target,
                batch.present,
                gates=self._known(taught, batch.present) if taught else None,
            )
            features = {
                name: select((balanced.features[name] + x) / 2, batch.present[name])
                for name, x in enhanced.features.items()
            }
        fused = self._fuse(features, weights)
        outputs = self.head(fused)

        loss = task_term(self, outputs, batch.target)
        terms, trust = {"task": loss}, {}
        if "msd" in without or not self.enhancing:
            loss = loss + self._private_heads_alone(parts.private, batch)
        else:
            loss = loss + factor.zeta * parts.loss
            terms |= {
                "alignment": parts.alignment,
                "redundancy": parts.redundancy,
                "preservation": parts.preservation,
            }
        if enhanced is not None:
            loss = loss + factor.beta * enhanced.loss
            terms |= {"reconstruction": enhanced.reconstruction, "enhancement": enhanced.task}
        if "emc" not in without:
            loss = loss + (factor.gamma * balanced.loss if self.balancing else balanced.fit)
            terms |= {"gap": balanced.gap, "penalty": balanced.penalty, "descent": balanced.descent}
            terms["fit"] = balanced.fit
        if taught:
            distilled = self.distill(outputs, taught, None, batch.present, typical)
            trust = distilled.weights
            loss = loss + factor.eta * distilled.loss
            terms["distillation"] = distilled.loss
        if self.votes and not self.training:
            vote = vote_for(self.votes, batch.present)
            said = self._said(taught, outputs, batch)
            outputs = vote(self.spec.task, said, _always(batch.present), typical)
        return Prediction(outputs, fused, trust, balanced.energy, loss, terms)

    @torch.no_grad()
    def start_balancing(self, train: Fold, valid: Fold) -> EBMC:
        """Freeze the model as it is, and return it so; and teachers of the unimodal paths, calibrated on validation.

        From both folds is learnt what is typical of a modality, from validation how fusion weighs it.
        """
        paths, self.paths = self.paths, {}
        before = Teacher(self)
        if "imtd" not in self.settings.without:
            self.before = before
            for name in self.spec.dims:
                self.teachers[name] = Teacher(self.path(name))
                if name in paths:
                    self.teachers[name].copy.load_state_dict(paths[name][1])
                self.scales[name] = 1.0
                here = valid.keep(valid.present[name])
                if len(here):
                    said = said_of(here, lambda batch, name=name: self.teach(name, batch))
                    self.scales[name] = fit_scale(self.spec.task, *said)
            for name, typical in self.typical.items():
                typical.fit(name, train, valid, scales(self.encoders)[name])
            self.reliability = self._reliability(valid)
        self.enhancing = self.balancing = True
        return before.copy

    def _reliability(self, valid: Fold) -> dict[str, float]:
        """How far the teachers are trusted on held-out samples: on those they learnt from they are too sure."""
        trust: dict[str, list[Tensor]] = {name: [] for name in self.spec.dims}
        for batch in (valid.rows(rows) for rows in by_length(valid)):
            weights = self.distill.trust(self._taught(batch), None, batch.present, self._typical(batch))
            for name, weight in weights.items():
                trust[name].append(weight[batch.present[name]])
        means = {name: torch.cat(parts).mean().nan_to_num(1.0).item() for name, parts in trust.items()}
        return {name: math.log(max(mean, 1e-3)) for name, mean in means.items()}

    @torch.no_grad()
    def settle(self, valid: Fold) -> None:
        """Fit how the experts are mixed, on the validation fold as it is and, for a fifth, with parts spoilt.

        A clean fold alone would not tell when to leave a modality that is wrong today.
        """
        if not self.teachers:
            return
        self.eval()
        task, count = self.spec.task, len(valid)
        self.votes, self.scales = {}, self.scales | {"before": 1.0, "fused": 1.0}
        target = torch.cat([valid.target[rows] for rows in by_length(valid)] * 2)
        weight = torch.tensor([0.8, 0.2]).repeat_interleave(count).to(target.device)
        sets = list(conditions(self.spec.dims).values())
        heard = [self._heard(valid.showing(restrict(valid.present, names))) for names in sets]
        whole, *_ = heard[-1]
        self.scales |= {k: fit_scale(task, whole[k][:count], target[:count]) for k in ("before", "fused")}
        prior = {"before": 1.0, "fused": 1.0}  # the teachers were chosen on this fold more often
        for names, (said, present, typical) in zip(sets, heard, strict=True):
            said |= {k: calibrate(task, said[k], self.scales[k]) for k in prior}
            self.votes[names] = fit_vote(task, said, target, present, typical, weight=weight, prior=prior)

    def _heard(self, fold: Fold) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """What the experts say of a fold as it is and then spoilt, who is there, and how typical the inputs are."""
        generator, parts = torch.Generator().manual_seed(0), []
        for rate in (0.0, 0.5):
            for rows in by_length(fold):
                batch = spoil(replace(fold.rows(rows), target=None), scales(self.encoders), rate, generator)
                said = self._said(self._taught(batch), self(batch).outputs, batch)
                parts.append((said, _always(batch.present), self._typical(batch)))
        said, present, typical = (
            {k: torch.cat([x[k] for x in each]) for k in each[0]} for each in zip(*parts, strict=True)
        )
        return said, present, typical

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds beside the student: the stage, the teachers and their calibration."""
        return {
            "enhancing": self.enhancing,
            "balancing": self.balancing,
            "scales": dict(self.scales),
            "reliability": dict(self.reliability),
            "votes": {"+".join(names): vote._asdict() for names, vote in self.votes.items()},
            "teachers": {name: teacher.copy.state_dict() for name, teacher in self.teachers.items()},
            "before": None if self.before is None else self.before.copy.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.enhancing, self.balancing = state["enhancing"], state["balancing"]
        self.scales, self.reliability = dict(state["scales"]), dict(state["reliability"])
        self.votes = {tuple(names.split("+")): Vote(**vote) for names, vote in state["votes"].items()}
        self.before, self.teachers = None, {}
        if state["before"] is not None:
            self.before = Teacher(self)
            self.before.copy.load_state_dict(state["before"])
        self.teachers = {name: Teacher(self.path(name)) for name in state["teachers"]}
        for name, teacher in self.teachers.items():
            teacher.copy.load_state_dict(state["teachers"][name])

    def teach(self, name: str, batch: Batch) -> Tensor:
        """What the teacher of one modality says, its uncertainty calibrated."""
        outputs = self.teachers[name](*batch.inputs(name))
        return calibrate(self.spec.task, outputs, self.scales[name])

    def _taught(self, batch: Batch) -> dict[str, Tensor]:
        return {name: self.teach(name, batch) for name in self.teachers}

    def _said(self, taught: Mapping[str, Tensor], outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What every expert of the vote says, its uncertainty calibrated."""
        whole = {"before": self.before(batch).outputs, "fused": outputs}
        return {**taught, **{k: calibrate(self.spec.task, said, self.scales[k]) for k, said in whole.items()}}

    def _typical(self, batch: Batch) -> dict[str, Tensor]:
        """Log-probability that nothing was done to a modality, `(B,)`; 0 where it is absent or read as tokens."""
        found = {name: torch.zeros_like(here, dtype=torch.float32) for name, here in batch.present.items()}
        for name, typical in self.typical.items():
            found[name] = select(typical(batch.features[name], batch.lengths.get(name)), batch.present[name])
        return found

    def _weights(self, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How fusion weighs the modalities that are there, `(B,)`: by reliability, alike in stage I."""
        here = torch.stack(list(present.values()))
        logits = torch.tensor([self.reliability[name] for name in present], device=here.device)
        return dict(zip(present, masked_softmax(logits[:, None].expand(here.shape), here, 0), strict=True))

    def _known(self, taught: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Share of the variance that each teacher explains, `(B,)` in [0, 1]: how far the others may lean on it."""
        chance = self.distill.chance().sum()
        variance = {name: prediction_variance(self.spec.task, outputs).sum(-1) for name, outputs in taught.items()}
        return {name: select((1 - v / chance).clamp(0, 1), present[name]) for name, v in variance.items()}

    def _fuse(self, features: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return self.distill.fuse({name: self.mix[name](x) for name, x in features.items()}, weights)

    def path(self, name: str) -> nn.Module:
        return UnimodalPath(self.encoders[name], self.decouple.private[name], self.decouple.heads[name])

    def _private_heads_alone(self, private: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Without MSD the T_m still learn, on private parts that they do not shape: teachers are made of them."""
        if batch.target is None:
            return torch.zeros(())
        heads = self.decouple.heads
        losses = [weighted_loss(self.spec, heads[name](x.detach()), batch.target) for name, x in private.items()]
        return mean(torch.stack(losses), torch.stack([batch.present[name] for name in private]), sync=self.training)


class UnimodalPath(nn.Module):
    """One modality from its input to its own prediction: what a teacher is a frozen copy of."""

    def __init__(self, encoder: nn.Module, private: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.private, self.head = encoder, private, head

    def forward(self, *inputs: Any) -> Tensor:
        return self.head(self.private(self.encoder(*inputs)))


def _always(present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fused heads always answer, to nothing too."""
    return {**present, **dict.fromkeys(("before", "fused"), torch.ones_like(next(iter(present.values()))))}
