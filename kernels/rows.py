"""The loops between the matrix products, each in as few passes over memory as it can.

For rmsnorm NumPy goes over main memory five times: square, mean, two products, copy. Here a row
stays in the core's fastest memory (the L1 cache) until all is done with it. Each kernel equals the
function of its name in plain.py, which says what is computed and why.

How to read it: @njit has Numba translate a function to machine code at its first call. `prange` is
a range whose iterations go to several threads. LLVM, the compiler underneath, works on 8 or 16
numbers at once (a vector) where a loop lets it. Three habits serve that:
  - Rows are taken out first: xi = x[i].
  - Constants get the array's own type. To Numba, 1 times float32 is float64, twice as wide.
  - No function is called that LLVM can't see into, such as the C library's exp.

Given up everywhere: arguments are not checked, and the compiler chooses the order within a sum.
The order is the same for any number of threads, so the bits are too.
"""
import math
import types

import numba
import numpy as np
from numba import njit, prange
from numba.extending import overload

FAST = {"contract", "reassoc"}  # a * b + c in one rounding, sums in any order; NaN stays NaN
# "numpy": a division by zero gives infinity; Python's test for it would keep vectors away.
FORM = {"fastmath": FAST, "error_model": "numpy", "cache": True}
CHUNK = 64  # rows that rmsnorm_backward sums up in one part
FLAT = 65_536  # numbers of the flat parameter vector that a thread takes at a time
LOWEST = np.float32(-87)  # exp's smallest argument
ALONE = 65_536  # numbers up to which one thread is faster: to wake another takes 10 us


def alone_and_threads(f):
    """f compiled for one thread, where prange is a plain range, and for several. The first gets a
    name of its own, since Numba's cache on disk does not look at parallel=True."""
    alone = types.FunctionType(f.__code__, f.__globals__, f.__name__ + "_alone")
    alone.__qualname__ = alone.__name__
    return njit(**FORM)(alone), njit(parallel=True, **FORM)(f)


def row_kernel(f):
    """f on several threads, or on one where its first array is small, as in decoding."""
    alone, threads = alone_and_threads(f)
    return lambda x, *rest: (alone if x.size <= ALONE else threads)(x, *rest)


def exp(x):
    """e**x inside a kernel: 0.2 ns in float32, where the C library's takes 2.3 ns.

    Write x = n ln 2 + r with n whole and |r| <= ln 2 / 2. Then e**x = 2**n e**r; x = 1 gives n = 1,
    r = 0.307 and 2 * 1.359. A polynomial makes e**r (coefficients of Cephes' expf). 2**n is n in
    the exponent bits of a float32, which stand above 23 bits of fraction and count from -127. ln 2
    is subtracted in two parts (Cody & Waite), since n times a short first part is exact.
    Given up: a relative error of 1e-7; it stays at 1.6e-38 below -87 and at 1.7e38 above 88. NaN
    stays NaN, since both comparisons with it are false."""
    return math.exp(x)


@overload(exp, jit_options={"fastmath": FAST})  # what a kernel calls, by x's type
def _exp(x):
    if x != numba.float32:
        return lambda x: math.exp(x)  # float64 serves gradient checks: exact, not fast
    f = np.float32
    c2, c3, c4 = f(5.0000001201e-1), f(1.6666665459e-1), f(4.1665795894e-2)
    c5, c6, c7 = f(8.3334519073e-3), f(1.3981999507e-3), f(1.9875691500e-4)

    def exp32(x):
        x = LOWEST if x < LOWEST else f(88) if x > f(88) else x
        n = np.floor(x * f(1.44269504) + f(0.5))  # times 1 / ln 2, rounded
        r = x - n * f(0.693359375) - n * f(-2.12194440e-4)
        y = f(1) + r + r * r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7)))))
        return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return exp32


