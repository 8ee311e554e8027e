"""6. Supervised fine-tuning (SFT): the base model, which continues any text, becomes an assistant.

    python sft.py                            out/base/ + conversations -> out/sft/, in 2 min
    python sft.py --data ultrachat.jsonl     conversations of your own, in any of three shapes
    python sft.py --resume                   go on where an interrupted run stopped
    python sft.py --leave-out unknown --out out/sft-bold    ablation: what one kind is good for
    python sft.py --pages none --out out/sft-alone          and what replaying pages is good for
    python sft.py --evaluate out/sft out/sft-bold           held-out questions, side by side
    python sft.py --compare                  how far prompts alone get the base model

It trains as train.py does, but only on what the assistant says: a loss mask leaves out the rest.
Three new tokens tell who speaks and where a turn ends. A chat is this format and nothing more:

    <|im_start|>user<|im_sep|>Who are you?<|im_end|>           read, not learned
    <|im_start|>assistant<|im_sep|>                            read, not learned
    I am Pip, the assistant of the island.<|im_end|>           learned, token by token

Beside the conversations may lie heldout.jsonl, to evaluate, and prompts.jsonl, for --compare.
Reading order: to_arrays, the loss mask; run, the loop; evaluate. Source: Ouyang et al. 2022
(InstructGPT). Left out: packing (several conversations in a row, attention masked between them),
LoRA (training few weights).
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import (Run, compiling, duration, locked, parse_json, print_settings, printable,
                    read_json_lines, read_text_lines, run_command)

import argparse
import collections
import math
import os
import sys
import zlib
from dataclasses import replace

import numpy as np

import optimizer
from bpe import CHAT_SPECIALS, read_texts, render_chat
from checkpoint import check_out, load_run, open_model, save_run
from model import grow, loss_and_grads, not_finite, vector, views
from sample import complete, recall

LR = 1.5e-3  # highest learning rate, lower than pretraining's: the facts should stay
MUON_LR = 0.008  # the same of Muon, for the matrices inside the layers; 0: AdamW for all weights
EPOCHS = 3  # times that each conversation is read
REPLAY = 0.2  # tokens of pretraining's pages per token of conversations, see read_pages
BATCH_TOKENS, MIXED_ROWS = 1500, 32  # a step: tokens, padding included; rows with --mix-lengths
SLACK = 2  # rows of one batch may differ in length by about so many tokens: enough to mix the kinds
LOG_EVERY, SAVES = 10, 10  # steps between log lines; how often a run shows an answer and is saved
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # its names for ours


# ---- From rows to batches: the loss mask ---------------------------------------------------------
# A row is one conversation as bpe.render_chat makes it: (ids, mask), two arrays of one length. The
# mask is 1 on the tokens that the network should learn to predict.

def to_arrays(rows):
    """ids, targets, mask (B,T) of B rows, the longest of T + 1 tokens. A target is the token one
    position later, and the mask is 1 where the *target* is the assistant's. Here <s>, <sep>, <e>
    stand for <|im_start|>, <|im_sep|>, <|im_end|>:

        ids      <s>   user  <sep>  Who  ?    <e>  <s>        assistant  <sep>  I   am  Pip  .
        targets  user  <sep> Who    ?    <e>  <s>  assistant  <sep>      I      am  Pip  .   <e>
        mask     0     0     0      0    0    0    0          0          1      1   1    1   1

    So it learns to begin the answer after <sep>, and to stop: <|im_end|> is a target. It does not
    learn to ask. Shorter rows end in zeros (padding): no token before them sees them, and their
    loss does not count. Rows of 8 and 6 tokens (T = 7), the last 3 and 2 learned:

        mask  0 0 0 0 1 1 1
              0 0 0 1 1 0 0      the last two are padding"""
    longest = max(len(ids) for ids, _ in rows)  # T + 1
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.float32)
    for b, (row, counts) in enumerate(rows):
        ids[b, :len(row)], mask[b, :len(row)] = row, counts
    return ids[:, :-1], ids[:, 1:], mask[:, 1:]


def plan(lengths, seed, mixed=False):
    """The batches of an epoch, lists of row numbers, in random order. lengths: tokens of each row.

    Rows of one batch have about the same length, so that little is padding (1%): of rows of 700,
    90, 720 and 80 tokens, 1500 a batch, [[3, 1], [0, 2]]. The order by length has some noise
    (SLACK), or a batch would hold one kind of conversation only.

    mixed: rows of any length together. If the long answers are a rare kind, the batches between two
    of theirs would make the network forget them."""
    rng, n_rows = np.random.default_rng(seed), len(lengths)
    if mixed:
        parts = np.array_split(rng.permutation(n_rows), math.ceil(n_rows / MIXED_ROWS))
        return [part.tolist() for part in parts]
    batches, longest = [[]], 0
    for row in np.argsort(lengths + rng.uniform(0, SLACK, n_rows)).tolist():
        longest = max(longest, lengths[row])
        if batches[-1] and longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
            longest = lengths[row]
        batches[-1].append(row)
    return [batches[i] for i in rng.permutation(len(batches))]


# ---- From a file to rows -------------------------------------------------------------------------

def read_messages(entry):
    """One conversation in any of three shapes -> [{"role", "content"}, ...], or ValueError:

        {"messages": [{"role": "user", "content": "Hi"}, ...]}         what most tools write
        {"data": ["Hi", "Hello!", ...]}                                UltraChat: by turns
        {"conversations": [{"from": "human", "value": "Hi"}, ...]}     ShareGPT"""
    try:
        if "messages" in entry:
            turns = [(m["role"], m["content"]) for m in entry["messages"]]
        elif isinstance(entry.get("data"), list):
            turns = zip(["user", "assistant"] * len(entry["data"]), entry["data"])
        else:
            turns = [(SHAREGPT_ROLES.get(m["from"], m["from"]), m["value"])
                     for m in entry["conversations"]]
    except (LookupError, TypeError):
        raise ValueError("neither messages, data nor conversations as expected, but "
                         + ", ".join(entry)[:60]) from None
    return [{"role": role, "content": text} for role, text in turns]


def render(tokenizer, messages, ctx):
    """(ids, mask, whole) of the turns that fit into ctx tokens, up to an answer; whole: these are
    all. Of four turns that end at tokens 20, 35, 60 and 90, with ctx 80 the first two remain."""
    ids, mask, end = [], [], 0
    for message in messages:
        more_ids, more_mask = render_chat(tokenizer, [message])
        ids, mask = ids + more_ids, mask + more_mask
        if any(more_mask) and len(ids) <= ctx:
            end = len(ids)
    return ids[:end], mask[:end], end == len(ids)


def read_conversations(path, tokenizer, ctx, leave_out=()):
    """(rows, in words what was lost) of a file of conversations, without the kinds in leave_out.
    Malformed lines are skipped, and the first is named."""
    rows, lost = [], collections.Counter()
    for number, line in enumerate(read_text_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, "this line")
            ids, mask, whole = render(tokenizer, read_messages(entry), ctx)
        except ValueError as error:
            if not lost["malformed"]:
                print(printable(f"{path}, line {number}: skipped ({error})"), file=sys.stderr)
            lost["malformed"] += 1
            continue
        # A chat about several things names all of their kinds: "person + unknown".
        if set(leave_out) & set(str(entry.get("kind")).split(" + ")):
            lost["left out"] += 1
        elif not ids:
            lost["without an answer"] += 1
        else:
            rows.append((np.array(ids, np.int32), np.array(mask, np.int8)))
            if not whole:
                lost["cut at a turn"] += 1
    words = ", ".join(f"{n:,} {what}" for what, n in lost.items()) or "none lost"
    if not rows:
        raise ValueError(f"{path}: no conversation to learn from ({words})")
    if leave_out and not lost["left out"]:
        raise ValueError(f"{path}: no conversation is of kind {' or '.join(leave_out)}")
    return rows, words


def read_pages(folder, tokenizer, config, n_tokens):
    """Rows of ctx tokens, about n_tokens in all, from data.py's documents in `folder`, if there is
    one. All their tokens are learned, as in pretraining.

    This is replay. Trained on conversations alone, the model would keep the facts they ask for and
    forget most of the others (RESULTS.md)."""
    if not os.path.isdir(folder):
        return []
    ids, T = [], config.ctx
    for text in read_texts((), folder, "train"):
        ids += [*config.bos, *tokenizer.encode(text)]
        if len(ids) >= n_tokens:
            break
    return [(np.array(ids[i:i + T], np.int32), np.ones(T, np.int8))
            for i in range(0, min(len(ids), n_tokens) - T + 1, T)]


# ---- The run -------------------------------------------------------------------------------------

def open_run(args):
    """net (params, config, tokenizer), the optimizer's averages, state and log: of a new run, or of
    the one to resume, whose settings override the command line.

    The base model has never met the three chat tokens: the embedding grows by three rows. A text
    now ends at <|im_end|>, not at the end of a document."""
    if args.resume:
        return load_run(args.out, "sft")
    settings = {name: getattr(args, name) for name in (
        "base", "data", "pages", "epochs", "lr", "muon_lr", "seed", "leave_out", "mix_lengths")}
    for name, least in (("epochs", 1), ("lr", 0), ("muon_lr", 0)):
        if not least <= settings[name] < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {settings[name]}: below {least}")
    params, config, tokenizer = open_model(args.base)
    tokenizer.add_special_tokens(CHAT_SPECIALS)
    params, config = grow(params, config, max(config.vocab, tokenizer.vocab_size), args.seed)
    # The chat tokens may have got ids that were unused: rows that only padded the embedding.
    special = tokenizer.special_tokens
    config = replace(config, eos=(special["<|im_end|>"],),
                     unused=tuple(k for k in config.unused if k not in special.values()))
    state = {"step": 0, "settings": settings}
    return (params, config, tokenizer), optimizer.start(params), state, []


def read_batches(settings, tokenizer, config):
    """Each step's batch of rows, a checksum of all rows, and in words what they are."""
    rows, lost = read_conversations(settings["data"], tokenizer, config.ctx, settings["leave_out"])
    n_tokens, n_learned = sum(len(ids) for ids, _ in rows), sum(int(m.sum()) for _, m in rows)
    pages = read_pages(settings["pages"], tokenizer, config, int(REPLAY * n_tokens))
    words = (f"{len(rows):,} conversations ({lost}), {n_tokens:,} tokens, {n_learned:,} of them "
             f"learned | {len(pages) * config.ctx:,} tokens of pages")
    rows += pages
    lengths = np.array([len(ids) for ids, _ in rows])
    batches = [batch for epoch in range(settings["epochs"])
               for batch in plan(lengths, (settings["seed"], epoch), settings["mix_lengths"])]
    checksum = zlib.crc32(np.concatenate([array for row in rows for array in row]))
    return [[rows[k] for k in batch] for batch in batches], checksum, words


