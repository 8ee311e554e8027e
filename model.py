"""3. The network: a Llama-style transformer, every layer forward and backward by hand.

What happens here
    ids (B,T) -> x = embedding[ids] (B,T,C) -> L decoder blocks, each x += attention(rmsnorm(x))
    and x += swiglu(rmsnorm(x)) -> rmsnorm -> logits (B,T,V): at each position, a score for every
    token that could come next. Training adds the way back: the gradient of the loss with respect
    to every parameter, by the chain rule, layer by layer in reverse (backpropagation, backprop).

How it is laid out
    All parameters are views into one flat vector, all gradients into another. Weights are (out, in)
    as in PyTorch's nn.Linear: y = x @ w.T forward; dx = dy @ w and dw = dy.T @ x backward.
    dx always means d loss/d x, and has the shape of x.

Reading order: Config; decoder_block and decoder_block_backward, the heart; loss_and_grads, one
training step; forward and decode, the same network without gradients; then, to skip at first, how
parameters and buffers lie in memory. The operations themselves are in kernels/plain.py.

No automatic differentiation: each backward is written under its forward, and tests/test_model.py
compares every gradient with central differences and with PyTorch.

Sources: Touvron et al. 2023 (LLaMA), Su et al. 2021 (rotary embedding), Ainslie et al. 2023
(grouped-query attention), Press & Wolf 2017 (tied embedding). Left out: dropout (it helps only
when a text is read many times), biases, mixtures of experts, half precision (no gain on a CPU).
"""
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from kernels import (attention_step, fused_attention_backward, fused_attention_forward, matmul,
                     rmsnorm, rmsnorm_backward, rope, scatter_add, softmax_cross_entropy, store_kv,
                     swiglu, swiglu_backward)

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
#
# One layer, on the R = B*T rows of the residual stream x; one row a token, C numbers:
#     n = rmsnorm(x)                              (R,C)
#     q, k, v = n @ w.qkv.T, as heads             (R,(H+2G)D)
#     q, k = rope(q), rope(k)                     rotated by their positions
#     o = attention(q, k, v)                      (R,HD)
#     mid = x + o @ w.o.T                         (R,C)
#     n = rmsnorm(mid)                            (R,C)
#     g, u = n @ w.gate_up.T                      (R,2F)
#     a = silu(g) u                               (R,F)
#     out = mid + a @ w.down.T                    (R,C)
# The code below is this line by line, written into buffers that are allocated once.

def decoder_block(w, config, saved, buffers, out):
    """out (R,C) = the residual stream after one layer, from saved.x (R,C). w: BlockWeights.

    Attention moves information between tokens; SwiGLU works on each token alone. Both read a
    normed copy of the stream and add what they found. The stream itself is never normed, so that
    gradients pass through any number of layers without being scaled."""
    b, s = buffers, saved
    # x += attention(rmsnorm(x))
    rmsnorm(s.x, w.norm1, config.eps, b.n)
    matmul(b.n, w.qkv, trans_b=True, out=s.qkv.reshape(len(s.x), -1))  # (R,(H+2G)D)
    rope(s.qkv, config.heads + config.kv_heads, b.positions, b.cos, b.sin, 1)
    heads = (b.B, b.T, -1, config.head_dim)  # from rows (R,...) to (B,T,heads,D), all views
    fused_attention_forward(s.qkv.reshape(heads), config.heads, s.o.reshape(heads), s.lse)
    np.copyto(s.mid, s.x)  # the product below adds to it: mid = x + o @ w.o.T
    matmul(s.o, w.o, trans_b=True, out=s.mid, accumulate=True)  # (R,C)

    # x += swiglu(rmsnorm(x))
    rmsnorm(s.mid, w.norm2, config.eps, b.n)
    matmul(b.n, w.gate_up, trans_b=True, out=s.gu)  # (R,2F)
    swiglu(s.gu, b.a)  # (R,F)
    np.copyto(out, s.mid)
    matmul(b.a, w.down, trans_b=True, out=out, accumulate=True)  # (R,C)


