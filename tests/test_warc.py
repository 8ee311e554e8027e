"""crawl/warc.py: what lies in a file is found, and damage costs the record it stands in."""
import gzip
import json
import os
import random
import re
import zlib

import pytest

from crawl import html, warc
from pages import PAGES, PROSE, http, read, record, write


def last_digits(found):
    return "".join(d["url"][-1] for d in found)


# ---- files ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, pack", [
    ("crawl.warc", b"".join),
    ("crawl.warc.gz", lambda records: b"".join(map(gzip.compress, records))),
    ("one.warc.gz", lambda records: gzip.compress(b"".join(records))),
])
def test_reads_warc(tmp_path, name, pack):
    """Plain, as many gzip members or as one: the same five pages, without requests and the like."""
    others = [record(b"GET /", kind="request"),
              record(b"a: b", kind="warcinfo", content_type="x/y")]
    found, damage = read(write(tmp_path, pack(others + PAGES), name))
    assert [d["url"] for d in found] == [f"http://a.example/{i}" for i in range(5)]
    assert [d["html"] for d in found] == [f"<p>page {i}</p>" for i in range(5)] and not damage


def test_reads_the_line_ends_of_unix(tmp_path):
    """Some tools end a line with a line feed alone."""
    block = http("<p>page").replace(b"\r\n", b"\n")
    content = (record(block) + record(block)).replace(b"\r\n", b"\n")
    found, damage = read(write(tmp_path, content))
    assert [d["html"] for d in found] == ["<p>page"] * 2 and not damage


def test_records_may_lie_across_any_piece_boundary(tmp_path, monkeypatch):
    """Cut into pieces of 1 to 50 bytes, or streamed as one long gzip member: the same pages."""
    content = b"".join(PAGES)
    path = write(tmp_path, content)
    monkeypatch.setattr(warc, "MAX_HELD", 300)
    assert last_digits(read(write(tmp_path, gzip.compress(content), "x.warc.gz"))[0]) == "01234"
    for size in (1, 2, 3, 7, 50):
        monkeypatch.setattr(warc, "unpack_members", lambda path, file, report, size=size: (
            content[at : at + size] for at in range(0, len(content), size)))
        assert last_digits(read(path)[0]) == "01234"


def test_reads_wet_html_json_lines_text_and_folders(tmp_path):
    """A folder is read in the order of names; upper case in a name is no obstacle."""
    write(tmp_path, record("Grüße".encode(), kind="conversion", content_type="text/plain"), "a.WET")
    write(tmp_path, b"<p>x</p>", "b.html")
    lines = (b'{"text": "one", "url": "http://u"}\n\nnot json\n{"txt": 1}\n{"html": "<p>two"}\n'
             b'{"html": null, "text": "three"}\n')
    write(tmp_path, gzip.compress(lines), "c.jsonl.gz")
    write(tmp_path, "<no html, só text>".encode(), "d.TXT")
    write(tmp_path, b"\x00", "picture.png")
    found, damage = read(str(tmp_path))
    assert [d.get("text", d.get("html")) for d in found] == [
        "Grüße", "<p>x</p>", "one", "<p>two", "three", "<no html, só text>"]
    assert found[2]["url"] == "http://u"
    assert [re.search("line [0-9]", message)[0] for message in damage] == ["line 3", "line 4"]


@pytest.mark.parametrize("content", [
    b"PAR1\x15\x04\x15" + bytes(100) + b"PAR1", b'[{"text": "a"},\n{"text": "b"}]', b'["a", "b"]',
    b"", b'{"messages": []}\n', gzip.compress(b""), b'{\n "text": "pretty printed"\n}'])
def test_files_without_pages_have_none(tmp_path, content):
    """A table (Parquet), a JSON array, other JSON lines, nothing: no page, and a word about it."""
    found, damage = read(write(tmp_path, content, "pages.jsonl"))
    assert not found and (damage or len(content) < 30)


def test_a_name_must_say_what_a_file_holds(tmp_path):
    """A file or folder without any known ending is named in the error."""
    for path in (write(tmp_path, b"x", "picture.png"), str(tmp_path)):
        with pytest.raises(ValueError, match=re.escape(path)):
            read(path)


