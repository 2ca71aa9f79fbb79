"""Does trust decide anything? The permutation test of EBMC's weights, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView, by_length
from ebmc_msa.evaluation.bootstrap import interval
from ebmc_msa.evaluation.metrics import KINDS, METRICS, Metric
from ebmc_msa.evaluation.predict import label_predictions, label_targets
from ebmc_msa.model.ensemble import TrustEnsemble, mix_experts, mixture_of_each
from modbalance.diagnostics import trust_permutation_test

SIGNIFICANT = 0.05
PARTS = ("clean", "corrupted")


@torch.no_grad()
def trust_tests(model: TrustEnsemble, split: SplitView) -> dict[str, dict[str, dict[str, Any]]]:
    """`trust_permutation_test` of two kinds of weights, `answer` and `teachers`, on `clean` and `corrupted` samples.

    `answer` are the weights with which the ensemble mixes its experts. `teachers` is the trust that is distilled,
    applied to the teachers' own predictions. Corrupted is each modality of each sample with probability 1/2, by
    `corrupt_at_random`, as in the samples that the ensemble is fitted on.

    Returns:
        by kind and part: the `score`, the selection metric signed so that higher is better; `p`; and `lost` by
        sample, `(N,)`: its score minus its mean score over the permutations.
    """
    spec, size = model.spec, len(split)
    experts = model.calibrated_experts(split)
    target = split.target[torch.cat(by_length(split)).to(split.device)]
    found: dict[str, dict[str, dict[str, Any]]] = {"answer": {}, "teachers": {}}
    for part, rows in zip(PARTS, (slice(size), slice(size, None)), strict=True):
        outputs, present, scores = ({name: x[rows] for name, x in column.items()} for column in experts)
        own = {name: present[name] for name in spec.dims}
        mixture = mixture_of_each(model.mixtures, own)
        used = {name: outputs[name] for name in mixture.used}
        found["answer"][part] = _permute(spec, used, mixture.weights(spec.task, used, present, scores), target)
        teachers = {name: outputs[name] for name in spec.dims}
        trust = model.student.distill.trust(teachers, None, own, scores)
        found["teachers"][part] = _permute(spec, teachers, trust, target)
    return found


def _permute(
    spec: Spec, outputs: Mapping[str, Tensor], weights: Mapping[str, Tensor], target: Tensor
) -> dict[str, Any]:
    metric, by_sample = METRICS[KINDS[spec.kind].selects], []
    true = label_targets(spec, target).double().cpu().numpy()

    def score(mixed: Tensor, _: Tensor) -> float:
        predicted = label_predictions(spec, mixed).double().cpu().numpy()
        by_sample.append(metric.sign * metric.per_sample(predicted, true).astype(np.float64))
        return float(by_sample[-1].mean())

    test = trust_permutation_test(partial(mix_experts, spec.task, outputs), weights, target, score=score)
    return {
        "score": test.score,
        "p": test.p_value,
        "lost": torch.from_numpy(by_sample[0] - np.mean(by_sample[1:], 0)),
    }


def trust_summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """By method, kind and part: the `lost` metric with its interval over samples and seeds, and `p` by seed."""
    found: dict[str, Any] = {}
    for method, seeds in runs.items():
        tests = [run.get("trust") for run in seeds]
        if all(tests):
            found[method] = {
                kind: {
                    part: {
                        "lost": interval(np.stack([np.asarray(test[kind][part]["lost"]) for test in tests])),
                        "p": [test[kind][part]["p"] for test in tests],
                    }
                    for part in PARTS
                }
                for kind in tests[0]
            }
    return found


def trust_table(found: Mapping[str, Any], metric: Metric) -> list[str]:
    """Markdown; nothing where no method has been tested."""
    if not found:
        return []

    def cells(test: Mapping[str, Any]) -> list[str]:
        mean, low, high = (f"{value:+.{metric.digits}f}" for value in test["lost"])
        return [f"{mean} [{low}, {high}]", f"{sum(p < SIGNIFICANT for p in test['p'])} of {len(test['p'])}"]

    return [
        f"**Trust**: how much worse {metric.label} is when each sample gets the weights of another one with the same "
        "modalities, with its 95 % interval over samples and seeds, and how many seeds have p < "
        f"{SIGNIFICANT}. At zero the weights decide nothing. Corrupted: each modality of each sample with "
        "probability 1/2.",
        "",
        "| weights | clean | seeds | corrupted | seeds |",
        "|---|---|---|---|---|",
        *(
            f"| {method}, {kind} | {' | '.join(cell for part in PARTS for cell in cells(tests[part]))} |"
            for method, kinds in found.items()
            for kind, tests in kinds.items()
        ),
        "",
    ]
