"""4. Inference: a network writes. From the next token's probabilities to text, demonstrations, a chat.
"""
import numpy as np
from numba import njit

from kernels.rows import FAST, exp
from model import Cache, decode, prefill


# ---- One token: from logits to a choice ----

@njit(fastmath=FAST, cache=True)
def cut_off(weights, amounts, target):
    """The highest weight w such that the amounts of all weights >= w add up to target.

    Found without sorting: as bits, positive floats are in the order of whole numbers, so halving
    the range of bits 30 times is exact, and each pass over the V weights runs in vectors."""
    low, high = 0, 0x3F800001  # the bits of 0.0, and of the number behind 1.0
    while high - low > 1:
        middle = (low + high) // 2
        w, total = np.int32(middle).view(np.float32), np.float32(0)
        for j in range(len(weights)):
            total += amounts[j] if weights[j] >= w else np.float32(0)
        if total >= target:
            low = middle
        else:
            high = middle
    return np.int32(low).view(np.float32)


@njit(fastmath=FAST, cache=True)
def draw(logits, temperature, top_k, top_p, numbers, tokens, logprobs):
    """Chooses tokens (N,) by logits (N,V) and numbers (N,) from [0,1); logprobs (N,) in nats are of
    the unchanged distribution (temperature 1, all tokens), as training sees it. top_k 0: all."""
    N, V = logits.shape
    weights, ones = np.empty(V, np.float32), np.ones(V, np.float32)
    for i in range(N):
        row, best, total = logits[i], logits[i].argmax(), np.float32(0)
        for j in range(V):
            weights[j] = exp(np.float32(row[j] - row[best]))  # best has weight 1
            total += weights[j]
        tokens[i] = best
        if temperature > 0:
            warmth, floor = np.float32(1 / temperature), np.float32(0)
            for j in range(V):
                weights[j] = exp(np.float32(row[j] - row[best]) * warmth)
            if 0 < top_k < V:
                floor = cut_off(weights, ones, np.float32(top_k))
            if top_p < 1:
                for j in range(V):
                    weights[j] = weights[j] if weights[j] >= floor else np.float32(0)
                floor = max(floor, cut_off(weights, weights, np.float32(top_p) * weights.sum()))
            kept = 0.0
            for j in range(V):
                kept += weights[j] if weights[j] >= floor else np.float32(0)
            left = numbers[i] * kept  # walk along the kept weights, laid end to end, to this place
            for j in range(V):
                if weights[j] >= floor:
                    left -= weights[j]
                    tokens[i] = j
                    if left < 0:
                        break
        logprobs[i] = row[tokens[i]] - row[best] - np.log(total)


# ---- Many tokens ----

def stream(params, config, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
           stop=()):
    """Continues the prompts, an array (B,T) or B lists of ids of any lengths. After each step yields
    rows (N,), their new tokens (N,), logprobs (N,) and logits (N,V); rows are those still going.
    """
    if len(prompts) == 0 or min(map(np.size, prompts)) == 0 or np.ndim(prompts[0]) != 1:
        raise ValueError("prompts must be an array (B,T) or lists of ids, each with a token at least")
    if not temperature >= 0 or (top_k is not None and top_k < 1) or not 0 < (top_p or 1.0) <= 1:
        raise ValueError(f"temperature {temperature}, top_k {top_k}, top_p {top_p}: expected "
                         "temperature >= 0, top_k >= 1, 0 < top_p <= 1")
    keep = max(config.ctx // 2, config.ctx - max_new_tokens)
    prompts = [p if len(p) < config.ctx else p[-keep:] for p in prompts]
    lengths = np.array([len(p) for p in prompts])
    ids = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in zip(ids, prompts):
        row[:len(prompt)] = prompt
    n_steps = min(max_new_tokens, config.ctx - lengths.min())
    numbers = np.array([np.random.default_rng((seed, row)).random(n_steps) for row in range(len(ids))])
    stops = np.zeros(config.vocab, bool)
    stops[list(stop)] = True
    cache = Cache(params, config, len(ids), lengths.max() + max_new_tokens)
    logits, rows = prefill(config, cache, ids, lengths), np.arange(len(ids))
    for step in range(n_steps):
        tokens, logprobs = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
        draw(logits, float(temperature), top_k or 0, top_p or 1.0, numbers[rows, step], tokens, logprobs)
        if not np.isfinite(logprobs).all():
            raise ValueError("the network's output is not a number: its weights are damaged")
        yield rows, tokens, logprobs, logits
        stay = ~stops[tokens] & (cache.lengths[rows] + 1 < config.ctx)
        rows, tokens = rows[stay], tokens[stay]
        if step + 1 == n_steps or not len(rows):
            break
        logits = decode(config, cache, tokens, rows)


def generate(params, config, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
             stop=()):
    """The new ids behind the prompts ids, see stream. For an array (B,T) without stop an array (B,n)
    of them, otherwise B lists, each ending with its stop token if it met one."""
    out = [[] for _ in ids]
    for rows, tokens, _, _ in stream(params, config, ids, max_new_tokens, temperature, top_k, top_p,
                                     seed, stop):
        for row, token in zip(rows.tolist(), tokens.tolist()):
            out[row].append(token)
    return np.array(out, np.int64) if isinstance(ids, np.ndarray) and not len(stop) else out
