"""Matrix multiplication: where nine tenths of all training time go.

    matmul(a, b)                          a @ b    a (M,K), b (K,N): a layer's backward, dx = dy @ w
    matmul(a, b, trans_b=True)            a @ b.T  b (N,K): a layer's forward,  y = x @ w.T
    matmul(a, b, trans_a=True)            a.T @ b  a (K,M): a weight's gradient, dw = dy.T @ x
    matmul(..., out=c, accumulate=True)   c += ...

NumPy would do (`a @ b` calls OpenBLAS); this file shows what such a library does inside. A naive
triple loop reaches about 1% of what a core can multiply, because it waits for memory. The cure is
to reuse what was loaded (Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication",
2008):

  panel   256 columns of b, up to 256 deep, are copied ("packed") into one small contiguous array
          that stays in the L2 cache while all rows of a pass over it. Transposing costs nothing
          extra: it happens in this copy.
  tile    4 rows x 256 columns of the output are summed in a scratch that stays in the L1 cache.
  step    16 numbers of a (4 rows x 4 depths) sit in registers while 4 panel rows and the 4 tile
          rows stream by: 16 multiply-adds for 8 loads and 4 stores, so the multipliers never wait.

No intrinsics: LLVM makes AVX-512 or AVX2 of the innermost loop by itself, provided that it can see
what an assembly programmer would know: the row stride is a compile-time constant, the number of
columns is a multiple of 16, indices are not negative, and there are just two base pointers (which
it checks once for overlap). Without any one of these the speed is halved or worse.
Given up for that: up to 3 rows are computed twice where M is no multiple of 4, up to 15 columns
for nothing where N is no multiple of 16, and every panel is copied before it is used, which is why
decoding, with a row or two, takes another way (few_rows).

Read from the inside out: _step multiplies 4 rows by one panel, _rectangle goes over panels and
rows, rectangles gives each thread its part, matmul chooses.
"""
import numba
import numpy as np
from numba import njit, prange

from kernels.rows import FAST, alone_and_threads

NC = 256  # columns of a panel
STRIDE = NC + 16  # from row to row in panel and tile: a power of two would crowd a few cache sets
KC = 256  # depth of a panel: NC * KC * 4 bytes = 256 KiB, inside the L2 cache of current cores
U = np.uintp  # unsigned places in an array need no test for a[-1]; only so LLVM makes vectors
FEW = 8  # up to so many rows packing does not pay: decoding multiplies one row
SERIAL_FLOPS = 400_000  # below this, waking a second thread (some 10 us) costs more than it saves


def matmul(a, b, trans_a=False, trans_b=False, out=None, accumulate=False):
    """Returns out (M,N), the product of two matrices of one dtype (float32 or float64).

    trans_a, trans_b: a is stored as (K,M), b as (N,K); no transposed copy is made of either. out:
    where to write; its rows must be contiguous. accumulate: add to what out holds.

    Each output number is summed in an order that depends on the shapes alone, so the bits are
    the same for any number of threads."""
    M, K = a.shape[::-1] if trans_a else a.shape
    depth, N = b.shape[::-1] if trans_b else b.shape
    if K != depth:
        raise ValueError(f"matmul: {M}x{K} by {depth}x{N}: the inner sizes differ")
    if out is None:
        out, accumulate = np.empty((M, N), a.dtype), False
    if not a.flags.c_contiguous:
        a = np.ascontiguousarray(a)
    if not b.flags.c_contiguous:
        b = np.ascontiguousarray(b)
    parts = 1 if 2 * M * N * K < SERIAL_FLOPS else numba.get_num_threads()
    if M <= FEW:
        a = np.ascontiguousarray(a.T) if trans_a else a
        few_rows[parts > 1](a, b, trans_b, out, accumulate, parts)  # a pair: alone, threads
    else:
        rectangles[parts > 1](a, b, trans_a, trans_b, out, accumulate, parts)
    return out


@alone_and_threads
def rectangles(a, b, trans_a, trans_b, out, accumulate, parts):
    """Cuts the longer side of the output into one rectangle a thread: disjoint, so no thread waits
    for another. Each packs its own panels, so where rows are cut, b is copied once per
    thread."""
    M, N = out.shape
    for part in prange(parts):
        if M >= N:
            i0, i1 = _cut(M, 4, part, parts), _cut(M, 4, part + 1, parts)
            _rectangle(a, b, trans_a, trans_b, out, accumulate, i0, i1, 0, N)
        else:
            j0, j1 = _cut(N, 16, part, parts), _cut(N, 16, part + 1, parts)
            _rectangle(a, b, trans_a, trans_b, out, accumulate, 0, M, j0, j1)


