"""The fast kernels equal kernels/plain.py, and plain.py's backwards equal central differences."""
import doctest
import os
import shutil
import subprocess
import sys

import numba
import numpy as np
import pytest

import kernels
from conftest import differences, relative_error
from kernels import plain, rows

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


def numbers(dtype, exact=np.float64):
    """numbers(dtype)(3, 5) is a (3,5) array; rounded to `exact`, it is the same for two dtypes."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(exact).astype(dtype)


# ---- One function an operation: runs it from module k on arrays of make, returns the results ----

def matmul(k, make, M, K, N):
    found = []
    for trans_a, trans_b in ((False, False), (False, True), (True, False), (True, True)):
        pair = make(*(K, M) if trans_a else (M, K)), make(*(N, K) if trans_b else (K, N))
        out = make(M, N)
        found.append(k.matmul(*pair, trans_a, trans_b))
        assert k.matmul(*pair, trans_a, trans_b, out=out, accumulate=True) is out
        found += out.copy(), k.matmul(*pair, trans_a, trans_b, out=out)
    return found


def orthogonalize(k, make, N, rows, columns):
    shapes, x = [(rows, columns)] * N + [(columns, rows)], make((N + 1) * rows * columns)
    x[:rows * columns] = 0  # has no direction
    k.orthogonalize(x, shapes, (3.4445, -4.7750, 2.0315), 3)
    return [x]


def rmsnorm(k, make, R, C):
    x, weight, n, dx, dweight = make(R, C), make(C), make(R, C), make(R, C), make(C)
    k.rmsnorm(x, weight, 1e-5, n)
    k.rmsnorm_backward(make(R, C), x, weight, 1e-5, dx, dweight)
    return n, dx, dweight


def rope(k, make, R, heads, D):
    qkv, angles = make(R, heads, D), make(4, D // 2)
    how = 2 * heads // 3, np.arange(R) % 4, np.cos(angles), np.sin(angles)
    k.rope(qkv, *how, 1)
    back = qkv.copy()
    k.rope(back, *how, -1)
    return qkv, back


def attention(k, make, B, T, H, G, D):
    qkv, do = make(B, T, H + 2 * G, D), make(B, T, H, D)
    o, lse, dqkv = np.empty_like(do), np.empty((B, H, T), do.dtype), np.empty_like(qkv)
    k.fused_attention_forward(qkv, H, o, lse)
    k.fused_attention_backward(do, qkv, H, o, lse, dqkv)
    q, key, v = (x.copy() for x in plain.split_heads(qkv, H))
    assert np.array_equal(o, k.attention(q, key, v))
    assert np.array_equal(dqkv, np.concatenate(k.attention_backward(do, q, key, v), axis=2))
    return o, lse, dqkv


def decoding(k, make, N, H, G, D):
    qkv, k_cache, v_cache = make(N, H + 2 * G, D), make(N + 2, G, 9, D), make(N + 2, G, 9, D)
    positions, texts, o = np.arange(N) % 9, np.arange(N)[::-1] + 1, make(N, H, D)
    k.store_kv(qkv, k_cache, v_cache, texts, positions)
    k.attention_step(qkv[:, :H], k_cache, v_cache, positions + 1, texts, o)
    return k_cache, v_cache, o


def swiglu(k, make, R, F):
    gu, a, da = 5 * make(R, 2 * F), make(R, F), make(R, F)
    k.swiglu(gu, a)
    k.swiglu_backward(gu, da)
    return a, gu, da


def softmax_cross_entropy(k, make, R, V):
    logits, losses, weights = 3 * make(R, V), make(R), make(R)
    k.softmax_cross_entropy(logits, np.arange(R) * 2 % V, weights, losses)
    return losses, logits


def scatter_add(k, make, R, C):
    dembed = make(9, C)
    k.scatter_add(make(R, C), np.arange(R) % 7, dembed)
    return (dembed,)


def adamw(k, make, n):
    p, m1, m2 = make(n), make(n), make(n)**2
    for step in (1, 2, 3):
        k.adamw(p, make(n), m1, m2, 0.5, 0.01, 0.9, 0.95, 1e-8, 0.1, n * 2 // 3, step)
    return p, m1, m2, k.sum_of_squares(p)


def nesterov(k, make, n):
    grads, m1 = make(n), make(n)
    k.nesterov(grads, m1, 0.5, 0.95)
    return grads, m1


CASES = [(run, sizes) for run, *every in [
    (matmul, (1, 1, 1), (4, 4, 16), (5, 3, 17), (9, 1, 1), (1, 700, 3), (8, 65, 300),
     (9, 257, 513), (130, 258, 255), (4, 999, 260), (77, 600, 300), (20, 0, 5), (2, 0, 5)),
    (orthogonalize, (1, 1, 1), (3, 3, 20), (4, 33, 17), (2, 128, 44), (1, 277, 300)),
    (rmsnorm, (1, 1), (3, 5), (333, 48), (2000, 33)),
    (rope, (1, 3, 2), (11, 7, 6), (700, 12, 8)),
    (attention, (1, 1, 1, 1, 1), (2, 3, 2, 1, 5), (1, 17, 3, 3, 8), (1, 64, 2, 2, 32),
     (2, 65, 6, 2, 48), (1, 130, 4, 1, 2), (1, 200, 3, 3, 70), (1, 67, 8, 2, 128),
     (3, 70, 1, 1, 256)),
    (decoding, (1, 1, 1, 2), (1, 8, 4, 8), (3, 4, 4, 48), (12, 6, 2, 20)),
    (swiglu, (1, 1), (4, 7), (5000, 19)),
    (softmax_cross_entropy, (1, 1), (9, 23), (40, 3000)),
    (scatter_add, (1, 1), (50, 19), (900, 40)),
    (adamw, (1,), (70_001,)), (nesterov, (1,), (70_001,))] for sizes in every]
every_case = pytest.mark.parametrize(
    "run, sizes", CASES, ids=lambda x: x.__name__ if callable(x) else "x".join(map(str, x)))


@pytest.mark.parametrize("k, dtype", [
    (kernels, np.float32), (kernels, np.float64), (plain, np.float32)],
    ids=["fast32", "fast64", "plain32"])
@every_case
def test_equals_plain_in_float64(run, sizes, k, dtype):
    """Each operation writes what plain.py finds in float64 for the same (rounded) numbers."""
    found = run(k, numbers(dtype), *sizes)
    expected = run(plain, numbers(np.float64, exact=dtype), *sizes)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.isscalar(ours) or ours.dtype == dtype
        if np.size(ours):
            assert relative_error(ours, theirs) < TOLERANCE[dtype]


@every_case
def test_same_bits_with_one_or_two_threads(run, sizes):
    """Threads write disjoint outputs, and sums are made in a fixed order."""
    before, found = numba.get_num_threads(), []
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("this machine has one core")
    for n in (1, 2):
        numba.set_num_threads(n)
        found.append(run(kernels, numbers(np.float32), *sizes))
    numba.set_num_threads(before)
    assert all(map(np.array_equal, *found))


# ---- plain.py: examples, and every backward against central differences in float64 ----

def test_examples_in_plain_are_true():
    """The numbers beside attention, rmsnorm_backward and the loss are what the code computes."""
    result = doctest.testmod(plain)
    assert result.attempted >= 8 and result.failed == 0


def check_gradients(loss, *pairs):
    """Each pair is an array that loss() reads, and the gradient to prove for it."""
    for x, dx in pairs:
        some = range(0, x.size, max(1, x.size // 40))
        assert relative_error(dx.ravel()[some], differences(loss, x, some)) < 1e-6


def written(f, like, *inputs):
    """What f(*inputs, out) writes to an array out that is like `like`."""
    out = np.empty_like(like)
    f(*inputs, out)
    return out


def rotated(x, sign):
    """rope of the first two of three heads x (R,3,D)."""
    x, angles = x.copy(), np.linspace(0, 3, 2 * x.shape[2]).reshape(4, -1)
    plain.rope(x, 2, np.arange(len(x)) % 4, np.cos(angles), np.sin(angles), sign)
    return x


@pytest.mark.parametrize("R, C", [(1, 1), (3, 5), (15, 7)])
def test_backwards_of_rows(R, C):
    """matmul's two rules, rmsnorm, SwiGLU, rope and the embedding, for a loss sum(dy * y)."""
    make = numbers(np.float64)
    x, w, dy = make(R, C), make(4, C), make(R, 4)
    check_gradients(lambda: (plain.matmul(x, w, trans_b=True) * dy).sum(),
                    (x, plain.matmul(dy, w)), (w, plain.matmul(dy, x, trans_a=True)))

    weight, dy, dx, dweight = make(C), make(R, C), np.zeros((R, C)), np.zeros(C)
    plain.rmsnorm_backward(dy, x, weight, 1e-5, dx, dweight)
    check_gradients(lambda: (written(plain.rmsnorm, x, x, weight, 1e-5) * dy).sum(),
                    (x, dx), (weight, dweight))

    gu = make(R, 2 * C)
    dgu, a = gu.copy(), dy.copy()
    plain.swiglu_backward(dgu, a)
    assert np.allclose(a, written(plain.swiglu, dy, gu))  # a is the forward's output again
    check_gradients(lambda: (written(plain.swiglu, dy, gu) * dy).sum(), (gu, dgu))

    qkv, dqkv = make(R, 3, 2 * C), make(R, 3, 2 * C)
    check_gradients(lambda: (rotated(qkv, 1) * dqkv).sum(), (qkv, rotated(dqkv, -1)))

    embed, ids, dembed = make(6, C), np.arange(R) % 4, np.zeros((6, C))
    plain.scatter_add(dy, ids, dembed)
    check_gradients(lambda: (embed[ids] * dy).sum(), (embed, dembed))


