"""1. The crawl becomes clean text.

    python data.py                                  the embedded world's crawl
    python data.py CRAWL.warc.gz MORE.wet.gz FOLDER pages.jsonl notes.txt --language en,de
    python data.py CRAWL.warc.gz --explain URL      why one page is kept or dropped
    python data.py CRAWL.warc.gz --set gopher_min_words=20 --set c4=off --rejects rejects.jsonl

Reads WARC and WET files, HTML, JSON lines and plain text; writes `out/docs/train-*.jsonl.gz`,
`val-*.jsonl.gz` (lines {"id", "url", "text", "language", "language_score"}) and `stats.json`.
A page passes these stages in this order and leaves at the first rule it breaks, with a reason:

    read > url > extract > language > repetition > quality > exact > minhash > c4 > fineweb > pii

Time on two cores (AMD EPYC, Zen 4): the default crawl's 10,500 small pages 10 s, the first run 3 s
more to compile; 343 real pages of 150 KB 2 s. Memory: under 350 MB a worker whatever the pages.
Sources: FineWeb (arXiv 2406.17557) for the recipe; Gopher (2112.11446, section A1.1) for
repetition and quality; C4 (1910.10683, section 2.2); RefinedWeb (2306.01116) for URLs and
duplicates; datatrove, the code FineWeb ran, where the papers are silent. Where code and paper
differ the paper's value stands here and a comment names both.
How to read: `page_checks` near the end is the whole story of one page in forty lines; each of its
stages is a section above it, in the same order. `run` is the story of a crawl.
Left out: C4's list of bad words, duplicates across runs, pages that exist only after JavaScript
has run, and learned quality classifiers (FineWeb-Edu).
"""

import argparse
import functools
import gzip
import html as html_entities
import ipaddress
import itertools
import json
import math
import operator
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
import zlib
from collections import Counter, defaultdict, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import regex
from numba import njit

CHUNK = 1 << 16  # bytes read or unpacked at once
MAX_HELD = 8 << 20  # a gzip member up to this size is checked whole before any of it is used
MAX_RECORD = 64 << 20  # bytes; longer records are skipped: nobody writes 64 MB of prose on a page
MAX_PAGE = 2 << 20  # bytes of a page after unpacking, the rest is cut off (Common Crawl: 1 to 5 MB)
MAX_TEXT = 8 << 20  # bytes of a plain text; these two bound a worker's memory
BATCH_BYTES, BATCH_PAGES = 1 << 20, 64  # raw pages handed to a worker at once
SHARD_CHARS = 100_000_000  # characters of text in one output file
VAL_FRACTION = 0.05  # of the documents, chosen by a hash of their text
MAX_WARNINGS = 20  # lines about damage that are shown; all are counted
READABLE = r"\.(warc|wet|html?|xhtml|jsonl|txt)(\.gz)?$"  # what is taken out of a folder

# --------------------------------------------------------------------------- 1. reading
# file -> pieces of bytes -> raw pages -> documents. The parent cuts files into raw pages, which is
# cheap; the workers open them (unpack, decode), which costs ten times more.


def read_documents(path, report=None):
    """Yields {"url", "id", and "html" or "text"} for each page of a file or folder, in order.

    Damage is skipped and told to `report` (default: a line on stderr); records that are no pages
    (requests, images) are passed over."""
    report = report or (lambda message: print(message, file=sys.stderr))
    for raw in read_files(input_files([path]), report):
        document, reason = open_document(raw)
        if reason is None:
            yield document


def input_files(paths):
    """Files as given, folders as the readable files in them, in a fixed order."""
    files = []
    for path in paths:
        if not os.path.exists(path):
            hint = "; `python world.py` makes the default input" if "world" in path else ""
            raise ValueError(f"no such file or folder: {path}{hint}")
        inside = [os.path.join(folder, name) for folder, _, names in sorted(os.walk(path))
                  for name in sorted(names) if re.search(READABLE, name)]
        files += inside if os.path.isdir(path) else [path]
    if not files:
        raise ValueError(f"{', '.join(paths)}: nothing there ends in .warc .wet .html .jsonl .txt")
    return files


def read_files(files, report):
    """The raw pages of all files, each with "done": the input bytes read so far."""
    before = 0
    for file in files:
        for raw in read_raw(file, report):
            yield {**raw, "done": before + raw["offset"]}
        before += os.path.getsize(file)


def raw_page(offset, kind, body, url=None, name=None, payload_type=""):
    """A page as it lies in the file: `body` is an HTTP answer ("http"), "html" or "text"."""
    return {"offset": offset, "kind": kind, "body": body, "url": url or None, "id": name or None,
            "type": payload_type}


def read_raw(path, report):
    """Yields the raw pages of one file; its first bytes say what it is, rather than its name."""
    name, pieces = path.removesuffix(".gz"), unpack_members(path, report)
    first = next(pieces, (0, 0, b""))
    pieces, is_text = itertools.chain([first], pieces), name.endswith(".txt")
    # Where the first member is damaged we try WARC, the format that can be read on behind damage.
    start = b"WARC/" if first[2] is None else first[2][:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"WARC/") or name.endswith((".warc", ".wet")):
        yield from read_warc(path, pieces, report)
    elif start.startswith(b"{") and not is_text:
        yield from read_json_lines(path, pieces, report)
    else:
        is_html = re.search(r"\.x?html?$", name) or (start.startswith(b"<") and not is_text)
        body = b""
        while len(body) <= MAX_TEXT and (piece := next(pieces, None)):
            body += piece[2] or b""
        yield raw_page(0, "html" if is_html else "text", body)


