"""Looking at the run: in a browser, as one file to keep, or as pictures for the README.

    python look.py                       a page at http://127.0.0.1:8000, until Ctrl-C
    python look.py --report              the same without a server -> out/report.html
    python look.py --pictures pictures   five drawings (SVG) -> pictures/

A view of the page is a function here. The page shows its docstring, makes a form of its arguments
and sends them with POST /NAME; the view returns a dict, or yields several while a network writes.
They arrive as lines of JSON, and the function of the same name in look.html draws them.

Reading order: the views, the drawings, the report; the server can be skipped at first. It is for
one person and listens on 127.0.0.1 only. Left out: accounts, encryption, all that more would need.
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import (parse_json, print_settings, printable, read_json, read_json_lines,
                    read_text_lines, run_command, write_file)

import argparse
import contextlib
import html
import http.server
import inspect
import json
import os
import re
import secrets
import sys
import threading
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from bpe import (CHAT_SPECIALS, Tokenizer, join_pair, pre_tokenize, read_tokens, readable,
                 render_chat)
from checkpoint import open_model
from crawl.rules import FAILS
from crawl.warc import read_files
from data import life_of, read_settings
from kernels import probabilities
from kernels.plain import attention_weights, each_head, split_heads
from model import Buffers, check_ids, count, transformer
from sample import answer, generate, stop_ids, stream

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "look.html")
# What the forms begin with; the people are those of world.py.
PROMPT, TEXT = "Relbas works as a", "Relbas works as a diver"
QUESTIONS = ("Where does Talgo live?", "Where does Xoola live?", "Who painted the Mona Lisa?",
             "Lanrin got plums: a2 b-2 c7. How many?")
EXAMPLES = 400  # pages of the crawl that are searched for one example of each reason
MERGES = (0, 64, 256)  # of the smaller vocabularies that text is shown with
MAX_MAP = 24  # tokens of an attention map; more would be too small to see
N_CANDIDATES = 8  # of each token
GROUP, MAX_NEW = 16, 56  # rollouts of a problem; tokens of a rollout (as in rl.py) or an answer
MAX_BODY = 1 << 18  # bytes of a request
CONNECTIONS = 16  # open at a time; the next ones wait
SECONDS = 30  # that a browser may neither send nor read


# ---- What the run left ---------------------------------------------------------------------------

def need(path, command):
    """The path if it is there; ValueError that names the command that makes it."""
    if not os.path.exists(path):
        raise ValueError(f"{path} is not there yet; python {command} makes it")
    return path


def line_of(path, n):
    """Line n, from 0, of a JSON lines file that world.py wrote."""
    for _, line in islice(read_json_lines(path), n, None):
        return line
    raise ValueError(f"{path} has no line {n}")


def files_of(out, *names):
    """{folder of the run: path of the last of these files in it}; base, sft and rl come first."""
    found = {path.parent.name: path for name in names for path in Path(out).glob(f"*/{name}")}
    return {name: found[name] for name in ("base", "sft", "rl", *sorted(found)) if name in found}


def open_net(out, name):
    """(params, config, tokenizer) of a model of this run; no other folder is opened."""
    if name not in files_of(out, "config.json"):
        raise ValueError(f"{out}/{name:.40}: no model there yet; python train.py makes base, "
                         "sft.py sft, rl.py rl")
    return open_model(f"{out}/{name}")


def named(tokenizer, ids):
    """[{"id", "text"}, ...] for the page; the text as bpe.readable writes it."""
    return [{"id": int(k), "text": readable(tokenizer.token_bytes(k))} for k in ids]


# ---- The views -----------------------------------------------------------------------------------

def funnel(out):
    """The crawl. Most of the web is not worth reading: how many pages are left after each stage,
    and why the others went (data.py: clean_crawl)."""
    stages = read_json(need(f"{out}/docs/stats.json", "data.py"))["stages"]
    return {"bars": [{
        "name": stage, "share": row["kept"] / max(1, stages["read"]["in"]),
        "figure": f"{row['kept']:,}", "note": ", ".join(
            f"{reason} -{n:,}" for reason, n in sorted(row["reasons"].items(), key=lambda x: -x[1]))
    } for stage, row in stages.items()]}


def explain(out, url: str = ""):
    """One page. It leaves at the first rule that it breaks: every value that is measured, beside
    its limit. Open an example of each reason, or give the URL of any page of the crawl (data.py:
    life_of; crawl/rules.py)."""
    crawl = read_files([need(f"{out}/world/crawl.warc.gz", "world.py")], lambda damage: None)
    pages = (page for page in crawl if page.url == url) if url else islice(crawl, EXAMPLES)
    settings, found = read_settings()[0], {}  # verdict -> the first page that met it
    for page in pages:
        rows = []
        for stage, checks, text in life_of(page, settings):  # goes on after a failure
            rows += [[stage, rule, value if isinstance(value, str) else float(value),
                      f"{sign} {limit}", "fails" if FAILS[sign](value, limit) else ""]
                     for rule, value, sign, limit in checks]
        verdict = next((f"dropped at {stage}: {rule}" for stage, rule, *_, fails in rows if fails),
                       "kept, unless it is a duplicate")
        found.setdefault(verdict, {"url": page.url, "verdict": verdict, "rows": rows,
                                   "text": text[:3000]})
    if not found:
        raise ValueError("no page of this URL in the crawl")
    return {"pages": list(found.values())}


def tokens(out, text: str = TEXT):
    """Tokens. A network reads numbers. With no merges every byte is a token; with all of them
    common words are one token and rare words several (bpe.py: naive_encode, join_pair)."""
    full = Tokenizer.load(need(f"{out}/tokenizer.json", "bpe.py"))
    sizes, n_merges = [], len(full.merge_rows)
    for n in sorted({min(n, n_merges) for n in (*MERGES, n_merges)}):
        tokenizer = Tokenizer(full.tokens[:256 + n], full.merge_rows[:n], {}, full.pattern)
        sizes.append({"merges": n, "tokens": named(tokenizer, tokenizer.encode(text))})
    # The longest pre-token after each merge: · c a t, then · c at, then · cat, then ·cat.
    word = max(pre_tokenize(text, full.pattern)[0], key=len, default="")[:40]
    steps = [[bytes([byte]) for byte in word.encode()]]
    for pair in full.merges:
        joined = join_pair(steps[-1], pair)
        if len(joined) < len(steps[-1]):
            steps.append(joined)
    return {"sizes": sizes, "steps": [list(map(readable, step)) for step in steps]}


def curves(out):
    """Training. The loss falls smoothly, recall of facts rises later, and in RL the share of right
    answers rises. The curves grow here while training runs in another terminal (train.py, sft.py
    and rl.py: run; common.py: Run)."""
    return charts(out, PANELS[:2], "train.py")


def reward(out):
    """A gamed reward. The policy is trained on the reward model's score, which keeps rising. The
    gold reward, a hidden rule that stands for people's taste, rises at first and then falls: the
    policy found what the reward model gets wrong (rl.py: reward_scores, gold_rewards)."""
    return charts(out, PANELS[2:], "rl.py --reward model")


def charts(out, panels, command):
    """Every run's log as drawings: while the run goes on its live.jsonl, then its log.jsonl."""
    runs = []
    for name, path in files_of(out, "log.jsonl", "live.jsonl").items():
        with open(path, encoding="utf-8") as file:
            # The run may just be writing the last line: half a line is left out.
            log = [parse_json(line, file.name) for line in file if line.endswith("\n")]
        if drawn := [drawing for panel in panels if (drawing := chart(log, *panel))]:
            runs.append({"name": name, "live": path.stem == "live", "charts": drawn})
    if not runs:
        raise ValueError(f"no such run has begun yet; python {command} begins one")
    return {"runs": runs}


