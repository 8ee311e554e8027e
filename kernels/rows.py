"""The loops between the matrix products: each reads its rows once and writes them once.

What NumPy would do in five passes over main memory (square, mean, divide, multiply, ...) happens
here in one, while a row is in the L1 cache. All are row by row: R = B*T rows, one a token.

    exp                                  vectorised, for what follows
    rmsnorm, rmsnorm_backward            Zhang & Sennrich 2019
    rope                                 Su et al. 2021; its backward turns the other way
    store_kv                             k and v of new tokens into the cache, when decoding
    swiglu, swiglu_backward              Shazeer 2020
    softmax_cross_entropy                loss and its gradient in one
    scatter_add                          the embedding's backward
    adamw, sum_of_squares                on the one flat vector of all parameters

Rows are spread over the threads; sums over rows are made in chunks of fixed size and added in a
fixed order, so the bits don't depend on the number of threads.
"""
import math
import types
import numba
import numpy as np
from numba import njit, prange
from numba.extending import overload

FAST = {"contract", "reassoc"}  # fused multiply-add, free order of sums; NaN and infinity stay true
# A division by zero gives infinity, as in NumPy: Python's test for it would keep loops from vectors.
FORM = {"fastmath": FAST, "error_model": "numpy", "cache": True}
CHUNK = 64  # rows whose gradients are summed before they are added to other rows'
FLAT = 65_536  # numbers of the flat parameter vector that a thread takes at a time
ALONE = 65_536  # numbers up to which one thread is faster: waking another takes about 5 us


def row_kernel(f):
    """Compiles f twice, across threads and for one, and picks by the size of the first argument."""
    alone = types.FunctionType(f.__code__, f.__globals__, f.__name__ + "_alone")
    alone.__qualname__ = alone.__name__  # a name of its own in the compiler's cache
    threads = njit(parallel=True, **FORM)(f)
    alone = njit(**FORM)(alone)

    def call(first, *rest):
        return (alone if first.size <= ALONE else threads)(first, *rest)
    call.__doc__, call.__name__ = f.__doc__, f.__name__
    return call


def exp(x):
    """e**x inside a kernel. A call of the C library's exp takes 2.3 ns, since LLVM can't make
    vectors of it; this takes 0.2 ns, with a relative error of 1e-7 (float32).

    x = n ln 2 + r with |r| <= ln 2 / 2, so e**x = 2**n e**r: a polynomial for e**r (coefficients of
    Cephes' expf), and 2**n by writing n into the exponent bits. ln 2 is subtracted in two parts
    (Cody & Waite) to keep r exact. Outside [-87, 88] the edge's value; NaN stays NaN."""
    return math.exp(x)


@overload(exp, jit_options={"fastmath": FAST})
def _exp(x):
    if x != numba.float32:
        return lambda x: math.exp(x)  # float64, for the gradient checks: exact before fast
    f = np.float32
    log2e, ln2_high, ln2_low = f(1.44269504), f(0.693359375), f(-2.12194440e-4)
    c2, c3, c4 = f(5.0000001201e-1), f(1.6666665459e-1), f(4.1665795894e-2)
    c5, c6, c7 = f(8.3334519073e-3), f(1.3981999507e-3), f(1.9875691500e-4)
    one, half, low, high = f(1), f(0.5), f(-87), f(88)

    def exp32(x):
        x = low if x < low else high if x > high else x
        n = np.floor(x * log2e + half)
        r = x - n * ln2_high - n * ln2_low
        y = one + r + r * r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7)))))
        return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return exp32


# ---- RMSNorm: n = x * rstd * weight,  rstd = 1 / sqrt(mean(x^2) + eps) ----

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
    """dx (R,C) += d loss/d x, dweight (C) += d loss/d weight, for dn (R,C).

    With h = x rstd: n = h weight, so dweight = sum over rows of dn h and dh = dn weight. rstd
    depends on all of x, d rstd/d x = -rstd^2 h / C, which takes from dh its part along h:
    dx = rstd (dh - h mean(dh h)). rstd is computed again: cheaper than to store and load it."""
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
            squares = along = xi.dtype.type(0)
            for j in range(C):
                squares += xi[j] * xi[j]
                along += xi[j] * dni[j] * weight[j]
            rstd = xi.dtype.type(1 / math.sqrt(squares / C + eps))
            along = xi.dtype.type(along * rstd * rstd / C)
            for j in range(C):
                part[j] += dni[j] * xi[j] * rstd
                dxi[j] += rstd * (dni[j] * weight[j] - along * xi[j])