@row_kernel
def rmsnorm(x, weight, eps, n):
    """n (R,C) from x (R,C) and weight (C)."""
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
    """Adds to dx (R,C) and dweight (C). All rows add to dweight, but two threads must not write to
    one number. So each chunk of rows has a row of parts, and NumPy adds up the parts."""
    parts = np.zeros(((x.shape[0] + CHUNK - 1) // CHUNK, x.shape[1]), x.dtype)
    _rmsnorm_backward(dn, x, weight, eps, dx, parts)
    dweight += parts.sum(axis=0)


@njit(parallel=True, **FORM)
def _rmsnorm_backward(dn, x, weight, eps, dx, parts):
    R, C = x.shape
    for chunk in prange(parts.shape[0]):
        part = parts[chunk]
        for i in range(chunk * CHUNK, min(R, (chunk + 1) * CHUNK)):
            dni, xi, dxi = dn[i], x[i], dx[i]
            squares = along = xi.dtype.type(0)  # sums of x^2 and of dh x, where dh = dn weight
            for j in range(C):
                squares += xi[j] * xi[j]
                along += xi[j] * dni[j] * weight[j]
            rstd = xi.dtype.type(1 / math.sqrt(squares / C + eps))
            along = xi.dtype.type(along * rstd * rstd / C)  # along x = h mean(dh h) in plain.py
            for j in range(C):
                part[j] += dni[j] * xi[j] * rstd
                dxi[j] += rstd * (dni[j] * weight[j] - along * xi[j])


@row_kernel
def rope(qkv, rotated, positions, cos, sin, sign):
    """Rotates the first `rotated` heads of qkv (R,H+2G,D) in place, forward (sign 1) or back (-1),
    for positions (R), cos and sin (ctx,D/2)."""
    half, sign = qkv.shape[2] // 2, cos.dtype.type(sign)
    for i in prange(qkv.shape[0]):
        c, s = cos[positions[i]], sin[positions[i]]
        for h in range(rotated):
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


@row_kernel
def swiglu(gu, a):
    """a (R,F) from gu (R,2F): the gate g in its first F columns, u in the others."""
    F, one = a.shape[1], a.dtype.type(1)
    for i in prange(gu.shape[0]):
        g, u, ai = gu[i, :F], gu[i, F:], a[i]
        for j in range(F):
            ai[j] = g[j] / (one + exp(-g[j])) * u[j]


@njit(parallel=True, **FORM)
def swiglu_backward(gu, da):
    """In place: gu (R,2F) becomes its gradient, da (R,F) becomes a again. One exp serves both."""
    F, one = da.shape[1], da.dtype.type(1)
    for i in prange(gu.shape[0]):
        g, u, dai = gu[i, :F], gu[i, F:], da[i]
        for j in range(F):
            p = one / (one + exp(-g[j]))
            silu, d = g[j] * p, dai[j]
            dai[j] = silu * u[j]
            g[j] = d * u[j] * (p + silu * (one - p))
            u[j] = d * silu


@njit(parallel=True, **FORM)
def softmax_cross_entropy(logits, targets, weights, losses):
    """losses (R) and, in place of logits (R,V), their gradient, for targets and weights (R). Three
    passes over a row that is in the cache: maximum; exp and its sum; scale."""
    V = logits.shape[1]
    for i in prange(logits.shape[0]):
        row, target, weight = logits[i], targets[i], weights[i]
        top = row[0]
        for j in range(V):
            top = max(top, row[j])
        correct, total = row[target], row.dtype.type(0)
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
    """dembed[ids[i]] += dx[i], for dx (R,C), ids (R), dembed (V,C). Two rows may have one id, so
    the threads share out columns: 16 at a time, a cache line of float32."""
    for stripe in prange((dx.shape[1] + 15) // 16):
        j0 = stripe * 16
        for i in range(dx.shape[0]):
            row, line = dx[i, j0:j0 + 16], dembed[ids[i], j0:j0 + 16]
            for j in range(row.size):
                line[j] += row[j]


def sum_of_squares(x):
    """Of a flat vector x, in float64. As above: each thread adds to parts of its own."""
    parts = np.empty((x.size + FLAT - 1) // FLAT)
    _sums_of_squares(x, parts)
    return float(parts.sum())


@njit(parallel=True, **FORM)
def _sums_of_squares(x, parts):
    for chunk in prange(parts.shape[0]):
        part, total = x[chunk * FLAT:(chunk + 1) * FLAT], 0.0
        for j in range(part.size):
            total += np.float64(part[j]) ** 2
        parts[chunk] = total


@njit(parallel=True, **FORM)
def adamw(params, grads, m1, m2, scale, lr, beta1, beta2, eps, decay, n_decayed, step):
    """One AdamW step on flat vectors. One pass over all four, where NumPy makes about fifteen."""
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


@njit(parallel=True, cache=True)
def nesterov(grads, m1, scale, momentum):
    """As adamw, one pass over flat vectors. No fast-math here: the bits are NumPy's."""
    f = grads.dtype.type
    scale, old, new = f(scale), f(momentum), f(1 - momentum)
    for i in prange(grads.size):
        g = grads[i] * scale
        m1[i] += new * (g - m1[i])
        grads[i] = new * g + old * m1[i]


@njit(fastmath=FAST, cache=True)
def keep_highest(weights, amounts, target):
    """Zeroes weights (V,) in [0,1] but the highest, so many that their amounts (V,) add up to
    target. With amounts of 1 that is top-k, with the weights as amounts top-p. Ties stay.

    Where plain.probabilities sorts, this searches: floats from 0 up are in the order of their bits,
    read as whole numbers. A binary search from 0.0 to 1.0 finds the smallest weight that stays, in
    30 passes that vectorise."""
    low, high = 0, 0x3F800001  # the bits of 0.0, and of the next number after 1.0
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

    Never divides: the likeliest token's weight is 1, and the number is stretched to the weights'
    sum. Given up: weights are float32, and below e**-87 they are 0."""
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