def heads(make, B, T, H, G, D):
    """q, k, v and do."""
    return make(B, T, H, D), make(B, T, G, D), make(B, T, G, D), make(B, T, H, D)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 5, 2, 1, 3), (1, 9, 4, 2, 2)])
def test_backward_of_attention(shape):
    """dq, dk and dv, also where query heads share a key/value head, for a loss sum(do * o)."""
    *qkv, do = heads(numbers(np.float64), *shape)
    check_gradients(lambda: (plain.attention(*qkv) * do).sum(),
                    *zip(qkv, plain.attention_backward(do, *qkv)))


def test_backward_of_the_loss():
    """The logits' gradient of sum(weights * losses)."""
    make = numbers(np.float64)
    logits, weights, targets = make(5, 7), make(5), np.arange(5)

    def loss(z):
        return written(plain.softmax_cross_entropy, weights, z, targets, weights) @ weights
    gradient = logits.copy()
    loss(gradient)  # in place
    check_gradients(lambda: loss(logits.copy()), (logits, gradient))


def test_rope_depends_on_distance_only():
    """q at position 5 and k at 3 score like q at 2 and k at 0."""
    (q, key), angles = numbers(np.float64)(2, 4), np.outer(np.arange(6), [1.0, 0.1])
    pairs = np.array([q, key, q, key]).reshape(4, 1, 4)
    plain.rope(pairs, 1, np.array([5, 3, 2, 0]), np.cos(angles), np.sin(angles), 1)
    assert abs(pairs[0] @ pairs[1].T - pairs[2] @ pairs[3].T) < 1e-12


