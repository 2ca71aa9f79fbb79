"""The penalty as Triton kernels: one forward launch for all modalities, one backward launch.

The terms of a coordinator are pooled on top: each forward program adds its block's sums, and one small program
turns them into gap, penalty, descent and the coefficients of the backward.

Shapes in comments: R rows a block, N outputs of a head (padded), K features a tile. Formulas: `analytic.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.task_formulas import LOG_VARIANCE_LIMIT

PROGRAMS = 1024  # of the backward with heads: enough to fill a device; the partial sums stay small
POOLED = 256  # blocks of rows whose sums are pooled at a time

# Rows, features, warps and pipeline stages of a tile by padded width, without spills on sm_80, sm_90 and gfx942
# (12 registers in the last; 4 where gaussian is pooled on sm_80). By shape, not by autotune: no warm-up, and the
# same sums in every process.
_TILES = {
    "forward": {16: (32, 32, 4, 3), 32: (16, 32, 4, 1), 64: (16, 32, 4, 1)},
    "backward": {16: (32, 64, 4, 3), 32: (16, 32, 4, 3), 64: (16, 32, 4, 1)},
    "backward_heads": {16: (16, 64, 4, 1), 32: (16, 16, 4, 1), 64: (16, 16, 8, 1)},
}

_LIMIT = tl.constexpr(LOG_VARIANCE_LIMIT)
_LOG_2PI = tl.constexpr(1.8378770664093453)


@triton.jit
def _log_softmax(s, valid):
    s = tl.where(valid, s, -1e30)  # not -inf: inf - inf is NaN
    s -= tl.max(s, 1)[:, None]
    e = tl.exp(s)
    total = tl.sum(e, 1)[:, None]
    return tl.where(valid, s - tl.log(total), 0.0), e / total


@triton.jit
def _sigmoid(x):
    """sigmoid(x), its derivative, log(1 + exp(-|x|)), |x| sigmoid(-|x|)."""
    size = tl.abs(x)
    e = tl.exp(-size)
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))
    return tl.where(x >= 0, 1.0, e) / u, e / (u * u), log1p, size * e / u


@triton.jit
def _heads(WIDTH: tl.constexpr, C: tl.constexpr, TASK: tl.constexpr):
    """Which output of the head each of the N columns holds; gaussian interleaves means and log-variances."""
    column = tl.arange(0, WIDTH)
    if TASK == "gaussian":
        return column // 2 + column % 2 * C, column // 2 < C
    return column, column < C


@triton.jit
def _labels(rows, m, B, problem, flags):
    """Which of R rows count, their target (R or R x N or, for gaussian, R x N/2), and the weight of their label."""
    target, target_row, target_column, class_weight, present, present_m, present_row, ignore_index, _, _, _ = problem
    TASK: tl.constexpr = flags[0]
    C: tl.constexpr = flags[1]
    WIDTH: tl.constexpr = flags[2]
    here = rows < B
    y = 0.0
    weight = 1.0
    if present is not None:
        here &= tl.load(present + m * present_m + rows * present_row, mask=here, other=0) != 0
    if target is not None:
        if TASK == "classification":
            y = tl.load(target + rows * target_row, mask=here, other=-1)
            here &= (y != ignore_index) & (y >= 0) & (y < C)
            if class_weight is not None:
                weight = tl.load(class_weight + y, mask=here, other=0.0).to(tl.float32)[:, None]
        else:
            column = tl.arange(0, WIDTH // 2 if TASK == "gaussian" else WIDTH)
            at = target + rows[:, None] * target_row + column[None, :] * target_column
            y = tl.load(at, mask=here[:, None] & (column < C)[None, :], other=0.0).to(tl.float32)
    return here, y, weight


@triton.jit
def _derivatives(s, t, here, y, weight, problem, flags):
    """beta l + gamma u (R), its derivative v and J t (R x N); 0 where nobody is."""
    _, _, _, _, _, _, _, _, beta, gamma, temperature = problem
    TASK: tl.constexpr = flags[0]
    C: tl.constexpr = flags[1]
    WIDTH: tl.constexpr = flags[2]
    LOSS: tl.constexpr = flags[3]
    UNCERTAINTY: tl.constexpr = flags[4]
    _, valid = _heads(WIDTH, C, TASK)
    valid = valid[None, :]
    value = tl.zeros_like(s)
    v = tl.zeros_like(s)
    h = tl.zeros_like(s)
    if TASK == "classification":
        if LOSS:
            log_p, p = _log_softmax(s, valid)
            hit = tl.arange(0, WIDTH)[None, :] == y[:, None]
            value -= beta * weight * tl.where(hit, log_p, 0.0)
            v += beta * weight * (p - hit.to(tl.float32))
            h += beta * weight * p * (t - tl.sum(p * t, 1)[:, None])
        if UNCERTAINTY:
            log_q, q = _log_softmax(s / temperature, valid)
            k = log_q - tl.sum(q * log_q, 1)[:, None]
            value -= gamma * q * log_q
            v -= gamma / temperature * q * k
            bend = (t - tl.sum(q * t, 1)[:, None]) * (1.0 + k) - tl.sum(q * k * t, 1)[:, None]
            h -= gamma / (temperature * temperature) * q * bend
    elif TASK == "multilabel":
        if LOSS:
            p, slope, log1p, _ = _sigmoid(s)
            value += beta * (tl.maximum(s, 0.0) - s * y + log1p)
            v += beta * (p - y)
            h += beta * slope * t
        if UNCERTAINTY:
            x = s / temperature
            q, slope, log1p, rest = _sigmoid(x)
            value += gamma * (log1p + rest)
            v -= gamma / temperature * x * slope
            h -= gamma / (temperature * temperature) * slope * (1.0 + x * (1.0 - 2.0 * q)) * t
    elif TASK == "regression":
        if LOSS:
            value += beta * (s - y) * (s - y)
            v += 2.0 * beta * (s - y)
            h += 2.0 * beta * t
    else:
        mean, stated = tl.split(s.reshape(s.shape[0], WIDTH // 2, 2))
        t_mean, t_log = tl.split(t.reshape(s.shape[0], WIDTH // 2, 2))
        inside = (tl.abs(stated) <= _LIMIT).to(tl.float32)
        r = tl.minimum(tl.maximum(stated, -_LIMIT), _LIMIT)
        part = tl.zeros_like(r)
        v_mean = tl.zeros_like(r)
        v_log = tl.zeros_like(r)
        h_mean = tl.zeros_like(r)
        h_log = tl.zeros_like(r)
        if LOSS:
            e = mean - y
            i = tl.exp(-r)
            t_log *= inside
            part += 0.5 * beta * (e * e * i + r + _LOG_2PI)
            v_mean += beta * e * i
            v_log += 0.5 * beta * (1.0 - e * e * i) * inside
            h_mean += beta * i * (t_mean - e * t_log)
            h_log += beta * i * e * (0.5 * e * t_log - t_mean) * inside
        if UNCERTAINTY:
            part += 0.5 * gamma * (r + 1.0 + _LOG_2PI)
            v_log += 0.5 * gamma * inside
        value = tl.join(part, tl.zeros_like(part)).reshape(s.shape)
        v = tl.join(v_mean, v_log).reshape(s.shape)
        h = tl.join(h_mean, h_log).reshape(s.shape)
    keep = here[:, None] & valid
    return tl.sum(tl.where(keep, value, 0.0), 1), tl.where(keep, v, 0.0), tl.where(keep, h, 0.0)


@triton.jit
def _features(z, stride, rows, here, columns, D):
    at = z + rows[:, None] * stride + columns[None, :]
    return tl.load(at, mask=here[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _weights(w, stride, head, valid, columns, D):
    at = w + head[:, None].to(tl.int64) * stride + columns[None, :]
    return tl.load(at, mask=valid[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store_sum(partial, k, x):
    """The sum over a block of rows, to (4, M, blocks)."""
    at = (k * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + at, tl.sum(x, 0))


@triton.jit(do_not_specialize=["B"])
def _forward(
    zs, ws, bs, z_strides, w_strides, dims, energy, penalty, outputs, products, partial, B, alpha, problem,
    flags: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    TASK: tl.constexpr = flags[0]
    C: tl.constexpr = flags[1]
    WIDTH: tl.constexpr = flags[2]
    NORMALIZE: tl.constexpr = flags[5]
    PRECISION: tl.constexpr = flags[6]
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    m = tl.program_id(1).to(tl.int64)
    head, valid = _heads(WIDTH, C, TASK)
    here, y, weight = _labels(rows, m, B, problem, flags)

    s = tl.zeros((BLOCK_B, WIDTH), tl.float32)
    for i in tl.static_range(len(zs)):
        if m == i:
            for first in range(0, dims[i], BLOCK_D):
                columns = first + tl.arange(0, BLOCK_D)
                z = _features(zs[i], z_strides[i], rows, here, columns, dims[i])
                w = _weights(ws[i], w_strides[i], head, valid, columns, dims[i])
                s += tl.dot(z, tl.trans(w), input_precision=PRECISION)
            if bs[i] is not None:
                s += tl.load(bs[i] + head, mask=valid, other=0.0).to(tl.float32)[None, :]

    value, v, _ = _derivatives(s, tl.zeros_like(s), here, y, weight, problem, flags)

    if partial is not None:
        _store_sum(partial, 0, here.to(tl.float32))
        _store_sum(partial, 1, value)

    size = tl.zeros((BLOCK_B,), tl.float32)
    steep = tl.zeros((BLOCK_B,), tl.float32)
    t = tl.zeros((BLOCK_B, WIDTH), tl.float32)
    for i in tl.static_range(len(zs)):
        if m == i:
            scale = alpha / dims[i] if NORMALIZE else alpha
            for first in range(0, dims[i], BLOCK_D):
                columns = first + tl.arange(0, BLOCK_D)
                z = _features(zs[i], z_strides[i], rows, here, columns, dims[i])
                w = _weights(ws[i], w_strides[i], head, valid, columns, dims[i])
                # The squares of g, never the Gram matrix of W: that form cancels as the penalty shrinks.
                g = 2.0 * scale * z + tl.dot(v, w, input_precision=PRECISION)
                steep += tl.sum(g * g, 1)
                size += scale * tl.sum(z * z, 1)
                t += tl.dot(g, tl.trans(w), input_precision=PRECISION)

    if partial is not None:
        _store_sum(partial, 2, size)
        _store_sum(partial, 3, steep)
    inside = rows < B
    tl.store(energy + m * B + rows, value + size, mask=inside)
    if penalty is not None:
        tl.store(penalty + m * B + rows, steep, mask=inside)
    width: tl.constexpr = 2 * C if TASK == "gaussian" else C
    at = (m * B + rows)[:, None] * width + head[None, :]
    tl.store(outputs + at, s, mask=inside[:, None] & valid[None, :])
    tl.store(products + at, t, mask=inside[:, None] & valid[None, :])


@triton.jit(do_not_specialize=["blocks"])
def _pool(
    partial, gap, penalty, descent, loss, coefficients, blocks, delta, rate,
    M: tl.constexpr, PADDED: tl.constexpr, PULL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The terms from the sums of blocks; by modality 1 / count and d gap / d beta l + gamma u of a row, (2, M)."""
    m = tl.arange(0, PADDED)
    # Summed over the columns after the loop: Triton 3.4 to 3.7 fail on a sum within it that is used twice.
    counts = tl.zeros((PADDED, BLOCK), tl.float32)
    sizes = tl.zeros((PADDED, BLOCK), tl.float32)
    values = tl.zeros((PADDED, BLOCK), tl.float32)
    steeps = tl.zeros((PADDED, BLOCK), tl.float32)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        at = partial + m[:, None] * blocks + block[None, :]
        inside = (m < M)[:, None] & (block < blocks)[None, :]
        counts += tl.load(at, mask=inside, other=0.0)
        values += tl.load(at + M * blocks, mask=inside, other=0.0)
        sizes += tl.load(at + 2 * M * blocks, mask=inside, other=0.0)
        steeps += tl.load(at + 3 * M * blocks, mask=inside, other=0.0)
    count, size = tl.sum(counts, 1), tl.sum(sizes, 1)
    value, steep = tl.sum(values, 1), tl.sum(steeps, 1)

    there = count > 0
    share = 1.0 / tl.maximum(count, 1.0)
    above = tl.zeros_like(value)
    value *= share
    if PULL:
        above = tl.where(there, value - tl.min(tl.where(there, value, 3e38), 0), 0.0)
    modalities = tl.maximum(tl.sum(there.to(tl.float32), 0), 1.0)
    apart = tl.sum(above * above, 0) / modalities
    steepness = tl.sum(steep * share, 0)
    descended = rate * tl.sum(value + size * share, 0)
    tl.store(gap, apart)
    tl.store(penalty, steepness)
    tl.store(descent, descended)
    tl.store(loss, apart + delta * steepness + descended)
    tl.store(coefficients + m, share, mask=m < M)
    tl.store(coefficients + M + m, 2.0 * above / modalities * share, mask=m < M)


