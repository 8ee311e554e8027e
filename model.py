"""3. The network: a Llama-style transformer, every layer forward and backward by hand.

The whole network is one expression. Token ids go in; at each position, a probability for every
token that could come next comes out:

    x = embedding[ids]                          (B,T,C)  each token becomes C numbers
    L times:   x = x + attention(rmsnorm(x))    (B,T,C)  tokens exchange information
               x = x + swiglu(rmsnorm(x))       (B,T,C)  each token is worked on alone
    p = softmax(rmsnorm(x) @ embedding.T)       (B,T,V)  which token's numbers fit best?

Training adds the way back: the gradient of the loss for every parameter, by the chain rule, layer
by layer in reverse (backpropagation). There is no automatic differentiation: each backward stands
under its forward, and tests/test_model.py compares all gradients with central differences and with
PyTorch. dx means d loss/d x, of x's shape; weights are (out, in), as in PyTorch's nn.Linear.

Reading order: Config; decoder_block and its backward, the heart; loss_and_grads, half of a training
step; decode, which writes text. The operations (attention, rmsnorm, ...) are in kernels/plain.py.

Sources: Touvron et al. 2023 (LLaMA), Su et al. 2021 (rotary embedding), Ainslie et al. 2023
(grouped-query attention), Press & Wolf 2017 (tied embedding). Left out: dropout, biases, mixtures
of experts, half precision (no gain on a CPU).
"""
import math
from collections import namedtuple
from dataclasses import dataclass, replace

import numpy as np

from kernels import (attention_step, fused_attention_backward, fused_attention_forward, matmul,
                     rmsnorm, rmsnorm_backward, rope, scatter_add, softmax_cross_entropy, store_kv,
                     swiglu, swiglu_backward, unflatten)

MICRO_BATCH = 4_300_000  # numbers per layer that a micro-batch may touch: 17 MB, about an L3 cache
HEAD_ROWS = 512  # rows of logits in memory at a time: 512 x 32,000 x 4 bytes = 65 MB
INIT_STD = 0.02  # standard deviation of all matrices at the start (GPT-2's)


@dataclass(frozen=True)
class Config:
    """The sizes of a network, and what its tokenizer's ids mean to it. The default is the 5M model.
    To grow a network is to turn these numbers up: Llama 3 405B has dim 16,384 and 126 layers."""
    vocab: int = 2048  # V
    ctx: int = 256  # the most tokens it can look at, the context
    dim: int = 256  # C
    layers: int = 6  # L
    heads: int = 8  # H, query heads
    kv_heads: int = 8  # G, key/value heads; H / G query heads share one
    hidden: int = 688  # F, the feed-forward layer's width
    theta: float = 10_000.0  # rotary base
    eps: float = 1e-5  # of the norms
    tied: bool = True  # the output head is the embedding
    rope_scaling: tuple = ()  # Llama 3's (factor, low_freq, high_freq, original ctx), or none
    bos: tuple = ()  # the id that a document begins with, or none
    eos: tuple = ()  # ids at which a text ends
    unused: tuple = ()  # ids without a token (padding, gaps): never sampled

    def __post_init__(self):
        # Each head gets dim / heads columns, and rope rotates these in pairs.
        if self.dim % self.heads or self.heads % self.kv_heads or self.dim // self.heads % 2:
            raise ValueError(f"config: {self.heads} heads must divide dim {self.dim} into even "
                             f"head sizes, and {self.kv_heads} key/value heads must divide them")

    @property
    def head_dim(self):
        return self.dim // self.heads  # D

    @property
    def all_heads(self):
        return self.heads + 2 * self.kv_heads  # of q, k and v side by side


SIZES = {  # name, about the number of parameters -> everything but the vocabulary
    "0.3M": dict(ctx=128, dim=64, layers=4, heads=4, kv_heads=4, hidden=192),
    "1M": dict(ctx=256, dim=128, layers=4, heads=4, kv_heads=4, hidden=344),
    "5M": dict(ctx=256, dim=256, layers=6, heads=8, kv_heads=8, hidden=688),
    "25M": dict(ctx=512, dim=512, layers=8, heads=8, kv_heads=4, hidden=1376),
}


