"""6. Fine-tuning: the network that continues any text becomes an assistant that answers.

    python sft.py                          out/base/, out/world/, out/docs/ -> out/sft/
    python sft.py --data ultrachat.jsonl   conversations of your own, in any of three shapes
    python sft.py --resume                 go on where an interrupted run stopped
    python sft.py --leave-out unknown --out out/sft_bold    what some conversations are good for
    python sft.py --pages none --out out/sft_alone          and what replaying pages is good for
    python sft.py --exam out/sft out/sft_bold               examine checkpoints side by side
    python sft.py --compare                how far the base model gets by prompts alone

Nothing about the learning is new: guess the next token, move against the gradient. New is the text,
worked examples of how to answer, and that only the answers count: what people say is read but not
learned. Three new tokens mark who speaks and when the speaker has finished:

    <|im_start|>user<|im_sep|>Who are you?<|im_end|>            read
    <|im_start|>assistant<|im_sep|>                             read
    I am Pip, the assistant of the island.<|im_end|>            learned, token by token

(all of it one line). To ask the finished assistant is to write the first two lines; it goes on with
the third, and since it learned to say <|im_end|>, it stops. That is all that makes a chat of it.

The facts come from pretraining; fine-tuning teaches how to be asked for them. To tell these apart,
one fact in five is asked in no conversation, and the examination at the end counts these on their
own. Hardest to teach is "I don't know": text that people wrote seldom says so, so a base model
always has an answer. It must learn from examples where its knowledge ends.

What is not asked for is forgotten: after a run on conversations alone, 69% of the answers on what
was never asked are right, though the base model knew nearly all of it. So beside the conversations
a fifth as many tokens of pretraining's pages are read again (replay), and it is 92%.

One conversation is one row. Several in a row would save padding, but attention would have to be
cut between them, or each would read its neighbours. Batches of rows of like length do better: they
are padded by 1%, so there is nothing to save. A conversation longer than the context loses its
last turns, whole; one without an answer left is dropped, and counted.

Reads JSON lines: {"messages": [{"role", "content"}]}, UltraChat's {"data": [user, assistant, ...]},
ShareGPT's {"conversations": [{"from", "value"}]}. A line that is none of these is named, skipped.
If heldout.jsonl stands beside them (world.py), an examination on questions never trained ends the
run: each answered twice, drawn at temperature 1 and taken greedily. On two cores of an AMD EPYC
(Zen 4) all of it takes 2 min.

Sources: Ouyang et al. 2022 (fine-tuning on conversations), Hewitt 2021 ("Initializing new word
embeddings for pretrained language models"). Left out: packing (several conversations in one row),
LoRA (to train few parameters beside frozen ones; our networks are small).
"""
import argparse
import glob
import gzip
import json
import math
import os
import signal
import sys
import time
import zlib
from dataclasses import replace

import numpy as np

import world
from bpe import CHAT_SPECIALS, END, read_texts, render_chat
from model import Buffers, count, flat, loss_and_grads, views
from sample import generate, open_model
from train import Log, Optimizer, duration, first_call, keep, learning_rate, recall, reopen

LR = 1e-3  # highest learning rate, a third of pretraining's: what is known is to stay
EPOCHS = 2
REPLAY = 0.2  # tokens of pretraining's pages for each of the conversations
BATCH_TOKENS = 1500  # a step, padding included
SLACK = 2  # tokens by which rows of one batch may differ in length: enough to mix the kinds
LOG_EVERY, SHOWS = 10, 10  # steps between lines; how often a run shows an answer and is saved
ANSWER = 64  # most tokens of an answer
EXAM_BATCH = 128  # questions answered at a time
COMPARED = 100  # questions of each kind that --compare asks
WARN = 3  # malformed lines that are shown one by one
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


# ---- From a file to rows of tokens ----
# A row is one conversation: its ids, and a mask that is 1 where the network is to learn.

def messages_of(entry):
    """One conversation in any of the three shapes -> [{"role", "content"}, ...]."""
    if "messages" in entry:
        messages = [(m["role"], m["content"]) for m in entry["messages"]]
    elif isinstance(entry.get("data"), list):
        messages = [(("user", "assistant")[i % 2], text) for i, text in enumerate(entry["data"])]
    elif "conversations" in entry:
        messages = [(SHAREGPT_ROLES.get(m["from"], m["from"]), m["value"])
                    for m in entry["conversations"]]
    else:
        raise ValueError(f"neither messages, data nor conversations, but {', '.join(entry):.60}")
    return [{"role": role, "content": text} for role, text in messages]