# ---- Rotary position embedding: numbers i and i + D/2 of a head are a point, turned by an angle ----

@row_kernel
def rope(qkv, turned, positions, cos, sin, sign):
    """Turns the first `turned` heads (q and k, not v) of qkv (R, H+2G, D) in place by the angles of
    their row's position (R).

    cos and sin (positions, D/2) hold the cosines and sines of position * theta**(-2i/D). sign -1
    turns back, which is the backward: the transpose of a rotation is its inverse."""
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
    """Files k and v of qkv (N, H+2G, D) in the caches (B,G,S,D): row rows[n], place positions[n]."""
    G = k_cache.shape[1]
    H = qkv.shape[1] - 2 * G
    for n in prange(qkv.shape[0]):
        for g in range(G):
            k, v = k_cache[rows[n], g, positions[n]], v_cache[rows[n], g, positions[n]]
            for j in range(qkv.shape[2]):
                k[j], v[j] = qkv[n, H + g, j], qkv[n, H + G + g, j]


# ---- SwiGLU: a = silu(g) u,  silu(g) = g sigmoid(g) ----

@row_kernel
def swiglu(gu, a):
    """a (R,F) from gu (R,2F): the gate g in the first F columns, u in the others."""
    F, one = a.shape[1], a.dtype.type(1)  # a plain 1 + float32 would be float64 to Numba
    for i in prange(gu.shape[0]):
        g, u, ai = gu[i, :F], gu[i, F:], a[i]
        for j in range(F):
            ai[j] = g[j] / (one + exp(-g[j])) * u[j]


@njit(parallel=True, **FORM)
def swiglu_backward(gu, da):
    """In place: gu (R,2F) becomes its gradient, da (R,F) becomes a once more (the weight behind
    it needs a for its own gradient; to make it here costs a tenth of what storing it would).

    With p = sigmoid(g): da/du = g p, and da/dg = u (p + g p (1 - p))."""
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
    """losses (R) = -log softmax(logits)[target]; logits (R,V) become d(sum of weights * losses).

    d loss/d logits = softmax(logits) - onehot(target): what the model believed, minus the truth."""
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
    """dembed[ids[i]] += dx[i]. A thread owns a stripe of columns, so that none writes another's."""
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
    """Of a flat vector, in float64."""
    parts = np.empty((x.size + FLAT - 1) // FLAT)
    _sums_of_squares(x, parts)
    return float(parts.sum())


@njit(parallel=True, **FORM)
def adamw(params, grads, m1, m2, scale, lr, beta1, beta2, eps, decay, n_decayed, step):
    """One AdamW step (Loshchilov & Hutter 2019, algorithm 2) on flat vectors, in place.

    grads count `scale` times (gradient clipping); weight decay touches the first n_decayed
    parameters only (the matrices); step counts from 1 and undoes the moments' start at zero."""
    c1, c2 = 1 - beta1**step, 1 - beta2**step
    f = params.dtype.type
    for chunk in prange((params.size + FLAT - 1) // FLAT):
        i0, i1 = chunk * FLAT, min(params.size, (chunk + 1) * FLAT)
        p, g, m, v = params[i0:i1], grads[i0:i1], m1[i0:i1], m2[i0:i1]
        shrink = max(0, min(i1, n_decayed) - i0)
        for j in range(shrink):
            p[j] *= f(1 - lr * decay)
        for j in range(i1 - i0):
            gj = g[j] * f(scale)
            m[j] += f(1 - beta1) * (gj - m[j])
            v[j] += f(1 - beta2) * (gj * gj - v[j])
            p[j] -= f(lr) * (m[j] * f(1 / c1)) / (math.sqrt(v[j] * f(1 / c2)) + f(eps))
