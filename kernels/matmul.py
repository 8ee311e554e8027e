"""Matrix multiplication: nine tenths of all training time.

    matmul(a, b)                          a @ b    a (M,K), b (K,N): a layer's backward, dx = dy @ w
    matmul(a, b, trans_b=True)            a @ b.T  b (N,K): a layer's forward,  y = x @ w.T
    matmul(a, b, trans_a=True)            a.T @ b  a (K,M): a weight's gradient, dw = dy.T @ x
    matmul(..., out=c, accumulate=True)   c += ...

NumPy's `a @ b` calls a library; here is what such a library does. A triple loop in the order of the
formula reaches about 1% of a core's speed, because it waits for memory. The cure is to use what was
loaded many times (Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication").
Where the numbers are, for a (1024,256) @ b (256,688):

  main memory  a, b and out
  L2 cache     panel: 256 columns of b, up to 256 deep, copied behind each other ("packed", and
               transposed if need be). It serves all 1,024 rows: 3 panels here.
  L1 cache     tile: 4 rows x 256 columns of out, summed up here: 256 tiles a panel.
  registers    step: 16 numbers of a, which 4 rows of the panel and of the tile pass: 64 a tile.

Given up: up to 3 rows are computed twice where M is no multiple of 4, up to 15 columns for nothing
where N is no multiple of 16. Reading order: the step, drawn over make_multiply_add; _rectangle;
rectangles, which gives each thread its part; matmul.
"""
import numba
import numpy as np
from numba import njit, prange

from kernels import plain
from kernels.rows import FAST, alone_and_threads

# np.int64: to Numba a plain number is a type of its own, and callees would be compiled for each.
PANEL = 256  # columns of a panel
DEPTH = 256  # of a panel: 256 * 256 * 4 bytes = 256 KiB, inside the L2 cache of current cores
STRIDE = np.int64(PANEL + 16)  # of panel and tile; a power of two would crowd few cache sets
FEW = 8  # rows up to which packing does not pay
SERIAL_FLOPS = 400_000  # below this, waking a second thread costs more than it saves
U = np.uintp  # an unsigned index needs no test for Python's a[-1], which would keep vectors away


def matmul(a, b, trans_a=False, trans_b=False, out=None, accumulate=False):
    """plain.matmul for two matrices of one dtype (float32 or float64): returns out (M,N), whose
    rows must be contiguous. The order of each sum depends on the shapes alone, so any number of
    threads gives the same bits."""
    M, K = a.shape[::-1] if trans_a else a.shape
    depth, N = b.shape[::-1] if trans_b else b.shape
    if K != depth:
        raise ValueError(f"matmul: {M}x{K} by {depth}x{N}: the inner sizes differ")
    if out is None:
        out, accumulate = np.empty((M, N), a.dtype), False
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)  # themselves, if they are
    parts = 1 if 2 * M * N * K < SERIAL_FLOPS else numba.get_num_threads()
    if M <= FEW:
        a = np.ascontiguousarray(a.T) if trans_a else a
        few_rows[parts > 1](a, b, trans_b, out, accumulate, parts)  # a pair: alone, threads
    else:
        rectangles[parts > 1](a, b, trans_a, trans_b, out, accumulate, parts)
    return out


@alone_and_threads
def rectangles(a, b, trans_a, trans_b, out, accumulate, parts):
    """Cuts the longer side of out into one rectangle a thread, so that none waits for another.
    Given up: each packs its own panels, so where rows are cut, b is copied once per thread."""
    M, N = out.shape
    for part in prange(parts):
        if M >= N:
            i0, i1 = _cut(M, 4, part, parts), _cut(M, 4, part + 1, parts)
            _rectangle(a, b, trans_a, trans_b, out, accumulate, False, i0, i1, 0, N)
        else:
            j0, j1 = _cut(N, 16, part, parts), _cut(N, 16, part + 1, parts)
            _rectangle(a, b, trans_a, trans_b, out, accumulate, False, 0, M, j0, j1)