# ---- The decoder block, forward and under it backward --------------------------------------------
# Attention moves information between tokens; SwiGLU works on each token alone. Both read a normed
# copy n of the residual stream x and add to x, which itself is never normed: so gradients pass
# through any number of layers without being scaled.
#
# A block works on R = B*T rows, one a token. In the 1M network with 8 windows of 256 tokens, x is
# 2048 x 128, q, k and v together 2048 x 384 (12 heads of 32), g and u 2048 x 688, a 2048 x 344.
# Every line writes into an array that was allocated once: `saved` keeps what this layer's backward
# needs, `buffers` serve all layers in turn.

def decoder_block(w, config, saved, buffers, out):
    """out (R,C) = the residual stream after one layer with weights w, from saved.x (R,C)."""
    x, qkv, o, lse, mid, gu = saved
    n, a = buffers.n, buffers.a
    by_row, by_text = buffers.by_row, buffers.by_text  # shapes: (R,heads,D), (B,T,heads,D)

    # mid = x + attention(rmsnorm(x))
    rmsnorm(x, w.norm1, config.eps, n)  # (R,C)
    matmul(n, w.qkv, trans_b=True, out=qkv)  # q, k, v = n @ w.qkv.T  (R,(H+2G)D)
    rope(qkv.reshape(by_row), config.heads + config.kv_heads, *buffers.angles, 1)  # q and k
    fused_attention_forward(qkv.reshape(by_text), config.heads, o.reshape(by_text), lse)  # o (R,C)
    np.copyto(mid, x)
    matmul(o, w.o, trans_b=True, out=mid, accumulate=True)  # mid = x + o @ w.o.T  (R,C)

    # out = mid + swiglu(rmsnorm(mid))
    rmsnorm(mid, w.norm2, config.eps, n)  # (R,C)
    matmul(n, w.gate_up, trans_b=True, out=gu)  # g, u = n @ w.gate_up.T  (R,2F)
    swiglu(gu, a)  # a = silu(g) u  (R,F)
    np.copyto(out, mid)
    matmul(a, w.down, trans_b=True, out=out, accumulate=True)  # out = mid + a @ w.down.T  (R,C)


def decoder_block_backward(w, dw, config, saved, buffers):
    """Turns buffers.dx (R,C) from d loss/d out into d loss/d saved.x; adds to the gradients dw.

    Read it beside decoder_block, from that one's last line up. Two rules give all of it:
        out = x + f(x):  d loss/d x = d loss/d out + what comes back through f. So dx stays, and
        each of the two branches adds its part (in rmsnorm_backward).
        y = n @ w.T, y_ri = sum_j n_rj w_ij:  dn = dy @ w and dw = dy.T @ n, summed over rows.
    The forward did not keep n and a. To compute them once more costs little beside the products."""
    x, qkv, o, lse, mid, gu = saved
    n, a, by_row, by_text = buffers.n, buffers.a, buffers.by_row, buffers.by_text
    dx, dn, do, dqkv = buffers.dx, buffers.dn, buffers.do, buffers.dqkv

    # The feed-forward layer: out = mid + a @ w.down.T
    matmul(dx, w.down, out=a)  # a holds da (R,F)
    swiglu_backward(gu, a)  # in place: gu is now dgu, and a is a again
    matmul(dx, a, trans_a=True, out=dw.down, accumulate=True)  # (C,F)
    rmsnorm(mid, w.norm2, config.eps, n)
    matmul(gu, n, trans_a=True, out=dw.gate_up, accumulate=True)  # (2F,C)
    matmul(gu, w.gate_up, out=dn)  # (R,C)
    rmsnorm_backward(dn, mid, w.norm2, config.eps, dx, dw.norm2)

    # Now dx is d loss/d mid. Attention: mid = x + o @ w.o.T
    matmul(dx, w.o, out=do)  # (R,C)
    matmul(dx, o, trans_a=True, out=dw.o, accumulate=True)  # (C,C)
    fused_attention_backward(do.reshape(by_text), qkv.reshape(by_text), config.heads,
                             o.reshape(by_text), lse, dqkv.reshape(by_text))
    rope(dqkv.reshape(by_row), config.heads + config.kv_heads, *buffers.angles, -1)  # rotates back
    rmsnorm(x, w.norm1, config.eps, n)
    matmul(dqkv, n, trans_a=True, out=dw.qkv, accumulate=True)  # ((H+2G)D,C)
    matmul(dqkv, w.qkv, out=dn)  # (R,C)
    rmsnorm_backward(dn, x, w.norm1, config.eps, dx, dw.norm1)


