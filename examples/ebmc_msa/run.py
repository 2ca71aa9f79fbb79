"""A run from data to its folder: train every model and seed, test once, write everything or nothing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import checkpoint
from batch import Spec
from data import DataError, Dataset
from evaluate import SELECTION, by_condition, contribution, predict, truth
from files import write_text
from finetune import describe, tokenised
from fold import Fold
from model import EBMC
from report import print_table, write_report
from results import errors, grouped, parameters, prediction_rows, spread, summary, write_predictions
from settings import Settings
from stages import train as train_model

FOLDS = ("train", "valid", "test")
console = Console()
if "OMP_NUM_THREADS" not in os.environ:
    # Steps this small gain nothing from more threads, and on a busy machine lose tenfold to their waiting.
    torch.set_num_threads(1)


def train(dataset: Dataset, args: argparse.Namespace, settings: Settings, command: str) -> None:
    if settings.finetune_text is not None:
        dataset = tokenised(dataset, describe(Path(settings.finetune_text)))
    names = models(dataset, args.model, args.compare)
    device = pick_device(args.device)
    what = "compare" if args.compare else "-".join([args.model, *(f"no-{part}" for part in settings.without)])
    with folder(args.out, args.name, f"{dataset.name}-{what}") as (partial, final):
        if args.predictions:
            writable(args.predictions)
        console.print(f"{dataset.name}: {sizes(dataset)}" + (f"\n{dataset.note}" if dataset.note else ""))
        records = []
        with bars() as progress:
            for name in names:
                for seed in args.seeds:
                    records.append(one(dataset, name, seed, settings, device, partial, progress))
        results = summary(dataset, records, args.seeds, settings, command, args.compare)
        (partial / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
        write_report(partial / "report.html", results, records)
        if args.predictions:
            save_predictions(args.predictions, [row for record in records for row in record["rows"]])
    print_table(results, console)
    console.print(f"Written to {final}: report.html, metrics.json, {len(records)} checkpoints.")


def one(
    dataset: Dataset,
    name: str,
    seed: int,
    settings: Settings,
    device: torch.device,
    partial: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Train one model from one seed and test it, once."""
    torch.manual_seed(seed)
    spec = Spec.of(dataset, None if name in ("ebmc", "concat") else [name])
    model = checkpoint.build(name, spec, settings).to(device)
    if spec.text is not None:
        model.encoders["text"].load(Path(settings.finetune_text))
    train_fold, valid, test = (Fold.of(dataset.splits[fold], spec, device) for fold in FOLDS)
    bar = progress.add_task(f"{name} {seed}", total=settings.stage1_epochs + settings.stage2_epochs, state="")

    def tell(stage: str, epoch: int, entry: dict[str, Any]) -> None:
        key = SELECTION[spec.kind]
        done = epoch + (settings.stage1_epochs if stage == "balance" else 0)
        progress.update(bar, completed=done, state=f"{stage} {epoch}, valid {key} {entry['valid'][key]:.3f}")

    stages, before = train_model(model, with_something(train_fold), valid, settings, seed, tell)
    progress.update(bar, total=1, completed=1, state="epochs " + " + ".join(str(s.epoch) for s in stages))
    checkpoint.save(partial / f"{name}-{seed}.pt", name, seed, model, settings)

    after = contribution(model, valid)
    said = predict(model, test)
    fused = {"after": said.fused.cpu().numpy()}
    if before is not None:
        fused["before"] = predict(before, test).fused.cpu().numpy()
    return {
        "model": name,
        "seed": seed,
        "history": [entry for stage in stages for entry in stage.history],
        "epochs": {stage.name: stage.epoch for stage in stages},
        "test": by_condition(model, test, dataset.splits["test"].parts),
        "contribution": {"before": after if before is None else contribution(before, valid), "after": after},
        "trust": {m: w.tolist() for m, w in said.trust.items()} or None,
        "present": {m: here.tolist() for m, here in test.present.items()},
        "error": errors(spec, said.outputs, test).tolist(),
        "fused": fused,
        "target": truth(spec, test.target).cpu().numpy(),
        "calibration": dict(model.scales) if isinstance(model, EBMC) else None,
        "cost": {s.name: {"seconds": s.seconds, "epochs": s.epochs, "step_ms": s.step_ms} for s in stages},
        "parameters": parameters(model),
        "rows": prediction_rows(name, seed, spec, dataset.splits["test"].id, said, test),
    }


