"""4. Inference: a network writes, token after token, each drawn from what it thinks likely.

    python sample.py --prompt "Once"          goes on from a prompt, shown as it comes
    python sample.py --prompt "Once" --probs  the candidates for each token, as bars
    python sample.py --demo dreams            a base model's psychology: dreams, regurgitation, zip
    python sample.py --chat                   a conversation with what sft.py or rl.py trained
    python sample.py --model stories260K.bin --tokenizer tok512.bin     llama2.c's files work too

Reading order: what a draw is (probabilities, three lines of NumPy more than a softmax), the same as
a kernel (draw); a text as draw after draw (stream, generate); other people's tokenizer files; the
terminal; the demonstrations; the chat; the command.

Reads a checkpoint (out/base/; --chat the last of out/sft/, out/rl/) and for two demonstrations
out/tokens/; writes to the terminal. The prompt goes through the network in one piece and leaves its
keys and values in a cache; then each step feeds the token drawn before and draws the next. All rows
of a batch step together, a row that has ended leaves it, and no row's draws depend on the others.
A sequence ends where the context is full.

Starts in 1 s and writes 4,800 tokens/s at 0.9M parameters (one thread of an AMD EPYC, Zen 4); in
generate, without printing, stories260K takes 106 microseconds a token, 1 to 3 of them for the draw.

Sources: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), llama2.c (its tokenizer file).
Left out: beam search and repetition penalties, which hide what the network thinks; speculative
decoding; a context that slides, since the cached keys are rotated for their places.
"""
import argparse
import codecs
import gzip
import json
import lzma
import os
import struct
import sys
import time

import numpy as np
from numba import njit

from bpe import CHAT_SPECIALS, END, Tokenizer, paint, printable, render_chat
from kernels.rows import FAST, exp
from checkpoint import Llama2cTokenizer, open_model
from model import Cache, count, decode, forward, prefill, token_losses

# --probs: how many lines a token takes, and how many letters a bar of 100%.
CANDIDATES, BAR = 6, 40
# The demonstrations: texts from the same prompt; places of a text that the network is to go on
# from; training tokens that are searched for copies (3 s); held-out tokens that are compressed.
DREAMS, PREFIXES, SEARCHED, ZIPPED = 5, 32, 5_000_000, 32_768
# The share of the context that --chat keeps free for the answer.
ANSWER = 1 / 4


# ---- One token: from logits to a choice ----

def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """What a token is drawn from: logits (V,) -> probabilities (V,), float64.

    The softmax makes numbers of any sign into shares of 1. A temperature below 1 sharpens them,
    above 1 flattens them. top_k keeps only the k likeliest (0: all). top_p keeps only the smallest
    set of likeliest that together has at least this share: few where the network is sure, many
    where it is not. To draw: lay the shares end to end, and a random number from [0,1) points at
    one: np.searchsorted(np.cumsum(p), number, "right"). `draw` does this, fast."""
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)  # the best one's is 1
    if 0 < top_k < len(p):
        p[p < np.sort(p)[-top_k]] = 0
    order = np.argsort(-p)
    likelier = np.cumsum(p[order]) - p[order]  # what stands before each already sums up to
    p[order[likelier >= top_p * p.sum()]] = 0
    return p / p.sum()


@njit(fastmath=FAST, cache=True)
def keep_highest(weights, amounts, target):
    """Zeroes weights (V,) in [0,1] but the highest, so many that their amounts add up to target:
    with amounts of 1 that is top-k, with the weights themselves top-p.

    Nothing is sorted. The bits of positive floats, read as whole numbers, are in the same order as
    the floats, so halving their range 30 times finds the border exactly, each time in one pass that
    the compiler turns into vectors. Weights equal to the border's all stay."""
    # The bits of 0.0, and of the next number after 1.0.
    low, high = 0, 0x3F800001
    while high - low > 1:
        middle = (low + high) // 2
        border, total = np.int32(middle).view(np.float32), np.float32(0)
        for j in range(len(weights)):
            total += amounts[j] if weights[j] >= border else np.float32(0)
        if total >= target:
            low = middle
        else:
            high = middle
    border = np.int32(low).view(np.float32)
    for j in range(len(weights)):
        weights[j] = weights[j] if weights[j] >= border else np.float32(0)