def read_json_lines(path, pieces, report):
    """One raw page for each line {"text" or "html", optionally "url", "id"}."""
    number, rest = 0, b""
    for offset, _, piece in itertools.chain(pieces, [(os.path.getsize(path), 0, b"\n")]):
        *lines, rest = [b""] if piece is None else (rest + piece).split(b"\n")
        rest = rest[:MAX_RECORD]  # a longer line is no JSON any more, and reported as that
        for number, line in enumerate(lines, number + 1):
            if not line.strip():
                continue
            try:
                page = json.loads(line)
                kind = "html" if "html" in page else "text"
                body = page[kind].encode("utf-8", "replace")
                url, name = (page.get(key) and str(page[key]) for key in ("url", "id"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                where = f"{path}: line {number} (near byte {offset})"
                report(f'{where} is not {{"text": ...}}; skipped')
            else:
                yield raw_page(offset, kind, body, url, name)


def unpack_members(path, report):
    """Yields (offset, step, bytes) pieces of a plain or gzip file; bytes is None at damage.

    `offset` is where the piece lies in the file, `step` how far that moves with each byte of it
    (1, or 0 when packed). A crawl's .warc.gz is a chain of gzip members, one for each record. A
    member up to MAX_HELD is handed on only once its checksum was right; a longer one (a whole file
    as one member) is streamed. After damage the search goes on at the next plausible member."""
    with open(path, "rb") as file:
        start, size = 0, os.path.getsize(path)
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            while piece := file.read(16 * CHUNK):
                yield file.tell() - len(piece), 1, piece
            return
        while start < size:
            file.seek(start)
            inflate, held, at = zlib.decompressobj(31), bytearray(), start
            try:
                while not inflate.eof:
                    packed = inflate.unconsumed_tail or file.read(CHUNK)
                    if not packed:
                        raise EOFError("the file ends inside it")
                    held += inflate.decompress(packed, 16 * CHUNK)
                    if len(held) > MAX_HELD:
                        yield at, 0, bytes(held)
                        held, at = bytearray(), file.tell()
            except (zlib.error, EOFError) as error:
                report(f"{path}: damaged gzip member at byte {start}: {error}; skipped")
                if isinstance(error, EOFError):
                    yield at, 0, bytes(held)  # what came before the cut is sound
                yield start, 0, None
                start = find_member(file, start + 1, size)
                continue
            if held:
                yield at, 0, bytes(held)
            end = file.tell() - len(inflate.unused_data)
            start = find_member(file, end, size)
            if start > end:
                report(f"{path}: {start - end} bytes at byte {end} are no gzip member; skipped")


def find_member(file, start, size):
    """The first offset >= start where a gzip member may begin: magic, deflate, sane flags."""
    file.seek(start)
    tail = b""
    while piece := file.read(CHUNK):
        window = tail + piece
        if match := re.search(rb"\x1f\x8b\x08[\x00-\x1f]", window):
            return file.tell() - len(window) + match.start()
        tail = window[-3:]
    return size


RECORD_START = re.compile(rb"WARC/1\.\d\r?\n(?=[\w-]+:)")


def read_warc(path, pieces, report):
    """Yields the responses and conversions of a WARC or WET file, one record in memory at a time.

    A record is `WARC/1.0`, header lines, an empty line, exactly Content-Length bytes and two line
    ends. Where that does not hold the record is reported and the next start is searched for just
    behind this one, so that a wrong Content-Length cannot swallow its neighbours."""
    buffer, at, origin, lost = b"", 0, 0, False
    for offset, step, piece in itertools.chain(pieces, [(0, 0, b"")]):
        if piece is None:  # what was begun in this member is void
            buffer, at, lost = b"", 0, False
            continue
        origin = origin + step * at if at < len(buffer) else offset
        buffer, at = buffer[at:] + piece, 0
        while at < len(buffer):
            if lost:
                match = RECORD_START.search(buffer, at)
                lost = match is None
                # the last bytes may be the beginning of a start that the next piece completes
                at = match.start() if match else max(at, len(buffer) - 40) if piece else len(buffer)
                if lost:
                    break
            elif buffer[at] in b"\r\n":
                at += 1
                continue
            try:
                record = parse_record(buffer, at, at_end=not piece)
            except ValueError as error:
                report(f"{path}: damaged record at byte {origin + step * at}: {error}; skipped")
                lost, at = True, at + 1
                continue
            if record is None:
                break  # it goes on in the next piece
            headers, block, end = record
            is_http = headers["content-type"].startswith("application/http")
            if (headers["warc-type"], is_http) in (("response", True), ("conversion", False)):
                yield raw_page(origin + step * at, "http" if is_http else "text", block,
                               headers["warc-target-uri"].strip("<>"), headers["warc-record-id"],
                               headers["warc-identified-payload-type"])
            at = end


def parse_record(buffer, at, at_end):
    """(headers, block, end) of the record at `at`; None if more bytes are needed, or ValueError.

        WARC/1.0\\r\\n
        WARC-Type: response\\r\\n
        Content-Length: 5\\r\\n
        \\r\\n
        block\\r\\n\\r\\n

    Nothing in it is trusted: a header of 64 KB or a length of 10^12 is damage."""
    if not (buffer.startswith(b"WARC/", at) or b"WARC/".startswith(buffer[at : at + 5])):
        raise ValueError("it does not start with WARC/")
    headers_end = buffer.find(b"\r\n\r\n", at, at + CHUNK)
    if headers_end < 0:
        if at_end or len(buffer) - at >= CHUNK:
            raise ValueError("its header has no end")
        return None
    if RECORD_START.search(buffer, at + 1, headers_end):
        raise ValueError("another record starts inside its header")
    headers = parse_headers(buffer[at:headers_end])
    length = headers["content-length"]
    if not re.fullmatch(r"[0-9]{1,15}", length) or int(length) > MAX_RECORD:
        raise ValueError(f"Content-Length is {length[:20]!r}")
    start, end = headers_end + 4, headers_end + 4 + int(length)
    if len(buffer) < end + 4 and not at_end:
        return None
    if len(buffer) < end:
        raise ValueError(f"{end - len(buffer)} of its {length} bytes are missing")
    if buffer[end : end + 4].strip(b"\r\n"):
        raise ValueError(f"it does not end after its {length} bytes")
    return headers, buffer[start:end], end


def parse_headers(block):
    """Header lines behind a first line -> dict, names in lower case, "" for a name not there."""
    headers = defaultdict(str)
    for line in block.decode("utf-8", "replace").splitlines()[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def open_document(raw):
    """A raw page -> ({"url", "id", and "html" or "text"}, None), or (None, reason).

    What is HTML is told, in this order, by the crawler (WARC-Identified-Payload-Type), by the
    server (Content-Type) or, where both are silent, by the first tags. WET records are text."""
    document, body = {"url": raw["url"], "id": raw["id"]}, raw["body"]
    if raw["kind"] == "text" and len(body) > MAX_TEXT:
        return None, "too_long"
    if raw["kind"] == "text":
        return {**document, "text": body.decode("utf-8-sig", "replace")}, None
    headers = parse_headers(b"")
    if raw["kind"] == "http":
        head, separator, rest = body.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/") and separator:
            headers, body = parse_headers(head), rest
        body = unwrap_body(body, headers)
        if body is None:
            return None, "unreadable_encoding"
        media_type = (raw["type"] or headers["content-type"]).partition(";")[0].strip().lower()
        if not media_type and re.search(rb"(?i)<(!doctype\s+html|html|head|body)\b", body[:2048]):
            media_type = "text/html"
        if media_type not in ("text/html", "application/xhtml+xml"):
            return None, "not_html"
    return {**document, "html": decode_html(body[:MAX_PAGE], headers["content-type"])}, None


# A chunk is its size in hexadecimal, perhaps an extension behind ";", a line end, and its bytes.
CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]{0,256}\r\n")


def unwrap_body(body, headers):
    """Undoes Transfer-Encoding: chunked, then Content-Encoding gzip or deflate; None if it cannot.

    A chunked body is "5\\r\\nhello\\r\\n0\\r\\n\\r\\n": sizes in hexadecimal, a size of 0 ends it.
    Crawlers often store the body unwrapped already but the headers as they came: what does not
    look wrapped is taken as it is."""
    if "chunked" in headers["transfer-encoding"].lower():
        pieces, at = [], 0
        while (match := CHUNK_SIZE.match(body, at)) and (size := int(match[1], 16)):
            pieces.append(body[match.end() : match.end() + size])
            at = match.end() + size
            at += 2 if body.startswith(b"\r\n", at) else 0
        body = b"".join(pieces) or body
    encoding = headers["content-encoding"].lower()
    for bits in (47, -15) if re.search("gzip|deflate", encoding) else ():
        try:  # 47: a gzip or zlib header tells; -15: deflate without one, as some servers send it
            return zlib.decompressobj(bits).decompress(body, MAX_PAGE)
        except zlib.error:
            continue
    is_packed = re.search(r"\b(br|zstd|gzip|deflate|compress)\b", encoding)
    return None if is_packed and b"<" not in body[:512] else body


META_CHARSET = re.compile(rb"(?i)<meta[^>]{0,500}?charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([-\w]{2,40})")
# Python knows codecs that are no charsets (punycode, idna, hex), some of them slow: names we trust.
CHARSET = re.compile(r"utf-?8|utf-?16|windows-|cp\d|iso|latin|us-ascii|koi8|gb|big5|euc|shift|mac")
# Labels mean what browsers make of them (WHATWG Encoding Standard): the larger cousin.
COUSINS = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "gb2312": "gb18030"}
COUSINS |= {"iso-8859-9": "cp1254", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}


def decode_html(body, content_type=""):
    """Bytes -> str by byte order mark, HTTP header or `<meta>`; else UTF-8 with replacement.

    A page that declares a one-byte charset but is valid UTF-8 is UTF-8, mislabelled: real text in
    another charset hardly ever is valid UTF-8. (FineWeb tries UTF-8 first, then guesses.)"""
    if body.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        charset = "utf-8-sig" if body.startswith(b"\xef") else "utf-16"
        return body.decode(charset, "replace")
    declared = re.search(r"(?i)charset\s*=\s*[\"']?\s*([-\w]{2,40})", content_type)
    meta = None if declared else META_CHARSET.search(body[:4096])
    charset = declared[1] if declared else meta[1].decode("ascii", "replace") if meta else ""
    charset = charset.lower()
    charset = COUSINS.get(charset, charset) if CHARSET.match(charset) else "utf-8"
    if meta and charset.startswith("utf-16"):
        charset = "utf-8"  # a <meta> found by its ASCII letters cannot stand in a UTF-16 page
    one_byte = re.match("windows|cp125|iso-8859|latin", charset)
    for name, errors in (("utf-8" if one_byte else charset, "strict"), (charset, "replace")):
        try:
            return body.decode(name, errors)
        except (UnicodeDecodeError, LookupError):
            continue
    return body.decode("utf-8", "replace")


# --------------------------------------------------------------------------- what a rule is
# A rule is written as a generator of checks (reason, value, sign, limit), in order; a page fails at
# the first value on the wrong side: ("short_doc", 48, "<", 50) drops a text of 48 words. So one
# piece of code serves the verdict, the table and --explain. A limit of NaN ("off") never fails,
# since every comparison with NaN is false.
FAILS = {
    ">": operator.gt, "<": operator.lt, "≥": operator.ge, "≤": operator.le,
    "not in": lambda code, codes: codes != "any" and code not in codes.split(","),
    "drops": lambda line, what: what == "text",  # C4 looks at lines; some condemn the whole text
}


def first_failure(checks):
    """The reason of the first check that fails, or None."""
    return next((why for why, value, sign, limit in checks if FAILS[sign](value, limit)), None)


def measured(checks):
    """Makes of a generator of checks a function with the same arguments -> reason or None."""

    @functools.wraps(checks)
    def rule(*arguments, **limits):
        return first_failure(checks(*arguments, **limits))

    rule.checks = checks
    return rule


# --------------------------------------------------------------------------- 2. URLs

# The cheapest filter comes first: an address is judged without opening the page. Short lists catch
# little, on purpose; what they catch wrongly nobody sees again.
# Our own small lists by category. `--blocklist DIR` adds lists in the form of the UT1 collection,
# from which FineWeb's were made: DIR/CATEGORY/domains and DIR/CATEGORY/urls, one entry a line.
BLOCKED_DOMAINS = {
    "adult": "pornhub.com xvideos.com xnxx.com xhamster.com redtube.com youporn.com onlyfans.com",
    "gambling": "bet365.com pokerstars.com 888casino.com betway.com bwin.com unibet.com",
    "shorteners": "bit.ly tinyurl.com adf.ly t.co ow.ly goo.gl",  # never a page of their own
}
HARD_WORDS = {  # one of them as a word of the URL is enough
    "adult": "porn porno xxx milf hentai blowjob camgirl camgirls creampie cumshot gangbang sexcam",
    "gambling": "onlinecasino freespins sportsbetting casinobonus",
    "spam": "viagra cialis levitra essaywriting replicawatches",
}
SOFT_WORDS = {  # harmless alone, telling in pairs
    "adult": "sex sexy nude naked teen teens girls hot webcam escort amateur fetish erotic",
    "gambling": "casino poker slots slot betting bet jackpot roulette blackjack bonus online",
    "spam": "cheap pills pharmacy replica warez keygen crack torrent loans payday",
}
SUBWORDS = {"adult": "pornhub xvideos sexcam freeporn porntube livesex", "spam": "buyviagra"}
HARD, SOFT, BLOCKED, PARTS = (
    frozenset(" ".join(lists.values()).split())
    for lists in (HARD_WORDS, SOFT_WORDS, BLOCKED_DOMAINS, SUBWORDS)
)
SUBWORD = re.compile("|".join(sorted(PARTS)))
# Second-level labels under which countries register names (co.uk): enough of the public suffixes.
SECOND_LEVEL = frozenset("ac co com edu gob gouv gov id in mil ne net nom or org web".split())


def load_blocklist(folder):
    """UT1 lists -> (domain hashes, URL hashes), sorted uint64. At 8 bytes an entry five million
    domains take 40 MB, shared by all workers; a set of strings would take 600 MB in each."""
    found = {"domains": [np.zeros(0, np.uint64)], "urls": [np.zeros(0, np.uint64)]}
    for parent, _, names in os.walk(folder):
        for name in sorted(set(names) & set(found)):
            with open(os.path.join(parent, name), "rb") as file:
                while data := file.read(16 << 20) + file.readline():
                    data = data.lower() if name == "domains" else data
                    found[name].append(hash_lines(np.frombuffer(data, np.uint8)))
    if sum(map(len, found.values())) == 2:
        raise ValueError(f"--blocklist {folder}: no CATEGORY/domains or CATEGORY/urls in it")
    return tuple(np.unique(np.concatenate(hashes)) for hashes in found.values())


def is_listed(hashes, text):
    """Is the text's hash in the sorted hashes? Binary search: 22 steps for four million."""
    i = np.searchsorted(hashes, hash_text(text))
    return i < len(hashes) and hashes[i] == hash_text(text)


@measured
def url_rule(url, blocklist=None, *, soft_words=2):
    """Six checks in datatrove's order (RefinedWeb, section 3.1 and appendix G.1).

    A listed domain blocks all its hosts, a listed host only itself: with bad.nice.com on the list
    more.bad.nice.com stays. Words are the pieces of the URL between signs, case kept; subwords are
    searched in the URL squeezed to its letters, so they also match across signs."""
    address = url.split("://", 1)[-1]
    host = re.split(r"[/?#]", address, maxsplit=1)[0].rpartition("@")[2].partition(":")[0]
    host = host.lower().rstrip(".")
    labels = host.split(".")
    is_second_level = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL
    domain = ".".join(labels[-3:] if is_second_level else labels[-2:])
    domains, urls = blocklist or ((), ())
    yield "domain", domain in BLOCKED or is_listed(domains, domain), ">", 0
    yield "subdomain", host in BLOCKED or is_listed(domains, host), ">", 0
    forms = (url, address, address.removeprefix("www."))
    yield "url", any(is_listed(urls, form) for form in forms), ">", 0
    words = frozenset(re.split(r"[^A-Za-z0-9]+", url))
    yield "hard_blacklisted", len(words & HARD), ">", 0
    yield "soft_blacklisted", len(words & SOFT), "≥", soft_words
    yield "blacklisted_subword", len(SUBWORD.findall(re.sub(r"[^a-z0-9]", "", url.lower()))), ">", 0


# --------------------------------------------------------------------------- 3. extraction
# One tolerant pass cuts the page into blocks of text; the blocks vote by their characters, and the
# subtree with the most votes is the main text. No DOM is built, and no page can make this slow:
# each tag is matched once, each character looked at a bounded number of times.
#
#   html -> page_events: text and tags -> cut_blocks: blocks and the elements that own them
#        -> choose_blocks: votes, pruning, the best subtree -> extract_text: lines
#
# FineWeb uses trafilatura here; how far this gets beside it, `tests/bench_data.py` measures.

# These tags do not break a line of text and are dropped where they stand; every other tag ends a
# block, but for <a>, whose characters count as link, and <br>, <td> and <th> (see below).
INLINE = frozenset(
    "abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark nobr q rp "
    "rt ruby s samp small source span strike strong sub sup time tt u var wbr".split()
)
SILENT = INLINE | {"/" + tag for tag in INLINE} | {"/br", "/td", "/th"}
# What stands in these is never the page's text.
UNSEEN = frozenset(
    "address aside audio button canvas datalist dialog embed figcaption figure footer head iframe "
    "map math menu nav noscript object optgroup select svg template video".split()
)
# No tags inside these but their own end.
RAW = {tag: re.compile(rf"</(?i:{tag})(?![\w-])[^>]*+>?")
       for tag in "noembed script style textarea title xmp".split()}
VOID = frozenset("area base col embed hr input link meta param track".split())  # no end tag
HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
LISTS = frozenset("ul ol dl table thead tbody tfoot".split())
ITEMS = frozenset("li dt dd tr pre blockquote".split())  # short by nature
LEAVES = HEADINGS | ITEMS | {"p"}  # judged one by one, not by their sum
# Opening one of these ends an open one of those; every other block only ends an open p.
ENDS = {"li": ("p", "li"), "dt": ("p", "dt", "dd"), "dd": ("p", "dt", "dd"), "tr": ("p", "tr")}
ENDS |= {"body": ("head",)}
COST = dict.fromkeys("p li tr dd pre blockquote".split(), 10)  # votes a block must earn first: here
COST_ELSE = 40  # and in all others: a short heading or div is more often a label than a sentence
# Words in class, id, role or itemprop that name what stands around an article. They are compared
# whole: as substrings they would find "ad" in "header", "tag" in "stage". No name of a site here.
NOISE = frozenset(
    "ad ads adv advert advertisement affiliate alert author banner bio breadcrumb breadcrumbs "
    "byline caption comment comments consent cookie cookies copyright credit credits dialog disqus "
    "feed follow footer gallery hidden infobox legal login masthead menu meta modal nav navbar "
    "navigation newsletter noprint overlay pager pagination paging popup popular print promo "
    "promoted promotion rating ratings recommend recommended related reply respond rss share "
    "sharing sidebar signup sitemap skip slider social sponsor sponsored subscribe subscription "
    "tag tags teaser teasers toolbar trending widget widgets".split()
)
MAIN_NAME = re.compile(
    r"(?i)(?:^|\s)(?:articlebody|"
    r"(?:article|post|entry|story|blog|news|page|main)[-_]?(?:body|content|text|entry))(?:\s|$)"
)
MAX_DEPTH = 400  # deeper elements count as part of their ancestor there
MAX_ATTRIBUTES = 2000  # characters of a tag's attributes that are looked at
SHORT, TINY = 250, 100  # characters of main text under which we look again, with weaker rules

# Matches wherever "<" begins a tag and cannot fail after that: an open quote or a missing ">" makes
# the match end elsewhere but never start over, which is what keeps it linear.
TAG = re.compile(
    r"<(?:(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')?+)*+)>?"
    r"|!--(?:.*?-->|.*)|[!?/][^>]*+>?)",
    re.S,
)
ATTRIBUTE = re.compile(
    r"([^\s=\"'/]++)(?:\s*+=\s*+(?:\"([^\"]*+)\"?+|'([^']*+)'?+|([^\s\"'>]++)))?+"
)
NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # cuts share-box, share_box and shareBox
INVISIBLE = re.compile(r"(?i)display\s*:\s*none|visibility\s*:\s*hidden")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
VISIBLE = re.compile(r"\w")  # blocks of icons and rules alone are no text
NEW_LINE, NEW_CELL = "\2", "\3"  # control signs, so no page has them: CONTROL took them out
BREAKS = {"br": NEW_LINE, "td": NEW_CELL, "th": NEW_CELL}


def page_events(html):
    """Yields (text, "", "") and (None, tag or /tag, attributes) in page order; comments, scripts
    and inline tags vanish: "a<b>b</b><p>" gives "a", "b", then the p."""
    position, n = 0, len(html)
    while match := TAG.search(html, position):
        if match.start() > position:
            yield html[position : match.start()], "", ""
        closing, tag, attributes = match.groups()
        position = match.end()
        tag = closing + tag.lower() if tag else ""
        if tag in RAW:
            end = RAW[tag].search(html, position)
            position = end.end() if end else n  # left open, it runs to the end of the page
        elif tag and tag not in SILENT:
            yield None, tag, attributes[:MAX_ATTRIBUTES]
    if position < n:
        yield html[position:], "", ""


@functools.lru_cache(4096)
def judge_names(tag, attributes):
    """(noise, main): do an element's tag and names speak against it, or for it?

    class="shareBox" is noise (a word of it is "share"), class="shareholder" is not, and
    class="post-content sidebar" is main: a name that says article outweighs one that says noise.
    Pages repeat their tags, so the last 4,096 verdicts are kept."""
    noise, main = tag == "form", tag in ("article", "main")
    for name, *quoted in ATTRIBUTE.findall(attributes):
        name, value = name.lower(), "".join(quoted)
        if name in ("class", "id", "role", "itemprop"):
            noise = noise or any(word.lower() in NOISE for word in NAME_WORD.findall(value))
            main = main or MAIN_NAME.search(value) is not None
        elif name == "style":
            noise = noise or INVISIBLE.search(value) is not None
        elif name in ("hidden", "aria-hidden"):
            noise = noise or name == "hidden" or value.lower() == "true"
    return noise and not main and tag not in ("body", "html"), main


def tidy(text, verbatim):
    """The raw text of a block -> its lines; the cells of a table row stand apart by tabs."""
    if "&" in text:
        # Python refuses to read numbers of thousands of digits, and no character needs eight.
        text = re.sub(r"&#(?:\d{8,}|[xX][0-9a-fA-F]{8,});?", "\ufffd", text)
        text = html_entities.unescape(text)
    if verbatim:
        lines = text.replace(NEW_LINE, "\n").expandtabs(4).split("\n")
        return "\n".join(line.rstrip() for line in lines).strip("\n")
    if NEW_LINE not in text and NEW_CELL not in text:
        return " ".join(text.split())
    lines = []
    for line in text.split(NEW_LINE):
        cells = (" ".join(cell.split()) for cell in line.split(NEW_CELL))
        lines.append("\t".join(cell for cell in cells if cell))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip())


