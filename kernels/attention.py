"""Causal attention, faster; plain.py says what it computes and why.

plain.py holds the weights p of all T x T pairs. Here tiles of 64 queries meet blocks of 64 keys
(FlashAttention, Dao et al. 2022), so memory grows with T and not with its square. The forward keeps
one number a query, lse, from which the backward makes p again. What makes it fast:

  lanes     A tile's queries lie side by side, each in a lane of the vector unit. Maximum, exp and
            sum run down the lanes, all queries at once. So q, do, o and dq are transposed.
  skipping  What the causal mask hides is not computed, in steps of 16 lanes.
  threads   Each takes whole heads and shares nothing: any number gives the same bits.

Given up: other masks, dropout; T below 64 pays for lanes rounded up to 16; a NaN in v may also show
up to 15 positions earlier (0 * NaN is NaN). Reading order: _forward, _backward, what they call.
"""
import functools
import math

import numba
import numpy as np
from numba import njit, prange, types

from kernels.matmul import U, aligned, make_multiply_add, transpose
from kernels.plain import split_heads
from kernels.rows import FAST, alone_and_threads, exp

TILE = np.int64(64)  # queries in a tile, keys in a block; also every tile's row stride
ONE = np.int64(1)  # np.int64: see matmul.py
MANY = 4  # texts from which a second thread pays in decoding


def fused_attention_forward(qkv, n_heads, o, lse):
    """plain.fused_attention_forward: writes o (B,T,H,D), lse (B,H,T) for qkv (B,T,H+2G,D)."""
    _run(_forward, qkv, n_heads, o, lse, o, qkv)


def fused_attention_backward(do, qkv, n_heads, o, lse, dqkv):
    """plain.fused_attention_backward: writes dqkv (B,T,H+2G,D) from do (B,T,H,D) and what the
    forward read and wrote."""
    _run(_backward, qkv, n_heads, o, lse, do, dqkv)


def attention(q, k, v):
    """plain.attention: o (B,T,H,D) from q (B,T,H,D) and k, v (B,T,G,D), which are copied."""
    return _forward_of(q, k, v)[1]


def attention_backward(do, q, k, v):
    """plain.attention_backward: dq (B,T,H,D), dk and dv (B,T,G,D) from do (B,T,H,D). Runs the
    forward first, for o and lse."""
    qkv, o, lse = _forward_of(q, k, v)
    dqkv = np.empty_like(qkv)
    fused_attention_backward(np.ascontiguousarray(do), qkv, q.shape[2], o, lse, dqkv)
    return split_heads(dqkv, q.shape[2])


def _forward_of(q, k, v):
    (B, T, H, _), qkv = q.shape, np.concatenate((q, k, v), axis=2)
    o, lse = np.empty_like(q, order="C"), np.empty((B, H, T), q.dtype)
    fused_attention_forward(qkv, H, o, lse)
    return qkv, o, lse


def _run(kernel, qkv, n_heads, o, lse, do, dqkv):
    """Calls kernel on every thread, each array as one line of numbers. _forward reads no do and
    dqkv; any arrays of these shapes stand in."""
    (B, T, heads, D), H = qkv.shape, n_heads
    G = (heads - H) // 2
    if H < 1 or G < 1 or heads != H + 2 * G or H % G:
        raise ValueError(f"attention: {heads} heads in qkv can't be {H} of q and G each of k and v")
    shapes = qkv.shape, (B, T, H, D), (B, H, T), (B, T, H, D), qkv.shape
    for x, shape in zip((qkv, o, lse, do, dqkv), shapes):
        if x.shape != shape or x.dtype != qkv.dtype or not x.flags.c_contiguous:
            raise ValueError(f"attention: expected a contiguous array {shape} of {qkv.dtype}, "
                             f"found {x.shape} of {x.dtype}, strides {x.strides}")
    if qkv.size == 0:
        return
    lines = [x.reshape(-1) for x in (qkv, o, lse, do, dqkv)]
    sizes, scale, parts = (B, T, H, G, D), qkv.dtype.type(1 / math.sqrt(D)), numba.get_num_threads()
    if parts == 1:
        kernel(*lines, sizes, scale, 0, 1)
    else:
        _threads(qkv.dtype)(kernel, *lines, sizes, scale, parts)


