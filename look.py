"""Looking at the run: in a browser, as one file to keep, or as pictures for the README.

    python look.py                       a page at http://127.0.0.1:8000, until Ctrl-C
    python look.py --report              the same without a server -> out/report.html
    python look.py --pictures pictures   five drawings (SVG) -> pictures/

The page shows each stage of the pipeline: what the crawl lost to which rule, text as tokens, curves
that grow while another terminal trains, the candidates of every token, what the attention heads
look at, what fine-tuning learns from, a chat with several models side by side, and rollouts with
their rewards. Nothing is trained here, and no file of the run is changed. A view whose files are
not there yet says which command makes them. It starts in a second or two.

Reading order: the views (each a function: what the page asked -> what it shows), the drawings, the
report. The server at the end can be skipped at first. The page itself is look.html: it asks for
/NAME, where NAME is a view, sends JSON and gets JSON.

The server is for one person. It listens on 127.0.0.1 only and answers only its own page. It loads
nothing from elsewhere, and forbids the browser to do so. Whatever comes from pages, models or
people stays text. Left out: accounts, encryption, everything that a server for others would need.
"""
import argparse
import base64
import codecs
import functools
import hashlib
import html
import http.server
import itertools
import json
import os
import re
import sys
import threading
from dataclasses import replace

import numpy as np

from bpe import (CHAT_SPECIALS, Tokenizer, join_pair, pre_tokenize, read_tokens, readable,
                 render_chat)
from checkpoint import open_model
from common import (parse_json, print_settings, printable, read_json, read_json_lines,
                    run_command, write_file)
from crawl.rules import FAILS, first_failure
from crawl.warc import Page, read_files
from data import c4_lines, life_of, read_settings
from kernels import probabilities
from kernels.plain import attention_weights, split_heads
from model import Buffers, check_ids, count, transformer
from sample import ANSWER_SHARE, fit, generate, stop_ids, stream, trim

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "look.html")
MAX_BODY = 1 << 16  # bytes of a request
MAX_TEXT = 4000  # characters of a text that people type; of a pasted page MAX_BODY is the limit
MAX_NEW = 200  # tokens that one request may generate
MAX_MAP = 32  # tokens of an attention map: more would be too small to see
CANDIDATES = 8  # of each token
GROUP = 16  # rollouts of a problem, as in rl.py
BUSY = 8  # requests that are worked on at a time; the next one gets status 429
CONNECTIONS = 32  # open at a time; the next ones wait
SECONDS = 30  # after which a browser that neither sends nor reads is given up
EXAMPLES = 400  # pages of the crawl that are searched for one example of each reason


# ---- The views: what the page asked (a dict) -> what it shows (a dict) ---------------------------

def need(path, command):
    """The path if it is there; ValueError that names the command that makes it."""
    if not os.path.exists(path):
        raise ValueError(f"{path} is not there yet; python {command} makes it")
    return path


def number(asked, name, default, low, high):
    """A number that the page sent, as int if the default is one; ValueError if it is none."""
    value = asked.get(name, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high}, not {str(value):.40}")
    return type(default)(value)


def words(asked, name, default=None, limit=MAX_TEXT):
    """A text that the page sent."""
    value = asked.get(name, default)
    if not isinstance(value, str) or len(value) > limit:
        raise ValueError(f"{name} must be a text of at most {limit:,} characters")
    return value.encode("utf-8", "replace").decode()  # lone surrogates become "?"


def overview(out, asked):
    """The models that are there, and what to begin with."""
    prompt, text = first_fact(out)
    return {"models": model_names(out), "prompt": prompt, "text": text}


def first_fact(out):
    """(prompt, prompt and answer): a sentence that this run's training text can complete."""
    path = f"{out}/world/facts.jsonl"
    fact = (next(read_json_lines(path))[1] if os.path.exists(path)
            else {"prompt": "Once there was a", "answer": " time"})
    return fact["prompt"], fact["prompt"] + fact["answer"]


def model_names(out):
    """Folders of `out` that hold a checkpoint."""
    return [name for name in folders(out) if os.path.exists(f"{out}/{name}/config.json")]


def folders(out):
    """Folders of `out`: base, sft and rl first, then others by name."""
    names = [name for name in sorted(os.listdir(out)) if os.path.isdir(f"{out}/{name}")]
    return sorted(names, key=["base", "sft", "rl", *names].index)


