"""1. The crawl becomes clean text.

    python data.py                                  the default input: the island's crawl
    python data.py CRAWL.warc.gz MORE.wet.gz FOLDER pages.jsonl notes.txt --language en,de
    python data.py CRAWL.warc.gz --explain URL      why one page is kept or dropped
    python data.py CRAWL.warc.gz --set gopher_min_words=20 --set c4=off --rejects rejects.jsonl

Most of the web is menus, spam, lists and copies. A model learns whatever it reads, so all of that
has to go first. The recipe is FineWeb's (arXiv 2406.17557). Its authors trained small models with
and without a rule to see what helps, and kept 15 trillion tokens of 96 crawls of the web.

Writes out/docs/train-*.jsonl.gz, val-*.jsonl.gz (lines {"id", "url", "text", "language",
"language_score"}) and stats.json. 8,600 small pages take 8 s on two cores (Zen 5), 343 real ones of
150 KB 2 s; a worker needs at most 600 MB. Reading order: `life_of` (one page), `clean_crawl` (all),
then crawl/, where the stages are. Left out: C4's list of bad words, duplicates across runs,
JavaScript, learned quality classifiers.
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import (compiling, duration, locked, map_in_order, print_settings, run_command, share,
                    show_line, staged, write_file)

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections import Counter

import numpy as np

# c4, fineweb, gopher_quality, url_rule, signature and read_documents are for whoever imports data.
from crawl.duplicates import find_duplicates, match_curve, near_duplicates, page_keys, signature
from crawl.html import extract_text
from crawl.language import identify_language
from crawl.rules import (FAILS, c4, c4_lines, fineweb, first_failure, gopher_quality,
                         gopher_repetition, load_blocklist, mask_pii, url_rule)
from crawl.settings import RULES, read_settings, spell_out
from crawl.warc import Page, input_files, open_page, read_documents, read_files, warn
from kernels.hashing import hash_text

BATCH_BYTES, BATCH_PAGES = 1 << 20, 64  # raw pages handed to a worker at once
SHARD_CHARS = 100_000_000  # characters of text in one output file
VAL_PARTS = 20  # one document in 20 is held out, chosen by a hash of its text

# ---- the life of one page ------------------------------------------------------------------------
# A page goes through these stages and leaves at the first rule that it breaks. On the right, the
# first page of the default crawl, which breaks none:
#
#     stage       what it does                                   .../0/word-games-from-thornbury
#     read        unpacks and decodes; drops what is no page     3,038 characters of HTML
#     url         drops adult, gambling and spam sites           0 words of the URL are on the lists
#     extract     finds the main text; boilerplate goes          1,820 characters
#     language    drops what is not English (function words)     en, score 0.98 > 0.65
#     repetition  drops lines and phrases said over and over     repeated 5-grams: 0.05 < 0.15
#     quality     drops what is too short, or hardly words       365 words >= 50, ...
#     c4          bad lines go; drops code, filler, fragments    38 sentences >= 5; 1,793 characters
#     fineweb     drops lists and tables                         0.93 of its lines end in . ! ?
#     pii         masks e-mail addresses, telephone numbers      none here
#     exact       drops the second page of a URL or a text       needs the keys of all pages
#     minhash     drops what is nearly the same as another       needs the keys of all pages
#
# Cheap stages come early: a URL costs microseconds, finding the main text milliseconds. Repetition
# before quality is FineWeb's order. The last two stages compare pages, so they wait for all.
STAGES = "read url extract language repetition quality c4 fineweb pii exact minhash".split()


def life_of(page, settings, blocklist=((), ())):
    """Takes a page through the stages up to pii: yields (stage, checks, text after the stage).

    A check is (rule, value, sign, limit): ("short_doc", 17, "<", 50) fails, since 17 < 50. At a
    failure clean_page stops, and explain goes on. FineWeb masks personal data last; here it comes
    before the duplicates, so that copies which differ only in an e-mail address are found."""
    if reason := open_page(page):
        yield "read", [(reason, 1, ">", 0)], ""  # a check that fails; there is nothing to look at
        return
    yield "read", (), page.text
    yield "url", checks_of(settings, "url", page.url, blocklist), page.text
    text = main_text(page)
    yield "extract", [("empty", len(text), "<", 1)], text
    page.language, page.language_score = identify_language(text)
    yield "language", checks_of(settings, "language", page.language, page.language_score), text
    yield "repetition", checks_of(settings, "gopher_repetition", text), text
    yield "quality", checks_of(settings, "gopher_quality", text), text
    # C4 and the masking change the text; the other rules only look at it.
    checks = ()
    if settings["c4"]:
        text, checks = c4_lines(text, **settings["c4"])
    yield "c4", checks, text
    yield "fineweb", checks_of(settings, "fineweb", text), text
    if settings["pii"]:
        text = mask_pii(text, **settings["pii"])
    yield "pii", (), text


def main_text(page):
    """All of a text file; of HTML what crawl/html.py finds (it scores a small page by hand). Lone
    surrogates, which no file can hold, become "?"."""
    text = page.text if page.kind == "text" else extract_text(page.html)
    return text.encode("utf-8", "replace").decode().strip()


def checks_of(settings, name, *arguments):
    """The checks of a rule with its thresholds; none if the rule is off."""
    return RULES[name].checks(*arguments, **settings[name]) if settings[name] else ()


def clean_page(page, settings, blocklist=((), ())):
    """Takes a page through the stages. At the first check that fails it stays as it was before; if
    none fails, it gets the keys by which its duplicates will be found."""
    for stage, checks, text in life_of(page, settings, blocklist):
        if reason := first_failure(checks):
            page.dropped = stage, reason
            break
        page.text, page.characters[stage] = text, len(text)
    else:
        page.keys = page_keys(page.url, page.text, settings)
        page.id = page.id or f"{hash_text(page.text):016x}"
    page.html = ""  # need not travel to the parent
    return page


# ---- the life of a crawl -------------------------------------------------------------------------
# The parent reads raw pages, workers clean them in batches, and the parent looks for duplicates. A
# crawl does not fit into memory, so there are two passes:
#
#     files -> pages -> clean_page -> pages that passed -> a temporary file
#                                          keys -> memory -> which pages are duplicates?
#     temporary file -> all but the duplicates -> shards
#
# Pages stay in order, so the number of workers changes nothing. Whether a document is held out
# depends on its text alone: a later, larger crawl never trains on it.

def clean_crawl(files, out, settings, blocklist=None, workers=None, rejects=None):
    """The whole pipeline: files -> shards and stats.json in `out`; returns what is in stats.json.

    New shards replace all old ones. If no page is kept, that is an error, and the old ones stay.
    blocklist: a folder of UT1 lists; rejects: a text file that gets every dropped page."""
    funnel, damage = Funnel(rejects), []
    load_blocklist(blocklist)  # an error in it ends the run now
    with compiling():  # once, before every worker would do it
        hash_text("any text")
        gopher_repetition("any text")
        near_duplicates(["any text of five words or more"])
    with (locked(out, "data.py"), staged(out, ["train-*.jsonl.gz", "val-*.jsonl.gz"]) as staging,
          tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", dir=out) as waiting):
        jobs = ((batch, settings, blocklist) for batch in batches(read_files(files, damage.append)))
        cleaned = map_in_order(clean_batch, jobs, workers)
        keys = clean_pages(cleaned, waiting, funnel, sum(map(os.path.getsize, files)))
        waiting.seek(0)
        documents = write_kept(waiting, find_duplicates(keys), staging, funnel)
        for line in funnel.table():
            show_line(line)
        for message in damage[:20]:  # stats.json has 1,000
            warn(message)
        if not documents.total():
            raise ValueError(f"{', '.join(files[:3])}: no page was kept; nothing was written")
        stats = {"documents": documents, "stages": funnel.stages, "n_damaged": len(damage),
                 "damaged": damage[:1000], "settings": spell_out(settings)}
        with open(os.path.join(staging, "stats.json"), "w", encoding="utf-8") as file:
            json.dump(stats, file, indent=1)
    return stats


def batches(pages):
    """Pages -> lists of pages for the workers. To hand over a small page alone costs as much as to
    clean it; with a list of large ones, the other workers would wait at the end."""
    batch, n_bytes = [], 0
    for page in pages:
        batch.append(page)
        n_bytes += len(page.body)
        if len(batch) >= BATCH_PAGES or n_bytes >= BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def clean_batch(pages, settings, blocklist):
    """What a worker does. load_blocklist reads the files once a process."""
    lists = load_blocklist(blocklist)
    return [clean_page(page, settings, lists) for page in pages]


def clean_pages(cleaned, waiting, funnel, n_bytes):
    """First pass: counts the cleaned pages and writes those that passed to `waiting`. Returns their
    keys, (N, 2 + bands) uint64: 128 bytes a page, so ten million pages take 1.3 GB (a list of
    arrays would take twice as much). n_bytes: the size of all input, for the time left."""
    keys, width = bytearray(), 1
    start = shown_at = time.perf_counter()
    for pages in cleaned:
        for page in pages:
            record = page.record()
            funnel.count(record, page.characters, page.dropped)
            if not page.dropped:
                waiting.write(to_json(record))
                keys += page.keys.tobytes()
                width = len(page.keys)
        now, n_pages = time.perf_counter(), funnel.stages["read"]["in"]
        if now - shown_at > (1 if sys.stdout.isatty() else 10):
            # (now - start) seconds so far for `done` bytes; the other bytes take as long each.
            left = (now - start) * (n_bytes - pages[-1].done) / max(pages[-1].done, 1)
            show_line(f"{n_pages:,} pages | {funnel.stages['pii']['kept']:,} good before duplicates"
                      f" | {n_pages / (now - start):,.0f} pages/s | {duration(left)} left", False)
            shown_at = now
    return np.frombuffer(keys, np.uint64).reshape(-1, width)


def write_kept(waiting, found, folder, funnel):
    """Second pass: copies the lines of `waiting` into shards, except duplicates. Returns the number
    of documents of each side. found: for each line () or its stage and reason, such as ("minhash",
    "near_duplicate")."""
    documents, characters, numbers = Counter(train=0, val=0), Counter(), Counter()
    shards = {side: open_shard(folder, side, 0) for side in documents}
    stages = STAGES[STAGES.index("exact"):]  # of this pass
    for line, dropped in zip(waiting, found):
        record = json.loads(line)
        n = len(record["text"])
        passed = stages[:stages.index(dropped[0])] if dropped else stages
        funnel.count(record, dict.fromkeys(passed, n), dropped)
        if not dropped:
            side = "train" if share(record["text"], VAL_PARTS) else "val"
            if characters[side] >= SHARD_CHARS:  # a document filled the shard
                shards[side].close()
                numbers[side] += 1
                shards[side], characters[side] = open_shard(folder, side, numbers[side]), 0
            shards[side].write(line.encode("utf-8", "replace"))
            documents[side] += 1
            characters[side] += n
    for file in shards.values():
        file.close()
    return documents


# ---- what is written and shown (skip at first) ---------------------------------------------------

def open_shard(folder, side, number):
    """A gzip file for documents. It stores no time, so the same documents give the same bytes."""
    path = os.path.join(folder, f"{side}-{number:05d}.jsonl.gz")
    return gzip.GzipFile(path, "wb", compresslevel=6, mtime=0)


class Funnel:
    """What came in and stayed at each stage, and why the rest was dropped:

        stage        in    kept  dropped  characters  reasons
        quality   7,935   7,704      231  13,329,192  below_alpha 130, short_doc 90, ..."""

    def __init__(self, rejects=None):
        self.rejects = rejects
        self.stages = {stage: {"in": 0, "kept": 0, "characters": 0, "reasons": Counter()}
                       for stage in STAGES}

    def count(self, record, characters, dropped):
        """Adds a page; a dropped one also to the rejects. characters: {stage that it passed: length
        of its text after it}; dropped: () or (stage, reason)."""
        for stage, n in characters.items():
            row = self.stages[stage]
            row["in"] += 1
            row["kept"] += 1
            row["characters"] += n
        if dropped:
            stage, reason = dropped
            self.stages[stage]["in"] += 1
            self.stages[stage]["reasons"][reason] += 1
            if self.rejects:
                self.rejects.write(to_json({**record, "stage": stage, "reason": reason}))

    def table(self):
        """Yields the lines of the table above, with a head."""
        yield f"{'stage':11}{'in':>11}{'kept':>11}{'dropped':>11}{'characters':>16}  reasons"
        for stage, row in self.stages.items():
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in row["reasons"].most_common())
            yield (f"{stage:11}{row['in']:11,}{row['kept']:11,}{row['in'] - row['kept']:11,}"
                   f"{row['characters']:16,}  {reasons}")


def to_json(value):
    """One line of JSON; letters as they are, not as \\u escapes."""
    return json.dumps(value, ensure_ascii=False) + "\n"


# ---- one page explained --------------------------------------------------------------------------

def find_page(name, inputs):
    """The page that --explain names: standard input ("-"), a file, or a URL in the inputs."""
    if name == "-":
        body = sys.stdin.buffer.read()
        return Page("html" if body.lstrip().startswith(b"<") else "text", body)
    is_file = os.path.isfile(name)
    for page in read_files(input_files([name] if is_file else inputs), warn):
        if is_file or page.url == name:
            return page
    raise ValueError(f"--explain {name}: no file of that name, no such URL in the inputs")


def explain(page, settings, blocklist=None):
    """Prints every rule's value beside its limit, also after a failure, and the verdict:

        quality    short_doc                        17 < 50       fails
        quality    long_doc                         17 > 100000
        verdict: dropped at quality: short_doc"""
    verdict = ""
    print(f"{'stage':10} {'rule':22} {'value':>12} fails if")
    for stage, checks, _ in life_of(page, settings, load_blocklist(blocklist)):
        for rule, value, sign, limit in checks:
            fails = "fails" if FAILS[sign](value, limit) else ""
            verdict = verdict or (fails and f"dropped at {stage}: {rule}")
            value = f"{value:,.4g}" if isinstance(value, float) else str(value)
            print(f"{stage:10} {rule:22} {value:>12} {sign} {limit!s:8} {fails}".rstrip())
    print(f"verdict: {verdict or 'kept, unless a duplicate'}")


# ---- the command ---------------------------------------------------------------------------------

def extract_batch(pages):
    """JSON lines {"url", "text"}: the main text of each page, whatever its language and quality."""
    return "".join(to_json({"url": page.url or None, "text": main_text(page)})
                   for page in pages if open_page(page) is None).encode("utf-8", "replace")


def only_extract(files, out, workers):
    """--only extract: all pages, to score extraction by; to `out` if that is a .jsonl file."""
    path = out if out.endswith(".jsonl") else os.path.join(out, "extracted.jsonl")
    jobs = ((batch,) for batch in batches(read_files(files, warn)))
    write_file(path, lambda file: file.writelines(map_in_order(extract_batch, jobs, workers)))
    print(f"wrote the extracted pages to {path}")


def run(args):
    settings, _ = read_settings([f"language_languages={args.language}", *args.set])
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: there must be at least one")
    print_settings("data.py", vars(args) | {"set": args.set or None})
    if args.explain:
        return explain(find_page(args.explain, args.inputs), settings, args.blocklist)
    files = input_files(args.inputs)
    if args.only:
        return only_extract(files, args.out, args.workers)
    if settings["minhash"]:
        print(match_curve(**settings["minhash"]))
    start = time.perf_counter()
    with open(args.rejects or os.devnull, "w", encoding="utf-8", errors="replace") as rejects:
        stats = clean_crawl(files, args.out, settings, args.blocklist, args.workers, rejects)
    n, speed = stats["documents"], stats["stages"]["read"]["in"] / (time.perf_counter() - start)
    print(f"wrote {n['train']:,} documents to train on and {n['val']:,} to validate to {args.out} "
          f"({speed:,.0f} pages/s); next: python bpe.py")


def main(argv=None):
    settings, names = read_settings()
    names = " ".join(f"{name}={settings[rule][key]}" for name, (rule, key) in names.items())
    parser = argparse.ArgumentParser(prog="data.py", description="The crawl becomes clean text.",
                                     epilog="settings: " + names)
    add = parser.add_argument
    add("inputs", nargs="*", default=["out/world/crawl.warc.gz"], help="files and folders to read")
    add("--out", default="out/docs", help="folder for the documents (%(default)s)")
    add("--language", default="en", help="languages to keep: en,de or any (%(default)s)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a threshold, or RULE=off")
    add("--blocklist", metavar="DIR", help="UT1 lists: DIR/CATEGORY/domains, DIR/CATEGORY/urls")
    add("--explain", metavar="PAGE", help="an HTML file, a URL of the inputs, or - for stdin")
    add("--rejects", metavar="FILE", help="keep every dropped page there with its reason")
    add("--only", choices=["extract"], help="stop after extraction: lines {url, text}")
    add("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