@njit
def _cut(size, unit, part, parts):
    """Where part begins if size is cut into equal parts of whole units: 4 rows, a step's height, or
    16 columns, a cache line of float32, which two threads must not share."""
    return min(size, (size + unit - 1) // unit * part // parts * unit)


@njit
def _rectangle(a, b, trans_a, trans_b, out, accumulate, lower, i0, i1, j0, j1):
    """out[i0:i1, j0:j1] of the product; out has at least 4 rows. Each panel is packed once and used
    by all rows, four at a time; where it is not the first of its columns, it adds to out.

    lower: only out's lower half, in steps of 16 columns; i0 and j0 are 0."""
    M = out.shape[0]
    K = a.shape[0] if trans_a else a.shape[1]
    # a[row, depth] is number row * row_stride + depth * depth_stride of the flat array: to
    # transpose a is to exchange these two.
    row_stride, depth_stride = (1, M) if trans_a else (K, 1)
    flat = a.reshape(-1)
    panel, tile = aligned(min(K, DEPTH) * STRIDE, a), aligned(4 * STRIDE, a)
    for c0 in range(j0, j1, PANEL):
        c1 = min(c0 + PANEL, j1)
        for k0 in range(0, max(K, 1), DEPTH):  # once even if K is 0, to write zeros
            k1 = min(k0 + DEPTH, K)
            _pack(b, trans_b, k0, k1, c0, c1, panel)
            fresh = k0 == 0 and not accumulate  # the tile starts at 0, not at what out holds
            for i in range(c0 if lower else i0, i1, 4):
                # At the bottom edge the four rows start higher. Those above i are finished, or
                # another thread's: they are not written back.
                top = min(i, M - 4)
                n = min((i + 4 - c0 + 15) // 16 * 16, c1 - c0) if lower else c1 - c0
                for r in range(4):
                    row, t = out[top + r, c0:c1], tile[r * STRIDE:]
                    for j in range(n):
                        t[j] = 0 if fresh else row[j]
                _multiply_add(flat, top * row_stride + k0 * depth_stride, row_stride, depth_stride,
                              k1 - k0, panel, 0, tile, 0, (n + 15) // 16 * 16)
                for r in range(i - top, 4):
                    row, t = out[top + r, c0:c1], tile[r * STRIDE:]
                    for j in range(n):
                        row[j] = t[j]


@njit
def _pack(b, trans_b, k0, k1, j0, j1, panel):
    """panel[k, j] = (b.T if trans_b else b)[k0 + k, j0 + j], then zeros up to 16 columns."""
    n = j1 - j0
    if trans_b:
        K = b.shape[1]
        transpose(b.reshape(-1)[j0 * K + k0:], K, n, k1 - k0, panel, STRIDE)
    else:
        for k in range(k1 - k0):
            row, line = b[k0 + k, j0:j1], panel[k * STRIDE:]
            for j in range(n):
                line[j] = row[j]
    for k in range(k1 - k0):
        for j in range(n, (n + 15) // 16 * 16):
            panel[k * STRIDE + j] = 0


# ---- What attention.py uses too; arrays are flat ----
#
# The step: four rows of a, four depths at a time, meet four rows of the panel.
#                               b0 b0 b0 b0 b0 b0 ...  panel, depth k
#                               b1 b1 b1 b1 b1 b1 ...         depth k+1
#     a, depths k to k+3        b2 b2 b2 b2 b2 b2 ...         depth k+2
#     |                         b3 b3 b3 b3 b3 b3 ...         depth k+3
#     x0 x1 x2 x3   row i       tile[0] += x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3
#     y0 y1 y2 y3   row i+1     tile[1] += y0 * b0 + y1 * b1 + y2 * b2 + y3 * b3
#     z0 z1 z2 z3   row i+2     tile[2] += z0 * b0 + ...
#     w0 w1 w2 w3   row i+3     tile[3] += w0 * b0 + ...
# A column costs 16 multiply-adds for 8 loads and 4 stores: there is work while memory answers. A
# plain dot product costs 2 loads for each multiply-add.

def make_multiply_add(stride):
    """The step, compiled for panels and tiles whose rows lie `stride` numbers apart.

    LLVM makes AVX-512 or AVX2 of the innermost loop if it can see four things; without any one the
    speed is halved or worse. The stride is a constant when compiling (hence this function around
    it). The columns are a multiple of 16. No index is negative. There are only two base pointers,
    which it checks once for overlap."""
    one, two, three, four = U(stride), U(2 * stride), U(3 * stride), U(4 * stride)

    @njit(fastmath=FAST)
    def multiply_add(a, x, row_stride, depth_stride, depth, panel, b, tile, t, columns):
        """tile (4,columns) += a (4,depth) @ panel (depth,columns), which begin at indices t, x, b.
        columns is a multiple of 16; depths beyond a multiple of 4 are added one at a time."""
        down, d1, x, b, t = U(row_stride), U(depth_stride), U(x), U(b), U(t)
        d2, d3, d4 = d1 + d1, d1 + d1 + d1, d1 + d1 + d1 + d1
        y, z, w = x + down, x + down + down, x + down + down + down
        for _ in range(depth // 4):
            x0, x1, x2, x3 = a[x], a[x + d1], a[x + d2], a[x + d3]
            y0, y1, y2, y3 = a[y], a[y + d1], a[y + d2], a[y + d3]
            z0, z1, z2, z3 = a[z], a[z + d1], a[z + d2], a[z + d3]
            w0, w1, w2, w3 = a[w], a[w + d1], a[w + d2], a[w + d3]
            for j in range(U(columns) // U(16) * U(16)):  # LLVM sees that there is no remainder
                p, r = b + j, t + j
                b0, b1, b2, b3 = panel[p], panel[p + one], panel[p + two], panel[p + three]
                tile[r] += x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3
                tile[r + one] += y0 * b0 + y1 * b1 + y2 * b2 + y3 * b3
                tile[r + two] += z0 * b0 + z1 * b1 + z2 * b2 + z3 * b3
                tile[r + three] += w0 * b0 + w1 * b1 + w2 * b2 + w3 * b3
            x, y, z, w, b = x + d4, y + d4, z + d4, w + d4, b + four
        for _ in range(depth % 4):
            x0, y0, z0, w0 = a[x], a[y], a[z], a[w]
            for j in range(U(columns) // U(16) * U(16)):
                p, r = b + j, t + j
                tile[r] += x0 * panel[p]
                tile[r + one] += y0 * panel[p]
                tile[r + two] += z0 * panel[p]
                tile[r + three] += w0 * panel[p]
            x, y, z, w, b = x + d1, y + d1, z + d1, w + d1, b + one
    return multiply_add


_multiply_add = make_multiply_add(STRIDE)


@njit
def aligned(size, like):
    """Scratch that starts on a cache line (64 bytes), so that no load of a vector touches two."""
    scratch = np.empty(size + 16, like.dtype)
    return scratch[(-scratch.ctypes.data % 64) // scratch.itemsize:]


@njit
def transpose(source, x_step, rows, columns, target, y_step):
    """target (columns,rows) = source.T for source (rows,columns); steps lead from row to row.
    Blocks of 4 x 4 are turned in registers: loaded whole before any of them is stored."""
    a, b = source, target
    for r in range(0, rows - 3, 4):
        for c in range(0, columns - 3, 4):
            x0, y0 = U(r * x_step + c), U(c * y_step + r)
            x1, x2, x3 = x0 + U(x_step), x0 + U(2 * x_step), x0 + U(3 * x_step)
            y1, y2, y3 = y0 + U(y_step), y0 + U(2 * y_step), y0 + U(3 * y_step)
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
            b[c * y_step + r] = a[r * x_step + c]


# ---- Few rows, as in decoding: to read b takes the time. It is read once, in order, unpacked ----

@alone_and_threads
def few_rows(a, b, trans_b, out, accumulate, parts):
    """a (M,K) has few rows; each thread takes a stripe of columns of out."""
    (M, K), N = a.shape, out.shape[1]
    for part in prange(parts):
        j0, j1 = _cut(N, 16, part, parts), _cut(N, 16, part + 1, parts)
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


# ---- Orthogonalizing, as Muon does: a thread takes whole matrices, waits for no other ------------

def orthogonalize(x, shapes, coefficients, steps):
    """plain.orthogonalize. Given up: threads never share a matrix. Tiny ones are left to NumPy."""
    if np.min(shapes) <= FEW:
        return plain.orthogonalize(x, shapes, coefficients, steps)
    lengths = [np.sqrt((matrix * matrix).sum()) or 1 for matrix in plain.unflatten(x, shapes)]
    sizes = np.array(shapes)
    _orthogonalize(x, sizes, sizes.prod(axis=1).cumsum(), np.array(lengths, x.dtype),
                   *map(x.dtype.type, coefficients), steps)


@njit(parallel=True, cache=True)
def _orthogonalize(x, shapes, ends, lengths, a, b, c, steps):
    for s in prange(len(shapes)):
        M, K = shapes[s, 0], shapes[s, 1]
        matrix = x[ends[s] - M * K:ends[s]].reshape(M, K)
        y, n, tall = matrix / lengths[s], min(M, K), M > K
        z, square, factor = np.empty_like(y), np.empty((n, n), y.dtype), np.empty((n, n), y.dtype)
        for _ in range(steps):
            _rectangle(y, y, tall, not tall, square, False, True, 0, n, 0, n)
            for i in range(16, n, 16):  # the upper half mirrors the lower one
                transpose(square[i:].reshape(-1), n, min(16, n - i), i, square.reshape(-1)[i:], n)
            mixed = c * square
            for i in range(n):
                mixed[i, i] += b
            _rectangle(square, mixed, False, False, factor, False, False, 0, n, 0, n)
            for i in range(n):
                factor[i, i] += a
            if tall:
                _rectangle(y, factor, False, True, z, False, False, 0, M, 0, K)
            else:
                _rectangle(factor, y, False, False, z, False, False, 0, M, 0, K)
            y, z = z, y
        matrix[:, :] = y