def candidates(out, prompt: str = PROMPT, model: str = "base", temperature: float = 0.0,
               seed: int = 0, *, ids: str = ""):
    """Candidates. The network gives every token a probability, and one is taken. Choose a token to
    see its candidates, then another candidate to see where the text would have gone (sample.py:
    naive_generate, stream)."""
    params, config, tokenizer = open_net(out, model)
    ids = list(map(int, ids.split())) or [*config.bos, *tokenizer.encode(prompt)]
    check_ids(np.array(ids), config)
    steps = []
    for _, (token,), _, (logits,) in stream(params, config, [ids], MAX_NEW, temperature, seed=seed,
                                            stop=stop_ids(config, tokenizer)):
        p = probabilities(logits)
        top = [k for k in np.argsort(-p)[:N_CANDIDATES].tolist() if p[k] > 0]
        top += [] if token in top else [int(token)]
        rivals = [rival | {"p": float(p[rival["id"]])} for rival in named(tokenizer, top)]
        steps.append(named(tokenizer, [token])[0] | {"candidates": rivals})
    return {"prompt": prompt, "ids": ids, "steps": steps}


def attention(out, text: str = TEXT, model: str = "base"):
    """Attention. How much each token (row) takes from each earlier one (column), in percent. Every
    head of every layer looks for something else: choose one (kernels/plain.py:
    attention_weights)."""
    params, config, tokenizer = open_net(out, model)
    ids = [*config.bos, *tokenizer.encode(text)][:min(MAX_MAP, config.ctx)]
    T, layers = len(ids), []
    buffers = Buffers(config, 1, T)
    transformer(params, config, np.array([ids]), buffers)  # keeps q and k, as in training
    for saved in buffers.saved:
        q, k, _ = split_heads(saved.qkv.reshape(1, T, config.all_heads, -1), config.heads)
        maps = [attention_weights(q[b, :, h], k[b, :, g])[0] for b, h, g in each_head(q, k)]
        layers.append((100 * np.array(maps)).round().astype(int).tolist())  # (H,T,T)
    return {"tokens": [token["text"] for token in named(tokenizer, ids)], "layers": layers}