def decoder_block_backward(w, dw, config, saved, buffers):
    """Turns buffers.dx (R,C) from d loss/d out into d loss/d saved.x; adds to the gradients dw.

    Read it beside decoder_block, from that one's last line up. Two rules give all of it:
        out = x + f(x):  d loss/d x = dx + what comes back through f. So dx stays where it is, and
        each of the two branches adds its part (the last thing that rmsnorm_backward does).
        y = n @ w.T, y_ri = sum_j n_rj w_ij:  dn = dy @ w and dw = dy.T @ n, summed over rows.
    The forward kept what is in Saved. It did not keep n and a: they are computed once more here,
    which costs little beside the matrix products."""
    b, s, dx = buffers, saved, buffers.dx
    # The feed-forward layer, out = mid + a @ w.down.T
    matmul(dx, w.down, out=b.a)  # d loss/d a (R,F)
    swiglu_backward(s.gu, b.a)  # s.gu is its gradient now, and b.a is a again
    matmul(dx, b.a, trans_a=True, out=dw.down, accumulate=True)  # (C,F)
    rmsnorm(s.mid, w.norm2, config.eps, b.n)
    matmul(s.gu, b.n, trans_a=True, out=dw.gate_up, accumulate=True)  # (2F,C)
    matmul(s.gu, w.gate_up, out=b.dn)  # (R,C)
    rmsnorm_backward(b.dn, s.mid, w.norm2, config.eps, dx, dw.norm2)  # dx is d loss/d mid now

    # Attention, mid = x + o @ w.o.T
    matmul(dx, w.o, out=b.do)  # (R,HD)
    matmul(dx, s.o, trans_a=True, out=dw.o, accumulate=True)
    heads = (b.B, b.T, -1, config.head_dim)
    fused_attention_backward(b.do.reshape(heads), s.qkv.reshape(heads), config.heads,
                             s.o.reshape(heads), s.lse, b.dqkv.reshape(heads))
    rope(b.dqkv, config.heads + config.kv_heads, b.positions, b.cos, b.sin, -1)
    dqkv = b.dqkv.reshape(len(dx), -1)  # (R,(H+2G)D)
    rmsnorm(s.x, w.norm1, config.eps, b.n)
    matmul(dqkv, b.n, trans_a=True, out=dw.qkv, accumulate=True)
    matmul(dqkv, w.qkv, out=b.dn)  # (R,C)
    rmsnorm_backward(b.dn, s.x, w.norm1, config.eps, dx, dw.norm1)  # and d loss/d saved.x


# ---- All layers ----------------------------------------------------------------------------------

def transformer(params, config, ids, buffers, cache=None):
    """The residual stream (R,C) after the last block, for ids (B,T); into buffers.x.

    A token's embedding starts the stream, and every layer adds to it. Each block writes its output
    where the next one keeps its input, so nothing is copied. With a cache, the keys and values of
    every layer are stored there too (prefill)."""
    saved = buffers.saved
    np.take(params["model.embed_tokens.weight"], ids.reshape(-1), axis=0, out=saved[0].x)
    for layer, w in enumerate(block_weights(params, config)):
        last = layer == config.layers - 1
        decoder_block(w, config, saved[layer], buffers, buffers.x if last else saved[layer + 1].x)
        # From the order of the tokens (B,T,G,D) to the cache's (B,G,T,D), where one head's keys
        # are contiguous.
        if cache is not None:
            qkv = saved[layer].qkv.reshape(buffers.B, buffers.T, -1, config.head_dim)
            k, v = np.split(qkv[:, :, config.heads:], 2, axis=2)
            cache.k[layer, :buffers.B, :, :buffers.T] = k.transpose(0, 2, 1, 3)
            cache.v[layer, :buffers.B, :, :buffers.T] = v.transpose(0, 2, 1, 3)
    return buffers.x


def transformer_backward(params, grads, config, ids, buffers):
    """From buffers.dx, the gradient of what transformer returned, to the gradients of everything
    before it: adds to grads, last to the embedding's."""
    weights, dweights = block_weights(params, config), block_weights(grads, config)
    for layer in reversed(range(config.layers)):
        decoder_block_backward(weights[layer], dweights[layer], config, buffers.saved[layer],
                               buffers)
    scatter_add(buffers.dx, ids.reshape(-1), grads["model.embed_tokens.weight"])


