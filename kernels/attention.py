"""Causal attention, faster: what it means and its derivation stand in plain.py.

    fused_attention_forward(qkv, n_heads, o, lse)                  what model.py calls: q, k and v
    fused_attention_backward(do, qkv, n_heads, o, lse, dqkv)       are heads of one array
    attention(q, k, v) -> o                                        the same on separate arrays
    attention_backward(do, q, k, v) -> dq, dk, dv
    attention_step(q, k_cache, v_cache, lengths, rows) -> o        one new query a text: decoding

plain.py makes the scores of all T x T pairs, and goes through them five times. Here no more of them
exists than 64 x 64 at a time (FlashAttention, Dao et al. 2022): 64 queries meet the keys block by
block; a running maximum m and sum l make the softmax exact at the end; of every row only
lse = m + log(l) is kept, from which the backward makes the weights p again.

Given up: masks other than causal, dropout. A thread keeps one head's k, v, dk and dv (T x D each)
beside its tiles, T below 64 pays for lanes rounded up to 16, and a NaN in v may also show up to 15
positions earlier (0 * NaN is NaN).

Forward and backward of 8 texts of 256 tokens, 8 heads of 64 numbers, float32: 15 ms on two cores
of an AMD EPYC (Zen 4), 2.1 times as fast as PyTorch's fused kernel. Compiling takes some 6 s, once.

Reading order: _forward and _backward with the comment over each; the decoding step; then the small
loops that they call.
"""
import functools
import math

import numba
import numpy as np
from numba import njit, prange, types

from kernels.matmul import U, aligned, make_multiply_add, transpose
from kernels.rows import FAST, alone_and_threads, exp

TILE = 64  # queries in a tile, keys in a block; also every tile's row stride
MANY = 4  # rows; below, waking a second thread costs more than it saves in decoding
# A block whose keys and queries start at the same position lies on the diagonal: there query j sees
# key i if j >= i. What a product skips of it, by where keys and queries stand in the product:
LANES_BY_ROW, LANES_BY_DEPTH, DEPTHS_BY_ROW = 1, 2, 3  # see _multiply_add


def fused_attention_forward(qkv, n_heads, o, lse):
    """Writes o (B,T,H,D) and lse (B,H,T) for qkv (B,T,H+2G,D), H = n_heads: heads of q, k, v."""
    _run(_forward, qkv, n_heads, o, lse, o, qkv)


def fused_attention_backward(do, qkv, n_heads, o, lse, dqkv):
    """Writes dqkv (B,T,H+2G,D), from do (B,T,H,D) and what the forward read and wrote."""
    _run(_backward, qkv, n_heads, o, lse, do, dqkv)


def attention(q, k, v):
    """o (B,T,H,D) from q (B,T,H,D) and k, v (B,T,G,D): what each query gathers from the values at
    its own and all earlier positions."""
    return _outputs(np.concatenate((q, k, v), axis=2), q.shape[2])[0]


def attention_backward(do, q, k, v, o=None, lse=None):
    """dq (B,T,H,D), dk and dv (B,T,G,D) from do (B,T,H,D); the forward's o and lse are made again
    if they are not given."""
    H, G, qkv = q.shape[2], k.shape[2], np.concatenate((q, k, v), axis=2)
    if lse is None:
        o, lse = _outputs(qkv, H)
    do, dqkv = np.ascontiguousarray(do), np.empty_like(qkv)
    fused_attention_backward(do, qkv, H, o, lse, dqkv)
    return dqkv[:, :, :H], dqkv[:, :, H:H + G], dqkv[:, :, H + G:]


def _outputs(qkv, n_heads):
    """o and lse of the forward, in new arrays."""
    B, T, _, D = qkv.shape
    o, lse = np.empty((B, T, n_heads, D), qkv.dtype), np.empty((B, n_heads, T), qkv.dtype)
    fused_attention_forward(qkv, n_heads, o, lse)
    return o, lse