def test_real_crawl_files(real):
    """Common Crawl's own record set has one page in it; the annotated file has 343."""
    found, damage = read(real("whirlwind.warc.gz"))
    assert [d["url"] for d in found] == ["https://an.wikipedia.org/wiki/Escopete"] and not damage
    assert html.extract_text(found[0]["html"]).startswith("Escopete\n\nIste articlo ye en proceso")
    found, damage = read(real("real_pages.warc.gz"))
    assert len(found) == 343 and not damage


# ---- damage --------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad", [
    record(http("<p>short</p>"), "http://a.example/bad", length=100),
    record(http("<p>long long</p>"), "http://a.example/bad", length=30),
    b"WARC/1.0\r\nContent-Length: x\r\n\r\n", b"garbage\r\n", record(b"", length=10**12),
    PAGES[0][:60]])
def test_damage_costs_one_record_and_names_its_offset(tmp_path, bad):
    """A record with a wrong length, without a header or cut off is reported; the next is found."""
    found, damage = read(write(tmp_path, PAGES[0] + bad + PAGES[1] + PAGES[2]))
    assert last_digits(found) == "012"
    assert len(damage) == 1 and f"byte {len(PAGES[0])} " in damage[0], damage


@pytest.mark.parametrize("at", [15, 40, -6])
def test_a_damaged_gzip_member_costs_itself(tmp_path, at):
    """Damage in the data and in the checksum of the second of five members."""
    members = [gzip.compress(page) for page in PAGES]
    broken = bytearray(members[1])
    broken[at] ^= 0xFF
    path = write(tmp_path, b"".join([members[0], broken, *members[2:]]), "x.warc.gz")
    found, damage = read(path)
    assert last_digits(found) == "0234"
    assert len(damage) == 1 and f"byte {len(members[0])}:" in damage[0]


@pytest.mark.parametrize("content, name", [
    (b"".join(map(gzip.compress, PAGES))[:-10], "x.warc.gz"), (b"".join(PAGES)[:-20], "x.warc"),
    (gzip.compress(b"".join(b'{"text": "%d%b"}\n' % (i, PROSE.encode()) for i in range(5)))[:-10],
     "x.jsonl.gz")])
def test_a_truncated_file_gives_what_is_whole(tmp_path, content, name):
    """Of a file cut off in its last record or line the first four stay; there is one message."""
    found, damage = read(write(tmp_path, content, name))
    assert len(found) == 4 and len(damage) == 1
    assert "the file ends inside it" in damage[0] or name == "x.warc"