def mask(out, conversation: int = 0):
    """The loss mask. A conversation is one text with special tokens. Fine-tuning learns only what
    is filled: what the assistant says, and where it ends (bpe.py: render_chat; sft.py:
    to_arrays)."""
    messages = line_of(f"{out}/world/conversations.jsonl", conversation)["messages"]
    tokenizer = Tokenizer.load(need(f"{out}/tokenizer.json", "bpe.py"))
    tokenizer.add_special_tokens(CHAT_SPECIALS)
    rendered = [render_chat(tokenizer, [message]) for message in messages]
    return {"messages": [[token | {"on": on} for token, on in zip(named(tokenizer, ids), learned)]
                         for ids, learned in rendered]}


def chat(out, question: str = "", temperature: float = 0.8, seed: int = 0, *, history: dict = {}):
    """Chat. The same question to each model: the base model continues the text, the assistant
    answers, the model from rl.py writes a thought first, dimmed (sample.py: chat; bpe.py:
    render_chat)."""
    # history: model -> the messages before. Without a question, QUESTIONS are asked one by one.
    names = [name for name in ("base", "sft", "rl") if name in files_of(out, "config.json")]
    names = names or ["base"]  # which then says what makes it
    for text in [question] if question else QUESTIONS:
        streams = [texts_so_far(open_net(out, name), history.get(name, []), text, temperature, seed)
                   for name in names]
        yield {"question": text, "models": names}
        for texts in zip_longest(*streams):
            yield {"texts": dict(zip(names, texts))}  # so far; None: a text is complete


def texts_so_far(net, history, question, temperature, seed):
    """Yields one model's answer so far, a token longer each time. A base model knows no
    conversation: it goes on with the text of the question."""
    params, config, tokenizer = net
    how, new = dict(seed=seed, stop=stop_ids(config, tokenizer), temperature=temperature), []
    if set(CHAT_SPECIALS) <= set(tokenizer.special_tokens):
        if type(history) is not list or not all(type(message) is dict for message in history):
            raise ValueError("the history must be a list of messages")
        steps = answer(net, [*history, {"role": "user", "content": question}], MAX_NEW, **how)
    else:
        ids = [*config.bos, *tokenizer.encode(question)]
        steps = stream(params, config, [ids], MAX_NEW, **how)
    for _, (token,), _, _ in steps:
        new += [int(token)] if token not in how["stop"] else []
        yield tokenizer.decode(new)


