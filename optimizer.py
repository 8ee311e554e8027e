"""How a step changes the weights: learning rate, gradient clipping, AdamW, Muon.

    norm = update(params, grads, averages, config, step, lr, muon_lr=...)

params and grads are dicts of views into one flat vector each (model.py). averages are two more such
vectors, what the optimizer remembers: with the step's number they resume a run to the same bits.

Every optimizer here is "weights -= learning rate x direction". They differ in the direction:
    gradient descent   the gradient itself: steep directions get nearly all of the movement
    AdamW              each number of the gradient over its usual size: about +1 or -1 everywhere
    Muon               each matrix with all its directions made equally strong

Sources: AdamW (Loshchilov & Hutter 2019), clipping (Pascanu et al. 2013), warm-up and linear decay
to zero (Bergsma et al. 2025), Muon (Jordan et al. 2024).
"""
import math

import numpy as np

from kernels import adamw, nesterov, orthogonalize, sum_of_squares, unflatten
from model import count, vector

WARMUP = 0.05  # share of the steps in which the learning rate rises
CLIP = 1.0  # longer gradients are shortened to it: no odd batch throws the weights far off
# AdamW's averages look back over about 1 / (1 - beta) steps: 10 for the gradient, 20 for its square
# (GPT-3's value; the usual 0.999 would remember the first, wild steps for a thousand).
BETA1, BETA2, EPS = 0.9, 0.95, 1e-8
DECAY = 0.1  # weight decay: each step a matrix shrinks by learning rate x 0.1
# Muon averages over 7 steps at first, while gradients change fast, and over 20 from step 300 on.
MOMENTUM, MOMENTUM_START, MOMENTUM_STEPS = 0.95, 0.85, 300
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of s, s^3, s^5 (Jordan et al. 2024)
NS_STEPS = 3  # they take 5; our losses are the same with 3, which cost 40% less


def learning_rate(step, steps, peak):
    """Of step 0, 1, ...: rises linearly over the first WARMUP of all steps, then falls to zero.

    It rises because the averages hold few gradients at first. It falls because large steps find
    the valley of the loss, and small steps its floor.
    Example, 100 steps, peak 1: 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.989, ... 0.011."""
    warmup = max(1, int(WARMUP * steps))
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


# ---- AdamW: every number by itself ---------------------------------------------------------------
# For each weight p with gradient g, kernels.adamw keeps two running averages: m1 of g (which way to
# go) and m2 of g^2 (how large g usually is). Both start at 0, so after `step` steps they hold only
# a share 1 - beta^step of real gradients and are divided by it. Then
#     p -= lr * decay * p                          matrices only, not norms
#     p -= lr * m1 / (sqrt(m2) + eps)
# Example, lr 0.1, no decay, three steps of two weights, averages after their division:
#     g  of 1st: 4, 4, 4            m1 = 4, 4, 4            moves -0.1, -0.1, -0.1
#     g  of 2nd: 0.4, -0.4, 0.4     m1 = 0.4, -0.02, 0.13   moves -0.1, +0.005, -0.034
# The first has gradients ten times larger and moves no faster; the second changes its mind and is
# slowed down.

def start(params):
    """The averages before the first step. With them and the gradients, training takes four times
    the memory of the weights."""
    return {"m1": np.zeros_like(vector(params)), "m2": np.zeros_like(vector(params))}


def update(params, grads, averages, config, step, lr, decay=DECAY, muon_lr=None):
    """Changes params by one step, numbered from 1. Returns the gradient's length before clipping.
    Use grads no more: Muon overwrites its part.

    muon_lr None: AdamW for everything. Otherwise Muon takes the matrices inside the blocks (q, k,
    v, o, gate, up, down). AdamW keeps the norms, which are vectors, and the embedding and output
    head: their rows are tokens, a look-up and no map between directions. In the flat vector:
        embedding, head | the blocks' matrices | norms
    averages["m1"] is Muon's average too; it needs no m2."""
    p, g, m1, m2 = vector(params), vector(grads), averages["m1"], averages["m2"]
    norm = math.sqrt(sum_of_squares(g))
    scale = CLIP / max(CLIP, norm)  # (3, 4) has norm 5 and is scaled by 0.2
    matrices = count(config)[1]  # how many numbers stand before the norms; they decay
    end = matrices
    if muon_lr is not None:
        shapes = [w.shape for name, w in params.items() if w.ndim == 2 and ".layers." in name]
        end -= sum(math.prod(shape) for shape in shapes)
        blocks = slice(end, matrices)
        muon(p[blocks], g[blocks], m1[blocks], scale, muon_lr, decay, shapes, step)
    for i, j, n_decayed in ((0, end, end), (matrices, p.size, 0)):
        adamw(p[i:j], g[i:j], m1[i:j], m2[i:j], scale, lr, BETA1, BETA2, EPS, decay, n_decayed,
              step)
    return norm


# ---- Muon: every matrix as a whole (skip at first) -----------------------------------------------
# A weight matrix maps input directions to output directions. Write its averaged gradient as a
# singular value decomposition, U S V^T: pairs of directions (columns of V and U) and how strongly
# each pair is wanted (S). A few frequent patterns of the text have nearly all of S, and AdamW's +1
# and -1 follow the signs of a matrix that those few dominate. Muon moves along U V^T instead, the
# same matrix with all of S set to 1: what is rare is learned as fast as what is frequent.

def muon(params, grads, m1, scale, lr, decay, shapes, step):
    """One Muon step in place, on flat vectors of matrices of these shapes; step counts from 1.

    The direction is the average, and once more this step's gradient (Nesterov), for a look at where
    the average is going. A matrix taller than wide moves by sqrt(rows / columns) more, since each
    of its outputs adds up fewer inputs: one learning rate serves all shapes."""
    momentum = MOMENTUM_START + (MOMENTUM - MOMENTUM_START) * min(1, step / MOMENTUM_STEPS)
    nesterov(grads, m1, scale, momentum)  # grads become the directions, in place
    orthogonalize(grads, shapes, NEWTON_SCHULZ, NS_STEPS)  # kernels/plain.py says how
    for matrix, direction in zip(unflatten(params, shapes), unflatten(grads, shapes)):
        rows, columns = matrix.shape
        matrix *= 1 - lr * decay
        matrix -= lr * math.sqrt(max(1, rows / columns)) * direction
