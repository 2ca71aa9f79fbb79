"""Time the energy gradient-norm penalty, forward and backward, beside double backward and the compiler.

    python examples/benchmark_kernel.py --quick
    python examples/benchmark_kernel.py --shapes gpu --device cuda --dtype bfloat16 --out runs/kernel

Every method is first compared with the reference in float64; if one disagrees nothing is timed. Then all take turns
on the same tensors, so that a busy machine slows them alike. On a GPU there is also the host's part of the time, the
time of a CUDA graph's replay and the peak memory. A method that runs out of memory leaves its cells empty. Writes
`kernel.csv` and `kernel.png`.
"""

import argparse
import csv
import datetime
import importlib.metadata
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from kernel_methods import Inputs, Method, by_autograd, gradients, make_inputs, ours, twice
from modbalance.tasks import Task

GRID = list(itertools.product((1, 16, 64, 256, 1024, 4096, 65536), (32, 128, 768), (1, 4, 7), (2, 3, 5)))
QUICK = [(1, 32, 4, 3), (64, 128, 4, 3), (1024, 128, 4, 3), (4096, 128, 7, 2), (4096, 768, 4, 3)]
GPU = [(256, 768, 7, 3), (1024, 512, 4, 3), (4096, 1024, 4, 3), (16384, 768, 7, 3), (65536, 1024, 4, 3)]
GPU.append((65536, 4096, 4, 5))
CPU = list(itertools.product((1, 16, 64, 256, 1024, 4096), (128, 768), (4, 7), (2, 3)))
SHAPES = {"grid": GRID, "quick": QUICK, "cpu": CPU, "gpu": GPU}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Row = dict[str, Any]  # of the CSV
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # relative L2


def make_methods(task: str, device: str, dtype: torch.dtype, compiled: bool) -> dict[str, Method]:
    own = {backend: ours(task, backend) for backend in (["analytic", "triton"] if device == "cuda" else ["analytic"])}
    for backend, method in own.items():
        try:
            gradients(method, make_inputs((2, 16, 2, 2), task, "trained", device, dtype))
        except (ImportError, RuntimeError, ValueError) as error:
            sys.exit(f"{backend} cannot run here: {error}")
    methods = {"eager": twice(task, by_autograd), **own}
    if compiled:
        graph = twice(task, lambda function, z: torch.func.grad(function)(z))
        methods |= {
            f"compiled {name}": torch.compile(f, dynamic=False) for name, f in {"func.grad": graph, **own}.items()
        }
    return methods


def check(methods: dict[str, Method], task: str, x: Inputs) -> None:
    """Exit unless the gradients of every method are those of the float64 reference."""
    exact = gradients(ours(task, "reference"), x.double())
    tolerance = TOLERANCE[x.features[0].dtype]
    for name, method in methods.items():
        for got, want in zip(if_it_fits(lambda m=method: gradients(m, x)) or exact, exact, strict=True):
            error = ((got.double() - want).norm() / want.norm().clamp(min=1e-30)).item()
            if not error <= tolerance:
                sys.exit(f"{name} is {error:.1e} off the float64 reference, above {tolerance:.0e}: nothing timed")


def measure(methods: dict[str, Method], x: Inputs, seconds: float, clock: Callable[[], float]) -> dict[str, Row]:
    """In turns: quantiles of the time in µs; on a GPU also the host's, a graph's replay, and peak memory in bytes."""
    cuda = x.target.is_cuda
    wait = torch.cuda.synchronize if cuda else lambda: None
    fits = {name: method for name, method in methods.items() if if_it_fits(lambda m=method: gradients(m, x))}
    times, hosts = ({name: [] for name in fits} for _ in range(2))
    end = time.perf_counter() + seconds * len(fits)
    while fits and (min(map(len, times.values())) < 3 or time.perf_counter() < end):
        for name, method in fits.items():
            wait()
            start = clock()
            result = gradients(method, x)
            hosts[name].append(clock() - start)
            wait()
            times[name].append(clock() - start)
            del result
    rows: dict[str, Row] = {}
    for name, method in methods.items():
        quantiles = statistics.quantiles(times[name], n=10, method="inclusive") if name in fits else [""] * 9
        rows[name] = {f"p{10 * i + 10}_us": 1e6 * quantiles[i] if name in fits else "" for i in (1, 4, 7)}
        rows[name]["host_us"] = 1e6 * statistics.median(hosts[name]) if cuda and name in fits else ""
        rows[name]["graph_us"] = (cuda and name in fits and if_it_fits(lambda m=method: graph_time(m, x))) or ""
        rows[name]["peak_bytes"] = peak_memory(method, x) if cuda and name in fits else ""
    return rows


def if_it_fits(run: Callable[[], Any]) -> Any:
    """What `run` returns; None where it runs out of memory."""
    try:
        return run()
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # behind the handler: the error's traceback holds tensors
    return None


