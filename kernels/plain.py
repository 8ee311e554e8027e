"""This is the complete algorithm of the network; the rest of the folder is efficiency.

Every operation in NumPy, forward and, right under it, backward. model.py puts them together. With
PLAIN=1 every script runs on this file: slowly, but step by step in a debugger.

    PLAIN=1 python train.py --size 0.3M --steps 20 --out out/plain

Shapes: B texts of T tokens are R = B*T rows, one row of C numbers a token: the residual stream,
to which every layer adds. H query heads and G key/value heads have D numbers each, the feed-forward
layer has F inside, the vocabulary V tokens. By default B = 8, T = 256, C = 128, H = G = 4, D = 32,
F = 344, V = 1024.

Backward: dx means d loss/d x and has x's shape. dx = 3 says: if x grows by 0.01, the loss grows by
0.03. A backward gets dy for the forward's output y and finds dx by the chain rule: for y = 5 x,
dx = 5 dy. If x reaches the loss in several ways, what comes back on each is added up.

Most functions write into arrays that they are given. Read from top to bottom.
tests/test_kernels.py runs the lines with >>>, and compares each backward with differences and each
fast kernel with this file. Sources: Vaswani et al. 2017 (attention), Su et al. 2021 (rope),
Ainslie et al. 2023 (grouped heads), Zhang and Sennrich 2019 (RMSNorm), Shazeer 2020 (SwiGLU),
Loshchilov and Hutter 2019 (AdamW), Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p).
"""
import math

import numpy as np


# ---- The embedding: a token becomes C numbers ----------------------------------------------------
# The forward is NumPy's own indexing, x = embed[ids]: each id takes its row of a learned table.

def scatter_add(dx, ids, dembed):
    """The backward, dembed[ids[r]] += dx[r], for dx (R,C), ids (R), dembed (V,C): a row that was
    taken for several tokens gets the sum of what came back for each."""
    np.add.at(dembed, ids, dx)


# ---- Matrix multiplication: a layer of weights w (out,in) on rows x (R,in) -----------------------
# Each output is a weighted sum of the inputs:  y = x @ w.T,  y_ri = sum over j of x_rj w_ij
# For x = (1, 2) and w = ((3, 4), (5, 6)):  y = (1*3 + 2*4, 1*5 + 2*6) = (11, 17).
# Backward:  x_rj reaches y_ri through w_ij, so   dx_rj = sum over i of dy_ri w_ij:  dx = dy @ w
#            w_ij reaches y_ri through x_rj, so   dw_ij = sum over r of dy_ri x_rj:  dw = dy.T @ x
# If only output 0 matters, dy = (1, 0):  dx = (3, 4)  and  dw = ((1, 2), (0, 0)).
# All three are products of two matrices, so one function is enough.

def matmul(a, b, trans_a=False, trans_b=False, out=None, accumulate=False):
    """a @ b for a (M,K), b (K,N) -> (M,N). trans_a: a is stored (K,M); trans_b: b is (N,K).

    Writes into out if it is given, and adds to what out holds if accumulate."""
    a, b = (a.T if trans_a else a), (b.T if trans_b else b)
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul: {a.shape[0]}x{a.shape[1]} by {b.shape[0]}x{b.shape[1]}: "
                         "the inner sizes differ")
    if out is None:
        return a @ b
    out[...] = out + a @ b if accumulate else a @ b
    return out


# ---- RMSNorm: bring every row to the same length, then scale each column -------------------------
# The residual stream x grows from layer to layer; each layer wants inputs of one size. The root
# mean square of (1, 5, 7) is sqrt((1 + 25 + 49) / 3) = 5, so it becomes (0.2, 1, 1.4). A tiny eps
# keeps a row of zeros from a division by zero.

def rmsnorm(x, weight, eps, n):
    """n (R,C) = x rstd weight, for x (R,C), weight (C), rstd = 1 / sqrt(mean(x^2) + eps)."""
    rstd = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)  # (R,1), one a row
    n[...] = x * rstd * weight


