"""Causal attention, forward and backward: each token gathers values from the tokens before it.

    s = q k^T / sqrt(D),   p = softmax(s) over the keys up to the query's own place,   o = p v

    attention(q, k, v)              -> o                     q, o (B,T,H,D);  k, v (B,T,G,D)
    attention_forward(q, k, v, o, lse)                       the same into given arrays; lse (B,H,T)
    attention_backward(do, q, k, v, o, lse) -> dq, dk, dv    what o's gradient means for the inputs
    attention_step(q, k_cache, v_cache, lengths, rows) -> o  one new query a row, when decoding

Grouped queries (Ainslie et al. 2023): query head h reads key/value head h // (H / G).

Written out in NumPy (plain and plain_backward in tests/test_attention.py: read these first), s
alone takes B*H*T*T numbers, in memory and five times through it. Here no more of it exists than
64 x 64 at a time (FlashAttention, Dao et al. 2022): 64 queries meet the keys block by block; a
running maximum m and sum l make the softmax exact at the end; of every row only lse = m + log(l),
the log of the softmax's denominator, is kept, from which the backward makes p again.

What makes it fast:
  lanes    A tile lies keys x queries: 64 queries side by side, each in a lane of the vector unit.
           So maximum, exp and sum run straight down the lanes, and none waits for its neighbour.
           The price is turning q, do, o and dq around, once a tile.
  skipping The mask leaves half of the square. Blocks above the diagonal are never touched; in a
           block on it, work is cut to steps of 16 lanes.
  threads  take whole heads: nothing is shared, and the bits don't depend on their number.

Forward and backward of 8 sequences of 256 tokens, 8 heads of 64 numbers, float32: 15 ms on two
cores of an AMD EPYC (Zen 4), 2.1 times as fast as PyTorch's fused kernel; the other three shapes of
tests/bench_attention.py: 2.0 to 2.2. Compiling forward and backward takes some 6 s, once.

What is left out: masks other than causal, dropout. What was given up: a thread keeps one head's
k, v, dk and dv (T x D each) beside its tiles, and T below 64 pays for lanes rounded up to 16.

Reading order: the two comments that derive forward and backward; _forward and _backward, which
are those formulas tile by tile; the decoding step; then the small loops they call.
"""
import functools
import math

import numba
import numpy as np
from numba import njit, prange, types
from numpy.lib.stride_tricks import as_strided

from kernels.matmul import U, _aligned, _transpose
from kernels.rows import FAST, alone_and_threads, exp

NC = 64  # queries in a tile, keys in a block; also every tile's row stride, known when compiling
MANY = 4  # rows; below, waking a second thread costs more than it saves in decoding
# A block whose keys and queries start at the same place lies on the diagonal: there query j sees
# key i if j >= i. What a product skips of it, by where keys and queries stand in the product:
LANES_BY_ROW, LANES_BY_DEPTH, DEPTHS_BY_ROW = 1, 2, 3  # see _multiply_add


# ---- Forward: a softmax that never sees a whole row (Milakov and Gimelshein 2018) ----
#
# Of one query, with scores s_j against the keys so far, keep
#     m = max s_j,    l = sum exp(s_j - m),    out = sum exp(s_j - m) v_j,    so that o = out / l.
# The next block of keys may raise the maximum to m'. As exp(s_j - m') = exp(s_j - m) exp(m - m'),
# one factor f = exp(m - m') brings all that was summed up to date:
#     l' = l f + sum over the block of exp(s_j - m'),   out' likewise, each exp times its v_j.
# At the end l and out are what a softmax over all keys gives. To start, m = -inf and l = out = 0.
#
# The same for a tile of 64 queries, each in a lane j; row i is a key, and p[i, j] lies at i*NC + j:
#     keys, values (T4,D4)    k / sqrt(D) and v of one head, copied together; zeros fill up to fours
#     queries, out (D4,NC)    q and the sum so far, turned around: a column is a query
#     p (NC,NC)               scores keys @ queries, then exp of them; out += values^T @ p
#     m, l, f (NC)            a number a query
# A tile meets the blocks of keys up to its own; only in the last, on the diagonal, the mask cuts:
#     queries   0..63      64..127    128..191
#     keys 0.   diagonal   whole      whole
#     keys 64.             diagonal   whole
#     keys 128.                       diagonal