def open_net(out, asked, preferred=("base",)):
    """(params, config, tokenizer) of the model that the page named, or of the first of those
    preferred. Only names of folders with a checkpoint are accepted: the browser can't choose other
    files."""
    names = model_names(out)
    name = words(asked, "model", next(filter(names.__contains__, preferred), preferred[-1]))
    if name not in names:
        command = f"{name}.py" if name in ("sft", "rl") else "train.py"
        raise ValueError(f"{out}/{name:.40}: no model there yet; python {command} makes one")
    return open_once(f"{out}/{name}", os.stat(f"{out}/{name}/config.json").st_mtime_ns)


@functools.lru_cache(maxsize=4)
def open_once(folder, changed):
    """A checkpoint, read again when its file has changed; at most four are kept in memory."""
    return open_model(folder)


@functools.lru_cache(maxsize=1)
def load_tokenizer(path, changed):
    """The run's tokenizer, with the chat's tokens."""
    tokenizer = Tokenizer.load(path)
    tokenizer.add_special_tokens(CHAT_SPECIALS)
    return tokenizer


def run_tokenizer(out):
    path = need(f"{out}/tokenizer.json", "bpe.py")
    return load_tokenizer(path, os.stat(path).st_mtime_ns)


def funnel(out, asked):
    """The crawl funnel, from what data.py counted."""
    stats = read_json(need(f"{out}/docs/stats.json", "data.py"))
    return {"svg": svg(*draw_funnel(stats["stages"], number(asked, "width", 640, 280, 1000))),
            "say": ", ".join(f"{stage} keeps {row['kept']:,} of {row['in']:,}"
                             for stage, row in stats["stages"].items())}


@functools.lru_cache(maxsize=1)
def example_pages(path, changed):
    """{reason: Page}: of the crawl's first pages one that is kept and one for each reason."""
    found, (settings, _) = {}, read_settings()
    for page in itertools.islice(read_files([path], [].append), EXAMPLES):
        reason = next((f"{stage}: {rule}" for stage, checks, _ in
                       life_of(replace(page, characters={}), settings)
                       if (rule := first_failure(checks))), "kept")
        found.setdefault(reason, page)
    return found


def explain(out, asked):
    """Every rule's value beside its limit: for an example of the crawl, a URL of it, or pasted HTML
    or text. Like data.py --explain it goes on after a failure."""
    path, url = f"{out}/world/crawl.warc.gz", words(asked, "url", "").strip()
    pasted = words(asked, "pasted", "", MAX_BODY).strip()
    examples = example_pages(path, os.stat(path).st_mtime_ns) if os.path.exists(path) else {}
    pages = {page.url: page for page in examples.values()}
    if pasted:
        page = Page("html" if pasted.startswith("<") else "text", pasted.encode())
    elif url:
        page = pages.get(url) or next((page for page in read_files(
            [need(path, "world.py")], [].append) if page.url == url), None)
    else:
        page = next(iter(pages.values()), None) or need(path, "world.py")
    if page is None:
        raise ValueError("no page of this URL in the crawl")
    rows, lines, before, (settings, _) = [], [], "", read_settings()
    for stage, checks, text in life_of(replace(page, characters={}), settings):
        rows += [{"stage": stage, "rule": rule, "limit": f"{sign} {limit}",
                  "value": f"{value:,.4g}" if isinstance(value, float) else str(value),
                  "fails": bool(FAILS[sign](value, limit))} for rule, value, sign, limit in checks]
        if stage == "c4":
            lines = [f"{rule}: {line[:80]}" for rule, line in c4_lines(before)[1] if line]
        before = text
    failed = next((row for row in rows if row["fails"]), None)
    return {"examples": {reason: page.url for reason, page in examples.items()}, "url": page.url,
            "rows": rows, "lines": lines[:50], "text": before[:3000],
            "verdict": f"dropped at {failed['stage']}: {failed['rule']}" if failed
            else "kept, unless it is a duplicate"}


