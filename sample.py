"""4. Inference: the network writes, token after token, each sampled from its probabilities.

    python sample.py --prompt "Once"           continues a prompt, shown as it is written
    python sample.py --prompt "Once" --probs   the likeliest candidates for each token, as bars
    python sample.py --demo dreams             a base model's psychology: dreams, regurgitation, zip
    python sample.py --chat                    a conversation with what sft.py or rl.py trained
    python sample.py --model stories260K.bin --tokenizer tok512.bin      llama2.c's files work too

Reading order: the naive loop, which is all of inference; how one token is sampled (softmax,
temperature, top-k, top-p: probabilities in kernels/plain.py); the same with a KV cache for many
texts at once (stream, generate). Then what evaluation needs (complete, answers, recall); the
terminal, to skip at first; the demonstrations; the chat.

Reads a checkpoint (out/base/; --chat the newer of out/sft/ and out/rl/), two demonstrations also
out/tokens/. Writes to the terminal. Takes 1 s to start, and then writes 4,800 tokens/s with 0.9M
parameters (one thread of an AMD EPYC, Zen 4).

Sources: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Pope et al. 2022 (KV cache, prefill
and decode), Carlini et al. 2023 (memorization). Left out: beam search and repetition penalties,
which hide what the network predicts; speculative decoding; a sliding context, since cached keys are
rotated for their positions.
"""
import argparse
import codecs
import gzip
import itertools
import json
import lzma
import os
import sys
import time

import numpy as np

from bpe import CHAT_SPECIALS, read_tokens, render_chat
from checkpoint import open_model
from common import paint, print_settings, printable, run_command
from kernels import probabilities, sample_tokens
from model import Cache, count, decode, forward, prefill, token_losses

BATCH_BYTES = 1 << 28  # memory that the texts of one batch may take in `complete`: 256 MB
ANSWER_SHARE = 1 / 4  # of the context: what --chat keeps free for the answer
CANDIDATES, BAR = 6, 40  # --probs: candidates for a token; characters of a bar of 100%
DREAMS = 5  # texts from the same prompt
# --demo regurgitation: tokens of training text that are searched (3 s); tokens of a passage that
# count as a quotation, and how often it must occur; texts of each kind; tokens of each as prompt.
SEARCHED, WINDOW, QUOTED, TEXTS, GIVEN = 5_000_000, 64, 4, 32, 16
ZIPPED = 32_768  # --demo zip: held-out tokens that are compressed


# ---- the naive loop ------------------------------------------------------------------------------

def naive_generate(params, config, ids, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0,
                   seed=0):
    """All of inference: the network reads the whole text, the next token is sampled and appended,
    and the network reads again. ids: a list; temperature above 0. Returns the new ids, the same as
    `generate` does, slowly.

    With logits (2, 1, 0), temperature 1 gives probabilities (0.67, 0.24, 0.09). Temperature 0.5
    sharpens them to (0.87, 0.12, 0.02), 2 flattens them to (0.51, 0.31, 0.19). Laid end to end they
    fill the line from 0 to 1, and a random number points at one: at temperature 1, 0.7 points at
    the second, which covers 0.67 to 0.91. So the same prompt can go on in many ways."""
    text, rng = list(ids), np.random.default_rng((seed, 0))
    for _ in range(max_new_tokens):
        logits = forward(params, config, np.array([text]))[0, -1]  # (V,), for the next token
        p = probabilities(logits, temperature, top_k, top_p)
        text.append(int(np.searchsorted(np.cumsum(p), rng.random(), "right")))
    return text[len(ids):]


# ---- many tokens, many texts ---------------------------------------------------------------------
# The naive loop computes the same keys and values again for each new token. No token sees a later
# one, so they never change: the KV cache keeps them. Prefill fills it with the whole prompt in one
# pass; decode then feeds only the newest token, and its query meets all the keys in the cache.