# ---- All layers ----------------------------------------------------------------------------------

def transformer(params, config, ids, buffers, cache=None):
    """The residual stream (R,C) after the last block, for ids (B,T). A cache, if given, keeps each
    layer's keys and values."""
    np.take(params["model.embed_tokens.weight"], ids.reshape(-1), axis=0, out=buffers.saved[0].x)
    # Each block writes where the next one keeps its input, so nothing is copied.
    outs = [saved.x for saved in buffers.saved[1:]] + [buffers.x]
    for layer, w in enumerate(block_weights(params, config)):
        saved = buffers.saved[layer]
        decoder_block(w, config, saved, buffers, outs[layer])
        if cache:
            store_kv(saved.qkv.reshape(buffers.by_row), cache.k[layer], cache.v[layer],
                     buffers.texts, buffers.angles[0])
    return buffers.x


def transformer_backward(params, grads, config, ids, buffers):
    """Adds to grads, from buffers.dx: the gradient of what transformer returned."""
    layers = zip(block_weights(params, config), block_weights(grads, config), buffers.saved)
    for w, dw, saved in reversed(list(layers)):
        decoder_block_backward(w, dw, config, saved, buffers)
    scatter_add(buffers.dx, ids.reshape(-1), grads["model.embed_tokens.weight"])


# ---- The training step's first half: loss and gradients. optimizer.py is the second --------------
# The network reads a window and predicts each next token; the loss is minus the log of the
# probability that the right one got, averaged over the tokens that count:
#     ids       The   fox   lives
#     targets   fox   lives  in
#     losses    2.0   1.0   0.5         the right tokens had probabilities 0.14, 0.37, 0.61
#     mask      0     1     1           weights 0, 1/2, 1/2, so the loss is 0.75 nats

def loss_and_grads(params, config, ids, targets, mask=None, grads=None, buffers=None, weights=None):
    """Mean loss in nats per counted token of ids and targets (B,T), and its gradients by parameter.

    mask (B,T) is 1 where a target counts (everywhere if None); with no counted token the loss is 0.
    weights (B,T), instead of a mask, may be negative: the loss is the sum of weights * losses
    (rl.py's policy gradient). Given grads are overwritten, and with given buffers nothing large is
    allocated. Raises ValueError for ids outside the vocabulary."""
    params = pack(params, config)
    if weights is None:
        mask = np.ones(np.shape(ids)) if mask is None else np.asarray(mask, np.float64)
        weights = mask / max(mask.sum(), 1e-30)
    weights = np.asarray(weights, vector(params).dtype)
    if grads is None:
        grads = views(np.empty_like(vector(params)), config)
    vector(grads)[:] = 0
    losses = token_losses(params, config, ids, targets, buffers, weights, grads)
    return float(np.vdot(losses.astype(np.float64), weights)), grads