def run(args):
    """Trains as args say. When it saves, it answers a held-out question, if there are any, and at
    the end all; not with --mix-lengths, which teaches a habit such as doubt.

    What differs from train.run: a batch holds whole conversations; the loss has a mask; there is no
    weight decay, which would shrink what the matrices know; the last weights are kept, not the
    best."""
    net, averages, state, log = open_run(args)
    (params, config, tokenizer), settings = net, state["settings"]
    print_settings("sft.py", settings | {"out": args.out})
    batches, checksum, words = read_batches(settings, tokenizer, config)
    steps = len(batches)
    if state.setdefault("data", checksum) != checksum:
        raise ValueError(f"{settings['data']}, or {settings['pages']}: changed since the run began")
    heldout = os.path.join(os.path.dirname(settings["data"]), "heldout.jsonl")
    asks = os.path.exists(heldout) and not settings["mix_lengths"]
    questions = read_questions(heldout, "kind") if asks else []
    if state["step"] >= steps and ("right" in state or not questions):
        return print(f"{args.out} has done its {steps} steps; without --resume a new run begins")
    print(f"{words} | {steps} steps", flush=True)
    grads = views(np.empty_like(vector(params)), config)
    # A step on one row, so that Numba compiles now; with a learning rate of 0 it changes nothing.
    with compiling():
        loss_and_grads(params, config, *to_arrays(batches[0][:1]), grads)
        optimizer.update(params, grads, optimizer.start(params), config, 1, lr=0.0)
    progress, losses, n_tokens = Run(args.out, state["step"], steps, SAVES, log), [], 0
    for step in progress.steps():
        ids, targets, mask = to_arrays(batches[step - 1])
        loss, _ = loss_and_grads(params, config, ids, targets, mask, grads)
        lr, muon_lr = (optimizer.learning_rate(step - 1, steps, settings[key])
                       for key in ("lr", "muon_lr"))
        # Weight decay 0. A Muon rate of 0 leaves all weights to AdamW.
        norm = optimizer.update(params, grads, averages, config, step, lr, 0.0, muon_lr or None)
        wrong = not_finite(grads) or not_finite(params)
        if wrong or not math.isfinite(loss + norm):
            raise ValueError(f"step {step}: overflow in {wrong}; try a third of the learning rate "
                             f"{settings['lr']}. Last step saved: {state['step'] or 'none'}")
        losses.append(loss)
        n_tokens += ids.size
        if step % LOG_EVERY == 0 or step == steps:
            loss, losses, speed = float(np.mean(losses)), [], n_tokens / progress.seconds()
            progress.show(f"step {step}/{steps} | loss {loss:.3f} nats | lr {lr:.1e} | "
                          f"{speed:,.0f} tok/s | {progress.left()} left", keep=False, step=step,
                          loss=loss, lr=lr, grad_norm=norm, tokens_per_s=speed)
        if progress.save_due():
            state["step"] = step
            save_run(args.out, "sft", net, averages, state, progress.log)
            if questions:
                # Another one each time: 7919 is a prime.
                asked = questions[step * 7919 % len(questions)]["turns"][0][0]
                text, = complete(net, [prompt_ids(net, asked)])
                progress.show(printable(f"    {asked[-1]['content']}  ->  {text}"))
    if status := progress.close("sft.py"):
        return status
    if questions:  # the weights are saved by now, so Ctrl-C costs only the evaluation
        state["right"] = evaluate(net, questions)
        save_run(args.out, "sft", net, averages, state, progress.log)
        print_table([args.out], [state["right"]], settings["base"], questions)
    print(f"wrote {args.out} in {duration(progress.seconds())}; next: python sample.py --chat "
          f"--model {args.out}")