def rmsnorm_backward(dn, x, weight, eps, dx, dweight):
    """Adds to dx (R,C) and dweight (C), for dn (R,C). dx already holds what came back on the
    residual stream, which goes past the norm.

    Write h = x rstd, so n = h weight. For one row, with j and k for columns:
        dweight_j = dn_j h_j (summed over rows),   dh_j = dn_j weight_j
        d rstd / d x_k = -1/2 rstd^3 (2 x_k / C) = -rstd^2 h_k / C
        dx_k = dh_k rstd + (sum over j of dh_j x_j) d rstd/d x_k = rstd (dh_k - h_k mean(dh h))
    The mean takes out the direction of x itself: n stays the same when x gets longer.

    >>> dx, dweight = np.zeros((1, 3)), np.zeros(3)
    >>> rmsnorm_backward(np.array([[1, 0, 0]]), np.array([[1, 5, 7]]), np.ones(3), 0, dx, dweight)
    >>> dx.round(3), (dx @ [1, 5, 7]).round(6)  # dx . x = 0: a longer x changes nothing
    (array([[ 0.197, -0.013, -0.019]]), array([0.]))
    """
    rstd = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)
    h, dh = x * rstd, dn * weight  # (R,C) both
    dweight += (dn * h).sum(axis=0)
    dx += rstd * (dh - h * (dh * h).mean(axis=1, keepdims=True))


# ---- Rotary position embedding (rope): where a token stands --------------------------------------
# Attention (the next section; read it first if you like) takes dot products of vectors q and k of
# D numbers, and alone does not know the order of tokens. So q and k are rotated by an angle that
# grows with their position t: their numbers j and j + D/2 are a point (x, y), rotated by
# t * speed_j, where speed_j is 1 for the first pair and far less for the last:
#     x' = x cos - y sin,   y' = y cos + x sin
# If both points turn by the same angle, their dot product stays. So it depends on how far apart two
# tokens are, not on where they stand: at speed 1, two points (1, 0) have cos(2 - 1) = 0.54 at
# positions 1 and 2, and at 11 and 12 too. Fast pairs tell neighbours apart, slow pairs the two ends
# of a long text.

def rope(qkv, rotated, positions, cos, sin, sign):
    """Rotates the first `rotated` heads (q and k, not v) of qkv (R,H+2G,D) in place.

    positions (R): each row's position in its text; cos, sin (ctx,D/2): of all angles
    (model.rope_tables). sign -1 rotates back and is the backward: for y = A x with a matrix A,
    dx = A^T dy, and the transpose of a rotation is the rotation back."""
    cos, sin = cos[positions][:, None], sin[positions][:, None] * sign  # (R,1,D/2)
    half = qkv.shape[2] // 2
    x, y = qkv[:, :rotated, :half].copy(), qkv[:, :rotated, half:].copy()  # (R,rotated,D/2)
    qkv[:, :rotated, :half] = x * cos - y * sin
    qkv[:, :rotated, half:] = y * cos + x * sin


# ---- Attention: each token gathers information from the tokens before it -------------------------
# Everything else in the network looks at one token alone. Here every token makes three vectors of
# D numbers, each by a learned matrix:
#     query q   what this token looks for
#     key   k   what this token can be found by
#     value v   what this token hands over when it is found
# The score of a query and a key is their dot product: large if the key offers what the query looks
# for. Softmax turns a query's scores into weights that sum to 1, and the output is the average of
# the values with these weights. A query sees its own position and earlier ones only (the causal
# mask), because the later tokens are what the network learns to predict.
#     s_tj = q_t . k_j / sqrt(D)                          score of query t and key j <= t
#     p_tj = exp(s_tj) / sum over i <= t of exp(s_ti)     softmax: positive, sum 1 over j
#     o_t  = sum over j <= t of p_tj v_j                  output: an average of values
# Dividing by sqrt(D) keeps the scores of long vectors near 1; else the largest would take all the
# weight.