def tokens(out, asked):
    """A text as tokens of the first so many merges, and how its last pre-token was merged."""
    tokenizer, text = run_tokenizer(out), words(asked, "text", first_fact(out)[1])
    n_merges = len(tokenizer.merge_rows)
    n = number(asked, "merges", n_merges, 0, n_merges)
    if n < n_merges:
        if (tokenizer.merge_rows[:, 2] != np.arange(256, 256 + n_merges)).any():
            raise ValueError("only a vocabulary that bpe.py learned can be shown with fewer merges")
        tokenizer = Tokenizer(tokenizer.tokens[:256 + n], tokenizer.merge_rows[:n], {},
                              tokenizer.pattern)
    parts, order = pre_tokenize(text, tokenizer.pattern)
    steps = [[bytes([byte]) for byte in parts[k].encode()] for k in order[-1:]]
    for pair in tokenizer.merges if steps and len(steps[0]) <= 40 else ():
        joined = join_pair(steps[-1], pair)
        if len(joined) < len(steps[-1]):
            steps.append(joined)
    return {"tokens": named(tokenizer, tokenizer.encode(text)), "n_merges": n_merges,
            "bytes": len(text.encode()), "steps": [list(map(readable, step)) for step in steps]}


def named(tokenizer, ids, mask=None):
    """[{"id", "text", "on"}, ...] for the page; the text as bpe.readable writes it."""
    return [{"id": int(k), "text": readable(tokenizer.token_bytes(k)), "on": bool(on)}
            for k, on in zip(ids, [0] * len(ids) if mask is None else mask)]


def curves(out, asked):
    """Every run's log as curves: while the run goes on its live.jsonl, then its log.jsonl."""
    width, runs = number(asked, "width", 640, 280, 1000), []
    for name in folders(out):
        logs = [path for path in (f"{out}/{name}/live.jsonl", f"{out}/{name}/log.jsonl")
                if os.path.exists(path)]
        if logs:
            newest = max(logs, key=os.path.getmtime)
            runs.append({"name": name, "live": newest.endswith("live.jsonl"),
                         "panels": [{"say": say, "svg": svg(*drawing)} for say, drawing in
                                    draw_log(read_log(newest), width)]})
    if not runs:
        raise ValueError("no training run has begun yet; python train.py begins one")
    return {"runs": runs}


def read_log(path):
    """The dicts of a log that may grow meanwhile: its last line may be half a line."""
    lines = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                lines.append(parse_json(line, path))
            except ValueError:
                break
    return lines


def candidates(out, asked):
    """The network goes on after a prompt or after ids: each token with its likeliest rivals, and
    their probabilities at temperature 1."""
    params, config, tokenizer = open_net(out, asked)
    prompt = words(asked, "prompt", first_fact(out)[0])
    ids = asked.get("ids") or [*config.bos, *tokenizer.encode(prompt)]
    if type(ids) is not list or len(ids) > 2000 or any(type(k) is not int for k in ids):
        raise ValueError("ids must be a list of at most 2,000 whole numbers")
    check_ids(np.array(ids[:config.ctx]), config)
    steps = []
    for _, (token,), _, (logits,) in stream(
            params, config, [ids], number(asked, "tokens", 24, 1, MAX_NEW),
            number(asked, "temperature", 0.0, 0, 5), seed=number(asked, "seed", 0, 0, 10**9),
            stop=stop_ids(config, tokenizer)):
        p = probabilities(logits)
        top = [k for k in np.argsort(-p)[:CANDIDATES].tolist() if p[k] > 0]
        top += [] if token in top else [int(token)]
        steps.append(named(tokenizer, [token])[0] | {"candidates": [
            rival | {"p": float(p[rival["id"]])} for rival in named(tokenizer, top)]})
    return {"prompt": prompt, "ids": ids, "steps": steps}


def attention(out, asked):
    """How much each token takes of each earlier one, in every head of every layer."""
    net = _, config, tokenizer = open_net(out, asked)
    ids = [*config.bos, *tokenizer.encode(words(asked, "text", first_fact(out)[1]))]
    ids = ids[:min(MAX_MAP, config.ctx)]
    p, names = attention_of(net, ids), [token["text"] for token in named(tokenizer, ids)]
    layer = number(asked, "layer", 0, 0, config.layers - 1)
    head = number(asked, "head", 0, 0, config.heads - 1)
    chosen = p[layer, head]
    return {"heads": [[svg(*draw_attention(names, map_, 3)) for map_ in maps] for maps in p],
            "svg": svg(*draw_attention(names, chosen, 20)),
            "say": "; ".join(f"{name} looks most at {names[row.argmax()]} ({row.max():.0%})"
                             for name, row in zip(names, chosen))}


