"""The network: a Llama-style decoder, every layer forward and backward by hand; load and save.

What happens here
    ids (B,T) -> x = embed[ids] (B,T,C) -> L blocks of  x += attention(rmsnorm(x)),
    x += swiglu(rmsnorm(x)) -> rmsnorm -> logits (B,T,V) = x @ embed.T: for each place, how likely
    each token is to come next. Training adds the way back: the gradient of the loss with respect to
    every parameter, by the chain rule, layer by layer in reverse.

What it reads and writes
    A checkpoint is a folder in the form of the Hugging Face hub (config.json, model.safetensors,
    tokenizer.json), so other people's Llama-family models open here and ours open in their
    programs. Also llama2.c's .bin files. Nothing is pickled: opening a model can't run code.

How it is laid out
    All parameters are views into one flat vector, all gradients into another, matrices first.
    Weights are (out, in): y = x @ w.T forward, dx = dy @ w and dw = dy.T @ x backward. q, k, v lie
    behind each other, and so do gate and up: each such group is one matrix and one product. A
    step's rows go through in micro-batches whose activations fit the cache; their places are used
    again and again.

Reading order: block and block_backward are the heart; everything above them makes their arrays,
head_loss and loss_and_grads turn them into a training step, decode is the same network for one
token at a time, and the rest is files. No automatic differentiation: each backward is written
under its forward, and tests/test_model.py holds every gradient against central differences.

Sources: Touvron et al. 2023 (LLaMA), Su et al. 2021 (rotary embedding), Ainslie et al. 2023
(grouped-query attention), Press & Wolf 2017 (tied embedding). Left out: dropout (nobody trains
more than an epoch with it), biases, mixtures of experts, half precision (no CPU gains from it).
"""
import json
import os
import shutil
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kernels import (attention_step, fused_attention_backward, fused_attention_forward, matmul,
                     rmsnorm, rmsnorm_backward, rope, scatter_add, softmax_cross_entropy, store_kv,
                     swiglu, swiglu_backward)

MICRO = 4_300_000  # numbers per layer that a micro-batch may touch: 17 MB, about a shared L3 cache
HEAD_ROWS = 512  # rows of logits in memory at a time: 512 x 32,000 x 4 bytes = 65 MB
INIT_STD = 0.02  # of all matrices at the start (GPT-2's)


@dataclass(frozen=True)
class Config:
    """The sizes of a network; the default is the 5M model of the size dial."""
    vocab: int = 2048  # V
    ctx: int = 256  # T, the most tokens it can look at
    dim: int = 256  # C
    layers: int = 6  # L
    heads: int = 8  # H, query heads
    kv_heads: int = 8  # G, key/value heads; H / G query heads share one
    hidden: int = 688  # F
    theta: float = 10_000.0  # rotary base
    eps: float = 1e-5  # of the norms
    tied: bool = True  # the output head is the embedding
    rope_scaling: tuple = ()  # Llama 3's (factor, low_freq, high_freq, original ctx), or none

    def __post_init__(self):
        # Each head gets dim / heads columns, and rope turns these in pairs.
        if self.dim % self.heads or self.heads % self.kv_heads or self.dim // self.heads % 2:
            raise ValueError(f"config: {self.heads} heads must divide dim {self.dim} into even "
                             f"head sizes, and {self.kv_heads} key/value heads must divide them")

    @property
    def head_dim(self):
        return self.dim // self.heads  # D


SIZES = {  # the size dial: name -> everything but the vocabulary
    "0.3M": dict(ctx=128, dim=64, layers=4, heads=4, kv_heads=4, hidden=192),
    "1M": dict(ctx=128, dim=128, layers=4, heads=4, kv_heads=4, hidden=344),
    "5M": dict(ctx=256, dim=256, layers=6, heads=8, kv_heads=8, hidden=688),
    "25M": dict(ctx=512, dim=512, layers=8, heads=8, kv_heads=4, hidden=1376),
}


# ---- Parameters: one flat vector, and named views into it. What treats all parameters alike (the
#      gradient's length, the optimizer, zeroing) is one call on one vector:
#
#      | embedding | output head if untied | layer 0: q k v o gate up down | layer 1 ... | norms |
#      |<----------------- matrices (2 axes): weight decay ---------------------------->|

def shapes(config):
    """name -> shape, by Hugging Face's names in the flat vector's order: matrices, then norms.

    Matrices come first because only they get weight decay: it ends at one place. Within a layer
    the order puts q, k, v and gate, up behind each other (see blocks)."""
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


def flat(params):
    """The one vector that all of these parameters (or gradients) are views of."""
    return params["model.embed_tokens.weight"].base