def graph_time(method: Method, x: Inputs, replays: int = 20) -> float:
    """Microseconds of a CUDA graph's replay: what the device takes, without the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            gradients(method, x)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # the graph has a pool of its own
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = gradients(method, x)
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end) / replays)
    del kept
    return statistics.median(times)


def peak_memory(method: Method, x: Inputs) -> float:
    """Besides inputs, outputs and gradients."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = gradients(method, x)
    return torch.cuda.max_memory_allocated() - before - sum(g.nbytes for g in result)


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by the best of twenty large copies."""
    x = torch.empty((1 << 30) if device == "cuda" else (1 << 27), dtype=torch.uint8, device=device).zero_()
    y, times = torch.empty_like(x).zero_(), []
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(20):
        wait()
        start = time.perf_counter()
        y.copy_(x)
        wait()
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(times)


def stamp(device: str) -> Row:
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    cpu = f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu
    versions = {"torch": torch.__version__, "triton": packages.get("triton", "none")}
    return {"date": datetime.date.today().isoformat(), "device": name, **versions}


def summary(rows: list[Row], console: Console) -> None:
    """Speed-ups of a CUDA graph's replay where there are any, else of the time to wait."""
    ratio = "graph_speedup" if any(r["graph_speedup"] for r in rows) else "speedup"
    what = "speed-up, graph" if ratio == "graph_speedup" else "speed-up"
    table = Table("heads", "method", "shapes", f"median {what}", "worst", "best", "median share of floor")
    for heads, method in sorted({(r["heads"], r["method"]) for r in rows}):
        mine = [r for r in rows if (r["heads"], r["method"]) == (heads, method) and r[ratio]]
        if not mine:
            continue
        ratios = [r[ratio] for r in mine]
        numbers = (f"{f(ratios):.2f}" for f in (statistics.median, min, max))
        table.add_row(
            heads, method, str(len(mine)), *numbers, f"{statistics.median(r['floor_share'] for r in mine):.1%}"
        )
    console.print(table)


def cell(row: Row) -> str:
    """Time to wait for a step; on a GPU also the host's part, a graph's replay, and the peak memory."""
    if not row["p50_us"]:
        return "out of memory"
    more = {"host": row["host_us"], "graph": row["graph_us"]}
    peak = f", {row['peak_bytes'] / 1e6:.0f} MB" if row["peak_bytes"] != "" else ""
    return f"{row['p50_us']:.0f} µs" + "".join(f", {k} {v:.0f} µs" for k, v in more.items() if v) + peak


def write(rows: list[Row], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)


def plot(rows: list[Row], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    time = "graph_us" if any(r["graph_us"] for r in rows) else "p50_us"
    for method in dict.fromkeys(r["method"] for r in rows):
        points = [(r["feature_bytes"], r[time]) for r in rows if r["method"] == method and r[time]]
        if not points:
            continue
        axes.scatter(*zip(*points, strict=True), s=12, alpha=0.6, label=method)
    floor = sorted({(r["feature_bytes"], r["floor_us"]) for r in rows})
    axes.plot(*zip(*floor, strict=True), color="black", linewidth=1, label="floor: copy bandwidth")
    what = "forward and backward" + (", replay of a CUDA graph" if time == "graph_us" else "")
    axes.set(xscale="log", yscale="log", xlabel="bytes of features", ylabel=f"{what}, µs")
    axes.set_title(rows[0]["device"])
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the features; heads are float32")
    parser.add_argument("--task", choices=get_args(Task), default="classification")
    parser.add_argument("--shapes", choices=list(SHAPES), default="grid", help="gpu: six that end in minutes")
    parser.add_argument("--quick", action="store_const", const="quick", dest="shapes", help="as --shapes quick")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="the compiled columns")
    parser.add_argument(
        "--limit", type=float, help="GiB of features (default 0.7, on a GPU 16); double backward takes 15 times that"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="to spend on each method and shape")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads, not wall time: for a busy machine")
    parser.add_argument("--out", type=Path, default=Path("runs/kernel"), help="folder of kernel.csv and kernel.png")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; pass --device cpu")
    if options.device == "cuda" and options.cpu_time:
        parser.error("--cpu-time: cannot measure a GPU; leave it out")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out}: is a file, expected a folder")
    options.limit = options.limit or (16.0 if options.device == "cuda" else 0.7)
    if not (options.limit > 0 and options.seconds > 0):
        parser.error(f"--limit {options.limit} --seconds {options.seconds}: expected numbers above zero")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    console, device, dtype = Console(), options.device, DTYPES[options.dtype]
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(0)
    torch._dynamo.config.cache_size_limit = 8 * len(GRID)
    compiled = options.shapes == "grid" if options.compile is None else options.compile
    methods = make_methods(options.task, device, dtype, compiled)
    bandwidth, header, rows = copy_bandwidth(device), stamp(device), []
    options.out.mkdir(parents=True, exist_ok=True)
    for shape, heads in itertools.product(SHAPES[options.shapes], ("trained", "fixed")):
        size = shape[0] * shape[1] * shape[3] * dtype.itemsize
        if size > options.limit * 2**30:
            console.print(f"skipped {shape}: its features exceed --limit {options.limit} GiB")
            continue
        few = (min(shape[0], 4096), *shape[1:])
        check(methods, options.task, make_inputs(few, options.task, heads, device, dtype))
        results = measure(methods, make_inputs(shape, options.task, heads, device, dtype), options.seconds, clock)
        what = {"task": options.task, "dtype": options.dtype, "heads": heads, **dict(zip("BDCM", shape, strict=True))}
        floor, eager = 3e6 * size / bandwidth, results["eager"]
        for name, result in results.items():
            device_time = result["graph_us"] or result["p50_us"]
            shares = {"floor_us": floor, "floor_share": floor / device_time if device_time else ""}
            for key, time_of in (("speedup", "p50_us"), ("graph_speedup", "graph_us")):
                shares[key] = eager[time_of] / result[time_of] if eager[time_of] and result[time_of] else ""
            rows.append({**header, **what, "method": name, **result, **shares, "feature_bytes": size})
        console.print(f"{shape} {heads}", {k: cell(v) for k, v in results.items()}, soft_wrap=True)
        write(rows, options.out / "kernel.csv")
    if rows:
        summary(rows, console)
        plot(rows, options.out / "kernel.png")
        console.print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s; wrote {options.out}/kernel.csv and kernel.png")


if __name__ == "__main__":
    main()