def attention_of(net, ids):
    """The attention weights (L,H,T,T) of one text: a forward pass that keeps q and k of each layer,
    as in training, and then kernels/plain.py."""
    params, config, _ = net
    ids = np.array([ids])
    buffers = Buffers(config, 1, ids.shape[1])
    transformer(params, config, ids, buffers)
    qkv = [saved.qkv.reshape(1, ids.shape[1], config.all_heads, -1) for saved in buffers.saved]
    return np.array([attention_weights(*split_heads(x, config.heads)[:2])[0][0] for x in qkv])


def mask(out, asked):
    """A conversation as fine-tuning reads it; "on" is what the loss counts."""
    messages, n = asked.get("messages"), number(asked, "number", 0, 0, 10**6)
    if messages is None:
        path = need(f"{out}/world/conversations.jsonl", "world.py")
        line = next(itertools.islice(read_json_lines(path), n, None), (0, {}))[1]
        messages = line.get("messages")
    check_messages(messages)
    tokenizer = run_tokenizer(out)
    return {"tokens": named(tokenizer, *render_chat(tokenizer, messages)), "messages": messages}


def check_messages(messages):
    """ValueError unless it is a list of messages of sensible size; render_chat checks the rest."""
    if (not isinstance(messages, list) or not 0 < len(messages) <= 100
            or not all(isinstance(message, dict) for message in messages)
            or sum(len(str(message.get("content"))) for message in messages) > 4 * MAX_TEXT):
        raise ValueError("a conversation is a list of 1 to 100 messages, not too long")


def chat(out, asked):
    """Yields the answer of one model in parts {"text"}, as it is written. A base model knows no
    turns: it goes on with the text of the last message."""
    params, config, tokenizer = open_net(out, asked)
    messages, stop, n_tokens = asked.get("messages"), stop_ids(config, tokenizer), 0
    check_messages(messages)
    if set(CHAT_SPECIALS) <= set(tokenizer.special_tokens):
        _, ids = trim(tokenizer, [], messages, int(config.ctx * (1 - ANSWER_SHARE)))
    else:
        ids = [*config.bos, *tokenizer.encode(words(messages[-1], "content"))]
    # A token may end inside a character: the decoder keeps such bytes until the rest has come.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for _, (token,), _, _ in stream(
            params, config, [fit(ids, config, MAX_NEW)], number(asked, "tokens", 100, 1, MAX_NEW),
            number(asked, "temperature", 0.8, 0, 5), seed=number(asked, "seed", 0, 0, 10**9),
            stop=stop):
        n_tokens += 1
        yield {"text": "" if token in stop else decoder.decode(tokenizer.token_bytes(int(token)))}
    yield {"text": decoder.decode(b"", final=True), "tokens": n_tokens}


def rollouts(out, asked):
    """Sixteen answers of one model to one exercise, with what rl.py would make of them."""
    params, config, tokenizer = open_net(out, asked, ("rl", "sft"))
    path = need(f"{out}/world/exercises-final.jsonl", "world.py")
    n = number(asked, "number", 0, 0, 10**6)
    problem = next(itertools.islice(read_json_lines(path), n, None), (0, None))[1]
    if not problem:
        raise ValueError(f"{path} has fewer than {n + 1} problems")
    right = problem["answer"].split("####")[-1].strip()
    ids, _ = render_chat(tokenizer, [{"role": "user", "content": problem["question"]}], True)
    end, seed = tokenizer.special_tokens["<|im_end|>"], number(asked, "seed", 0, 0, 10**9)
    new = generate(params, config, [ids] * GROUP, 56, seed=seed, stop=[end])
    texts = [tokenizer.decode([k for k in row if k != end]) for row in new]
    # Only the answer counts, never how it was found; and it must have come to its end.
    rewards = [float(row[-1] == end and text.rpartition("</think>")[2].strip() == right)
               for row, text in zip(new, texts)]
    mean = sum(rewards) / GROUP
    return {"question": problem["question"], "answer": right, "mean": mean, "rollouts": [
        {"text": text, "reward": reward, "advantage": reward - mean}
        for text, reward in zip(texts, rewards)]}