def token_losses(params, config, ids, targets, buffers=None, weights=None, grads=None):
    """Loss in nats of each target (B,T), minus the log of its probability. If grads are given, adds
    to them the gradient of the sum of weights * losses."""
    params, ids, targets = pack(params, config), check_ids(ids, config), check_ids(targets, config)
    losses = np.empty(ids.shape, vector(params).dtype)
    weights = np.zeros_like(losses) if weights is None else weights
    if ids.ndim != 2 or not ids.shape == targets.shape == weights.shape:
        raise ValueError(f"ids {ids.shape}, targets {targets.shape} and mask or weights "
                         f"{weights.shape} must all be (B,T)")
    # Each micro-batch goes forward and back before the next: the buffers hold one at a time.
    for rows, part in micro_batches(config, ids, buffers, losses.dtype):
        x = transformer(params, config, ids[rows], part)
        flat = [array[rows].reshape(-1) for array in (targets, weights, losses)]  # (R,), views
        head_loss(params, grads, config, x, *flat, part)
        if grads is not None:
            transformer_backward(params, grads, config, ids[rows], part)
    return losses


def head_loss(params, grads, config, x, targets, weights, losses, buffers):
    """Writes losses (R,) of x (R,C) through the final norm and the output head. Unless grads is
    None, goes the way back: to buffers.dx (R,C), and adds to the gradients of head and norm.

    The logits (R,V) would be the largest array of all. So they are computed HEAD_ROWS rows at a
    time, turned into their gradient in place, multiplied back, and overwritten by the next rows."""
    norm, head, n = params["model.norm.weight"], output_head(params, config), buffers.n
    rmsnorm(x, norm, config.eps, n)
    for i in range(0, len(x), HEAD_ROWS):
        rows = slice(i, i + HEAD_ROWS)
        logits = buffers.logits[:len(n[rows])]  # the last rows may be fewer
        matmul(n[rows], head, trans_b=True, out=logits)  # (rows,V)
        softmax_cross_entropy(logits, targets[rows], weights[rows], losses[rows])
        if grads is not None:
            dhead = output_head(grads, config)
            matmul(logits, n[rows], trans_a=True, out=dhead, accumulate=True)  # (V,C)
            matmul(logits, head, out=buffers.dn[rows])  # (rows,C)
    if grads is not None:
        buffers.dx[...] = 0
        rmsnorm_backward(buffers.dn, x, norm, config.eps, buffers.dx, grads["model.norm.weight"])


# ---- Inference: all positions at once, or token by token with a KV cache -------------------------
# A new token needs nothing of the tokens before it but their keys and values in each layer, and
# these never change, since no token sees a later one. Prefill computes them for the prompt in one
# pass; decode then costs one row a token instead of the whole text.

def forward(params, config, ids):
    """logits (B,T,V) for ids (B,T): at each position, for the token after it."""
    ids, params = check_ids(ids, config), pack(params, config)
    buffers = Buffers(config, *ids.shape, vector(params).dtype, training=False)
    x = transformer(params, config, ids, buffers)
    return next_logits(params, config, x).reshape(*ids.shape, config.vocab)


def next_logits(params, config, x):
    """logits (N,V) from rows x (N,C) of the residual stream after the last block."""
    n = np.empty_like(x)
    rmsnorm(x, params["model.norm.weight"], config.eps, n)
    return matmul(n, output_head(params, config), trans_b=True)


class Cache:
    """The KV cache: keys (after rope) and values (L,B,G,S,D) of B sequences, and their lengths (B,)
    so far. S: the most tokens a sequence can have, at most ctx."""

    def __init__(self, params, config, B, S):
        self.params = pack(params, config)
        dtype = vector(self.params).dtype
        shape = (config.layers, B, config.kv_heads, min(S, config.ctx), config.head_dim)
        self.k, self.v = empty(dtype, shape, shape)
        self.lengths = np.zeros(B, np.int64)
        self.cos, self.sin = rope_tables(config, shape[3], dtype)
        self.layers = list(zip(block_weights(self.params, config), self.k, self.v))


