"""Published balancers from `modbalance.balancers`, on the encoders and the fusion of `Concat`, at their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.encoders import encode
from ebmc_msa.model.prediction import Prediction, task_term, weight_of
from ebmc_msa.model.settings import Settings
from modbalance import Teacher, balancers


class Balanced(Concat):
    """`Concat` trained with a balancer; with `Balancer`, that of joint training, the same as `Concat`."""

    def __init__(
        self, spec: Spec, settings: Settings, make: Callable[[Balanced], balancers.Balancer] | None = None
    ) -> None:
        """`make` builds the balancer, given this model."""
        super().__init__(spec, settings)
        self.dims = dict.fromkeys(spec.dims, settings.dim)
        self.common = self.dims, spec.num_outputs, spec.task
        self.balance = balancers.Balancer() if make is None else make(self)
        self._out: Any = None

    def forward(self, batch: Batch) -> Prediction:
        features = encode(self.encoders, batch)
        fused = self.mix(torch.cat(list(features.values()), -1))
        outputs = self.head(fused)
        task = task_term(self, outputs, batch.target)
        if batch.target is None:
            return Prediction(outputs, fused, {}, {}, task, {"task": task})
        # After the head, so that its dropout draws what it draws without a balancer.
        self._out = self.balance(features, batch.target, batch.present, **self.extra(batch))
        own = self._out.losses
        loss = torch.stack([task, *own.values()]).sum() if self.solves() else self.balance.total(task, self._out)
        return Prediction(outputs, fused, {}, {}, loss, {"task": task, **own})

    def extra(self, batch: Batch) -> dict[str, Any]:
        """What the balancer is given beside features, target and presence."""
        return {}

    def solves(self) -> bool:
        return isinstance(self.balance, balancers.MMPareto)

    def predict(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """The fused outputs from features that are zero where hidden."""
        return self.head(self.mix(torch.cat(list(features.values()), -1)))

    def backward(self, out: Prediction) -> None:
        self.balance.backward(out.terms["task"], self._out)
        self.balance.step()


class UMT(Balanced):
    """`modbalance.balancers.UMT` with `encoders` as teachers."""

    def __init__(self, spec: Spec, settings: Settings, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__(spec, settings, lambda model: balancers.UMT())
        self.teachers = {name: Teacher(encoder) for name, encoder in encoders.items()}

    def extra(self, batch: Batch) -> dict[str, Any]:
        teacher_features = {name: teacher(*batch.inputs(name)) for name, teacher in self.teachers.items()}
        return {"teacher_features": teacher_features}


def unimodal(model: Balanced) -> balancers.Balancer:
    return balancers.UnimodalLosses(*model.common, class_weight=weight_of(model.spec))


def blending(model: Balanced) -> balancers.Balancer:
    return balancers.GradientBlending(*model.common, class_weight=weight_of(model.spec))


def ogm(model: Balanced) -> balancers.Balancer:
    return balancers.OGMGE(dict(model.encoders), model.spec.num_outputs, model.predict, model.spec.task)


def agm(model: Balanced) -> balancers.Balancer:
    return balancers.AGM(dict(model.encoders), model.spec.num_outputs, model.predict, model.spec.task)


def mmpareto(model: Balanced) -> balancers.Balancer:
    return balancers.MMPareto(dict(model.encoders), *model.common, class_weight=weight_of(model.spec))