def cut_blocks(html):
    """Page -> (elements, blocks), both in page order.

    elements: (parent's index, tag, noise, main); element 0 is the page itself.
    blocks  : (text, characters inside links, index of the element that owns it, prefix).
    `stack` holds the open elements, n_open counts them by tag: an end tag of what is not open is
    ignored, else it ends all above the last of its name. So "<div><p>a</div>b" ends the p too."""
    elements, blocks = [(0, "", False, False)], []
    stack, n_open, unseen = [0], Counter(), 0
    pieces, link_chars, in_link, bullet = [], 0, False, ""

    def end_block():
        nonlocal link_chars, bullet
        text = "".join(pieces)
        pieces.clear()
        if text and not text.isspace() and VISIBLE.search(text := tidy(text, n_open["pre"])):
            blocks.append((text, link_chars, stack[-1], bullet))
            bullet = ""
        link_chars = 0

    def end_element():
        nonlocal unseen
        tag = elements[stack.pop()][1]
        n_open[tag] -= 1
        unseen -= tag in UNSEEN
        return tag

    for text, tag, attributes in page_events(html):
        if not tag:
            if not unseen:
                pieces.append(text)
                link_chars += len(text.strip()) if in_link else 0
        elif tag in ("a", "/a"):
            in_link = tag == "a" and "href" in attributes.lower()
        elif tag in BREAKS:
            if not unseen:
                pieces.append(BREAKS[tag])
        elif tag[0] == "/":
            end_block()
            bullet = ""
            while n_open[tag[1:]] and end_element() != tag[1:]:
                pass
        else:
            end_block()
            for other in ENDS.get(tag, ("p",)) if tag not in VOID else ():
                if elements[stack[-1]][1] == other:
                    end_element()
            if tag not in VOID and len(stack) < MAX_DEPTH:
                elements.append((stack[-1], tag, *judge_names(tag, attributes)))
                stack.append(len(elements) - 1)
                n_open[tag] += 1
                unseen += tag in UNSEEN
                bullet = "- " if tag == "li" else bullet
    end_block()
    return elements, blocks


