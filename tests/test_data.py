"""data.py: from files to shards, whatever the number of workers; and nothing is lost on the way."""
import gzip
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import data
from crawl import warc
from crawl.warc import Page
from pages import GERMAN, PAGES, PROSE, http, lines_of, record, write

ROOT = os.path.dirname(os.path.abspath(data.__file__))


def crawl(n):
    """n small good pages from 90 addresses, and copies, German and adult ones among them."""
    rng = np.random.default_rng(0)
    words = PROSE.replace(".", "").split()
    for i in range(n):
        sentences = [" ".join(rng.choice(words, 12)) + "." for _ in range(12)]
        page = f"<article><h1>Page {i}</h1><p>{' '.join(sentences)}</p></article>"
        yield record(http(page), f"http://a.example/{i % 90}")
        if i % 10 == 0:
            yield record(http(f"<p>{' '.join(sentences)}</p>"), f"http://b.example/{i}")
            yield record(http(f"<p>{' '.join(sentences[1:])}</p>"), f"http://c.example/{i}")
            yield record(http(f"<p>{GERMAN * 9}</p>"), f"http://d.example/xxx/{i}")
            yield record(http(f"<p>{GERMAN * 9}</p>"), f"http://d.example/{i}")


def clean(path, out, *changes, **how):
    """stats.json of a run in this process."""
    settings = data.read_settings(changes)[0]
    return data.clean_crawl([path], str(out), settings, **{"workers": 1} | how)


