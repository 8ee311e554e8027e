"""The loops between the matrix products: each reads its rows once and writes them once.

What NumPy does in five passes over main memory (square, mean, divide, multiply, ...) happens here
in one, while a row is in the L1 cache. All are row by row: R = B*T rows, one a token. What they
compute, and why, stands under the same names in plain.py; here stands what makes it fast.

Rows are spread over the threads; sums over rows are made in chunks of fixed size and added in a
fixed order, so the bits don't depend on the number of threads.

How to read it: @njit has Numba translate a Python function to machine code when it is first called
with arguments of some type; the loops are what gets fast. `prange` is a range whose iterations go
to several threads. LLVM, the compiler underneath, works on 8 or 16 numbers at once (a vector) where
a loop lets it. Three habits serve that: rows are taken out first (xi = x[i]), so that the inner
loop has one index; constants are made in the array's own type, since to Numba a plain 1 times
float32 is float64, and half as many of these fit a vector; no function is called that LLVM can't
see into.

Given up for speed: arguments are not checked (an index out of range writes somewhere else), and
the order of sums is the compiler's, so that the last digits differ from NumPy's.
"""
import functools
import math
import types

import numba
import numpy as np
from numba import njit, prange
from numba.extending import overload

FAST = {"contract", "reassoc"}  # fused multiply-add, free order of sums; NaN, infinity stay true
# A division by zero gives infinity, as in NumPy: Python's test for it would keep vectors away.
FORM = {"fastmath": FAST, "error_model": "numpy", "cache": True}
CHUNK = 64  # rows whose gradients are summed before they are added to other rows'
FLAT = 65_536  # numbers of the flat parameter vector that a thread takes at a time
LOWEST = np.float32(-87)  # exp's smallest argument
ALONE = 65_536  # numbers up to which one thread is faster: waking another takes some 10 us


def alone_and_threads(f):
    """f compiled for one thread (where prange is a plain range), and f compiled across threads.

    The first gets a name of its own, since Numba's cache on disk tells functions apart by name
    and bytecode, but not by parallel=True: under one name, either would be loaded for both."""
    alone = types.FunctionType(f.__code__, f.__globals__, f.__name__ + "_alone")
    alone.__qualname__ = alone.__name__
    return njit(**FORM)(alone), njit(parallel=True, **FORM)(f)


def row_kernel(f):
    """f across threads, or alone where the first argument is too small to share out: training sees
    thousands of rows at a time, decoding one."""
    alone, threads = alone_and_threads(f)

    @functools.wraps(f)
    def call(first, *rest):
        return (alone if first.size <= ALONE else threads)(first, *rest)
    return call


def exp(x):
    """e**x inside a kernel. A call of the C library's exp takes 2.3 ns, since LLVM can't make
    vectors of it; this takes 0.2 ns, with a relative error of 1e-7 (float32).

    x = n ln 2 + r with n whole and |r| <= ln 2 / 2, so e**x = 2**n e**r. A polynomial makes e**r
    (coefficients of Cephes' expf); 2**n is n written into the exponent bits of a float32, which
    stand above 23 bits of fraction and count from -127. ln 2 is subtracted in two parts (Cody &
    Waite): the first has so few digits that n times it is exact, the second brings the rest.

    Given up: outside [-87, 88] it stays at the edge's value (1.6e-38 or 1.7e38) instead of going
    to 0 or infinity. NaN stays NaN, since both comparisons with it are false."""
    return math.exp(x)


# What Numba puts in the place of exp(x), chosen by x's type while it compiles the caller. Outside
# of kernels exp is what stands above.
@overload(exp, jit_options={"fastmath": FAST})
def _exp(x):
    if x != numba.float32:
        return lambda x: math.exp(x)  # float64, for the gradient checks: exact before fast
    f = np.float32
    log2e, ln2_high, ln2_low = f(1.44269504), f(0.693359375), f(-2.12194440e-4)
    c2, c3, c4 = f(5.0000001201e-1), f(1.6666665459e-1), f(4.1665795894e-2)
    c5, c6, c7 = f(8.3334519073e-3), f(1.3981999507e-3), f(1.9875691500e-4)
    one, half, low, high = f(1), f(0.5), LOWEST, f(88)

    def exp32(x):
        x = low if x < low else high if x > high else x
        n = np.floor(x * log2e + half)
        r = x - n * ln2_high - n * ln2_low
        y = one + r + r * r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7)))))
        return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return exp32


# ---- RMSNorm ----

@row_kernel
def rmsnorm(x, weight, eps, n):
    """n (R,C) from x (R,C) and weight (C). Keeps nothing: the backward has x."""
    C = x.shape[1]
    for i in prange(x.shape[0]):
        xi, ni = x[i], n[i]
        total = xi.dtype.type(0)
        for j in range(C):
            total += xi[j] * xi[j]
        rstd = xi.dtype.type(1 / math.sqrt(total / C + eps))
        for j in range(C):
            ni[j] = xi[j] * rstd * weight[j]