def attention_weights(q, k):
    """p (T,T) of one head, for q and k (T,D): how much query t (row) takes of position j (column).
    Also lse (T), the log of the softmax's denominator, which the fast backward needs.

    An example with D = 4, "Ann sang she". The first number of a key says "I am a name", the second
    "a verb", the third "a pronoun". "Ann" looks for nothing, "sang" for a name (who sang?), "she"
    twice as strongly for a name (who is she?). Each token hands over 10 in a column of its own, so
    that the output shows from whom it came:

    >>> q = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]])  # Ann, sang, she: look for
    >>> k = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])  # can be found as
    >>> v = np.array([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0]])  # hand over
    >>> p, _ = attention_weights(q, k)
    >>> p.round(2)
    array([[1.  , 0.  , 0.  ],
           [0.73, 0.27, 0.  ],
           [0.79, 0.11, 0.11]])
    >>> (p @ v).round(1)
    array([[10. ,  0. ,  0. ,  0. ],
           [ 7.3,  2.7,  0. ,  0. ],
           [ 7.9,  1.1,  1.1,  0. ]])

    "she" by hand: scores (4, 0, 0) / sqrt(4) = (2, 0, 0); exp makes them (7.39, 1, 1), their sum is
    9.39; so the weights are (0.79, 0.11, 0.11). "sang" does not see "she": its weights are
    (2.72, 1) / 3.72 = (0.73, 0.27)."""
    T, D = q.shape
    s = q @ k.T / D**0.5  # (T,T)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)  # row t keeps columns 0 to t; exp(-inf) = 0
    top = s.max(axis=1, keepdims=True)  # (T,1); without it p would be the same, or overflow
    e = np.exp(s - top)
    total = e.sum(axis=1, keepdims=True)
    return e / total, (top + np.log(total))[:, 0]


# H heads do this side by side, each with matrices of its own, to look for something else. Often
# H / G query heads share one of G heads of k and v, which saves memory when decoding.

def each_head(q, k):
    """Yields (text, query head, the key/value head that it reads)."""
    H, G = q.shape[2], k.shape[2]
    for b in range(len(q)):
        for h in range(H):
            yield b, h, h // (H // G)


def attention(q, k, v):
    """o (B,T,H,D) from q (B,T,H,D) and k, v (B,T,G,D)."""
    o = np.empty_like(q)
    for b, h, g in each_head(q, k):
        p, _ = attention_weights(q[b, :, h], k[b, :, g])
        o[b, :, h] = p @ v[b, :, g]
    return o


def attention_backward(do, q, k, v):
    """dq (B,T,H,D), dk and dv (B,T,G,D) from do (B,T,H,D).

    With [i = j] for 1 if i equals j, else 0; all sums leave out what is masked, where p is 0:
        o_t = sum_j p_tj v_j         so  dv_j = sum_t p_tj do_t    and    dp_tj = do_t . v_j
        d p_tj/d s_ti = p_tj ([i = j] - p_ti)
                                     so  ds_ti = p_ti (dp_ti - sum_j p_tj dp_tj)
        s_tj = q_t . k_j / sqrt(D)   so  dq_t = sum_j ds_tj k_j / sqrt(D)
                                     and dk_j = sum_t ds_tj q_t / sqrt(D)
    So a score rises if its value would help more than the average that the query got. A shared k or
    v gets the sum over its query heads."""
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, h, g in each_head(q, k):
        p, _ = attention_weights(q[b, :, h], k[b, :, g])
        dp = do[b, :, h] @ v[b, :, g].T  # (T,T)
        ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) / q.shape[3]**0.5  # (T,T)
        dq[b, :, h] = ds @ k[b, :, g]
        dk[b, :, g] += ds.T @ q[b, :, h]
        dv[b, :, g] += p.T @ do[b, :, h]
    return dq, dk, dv


# ---- Attention as model.py calls it: q, k, v are heads of one array (skip at first) --------------

def split_heads(qkv, n_heads):
    """q (B,T,H,D), k and v (B,T,G,D): views of qkv (B,T,H+2G,D), with H = n_heads."""
    G = (qkv.shape[2] - n_heads) // 2
    return qkv[:, :, :n_heads], qkv[:, :, n_heads:n_heads + G], qkv[:, :, n_heads + G:]


def fused_attention_forward(qkv, n_heads, o, lse):
    """Writes o (B,T,H,D) and lse (B,H,T) for qkv (B,T,H+2G,D), H = n_heads."""
    q, k, v = split_heads(qkv, n_heads)
    o[...] = attention(q, k, v)
    for b, h, g in each_head(q, k):
        _, lse[b, h] = attention_weights(q[b, :, h], k[b, :, g])


def fused_attention_backward(do, qkv, n_heads, o, lse, dqkv):
    """Writes dqkv (B,T,H+2G,D), for do (B,T,H,D)."""
    dqkv[...] = np.concatenate(attention_backward(do, *split_heads(qkv, n_heads)), axis=2)


# ---- SwiGLU: the layer that works on each token alone --------------------------------------------
# The feed-forward layer (MLP). g = n @ w_gate.T and u = n @ w_up.T of a normed row n; then
# a = silu(g) u with silu(g) = g sigmoid(g). The gate g decides how much of u passes: nearly nothing
# where g < -4, nearly all of g u where g > 4. Without such a nonlinearity two layers would be no
# more than one: (x w1) w2 = x (w1 w2).

