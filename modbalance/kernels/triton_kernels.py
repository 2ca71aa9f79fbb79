"""The penalty as Triton kernels: one forward for all modalities; one backward, and one for heads.

The terms of a coordinator are pooled on top: each forward program adds its block's sums, and one small program
turns them into gap, penalty, descent and the coefficients of the backward.

Shapes in comments: R rows a block, N outputs of a head (padded), K features a tile. Formulas: `analytic.py`.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

from modbalance.task_formulas import LOG_VARIANCE_LIMIT

_LIMIT = tl.constexpr(LOG_VARIANCE_LIMIT)
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_LOG_2PI = tl.constexpr(1.8378770664093453)

# What differs from batch to batch and must not compile a kernel anew.
UNSPECIALIZED = (
    "target", "target_row", "target_column", "class_weight", "present", "present_m", "present_row", "ignore_index",
    "a", "a_m", "a_row", "p", "p_m", "p_row", "B", "blocks",
)  # fmt: skip


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
def _pick(values, m):
    """Entry m of a tuple of pointers or numbers."""
    picked = values[0]
    for i in tl.static_range(1, len(values)):
        picked = tl.where(m == i, values[i], picked)
    return picked


@triton.jit
def _rows_that_count(rows, m, B, target, target_row, target_column, class_weight, present, present_m, present_row,
                     ignore_index, flags):  # fmt: skip
    """Which of R rows count, their target (R or R x N or, for gaussian, R x N/2), and the weight of their label."""
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
def _derivatives(s, t, here, y, weight, beta, gamma, temperature, flags):
    """beta l + gamma u (R), its derivative v and J t (R x N); 0 in rows that do not count."""
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
    return tl.load(at, mask=here[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _weights(w, stride, head, valid, columns, D, PRECISION: tl.constexpr):
    at = w + head[:, None].to(tl.int64) * stride + columns[None, :]
    return _parts(tl.load(at, mask=valid[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32), PRECISION)


@triton.jit
def _cut(x):
    """The upper half of a float32 as bfloat16, and the rest. Cut, not rounded: that takes fewer instructions."""
    bits = x.to(tl.uint32, bitcast=True)
    upper = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return upper, x - (bits & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _parts(x, PRECISION: tl.constexpr):
    """What a dot takes for float32: three bfloat16 that sum up to it, 8 binary digits each, or itself."""
    if PRECISION == "bf16x3":
        a, rest = _cut(x)
        b, rest = _cut(rest)
        return a, b, rest.to(tl.bfloat16)
    else:  # noqa: RET505  (Triton gives a function one type of result)
        return x, x, x


@triton.jit
def _transposed(parts):
    a, b, c = parts
    return tl.trans(a), tl.trans(b), tl.trans(c)


@triton.jit
def _dot16(x, y, sum):
    if _INTERPRETED:  # whose dot takes bfloat16 for integers
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, sum)


@triton.jit
def _dot(x, y, sum, PRECISION: tl.constexpr, COARSE: tl.constexpr = False):
    """sum + x y of parts to 24 binary digits, COARSE to 16, small products first."""
    x1, x2, x3 = x
    y1, y2, y3 = y
    if PRECISION == "bf16x3":
        if not COARSE:
            sum = _dot16(x3, y1, sum)
            sum = _dot16(x1, y3, sum)
            sum = _dot16(x2, y2, sum)
        sum = _dot16(x2, y1, sum)
        sum = _dot16(x1, y2, sum)
        sum = _dot16(x1, y1, sum)
    else:
        sum = tl.dot(x1, y1, sum, input_precision=PRECISION)
    return sum


@triton.jit
def _dot_features(z, y, sum, PRECISION: tl.constexpr):
    """sum + z y, with z as it was loaded."""
    y1, y2, y3 = y
    if PRECISION == "bf16x3":
        sum = _dot16(z, y3, sum)
        sum = _dot16(z, y2, sum)
        sum = _dot16(z, y1, sum)
    else:
        sum = tl.dot(z.to(tl.float32), y1, sum, input_precision=PRECISION)
    return sum


@triton.jit
def _store_sum(partial, k, x):
    """The sum over a block of rows, to (4, M, blocks)."""
    at = (k * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + at, tl.sum(x, 0))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    zs, ws, bs, z_strides, w_strides, dims, energy, penalty, counted, slopes, curvatures, partial,
    target, target_row, target_column, class_weight, present, present_m, present_row, ignore_index,
    B, alpha, beta, gamma, temperature, flags: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    TASK: tl.constexpr = flags[0]
    C: tl.constexpr = flags[1]
    WIDTH: tl.constexpr = flags[2]
    PRECISION: tl.constexpr = flags[5]
    NORMALIZE: tl.constexpr = flags[6]
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    m = tl.program_id(1).to(tl.int64)
    D = _pick(dims, m)
    z_at, z_stride, w_at, w_stride = _pick(zs, m), _pick(z_strides, m), _pick(ws, m), _pick(w_strides, m)
    head, valid = _heads(WIDTH, C, TASK)
    here, y, weight = _rows_that_count(
        rows, m, B, target, target_row, target_column, class_weight, present, present_m, present_row, ignore_index,
        flags,
    )  # fmt: skip

    s = tl.zeros((BLOCK_B, WIDTH), tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        z = _features(z_at, z_stride, rows, here, columns, D)
        w = _weights(w_at, w_stride, head, valid, columns, D, PRECISION)
        s = _dot_features(z, _transposed(w), s, PRECISION)
    if bs is not None:
        s += tl.load(_pick(bs, m) + head, mask=valid, other=0.0).to(tl.float32)[None, :]

    value, v, _ = _derivatives(s, tl.zeros_like(s), here, y, weight, beta, gamma, temperature, flags)

    slope = _parts(v, PRECISION)
    scale = alpha / D if NORMALIZE else alpha
    size = tl.zeros((BLOCK_B,), tl.float32)
    steep = tl.zeros((BLOCK_B,), tl.float32)
    t = tl.zeros((BLOCK_B, WIDTH), tl.float32)
    last = (D - 1) // BLOCK_D * BLOCK_D
    for first in range(0, D, BLOCK_D):
        columns = last - first + tl.arange(0, BLOCK_D)  # backwards: what was read last is still in the cache
        z = _features(z_at, z_stride, rows, here, columns, D).to(tl.float32)
        w = _weights(w_at, w_stride, head, valid, columns, D, PRECISION)
        # The squares of g, never the Gram matrix of W: that form cancels as the penalty shrinks.
        g = _dot(slope, w, 2.0 * scale * z, PRECISION)
        steep += tl.sum(g * g, 1)
        size += scale * tl.sum(z * z, 1)
        t = _dot(_parts(g, PRECISION), _transposed(w), t, PRECISION, True)
    _, _, curvature = _derivatives(s, t, here, y, weight, beta, gamma, temperature, flags)

    if partial is not None:
        _store_sum(partial, 0, here.to(tl.float32))
        _store_sum(partial, 1, value)
        _store_sum(partial, 2, size)
        _store_sum(partial, 3, steep)
    inside = rows < B
    tl.store(energy + m * B + rows, value + size, mask=inside)
    tl.store(penalty + m * B + rows, steep, mask=inside)
    tl.store(counted + m * B + rows, here, mask=inside)
    at = (head[None, :].to(tl.int64) * tl.num_programs(1) + m) * B + rows[:, None]
    tl.store(slopes + at, v, mask=inside[:, None] & valid[None, :])
    tl.store(curvatures + at, curvature, mask=inside[:, None] & valid[None, :])


@triton.jit(do_not_specialize=["blocks"])
def pool_kernel(
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
def _upstream(
    rows, m, B, M, width: tl.constexpr, WIDTH: tl.constexpr, counted, slopes, curvatures,
    a, a_m, a_row, p, p_m, p_row, coefficients, d_gap, d_steep, d_descent, d_loss, delta, rate,
):  # fmt: skip
    """Which rows count; v and J W g, R x N; and the gradients of E, 2 ||g|| (q) and beta l + gamma u (e), R x 1."""
    here = rows < B
    here &= tl.load(counted + m * B + rows, mask=here, other=0) != 0
    head = tl.arange(0, WIDTH)
    at = (head[None, :].to(tl.int64) * M + m) * B + rows[:, None]
    mask = here[:, None] & (head < width)[None, :]
    v = tl.load(slopes + at, mask=mask, other=0.0)
    curvature = tl.load(curvatures + at, mask=mask, other=0.0)
    d_energy = tl.zeros((rows.shape[0],), tl.float32)
    q = tl.zeros((rows.shape[0],), tl.float32)
    e = tl.zeros((rows.shape[0],), tl.float32)
    if a is not None:
        d_energy = tl.load(a + m * a_m + rows * a_row, mask=here, other=0.0)
    if p is not None:
        q = 2.0 * tl.load(p + m * p_m + rows * p_row, mask=here, other=0.0)
    if coefficients is not None:
        share = tl.load(coefficients + m)
        whole = _scalar(d_loss)
        d_energy += tl.where(here, rate * (_scalar(d_descent) + whole) * share, 0.0)
        q += tl.where(here, 2.0 * (_scalar(d_steep) + delta * whole) * share, 0.0)
        e += tl.where(here, (_scalar(d_gap) + whole) * tl.load(coefficients + M + m), 0.0)
    return here, v, curvature, d_energy[:, None], q[:, None], e[:, None]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    zs, ws, z_strides, w_strides, dims, dzs, counted, slopes, curvatures, a, a_m, a_row, p, p_m, p_row,
    coefficients, d_gap, d_steep, d_descent, d_loss, delta, rate, B, alpha, flags: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of the features."""
    width: tl.constexpr = flags[0]
    WIDTH: tl.constexpr = flags[1]
    PRECISION: tl.constexpr = flags[2]
    NORMALIZE: tl.constexpr = flags[3]
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    m = tl.program_id(1).to(tl.int64)
    D = _pick(dims, m)
    z_at, z_stride, w_at, w_stride = _pick(zs, m), _pick(z_strides, m), _pick(ws, m), _pick(w_strides, m)
    dz_at = _pick(dzs, m)
    head = tl.arange(0, WIDTH)
    here, v, curvature, d_energy, q, e = _upstream(
        rows, m, B, tl.num_programs(1), width, WIDTH, counted, slopes, curvatures,
        a, a_m, a_row, p, p_m, p_row, coefficients, d_gap, d_steep, d_descent, d_loss, delta, rate,
    )  # fmt: skip
    scale = 2.0 * alpha / D if NORMALIZE else 2.0 * alpha
    c = scale * q + d_energy
    u = _parts((c + e) * v + q * curvature, PRECISION)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        z = _features(z_at, z_stride, rows, here, columns, D).to(tl.float32)
        w = _weights(w_at, w_stride, head, head < width, columns, D, PRECISION)
        dz = _dot(u, w, scale * c * z, PRECISION)
        inside = (rows < B)[:, None] & (columns < D)[None, :]
        tl.store(dz_at + rows[:, None] * D + columns[None, :], dz.to(dz_at.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def heads_kernel(
    zs, ws, z_strides, w_strides, dims, offsets, partial, total, counted, slopes, curvatures,
    a, a_m, a_row, p, p_m, p_row, coefficients, d_gap, d_steep, d_descent, d_loss, delta, rate, B, blocks, alpha,
    flags: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of the heads. A program sums `blocks` blocks of rows, always in the same order."""
    width: tl.constexpr = flags[0]
    WIDTH: tl.constexpr = flags[1]
    PRECISION: tl.constexpr = flags[2]
    NORMALIZE: tl.constexpr = flags[3]
    split = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    D = _pick(dims, m)
    z_at, z_stride, w_at, w_stride = _pick(zs, m), _pick(z_strides, m), _pick(ws, m), _pick(w_strides, m)
    head = tl.arange(0, WIDTH)
    valid = head < width
    w = _weights(w_at, w_stride, head, valid, columns, D, PRECISION)
    scale = 2.0 * alpha / D if NORMALIZE else 2.0 * alpha

    dw = tl.zeros((BLOCK_D, WIDTH), tl.float32)
    db = tl.zeros((WIDTH,), tl.float32)
    for block in range(blocks):
        rows = (split * blocks + block) * BLOCK_B + tl.arange(0, BLOCK_B)
        here, v, curvature, d_energy, q, e = _upstream(
            rows, m, B, tl.num_programs(1), width, WIDTH, counted, slopes, curvatures,
            a, a_m, a_row, p, p_m, p_row, coefficients, d_gap, d_steep, d_descent, d_loss, delta, rate,
        )  # fmt: skip
        z = _features(z_at, z_stride, rows, here, columns, D)
        g = _dot(_parts(v, PRECISION), w, scale * z.to(tl.float32), PRECISION)
        direct = q * curvature + (d_energy + e) * v
        dw = _dot(_transposed(_parts(g, PRECISION)), _parts(q * v, PRECISION), dw, PRECISION, True)
        dw = _dot_features(tl.trans(z), _parts(direct, PRECISION), dw, PRECISION)
        db += tl.sum(direct, 0)

    at = partial + split * total + _pick(offsets, m)
    tl.store(at + head[None, :] * D + columns[:, None], dw, mask=valid[None, :] & (columns < D)[:, None])
    if tl.program_id(2) == 0:
        tl.store(at + width * D + head, db, mask=valid)