def choose_blocks(elements, blocks, prune):
    """The indices of the blocks that are main text.

    vote  : characters - 2 x characters in links - cost. A paragraph of 300 characters with a link
            of 20 has 300 - 40 - 10 = 250; a menu entry, 8 characters and all link, 8 - 16 - 10;
    prune : an element with a noisy name dies with all below it, unless it holds half of the page's
            positive votes (then the name lies);
    choose: the element whose living descendants have the most votes, doubled where a name says
            article. Inside it, containers with a negative sum go (lists and tables: without cost,
            since their items are short by nature), and blocks that are nearly all link."""
    n, votes = len(elements), []
    positive, living, plain, dead = [0] * n, [0] * n, [0] * n, [False] * n

    def add_up(sums):  # each element's number -> the sum over its subtree: children stand behind
        for e in range(n - 1, 0, -1):
            sums[elements[e][0]] += sums[e]

    for text, links, e, _ in blocks:
        votes.append(len(text) - 2 * links - COST.get(elements[e][1], COST_ELSE))
        positive[e] += max(votes[-1], 0)
    add_up(positive)
    for e, (parent, _, noise, _) in enumerate(elements):
        dead[e] = dead[parent] or (prune and noise and 2 * positive[e] < positive[0])
    for (text, links, e, _), vote in zip(blocks, votes):
        if not dead[e]:
            living[e] += vote
            plain[e] += len(text) - 2 * links
    add_up(living)
    add_up(plain)
    best = max(range(n), key=lambda e: living[e] * (1 + elements[e][3]))
    inside, kept = [e == best for e in range(n)], [e == best for e in range(n)]
    for e in range(best + 1, n):
        parent, tag, _, _ = elements[e]
        good = tag in LEAVES or (plain if tag in LISTS else living)[e] >= 0
        inside[e], kept[e] = inside[parent], kept[parent] and not dead[e] and good
    chosen = [
        i for i, (text, links, e, _) in enumerate(blocks) if kept[e] and links <= 0.8 * len(text)
    ]
    first = next((i for i, block in enumerate(blocks) if inside[block[2]]), 0)
    owners = [(elements[e][1], dead[e]) for _, _, e, _ in blocks]
    return add_lead(owners, votes, first) + drop_loose_ends(owners, votes, blocks, chosen)


def add_lead(owners, votes, first):
    """The headline before the chosen element and the prose between the two, or a heading just
    before it. (Annotated extraction sets leave headlines out; a language model should see them.)
    owners: (tag, dead) of each block's element; first: the first block of the chosen element."""
    for i in range(first - 1, -1, -1):
        if owners[i] == ("h1", False):
            return [i] + [j for j in range(i + 1, first) if votes[j] > 0 and not owners[j][1]]
    tag, dead = owners[first - 1] if first else ("", False)
    return [first - 1] if tag in HEADINGS and not dead else []


def drop_loose_ends(owners, votes, blocks, chosen):
    """Without headings over link lists that went, and without labels at the end."""
    kept, result = set(chosen), []
    for i in chosen:
        text, links = blocks[i + 1][:2] if i + 1 < len(blocks) else ("", 1)
        if owners[i][0] not in HEADINGS or i + 1 in kept or 2 * links <= len(text):
            result.append(i)
    while result and votes[result[-1]] < 0 and owners[result[-1]][0] not in ITEMS:
        result.pop()
    return result


def extract_text(html):
    """The main text of a page (str or bytes): a block a line, an empty line between paragraphs;
    list items begin with "- ", the cells of a row stand apart by tabs, code keeps its lines."""
    html = decode_html(html) if isinstance(html, bytes) else html
    elements, blocks = cut_blocks(CONTROL.sub(" ", html))

    def join(chosen):
        pieces, before = [], ""
        for text, _, e, prefix in (blocks[i] for i in chosen):
            tag = elements[e][1]
            tight = tag == before and tag in ("li", "tr")
            pieces += ["\n" if tight else "\n\n", prefix + text]
            before = tag
        return "".join(pieces[1:])

    texts = [join(choose_blocks(elements, blocks, prune=True))]
    if len(texts[0]) < SHORT:
        texts.append(join(choose_blocks(elements, blocks, prune=False)))
    if max(map(len, texts)) < TINY:
        texts.append(join([i for i, block in enumerate(blocks) if 2 * block[1] < len(block[0])]))
    return max(texts, key=len)


# --------------------------------------------------------------------------- 4. language
# Script first; a script of one language decides alone. Within the Latin, Cyrillic and Arabic
# scripts the frequent function words of each language vote: "the", "der", "de la" say more than
# any number of nouns, and every running text is full of them. Rivals that share short words have to
# stand in the table together (with Finnish left out, its "on" would count as English).

SCRIPTS = (  # first and last code point, and the language or, in capitals, the family
    "0041-024F LATIN 1E00-1EFF LATIN 0370-03FF el 1F00-1FFF el 0400-052F CYRILLIC 0531-058F hy "
    "0591-05FF he 0600-06FF ARABIC 0750-077F ARABIC FB50-FDFF ARABIC FE70-FEFC ARABIC 0900-097F hi "
    "0980-09FF bn 0A00-0A7F pa 0A80-0AFF gu 0B80-0BFF ta 0C00-0C7F te 0C80-0CFF kn 0D00-0D7F ml "
    "0D80-0DFF si 0E00-0E7F th 0E80-0EFF lo 1000-109F my 10A0-10FF ka 1100-11FF ko AC00-D7AF ko "
    "1200-137F am 1780-17FF km 3040-30FF ja 3400-4DBF zh 4E00-9FFF zh"
)
# A paragraph a language: the family of its script, its code, its most frequent function words.
FUNCTION_WORDS = """
LATIN en the of and to in is that for it was on are as with his they at be this from have or by one
    had not but what all were we when your can said there an which she do their if will how about
    out them then these some her would him has more who its my than been you he i so no just our
    could
LATIN de der die das und ist in zu den von mit sich auf für nicht ein eine als auch es an werden aus
    er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur
    oder aber vor zur bis mehr durch man dem des sein wenn ich wir ihr kann im
LATIN nl de het een en van in is dat op te zijn met voor niet die er aan om ook als dan maar bij of
    uit nog naar door over wordt deze heeft ik je worden kan zo wat hij tot meer geen veel wel hun
    werd
LATIN fr le la les de des du et est en un une que qui dans pour pas sur au avec ce il par plus ne se
    son sont ou mais nous vous aux cette elle comme tout être fait leur ses été sa même l d qu n c s
LATIN es el la los las de que y en un una es se no por con para su del al lo como más o pero sus le
    ha me sin sobre este ya entre cuando todo esta ser son dos también fue había era muy hasta desde
LATIN pt o a os as de que e do da em um uma é para com não no na se por mais dos das como mas foi ao
    ele ser quando muito nos já está eu também só pelo pela até isso ela entre era depois seu sua
    são
LATIN it il la di che e è un una in per non sono con del della i le si da lo gli al come più ma dei
    nel alla anche ha se questo delle o su ci essere stato fra tra era loro molto tutti ai l d
LATIN ca el la els les de que i en un una és per amb no del al es va com més o però seva seu aquest
    dels ha ser són també aquesta molt entre fins quan tot als pel sobre on han l d
LATIN ro și de la în a cu nu pe o un este care să din că se mai pentru sunt ce au fi ca dar după sau
    fost această acest lui ei prin până între fără foarte are către
LATIN sv och att det i en som är på för med av den till inte om ett har de jag var så men kan från
    vi eller när man ska efter också vid under där mot över än han hon blir nu sig sin
LATIN da og at det i en er på som for med af den til ikke de har et jeg var kan så men om fra vi
    eller når man skal efter også ved under der mod blev havde hun bliver hvor nu sig sin
LATIN no og at det i en er på som for med av den til ikke de har et jeg var kan så men om fra vi
    eller når man skal etter også ved under der mot ble hadde hun blir hvor nå seg sin
LATIN is og að í er á það sem til við um ekki en með var af fyrir eru ég hann hún þetta þá frá eða
    því hafa
LATIN fi ja on ei se että hän oli ovat mutta kun joka niin myös kuin sen tai jos mitä vain ole nyt
    minä hänen jo sitä siitä olla ollut voi sekä vielä mukaan jotka ennen tämä ne
LATIN et ja on ei et see ta oli kui ka mis aga või siis seda oma kes ma nii nagu välja pole veel
    ning olid
LATIN hu a az és hogy nem is egy van meg ez de volt csak azt még már el ha vagy mint ami ki majd
    lehet kell
LATIN pl i w na z nie się do że jest to o jak po co ale od za przez dla tym tak może jego już są był
    być oraz przy które który tylko także czy ze jako tego lub jej
LATIN cs a v na se je že s z do to o i ve pro ale si jako po jsem od by za které jeho nebo jsou
    který byl bylo až při také podle této už tak není jen ze k
LATIN sk a v na sa je že s z do to o i vo pre ale si ako po som od by za ktoré jeho alebo sú ktorý
    bol bolo
LATIN sl in je na v se da so za z ne pa bi ki po kot tudi o ali s od kako še bil že le do pri tako
    lahko
LATIN hr i je u na se da su za od s ne koji a što o iz kao bi po ili ali samo sve to ga nije koje te
    već
LATIN lt ir yra į kad su iš ne tai bet kaip buvo jo už apie tik ar nuo dar jie prie gali per po taip
    jos
LATIN lv un ir ar no ka uz par kas bet tas arī vai to pie gan ja lai pēc bija tikai kā būt viņš savu
    līdz
LATIN sq dhe në të e për me një që është nga si u ka i se nuk do ishte janë por edhe më kjo ky duke
    pas
LATIN tr ve bir bu için de da ile olarak çok olan daha gibi en ne kadar sonra var her o ama değil
    ise olduğu ya mi şey diye ben kendi göre
LATIN id yang dan di dari untuk dengan ini itu pada adalah tidak dalam akan ke juga atau oleh ada
    mereka saya telah bisa karena sudah kita seperti lebih tersebut dia
LATIN vi và của là có trong được cho không một các với những người này để khi đã về từ như cũng ra
    đến
LATIN tl ang ng sa na mga ay at ni si kay para ito hindi may kung siya ko niya nang mo lang din rin
LATIN sw ya na wa kwa katika ni la za kuwa cha hii huo yake huyo kama hiyo pia watu baada lakini
    kutoka
LATIN af die van en in is het dit nie wat vir om te op met word aan ook hy sy as by was kan daar sal
    hulle
CYRILLIC ru и в не на что я с он как это по но из у за от же для так все бы его то было только мы к
    о был или ещё еще если когда есть она они мне до вы
CYRILLIC uk і в не на що я з він як це по але із у за від же для так все би його то було тільки ми
    до та або ще
CYRILLIC bg и в не на че аз с той как това по но от за са да се ще е към които при до му го или може
    само има
CYRILLIC sr и у не на да је се са за од су који а што о из као би по или али то га није које већ био
    јер може
ARABIC ar في من على أن إلى التي عن مع هذا الذي ما لا هذه كان أو بعد كما قد لم بين كل ذلك و يوم كانت
    هو هي
ARABIC fa و در به از که این را با است برای آن یک خود تا کرد بر هم نیز می شد شده باید اما ما کند بود
    های هر
ARABIC ur کے کی میں ہے کا اور سے کو نے پر یہ کہ ہیں اس ہو تھا بھی ایک جو تو نہیں لیے گیا وہ کر اپنے
    تھے
"""
WORD = re.compile(r"[^\W\d_]+")
LANGUAGE_SAMPLE = 10_000  # characters looked at; 1,500 words are more than enough