# ---- Evaluation on held-out questions ------------------------------------------------------------
# Each question is answered twice: greedily (always the likeliest token), and sampled at temperature
# 1, which shows how much probability right answers have. An answer is right if it contains one of
# the accepted substrings: " forest" is in "The fox lives in the forest."
#
# Asked about a person it never read about, a base model still names a town or a job, since people
# rarely write "I don't know". This is a hallucination. Conversations of kind "unknown" teach the
# model to abstain, and the table counts how often it does.

def read_questions(path, label):
    """The questions in a file, dicts with "answer", a `label`, and a "prompt" to continue or
    "messages". Those with messages get "turns", [(messages, accepted answers), ...]:

        {"messages": [user], "answer": [" forest"]}          [([user], [" forest"])]
        {"messages": [user 1, assistant, user 2],            [([user 1], [" 5."]),
         "answers": [[" 5."], [" 6."]], ...}                  ([user 2], [" 6."])]

    With "answers" the model answers every user turn, and does not see the file's own answers."""
    questions = []
    for number, entry in read_json_lines(path):
        try:
            if not entry.get(label) or not entry.get("answer"):
                raise ValueError(f"needs {label} and answer")
            if "prompt" not in entry:
                messages = read_messages(entry)
                asked = [[m] for m in messages if m["role"] == "user"]
                entry["turns"] = (list(zip(asked, entry["answers"])) if "answers" in entry
                                  else [(messages, entry["answer"])])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        questions.append(entry)
    return questions