def _run(kernel, qkv, n_heads, o, lse, do, dqkv):
    """Calls kernel on every thread, each array as one line of numbers (the forward ignores do and
    dqkv)."""
    (B, T, heads, D), H = qkv.shape, n_heads
    G = (heads - H) // 2
    if H < 1 or G < 1 or heads != H + 2 * G or H % G:
        raise ValueError(f"attention: {heads} heads in qkv can't be {H} of q and as many of k as "
                         f"of v that divide these")
    for x, shape in ((qkv, qkv.shape), (o, (B, T, H, D)), (lse, (B, H, T)), (do, (B, T, H, D)),
                     (dqkv, qkv.shape)):
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
    """_on_threads, compiled for arrays of dtype and a kernel of which it knows only the address.

    With the kernel's code inside, Numba would optimise that four times over: 2.5 s more each."""
    number = numba.from_dtype(dtype)
    arguments = (*[number[::1]] * 5, types.UniTuple(types.int64, 5), number)
    kernel = types.FunctionType(types.void(*arguments, types.int64, types.int64))
    return njit(types.void(kernel, *arguments, types.int64), parallel=True, cache=True)(_on_threads)


def _on_threads(kernel, qkv, o, lse, do, dqkv, sizes, scale, parts):
    for part in prange(parts):
        kernel(qkv, o, lse, do, dqkv, sizes, scale, np.int64(part), parts)


# ---- What makes it fast ----
# lanes     A tile lies keys x queries: 64 queries side by side, each in a lane of the vector unit.
#           So maximum, exp and sum run straight down the lanes, and none waits for its neighbour.
#           The price: q, do, o and dq are transposed, once a tile.
# skipping  The mask leaves half of the square. Blocks above the diagonal are never touched; in a
#           block on it, work is cut to steps of 16 lanes.
# threads   They take whole heads: nothing is shared, and the bits don't depend on their number.


# ---- Forward: a softmax that never sees a whole row (Milakov and Gimelshein 2018) ----
#
# Of one query, with scores s_j against the keys so far, keep
#     m = max s_j,    l = sum exp(s_j - m),    out = sum exp(s_j - m) v_j,    so that o = out / l.
# The next block of keys may raise the maximum to m'. As exp(s_j - m') = exp(s_j - m) exp(m - m'),
# one factor f = exp(m - m') brings all that was summed up to date:
#     l' = l f + sum over the block of exp(s_j - m'),   out' likewise, each exp times its v_j.
# At the end l and out are what a softmax over all keys gives. To start, m = -inf and l = out = 0.
# Scores 1 and 3, one a block: m = 1, l = 1; then m = 3, f = exp(-2), l = exp(-2) + 1.
#
# The same for a tile of 64 queries, each in a lane j; row i is a key, p[i, j] lies at i * TILE + j:
#     keys, values (T4,D4)    k / sqrt(D) and v of one head, copied together; zeros fill up to fours
#     queries, out (D4,TILE)  q and the sum so far, transposed: a column is a query
#     p (TILE,TILE)           scores keys @ queries, then exp of them; out += values^T @ p
#     m, l, f (TILE)          a number a query
# A tile meets the blocks of keys up to its own; only in the last, on the diagonal, the mask cuts:
#     queries   0..63      64..127    128..191
#     keys 0.   diagonal   whole      whole
#     keys 64.             diagonal   whole
#     keys 128.                       diagonal

