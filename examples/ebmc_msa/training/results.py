"""The results of a run as files: metrics.json and the predictions."""

from __future__ import annotations

import csv
import io
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

import modbalance
from ebmc_msa.data import Dataset
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.files import write_text
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.metrics import KINDS
from ebmc_msa.evaluation.predict import label_predictions, label_targets, label_variance
from ebmc_msa.model.prediction import Model, Prediction, spec_of
from ebmc_msa.model.settings import Settings
from ebmc_msa.report import verdict
from ebmc_msa.report.record import ByCondition, Record
from ebmc_msa.report.run_view import CONTROL, Run
from ebmc_msa.training.console import console

T = TypeVar("T")


def summary(
    dataset: Dataset,
    records: Sequence[Record],
    seeds: list[int],
    settings: Settings,
    command: str,
    compare: bool,
    device: str = "cpu",
) -> dict[str, Any]:
    """The content of metrics.json."""
    selection = {"split": "valid", "metric": KINDS[dataset.kind].selects}
    context = {
        "encoder": settings.context,
        "causal": settings.causal,
        "speakers": spec_of(dataset, settings).speakers,
        "control": any(record.model.endswith(CONTROL) for record in records),
        **({"imputed": True} if settings.impute_context else {}),
    }
    head = {"dataset": dataset.name, "kind": dataset.kind, "task": Spec.of(dataset).task, "context": context}
    versions = {"modbalance": modbalance.__version__, "torch": torch.__version__, "python": platform.python_version()}
    parts = verdict.parts(records, dataset.kind)
    tail = {
        "versions": versions,
        "device": device,
        "settings": settings.as_dict(),
        "note": dataset.note,
        "command": command,
    }
    by_model = {}
    for name, group in grouped((record.model, record) for record in records).items():
        by_model[name] = {
            **head,
            "model": name,
            "seeds": seeds,
            "selection": {
                **selection,
                "epochs": {str(record.seed): record.epochs for record in group},
                "strength": {str(record.seed): record.strength for record in group},
                "undone": [record.seed for record in group if record.undone],
                "last_is_best": any(last_is_best(record) for record in group),
            },
            "test": spread([record.test for record in group]),
            "parts": parts[name],
            "contribution": {
                when: _means([record.contribution[when] for record in group]) for when in ("before", "after")
            },
            "cost": {stage: _means([record.cost[stage] for record in group]) for stage in group[0].cost},
            "experts": {str(record.seed): record.experts for record in group if record.experts},
            **tail,
        }
    if not compare:
        (alone,) = by_model.values()
        return alone
    found = {**head, "seeds": seeds, "selection": selection, "models": by_model, **tail}
    if "ebmc" not in by_model:
        return found
    words = verdict.sentences(found, Run.of(found).names)
    return {"verdict": words, **found, "test": by_model["ebmc"]["test"]}


def last_is_best(record: Record) -> bool:
    """Whether its last stage ended for want of epochs with the selected one."""
    stage, epoch = list(record.epochs.items())[-1]
    return 0 < epoch == record.cost[stage]["epochs"]


def grouped(entries: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """`(model, entry)` by model, in the order in which the models come."""
    groups: dict[str, list[T]] = {}
    for name, entry in entries:
        groups.setdefault(name, []).append(entry)
    return groups


def spread(tests: Sequence[ByCondition]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for one seed) and values over seeds, by condition and metric."""
    return {
        condition: {metric: _spread([test[condition][metric] for test in tests]) for metric in scores}
        for condition, scores in tests[0].items()
    }


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def _means(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(entry[key] for entry in entries) for key in entries[0]}


def prediction_rows(
    name: str, seed: int, spec: Spec, ids: list[str], out: Prediction, test: SplitView
) -> list[dict[str, Any]]:
    columns = {"prediction": label_predictions(spec, out.outputs), "variance": label_variance(spec, out.outputs)}
    if test.target is not None:
        labels = label_targets(spec, test.target)
        if spec.task == "gaussian":  # float32, standardised and back: 2.0999999 was 2.1
            labels = labels.double().round(decimals=5)
        columns = {"label": labels, **columns}
    if spec.kind == "multilabel":
        columns = {f"{name}_{m}": x[:, i] for name, x in columns.items() for i, m in enumerate(spec.labels)}
    columns |= {f"trust_{m}": w for m, w in out.trust.items()}
    lists = {column: x.tolist() for column, x in columns.items()}
    return [
        {"id": ids[i], "model": name, "seed": seed} | {column: x[i] for column, x in lists.items()}
        for i in range(len(test))
    ]


def save_predictions(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(column for row in rows for column in row))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    console.print(f"Written to {path}: {len(rows)} prediction{'s' * (len(rows) != 1)}.")


def errors(spec: Spec, outputs: torch.Tensor, test: SplitView) -> torch.Tensor:
    """By utterance: |error| in label units, or 1 - p of the true class or, on average, of the true labels."""
    if spec.kind == "classes":
        return 1 - outputs.softmax(-1).gather(-1, test.target[:, None])[:, 0]
    if spec.kind == "multilabel":
        return (outputs.sigmoid() - test.target).abs().mean(-1)
    return (label_predictions(spec, outputs) - label_targets(spec, test.target)).abs()


def parameters(model: Model) -> dict[str, int]:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    return {
        "student": count(model),
        "teachers": sum(map(count, model.frozen())),
        "encoders": count(model.encoders),
    }