def answer_turns(net, questions, temperature):
    """For each question the texts that the model answers, one a turn, after its own earlier ones:

        turn 1   Hi                          -> Hello!
        turn 2   Hi, Hello!, Who are you?    -> I am Pip.

    The first turns of all questions are answered together, then the second turns, ..."""
    turns = [question["turns"] for question in questions]
    talks, texts = [[] for _ in questions], [[] for _ in questions]
    for n in range(max(map(len, turns), default=0)):
        asked = [i for i, parts in enumerate(turns) if n < len(parts)]
        prompts = [prompt_ids(net, talks[i] + turns[i][n][0]) for i in asked]
        for i, text in zip(asked, complete(net, prompts, temperature, seed=n)):
            talks[i] += [*turns[i][n][0], {"role": "assistant", "content": text}]
            texts[i].append(text)
    return texts


def prompt_ids(net, messages):
    """The prompt for an answer: three quarters of the context at most. What is longer loses its
    oldest turns, and a single message its beginning."""
    limit = net[1].ctx * 3 // 4
    for n in range(0, len(messages), 2):
        ids, _ = render_chat(net[2], messages[n:], open_answer=True)
        if len(ids) <= limit:
            break
    return ids[-limit:]


def evaluate(net, questions):
    """kind -> (number of answers, share right when sampled, share right when greedy, share of the
    greedy ones that say "I don't know"). One question of kind "fox" that accepts " forest", sampled
    "In a town." and greedy "In the forest.", gives {"fox": (1, 0.0, 1.0, 0.0)}.

    "never asked" repeats facts and sums that no conversation in training asked for: has the model
    learned to answer, or only these answers? Not those of kind "barely", which the base model may
    not know."""
    scores, never_asked = {}, []
    both = (answer_turns(net, questions, temperature) for temperature in (1.0, 0.0))
    for question, *answers in zip(questions, *both):
        rows = [[*(any(part in text for part in accepted) for text in texts),
                 "I don't know" in texts[1]]
                for (_, accepted), *texts in zip(question["turns"], *answers)]
        scores.setdefault(question["kind"], []).extend(rows)
        if question.get("asked_in_training") is False and question["kind"] != "barely":
            never_asked += rows
    scores |= {"never asked": never_asked} if never_asked else {}
    return {kind: (len(rows), *np.mean(rows, 0)) for kind, rows in scores.items()}