def head_loss(params, grads, config, x, targets, weights, buffers):
    """Losses (R,) of x (R,C) through the final norm and the output head, and the way back:
    buffers.dx (R,C), and what head and norm add to grads. With grads None, only the losses.

    targets, weights (R,): a weight is what a token's loss counts in the total, 1/n in a mean of n.
    logits = n @ w.T is a product like all others: dn = dlogits @ w, dw += dlogits.T @ n. If tied,
    w is the embedding, and transformer_backward adds to the same gradient.

    The logits (R,V) would be the largest array of all. So they are computed HEAD_ROWS rows at a
    time, turned into their gradient in place, multiplied back, and overwritten by the next rows."""
    norm, w = params["model.norm.weight"], output_head(params, config)
    losses = np.empty(len(x), x.dtype)
    rmsnorm(x, norm, config.eps, buffers.n)
    for i in range(0, len(x), HEAD_ROWS):
        rows = slice(i, min(i + HEAD_ROWS, len(x)))
        logits = buffers.logits[:rows.stop - i]
        matmul(buffers.n[rows], w, trans_b=True, out=logits)  # (rows,V)
        softmax_cross_entropy(logits, targets[rows], weights[rows], losses[rows])
        if grads is not None:
            dw = output_head(grads, config)
            matmul(logits, buffers.n[rows], trans_a=True, out=dw, accumulate=True)  # (V,C)
            matmul(logits, w, out=buffers.dn[rows])  # (rows,C)
    if grads is not None:
        buffers.dx[...] = 0
        rmsnorm_backward(buffers.dn, x, norm, config.eps, buffers.dx, grads["model.norm.weight"])
    return losses


# ---- The training step's first half: loss and gradients. optimizer.py is the second --------------

def loss_and_grads(params, config, ids, targets, mask=None, grads=None, buffers=None, weights=None):
    """Mean loss in nats per counted token of ids and targets (B,T), and its gradients by parameter.

    mask (B,T) is 1 where a target counts (everywhere if None); with no counted token the loss is 0.
    weights (B,T), instead of a mask, count as they are and may be negative: the loss is their sum
    over the tokens' losses (rl.py's policy gradient). Given grads are overwritten, and with given
    buffers nothing large is allocated. Raises ValueError for ids outside the vocabulary."""
    params, ids, targets = checked(params, config, ids, targets)
    if weights is None:
        weights = np.ones(ids.shape) if mask is None else np.asarray(mask, np.float64)
        weights = weights / max(weights.sum(), 1e-30)
    weights = np.asarray(weights, vector(params).dtype)
    if grads is None:
        grads = views(np.empty_like(vector(params)), config)
    vector(grads)[:] = 0  # every product below adds
    loss = 0.0
    # Each micro-batch goes forward and back before the next: the buffers hold one at a time.
    for rows, part in micro_batches(config, ids, buffers, vector(params).dtype):
        x = transformer(params, config, ids[rows], part)
        w = weights[rows].reshape(-1)
        losses = head_loss(params, grads, config, x, targets[rows].reshape(-1), w, part)
        loss += float(np.dot(losses.astype(np.float64), w))
        transformer_backward(params, grads, config, ids[rows], part)
    return loss, grads


def token_losses(params, config, ids, targets, buffers=None):
    """Loss in nats of each target (B,T): minus the log of its probability. No gradients.

    For evaluation (train.py) and for the log-probabilities that rl.py compares."""
    params, ids, targets = checked(params, config, ids, targets)
    out = np.zeros(ids.shape, vector(params).dtype)
    for rows, part in micro_batches(config, ids, buffers, out.dtype):
        x = transformer(params, config, ids[rows], part)
        unused = np.zeros(x.shape[0], x.dtype)  # weights matter for gradients only
        out[rows] = head_loss(params, None, config, x, targets[rows].reshape(-1), unused,
                              part).reshape(-1, ids.shape[1])
    return out


