"""Test the checkpoints of a run: on data with or without labels, and under a robustness protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import track

from ebmc_msa.data import DataError, Dataset, canonical
from ebmc_msa.data.files import write_text
from ebmc_msa.data.split import SplitView
from ebmc_msa.data.tokens import tokenised
from ebmc_msa.evaluation.metrics import KINDS
from ebmc_msa.evaluation.predict import predict
from ebmc_msa.evaluation.robustness import DRAWS, degrade, degrade_by_noise, levels, noise_sizes
from ebmc_msa.evaluation.scores import by_condition
from ebmc_msa.model.context import description
from ebmc_msa.model.prediction import Model
from ebmc_msa.report import robustness
from ebmc_msa.report.report import print_table
from ebmc_msa.report.run_view import CONTROL
from ebmc_msa.training import checkpoint
from ebmc_msa.training.console import console, introduce, pick_device, writable
from ebmc_msa.training.results import grouped, prediction_rows, save_predictions, spread


def evaluate(run: Path, dataset: Dataset, device_name: str, predictions: Path | None) -> None:
    """Test the checkpoints of a run on data that they can read, with or without labels."""
    paths = checkpoints(run, dataset)
    part = "test" if "test" in dataset.splits else next(iter(dataset.splits))
    split = dataset.splits[part]
    if split.target is None and predictions is None:
        raise DataError(
            "--evaluate: the data have no labels, so there is nothing to measure, expected labels or --predictions; "
            "add --predictions FILE.csv."
        )
    if predictions is not None:
        writable(predictions)
    device = pick_device(device_name)
    introduce(dataset)
    tested, rows, context = [], [], {}
    for path in paths:
        name, seed, model = checkpoint.read(path, device)
        spec = model.spec
        data = dataset if spec.text is None else tokenised(dataset, spec.text)
        spec.check(data, f"--evaluate {path}")
        context = context or context_of(model, paths)
        test = SplitView.of(data.splits[part], spec, device)
        rows += prediction_rows(name, seed, spec, split.id, predict(model, test), test)
        if split.target is not None:
            tested.append((name, seed, by_condition(model, test, split.parts)))
    if tested:
        by_model = grouped((name, test) for name, _, test in tested)
        results = {
            "dataset": dataset.name,
            "kind": dataset.kind,
            "context": context,
            "seeds": sorted({seed for _, seed, _ in tested}),
            "selection": {"split": "valid", "metric": KINDS[dataset.kind].selects},
            "models": {name: {"test": spread(tests)} for name, tests in by_model.items()},
        }
        print_table(results, console)
        write_text(run / "evaluation.json", json.dumps(results, indent=2) + "\n")
        console.print(f"Written to {run / 'evaluation.json'}.")
    if predictions is not None:
        save_predictions(predictions, rows)


def context_of(model: Model, paths: list[Path]) -> dict[str, Any]:
    """Which context the models of a run read, as `metrics.json` states it."""
    control = any(path.stem.rpartition("-")[0].endswith(CONTROL) for path in paths)
    imputed = {"imputed": True} if model.spec.impute != "none" else {}
    return {**description(model.encoders), "control": control, **imputed}


def check_finished(run: Path) -> None:
    final = run.with_name(run.name.removesuffix(".partial"))
    if final != run or (not run.exists() and run.with_name(f"{run.name}.partial").exists()):
        raise DataError(
            f"--evaluate: {run} is unfinished, expected a run that has ended; finish it with --resume {final}."
        )
    if not run.is_dir():
        raise DataError(
            f"--evaluate: {run} is no folder, expected the folder of a run that train.py wrote; name one of those in "
            "--out."
        )


def checkpoints(run: Path, dataset: Dataset) -> list[Path]:
    """The checkpoints of a run, EBMC first, single modalities in the order of the data."""
    paths = sorted(run.glob("*.pt"))
    if not paths:
        raise DataError(
            f"--evaluate: {run} holds no checkpoint, expected the folder of a run that train.py wrote; name one of "
            "those in --out."
        )
    order = {name: i for i, name in enumerate(["ebmc", "concat", *dataset.modalities])}
    paths.sort(key=lambda path: order.get(path.stem.rpartition("-")[0], len(order)))
    return paths


def evaluate_robustness(run: Path, dataset: Dataset, protocol: str, device_name: str) -> None:
    """Put the checkpoints of a run through one protocol and write `robustness-<protocol>.*` beside them."""
    paths, device = checkpoints(run, dataset), pick_device(device_name)
    loaded = []
    for path in paths:
        name, seed, model = checkpoint.read(path, device)
        if model.spec.text is not None:
            dataset = tokenised(dataset, model.spec.text)
        model.spec.check(dataset, f"--evaluate {path}")
        loaded.append((name, seed, model))
    split = dataset.splits.get("test") or next(iter(dataset.splits.values()))
    if split.target is None:
        raise DataError("--missing: the data have no labels, expected labels to measure by; add them.")
    read = {modality for _, _, model in loaded for modality in model.spec.dims}
    present = {name: split.present[name] for name in canonical(split.present) if name in read}

    extra: dict[str, Any] = {}
    if protocol == "noise":
        sizes = noise_sizes(loaded, dataset, present, device)
        extra["sizes"] = {name: size.as_dict() for name, size in sizes.items()}
    else:
        rows = levels(protocol, present, [name for name in present if name in split.lengths], split.conversation)
    tested = []
    for name, _, model in track(loaded, f"--missing {protocol}", console=console, transient=True):
        test = SplitView.of(split, model.spec, device)
        found = degrade_by_noise(model, test, sizes) if protocol == "noise" else degrade(model, test, rows)
        tested.append((name, found))
    results = {
        "protocol": protocol,
        "dataset": dataset.name,
        "kind": dataset.kind,
        "context": context_of(loaded[0][2], paths),
        "seeds": sorted({seed for _, seed, _ in loaded}),
        "draws": DRAWS,
        "selection": {"split": "valid", "metric": KINDS[dataset.kind].selects},
        "modalities": {name: name in split.lengths for name in present},  # with a time axis
        **extra,
        "models": {
            name: {
                part: spread([found[part] for found in group])
                for part in ("test", "loss", "detection")
                if group[0].get(part)
            }
            for name, group in grouped(tested).items()
        },
    }
    robustness.print_tables(results, console)
    written = robustness.write(run, results)
    console.print(f"Written to {run}: {', '.join(path.name for path in written)}.")