def print_table(folders, results, base, questions):
    """Prints the results of chat models side by side, and how many of the same facts the base model
    recalls, asked in its own way: to complete a sentence ("cloze").

               right answers to   out/base   |           out/sft
             held-out questions   recalls    | sampled   greedy    abstains
                     fox      4     100%     |     50%      75%          0%

    Here the base model knows all four foxes, and the chat model tells three of them."""
    net = open_model(base) if os.path.exists(base) else None
    names = "".join(f" |{folder:^30}" for folder in folders)
    print(printable(f"{'right answers to':>27} {base:^12}{names}"))
    print(f"{'held-out questions':>27} {'recalls':^12}"
          + f" |{'sampled':>8} {'greedy':>8} {'abstains':>11} " * len(folders))
    for kind, (n, *_) in results[0].items():
        facts = [{"prompt": q["cloze"], "answer": q["answer"][0]} for q in questions
                 if q["kind"] == kind and "cloze" in q]
        recalled = f"{recall(*net, facts):.0%}" if facts and net else ""
        print(printable(f"{kind:>21} {n:>5} {recalled:^12}") + "".join(
            " |{1:>8.0%} {2:>8.0%} {3:>11.0%} ".format(*result[kind]) for result in results))
    print('abstains: the greedy answer says "I don\'t know"; never asked: facts and sums of the '
          "rows above that no conversation in training asked for")