def pack(params, config):
    """params as views of one flat vector: themselves if they are, else copies in a new one. So a
    caller may bring separate arrays, and ours are never copied."""
    wanted = shapes(config)
    for name, shape in wanted.items():
        if name not in params or params[name].shape != shape:
            found = params[name].shape if name in params else "nothing"
            raise ValueError(f"parameter {name}: expected {shape}, found {found}")
    base = flat(params)
    if base is not None and base.size == count(config)[0]:
        if all(p.base is base for p in params.values()):
            return params
    packed = views(np.empty(count(config)[0], params["model.norm.weight"].dtype), config)
    for name, p in packed.items():
        p[...] = params[name]
    return packed


def init_params(config, seed=0, dtype=np.float32):
    """Matrices from N(0, 0.02); the two that write into the residual stream smaller by sqrt(2L)
    (GPT-2): 2L terms are summed there, so its variance doesn't grow with depth. With
    numbers this small all logits are near 0, and the first loss is near log(V): any token equally
    likely. Norms start as 1."""
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


class Weights(NamedTuple):
    """One block's matrices (out, in) and norms, groups joined; of the gradients likewise. Rows of
    qkv stand head by head: H heads of q, G of k, G of v, D rows each."""
    norm1: np.ndarray  # (C,)
    qkv: np.ndarray  # ((H+2G)D, C)
    o: np.ndarray  # (C, HD)
    norm2: np.ndarray  # (C,)
    gate_up: np.ndarray  # (2F, C)
    down: np.ndarray  # (C, F)


def blocks(params, config):
    """The Weights of each layer, all views: what lies behind each other reads as one matrix.

    So q_proj, k_proj and v_proj, three matrices in a checkpoint, are one (H+2G)D x C matrix here,
    without a copy, and one product takes the place of three."""
    base, out, start = flat(params), [], 0
    places = {}  # name -> where it begins in the flat vector
    for name, shape in shapes(config).items():
        places[name] = start
        start += int(np.prod(shape))

    def joined(first, rows):
        """(rows,C): the matrix `first` and what follows it."""
        return base[places[first]:places[first] + rows * config.dim].reshape(rows, config.dim)
    heads = config.heads + 2 * config.kv_heads
    for layer in range(config.layers):
        name = f"model.layers.{layer}."
        out.append(Weights(params[name + "input_layernorm.weight"],
                           joined(name + "self_attn.q_proj.weight", heads * config.head_dim),
                           params[name + "self_attn.o_proj.weight"],
                           params[name + "post_attention_layernorm.weight"],
                           joined(name + "mlp.gate_proj.weight", 2 * config.hidden),
                           params[name + "mlp.down_proj.weight"]))
    return out


def head(params, config):
    """The output head (V,C): the embedding itself when tied. Then one matrix says what a token
    means coming in and how likely it is going out, and its gradient is the sum of both."""
    return params["model.embed_tokens.weight" if config.tied else "lm_head.weight"]


# ---- Buffers: every activation has its place, allocated once and not once a step ----

class Saved(NamedTuple):
    """What a block keeps for its backward. The normed inputs n and a = silu(g) u are made again
    there: one pass over rows costs little beside the products, and keeping them would take
    2C + F more numbers a token and layer."""
    x: np.ndarray  # (R,C) residual stream that came in
    qkv: np.ndarray  # (R,H+2G,D) after rope
    o: np.ndarray  # (R,HD) head outputs
    lse: np.ndarray  # (B,H,T) log of the softmax's denominator
    mid: np.ndarray  # (R,C) residual stream after attention
    gu: np.ndarray  # (R,2F) gate and up


