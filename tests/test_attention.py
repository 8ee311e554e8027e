"""Attention equals its plain NumPy twin, its backward equals central differences."""
import resource

import numba
import numpy as np
import pytest

from kernels.attention import attention, attention_backward, attention_forward, attention_step

# B, T, H, G, D: one number of everything; odd sizes; tiles of 64 cut short; groups; D above 64.
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 2, 1, 5), (1, 17, 3, 3, 8), (1, 64, 2, 2, 32), (2, 65, 6, 2, 48),
          (1, 130, 4, 1, 7), (1, 200, 3, 3, 70), (1, 67, 2, 1, 128)]


def plain(q, k, v):
    """The formula as it stands: o, p and the scores' scale, holding the whole T x T square."""
    T, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    s = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[3])
    s = np.where(np.tril(np.ones((T, T), bool)), s, -np.inf)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", p, v), p


def plain_backward(do, q, k, v):
    B, T, G, D = k.shape
    group = q.shape[2] // G
    k_all, v_all = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    o, p = plain(q, k, v)
    dp = np.einsum("bthd,bshd->bhts", do, v_all)
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) / np.sqrt(D)
    dk = np.einsum("bhts,bthd->bshd", ds, q).reshape(B, T, G, group, D).sum(axis=3)
    dv = np.einsum("bhts,bthd->bshd", p, do).reshape(B, T, G, group, D).sum(axis=3)
    return np.einsum("bhts,bshd->bthd", ds, k_all), dk, dv


def inputs(B, T, H, G, D, dtype=np.float64, seed=0):
    """q, k, v, do"""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((B, T, heads, D)).astype(dtype) for heads in (H, G, G, H)]


def both_ways(q, k, v, do):
    o, lse = np.empty_like(q), np.empty((q.shape[0], q.shape[2], q.shape[1]), q.dtype)
    attention_forward(q, k, v, o, lse)
    return o, lse, *attention_backward(do, q, k, v, o, lse)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_plain_formula(shape, dtype, tolerance):
    q, k, v, do = inputs(*shape)
    expected = plain(q, k, v)[0], *plain_backward(do, q, k, v)
    o, lse, *gradients = both_ways(*(x.astype(dtype) for x in (q, k, v, do)))
    for ours, theirs in zip((o, *gradients), expected):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert abs(ours - theirs).max() < tolerance * max(1, abs(theirs).max())
    assert np.array_equal(o, attention(*(x.astype(dtype) for x in (q, k, v))))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 5, 2, 1, 3), (1, 66, 4, 2, 2)])
def test_backward_equals_central_differences(shape):
    q, k, v, do = inputs(*shape)
    _, _, *gradients = both_ways(q, k, v, do)
    step, rng = 1e-5, np.random.default_rng(1)
    for x, dx in zip((q, k, v), gradients):
        for place in rng.choice(x.size, min(x.size, 12), replace=False):
            saved = x.flat[place]
            x.flat[place] = saved + step
            up = (attention(q, k, v) * do).sum()
            x.flat[place] = saved - step
            down = (attention(q, k, v) * do).sum()
            x.flat[place] = saved
            assert abs((up - down) / (2 * step) - dx.flat[place]) < 1e-6 * abs(dx).max() + 1e-9


def test_large_scores_neither_overflow_nor_vanish():
    q, k, v, do = inputs(1, 70, 2, 1, 16, np.float32)
    q *= 60  # scores up to some 600: exp of them is beyond float32, and of most differences 0
    expected = plain(*(x.astype(np.float64) for x in (q, k, v)))[0]
    o, _, *gradients = both_ways(q, k, v, do)
    assert abs(o - expected).max() < 1e-3  # float32 scores of 600 are good to 4e-5 each
    assert all(np.isfinite(dx).all() for dx in gradients)


@pytest.mark.parametrize("D", [6, 70])
def test_reads_and_writes_slices_of_one_fused_buffer(D):
    B, T, H, G = 2, 70, 4, 2
    rng = np.random.default_rng(0)
    fused = rng.standard_normal((B, T, H + 2 * G, D)).astype(np.float32)
    q, k, v = fused[:, :, :H], fused[:, :, H:H + G], fused[:, :, H + G:]
    wide = np.full((B, T, H + 1, D), 7, np.float32)
    o, lse = wide[:, :, :H], np.empty((B, H, T), np.float32)
    attention_forward(q, k, v, o, lse)
    assert np.array_equal(o, attention(q.copy(), k.copy(), v.copy()))
    assert (wide[:, :, H] == 7).all()
    do = rng.standard_normal((B, T, H, D)).astype(np.float32)
    dfused = np.full((B, T, H + 2 * G + 1, D), 7, np.float32)
    dq, dk, dv = dfused[:, :, :H], dfused[:, :, H:H + G], dfused[:, :, H + G:-1]
    attention_backward(do, q, k, v, o, lse, dq, dk, dv)
    _, _, *expected = both_ways(q.copy(), k.copy(), v.copy(), do)
    for ours, theirs in zip((dq, dk, dv), expected):
        assert np.array_equal(ours, theirs)
    assert (dfused[:, :, -1] == 7).all()