@njit(fastmath=FAST, cache=True)
def draw(logits, temperature, top_k, top_p, numbers, tokens, logprobs):
    """Draws tokens (N,) from `probabilities` of logits (N,V) with numbers (N,) from [0,1). Writes
    tokens and logprobs (N,): in nats, the network's own, at temperature 1 with nothing cut off.

    Fast since it never sorts (keep_highest) and never divides: the shares stay weights, the best
    one's 1, and instead the random number is stretched to their sum. Equals at the border of top-p
    all stay here, where the sort takes the first."""
    N, V = logits.shape
    weights, ones = np.empty(V, np.float32), np.ones(V, np.float32)
    for i in range(N):
        row, best, total, left = logits[i], logits[i].argmax(), np.float32(0), 0.0
        for j in range(V):
            total += exp(np.float32(row[j] - row[best]))
        tokens[i] = best
        if temperature > 0:
            warmth = np.float32(1 / temperature)
            for j in range(V):
                weights[j] = exp(np.float32(row[j] - row[best]) * warmth)  # the best one's is 1
            if 0 < top_k < V:
                keep_highest(weights, ones, np.float32(top_k))
            if top_p < 1:
                keep_highest(weights, weights, np.float32(top_p) * weights.sum())
            left = numbers[i] * weights.sum()
            for j in range(V):  # walk along the weights laid end to end, up to the number
                left -= weights[j]
                if left < 0:
                    tokens[i] = j
                    break
        logprobs[i] = row[tokens[i]] - row[best] - np.log(total)


# ---- Many tokens ----
# The naive loop runs the whole text through the network for each new token:
#     ids.append(draw(forward(ids)[-1])).
# But a token's keys and values depend only on what stands before it, so they never change: kept in
# a cache, they leave one token's work per step, where the naive loop has T.

