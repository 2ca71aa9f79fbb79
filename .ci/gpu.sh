#!/usr/bin/env bash
# The kernels on a GPU: every step by itself with its own limit, and LIMIT seconds (540) in all; what no longer fits is
# left out and says so. None stops the next one; the exit status is 1 if one failed.
#
#   bash .ci/gpu.sh                          from the repository's root; results go to $OUT, runs/gpu by default
#   STEPS="smoke bench" bash .ci/gpu.sh      some steps: env smoke bench kernels compile tests tiles train cost mosei memcheck
#   LIMIT=900 bash .ci/gpu.sh                all of it
#   DRY=1 bash .ci/gpu.sh                    on a CPU, to find slips; without kernels, tiles, tests and memcheck
#
# It uses names inside modbalance.kernels (the kernels, EnergyTerms; forward, backward and _TILES of the launcher) and
# Triton's device_caches: where they change, change them here too.
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-runs/gpu}; mkdir -p "$OUT"; OUT=$(cd "$OUT" && pwd); export OUT; PY=${PY:-python3}; WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH="$PWD:$PWD/tests:$PWD/examples${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$WORK/triton} TORCHINDUCTOR_CACHE_DIR=$WORK/inductor
unset TRITON_INTERPRET MODBALANCE_BACKEND
START=$(date +%s); LIMIT=${LIMIT:-540}
step() {  # name, seconds, command
  case " ${STEPS:-env smoke bench kernels compile tests tiles train cost mosei memcheck} " in *" $1 "*) ;; *) return;; esac
  local left=$((LIMIT - $(date +%s) + START)) limit=$2
  [ $left -lt 8 ] && { echo "### $1: no time left"; return; }
  [ $limit -gt $left ] && limit=$left
  echo; echo "### $1 (at $(( $(date +%s) - START )) s, limit $limit s)"
  BUDGET=$limit timeout -k 5 "$limit" bash -o pipefail -c "$3" 2>&1 | tee "$OUT/$1.txt" | cut -c1-400 | tail -n "${4:-60}"
  local rc=${PIPESTATUS[0]}
  [ "$rc" = 0 ] || FAILED="$FAILED $1"
  echo "### $1: rc $rc, now $(( $(date +%s) - START )) s"
}
FAILED=""

cat > "$WORK/lib.py" <<'E'
import os, sys, time, statistics, torch
DRY = os.environ.get("DRY") == "1"
DEV = "cpu" if DRY else "cuda"
T0, BUDGET = time.time(), float(os.environ.get("BUDGET", 60))
def left(): return BUDGET - (time.time() - T0)
from kernel_methods import by_autograd, gradients, make_inputs, ours, twice
sync = (lambda: None) if DRY else torch.cuda.synchronize
def wall(f, seconds=0.4, least=5):
    """median of one step, waited for; and the host's part of it, in microseconds"""
    for _ in range(2): f()
    sync(); w, h, end = [], [], time.perf_counter() + seconds
    while len(w) < least or time.perf_counter() < end:
        sync(); t = time.perf_counter(); r = f(); a = time.perf_counter(); sync(); b = time.perf_counter(); del r
        w.append(b - t); h.append(a - t)
    return 1e6 * statistics.median(w), 1e6 * statistics.median(h)
def graphed(f):
    """a callable that replays f"""
    if DRY: return f
    s = torch.cuda.Stream(); s.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(s):
        for _ in range(2): f()
    torch.cuda.current_stream().wait_stream(s)
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g): keep = f()
    def replay(): g.replay(); return keep
    return replay
def device_time(f, n=20):
    """by events, n in a row: what the device takes where the host keeps up (a graph's replay always)"""
    if DRY: return wall(f, 0.05)[0]
    for _ in range(2): f()
    out = []
    for _ in range(5):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2)); a.record()
        for _ in range(n): f()
        b.record(); sync(); out.append(a.elapsed_time(b) / n * 1e3)
    return statistics.median(out)
def bandwidth():
    n = 1 << (24 if DRY else 31); x = torch.empty(n, dtype=torch.uint8, device=DEV).random_(0, 255); y = torch.empty_like(x)
    return 2 * n / device_time(lambda: y.copy_(x), 5) * 1e6