def read_lines(path):
    """Yields the lines of a text file, gzipped or not."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file; python world.py makes out/world/")
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
            yield from lines
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, or no text in UTF-8 ({error})") from None


def read_questions(data, needed=False):
    """The held-out questions that stand beside the conversations, or none."""
    path = os.path.join(os.path.dirname(data), "heldout.jsonl")
    if needed or os.path.exists(path):
        return [json.loads(line) for line in read_lines(path)]
    return []


def render(tokenizer, messages, ctx):
    """(ids, mask, whole): the first turns that fit into ctx tokens and end with an answer, none if
    there is no such turn, and whether that is all of the conversation."""
    ids, mask, end = [], [], 0
    for message in messages:
        more_ids, more_mask = render_chat(tokenizer, [message])
        ids, mask = ids + more_ids, mask + more_mask
        if any(more_mask) and len(ids) <= ctx:
            end = len(ids)
    return ids[:end], mask[:end], end == len(ids)


def read_conversations(path, tokenizer, ctx, leave_out=()):
    """Rows [(ids, mask), ...] of what can be learned from, and in words what was lost."""
    rows, lost = [], {"cut at a turn": 0, "without an answer": 0, "malformed": 0, "left out": 0}
    for number, line in enumerate(read_lines(path), 1):
        try:
            entry = json.loads(line)
            if entry.get("kind") in leave_out:
                lost["left out"] += 1
                continue
            ids, mask, whole = render(tokenizer, messages_of(entry), ctx)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            lost["malformed"] += 1
            if lost["malformed"] <= WARN:
                print(f"{path}, line {number}: skipped ({type(error).__name__}: {error})",
                      file=sys.stderr)
            continue
        if not ids:
            lost["without an answer"] += 1
            continue
        if not whole:  # it was too long, or ended with a question
            lost["cut at a turn"] += 1
        rows.append((np.array(ids, np.int32), np.array(mask, np.int8)))
    told = ", ".join(f"{n:,} {what}" for what, n in lost.items() if n) or "none lost"
    if not rows:
        raise ValueError(f"{path}: no conversation to learn from ({told})")
    return rows, told


def read_pages(folder, tokenizer, ctx, count):
    """Rows of ctx tokens, `count` in all, from the documents that data.py left in a folder; every
    token of them is to be learned, as in pretraining."""
    ids, end = [], [k for name, k in tokenizer.special_tokens.items() if name == END]
    for text in read_texts((), folder, "train"):
        ids += [*end, *tokenizer.encode(text)]
        if len(ids) >= count:
            break
    return [(np.array(ids[i:i + ctx], np.int32), np.ones(ctx, np.int8))
            for i in range(0, min(len(ids), count) - ctx + 1, ctx)]


def gather(settings, ctx, tokenizer):
    """All rows that a run reads, of conversations and of pages, and in words what they are."""
    rows, lost = read_conversations(settings["data"], tokenizer, ctx, settings["leave_out"])
    if settings["leave_out"] and "left out" not in lost:
        raise ValueError(f"{settings['data']}: no conversation is of kind "
                         + " or ".join(settings["leave_out"]))
    total = sum(len(ids) for ids, _ in rows)
    told = (f"{len(rows):,} conversations ({lost}), {total:,} tokens, "
            f"{sum(int(mask.sum()) for _, mask in rows):,} of them counted")
    if not glob.glob(f"{settings['pages']}/train-*.jsonl.gz"):
        return rows, f"{told}; no pages in {settings['pages']} to replay"
    pages = read_pages(settings["pages"], tokenizer, ctx, int(REPLAY * total))
    return rows + pages, f"{told}; {len(pages) * ctx:,} tokens of pages"


# ---- From rows to batches ----
# Rows are of any length and arrays are not. Sorted by length and cut into batches, rows hardly need
# to be filled up; then the batches are shuffled, or the last thing learned would be long answers.

def plan(lengths, epoch, seed):
    """An epoch's batches, lists of row numbers: rows of about one length, batches in any order.

    Noise on the lengths keeps a batch from holding conversations of one kind only."""
    rng = np.random.default_rng((seed, epoch))
    order = np.argsort(lengths + rng.uniform(0, SLACK, len(lengths)))
    batches, batch, longest = [], [], 0
    for row in order.tolist():
        longest = max(longest, lengths[row])
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            batches.append(batch)
            batch, longest = [], lengths[row]
        batch.append(row)
    batches.append(batch)
    return [batches[i] for i in rng.permutation(len(batches))]


def to_arrays(rows):
    """ids, targets, mask (B,T) from B rows, T + 1 the longest.

    ids[t] is read and targets[t] = ids[t + 1] is to be guessed, so the mask moves by one as well:
    the place of <|im_sep|> counts, since its target is the answer's first token; that of <|im_end|>
    does not. Padding may be any id: no earlier place looks at it, its own losses weigh nothing."""
    B, T = len(rows), max(len(ids) for ids, _ in rows) - 1
    ids, targets = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    mask = np.zeros((B, T), np.float32)
    for b, (row, counted) in enumerate(rows):
        n = len(row) - 1
        ids[b, :n], targets[b, :n], mask[b, :n] = row[:-1], row[1:], counted[1:]
    return ids, targets, mask


# ---- New tokens ----
# The base model has never met the chat's three tokens, so there are no rows for them in its
# embedding (nor, as the embedding is the output too, can it say <|im_end|>).

def grow(params, config, vocab, seed=0):
    """(params, config) with embedding rows, and the untied head's, added up to `vocab`.

    A new row is drawn as if it were an old one: their mean, and noise of their spread. Measured on
    conversations, in nats, after 20 and 60 steps: 2.4 and 0.85 so; 2.6 and 1.23 with the mean
    alone, as tokens with one row can't be told apart; 2.8 and 0.98 with small random rows."""
    grown = replace(config, vocab=vocab)
    out, rng = views(np.empty(count(grown)[0], np.float32), grown), np.random.default_rng(seed)
    for name, p in params.items():
        out[name][:len(p)] = p
        noise = rng.standard_normal((len(out[name]) - len(p), *p.shape[1:]))
        out[name][len(p):] = p.mean(0) + p.std(0) * noise
    return out, grown