def test_last_axis_must_be_contiguous():
    q, k, v, _ = inputs(1, 4, 1, 1, 8)
    with pytest.raises(ValueError, match="contiguous"):
        attention(q[..., ::2], k[..., ::2], v[..., ::2])
    with pytest.raises(ValueError, match="dtype"):
        attention(q, k.astype(np.float32), v)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", "qkv")
@pytest.mark.parametrize("place", [0, 37, 99])
def test_nan_shows_and_never_reaches_earlier_rows(which, bad, place):
    arrays = dict(zip("qkv", inputs(1, 150, 2, 2, 12, np.float32)))
    good = attention(**arrays)
    arrays[which][0, place, 1, 3] = bad
    o = attention(**arrays)
    assert np.array_equal(o[:, :, 0], good[:, :, 0])  # the other head
    assert np.allclose(o[:, :place, 1], good[:, :place, 1], atol=1e-6)
    if np.isnan(bad):
        after = o[0, place:place + 1, 1] if which == "q" else o[0, place:, 1]
        after = after[:, 3] if which == "v" else after
        assert np.isnan(after).all()


def test_future_tokens_change_nothing():
    q, k, v, _ = inputs(1, 140, 2, 1, 16, np.float32)
    before = attention(q, k, v)
    k[:, 100:], v[:, 100:], q[:, 100:] = 1e4, 1e30, 50
    assert np.array_equal(attention(q, k, v)[:, :100], before[:, :100])


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("shape", [(3, 70, 2, 1, 8), (1, 129, 6, 2, 20), (1, 9, 1, 1, 4)])
def test_same_bits_with_one_or_two_threads(shape):
    arrays, results, threads = inputs(*shape, np.float32), [], numba.get_num_threads()
    try:
        for n in (1, 2):
            numba.set_num_threads(n)
            results.append(both_ways(*arrays))
    finally:
        numba.set_num_threads(threads)
    for one, two in zip(*results):
        assert np.array_equal(one, two)


def test_memory_grows_with_time_not_with_its_square():
    both_ways(*inputs(1, 64, 1, 1, 16, np.float32))  # compile first
    arrays = inputs(1, 8192, 1, 1, 16, np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    both_ways(*arrays)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown_bytes < 8192 * 8192 * 4 / 4  # a quarter of one T x T square


@pytest.mark.parametrize("N, H, G, D", [(1, 1, 1, 1), (1, 8, 4, 8), (3, 4, 4, 48), (9, 6, 2, 20)])
def test_step_equals_the_last_row_of_attention(N, H, G, D):
    rng, S, B = np.random.default_rng(0), 40, N + 2
    k, v = (rng.standard_normal((B, G, S, D)).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((N, H, D)).astype(np.float32)
    lengths, rows = rng.integers(1, S + 1, N), rng.permutation(B)[:N]
    lengths[0] = 1
    o = attention_step(q, k, v, lengths, rows)
    for n, (length, row) in enumerate(zip(lengths, rows)):
        queries = np.zeros((1, length, H, D), np.float32)
        queries[0, -1] = q[n]
        keys, values = (x[row:row + 1, :, :length].transpose(0, 2, 1, 3) for x in (k, v))
        assert np.allclose(o[n], plain(queries, keys, values)[0][0, -1], atol=1e-6)
    out = np.empty_like(o)
    assert attention_step(q, k, v, lengths, rows, out) is out and np.array_equal(out, o)


def test_step_ignores_what_lies_beyond_the_length():
    q, k, v = (np.ones(shape, np.float32) for shape in ((1, 2, 4), (1, 2, 8, 4), (1, 2, 8, 4)))
    k[:, :, 5:], v[:, :, 5:] = np.nan, np.nan
    assert (attention_step(q, k, v, np.array([5]), np.array([0])) == 1).all()
    assert np.isnan(attention_step(q, k, v, np.array([6]), np.array([0]))).all()


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(2, 128, 4, 4, 32), (1, 257, 6, 2, 64), (2, 33, 2, 1, 24)])
def test_equals_torch(shape):
    torch = pytest.importorskip("torch")
    q, k, v, do = inputs(*shape, np.float32)
    tq, tk, tv = (torch.tensor(x).transpose(1, 2).requires_grad_() for x in (q, k, v))
    to = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, is_causal=True,
                                                          enable_gqa=True)
    theirs = to, *torch.autograd.grad(to, (tq, tk, tv), torch.tensor(do).transpose(1, 2))
    o, _, *gradients = both_ways(q, k, v, do)
    for ours, their in zip((o, *gradients), theirs):
        their = their.detach().transpose(1, 2).numpy()
        assert abs(ours - their).max() < 1e-5 * max(1, abs(their).max())