@functools.cache
def language_tables():
    """code point -> language or family; family -> {word: the languages that have it}."""
    scripts, words = {}, defaultdict(lambda: defaultdict(list))
    for span, name in re.findall(r"(\S+) (\S+)", SCRIPTS):
        first, last = (int(point, 16) for point in span.split("-"))
        scripts.update(dict.fromkeys(range(first, last + 1), name))
    for line in FUNCTION_WORDS.replace("\n    ", " ").strip().split("\n"):
        family, code, *listed = line.split()
        for word in listed:
            words[family][word].append(code)
    return scripts, words


def identify_language(text):
    """(code, score in 0..1), ("und", 0.0) without letters.

    A word found in k of the lists gives each of them 1/k point. With b and r the points of the
    winner and of the runner-up, f the share of the winner's words among all words:
    score = share of the script's letters x min(1, f / 0.20) x b^2 / (b^2 + r^2).
    "their" among nine unknown words: 1 x 0.1 / 0.20 x 1 = 0.5, under the threshold of 0.65. With
    b = 30 and r = 10 the last factor is 900 / 1000; with b = r it is 1/2, and nothing passes.
    FineWeb asks fastText; against that, this one gives lists and gibberish low scores."""
    scripts, words = language_tables()
    text = unicodedata.normalize("NFC", text[:LANGUAGE_SAMPLE])
    letters = Counter()
    for character, n in Counter(text).items():
        if character.isalpha():
            letters[scripts.get(ord(character), "und")] += n
    if letters["ja"] * 10 > letters["zh"]:  # Japanese mixes its kana with Chinese characters
        letters["ja"] += letters.pop("zh", 0)
    if not letters.total():
        return "und", 0.0
    script, n = letters.most_common(1)[0]
    share = n / letters.total()
    if script not in words:
        return script, 0.0 if script == "und" else share
    points, found, counts = Counter(), Counter(), Counter(WORD.findall(text.lower()))
    for word, n in counts.items():
        codes = words[script].get(word, ())  # not words[script][word]: that would add the word
        for code in codes:
            points[code] += n / len(codes)
            found[code] += n
    if not points:
        return "und", 0.0
    (winner, b), (_, r) = (points.most_common(2) + [("", 0)])[:2]
    frequent = min(1, found[winner] / counts.total() / 0.20)
    return winner, share * frequent * b * b / (b * b + r * r)


@measured
def language_rule(code, score, *, languages="en", min_score=0.65):
    """FineWeb keeps English with a score above 0.65 (section 3.3); "any" takes every language."""
    yield "language", code, "not in", languages
    yield "language_score", score, "≤", min_score


# --------------------------------------------------------------------------- words and sentences

# The thresholds below were tuned on spaCy's (before: NLTK's) English tokens, where each
# punctuation mark is a token of its own and counts as a word. This is close to that and fast; on
# web pages 0.5% fewer tokens. All repeats are bounded or possessive: linear on any text.
TOKEN = re.compile(
    r"https?://\S+|www\.\S+|[\w.+-]{1,64}+@[\w-]{1,64}(?:\.[\w-]{1,64})+|"
    r"\w+(?:[.,:'’&/]\w+)*+|\.{2,}|-{2,}|={2,}|\*{2,}|!{2,}|\?{2,}|~{2,}|[^\w\s]"
)
# A sentence ends at . ! ? and their kin in other scripts, with the quotes and brackets closing
# after it, unless the dot belongs to an initial (J.), a letter word (U.S.) or an abbreviation.
ABBREVIATIONS = "Mr Mrs Ms Dr Prof St Sr Jr vs etc Inc Ltd Co Corp Gen Gov Sen Rep No Vol Fig"
SENTENCE_END = regex.compile(
    r"(?<!\.)(?<!\b\p{L})"
    + "".join(rf"(?<!\b{word})" for word in ABBREVIATIONS.split())
    + r"(?:\.(?!\.)|[!?]++)(?=[\"'”’»)\]]*(?:\s|$))|[\p{SB=STerm}--!?](?!\p{SB=STerm})",
    regex.V1,
)
STOP = regex.compile(r"[\p{SB=STerm}\p{SB=ATerm}]$")  # 170 marks: . ! ? 。 ؟ । and so on


@functools.lru_cache(1)  # repetition and quality ask for the same text
def words_in(text):
    """The tokens of a text, punctuation marks included."""
    return TOKEN.findall(text)


def count_sentences(line):
    """Sentences of one line; what follows the last end counts as one too."""
    ends = [match.end() for match in SENTENCE_END.finditer(line)]
    rest = line[ends[-1] if ends else 0 :]
    return len(ends) + any(character.isalnum() for character in rest)


# --------------------------------------------------------------------------- 5. Gopher


@measured
def gopher_repetition(
    text, *, dup_para_frac=0.30, dup_para_char_frac=0.20, dup_line_frac=0.30,
    dup_line_char_frac=0.20, top_2_gram=0.20, top_3_gram=0.18, top_4_gram=0.16,
    duplicated_5_n_grams=0.15, duplicated_6_n_grams=0.14, duplicated_7_n_grams=0.13,
    duplicated_8_n_grams=0.12, duplicated_9_n_grams=0.11, duplicated_10_n_grams=0.10,
):
    """Repeated lines, paragraphs and word n-grams (Gopher, table A1). Fractions of len(text) in
    characters but for the two that count lines and paragraphs; a first occurrence is no repeat.

    "I am your father.\\n" four times: 5 lines, the last one empty, 3 of them repeats, and
    3 / 5 > 0.30. "I am Frank, I am Frank, I am Frank": the 2-gram "I am" has 4 characters and
    comes 3 times, 12 of 34 characters, 0.35 > 0.20.
    A low limit for long n-grams: the longer a repeat, the less likely it is by chance."""
    n_chars = max(len(text), 1)
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    for name, pieces, limit, char_limit in (
        ("para", paragraphs, dup_para_frac, dup_para_char_frac),
        ("line", lines, dup_line_frac, dup_line_char_frac),
    ):
        n_repeats, n_repeated_chars = repeats(pieces)
        yield f"dup_{name}_frac", n_repeats / len(pieces), ">", limit
        yield f"dup_{name}_char_frac", n_repeated_chars / n_chars, ">", char_limit

    chars = n_gram_chars(*as_arrays(words_in(text))) / n_chars
    for n, limit in enumerate((top_2_gram, top_3_gram, top_4_gram), 2):
        yield f"top_{n}_gram", chars[n], ">", limit
    limits = (duplicated_5_n_grams, duplicated_6_n_grams, duplicated_7_n_grams)
    limits += (duplicated_8_n_grams, duplicated_9_n_grams, duplicated_10_n_grams)
    for n, limit in enumerate(limits, 5):
        yield f"duplicated_{n}_n_grams", chars[n], ">", limit


def repeats(pieces):
    """(how many pieces stood there before, how many characters they have)"""
    seen, n_repeats, n_chars = set(), 0, 0
    for piece in pieces:
        if piece in seen:
            n_repeats, n_chars = n_repeats + 1, n_chars + len(piece)
        seen.add(piece)
    return n_repeats, n_chars


def as_arrays(words):
    """(n,) a 64-bit number for each word, equal for equal words, and (n,) their lengths."""
    n = len(words)
    return np.fromiter(map(hash, words), np.int64, n), np.fromiter(map(len, words), np.int64, n)


@njit(cache=True)
def n_gram_chars(ids, lengths):
    """Words as numbers and lengths -> (11,) characters; entry n is about n-grams, 2..10.

    2-4 : the most frequent n-gram (the first of equals, and once counts too), its characters with
          n - 1 spaces, times its count;
    5-10: all n-grams that stood there before, scanned greedily so that no character counts twice:
          at a repeat go on behind it, else one word further; spaces not counted.
    An open-addressing table counts them; the tests hold the same in dicts and sets."""
    chars, n_words, size = np.zeros(11), len(ids), 16
    while size < 2 * n_words:
        size *= 2
    slots = np.zeros(n_words, np.int64)
    for n in range(2, 11):
        keys, counts, i = np.zeros(size, np.uint64), np.zeros(size, np.int64), 0
        while i + n <= n_words:
            h, length = np.uint64(n), n - 1 if n < 5 else 0
            for j in range(i, i + n):
                h = mix(h ^ np.uint64(ids[j])) * MULTIPLIER
                length += lengths[j]
            h |= np.uint64(1)  # 0 marks a free slot
            slot = np.int64(h >> np.uint64(8)) & (size - 1)
            while keys[slot] != 0 and keys[slot] != h:
                slot = (slot + 1) & (size - 1)
            keys[slot] = h
            counts[slot] += 1
            slots[i] = slot
            if n >= 5 and counts[slot] > 1:
                chars[n] += length
                i += n
            else:
                i += 1
        if n < 5 and n <= n_words:
            most = counts.max()
            first = 0
            while counts[slots[first]] < most:
                first += 1
            chars[n] = (lengths[first : first + n].sum() + n - 1) * most
    return chars


STOP_WORDS = frozenset("the be to of and that have with".split())


@measured
def gopher_quality(
    text, *, min_words=50, max_words=100_000, min_avg_word=3, max_avg_word=10, max_hashes=0.1,
    max_ellipses=0.1, max_bullets=0.9, max_end_ellipses=0.3, min_alpha=0.8, min_stop_words=2,
):
    """Does it look like prose at all? (Gopher, section A1.1.) Lengths count the words that are
    more than punctuation; the other ratios divide by all tokens, punctuation marks included.

    "the sun and " 16 times has 48 words, 48 < 50: dropped; 17 times 51: kept. Stop words count as
    the paper writes them, in lower case, so "The" is none; a text needs two different ones."""
    counts = Counter(words_in(text))
    real = {word: n for word, n in counts.items() if any(map(str.isalnum, word))}
    n_words, n_real = max(counts.total(), 1), sum(real.values())
    lines = text.splitlines() or [""]
    average = sum(len(word) * n for word, n in real.items()) / max(n_real, 1)
    yield "short_doc", n_real, "<", min_words
    yield "long_doc", n_real, ">", max_words
    yield "below_avg", average, "<", min_avg_word
    yield "above_avg", average, ">", max_avg_word
    yield "too_many_hashes", text.count("#") / n_words, ">", max_hashes
    n_ellipses = text.count("...") + text.count("…")
    yield "too_many_ellipsis", n_ellipses / n_words, ">", max_ellipses
    n_bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
    yield "too_many_bullets", n_bullets / len(lines), ">", max_bullets
    n_ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    yield "too_many_end_ellipsis", n_ends / len(lines), ">", max_end_ellipses
    # With punctuation among the words plain prose has 0.85 here, without it 0.98: the one rule
    # that depends on the tokens. FineWeb counts punctuation, and so do we.
    n_alpha = sum(n for word, n in real.items() if any(map(str.isalpha, word)))
    yield "below_alpha", n_alpha / n_words, "<", min_alpha
    yield "stop_words", len(STOP_WORDS & counts.keys()), "<", min_stop_words


