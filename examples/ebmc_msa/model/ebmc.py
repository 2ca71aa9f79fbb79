"""EBMC assembled from its four components."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.missing import dropout_rates
from ebmc_msa.data.split import SplitView, by_length, outputs_and_targets
from ebmc_msa.model.encoders import encode, feature_std, make_encoders
from ebmc_msa.model.ensemble import FUSED, TrustEnsemble
from ebmc_msa.model.prediction import Model, Prediction, make_head, task_term, weight_of, weighted_loss
from ebmc_msa.model.settings import Settings
from ebmc_msa.model.teachers import TeacherOutputs, Teachers, UnimodalBranch
from modbalance import (
    ComplementaryEnhancer,
    EnergyCoordinator,
    SemanticDecoupler,
    Teacher,
    TrustDistiller,
)
from modbalance.distributed import mean
from modbalance.functional import fit_temperature, generator_inputs, scale_temperature
from modbalance.presence import masked_softmax, select
from modbalance.tasks import prediction_variance


class EBMC(Model):
    """Encoders, coordinator, decoupler, enhancer, fusion by trust, head.

    Stage I trains on `L_task + zeta L_MSD + beta L_CCE` and fuses with equal weights; of the coordinator only the
    probes learn. `start_balancing` freezes a teacher per modality and opens stage II: the full loss, and fusion by
    the teachers' mean trust on validation.

    `strength`, which the training loop raises from 0 to 1, scales the rebuilt features and the logits of the fusion
    weights, and in training all terms but the task loss, the unimodal losses and the fit of the probes. At 0 the
    modalities are fused as in a concatenation. It stays 0 for 70 % of the warm-up, and until `joint_patience` epochs
    bring no progress on validation.

    Where modalities tell more together than any of them alone, trust in single modalities is a poor guide. So both
    the fusion weights and distillation are tempered by `fused_trust`, the stage-1 model's mean trust among the
    teachers and itself on validation: at 1 fusion stays as it is in stage I and nothing is distilled.

    A stage II that ends worse on validation than stage I is undone (`undo_balancing`); the teachers stay. Where
    stage I ended at less strength and stage II came to rest, worse means by more than a standard error.

    Two other orders of the stages exist for comparison. `balance-enhance` has EMC in stage I, and MSD and CCE from
    stage II on. `joint` has a single stage with all three, and teachers only for the ensemble.
    """

    def __init__(self, spec: Spec, settings: Settings) -> None:
        super().__init__()
        self.spec, self.settings, self.rest = spec, settings, settings.joint_patience
        dims = dict.fromkeys(spec.dims, settings.dim)
        lambdas = {"lambda_1": settings.lambda_1, "lambda_2": settings.lambda_2}
        task = {"num_outputs": spec.num_outputs, "task": spec.task, "class_weight": weight_of(spec)}
        self.encoders = make_encoders(spec, settings)
        self.decouple = SemanticDecoupler(dims, settings.dim, **task, **lambdas)
        self.decouple.heads = nn.ModuleDict({name: make_head(spec, settings) for name in dims})  # regularised
        rates = dropout_rates(settings.modality_dropout, spec.dims)
        self.hide = statistics.fmean(rates.values())
        self.enhance = ComplementaryEnhancer(dims, settings.dim, **task, hide=self.hide)
        # Without a weight of EMC only its probes learn: they measure the energies.
        emc = {"gap": "pull"} if settings.gamma else {"gap": None, "delta": 0.0}
        self.coordinate = EnergyCoordinator(dims, **task, **emc)
        self.distill = TrustDistiller(spec.num_outputs, spec.task, beyond_chance=True)
        self.mix = nn.ModuleDict({name: nn.Linear(settings.dim, settings.dim) for name in spec.dims})
        self.head = make_head(spec, settings)
        self.teachers: Teachers | None = None  # from stage II on
        self.log_trust = dict.fromkeys(spec.dims, 0.0)  # of the mean trust on validation
        self.fused_trust = 0.0
        self.explained: dict[str, float] = {}  # share of the variance that each teacher explains on validation
        self.enhancing = settings.order != "balance-enhance"
        self.balancing = settings.order != "enhance-balance"

    def forward(self, batch: Batch, teachers: TeacherOutputs | None = None, *, trust: bool = True) -> Prediction:
        """`teachers` are the outputs of `self.teachers` where the caller has them; only `trust` needs them."""
        if self.teachers is not None and teachers is None and trust:
            teachers = self.teachers(batch)
        settings, weights = self.settings, self.fusion_weights(batch.present)
        strength = self.strength if self.training else 1.0
        self.enhance.hide = strength * self.hide
        # Energies are those of the encoders: an enhanced feature holds the other modalities too.
        balanced = self.coordinate(encode(self.encoders, batch), batch.target, batch.present)
        features = balanced.features
        parts = self.decouple(features, batch.target, batch.present)
        enhanced = None
        if self.enhancing and "cce" not in settings.without:
            enhanced = self.enhance(
                features,
                parts.shared,
                parts.private,
                lambda z: self.head(self._fuse(z, weights)),
                batch.target,
                batch.present,
                gates=self._gates(batch.present),
            )
            features = {
                name: select((balanced.features[name] + self.strength * x) / 2, batch.present[name])
                for name, x in enhanced.features.items()
            }
        fused = self._fuse(features, weights)
        outputs = self.head(fused)

        loss = task_term(self, outputs, batch.target)
        terms, trusted = {"task": loss}, {}
        if "msd" in settings.without or not self.enhancing:
            loss = loss + self._private_heads_alone(parts.private, batch)
        else:
            # The unimodal losses have no warm-up: an over-fitted modality is best known at its first epochs.
            rest = parts.alignment + settings.lambda_1 * parts.redundancy
            loss = loss + settings.zeta * (strength * rest + settings.lambda_2 * parts.preservation)
            terms |= {
                "alignment": parts.alignment,
                "redundancy": parts.redundancy,
                "preservation": parts.preservation,
            }
        if enhanced is not None:
            loss = loss + strength * settings.beta * enhanced.loss
            terms |= {"reconstruction": enhanced.reconstruction, "enhancement": enhanced.task}
        if "emc" not in settings.without:
            if settings.gamma:
                loss = loss + (strength * settings.gamma * balanced.loss if self.balancing else balanced.fit)
                terms |= {"gap": balanced.gap, "penalty": balanced.penalty, "descent": balanced.descent}
            else:
                loss = loss + balanced.fit
            terms["fit"] = balanced.fit
        if teachers is not None:
            distilled = self.distill(outputs, teachers.outputs, None, batch.present, teachers.log_in_distribution)
            trusted = distilled.weights
            loss = loss + strength * (1 - self.fused_trust) * settings.eta * distilled.loss
            terms["distillation"] = distilled.loss
        return Prediction(outputs, fused, trusted, balanced.energy, loss, terms)

    def answer(self, batch: Batch) -> Tensor:
        """The outputs of `forward`, from the modules that they depend on: no energies, losses and checks."""
        if self.training:
            return self(batch, trust=False).outputs
        batch = self.imputed(batch)
        present, features = batch.present, encode(self.encoders, batch)
        if self.enhancing and "cce" not in self.settings.without:
            rebuilt = self._rebuilt(features, present) if self.strength else dict.fromkeys(features, 0.0)
            features = {
                name: select((x + self.strength * rebuilt[name]) / 2, present[name]) for name, x in features.items()
            }
        return self.head(self._fuse(features, self.fusion_weights(present)))

    def _rebuilt(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shared, private = (
            {name: select(part[name](x), present[name]) for name, x in features.items()}
            for part in (self.decouple.shared, self.decouple.private)
        )
        inputs = generator_inputs(shared, private, present, gates=self._gates(present))
        return {name: self.enhance.generators[name](inputs[name]) for name in features}

    def fusion_weights(self, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of mean 1 over the present modalities, `(B,)`: their number times softmax(strength `log_trust`).

        They are 1 in stage I, so that a modality counts as much as it would in a concatenation.
        """
        here = torch.stack(list(present.values()))
        logits = torch.tensor([self.strength * self.log_trust[name] for name in present], device=here.device)
        weights = here.sum(0) * masked_softmax(logits[:, None].expand(here.shape), here, 0)
        return dict(zip(present, weights, strict=True))

    def _fuse(self, features: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        # Twice: half of each feature is rebuilt, and in joint training that half is 0.
        return 2 * self.distill.fuse({name: self.mix[name](x) for name, x in features.items()}, weights)

    def _gates(self, present: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """How much the generators may use each modality, `(B,)`: the explained variance; None in stage I."""
        return {name: self.explained[name] * here for name, here in present.items()} if self.explained else None

    def _explained_variance_on(self, valid: SplitView) -> dict[str, float]:
        """Share of the target's variance that each teacher explains, in [0, 1]: the mean over validation."""
        chance, shares = self.distill.chance().sum(), {name: [torch.zeros(0)] for name in self.spec.dims}
        for batch in (valid.rows(rows) for rows in by_length(valid)):
            for name, outputs in self.teachers(batch).outputs.items():
                variance = prediction_variance(self.spec.task, outputs).sum(-1)[batch.present[name]]
                shares[name].append((1 - variance / chance).clamp(0, 1).cpu())
        return {name: torch.cat(parts).mean().nan_to_num(0.0).item() for name, parts in shares.items()}

    def _private_heads_alone(self, private: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Without MSD the heads T_m still learn, on detached private parts, because teachers are made of them."""
        if batch.target is None:
            return torch.zeros(())
        heads = self.decouple.heads
        losses = [weighted_loss(self.spec, heads[name](x.detach()), batch.target) for name, x in private.items()]
        return mean(torch.stack(losses), torch.stack([batch.present[name] for name in private]), sync=self.training)

    # What training asks; see `Model`.

    @property
    def partly_unused(self) -> bool:
        return bool(self.settings.without) or self.settings.order == "balance-enhance"

    def stages(self, settings: Settings) -> dict[str, int]:
        names, first, second = settings.order.split("-"), settings.stage1_epochs, settings.stage2_epochs
        return dict(zip(names, (first, second), strict=True)) if len(names) == 2 else {names[0]: first + second}

    def unimodal_branches(self) -> dict[str, nn.Module]:
        wanted = self.teachers is None and "imtd" not in self.settings.without
        return self._branches() if wanted else {}

    @torch.no_grad()
    def start_balancing(self, train: SplitView, valid: SplitView, branches: dict[str, dict[str, Tensor]]) -> EBMC:
        stage1 = Teacher(self).copy
        if "imtd" not in self.settings.without:
            self.teachers = self._new_teachers()
            for name, state in branches.items():
                self.teachers.branches[name].copy.load_state_dict(state)
            self.teachers.fit(train, valid)
            joint = self.enhancing and self.balancing
            if not joint:  # else no stage is left that would learn with these
                self.fused_trust = self._fused_trust_on(valid, stage1)
                self.log_trust = self._log_trust_on(valid)
                self.explained = self._explained_variance_on(valid)
        self.enhancing = self.balancing = True
        return stage1

    @torch.no_grad()
    def undo_balancing(self, stage1: EBMC) -> None:
        teachers, self.teachers = self.teachers, None
        self.load_state_dict(stage1.state_dict())
        self.teachers = teachers  # frozen after stage I, they are right for both

    @property
    def _weighs(self) -> bool:
        settings = self.settings
        return settings.observe and settings.gamma > 0 and self.balancing and "emc" not in settings.without

    @torch.no_grad()
    def observe(self, valid: SplitView) -> None:
        if self._weighs:
            self.eval()
            for batch in (valid.rows(rows) for rows in by_length(valid)):  # all of it in every process: the same mean
                self.coordinate.observe(encode(self.encoders, batch), batch.target, batch.present)

    def balance_weights(self) -> dict[str, float]:
        weight = self.coordinate.gate.weight.tolist()
        return dict(zip(self.spec.dims, weight, strict=True)) if self._weighs else {}

    def _log_trust_on(self, valid: SplitView) -> dict[str, float]:
        """Logarithm of the mean trust in each modality on validation, tempered by `fused_trust`.

        Not on training samples, because teachers are over-confident there.
        """
        trust: dict[str, list[Tensor]] = {name: [] for name in self.spec.dims}
        for batch in (valid.rows(rows) for rows in by_length(valid)):
            outputs, scores = self.teachers(batch)
            for name, weight in self.distill.trust(outputs, None, batch.present, scores).items():
                trust[name].append(weight[batch.present[name]])
        means = {name: torch.cat(parts).mean().nan_to_num(1.0).item() for name, parts in trust.items()}
        return {name: (1 - self.fused_trust) * math.log(max(mean, 1e-3)) for name, mean in means.items()}

    def _fused_trust_on(self, valid: SplitView, stage1: Model) -> float:
        """Mean trust in the stage-1 model among it and the teachers, all calibrated, on validation."""
        if not len(valid):
            return 0.0
        task = self.spec.task
        temperature = fit_temperature(task, *outputs_and_targets(valid, lambda batch: stage1(batch).outputs))
        trust = []
        for batch in (valid.rows(rows) for rows in by_length(valid)):
            outputs = self.teachers(batch).outputs
            outputs[FUSED] = scale_temperature(task, stage1(batch).outputs, temperature)
            always = torch.ones(len(batch), dtype=torch.bool, device=outputs[FUSED].device)
            trust.append(self.distill.trust(outputs, None, {**batch.present, FUSED: always})[FUSED])
        return torch.cat(trust).mean().item()

    def finalize(self, valid: SplitView) -> Model:
        if self.teachers is None:
            return self
        ensemble = TrustEnsemble(self)
        ensemble.fit(valid)
        return ensemble

    def frozen(self) -> list[nn.Module]:
        return [] if self.teachers is None else [teacher.copy for teacher in self.teachers.branches.values()]

    def temperatures(self) -> dict[str, float]:
        return {} if self.teachers is None else dict(self.teachers.temperatures)

    def _branches(self) -> dict[str, nn.Module]:
        private, heads = self.decouple.private, self.decouple.heads
        return {m: UnimodalBranch(self.encoders[m], private[m], heads[m]) for m in self.spec.dims}

    def _new_teachers(self) -> Teachers:
        teachers = Teachers(self.spec, self._branches(), feature_std(self.encoders))
        return teachers.to(next(self.parameters()).device)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "strength": self.strength,
            "enhancing": self.enhancing,
            "balancing": self.balancing,
            "log_trust": dict(self.log_trust),
            "fused_trust": self.fused_trust,
            "explained": dict(self.explained),
            "teachers": self.teachers is not None,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.strength = state["strength"]
        self.enhancing, self.balancing = state["enhancing"], state["balancing"]
        self.log_trust, self.fused_trust = dict(state["log_trust"]), state["fused_trust"]
        self.explained = dict(state["explained"])
        if not state["teachers"]:
            self.teachers = None
        elif self.teachers is None:
            self.teachers = self._new_teachers()  # load_state_dict goes on to fill them