@njit(fastmath=FAST, cache=True)
def _forward(qkv, o, lse, do, dqkv, sizes, scale, part, parts):
    """One thread's share of the heads: of the B*H tasks, number part, part + parts, and so on."""
    B, T, H, G, D = sizes
    D4, T4 = (D + 3) // 4 * 4, (T + 3) // 4 * 4  # products advance in fours
    step, o_step = (H + 2 * G) * D, H * D  # from token to token in qkv and in o
    # To Numba a plain 0 is a type of its own (a literal): it would compile every callee anew for
    # each combination of constants it is called with.
    zero, one, line, unit = np.int64(0), np.int64(1), np.int64(TILE), qkv.dtype.type(1)
    keys, values = aligned(T4 * D4, qkv), aligned(T4 * D4, qkv)
    queries, out, p = aligned(D4 * TILE, qkv), aligned(D4 * TILE, qkv), aligned(line * TILE, qkv)
    m, l, f = aligned(line, qkv), aligned(line, qkv), aligned(line, qkv)
    keys[:], values[:], queries[:] = 0, 0, 0  # what pads them has to be finite
    for task in range(part, B * H, parts):
        b, h = task // H, task % H
        g = H + h // (H // G)  # the head of k; that of v stands G later
        _copy(qkv, b * T * step + g * D, step, T, D, scale, keys, zero, D4)
        _copy(qkv, b * T * step + (g + G) * D, step, T, D, unit, values, zero, D4)
        for t in range(0, T, TILE):  # tiles of n queries in `lanes` lanes
            n = min(TILE, T - t)
            lanes = (n + 15) // 16 * 16
            if n < TILE:
                queries[:] = 0
            transpose(qkv, (b * T + t) * step + h * D, step, n, D, queries, zero, line)
            m[:], l[:], out[:] = -np.inf, 0, 0
            for s in range(0, t + 1, TILE):  # blocks of keys, up to the one on the diagonal
                rows, diagonal = min(TILE, T4 - s), s == t
                p[:] = 0
                _multiply_add(keys, s * D4, D4, one, rows, D4, queries, zero, p, zero, lanes,
                              LANES_BY_ROW * diagonal)
                _softmax(p, m, l, f, rows, lanes, diagonal)
                _scale_lanes(out, f, D)
                _multiply_add(values, s * D4, one, D4, D4, rows, p, zero, out, zero, lanes,
                              LANES_BY_DEPTH * diagonal)
            # All keys seen: log of sum exp(s) = m + log(l), and o = out / l.
            for j in range(n):
                lse[task * T + t + j] = m[j] + math.log(l[j])
                f[j] = unit / l[j]
            _scale_lanes(out, f, D)
            transpose(out, zero, line, D, n, o, (b * T + t) * o_step + h * D, o_step)


@njit(fastmath=FAST)
def _softmax(p, m, l, f, rows, lanes, diagonal):
    """Scores p (rows,lanes) become exp(p - m), with m and l, the maximum and sum so far, brought
    up to date; f is the factor that does the same for what was gathered with the old m.

    In this order: m; f, and l with it; exp, added to l. Four rows at a time, so that m and l are
    loaded and stored once for four keys. On the diagonal, row i starts at the step of 16 lanes
    that holds lane i."""
    if diagonal:
        _mask(p, rows, -np.inf)
    for j in range(U(TILE)):
        f[j] = m[j]
    for i in range(0, rows, 4):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * TILE) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            y, z = p[x + j], p[x + j + U(TILE)]
            y = y if y > z else z  # a NaN may lose here, but not in the sum below
            z, w = p[x + j + U(2 * TILE)], p[x + j + U(3 * TILE)]
            z = z if z > w else w
            y = y if y > z else z
            m[c + j] = y if y > m[c + j] else m[c + j]
    for j in range(U(TILE)):
        f[j] = exp(f[j] - m[j])
        l[j] *= f[j]
    for i in range(0, rows, 4):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * TILE) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            x0, x1, x2, x3 = x + j, x + j + U(TILE), x + j + U(2 * TILE), x + j + U(3 * TILE)
            y0, y1 = exp(p[x0] - m[c + j]), exp(p[x1] - m[c + j])
            y2, y3 = exp(p[x2] - m[c + j]), exp(p[x3] - m[c + j])
            p[x0], p[x1], p[x2], p[x3] = y0, y1, y2, y3
            l[c + j] += (y0 + y1) + (y2 + y3)
    if diagonal:
        _mask(p, rows, 0.0)  # exp ends at 1e-38, not at 0


# ---- Backward ----
#
# Two changes to plain.py's. p is made again from lse, p_tj = exp(s_tj - lse_t), block by block:
# five products in place of the forward's two. And the sum over a row that the softmax needs comes
# without the row (Dao et al. 2022, appendix B):
#     delta_t = sum_j p_tj dp_tj = sum_j p_tj (do_t . v_j) = do_t . (sum_j p_tj v_j) = do_t . o_t
#
# Tiles as in the forward: p and ds are keys x queries; douts, dqueries (D4,TILE) are columns like
# queries. dv = p @ do and dk = ds @ q sum over queries, so q / sqrt(D) and do are there a second
# time, by rows: query_rows, dout_rows. With D above 64 these two, dkeys and dvalues are cut into
# slabs of 64 columns, one behind the other, so that each is a tile of the one row stride TILE.
#
# The five products, in the order of the code (@ sums over D, D, keys, queries, queries):
#     p = keys @ queries,     ds = values @ douts     scores and dp; _softmax_backward finishes both
#     dqueries += keys^T @ ds                         keys hold k / sqrt(D), as dq wants them
#     dvalues += p @ dout_rows,     dkeys += ds @ query_rows