# ---- Extreme numbers: the right result; a NaN always shows ----

modules = pytest.mark.parametrize("k", [kernels, plain], ids=["fast", "plain"])


def test_exp_is_exact_to_float32():
    """exp's error is below 1.5e-7 on its whole range; NaN stays, infinities end at the edges."""
    over = numba.vectorize(lambda x: rows.exp(x))
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    assert np.abs(over(x) / np.exp(x.astype(float)) - 1).max() < 1.5e-7
    edges = over(np.array([np.nan, np.inf, -np.inf, 0], np.float32))
    assert np.isnan(edges[0]) and edges[1] > 1e38 and edges[2] < 2e-38 and edges[3] == 1


@modules
def test_huge_numbers_and_nan(k):
    """NaN shows in its row only, infinity stays, 1e4 does not overflow, weight 0 counts nothing."""
    a, b = np.ones((12, 20), np.float32), np.ones((20, 300), np.float32)
    a[5, 7], a[9, 3] = np.nan, np.inf
    out = k.matmul(a, b)
    assert np.isnan(out[5]).all() and np.isposinf(out[9]).all()
    assert (np.delete(out, [5, 9], axis=0) == 20).all()

    logits = np.array([[1e4, -1e4, 0], [0, np.nan, 1], [-1e4, 1e4, 1e4]], np.float32)
    losses = np.empty(3, np.float32)
    k.softmax_cross_entropy(logits, np.array([1, 0, 0]), np.array([1, 1, 0], np.float32), losses)
    assert losses[0] == 2e4 and np.isnan(losses[1]) and np.isnan(logits[1]).all()
    assert np.isfinite(logits[[0, 2]]).all() and (logits[2] == 0).all()

    gu, a, da = (np.array([x], np.float32) for x in ([1e4, -1e4, 2, 3], [0, 0], [1, 1]))
    k.swiglu(gu, a)
    k.swiglu_backward(gu, da)
    assert np.allclose(a, [[2e4, 0]], atol=1e-20) and np.allclose(gu, [[2, 0, 1e4, 0]], atol=1e-20)