def checked(params, config, ids, targets):
    """params, ids and targets as the kernels want them, or ValueError."""
    ids, targets = np.ascontiguousarray(ids), np.ascontiguousarray(targets)
    if ids.shape != targets.shape or ids.ndim != 2:
        raise ValueError(f"ids {ids.shape} and targets {targets.shape} must both be (B,T)")
    check_ids(ids, config)
    check_ids(targets, config)
    return pack(params, config), ids, targets


def check_ids(ids, config):
    """Kernels don't check bounds (a wrong id would read or write other memory), so this does."""
    if ids.size and (ids.min() < 0 or ids.max() >= config.vocab):
        wrong = ids.max() if ids.max() >= config.vocab else ids.min()
        raise ValueError(f"token id {wrong} is outside the model's vocabulary of {config.vocab}: "
                         "is it the tokenizer it was trained with?")
    if ids.shape[-1] > config.ctx:
        raise ValueError(f"{ids.shape[-1]} tokens are more than the model's context of "
                         f"{config.ctx}")


# ---- Inference: all positions at once, or token by token with a KV cache -------------------------
# A new token needs nothing of the tokens before it but their keys and values in each layer, and
# these never change, since no token sees a later one. Prefill computes them for the prompt in one
# pass; decode then costs one row a token instead of the whole text.

def forward(params, config, ids):
    """logits (B,T,V) for ids (B,T): at each position, for the token after it; all in memory."""
    ids = np.ascontiguousarray(ids)
    check_ids(ids, config)
    params = pack(params, config)
    buffers = Buffers(config, *ids.shape, vector(params).dtype, training=False)
    x = transformer(params, config, ids, buffers)
    return next_logits(params, config, x).reshape(*ids.shape, config.vocab)


def next_logits(params, config, x):
    """logits (N,V) from rows x (N,C) of the residual stream after the last block."""
    n = np.empty_like(x)
    rmsnorm(x, params["model.norm.weight"], config.eps, n)
    return matmul(n, output_head(params, config), trans_b=True)


class Cache:
    """The KV cache: keys and values (L,B,G,S,D) of what B sequences hold so far, and their lengths
    (B,). S: the most tokens a sequence can have, at most ctx. Keys are stored after rope, since
    their positions are known. It also holds params, and each layer's weights beside its part of k
    and v."""

    def __init__(self, params, config, B, S):
        self.params = pack(params, config)
        dtype = vector(self.params).dtype
        shape = (config.layers, B, config.kv_heads, min(S, config.ctx), config.head_dim)
        self.k, self.v = np.empty(shape, dtype), np.empty(shape, dtype)
        self.lengths = np.zeros(B, np.int64)
        self.cos, self.sin = rope_tables(config, shape[3], dtype)
        self.layers = list(zip(block_weights(self.params, config), self.k, self.v))


def prefill(config, cache, ids, lengths):
    """Fills the cache with prompts ids (B,T), of which row b counts lengths[b]. What follows there
    is padding: no earlier position sees it, and decode overwrites it. Returns the logits (B,V) of
    each row's last token."""
    ids, params = np.ascontiguousarray(ids), cache.params
    check_ids(ids, config)
    buffers = Buffers(config, *ids.shape, vector(params).dtype, training=False)
    x = transformer(params, config, ids, buffers, cache)
    last = x.reshape(*ids.shape, -1)[np.arange(len(ids)), lengths - 1]  # (B,C), a copy
    cache.lengths[:len(ids)] = lengths
    return next_logits(params, config, last)