def sigmoid(x):
    """1 / (1 + exp(-x)), by a formula that can't overflow."""
    return (np.tanh(x / 2) + 1) / 2


def swiglu(gu, a):
    """a (R,F) = silu(g) u; g is the first half of the columns of gu (R,2F), u the second half."""
    g, u = np.split(gu, 2, axis=1)  # (R,F) both, views
    a[...] = g * sigmoid(g) * u


def swiglu_backward(gu, da):
    """In place: gu (R,2F) becomes its gradient, and da (R,F) becomes a again: the gradient of the
    next matrix needs a, and to compute it twice is cheaper than to keep it.

    p = sigmoid(g) has the derivative p (1 - p), and silu = g p. So from a = silu u:
        du = da silu,     d silu/d g = p + g p (1 - p),     dg = da u (p + silu (1 - p))"""
    g, u = np.split(gu, 2, axis=1)
    p = sigmoid(g)
    silu, a = g * p, g * p * u
    g[...], u[...] = da * u * (p + silu * (1 - p)), da * silu
    da[...] = a


# ---- The loss: how surprised the network was by the token that came ------------------------------
# The last product, n @ embedding.T, gives each of the V tokens a score, its logit. Softmax makes
# the logits of a row into probabilities that sum to 1.

def softmax_cross_entropy(logits, targets, weights, losses):
    """losses (R) = -log softmax(logits)[target], in nats; logits (R,V) become the gradient of
    sum(weights * losses). targets (R): token ids; weights (R): how much each row counts.

    With z for a row of logits, top its maximum, t its target, [j = t] 1 if equal, else 0:
        p_j = exp(z_j) / sum_k exp(z_k), the same with z - top, which can't overflow
        loss = -log p_t = log(sum_k exp(z_k - top)) + top - z_t
        d loss/d z_j = p_j - [j = t], what the network believed minus the truth

    >>> logits, losses = np.log([[1.0, 3.0]]), np.empty(1)  # so the probabilities are 1/4 and 3/4
    >>> softmax_cross_entropy(logits, np.array([1]), np.ones(1), losses)
    >>> losses.round(3), logits.round(3)  # -log 0.75; the target's logit should rise
    (array([0.288]), array([[ 0.25, -0.25]]))
    """
    every = np.arange(len(logits))
    z = logits - logits.max(axis=1, keepdims=True)  # (R,V)
    total = np.exp(z).sum(axis=1)  # (R)
    losses[...] = np.log(total) - z[every, targets]
    logits[...] = np.exp(z) * (weights / total)[:, None]
    logits[every, targets] -= weights


# ---- The optimizer: one flat vector of all parameters, one of all gradients ----------------------

def adamw(params, grads, m1, m2, scale, lr, beta1, beta2, eps, decay, n_decayed, step):
    """One AdamW step, in place: m1 is the running average of the gradient g (where to go), m2 that
    of g^2 (how large g usually is). `scale` clips g; only the first n_decayed parameters decay;
    step counts from 1. optimizer.py explains it: the quotient below is about 1 where g keeps its
    sign and near 0 where g flickers."""
    c1, c2 = 1 - beta1**step, 1 - beta2**step
    g = grads * scale
    params[:n_decayed] *= 1 - lr * decay
    m1 += (1 - beta1) * (g - m1)
    m2 += (1 - beta2) * (g * g - m2)
    params -= lr * (m1 / c1) / (np.sqrt(m2 / c2) + eps)


def sum_of_squares(x):
    """Of a flat vector x, added up in float64: float32 would lose the small ones of millions."""
    return float((x.astype(np.float64) ** 2).sum())


def unflatten(x, shapes):
    """Yields a view of each of these shapes, which lie one after another in a flat vector x."""
    start = 0
    for shape in shapes:
        size = math.prod(shape)
        yield x[start:start + size].reshape(shape)
        start += size


# ---- Muon, the other optimizer (skip at first) ---------------------------------------------------

def nesterov(grads, m1, scale, momentum):
    """On flat vectors, in place: m1, the running average, comes up to date; grads become that
    average with themselves mixed in once more (Nesterov's look ahead)."""
    g = grads * scale
    m1 += (1 - momentum) * (g - m1)
    grads[...] = (1 - momentum) * g + momentum * m1