# ---- The drawings: SVG, by hand ------------------------------------------------------------------
# A drawing is (width, height, parts); parts are elements of SVG. Colours are classes, so that one
# style gives a light and a dark version; no meaning is in a colour alone.

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2b33}.dim{fill:#5f6f78}.mono{font-family:"
    "ui-monospace,monospace}.strong{font-weight:600}.tiny{font-size:10px}.a{fill:#0b6e75}"
    ".soft{fill:#0b6e75;fill-opacity:.14}.box{fill:none;stroke:#b9c4c9}.grid{stroke:#dde4e6}"
    ".line{fill:none;stroke:#0b6e75;stroke-width:2}.l1{stroke:#1d2b33;stroke-dasharray:6 4}"
    ".l2{stroke:#5f6f78;stroke-dasharray:2 3}.inv{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#e4ebed}.dim{fill:#9fb0b7}.a{fill:#4fc3c8}"
    ".soft{fill:#4fc3c8;fill-opacity:.18}.box{stroke:#46555c}.grid{stroke:#2b373c}"
    ".line{stroke:#4fc3c8}.l1{stroke:#e4ebed}.l2{stroke:#9fb0b7}.inv{fill:#0f171a}}")


def svg(width, height, parts):
    """A drawing as a file of its own."""
    width, height = round(width) + 4, round(height) + 4
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="-2 -2 {width} {height}"><style>{STYLE}</style>' + "".join(parts) + "</svg>")


def label(x, y, text, kind="", anchor="start"):
    """A text in a drawing; whatever it holds stays text."""
    return (f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
            f'{html.escape(printable(str(text)))}</text>')


def rect(x, y, width, height, kind, more=""):
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{height:.1f}" '
            f'rx="{min(2, height / 8):.1f}" class="{kind}" {more}/>')


def stack(drawings):
    """Drawings below each other."""
    height, parts = 0, []
    for _, tall, inside in drawings:
        parts += [f'<g transform="translate(0 {height})">', *inside, "</g>"]
        height += tall + 12
    return max(width for width, _, _ in drawings), height, parts


def draw_funnel(stages, width):
    """One bar a stage: what it kept of all pages that were read, and why the others went."""
    parts, total, y = [], max(1, stages["read"]["in"]), 0
    for stage, row in stages.items():
        reasons = ", ".join(f"{name} {n:,}" for name, n in
                            sorted(row["reasons"].items(), key=lambda item: -item[1]))
        room = int(width / 6.6)
        reasons = reasons if len(reasons) <= room else reasons[:room - 3] + "..."
        parts += [label(0, y + 14, stage, "strong"),
                  label(width, y + 14, f"{row['kept']:,} kept", "", "end"),
                  rect(0, y + 20, width, 10, "soft"),
                  rect(0, y + 20, width * row["kept"] / total, 10, "a"),
                  label(0, y + 45, f"- {reasons}" if reasons else "", "dim")]
        y += 56 if reasons else 40
    return width, y, parts


PANELS = (  # of a log: title, {key: name}, whether the numbers are shares
    ("loss, nats per token", {"val_loss": "held-out", "loss": "training"}, False),
    ("shares", {"recall": "facts recalled", "right": "right answers", "waits": "that say wait",
                "thinks": "with a calculation"}, True),
    ("mean score of a joke", {"reward_model": "reward model", "gold_reward": "gold reward"}, False))


def draw_log(lines, width):
    """[(what it says in words, drawing), ...] of the panels that a log has numbers for."""
    panels = []
    for title, names, shares in PANELS:
        curves = [(name, [(line.get("step", line.get("iteration", 0)), line[key]) for line in lines
                          if type(line.get(key)) in (int, float)]) for key, name in names.items()]
        curves = [(name, points) for name, points in curves if any(y for _, y in points)]
        if curves:
            unit = "iteration" if any("iteration" in line for line in lines) else "step"
            last = ", ".join(f"{name} {amount(points[-1][1], shares)}" for name, points in curves)
            panels.append((f"{title}, at {unit} {curves[0][1][-1][0]}: {last}",
                           chart(title, curves, width, shares, unit)))
    return panels


def amount(y, shares):
    return f"{y:.0%}" if shares else f"{y:.3g}"