def files_in(folder):
    """{name: content} of what a run leaves; without the lock file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.name not in (".lock", ".new")}


def texts_of(path):
    return [json.loads(line)["text"] for line in lines_of(path)]


def json_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# ---- the pipeline --------------------------------------------------------------------------------

def test_result_does_not_depend_on_workers_or_batches(tmp_path, monkeypatch):
    """The same files, to the byte, for 1, 2 and 3 workers; and the table adds up: every page that
    comes in is in a shard or among the rejects, with its reason."""
    path = write(tmp_path, b"".join(map(gzip.compress, crawl(100))) + b"\x1f\x8b broken",
                 "x.warc.gz")
    results = []
    for workers, batch in ((1, 64), (2, 3), (3, 1)):
        monkeypatch.setattr(data, "BATCH_PAGES", batch)
        out, rejects = tmp_path / f"out{workers}", io.StringIO()
        stats = clean(path, out, workers=workers, rejects=rejects)
        results.append((files_in(out), rejects.getvalue()))
    assert results[0] == results[1] == results[2]
    counts = json.loads((out / "stats.json").read_text())["stages"]
    assert list(counts) == data.STAGES and stats["n_damaged"] == 1
    reasons = {reason: n for row in counts.values() for reason, n in row["reasons"].items()}
    assert [reasons[name] for name in ("hard_blacklisted", "language", "duplicate_url")] == [10] * 3
    assert reasons.get("duplicate_text", 0) + reasons["near_duplicate"] >= 10
    kept = counts["minhash"]["kept"]
    assert kept == sum(len(lines_of(path)) for path in out.glob("*.gz"))
    assert kept + len(results[0][1].splitlines()) == counts["read"]["in"]
    for before, row in zip(counts.values(), list(counts.values())[1:]):
        assert row["in"] == before["kept"] == row["kept"] + sum(row["reasons"].values())


def test_duplicates_are_looked_for_after_all_rules(tmp_path):
    """Of two copies the first is dropped by C4 for its bracket: the second stays, and an e-mail
    address that differs makes no difference."""
    good = PROSE + "Write to {} about it."
    path = write(tmp_path, json_lines({"text": PROSE + "\nif { that is a bracket"}, {"text": PROSE},
                                      {"text": good.format("a@b.cd")},
                                      {"text": good.format("e@f.gh")}), "x.jsonl")
    stats = clean(path, tmp_path / "o", "minhash=off")
    assert {stage: row["reasons"] for stage, row in stats["stages"].items() if row["reasons"]} == {
        "c4": {"curly_bracket": 1}, "exact": {"duplicate_text": 1}}
    assert stats["documents"].total() == 2


@pytest.mark.parametrize("body, changes, dropped", [
    (PROSE, (), ()), (PROSE + "\nif { that", (), ("c4", "curly_bracket")),
    ("word " * 30, (), ("url", "hard_blacklisted")),
    ("word " * 30, [f"{rule}=off" for rule in data.RULES], ())])
def test_the_life_of_one_page(body, changes, dropped):
    """A good page keeps 128 bytes of keys and no bytes of the file; a rejected page keeps the text
    it had; with all rules off a page passes that breaks several."""
    url = "http://a.example/xxx" if "word" in body else ""
    page = data.clean_page(Page("text", body.encode(), url), data.read_settings(changes)[0])
    assert page.dropped == dropped and page.text.strip() == body.strip()
    assert not page.body and not page.html
    assert dropped or page.keys.nbytes == (16 if changes else 128)


def test_a_document_never_changes_sides(tmp_path):
    """Whatever else is in the crawl, the same documents are held out, about one in 20."""
    texts = [f"{PROSE}Number {i} of these pages." for i in range(300)]
    sides = []
    for chosen in (texts, texts[150:]):
        path = write(tmp_path, json_lines(*({"text": text} for text in chosen)), "x.jsonl")
        clean(path, tmp_path / "o", "minhash=off")
        sides.append(set(texts_of(tmp_path / "o" / "val-00000.jsonl.gz")))
    assert 3 <= len(sides[0]) <= 35 and sides[1] == sides[0] & set(texts[150:])


def peak_mb(code, *arguments, **more):
    """Runs code in a process of its own -> the most memory that this one process had, in MB."""
    code = f"import sys, data\n{code}\nprint(open('/proc/self/status').read())"
    shown = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True,
                           stdout=subprocess.PIPE, **more).stdout
    return int(re.search(rb"VmHWM:\s*(\d+) kB", shown)[1]) // 1024


@pytest.mark.long
@pytest.mark.parametrize("kind, part", [("text", "ab "), ("text", "漢字。"), ("text", "the of and\n"),
                                        ("html", "<p>x"), ("html", "<li><a href=x>")])
def test_memory_of_a_worker_on_the_worst_pages(kind, part):
    """8 MB of short words or lines, 2 MB of tags: 600 MB of memory at most."""
    size = warc.MAX_TEXT if kind == "text" else warc.MAX_PAGE
    content = (part * (size // len(part.encode()))).encode()
    code = ("changes = ['language_languages=any', 'language_min_score=-1']\n"
            "page = data.Page(sys.argv[1], sys.stdin.buffer.read())\n"
            "data.clean_page(page, data.read_settings(changes)[0])")
    assert peak_mb(code, kind, input=content) <= 620


def write_crawl(path, n_bytes):
    """Different good pages of 80 KB, as on the web mostly scripts, until the file has n_bytes."""
    numbers, words = random.Random(0), PROSE.replace(".", "").split()
    paragraphs = [f"<p>{' '.join(numbers.choices(words, k=50))}.\n" for _ in range(1000)]
    with open(path, "wb") as file:
        while file.tell() < n_bytes:
            page = "".join(numbers.choices(paragraphs, k=12))
            page += f"<script>{numbers.randbytes(39_000).hex()}</script>"
            file.write(record(http(page), f"http://a.example/{file.tell()}"))


@pytest.mark.parametrize("n_mb", [48, pytest.param(2048, marks=pytest.mark.long)])
def test_memory_of_the_parent_is_flat(tmp_path, n_mb):
    """A crawl of 48 MB (long form: 2 GB) takes at most 24 MB more than one of 12 MB: 128 bytes for
    each good page, and the batches under way."""
    peaks = []
    for size in (1, 12, n_mb):  # the first one may have to compile, and that takes memory too
        write_crawl(tmp_path / "x.warc", size << 20)
        peaks.append(peak_mb("data.main([sys.argv[1], '--out', sys.argv[2], '--workers', '2'])",
                             tmp_path / "x.warc", tmp_path / "docs"))
    os.remove(tmp_path / "x.warc")
    stages = json.loads((tmp_path / "docs" / "stats.json").read_text())["stages"]
    assert stages["minhash"]["kept"] > 0.95 * stages["read"]["in"] > 11 * n_mb
    print(f"{n_mb} MB: {peaks} MB of memory")
    assert peaks[2] - peaks[1] <= 24, peaks


# ---- nothing is lost -----------------------------------------------------------------------------

@pytest.mark.parametrize("content", [b"PAR1" + bytes(99), b'[{"text": "a"}]', b"", b"{}\n",
                                     json_lines({"text": "too short"})])
def test_good_shards_are_never_replaced_by_nothing(tmp_path, command, capsys, content):
    """An input without a page, or without one that is kept, is an error; the old files stay."""
    out = tmp_path / "docs"
    assert command(data, write(tmp_path, b"".join(crawl(9))), "--out", out) == 0
    before = files_in(out)
    assert command(data, write(tmp_path, content, "pages.jsonl"), "--out", out) == 2
    assert "nothing was written" in capsys.readouterr().err.splitlines()[-1]
    assert files_in(out) == before


def test_new_shards_replace_all_old_ones(tmp_path, monkeypatch):
    """Shards of a longer run do not stay beside those of a shorter one; other files do."""
    out, path = tmp_path / "docs", write(tmp_path, b"".join(crawl(9)))
    monkeypatch.setattr(data, "SHARD_CHARS", 2500)
    clean(path, out)
    for name in sorted(files_in(out))[1:]:  # a shard ends with the document that fills it
        assert sum(map(len, texts_of(out / name)[:-1])) < 2500
    assert len(files_in(out)) > 4
    (out / "notes.txt").write_text("mine")
    monkeypatch.undo()
    clean(path, out)
    assert sorted(files_in(out)) == ["notes.txt", "stats.json", "train-00000.jsonl.gz",
                                     "val-00000.jsonl.gz"]


def test_ctrl_c_leaves_the_old_files(tmp_path):
    """SIGINT to the parent and its workers while pages are cleaned: one line, status 130."""
    out, path = tmp_path / "docs", write(tmp_path, b"".join(crawl(200)))  # several batches
    clean(path, out)
    before, fifo = files_in(out), str(tmp_path / "endless.jsonl")
    os.mkfifo(fifo)
    process = subprocess.Popen([sys.executable, "data.py", path, fifo, "--out", str(out)], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    while len(open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()) < 2:
        time.sleep(0.1)  # until the workers are there
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 130 and re.fullmatch("data.py: stopped.*\n", shown)
    assert files_in(out) == before


# ---- settings and commands -----------------------------------------------------------------------

def test_settings():
    """A threshold or a whole rule is set by name; anything else is refused with the reason."""
    chosen, names = data.read_settings(
        ["gopher_min_words=20", "c4=off", "gopher_dup_line_frac=off", "c4_policy=off"])
    assert chosen["gopher_quality"]["min_words"] == 20 and chosen["c4"] is None
    spelt_out = json.loads(json.dumps(data.spell_out(chosen), allow_nan=False))
    assert spelt_out["gopher_repetition"]["dup_line_frac"] == "off"
    assert (data.gopher_repetition("I am your father.\n" * 4, **chosen["gopher_repetition"])
            != "dup_line_frac")
    for wrong in ("gopher_min_word=20", "c4_policy=maybe", "gopher_min_words=x", "nothing",
                  "minhash_bands=off", "minhash_rows=0"):
        with pytest.raises(ValueError, match="--set (minhash_|" + wrong + ")"):
            data.read_settings([wrong])
    # each one can be set, by the name that help prints
    data.read_settings([f"{name}=off" for name, (rule, _) in names.items() if rule != "minhash"])


def test_command_line(tmp_path, capsys):
    """Settings first, table and next command last; rejects say where and why; --only extract."""
    path = write(tmp_path, b"".join(crawl(30)))
    out, rejects, extracted = (str(tmp_path / name) for name in ("docs", "r.jsonl", "e.jsonl"))
    assert data.main([path, "--out", out, "--workers", "1", "--rejects", rejects]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"data.py | inputs {path} | out {out} | language en")
    assert "0.80 92.4%" in "\n".join(shown) and shown[-1].endswith("next: python bpe.py")
    assert {"url", "text", "stage", "reason"} <= set(json.loads(open(rejects).readline()))
    assert data.main([path, "--only", "extract", "--out", extracted, "--workers", "1"]) == 0
    rows = [json.loads(line) for line in open(extracted)]
    assert len(rows) == 42 and set(rows[0]) == {"url", "text"}


@pytest.mark.parametrize("wrong", [["none"], ["crawl.warc", "--set", "x=1"],
                                   ["crawl.warc", "--workers", "0"],
                                   ["crawl.warc", "--explain", "http://no\x1b]0;x\x07"]])
def test_errors_are_one_line(tmp_path, capsys, monkeypatch, wrong):
    """A wrong input, setting or URL: one line that names it, without its control characters."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, b"".join(crawl(3)))
    assert data.main(wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith("data.py: ") and error.count("\n") == 1 and "\x1b" not in error


def test_explain(tmp_path, capsys):
    """The first failure is the verdict, and all rules that are on are shown."""
    path = write(tmp_path, b"".join(crawl(3)))
    assert data.main([path, "--explain", "http://d.example/0"]) == 0
    assert "verdict: dropped at language: language" in capsys.readouterr().out
    page = write(tmp_path, f"<p>{PROSE}".encode(), "p.html")
    assert data.main(["--explain", page, "--set", "c4=off"]) == 0
    shown = set(capsys.readouterr().out.split())
    assert {"kept,", "dup_para_frac", "duplicated_10_n_grams", "below_alpha", "line_punct_ratio"
            } <= shown and "too_few_sentences" not in shown


def test_control_characters_never_reach_the_terminal(tmp_path, capsys):
    """ESC and U+009B in texts, addresses, reasons and file names: not in --explain, not in the
    table, not in warnings, and not in the documents."""
    evil = "\x1b]0;title\x07 \x9b31m"
    rows = json_lines({"text": f"{PROSE}\nuses cookies {evil} now\nshort{evil}",
                       "url": f"http://a{evil}.example/"}) + b"{broken " + evil.encode() + b"\n"
    path, out = write(tmp_path, rows, "evil\x1b[2J.jsonl"), tmp_path / "docs"
    for flags in ([path, "--out", str(out), "--set", "gopher_repetition=off"], ["--explain", path]):
        assert data.main(flags) == 0
        shown = "".join(capsys.readouterr())
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown), shown
    document, = [json.loads(line) for path in out.glob("*.gz") for line in lines_of(path)]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", document["text"] + document["url"])
