"""The launches of the kernels: tiles, grids and buffers; what fails is remembered.

One launch for all modalities forward, one backward, and one for heads; with pooled terms one more of one program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from modbalance.kernels import triton_kernels as kernels
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.kernels.fallback import LaunchError, failed

PROGRAMS = 1024  # of the heads' gradients: enough to fill a device; the partial sums stay small
POOLED = 256  # blocks of rows whose sums are pooled at a time

# Rows, features, warps and pipeline stages of a tile, by how dots are taken and by padded width. Not by autotune:
# nothing to warm up, and the same sums in every process. Not by batch size: a smaller last batch would compile anew.
_TILES = {
    "bf16x3": {
        "forward": {16: (64, 64, 4, 3), 32: (64, 64, 4, 3), 64: (32, 32, 4, 3)},
        "backward": {16: (64, 128, 4, 3), 32: (64, 64, 4, 3), 64: (64, 64, 4, 2)},
        "backward_heads": {16: (64, 64, 4, 2), 32: (32, 64, 4, 3), 64: (32, 32, 4, 3)},
    },
    "float32": {
        "forward": {16: (64, 32, 4, 3), 32: (16, 32, 4, 1), 64: (16, 32, 4, 1)},
        "backward": {16: (64, 64, 4, 2), 32: (16, 32, 4, 3), 64: (16, 32, 4, 1)},
        "backward_heads": {16: (32, 64, 4, 1), 32: (16, 16, 4, 1), 64: (16, 16, 8, 1)},
    },
}


def forward(
    terms: EnergyTerms,
    ignore_index: int,
    present: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    pooled: tuple[float, float, bool] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Energy and penalty `(M, B)`; for the backward which rows count `(M, B)`, v and J W g `(width, M, B)`.

    With `pooled` (delta, rate, pull) also gap, penalty, descent, gap + delta penalty + descent, and the coefficients
    of the backward `(2, M)`; descent is rate times the sum of the mean energies, and without `pull` the gap is 0.
    """
    launch = _Launch(features, weights, terms.alpha)
    modalities, batch, width = launch.modalities, launch.batch, launch.width
    tile = launch.tile("forward")
    new = features[0].new_empty
    energy, penalty = (new(modalities, batch, dtype=torch.float32) for _ in range(2))
    counted = new(modalities, batch, dtype=torch.bool)
    slopes, curvatures = (new(width, modalities, batch, dtype=torch.float32) for _ in range(2))
    partial = None if pooled is None else new(4, modalities, tile.row_blocks, dtype=torch.float32)
    target, class_weight = terms.target, terms.class_weight
    launch(
        kernels.forward_kernel,
        (tile.row_blocks, modalities),
        tile,
        bs=tuple(b.contiguous() for b in biases) or None,
        energy=energy,
        penalty=penalty,
        counted=counted,
        slopes=slopes,
        curvatures=curvatures,
        partial=partial,
        target=target,
        target_row=0 if target is None else target.stride(0),
        target_column=0 if target is None or target.dim() == 1 else target.stride(1),
        class_weight=None if class_weight is None else class_weight.contiguous(),
        present=present,
        present_m=0 if present is None else present.stride(0),
        present_row=0 if present is None else present.stride(1),
        ignore_index=ignore_index,
        beta=float(terms.beta),
        gamma=float(terms.gamma),
        temperature=float(terms.temperature),
        flags=(*_task_flags(terms, width), launch.precision, terms.normalize),
    )
    if pooled is None:
        return energy, penalty, counted, slopes, curvatures, []
    results = [new((), dtype=torch.float32) for _ in range(4)]
    coefficients = new(2, modalities, dtype=torch.float32)
    _start(
        kernels.pool_kernel,
        (1,),
        energy,
        (4, 1),
        partial=partial,
        **dict(zip(("gap", "penalty", "descent", "loss"), results, strict=True)),
        coefficients=coefficients,
        blocks=tile.row_blocks,
        delta=float(pooled[0]),
        rate=float(pooled[1]),
        M=modalities,
        PADDED=triton.next_power_of_2(modalities),
        PULL=pooled[2],
        BLOCK=POOLED,
        fuse=False,  # else the lowest mean minus itself would not be 0
    )
    return energy, penalty, counted, slopes, curvatures, [*results, coefficients]