# --------------------------------------------------------------------------- 6. duplicates
# MinHash (Broder 1997): of each of 112 hash functions keep the smallest value over a text's 5-word
# shingles. Two texts share one such minimum with probability s, their shingles' Jaccard similarity.
# Cut in 14 bands of 8, they match if all 8 of any band agree: P = 1 - (1 - s^8)^14. At s = 0.8 one
# band agrees with probability 0.8^8 = 0.168, none of 14 with 0.832^14 = 0.076: 92% are found. At
# s = 0.5 it is 5%. This steep curve is all there is to it: no pair of texts is ever compared.
# FineWeb's numbers (section 3.4). Signatures are made one text at a time; then each band is sorted,
# equal neighbours are linked, and of each chain of links the first text stays.

SHINGLE_WORDS, BANDS, ROWS = 5, 14, 8
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


@njit(cache=True)
def mix(x):
    """Every bit of x moves every bit of the result (the finalizer of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def hash_lines(data):
    """64-bit hashes of the non-empty lines, their blanks left out (FNV-1a, mixed)."""
    out, n = np.empty(len(data) // 2 + 1, np.uint64), 0
    h, length = np.uint64(0xCBF29CE484222325), 0
    for i in range(len(data) + 1):
        c = data[i] if i < len(data) else np.uint8(10)
        if c == 10:
            if length:
                out[n] = mix(h)
                n += 1
            h, length = np.uint64(0xCBF29CE484222325), 0
        elif c != 32 and c != 13:
            h = (h ^ np.uint64(c)) * np.uint64(0x100000001B3)
            length += 1
    return out[:n].copy()


def hash_text(text):
    """The 64-bit hash of a str with all blanks and line ends left out."""
    data = "".join(text.split()).encode("utf-8", "surrogatepass")
    return hash_lines(np.frombuffer(data, np.uint8))[0] if data else np.uint64(0)


# "In 1999 the Café — closed, at 3.14 pm" becomes: in 0 the cafe closed at 0 pm. Copies that differ
# in dates, accents, case or punctuation alone are the same to MinHash.


@functools.cache
def shingle_alphabet():
    """uint32 (65536,): what becomes of each character before shingling, as datatrove does it.

    0 ends a word (blanks, punctuation, symbols), 1 vanishes (accents on their own), digits all
    become "0", other letters lower case without their accents."""
    table = np.arange(1 << 16, dtype=np.uint32)
    for code in range(1 << 16):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind[0] == "L":
            base, *marks = unicodedata.normalize("NFD", character.lower())
            if all(unicodedata.combining(mark) for mark in marks):
                table[code] = ord(base)
        elif kind[0] in "ZPSC":
            table[code] = 0
        elif kind == "Mn":
            table[code] = 1
        elif kind == "Nd":
            table[code] = ord("0")
    return table


@njit(cache=True)
def shingle_hashes(codes, table, n_words):
    """Hashes of the runs of n_words words in a text of code points; numbers like 3.14 are one 0."""
    words, n = np.empty(len(codes) // 2 + 1, np.uint64), 0
    zero, dot, comma = np.uint32(48), np.uint32(46), np.uint32(44)
    h, length, last = np.uint64(1), 0, np.uint32(0)
    for i in range(len(codes) + 1):
        code = codes[i] if i < len(codes) else np.uint32(0)
        c = table[code] if code < len(table) else code
        if c == 1 or (c == zero and last == zero):
            continue
        if (code == dot or code == comma) and last == zero and i + 1 < len(codes):
            following = codes[i + 1]
            if following < len(table) and table[following] == zero:
                continue
        last = c
        if c != 0:
            h = (h ^ np.uint64(c)) * MULTIPLIER
            h ^= h >> np.uint64(29)
            length += 1
        elif length:
            words[n] = mix(h)
            n += 1
            h, length = np.uint64(1), 0
    out = np.empty(max(n - n_words + 1, 0), np.uint64)
    for i in range(len(out)):
        h = np.uint64(0)
        for j in range(n_words):
            h = (h ^ words[i + j]) * MULTIPLIER
            h ^= h >> np.uint64(32)
        out[i] = mix(h)
    return out


@functools.cache
def hash_functions(n):
    """(n,) odd multipliers and (n,) offsets of h(x) = (x ^ offset) * multiplier mod 2^64."""
    random = np.random.default_rng(1)
    return random.integers(0, 1 << 64, (2, n), np.uint64) | np.array([[1], [0]], np.uint64)


@njit(cache=True)
def band_keys(shingles, functions, n_bands, n_rows):
    """(S,) uint64 shingles, (2, n) functions -> (n_bands,) uint64: a key for each band, and equal
    keys mean that all n_rows minima agree.

    Keeping the keys in place of the minima makes a document 112 bytes instead of 896; that two
    bands differ under one key happens once in 2^64."""
    n = n_bands * n_rows
    smallest = np.full(n, np.uint64(0xFFFFFFFFFFFFFFFF))
    for x in shingles:
        for k in range(n):
            h = (x ^ functions[1, k]) * functions[0, k]
            smallest[k] = min(smallest[k], h)
    keys = np.empty(n_bands, np.uint64)
    for band in range(n_bands):
        h = np.uint64(band)
        for k in range(band * n_rows, (band + 1) * n_rows):
            h = mix(h ^ smallest[k]) * MULTIPLIER
        keys[band] = h
    return keys


def signature(text, *, words=SHINGLE_WORDS, bands=BANDS, rows=ROWS):
    """(bands,) uint64 keys of a text; None under `words` words: such a text is like no other."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    shingles = shingle_hashes(codes, shingle_alphabet(), words)
    return band_keys(shingles, hash_functions(bands * rows), bands, rows) if len(shingles) else None


@njit(cache=True)
def unite(root, keys, order):
    """Union-find: neighbours in the sorted order with equal keys come under the smaller root.

    root[i] leads towards the first text of i's cluster; each walk halves the way for the next."""
    for i in range(1, len(order)):
        if keys[order[i]] == keys[order[i - 1]]:
            a, b = order[i], order[i - 1]
            while root[a] != a:
                root[a] = root[root[a]]
                a = root[a]
            while root[b] != b:
                root[b] = root[root[b]]
                b = root[b]
            root[max(a, b)] = min(a, b)


def first_of_cluster(keys):
    """(N, bands) uint64 -> (N,) bool: is this document the first of all it is linked to?

    One band at a time is sorted, so memory is the keys and one order; links chain (a ~ b ~ c)."""
    root = np.arange(len(keys))
    for band in range(keys.shape[1]):
        column = np.ascontiguousarray(keys[:, band])
        unite(root, column, np.argsort(column, kind="stable"))
    return root == np.arange(len(keys))


def near_duplicates(texts, *, words=SHINGLE_WORDS, bands=BANDS, rows=ROWS):
    """(N,) bool, True where a document stays: the first of each cluster of near-duplicates.
    FineWeb keeps an arbitrary one. A text too short for a shingle always stays."""
    found = [signature(text, words=words, bands=bands, rows=rows) for text in texts]
    stays = np.ones(len(found), bool)
    signed = np.array([i for i, keys in enumerate(found) if keys is not None], np.int64)
    if len(signed):
        stays[signed] = first_of_cluster(np.stack([found[i] for i in signed]))
    return stays


def exact(pairs, *, urls=True, texts=True):
    """(hash of the URL or 0, hash of the text) of each page -> its reason or None: the first page
    of a URL stays, and of those the first of a text. URLs A, A, B with texts x, y, y: the second
    goes by its URL, the third stays, since the y before it is gone already."""
    seen_urls, seen_texts, reasons = set(), set(), []
    for url, text in pairs:
        if urls and url and url in seen_urls:
            reasons.append("duplicate_url")
            continue
        reasons.append("duplicate_text" if texts and text in seen_texts else None)
        seen_urls.add(url)
        seen_texts.add(text)
    return reasons


# --------------------------------------------------------------------------- 7. C4

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = re.compile(
    r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
)
END_MARKS = (".", "?", "!", '"', "'")


def c4_lines(
    text, *, min_sentences=5, max_word_length=1000, citations=True, terminal_punct=False,
    min_words=3, lorem_ipsum=True, javascript=True, curly_bracket=True, policy=True,
):
    """(the good lines, checks). C4 (section 2.2) judges lines first and then what is left of the
    text; the words of a line are what blanks part, counted before citation marks go."""
    kept, checks, n_sentences = [], [], 0
    for line in map(str.strip, text.splitlines()):
        words, small = line.split(), line.lower()
        line = CITATION.sub("", line) if citations else line
        no_end = not line.endswith(END_MARKS) or line.endswith("...")
        reason = next((reason for reason, is_bad in (
            ("too_long_word", any(len(word) > max_word_length for word in words)),
            # C4 demands a terminal mark; FineWeb does not, since that costs 30% of all tokens.
            ("no_terminal_punct", terminal_punct and no_end),
            ("too_few_words", len(words) < min_words),
            ("lorem_ipsum", lorem_ipsum and "lorem ipsum" in small),
            ("javascript", javascript and "javascript" in small),
            ("curly_bracket", curly_bracket and "{" in line),
            ("policy", policy and POLICY.search(small)),
        ) if is_bad), None)
        if reason:
            what = "text" if reason in ("lorem_ipsum", "curly_bracket") else "line"
            checks += [(reason, repr(line[:60]), "drops", what)] if line else []
        else:
            kept.append(line)
            n_sentences += count_sentences(line)
    checks.append(("too_few_sentences", n_sentences, "<", min_sentences))
    return "\n".join(kept), checks


def c4(text, **limits):
    """(the good lines, None), or (text, reason)."""
    kept, checks = c4_lines(text, **limits)
    reason = first_failure(checks)
    return (text, reason) if reason else (kept, None)


# --------------------------------------------------------------------------- 8. FineWeb


@measured
def fineweb(
    text, *, line_punct=0.12, short_line=0.67, short_line_chars=30, char_dup=0.1, list_ratio=0.3
):
    """FineWeb's own three rules (section 3.6) and one more that its code has. They run on what C4
    has left, and were found by comparing statistics of a better and a worse version of one crawl.

    13 of 100 lines that end in a stop: kept; 12 of 100: 0.12 <= 0.12, dropped."""
    lines = [line for line in text.split("\n") if line.strip()]
    n_lines = max(len(lines), 1)
    yield "empty", len(lines), "<", 1
    # paper: "<= 0.12"; code: < 0.12. The code's marks have grown from . ' " ! ? to Unicode's list.
    n_stops = sum(bool(STOP.search(line.rstrip())) for line in lines)
    yield "line_punct_ratio", n_stops / n_lines, "≤", line_punct
    # paper: shorter than 30 characters, >= 0.67 of the lines; code: <= 30, > 0.67.
    n_short = sum(len(line) < short_line_chars for line in lines)
    yield "short_line_ratio", n_short / n_lines, "≥", short_line
    # paper: >= 0.1; code: > 0.01, ten times stricter.
    yield "char_dup_ratio", repeats(lines)[1] / max(len(text.replace("\n", "")), 1), "≥", char_dup
    # code only: texts that are lists.
    yield "list_ratio", text.count("\n") / max(len(words_in(text)), 1), ">", list_ratio