def rmsnorm_backward(dn, x, weight, eps, dx, dweight):
    """Adds to dx (R,C) and dweight (C). rstd is made again, which is cheaper than to load it."""
    # A sum over rows would have all threads write to dweight: each chunk has a row of its own.
    parts = np.empty(((x.shape[0] + CHUNK - 1) // CHUNK, x.shape[1]), x.dtype)
    _rmsnorm_backward(dn, x, weight, eps, dx, parts)
    dweight += parts.sum(axis=0)


@njit(parallel=True, **FORM)
def _rmsnorm_backward(dn, x, weight, eps, dx, parts):
    R, C = x.shape
    for chunk in prange(parts.shape[0]):
        part = parts[chunk]
        part[:] = 0
        for i in range(chunk * CHUNK, min(R, (chunk + 1) * CHUNK)):
            dni, xi, dxi = dn[i], x[i], dx[i]
            squares = along = xi.dtype.type(0)  # sums of x^2 and of dh x
            for j in range(C):
                squares += xi[j] * xi[j]
                along += xi[j] * dni[j] * weight[j]
            rstd = xi.dtype.type(1 / math.sqrt(squares / C + eps))
            along = xi.dtype.type(along * rstd * rstd / C)  # times x: h mean(dh h)
            for j in range(C):
                part[j] += dni[j] * xi[j] * rstd
                dxi[j] += rstd * (dni[j] * weight[j] - along * xi[j])


# ---- Rotary position embedding, and the cache of keys and values ----

@row_kernel
def rope(qkv, turned, positions, cos, sin, sign):
    """Turns the first `turned` heads of qkv (R,H+2G,D) in place: forward with sign 1, back with -1.
    positions (R), cos and sin (ctx,D/2)."""
    half, sign = qkv.shape[2] // 2, cos.dtype.type(sign)
    for i in prange(qkv.shape[0]):
        c, s = cos[positions[i]], sin[positions[i]]
        for h in range(turned):
            left, right = qkv[i, h, :half], qkv[i, h, half:]
            for j in range(half):
                x, y = left[j], right[j]
                left[j] = x * c[j] - y * s[j] * sign
                right[j] = y * c[j] + x * s[j] * sign


@row_kernel
def store_kv(qkv, k_cache, v_cache, rows, positions):
    """Puts k and v of qkv (N,H+2G,D) into the caches (B,G,S,D), at rows[n] and positions[n]."""
    G = k_cache.shape[1]
    H = qkv.shape[1] - 2 * G
    for n in prange(qkv.shape[0]):
        for g in range(G):
            k, v = k_cache[rows[n], g, positions[n]], v_cache[rows[n], g, positions[n]]
            for j in range(qkv.shape[2]):
                k[j], v[j] = qkv[n, H + g, j], qkv[n, H + G + g, j]


# ---- SwiGLU ----

@row_kernel
def swiglu(gu, a):
    """a (R,F) from gu (R,2F): the gate g in the first F columns, u in the others."""
    F, one = a.shape[1], a.dtype.type(1)  # 1 would make the sum float64
    for i in prange(gu.shape[0]):
        g, u, ai = gu[i, :F], gu[i, F:], a[i]
        for j in range(F):
            ai[j] = g[j] / (one + exp(-g[j])) * u[j]


@njit(parallel=True, **FORM)
def swiglu_backward(gu, da):
    """In place: gu (R,2F) becomes its gradient, da (R,F) becomes a again. To make a twice costs a
    tenth of what storing it would."""
    F, one = da.shape[1], da.dtype.type(1)
    for i in prange(gu.shape[0]):
        g, u, dai = gu[i, :F], gu[i, F:], da[i]
        for j in range(F):
            p = one / (one + exp(-g[j]))
            silu, d = g[j] * p, dai[j]
            dai[j] = silu * u[j]
            g[j] = d * u[j] * (p + silu * (one - p))
            u[j] = d * silu


# ---- The loss ----

@njit(parallel=True, **FORM)
def softmax_cross_entropy(logits, targets, weights, losses):
    """losses (R) and, in place of logits (R,V), the gradient of sum(weights * losses); targets and
    weights (R). Three passes over a row that the cache holds: maximum; exp and sum; scale."""
    V = logits.shape[1]
    for i in prange(logits.shape[0]):
        row, target, weight = logits[i], targets[i], weights[i]
        top = row[0]
        for j in range(V):
            top = max(top, row[j])
        correct = row[target]
        total = row.dtype.type(0)
        for j in range(V):
            row[j] = exp(row[j] - top)
            total += row[j]
        losses[i] = math.log(total) + top - correct
        scale = row.dtype.type(weight / total)
        for j in range(V):
            row[j] *= scale
        row[target] -= weight


@njit(parallel=True, cache=True)
def scatter_add(dx, ids, dembed):
    """dembed[ids[i]] += dx[i], for dx (R,C), ids (R), dembed (V,C).

    Two threads could meet in one row, so each owns a stripe of 16 columns instead: a cache line of
    float32, which two cores must not write at once."""
    C = dx.shape[1]
    for stripe in prange((C + 15) // 16):
        j0, j1 = stripe * 16, min(C, stripe * 16 + 16)
        for i in range(dx.shape[0]):
            row, line = dx[i, j0:j1], dembed[ids[i], j0:j1]
            for j in range(j1 - j0):
                line[j] += row[j]


# ---- The optimizer ----

@njit(parallel=True, **FORM)
def _sums_of_squares(x, parts):
    for chunk in prange(parts.shape[0]):
        piece = x[chunk * FLAT:(chunk + 1) * FLAT]
        total = 0.0
        for j in range(piece.shape[0]):
            total += np.float64(piece[j]) ** 2
        parts[chunk] = total


def sum_of_squares(x):
    """Of a flat vector x, added up in float64."""
    parts = np.empty((x.size + FLAT - 1) // FLAT)
    _sums_of_squares(x, parts)
    return float(parts.sum())


@njit(parallel=True, **FORM)
def adamw(params, grads, m1, m2, scale, lr, beta1, beta2, eps, decay, n_decayed, step):
    """One AdamW step on flat vectors, in place, in one pass over all four."""
    c1, c2 = 1 - beta1**step, 1 - beta2**step
    f = params.dtype.type
    for chunk in prange((params.size + FLAT - 1) // FLAT):
        i0, i1 = chunk * FLAT, min(params.size, (chunk + 1) * FLAT)
        p, g, m, v = params[i0:i1], grads[i0:i1], m1[i0:i1], m2[i0:i1]
        shrink = max(0, min(i1, n_decayed) - i0)  # how many of these decay
        for j in range(shrink):
            p[j] *= f(1 - lr * decay)
        for j in range(i1 - i0):
            gj = g[j] * f(scale)
            m[j] += f(1 - beta1) * (gj - m[j])
            v[j] += f(1 - beta2) * (gj * gj - v[j])
            p[j] -= f(lr) * (m[j] * f(1 / c1)) / (math.sqrt(v[j] * f(1 / c2)) + f(eps))


# ---- Sampling ----

@njit(fastmath=FAST, cache=True)
def keep_highest(weights, amounts, target):
    """Zeroes weights (V,) in [0,1] but the highest, so many that their amounts add up to target:
    with amounts of 1 that is top-k, with the weights themselves top-p.

    Nothing is sorted. The bits of positive floats, read as whole numbers, are in the same order as
    the floats, so halving their range 30 times finds the smallest weight that stays, each time in
    one pass that the compiler turns into vectors. Weights equal to it all stay."""
    # The bits of 0.0, and of the next number after 1.0.
    low, high = 0, 0x3F800001
    while high - low > 1:
        middle = (low + high) // 2
        border, total = np.int32(middle).view(np.float32), np.float32(0)
        for j in range(len(weights)):
            total += amounts[j] if weights[j] >= border else np.float32(0)
        if total >= target:
            low = middle
        else:
            high = middle
    border = np.int32(low).view(np.float32)
    for j in range(len(weights)):
        weights[j] = weights[j] if weights[j] >= border else np.float32(0)


@njit(fastmath=FAST, cache=True)
def sample_tokens(logits, temperature, top_k, top_p, numbers, tokens, logprobs):
    """Writes tokens (N,) and logprobs (N,) of logits (N,V), for numbers (N,) from [0,1).

    Never sorts (keep_highest) and never divides: the probabilities stay weights, the likeliest
    one's 1, and instead the random number is stretched to their sum. Tokens that are equally likely
    at the border of top-p all stay here, where plain.py takes the first."""
    N, V = logits.shape
    weights, ones = np.empty(V, np.float32), np.ones(V, np.float32)
    for i in range(N):
        row, best, total, left = logits[i], logits[i].argmax(), np.float32(0), 0.0
        for j in range(V):
            total += exp(np.float32(row[j] - row[best]))
        tokens[i] = best
        if temperature > 0:
            warmth = np.float32(1 / temperature)
            for j in range(V):
                z = np.float32(row[j] - row[best]) * warmth
                weights[j] = exp(z) if z > LOWEST else np.float32(0)
            if 0 < top_k < V:
                keep_highest(weights, ones, np.float32(top_k))
            if top_p < 1:
                keep_highest(weights, weights, np.float32(top_p) * weights.sum())
            left = numbers[i] * weights.sum()
            for j in range(V):  # walk along the weights laid end to end, up to the number
                left -= weights[j]
                if left < 0:
                    tokens[i] = j
                    break
        logprobs[i] = row[tokens[i]] - row[best] - np.log(total)