def chart(title, curves, width, shares, unit):
    """Curves [(name, [(x, y), ...]), ...] on common axes; the y axis begins at 0. They differ in
    their dashes."""
    left, top, bottom = 50, 30 + 18 * len(curves), 190 + 18 * len(curves)
    ys = [y for _, points in curves for _, y in points]
    x1 = max(x for _, points in curves for x, _ in points) or 1
    y0, y1 = min(0, *ys), 1 if shares else max(0, *ys) * 1.05 or 1
    parts = [label(0, 14, title, "strong")]
    step = 10 ** np.floor(np.log10((y1 - y0) / 2))
    step *= 5 if (y1 - y0) / step > 10 else 2 if (y1 - y0) / step > 4 else 1
    step = 0.25 if shares else step
    for k in range(int(np.ceil(y0 / step)), int(y1 / step + 1e-9) + 1):
        y = bottom - (bottom - top) * (k * step - y0) / (y1 - y0)
        parts += [f'<path class="grid" d="M{left} {y:.1f}H{width}"/>',
                  label(left - 8, y + 4, amount(k * step, shares), "dim", "end")]
    for k, (name, points) in enumerate(curves):
        every = max(1, len(points) // 400)
        path = "L".join(f"{left + (width - left - 6) * x / x1:.1f} "
                        f"{bottom - (bottom - top) * (y - y0) / (y1 - y0):.1f}"
                        for x, y in points[::-1][::every][::-1])
        parts += [f'<path class="line l{k}" d="M{path}"/>',
                  f'<path class="line l{k}" d="M{left} {30 + 18 * k}h28"/>',
                  label(left + 36, 34 + 18 * k, f"{name}: {amount(points[-1][1], shares)}")]
    return width, bottom + 24, parts + [label(left, bottom + 18, "0", "dim"),
                                        label(width, bottom + 18, f"{unit} {x1:,}", "dim", "end")]


def draw_attention(names, p, cell):
    """A map (T,T): the row is the token that looks, the column the one looked at. Large cells have
    names at the sides, and percents, so that it can be read without colours."""
    large = cell >= 14
    side = 7.6 * max(map(len, names)) + 12 if large else 0
    parts = [rect(side, side, len(names) * cell, len(names) * cell, "box",
                  f'stroke-width="{cell / 20}"')]
    for t, name in enumerate(names):
        if large:
            parts += [label(side - 6, side + cell * (t + 0.7), name, "mono", "end"),
                      f'<g transform="translate({side + cell * (t + 0.7):.1f} {side - 6:.1f}) '
                      f'rotate(-90)">' + label(0, 0, name, "mono") + "</g>"]
        for j in np.flatnonzero(p[t] >= 0.02).tolist():
            parts.append(rect(side + j * cell, side + t * cell, cell, cell, "a",
                              f'fill-opacity="{p[t, j]:.2f}"'))
            if large and p[t, j] >= 0.1:
                parts.append(label(side + cell * (j + 0.5), side + cell * (t + 0.7),
                                   round(100 * p[t, j]), "tiny inv" if p[t, j] > 0.5 else "tiny",
                                   "middle"))
    size = side + len(names) * cell + 1
    return size, size, parts


def draw_tokens(tokens, width):
    """Tokens in lines; those of a mask of 1 are filled, and underlined for those who see no
    colours."""
    parts, x, y = [], 0, 0
    for token in tokens:
        wide = 8 * len(token["text"]) + 10
        if x and (x + wide > width or token["text"] == CHAT_SPECIALS[0]):
            x, y = 0, y + 32
        parts += [rect(x + 0.5, y + 0.5, wide, 23, "soft" if token["on"] else "box"),
                  label(x + 5, y + 16, token["text"], "mono strong" if token["on"] else "mono dim")]
        if token["on"]:
            parts.append(rect(x + 0.5, y + 22, wide, 3, "a"))
        x += wide + 4
    return width, y + 30, parts


def draw_pipeline(out):
    """The stages from left to right, with what this run put through them."""
    pages = documents = tokens = size = ""
    if os.path.exists(f"{out}/docs/stats.json"):
        stats = read_json(f"{out}/docs/stats.json")
        pages = f"{stats['stages']['read']['in']:,} pages"
        documents = f"{sum(stats['documents'].values()):,} documents"
    if os.path.exists(f"{out}/tokens/train.npy"):
        tokens = f"{read_tokens(f'{out}/tokens', 'train').size / 1e6:.1f} million"
    if "base" in model_names(out):
        size = f"{count(open_net(out, {})[1])[0] / 1e6:.1f}M parameters"
    parts = []
    for k, (title, put, script) in enumerate((
            ("crawl", pages, "world.py"), ("clean text", documents, "data.py"),
            ("tokens", tokens, "bpe.py"), ("base model", size, "train.py"),
            ("assistant", "conversations", "sft.py"), ("reasoner", "rewards", "rl.py"))):
        x = 148 * k
        parts += [rect(x + 0.5, 0.5, 124, 76, "box"), label(x + 62, 24, title, "strong", "middle"),
                  label(x + 62, 44, put, "dim", "middle"),
                  label(x + 62, 65, script, "mono", "middle")]
        if k:
            parts.append(f'<path class="line" d="M{x - 20} 38h14m-5 -5l5 5l-5 5"/>')
    return 148 * 6 - 22, 78, parts


# ---- The report and the pictures -----------------------------------------------------------------

def report(out):
    """Writes OUT/report.html: the page, with an answer of every view in it instead of a server."""
    recorded = {"overview": overview(out, {})}
    for name, view in VIEWS.items():
        try:
            recorded[name] = (chat_turns if view is chat else view)(out, {})
        except ValueError as error:
            recorded[name] = {"error": str(error)}
    # "<" as an escape, so that no text can end the script element that holds it.
    data = json.dumps(recorded).replace("<", "\\u003c")
    page = read_page()
    page = page.replace("<style>", '<meta http-equiv="Content-Security-Policy" '
                        f'content="{policy(page)}">\n<style>', 1)
    page = page.replace(
        "<script>", f'<script type="application/json" id="recorded">{data}</script>\n<script>', 1)
    write_file(f"{out}/report.html", lambda file: file.write(page.encode()))
    print(f"wrote {out}/report.html, one file: open it in a browser, or send it to somebody")


def chat_turns(out, asked):
    """The same few held-out questions to base, sft and rl."""
    path, models = need(f"{out}/world/heldout.jsonl", "world.py"), []
    questions = {line.get("kind"): line["messages"] for _, line in read_json_lines(path)}
    for name in [name for name in ("base", "sft", "rl") if name in model_names(out)]:
        models.append({"model": name, "turns": [
            {"question": messages[-1]["content"], "answer": "".join(part["text"] for part in chat(
                out, {"model": name, "messages": messages, "tokens": 60}))}
            for messages in list(questions.values())[:5]]})
    return {"models": models}


def pictures(out, folder):
    """Writes the README's drawings; those whose stage has not run yet are left out."""
    for name in ("pipeline", "learning", "attention", "mask", "reward"):
        try:
            if name == "pipeline":
                drawing = draw_pipeline(out)
            elif name == "attention":
                net = _, config, tokenizer = open_net(out, {"model": "base"})
                ids = [*config.bos, *tokenizer.encode(first_fact(out)[1])]
                drawing = draw_attention([token["text"] for token in named(tokenizer, ids)],
                                         attention_of(net, ids)[0, 0], 30)
            elif name == "mask":
                drawing = draw_tokens(mask(out, {})["tokens"], 640)
            else:
                run, command = {"learning": ("base", "train.py"),
                                "reward": ("rl-jokes", "rl.py --reward model")}[name]
                log = read_log(need(f"{out}/{run}/log.jsonl", command))
                drawing = stack([panel for _, panel in draw_log(log, 640)])
        except ValueError as error:
            print(f"no {name}.svg: {error}")
            continue
        drawn = svg(*drawing).encode()
        write_file(f"{folder}/{name}.svg", lambda file, drawn=drawn: file.write(drawn))
        print(f"wrote {folder}/{name}.svg")


# ---- The server (skip at first) ------------------------------------------------------------------
# Other programs of this machine, and every page open in the browser, can send requests to a port of
# 127.0.0.1. So a request must name this server as its host (against DNS rebinding), must not come
# from another site's page, and must be JSON, which another site's form can't send.

VIEWS = {view.__name__: view for view in (
    funnel, explain, tokens, curves, candidates, attention, mask, chat, rollouts)}


def read_page():
    with open(PAGE, encoding="utf-8") as file:
        return file.read()


def policy(page):
    """The Content-Security-Policy: our one script and one style, known by their hashes, and nothing
    else; so even a text that became HTML by mistake could not run or load anything."""
    hashes = ["'sha256-" + base64.b64encode(hashlib.sha256(re.search(
        f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode()).digest()).decode() + "'"
        for tag in ("script", "style")]
    return (f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


class Server(http.server.ThreadingHTTPServer):
    """One thread a connection, at most CONNECTIONS at a time, and at most BUSY requests under way.
    The kernels are not made for several callers, so `network` lets one request compute at a time: a
    whole answer, or one token of a stream."""
    daemon_threads = True

    def __init__(self, out, port):
        self.out, self.network = out, threading.Lock()
        self.busy = threading.BoundedSemaphore(BUSY)
        self.connections = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(("127.0.0.1", port), Handler)
        self.names = [f"{host}:{self.server_port}" for host in ("127.0.0.1", "localhost")]

    def process_request(self, request, address):
        self.connections.acquire()
        super().process_request(request, address)

    def process_request_thread(self, request, address):
        try:
            super().process_request_thread(request, address)
        finally:
            self.connections.release()

    def handle_error(self, request, address):
        """A browser that went away is no error of ours; anything else is shown as usual."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)


class Handler(http.server.BaseHTTPRequestHandler):
    """GET / is the page; POST /NAME is a view. Every request is checked first."""
    timeout = SECONDS
    server_version, sys_version = "byhand", ""

    def do_GET(self):
        if problem := self.problem():
            return self.reply(403, {"error": problem})
        if self.path != "/":
            return self.reply(404, {"error": "there is only one page, /"})
        page = read_page()
        self.begin(200, "text/html; charset=utf-8", policy(page))
        self.wfile.write(page.encode())

    def do_POST(self):
        view = overview if self.path == "/overview" else VIEWS.get(self.path[1:])
        length = self.headers.get("Content-Length", "")
        if problem := self.problem():
            return self.reply(403, {"error": problem})
        if view is None:
            return self.reply(404, {"error": "no such view"})
        if self.headers.get_content_type() != "application/json":
            return self.reply(415, {"error": "a request must be application/json"})
        if not length.isascii() or not length.isdigit():
            return self.reply(411, {"error": "a request must say its length"})
        if len(length) > 9 or int(length) > MAX_BODY:
            return self.reply(413, {"error": f"more than {MAX_BODY:,} bytes"})
        body = self.rfile.read(int(length))
        if not self.server.busy.acquire(blocking=False):
            return self.reply(429, {"error": f"{BUSY} requests are under way; try again soon"})
        try:
            self.answer(view, body)
        finally:
            self.server.busy.release()

    def problem(self):
        """Why a request is not from our own page, or None."""
        origin = self.headers.get("Origin")
        if self.headers.get_all("Host", []) not in ([name] for name in self.server.names):
            return "wrong host; open http://" + self.server.names[0]
        if origin is not None and origin.removeprefix("http://") not in self.server.names or (
                self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")):
            return "another site's page may not ask"

    def answer(self, view, body):
        """Sends what the view returns, or the parts that it yields, one line each as they come."""
        status = 200
        try:
            asked = parse_json(body.decode("utf-8", "replace"), "the request")
            with self.server.network:
                found = view(self.server.out, asked)
                parts = None if isinstance(found, dict) else found
                found = next(parts) if parts else found
        except (ValueError, OSError) as error:
            status, found, parts = 400, {"error": str(error)}, None
        if parts is None:
            return self.reply(status, found)
        self.begin(200, "application/x-ndjson")
        while found is not None:  # writing fails when the browser went away, and that ends it
            self.wfile.write(json.dumps(found).encode() + b"\n")
            try:
                with self.server.network:
                    found = next(parts, None)
            except ValueError as error:  # after which next gives None
                found = {"error": str(error)}

    def reply(self, status, found):
        self.begin(status, "application/json")
        self.wfile.write(json.dumps(found).encode())

    def begin(self, status, kind, allowed="default-src 'none'"):
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Security-Policy", allowed),
                            ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"),
                            ("Referrer-Policy", "no-referrer"),
                            ("Cross-Origin-Resource-Policy", "same-origin")):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *message):
        """Nothing is printed for a request."""


# ---- The command ---------------------------------------------------------------------------------

def run(args):
    if not os.path.isdir(args.out):
        raise ValueError(f"{args.out}: no such folder; python world.py begins a run")
    if args.report or args.pictures:
        if args.report:
            report(args.out)
        if args.pictures:
            pictures(args.out, args.pictures)
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