def prefill(config, cache, ids, lengths):
    """Fills the cache with prompts ids (B,T), the first lengths[b] of row b. The rest of a row is
    padding: no earlier position sees it, and decode overwrites it. Returns the logits (B,V) of each
    row's last token."""
    ids, params = check_ids(ids, config), cache.params
    if len(ids) > cache.k.shape[1] or ids.shape[1] > cache.k.shape[3]:
        raise ValueError(f"prompts {ids.shape} don't fit into a cache {cache.k.shape}")
    buffers = Buffers(config, *ids.shape, vector(params).dtype, training=False)
    x = transformer(params, config, ids, buffers, cache)
    cache.lengths[:len(ids)] = lengths
    last = x.reshape(*ids.shape, -1)[np.arange(len(ids)), lengths - 1]  # (B,C), a copy
    return next_logits(params, config, last)


def decode(config, cache, ids, rows):
    """Appends one token ids (N,) to each of the sequences rows (N,); returns their logits (N,V).

    decoder_block once more, for one new row a sequence: its k and v join the cache, and its q meets
    all of it. Finished sequences are just not in rows."""
    positions = cache.lengths[rows]
    if positions.max() >= cache.k.shape[3]:
        raise ValueError(f"the cache holds {cache.k.shape[3]} tokens a sequence, and one is full")
    cache.lengths[rows] = positions + 1
    x = cache.params["model.embed_tokens.weight"][ids]  # (N,C)
    N, F, D = len(ids), config.hidden, config.head_dim
    n, qkv, o, gu, a = empty(x.dtype, x.shape, (N, config.all_heads, D), (N, config.heads, D),
                             (N, 2 * F), (N, F))
    q = qkv[:, :config.heads]  # a view
    for w, k_cache, v_cache in cache.layers:
        rmsnorm(x, w.norm1, config.eps, n)
        matmul(n, w.qkv, trans_b=True, out=qkv.reshape(N, -1))  # (N,(H+2G)D)
        rope(qkv, config.heads + config.kv_heads, positions, cache.cos, cache.sin, 1)
        store_kv(qkv, k_cache, v_cache, rows, positions)
        attention_step(q, k_cache, v_cache, positions + 1, rows, o)
        matmul(o.reshape(N, -1), w.o, trans_b=True, out=x, accumulate=True)  # (N,C)
        rmsnorm(x, w.norm2, config.eps, n)
        matmul(n, w.gate_up, trans_b=True, out=gu)  # (N,2F)
        swiglu(gu, a)  # (N,F)
        matmul(a, w.down, trans_b=True, out=x, accumulate=True)  # (N,C)
    return next_logits(cache.params, config, x)


# ---- Parameters (skip at first): one flat vector, and named views into it ------------------------
# What treats all parameters alike (the gradient's norm, the optimizer) is one call on one vector:
#
#      | embedding | output head if untied | layer 0: q k v o gate up down | layer 1 ... | norms |
#      |<----------------- matrices (2 axes): weight decay ---------------------------->|

def shapes(config):
    """Hugging Face's name -> shape, in the flat vector's order."""
    C, F, kv = config.dim, config.hidden, config.kv_heads * config.head_dim
    block = {"self_attn.q_proj": (C, C), "self_attn.k_proj": (kv, C), "self_attn.v_proj": (kv, C),
             "self_attn.o_proj": (C, C), "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C),
             "mlp.down_proj": (C, F), "input_layernorm": (C,), "post_attention_layernorm": (C,)}
    names = {"model.embed_tokens.weight": (config.vocab, C)}
    if not config.tied:
        names["lm_head.weight"] = (config.vocab, C)
    for layer in range(config.layers):
        names |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    names["model.norm.weight"] = (C,)
    return dict(sorted(names.items(), key=lambda item: len(item[1]) == 1))  # stable: norms last


def count(config):
    """Number of parameters, and how many of them are in matrices (which come first)."""
    total = sum(math.prod(shape) for shape in shapes(config).values())
    return total, total - (2 * config.layers + 1) * config.dim


def flops_per_token(config, T):
    """Floating-point operations of a training step (Chowdhery et al. 2022, appendix B).

    A matrix's parameter is one multiplication and one addition a token forward, and twice that
    backward (dx and dw): 6. Attention's q k^T and p v are 2 T C each a layer forward, so 12 L C T
    in all; the masked half, which we skip, counts too."""
    return 6 * count(config)[0] + 12 * config.layers * config.dim * T