@njit
def _cut(size, unit, part, parts):
    """Where part begins when size is cut into equal parts of whole units; the last ends at size.
    Units of 4 rows or 16 columns (a cache line of float32) keep steps whole and threads apart."""
    return min(size, (size + unit - 1) // unit * part // parts * unit)


@njit
def _rectangle(a, b, trans_a, trans_b, out, accumulate, i0, i1, j0, j1):
    """out[i0:i1, j0:j1] of the product; out has at least 4 rows.

    Loops, from the outside: panels of NC columns; blocks of KC depths, each adding to the output
    what these depths give; four rows at a time. So a panel is packed once and used by all rows."""
    M = out.shape[0]
    K = a.shape[0] if trans_a else a.shape[1]
    # a[row, depth] lies at row * row_stride + depth * depth_stride of the flat array: transposing a
    # is nothing but exchanging these two.
    row_stride, depth_stride = (1, M) if trans_a else (K, 1)
    flat = a.reshape(-1)
    panel, tile = _aligned(min(K, KC) * STRIDE, a), _aligned(4 * STRIDE, a)
    if K == 0 and not accumulate:
        out[i0:i1, j0:j1] = 0
    for c0 in range(j0, j1, NC):
        c1 = min(c0 + NC, j1)
        for k0 in range(0, K, KC):
            k1 = min(k0 + KC, K)
            _pack(b, trans_b, k0, k1, c0, c1, panel)
            fresh = k0 == 0 and not accumulate  # the tile starts from 0, else from what out holds
            for i in range(i0, i1, 4):
                # At the bottom edge the four rows start higher and overlap the ones before. Those
                # may be finished, or another thread's: only rows from i on are written back.
                top = min(i, M - 4)
                for r in range(4):
                    row, t = out[top + r, c0:c1], tile[r * STRIDE:]
                    for j in range(c1 - c0):
                        t[j] = 0 if fresh else row[j]
                _step(flat, top * row_stride + k0 * depth_stride, row_stride, depth_stride,
                      k1 - k0, panel, tile, (c1 - c0 + 15) // 16)
                for r in range(i - top, 4):
                    row, t = out[top + r, c0:c1], tile[r * STRIDE:]
                    for j in range(c1 - c0):
                        row[j] = t[j]


@njit
def _aligned(size, like):
    """Scratch that starts on a cache line (64 bytes), so that no vector load straddles two."""
    scratch = np.empty(size + 16, like.dtype)
    return scratch[(-scratch.ctypes.data % 64) // scratch.itemsize:]


@njit
def _transpose(a, x, a_step, rows, columns, b, y, b_step):
    """b (columns,rows) = a.T for a (rows,columns), each with a step from row to row.

    In blocks of 4 x 4, loaded whole before any of it is stored: LLVM turns them in registers."""
    for r in range(0, rows - 3, 4):
        for c in range(0, columns - 3, 4):
            x0, y0 = U(x + r * a_step + c), U(y + c * b_step + r)
            x1, x2, x3 = x0 + U(a_step), x0 + U(2 * a_step), x0 + U(3 * a_step)
            y1, y2, y3 = y0 + U(b_step), y0 + U(2 * b_step), y0 + U(3 * b_step)
            a00, a01, a02, a03 = a[x0], a[x0 + U(1)], a[x0 + U(2)], a[x0 + U(3)]
            a10, a11, a12, a13 = a[x1], a[x1 + U(1)], a[x1 + U(2)], a[x1 + U(3)]
            a20, a21, a22, a23 = a[x2], a[x2 + U(1)], a[x2 + U(2)], a[x2 + U(3)]
            a30, a31, a32, a33 = a[x3], a[x3 + U(1)], a[x3 + U(2)], a[x3 + U(3)]
            b[y0], b[y0 + U(1)], b[y0 + U(2)], b[y0 + U(3)] = a00, a10, a20, a30
            b[y1], b[y1 + U(1)], b[y1 + U(2)], b[y1 + U(3)] = a01, a11, a21, a31
            b[y2], b[y2 + U(1)], b[y2 + U(2)], b[y2 + U(3)] = a02, a12, a22, a32
            b[y3], b[y3 + U(1)], b[y3 + U(2)], b[y3 + U(3)] = a03, a13, a23, a33
    for r in range(rows):  # the edges
        for c in range(0 if r >= rows // 4 * 4 else columns // 4 * 4, columns):
            b[y + c * b_step + r] = a[x + r * a_step + c]


@njit
def _pack(b, trans_b, k0, k1, j0, j1, panel):
    """panel[k, j] = (b.T if trans_b else b)[k0 + k, j0 + j], then zeros up to 16 columns.

    np.int64(0): a bare 0 would be a type of its own to Numba, and compile the callee once more."""
    n = j1 - j0
    if trans_b:
        K = b.shape[1]
        _transpose(b.reshape(-1), j0 * K + k0, K, n, k1 - k0, panel, np.int64(0), np.int64(STRIDE))
    else:
        for k in range(k1 - k0):
            row, line = b[k0 + k, j0:j1], panel[k * STRIDE:]
            for j in range(n):
                line[j] = row[j]
    if n % 16:
        for k in range(k1 - k0):
            for j in range(n, (n + 15) // 16 * 16):
                panel[k * STRIDE + j] = 0


@njit(fastmath=FAST)
def _step(a, x, row_stride, depth_stride, depth, panel, tile, n16):
    """tile (4, STRIDE) += four rows of a (which start at flat position x) @ panel (depth, STRIDE).

    n16 counts the columns in sixteens. In NumPy's words, with k for four depths:
        tile[0] += x0 * panel[k] + x1 * panel[k+1] + x2 * panel[k+2] + x3 * panel[k+3]
    and the same with y, z, w for rows 1 to 3: the letters are the rows of a, the digits the depths.
    Each number loaded from the panel is used four times, each tile number that is loaded and stored
    gets four products. Depths that are no multiple of four end one at a time."""
    # An unsigned index can't be negative, so no test is needed for Python's a[-1] (the last one).
    down, on = np.uintp(row_stride), np.uintp(depth_stride)
    x = np.uintp(x)
    y, z, w = x + down, x + down + down, x + down + down + down
    for k in range(0, depth - 3, 4):
        x0, y0, z0, w0 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + on, y + on, z + on, w + on
        x1, y1, z1, w1 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + on, y + on, z + on, w + on
        x2, y2, z2, w2 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + on, y + on, z + on, w + on
        x3, y3, z3, w3 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + on, y + on, z + on, w + on
        b = panel[k * STRIDE:(k + 4) * STRIDE]
        for j in range(16 * n16):
            b0, b1, b2, b3 = b[j], b[STRIDE + j], b[2 * STRIDE + j], b[3 * STRIDE + j]
            tile[j] += x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3
            tile[STRIDE + j] += y0 * b0 + y1 * b1 + y2 * b2 + y3 * b3
            tile[2 * STRIDE + j] += z0 * b0 + z1 * b1 + z2 * b2 + z3 * b3
            tile[3 * STRIDE + j] += w0 * b0 + w1 * b1 + w2 * b2 + w3 * b3
    for k in range(depth // 4 * 4, depth):
        x0, y0, z0, w0 = a[x], a[y], a[z], a[w]
        x, y, z, w = x + on, y + on, z + on, w + on
        b = panel[k * STRIDE:(k + 1) * STRIDE]
        for j in range(16 * n16):
            tile[j] += x0 * b[j]
            tile[STRIDE + j] += y0 * b[j]
            tile[2 * STRIDE + j] += z0 * b[j]
            tile[3 * STRIDE + j] += w0 * b[j]


# ---- Few rows, as in decoding: every number of b is used M times only, so its way from memory is
#      what takes the time, and b is read once, in the order it lies, without being packed. ----

@njit(fastmath=FAST)
def _few_columns(a, b, trans_b, out, accumulate, j0, j1):
    """Columns j0:j1 of the output, for a (M,K) with few rows."""
    M, K = a.shape
    if trans_b:  # b's rows are as long as a's: each output number is a dot product
        for j in range(j0, j1):
            for i in range(M):
                total = out[i, j] if accumulate else a.dtype.type(0)
                for k in range(K):
                    total += a[i, k] * b[j, k]
                out[i, j] = total
    else:  # b's rows are as long as out's: each is added a[i, k] times
        if not accumulate:
            out[:, j0:j1] = 0
        for k in range(K):
            for i in range(M):
                x, row, line = a[i, k], b[k, j0:j1], out[i, j0:j1]
                for j in range(j1 - j0):
                    line[j] += x * row[j]


@alone_and_threads
def few_rows(a, b, trans_b, out, accumulate, parts):
    """Cuts the columns of the output into one stripe a thread."""
    N = out.shape[1]
    for part in prange(parts):
        _few_columns(a, b, trans_b, out, accumulate,
                     _cut(N, 16, part, parts), _cut(N, 16, part + 1, parts))