def orthogonalize(x, shapes, coefficients, steps):
    """In place: the flat vector x holds matrices of these shapes, one after another. Of each,
    U S V^T, about U V^T is left: all of S near 1.

    It needs no decomposition. For an odd polynomial f(s) = a s + b s^3 + c s^5,
        a X + b (X X^T) X + c (X X^T)^2 X  =  U f(S) V^T,          as X X^T = U S^2 U^T,
    so products of matrices apply f to all singular values at once (Newton-Schulz). With a, b, c =
    3.4445, -4.775, 2.0315 a small value grows 3.4 times, a large one stays between 0.68 and 1.21:
    0.5 -> 1.19 -> 0.90 -> 0.82 and 0.1 -> 0.34 -> 0.99 -> 0.71 and 0.01 -> 0.03 -> 0.12 -> 0.40.

    First each matrix is divided by its length, which is at least its largest singular value. Tall
    ones are transposed: for 344 x 128, X X^T would be 344 x 344, while X^T X is 128 x 128."""
    a, b, c = map(x.dtype.type, coefficients)
    for matrix in unflatten(x, shapes):
        tall = matrix.shape[0] > matrix.shape[1]
        y = (matrix.T if tall else matrix) / (np.sqrt((matrix * matrix).sum()) or 1)
        one = np.eye(len(y), dtype=x.dtype)
        for _ in range(steps):
            square = y @ y.T  # Y Y^T, the smaller side twice
            y = (a * one + square @ (b * one + c * square)) @ y
        matrix[...] = y.T if tall else y


# ---- Sampling: from logits to the next token -----------------------------------------------------

def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """What a token is sampled from: logits (V,) -> probabilities (V,), float64.

    A temperature below 1 sharpens them, above 1 flattens them. top_k keeps only the k likeliest (0:
    all). top_p keeps the fewest of the likeliest that together have at least this share: few where
    the network is sure, many where it is not."""
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)  # the likeliest one's is 1
    if 0 < top_k < len(p):
        p[p < np.sort(p)[-top_k]] = 0
    if top_p < 1:
        order = np.argsort(-p)  # the likeliest first; it always stays
        likelier = np.cumsum(p[order])[:-1]  # of each other one: what those before it sum up to
        p[order[1:][likelier >= top_p * p.sum()]] = 0
    return p / p.sum()


def sample_tokens(logits, temperature, top_k, top_p, numbers, tokens, logprobs):
    """Writes tokens (N,), sampled from logits (N,V) with random numbers (N,) from [0,1), and their
    logprobs (N,) in nats, at temperature 1 with nothing left out. Temperature 0 takes the likeliest
    (greedy). Else lay the probabilities end to end: a number points at one of them, 0.6 at the
    second of (0.5, 0.3, 0.2)."""
    for i, row in enumerate(logits):
        tokens[i] = row.argmax()
        if temperature > 0:
            ends = np.cumsum(probabilities(row, temperature, top_k, top_p))
            tokens[i] = (ends > numbers[i] * ends[-1]).argmax()  # the first that ends beyond it
        z = (row - row.max()).astype(np.float64)
        logprobs[i] = z[tokens[i]] - np.log(np.exp(z).sum())


# ---- Decoding: one new token a text; k and v of the others are in a KV cache (skip at first) -----

def store_kv(qkv, k_cache, v_cache, rows, positions):
    """Puts k and v of qkv (N,H+2G,D) into the caches (B,G,S,D): token n belongs to text rows[n],
    at positions[n]."""
    G = k_cache.shape[1]
    k_cache[rows, :, positions] = qkv[:, -2 * G:-G]
    v_cache[rows, :, positions] = qkv[:, -G:]


def attention_step(q, k_cache, v_cache, lengths, rows, o):
    """Writes o (N,H,D) for one new query a text, q (N,H,D): query n reads positions 0 to
    lengths[n] - 1 of text rows[n] in the caches (B,G,S,D). The last one is its own, so nothing is
    masked."""
    group = q.shape[1] // k_cache.shape[1]
    for n, (length, row) in enumerate(zip(lengths, rows)):
        for h in range(q.shape[1]):
            keys = k_cache[row, h // group, :length]  # (length,D)
            values = v_cache[row, h // group, :length]
            s = keys @ q[n, h] / q.shape[2]**0.5
            p = np.exp(s - s.max())
            o[n, h] = p @ values / p.sum()