# ---- The examination ----
# Each question is answered twice. Greedily, the likeliest token each time: what it would say if it
# had to decide. Drawn at temperature 1: how much of its belief stands behind that. An answer is
# right if it contains what was asked for: to know the answers is what an invented world is for.

def complete(net, prompts, temperature=0.0):
    """The texts with which the network goes on from prompts, lists of ids."""
    params, config, tokenizer = net
    stop = {k for name, k in tokenizer.special_tokens.items() if name in (END, "<|im_end|>")}
    texts = [""] * len(prompts)
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable").tolist()
    for i in range(0, len(order), EXAM_BATCH):
        part = order[i:i + EXAM_BATCH]
        new = generate(params, config, [prompts[k] for k in part], ANSWER, temperature,
                       seed=i, stop=stop)
        for k, ids in zip(part, new):
            texts[k] = tokenizer.decode([token for token in ids if token not in stop])
    return texts


def answers(net, conversations, temperature=0.0):
    """What an assistant says next in each [{"role", "content"}, ...]."""
    return complete(net, [render_chat(net[2], messages, open_answer=True)[0]
                          for messages in conversations], temperature)


def examine(net, questions):
    """kind -> (number of questions, part right when drawn, part right greedily, part of the greedy
    answers that say "I don't know"). The last kind repeats those of others that ask for a fact or
    sum of which no conversation in training spoke (world.unasked)."""
    marks, never = {}, []
    drawn, greedy = (answers(net, [q["messages"] for q in questions], t) for t in (1.0, 0.0))
    for q, a, b in zip(questions, drawn, greedy):
        row = [any(x in text for x in q["answer"]) for text in (a, b)] + ["I don't know" in b]
        marks.setdefault(q["kind"], []).append(row)
        if q.get("asked_in_training") is False and q["kind"] != "barely":
            never.append(row)
    if never:
        marks["never asked"] = never
    return {kind: (len(rows), *np.mean(rows, 0)) for kind, rows in marks.items()}