def rollouts(out, problem: int = 0, model: str = "sft", seed: int = 0):
    """Rollouts. Sixteen answers to one exercise. Those better than the mean become likelier, the
    others less likely; if all are alike, nothing is learned (rl.py: rollout, reward_exercises,
    advantages)."""
    params, config, tokenizer = open_net(out, model)
    exercise = line_of(f"{out}/world/exercises-final.jsonl", problem)
    right = exercise["answer"].split("####")[-1].strip()
    ids, _ = render_chat(tokenizer, [{"role": "user", "content": exercise["question"]}], True)
    end = tokenizer.special_tokens["<|im_end|>"]
    new = generate(params, config, [ids] * GROUP, MAX_NEW, seed=seed, stop=[end])
    texts = [tokenizer.decode([k for k in row if k != end]) for row in new]
    # As in rl.py: 1 for an answer that came to its end and is the right number, with any thought.
    form = re.compile(rf"(<think>[^<]*</think> )?0*{re.escape(right)}")
    rewards = [int(row[-1] == end and form.fullmatch(text) is not None)
               for row, text in zip(new, texts)]
    mean = sum(rewards) / GROUP
    return {"question": exercise["question"], "answer": right, "mean": mean, "rows": [
        [reward, reward - mean, text] for reward, text in zip(rewards, texts)]}


VIEWS = {view.__name__: view for view in (
    funnel, explain, tokens, curves, candidates, attention, mask, chat, rollouts, reward)}


def answers(view, out, body):
    """Yields what a view answers to a request's body, dict after dict; an error is the last one."""
    try:
        asked = parse_json(body.decode("utf-8", "replace"), "the request")
        for name, value in asked.items():
            kind = view.__annotations__.get(name)
            if type(value) is not kind and (type(value), kind) != (int, float):
                raise ValueError(f"{name} {str(value)!r:.40} makes no sense here")
        found = view(out, **asked)
        yield from [found] if isinstance(found, dict) else found
    except (ValueError, OSError) as error:
        yield {"error": str(error)}


# ---- The drawings: SVG, by hand ------------------------------------------------------------------
# Colours are classes, so that one style gives a light and a dark version. No meaning is in a colour
# alone.

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2b33}.dim{fill:#5f6f78}.strong{font-weight:600}"
    ".inv{fill:#fff}.cell{fill:#0b6e75;stroke:#b9c4c9}.grid{stroke:#dde4e6}"
    ".line{fill:none;stroke:#0b6e75;stroke-width:2}.l1{stroke:#1d2b33;stroke-dasharray:6 4}"
    ".l2{stroke:#5f6f78;stroke-dasharray:2 3}@media(prefers-color-scheme:dark){text{fill:#e4ebed}"
    ".dim{fill:#9fb0b7}.inv{fill:#0f171a}.cell{fill:#4fc3c8;stroke:#46555c}"
    ".grid{stroke:#2b373c}.line{stroke:#4fc3c8}.l1{stroke:#e4ebed}.l2{stroke:#9fb0b7}}")
PANELS = (  # of a log: title, {key: name}, how the numbers are written; shares reach up to 100%
    ("loss, nats per token", {"val_loss": "held-out", "loss": "training"}, ".3g"),
    ("share of answers", {"recall": "facts recalled", "right": "right", "waits": "say wait",
                          "thinks": "with a calculation"}, ".0%"),
    ("mean score of a joke", {"reward_model": "reward model", "gold_reward": "gold reward"}, ".3g"))


def svg(width, height, parts):
    """A drawing as text, from its elements."""
    width, height = round(width) + 4, round(height) + 4
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="-2 -2 {width} {height}"><style>{STYLE}</style>' + "".join(parts) + "</svg>")


def label(x, y, text, kind="", anchor="start"):
    """A text in a drawing; whatever it holds stays text."""
    return (f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
            f'{html.escape(printable(str(text)))}</text>')


