"""5. Inference: the network writes token after token, each sampled from its probabilities.

    python sample.py --prompt "Once"           continues a prompt
    python sample.py --prompt "Once" --probs   the likeliest candidates for each token, as bars
    python sample.py --demo dreams             what a base model is; also regurgitation, zip
    python sample.py --chat                    a conversation with the assistant of sft.py
    python sample.py --chat --model out/rl     the same with what rl.py trained
    python sample.py --model stories260K.bin --tokenizer tok512.bin      llama2.c's files work too

Reading order: naive_generate, which is all of inference; stream, the same with a KV cache; then the
terminal, the demonstrations and the chat. Reads a checkpoint (out/base/; with --chat out/sft/) and
out/tokens/ (zip, regurgitation). Writes 6,800 tokens/s with 0.9M parameters (Zen 5).

Sources: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Pope et al. 2022 (KV cache), Carlini
et al. 2023 (memorization). Left out: beam search, repetition penalties, speculative decoding.
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import compiling, paint, print_settings, printable, run_command

import argparse
import codecs
import contextlib
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
from kernels import probabilities, sample_tokens
from model import Cache, count, decode, forward, prefill, token_losses

BATCH_BYTES = 1 << 28  # memory that the texts of one batch may take: 256 MB
ANSWER_SHARE = 1 / 16  # of the context: what --chat keeps free for the answer, at least
CANDIDATES, BAR = 6, 40  # --probs: candidates for a token; characters of a bar of 100%
DREAMS, ZIPPED = 5, 32_768  # --demo: texts from one prompt; held-out tokens that are compressed
# --demo regurgitation: tokens searched, tokens a passage, times it occurs if quoted, passages.
SEARCHED, PASSAGE, QUOTED, PASSAGES = 5_000_000, 128, 4, 32


# ---- the naive loop ------------------------------------------------------------------------------
# The network gives a score, a logit, for every token that could come next. Softmax makes scores
# into probabilities; laid end to end these fill the line from 0 to 1, and a random number points at
# one of them:
#
#     "Talgo lives in"      Tidewick     Westerly     Dunmore
#     logit                    2            1            0
#     exp(logit)               7.39         2.72         1          sum 11.11
#     probability              0.67         0.24         0.09
#     covers              0 to 0.67    0.67 to 0.91  0.91 to 1      0.70 points at Westerly
#
# Temperature divides the logits first: 0.5 sharpens these probabilities to (0.87, 0.12, 0.02), 2
# flattens them to (0.51, 0.31, 0.19). With top_k = 2, or top_p = 0.8, Dunmore could not be sampled.

def naive_generate(params, config, ids, max_new_tokens, temperature=1, top_k=0, top_p=1, seed=0):
    """All of inference: the network reads the text, the next token is sampled and appended, and the
    network reads again (autoregressive generation). ids: a list; temperature above 0. Returns the
    new ids."""
    text, rng = list(ids), np.random.default_rng((seed, 0))
    for _ in range(max_new_tokens):
        logits = forward(params, config, np.array([text]))[0, -1]  # (V,), for the next token
        p = probabilities(logits, temperature, top_k, top_p)  # (V,), in kernels/plain.py
        text.append(int(np.searchsorted(np.cumsum(p), rng.random(), "right")))
    return text[len(ids):]


# ---- many texts, a KV cache ----------------------------------------------------------------------
# The naive loop computes the same keys and values again for each new token. No token sees a later
# one, so they never change: the KV cache keeps them. Prefill fills it with the whole prompt in one
# pass; decode then feeds only the newest token. Many texts are written at once:
#
#     step     0      1            2      3
#     row 0    Tide   wick         .      <|im_end|>
#     row 1    Yes    <|im_end|>                        a stop id, so this row leaves the batch

def stream(params, config, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
           stop=()):
    """Continues prompts, an array (B,T) or B lists of ids of any lengths. Yields at each step the
    rows (N,) that are still being written, their new tokens (N,), logprobs (N,), logits (N,V).

    A row ends with an id in stop, after max_new_tokens, or with config.ctx tokens in all.
    Temperature 0 takes the likeliest token (greedy). Row b has its own random numbers, from
    (seed, b), or from seed[b] of a list: its text does not depend on the other rows. logprobs are
    the network's own, before temperature, top_k and top_p: rl.py learns from them."""
    top_k, top_p = min(top_k or 0, config.vocab), 1.0 if top_p is None else float(top_p)
    check_sampling(prompts, max_new_tokens, temperature, top_k, top_p)
    prompts = [fit(prompt, config, max_new_tokens) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    n_steps = min(max_new_tokens, config.ctx - min(lengths))
    seeds = seed if isinstance(seed, list) else [(seed, row) for row in range(len(prompts))]
    numbers = np.array([np.random.default_rng(s).random(n_steps) for s in seeds])  # (B,n_steps)
    is_stop, unused = np.isin(np.arange(config.vocab), list(stop)), list(config.unused)  # (V,)
    batches = split_rows(config, lengths, max_new_tokens)
    cache = Cache(params, config, len(batches[0]), max(lengths) + n_steps)
    for batch in batches:
        rows = np.arange(len(batch))  # of the cache
        logits = prefill_once(config, cache, [prompts[row] for row in batch])  # (N,V)
        for step in range(n_steps):
            if step:
                logits = decode(config, cache, tokens, rows)  # (N,V)
            logits[:, unused] = -np.inf  # ids without a token
            tokens, logprobs = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
            sample_tokens(logits, float(temperature), top_k, top_p, numbers[batch[rows], step],
                          tokens, logprobs)  # writes the last two
            if not np.isfinite(logprobs).all():
                raise ValueError("the network's output is not a number: its weights are damaged")
            yield batch[rows], tokens, logprobs, logits
            # Rows go on that met no stop and have a position left for one more token.
            going = ~is_stop[tokens] & (cache.lengths[rows] + 1 < config.ctx)
            rows, tokens = rows[going], tokens[going]
            if not len(rows):
                break


def generate(params, config, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
             stop=()):
    """`stream` collected: B lists of new ids, with the stop ids; for an array (B,T) without stop an
    array (B,n). generate(params, config, [[7, 3], [5]], 3, stop=[9]) may return
    [[4, 8, 4], [6, 9]]."""
    new = [[] for _ in ids]
    for rows, tokens, _, _ in stream(params, config, ids, max_new_tokens, temperature, top_k, top_p,
                                     seed, stop):
        for row, token in zip(rows.tolist(), tokens.tolist()):
            new[row].append(token)
    return np.array(new, np.int64) if isinstance(ids, np.ndarray) and not len(stop) else new


# ---- what stream does first (skip at first) ------------------------------------------------------

def check_sampling(prompts, max_new_tokens, temperature, top_k, top_p):
    """ValueError for what can't be sampled with."""
    if not len(prompts) or not all(np.ndim(prompt) == 1 and len(prompt) for prompt in prompts):
        raise ValueError("prompts must be an array (B,T) or B lists of ids, none of them empty")
    for name, value, least, most in (
            ("tokens", max_new_tokens, 0, np.inf), ("top-k", top_k, 0, np.inf),
            ("top-p", top_p, 1e-6, 1), ("temperature", temperature or 1, 1e-6, 1e6)):  # 0: greedy
        if not least <= value <= most:  # a NaN isn't either
            raise ValueError(f"{name} {value}: must be from {least} to {most}")


def fit(prompt, config, max_new_tokens):
    """The prompt; of one that fills the context only the end: half the context, or all but
    max_new_tokens if that is more. Of 256: the last 236 for 20 new tokens, 128 for 200."""
    if len(prompt) < config.ctx:
        return prompt
    kept = max(1, config.ctx // 2, config.ctx - max_new_tokens)
    print(f"(a prompt of {len(prompt)} tokens: only its last {kept} are read)", file=sys.stderr)
    return prompt[-kept:]


def split_rows(config, lengths, max_new_tokens):
    """Arrays of row numbers, the batches: in order of the prompts' lengths, so that there is little
    padding, as many rows at a time as fit into BATCH_BYTES. A token of the 25M network takes 12,320
    numbers of 4 bytes, a text of 260 tokens 13 MB: 20 such texts go together."""
    # Numbers a token: keys and values of all layers, and about the activations of one.
    numbers = (2 * config.layers * config.kv_heads * config.head_dim
               + 8 * config.dim + 3 * config.hidden)
    n_tokens = min(max(lengths) + max_new_tokens, config.ctx)
    size = max(1, BATCH_BYTES // (4 * numbers * n_tokens))
    order = np.argsort(lengths, kind="stable")
    return np.split(order, range(size, len(order), size))


def prefill_once(config, cache, prompts):
    """Fills the cache with B prompts and returns the logits (B,V) after each. A prompt that several
    rows share (in rl.py each has 16 rollouts) is read once; its keys and values are copied.

    Of prompts [7, 3], [5], [7, 3] it reads [[7, 3], [5, 0]]: shorter ones are padded on the right,
    where causal attention never looks."""
    number_of = {}  # different prompt -> its number; which is 0, 1, 0 in the example
    which = [number_of.setdefault(tuple(prompt), len(number_of)) for prompt in prompts]  # (B,)
    lengths, T = np.array([len(prompt) for prompt in number_of]), max(map(len, prompts))
    ids = np.array([*itertools.zip_longest(*number_of, fillvalue=0)], np.int64).T
    logits = prefill(config, cache, ids, lengths)
    for cached in (cache.k, cache.v):  # (L,B,G,S,D)
        cached[:, :len(which), :, :T] = cached[:, which, :, :T]
    cache.lengths[:len(which)] = lengths[which]
    return logits[which]


# ---- text on the terminal ------------------------------------------------------------------------
# net is (params, config, tokenizer); how holds the keyword arguments of `stream`.

def write(net, steps, how, new, candidates=False):
    """Prints the steps of `stream` for one text as they come, thoughts dimmed, or the candidates
    for each token; then why it ends, unless the network ended it. The ids are appended to new,
    where the caller finds them after Ctrl-C too."""
    _, config, tokenizer = net
    # A token may end inside a character: "é" is two bytes. The decoder keeps the first until the
    # second has come.
    decoder, text = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for _, (token,), _, (logits,) in steps:
        new.append(int(token))
        if candidates:
            print_candidates(tokenizer, logits, new[-1])
        elif token not in how["stop"]:
            part = printable(decoder.decode(tokenizer.token_bytes(new[-1])), "\n")
            text += part
            thought = text.rfind("<think>") > text.rfind("</think>")  # -1: not there
            print(paint(part, "2") if thought else part, end="", flush=True)
    full = f" (the context of {config.ctx} tokens is full)"
    reason = full if len(new) < how["max_new_tokens"] else " ..."
    print(decoder.decode(b"", final=True) + ("" if token in how["stop"] else paint(reason, "2")))


def print_candidates(tokenizer, logits, token):
    """The likeliest next tokens as bars, before temperature, top_k and top_p, and the sampled one
    marked: so one sees when a token of 2% was sampled, and what comes of it."""
    p = probabilities(logits)
    top = np.argsort(-p)[:CANDIDATES].tolist()
    for k in top if token in top else [*top, token]:
        name = printable(tokenizer.token_bytes(k).decode("utf-8", "backslashreplace"))
        line = f"{name:>16} {p[k]:6.1%} {'█' * round(BAR * p[k])}"
        print(paint(line + " <- sampled", "32") if k == token else line)
    print()


# ---- what a base model is: three demonstrations --------------------------------------------------
# Dreams, which `run` writes below: several texts from one prompt. A base model has no answer in
# mind, only a probability for every text that might follow. What it writes looks like its training
# text, but nobody wrote it: names and numbers are hallucinations.

def regurgitation(net, train, val):
    """Memorization: how far does the network recite a text word for word, given its first tokens?
    Held-out passages show how much of it is chance: anybody can finish a common phrase."""
    params, config, tokenizer = net
    T = min(PASSAGE, config.ctx)
    given, passages = T // 4, find_passages(train[:SEARCHED], val[:SEARCHED], T)
    print(f"Tokens recited word for word, of the {T - given} after a passage's first {given}:")
    kinds = f"quoted {QUOTED} times or more", "once in the training text", "held out"
    for kind, texts in zip(kinds, passages):
        if not len(texts):
            continue
        written = generate(params, config, texts[:, :given], T - given, temperature=0)
        # Hits up to the first miss: of 1 1 0 1 the running product is 1 1 0 0, its sum 2.
        right = np.cumprod(written == texts[:, given:], axis=1).sum(axis=1)
        best = right.argmax()
        prompt = printable(tokenizer.decode(texts[best, :given].tolist()))
        recited = printable(tokenizer.decode(written[best, :right[best]].tolist()))
        print(f"  {kind} ({len(texts)}): {right.mean():.1f} on average, at most {right[best]}\n"
              f"    {paint(prompt, '2')} -> {paint(recited, '32')}")


def find_passages(train, val, T):
    """Passages of T tokens, three arrays (N,T): some that occur QUOTED times or more; some that
    occur once, in train; some that occur once, in val."""
    text = np.concatenate([train, val]).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(text, T)  # the T tokens from each position
    # Hashes modulo 2**64: different passages hardly ever have equal ones. np.unique sorts by them,
    # so the first of a kind are as good as random ones.
    hashes = windows @ (np.uint64(0x9E3779B97F4A7C15) ** np.arange(T, dtype=np.uint64)[::-1])
    _, first, times = np.unique(hashes, return_index=True, return_counts=True)
    in_train = first < len(train)
    kinds = times >= QUOTED, (times == 1) & in_train, (times == 1) & ~in_train
    return [windows[first[kind][:PASSAGES]] for kind in kinds]


def lossy_zip(net, train, val):
    """To predict is to compress: arithmetic coding writes a token of probability p in -log2 p bits,
    one of 1/8 in 3 bits. So the loss on held-out text is a file size, as are gzip's and xz's."""
    params, config, tokenizer = net
    T = config.ctx
    n = min(ZIPPED, len(val) - 1) // T * T
    ids, targets = (val[i:i + n].reshape(-1, T).astype(np.int64) for i in (0, 1))
    nats = token_losses(params, config, ids, targets).sum(dtype=np.float64)
    # Tokens of different vocabularies are not comparable, bytes are. Special tokens are no text.
    text = b"".join(tokenizer.token_bytes(k) for k in targets.ravel().tolist()
                    if k not in tokenizer.special_tokens.values())
    print(f"{len(text):,} bytes of held-out text, in bits per byte:")
    for name, n_bytes in (("plain", len(text)), ("gzip", len(gzip.compress(text))),
                          ("xz", len(lzma.compress(text))), ("network", nats / np.log(2) / 8)):
        share = n_bytes / len(text)
        print(f"{name:>10} {8 * share:5.2f} {'█' * round(BAR * share)}")
    print(f"Perplexity, exp(loss): {np.exp(nats / n):.2f} a token. gzip and xz start from nothing; "
          f"these {count(config)[0]:,} parameters are a lossy zip of {len(train):,} tokens.")


# ---- chat ----------------------------------------------------------------------------------------
# The network remembers nothing. At each turn it reads the conversation again, as far as it fits, as
# one text that ends where the assistant speaks, and continues it up to <|im_end|>:
#
#     <|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>

def chat(net, system, how):
    """A conversation on the terminal. system: a list of at most one message."""
    _, config, tokenizer = net
    render_chat(tokenizer, system)  # ValueError if it has no chat tokens: a base model
    messages, forgotten = [], 0  # the first `forgotten` messages are not read any more
    with contextlib.suppress(ImportError):  # Windows lacks it
        import readline  # noqa: F401, gives input() arrow keys and history
    print("/reset starts anew, /save FILE adds the chat to a file, /quit ends, Ctrl-C interrupts")
    while True:
        try:
            text = input("you> ").strip()
            if text == "/quit":
                return print("bye")
            if text == "/reset":
                messages, forgotten = [], 0
            elif text.startswith("/save ") and messages:
                path, talk = text.removeprefix("/save ").strip(), {"messages": system + messages}
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(talk, ensure_ascii=False) + "\n")
                print(f"(saved to {printable(path)})")
            elif text.startswith("/"):
                print("(/reset, /save FILE after a first answer, /quit)")
            elif text:
                asked = [*messages, {"role": "user", "content": text}]
                n, _ = trim(net, system + asked)
                if n > forgotten:
                    print(paint(f"(the context is full: the first {n} messages are not read)", "2"))
                forgotten = n
                said = reply(net, system + asked, how | {"seed": how["seed"] + len(asked)})
                messages = [*asked, {"role": "assistant", "content": said}]
        except EOFError:
            return print()
        except (ValueError, OSError) as error:
            print(f"({printable(str(error))})")


def reply(net, messages, how):
    """Prints the assistant's answer and returns its text, also if Ctrl-C ends it early."""
    print(paint("assistant> ", "32"), end="", flush=True)
    new = []
    try:
        write(net, answer(net, messages, **how), how, new)
    except KeyboardInterrupt as interrupt:
        if interrupt.args:  # SIGTERM (common.py) ends the whole chat
            raise
        print(paint(" (stopped)", "2"))
    return net[2].decode([token for token in new if token not in how["stop"]])


def answer(net, messages, max_new_tokens, seed, stop, **how):
    """The steps of `stream` for the answer to a conversation. If the answer fills the context, the
    oldest messages fall out and it goes on. With a context of 12 and messages of 3 tokens each:

        q1 q1 q1 a1 a1 a1 q2 q2 q2 A A A     full
        q2 q2 q2 A A A A A A ..."""
    params, config, _ = net
    new = []
    while len(new) < max_new_tokens and not (new and new[-1] in stop):
        _, ids = trim(net, messages, len(new))
        for step in stream(params, config, [ids + new], max_new_tokens - len(new), stop=stop,
                           seed=[(seed, len(new))], **how):
            new.append(int(step[1][0]))
            yield step


def trim(net, messages, written=0):
    """(n, ids): the prompt for an answer, without the oldest n messages, so that there is room for
    the answer's `written` tokens and ANSWER_SHARE of the context. The system's message stays.
    Questions fall out with their answers, so the prompt begins as in training."""
    _, config, tokenizer = net
    limit = int(config.ctx * (1 - ANSWER_SHARE)) - written
    system = [message for message in messages[:1] if message["role"] == "system"]
    for n in range(0, len(messages) - len(system), 2):
        ids, _ = render_chat(tokenizer, system + messages[len(system) + n:], open_answer=True)
        if len(ids) <= limit:
            return n, ids
    raise ValueError(f"{len(ids)} tokens, but only {limit} fit: please say it shorter")


# ---- what train.py, sft.py and rl.py ask of a network (skip at first) ----------------------------

def stop_ids(config, tokenizer):
    """The ids at which a text ends. An assistant ends its turn with <|im_end|>; a bad one may begin
    the next turn instead, so the chat's other special tokens end it too."""
    special = tokenizer.special_tokens
    return {*config.eos, *(special[name] for name in CHAT_SPECIALS if name in special)}


def complete(net, prompts, temperature=0.0, max_new_tokens=64, seed=0):
    """The texts that the network writes after prompts, lists of ids; without the stop ids."""
    params, config, tokenizer = net
    stop = stop_ids(config, tokenizer)
    new = generate(params, config, prompts, max_new_tokens, temperature, seed=seed, stop=stop)
    return [tokenizer.decode([token for token in ids if token not in stop]) for ids in new]


def recall(params, config, tokenizer, facts):
    """The share of facts {"prompt", "answer"} whose answer is the likeliest, token by token. A
    single forward pass shows it, since the network predicts at every position:

        index      0      1      2     3     4
        ids        Talgo  lives  in    Tide  wick      the prompt has 3 tokens, the answer 2
        likeliest  is     in     Tide  wick  .         likeliest[2:4] must be ids[3:5]"""
    right = 0
    for fact in facts:
        prompt, answer = (list(tokenizer.encode(fact[key])) for key in ("prompt", "answer"))
        likeliest = forward(params, config, np.array([prompt + answer]))[0].argmax(axis=1).tolist()
        right += likeliest[len(prompt) - 1:-1] == answer
    return right / len(facts)


# ---- the command (skip at first) -----------------------------------------------------------------

def run(args):
    """A chat, a demonstration on out/tokens/, or texts from a prompt."""
    for flag, least in (("tokens", 1), ("samples", 1), ("seed", 0)):
        if getattr(args, flag) < least:
            raise ValueError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    default = "out/sft" if args.chat and os.path.exists("out/sft") else "out/base"
    args.model = args.model or default
    params, config, tokenizer = net = open_model(args.model, args.tokenizer)
    # In training every document begins after the bos token, and so does ours.
    ids = fit([*config.bos, *tokenizer.encode(args.prompt)], config, args.tokens)
    if not ids:
        raise ValueError("this model has no bos token to begin with: give a --prompt")
    how = {"max_new_tokens": args.tokens, "temperature": args.temperature, "top_k": args.top_k,
           "top_p": args.top_p, "seed": args.seed, "stop": stop_ids(config, tokenizer)}
    settings = {key: value for key, value in vars(args).items() if value is not False}
    print_settings("sample.py", settings | {"prompt": args.prompt or None, "context": config.ctx,
                                            "parameters": f"{count(config)[0]:,}"})
    with compiling():  # two tokens: one from prefill, one from decode
        generate(params, config, [ids], **how | {"max_new_tokens": 2})
    if args.chat:
        return chat(net, [{"role": "system", "content": args.system}] if args.system else [], how)
    if args.demo in ("regurgitation", "zip"):
        folder = os.path.join(os.path.dirname(os.path.normpath(args.model)), "tokens")
        train, val = (read_tokens(folder, part, tokenizer) for part in ("train", "val"))
        if min(len(train), len(val)) <= config.ctx:
            raise ValueError(f"{folder}: too few tokens for a context of {config.ctx}")
        return (lossy_zip if args.demo == "zip" else regurgitation)(net, train, val)
    for k in range(max(args.samples, DREAMS if args.demo else 1)):
        print(paint(printable(args.prompt, "\n"), "2"), end="\n" * args.probs, flush=True)
        start, new = time.perf_counter(), []
        write(net, stream(params, config, [ids], **how | {"seed": [(args.seed, k)]}), how, new,
              args.probs)
        seconds = time.perf_counter() - start
        print(f"{len(new)} tokens in {seconds:.2f} s: {len(new) / seconds:,.0f} tokens/s")


def main():
    parser = argparse.ArgumentParser(prog="sample.py", description="Let a network write.")
    add = parser.add_argument
    add("--model", help="folder or llama2.c file (out/base; with --chat out/sft)")
    add("--tokenizer", help="tokenizer file (the checkpoint's)")
    add("--prompt", default="", help="text to continue (a document's start)")
    add("--tokens", type=int, default=200, help="most new tokens to write (200)")
    add("--temperature", type=float, default=0.8, help="0: greedy; higher: more random (0.8)")
    add("--top-k", type=int, help="sample from the k likeliest tokens only")
    add("--top-p", type=float, help="sample from the likeliest tokens that together reach it")
    add("--seed", type=int, default=0, help="another seed gives other random numbers (0)")
    add("--samples", type=int, default=1, help="number of texts from one prompt (1)")
    add("--probs", action="store_true", help="show the likeliest candidates for each token")
    add("--demo", choices=("dreams", "regurgitation", "zip"), help="write, recite or compress text")
    add("--chat", action="store_true", help="talk with an assistant, of sft.py or rl.py")
    add("--system", help="what it is told before the chat")
    return run_command(parser, run)


if __name__ == "__main__":
    sys.exit(main())