@functools.cache
def _threads(dtype):
    """_on_threads for dtype; the kernel comes by address, since to compile its code takes 2.5 s."""
    number = numba.from_dtype(dtype)
    arguments = (*[number[::1]] * 5, types.UniTuple(types.int64, 5), number)
    kernel = types.FunctionType(types.void(*arguments, types.int64, types.int64))
    return njit(types.void(kernel, *arguments, types.int64), parallel=True, cache=True)(_on_threads)


def _on_threads(kernel, qkv, o, lse, do, dqkv, sizes, scale, parts):
    for part in prange(parts):
        kernel(qkv, o, lse, do, dqkv, sizes, scale, np.int64(part), parts)


# ---- Forward: a softmax that never sees a whole row (Milakov and Gimelshein 2018) ----
# For each query, with scores s_j against the keys so far, keep
#     top = max s_j,   total = sum exp(s_j - top),   out = sum exp(s_j - top) v_j
# and o = out / total at the end. If the next block of keys raises the maximum to top', the factor
# f = exp(top - top') brings both sums up to date, as exp(s_j - top') = exp(s_j - top) f.
# Example, scores 1 and 3, one a block, with values 10 and 20:
#     after 1:  top = 1               total = 1                       out = 10
#     after 3:  top = 3, f = 0.135    total = 1 * 0.135 + 1 = 1.135   out = 10 * 0.135 + 20 = 21.4
# and o = 21.4 / 1.135 = 18.8, as softmax(1, 3) = (0.12, 0.88) says: 0.12 * 10 + 0.88 * 20.
#
# A column of a tile is a query; row i begins at i * TILE. queries and out (D4,TILE) are q and the
# sum so far; a row of p (TILE,TILE) is a key. keys and values (T4,D4) are k / sqrt(D) and v of one
# head. D4 and T4 are D and T rounded up to fours. Which blocks of keys a tile meets:
#     queries   0..63      64..127    128..191
#     keys 0.   diagonal   whole      whole
#     keys 64.             diagonal   whole
#     keys 128.                       diagonal

@njit(fastmath=FAST, cache=True)
def _forward(qkv, o, lse, do, dqkv, sizes, scale, part, parts):
    """One thread's share of the B*H heads: number part, part + parts, and so on."""
    B, T, H, G, D = sizes
    D4, T4, unit = (D + 3) // 4 * 4, (T + 3) // 4 * 4, qkv.dtype.type(1)
    step, o_step = (H + 2 * G) * D, H * D  # from token to token in qkv and in o
    keys, values = aligned(T4 * D4, qkv), aligned(T4 * D4, qkv)
    queries, out, p = aligned(D4 * TILE, qkv), aligned(D4 * TILE, qkv), aligned(TILE * TILE, qkv)
    top, total, f = aligned(TILE, qkv), aligned(TILE, qkv), aligned(TILE, qkv)
    keys[:], values[:], queries[:] = 0, 0, 0  # what pads them has to be finite
    for task in range(part, B * H, parts):
        b, h = task // H, task % H
        k = b * T * step + (H + h // (H // G)) * D  # where k begins; v lies G heads further
        _copy(qkv[k:], step, T, D, scale, keys, D4)
        _copy(qkv[k + G * D:], step, T, D, unit, values, D4)
        for t in range(0, T, TILE):  # tiles of n queries in `lanes` lanes
            n = min(TILE, T - t)
            lanes = (n + 15) // 16 * 16
            if n < TILE:
                queries[:] = 0
            transpose(qkv[(b * T + t) * step + h * D:], step, n, D, queries, TILE)
            top[:], total[:], out[:] = -np.inf, 0, 0
            for s in range(0, t + 1, TILE):  # blocks of keys
                rows, diagonal = min(TILE, T4 - s), s == t
                _scores(keys[s * D4:], rows, D4, queries, p, lanes, diagonal)
                _softmax(p, top, total, f, rows, lanes, diagonal)
                _scale_lanes(out, f, D)
                _sum_over_keys(values[s * D4:], rows, D4, p, out, lanes, diagonal)
            for j in range(n):
                lse[task * T + t + j] = top[j] + math.log(total[j])  # log of sum exp(s)
                f[j] = unit / total[j]
            _scale_lanes(out, f, D)
            transpose(out, TILE, D, n, o[(b * T + t) * o_step + h * D:], o_step)


@njit(fastmath=FAST)
def _softmax(p, top, total, f, rows, lanes, diagonal):
    """Scores p (rows,lanes) become exp(p - top'); top, total and f come up to date. Four keys at a
    time, so that top and total are loaded and stored once for all four."""
    if diagonal:
        _mask(p, rows, -np.inf)
    for j in range(U(TILE)):
        f[j] = top[j]
    for i in range(0, rows, 4):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * TILE) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            y, z = p[x + j], p[x + j + U(TILE)]
            y = y if y > z else z  # a NaN may lose here, but not in the sum below
            z, w = p[x + j + U(2 * TILE)], p[x + j + U(3 * TILE)]
            z = z if z > w else w
            y = y if y > z else z
            top[c + j] = y if y > top[c + j] else top[c + j]
    for j in range(U(TILE)):
        f[j] = exp(f[j] - top[j])
        total[j] *= f[j]
    for i in range(0, rows, 4):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * TILE) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            x0, x1, x2, x3 = x + j, x + j + U(TILE), x + j + U(2 * TILE), x + j + U(3 * TILE)
            y0, y1 = exp(p[x0] - top[c + j]), exp(p[x1] - top[c + j])
            y2, y3 = exp(p[x2] - top[c + j]), exp(p[x3] - top[c + j])
            p[x0], p[x1], p[x2], p[x3] = y0, y1, y2, y3
            total[c + j] += (y0 + y1) + (y2 + y3)
    if diagonal:
        _mask(p, rows, 0.0)  # exp ends at 1e-38, not at 0