@modules
def test_attention_of_large_scores_and_of_later_tokens(k):
    """Scores of some 600 neither overflow nor vanish; later tokens change no bit, however large."""
    q, key, v, do = heads(numbers(np.float32), 1, 140, 2, 1, 16)
    q *= 60
    before = k.attention(q, key, v)
    expected = plain.attention(*(x.astype(np.float64) for x in (q, key, v)))
    assert abs(before - expected).max() < 1e-3  # such scores are good to 4e-5 each
    assert all(np.isfinite(dx).all() for dx in k.attention_backward(do, q, key, v))
    key[:, 100:], v[:, 100:], q[:, 100:] = 1e4, 1e30, 50
    assert np.array_equal(k.attention(q, key, v)[:, :100], before[:, :100])


@modules
@pytest.mark.parametrize("which", "qkv")
def test_nan_shows_in_attention(k, which, position=37):
    """A NaN in q shows at its position, in k and v at all from there on; the other head stays."""
    make = numbers(np.float32)
    arrays = {name: make(1, 150, 2, 12) for name in "qkv"}
    good = k.attention(*arrays.values())
    arrays[which][0, position, 1, 3] = np.nan
    o = k.attention(*arrays.values())
    shown = o[0, position:position + 1, 1] if which == "q" else o[0, position:, 1]
    assert np.isnan(shown[:, 3] if which == "v" else shown).all()
    assert np.array_equal(o[:, :, 0], good[:, :, 0])
    if k is kernels:  # plain.py multiplies a masked 0 by NaN, which is NaN at all positions
        assert np.allclose(o[:, :position - 15, 1], good[:, :position - 15, 1], atol=1e-6)


@modules
def test_step_ignores_what_lies_beyond_the_length(k):
    """What a cache holds behind a text is never read; a NaN within the text shows."""
    q, key, v, o = (np.ones(shape, np.float32)
                    for shape in ((2, 2, 4), (1, 2, 8, 4), (1, 2, 8, 4), (2, 2, 4)))
    key[:, :, 5:], v[:, :, 5:] = np.nan, np.nan
    k.attention_step(q, key, v, np.array([5, 6]), np.array([0, 0]), o)
    assert (o[0] == 1).all() and np.isnan(o[1]).all()


@modules
def test_shapes_that_do_not_fit_are_named(k):
    """A ValueError names what matmul and attention were given: kernels don't check bounds."""
    with pytest.raises(ValueError, match="3x4 by 5x2"):
        k.matmul(np.ones((3, 4)), np.ones((5, 2)))
    qkv, o, lse = np.ones((1, 4, 4, 8)), np.ones((1, 4, 2, 8)), np.ones((1, 2, 4))
    for n_heads, wrong, message in ((2, qkv[:, :, :2], "contiguous"), (3, o, "4 heads"),
                                    (2, o.astype(np.float32), "float32")):
        with pytest.raises(ValueError, match=message):
            kernels.fused_attention_forward(qkv, n_heads, wrong, lse)


def test_attention_needs_no_square_of_memory():
    """8,192 tokens, forward and backward, in 100 MB; their T x T square alone is 268 MB."""
    code = """if True:
        import numpy as np, resource, kernels
        make = lambda T: np.ones((1, T, 1, 16), np.float32)
        kernels.attention_backward(*[make(64)] * 4)
        with open("/proc/self/statm") as f:
            used = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
        kernels.attention_backward(*[make(8192)] * 4)
        try:
            np.empty((8192, 8192), np.float32)
        except MemoryError:
            print("the limit works")"""
    assert run(code) == "the limit works\n"


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(2, 128, 4, 4, 32), (1, 257, 6, 2, 64), (2, 33, 2, 1, 24)])
def test_attention_equals_torch(shape):
    """The same output and gradients as PyTorch's scaled_dot_product_attention."""
    torch = pytest.importorskip("torch")
    q, k, v, do = heads(numbers(np.float32), *shape)
    tq, tk, tv = (torch.tensor(x).transpose(1, 2).requires_grad_() for x in (q, k, v))
    to = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, is_causal=True,
                                                          enable_gqa=True)
    theirs = to, *torch.autograd.grad(to, (tq, tk, tv), torch.tensor(do).transpose(1, 2))
    ours = kernels.attention(q, k, v), *kernels.attention_backward(do, q, k, v)
    for x, y in zip(ours, theirs):
        assert relative_error(x, y.detach().transpose(1, 2).numpy()) < 1e-5


# ---- Sampling ----