def attention(q, k, v):
    """o (B,T,H,D) from q (B,T,H,D) and k, v (B,T,G,D): what each query gathers from the values at
    its own and all earlier places. For use without a backward: lse is thrown away."""
    (B, T, H, _), o = q.shape, np.empty(q.shape, q.dtype)
    attention_forward(q, k, v, o, np.empty((B, H, T), q.dtype))
    return o


def attention_forward(q, k, v, o, lse):
    """Writes o (B,T,H,D) and lse (B,H,T). All but lse may be strided views whose last axis is
    contiguous: model.py gives slices of one array that holds q, k and v behind each other."""
    _run(_forward, (q, k, v, o), lse)


@njit(fastmath=FAST, cache=True)
def _forward(arrays, layout, scale, part, parts):
    """One thread's share of the heads: of the B*H tasks, number part, part + parts, and so on.

    arrays are flat. layout holds B, T, H, G, D and then, of each array, the steps from one b, t, h
    to the next: q[b, t, h] begins at b * qb + t * qt + h * qh. scale is 1 / sqrt(D)."""
    q, k, v, o, lse = arrays
    B, T, H, G, D = layout[:5]
    (qb, qt, qh), (kb, kt, kh) = layout[5:8], layout[8:11]
    (vb, vt, vh), (ob, ot, oh) = layout[11:14], layout[14:17]
    D4, T4 = (D + 3) // 4 * 4, (T + 3) // 4 * 4  # products advance in fours
    # To Numba a plain 0 is a type of its own (a literal): it would compile every callee anew for
    # each combination of constants it is called with.
    zero, one, line, unit = np.int64(0), np.int64(1), np.int64(NC), q.dtype.type(1)
    keys, values = _aligned(T4 * D4, q), _aligned(T4 * D4, q)
    queries, out, p = _aligned(D4 * NC, q), _aligned(D4 * NC, q), _aligned(line * NC, q)
    m, l, f, p_row = _aligned(line, q), _aligned(line, q), _aligned(line, q), _aligned(T, q)
    keys[:], values[:], queries[:] = 0, 0, 0  # what pads them has to be finite
    for task in range(part, B * H, parts):
        b, h = task // H, task % H
        g = h // (H // G)
        _copy(k, b * kb + g * kh, kt, T, D, scale, keys, zero, D4)
        _copy(v, b * vb + g * vh, vt, T, D, unit, values, zero, D4)
        for t in range(0, T, NC):  # tiles of n queries in `lanes` lanes
            n = min(NC, T - t)
            lanes = (n + 15) // 16 * 16
            if n < NC:
                queries[:] = 0
            _transpose(q, b * qb + t * qt + h * qh, qt, n, D, queries, zero, line)
            m[:], l[:], out[:] = -np.inf, 0, 0
            for s in range(0, t + 1, NC):  # blocks of keys, up to the one on the diagonal
                rows, diagonal = min(NC, T4 - s), s == t
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
            _transpose(out, zero, line, D, n, o, b * ob + t * ot + h * oh, ot)
        # A masked p is 0, but 0 * NaN is NaN: a NaN or infinity in v has reached earlier queries.
        # That happens only when training has gone wrong, and is then put right, slowly.
        if not _all_finite(values):
            for t in range(T):
                x, y = b * qb + t * qt + h * qh, b * ob + t * ot + h * oh
                _one_query(q[x:x + D], keys[:T4 * D4].reshape(T4, D4),
                           values[:T4 * D4].reshape(T4, D4), t + 1, unit, p_row, o[y:y + D])