def backward(
    alpha: float,
    normalize: bool,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    counted: Tensor,
    slopes: Tensor,
    curvatures: Tensor,
    coefficients: Tensor | None,
    upstream: Sequence[Tensor | None],
    delta: float,
    rate: float,
    needs_features: bool,
    needs_heads: bool,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the features, and those of every weight and bias in turn as one flat float32 tensor.

    `upstream`: the gradients of energy and penalty `(M, B)`, gap, penalty, descent and loss, or None.
    """
    launch = _Launch(features, weights, alpha)
    arguments: dict[str, Any] = {"counted": counted, "slopes": slopes, "curvatures": curvatures}
    for name, x in zip("ap", upstream[:2], strict=True):
        strides = (0, 0) if x is None else x.stride()
        arguments |= {name: x, f"{name}_m": strides[0], f"{name}_row": strides[1]}
    arguments |= dict(zip(("d_gap", "d_steep", "d_descent", "d_loss"), upstream[2:], strict=True))
    arguments |= {"coefficients": coefficients, "delta": float(delta), "rate": float(rate)}
    arguments["flags"] = launch.width, _padded(launch.width), launch.precision, normalize
    dzs = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in features if needs_features]
    if needs_features:
        tile = launch.tile("backward")
        launch(kernels.backward_kernel, (tile.row_blocks, launch.modalities), tile, dzs=tuple(dzs), **arguments)
    if not needs_heads:
        return dzs, features[0].new_empty(0, dtype=torch.float32)
    offsets, total = head_offsets(weights)
    if launch.batch == 0:
        return dzs, features[0].new_zeros(total, dtype=torch.float32)
    tile = launch.tile("backward_heads")
    columns = max(1, triton.cdiv(launch.dim, tile.block_d))
    blocks = triton.cdiv(tile.row_blocks, max(1, PROGRAMS // (columns * launch.modalities)))
    splits = triton.cdiv(tile.row_blocks, blocks)
    partial = features[0].new_empty(splits, total, dtype=torch.float32)
    grid = splits, launch.modalities, columns
    launch(
        kernels.heads_kernel, grid, tile, partial=partial, offsets=offsets, total=total, blocks=blocks, **arguments
    )
    return dzs, partial.sum(0) if splits > 1 else partial[0]


def head_offsets(weights: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """Where each modality's weight starts in the flat gradient, its bias right behind; and the length of all."""
    offsets = [0]
    for w in weights:
        offsets.append(offsets[-1] + w.shape[0] * (w.shape[1] + 1))
    return tuple(offsets[:-1]), offsets[-1]


class _Tile(NamedTuple):
    block_b: int
    block_d: int
    warps: int
    stages: int
    row_blocks: int


class _Launch:
    """What the launches of a forward or backward have in common."""

    def __init__(self, features: Sequence[Tensor], weights: Sequence[Tensor], alpha: float) -> None:
        self.batch, self.modalities, self.width = features[0].shape[0], len(features), weights[0].shape[0]
        self.dim = max(z.shape[1] for z in features)
        zs, ws = [_rows(z) for z in features], [_rows(w) for w in weights]
        self.uneven = any(n % 16 for z in zs for n in (z.stride(0), z.shape[1]))  # what Triton compiles for as well
        self.shared: dict[str, Any] = {
            "zs": tuple(zs),
            "ws": tuple(ws),
            "z_strides": tuple(z.stride(0) for z in zs),
            "w_strides": tuple(w.stride(0) for w in ws),
            "dims": tuple(z.shape[1] for z in zs),
            "B": self.batch,
            "alpha": float(alpha),
        }
        # float32 accuracy in every case
        exact = "ieee" if torch.version.hip else "tf32x3"
        self.precision = "bf16x3" if features[0].dtype == torch.bfloat16 else exact

    def tile(self, kernel: str) -> _Tile:
        table = _TILES[self.precision if self.precision in _TILES else "float32"]
        rows, columns, warps, stages = table[kernel][_padded(self.width)]
        if self.uneven and kernel != "backward_heads":
            columns = min(columns, 32)  # an address for every element: fewer of them, so that none is spilled
        columns = min(columns, max(16, triton.next_power_of_2(self.dim)))
        return _Tile(rows, columns, warps, stages, triton.cdiv(self.batch, rows))

    def __call__(self, kernel: Any, grid: tuple[int, ...], tile: _Tile, **arguments: Any) -> None:
        arguments |= {**self.shared, "BLOCK_B": tile.block_b, "BLOCK_D": tile.block_d}
        _start(kernel, grid, self.shared["zs"][0], (tile.warps, tile.stages), **arguments)


def _start(
    kernel: Any, grid: tuple[int, ...], like: Tensor, workers: tuple[int, int], *, fuse: bool = True, **arguments: Any
) -> None:
    """The one place that launches a kernel; `workers`: warps and pipeline stages, `fuse`: multiply-add in one."""
    if 0 in grid:
        return
    if failed and (cause := failed.get(_variant(kernel, like, workers, arguments))):
        raise LaunchError(cause)
    try:
        with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
            kernel[grid](**arguments, num_warps=workers[0], num_stages=workers[1], enable_fp_fusion=fuse)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        cause = f"kernel {kernel.__name__}, {like.device}, {type(error).__name__}: {error}"
        failed[_variant(kernel, like, workers, arguments)] = cause
        raise LaunchError(cause) from error


def _variant(kernel: Any, like: Tensor, workers: tuple[int, int], arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What a compiled kernel depends on, but for the alignment of its arguments."""
    fixed = ("flags", "BLOCK_B", "BLOCK_D", "M", "PULL")
    kinds = [getattr(x, "dtype", None) for x in (*arguments.get("zs", ()), *arguments.get("ws", ()))]
    absent = [name for name, x in arguments.items() if x is None]
    return (like.device, kernel.__name__, workers, *(arguments.get(n) for n in fixed), *kinds, *absent)


def _task_flags(terms: EnergyTerms, width: int) -> tuple[Any, ...]:
    """The compile-time part of the terms: task, C, padded width, loss?, uncertainty?"""
    return (
        terms.task,
        width // 2 if terms.task == "gaussian" else width,
        _padded(width),
        bool(terms.beta) and terms.target is not None,
        bool(terms.gamma) and terms.task != "regression",
    )


def _padded(width: int) -> int:
    return 1 << max(4, (width - 1).bit_length())  # tl.dot sums over at least 16


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