@triton.jit
def _scalar(at):
    value = 0.0
    if at is not None:
        value = tl.load(at)
    return value


@triton.jit
def _upstream(rows, m, B, a, a_strides, p, p_strides, pooled, outputs, products, problem, flags):
    """v and h = J (2p W g), R x N; the upstream gradients a of E, 2p of P and e of beta l + gamma u, R x 1."""
    TASK: tl.constexpr = flags[0]
    C: tl.constexpr = flags[1]
    WIDTH: tl.constexpr = flags[2]
    head, valid = _heads(WIDTH, C, TASK)
    here, y, weight = _labels(rows, m, B, problem, flags)
    width: tl.constexpr = 2 * C if TASK == "gaussian" else C
    at = (m * B + rows)[:, None] * width + head[None, :]
    s = tl.load(outputs + at, mask=here[:, None] & valid[None, :], other=0.0)
    t = tl.load(products + at, mask=here[:, None] & valid[None, :], other=0.0)
    d_energy = tl.zeros((rows.shape[0],), tl.float32)
    d_penalty = tl.zeros((rows.shape[0],), tl.float32)
    if a is not None:
        d_energy = tl.load(a + m * a_strides[0] + rows * a_strides[1], mask=here, other=0.0)
    if p is not None:
        d_penalty = 2.0 * tl.load(p + m * p_strides[0] + rows * p_strides[1], mask=here, other=0.0)
    d_value = tl.zeros((rows.shape[0],), tl.float32)
    coefficients, modalities, d_gap, d_steep, d_descent, d_loss, delta, rate = pooled
    if coefficients is not None:  # `pooled is not None` fails in Triton 3.4 to 3.6: the tuple holds a None
        share = tl.load(coefficients + m)
        whole = _scalar(d_loss)
        d_energy += tl.where(here, rate * (_scalar(d_descent) + whole) * share, 0.0)
        d_penalty += tl.where(here, 2.0 * (_scalar(d_steep) + delta * whole) * share, 0.0)
        d_value += tl.where(here, (_scalar(d_gap) + whole) * tl.load(coefficients + modalities + m), 0.0)
    _, v, h = _derivatives(s, d_penalty[:, None] * t, here, y, weight, problem, flags)
    return here, v, h, d_energy[:, None], d_penalty[:, None], d_value[:, None]