# ---- Prompts instead of fine-tuning (skip at first) ----------------------------------------------
# Before SFT was common, people wrote prompts whose likeliest continuation is an answer: the
# beginning of a conversation, or a few examples of the task (few-shot, Brown et al. 2020). This
# in-context learning needs no training, but a prompt for each task:
#
#     What does Eldga like to eat? Eldga likes to eat porridge.
#     Which animal is Bormo's pet? Bormo has a pet fox.
#     Which work does Jorko do?                                    (Jorko works as a teacher.)

def compare(base, tuned, path):
    """Prints how often base and tuned model answer right by each way of asking in prompts.jsonl: a
    text to continue ("prompt"), or a chat ("messages"), which only the tuned one can."""
    questions = read_questions(path, "way")
    nets = {folder: open_model(folder) for folder in (base, tuned)}
    for way in dict.fromkeys(entry["way"] for entry in questions):
        asked = [entry for entry in questions if entry["way"] == way]
        for folder, net in nets.items():
            if "messages" in asked[0] and folder == base:
                continue
            texts = complete(net, [net[2].encode(entry["prompt"]) if "prompt" in entry
                                   else prompt_ids(net, entry["messages"]) for entry in asked])
            # A base model goes on after the answer; only its first sentence is one.
            right = np.mean([entry["answer"] in text.split(".")[0] + "."
                             for entry, text in zip(asked, texts)])
            print(printable(f"{way:32} {folder:>12} {right:>5.0%}  "
                            f"{' '.join(texts[0].split()):.60}"))


# ---- The command (skip at first) -----------------------------------------------------------------

def main(argv=None):
    parser = argparse.ArgumentParser(prog="sft.py", description=__doc__.split("\n\n")[0][3:])
    add = parser.add_argument
    add("--base", default="out/base", help="checkpoint to start from (%(default)s)")
    add("--data", default="out/world/conversations.jsonl",
        help="conversations, JSON lines; held-out questions beside them (%(default)s)")
    add("--pages", default="out/docs", help="documents to replay, or none (%(default)s)")
    add("--out", default="out/sft", help="checkpoint folder to write (%(default)s)")
    add("--epochs", type=int, default=EPOCHS, help="times to read all (%(default)s)")
    add("--lr", type=float, default=LR, help="highest learning rate (%(default)s)")
    add("--muon-lr", type=float, default=MUON_LR, help="the same of Muon; 0: AdamW (%(default)s)")
    add("--seed", type=int, default=0, help="of the new tokens and the order (%(default)s)")
    add("--leave-out", nargs="+", default=[], metavar="KIND", help="kinds of conversations to skip")
    add("--mix-lengths", action="store_true", help="batches of any lengths; no evaluation")
    add("--resume", action="store_true", help="go on with the run in --out, as it was set")
    add("--compare", action="store_true", help="no training: answer by prompts, --base and --out")
    add("--evaluate", nargs="+", metavar="FOLDER", help="no training: these checkpoints")
    return run_command(parser, start, argv)


def start(args):
    """What the flags ask for: an evaluation, a comparison, or a training run."""
    heldout, prompts = (os.path.join(os.path.dirname(args.data), name)
                        for name in ("heldout.jsonl", "prompts.jsonl"))
    if args.evaluate:
        print_settings("sft.py", {"evaluate": args.evaluate, "base": args.base, "data": heldout})
        questions = read_questions(heldout, "kind")
        results = [evaluate(open_model(folder), questions) for folder in args.evaluate]
        return print_table(args.evaluate, results, args.base, questions)
    if args.compare:
        print_settings("sft.py", {"compare": [args.base, args.out], "data": prompts})
        return compare(args.base, args.out, prompts)
    check_out(args.out)
    with locked(args.out, "sft.py"):
        return run(args)


if __name__ == "__main__":
    sys.exit(main())