def micro_batch(config, B, T):
    """How many of B sequences of T tokens go through at a time: the gradient of a mean is the sum
    of its parts' gradients, so nothing but the memory it takes depends on the cut."""
    # A layer's numbers a token, about: x, mid, o, n, dx and three for qkv; gate, up and a.
    per_token = 8 * config.dim + 3 * config.hidden
    return max(1, min(B, MICRO // (per_token * T)))


class Buffers:
    """For micro-batches of B sequences of T tokens, R = B*T rows. In training each layer has a
    Saved of its own; without, one serves all layers in turn. n, a, x and the gradients' places
    (dx and so on) serve all layers in any case: nobody reads them after the layer is done."""

    def __init__(self, config, B, T, dtype=np.float32, training=True):
        C, F, D, R = config.dim, config.hidden, config.head_dim, B * T
        heads = config.heads + 2 * config.kv_heads

        def empty(*shape):
            return np.empty(shape, dtype)

        def saved():
            return Saved(empty(R, C), empty(R, heads, D), empty(R, config.heads * D),
                         empty(B, config.heads, T), empty(R, C), empty(R, 2 * F))
        self.B, self.T = B, T
        self.saved = [saved() for _ in range(config.layers if training else 1)]
        if not training:
            self.saved *= config.layers
        self.n, self.a, self.x = empty(R, C), empty(R, F), empty(R, C)
        self.cos, self.sin = rope_tables(config, T, dtype)
        self.positions = np.tile(np.arange(T), B)
        if training:
            self.dx, self.dn = empty(R, C), empty(R, C)
            self.do, self.dqkv = empty(R, config.heads * D), empty(R, heads, D)
            self.logits = empty(min(R, HEAD_ROWS), config.vocab)


def rope_tables(config, T, dtype=np.float32):
    """cos, sin (T,D/2) of the angles position * theta**(-2i/D) (Su et al. 2021, equation 15).

    Pair i = 0 turns by one radian a position; the last by little more than 1 / theta, so
    slowly that the whole context is a small part of a turn."""
    D = config.head_dim
    speed = config.theta ** (-np.arange(0, D, 2) / D)  # radians a position
    # Llama 3.1 stretches the slow pairs for a context longer than they were trained on: a pair that
    # made fewer than `low` turns over the original context turns `factor` times slower, one with
    # more than `high` turns stays, and between them it is a mixture.
    if config.rope_scaling:
        factor, low, high, original = config.rope_scaling
        turns = original * speed / (2 * np.pi)  # that a wave makes over the original context
        keep = np.clip((turns - low) / (high - low), 0, 1)
        speed = speed * (keep + (1 - keep) / factor)
    angles = np.outer(np.arange(T), speed)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def split_qkv(qkv, config, B, T):
    """q (B,T,H,D), k and v (B,T,G,D): views into qkv (R,H+2G,D), H + G + G heads side by side."""
    H, G = config.heads, config.kv_heads
    qkv = qkv.reshape(B, T, H + 2 * G, config.head_dim)
    return qkv[:, :, :H], qkv[:, :, H:H + G], qkv[:, :, H + G:]


# ---- The story: forward and, under each, its backward ----
#
# One layer, on the R = B*T rows of the residual stream x; one row a token, C numbers:
#     n = rmsnorm(x)                              (R,C)
#     q, k, v = n @ w.qkv.T, cut into heads       (R,(H+2G)D)
#     q, k = rope(q), rope(k)                     turned by their places in the text
#     o = attention(q, k, v)                      (R,HD), each query head's findings side by side
#     mid = x + o @ w.o.T                         (R,C)
#     n = rmsnorm(mid)                            (R,C)
#     g, u = n @ w.gate_up.T                      (R,2F)
#     a = silu(g) u                               (R,F)
#     out = mid + a @ w.down.T                    (R,C)
# The code below is this line by line, written into buffers. d in front of a name is the gradient of
# the loss with respect to it, of the same shape.

def block(w, config, saved, buffers, out):
    """out (R,C) = the residual stream after one layer, of saved.x (R,C).

    Attention moves information between tokens, SwiGLU works on each token alone. Both read a
    normed copy of the stream and add what they found; the stream itself is never normed, so a
    gradient finds its way back through any number of layers. w: the layer's Weights."""
    b, s = buffers, saved
    # x += attention(rmsnorm(x))
    rmsnorm(s.x, w.norm1, config.eps, b.n)
    matmul(b.n, w.qkv, trans_b=True, out=s.qkv.reshape(len(s.x), -1))  # (R,(H+2G)D)
    rope(s.qkv, config.heads + config.kv_heads, b.positions, b.cos, b.sin, 1)
    in_texts = (b.B, b.T, -1, config.head_dim)  # from rows (R,...) to (B,T,heads,D), all views
    fused_attention_forward(s.qkv.reshape(in_texts), config.heads, s.o.reshape(in_texts), s.lse)
    np.copyto(s.mid, s.x)  # the product below adds to it: mid = x + o @ w.o.T
    matmul(s.o, w.o, trans_b=True, out=s.mid, accumulate=True)  # (R,C)

    # x += swiglu(rmsnorm(x))
    rmsnorm(s.mid, w.norm2, config.eps, b.n)
    matmul(b.n, w.gate_up, trans_b=True, out=s.gu)  # (R,2F)
    swiglu(s.gu, b.a)  # (R,F)
    np.copyto(out, s.mid)
    matmul(b.a, w.down, trans_b=True, out=out, accumulate=True)  # (R,C)


def block_backward(w, dw, config, saved, buffers):
    """Turns buffers.dx (R,C), d loss/d out, into d loss/d saved.x; adds to the gradients dw.

    Read it beside block, from its last line up. Two rules give it all:
        out = x + f(x):  d loss/d x = dx + what comes back through f. So dx stays where it is, and
        each of the two branches adds its part (the last act of rmsnorm_backward).
        y = n @ w.T, y_ri = sum_j n_rj w_ij:  dn = dy @ w and dw = dy.T @ n; dw adds up over rows.
    Kept by the forward: Saved. Made again: both n, by rmsnorm, and a, by swiglu_backward."""
    b, s, dx = buffers, saved, buffers.dx
    # Back through the feed-forward layer: out = mid + a @ w.down.T
    matmul(dx, w.down, out=b.a)  # d loss/d a (R,F)
    swiglu_backward(s.gu, b.a)  # s.gu is its gradient now, and b.a is a again
    matmul(dx, b.a, trans_a=True, out=dw.down, accumulate=True)  # (C,F)
    rmsnorm(s.mid, w.norm2, config.eps, b.n)
    matmul(s.gu, b.n, trans_a=True, out=dw.gate_up, accumulate=True)  # (2F,C)
    matmul(s.gu, w.gate_up, out=b.dn)  # (R,C)
    rmsnorm_backward(b.dn, s.mid, w.norm2, config.eps, dx, dw.norm2)  # dx is d loss/d mid now

    # Back through attention: mid = x + o @ w.o.T
    matmul(dx, w.o, out=b.do)  # (R,HD)
    matmul(dx, s.o, trans_a=True, out=dw.o, accumulate=True)
    in_texts = (b.B, b.T, -1, config.head_dim)
    fused_attention_backward(b.do.reshape(in_texts), s.qkv.reshape(in_texts), config.heads,
                             s.o.reshape(in_texts), s.lse, b.dqkv.reshape(in_texts))
    rope(b.dqkv, config.heads + config.kv_heads, b.positions, b.cos, b.sin, -1)
    dqkv = b.dqkv.reshape(len(dx), -1)  # (R,(H+2G)D)
    rmsnorm(s.x, w.norm1, config.eps, b.n)
    matmul(dqkv, b.n, trans_a=True, out=dw.qkv, accumulate=True)
    matmul(dqkv, w.qkv, out=b.dn)  # (R,C)
    rmsnorm_backward(b.dn, s.x, w.norm1, config.eps, dx, dw.norm1)  # and d loss/d saved.x


def trunk(params, config, ids, buffers, cache=None):
    """The residual stream (R,C) behind the last block, for ids (B,T); into buffers.x.

    A token's embedding is the stream's start; all that layers find is added to it. Each block
    writes its output where the next one keeps its input, so nothing is copied. With a cache, the
    keys and values of every layer go there too (prefill)."""
    saved = buffers.saved
    np.take(params["model.embed_tokens.weight"], ids.reshape(-1), axis=0, out=saved[0].x)
    for layer, w in enumerate(blocks(params, config)):
        last = layer == config.layers - 1
        block(w, config, saved[layer], buffers, buffers.x if last else saved[layer + 1].x)
        # From the order of the tokens (B,T,G,D) to the cache's (B,G,T,D), where a head's keys are
        # one contiguous piece.
        if cache is not None:
            _, k, v = split_qkv(saved[layer].qkv, config, buffers.B, buffers.T)
            cache.k[layer, :buffers.B, :, :buffers.T] = k.transpose(0, 2, 1, 3)
            cache.v[layer, :buffers.B, :, :buffers.T] = v.transpose(0, 2, 1, 3)
    return buffers.x


def trunk_backward(params, grads, config, ids, buffers):
    """From buffers.dx, d loss/d (what trunk returned), to the gradients of everything before it:
    adds to grads, the embedding's last."""
    weights, dweights = blocks(params, config), blocks(grads, config)
    for layer in reversed(range(config.layers)):
        block_backward(weights[layer], dweights[layer], config, buffers.saved[layer], buffers)
    scatter_add(buffers.dx, ids.reshape(-1), grads["model.embed_tokens.weight"])


def head_loss(params, grads, config, x, targets, weights, buffers):
    """Losses (R,) of x (R,C) through the final norm and head, and the way back: buffers.dx (R,C)
    and what the head and norm add to grads. Without grads (None), only the losses.

    The logits (R,V) would be the largest array of all: HEAD_ROWS rows at a time they are made,
    turned into their gradient in place, multiplied back, and overwritten by the next. targets and
    weights are (R,); a weight is what a token's loss counts in the loss, 1/n in a mean of n.

    logits = n @ w.T is a product like all others: dn = dlogits @ w, dw += dlogits.T @ n. If tied,
    w is the embedding, and trunk_backward adds to the same gradient what comes by its other use."""
    norm, w = params["model.norm.weight"], head(params, config)
    losses = np.empty(len(x), x.dtype)
    rmsnorm(x, norm, config.eps, buffers.n)
    for i in range(0, len(x), HEAD_ROWS):
        rows = slice(i, min(i + HEAD_ROWS, len(x)))
        logits = buffers.logits[:rows.stop - i]
        matmul(buffers.n[rows], w, trans_b=True, out=logits)  # (rows,V)
        softmax_cross_entropy(logits, targets[rows], weights[rows], losses[rows])
        if grads is not None:
            matmul(logits, buffers.n[rows], trans_a=True, out=head(grads, config), accumulate=True)
            matmul(logits, w, out=buffers.dn[rows])  # (rows,C)
    if grads is not None:
        buffers.dx[...] = 0
        rmsnorm_backward(buffers.dn, x, norm, config.eps, buffers.dx, grads["model.norm.weight"])
    return losses


def loss_and_grads(params, config, ids, targets, mask=None, grads=None, buffers=None, weights=None):
    """Mean loss in nats per counted token of ids and targets (B,T), and its gradients by parameter.

    mask (B,T) is 1 where a target counts (everywhere if None); with no counted token the loss is 0.
    weights (B,T), instead of a mask, count as they are and may be negative: the loss is their sum
    over the tokens' losses (rl.py's policy gradient). Given grads are overwritten, and with given
    buffers nothing large is allocated."""
    params, ids, targets = _checked(params, config, ids, targets)
    if weights is None:
        weights = np.ones(ids.shape) if mask is None else np.asarray(mask, np.float64)
        weights = weights / max(weights.sum(), 1e-30)
    weights = np.asarray(weights, flat(params).dtype)
    if grads is None:
        grads = views(np.empty_like(flat(params)), config)
    flat(grads)[:] = 0  # every product below adds
    loss = 0.0
    for rows, part in micro_batches(config, ids, buffers, flat(params).dtype):
        x = trunk(params, config, ids[rows], part)
        w = weights[rows].reshape(-1)
        # Each part goes forward and back before the next: the buffers hold one part's activations.
        losses = head_loss(params, grads, config, x, targets[rows].reshape(-1), w, part)
        loss += float(np.dot(losses.astype(np.float64), w))
        trunk_backward(params, grads, config, ids[rows], part)
    return loss, grads


def token_losses(params, config, ids, targets, buffers=None):
    """Loss in nats of each target (B,T): minus the log of its probability. No gradients.

    For evaluation (train.py) and for the probabilities that rl.py compares."""
    params, ids, targets = _checked(params, config, ids, targets)
    out = np.zeros(ids.shape, flat(params).dtype)
    for rows, part in micro_batches(config, ids, buffers, out.dtype):
        x = trunk(params, config, ids[rows], part)
        unused = np.zeros(x.shape[0], x.dtype)  # weights matter for gradients only
        out[rows] = head_loss(params, None, config, x, targets[rows].reshape(-1), unused,
                              part).reshape(-1, ids.shape[1])
    return out


def micro_batches(config, ids, buffers, dtype):
    """Cuts ids (B,T) into slices of rows, each with buffers of its size; the last may be less."""
    B, T = ids.shape
    buffers = buffers or Buffers(config, micro_batch(config, B, T), T, dtype)
    for i in range(0, B, buffers.B):
        n = min(buffers.B, B - i)
        yield slice(i, i + n), buffers if n == buffers.B else Buffers(config, n, T, dtype)


def _checked(params, config, ids, targets):
    """What a loss is made of, as the kernels want it, after a look at what could be wrong."""
    ids, targets = np.ascontiguousarray(ids), np.ascontiguousarray(targets)
    if ids.shape != targets.shape or ids.ndim != 2:
        raise ValueError(f"ids {ids.shape} and targets {targets.shape} must both be (B,T)")
    check_ids(ids, config)
    check_ids(targets, config)
    return pack(params, config), ids, targets


def check_ids(ids, config):
    """Kernels don't check bounds (a wrong id would read or write other memory): this does."""
    if ids.size and (ids.min() < 0 or ids.max() >= config.vocab):
        wrong = ids.max() if ids.max() >= config.vocab else ids.min()
        raise ValueError(f"token id {wrong} is outside the model's vocabulary of {config.vocab}: "
                         "is it the tokenizer it was trained with?")
    if ids.shape[-1] > config.ctx:
        raise ValueError(f"{ids.shape[-1]} tokens are more than the model's context of "
                         f"{config.ctx}")


# ---- Inference: all at once, or token by token with a cache of keys and values. A new token needs
#      of the ones before it nothing but their k and v in each layer, and these never change, since
#      no token sees a later one. So decoding costs one row a step instead of the whole text. ----

def forward(params, config, ids):
    """logits (B,T,V) for ids (B,T): at each place, for the token after it; all in memory."""
    ids = np.ascontiguousarray(ids)
    check_ids(ids, config)
    params = pack(params, config)
    buffers = Buffers(config, *ids.shape, flat(params).dtype, training=False)
    x = trunk(params, config, ids, buffers)
    rmsnorm(x, params["model.norm.weight"], config.eps, buffers.n)
    return matmul(buffers.n, head(params, config), trans_b=True).reshape(*ids.shape, config.vocab)


class Cache:
    """Keys and values (L,B,G,S,D) of what B sequences hold so far, and how much that is (B,).

    S: room for so many tokens a sequence, at most ctx. Keys are stored turned by rope, since their
    place is known. It also keeps params, and each layer's weights beside its part of k and v."""

    def __init__(self, params, config, B, S):
        self.params = pack(params, config)
        dtype = flat(self.params).dtype
        shape = (config.layers, B, config.kv_heads, min(S, config.ctx), config.head_dim)
        self.k, self.v = np.empty(shape, dtype), np.empty(shape, dtype)
        self.lengths = np.zeros(B, np.int64)
        self.cos, self.sin = rope_tables(config, shape[3], dtype)
        self.layers = list(zip(blocks(self.params, config), self.k, self.v))


def prefill(config, cache, ids, lengths):
    """Fills the cache with prompts ids (B,T), of which row b counts lengths[b]; what stands behind
    is padding, unseen by what stands before, and overwritten by decode. Returns the logits (B,V)
    of each row's last token."""
    ids, params = np.ascontiguousarray(ids), cache.params
    check_ids(ids, config)
    buffers = Buffers(config, *ids.shape, flat(params).dtype, training=False)
    x = trunk(params, config, ids, buffers, cache)
    last = x.reshape(*ids.shape, -1)[np.arange(len(ids)), lengths - 1]  # (B,C), a copy
    cache.lengths[:len(ids)] = lengths
    n = np.empty_like(last)
    rmsnorm(last, params["model.norm.weight"], config.eps, n)
    return matmul(n, head(params, config), trans_b=True)


def decode(config, cache, ids, rows):
    """Appends one token ids (N,) to each of the sequences rows (N,); returns their logits (N,V).

    block once more, for one new row a sequence: its k and v join the cache, its q meets all of
    it. The N sequences may have different lengths, and finished ones are just not in rows."""
    params, places = cache.params, cache.lengths[rows]
    dtype, N, D = cache.k.dtype, len(ids), config.head_dim
    x = params["model.embed_tokens.weight"][ids]  # (N,C)
    n, a = np.empty_like(x), np.empty((N, config.hidden), dtype)
    qkv = np.empty((N, config.heads + 2 * config.kv_heads, D), dtype)
    q, qkv_flat = qkv[:, :config.heads], qkv.reshape(N, -1)
    o, gu = np.empty((N, config.heads, D), dtype), np.empty((N, 2 * config.hidden), dtype)
    # q is a view: rope turns it in qkv, attention_step reads it there.
    if places.max() >= cache.k.shape[3]:
        raise ValueError(f"the cache holds {cache.k.shape[3]} tokens a sequence, and one is full")
    cache.lengths[rows] = places + 1
    for w, k_cache, v_cache in cache.layers:
        rmsnorm(x, w.norm1, config.eps, n)
        matmul(n, w.qkv, trans_b=True, out=qkv_flat)  # (N,(H+2G)D)
        rope(qkv, config.heads + config.kv_heads, places, cache.cos, cache.sin, 1)
        store_kv(qkv, k_cache, v_cache, rows, places)
        attention_step(q, k_cache, v_cache, places + 1, rows, o)
        matmul(o.reshape(N, -1), w.o, trans_b=True, out=x, accumulate=True)  # (N,C)
        rmsnorm(x, w.norm2, config.eps, n)
        matmul(n, w.gate_up, trans_b=True, out=gu)  # (N,2F)
        swiglu(gu, a)  # (N,F)
        matmul(a, w.down, trans_b=True, out=x, accumulate=True)
    rmsnorm(x, params["model.norm.weight"], config.eps, n)
    return matmul(n, head(params, config), trans_b=True)  # (N,V)


# ---- Files. A checkpoint folder holds
#          config.json        the sizes                model.safetensors       the parameters
#          tokenizer.json     bpe.py's vocabulary      tokenizer_config.json   the chat's form
#      and, where training may go on, optimizer.safetensors and state.json. Weights of half
#      precision are read too, as float32; what we write is float32. ----

KINDS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16,  # BF16: raw bits, see below
         "F64": np.float64, "I64": np.int64}


def read_safetensors(path):
    """Yields (name, array), one at a time, so that a large file never is in memory whole.

    The format: 8 bytes of header length, a JSON header name -> dtype, shape and place, then raw
    numbers. NumPy has no BF16; it is the upper half of a float32, so its bits move up by 16."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0] if size >= 8 else size
        if length > size - 8:
            raise ValueError(f"{path}: not a safetensors file, or cut short ({size} bytes)")
        try:
            header = json.loads(f.read(length))
        except ValueError:
            raise ValueError(f"{path}: not a safetensors file (its header is not JSON)") from None
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if kind not in KINDS:
                raise ValueError(f"{path}: {name} has numbers of type {kind}; known are "
                                 + ", ".join(KINDS))
            n_bytes = int(np.prod(shape)) * np.dtype(KINDS[kind]).itemsize
            if end - begin != n_bytes or 8 + length + end > size:
                raise ValueError(f"{path}: {name} should have {n_bytes} bytes; "
                                 "the file is cut short or damaged")
            f.seek(8 + length + begin)
            numbers = np.frombuffer(f.read(n_bytes), KINDS[kind]).reshape(shape)
            if kind == "BF16":
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            yield name, numbers


def write_safetensors(path, arrays):
    """Writes name -> float32 array in the same format. Blanks behind the header bring the numbers
    to a multiple of 8 bytes, so that programs may map them into memory as they are."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, x in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape),
                        "data_offsets": [start, start + x.nbytes]}
        start += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for x in arrays.values():
            f.write(np.ascontiguousarray(x, np.float32).data)