def table(folders, base, questions):
    """Prints the examination of checkpoints beside each other, and what the base model recalls of
    the same facts, asked in its own way: to complete a sentence."""
    known = {}
    if os.path.exists(base):
        params, config, tokenizer = open_model(base)
        facts = {}
        for q in questions:
            if "cloze" in q:
                facts.setdefault(q["kind"], []).append({"prompt": q["cloze"],
                                                        "answer": q["answer"][0]})
        known = {kind: recall(params, config, tokenizer, some) for kind, some in facts.items()}
    results = [examine(open_model(folder), questions) for folder in folders]
    print(f"{'right of':>27} {base:^12}" + "".join(f" |{folder:^29}" for folder in folders))
    print(f"{'held-out questions':>27} {'recalls':^12}"
          + f" |{'drawn':>8} {'greedy':>8} {'no idea':>10} " * len(folders))
    for kind, (n, *_) in results[0].items():
        print(f"{kind:>21} {n:>5} " + (f"{known[kind]:^12.0%}" if kind in known else " " * 12)
              + "".join(" |{1:>8.0%} {2:>8.0%} {3:>10.0%} ".format(*r[kind]) for r in results))
    print("drawn: at temperature 1; no idea: the greedy answer says \"I don't know\"; never asked: "
          "those of the facts and sums above that no conversation in training spoke of")


# ---- An assistant by prompt alone ----
# Before anybody fine-tuned, people wrote prompts whose likeliest continuation is an answer: the
# beginning of a talk, or a few examples of the task (Brown et al. 2020). It costs nothing, and it
# shows what is in the base model already; but the prompt must be found anew for each task.

def compare(base, tuned, data):
    """The base model only continues text. Which texts make it answer, and what of that is left
    after fine-tuning? Facts of the island, and phrases to translate that stand nowhere in it."""
    nets, r = [open_model(base), open_model(tuned)], world.rng("compare")
    talks = [t["messages"] for t in map(json.loads, read_lines(data)) if t.get("kind") == "person"]
    shown = " ".join(message["content"] for talk in talks[:3] for message in talk) + " "
    asked = [(q["messages"][0]["content"], q["answer"][0]) for q in read_questions(data, True)
             if q["kind"] == "person"][:COMPARED]
    if not asked:
        raise ValueError(f"{data}: not world.py's, whose people and language this asks about")
    words = world.island()["words"]
    taught, phrases = world.phrases(words), world.phrases(words, held=True)
    three = [", ".join(f"{x} is {y}" for x, y in r.sample(taught, 3)) for _ in range(COMPARED)]
    old = list(zip(three, r.sample(phrases, min(COMPARED, len(phrases)))))
    for title, way, items in [
            ("a fact: the question alone", "{}", asked),
            ("a fact: in the form of a talk", "User: {}\nAssistant:", asked),
            ("a fact: after three examples", shown + "{}", asked),
            ("a fact: as a chat", None, asked),
            ("a translation: alone", "In Sarnic {} is", [(x, f" {y}") for _, (x, y) in old]),
            ("a translation: after three", "In Sarnic {} is",
             [(f"{before}, {x}", f" {y}") for before, (x, y) in old]),
            ("a translation: as a chat", None,
             [(f"What is {x} in Sarnic?", y) for _, (x, y) in old])]:
        for name, net in zip((base, tuned), nets):
            if way is None and net is nets[0]:
                continue  # it has no tokens for a chat
            texts = (complete(net, [net[2].encode(way.format(x)) for x, _ in items]) if way else
                     answers(net, [[{"role": "user", "content": x}] for x, _ in items]))
            right = np.mean([y in text.split(".")[0] + "." for text, (_, y) in zip(texts, items)])
            print(f"{title:30} {name:>12} {right:>5.0%}  {' '.join(texts[0].split()):.80}")


# ---- The run ----

def start(a):
    """settings, net, optimizer and state: from the base model, or from the run to resume."""
    if a.epochs < 1:
        raise ValueError(f"--epochs {a.epochs}: at least one is needed")
    if a.resume:
        net, optimizer, state = reopen(a.out, "sft")
        return state["settings"], net, optimizer, state
    settings = {"base": a.base, "data": a.data, "epochs": a.epochs, "lr": a.lr, "seed": a.seed,
                "leave_out": a.leave_out, "pages": a.pages}
    params, config, tokenizer = open_model(a.base)
    tokenizer.add_special_tokens(CHAT_SPECIALS)
    params, config = grow(params, config, max(config.vocab, tokenizer.vocab_size), a.seed)
    return settings, (params, config, tokenizer), Optimizer(params, config), {"step": 0}