def stream(params, config, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
           stop=()):
    """Continues prompts, an array (B,T) or B lists of ids of any lengths. Yields at each step the
    rows (N,) that are still being written, their new tokens (N,), logprobs (N,), logits (N,V).

    A row ends with an id in stop, after max_new_tokens, or with config.ctx tokens in all: the
    network has never seen later positions. Temperature 0 is greedy, it takes the likeliest token.
    Row b has random numbers of its own, from (seed, b), or from seed[b] if seed is a list: so its
    text does not depend on the other rows. Ids in config.unused are never sampled."""
    check_sampling(prompts, max_new_tokens, temperature, top_k, top_p)
    top_k, top_p = min(top_k or 0, config.vocab), 1.0 if top_p is None else float(top_p)
    prompts = [fit(prompt, config, max_new_tokens) for prompt in prompts]
    B, lengths = len(prompts), np.array([len(prompt) for prompt in prompts])
    n_steps = min(max_new_tokens, config.ctx - min(lengths))
    # Shorter prompts are padded on the right; causal attention never looks there.
    ids = np.zeros((B, max(lengths)), np.int64)
    for row, prompt in zip(ids, prompts):
        row[:len(prompt)] = prompt
    seeds = seed if isinstance(seed, list) else [(seed, row) for row in range(B)]
    numbers = np.array([np.random.default_rng(seeds[row]).random(n_steps) for row in range(B)])
    ends, unused = np.isin(np.arange(config.vocab), list(stop)), list(config.unused)  # (V,)
    cache = Cache(params, config, B, max(lengths) + n_steps)
    rows, logits = np.arange(B), prefill_once(config, cache, ids, lengths)  # (B,), (B,V)
    for step in range(n_steps):
        logits[:, unused] = -np.inf
        tokens, logprobs = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
        sample_tokens(logits, float(temperature), top_k, top_p, numbers[rows, step], tokens,
                      logprobs)
        if not np.isfinite(logprobs).all():
            raise ValueError("the network's output is not a number: its weights are damaged")
        yield rows, tokens, logprobs, logits
        # Of N rows those go on that met no stop, and that have a position left for one more token.
        going = ~ends[tokens] & (cache.lengths[rows] + 1 < config.ctx)
        rows, tokens = rows[going], tokens[going]
        if not len(rows) or step + 1 == n_steps:
            break
        logits = decode(config, cache, tokens, rows)


def generate(params, config, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
             stop=()):
    """The new ids after the prompts ids: `stream` collected, with its arguments. For an array (B,T)
    without stop an array (B,n), since then all rows are equally long; otherwise B lists, each
    ending with the stop id that it met, if any."""
    new = [[] for _ in ids]
    for rows, tokens, _, _ in stream(params, config, ids, max_new_tokens, temperature, top_k, top_p,
                                     seed, stop):
        for row, token in zip(rows.tolist(), tokens.tolist()):
            new[row].append(token)
    return np.array(new, np.int64) if isinstance(ids, np.ndarray) and not len(stop) else new


def check_sampling(prompts, max_new_tokens, temperature, top_k, top_p):
    """ValueError for what can't be sampled with."""
    if not len(prompts) or not all(np.ndim(prompt) == 1 and len(prompt) for prompt in prompts):
        raise ValueError("prompts must be an array (B,T) or B lists of ids, none of them empty")
    for good, problem in (
            (max_new_tokens >= 0, f"{max_new_tokens} tokens: must not be below 0"),
            (temperature == 0 or 1e-6 <= temperature <= 1e6, f"temperature {temperature}: must be "
             "0 (greedy) or a number such as 0.8, at most a million"),
            (top_k is None or top_k >= 0, f"top-k {top_k}: must not be below 0"),
            (top_p is None or 0 < top_p <= 1, f"top-p {top_p}: must be above 0 and at most 1")):
        if not good:
            raise ValueError(problem)


