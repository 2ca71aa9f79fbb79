"""Train on data of MOSEI's size: how fast, how much memory, how long until the first step.

    python examples/ebmc_msa/benchmark.py data make DIR               random data in the converted layout, 8.5 GB
    python examples/ebmc_msa/benchmark.py data measure DIR --steps 30  or any other data that train.py reads

Durations are log-normal around 6.2 s, with 2.7 tokens and 30 frames a second; longer sequences are cut.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from ebmc_msa.data import Dataset, Split, load
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.exit_status import exit_status
from ebmc_msa.data.formats.converted import on_disk, write_folder
from ebmc_msa.data.parser import Parser
from ebmc_msa.data.split import SplitView, shuffled
from ebmc_msa.model.settings import ENCODERS, Settings
from ebmc_msa.training import checkpoint

SHAPES = {"text": (50, 768, 2.7), "audio": (500, 74, 30), "vision": (500, 35, 30)}  # frames, features, per second
SHARES = {"train": 16_326, "valid": 1_871, "test": 4_659}
ROWS = sum(SHARES.values())


def make(rows: int, folder: Path) -> None:
    """Write `rows` random utterances of MOSEI's shape, in its three splits."""
    rng = np.random.default_rng(0)
    splits = {}
    with tempfile.TemporaryDirectory(dir=folder.parent) as workspace:
        assemble = on_disk(Path(workspace))
        for split, share in SHARES.items():
            size = max(2, rows * share // ROWS)
            seconds = rng.lognormal(np.log(6.2), 0.6, size)
            features, lengths = {}, {}
            for name, (frames, width, rate) in SHAPES.items():
                length = (seconds * rate).astype(np.int64).clip(1, frames)
                shape, blocks = (size, frames, width), normal(length, frames, width, rng)
                features[name] = assemble(shape, np.dtype(np.float32), blocks)
                lengths[name] = torch.from_numpy(length)
            present = {name: torch.ones(size, dtype=torch.bool) for name in SHAPES}
            target = torch.from_numpy(rng.uniform(-3, 3, size).astype(np.float32))
            splits[split] = Split(features, lengths, present, target, [f"{split}-{i}" for i in range(size)])
        folder.mkdir()
        write_folder(Dataset("random-mosei", "sentiment", 1, splits, "random numbers"), folder)


def normal(lengths: np.ndarray, frames: int, width: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for length in np.array_split(lengths, len(lengths) // 256 + 1):
        x = rng.standard_normal((len(length), frames, width), np.float32)
        x[np.arange(frames) >= length[:, None]] = 0
        yield x


def measure(source: Path, model_name: str, encoder: str, steps: int, device: torch.device) -> None:
    with Memory() as memory:
        started = time.perf_counter()
        dataset = load(source)
        loaded = time.perf_counter()
        spec, settings = Spec.of(dataset), Settings(encoder=encoder)
        split = SplitView.of(dataset.splits["train"], spec, device)
        model = checkpoint.build(model_name, spec, settings).to(device).train()
        for name in spec.dims:
            model.encoders[name].standardise(split.frames(name))
        ready = time.perf_counter()
        step = stepper(model, settings)
        bucketed = iter(epochs(split, settings.batch_size, 16))
        for _ in range(steps):
            step(split.rows(next(bucketed)))
        print(f"{source}: {len(split)} training samples; {model_name}, {encoder}, batches of {settings.batch_size}")
        print(f"ready after {ready - started:.1f} s: {loaded - started:.1f} s opening, the rest statistics")
        print(f"{steps} steps hold {memory.anonymous / 1e9:.2f} GB, {memory.peak() / 1e9:.2f} GB with mapped pages")

    longest = {name: split.features[name].shape[1] for name in spec.sequences}
    plain = iter(epochs(split, settings.batch_size, 1))
    ways: dict[str, Callable[[], Batch]] = {
        "padded to the maximum": lambda: padded(split.rows(next(plain)), longest),
        "padded to the batch": lambda: split.rows(next(plain)),
        "and similar lengths together": lambda: split.rows(next(bucketed)),
    }
    for way, (seconds, frames, of) in timed(ways, step, steps, device).items():
        speed = f"{1e3 * seconds / steps:8.1f} ms/step {frames / seconds:9.0f} tokens/s"
        print(f"{way:>30}: {speed}, padding {1 - frames / of:.0%}")


def epochs(split: SplitView, size: int, window: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from shuffled(split, size, generator, window)


def padded(batch: Batch, longest: dict[str, int]) -> Batch:
    features = {
        name: pad(x, (0, 0, 0, longest[name] - x.shape[1])) if name in longest else x
        for name, x in batch.features.items()
    }
    return Batch(features, batch.lengths, batch.present, batch.target)


def stepper(model: Any, settings: Settings) -> Callable[[Batch], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()

    return step


def timed(
    ways: dict[str, Callable[[], Batch]], step: Callable[[Batch], None], steps: int, device: torch.device
) -> dict[str, tuple[float, int, int]]:
    """Seconds, valid frames and frames computed by way; they take turns, so that a busy machine slows them alike."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = {way: [0.0, 0, 0] for way in ways}
    for _ in range(steps):
        for way, next_batch in ways.items():
            tick = clock()
            batch = next_batch()
            step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[way][0] += clock() - tick
            found[way][1] += sum(int(n.sum()) for n in batch.lengths.values())
            found[way][2] += sum(batch.features[name].shape[:2].numel() for name in batch.lengths)
    return {way: tuple(values) for way, values in found.items()}


class Memory:
    """The most memory this process has held, sampled: of its own, and with the pages of files that are mapped.

    The second kind the kernel takes back whenever another needs it.
    """

    def __enter__(self) -> Memory:
        self.anonymous, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self) -> int:
        return self._read("VmHWM")

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.anonymous = max(self.anonymous, self._read("RssAnon"))

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="benchmark.py data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "measure"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="utterances to make (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="to measure, of each kind (%(default)s)")
    parser.add_argument("--model", default="ebmc", help="ebmc or concat (%(default)s)")
    parser.add_argument("--encoder", default=Settings.encoder, choices=ENCODERS, help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    args = parser.parse_args(arguments)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return exit_status(lambda: run(args), interrupted="")


def run(args: argparse.Namespace) -> None:
    if args.what == "make":
        make(args.rows, args.folder)
    else:
        measure(args.folder, args.model, args.encoder, args.steps, torch.device(args.device))