@njit(fastmath=FAST)
def _softmax(p, m, l, f, rows, lanes, diagonal):
    """Scores p (rows,lanes) become exp(p - m), with m and l, the maximum and sum so far, brought
    up to date; f is the factor that does the same for what was gathered with the old m.

    In turn: m; f, and l with it; exp, added to l. Four rows at a time, so that m and l are loaded
    and stored once for four keys. On the diagonal, row i starts at the step of 16 lanes that holds
    lane i."""
    if diagonal:
        _mask(p, rows, -np.inf)
    for j in range(U(NC)):
        f[j] = m[j]
    for i in range(0, rows, 4):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * NC) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            y, z = p[x + j], p[x + j + U(NC)]
            y = y if y > z else z  # a NaN may lose here, but not in the sum below
            z, w = p[x + j + U(2 * NC)], p[x + j + U(3 * NC)]
            z = z if z > w else w
            y = y if y > z else z
            m[c + j] = y if y > m[c + j] else m[c + j]
    for j in range(U(NC)):
        f[j] = exp(f[j] - m[j])
        l[j] *= f[j]
    for i in range(0, rows, 4):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * NC) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            x0, x1, x2, x3 = x + j, x + j + U(NC), x + j + U(2 * NC), x + j + U(3 * NC)
            y0, y1 = exp(p[x0] - m[c + j]), exp(p[x1] - m[c + j])
            y2, y3 = exp(p[x2] - m[c + j]), exp(p[x3] - m[c + j])
            p[x0], p[x1], p[x2], p[x3] = y0, y1, y2, y3
            l[c + j] += (y0 + y1) + (y2 + y3)
    if diagonal:
        _mask(p, rows, 0.0)  # exp ends at 1e-38, not at 0


# ---- Backward ----
#
# For query t and key j: s_tj = q_t . k_j / sqrt(D), p_tj = exp(s_tj - lse_t), o_t = sum_j p_tj v_j.
#     o is linear in v and p:   dv_j = sum_t p_tj do_t,     dp_tj = do_t . v_j
#     the softmax:              d p_tj / d s_ti = p_tj ([i = j] - p_ti), so summed over j
#                               ds_ti = p_ti (dp_ti - delta_t),   delta_t = sum_j p_tj dp_tj
#     delta without the row:    sum_j p_tj (do_t . v_j) = do_t . (sum_j p_tj v_j) = do_t . o_t
#     s is linear in q and k:   dq_t = sum_j ds_tj k_j / sqrt(D),   dk_j = sum_t ds_tj q_t / sqrt(D)
# From the forward come q, k, v, o and lse, all of T rows; p (T x T) is made again, block by block:
# five products in place of the forward's two. (Dao et al. 2022, appendix B, derive the same.)
#
# Tiles as in the forward: p and ds are keys x queries; douts, dqueries (D4,NC) are columns like
# queries. dv = p @ do and dk = ds @ q sum over queries, so q / sqrt(D) and do are there a second
# time, by rows: query_rows, dout_rows. With D above 64 these two, dkeys and dvalues are cut into
# slabs of 64 columns, one behind the other, so that each is a tile of the one row stride NC.
#
# The five products, in the order of the code (@ sums over D, D, keys, queries, queries):
#     p = keys @ queries,     ds = values @ douts     scores and dp; _softmax_backward finishes both
#     dqueries += keys^T @ ds                         keys hold k / sqrt(D), as dq wants them
#     dvalues += p @ dout_rows,     dkeys += ds @ query_rows

def attention_backward(do, q, k, v, o, lse, dq=None, dk=None, dv=None):
    """dq (B,T,H,D), dk, dv (B,T,G,D) from do (B,T,H,D) and what the forward read and wrote.

    They are written, not added to; given arrays may be strided views like the forward's."""
    dq = np.empty(q.shape, q.dtype) if dq is None else dq
    dk = np.empty(k.shape, k.dtype) if dk is None else dk
    dv = np.empty(v.shape, v.dtype) if dv is None else dv
    _run(_backward, (q, k, v, o, do, dq, dk, dv), lse)
    return dq, dk, dv


