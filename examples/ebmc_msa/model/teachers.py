"""Frozen unimodal branches: the teachers of trust distillation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.split import SplitView, outputs_and_targets
from ebmc_msa.model.ood import OODScore
from modbalance import Teacher
from modbalance.functional import fit_temperature, scale_temperature
from modbalance.presence import select
from modbalance.tasks import output_width


class UnimodalBranch(nn.Module):
    """One modality from its input to its own prediction: encoder (with its context), private part, head."""

    def __init__(self, encoder: nn.Module, private: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.private, self.head = encoder, private, head

    def forward(self, *inputs: Any) -> Tensor:
        return self.head(self.private(self.encoder(*inputs)))


class TeacherOutputs(NamedTuple):
    outputs: dict[str, Tensor]  # (B, width) by modality, calibrated
    log_in_distribution: dict[str, Tensor]  # (B,) by modality; 0 where absent or without a score


class Teachers(nn.Module):
    """Calibrated outputs of frozen unimodal branches, and an out-of-distribution score of each input.

    Args:
        branches: by modality; they are copied.
        feature_std: standard deviation of each input feature, `(D,)`, of the modalities that get a score.
    """

    def __init__(self, spec: Spec, branches: Mapping[str, nn.Module], feature_std: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.task, self.width = spec.task, output_width(spec.task, spec.num_outputs)
        self.branches = nn.ModuleDict({name: Teacher(branch) for name, branch in branches.items()})
        self.temperatures = dict.fromkeys(branches, 1.0)
        self.ood = nn.ModuleDict({name: OODScore(std) for name, std in feature_std.items()})

    def forward(self, batch: Batch, names: Collection[str] | None = None) -> TeacherOutputs:
        """Of all modalities, or only of `names`."""
        names = list(self.branches) if names is None else names
        outputs = {
            name: scale_temperature(self.task, self.predict(name, batch), self.temperatures[name]) for name in names
        }
        scores = {name: torch.zeros_like(here, dtype=torch.float32) for name, here in batch.present.items()}
        for name, score in ((name, score) for name, score in self.ood.items() if name in names):
            scores[name] = select(score(batch.features[name], batch.lengths.get(name)), batch.present[name])
        return TeacherOutputs(outputs, scores)

    def predict(self, name: str, batch: Batch) -> Tensor:
        """Outputs of one teacher, `(B, width)`, not calibrated; 0 for rows without the modality, which it skips."""
        here = batch.present[name]
        whole = torch.compiler.is_compiling() or batch.conversation is not None
        if whole or here.device.type != "cpu" or here.all():  # elsewhere asking would wait for the device
            return select(self.branches[name](*batch.inputs(name)), here)
        x, lengths = batch.inputs(name)
        dtype = x.dtype if x.is_floating_point() else torch.float32  # token ids are whole numbers
        outputs = torch.zeros(len(here), self.width, dtype=dtype)
        if here.any():
            outputs[here] = self.branches[name](x[here], None if lengths is None else lengths[here]).to(dtype)
        return outputs

    @torch.no_grad()
    def fit(self, train: SplitView, valid: SplitView) -> None:
        """Fit temperatures on validation, and the scores on both splits."""
        for name in self.branches:
            rows = valid.select(valid.present[name])
            if len(rows):
                outputs, target = outputs_and_targets(rows, lambda batch, name=name: self.predict(name, batch))
                self.temperatures[name] = fit_temperature(self.task, outputs, target)
        for name, score in self.ood.items():
            score.fit(name, train, valid)

    def get_extra_state(self) -> dict[str, Any]:
        """The frozen weights, which `state_dict` leaves out, and the temperatures."""
        weights = {name: teacher.copy.state_dict() for name, teacher in self.branches.items()}
        return {"branches": weights, "temperatures": dict(self.temperatures)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.temperatures = dict(state["temperatures"])
        for name, teacher in self.branches.items():
            teacher.copy.load_state_dict(state["branches"][name])