def sample(k, logits, number, temperature=1.0, top_k=0, top_p=1.0):
    tokens, logprobs = np.empty(len(logits), np.int64), np.empty(len(logits), np.float32)
    k.sample_tokens(logits, temperature, top_k, top_p, number, tokens, logprobs)
    return tokens, logprobs


@pytest.mark.parametrize("V", [1, 2, 40])
@pytest.mark.parametrize("how", [
    (0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (0.5, 3, 0.5), (1.0, 99, 0.0)])
def test_sampler_equals_plain(how, V):
    """The same tokens and logprobs for any temperature, top_k and top_p."""
    logits, number = 3 * numbers(np.float32)(500, V), np.random.default_rng(1).random(500)
    tokens, logprobs = sample(kernels, logits, number, *how)
    expected = sample(plain, logits, number, *how)
    assert np.array_equal(tokens, expected[0]) and np.allclose(logprobs, expected[1], atol=2e-6)


def test_keep_highest_keeps_all_that_tie():
    """The third highest of these stands at 3 and 4: both stay."""
    weights = np.array([0.5, 1, 0, 0.25, 0.25, 1e-30], np.float32)
    rows.keep_highest(weights, np.ones(6, np.float32), np.float32(3))
    assert weights.tolist() == [0.5, 1, 0, 0.25, 0.25, 0]


@modules
def test_sampler_never_takes_what_is_ruled_out(k):
    """A logit of -inf is never sampled, whatever the number; logits of +-1e4 work; NaN shows."""
    row = np.array([-np.inf, 1e4, -np.inf, 1e4, -1e4, -np.inf], np.float32)
    number = np.array([0.0, 0.499999, 0.5, 1 - 2**-53])
    tokens, logprobs = sample(k, np.tile(row, (4, 1)), number)
    assert tokens.tolist() == [1, 1, 3, 3] and np.allclose(logprobs, np.log(0.5))
    row[2] = np.nan
    tokens, logprobs = sample(k, row[None], number[:1])
    assert 0 <= tokens[0] < 6 and np.isnan(logprobs[0])


# ---- Where machine code is kept ----

def run(code, folder=HERE, **environment):
    """What python -c code prints, in a folder; without our own cache folder in the environment."""
    inherited = {name: x for name, x in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, text=True, capture_output=True,
                          env=inherited | {name: str(x) for name, x in environment.items()})
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = ("import os; from kernels.caller import g; "
        "print(g(), 'kept' if g.stats.cache_hits else 'new', os.environ['NUMBA_CACHE_DIR'])")


@pytest.fixture
def copy(tmp_path):
    """A copy of kernels/ with a kernel in caller.py that calls one in callee.py."""
    shutil.copytree(os.path.join(HERE, "kernels"), tmp_path / "kernels",
                    ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "kernels/callee.py").write_text("import numba\nf = numba.njit(lambda: 1)\n")
    (tmp_path / "kernels/caller.py").write_text(
        "import numba\nfrom kernels.callee import f\n\n\n"
        "@numba.njit(cache=True)\ndef g():\n    return f()\n")
    return tmp_path


def test_a_change_in_another_file_is_compiled(copy):
    """Machine code of a caller is kept until the file of what it calls changes."""
    assert [run(CALL, copy).split()[:2] for _ in range(2)] == [["1", "new"], ["1", "kept"]]
    (copy / "kernels/callee.py").write_text("import numba\nf = numba.njit(lambda: 2)\n")
    assert run(CALL, copy).split()[:2] == ["2", "new"]


def test_old_machine_code_is_removed(copy):
    """In a folder that NUMBA_CACHE_DIR names, our newest two stay, and what is not ours stays."""
    for i, name in enumerate(("byhand-1", "byhand-2", "byhand-3", "other")):
        (copy / "cache" / name).mkdir(parents=True)
        os.utime(copy / "cache" / name, (i, i))
    folder = run(CALL, copy, NUMBA_CACHE_DIR=copy / "cache").split()[2]
    assert {*os.listdir(copy / "cache")} == {"byhand-3", "other", os.path.basename(folder)}
    again = run(CALL, copy, NUMBA_CACHE_DIR=folder).split()  # as a child process inherits it
    assert again[1:] == ["kept", folder]


def test_read_only_folders(copy):
    """Where neither checkout nor home can be written to, a temporary folder serves and goes."""
    (copy / "kernels/__pycache__").write_text("a file, so that no folder can be made here")
    (copy / "tmp").mkdir()
    value, _, folder = run(CALL, copy, HOME="/dev/null", TMPDIR=copy / "tmp").split()
    assert value == "1" and folder.startswith(str(copy / "tmp"))
    assert os.listdir(copy / "tmp") == []
