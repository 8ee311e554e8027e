"""How a step changes the weights: learning rate, gradient clipping, AdamW, Muon.

    norm = update(params, grads, averages, config, step, lr, muon_lr=...)

params and grads are dicts of views into one flat vector each (model.py). averages holds what the
optimizer remembers between steps, in two more vectors of that layout. Nothing else is remembered:
the averages and the number of the step resume a run to the same bits.

Every optimizer here is "weights -= learning rate x direction". They differ in the direction:
    gradient descent   the gradient itself: steep directions get nearly all of the movement
    AdamW              each number of the gradient over its usual size: about +1 or -1 everywhere
    Muon               each matrix with its singular values set to 1: no direction is small

Reading order: learning_rate, clip_scale, adamw's example, then Muon (orthogonalize, update).
Sources: AdamW (Loshchilov & Hutter 2019), clipping (Pascanu et al. 2013), warm-up and linear decay
to zero (Bergsma et al. 2025), Muon (Jordan et al. 2024). Left out: other optimizers, and all that
several machines would need.
"""
import math

import numpy as np

from kernels import adamw, matmul, sum_of_squares
from model import count, flat, views

WARMUP = 0.05  # share of the steps in which the learning rate rises
CLIP = 1.0  # gradients longer than this are shortened to it
# AdamW's averages look back over about 1 / (1 - beta) steps: 10 for the gradient, 20 for its square
# (GPT-3's value; the usual 0.999 would remember the first, wild steps for a thousand).
BETA1, BETA2, EPS = 0.9, 0.95, 1e-8
DECAY = 0.1  # weight decay: each step a matrix shrinks by learning rate x 0.1
# Muon averages over 7 steps at first, while gradients change fast, and over 20 from step 300 on.
MOMENTUM, MOMENTUM_START, MOMENTUM_STEPS = 0.95, 0.85, 300
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of x, x^3, x^5 (Jordan et al. 2024)


# ---- The length of a step ----

def learning_rate(step, steps, peak):
    """Of step 0, 1, ...: rises linearly over the first WARMUP of all steps, then falls to zero.

    It rises because the averages hold few gradients at first. It falls because large steps find
    the valley of the loss, and small steps its floor. So the number of steps must be known before
    the first one. Example, 100 steps, peak 1: 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.989, ... 0.011."""
    warmup = max(1, int(WARMUP * steps))
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def clip_scale(grads):
    """(norm, scale): the length of the whole gradient, and the factor that brings it to CLIP.

    A shorter gradient keeps scale 1. A longer one keeps its direction, so that one odd batch can't
    throw the weights far off. Example: gradient (3, 4) has norm 5 and scale 0.2."""
    norm = math.sqrt(sum_of_squares(flat(grads)))
    return norm, CLIP / norm if norm > CLIP else 1.0


# ---- AdamW: every number by itself ----
# For each weight p with gradient g, kernels.adamw keeps two running averages: m1 of g (which way to
# go) and m2 of g^2 (how large g usually is). Both start at 0, so after `step` steps they hold only
# a share 1 - beta^step of real gradients and are divided by it. Then
#     p -= lr * decay * p                          matrices only, not norms
#     p -= lr * m1 / (sqrt(m2) + eps)
# Example, lr 0.1, no decay, three steps of two weights, averages after their division:
#     g  of 1st: 4, 4, 4            m1 = 4, 4, 4            moves -0.1, -0.1, -0.1
#     g  of 2nd: 0.4, -0.4, 0.4     m1 = 0.4, -0.02, 0.13   moves -0.1, +0.005, -0.033
# The first has gradients ten times larger and moves no faster for it; the second changes its mind
# and is slowed down for that.


def start(params):
    """The averages before the first step: zeros, flat vectors in the order of model.shapes.

    So training takes four times the memory of the weights: weights, gradients, m1 and m2."""
    return {"m1": np.zeros_like(flat(params)), "m2": np.zeros_like(flat(params))}