def views(flat, config):
    """The named parameters as views into a flat vector: to change one is to change the other."""
    return dict(zip(shapes(config), unflatten(flat, shapes(config).values())))


def vector(params):
    """The one flat vector that all of these parameters (or gradients) are views of."""
    return params["model.embed_tokens.weight"].base


def pack(params, config):
    """params as views of one flat vector: themselves if they are, else copies in a new one."""
    for name, shape in shapes(config).items():
        found = params[name].shape if name in params else "nothing"
        if found != shape:
            raise ValueError(f"parameter {name}: expected {shape}, found {found}")
    base, (n, _) = vector(params), count(config)
    if base is not None and base.size == n and all(p.base is base for p in params.values()):
        return params
    packed = views(np.empty(n, params["model.norm.weight"].dtype), config)
    for name, p in packed.items():
        p[...] = params[name]
    return packed


def init_params(config, seed=0, dtype=np.float32):
    """Norms start as 1, matrices from N(0, 0.02^2). The two that write into the residual stream are
    smaller by sqrt(2L) (GPT-2): 2L terms are summed there, so its variance doesn't grow with depth.
    With numbers this small all tokens are equally likely: the first loss is near log(V), 6.93 for
    V = 1024."""
    rng, params = np.random.default_rng(seed), views(np.ones(count(config)[0], dtype), config)
    for name, p in params.items():
        if p.ndim == 2:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = INIT_STD / np.sqrt(2 * config.layers) if into_stream else INIT_STD
            p[:] = rng.normal(0, std, p.shape)
    return params


def grow(params, config, vocab, seed=0):
    """(params, config) with rows added to the embedding, and the untied head, up to `vocab`: for
    tokens that the network has never met (sft.py's chat tokens).

    A new row is the mean of the old ones, plus noise of their spread (Hewitt 2021). The mean alone
    learns more slowly: equal rows can't be told apart (loss after 60 steps: 1.23, not 0.85)."""
    grown = replace(config, vocab=vocab)
    out, rng = views(np.empty(count(grown)[0], np.float32), grown), np.random.default_rng(seed)
    for name, p in params.items():
        out[name][:len(p)] = p
        noise = rng.standard_normal((len(out[name]) - len(p), *p.shape[1:]))
        out[name][len(p):] = p.mean(0) + p.std(0) * noise
    return out, grown


def not_finite(arrays):
    """Name of the first of these parameters or gradients that holds a NaN or infinity, or None."""
    return next((name for name, x in arrays.items() if not np.isfinite(x).all()), None)


# norm1, norm2 (C), qkv ((H+2G)D,C), o (C,C), gate_up (2F,C), down (C,F), as y = x @ w.T needs them.
BlockWeights = namedtuple("BlockWeights", "norm1 qkv o norm2 gate_up down")


def block_weights(params, config):
    """The BlockWeights of each layer (or their gradients), all views. q_proj, k_proj and v_proj are
    neighbours in the flat vector, so the same numbers can be read as one matrix of H + 2G heads, D
    rows each, and one product takes the place of three. gate and up likewise."""
    C, F, L, flat = config.dim, config.hidden, config.layers, vector(params)
    first = (1 if config.tied else 2) * config.vocab * C  # where layer 0 begins
    block = [(config.all_heads * config.head_dim, C), (C, C), (2 * F, C), (C, F)]
    matrices = unflatten(flat[first:], block * L)  # qkv, o, gate_up, down of each layer
    norms = unflatten(flat[count(config)[1]:], [(C,)] * 2 * L)
    return [BlockWeights(next(norms), next(matrices), next(matrices),
                         next(norms), next(matrices), next(matrices)) for _ in range(L)]


def output_head(params, config):
    """The output head (V,C): the embedding itself when tied. Then both uses add to its gradient."""
    return params["model.embed_tokens.weight" if config.tied else "lm_head.weight"]