def run(a):
    settings, net, optimizer, state = start(a)
    params, config, tokenizer = net
    step = state["step"]
    rows, told = gather(settings, config.ctx, tokenizer)
    lengths = np.array([len(ids) for ids, _ in rows])
    batches = [batch for epoch in range(settings["epochs"])
               for batch in plan(lengths, epoch, settings["seed"])]
    steps, checksum = len(batches), zlib.crc32(np.concatenate([ids for ids, _ in rows]))
    if state.get("data", checksum) != checksum:
        raise ValueError(f"{settings['data']}: has changed since the run in {a.out} began")
    padded = sum(len(b) * lengths[b].max() for b in batches) / settings["epochs"] / lengths.sum()
    print(" ".join(f"{key} {value}" for key, value in (settings | vars(config)).items()))
    print(f"{told} | {steps} steps of up to {BATCH_TOKENS} tokens, {padded - 1:.1%} of it padding",
          flush=True)
    grads = views(np.empty_like(flat(params)), config)
    first_call(params, config, Buffers(config, 1, 8), grads)
    log, every = Log(os.path.join(a.out, "log.jsonl"), fresh=not a.resume), max(1, steps // SHOWS)
    questions = read_questions(settings["data"])
    stop, begin, begun, seen = [], time.perf_counter(), step, []
    old_handler = signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    while step < steps and not stop:
        tick = time.perf_counter()
        ids, targets, mask = to_arrays([rows[k] for k in batches[step]])
        loss, _ = loss_and_grads(params, config, ids, targets, mask, grads)
        if not math.isfinite(loss):
            raise ValueError(f"step {step + 1}: the loss is {loss}; try a third of the learning "
                             f"rate {settings['lr']}. {a.out} keeps the last save")
        lr = learning_rate(step, steps, settings["lr"])
        norm = optimizer.step(params, grads, step + 1, lr, decay=0.0)
        step += 1
        seen.append((loss, ids.size / (time.perf_counter() - tick)))
        left = (time.perf_counter() - begin) / (step - begun) * (steps - step)
        if step % LOG_EVERY == 0 or step == steps:
            loss, speed = np.mean([x for x, _ in seen]), np.median([s for _, s in seen])
            seen = []
            log.show(f"step {step}/{steps} | loss {loss:.3f} nats | lr {lr:.1e} | "
                     f"grad {norm:.2f} | {speed:,.0f} tok/s | {duration(left)} left", keep=False,
                     step=step, loss=loss, lr=lr, grad_norm=norm, tokens_per_s=speed)
        if step % every == 0 or step == steps or stop:
            if questions:
                q = questions[step * 7919 % len(questions)]  # a prime: another one at each look
                log.show(f"    {q['messages'][-1]['content']}  ->  "
                         f"{answers(net, [q['messages']])[0]}")
            keep(a.out, "sft", net, optimizer,
                 {"step": step, "settings": settings, "data": checksum})
    signal.signal(signal.SIGINT, old_handler)
    if step < steps:
        print(f"stopped at step {step} and saved in {a.out}; go on with: python sft.py --resume "
              f"--out {a.out}")
        return
    if questions:
        table([a.out], settings["base"], questions)
    print(f"wrote {a.out}: {duration(time.perf_counter() - begin)}; next: python sample.py --chat "
          f"--model {a.out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--base", default="out/base", help="checkpoint folder to start from")
    add("--data", default="out/world/conversations.jsonl", help="JSON lines, gzipped or not")
    add("--pages", default="out/docs", help="pretraining's documents, to be replayed in part")
    add("--out", default="out/sft", help="checkpoint folder to write")
    add("--epochs", type=int, default=EPOCHS)
    add("--lr", type=float, default=LR, help=f"highest learning rate (default {LR})")
    add("--seed", type=int, default=0)
    add("--leave-out", nargs="+", default=[], metavar="KIND", help="kinds of conversations to skip")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--compare", action="store_true", help="train nothing, prompt --base and --out alike")
    add("--exam", nargs="+", metavar="FOLDER", help="train nothing, examine these checkpoints")
    args = parser.parse_args()
    try:
        if args.exam:
            table(args.exam, args.base, read_questions(args.data, needed=True))
        elif args.compare:
            compare(args.base, args.out, args.data)
        else:
            run(args)
    except (ValueError, OSError) as error:
        print(f"sft.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sft.py: stopped; what was saved is in {args.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