def save(folder, params, config, tokenizer=None, optimizer=None, state=None):
    """Writes a checkpoint folder under a temporary name and renames it, so that `folder` always is
    a whole one. tokenizer: a bpe.Tokenizer; optimizer: name -> flat vector; state: JSON.

    The keys of config.json are those that transformers reads a Llama by; tokenizer_fingerprint is
    ours. A folder's log.jsonl stays with it."""
    folder = os.path.normpath(folder)
    new, old = folder + ".new", folder + ".old"
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    description = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "torch_dtype": "float32", "vocab_size": config.vocab, "max_position_embeddings": config.ctx,
        "hidden_size": config.dim, "num_hidden_layers": config.layers, "head_dim": config.head_dim,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden, "rope_theta": config.theta, "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied, "attention_bias": False, "mlp_bias": False}
    if config.rope_scaling:
        factor, low, high, original = config.rope_scaling
        description["rope_scaling"] = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original}
    if tokenizer is not None:
        specials = tokenizer.special_tokens
        end = specials.get("<|im_end|>", specials.get("<|endoftext|>"))
        description |= {"bos_token_id": None, "eos_token_id": end,
                        "tokenizer_fingerprint": tokenizer.fingerprint()}
        tokenizer.save(os.path.join(new, "tokenizer.json"))
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.ctx,
                 "eos_token": "<|im_end|>" if "<|im_end|>" in specials else "<|endoftext|>"}
        if "<|im_start|>" in specials:
            about["chat_template"] = CHAT_TEMPLATE
        write_json(os.path.join(new, "tokenizer_config.json"), about)
    write_json(os.path.join(new, "config.json"), description)
    write_safetensors(os.path.join(new, "model.safetensors"), params)
    if optimizer is not None:
        write_safetensors(os.path.join(new, "optimizer.safetensors"), optimizer)
    if state is not None:
        write_json(os.path.join(new, "state.json"), state)
    if os.path.exists(os.path.join(folder, "log.jsonl")):
        shutil.copy(os.path.join(folder, "log.jsonl"), new)
    # A folder can't be renamed over one that is not empty: the old one steps aside first.
    shutil.rmtree(old, ignore_errors=True)
    if os.path.exists(folder):
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


