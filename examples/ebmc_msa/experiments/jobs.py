"""The jobs of a comparison: train one method from one seed, and store its predictions and measurements."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ebmc_msa.data import DataError, LabelOptions
from ebmc_msa.data.files import read_tensors, write_tensors, write_text
from ebmc_msa.data.missing import conditions, restrict
from ebmc_msa.data.split import SplitView
from ebmc_msa.data.task import MOSI
from ebmc_msa.evaluation import robustness
from ebmc_msa.evaluation.metrics import KINDS
from ebmc_msa.evaluation.predict import label_predictions, label_targets, predict
from ebmc_msa.evaluation.scores import evaluate
from ebmc_msa.experiments import internals
from ebmc_msa.experiments.baselines import METHODS, Work, trained
from ebmc_msa.experiments.dataset_view import Source, read
from ebmc_msa.experiments.method import Method
from ebmc_msa.experiments.summary import VERSION, result_path
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.prediction import spec_of
from ebmc_msa.training.stages import train

CPU = torch.device("cpu")


class Job(NamedTuple):
    method: Method
    seed: int


def run(jobs: list[Job], source: Source, out: Path, processes: int, protocols: Collection[str] = ()) -> int:
    """Do the jobs; the number of those that failed."""
    if processes < 2 or len(jobs) < 2:
        todo = [partial(do, job, source, out, protocols) for job in jobs]
        return sum(print_result(i, jobs, job, work) for i, (job, work) in enumerate(zip(jobs, todo, strict=True), 1))
    # Left to Python, Ctrl-C would print a traceback for each process.
    quiet = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, quiet) as pool:
        running = {pool.submit(do, job, source, out, protocols): job for job in jobs}
        try:
            finished = enumerate(as_completed(running), 1)
            return sum(print_result(i, jobs, running[done], done.result) for i, done in finished)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def print_result(number: int, jobs: list[Job], job: Job, result: Callable[[], str]) -> int:
    try:
        line, failed = result(), 0
    except DataError as problem:
        line, failed = f"failed: {problem}", 1
    print(f"[{number}/{len(jobs)}] {job.method} {job.seed}: {line}", flush=True)
    return failed


def do(job: Job, source: Source, out: Path, protocols: Collection[str] = ()) -> str:
    """Train one method from one seed; store its predictions for validation and test with every set of modalities.

    `protocols`: `unequal`, `noise` or both, measured on the test split as train.py --missing does.
    """
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    started = time.process_time()
    dataset, method = read(source), job.method
    settings = method.settings()
    spec = spec_of(dataset, settings, [method.modality] if method.modality else None)
    splits = {name: SplitView.of(split, spec, CPU) for name, split in dataset.splits.items()}

    def alone(modality: str) -> Concat:
        model = Concat(spec_of(dataset, settings, [modality]), settings)
        model.load_state_dict(read_tensors(result_path(out, method.alone(modality), job.seed))["state"])
        return model.eval()

    train_split = splits["train"].with_any_modality()
    work = Work(spec, settings, train_split, splits["valid"], job.seed, alone)
    kind = spec.kind if spec.range in (None, MOSI) else "regression"  # Acc-2 has0 is of MOSI's scale
    result: dict[str, Any] = {"version": VERSION, "kind": kind, "conditions": list(conditions(spec.dims))}
    ebmc = None
    if method.name == "ebmc":
        ebmc = train(EBMC(spec, settings), work.train, work.valid, settings, job.seed, lambda *_: None)
        model = ebmc.model
    else:
        model = trained(Concat(spec, settings), work) if method.modality else METHODS[method.name](work)
    for name in splits.keys() & {"valid", "test"}:
        split = splits[name]
        views = [split.with_present(restrict(split.present, names)) for names in conditions(spec.dims).values()]
        outputs = [predict(model, view).outputs for view in views]
        result[name] = torch.stack([label_predictions(spec, x) for x in outputs])
        result |= {f"{name}_target": label_targets(spec, split.target), f"{name}_outputs": outputs[-1]}
    if method.modality:
        result["state"] = model.state_dict()
    if "unequal" in protocols and "test" in splits and not method.modality:
        test = splits["test"]
        result["unequal"] = {
            level.name: torch.stack([label_predictions(spec, predict(model, test, c).outputs) for c in level.changes])
            for level in robustness.levels("unequal", test.present, ())[1:]
        }
    if "noise" in protocols and "test" in splits:
        sizes = {}
        for modality in spec.dims:
            unimodal = model if method.modality else alone(modality)
            valid = SplitView.of(dataset.splits["valid"], unimodal.spec, CPU)
            sizes[modality] = robustness.noise_size(modality, f"alone:{modality}", [unimodal], [valid])
        result["noise"] = robustness.degrade_by_noise(model, splits["test"], sizes)
    result |= {"settings": settings.as_dict(), "seconds": time.process_time() - started}
    if ebmc is not None:
        result["internals"] = internals.inspect(ebmc, splits | {"train": work.train})
    write_tensors(result_path(out, *job), result)
    metric = KINDS[spec.kind].selects
    return f"valid {metric} {evaluate(model, work.valid)[metric]:.3f}, {result['seconds']:.0f} s"


def claim(out: Path, source: Source) -> None:
    """Refuse a folder that holds results of other data."""
    held = {**source._asdict(), "path": source.path and str(source.path.resolve()), "test": None}
    stated = held.pop("options")
    data = json.dumps(held | (asdict(stated) if stated != LabelOptions() else {}), indent=2)
    path = out / "source.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text() != data:
            raise DataError(f"--out: {out} holds results of other data ({path}), expected its own; pass another.")
        write_text(path, data)
    except OSError as problem:
        raise DataError(f"--out: {out} ({problem.strerror}), expected a folder of yours; change it.") from problem