# --------------------------------------------------------------------------- 9. personal data

# The last stage changes texts and drops none. Patterns are bounded ("{1,64}") or possessive ("++"),
# so that a megabyte of "a.a.a.a" takes linear time.
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
IPV4 = re.compile(rf"(?:{BYTE}\.){{3}}{BYTE}")
EMAIL = re.compile(
    rf"\b{ATOM}{{1,64}}+(?:\.{ATOM}{{1,64}}+){{0,8}}+@"
    rf"(?:{LABEL}(?:\.{LABEL}){{1,8}}|\[{IPV4.pattern}\])",
    re.ASCII,
)
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)", re.ASCII)
# +49 30 1234567, +1 (202) 555-0123, (202) 555-0123, 202-555-0123, 030/1234567: marks between the
# groups are what tells a telephone number from other numbers, so without "+" they must be there.
PHONE = re.compile(
    r"(?<![\w.,+/-])(?:\+[1-9][0-9]{0,2}(?:[ ./-]?\(0?\)|[ ./-])?(?:\(?[0-9]{1,5}\)?[ ./-]?){1,4}"
    r"[0-9]{2,8}|\([2-9][0-9]{2}\) ?[0-9]{3}[ .-][0-9]{4}|[2-9][0-9]{2}([.-])[0-9]{3}\1[0-9]{4}|"
    r"\(?0[1-9][0-9]{1,4}\)?[ ]?[/-][ ]?[0-9]{3,8}(?:[ -][0-9]{2,5}){0,2})(?![\w/-]|[.,]\d)"
)
# Replacements: FineWeb's two addresses and six hosts that answered nothing; for the rest, numbers
# set aside for examples (NANP 555-01xx, RFC 3849).
EMAILS = ("email@example.com", "firstname.lastname@example.org")
HOSTS = ("22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11")
HOSTS += ("18.104.22.168",)
PHONES = ("+1 202-555-0123", "+1 202-555-0187")
HOSTS_6 = ("2001:db8::1", "2001:db8::2")


def is_public(address):
    """Private, local and malformed addresses (leading zeros) name nobody and stay."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def mask_pii(text, *, emails=True, ipv4=True, ipv6=True, phones=True):
    """Replaces what points to a person by something of the same kind, so sentences stay readable.

    FineWeb does e-mail and public IPv4 addresses; IPv6 and telephone numbers are ours. Several
    replacements take turns, beginning anew with each text (FineWeb's turns run on across texts,
    which would make the result depend on the order of work)."""
    for wanted, mark, pattern, names, is_personal in (
        (emails, "@", EMAIL, EMAILS, None),
        (ipv4, ".", IPV4, HOSTS, is_public),
        (ipv6, ":", IPV6, HOSTS_6, is_public),
        (phones, "", PHONE, PHONES, lambda number: 7 <= sum(map(str.isdigit, number)) <= 15),
    ):
        if wanted and mark in text:
            turn = itertools.cycle(names)
            text = pattern.sub(
                lambda m: next(turn) if not is_personal or is_personal(m[0]) else m[0], text
            )
    return text


# --------------------------------------------------------------------------- the whole pipeline
# Workers take single pages through the stages; the parent reads, counts, finds duplicates, writes.

STAGES = "read url extract language repetition quality exact minhash c4 fineweb pii".split()
EARLY = STAGES[: STAGES.index("exact")]  # what one page can be asked before all others are known
RULES = {"url": url_rule, "language": language_rule, "gopher_repetition": gopher_repetition,
         "gopher_quality": gopher_quality, "exact": exact, "minhash": signature, "c4": c4_lines,
         "fineweb": fineweb, "pii": mask_pii}


def read_settings(changes=()):
    """["NAME=VALUE", ...] -> {rule: {threshold: value}, or None if the rule is off}, and all names.

    The thresholds are the rules' keyword arguments. A name is such an argument behind the first
    word of its rule: min_words of gopher_quality is set by gopher_min_words=20."""
    rules = {rule: getattr(function, "checks", function) for rule, function in RULES.items()}
    settings = {rule: dict(function.__kwdefaults__) for rule, function in rules.items()}
    names = {f"{rule.split('_')[0]}_{key}": (rule, key) for rule in rules for key in settings[rule]}
    off = []
    for change in changes:
        name, _, value = change.partition("=")
        if name in settings and value == "off":
            off.append(name)
            continue
        if name not in names:
            raise ValueError(f"--set {change}: no such setting; python data.py --help lists all")
        rule, key = names[name]
        old = settings[rule][key]
        try:
            if isinstance(old, bool):
                new = {"on": True, "off": False}[value]
            elif value == "off" and isinstance(old, (int, float)) and rule != "minhash":
                new = math.nan
            else:
                new = value if isinstance(old, str) else type(old)(float(value))
        except (KeyError, ValueError, OverflowError):
            wanted = "on or off" if isinstance(old, bool) else "a number or off"
            raise ValueError(f"--set {change}: the value must be {wanted}") from None
        settings[rule][key] = new
    return settings | dict.fromkeys(off), names


def spell_out(settings):
    """The settings as JSON can hold them: NaN, the only value unlike itself, reads "off"."""
    return {rule: limits and {name: value if value == value else "off"
            for name, value in limits.items()} for rule, limits in settings.items()}


def new_page(raw):
    """What is known of a page on its way: the stage it failed at (None: none) and why; its
    characters after each stage it passed; the document; the keys that duplicates are found by."""
    record = {"id": raw["id"], "url": raw["url"], "text": ""}
    return {"stage": None, "reason": None, "passed": {}, "record": record, "keys": None}


def page_checks(raw, page, settings, blocklist):
    """Takes a page through the stages: yields (stage, its checks) while it fills in the page.

    C4 and later stages come after the duplicates, but they look at one page alone: the worker has
    it in hand, so it asks them at once, and the parent counts a duplicate as a duplicate whatever
    they said. Whether to go on after a failed check is the caller's choice."""
    record = page["record"]

    def ask(rule, *arguments):
        limits = settings[rule]
        return () if limits is None else RULES[rule].checks(*arguments, **limits)

    document, reason = open_document(raw)
    yield "read", [(reason, 1, ">", 0)] if reason else ()
    if reason:
        return
    yield "url", ask("url", record["url"], blocklist) if record["url"] else ()
    text = extract_text(document["html"]) if "html" in document else document["text"]
    record["text"] = text = text.encode("utf-8", "replace").decode().strip()
    yield "extract", [("empty", len(text), "<", 1)]
    code, score = identify_language(text)
    record.update(language=code, language_score=round(score, 3))
    yield "language", ask("language", code, score)
    yield "repetition", ask("gopher_repetition", text)
    yield "quality", ask("gopher_quality", text)

    # (3 + bands,) uint64: hash of the URL, hash of the text, 1 if there is a signature, its bands
    minhash = settings["minhash"]
    page["keys"] = keys = np.zeros(3 + (minhash["bands"] if minhash else 0), np.uint64)
    keys[:2] = hash_text(record["url"] or ""), hash_text(text)
    if minhash and (bands := signature(text, **minhash)) is not None:
        keys[2], keys[3:] = 1, bands
    record["id"] = record["id"] or f"{keys[1]:016x}"
    # The side is chosen by the text's hash alone: a document never changes sides.
    page["side"] = "val" if keys[1] < VAL_FRACTION * 2.0**64 else "train"
    yield "exact", ()  # both are judged by the parent when all pages are known
    yield "minhash", ()
    kept, checks = c4_lines(text, **settings["c4"]) if settings["c4"] else (text, ())
    record["text"] = text if first_failure(checks) else kept
    yield "c4", checks
    yield "fineweb", ask("fineweb", record["text"])
    if settings["pii"]:
        record["text"] = mask_pii(record["text"], **settings["pii"])
    yield "pii", ()


def clean_page(raw, settings, blocklist=None):
    """One raw page through all stages up to the first check that fails."""
    page = new_page(raw)
    for stage, checks in page_checks(raw, page, settings, blocklist):
        if reason := first_failure(checks):
            return {**page, "stage": stage, "reason": reason}
        page["passed"][stage] = len(page["record"]["text"])
    return page


def extract_page(raw):
    """For --only extract: {"url", "text"}, or None where the record is no page."""
    page, _ = open_document(raw)
    if page:
        return {"url": page["url"], "text": page.get("text") or extract_text(page.get("html", ""))}


WORKER = ()  # the function and what it needs, sent once to each process rather than with each batch


def start_worker(*parts):
    global WORKER
    WORKER = parts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent


def work(batch):
    """What each worker process does with what it is sent: the same function to every raw page."""
    function, *more = WORKER
    return [function(raw, *more) for raw in batch]


def map_in_order(function, raws, n_workers, *more):
    """Yields (input bytes read, [function(raw, *more), ...]) for batches of raw pages, in their
    order whatever the number of workers; only a few batches are under way at a time."""
    with ProcessPoolExecutor(n_workers, None, start_worker, (function, *more)) as pool:
        waiting, batch, n_bytes = deque(), [], 0
        for raw in itertools.chain(raws, [None]):
            if raw:
                batch.append(raw)
                n_bytes += len(raw["body"])
            if batch and (not raw or n_bytes >= BATCH_BYTES or len(batch) >= BATCH_PAGES):
                waiting.append((batch[-1]["done"], pool.submit(work, batch)))
                batch, n_bytes = [], 0
            while waiting and (not raw or len(waiting) > 2 * n_workers):
                done, future = waiting.popleft()
                yield done, future.result()


def count_page(counts, passed, stage=None, reason=None):
    """Adds a page to the table: the stages it passed and, if any, the one where it left.

    counts: {stage: {"in", "kept", "characters", "reasons": Counter}}, passed: {stage: characters}
    of the page's text behind that stage."""
    for name, characters in passed.items():
        if name == stage:
            break  # a duplicate leaves before stages that its worker has already asked
        counts[name]["in"] += 1
        counts[name]["kept"] += 1
        counts[name]["characters"] += characters
    if stage:
        counts[stage]["in"] += 1
        counts[stage]["reasons"][reason] += 1