def fit(prompt, config, max_new_tokens):
    """The prompt, or if it fills the context its end, so that there is room to write: at least
    half of the context is kept, and more if few tokens are asked for."""
    if len(prompt) < config.ctx:
        return prompt
    kept = max(1, config.ctx // 2, config.ctx - max_new_tokens)
    print(f"(a prompt of {len(prompt)} tokens fills the context of {config.ctx}: only its last "
          f"{kept} are read)", file=sys.stderr)
    return prompt[-kept:]


def read_prompts(config, cache, ids, lengths):
    """prefill, but a prompt that several rows share (in rl.py each is answered 16 times) is read
    once, and its keys and values are copied. Returns the logits (B,V) of each row's last token."""
    prompts, T = np.column_stack([ids, lengths]), ids.shape[1]  # padding alone can't tell lengths
    _, first, which = np.unique(prompts, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(ids):
        return prefill(config, cache, ids, lengths)
    which = which.reshape(-1)  # (B,) of which different prompt a row is a copy
    logits = prefill(config, cache, ids[first], lengths[first])
    for numbers in (cache.k, cache.v):  # (L,B,G,S,D)
        numbers[:, :, :, :T] = numbers[:, which, :, :T]
    cache.lengths[:] = lengths
    return logits[which]


def stream(params, config, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
           stop=()):
    """Goes on from prompts, an array (B,T) or B lists of ids of any lengths. Yields at each step
    the rows (N,) that still go on, their new tokens (N,), logprobs (N,) and logits (N,V).

    A row ends with an id in stop, after max_new_tokens, or with config.ctx tokens in all: the
    network has seen no later places in training, and knows nothing of them.
    Temperature 0 takes the likeliest. Row b draws by random numbers of its own, from (seed, b)."""
    if not len(prompts) or not all(np.ndim(prompt) == 1 and len(prompt) for prompt in prompts):
        raise ValueError("prompts must be an array (B,T) or B lists of ids, none of them empty")
    top_k, top_p = 0 if top_k is None else top_k, 1.0 if top_p is None else top_p  # cut none off
    if not (max_new_tokens >= 0 and temperature >= 0 and top_k >= 0 and 0 < top_p <= 1):
        raise ValueError(f"{max_new_tokens} tokens, temperature {temperature}, top_k {top_k}, "
                         f"top_p {top_p}: none may be below 0, and top_p is above 0, up to 1")
    prompts = [fit(prompt, config, max_new_tokens) for prompt in prompts]
    B, lengths = len(prompts), np.array([len(prompt) for prompt in prompts])
    n_steps = min(max_new_tokens, config.ctx - min(lengths))
    # Prompts of different lengths are padded on the right; causal attention never looks there.
    ids = np.zeros((B, max(lengths)), np.int64)
    for row, prompt in zip(ids, prompts):
        row[:len(prompt)] = prompt
    # Were all rows to draw from one sequence, a row's text would change with the size of the batch.
    numbers = np.array([np.random.default_rng((seed, row)).random(n_steps) for row in range(B)])
    stops = np.isin(np.arange(config.vocab), list(stop))  # (V,)
    cache = Cache(params, config, B, max(lengths) + n_steps)
    # All prompts at once; then in each step only the rows that still go on, N of B.
    rows, logits = np.arange(B), read_prompts(config, cache, ids, lengths)  # (B,), (B,V)
    for step in range(n_steps):
        tokens, logprobs = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
        draw(logits, float(temperature), top_k, top_p, numbers[rows, step], tokens, logprobs)
        if not np.isfinite(logprobs).all():
            raise ValueError("the network's output is no number: its weights are damaged")
        yield rows, tokens, logprobs, logits
        # A row goes on if it met no stop, and if its new token leaves room for one more.
        going = ~stops[tokens] & (cache.lengths[rows] + 1 < config.ctx)
        rows, tokens = rows[going], tokens[going]
        if not len(rows) or step + 1 == n_steps:
            break
        logits = decode(config, cache, tokens, rows)


def generate(params, config, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
             stop=()):
    """The new ids behind the prompts ids, all at once: `stream` collected, with its arguments. Of
    an array (B,T) without stop an array (B,n), since then all rows are equally long; otherwise B
    lists, each ending with the stop id it met, if any."""
    new = [[] for _ in ids]
    for rows, tokens, _, _ in stream(params, config, ids, max_new_tokens, temperature, top_k, top_p,
                                     seed, stop):
        for row, token in zip(rows.tolist(), tokens.tolist()):
            new[row].append(token)
    return np.array(new, np.int64) if isinstance(ids, np.ndarray) and not len(stop) else new


# ---- Files ----

def stored_tokens(model, part, T):
    """tokens/PART.npy beside the checkpoint folder, memory-mapped; more than T tokens. These are
    the tokens that the network was trained on (train) and examined on (val)."""
    path = os.path.join(os.path.dirname(os.path.normpath(model)), "tokens", part + ".npy")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no tokens there; python bpe.py makes them")
    tokens = np.load(path, mmap_mode="r")
    if len(tokens) <= T:
        raise ValueError(f"{path}: {len(tokens)} tokens; this needs more than a context of {T}")
    return tokens


def recall(params, config, tokenizer, facts):
    """Part of the facts {"prompt", "answer"} that the network completes: of all tokens of the
    answer, each the likeliest. Loss falls smoothly; this jumps when facts are really known.

    Nothing is generated: one forward pass over prompt and answer tells, at every place, which token
    would have come next. If each is the answer's, greedy decoding would write just that."""
    told = [list(tokenizer.encode(fact["prompt"])) for fact in facts]
    full = [ids + list(tokenizer.encode(fact["answer"])) for ids, fact in zip(told, facts)]
    ids = np.zeros((len(full), max(map(len, full))), np.int64)  # behind an answer: unseen padding
    for row, tokens in zip(ids, full):
        row[:len(tokens)] = tokens
    best = np.concatenate([forward(params, config, ids[i:i + 64]).argmax(-1)  # 64: logits are large
                           for i in range(0, len(ids), 64)])
    # What is said at place i is the guess for place i + 1.
    return sum(list(row[len(start) - 1:len(tokens) - 1]) == tokens[len(start):]
               for row, start, tokens in zip(best, told, full)) / len(facts)


# ---- The terminal ----

def show_candidates(tokenizer, logits, drawn):
    """Bars of the likeliest next tokens by logits (V,), the drawn one marked. They show what the
    network thinks, at temperature 1 with nothing cut off, not what was drawn from: so a token of 2%
    is seen to be a gamble."""
    p = probabilities(logits)
    top = np.argsort(-p)[:CANDIDATES].tolist()
    for token in top if drawn in top else [*top, drawn]:
        name, bar = printable(tokenizer.token_bytes(token)), "█" * round(BAR * p[token])
        line = f"{name:>16} {p[token]:6.1%} {bar}"
        print(paint(line + " <- drawn", "32") if token == drawn else line)
    print()


def speak(net, ids, stop, how, probs=False):
    """Prints what follows ids as it comes, and why it ends unless the network ended it. Returns the
    new ids. Ctrl-C ends it too.

    A token may end in the middle of a character (a byte of three, say): the incremental decoder
    keeps such bytes back until the rest has come."""
    params, config, tokenizer = net
    new, text, why = [], codecs.getincrementaldecoder("utf-8")("replace"), " ..."
    try:
        for _, (token,), _, (logits,) in stream(params, config, [ids], stop=stop, **how):
            new.append(int(token))
            why = "" if token in stop else why
            if probs:
                show_candidates(tokenizer, logits, token)
            elif why:
                part = text.decode(tokenizer.token_bytes(new[-1]))
                print(part.lstrip() if len(ids) == len(new) == 1 else part, end="", flush=True)
        if why and len(ids) + len(new) == config.ctx:
            why = f" (the context of {config.ctx} tokens is full)"
    except KeyboardInterrupt:
        why = " (stopped)"
    print(text.decode(b"", final=True) + paint(why, "2"))
    return new


# ---- Psychology of a base model ----

def dreams(net, ids, stop, how, n):
    """n texts from the same prompt. A base model has no answer in mind, only a distribution over
    all the texts that might follow; each dream is one draw from it."""
    params, config, tokenizer = net
    for number, new in enumerate(generate(params, config, [ids] * n, stop=stop, **how), 1):
        text = tokenizer.decode([token for token in ids + new if token not in stop])
        print(paint(f"---- {number} ----", "2") + f"\n{text}")
    print(f"Same prompt, same weights: only the random numbers of the {n} dreams differ.")


def letters(ids):
    """Ids as a string, one character each: nothing in Python searches faster than `in` on those."""
    return "".join(map(chr, ids))


def longest_copy(new, text):
    """(length, start): the longest run of the string new that stands somewhere in the string text;
    the first of equals. A run that is no longer than the best so far is not even looked for."""
    start = n = 0
    for k in range(len(new)):
        while k + n < len(new) and new[k:k + n + 1] in text:
            start, n = k, n + 1
    return n, start


def regurgitation(net, ids, model, how):
    """How much of the training text comes out word for word: dreamt, and after its true beginning.
    The same with text that the network never read tells how much of that is chance: phrases that
    everyone uses are copied without having been learned by heart."""
    params, config, tokenizer = net
    T, half = config.ctx, config.ctx // 2
    train, val = (np.asarray(stored_tokens(model, part, T)[:SEARCHED]) for part in ("train", "val"))
    dreamt = generate(params, config, np.array([ids] * DREAMS), **how)
    print(f"The longest run that stands in the {len(train):,} tokens of training text too:")
    read = letters(train)
    for name, rows in (("dreamt", dreamt), ("held-out", np.resize(val, dreamt.shape))):
        n, start, row = max((*longest_copy(letters(row), read), row.tolist()) for row in rows)
        copy = tokenizer.decode(row[start:start + n])
        print(f"  {DREAMS} {name} texts of {len(row)} tokens: {n}, {copy!r}")
    print(f"Given {half} tokens, how many of the next does it get right before its first mistake?")
    for name, tokens in (("training", train), ("held-out", val)):
        places = np.random.default_rng(how["seed"]).integers(0, len(tokens) - T, PREFIXES)
        texts = np.array([tokens[place:place + T] for place in places], np.int64)  # (PREFIXES,T)
        # Greedy: what was learned by heart is the likeliest, so no luck should come in between.
        new = generate(params, config, texts[:, :half], T - half, temperature=0)
        # The running product of hits (1) and misses (0) is 1 up to the first miss.
        right = np.cumprod(new == texts[:, half:], axis=1).sum(axis=1)
        longest = tokenizer.decode(new[right.argmax(), :right.max()])
        print(f"  {PREFIXES} {name} texts: {right.mean():.1f}, at best {right.max()}, {longest!r}")


def lossy_zip(net, model):
    """To predict is to compress: arithmetic coding writes a token of probability p in -log2 p bits,
    so the loss is the size of the file. Compares it with gzip's and xz's of the same bytes.

    The text is read in windows of T tokens, and the first tokens of each are predicted from little:
    a window that slides would do better, but take T times as long."""
    params, config, tokenizer = net
    T, train = config.ctx, stored_tokens(model, "train", config.ctx)
    val = np.asarray(stored_tokens(model, "val", T)[:ZIPPED + 1], np.int64)
    end = (len(val) - 1) // T * T
    ids, targets = val[:end].reshape(-1, T), val[1:end + 1].reshape(-1, T)
    bits = token_losses(params, config, ids, targets).sum(dtype=np.float64) / np.log(2)
    # Tokens of different vocabularies are not comparable, bytes are.
    text = b"".join(map(tokenizer.token_bytes, targets.ravel()))
    print(f"{len(text):,} bytes that the network never read, in bits per byte:")
    for name, n in (("plain", 8 * len(text)), ("gzip", 8 * len(gzip.compress(text))),
                    ("xz", 8 * len(lzma.compress(text))), ("network", bits)):
        print(f"{name:>10} {n / len(text):5.2f} {'█' * round(BAR * n / len(text) / 8)}")
    print(f"gzip and xz start from nothing; the network brings {count(config)[0]:,} weights, a "
          f"lossy zip of {len(train):,} training tokens.")


# ---- Chat ----

def trim(tokenizer, messages, limit):
    """The newest messages that take at most limit tokens with the head of an answer, and their ids.
    The system's message stays; the oldest questions fall out, each with its answer, so that what
    is left begins with a question as every conversation did in training."""
    system = messages[:messages[0]["role"] == "system"]
    for first in range(len(system), len(messages), 2):
        ids, _ = render_chat(tokenizer, system + messages[first:], open_answer=True)
        if len(ids) <= limit:
            return system + messages[first:], ids
    raise ValueError(f"{len(ids)} tokens, but {limit} fit beside an answer: please say it shorter")


def chat(net, a, how):
    """A conversation on the terminal. The network remembers nothing: each time it reads the whole
    talk again, as far as it fits. What people type is never read as special tokens."""
    params, config, tokenizer = net
    if not set(CHAT_SPECIALS) <= set(tokenizer.special_tokens):
        raise ValueError(f"{a.model} is a base model: it continues text and never learned to take "
                         "turns; python sft.py makes an assistant of it")
    try:
        import readline  # noqa: F401, gives input() arrow keys and history; Windows lacks it
    except ImportError:
        pass
    # A model that has learned its turns ends them with <|im_end|>; one that has not yet learned
    # them well may begin the next turn instead, or the next document.
    stop = [k for name, k in tokenizer.special_tokens.items() if name in (END, *CHAT_SPECIALS)]
    fresh = [{"role": "system", "content": a.system}] if a.system else []
    messages = fresh
    print("/reset starts anew, /save FILE adds the chat to a file, /quit ends, Ctrl-C interrupts")
    while True:
        try:
            text = input("you> ").strip()
            if text == "/quit":
                return print("bye")
            if text == "/reset":
                messages = fresh
            elif text.startswith("/save "):
                # One conversation a line, as sft.py reads them.
                with open(text[6:], "a", encoding="utf-8") as file:
                    file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            elif text.startswith("/"):
                print("(/reset, /save FILE, /quit)")
            elif text:
                asked = [*messages, {"role": "user", "content": text}]
                kept, ids = trim(tokenizer, asked, config.ctx - int(config.ctx * ANSWER))
                if lost := len(asked) - len(kept):
                    print(paint(f"(the context is full: the first {lost} messages fall out)", "2"))
                print(paint("assistant> ", "32"), end="", flush=True)
                new = speak(net, ids, stop, how | {"seed": how["seed"] + len(asked)})
                answer = tokenizer.decode([token for token in new if token not in stop])
                messages = [*asked, {"role": "assistant", "content": answer}]
        except (EOFError, KeyboardInterrupt):
            return None
        except (ValueError, OSError) as error:
            print(f"({error})")


# ---- The command ----

def run(a):
    """Open the model, say what is about to happen, and do what was asked: a chat, one of the
    demonstrations, several texts side by side, or one text as it comes."""
    stages = ["out/rl", "out/sft", "out/base"] if a.chat else ["out/base"]
    made = (folder for folder in stages if os.path.exists(os.path.join(folder, "config.json")))
    a.model = a.model or next(made, "out/base")
    params, config, tokenizer = net = open_model(a.model, a.tokenizer)
    settings = " | ".join(f"{key} {value}" for key, value in vars(a).items() if value is not None)
    print(f"sample.py | {settings}\n{count(config)[0]:,} parameters, context {config.ctx}, "
          f"vocabulary {config.vocab}", flush=True)
    how = {"max_new_tokens": a.tokens, "temperature": a.temperature, "top_k": a.top_k,
           "top_p": a.top_p, "seed": a.seed}
    end = [tokenizer.special_tokens[END]] if END in tokenizer.special_tokens else []
    # In training every document begins behind the END of the one before, and so does ours.
    ids = fit(end + tokenizer.encode(a.prompt), config, a.tokens)
    if not ids:
        raise ValueError(f"this tokenizer has no {END} to begin a text with: give a --prompt")
    # Two tokens try both the prompt's path and that of a step, so that all is compiled.
    begin = time.perf_counter()
    generate(params, config, [ids], 2)
    if (seconds := time.perf_counter() - begin) > 3:
        print(f"compiled the kernels in {seconds:.0f} s, kept for the next run")
    if a.chat:
        chat(net, a, how)
    elif a.demo == "regurgitation":
        regurgitation(net, ids, a.model, how)
    elif a.demo == "zip":
        lossy_zip(net, a.model)
    elif a.demo or a.samples > 1:
        dreams(net, ids, end, how, a.samples if a.samples > 1 else DREAMS)
    else:
        print(paint(a.prompt, "2"), end="\n" * a.probs, flush=True)
        begin = time.perf_counter()
        n, seconds = len(speak(net, ids, end, how, a.probs)), time.perf_counter() - begin
        print(f"{n} tokens in {seconds:.2f} s: {n / seconds:,.0f} tokens/s")


def main():
    """Parse, run, turn what went wrong into one line and an exit status: 2, or 130 at Ctrl-C."""
    parser = argparse.ArgumentParser(description="Let a network write.")
    add = parser.add_argument
    add("--model", help="checkpoint or llama2.c file (default out/base; --chat: the last stage)")
    add("--tokenizer", help="default: the checkpoint's own")
    add("--prompt", default="", help="text to go on from (default: the beginning of a document)")
    add("--tokens", type=int, default=200, help="most tokens to write")
    add("--temperature", type=float, default=0.8, help="0: the likeliest token; 1: as it thinks")
    add("--top-k", type=int, help="draw from the k likeliest tokens")
    add("--top-p", type=float, help="draw from the likeliest tokens that make up this probability")
    add("--seed", type=int, default=0)
    add("--samples", type=int, default=1, help="texts from the same prompt, written side by side")
    add("--probs", action="store_true", help="show the candidates for each token")
    add("--demo", choices=("dreams", "regurgitation", "zip"), help="psychology of a base model")
    add("--chat", action="store_true", help="talk with a model that sft.py or rl.py trained")
    add("--system", help="what --chat tells the model before the conversation")
    try:
        run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
