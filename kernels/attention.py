"""Attention, forward and backward, without ever holding the T x T matrix."""
import math
from threading import Thread

import numba
import numpy as np
from numba import njit, prange
from numba.extending import overload
from numpy.lib.stride_tricks import as_strided

NC = 64  # queries per tile, keys per block, and the row stride of every tile (elements)
FAST = {"contract", "reassoc"}  # fused multiply-add, free order of sums; NaN and infinity stay true
LOG2E = math.log2(math.e)
FULL, ROW_SKIPS_LANES, DEPTH_SKIPS_LANES, ROW_SKIPS_DEPTHS = range(4)
U = np.uintp


def _exp2(x):
    return 2.0**x


@overload(_exp2, jit_options={"fastmath": FAST})
def _exp2_typed(x):
    if x == numba.float64:
        return lambda x: math.exp(x * 0.6931471805599453)
    c0, c1, c2 = np.float32(1.0000000716553021), np.float32(0.6931469670628698), np.float32(0.24022119720746063)
    c3, c4, c5 = np.float32(0.05550713275082215), np.float32(0.009675541502928318), np.float32(0.0013276471955714375)
    half, low, zero = np.float32(0.5), np.float32(-126), np.float32(0)

    def exp2(x):
        n = np.floor(x + half)
        r = x - n
        y = c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * c5))))
        bits = (np.int32(n) + np.int32(127)) << np.int32(23)
        y = y * np.int32(bits).view(np.float32)
        return zero if x < low else y
    return exp2