# bpe.render_chat in the template language of the Hugging Face hub.
CHAT_TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>"
                 "{{ message['content'] }}<|im_end|>{% endfor %}"
                 "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}")


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)


def load(path):
    """(params, config) of a Llama-family checkpoint folder or a llama2.c .bin file. Half precision
    becomes float32. What is missing, too much or of another shape is an error that names it."""
    if os.path.isfile(path):
        return load_llama2c(path)
    config = read_config(path)
    wanted = shapes(config)
    params, found = views(np.empty(count(config)[0], np.float32), config), set()
    for file in weight_files(path):
        for name, numbers in read_safetensors(file):
            if name not in wanted:
                if name == "lm_head.weight" or "rotary_emb" in name:
                    continue  # a copy of the tied embedding; angles we compute
                raise ValueError(f"{file}: unexpected {name}; only plain Llama networks are read")
            if numbers.shape != wanted[name]:
                raise ValueError(f"{file}: {name} is {numbers.shape}, "
                                 f"config.json says {wanted[name]}")
            params[name][...] = numbers
            found.add(name)
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]}")
    return params, config


def weight_files(folder):
    """model.safetensors, or the parts that the index of a large model names (by their last names
    only, so that an index can't point out of the folder)."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as f:
            names = dict.fromkeys(json.load(f)["weight_map"].values())
        return [os.path.join(folder, os.path.basename(name)) for name in names]
    return [os.path.join(folder, "model.safetensors")]


def read_config(folder):
    """The Config that a folder's config.json describes. What it can say and we can't do is refused
    by name, since a network that is almost a Llama would load and talk nonsense."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise ValueError(f"{folder}: no checkpoint there (no config.json); "
                         "python train.py makes one")
    with open(path, encoding="utf-8") as f:
        try:
            c = json.load(f)
        except ValueError:
            raise ValueError(f"{path}: not JSON") from None
    heads = c.get("num_attention_heads")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    for fits, problem in [
            (c.get("model_type") == "llama", f"model_type {c.get('model_type')!r}, not 'llama'"),
            (c.get("hidden_act", "silu") == "silu",
             f"hidden_act {c.get('hidden_act')!r}, not 'silu'"),
            (not c.get("attention_bias") and not c.get("mlp_bias"), "biases"),
            (kind in ("default", "llama3"), f"rotary embedding of type {kind!r}"),
            (heads and c.get("head_dim") in (None, c["hidden_size"] // heads),
             "head_dim of its own")]:
        if not fits:
            raise ValueError(f"{path}: {problem}; only plain Llama networks are read")
    scaling = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return Config(
        vocab=c["vocab_size"], ctx=c.get("max_position_embeddings", 2048), dim=c["hidden_size"],
        layers=c["num_hidden_layers"], heads=heads, kv_heads=c.get("num_key_value_heads") or heads,
        hidden=c["intermediate_size"],
        theta=float(c.get("rope_theta") or rope.get("rope_theta", 1e4)),
        eps=c.get("rms_norm_eps", 1e-6), tied=bool(c.get("tie_word_embeddings", False)),
        rope_scaling=tuple(rope[key] for key in scaling) if kind == "llama3" else ())


def load_llama2c(path):
    """llama2.c's first format: seven int32, then float32 matrices, each kind for all layers.

    It turns neighbours (0,1), (2,3) ... where we turn halves, so the rows of q and k are put in
    another order: in each head the even ones first, then the odd ones. Scores don't mind, as long
    as q and k are ordered alike. A negative vocabulary in the header means an output head of its
    own."""
    numbers = np.fromfile(path, np.float32)
    if numbers.size < 7:
        raise ValueError(f"{path}: not a llama2.c model (only {numbers.size * 4} bytes)")
    dim, hidden, layers, heads, kv_heads, vocab, ctx = map(int, numbers[:7].view(np.int32))
    if not (0 < dim <= 65536 and 0 < heads <= dim and 0 < kv_heads <= heads and 0 < layers <= 1000
            and dim % heads == 0 and hidden > 0 and ctx > 0):
        raise ValueError(f"{path}: not a llama2.c model (its header says dim {dim}, {heads} heads)")
    config = Config(abs(vocab), ctx, dim, layers, heads, kv_heads, hidden, tied=vocab > 0)
    D, kv = config.head_dim, kv_heads * config.head_dim
    params, at = views(np.empty(count(config)[0], np.float32), config), 7
    # The order in the file: the embedding, then each kind of weight for all layers.
    order = ["model.embed_tokens.weight"]
    for part in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                 "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj",
                 "mlp.up_proj"):
        order += [f"model.layers.{layer}.{part}.weight" for layer in range(layers)]
    order += ["model.norm.weight", None] + ([] if config.tied else ["lm_head.weight"])
    for name in order:
        n = params[name].size if name else ctx * D  # None: tables of angles, which we compute
        if at + n > numbers.size:
            raise ValueError(f"{path}: cut short: {numbers.size * 4} bytes, "
                             f"more are needed for {name}")
        if name:
            x = numbers[at:at + n].reshape(params[name].shape)
            if "q_proj" in name or "k_proj" in name:
                # (heads, pairs, 2, dim) -> (heads, 2, pairs, dim)
                x = x.reshape(-1, D // 2, 2, dim).transpose(0, 2, 1, 3).reshape(-1, dim)
            params[name][...] = x
        at += n
    return params, config