def decode(config, cache, ids, rows):
    """Appends one token ids (N,) to each of the sequences rows (N,); returns their logits (N,V).

    decoder_block once more, for one new row a sequence: its k and v join the cache, and its q meets
    all of it. The sequences may have different lengths; finished ones are just not in rows."""
    params, positions = cache.params, cache.lengths[rows]
    if positions.max() >= cache.k.shape[3]:
        raise ValueError(f"the cache holds {cache.k.shape[3]} tokens a sequence, and one is full")
    dtype, N, D = cache.k.dtype, len(ids), config.head_dim
    x = params["model.embed_tokens.weight"][ids]  # (N,C)
    n, a = np.empty_like(x), np.empty((N, config.hidden), dtype)
    qkv, gu = np.empty((N, config.all_heads, D), dtype), np.empty((N, 2 * config.hidden), dtype)
    q, o = qkv[:, :config.heads], np.empty((N, config.heads, D), dtype)
    cache.lengths[rows] = positions + 1
    for w, k_cache, v_cache in cache.layers:
        rmsnorm(x, w.norm1, config.eps, n)
        matmul(n, w.qkv, trans_b=True, out=qkv.reshape(N, -1))  # (N,(H+2G)D)
        rope(qkv, config.heads + config.kv_heads, positions, cache.cos, cache.sin, 1)
        store_kv(qkv, k_cache, v_cache, rows, positions)
        attention_step(q, k_cache, v_cache, positions + 1, rows, o)  # q is a view into qkv
        matmul(o.reshape(N, -1), w.o, trans_b=True, out=x, accumulate=True)  # (N,C)
        rmsnorm(x, w.norm2, config.eps, n)
        matmul(n, w.gate_up, trans_b=True, out=gu)  # (N,2F)
        swiglu(gu, a)  # (N,F)
        matmul(a, w.down, trans_b=True, out=x, accumulate=True)
    return next_logits(params, config, x)


# ---- Parameters (skip at first): one flat vector, and named views into it ------------------------
# What treats all parameters alike (the gradient's norm, the optimizer) is one call on one vector:
#
#      | embedding | output head if untied | layer 0: q k v o gate up down | layer 1 ... | norms |
#      |<----------------- matrices (2 axes): weight decay ---------------------------->|

def shapes(config):
    """name -> shape, by Hugging Face's names in the flat vector's order: matrices, then norms.

    Matrices come first because only they get weight decay: it ends at one index. Within a layer
    the order puts q, k, v and gate, up next to each other (see block_weights)."""
    C, F, D = config.dim, config.hidden, config.head_dim
    matrices, norms = {"model.embed_tokens.weight": (config.vocab, C)}, {}
    if not config.tied:
        matrices["lm_head.weight"] = (config.vocab, C)
    for layer in range(config.layers):
        name = f"model.layers.{layer}."
        matrices[name + "self_attn.q_proj.weight"] = (config.heads * D, C)
        matrices[name + "self_attn.k_proj.weight"] = (config.kv_heads * D, C)
        matrices[name + "self_attn.v_proj.weight"] = (config.kv_heads * D, C)
        matrices[name + "self_attn.o_proj.weight"] = (C, config.heads * D)
        matrices[name + "mlp.gate_proj.weight"] = (F, C)
        matrices[name + "mlp.up_proj.weight"] = (F, C)
        matrices[name + "mlp.down_proj.weight"] = (C, F)
        norms[name + "input_layernorm.weight"] = (C,)
        norms[name + "post_attention_layernorm.weight"] = (C,)
    return matrices | norms | {"model.norm.weight": (C,)}


def count(config):
    """Number of parameters, and how many of them are in matrices (which come first)."""
    sizes = [(int(np.prod(shape)), len(shape)) for shape in shapes(config).values()]
    return sum(n for n, _ in sizes), sum(n for n, axes in sizes if axes == 2)


def flops_per_token(config, T):
    """Floating-point operations of a training step (Chowdhery et al. 2022, appendix B).

    A parameter of a matrix is one multiplication and one addition a token forward, and twice that
    backward (for dx and for dw): 6. Attention's two products, q k^T and p v, are 2 T C each a layer
    forward, so 12 L C T with the backward; the masked half, which we skip, counts too."""
    return 6 * count(config)[0] + 12 * config.layers * config.dim * T


def views(flat, config):
    """The named parameters as views into a flat vector of count(config) numbers: to change one is
    to change the other."""
    out, start = {}, 0
    for name, shape in shapes(config).items():
        size = int(np.prod(shape))
        out[name] = flat[start:start + size].reshape(shape)
        start += size
    return out