@njit(fastmath=FAST, cache=True)
def _backward(arrays, layout, scale, part, parts):
    """One thread's share of the key/value heads; arguments as in _forward. The query heads of a
    group add to the same dk and dv, so they stay with one thread, in order."""
    q, k, v, o, do, dq, dk, dv, lse = arrays
    B, T, H, G, D = layout[:5]
    (qb, qt, qh), (kb, kt, kh) = layout[5:8], layout[8:11]
    (vb, vt, vh), (ob, ot, oh) = layout[11:14], layout[14:17]
    (dob, dot, doh), (dqb, dqt, dqh) = layout[17:20], layout[20:23]
    (dkb, dkt, dkh), (dvb, dvt, dvh) = layout[23:26], layout[26:29]
    D4, T4 = (D + 3) // 4 * 4, (T + 3) // 4 * 4
    wide = (D + NC - 1) // NC * NC  # dk, dv and the rows of q and do lie in slabs of 64 columns
    zero, one, line, unit = np.int64(0), np.int64(1), np.int64(NC), q.dtype.type(1)
    keys, values = _aligned(T4 * D4, q), _aligned(T4 * D4, q)
    dkeys, dvalues = _aligned(T4 * wide, q), _aligned(T4 * wide, q)
    queries, douts, dqueries = _aligned(D4 * NC, q), _aligned(D4 * NC, q), _aligned(D4 * NC, q)
    query_rows, dout_rows = _aligned(line * wide, q), _aligned(line * wide, q)
    p, ds = _aligned(line * NC, q), _aligned(line * NC, q)
    lse_t, delta = _aligned(line, q), _aligned(line, q)  # of one tile
    keys[:], values[:], queries[:], douts[:] = 0, 0, 0, 0
    for task in range(part, B * G, parts):
        b, g = task // G, task % G
        _copy(k, b * kb + g * kh, kt, T, D, scale, keys, zero, D4)
        _copy(v, b * vb + g * vh, vt, T, D, unit, values, zero, D4)
        dkeys[:], dvalues[:] = 0, 0
        for h in range(g * (H // G), (g + 1) * (H // G)):
            for t in range(0, T, NC):
                n = min(NC, T - t)
                lanes = (n + 15) // 16 * 16
                x, z = b * qb + t * qt + h * qh, b * dob + t * dot + h * doh
                if n < NC:
                    queries[:], douts[:], query_rows[:], dout_rows[:] = 0, 0, 0, 0
                    lse_t[:], delta[:] = 0, 0
                _transpose(q, x, qt, n, D, queries, zero, line)
                _transpose(do, z, dot, n, D, douts, zero, line)
                for c in range(0, D, NC):
                    _copy(q, x + c, qt, n, min(NC, D - c), scale, query_rows, c * NC, line)
                    _copy(do, z + c, dot, n, min(NC, D - c), unit, dout_rows, c * NC, line)
                y = b * ob + t * ot + h * oh
                for j in range(n):
                    lse_t[j] = lse[(b * H + h) * T + t + j]
                    delta[j] = _dot(do, z + j * dot, o, y + j * ot, D)
                dqueries[:] = 0
                for s in range(0, t + 1, NC):
                    rows, diagonal = min(NC, T4 - s), s == t
                    by_row, by_depth = LANES_BY_ROW * diagonal, LANES_BY_DEPTH * diagonal
                    p[:], ds[:] = 0, 0
                    _multiply_add(keys, s * D4, D4, one, rows, D4, queries, zero, p, zero, lanes,
                                  by_row)
                    _multiply_add(values, s * D4, D4, one, rows, D4, douts, zero, ds, zero, lanes,
                                  by_row)
                    _softmax_backward(p, ds, lse_t, delta, rows, lanes, diagonal)
                    _multiply_add(keys, s * D4, one, D4, D4, rows, ds, zero, dqueries, zero, lanes,
                                  by_depth)
                    for c in range(0, D, NC):
                        columns = (min(NC, D - c) + 15) // 16 * 16
                        _multiply_add(p, zero, line, one, rows, lanes, dout_rows, c * NC,
                                      dvalues, c * T4 + s * NC, columns, DEPTHS_BY_ROW * diagonal)
                        _multiply_add(ds, zero, line, one, rows, lanes, query_rows, c * NC,
                                      dkeys, c * T4 + s * NC, columns, DEPTHS_BY_ROW * diagonal)
                _transpose(dqueries, zero, line, D, n, dq, b * dqb + t * dqt + h * dqh, dqt)
        for c in range(0, D, NC):
            columns = min(NC, D - c)
            _copy(dkeys, c * T4, line, T, columns, unit, dk, b * dkb + g * dkh + c, dkt)
            _copy(dvalues, c * T4, line, T, columns, unit, dv, b * dvb + g * dvh + c, dvt)


@njit(fastmath=FAST)
def _softmax_backward(p, ds, lse, delta, rows, lanes, diagonal):
    """p (rows,lanes) holds scores, becomes exp(s - lse); ds holds dp, becomes p (dp - delta)."""
    for i in range(rows):
        c = U(i // 16 * 16 if diagonal else 0)
        x = U(i * NC) + c
        for j in range((U(lanes) - c) // U(16) * U(16)):
            p[x + j] = exp(p[x + j] - lse[c + j])
            ds[x + j] = p[x + j] * (ds[x + j] - delta[c + j])
    if diagonal:
        _mask(p, rows, 0.0)
        _mask(ds, rows, 0.0)


@njit(fastmath=FAST)
def _dot(a, x, b, y, n):
    """Of n numbers of a from place x on and of b from y on."""
    x, y, total = U(x), U(y), a.dtype.type(0)
    for i in range(U(n)):
        total += a[x + i] * b[y + i]
    return total


# ---- Decoding: one query against all keys so far. Each key and value is used once, so there is
#      nothing to gain from tiles: the row of scores fits the cache, and the softmax is a plain one.

def attention_step(q, k_cache, v_cache, lengths, rows, o=None):
    """o (N,H,D) for one new query in each of N sequences, q (N,H,D).

    k_cache, v_cache (B,G,S,D): keys and values of up to S places. Query n reads places 0 to
    lengths[n] - 1 (its own is the last) of sequence rows[n]; lengths and rows are (N,)."""
    o = np.empty(q.shape, q.dtype) if o is None else o
    _rows[len(q) >= MANY](q, k_cache, v_cache, lengths, rows, o)  # alone, or threads
    return o


@alone_and_threads
def _rows(q, k_cache, v_cache, lengths, rows, o):
    """Sequence by sequence, head by head."""
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


# ---- What both are made of. Arrays are flat; x, y, b, t are the places where a part begins ----

@njit(fastmath=FAST)
def _multiply_add(a, x, rs, cs, rows, depth, panel, b, tile, t, lanes, skip):
    """tile (rows,lanes) += a (rows,depth) @ panel (depth,lanes), without what the mask makes 0.

    a's rows lie rs apart, its columns cs, so a.T costs nothing. On the diagonal, skip names the two
    that stand for key i and query j (only j >= i counts), and what starts at i therefore:
        LANES_BY_ROW    row i, lane j:    scores and dp; lanes start at i, rounded down to 16
        LANES_BY_DEPTH  depth i, lane j:  out and dq; depths go in sixteens, lanes start with them
        DEPTHS_BY_ROW   row i, depth j:   dk and dv; depths start at i, a multiple of 4"""
    deep = 16 if skip == LANES_BY_DEPTH else depth
    for k in range(0, depth, deep):
        for i in range(0, rows, 4):
            k0 = i if skip == DEPTHS_BY_ROW else k
            j = i // 16 * 16 if skip == LANES_BY_ROW else k if skip == LANES_BY_DEPTH else 0
            _four_rows(a, x + i * rs + k0 * cs, rs, cs, min(deep, depth - k0),
                       panel, b + k0 * NC + j, tile, t + i * NC + j, lanes - j)


@njit(fastmath=FAST)
def _four_rows(a, x, rs, cs, depth, panel, b, tile, t, lanes):
    """tile (4,lanes) += a (4,depth) @ panel (depth,lanes), like matmul.py's _step: 16 numbers of a
    stay in registers (rows x, y, z, w; depths 0 to 3) while lanes stream by. Depth and lanes are
    padded with zeros to fours and sixteens, so that there are no edges."""
    x, rs, cs, b, t = U(x), U(rs), U(cs), U(b), U(t)
    y, z, w = x + rs, x + rs + rs, x + rs + rs + rs
    for _ in range(0, depth, 4):
        x0, y0, z0, w0 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + cs, y + cs, z + cs, w + cs
        x1, y1, z1, w1 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + cs, y + cs, z + cs, w + cs
        x2, y2, z2, w2 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + cs, y + cs, z + cs, w + cs
        x3, y3, z3, w3 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + cs, y + cs, z + cs, w + cs
        for j in range(U(lanes) // U(16) * U(16)):  # tells LLVM that there is no remainder
            p, r = b + j, t + j
            b0, b1, b2, b3 = panel[p], panel[p + U(NC)], panel[p + U(2 * NC)], panel[p + U(3 * NC)]
            tile[r] += x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3
            tile[r + U(NC)] += y0 * b0 + y1 * b1 + y2 * b2 + y3 * b3
            tile[r + U(2 * NC)] += z0 * b0 + z1 * b1 + z2 * b2 + z3 * b3
            tile[r + U(3 * NC)] += w0 * b0 + w1 * b1 + w2 * b2 + w3 * b3
        b += U(4 * NC)


@njit
def _mask(tile, rows, value):
    """In a block on the diagonal, fills what lies before lane i of row i, back to a step of 16:
    what vectors had to compute beside what counts. What lies before that is never read."""
    for i in range(rows):
        for j in range(U(i * NC + i // 16 * 16), U(i * NC + i)):
            tile[j] = value


@njit
def _scale_lanes(tile, f, rows):
    """tile (rows,NC) *= f (NC,): a factor a query, straight down the lanes."""
    for i in range(rows):
        for j in range(U(NC)):
            tile[U(i * NC) + j] *= f[j]


@njit
def _copy(a, x, a_step, rows, columns, factor, b, y, b_step):
    """b (rows,columns) = a * factor, each with a step from row to row."""
    for r in range(rows):
        xr, yr = U(x + r * a_step), U(y + r * b_step)
        for c in range(U(columns)):
            b[yr + c] = a[xr + c] * factor


@njit(fastmath=FAST)
def _all_finite(a):
    """Whether a holds no NaN and no infinity, as one sum without a branch."""
    probe = a[0] * 0
    for i in range(a.size):
        probe += a[i] * 0  # 0 for a finite number, NaN otherwise
    return probe == 0


# ---- From arrays to threads ----

def _run(kernel, arrays, lse):
    """Calls kernel on every thread, each array given as the line of memory it lies in.

    So strided views need no copy, and one compiled kernel serves every layout: to Numba a
    contiguous array and a view would be two types, each mixture of them a kernel to compile."""
    q, k = arrays[:2]
    if q.size == 0:
        return
    layout, lines = [*q.shape[:3], k.shape[2], q.shape[3]], []
    for x in arrays:
        steps = [step // x.itemsize for step in x.strides]
        if x.dtype != q.dtype or steps[3] != 1 and x.shape[3] > 1:
            raise ValueError(f"attention takes arrays of one dtype with a contiguous last axis; "
                             f"here is {x.dtype}, strides {x.strides}: pass a copy")
        layout += steps[:3]
        lines.append(as_strided(x, (1 + sum((n - 1) * s for n, s in zip(x.shape, steps)),),
                                (x.itemsize,)))
    scale, parts = q.dtype.type(1 / math.sqrt(q.shape[3])), numba.get_num_threads()
    arguments = (*lines, lse.reshape(-1)), tuple(layout), scale
    if parts == 1:
        kernel(*arguments, 0, 1)
    else:
        _launcher(len(lines) + 1, q.dtype)(kernel, *arguments, parts)


@functools.cache
def _launcher(n_arrays, dtype):
    """A parallel loop that calls a kernel by its address, compiled for so many arrays of dtype.

    With the kernel's code inside, Numba would optimise that four times over: 2.5 s more each."""
    number = numba.from_dtype(dtype)
    arguments = (types.UniTuple(number[::1], n_arrays),
                 types.UniTuple(types.int64, 3 * n_arrays + 2), number)
    kernel = types.FunctionType(types.void(*arguments, types.int64, types.int64))
    return njit(types.void(kernel, *arguments, types.int64), parallel=True, cache=True)(_launch)


def _launch(kernel, arrays, layout, scale, parts):
    for part in prange(parts):
        kernel(arrays, layout, scale, np.int64(part), parts)