def evaluate(run: Path, dataset: Dataset, device_name: str, predictions: Path | None) -> None:
    """Test the checkpoints of a run on data that they can read; with or without labels."""
    paths = checkpoints(run, dataset)
    fold = "test" if "test" in dataset.splits else next(iter(dataset.splits))
    split = dataset.splits[fold]
    if split.target is None and predictions is None:
        raise DataError(
            "--evaluate: the data have no labels, so there is nothing to measure, expected labels or --predictions; "
            "add --predictions FILE.csv."
        )
    if predictions is not None:
        writable(predictions)
    device = pick_device(device_name)
    records, rows = [], []
    for path in paths:
        name, seed, model = checkpoint.read(path, device)
        spec = model.spec
        data = dataset if spec.text is None else tokenised(dataset, spec.text)
        spec.check(data, f"--evaluate {path}")
        test = Fold.of(data.splits[fold], spec, device)
        rows += prediction_rows(name, seed, spec, split.id, predict(model, test), test)
        if split.target is not None:
            records.append({"model": name, "seed": seed, "test": by_condition(model, test, split.parts)})
    if records:
        results = {
            "dataset": dataset.name,
            "kind": dataset.kind,
            "seeds": sorted({r["seed"] for r in records}),
            "selection": {"split": "valid", "metric": SELECTION[dataset.kind]},
            "models": {name: {"test": spread(group)} for name, group in grouped(records).items()},
        }
        print_table(results, console)
        write_text(run / "evaluation.json", json.dumps(results, indent=2) + "\n")
        console.print(f"Written to {run / 'evaluation.json'}.")
    if predictions is not None:
        save_predictions(predictions, rows)


def checkpoints(run: Path, dataset: Dataset) -> list[Path]:
    """Those of a run, by model and seed: EBMC first, single modalities in the order of the data."""
    paths = sorted(run.glob("*.pt")) if run.is_dir() else []
    if not paths:
        raise DataError(
            f"--evaluate: {run} {'holds no checkpoint' if run.is_dir() else 'is no folder'}, expected the folder of "
            "a run that train.py wrote; name one of those in --out."
        )
    order = {name: i for i, name in enumerate(["ebmc", "concat", *dataset.modalities])}
    paths.sort(key=lambda path: order.get(path.stem.rpartition("-")[0], len(order)))
    return paths


def save_predictions(path: Path, rows: list[dict[str, Any]]) -> None:
    write_predictions(path, rows)
    console.print(f"Written to {path}: {len(rows)} predictions.")


def models(dataset: Dataset, model: str, compare: bool) -> list[str]:
    for name in dataset.modalities:
        if name in ("ebmc", "concat") or set(name) & set(".+/") or hasattr(torch.nn.ModuleDict(), name):
            raise DataError(
                f"--data: a modality is named {name!r}, expected one without '.', '+' or '/' that is no model and no "
                "attribute of torch.nn.ModuleDict; rename it in the file."
            )
    known = ["ebmc", "concat", *dataset.modalities]
    if model not in known:
        raise DataError(f"--model: {model}, expected {', '.join(known)}; the modalities are those of the data.")
    names = known if compare else [model]
    if len(dataset.modalities) < 2 and "ebmc" in names:
        raise DataError(
            f"--model: ebmc with {dataset.modalities} alone, expected at least two modalities to balance; "
            f"pass --model {dataset.modalities[0]}."
        )
    return names


def with_something(fold: Fold) -> Fold:
    """Only the samples that have a modality at all: from the others there is nothing to learn."""
    return fold.keep(torch.stack(list(fold.present.values())).any(0))


def sizes(dataset: Dataset) -> str:
    folds = " / ".join(f"{len(dataset.splits[fold])} {fold}" for fold in FOLDS)
    return f"{folds}; " + ", ".join(f"{name} {size}" for name, size in dataset.dims.items())


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as problem:
        raise DataError(
            f"--device: {name} cannot be used here, expected cpu, cuda, mps or auto; pass --device cpu."
        ) from problem
    return torch.device(name)


def writable(path: Path) -> None:
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise DataError(
            f"--predictions: {path} cannot be written, expected a file in a folder that exists; change it."
        )


@contextmanager
def folder(out: Path, name: str | None, default: str) -> Iterator[tuple[Path, Path]]:
    """A folder that appears under its name only when all of it is written, and leaves nothing behind otherwise."""
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        raise DataError(f"--name: {name!r}, expected a plain folder name; put the path in --out.")
    final = out / (name or default)
    for number in range(2, 10_000):
        if not final.exists():
            break
        if name is not None:
            raise DataError(
                f"--name: {final} exists already, expected a new name; pass another or remove the folder."
            )
        final = out / f"{default}-{number}"
    created = not out.exists()
    partial = out / f".{final.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as problem:
        raise DataError(
            f"--out: {out} cannot be written ({problem.strerror}), expected a folder of yours; change it."
        ) from problem
    try:
        yield partial, final
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if created:
            shutil.rmtree(out, ignore_errors=True)
        raise


def bars() -> Progress:
    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    return Progress(*columns, console=console)