# ---- Buffers (skip at first): every activation has its array, allocated once ---------------------

Saved = namedtuple("Saved", "x qkv o lse mid gu")  # what a block keeps for its backward


class Buffers:
    """For micro-batches of B sequences of T tokens, R = B*T rows. In training each layer has a
    Saved of its own; otherwise one serves all layers, as all other arrays do."""

    def __init__(self, config, B, T, dtype=np.float32, training=True):
        C, F, D, R = config.dim, config.hidden, config.head_dim, B * T
        qkv, logits = (R, config.all_heads * D), (min(R, HEAD_ROWS), config.vocab)
        saved = ((R, C),  # x, the residual stream that comes in
                 qkv,  # after rope
                 (R, C),  # o, the outputs of H heads of D = C/H numbers
                 (B, config.heads, T),  # lse, the log of the softmax's denominator
                 (R, C),  # mid, the residual stream after attention
                 (R, 2 * F))  # gu, gate and up
        n = config.layers if training else 1
        self.saved = [Saved(*empty(dtype, *saved)) for _ in range(n)] * (config.layers // n)
        self.n, self.x, self.a = empty(dtype, (R, C), (R, C), (R, F))
        if training:
            self.dx, self.dn, self.do, self.dqkv, self.logits = empty(
                dtype, (R, C), (R, C), (R, C), qkv, logits)
        self.B, self.by_row, self.by_text = B, (R, -1, D), (B, T, -1, D)  # shapes for heads
        self.texts, positions = np.divmod(np.arange(R), T)  # each row's
        self.angles = positions, *rope_tables(config, T, dtype)


def empty(dtype, *shapes):
    """New arrays of these shapes; what is in them is written later."""
    return [np.empty(shape, dtype) for shape in shapes]


def micro_batch(config, B, T):
    """How many of B sequences of T tokens go through at a time. The gradient of a sum is the sum of
    the gradients, so nothing but memory depends on it."""
    # A layer's numbers a token, about: x, mid, o, n, dx and three for qkv; gate, up and a.
    per_token = 8 * config.dim + 3 * config.hidden
    return max(1, min(B, MICRO_BATCH // (per_token * T)))


def micro_batches(config, ids, buffers, dtype):
    """Yields slices of the rows of ids (B,T), each with buffers of its size."""
    B, T = ids.shape
    buffers = buffers or Buffers(config, micro_batch(config, B, T), T, dtype)
    for i in range(0, B, buffers.B):
        n = min(buffers.B, B - i)
        yield slice(i, i + n), buffers if n == buffers.B else Buffers(config, n, T, dtype)


def rope_tables(config, T, dtype=np.float32):
    """cos, sin (T,D/2) of the angles position * theta**(-2i/D) (Su et al. 2021, equation 15).

    For D = 32 pair i = 0 turns by 1 radian a position, the next ones by 0.56 and 0.32, the last by
    0.00018: so slowly that a context of 256 is less than a hundredth of a turn."""
    D = config.head_dim
    speed = config.theta ** (-np.arange(0, D, 2) / D)  # radians a position
    if config.rope_scaling:  # Llama 3.1 slows down the slow pairs, for a longer context
        factor, low, high, original = config.rope_scaling
        turns = original * speed / (2 * np.pi)
        keep = np.clip((turns - low) / (high - low), 0, 1)  # below `low` turns: `factor` slower
        speed = speed * (keep + (1 - keep) / factor)
    angles = np.outer(np.arange(T), speed)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def check_ids(ids, config):
    """ids (B,T) in one block of memory, or ValueError: the kernels don't check bounds, and a wrong
    id would read or write other memory."""
    ids = np.ascontiguousarray(ids)
    wrong = ids[(ids < 0) | (ids >= config.vocab)]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is outside the model's vocabulary of "
                         f"{config.vocab}: is it the tokenizer it was trained with?")
    if ids.shape[-1] > config.ctx:
        raise ValueError(f"{ids.shape[-1]} tokens exceed the model's context of {config.ctx}")
    return ids