# ---- Backward ----
# Two things differ from plain.py. p is made again: p_tj = exp(s_tj - lse_t). And the sum over a row
# in the derivative of the softmax needs no row (Dao et al. 2022, appendix B):
#     delta_t = sum_j p_tj dp_tj = sum_j p_tj (do_t . v_j) = do_t . (sum_j p_tj v_j) = do_t . o_t
# Each block takes five products; p and ds (TILE,TILE) are keys x queries:
#     p = keys @ queries,     ds = values @ douts     scores and dp; _softmax_backward finishes both
#     dqueries += keys^T @ ds                         keys hold k / sqrt(D), as dq wants them
#     dvalues += p @ dout_rows,     dkeys += ds @ query_rows
# The last two sum over queries, and want q / sqrt(D) and do by rows too, in slabs of 64 of the D
# columns, one behind the other, each with the row stride TILE.

@njit(fastmath=FAST, cache=True)
def _backward(qkv, o, lse, do, dqkv, sizes, scale, part, parts):
    """One thread's share of the B*G key/value heads, each with all query heads that add to it."""
    B, T, H, G, D = sizes
    D4, T4, unit = (D + 3) // 4 * 4, (T + 3) // 4 * 4, qkv.dtype.type(1)
    step, o_step = (H + 2 * G) * D, H * D
    wide = (D + TILE - 1) // TILE * TILE  # all slabs
    keys, values = aligned(T4 * D4, qkv), aligned(T4 * D4, qkv)
    dkeys, dvalues = aligned(T4 * wide, qkv), aligned(T4 * wide, qkv)
    queries, douts = aligned(D4 * TILE, qkv), aligned(D4 * TILE, qkv)
    query_rows, dout_rows = aligned(TILE * wide, qkv), aligned(TILE * wide, qkv)
    dqueries, p, ds = aligned(D4 * TILE, qkv), aligned(TILE * TILE, qkv), aligned(TILE * TILE, qkv)
    lse_t, delta = aligned(TILE, qkv), aligned(TILE, qkv)  # of one tile
    keys[:], values[:], queries[:], douts[:] = 0, 0, 0, 0
    for task in range(part, B * G, parts):
        b, g = task // G, task % G
        k = b * T * step + (H + g) * D
        v = k + G * D
        _copy(qkv[k:], step, T, D, scale, keys, D4)
        _copy(qkv[v:], step, T, D, unit, values, D4)
        dkeys[:], dvalues[:] = 0, 0
        for h in range(g * (H // G), (g + 1) * (H // G)):
            for t in range(0, T, TILE):
                n = min(TILE, T - t)
                lanes = (n + 15) // 16 * 16
                x, y = (b * T + t) * step + h * D, (b * T + t) * o_step + h * D
                _both_ways(qkv[x:], step, n, D, scale, queries, query_rows)
                _both_ways(do[y:], o_step, n, D, unit, douts, dout_rows)
                lse_t[:], delta[:], dqueries[:] = 0, 0, 0
                for j in range(n):
                    lse_t[j] = lse[(b * H + h) * T + t + j]
                    delta[j] = _dot(do[y + j * o_step:], o[y + j * o_step:], D)
                for s in range(0, t + 1, TILE):
                    rows, diagonal = min(TILE, T4 - s), s == t
                    _scores(keys[s * D4:], rows, D4, queries, p, lanes, diagonal)
                    _scores(values[s * D4:], rows, D4, douts, ds, lanes, diagonal)
                    _softmax_backward(p, ds, lse_t, delta, rows, lanes, diagonal)
                    _sum_over_keys(keys[s * D4:], rows, D4, ds, dqueries, lanes, diagonal)
                    _sum_over_queries(p, rows, lanes, dout_rows, D, dvalues, s, T4, diagonal)
                    _sum_over_queries(ds, rows, lanes, query_rows, D, dkeys, s, T4, diagonal)
                transpose(dqueries, TILE, D, n, dqkv[x:], step)
        for c in range(0, D, TILE):
            width = min(TILE, D - c)
            _copy(dkeys[c * T4:], TILE, T, width, unit, dqkv[k + c:], step)
            _copy(dvalues[c * T4:], TILE, T, width, unit, dqkv[v + c:], step)


@njit(fastmath=FAST)
def _softmax_backward(p, ds, lse, delta, rows, lanes, diagonal):
    """p (rows,lanes) holds scores, becomes exp(s - lse); ds holds dp, becomes p (dp - delta)."""
    for i in range(rows):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * TILE) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            p[x + j] = exp(p[x + j] - lse[c + j])
            ds[x + j] = p[x + j] * (ds[x + j] - delta[c + j])
    if diagonal:
        _mask(p, rows, 0.0)
        _mask(ds, rows, 0.0)


# ---- Decoding: each key and value is used once, so tiles would gain nothing ----

def attention_step(q, k_cache, v_cache, lengths, rows, o):
    """plain.attention_step: writes o (N,H,D) for q (N,H,D), caches (B,G,S,D), lengths, rows (N)."""
    _text_by_text[len(q) >= MANY](q, k_cache, v_cache, lengths, rows, o)  # alone, or threads


@alone_and_threads
def _text_by_text(q, k_cache, v_cache, lengths, rows, o):
    N, H, D = q.shape
    group, scale = H // k_cache.shape[1], q.dtype.type(1 / math.sqrt(D))
    for n in prange(N):
        weights = np.empty(lengths[n], q.dtype)
        for h in range(H):
            _one_query(q[n, h], k_cache[rows[n], h // group], v_cache[rows[n], h // group],
                       lengths[n], scale, weights, o[n, h])


@njit(fastmath=FAST)
def _one_query(q, keys, values, n, scale, p, o):
    """o (D,): q (D,) against the first n of keys and values (S,D); p (n,) is scratch. Four keys at
    a time: their sums don't wait for each other."""
    D, zero, top = q.size, q.dtype.type(0), q.dtype.type(-np.inf)
    for t in range(0, n - 3, 4):
        s0, s1, s2, s3 = zero, zero, zero, zero
        for d in range(D):
            s0 += q[d] * keys[t, d]
            s1 += q[d] * keys[t + 1, d]
            s2 += q[d] * keys[t + 2, d]
            s3 += q[d] * keys[t + 3, d]
        p[t], p[t + 1], p[t + 2], p[t + 3] = s0 * scale, s1 * scale, s2 * scale, s3 * scale
        s0, s2 = max(p[t], p[t + 1]), max(p[t + 2], p[t + 3])
        top = max(top, max(s0, s2))
    for t in range(n // 4 * 4, n):
        p[t] = _dot(q, keys[t], D) * scale
        top = max(top, p[t])
    total = zero
    for t in range(n):
        p[t] = exp(p[t] - top)
        total += p[t]
    o[:] = 0
    for t in range(0, n - 3, 4):
        p0, p1, p2, p3 = p[t], p[t + 1], p[t + 2], p[t + 3]
        for d in range(D):
            o[d] += (p0 * values[t, d] + p1 * values[t + 1, d]
                     + p2 * values[t + 2, d] + p3 * values[t + 3, d])
    for t in range(n // 4 * 4, n):
        for d in range(D):
            o[d] += p[t] * values[t, d]
    for d in range(D):
        o[d] /= total


# ---- The products. On the diagonal, where query j sees keys i <= j, they leave out what is 0 ----
# All step through matmul.py's four rows; rows and width are multiples of 4, lanes of 16.

_four_rows = make_multiply_add(TILE)


@njit
def _scores(keys, rows, width, queries, p, lanes, diagonal):
    """p (rows,lanes) = keys (rows,width) @ queries (width,lanes). On the diagonal, row i starts at
    lane i, rounded down to 16."""
    p[:] = 0
    for i in range(0, rows, 4):
        j = i // 16 * 16 if diagonal else 0
        _four_rows(keys, i * width, width, ONE, width, queries, j, p, i * TILE + j, lanes - j)


@njit
def _sum_over_keys(values, rows, width, p, out, lanes, diagonal):
    """out (width,lanes) += values^T (width,rows) @ p (rows,lanes). On the diagonal, sixteen keys at
    a time start at their lane."""
    deep = 16 if diagonal else rows
    for k in range(0, rows, deep):
        j = k if diagonal else 0
        for i in range(0, width, 4):
            _four_rows(values, k * width + i, ONE, width, min(deep, rows - k), p, k * TILE + j,
                       out, i * TILE + j, lanes - j)


@njit
def _sum_over_queries(p, rows, lanes, vectors, D, out, s, T4, diagonal):
    """out (T4,D), from row s on, += p (rows,lanes) @ vectors (lanes,D), in slabs. On the diagonal,
    the queries of row i start at i, rounded down to 4."""
    for c in range(0, D, TILE):
        columns = (min(TILE, D - c) + 15) // 16 * 16
        for i in range(0, rows, 4):
            j = i if diagonal else 0
            _four_rows(p, i * TILE + j, TILE, ONE, lanes - j, vectors, (c + j) * TILE,
                       out, c * T4 + (s + i) * TILE, columns)


@njit
def _mask(tile, rows, value):
    """On the diagonal, fills row i up to lane i, from where it starts."""
    for i in range(rows):
        for j in range(U(i * TILE + i // 16 * 16), U(i * TILE + i)):
            tile[j] = value


@njit
def _scale_lanes(tile, f, rows):
    """tile (rows,TILE) *= f (TILE)."""
    for i in range(rows):
        for j in range(U(TILE)):
            tile[U(i * TILE) + j] *= f[j]


@njit(fastmath=FAST)
def _dot(a, b, n):
    """The product of the first n numbers of a and b."""
    total = a.dtype.type(0)
    for i in range(U(n)):
        total += a[i] * b[i]
    return total


@njit
def _copy(source, x_step, rows, columns, factor, target, y_step):
    """target (rows,columns) = source * factor; steps lead from row to row."""
    for r in range(rows):
        x, y = U(r * x_step), U(r * y_step)
        for c in range(U(columns)):
            target[y + c] = source[x + c] * factor


@njit
def _both_ways(source, step, n, D, factor, columns, rows):
    """n vectors of source: as columns (D4,TILE), and times factor as rows, in slabs (TILE,TILE)."""
    if n < TILE:
        columns[:], rows[:] = 0, 0
    transpose(source, step, n, D, columns, TILE)
    for c in range(0, D, TILE):
        _copy(source[c:], step, n, min(TILE, D - c), factor, rows[c * TILE:], TILE)