def error(got, want): return max(float((a.double() - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(got, want))
BF, F32, F16 = torch.bfloat16, torch.float32, torch.float16
E

cat > "$WORK/smoke.py" <<'E'
from lib import *
import traceback
from modbalance import EnergyCoordinator
print(torch.__version__, torch.cuda.get_device_name() if not DRY else "cpu")
backend = "analytic" if DRY else "triton"
bad = 0
def tried(name, f):
    global bad
    t = time.time()
    try: said = f(); bad += "WRONG" in said; print(f"{name:44s} {said}  {time.time() - t:.1f}s", flush=True)
    except Exception as e: bad += 1; print(f"{name:44s} FAILS {type(e).__name__}: {str(e)[-300:]!r}  {time.time() - t:.1f}s", flush=True)
def penalty(task, shape, heads, dtype):
    x = make_inputs(shape, task, heads, DEV, dtype)
    e = error(gradients(ours(task, backend), x), gradients(ours(task, "reference"), x.double()))
    return f"gradients {e:.1e} {'ok' if e <= {F32: 1e-4, BF: 2e-2, F16: 2e-3}[dtype] else 'WRONG'}"
for task, shape, heads, dtype in [("classification", (333, 512, 4, 3), "fixed", BF), ("classification", (333, 512, 4, 3), "trained", BF), ("classification", (5, 17, 7, 2), "trained", F32),
                                  ("gaussian", (65, 96, 1, 3), "trained", F32), ("multilabel", (65, 96, 6, 2), "fixed", F16), ("classification", (64, 100, 64, 2), "trained", F32)]:
    tried(f"penalty {task} {shape} {heads} {str(dtype)[6:]}", lambda: penalty(task, shape, heads, dtype))
def coordinator(task, loss_only):
    dims = {"a": 96, "b": 74, "c": 35}; c = EnergyCoordinator(dims, 4, task, backend=backend, gamma=.5).to(DEV)
    z = {n: torch.randn(130, d, device=DEV, requires_grad=True) for n, d in dims.items()}
    y = torch.randint(4, (130,), device=DEV) if task == "classification" else torch.rand(130, 4, device=DEV)
    out = {}
    for b in (backend, "analytic"):
        c.backend = b; o = c(z, y, {"a": torch.rand(130, device=DEV, generator=torch.Generator(DEV).manual_seed(1)) < .7})
        s = o.loss if loss_only else o.gap + 2 * o.penalty + 3 * o.descent + sum(e.sum() for e in o.energy.values())
        out[b] = [s.detach(), *torch.autograd.grad(s, list(z.values()))]
    e = error(out[backend], [x.double() for x in out["analytic"]]); return f"{e:.1e} {'ok' if e < 1e-4 else 'WRONG'}"
for task in ("classification", "gaussian"):
    for only in (True, False): tried(f"coordinator {task} {'loss' if only else 'every term'}", lambda: coordinator(task, only))
sys.exit(bad > 0)
E

cat > "$WORK/kernels.py" <<'E'
from lib import *
if DRY: print("left out"); sys.exit()
B = bandwidth()
for shape, dtype, heads in [((65536, 1024, 4, 3), BF, "fixed"), ((65536, 1024, 4, 3), BF, "trained"), ((65536, 1024, 4, 3), F32, "fixed"), ((65536, 4096, 4, 5), BF, "fixed"), ((4096, 1024, 4, 3), BF, "fixed"), ((1024, 512, 4, 3), BF, "fixed")]:
    if left() < 8: break
    x = make_inputs(shape, "classification", heads, DEV, dtype); f = lambda: gradients(ours("classification", "triton"), x)
    for _ in range(3): f()
    sync()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
        for _ in range(5): f()
        sync()
    bytes_ = shape[0] * shape[1] * shape[3] * dtype.itemsize
    for e in sorted(p.key_averages(), key=lambda e: -e.self_device_time_total)[:7]:
        if e.self_device_time_total: print(shape, str(dtype)[6:], heads, f"{e.key[:46]:46s} {e.count // 5} a step, {e.self_device_time_total / e.count:9.1f} us, read once {bytes_ / B * 1e6:.0f} us", flush=True)
from modbalance.kernels import triton_kernels as k
for name in ("forward_kernel", "backward_kernel", "heads_kernel"):
    for cache in getattr(k, name).device_caches.values():
        for c in cache[0].values(): print(name, "regs", c.n_regs, "spills", c.n_spills, "smem", c.metadata.shared, "warps", c.metadata.num_warps)
E

cat > "$WORK/tiles.py" <<'E'
# The time of every tile. With a number below 12 every twelfth one is compiled, no more: several of these run at a time.
from lib import *
if DRY: print("left out"); sys.exit()
from modbalance.kernels import triton_launcher as k
from modbalance.kernels.energy_terms import EnergyTerms
TILES = {
    "bf16x3": {
        "forward": [(64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 4), (64, 64, 4, 5), (128, 64, 8, 3), (128, 64, 8, 4), (64, 32, 4, 4), (64, 32, 4, 5), (128, 32, 4, 4), (128, 32, 8, 4)],
        "backward": [(64, 64, 4, 3), (64, 64, 4, 4), (128, 64, 8, 3), (64, 128, 4, 3), (64, 128, 8, 3), (64, 32, 4, 4)],
        "backward_heads": [(64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 2), (64, 32, 4, 3), (32, 64, 4, 3), (64, 128, 8, 2), (32, 32, 4, 3)]},
    "float32": {
        "forward": [(64, 32, 4, 2), (64, 32, 4, 3), (32, 32, 4, 3), (64, 64, 8, 2), (128, 32, 8, 2)],
        "backward_heads": [(32, 64, 4, 1), (32, 64, 8, 2), (32, 32, 4, 2)]}}
every = [(p, n, t) for p, kinds in TILES.items() for n, tiles in kinds.items() for t in tiles]
only = int(sys.argv[1]) if sys.argv[1:] else None
first = {}
for shape in ((65536, 1024, 4, 3), (4096, 1024, 4, 3)) if only is None else ((4096, 1024, 4, 3),):
    for i, (precision, name, tile) in enumerate(every):
        if only is not None and i % 12 != only: continue
        if left() < 4: sys.exit("no time left")
        z, w, b, y = make_inputs(shape, "classification", "fixed", DEV, BF if precision == "bf16x3" else F32)
        terms = EnergyTerms.of("classification", 1., 1., 1., 1., False, y, None)
        table = k._TILES[precision]; was = dict(table[name])
        with torch.no_grad():
            e, p, *saved, _ = k.forward(terms, -100, None, z, w, b, None); up = [None, torch.ones_like(p), None, None, None, None]
            table[name][16] = tile
            f = (lambda: k.forward(terms, -100, None, z, w, b, None)) if name == "forward" else (lambda: k.backward(1.0, False, z, w, *saved, None, up, 0.0, 0.0, name == "backward", name != "backward"))
            try:
                if only is not None: f(); sync(); continue
                us = device_time(graphed(f), 5); one = first.setdefault((shape, precision, name), us)
                print(f"{shape[0]:6d} {precision} {name:15s} {tile} {us:8.1f} us  {us / one:5.2f}", flush=True)
            except Exception as bad: print(shape[0], precision, name, tile, "FAILS", type(bad).__name__, str(bad)[-120:], flush=True)
            finally: table[name] = was
E

cat > "$WORK/compile.py" <<'E'
from lib import *
torch._dynamo.config.cache_size_limit = 64
def run(name, f, x, want):
    if left() < 15: return print(name, "no time left")
    t = time.time()
    try:
        c = torch.compile(f, dynamic=False); r = gradients(c, x); e = error(r, want); t = time.time() - t
        w, h = wall(lambda: gradients(c, x), 0.2, 3)
        try: g = device_time(graphed(lambda: gradients(c, x)), 5)
        except Exception as bad: g = float("nan")
        print(f"  {name:22s} wall {w:9.0f} host {h:7.0f} graph {g:9.1f} us, error {e:.0e}, compiled in {t:.0f} s", flush=True)
    except Exception as bad: print(f"  {name:22s} FAILS {type(bad).__name__}: {str(bad)[-250:]!r}", flush=True)
for shape, heads in (((1024, 512, 4, 3), "fixed"), ((65536, 1024, 4, 3), "fixed"), ((65536, 1024, 4, 3), "trained"), ((4096, 1024, 4, 3), "fixed")) if not DRY else (((8, 32, 4, 2), "fixed"),):
    x = make_inputs(shape, "classification", heads, DEV, BF); print(shape, heads)
    want = [g.double() for g in gradients(ours("classification", "analytic"), x)]
    run("compiled func.grad", twice("classification", lambda f, z: torch.func.grad(f)(z)), x, want)
    run("compiled ours", ours("classification", "analytic" if DRY else "triton"), x, want)
    del x, want
E

cat > "$WORK/mosei.py" <<'E'
from lib import *
from modbalance import EnergyCoordinator
dims = {"text": 768, "audio": 74, "vision": 35}; model = EnergyCoordinator(dims, 1, "gaussian").to(DEV)
optimizer = torch.optim.AdamW(model.parameters())
for step in range(20):
    batch = 33 if step == 19 else 64  # a last batch that is smaller
    z = {n: torch.randn(batch, d, device=DEV, requires_grad=True) for n, d in dims.items()}
    sync(); t = time.perf_counter(); out = model(z, torch.randn(batch, 1, device=DEV)); optimizer.zero_grad(); out.loss.backward(); optimizer.step(); sync()
    print(f"step {step} batch {batch} loss {out.loss.item():.4f} {1e3 * (time.perf_counter() - t):.1f} ms", flush=True)
E

device=cuda shapes="--shapes gpu --device cuda --dtype bfloat16"
[ "${DRY:-}" = 1 ] && device=cpu shapes="--shapes quick --no-compile --seconds 0.05"

[ "${DRY:-}" = 1 ] && STEPS=${STEPS:-env smoke bench compile train cost mosei}

step env 20 "nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem --format=csv; nproc; $PY -c '
import torch, triton, numpy, sys; print(sys.version.split()[0], torch.__version__, triton.__version__, numpy.__version__)
import importlib.util as u; print({m: bool(u.find_spec(m)) for m in (\"einops\", \"hypothesis\", \"xdist\", \"rich\", \"matplotlib\")})
p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None; print(p)'; git log --oneline -1 2>/dev/null"
step smoke 75 "cd $WORK && $PY smoke.py"
step bench 150 "$PY examples/benchmark_kernel.py $shapes --out $OUT" 70
step kernels 40 "cd $WORK && $PY kernels.py"
step compile 80 "cd $WORK && $PY compile.py"
# In parallel, since most of the time goes to compiling; needs pytest-xdist. Warnings do not fail here.
step tests 180 "$PY -m pytest tests/gpu -q -n 14 --maxfail=80 -p no:cacheprovider -o filterwarnings=default -o faulthandler_timeout=100 -rf --tb=line 2>&1 | grep -v Warning" 45
step tiles 100 "cd $WORK && seq 0 11 | xargs -P 12 -I N $PY tiles.py N; BUDGET=40 $PY tiles.py" 90
step train 60 "$PY examples/ebmc_msa/train.py --device $device --stage1-epochs 2 --stage2-epochs 2 --out $WORK/runs --name synthetic" 20
step cost 90 "for f in 50 0; do $PY examples/ebmc_msa/benchmark.py cost --frames \$f --device $device --out $OUT/cost-\$f || exit; done"
step mosei 30 "cd $WORK && $PY mosei.py"
step memcheck 40 "command -v compute-sanitizer && cd $WORK && BUDGET=30 compute-sanitizer --tool memcheck --print-limit 5 $PY -c '
from lib import *
for s in ((5, 17, 7, 2), (33, 65, 3, 2)): gradients(ours(\"classification\", \"triton\"), make_inputs(s, \"classification\", \"trained\", DEV, BF)); sync()
print(\"ran\")'" 15
echo; echo "### all done in $(( $(date +%s) - START )) s; failed:${FAILED:- none}; files: $(ls "$OUT" | tr '\n' ' ')"
[ -z "$FAILED" ]