@pytest.mark.parametrize("n", [20, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("pack", [
    b"".join, lambda pages: b"".join(map(gzip.compress, pages)),
    lambda pages: gzip.compress(b"".join(pages))], ids=["plain", "members", "one"])
def test_truncated_and_flipped_files(tmp_path, pack, n):
    """Cut off anywhere, one bit flipped or random bytes over a part: no exception, and a packed
    page that comes out is as it went in."""
    whole = [f"<p>{PROSE} {i}</p>" for i in range(5)]
    content = pack([record(http(page)) for page in whole])
    numbers = random.Random(n)
    for i in range(n):
        at, junk = numbers.randrange(len(content)), numbers.randbytes(numbers.randrange(40))
        flipped = bytes([content[at] ^ 1 << numbers.randrange(8)])
        for broken in (content[: len(content) * i // n], content[:at] + flipped + content[at + 1 :],
                       content[:at] + junk + content[at + len(junk) :]):
            found, _ = read(write(tmp_path, broken, "x.warc.gz"))
            assert len(found) <= 5
            if content[:2] == b"\x1f\x8b":
                assert {d["html"] for d in found} <= set(whole)


PARTS = [b"WARC/1.0\r\n", b"WARC/1.1\n", b"\r\n\r\n", b"\n", b"Content-Length: ", b"7", b"-1",
         b"99999999999", b"WARC-Type: response\r\n", b"Content-Type: application/http\r\n",
         b"WARC-Target-URI: <http://a>\r\n", b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked",
         b"Content-Encoding: gzip\r\n", b"Content-Type: text/html; charset=", b"utf-16", b"utf-7",
         b"cp037", b"\xff\xfe", b"5\r\n", b"\x1f\x8b\x08\x00", b"\x00", b"<p>x</p>", b"{", b"[",
         b"}", b'{"text": "a"}\n', b'{"html": [1]}\n', b'"url": 1e999', b'"\\ud800"', b"[" * 2000,
         b"\x80", zlib.compress(b"<p>x"), gzip.compress(b"<p>x"), gzip.compress(PAGES[0]), *PAGES]


@pytest.mark.parametrize("n", [500, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["x.warc", "x.jsonl", "x.html", "x.txt"])
def test_no_content_crashes_the_readers(tmp_path, name, n):
    """Fuzzing: files put together at random from pieces that mean something to the readers (and
    whole random bytes). A document or a message, never an exception. Case i has the seed i."""
    for seed in range(n):
        numbers = random.Random(seed)
        content = b"".join(numbers.choices(PARTS, k=numbers.randrange(12)))
        if numbers.random() < 0.3:
            content = gzip.compress(content)[: numbers.randrange(1, 200)]
        try:
            for document in read(write(tmp_path, content, name))[0]:
                assert isinstance(document.get("html", document.get("text")), str)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {content!r}") from error


def test_a_url_brings_no_header_and_no_control_characters(tmp_path):
    """U+2028 ends a line for Python, but not in WARC: the type that the URL brings is no header."""
    url = "http://a.example/\u2028WARC-Type: request\x1b]0;x\x07\x9b"
    found, damage = read(write(tmp_path, record(http("<p>x</p>"), url)))
    assert found[0]["url"] == "http://a.example/\u2028WARC-Type: request]0;x" and not damage


# ---- pages ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("headers, pack", [
    ("Transfer-Encoding: chunked",
     lambda b: b"5\r\n%b\r\n%x;x=y\r\n%b\r\n0\r\n\r\n" % (b[:5], len(b[5:]), b[5:])),
    ("Transfer-Encoding: chunked", lambda b: b),  # the crawler undid it and kept the header
    ("Content-Encoding: gzip", gzip.compress),
    ("Content-Encoding: gzip", lambda b: b),
    ("Content-Encoding: deflate", zlib.compress),
    ("Content-Encoding: deflate", lambda b: zlib.compress(b)[2:-4]),
])
def test_bodies_are_unwrapped(tmp_path, headers, pack):
    """Chunked, gzip, deflate with and without its header, and what only claims to be."""
    body = "<p>Grüße, a page about boats</p>".encode()
    block = http(pack(body), f"Content-Type: text/html\r\n{headers}")
    assert read(write(tmp_path, record(block)))[0][0]["html"] == body.decode()


@pytest.mark.parametrize("body, headers, reason", [
    (b"\x0b\x02\x80", "Content-Type: text/html\r\nContent-Encoding: br", "unreadable_encoding"),
    ("%PDF", "Content-Type: application/pdf", "not_html"),
    ("<!doctype html><p>x", "Server: x", None),  # no type: the body says it
    ("plain", "Server: x", "not_html")])
def test_what_is_no_page_has_a_reason(body, headers, reason):
    """An encoding we cannot undo, PDF, plain text; the body speaks where the headers are silent."""
    assert warc.open_page(warc.Page("http", http(body, headers))) == reason


@pytest.mark.parametrize("body, content_type", [
    ("Čapek €".encode("utf-8"), ""),
    (b"\xef\xbb\xbf" + "Čapek €".encode(), "text/html; charset=latin-1"),
    ("Čapek €".encode("utf-16"), ""),
    ("Čapek €".encode("cp1250"), "text/html; charset=windows-1250"),
    (b"<meta charset='windows-1250'>" + "Čapek €".encode("cp1250"), "text/html"),
    (b'<meta http-equiv=x content="text/html; charset=windows-1250">' + "Čapek €".encode("cp1250"),
     ""),
    ("Čapek €".encode(), "text/html; charset=iso-8859-1"),  # mislabelled
    ("Čapek €".encode(), "text/html; charset=punycode"),  # a codec, no charset
    ("Čapek €".encode(), "text/html; charset=utf-99"),
])
def test_charsets(body, content_type):
    """Byte order mark, header, <meta>, wrong labels: the same text comes out."""
    assert warc.decode_html(body, content_type).endswith("Čapek €")
    assert warc.decode_html(b"a\xffb") == "a\ufffdb"
    assert warc.decode_html("€".encode("cp1252"), "text/html; charset=ISO-8859-1") == "€"


def test_texts_have_no_control_characters(tmp_path):
    """ESC and U+009B steer a terminal: they become spaces; every kind of line end becomes \\n."""
    text = "a\x1b[2Jb\x9b1mc\x07\r\nd\re\tf\x7f"
    path = write(tmp_path, json.dumps({"text": text}).encode(), "x.jsonl")
    assert read(path)[0][0]["text"] == "a [2Jb 1mc \nd\ne\tf "
