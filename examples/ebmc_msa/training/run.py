"""A run from data to its folder: train every model and seed, test once, write what was found."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ebmc_msa.data import DataError, Dataset
from ebmc_msa.data.files import write_text
from ebmc_msa.data.fingerprint import fingerprint
from ebmc_msa.data.split import Fold
from ebmc_msa.evaluation.scores import SELECTION, by_condition, contribution, predict, truth
from ebmc_msa.model.prediction import spec_of
from ebmc_msa.model.settings import Settings
from ebmc_msa.model.text_encoder import describe, tokenised
from ebmc_msa.report.report import print_table, write_report
from ebmc_msa.report.run_view import CONTROL
from ebmc_msa.training import checkpoint
from ebmc_msa.training.distributed import count, from_first, rank, together
from ebmc_msa.training.results import errors, grouped, parameters, prediction_rows, spread, summary, write_predictions
from ebmc_msa.training.resume import Unfinished, begin, making
from ebmc_msa.training.stages import train as train_model

FOLDS = ("train", "valid", "test")
console = Console(quiet=rank() > 0)
if "OMP_NUM_THREADS" not in os.environ:
    # Steps this small gain nothing from more threads, and on a busy machine lose tenfold to their waiting.
    torch.set_num_threads(1)


def train(
    dataset: Dataset, args: argparse.Namespace, settings: Settings, command: dict[str, Any], run: Unfinished | None
) -> None:
    """Train, or go on with a `run` that was interrupted; `command` is what that is resumed by."""
    if settings.finetune_text is not None:
        dataset = tokenised(dataset, describe(Path(settings.finetune_text)))
    names = models(dataset, args.model, args.compare, settings.context != "none")
    device = pick_device(args.device)
    if args.predictions:
        writable(args.predictions)
    about = {**command, "data": fingerprint(dataset)}
    if run is None:
        what = "compare" if args.compare else "-".join([args.model, *(f"no-{part}" for part in settings.without)])
        final = from_first(lambda: str(begin(args.out, args.name, f"{dataset.name}-{what}", about)))
        run = Unfinished(Path(final), about)
    elif run.about["data"] != about["data"]:
        raise DataError(
            f"--resume: {args.data or 'the synthetic set'} is not what {run.final} began with, expected the same "
            "data; put them back, or start another run."
        )
    with making(run):
        console.print(
            f"{dataset.name}: {sizes(dataset)}" + (f"\n{dataset.note}" if dataset.note else ""), markup=False
        )
        with bars() as progress:
            records = [
                from_first(partial(run.record, name, seed))
                or one(dataset, name, seed, settings, device, run, progress)
                for name in names
                for seed in args.seeds
            ]
        if rank() > 0:
            return
        results = summary(dataset, records, args.seeds, settings, run.about["command"], args.compare)
        write_text(run.partial / "metrics.json", json.dumps(results, indent=2) + "\n")
        write_report(run.partial / "report.html", results, records)
        if args.predictions:
            save_predictions(args.predictions, [row for record in records for row in record["rows"]])
    print_table(results, console)
    count = f"{len(records)} checkpoint{'s' * (len(records) > 1)}"
    console.print(f"Written to {run.final}: report.html, metrics.json, {count}.")


def one(
    dataset: Dataset,
    name: str,
    seed: int,
    settings: Settings,
    device: torch.device,
    run: Unfinished,
    progress: Progress,
) -> dict[str, Any]:
    """Train one model from one seed, or go on with that, and test it, once."""
    torch.manual_seed(seed)
    base = name.removesuffix(CONTROL)
    settings = replace(settings, shuffled=name != base)
    spec = spec_of(dataset, settings, None if base in ("ebmc", "concat") else [base])
    model = checkpoint.build(base, spec, settings).to(device)
    if spec.text is not None:
        model.encoders["text"].load(Path(settings.finetune_text))
    train_fold, valid, test = (Fold.of(dataset.splits[fold], spec, device) for fold in FOLDS)
    bar = progress.add_task(f"{name} {seed}", total=settings.stage1_epochs + settings.stage2_epochs, state="")

    def tell(stage: str, epoch: int, entry: dict[str, Any]) -> None:
        key = SELECTION[spec.kind]
        done = epoch + (settings.stage1_epochs if stage == settings.order.partition("-")[2] else 0)
        progress.update(bar, completed=done, state=f"{stage} {epoch}, valid {key} {entry['valid'][key]:.3f}")

    save, state = run.saver(name, seed), run.training(name, seed)
    together()  # all have read it before the first goes on to remove it
    train_fold = with_something(train_fold)
    trained = train_model(model, train_fold, valid, settings, seed, tell, save=save, state=state)
    model, stages, stage1 = trained.model, trained.stages, trained.stage1
    progress.update(bar, total=1, completed=1, state="epochs " + " + ".join(str(s.epoch) for s in stages))
    if rank() > 0:
        return {}
    checkpoint.save(run.partial / f"{name}-{seed}.pt", name, seed, model, settings)

    after = contribution(model, valid)
    said = predict(model, test)
    fused = {"after": said.fused.tolist()}
    if stage1 is not None:
        fused["before"] = predict(stage1, test).fused.tolist()
    record = {
        "model": name,
        "seed": seed,
        "history": [entry for stage in stages for entry in stage.history],
        "epochs": {stage.name: stage.epoch for stage in stages},
        "test": by_condition(model, test, dataset.splits["test"].parts),
        "contribution": {"before": after if stage1 is None else contribution(stage1, valid), "after": after},
        "trust": {m: w.tolist() for m, w in said.trust.items()} or None,
        "present": {m: here.tolist() for m, here in test.present.items()},
        "error": errors(spec, said.outputs, test).tolist(),
        "fused": fused,
        "target": truth(spec, test.target).tolist(),
        "calibration": model.temperatures(),
        "cost": {s.name: {"seconds": s.seconds, "epochs": s.epochs, "step_ms": s.step_ms} for s in stages},
        "parameters": parameters(model),
        "rows": prediction_rows(name, seed, spec, dataset.splits["test"].id, said, test),
    }
    run.finish(name, seed, record)
    return record


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
    introduce(dataset)
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
    console.print(f"Written to {path}: {len(rows)} prediction{'s' * (len(rows) != 1)}.")


def models(dataset: Dataset, model: str, compare: bool, context: bool = False) -> list[str]:
    """What to train; with context and `compare` also each model's control, on conversations in random order."""
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
    if compare and context:
        names = [*names, *(f"{name}{CONTROL}" for name in names)]
    if len(dataset.modalities) < 2 and "ebmc" in names:
        raise DataError(
            f"--model: ebmc with {dataset.modalities} alone, expected at least two modalities to balance; "
            f"pass --model {dataset.modalities[0]}."
        )
    return names


def with_something(fold: Fold) -> Fold:
    """Only the samples that have a modality at all: from the others there is nothing to learn."""
    return fold.keep(torch.stack(list(fold.present.values())).any(0))


def introduce(dataset: Dataset) -> None:
    """Sizes, and what was decided about the data."""
    console.print(f"{dataset.name}: {sizes(dataset)}", *filter(None, [dataset.note]), sep="\n", markup=False)


def sizes(dataset: Dataset) -> str:
    folds = " / ".join(f"{len(dataset.splits[fold])} {fold}" for fold in FOLDS if fold in dataset.splits)
    return f"{folds}; " + ", ".join(f"{name} {size}" for name, size in dataset.dims.items())


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and count() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as problem:
        raise DataError(
            f"--device: {name} cannot be used here, expected cpu, cuda, mps or auto; pass --device cpu."
        ) from problem
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)
    return torch.device(name)


def writable(path: Path) -> None:
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise DataError(
            f"--predictions: {path} cannot be written, expected a file in a folder that exists; change it."
        )


def bars() -> Progress:
    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    return Progress(*columns, console=console)
