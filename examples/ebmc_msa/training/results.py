"""What a run found, as others read it: the content of metrics.json and the rows of predictions."""

from __future__ import annotations

import csv
import io
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

import modbalance
from ebmc_msa.data import Dataset
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.files import write_text
from ebmc_msa.data.split import Fold
from ebmc_msa.evaluation.scores import SELECTION, answer, truth, variance
from ebmc_msa.model.prediction import Model, Prediction, spec_of
from ebmc_msa.model.settings import Settings
from ebmc_msa.report.run_view import CONTROL


def summary(
    dataset: Dataset, records: list[dict[str, Any]], seeds: list[int], settings: Settings, command: str, compare: bool
) -> dict[str, Any]:
    """What metrics.json holds."""
    head = {
        "dataset": dataset.name,
        "kind": dataset.kind,
        "task": Spec.of(dataset).task,
        "context": {
            "encoder": settings.context,
            "causal": settings.causal,
            "speakers": spec_of(dataset, settings).speakers,
            "control": any(record["model"].endswith(CONTROL) for record in records),
        },
    }
    tail = {
        "versions": {
            "modbalance": modbalance.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "settings": settings.as_dict(),
        "note": dataset.note,
        "command": command,
    }
    by_model = {}
    for name, group in grouped(records).items():
        epochs = {str(r["seed"]): r["epochs"] for r in group}
        by_model[name] = {
            **head,
            "model": name,
            "seeds": seeds,
            "selection": {"split": "valid", "metric": SELECTION[dataset.kind], "epochs": epochs},
            "test": spread(group),
            "contribution": {
                when: {
                    m: statistics.fmean(r["contribution"][when][m] for r in group)
                    for m in group[0]["contribution"][when]
                }
                for when in ("before", "after")
            },
            "cost": {
                stage: {
                    k: statistics.fmean(r["cost"][stage][k] for r in group) for k in ("seconds", "epochs", "step_ms")
                }
                for stage in group[0]["cost"]
            },
            **tail,
        }
    if not compare:
        (alone,) = by_model.values()
        return alone
    selection = {"split": "valid", "metric": SELECTION[dataset.kind]}
    return {**head, "seeds": seeds, "selection": selection, "models": by_model, **tail}


def grouped(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(record["model"] for record in records)
    return {name: [record for record in records if record["model"] == name] for name in names}


def spread(group: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for one seed) and values over seeds, by condition and metric."""
    result: dict[str, Any] = {}
    for condition, scores in group[0]["test"].items():
        result[condition] = {}
        for metric in scores:
            values = [record["test"][condition][metric] for record in group]
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            result[condition][metric] = {"mean": statistics.fmean(values), "std": std, "values": values}
    return result


def prediction_rows(
    name: str, seed: int, spec: Spec, ids: list[str], said: Prediction, test: Fold
) -> list[dict[str, Any]]:
    values, variances = answer(spec, said.outputs), variance(spec, said.outputs)
    columns = {"prediction": values, "variance": variances}
    if test.target is not None:
        columns = {"label": truth(spec, test.target), **columns}
    if spec.kind == "multilabel":
        columns = {f"{name}_{m}": x[:, i] for name, x in columns.items() for i, m in enumerate(spec.labels)}
    columns |= {f"trust_{m}": w for m, w in said.trust.items()}
    lists = {column: x.tolist() for column, x in columns.items()}
    return [
        {"id": ids[i], "model": name, "seed": seed} | {column: x[i] for column, x in lists.items()}
        for i in range(len(test))
    ]


def write_predictions(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(column for row in rows for column in row))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def errors(spec: Spec, outputs: torch.Tensor, test: Fold) -> torch.Tensor:
    """By utterance: |error| in the data's units, or 1 - p of the true class or, on average, of the true labels."""
    if spec.kind == "classes":
        return 1 - outputs.softmax(-1).gather(-1, test.target[:, None])[:, 0]
    if spec.kind == "multilabel":
        return (outputs.sigmoid() - test.target).abs().mean(-1)
    return (answer(spec, outputs) - truth(spec, test.target)).abs()


def parameters(model: Model) -> dict[str, int]:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    return {
        "student": count(model),
        "teachers": sum(map(count, model.frozen())),
        "encoders": count(model.encoders),
    }
