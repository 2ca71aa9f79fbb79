"""A run from data to its folder: train every model and seed, test once, write the results."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ebmc_msa.data import DataError, Dataset
from ebmc_msa.data.dataset import SPLITS
from ebmc_msa.data.files import write_text
from ebmc_msa.data.fingerprint import fingerprint
from ebmc_msa.data.split import SplitView
from ebmc_msa.data.tokens import describe, tokenised
from ebmc_msa.evaluation.impaired import Impaired, scores_by_part
from ebmc_msa.evaluation.metrics import KINDS
from ebmc_msa.evaluation.predict import label_targets, predict
from ebmc_msa.evaluation.scores import by_condition, contribution
from ebmc_msa.model.prediction import spec_of
from ebmc_msa.model.settings import Settings
from ebmc_msa.report.against import read as read_against
from ebmc_msa.report.record import Record
from ebmc_msa.report.report import print_table, print_verdict, write_report
from ebmc_msa.report.run_view import CONTROL
from ebmc_msa.training import checkpoint
from ebmc_msa.training.console import Bars, console, described, introduce, pick_device, writable
from ebmc_msa.training.distributed import barrier, broadcast_from_rank0, rank
from ebmc_msa.training.jobs import Show, processes, train_all
from ebmc_msa.training.log import Log, open_log
from ebmc_msa.training.results import errors, parameters, prediction_rows, save_predictions, summary
from ebmc_msa.training.resume import PartialRun, begin, finalized
from ebmc_msa.training.stages import train as train_model

if "OMP_NUM_THREADS" not in os.environ:
    # Steps this small gain nothing from more threads, and on a busy machine lose tenfold to their waiting.
    torch.set_num_threads(1)


def train(
    dataset: Dataset, args: argparse.Namespace, settings: Settings, command: dict[str, Any], run: PartialRun | None
) -> Path:
    """Train, or go on with a `run` that was interrupted, for which `command` is kept; the folder of the run."""
    if settings.finetune_text is not None:
        dataset = tokenised(dataset, describe(Path(settings.finetune_text)))
    names = models(dataset, args.model, args.compare, settings.context != "none")
    device = pick_device(args.device)
    jobs = processes(args.jobs, device)
    if args.predictions:
        writable(args.predictions)
    other = {"against": read_against(args.against, dataset.kind)} if args.against else {}
    metadata = {**command, "data": fingerprint(dataset)}
    if run is None:
        what = "compare" if args.compare else "-".join([args.model, *(f"no-{part}" for part in settings.without)])
        final = broadcast_from_rank0(lambda: str(begin(args.out, args.name, f"{dataset.name}-{what}", metadata)))
        run = PartialRun(Path(final), metadata)
    elif run.metadata["data"] != metadata["data"]:
        raise DataError(
            f"--resume: {args.data or 'the synthetic set'} is not what {run.final} began with, expected the same "
            "data; put them back, or start another run."
        )
    with finalized(run), open_log(args.log, run.partial) as log:
        introduce(dataset)
        wanted = [(name, seed) for name in names for seed in args.seeds]
        left = broadcast_from_rank0(lambda: [pair for pair in wanted if run.record(*pair) is None])
        work = partial(one, dataset, settings, device, run, log, len(names) > 1)
        with Bars(left) as show:
            train_all(left, work, show, jobs)
        if rank() > 0:
            return run.final
        records = [Record(**run.record(*pair)) for pair in wanted]
        command_line = run.metadata["command"]
        results = summary(dataset, records, args.seeds, settings, command_line, args.compare, described(device))
        write_text(run.partial / "config.toml", run.metadata["repeat"])
        write_text(run.partial / "metrics.json", json.dumps(results, indent=2) + "\n")
        with log.report():
            write_report(run.partial / "report.html", results | other, records)
        if args.predictions:
            save_predictions(args.predictions, [row for record in records for row in record.rows])
    print_table(results, console)
    print_verdict(results, console)
    since = ", since it was resumed," * run.resumed
    spent = f"{sum(os.times()[:4]):.0f} s of processor time{since} on {results['device']}"
    count = f"{len(records)} checkpoint{'s' * (len(records) > 1)}"
    if args.log:
        console.print(f"To watch: tensorboard --logdir {run.final / args.log}", markup=False)
    console.print(f"{spent}. In {run.final}: metrics.json, {count} and", markup=False)
    console.print(run.final / "report.html", style="bold", markup=False, soft_wrap=True)
    return run.final


def one(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    run: PartialRun,
    log: Log,
    compared: bool,
    name: str,
    seed: int,
    show: Show,
) -> None:
    """Train one model from one seed, or continue its training, and test it, once; keep its record.

    One that is `compared` with others is also scored with impaired validation utterances, to choose the best.
    """
    torch.manual_seed(seed)
    base = name.removesuffix(CONTROL)
    settings = replace(settings, shuffled=name != base)
    spec = spec_of(dataset, settings, None if base in ("ebmc", "concat") else [base])
    model = checkpoint.build(base, spec, settings).to(device)
    if spec.text is not None:
        model.encoders["text"].load(Path(settings.finetune_text))
    train_split, valid, test = (SplitView.of(dataset.splits[split], spec, device) for split in SPLITS)
    epochs = settings.stage1_epochs + settings.stage2_epochs
    show(name, seed, completed=0, total=epochs)

    def after_epoch(stage: str, epoch: int, entry: dict[str, Any]) -> None:
        key = KINDS[spec.kind].selects
        reached[stage] = epoch
        show(
            name,
            seed,
            completed=sum(reached.values()),
            state=f"{stage} {epoch}, valid {key} {entry['valid'][key]:.3f}",
        )
        events.epoch(entry)

    save, state = run.saver(name, seed), run.training(name, seed)
    events = log.model(name, seed, state)
    reached = {} if state is None else {stage["name"]: stage["epochs"] for stage in state["stages"]}
    barrier()  # all have read it before the first goes on to remove it
    train_split = train_split.with_any_modality()
    trained = train_model(model, train_split, valid, settings, seed, after_epoch, save=save, state=state)
    model, stages, stage1 = trained.model, trained.stages, trained.stage1
    chosen = [f"{s.epoch}{' (undone)' * s.undone}" for s in stages]
    undone = any(stage.undone for stage in stages)
    show(name, seed, completed=1, total=1, state="epochs " + " + ".join(chosen))
    if rank() > 0:
        return
    checkpoint.save(run.partial / f"{name}-{seed}.pt", name, seed, model, settings)

    impaired = {split: Impaired.of(dataset.splits[split].present) for split in ("valid", "test")}
    held_out = scores_by_part(model, valid, impaired["valid"]) if compared else {}
    after = contribution(model, valid)
    out = predict(model, test)
    fused = {"after": out.fused.tolist()}
    if stage1 is not None and not undone:
        fused["before"] = predict(stage1, test).fused.tolist()
    record = Record(
        model=name,
        seed=seed,
        history=[entry for stage in stages for entry in stage.history],
        epochs={stage.name: stage.epoch for stage in stages},
        undone=undone,
        test=by_condition(model, test, dataset.splits["test"].parts),
        contribution={"before": after if stage1 is None else contribution(stage1, valid), "after": after},
        trust={m: w.tolist() for m, w in out.trust.items()},
        present={m: here.tolist() for m, here in test.present.items()},
        error=errors(spec, out.outputs, test).tolist(),
        fused=fused,
        target=label_targets(spec, test.target).tolist(),
        temperatures=model.temperatures(),
        experts=model.experts(),
        cost={s.name: {"seconds": s.seconds, "epochs": s.epochs, "step_ms": s.step_ms} for s in stages},
        parameters=parameters(model),
        rows=prediction_rows(name, seed, spec, dataset.splits["test"].id, out, test),
        samples=scores_by_part(model, test, impaired["test"]),
        valid={part: statistics.fmean(scores) for part, scores in held_out.items()},
    )
    events.end(record)
    run.finish(name, seed, record.as_dict())


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