def fit(prompt, config, max_new_tokens):
    """The prompt, or if it fills the context its end, so that there are positions left to write in:
    at least half of the context is kept, and more if few tokens are asked for."""
    if len(prompt) < config.ctx:
        return prompt
    kept = max(1, config.ctx // 2, config.ctx - max_new_tokens)
    print(f"(a prompt of {len(prompt)} tokens fills the context of {config.ctx}: only its last "
          f"{kept} are read)", file=sys.stderr)
    return prompt[-kept:]


def prefill_once(config, cache, ids, lengths):
    """prefill, but a prompt that several rows share (in rl.py each has 16 rollouts) is read once,
    and its keys and values are copied. Returns the logits (B,V) after each row's last token."""
    prompts, T = np.column_stack([ids, lengths]), ids.shape[1]  # padding alone can't tell lengths
    _, first, which = np.unique(prompts, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(ids):
        return prefill(config, cache, ids, lengths)
    which = which.reshape(-1)  # (B,): row b is a copy of different prompt which[b]
    logits = prefill(config, cache, ids[first], lengths[first])
    for numbers in (cache.k, cache.v):  # (L,B,G,S,D)
        numbers[:, :, :, :T] = numbers[:, which, :, :T]
    cache.lengths[:] = lengths
    return logits[which]


# ---- evaluation: what sft.py and rl.py ask of a network ------------------------------------------

def stop_ids(config, tokenizer):
    """The ids at which a text ends. A well-trained assistant ends its turn with <|im_end|>; one
    that is not may begin the next turn instead, so the chat's other special tokens end it too."""
    specials = tokenizer.special_tokens
    return {*config.eos, *(specials[name] for name in CHAT_SPECIALS if name in specials)}


def batches(config, lengths, max_new_tokens):
    """Yields lists of row numbers: prompts of these lengths, in order of length (little padding),
    as many at a time as fit into BATCH_BYTES with what will be written."""
    # float32 numbers a token: keys and values of all layers, about the activations of one.
    numbers = (2 * config.layers * config.kv_heads * config.head_dim
               + 8 * config.dim + 3 * config.hidden)
    n_tokens = min(max(lengths, default=0) + max_new_tokens, config.ctx)
    size = max(1, BATCH_BYTES // (4 * numbers * n_tokens))
    order = np.argsort(lengths, kind="stable").tolist()
    for i in range(0, len(order), size):
        yield order[i:i + size]


def complete(net, prompts, temperature=0.0, max_new_tokens=64, seed=0):
    """The texts that the network writes after prompts, lists of ids; without the stop ids. Memory
    is bounded however many prompts there are, and text k depends on nothing but prompt k and k."""
    params, config, tokenizer = net
    stop, texts = stop_ids(config, tokenizer), [""] * len(prompts)
    for rows in batches(config, list(map(len, prompts)), max_new_tokens):
        new = generate(params, config, [prompts[row] for row in rows], max_new_tokens, temperature,
                       seed=[(seed, row) for row in rows], stop=stop)
        for row, ids in zip(rows, new):
            texts[row] = tokenizer.decode([token for token in ids if token not in stop])
    return texts


def answers(net, conversations, temperature=0.0, max_new_tokens=64, seed=0):
    """What an assistant says next in each conversation [{"role", "content"}, ...]."""
    prompts = [render_chat(net[2], messages, open_answer=True)[0] for messages in conversations]
    return complete(net, prompts, temperature, max_new_tokens, seed)


def recall(params, config, tokenizer, facts):
    """The share of facts {"prompt", "answer"} that the network completes: each token of the answer
    is the likeliest. The loss falls smoothly; this jumps when facts are really known.

    Nothing is generated. One forward pass over prompt and answer gives, at each index, the
    likeliest *next* token, so predictions and answer are one index apart:

        index      0      1      2     3     4
        ids        Talgo  lives  in    Tide  wick      the prompt has 3 tokens, the answer 2
        likeliest  is     in     Tide  wick  .         likeliest[2:4] must be ids[3:5]

    If they agree, greedy decoding would have written just that answer."""
    prompts = [list(tokenizer.encode(fact["prompt"])) for fact in facts]
    full = [ids + list(tokenizer.encode(fact["answer"])) for ids, fact in zip(prompts, facts)]
    ids = np.zeros((len(full), max(map(len, full))), np.int64)  # padded on the right
    for row, tokens in zip(ids, full):
        row[:len(tokens)] = tokens
    likeliest = np.concatenate([forward(params, config, ids[i:i + 64]).argmax(-1)
                                for i in range(0, len(ids), 64)])  # 64 at a time: logits are large
    return sum(list(row[len(prompt) - 1:len(tokens) - 1]) == tokens[len(prompt):]
               for row, prompt, tokens in zip(likeliest, prompts, full)) / len(facts)


# ---- the terminal (skip at first) ----------------------------------------------------------------

def texts_of(net, ids, stop, how, new):
    """Yields the text that the network writes after ids, token by token; appends its ids to new.

    A token may end in the middle of a character (one of three bytes, say): the incremental decoder
    keeps such bytes until the rest has come."""
    params, config, tokenizer = net
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for _, (token,), _, _ in stream(params, config, [ids], stop=stop, **how):
        new.append(int(token))
        if token not in stop:
            yield decoder.decode(tokenizer.token_bytes(new[-1]))
    yield decoder.decode(b"", final=True)


def split_thoughts(parts):
    """Yields (text, whether it belongs to a thought <think>...</think>) from parts of one text. A
    tag may come in several parts, so the end of a part that may be a tag's beginning waits."""
    waiting, thought, tags = "", False, ("<think>", "</think>")
    for part in itertools.chain(filter(None, parts), [""]):  # "": the end
        waiting += part
        while (tag := tags[thought]) in waiting:
            before, _, waiting = waiting.partition(tag)
            yield before, thought
            yield tag, True
            thought = not thought
        kept = max(n for n in range(len(tag)) if waiting.endswith(tag[:n])) if part else 0
        ready = len(waiting) - kept
        yield waiting[:ready], thought
        waiting = waiting[ready:]


def write(net, ids, stop, how, new):
    """Prints what the network writes after ids as it comes, thoughts dimmed, and why it ends unless
    the network ended it. Appends the new ids to new."""
    config = net[1]
    for text, thought in split_thoughts(texts_of(net, ids, stop, how, new)):
        if text:
            text = printable(text, "\n")
            print(paint(text, "2") if thought else text, end="", flush=True)
    full = f" (the context of {config.ctx} tokens is full)"
    ended = new and new[-1] in stop
    print("" if ended else paint(full if len(ids) + len(new) >= config.ctx else " ...", "2"))


def write_candidates(net, ids, stop, how, new):
    """Prints for each new token the likeliest candidates as bars, and the sampled one marked. They
    show the network's own probabilities, at temperature 1 with nothing cut off: so one sees when a
    token of 2% was sampled, and what may come of it."""
    params, config, tokenizer = net
    for _, (token,), _, (logits,) in stream(params, config, [ids], stop=stop, **how):
        new.append(int(token))
        p = probabilities(logits)
        top = [k for k in np.argsort(-p)[:CANDIDATES].tolist() if p[k] > 0]
        for k in top if token in top else [*top, int(token)]:
            name = tokenizer.token_bytes(k).decode("utf-8", "backslashreplace")
            line = f"{printable(name):>16} {p[k]:6.1%} {'█' * round(BAR * p[k])}"
            print(paint(line + " <- sampled", "32") if k == token else line)
        print()


# ---- psychology of a base model ------------------------------------------------------------------

def dreams(net, ids, stop, how, n):
    """n texts from the same prompt, and the greedy one. A base model has no answer in mind, only a
    probability for every text that might follow. What it writes looks like its training text, names
    and numbers too, but nobody wrote it: a hallucination."""
    params, config, tokenizer = net
    sampled = generate(params, config, [ids] * n, stop=stop, **how)
    greedy = generate(params, config, [ids] * 2, how["max_new_tokens"], temperature=0, stop=stop)
    for title, new in [*enumerate(sampled, 1), ("temperature 0", greedy[0])]:
        text = tokenizer.decode([k for k in [*ids, *new] if k not in stop and k not in config.bos])
        print(paint(f"---- {title} ----", "2") + "\n" + printable(text, "\n"))
    print(f"Same prompt, same weights, other random numbers: {n} texts at temperature "
          f"{how['temperature']:g}, {len(set(map(tuple, sampled)))} different.\nAt temperature 0 "
          f"always the likeliest token: 2 texts, {len(set(map(tuple, greedy)))} different.")


def window_hashes(tokens):
    """A number (N-WINDOW+1,) for each window of WINDOW tokens (N,): equal for equal windows, hardly
    ever for others. That of 2n tokens comes from those of its halves, a and b: a * m**n + b."""
    hashes, n = tokens.astype(np.uint64), 1
    while n < WINDOW:
        factor = pow(0x9E3779B97F4A7C15, n, 1 << 64)  # modulo 2**64, as uint64 computes
        hashes = hashes[:-n] * np.uint64(factor) + hashes[n:]
        n *= 2
    return hashes


def find_quoted(which, times):
    """[start, ...] of at most TEXTS passages that occur at least QUOTED times, most frequent first.
    which, times (n,): for each position the number of its window, and how often that one occurs."""
    starts, times = [], times.copy()
    while len(starts) < TEXTS and len(times) and times.max() >= QUOTED:
        start = end = int(times.argmax())  # the first of the most frequent windows
        starts.append(start)
        while end < len(times) and times[end] > times[start] / 2:  # most copies go on alike
            end += 1
        # This passage is done: all its copies, with every window that overlaps one.
        copies = np.flatnonzero(np.isin(which, which[start:end]))
        for shift in range(-WINDOW, WINDOW + 1):
            times[np.clip(copies + shift, 0, len(times) - 1)] = 0
    return starts


def regurgitation(net, model, seed):
    """Memorization: how far does the network recite a text word for word, given its first tokens?
    Passages that many pages quote, training texts that occur once, and held-out texts, which show
    how much of it is chance: anybody can finish a common phrase."""
    params, config, tokenizer = net
    T, given = config.ctx, min(GIVEN, config.ctx // 2)
    train, val = (np.asarray(tokens_beside(model, part, tokenizer, max(T, WINDOW))[:SEARCHED])
                  for part in ("train", "val"))
    hashes, rng = window_hashes(train), np.random.default_rng(seed)
    _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    times = counts[which][:len(train) - T + 1]  # where a text of T tokens may begin
    quoted = find_quoted(which[:len(times)], times)
    once = rng.permutation(np.flatnonzero(times == 1))[:TEXTS]
    new = rng.integers(0, len(val) - max(T, WINDOW), TEXTS)
    new = new[~np.isin(window_hashes(val)[new], hashes)]  # held-out pages quote, too
    print(f"Given the first {given} tokens of a text, how many of the next {T - given} does the "
          "network write word for word (greedy)?")
    for name, tokens, starts in (
            (f"passages quoted at least {QUOTED} times in the training text", train, quoted),
            ("texts that occur once in it", train, once),
            ("held-out texts", val, new)):
        if not len(starts):
            print(f"  {name}: none")
            continue
        texts = np.array([tokens[start:start + T] for start in starts], np.int64)  # (N,T)
        written = generate(params, config, texts[:, :given], T - given, temperature=0)
        # The running product of hits (1) and misses (0) is 1 up to the first miss.
        right = np.cumprod(written == texts[:, given:], axis=1).sum(axis=1)
        best = right.argmax()
        prompt, recited = (printable(tokenizer.decode(ids.tolist())) for ids in
                           (texts[best, :given], written[best, :right[best]]))
        print(f"  {name} ({len(texts)}): {right.mean():.1f} on average, at most {right[best]}\n"
              f"    {paint(prompt, '2')} -> {paint(recited, '32')}")


def lossy_zip(net, model):
    """To predict is to compress: arithmetic coding writes a token of probability p in -log2 p bits,
    so the loss is a file size. Compares it with gzip and xz on the same held-out text.

    The text is read in windows of T tokens, and the first tokens of each are predicted from little:
    a sliding window would do better, but take T times as long."""
    params, config, tokenizer = net
    T, train = config.ctx, tokens_beside(model, "train", tokenizer, config.ctx)
    val = np.asarray(tokens_beside(model, "val", tokenizer, T)[:ZIPPED + 1], np.int64)
    end = (len(val) - 1) // T * T
    ids, targets = val[:end].reshape(-1, T), val[1:end + 1].reshape(-1, T)
    nats = token_losses(params, config, ids, targets).sum(dtype=np.float64)
    # Tokens of different vocabularies are not comparable, bytes are. Special tokens are no text.
    specials = set(tokenizer.special_tokens.values())
    text = b"".join([tokenizer.token_bytes(k) for k in targets.ravel().tolist()
                     if k not in specials])
    print(f"{len(text):,} bytes of held-out text, in bits per byte:")
    for name, n in (("plain", 8 * len(text)), ("gzip", 8 * len(gzip.compress(text))),
                    ("xz", 8 * len(lzma.compress(text))), ("network", nats / np.log(2))):
        print(f"{name:>10} {n / len(text):5.2f} {'█' * round(BAR * n / len(text) / 8)}")
    print(f"The network's perplexity is exp(loss) = {np.exp(nats / targets.size):.2f} a token.\n"
          f"gzip and xz start from nothing; the network brings {count(config)[0]:,} parameters, a "
          f"lossy zip of {len(train):,} training tokens.")


def tokens_beside(model, part, tokenizer, n):
    """More than n tokens from tokens/ beside the checkpoint folder: the text that the network was
    trained on ("train"), and the held-out text ("val")."""
    folder = os.path.join(os.path.dirname(os.path.normpath(model)), "tokens")
    tokens = read_tokens(folder, part, tokenizer)
    if len(tokens) <= n:
        raise ValueError(f"{folder}/{part}.npy: {len(tokens)} tokens; this needs more than {n}")
    return tokens


# ---- chat ----------------------------------------------------------------------------------------

def trim(tokenizer, messages, limit):
    """(messages, ids): the newest messages that fit in limit tokens, with the head of an answer.
    The system's message stays; the oldest questions fall out, each with its answer, so that what
    is left begins with a question as every conversation did in training."""
    system = messages[:messages[0]["role"] == "system"]
    for first in range(len(system), len(messages), 2):
        ids, _ = render_chat(tokenizer, system + messages[first:], open_answer=True)
        if len(ids) <= limit:
            return system + messages[first:], ids
    raise ValueError(f"{len(ids)} tokens, but only {limit} leave room for an answer: please say it "
                     "shorter")


def chat(net, args, how):
    """A conversation on the terminal. The network remembers nothing: at each turn it reads all of
    the conversation again, as far as it fits. What people type never becomes special tokens."""
    params, config, tokenizer = net
    if not set(CHAT_SPECIALS) <= set(tokenizer.special_tokens):
        raise ValueError(f"{args.model} is a base model: it continues text and has not learned to "
                         "take turns; python sft.py makes an assistant of it")
    try:
        import readline  # noqa: F401, gives input() arrow keys and history; Windows lacks it
    except ImportError:
        pass
    fresh = [{"role": "system", "content": args.system}] if args.system else []
    messages, forgotten = fresh, 0
    print("/reset starts anew, /save FILE adds the chat to a file, /quit ends, Ctrl-C interrupts")
    while True:
        try:
            text = input("you> ").strip()
            if text == "/quit":
                return print("bye")
            if text == "/reset":
                messages, forgotten = fresh, 0
            elif text.startswith("/save ") and messages != fresh:
                # One conversation a line, as sft.py reads them.
                with open(text[6:].strip(), "a", encoding="utf-8") as file:
                    file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                print(f"(saved to {printable(text[6:].strip())})")
            elif text.startswith("/"):
                print("(/reset, /save FILE after a first answer, /quit)")
            elif text:
                asked = [*messages, {"role": "user", "content": text}]
                kept, ids = trim(tokenizer, asked, config.ctx - int(config.ctx * ANSWER_SHARE))
                if len(asked) - len(kept) > forgotten:
                    forgotten = len(asked) - len(kept)
                    print(paint("(the context is full: from now on the first "
                                f"{forgotten} messages are not read)", "2"))
                answer = reply(net, ids, how | {"seed": how["seed"] + len(asked)})
                messages = [*asked, {"role": "assistant", "content": answer}]
        except EOFError:
            return print()
        except (ValueError, OSError) as error:
            print(f"({printable(str(error))})")


def reply(net, ids, how):
    """Prints the assistant's answer as it comes, and returns it. Ctrl-C ends it early."""
    _, config, tokenizer = net
    stop, new = stop_ids(config, tokenizer), []
    print(paint("assistant> ", "32"), end="", flush=True)
    try:
        write(net, ids, stop, how, new)
    except KeyboardInterrupt as interrupt:
        if interrupt.args:  # SIGTERM (common.py) ends the whole chat
            raise
        print(paint(" (stopped)", "2"))
    return tokenizer.decode([token for token in new if token not in stop])


# ---- the command ---------------------------------------------------------------------------------

def choose_model(for_chat):
    """(folder, why): of out/sft and out/rl the one that was written last. An out/rl that is older
    than out/sft was trained from an assistant that sft.py has replaced since."""
    found = [folder for folder in (["out/sft", "out/rl"] if for_chat else [])
             if os.path.exists(os.path.join(folder, "config.json"))]
    if not found:
        return "out/base", ""
    found.sort(key=lambda folder: os.path.getmtime(os.path.join(folder, "config.json")))
    return found[-1], f" (newer than {found[0]})" if len(found) > 1 else ""


def run(args):
    """Opens the model, says what is about to happen, and does what was asked: a chat, one of the
    demonstrations, several texts, or one text as it comes."""
    for flag in ("tokens", "samples"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag} {getattr(args, flag)}: must be at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must not be below 0")
    chosen, why = choose_model(args.chat)
    args.model, why = (args.model, "") if args.model else (chosen, why)
    params, config, tokenizer = net = open_model(args.model, args.tokenizer)
    stop = stop_ids(config, tokenizer)
    how = {"max_new_tokens": args.tokens, "temperature": args.temperature, "top_k": args.top_k,
           "top_p": args.top_p, "seed": args.seed}
    # In training every document begins after the bos token, and so does ours.
    ids = fit([*config.bos, *tokenizer.encode(args.prompt)], config, args.tokens)
    if not ids:
        raise ValueError("this model names no token that a text begins with: give a --prompt")
    check_sampling([ids], args.tokens, args.temperature, args.top_k, args.top_p)
    settings = {key: value for key, value in vars(args).items()
                if value is not None and value is not False and value != ""}
    print_settings("sample.py", settings | {
        "model": args.model + why, "parameters": f"{count(config)[0]:,}", "context": config.ctx,
        "vocabulary": f"{config.vocab:,}"})
    # Two tokens try both prefill and decode, so that everything is compiled.
    start = time.perf_counter()
    generate(params, config, [ids], 2)
    if (seconds := time.perf_counter() - start) > 3:
        print(f"compiled the kernels in {seconds:.0f} s, kept for the next run")
    if args.chat:
        chat(net, args, how)
    elif args.demo == "regurgitation":
        regurgitation(net, args.model, args.seed)
    elif args.demo == "zip":
        lossy_zip(net, args.model)
    elif args.demo or args.samples > 1:
        dreams(net, ids, stop, how, args.samples if args.samples > 1 else DREAMS)
    else:
        print(paint(printable(args.prompt, "\n"), "2"), end="\n" * args.probs, flush=True)
        start, new = time.perf_counter(), []
        (write_candidates if args.probs else write)(net, ids, stop, how, new)
        seconds = time.perf_counter() - start
        print(f"{len(new)} tokens in {seconds:.2f} s: {len(new) / seconds:,.0f} tokens/s")


def main():
    parser = argparse.ArgumentParser(prog="sample.py", description="Let a network write: continue "
                                     "a prompt, show its candidates, or chat with it.")
    add = parser.add_argument
    add("--model", help="checkpoint folder or llama2.c file (default: out/base; with --chat the "
        "newer of out/sft and out/rl)")
    add("--tokenizer", help="tokenizer file (default: the one in the checkpoint)")
    add("--prompt", default="", help="text to continue (default: the beginning of a document)")
    add("--tokens", type=int, default=200, help="write at most so many tokens (200)")
    add("--temperature", type=float, default=0.8, help="0: always the likeliest token (greedy); 1: "
        "the network's own probabilities; higher: more random (0.8)")
    add("--top-k", type=int, help="sample from the k likeliest tokens only")
    add("--top-p", type=float, help="sample from the fewest likeliest tokens that together have at "
        "least this probability")
    add("--seed", type=int, default=0, help="another seed gives other random numbers (0)")
    add("--samples", type=int, default=1, help="write so many texts from the same prompt (1)")
    add("--probs", action="store_true", help="show the likeliest candidates for each token")
    add("--demo", choices=("dreams", "regurgitation", "zip"), help="dreams: several texts from one "
        "prompt; regurgitation: what it recites word for word; zip: how well it compresses")
    add("--chat", action="store_true", help="talk with a model that sft.py or rl.py trained")
    add("--system", help="with --chat: what the model is told before the conversation")
    return run_command(parser, run)


if __name__ == "__main__":
    sys.exit(main())