def compile_kernels():
    """Compiles once, or every worker would; Numba keeps the result for the next run."""
    start = time.perf_counter()
    for rule in (gopher_repetition, hash_text, lambda text: near_duplicates([text] * 2)):
        rule("any text of five words or more")
    if time.perf_counter() - start > 0.5:
        print(f"compiled in {time.perf_counter() - start:.1f} s (kept for the next time)")


def run(files, out, settings, blocklist=None, n_workers=1, rejects=None):
    """The whole pipeline: files -> shards and stats.json in `out`; returns the statistics.

    First pass: workers clean pages; those that reach the duplicates wait in a temporary file, and
    only their keys stay in memory (136 bytes each). Then the keys tell who is a duplicate, and
    the second pass copies the others into shards."""
    os.makedirs(out, exist_ok=True)
    start, n_bytes, damaged, keys = time.perf_counter(), sum(map(os.path.getsize, files)), [], []
    counts = {s: {"in": 0, "kept": 0, "characters": 0, "reasons": Counter()} for s in STAGES}
    progress = show_progress(counts, n_bytes)
    compile_kernels()

    def report(message):
        damaged.append(message)
        if len(damaged) <= MAX_WARNINGS:
            print(f"warning: {message}", file=sys.stderr)

    def settle(page, stage, reason):
        count_page(counts, page["passed"], stage, reason)
        if stage and rejects:
            rejects.write(to_json({**page["record"], "stage": stage, "reason": reason}))

    def survivors():
        for line, verdict in zip(waiting, find_duplicates(keys, settings)):
            page = json.loads(line)
            stage, reason = verdict or (page["stage"], page["reason"])
            settle(page, stage, reason)
            if not stage:
                yield page["side"], page["record"]

    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", dir=out) as waiting:
        raws = read_files(files, report)
        for done, pages in map_in_order(clean_page, raws, n_workers, settings, blocklist):
            for page in pages:
                page_keys = page.pop("keys")
                if page_keys is None:
                    settle(page, page["stage"], page["reason"])
                else:
                    count_page(counts, {stage: page["passed"].pop(stage) for stage in EARLY})
                    keys.append(page_keys)
                    waiting.write(to_json(page))
            progress(done)
        waiting.seek(0)
        n_kept = write_shards(survivors(), out)
    progress(n_bytes, last=True)
    seconds = time.perf_counter() - start
    stats = {"documents": n_kept, "stages": counts, "n_damaged": len(damaged),
             "damaged": damaged[:1000], "seconds": seconds, "settings": spell_out(settings),
             "pages_per_s": counts["read"]["in"] / seconds}
    with open(os.path.join(out, "stats.json.part"), "w", encoding="utf-8") as file:
        json.dump(stats, file, indent=1)
    os.replace(file.name, os.path.join(out, "stats.json"))
    return stats


def to_json(value):
    return json.dumps(value, ensure_ascii=False) + "\n"


def find_duplicates(keys, settings):
    """The keys of all waiting pages -> for each None or (stage, reason).

    keys: N rows (URL's hash, text's hash, 1 if signed, bands...), in the order of the input, which
    is what makes the choice of the first one the same for any number of workers."""
    keys, verdicts = np.array(keys, np.uint64), [None] * len(keys)
    if len(keys) and settings["exact"] is not None:
        reasons = exact(keys[:, :2].tolist(), **settings["exact"])
        verdicts = [reason and ("exact", reason) for reason in reasons]
    if len(keys) and settings["minhash"] is not None:
        signed = np.flatnonzero(keys[:, 2])
        signed = signed[[verdicts[i] is None for i in signed]]
        for i in signed[~first_of_cluster(keys[signed, 3:])]:
            verdicts[i] = "minhash", "near_duplicate"
    return verdicts


def write_shards(documents, out):
    """(side, record) pairs -> train-00000.jsonl.gz, ..., val-00000.jsonl.gz, ...; their numbers.
    A shard ends with the document that fills its SHARD_CHARS; both sides always have a first one.
    Written in a temporary folder and put in the place of older ones at the end: all or nothing."""
    n_kept, n_chars, files = {"train": 0, "val": 0}, Counter(), {}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for side, record in itertools.chain([("train", None), ("val", None)], documents):
            name = f"{side}-{n_chars[side] // SHARD_CHARS:05d}.jsonl.gz"
            if side not in files or os.path.basename(files[side].name) != name:
                if side in files:
                    files[side].close()
                path = os.path.join(folder, name)
                files[side] = gzip.GzipFile(path, "wb", compresslevel=6, mtime=0)
            if record:
                files[side].write(to_json(record).encode("utf-8", "replace"))
                n_kept[side] += 1
                n_chars[side] += len(record["text"])
        for file in files.values():
            file.close()
        for name in os.listdir(out):
            if re.fullmatch(r"(train|val)-\d{5}\.jsonl\.gz", name):
                os.remove(os.path.join(out, name))
        for name in os.listdir(folder):
            os.replace(os.path.join(folder, name), os.path.join(out, name))
    return n_kept


# --------------------------------------------------------------------------- what it shows


def table(counts):
    """The counts as lines of text: in = kept + dropped; a stage's kept are the next one's in."""
    lines = [f"{'stage':11}{'in':>11}{'kept':>11}{'dropped':>11}{'characters':>16}  reasons"]
    for stage, row in counts.items():
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in row["reasons"].most_common())
        line = f"{stage:11}{row['in']:11,}{row['kept']:11,}{row['in'] - row['kept']:11,}"
        lines.append(f"{line}{row['characters']:16,}  {reasons}")
    return lines


def show_progress(counts, n_bytes):
    """Returns progress(bytes done): on a terminal it redraws the table once a second, elsewhere it
    prints a line every ten seconds; at last the table. Time left is the time so far, times the
    bytes to go by the bytes done: pages differ too much in size to be counted for that."""
    terminal, start = sys.stdout.isatty(), time.perf_counter()
    shown_at, n_lines = start, 0

    def progress(done, last=False):
        nonlocal shown_at, n_lines
        now, n_pages = time.perf_counter(), counts["read"]["in"]
        if not last and now - shown_at < (1 if terminal else 10):
            return
        line = f"{n_pages:,} pages | {counts['quality']['kept']:,} good before duplicates"
        line += f" | {n_pages / (now - start):,.0f} pages/s"
        line += f" | {(now - start) * (n_bytes - done) / max(done, 1) / 60:.1f} min left"
        lines = table(counts) if last else table(counts) + [line] if terminal else [line]
        width = shutil.get_terminal_size().columns - 1 if terminal and not last else None
        print(f"\x1b[{n_lines}A\x1b[J" * (n_lines > 0), end="")  # up and erase
        print("\n".join(line[:width] for line in lines), flush=True)
        shown_at, n_lines = now, len(lines) if terminal else 0

    return progress


def match_curve(bands, rows):
    """The probability of a match at each similarity, as one line."""
    chances = (f"{s:.2f} {1 - (1 - s**rows) ** bands:.1%}" for s in np.arange(0.5, 0.96, 0.05))
    return f"MinHash {bands} x {rows}: chance that similar texts match | " + " | ".join(chances)


def explain(name, inputs, settings, blocklist):
    """Prints every rule's measured value beside its limit for one page, and the verdict:

        quality    short_doc                        17 < 50       fails

    Unlike the pipeline it goes on after a failure, so all that is wrong is seen at once. Rules that
    are off print nothing; C4 shows the lines it drops. `name` is a file, a URL of the inputs or "-"
    for standard input."""
    if name == "-":
        body = sys.stdin.buffer.read()
        raw = raw_page(0, "html" if body.lstrip().startswith(b"<") else "text", body)
    else:
        raws = read_files([name] if os.path.isfile(name) else input_files(inputs), print)
        raw = next((raw for raw in raws if os.path.isfile(name) or raw["url"] == name), None)
        if raw is None:
            raise ValueError(f"--explain {name}: no file of that name, no such URL in the inputs")
    verdict = None
    print(f"{'stage':10} {'rule':22} {'value':>12} fails if")
    for stage, checks in page_checks(raw, new_page(raw), settings, blocklist):
        for rule, value, sign, limit in checks:
            fails = bool(FAILS[sign](value, limit))
            verdict = verdict or (fails and f"dropped at {stage}: {rule}")
            value = f"{value:,.4g}" if isinstance(value, float) else value
            print(f"{stage:10} {rule:22} {value:>12} {sign} {limit!s:8}{' fails' * fails}".rstrip())
    off = ", ".join(rule for rule, limits in settings.items() if limits is None)
    print(f"verdict: {verdict or 'kept, unless a duplicate'}" + f"; off: {off}" * bool(off))


def only_extract(files, out, n_workers):
    """Writes {"url", "text"} lines for scoring, to `out` if that names a .jsonl file."""
    path = out if out.endswith(".jsonl") else os.path.join(out, "extracted.jsonl")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    n, raws = 0, read_files(files, functools.partial(print, "warning:", file=sys.stderr))
    with open(path + ".part", "w", encoding="utf-8", errors="replace") as file:
        for _, pages in map_in_order(extract_page, raws, n_workers):
            lines = [to_json(page) for page in pages if page]
            n += len(lines)
            file.writelines(lines)
    os.replace(path + ".part", path)
    return f"wrote {n:,} extracted pages to {path}"


def main(arguments=None):
    settings, names = read_settings()
    names = " ".join(f"{name}={settings[rule][key]}" for name, (rule, key) in names.items())
    parser = argparse.ArgumentParser(
        description="The crawl becomes clean text.",
        epilog="settings: " + names,
    )
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
    args = parser.parse_args(arguments)
    try:
        settings, _ = read_settings([f"language_languages={args.language}", *args.set])
        if args.workers < 1:
            raise ValueError(f"--workers {args.workers}: there must be at least one")
        print("config:", json.dumps(vars(args) | {"settings": spell_out(settings)}))
        blocklist = load_blocklist(args.blocklist) if args.blocklist else None
        if args.explain:
            explain(args.explain, args.inputs, settings, blocklist)
        elif args.only:
            print(only_extract(input_files(args.inputs), args.out, args.workers))
        else:
            if minhash := settings["minhash"]:
                print(match_curve(minhash["bands"], minhash["rows"]))
            files = input_files(args.inputs)
            with open(args.rejects or os.devnull, "w", encoding="utf-8", errors="replace") as file:
                stats = run(files, args.out, settings, blocklist, args.workers, file)
            n, speed = stats["documents"], stats["pages_per_s"]
            print(f"wrote {n['train']:,} documents to train on and {n['val']:,} to validate to "
                  f"{args.out} ({speed:,.0f} pages/s); next: python bpe.py")
    except (ValueError, OSError, BrokenProcessPool) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