def vector(params):
    """The one flat vector that all of these parameters (or gradients) are views of."""
    return params["model.embed_tokens.weight"].base


def pack(params, config):
    """params as views of one flat vector: themselves if they are, else copies in a new one. So a
    caller may bring separate arrays, and ours are never copied."""
    for name, shape in shapes(config).items():
        if name not in params or params[name].shape != shape:
            found = params[name].shape if name in params else "nothing"
            raise ValueError(f"parameter {name}: expected {shape}, found {found}")
    base = vector(params)
    if base is not None and base.size == count(config)[0]:
        if all(p.base is base for p in params.values()):
            return params
    packed = views(np.empty(count(config)[0], params["model.norm.weight"].dtype), config)
    for name, p in packed.items():
        p[...] = params[name]
    return packed


def init_params(config, seed=0, dtype=np.float32):
    """Matrices from N(0, 0.02^2); the two that write into the residual stream are smaller by
    sqrt(2L) (GPT-2): 2L terms are summed there, so its variance doesn't grow with depth. With
    numbers this small all logits are near 0, and the first loss is near log(V): all tokens are
    equally likely. Norms start as 1."""
    rng = np.random.default_rng(seed)
    params = views(np.empty(count(config)[0], dtype), config)
    for name, p in params.items():
        if p.ndim == 1:
            p[:] = 1
        else:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = INIT_STD / np.sqrt(2 * config.layers) if residual else INIT_STD
            p[:] = rng.normal(0, std, p.shape)
    return params


def grow(params, config, vocab, seed=0):
    """(params, config) with rows added to the embedding, and the untied head, up to `vocab`: for
    tokens that the network has never met (sft.py's chat tokens).

    A new row is sampled like an old one: their mean, plus noise of their spread (Hewitt 2021).
    Measured on conversations, in nats, after 20 and 60 steps: 2.4 and 0.85 so; 2.6 and 1.23 with
    the mean alone, as tokens with equal rows can't be told apart; 2.8 and 0.98 with small random
    rows."""
    grown = replace(config, vocab=vocab)
    out, rng = views(np.empty(count(grown)[0], np.float32), grown), np.random.default_rng(seed)
    for name, p in params.items():
        out[name][:len(p)] = p
        noise = rng.standard_normal((len(out[name]) - len(p), *p.shape[1:]))
        out[name][len(p):] = p.mean(0) + p.std(0) * noise
    return out, grown


def not_finite(arrays):
    """The name of the first of these parameters or gradients that holds a NaN or infinity, or None.
    For messages: a training run that went wrong says where."""
    return next((name for name, x in arrays.items() if not np.isfinite(x).all()), None)


class BlockWeights(NamedTuple):
    """One block's matrices (out, in) and norms, with q, k, v and gate, up joined; of the gradients
    likewise. Rows of qkv stand head by head: H heads of q, G of k, G of v, D rows each."""
    norm1: np.ndarray  # (C,)
    qkv: np.ndarray  # ((H+2G)D, C)
    o: np.ndarray  # (C, HD)
    norm2: np.ndarray  # (C,)
    gate_up: np.ndarray  # (2F, C)
    down: np.ndarray  # (C, F)


def block_weights(params, config):
    """The BlockWeights of each layer, all views. q_proj, k_proj and v_proj are three matrices in a
    checkpoint. In the flat vector they lie next to each other, so the same numbers can be read as
    one matrix of (H+2G)D rows, without a copy, and one product takes the place of three."""
    base, out = vector(params), []

    def joined(first, n_rows):
        """(n_rows,C): the matrix `first` and the rows that follow it in the flat vector."""
        start = (params[first].ctypes.data - base.ctypes.data) // base.itemsize
        return base[start:start + n_rows * config.dim].reshape(n_rows, config.dim)
    for layer in range(config.layers):
        name = f"model.layers.{layer}."
        out.append(BlockWeights(
            params[name + "input_layernorm.weight"],
            joined(name + "self_attn.q_proj.weight", config.all_heads * config.head_dim),
            params[name + "self_attn.o_proj.weight"],
            params[name + "post_attention_layernorm.weight"],
            joined(name + "mlp.gate_proj.weight", 2 * config.hidden),
            params[name + "mlp.down_proj.weight"]))
    return out