@njit
def _aligned(size, like):
    scratch = np.empty(size + 16, like.dtype)
    return scratch[(-scratch.ctypes.data % 64) // scratch.itemsize:]


@njit(fastmath=FAST)
def _copy(a, x, xs, rows, columns, factor, b, y, ys):
    """b[y + r*ys + c] = a[x + r*xs + c] * factor."""
    for r in range(rows):
        xr, yr = U(x + r * xs), U(y + r * ys)
        for c in range(U(columns)):
            b[yr + c] = a[xr + c] * factor


@njit(fastmath=FAST)
def _all_finite(a):
    probe = a[0] * 0
    for i in range(a.size):
        probe += a[i] * 0
    return probe == 0


@njit
def _transpose(a, x, xs, rows, columns, b, y, ys):
    """b[y + c*ys + r] = a[x + r*xs + c], in blocks of 4 x 4 that stay in registers."""
    for r in range(0, rows - 3, 4):
        for c in range(0, columns - 3, 4):
            x0, y0 = U(x + r * xs + c), U(y + c * ys + r)
            x1, x2, x3 = x0 + U(xs), x0 + U(2 * xs), x0 + U(3 * xs)
            a00, a01, a02, a03 = a[x0], a[x0 + U(1)], a[x0 + U(2)], a[x0 + U(3)]
            a10, a11, a12, a13 = a[x1], a[x1 + U(1)], a[x1 + U(2)], a[x1 + U(3)]
            a20, a21, a22, a23 = a[x2], a[x2 + U(1)], a[x2 + U(2)], a[x2 + U(3)]
            a30, a31, a32, a33 = a[x3], a[x3 + U(1)], a[x3 + U(2)], a[x3 + U(3)]
            y1, y2, y3 = y0 + U(ys), y0 + U(2 * ys), y0 + U(3 * ys)
            b[y0], b[y0 + U(1)], b[y0 + U(2)], b[y0 + U(3)] = a00, a10, a20, a30
            b[y1], b[y1 + U(1)], b[y1 + U(2)], b[y1 + U(3)] = a01, a11, a21, a31
            b[y2], b[y2 + U(1)], b[y2 + U(2)], b[y2 + U(3)] = a02, a12, a22, a32
            b[y3], b[y3 + U(1)], b[y3 + U(2)], b[y3 + U(3)] = a03, a13, a23, a33
    for r in range(rows):
        for c in range(0 if r >= rows // 4 * 4 else columns // 4 * 4, columns):
            b[y + c * ys + r] = a[x + r * xs + c]


@njit(fastmath=FAST)
def _step(a, x, rs, cs, depth, panel, b, tile, t, lanes):
    """tile (4,lanes) += four rows of a (4,depth) @ panel (depth,lanes); x, b, t: where they begin."""
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
        for j in range(U(lanes) // U(16) * U(16)):
            bj, tj = b + j, t + j
            b0, b1, b2, b3 = panel[bj], panel[bj + U(NC)], panel[bj + U(2 * NC)], panel[bj + U(3 * NC)]
            tile[tj] += x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3
            tile[tj + U(NC)] += y0 * b0 + y1 * b1 + y2 * b2 + y3 * b3
            tile[tj + U(2 * NC)] += z0 * b0 + z1 * b1 + z2 * b2 + z3 * b3
            tile[tj + U(3 * NC)] += w0 * b0 + w1 * b1 + w2 * b2 + w3 * b3
        b += U(4 * NC)


@njit
def _multiply_add(a, x, rs, cs, rows, depth, panel, b, tile, t, lanes, skip):
    """tile (rows,lanes) += a (rows,depth) @ panel (depth,lanes), minus what the causal mask skips."""
    deep = 16 if skip == DEPTH_SKIPS_LANES else depth
    for k in range(0, depth, deep):
        for i in range(0, rows, 4):
            j, k0 = 0, k
            if skip == ROW_SKIPS_LANES:
                j = i // 16 * 16
            elif skip == DEPTH_SKIPS_LANES:
                j = k
            elif skip == ROW_SKIPS_DEPTHS:
                k0 = i
            _step(a, x + i * rs + k0 * cs, rs, cs, min(deep, depth - k0), panel, b + k0 * NC + j,
                  tile, t + i * NC + j, lanes - j)


@njit(fastmath=FAST)
def _softmax_block(s, m, l, f, rows, lanes, diagonal):
    """s (rows,lanes) becomes p; the running maximum m, sum l and the factor f that corrects the past."""
    end = U(lanes)
    for j in range(end):
        f[j] = m[j]
    for i in range(0, rows, 4):
        c = i // 16 * 16 if diagonal else 0
        if diagonal:
            for r in range(i, i + 4):
                for j in range(c, r):
                    s[r * NC + j] = -np.inf
        i0 = U(i * NC)
        first = U(c)
        for e in range((end - first) // U(16) * U(16)):
            j = first + e
            y, z = s[i0 + j], s[i0 + U(NC) + j]
            y = y if y > z else z
            z, w = s[i0 + U(2 * NC) + j], s[i0 + U(3 * NC) + j]
            z = z if z > w else w
            y = y if y > z else z
            m[j] = y if y > m[j] else m[j]
    for j in range(end):
        f[j] = _exp2(f[j] - m[j])
        l[j] *= f[j]
    for i in range(0, rows, 4):
        i0 = U(i * NC)
        first = U(i // 16 * 16 if diagonal else 0)
        for e in range((end - first) // U(16) * U(16)):
            j = first + e
            j0, j1, j2, j3 = i0 + j, i0 + U(NC) + j, i0 + U(2 * NC) + j, i0 + U(3 * NC) + j
            x, y = _exp2(s[j0] - m[j]), _exp2(s[j1] - m[j])
            z, w = _exp2(s[j2] - m[j]), _exp2(s[j3] - m[j])
            s[j0], s[j1], s[j2], s[j3] = x, y, z, w
            l[j] += (x + y) + (z + w)


@njit(fastmath=FAST)
def _scale_lanes(tile, f, rows):
    for d in range(rows):
        d0 = U(d * NC)
        for j in range(U(NC)):
            tile[d0 + j] *= f[j]


@njit(fastmath=FAST)
def _one_query(q, x, k, y, ys, v, z, zs, n, D, scale, p, o, w):
    """o[w:w+D] = attention of the query q[x:x+D] over the first n keys and values."""
    x, w = U(x), U(w)
    top = -np.inf * scale
    for t in range(n):
        y0, s = U(y + t * ys), scale * 0
        for d in range(U(D)):
            s += q[x + d] * k[y0 + d]
        p[t] = s * scale
        top = p[t] if p[t] > top else top
    total = scale * 0
    for t in range(n):
        p[t] = _exp2(p[t] - top)
        total += p[t]
    for d in range(U(D)):
        o[w + d] = 0
    for t in range(n):
        z0, share = U(z + t * zs), p[t] / total
        for d in range(U(D)):
            o[w + d] += share * v[z0 + d]


@njit(fastmath=FAST, nogil=True, cache=True)
def _forward_share(q, qs, k, ks, v, vs, o, os, lse, sizes, scale, part, parts):
    B, T, H, G, D = sizes
    zero, unit, line = np.int64(0), np.int64(1), np.int64(NC)
    D4, T4 = (D + 3) // 4 * 4, (T + 3) // 4 * 4
    K, V = _aligned(T4 * D4, q), _aligned(T4 * D4, q)
    panel, s, acc = _aligned(D4 * NC, q), _aligned(line * NC, q), _aligned(D4 * NC, q)
    m, l, f = _aligned(line, q), _aligned(line, q), _aligned(line, q)
    one = q.dtype.type(1)
    K[:], V[:], panel[:] = 0, 0, 0
    for task in range(part, B * H, parts):
        b, h = task // H, task % H
        g = h // (H // G)
        x, w = b * qs[0] + h * qs[2], b * os[0] + h * os[2]
        y, z = b * ks[0] + g * ks[2], b * vs[0] + g * vs[2]
        _copy(k, y, ks[1], T, D, scale, K, zero, D4)
        _copy(v, z, vs[1], T, D, one, V, zero, D4)
        finite = _all_finite(V[:T4 * D4])
        for q0 in range(0, T, NC):
            n = min(NC, T - q0)
            lanes = (n + 15) // 16 * 16
            if n < NC:
                panel[:] = 0
            _transpose(q, x + q0 * qs[1], qs[1], n, D, panel, zero, line)
            m[:], l[:], acc[:] = -np.inf, 0, 0
            for k0 in range(0, q0 + 1, NC):
                rows, diagonal = min(NC, T4 - k0), k0 == q0
                s[:] = 0
                _multiply_add(K, k0 * D4, D4, unit, rows, D4, panel, zero, s, zero, lanes,
                              ROW_SKIPS_LANES if diagonal else FULL)
                _softmax_block(s, m, l, f, rows, lanes, diagonal)
                if k0 > 0:
                    _scale_lanes(acc, f, D)
                _multiply_add(V, k0 * D4, unit, D4, D4, rows, s, zero, acc, zero, lanes,
                              DEPTH_SKIPS_LANES if diagonal else FULL)
            for j in range(n):
                lse[task * T + q0 + j] = (m[j] + math.log2(l[j])) / LOG2E
                f[j] = one / l[j]
            _scale_lanes(acc, f, D)
            _transpose(acc, zero, line, D, n, o, w + q0 * os[1], os[1])
        if not finite:
            p = np.empty(T, q.dtype)
            for t in range(T):
                _one_query(q, x + t * qs[1], k, y, ks[1], v, z, vs[1], t + 1, D, scale, p,
                           o, w + t * os[1])


@njit(fastmath=FAST, nogil=True, cache=True)
def _backward_share(do, dos, q, qs, k, ks, v, vs, o, os, lse, dq, dqs, dk, dks, dv, dvs, sizes,
                    scale, part, parts):
    B, T, H, G, D = sizes
    zero, unit, line = np.int64(0), np.int64(1), np.int64(NC)
    D4, T4, blocks = (D + 3) // 4 * 4, (T + 3) // 4 * 4, (D + NC - 1) // NC
    K, V = _aligned(T4 * D4, q), _aligned(T4 * D4, q)
    dK, dV = _aligned(blocks * T4 * NC, q), _aligned(blocks * T4 * NC, q)
    q_lanes, do_lanes, dq_lanes = _aligned(D4 * NC, q), _aligned(D4 * NC, q), _aligned(D4 * NC, q)
    q_rows, do_rows = _aligned(blocks * NC * NC, q), _aligned(blocks * NC * NC, q)
    p, ds, stats = _aligned(line * NC, q), _aligned(line * NC, q), _aligned(line * 2, q)
    one, ln2 = q.dtype.type(1), q.dtype.type(1 / LOG2E)
    K[:], V[:], q_lanes[:], do_lanes[:] = 0, 0, 0, 0
    for task in range(part, B * G, parts):
        b, g = task // G, task % G
        _copy(k, b * ks[0] + g * ks[2], ks[1], T, D, scale, K, zero, D4)
        _copy(v, b * vs[0] + g * vs[2], vs[1], T, D, one, V, zero, D4)
        dK[:], dV[:] = 0, 0
        for h in range(g * (H // G), (g + 1) * (H // G)):
            x, y, z = b * qs[0] + h * qs[2], b * dos[0] + h * dos[2], b * os[0] + h * os[2]
            for q0 in range(0, T, NC):
                n = min(NC, T - q0)
                lanes = (n + 15) // 16 * 16
                if n < NC:
                    q_lanes[:], do_lanes[:], q_rows[:], do_rows[:], stats[:] = 0, 0, 0, 0, 0
                dq_lanes[:] = 0
                _transpose(q, x + q0 * qs[1], qs[1], n, D, q_lanes, zero, line)
                _transpose(do, y + q0 * dos[1], dos[1], n, D, do_lanes, zero, line)
                for c in range(0, D, NC):
                    wide = min(NC, D - c)
                    _copy(q, x + q0 * qs[1] + c, qs[1], n, wide, one, q_rows, c * NC, line)
                    _copy(do, y + q0 * dos[1] + c, dos[1], n, wide, one, do_rows, c * NC, line)
                for j in range(n):
                    stats[j] = -lse[(b * H + h) * T + q0 + j] * LOG2E
                    total = scale * 0
                    y0, z0 = U(y + (q0 + j) * dos[1]), U(z + (q0 + j) * os[1])
                    for d in range(U(D)):
                        total += do[y0 + d] * o[z0 + d]
                    stats[NC + j] = -total
                for k0 in range(0, q0 + 1, NC):
                    rows, diagonal = min(NC, T4 - k0), k0 == q0
                    for i in range(rows):
                        i0 = U(i * NC)
                        for j in range(U(NC)):
                            p[i0 + j], ds[i0 + j] = stats[j], stats[U(NC) + j]
                    skip = ROW_SKIPS_LANES if diagonal else FULL
                    _multiply_add(K, k0 * D4, D4, unit, rows, D4, q_lanes, zero, p, zero, lanes, skip)
                    _multiply_add(V, k0 * D4, D4, unit, rows, D4, do_lanes, zero, ds, zero, lanes, skip)
                    _softmax_backward(p, ds, rows, lanes, diagonal)
                    _multiply_add(K, k0 * D4, unit, D4, D4, rows, ds, zero, dq_lanes, zero, lanes,
                                  DEPTH_SKIPS_LANES if diagonal else FULL)
                    skip = ROW_SKIPS_DEPTHS if diagonal else FULL
                    for c in range(0, D, NC):
                        wide, t = (min(NC, D - c) + 15) // 16 * 16, c * T4 + k0 * NC
                        _multiply_add(p, zero, line, unit, rows, lanes, do_rows, c * NC, dV, t, wide, skip)
                        _multiply_add(ds, zero, line, unit, rows, lanes, q_rows, c * NC, dK, t, wide, skip)
                for i in range(D4 * NC):
                    dq_lanes[i] *= ln2
                _transpose(dq_lanes, zero, line, D, n, dq, b * dqs[0] + h * dqs[2] + q0 * dqs[1], dqs[1])
        for c in range(0, D, NC):
            wide = min(NC, D - c)
            _copy(dK, c * T4, line, T, wide, scale * ln2, dk, b * dks[0] + g * dks[2] + c, dks[1])
            _copy(dV, c * T4, line, T, wide, one, dv, b * dvs[0] + g * dvs[2] + c, dvs[1])


@njit(fastmath=FAST)
def _softmax_backward(p, ds, rows, lanes, diagonal):
    """p: s - lse becomes p = 2**(s - lse); ds: dp - delta becomes p * (dp - delta)."""
    for i in range(rows):
        c, i0 = (i // 16 * 16 if diagonal else 0), U(i * NC)
        first = i0 + U(c)
        for e in range(U(lanes - c) // U(16) * U(16)):
            j = first + e
            p[j] = _exp2(p[j])
            ds[j] *= p[j]
        if diagonal:
            for j in range(c, i):
                p[i * NC + j] = 0
                ds[i * NC + j] = 0


def _in_parallel(share, *arguments):
    parts = numba.get_num_threads()
    threads = [Thread(target=share, args=(*arguments, part, parts)) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    share(*arguments, 0, parts)
    for thread in threads:
        thread.join()


def _flat(x):
    """x (B,T,heads,D) as the line of memory it lies in, and the steps of its first three axes."""
    strides = tuple(step // x.itemsize for step in x.strides)
    span = 1 + sum((n - 1) * step for n, step in zip(x.shape, strides))
    return as_strided(x, (span,), (x.itemsize,)), strides[:3]


def attention_forward(q, k, v, o, lse):
    (B, T, H, D), G = q.shape, k.shape[2]
    scale = q.dtype.type(LOG2E / math.sqrt(D))
    _in_parallel(_forward_share, *_flat(q), *_flat(k), *_flat(v), *_flat(o), lse.reshape(-1), (B, T, H, G, D), scale)


def attention(q, k, v):
    o, lse = np.empty(q.shape, q.dtype), np.empty((q.shape[0], q.shape[2], q.shape[1]), q.dtype)
    attention_forward(q, k, v, o, lse)
    return o


def attention_backward(do, q, k, v, o, lse, dq=None, dk=None, dv=None):
    (B, T, H, D), G = q.shape, k.shape[2]
    dq = np.empty(q.shape, q.dtype) if dq is None else dq
    dk = np.empty(k.shape, k.dtype) if dk is None else dk
    dv = np.empty(v.shape, v.dtype) if dv is None else dv
    scale = q.dtype.type(LOG2E / math.sqrt(D))
    _in_parallel(_backward_share, *_flat(do), *_flat(q), *_flat(k), *_flat(v), *_flat(o), lse.reshape(-1),
              *_flat(dq), *_flat(dk), *_flat(dv), (B, T, H, G, D), scale)
    return dq, dk, dv


@njit(cache=True)
def _step_share(q, k, ks, v, vs, lengths, rows, o, sizes, scale, first, last):
    N, H, G, D = sizes
    p = np.empty(ks[1] // ks[2], q.dtype)
    for n in range(first, last):
        for h in range(H):
            g = h // (H // G)
            _one_query(q, (n * H + h) * D, k, rows[n] * ks[0] + g * ks[1], ks[2],
                       v, rows[n] * vs[0] + g * vs[1], vs[2], lengths[n], D, scale, p, o, (n * H + h) * D)


@njit(parallel=True, cache=True)
def _step_parallel(q, k, ks, v, vs, lengths, rows, o, sizes, scale, parts):
    N = sizes[0]
    for part in prange(parts):
        _step_share(q, k, ks, v, vs, lengths, rows, o, sizes, scale, np.int64(part) * N // parts,
                    (np.int64(part) + 1) * N // parts)


def attention_step(q, k_cache, v_cache, lengths, rows, o=None):
    (N, H, D), G = q.shape, k_cache.shape[1]
    o = np.empty(q.shape, q.dtype) if o is None else o
    scale = q.dtype.type(LOG2E / math.sqrt(D))
    k, ks = _flat(k_cache)
    v, vs = _flat(v_cache)
    sizes = N, H, G, D
    args = q.reshape(-1), k, ks, v, vs, lengths, rows, o.reshape(-1), sizes, scale
    parts = numba.get_num_threads()
    if N < 2 * parts:
        _step_share(*args, 0, N)
    else:
        _step_parallel(*args, parts)
    return o
