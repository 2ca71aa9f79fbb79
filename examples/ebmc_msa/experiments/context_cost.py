"""What a context of conversations adds to a training step: time and memory, of concatenation and of EBMC."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ebmc_msa.data import Dataset
from ebmc_msa.data.batch import Batch
from ebmc_msa.data.check import context_of
from ebmc_msa.data.split import SplitView, shuffled
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.prediction import Model, spec_of
from ebmc_msa.model.settings import Settings
from modbalance.dropout import modality_dropout

CPU = torch.device("cpu")


@dataclass
class Case:
    """A model that trains on the batches of an epoch, in turn."""

    name: str
    step: Callable[[Batch], None]
    split: SplitView
    batches: list[Tensor]


def cost_of_context(dataset: Dataset, context: str, rounds: int, size: int) -> list[dict[str, Any]]:
    """Rows with processor time of a step, by step and by 100 utterances, and the most memory that it allocates.

    A batch with context holds whole conversations of at least `size` utterances, without exactly `size`: compare by
    utterance. All cases take turns. Memory is the most that the tensors of a step take at a time: activations,
    gradients and temporary ones, not parameters, their averages in AdamW and the batch; by torch's profiler, the
    largest of three batches. On a CPU.
    """
    context_of(dataset, context)
    cases = [case for kind in dict.fromkeys(("none", context)) for case in cases_of(dataset, kind, size)]
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    utterances: dict[str, int] = dict.fromkeys(times, 0)
    turns = {case.name: cycle(case.batches) for case in cases}
    for i in range(rounds + 1):  # the first does not count
        for case in cases:
            batch = hidden(case.split.rows(next(turns[case.name])), i)
            start = time.process_time()
            case.step(batch)
            if i:
                times[case.name].append(1000 * (time.process_time() - start))
                utterances[case.name] += len(batch)
    peaks = {
        case.name: max(peak_bytes(case.step, hidden(case.split.rows(rows), 0)) for rows in case.batches[:3])
        for case in cases
    }
    first = 100 * sum(times[cases[0].name]) / utterances[cases[0].name]
    rows = []
    for name, values in times.items():
        each = 100 * sum(values) / utterances[name]
        rows.append(
            {
                "table": f"training step on {dataset.name}",
                "name": name,
                "ms": sum(values) / rounds,
                "utterances": utterances[name] / rounds,
                "ms/100 utterances": each,
                "ratio": each / first,
                "MB": peaks[name] / 1e6,
            }
        )
    return rows


def cases_of(dataset: Dataset, context: str, size: int) -> list[Case]:
    settings = Settings(context=context)
    spec = spec_of(dataset, settings)
    train, valid = (SplitView.of(dataset.splits[name], spec, CPU) for name in ("train", "valid"))
    batches = shuffled(train, size, torch.Generator().manual_seed(0))
    plain, first, second = Concat(spec, settings), EBMC(spec, settings), EBMC(spec, settings)
    second.eval().start_balancing(train, valid, {})
    models: dict[str, Model] = {"concatenation": plain, "EBMC, enhance": first, "EBMC, balance": second}
    for model in models.values():
        for name, encoder in model.encoders.items():
            encoder.standardise(train.frames(name))
    return [
        Case(f"{name}, {'no' if context == 'none' else context} context", stepper(model.train()), train, batches)
        for name, model in models.items()
    ]


def stepper(model: Model) -> Callable[[Batch], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()

    return step


def hidden(batch: Batch, seed: int) -> Batch:
    """With modality dropout, as in training: teachers read only what is there."""
    generator = torch.Generator().manual_seed(seed)
    return batch.with_present(modality_dropout(batch.present, Settings.modality_dropout, generator=generator))


def peak_bytes(step: Callable[[Batch], None], batch: Batch) -> int:
    """The most that is allocated at a time of what a step allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    total = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        total += size
        peak = max(peak, total)
    return peak
