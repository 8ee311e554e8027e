"""Every kernel against its plain NumPy twin, every backward against central differences."""
import numba
import numpy as np
import pytest

from conftest import differences, relative_error
from kernels import (adamw, matmul, rmsnorm, rmsnorm_backward, rope, scatter_add,
                     softmax_cross_entropy, store_kv, sum_of_squares, swiglu, swiglu_backward)
from kernels import rows

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}
both = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def numbers(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- matmul ----

@both
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_matmul_is_numpys_on_odd_sizes(dtype, trans_a, trans_b):
    rng = np.random.default_rng(2)
    sizes = [(1, 1, 1), (4, 4, 16), (5, 3, 17), (9, 1, 1), (1, 700, 3), (8, 65, 300), (9, 257, 513),
             (130, 258, 255), (4, 1000, 260)] + [tuple(rng.integers(1, 90, 3)) for _ in range(40)]
    for M, K, N in sizes:
        a = numbers((K, M) if trans_a else (M, K), dtype, M)
        b = numbers((N, K) if trans_b else (K, N), dtype, N + 1)
        start = numbers((M, N), dtype, 5)
        expected = (a.T if trans_a else a).astype(float) @ (b.T if trans_b else b).astype(float)
        scale = TOLERANCE[dtype] * np.sqrt(K)
        assert np.abs(matmul(a, b, trans_a, trans_b) - expected).max() < scale, (M, K, N)
        out = start.copy()
        matmul(a, b, trans_a, trans_b, out=out, accumulate=True)
        assert np.abs(out - start - expected).max() < scale, (M, K, N)
        matmul(a, b, trans_a, trans_b, out=out)
        assert np.abs(out - expected).max() < scale, (M, K, N)


def test_matmul_of_nothing_is_zero():
    assert (matmul(np.ones((20, 0)), np.ones((0, 5))) == 0).all()
    assert (matmul(np.ones((2, 0)), np.ones((0, 5))) == 0).all()


def test_matmul_keeps_nan_in_its_row_and_infinity_infinite():
    a, b = np.ones((12, 20), np.float32), np.ones((20, 300), np.float32)
    a[5, 7], a[9, 3] = np.nan, np.inf
    out = matmul(a, b)
    assert np.isnan(out[5]).all() and np.isposinf(out[9]).all()
    assert (np.delete(out, [5, 9], axis=0) == 20).all()


def test_matmul_names_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="3x4 by 5x2"):
        matmul(np.ones((3, 4)), np.ones((5, 2)))