@njit(fastmath=FAST, cache=True)
def _backward(qkv, o, lse, do, dqkv, sizes, scale, part, parts):
    """One thread's share of the key/value heads. The query heads of a group add to the same dk and
    dv, so they stay with one thread, in order."""
    B, T, H, G, D = sizes
    D4, T4 = (D + 3) // 4 * 4, (T + 3) // 4 * 4
    step, o_step = (H + 2 * G) * D, H * D
    wide = (D + TILE - 1) // TILE * TILE  # dk, dv and the rows of q and do lie in slabs
    zero, one, line, unit = np.int64(0), np.int64(1), np.int64(TILE), qkv.dtype.type(1)
    keys, values = aligned(T4 * D4, qkv), aligned(T4 * D4, qkv)
    dkeys, dvalues = aligned(T4 * wide, qkv), aligned(T4 * wide, qkv)
    queries, douts = aligned(D4 * TILE, qkv), aligned(D4 * TILE, qkv)
    dqueries, p, ds = aligned(D4 * TILE, qkv), aligned(line * TILE, qkv), aligned(line * TILE, qkv)
    query_rows, dout_rows = aligned(line * wide, qkv), aligned(line * wide, qkv)
    lse_t, delta = aligned(line, qkv), aligned(line, qkv)  # of one tile
    keys[:], values[:], queries[:], douts[:] = 0, 0, 0, 0
    for task in range(part, B * G, parts):
        b, g = task // G, task % G
        k, v = b * T * step + (H + g) * D, b * T * step + (H + G + g) * D  # where they begin
        _copy(qkv, k, step, T, D, scale, keys, zero, D4)
        _copy(qkv, v, step, T, D, unit, values, zero, D4)
        dkeys[:], dvalues[:] = 0, 0
        for h in range(g * (H // G), (g + 1) * (H // G)):
            for t in range(0, T, TILE):
                n = min(TILE, T - t)
                lanes = (n + 15) // 16 * 16
                x, y = (b * T + t) * step + h * D, (b * T + t) * o_step + h * D
                if n < TILE:
                    queries[:], douts[:], query_rows[:], dout_rows[:] = 0, 0, 0, 0
                    lse_t[:], delta[:] = 0, 0
                transpose(qkv, x, step, n, D, queries, zero, line)
                transpose(do, y, o_step, n, D, douts, zero, line)
                for c in range(0, D, TILE):
                    columns = min(TILE, D - c)
                    _copy(qkv, x + c, step, n, columns, scale, query_rows, c * TILE, line)
                    _copy(do, y + c, o_step, n, columns, unit, dout_rows, c * TILE, line)
                for j in range(n):
                    lse_t[j] = lse[(b * H + h) * T + t + j]
                    delta[j] = _dot(do, y + j * o_step, o, y + j * o_step, D)
                dqueries[:] = 0
                for s in range(0, t + 1, TILE):
                    rows, diagonal = min(TILE, T4 - s), s == t
                    by_row, by_depth = LANES_BY_ROW * diagonal, LANES_BY_DEPTH * diagonal
                    p[:], ds[:] = 0, 0
                    _multiply_add(keys, s * D4, D4, one, rows, D4, queries, zero, p, zero, lanes,
                                  by_row)
                    _multiply_add(values, s * D4, D4, one, rows, D4, douts, zero, ds, zero, lanes,
                                  by_row)
                    _softmax_backward(p, ds, lse_t, delta, rows, lanes, diagonal)
                    _multiply_add(keys, s * D4, one, D4, D4, rows, ds, zero, dqueries, zero, lanes,
                                  by_depth)
                    for c in range(0, D, TILE):
                        columns = (min(TILE, D - c) + 15) // 16 * 16
                        _multiply_add(p, zero, line, one, rows, lanes, dout_rows, c * TILE,
                                      dvalues, c * T4 + s * TILE, columns, DEPTHS_BY_ROW * diagonal)
                        _multiply_add(ds, zero, line, one, rows, lanes, query_rows, c * TILE,
                                      dkeys, c * T4 + s * TILE, columns, DEPTHS_BY_ROW * diagonal)
                transpose(dqueries, zero, line, D, n, dqkv, x, step)
        for c in range(0, D, TILE):
            columns = min(TILE, D - c)
            _copy(dkeys, c * T4, line, T, columns, unit, dqkv, k + c, step)
            _copy(dvalues, c * T4, line, T, columns, unit, dqkv, v + c, step)


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


@njit(fastmath=FAST)
def _dot(a, x, b, y, n):
    """The product of n numbers of a from x on and n of b from y on."""
    x, y, total = U(x), U(y), a.dtype.type(0)
    for i in range(U(n)):
        total += a[x + i] * b[y + i]
    return total


# ---- Decoding: one query against all keys so far. Each key and value is used once, so there is
#      nothing to gain from tiles: the row of scores fits the cache, and the softmax is a plain one.

def attention_step(q, k_cache, v_cache, lengths, rows, o=None):
    """o (N,H,D) for one new query a text, q (N,H,D), against the caches (B,G,S,D): query n reads
    positions 0 to lengths[n] - 1 (its own is the last) of text rows[n]."""
    o = np.empty(q.shape, q.dtype) if o is None else o
    _text_by_text[len(q) >= MANY](q, k_cache, v_cache, lengths, rows, o)  # alone, or threads
    return o


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
    """o (D,): q (D,) against the first n of keys and values (.,D); p (n,) is scratch.

    Four keys at a time: one short vector alone would leave the core waiting for its sum."""
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
        s0 = zero
        for d in range(D):
            s0 += q[d] * keys[t, d]
        p[t] = s0 * scale
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


# ---- What both are made of. Arrays are flat; a part begins at an index x, y, b or t ----

_four_rows = make_multiply_add(TILE)


@njit(fastmath=FAST)
def _multiply_add(a, x, row_stride, depth_stride, rows, depth, panel, b, tile, t, lanes, skip):
    """tile (rows,lanes) += a (rows,depth) @ panel (depth,lanes), without what the mask makes 0;
    sizes are padded with zeros to fours, lanes to sixteens.

    On the diagonal, skip names the two that stand for key i and query j (only j >= i counts), and
    what starts at i therefore:
        LANES_BY_ROW    row i, lane j:    scores and dp; lanes start at i, rounded down to 16
        LANES_BY_DEPTH  depth i, lane j:  out and dq; depths go in sixteens, lanes start with them
        DEPTHS_BY_ROW   row i, depth j:   dk and dv; depths start at i, a multiple of 4"""
    deep = 16 if skip == LANES_BY_DEPTH else depth
    for k in range(0, depth, deep):
        for i in range(0, rows, 4):
            k0 = i if skip == DEPTHS_BY_ROW else k
            j = i // 16 * 16 if skip == LANES_BY_ROW else k if skip == LANES_BY_DEPTH else 0
            _four_rows(a, x + i * row_stride + k0 * depth_stride, row_stride, depth_stride,
                       min(deep, depth - k0), panel, b + k0 * TILE + j, tile, t + i * TILE + j,
                       lanes - j)


@njit
def _mask(tile, rows, value):
    """In a block on the diagonal, fills what lies before lane i of row i, back to a step of 16:
    what vectors had to compute beside what counts. What lies before that is never read."""
    for i in range(rows):
        for j in range(U(i * TILE + i // 16 * 16), U(i * TILE + i)):
            tile[j] = value


@njit
def _scale_lanes(tile, f, rows):
    """tile (rows,TILE) *= f (TILE,): a factor a query, straight down the lanes."""
    for i in range(rows):
        for j in range(U(TILE)):
            tile[U(i * TILE) + j] *= f[j]


@njit
def _copy(source, x, x_step, rows, columns, factor, target, y, y_step):
    """target (rows,columns) = source * factor; x, x_step, y, y_step as in transpose."""
    for r in range(rows):
        xr, yr = U(x + r * x_step), U(y + r * y_step)
        for c in range(U(columns)):
            target[yr + c] = source[xr + c] * factor