def output_head(params, config):
    """The output head (V,C): the embedding itself when tied. Then one matrix says what a token
    means as input and how likely it is as output, and its gradient is the sum of both."""
    return params["model.embed_tokens.weight" if config.tied else "lm_head.weight"]


# ---- Buffers (skip at first): every activation has its array, allocated once ---------------------

class Saved(NamedTuple):
    """What a block keeps for its backward."""
    x: np.ndarray  # (R,C) residual stream that came in
    qkv: np.ndarray  # (R,H+2G,D) after rope
    o: np.ndarray  # (R,HD) head outputs
    lse: np.ndarray  # (B,H,T) log of the softmax's denominator
    mid: np.ndarray  # (R,C) residual stream after attention
    gu: np.ndarray  # (R,2F) gate and up


class Buffers:
    """For micro-batches of B sequences of T tokens, R = B*T rows. In training each layer has a
    Saved of its own; without, one serves all layers in turn. The other arrays serve all layers in
    any case: nobody reads them after the layer is done."""

    def __init__(self, config, B, T, dtype=np.float32, training=True):
        C, F, D, R = config.dim, config.hidden, config.head_dim, B * T

        def empty(*shape):
            return np.empty(shape, dtype)

        def saved():
            return Saved(empty(R, C), empty(R, config.all_heads, D), empty(R, config.heads * D),
                         empty(B, config.heads, T), empty(R, C), empty(R, 2 * F))
        self.B, self.T = B, T
        self.saved = ([saved() for _ in range(config.layers)] if training
                      else [saved()] * config.layers)
        self.n, self.a, self.x = empty(R, C), empty(R, F), empty(R, C)
        self.cos, self.sin = rope_tables(config, T, dtype)
        self.positions = np.tile(np.arange(T), B)
        if training:
            self.dx, self.dn = empty(R, C), empty(R, C)
            self.do, self.dqkv = empty(R, config.heads * D), empty(R, config.all_heads, D)
            self.logits = empty(min(R, HEAD_ROWS), config.vocab)


def micro_batch(config, B, T):
    """How many of B sequences of T tokens go through at a time. The gradient of a sum is the sum of
    the gradients, so nothing but memory depends on it."""
    # A layer's numbers a token, about: x, mid, o, n, dx and three for qkv; gate, up and a.
    per_token = 8 * config.dim + 3 * config.hidden
    return max(1, min(B, MICRO_BATCH // (per_token * T)))


def micro_batches(config, ids, buffers, dtype):
    """Yields slices of the rows of ids (B,T), each with buffers of its size; the last may be
    smaller."""
    B, T = ids.shape
    buffers = buffers or Buffers(config, micro_batch(config, B, T), T, dtype)
    for i in range(0, B, buffers.B):
        n = min(buffers.B, B - i)
        yield slice(i, i + n), buffers if n == buffers.B else Buffers(config, n, T, dtype)


def rope_tables(config, T, dtype=np.float32):
    """cos, sin (T,D/2) of the angles position * theta**(-2i/D) (Su et al. 2021, equation 15).

    Pair i = 0 turns by one radian a position; the last by little more than 1 / theta, so slowly
    that the whole context is a small part of a turn."""
    D = config.head_dim
    speed = config.theta ** (-np.arange(0, D, 2) / D)  # radians a position
    # Llama 3.1 stretches the slow pairs for a context longer than they were trained on: a pair that
    # made fewer than `low` turns over the original context turns `factor` times slower, one with
    # more than `high` turns stays, and between them it is a mixture.
    if config.rope_scaling:
        factor, low, high, original = config.rope_scaling
        turns = original * speed / (2 * np.pi)  # that a pair makes over the original context
        keep = np.clip((turns - low) / (high - low), 0, 1)
        speed = speed * (keep + (1 - keep) / factor)
    angles = np.outer(np.arange(T), speed)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