# ---- Muon: every matrix as a whole ----
# A weight matrix maps input directions to output directions. Write its averaged gradient as a
# singular value decomposition, U S V^T: pairs of directions (columns of V and U) and how strongly
# each pair is wanted (S). A few frequent patterns of the text have nearly all of S. AdamW's +1 and
# -1 inherit that, since they follow the signs of a matrix that those few dominate. Muon moves along
# U V^T instead, the same matrix with all of S set to 1: what is rare is learned as fast as what is
# frequent. In our runs it reaches the same loss in half of AdamW's steps.
#
# U V^T needs no decomposition. For an odd polynomial f(x) = a x + b x^3 + c x^5,
#     a X + b (X X^T) X + c (X X^T)^2 X  =  U f(S) V^T,          as X X^T = U S^2 U^T,
# so products of matrices apply f to all singular values at once. f = NEWTON_SCHULZ, applied five
# times, takes every x between 0.006 and 1 into 0.68 .. 1.21: near enough to 1, and sooner than
# coefficients that would converge to it. Example: 0.01 -> 0.03 -> 0.12 -> 0.40 -> 1.09 -> 0.70.

def orthogonalize(x, steps=5):
    """About U V^T for a matrix x = U S V^T, of x's shape: every singular value becomes about 1.

    First x is divided by its length, which is at least its largest singular value. A tall matrix
    is transposed first: of a 344 x 128 matrix, X X^T would be 344 x 344 and X^T X is 128 x 128."""
    a, b, c = map(x.dtype.type, NEWTON_SCHULZ)
    tall = x.shape[0] > x.shape[1]
    x = np.ascontiguousarray(x.T if tall else x) / (np.linalg.norm(x) or 1)  # zeros stay
    diagonal = slice(None, None, len(x) + 1)  # of a square matrix, read as one row
    for _ in range(steps):
        square = matmul(x, x, trans_b=True)  # X X^T, small x small
        inner = c * square
        inner.reshape(-1)[diagonal] += b  # b I + c X X^T
        factor = matmul(square, inner)
        factor.reshape(-1)[diagonal] += a  # a I + b X X^T + c (X X^T)^2
        x = matmul(factor, x)
    return x.T if tall else x


def muon(params, grads, m1, scale, lr, decay, names, step):
    """One Muon step on the matrices `names`, in place; m1 is a dict of views, step counts from 1.

    The direction is Nesterov's: the average plus this step's gradient once more, a look at where
    the average is going. A matrix taller than wide has outputs that add up fewer inputs; the factor
    sqrt(rows / columns) makes up for it, so that one learning rate serves all shapes."""
    momentum = MOMENTUM_START + (MOMENTUM - MOMENTUM_START) * min(1, step / MOMENTUM_STEPS)
    for name in names:
        p, g, m = params[name], grads[name] * scale, m1[name]
        m += (1 - momentum) * (g - m)
        direction = orthogonalize((1 - momentum) * g + momentum * m)
        p *= 1 - lr * decay
        p -= lr * math.sqrt(max(1, p.shape[0] / p.shape[1])) * direction


# ---- The step ----

def update(params, grads, averages, config, step, lr, decay=DECAY, muon_lr=None):
    """Changes params by one step, numbered from 1. Returns the gradient's length before clipping.

    muon_lr None: AdamW for everything. Otherwise Muon takes the matrices inside the blocks (q, k,
    v, o, gate, up, down), which lie behind each other in the flat vector. The embedding and the
    output head stay with AdamW: their rows are tokens, a look-up and no map between directions. So
    do the norms, which are vectors. averages["m1"] is Muon's average too; it needs no m2."""
    norm, scale = clip_scale(grads)
    p, g, m1, m2 = flat(params), flat(grads), averages["m1"], averages["m2"]
    matrices = count(config)[1]  # numbers in matrices, which come first and decay
    parts = [(0, p.size)]
    if muon_lr is not None:
        blocks = (1 if config.tied else 2) * config.vocab * config.dim  # where they begin
        names = [name for name, w in params.items() if w.ndim == 2 and ".layers." in name]
        muon(params, grads, views(m1, config), scale, muon_lr, decay, names, step)
        parts = [(0, blocks), (matrices, p.size)]
    for i, j in parts:
        adamw(p[i:j], g[i:j], m1[i:j], m2[i:j], scale, lr, BETA1, BETA2, EPS, decay,
              max(0, min(j, matrices) - i), step)
    return norm