@triton.jit(do_not_specialize=["B"])
def _backward(
    zs, ws, dzs, z_strides, w_strides, dims, outputs, products, a, a_strides, p, p_strides, pooled,
    B, alpha, problem, flags: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of the features."""
    TASK: tl.constexpr = flags[0]
    C: tl.constexpr = flags[1]
    WIDTH: tl.constexpr = flags[2]
    NORMALIZE: tl.constexpr = flags[5]
    PRECISION: tl.constexpr = flags[6]
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    m = tl.program_id(1).to(tl.int64)
    head, valid = _heads(WIDTH, C, TASK)
    here, v, h, d_energy, q, e = _upstream(
        rows, m, B, a, a_strides, p, p_strides, pooled, outputs, products, problem, flags
    )
    for i in tl.static_range(len(zs)):
        if m == i:
            scale = 2.0 * alpha / dims[i] if NORMALIZE else 2.0 * alpha
            c = scale * q + d_energy
            u = (c + e) * v + h
            for first in range(0, dims[i], BLOCK_D):
                columns = first + tl.arange(0, BLOCK_D)
                z = _features(zs[i], z_strides[i], rows, here, columns, dims[i])
                weights = _weights(ws[i], w_strides[i], head, valid, columns, dims[i])
                dz = scale * c * z + tl.dot(u, weights, input_precision=PRECISION)
                at = dzs[i] + rows[:, None] * dims[i] + columns[None, :]
                inside = (rows < B)[:, None] & (columns < dims[i])[None, :]
                tl.store(at, dz.to(dzs[i].dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["B", "blocks"])
def _backward_heads(
    zs, ws, dzs, z_strides, w_strides, dims, outputs, products, a, a_strides, p, p_strides,
    pooled, partial, offsets, total, blocks, B, alpha, problem, flags: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of features and heads. A program sums `blocks` blocks of rows, always in the same order."""
    TASK: tl.constexpr = flags[0]
    C: tl.constexpr = flags[1]
    WIDTH: tl.constexpr = flags[2]
    NORMALIZE: tl.constexpr = flags[5]
    PRECISION: tl.constexpr = flags[6]
    split = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    head, valid = _heads(WIDTH, C, TASK)

    weights = tl.zeros((WIDTH, BLOCK_D), tl.float32)
    scale = 2.0 * alpha
    for i in tl.static_range(len(zs)):
        if m == i:
            weights = _weights(ws[i], w_strides[i], head, valid, columns, dims[i])
            if NORMALIZE:
                scale = 2.0 * alpha / dims[i]

    dw = tl.zeros((WIDTH, BLOCK_D), tl.float32)
    db = tl.zeros((WIDTH,), tl.float32)
    for block in range(blocks):
        rows = (split * blocks + block) * BLOCK_B + tl.arange(0, BLOCK_B)
        here, v, h, d_energy, q, _ = _upstream(
            rows, m, B, a, a_strides, p, p_strides, pooled, outputs, products, problem, flags
        )
        z = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
        for i in tl.static_range(len(zs)):
            if m == i:
                z = _features(zs[i], z_strides[i], rows, here, columns, dims[i])
        g = scale * z + tl.dot(v, weights, input_precision=PRECISION)
        dz = (scale * q + d_energy) * g + tl.dot(h, weights, input_precision=PRECISION)
        dw += tl.dot(tl.trans(v), q * g + d_energy * z, input_precision=PRECISION)
        dw += tl.dot(tl.trans(h), z, input_precision=PRECISION)
        db += tl.sum(h + d_energy * v, 0)
        for i in tl.static_range(len(zs)):
            if m == i and dzs[i] is not None:
                at = dzs[i] + rows[:, None] * dims[i] + columns[None, :]
                inside = (rows < B)[:, None] & (columns < dims[i])[None, :]
                tl.store(at, dz.to(dzs[i].dtype.element_ty), mask=inside)

    for i in tl.static_range(len(zs)):
        if m == i:
            at = partial + split * total + offsets[i]
            inside = valid[:, None] & (columns < dims[i])[None, :]
            tl.store(at + head[:, None] * dims[i] + columns[None, :], dw, mask=inside)
            if tl.program_id(2) == 0:
                width: tl.constexpr = 2 * C if TASK == "gaussian" else C
                tl.store(at + width * dims[i] + head, db, mask=valid)


def forward(
    problem: EnergyTerms,
    ignore_index: int,
    present: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Energy and penalty `(M, B)`; for the backward, the heads' outputs s and W g, `(M, B, width)`."""
    launch = _Launch(problem, ignore_index, present, features, weights)
    penalty = features[0].new_empty(len(features), launch.batch, dtype=torch.float32)
    energy, outputs, products = _run_forward(launch, launch.tile("forward"), biases, penalty, None)
    return energy, penalty, outputs, products


def coordination(
    problem: EnergyTerms,
    ignore_index: int,
    present: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    delta: float,
    rate: float,
    pull: bool,
) -> tuple[Tensor, ...]:
    """Energy `(M, B)`; gap, penalty, descent and loss; for the backward s, W g and the coefficients `(2, M)`."""
    launch = _Launch(problem, ignore_index, present, features, weights)
    z, modalities, tile = features[0], launch.modalities, launch.tile("forward")
    partial = z.new_empty(4, modalities, tile.row_blocks, dtype=torch.float32)
    energy, outputs, products = _run_forward(launch, tile, biases, None, partial)
    terms = [z.new_empty((), dtype=torch.float32) for _ in range(4)]
    coefficients = z.new_empty(2, modalities, dtype=torch.float32)
    _start(
        _pool,
        (1,),
        z,
        (4, 1),
        partial=partial,
        **dict(zip(("gap", "penalty", "descent", "loss"), terms, strict=True)),
        coefficients=coefficients,
        blocks=tile.row_blocks,
        delta=float(delta),
        rate=float(rate),
        M=modalities,
        PADDED=triton.next_power_of_2(modalities),
        PULL=pull,
        BLOCK=POOLED,
    )
    return energy, *terms, outputs, products, coefficients


def _run_forward(
    launch: _Launch, tile: _Tile, biases: Sequence[Tensor | None], penalty: Tensor | None, partial: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    z = launch.shared["zs"][0]
    energy = z.new_empty(launch.modalities, launch.batch, dtype=torch.float32)
    outputs, products = (z.new_empty(*energy.shape, launch.width, dtype=torch.float32) for _ in range(2))
    launch(
        _forward,
        (tile.row_blocks, launch.modalities),
        tile,
        bs=tuple(None if b is None else b.contiguous() for b in biases),
        energy=energy,
        penalty=penalty,
        outputs=outputs,
        products=products,
        partial=partial,
    )
    return energy, outputs, products


def backward(
    problem: EnergyTerms,
    ignore_index: int,
    present: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    outputs: Tensor,
    products: Tensor,
    d_energy: Tensor | None,
    d_penalty: Tensor | None,
    *,
    needs_features: bool,
    needs_heads: bool,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the features, and those of every weight and bias in turn as one flat float32 tensor."""
    launch = _Launch(problem, ignore_index, present, features, weights)
    dzs = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in features if needs_features]
    arguments = {
        "dzs": tuple(dzs) if needs_features else (None,) * launch.modalities,
        "outputs": outputs,
        "products": products,
        "a": d_energy,
        "a_strides": (0, 0) if d_energy is None else d_energy.stride(),
        "p": d_penalty,
        "p_strides": (0, 0) if d_penalty is None else d_penalty.stride(),
        "pooled": (None,) * 8,
    }
    if not needs_heads:
        tile = launch.tile("backward")
        launch(_backward, (tile.row_blocks, launch.modalities), tile, **arguments)
        return dzs, features[0].new_empty(0, dtype=torch.float32)
    offsets, total = head_offsets(weights)
    if launch.batch == 0:
        return dzs, features[0].new_zeros(total, dtype=torch.float32)
    tile = launch.tile("backward_heads")
    columns = max(1, triton.cdiv(launch.dim, tile.block_d))
    blocks = triton.cdiv(tile.row_blocks, max(1, PROGRAMS // (columns * launch.modalities)))
    splits = triton.cdiv(tile.row_blocks, blocks)
    partial = features[0].new_empty(splits, total, dtype=torch.float32)
    launch(
        _backward_heads,
        (splits, launch.modalities, columns),
        tile,
        **arguments,
        partial=partial,
        offsets=offsets,
        total=total,
        blocks=blocks,
    )
    return dzs, partial.sum(0) if splits > 1 else partial[0]


def coordination_backward(
    problem: EnergyTerms,
    ignore_index: int,
    present: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    outputs: Tensor,
    products: Tensor,
    coefficients: Tensor,
    d_energy: Tensor | None,
    d_terms: Sequence[Tensor | None],
    delta: float,
    rate: float,
) -> list[Tensor]:
    """Gradients of the features; `d_terms` are those of gap, penalty, descent and loss."""
    launch = _Launch(problem, ignore_index, present, features, weights)
    dzs = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in features]
    tile = launch.tile("backward")
    launch(
        _backward,
        (tile.row_blocks, launch.modalities),
        tile,
        dzs=tuple(dzs),
        outputs=outputs,
        products=products,
        a=d_energy,
        a_strides=(0, 0) if d_energy is None else d_energy.stride(),
        p=None,
        p_strides=(0, 0),
        pooled=(coefficients, launch.modalities, *d_terms, float(delta), float(rate)),
    )
    return dzs


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
    """What the launches of a problem have in common."""

    def __init__(
        self,
        problem: EnergyTerms,
        ignore_index: int,
        present: Tensor | None,
        features: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> None:
        self.batch, self.modalities, self.width = features[0].shape[0], len(features), weights[0].shape[0]
        self.dim = max(z.shape[1] for z in features)
        target, class_weight = problem.target, problem.class_weight
        zs, ws = [_rows(z) for z in features], [_rows(w) for w in weights]
        self.shared: dict[str, Any] = {
            "zs": tuple(zs),
            "ws": tuple(ws),
            "z_strides": tuple(z.stride(0) for z in zs),
            "w_strides": tuple(w.stride(0) for w in ws),
            "dims": tuple(z.shape[1] for z in zs),
            "B": self.batch,
            "alpha": float(problem.alpha),
            "problem": (
                target,
                0 if target is None else target.stride(0),
                0 if target is None or target.dim() == 1 else target.stride(1),
                None if class_weight is None else class_weight.contiguous(),
                present,
                *((0, 0) if present is None else present.stride()),
                ignore_index,
                float(problem.beta),
                float(problem.gamma),
                float(problem.temperature),
            ),
            "flags": flags_for(problem, self.width),
        }

    def tile(self, kernel: str) -> _Tile:
        rows, columns, warps, stages = _TILES[kernel][_padded(self.width)]
        rows = rows if self.batch > 2048 else 16  # more programs where there are few rows
        columns = min(columns, max(16, triton.next_power_of_2(self.dim)))
        return _Tile(rows, columns, warps, stages, triton.cdiv(self.batch, rows))

    def __call__(self, kernel: Any, grid: tuple[int, ...], tile: _Tile, **arguments: Any) -> None:
        arguments |= {**self.shared, "BLOCK_B": tile.block_b, "BLOCK_D": tile.block_d}
        _start(kernel, grid, self.shared["zs"][0], (tile.warps, tile.stages), **arguments)


def _start(kernel: Any, grid: tuple[int, ...], like: Tensor, workers: tuple[int, int], **arguments: Any) -> None:
    """The one place that launches a kernel; `workers`: warps and pipeline stages."""
    if 0 in grid:
        return
    with torch.cuda.device_of(like):
        kernel[grid](**arguments, num_warps=workers[0], num_stages=workers[1], enable_fp_fusion=True)


def flags_for(problem: EnergyTerms, width: int) -> tuple[Any, ...]:
    """The compile-time part of a problem: task, C, padded width, loss?, uncertainty?, normalize?, precision."""
    gaussian = problem.task == "gaussian"
    return (
        problem.task,
        width // 2 if gaussian else width,
        _padded(width),
        bool(problem.beta) and problem.target is not None,
        bool(problem.gamma) and problem.task != "regression",
        problem.normalize,
        "ieee" if torch.version.hip else "tf32x3",  # float32 accuracy in either case
    )


def _padded(width: int) -> int:
    return 1 << max(4, (width - 1).bit_length())  # tl.dot sums over at least 16


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