@pytest.fixture
def threads():
    """Runs a function with 1 and with 2 threads."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("this machine has one core")
    before = numba.get_num_threads()

    def run(f):
        out = []
        for n in (1, 2):
            numba.set_num_threads(n)
            out.append(f())
        numba.set_num_threads(before)
        return out
    yield run
    numba.set_num_threads(before)


@pytest.mark.parametrize("M,K,N", [(300, 128, 77), (77, 600, 300), (3, 400, 900), (64, 64, 64)])
def test_matmul_gives_the_same_bits_with_one_or_two_threads(threads, M, K, N):
    a, b = numbers((M, K), np.float32), numbers((N, K), np.float32, 1)
    one, two = threads(lambda: matmul(a, b, trans_b=True))
    assert (one == two).all()


# ---- rows ----

def test_exp_is_exact_to_float32():
    @numba.njit
    def over(x, out):
        for i in range(x.size):
            out[i] = rows.exp(x[i])
    x = np.linspace(-87, 88, 200_001).astype(np.float32)
    out = np.empty_like(x)
    over(x, out)
    assert np.abs(out / np.exp(x.astype(float)) - 1).max() < 1.5e-7
    edges = np.array([np.nan, np.inf, -np.inf, 0], np.float32)
    over(edges, edges)
    assert np.isnan(edges[0]) and edges[1] > 1e38 and edges[2] < 2e-38 and edges[3] == 1


def plain_rmsnorm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


@both
@pytest.mark.parametrize("R,C", [(1, 1), (3, 5), (200, 33)])
def test_rmsnorm(dtype, R, C):
    x, weight, n = numbers((R, C), dtype), numbers(C, dtype, 1), np.empty((R, C), dtype)
    rmsnorm(x, weight, 1e-5, n)
    assert relative_error(n, plain_rmsnorm(x.astype(float), weight, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("R,C", [(1, 1), (3, 5), (150, 7)])
def test_rmsnorm_backward(R, C):
    x, weight, dn = numbers((R, C), float), numbers(C, float, 1), numbers((R, C), float, 2)
    dx, dweight = np.ones((R, C)), np.ones(C)  # both are added to
    rmsnorm_backward(dn, x, weight, 1e-5, dx, dweight)

    def f():
        return (plain_rmsnorm(x, weight, 1e-5) * dn).sum()
    places = range(0, R * C, max(1, R * C // 40))
    assert relative_error(dx.flat[places] - 1, differences(f, x, places)) < 1e-6
    assert relative_error(dweight - 1, differences(f, weight, range(C))) < 1e-6


@both
def test_rope_turns_halves_and_back(dtype):
    R, H, G, D = 11, 3, 2, 6
    qkv, positions = numbers((R, H + 2 * G, D), dtype), np.arange(R) % 4
    angles = np.outer(np.arange(4), 100.0 ** (-np.arange(0, D, 2) / D))
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    turned = qkv.copy()
    rope(turned, H + G, positions, cos, sin, 1)
    points = qkv[..., :D // 2] + 1j * qkv[..., D // 2:]
    expected = points * np.exp(1j * angles[positions])[:, None]
    assert relative_error(turned[:, :H + G, :D // 2], expected.real[:, :H + G]) < TOLERANCE[dtype]
    assert relative_error(turned[:, :H + G, D // 2:], expected.imag[:, :H + G]) < TOLERANCE[dtype]
    assert (turned[:, H + G:] == qkv[:, H + G:]).all()
    rope(turned, H + G, positions, cos, sin, -1)
    assert relative_error(turned, qkv) < TOLERANCE[dtype]


def test_store_kv_files_keys_and_values():
    qkv = numbers((2, 4 + 2 * 3, 5), float)
    k_cache, v_cache = np.zeros((4, 3, 7, 5)), np.zeros((4, 3, 7, 5))
    store_kv(qkv, k_cache, v_cache, np.array([3, 1]), np.array([6, 0]))
    assert (k_cache[3, :, 6] == qkv[0, 4:7]).all() and (v_cache[1, :, 0] == qkv[1, 7:]).all()
    assert np.count_nonzero(k_cache) == 2 * 15


def plain_swiglu(gu):
    g, u = np.split(gu, 2, axis=1)
    return g / (1 + np.exp(-g)) * u


@both
@pytest.mark.parametrize("R,F", [(1, 1), (4, 7), (50, 19)])
def test_swiglu(dtype, R, F):
    gu, a = numbers((R, 2 * F), dtype) * 5, np.empty((R, F), dtype)
    swiglu(gu, a)
    assert relative_error(a, plain_swiglu(gu.astype(float))) < TOLERANCE[dtype]


def test_swiglu_backward_and_its_second_gift():
    gu, da = numbers((30, 14), float), numbers((30, 7), float, 1)
    kept, gradient, a = gu.copy(), gu.copy(), da.copy()
    swiglu_backward(gradient, a)
    expected = differences(lambda: (plain_swiglu(kept) * da).sum(), kept, range(kept.size))
    assert relative_error(gradient.ravel(), expected) < 1e-6
    assert relative_error(a, plain_swiglu(gu)) < 1e-12


@both
def test_softmax_cross_entropy(dtype):
    logits, targets = numbers((9, 23), dtype) * 3, np.arange(9) * 2
    weights, losses = np.linspace(0, 1, 9).astype(dtype), np.empty(9, dtype)
    p = np.exp(logits.astype(float))
    p /= p.sum(1, keepdims=True)
    gradient = logits.copy()
    softmax_cross_entropy(gradient, targets, weights, losses)
    assert relative_error(losses, -np.log(p[range(9), targets])) < TOLERANCE[dtype]
    assert relative_error(gradient, (p - np.eye(23)[targets]) * weights[:, None]) < TOLERANCE[dtype]


def test_softmax_cross_entropy_of_huge_logits_and_of_nan():
    logits = np.array([[1e4, -1e4, 0], [0, np.nan, 1]], np.float32)
    losses = np.empty(2, np.float32)
    softmax_cross_entropy(logits, np.array([1, 0]), np.ones(2, np.float32), losses)
    assert losses[0] == 2e4 and np.isnan(losses[1]) and np.isnan(logits[1]).all()


def test_scatter_add_counts_repeats():
    dx, ids, dembed = numbers((50, 19), float), np.arange(50) % 7, np.zeros((9, 19))
    scatter_add(dx, ids, dembed)
    expected = np.zeros((9, 19))
    np.add.at(expected, ids, dx)
    assert relative_error(dembed, expected) < 1e-12


@both
def test_adamw_follows_the_paper(dtype):
    n, n_decayed, lr, b1, b2, eps, decay = 70_001, 66_000, 0.01, 0.9, 0.95, 1e-8, 0.1
    p, g = numbers(n, dtype), numbers(n, dtype, 1)
    m, v = np.zeros(n, dtype), np.zeros(n, dtype)
    theta, em, ev = p.astype(float), np.zeros(n), np.zeros(n)
    for step in (1, 2, 3):
        adamw(p, g, m, v, 0.5, lr, b1, b2, eps, decay, n_decayed, step)
        half = 0.5 * g.astype(float)
        em, ev = b1 * em + (1 - b1) * half, b2 * ev + (1 - b2) * half**2
        theta[:n_decayed] -= lr * decay * theta[:n_decayed]
        theta -= lr * (em / (1 - b1**step)) / (np.sqrt(ev / (1 - b2**step)) + eps)
    assert relative_error(p, theta) < TOLERANCE[dtype]


def test_sum_of_squares_is_float64():
    x = np.full(300_001, 1e-3, np.float32)
    assert abs(sum_of_squares(x) / (300_001 * float(np.float32(1e-3)) ** 2) - 1) < 1e-12


def test_rows_give_the_same_bits_with_one_or_two_threads(threads):
    x, dn = (numbers((333, 48), np.float32, seed) for seed in (0, 2))
    weight = numbers(48, np.float32, 1)

    def backward():
        dx, dweight = np.zeros_like(x), np.zeros_like(weight)
        rmsnorm_backward(dn, x, weight, 1e-5, dx, dweight)
        return np.concatenate([dx.ravel(), dweight, [sum_of_squares(np.tile(x.ravel(), 20))]])
    one, two = threads(backward)
    assert (one == two).all()