def cells(rows):
    """Rows of cells [(text, width, fill from 0 to 1, or None for a text without a box), ...]."""
    parts, width = [], 0
    for y, row in enumerate(rows):
        x = 0
        for text, wide, fill in row:
            if fill is not None:
                parts.append(f'<rect x="{x}" y="{25 * y}" width="{wide}" height="25" '
                             f'class="cell" fill-opacity="{fill:.2f}"/>')
            kind = "inv" if fill and fill > 0.5 else ""
            parts.append(label(x + wide / 2, 25 * y + 17, text, kind, "middle"))
            x += wide
        width = max(width, x)
    return svg(width, 25 * len(rows), parts)


def chart(log, title, names, form, width=320, height=260):
    """A run's log as curves on common axes: {"svg", "say": the same in words}, or None if it has no
    such numbers. names: {key of the log: name}. The y axis holds 0; curves differ in their dashes;
    a phone is wide enough."""
    unit, curves = "iteration" if any("iteration" in line for line in log) else "step", {}
    for key, name in names.items():
        points = [(line.get(unit, 0), line[key]) for line in log
                  if type(line.get(key)) in (int, float)]
        if any(y for _, y in points):  # the last one and about 300 before it
            curves[f"{name}: {points[-1][1]:{form}}"] = points[::-(len(points) // 300 + 1)][::-1]
    if not curves:
        return None
    left, top, bottom = 44, 30 + 18 * len(curves), height - 24
    xs, ys = zip(*(point for points in curves.values() for point in points))
    x1, y0, y1 = max(xs) or 1, min(0, *ys), 1 if form == ".0%" else max(0, *ys) * 1.05 or 1
    y_scale = (bottom - top) / (y1 - y0)
    # Grid lines at multiples of 1, 2 or 5 times a power of ten.
    step = 10 ** np.floor(np.log10((y1 - y0) / 2))
    step *= 5 if (y1 - y0) / step > 10 else 2 if (y1 - y0) / step > 4 else 1
    parts = [label(0, 14, title, "strong"), label(left, height - 6, "0", "dim"),
             label(width, height - 6, f"{unit} {x1:,}", "dim", "end")]
    for y in np.arange(np.ceil(y0 / step), y1 / step + 1e-9) * step + 0.0:  # 0.0 instead of -0.0
        parts += [f'<path class="grid" d="M{left} {bottom - (y - y0) * y_scale:.1f}H{width}"/>',
                  label(left - 8, bottom - (y - y0) * y_scale + 4, f"{y:{form}}", "dim", "end")]
    for k, (name, points) in enumerate(curves.items()):
        path = "L".join(f"{left + (width - left) * x / x1:.1f} {bottom - (y - y0) * y_scale:.1f}"
                        for x, y in points)
        parts += [f'<path class="line l{k}" d="M{path}M{left} {28 + 18 * k}h28"/>',
                  label(left + 36, 32 + 18 * k, name)]
    return {"svg": svg(width, height, parts), "say": f"{title}, {unit} {x1:,}: {', '.join(curves)}"}


def draw_pipeline(out):
    """The stages from left to right, with what this run put through them."""
    stats = read_json(need(f"{out}/docs/stats.json", "data.py"))
    columns = (("crawl", f"{stats['stages']['read']['in']:,} pages", "world.py"),
               ("→ clean text", f"{sum(stats['documents'].values()):,} documents", "data.py"),
               ("→ tokens", f"{read_tokens(f'{out}/tokens', 'train').size:,}", "bpe.py"),
               ("→ base model", f"{count(open_net(out, 'base')[1])[0]:,} parameters", "train.py"),
               ("→ assistant", "conversations", "sft.py"),
               ("→ reasoning model", "rewards", "rl.py"))
    return cells([[(text, 140, fill) for text in row]
                  for row, fill in zip(zip(*columns), (0.14, None, None))])


def draw_attention(out):
    """Of all heads the one that looks most at the token before, in percent."""
    found = attention(out)
    names, heads = found["tokens"], [p for heads in found["layers"] for p in heads]
    p = max(heads, key=lambda p: sum(p[t][t - 1] for t in range(1, len(p))))
    wide = 8 * max(map(len, names)) + 10
    return cells([[(name, wide, None) for name in ["", *names]]] + [
        [(names[t], wide, None)] + [(percent or "", wide, percent / 100)
                                    for percent in p[t][:t + 1]] for t in range(len(p))])


def draw_mask(out):
    """The first conversation, a message a row; what the loss counts is filled."""
    return cells([[(token["text"], 8 * len(token["text"]) + 10, token["on"]) for token in row]
                  for row in mask(out)["messages"]])


def draw_run(found):
    """The first run's charts, side by side."""
    charts = [chart["svg"] for chart in found["runs"][0]["charts"]]
    return svg(350 * len(charts) - 30, 260, [
        chart.replace("<svg", f'<svg x="{350 * k}"', 1) for k, chart in enumerate(charts)])


PICTURES = {"pipeline": draw_pipeline, "learning": lambda out: draw_run(curves(out)),
            "attention": draw_attention, "mask": draw_mask,
            "reward": lambda out: draw_run(reward(out))}


# ---- The page, the report, the pictures ----------------------------------------------------------

def read_page(out, recorded=None):
    """The page, or with recorded answers the report. Its Content-Security-Policy lets only the
    script and the style run that hold the nonce, a random number; so even a text that became HTML
    by mistake could not run or load anything."""
    views = {}
    for name, view in VIEWS.items():
        spec = inspect.getfullargspec(view)  # what stands before * are the fields of the form
        views[name] = {"about": " ".join(view.__doc__.split()),
                       "fields": dict(zip(spec.args[1:], spec.defaults or ()))}
    about = {"models": list(files_of(out, "config.json")), "views": views, "recorded": recorded}
    with open(PAGE, encoding="utf-8") as file:
        page = file.read().replace("NONCE", secrets.token_hex(16))
    # "<" as an escape, so that no text can end the script element that holds it.
    return page.replace("ABOUT", json.dumps(about).replace("<", "\\u003c"), 1)


def report(out):
    """Writes OUT/report.html: the page, with an answer of every view in it instead of a server."""
    page = read_page(out, {name: list(answers(view, out, b"{}")) for name, view in VIEWS.items()})
    write_file(f"{out}/report.html", lambda file: file.write(page.encode()))
    print(f"wrote {out}/report.html, one file: open it in a browser, or send it to somebody")
    print_results(out)


def print_results(out):
    """Prints each stage's seconds, if make ran it, and its result. The parts of a run that was
    stopped add up: "train.py 90 s" and "train.py --resume --out out/base 70 s" are 160 s."""
    seconds, times = {}, f"{out}/times.txt"
    for line in read_text_lines(times) if os.path.exists(times) else ():
        *command, n, _ = line.split()
        name, *resumed = " ".join(command).split(" --resume")
        seconds[name] = int(n) + (seconds.get(name, 0) if resumed else 0)
    print("stage       time  result")
    for name in ("world.py", "data.py", "bpe.py", "train.py", "sft.py"):
        with contextlib.suppress(ValueError, LookupError):  # it has not run, or was stopped
            print(f"{name:8} {seconds.get(name, '-'):>5} s  {printable(result(out, name))}")


def result(out, name):
    """What came out of a stage, in a few words; ValueError or LookupError if nothing did."""
    if name == "world.py":
        chats, questions = (sum(1 for _ in read_text_lines(f"{out}/world/{part}.jsonl"))
                            for part in ("conversations", "heldout"))
        return f"{chats:,} conversations, {questions:,} held-out questions"
    if name == "data.py":
        stages = read_json(f"{out}/docs/stats.json")["stages"]
        return f"{stages['minhash']['kept']:,} of {stages['read']['in']:,} pages kept"
    if name == "bpe.py":
        return (f"{Tokenizer.load(f'{out}/tokenizer.json').vocab_size:,} kinds of token; the text "
                f"is {read_json(f'{out}/tokens/info.json')['train'][0]:,} tokens")
    if name == "sft.py":
        scores = [f"{kind} {row[2]:.0%}"
                  for kind, row in read_json(f"{out}/sft/state.json")["right"].items()]
        return "right answers: " + ", ".join(scores[:3])
    state = read_json(f"{out}/base/state.json")
    known, = (line["recall"] for _, line in read_json_lines(f"{out}/base/log.jsonl")
              if "val_loss" in line and line["step"] == state["best_step"])
    return (f"{state['best_bits']:.3f} bits per byte of held-out text"
            + ("" if known is None else f", {known:.0%} of the facts"))


def pictures(out, folder):
    """Writes the README's drawings; those whose stage has not run yet are left out."""
    for name, draw in PICTURES.items():
        try:
            write_file(f"{folder}/{name}.svg", lambda file: file.write(draw(out).encode()))
            print(f"wrote {folder}/{name}.svg")
        except ValueError as error:
            print(f"no {name}.svg: {error}")


# ---- The server (skip at first) ------------------------------------------------------------------
# Other programs of this machine, and every page open in the browser, can send requests to a port of
# 127.0.0.1. So a request must name this server as its host (against DNS rebinding), must not come
# from another site's page, and must be JSON, which another site's form can't send.

class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection, which is one request; at most CONNECTIONS at a time. The
    kernels are not made for several callers, so `network` lets one request compute at a time: a
    whole answer, or one token of a stream."""
    daemon_threads = True

    def __init__(self, out, port):
        self.out, self.network = out, threading.Lock()
        self.connections = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(("127.0.0.1", port), Handler)
        self.names = [f"{host}:{self.server_port}" for host in ("127.0.0.1", "localhost")]

    def process_request(self, request, address):
        self.connections.acquire()
        super().process_request(request, address)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.connections.release()

    def handle_error(self, request, address):
        """A browser that went away is no error of ours; anything else is shown as usual."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)


class Handler(http.server.BaseHTTPRequestHandler):
    """GET / is the page; POST /NAME is a view."""
    timeout = SECONDS

    def do_GET(self):
        if self.begin("text/html; charset=utf-8", self.path == "/"):
            self.wfile.write(read_page(self.server.out).encode())

    def do_POST(self):
        """A line of JSON for each dict of the view, as it comes. Writing fails when the browser
        went away, and that ends the view too."""
        name, length = self.path[1:], self.headers.get("Content-Length", "")
        if not self.begin("application/x-ndjson", name in VIEWS,
                          self.headers.get_content_type() == "application/json",
                          re.fullmatch("[0-9]{1,9}", length) and int(length) <= MAX_BODY):
            return
        parts = answers(VIEWS[name], self.server.out, self.rfile.read(int(length)))
        while True:
            with self.server.network:
                part = next(parts, None)
            if part is None:
                return
            self.wfile.write(json.dumps(part).encode() + b"\n")

    def begin(self, kind, known, is_json=True, fits=True):
        """Begins the response if the request is one of our own page; otherwise refuses it."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin", "")
        ours = (hosts in ([name] for name in self.server.names)
                and origin.removeprefix("http://") in ("", *self.server.names))
        for fine, status in (ours, 403), (known, 404), (is_json, 415), (fits, 413):
            if not fine:
                self.send_error(status, explain=f"the page is at http://{self.server.names[0]}")
                return False
        self.send_response(200)
        for name, value in (("Content-Type", kind), ("X-Content-Type-Options", "nosniff"),
                            ("X-Frame-Options", "DENY"), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.end_headers()
        return True

    def log_message(self, *message):
        """Nothing is printed for a request."""


# ---- The command ---------------------------------------------------------------------------------

def run(args):
    if not os.path.isdir(args.out):
        raise ValueError(f"{args.out}: no such folder; python world.py begins a run")
    if args.report:
        report(args.out)
    if args.pictures:
        pictures(args.out, args.pictures)
    if args.report or args.pictures:
        return
    print_settings("look.py", {"out": args.out, "port": args.port})
    with Server(args.out, args.port) as server:
        print(f"open http://{server.names[0]} in a browser; Ctrl-C ends", flush=True)
        server.serve_forever()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="look.py", description="A page over what the run left in "
                                     "out/, for a browser on this machine.")
    add = parser.add_argument
    add("--out", default="out", help="the run's folder (%(default)s)")
    add("--port", type=int, default=8000, help="of 127.0.0.1; 0: any free one (%(default)s)")
    add("--report", action="store_true", help="write OUT/report.html instead, one file to keep")
    add("--pictures", metavar="DIR", help="write the README's drawings (SVG) into a folder")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
