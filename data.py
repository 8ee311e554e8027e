"""1. The crawl becomes clean text.

    python data.py                                  the embedded world's crawl, out/world/
    python data.py CRAWL.warc.gz MORE.wet.gz FOLDER pages.jsonl notes.txt --workers 8
    python data.py CRAWL.warc.gz --explain URL      why one page is kept or dropped
    python data.py CRAWL.warc.gz --set gopher_min_words=20 --set c4=off --rejects rejects.jsonl

Reads WARC and WET files, HTML, JSON lines and plain text; writes `out/docs/train-*.jsonl.gz`,
`val-*.jsonl.gz` (lines {"id", "url", "text", "language", "language_score"}) and `stats.json`.
A page passes these stages in this order and leaves at the first rule it breaks, with a reason:

    read > url > extract > language > repetition > quality > exact > minhash > c4 > fineweb > pii

SPEED
Sources: FineWeb (arXiv 2406.17557) for the recipe; Gopher (2112.11446, table A1) for repetition
and quality; C4 (1910.10683, section 2.2); RefinedWeb (2306.01116) for URLs and deduplication;
datatrove, the code FineWeb ran, where the papers are silent. Where code and paper differ the
paper's value stands here and the comment names both.
Left out: C4's list of bad words, duplicates across separate runs, images, anything behind
JavaScript, and a learned quality classifier (FineWeb-Edu).
"""

import argparse
import difflib
import functools
import gzip
import html as html_entities
import inspect
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
import textwrap
import time
import unicodedata
import zlib
from collections import Counter, defaultdict, deque
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import regex
from numba import njit

CHUNK = 1 << 16  # bytes read or unpacked at once
MAX_HELD = 8 << 20  # a gzip member up to this size is checked whole before any of it is used
MAX_RECORD = 64 << 20  # bytes; a longer record is skipped: nobody writes 64 MB of prose on a page
MAX_PAGE = 16 << 20  # bytes of one page after unpacking, against gzip bombs
BATCH_BYTES = 1 << 20  # of raw pages sent to a worker at once
BATCH_PAGES = 64
MAX_WARNINGS = 20  # of damage shown; all are counted
READABLE = r"\.(warc|wet|html?|xhtml|jsonl|txt)(\.gz)?$"
SHARD_CHARS = 100_000_000  # characters of text in one output file
VAL_FRACTION = 0.05  # of the documents, chosen by a hash of their text

# --------------------------------------------------------------------------- 1. reading


def read_documents(path, report=None):
    """Yields {"url", "id", "html" or "text"} for each page of a file or a folder, in order.

    Damage is skipped and told to `report` (default: a line on stderr), records that are no
    pages (requests, images) are passed over."""
    report = report or (lambda message: print(message, file=sys.stderr))
    for raw in read_files(input_files([path]), report):
        document, reason = open_document(raw)
        if reason is None:
            yield document


def read_raw(path, report):
    """Yields pages as they lie in the file: {"path", "offset", "url", "id", "kind", "body"}.

    Opening them (`open_document`) costs far more than finding them, so that is left to the
    workers. `kind` is "http", "html" or "text"; `offset` is in bytes of the file as stored."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        unpacked = gzip.GzipFile(fileobj=file) if packed else file
        try:
            start = unpacked.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        except (OSError, EOFError, zlib.error):
            start = b"WARC/"  # damaged at once: the one reader that can go on behind the damage
        name = path.removesuffix(".gz")
        if start.startswith(b"WARC/") or name.endswith((".warc", ".wet")):
            yield from read_warc(path, report)
        elif start.startswith(b"{") and not name.endswith(".txt"):
            file.seek(0)
            unpacked = gzip.GzipFile(fileobj=file) if packed else file
            yield from read_json_lines(path, file, unpacked, report)
        else:
            unpacked.seek(0)
            is_html = name.endswith((".html", ".htm", ".xhtml"))
            is_html = is_html or (start.startswith(b"<") and not name.endswith(".txt"))
            yield {
                "path": path,
                "offset": 0,
                "url": None,
                "id": None,
                "kind": "html" if is_html else "text",
                "body": unpacked.read(MAX_RECORD),
            }


def read_json_lines(path, file, unpacked, report):
    """One page for each line {"text", optionally "url" and "id"} or {"html", ...}."""
    number = 0
    while True:
        offset = file.tell()
        try:
            line = unpacked.readline()
        except (OSError, EOFError, zlib.error) as error:
            report(f"{path}: damaged behind line {number} (byte {offset}): {error}")
            return
        if not line:
            return
        number += 1
        if not line.strip():
            continue
        try:
            page = json.loads(line)
            kind = "html" if "html" in page else "text"
            body = page[kind].encode("utf-8", "replace")
            url, name = (page.get(key) and str(page[key]) for key in ("url", "id"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            report(f'{path}: line {number} (byte {offset}) is not {{"text": ...}}; skipped')
            continue
        yield {"path": path, "offset": offset, "url": url, "id": name, "kind": kind, "body": body}


def unpack_members(path, report):
    """Yields (offset, step, bytes) pieces of a plain or gzip file; bytes is None at damage.

    `offset` is where the piece lies in the file, `step` how far it moves for each byte of it (1,
    or 0 when packed). A crawl's .warc.gz is a chain of gzip members, one for each record. A member
    up to MAX_HELD is handed on only once its checksum was right; a longer one (the whole file as
    one member) is streamed. After damage the search goes on at the next plausible member start."""
    with open(path, "rb") as file:
        size = os.path.getsize(path)
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            while piece := file.read(16 * CHUNK):
                yield file.tell() - len(piece), 1, piece
            return
        start = 0
        while start < size:
            file.seek(start)
            inflate, held, n_held, at = zlib.decompressobj(31), [], 0, start
            try:
                while not inflate.eof:
                    packed = inflate.unconsumed_tail or file.read(CHUNK)
                    if not packed:
                        raise EOFError("the file ends inside it")
                    held.append(inflate.decompress(packed, 16 * CHUNK))
                    n_held += len(held[-1])
                    if n_held > MAX_HELD:
                        yield at, 0, b"".join(held)
                        held, n_held, at = [], 0, file.tell()
            except (zlib.error, EOFError) as error:
                report(f"{path}: damaged gzip member at byte {start}: {error}; skipped")
                yield start, 0, None
                start = find_member(file, start + 1, size)
                continue
            if n_held:
                yield at, 0, b"".join(held)
            start = find_member(file, file.tell() - len(inflate.unused_data), size)


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


def read_warc(path, report):
    """Yields the response and conversion records of a WARC or WET file, one in memory at a time.

    A record is `WARC/1.0`, header lines, an empty line, exactly Content-Length bytes and two
    line ends. Where that does not hold the record is reported and the next start is searched for
    just behind this one, so a lying Content-Length cannot swallow its neighbours."""
    buffer, at, origin, lost = b"", 0, 0, False
    for offset, step, piece in itertools.chain(unpack_members(path, report), [(0, 0, b"")]):
        if piece is None:  # what was begun in this member is void
            buffer, at, lost = b"", 0, False
            continue
        origin = origin + step * at if at < len(buffer) else offset
        buffer, at = buffer[at:] + piece, 0
        while at < len(buffer):
            if lost:
                match = RECORD_START.search(buffer, at)
                lost = match is None
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
            is_page = headers["content-type"].startswith("application/http")
            if headers["warc-type"] == "conversion" or (
                headers["warc-type"] == "response" and is_page
            ):
                yield {
                    "path": path,
                    "offset": origin + step * at,
                    "url": headers["warc-target-uri"].strip("<>") or None,
                    "id": headers["warc-record-id"] or None,
                    "kind": "http" if is_page else "text",
                    "type": headers["warc-identified-payload-type"],
                    "body": block,
                }
            at = end


def parse_record(buffer, at, at_end):
    """(headers, block, end) of the record at `at`; None if more bytes are needed, or ValueError."""
    n_left = len(buffer) - at
    if not b"WARC/".startswith(buffer[at : at + 5]) and not buffer.startswith(b"WARC/", at):
        raise ValueError("it does not start with WARC/")
    headers_end = buffer.find(b"\r\n\r\n", at, at + CHUNK)
    if headers_end < 0:
        if at_end or n_left >= CHUNK:
            raise ValueError("its header has no end")
        return None
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
    """Header lines -> Counter-like dict, names in lower case, "" where a name is missing."""
    headers = defaultdict(str)
    for line in block.decode("utf-8", "replace").splitlines()[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def open_document(raw):
    """A raw page -> ({"url", "id", "html" or "text"}, None), or (None, reason)."""
    document = {"url": raw["url"], "id": raw["id"]}
    body, content_type = raw["body"], ""
    if raw["kind"] == "http":
        head, separator, rest = body.partition(b"\r\n\r\n")
        headers = parse_headers(head)
        if head.startswith(b"HTTP/") and separator:
            body, content_type = rest, headers["content-type"]
        try:
            body = unwrap_body(body, headers)
        except (ValueError, zlib.error, EOFError):
            return None, "unreadable_encoding"
        media_type = (raw["type"] or content_type).partition(";")[0].strip().lower()
        if not media_type and re.search(rb"(?i)<(!doctype\s+html|html|head|body)\b", body[:2048]):
            media_type = "text/html"
        if media_type not in ("text/html", "application/xhtml+xml"):
            return None, "not_html"
    elif raw["kind"] == "text":
        return {**document, "text": body.decode("utf-8-sig", "replace")}, None
    return {**document, "html": decode_html(body, content_type)}, None


def unwrap_body(body, headers):
    """Undoes Transfer-Encoding: chunked, then Content-Encoding gzip or deflate.

    Crawlers often store the body already unwrapped under the headers as they came, so what does
    not look wrapped is taken as it is."""
    if "chunked" in headers["transfer-encoding"].lower():
        pieces, at = [], 0
        while match := CHUNK_SIZE.match(body, at):
            size = int(match[1], 16)
            pieces.append(body[match.end() : match.end() + size])
            at = match.end() + size
            at += 2 if body[at : at + 2] == b"\r\n" else 0
            if size == 0:
                break
        body = b"".join(pieces) if pieces else body
    encoding = headers["content-encoding"].lower()
    if "gzip" in encoding and body[:2] == b"\x1f\x8b" or "deflate" in encoding:
        for bits in (47, -15):  # 47: gzip or zlib by its header; -15: deflate without one
            try:
                return zlib.decompressobj(bits).decompress(body, MAX_PAGE)
            except zlib.error:
                continue
    if re.search(r"\b(br|zstd|gzip|deflate)\b", encoding) and b"<" not in body[:512]:
        raise ValueError(f"a body packed as {encoding} that cannot be unpacked")
    return body[:MAX_PAGE]


CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]{0,256}\r\n")
META_CHARSET = re.compile(rb"(?i)<meta[^>]{0,500}?charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([-\w]{2,40})")
# Python knows codecs that are no charsets (punycode, idna, hex), some of them slow: names we trust.
CHARSET = re.compile(r"utf-?8|utf-?16|windows-|cp\d|iso-|latin|us-ascii|koi8|gb|big5|euc|shift|mac")
# Labels mean what browsers make of them (WHATWG Encoding Standard): the larger cousin.
COUSINS = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "iso-8859-9": "cp1254"}
COUSINS |= {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}


def decode_html(body, content_type=""):
    """Bytes -> str by byte order mark, HTTP header, or `<meta>`; else UTF-8 with replacement.

    A page that declares a one-byte charset but is valid UTF-8 is UTF-8: such pages are mislabelled
    (real text in another charset is hardly ever valid UTF-8; FineWeb tries UTF-8 first always)."""
    for mark, charset in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if body.startswith(mark):
            return body.decode(charset, "replace").removeprefix("\ufeff")
    declared = re.search(r"(?i)charset\s*=\s*[\"']?\s*([-\w]{2,40})", content_type)
    meta = None if declared else META_CHARSET.search(body[:4096])
    charset = declared[1].lower() if declared else meta[1].decode("ascii", "replace").lower() if meta else ""
    charset = COUSINS.get(charset, charset) if CHARSET.match(charset) else "utf-8"
    if meta and charset.startswith("utf-16"):
        charset = "utf-8"  # a <meta> found by its ASCII letters cannot stand in a UTF-16 page
    try:
        if re.match("windows|cp125|iso-8859|latin", charset):
            return body.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return body.decode(charset, "replace")
    except LookupError:
        return body.decode("utf-8", "replace")


# --------------------------------------------------------------------------- 2. URLs

# Our own small lists by category; `--blocklist DIR` adds lists in the form of the UT1 collection
# (DIR/CATEGORY/domains and DIR/CATEGORY/urls, one a line), from which FineWeb's are made.
BLOCKED_DOMAINS = {
    "adult": "pornhub.com xvideos.com xnxx.com xhamster.com redtube.com youporn.com onlyfans.com",
    "gambling": "bet365.com pokerstars.com 888casino.com betway.com bwin.com unibet.com",
    "links": "bit.ly tinyurl.com adf.ly t.co ow.ly goo.gl",  # shorteners: never a page of their own
}
HARD_WORDS = {  # one of them as a word of the URL is enough
    "adult": "porn porno xxx milf hentai blowjob camgirl camgirls creampie cumshot gangbang sexcam",
    "gambling": "onlinecasino freespins sportsbetting casinobonus",
    "spam": "viagra cialis levitra essaywriting replicawatches",
}
SOFT_WORDS = {  # harmless alone, telling in pairs
    "adult": "sex sexy nude naked teen teens girls hot webcam escort amateur fetish erotic",
    "gambling": "casino poker slots slot betting bet jackpot roulette blackjack bonus",
    "spam": "cheap pills pharmacy replica warez keygen crack torrent loans payday",
}
SUBWORDS = {"adult": "pornhub xvideos sexcam freeporn porntube livesex", "spam": "buyviagra"}


def words_of(lists):
    return frozenset(" ".join(lists.values()).split())


HARD, SOFT, BLOCKED = words_of(HARD_WORDS), words_of(SOFT_WORDS), words_of(BLOCKED_DOMAINS)
SUBWORD = re.compile("|".join(sorted(words_of(SUBWORDS))))
# Second-level labels under which a country registers names (co.uk): enough of the public suffixes.
SECOND_LEVEL = frozenset("ac co com edu gob gouv gov id in mil ne net nom or org web".split())


def load_blocklist(folder):
    """UT1 lists -> (domain hashes, url hashes), sorted uint64: 8 bytes an entry, so five million
    domains take 40 MB, shared by the workers, where a set of strings would take 600 MB each."""
    found = {"domains": [], "urls": []}
    for parent, _, names in os.walk(folder):
        for name in set(names) & set(found):
            with open(os.path.join(parent, name), "rb") as file:
                while lines := file.readlines(16 << 20):
                    data = b"".join(lines).lower() if name == "domains" else b"".join(lines)
                    found[name].append(hash_lines(np.frombuffer(data + b"\n", np.uint8)))
    if not found["domains"] and not found["urls"]:
        raise ValueError(f"{folder} holds no CATEGORY/domains or CATEGORY/urls; see --blocklist")
    return tuple(np.unique(np.concatenate(found[k] or [np.zeros(0, np.uint64)])) for k in found)


def is_listed(hashes, text):
    i = np.searchsorted(hashes, hash_text(text))
    return i < len(hashes) and hashes[i] == hash_text(text)


def url_rule(url, *, blocklist=None, soft_words=2):
    """Why a URL is refused, or None. RefinedWeb section 3.1 and its appendix; six checks.

    A listed domain blocks all its hosts, a listed host only itself. Words are the pieces of the
    URL between signs, case kept; subwords are looked for in the URL squeezed to its letters."""
    domains, urls = blocklist or (EMPTY, EMPTY)
    address = url.split("://", 1)[-1]
    host = re.split(r"[/?#]", address, maxsplit=1)[0].rpartition("@")[2].partition(":")[0]
    host = host.lower().rstrip(".")
    labels = host.split(".")
    n_registered = 3 if len(labels[-1]) == 2 and labels[-2:-1] and labels[-2] in SECOND_LEVEL else 2
    domain = ".".join(labels[-n_registered:])
    if domain in BLOCKED or is_listed(domains, domain):
        return "domain"
    if host in BLOCKED or is_listed(domains, host):
        return "subdomain"
    if any(is_listed(urls, form) for form in (url, address, address.removeprefix("www."))):
        return "url"
    words = frozenset(re.split(r"[^A-Za-z0-9]+", url))
    if words & HARD:
        return "hard_blacklisted"
    if len(words & SOFT) >= soft_words:
        return "soft_blacklisted"
    if SUBWORD.search(re.sub(r"[^a-z0-9]", "", url.lower())):
        return "blacklisted_subword"
    return None


# --------------------------------------------------------------------------- 3. extraction
# One tolerant pass cuts the page into blocks of text; blocks vote by their characters, and the
# subtree with the most votes is the main text. No DOM is built, no page can make this slow: each
# tag is matched once, each character is looked at a bounded number of times.

# These tags and td, th do not break a line of text; every other tag ends a block.
INLINE = frozenset(
    "a abbr acronym b bdi bdo big br cite code data del dfn em font i img ins kbd label mark nobr "
    "q rp rt ruby s samp small source span strike strong sub sup td th time tt u var wbr".split()
)
# What stands in these is never the page's text.
UNSEEN = frozenset(
    "aside audio button canvas datalist dialog embed figcaption figure footer head iframe map math "
    "menu nav noscript object optgroup select svg template video".split()
)
RAW = frozenset("noembed script style textarea title xmp".split())  # no tags inside but their end
VOID = frozenset("area base col embed hr input link meta param track".split())  # no end tag
HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
LEAVES = HEADINGS | frozenset("p li tr dt dd pre blockquote".split())  # judged one by one
# Opening one of these ends an open one of those; every other block only ends an open p.
ENDS = {"li": ("p", "li"), "dt": ("p", "dt", "dd"), "dd": ("p", "dt", "dd"), "tr": ("p", "tr")}
ENDS |= {"body": ("head",)}
COST = dict.fromkeys("p li tr dd pre blockquote".split(), 10)  # votes a block must earn: prose tags
COST_ELSE = 40  # and all others: a short heading or div is more often a label than a sentence
# Words in class, id, role or itemprop that name what is around an article, not in it.
NOISE = frozenset(
    "ad ads adv advert advertisement alert author banner bio breadcrumb breadcrumbs byline caption "
    "comment comments consent cookie cookies copyright dialog disqus feed follow footer gallery "
    "hidden infobox legal login masthead menu meta modal nav navbar navigation newsletter noprint "
    "overlay pager pagination paging popup popular print promo promoted promotion rating ratings "
    "recommend recommended related reply respond rss share sharing sidebar signup sitemap skip "
    "slider social sponsor sponsored subscribe subscription tag tags teaser teasers toolbar "
    "trending widget widgets".split()
)
MAIN_NAME = re.compile(
    r"(?i)(?:^|\s)(?:articlebody|"
    r"(?:article|post|entry|story|blog|news|page|main)[-_]?(?:body|content|text|entry))(?:\s|$)"
)
MAX_DEPTH = 400  # deeper elements count as part of their ancestor there
MAX_ATTRIBUTES = 2000  # characters of a tag's attributes that are looked at
SHORT_TEXT = 250  # characters; a main text shorter than this makes us look again, as trafilatura

# Matches at every "<" that begins a tag and cannot fail after it: an open quote or a missing ">"
# shortens the match but never makes the search start over, which is what keeps it linear.
TAG = re.compile(
    r"<(?:(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')?+)*+)>?"
    r"|!--(?:.*?-->|.*)|[!?/][^>]*+>?)",
    re.S,
)
ATTRIBUTE = re.compile(
    r"(?i)(?<![-\w])(class|id|role|itemprop|style|aria-hidden|hidden)(?![-\w])"
    r"(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s\"'>]++)))?+"
)
NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # splits share-box, share_box, shareBox
INVISIBLE = re.compile(r"(?i)display\s*:\s*none|visibility\s*:\s*hidden")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
NEW_LINE, NEW_CELL = "\2", "\3"  # stand for <br> and <td> inside a block's text


@functools.lru_cache(4096)
def judge_names(tag, attributes):
    """(noise, main): do an element's tag and names speak against it, or for it?"""
    noise, main = tag == "form", tag in ("article", "main")
    for name, *quoted in ATTRIBUTE.findall(attributes):
        name, value = name.lower(), "".join(quoted)
        if name == "style":
            noise = noise or INVISIBLE.search(value) is not None
        elif name == "hidden":
            noise = True
        elif name == "aria-hidden":
            noise = noise or value.lower() == "true"
        else:
            noise = noise or any(word.lower() in NOISE for word in NAME_WORD.findall(value))
            main = main or MAIN_NAME.search(value) is not None
    return noise and not main and tag not in ("body", "html"), main


@functools.cache
def raw_end(tag):
    return re.compile(rf"</(?i:{tag})(?![\w-])[^>]*+>?")


def tidy(text, verbatim):
    """The raw text of a block -> lines; cells of a table row stand apart by tabs."""
    if "&" in text:
        # Python refuses to read numbers of thousands of digits, and no character needs eight.
        text = re.sub(r"&#(?:\d{8,}|[xX][0-9a-fA-F]{8,});?", "\ufffd", text)
        text = html_entities.unescape(text)
    if verbatim:
        lines = text.replace(NEW_LINE, "\n").expandtabs(4).split("\n")
        return "\n".join(line.rstrip() for line in lines).strip("\n")
    lines = []
    for line in text.split(NEW_LINE):
        cells = (" ".join(cell.split()) for cell in line.split(NEW_CELL))
        lines.append("\t".join(cell for cell in cells if cell))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip())


def cut_blocks(html):
    """Page -> (elements, blocks) in page order.

    elements: lists parent, tag, noise, main, indexed alike; element 0 is the page.
    blocks: (text, characters inside links, element that owns it, prefix)."""
    parent, tags, noise, main = [0], [""], [False], [False]
    blocks, stack, n_open = [], [0], Counter()
    pieces, link_chars, in_link, bullet, unseen, verbatim = [], 0, False, "", 0, 0
    position, scan = 0, TAG.search

    def end_block():
        nonlocal link_chars, bullet
        if pieces and (text := tidy("".join(pieces), verbatim)):
            blocks.append((text, link_chars, stack[-1], bullet))
            bullet = ""
        pieces.clear()
        link_chars = 0

    def end_element():
        nonlocal unseen, verbatim, bullet
        tag = tags[stack.pop()]
        n_open[tag] -= 1
        unseen -= tag in UNSEEN
        verbatim -= tag == "pre"
        bullet = ""

    while True:
        match = scan(html, position)
        start = match.start() if match else len(html)
        if start > position and not unseen:
            piece = html[position:start]
            pieces.append(piece)
            link_chars += len(piece.strip()) if in_link else 0
        if not match:
            break
        closing, tag, attributes = match.groups()
        position = match.end()
        if tag is None:  # a comment or a declaration
            continue
        tag = tag.lower()
        if tag in INLINE:
            if tag == "a":
                in_link = not closing and "href" in attributes[:MAX_ATTRIBUTES].lower()
            elif not unseen and tag in ("br", "td", "th"):
                pieces.append(NEW_LINE if tag == "br" else NEW_CELL)
            continue
        if tag in RAW and not closing:
            end = raw_end(tag).search(html, position)
            position = end.end() if end else len(html)
            continue
        end_block()
        if tag in VOID:
            continue
        if closing:
            if n_open[tag]:
                while tags[stack[-1]] != tag:
                    end_element()
                end_element()
            continue
        for other in ENDS.get(tag, ("p",)):
            if tags[stack[-1]] == other:
                end_element()
        if len(stack) < MAX_DEPTH:
            judged = judge_names(tag, attributes[:MAX_ATTRIBUTES])
            for column, value in zip((parent, tags, noise, main), (stack[-1], tag, *judged)):
                column.append(value)
            stack.append(len(tags) - 1)
            n_open[tag] += 1
            unseen += tag in UNSEEN
            verbatim += tag == "pre"
            bullet = "- " if tag == "li" else bullet
    end_block()
    return (parent, tags, noise, main), blocks


def add_up(parent, sums):
    """Each element's sum -> the sum over its subtree. Children stand behind their parents."""
    for e in range(len(sums) - 1, 0, -1):
        sums[parent[e]] += sums[e]
    return sums


def choose_blocks(elements, blocks, prune):
    """The indices of the blocks that are main text.

    vote  = characters - 2 x characters in links - cost: prose is positive, menus are negative;
    prune : an element with a noisy name dies with all below it, unless it holds half of the
            page's positive votes (then its name lies);
    choose: the element whose living descendants have the most votes, doubled where its name says
            article; inside it, containers with a negative sum go."""
    parent, tags, noise, main = elements
    n = len(tags)
    votes = [len(text) - 2 * links - COST.get(tags[e], COST_ELSE) for text, links, e, _ in blocks]
    positive, living = [0] * n, [0] * n
    for vote, (_, _, e, _) in zip(votes, blocks):
        positive[e] += max(vote, 0)
    add_up(parent, positive)
    dead = [False] * n
    for e in range(1, n):
        dead[e] = dead[parent[e]] or (prune and noise[e] and 2 * positive[e] < positive[0])
    for vote, (_, _, e, _) in zip(votes, blocks):
        living[e] += 0 if dead[e] else vote
    add_up(parent, living)
    best = max(range(n), key=lambda e: living[e] * (1 + main[e]))
    inside, kept = [False] * n, [False] * n
    for e in range(best, n):
        inside[e] = e == best or inside[parent[e]]
        kept[e] = e == best or (
            kept[parent[e]] and not dead[e] and (living[e] >= 0 or tags[e] in LEAVES)
        )
    chosen = [
        i for i, (text, links, e, _) in enumerate(blocks) if kept[e] and links <= 0.8 * len(text)
    ]
    first = next((i for i, block in enumerate(blocks) if inside[block[2]]), 0)
    return add_lead(tags, dead, votes, blocks, first) + drop_loose_ends(tags, votes, blocks, chosen)


def add_lead(tags, dead, votes, blocks, first):
    """The headline before the chosen element, and the prose between the two: the lead.

    The study's gold texts leave headlines out; a language model had better see them."""
    for i in range(first - 1, -1, -1):
        if tags[blocks[i][2]] == "h1" and not dead[blocks[i][2]]:
            return [i] + [j for j in range(i + 1, first) if votes[j] > 0 and not dead[blocks[j][2]]]
    return []


def drop_loose_ends(tags, votes, blocks, chosen):
    """Without headings over link lists that went, and without negative blocks at the end."""
    kept, result = set(chosen), []
    for i in chosen:
        if tags[blocks[i][2]] in HEADINGS and i + 1 not in kept:
            if i + 1 == len(blocks) or 2 * blocks[i + 1][1] > len(blocks[i + 1][0]):
                continue
        result.append(i)
    while result and votes[result[-1]] < 0:
        result.pop()
    return result


def extract_text(html):
    """The main text of a page (str or bytes): a block a line, an empty line between paragraphs;
    list items begin with "- ", the cells of a row stand apart by tabs, code keeps its lines."""
    if isinstance(html, bytes):
        html = decode_html(html)
    elements, blocks = cut_blocks(CONTROL.sub(" ", html))
    tags, texts = elements[1], []
    for prune in (True, False):
        pieces, before = [], None
        for i in choose_blocks(elements, blocks, prune):
            text, _, e, prefix = blocks[i]
            tight = before is not None and tags[e] == tags[before] and tags[e] in ("li", "tr")
            pieces += ["\n" if tight else "\n\n", prefix + text]
            before = e
        texts.append("".join(pieces[1:]))
        if len(texts[0]) >= SHORT_TEXT:
            break
    return max(texts, key=len)


# --------------------------------------------------------------------------- 4. language
# Script first; a script of one language decides alone. Within the Latin, Cyrillic and Arabic
# scripts the frequent function words of each language vote.

SCRIPTS = (  # first and last code point, and the language or, in capitals, the family
    "0041-024F LATIN 1E00-1EFF LATIN 0370-03FF el 1F00-1FFF el 0400-052F CYRILLIC 0531-058F hy "
    "0591-05FF he 0600-06FF ARABIC 0750-077F ARABIC FB50-FDFF ARABIC FE70-FEFC ARABIC 0900-097F hi "
    "0980-09FF bn 0A00-0A7F pa 0A80-0AFF gu 0B80-0BFF ta 0C00-0C7F te 0C80-0CFF kn 0D00-0D7F ml "
    "0D80-0DFF si 0E00-0E7F th 0E80-0EFF lo 1000-109F my 10A0-10FF ka 1100-11FF ko AC00-D7AF ko "
    "1200-137F am 1780-17FF km 3040-30FF ja 3400-4DBF zh 4E00-9FFF zh"
)
FUNCTION_WORDS = """
LATIN
en the of and to in is that for it was on are as with his they at be this from have or by one had
   not but what all were we when your can said there an which she do their if will how about out
   them then these some her would him has more who its my than been you he i so no just our could
de der die das und ist in zu den von mit sich auf für nicht ein eine als auch es an werden aus er
   hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder
   aber vor zur bis mehr durch man dem des sein wenn ich wir ihr kann im
nl de het een en van in is dat op te zijn met voor niet die er aan om ook als dan maar bij of uit
   nog naar door over wordt deze heeft ik je worden kan zo wat hij tot meer geen veel wel hun werd
fr le la les de des du et est en un une que qui dans pour pas sur au avec ce il par plus ne se son
   sont ou mais nous vous aux cette elle comme tout être fait leur ses été sa même l d qu n c s
es el la los las de que y en un una es se no por con para su del al lo como más o pero sus le ha
   me sin sobre este ya entre cuando todo esta ser son dos también fue había era muy hasta desde
pt o a os as de que e do da em um uma é para com não no na se por mais dos das como mas foi ao ele
   ser quando muito nos já está eu também só pelo pela até isso ela entre era depois seu sua são
it il la di che e è un una in per non sono con del della i le si da lo gli al come più ma dei nel
   alla anche ha se questo delle o su ci essere stato fra tra era loro molto tutti ai l d
ca el la els les de que i en un una és per amb no del al es va com més o però seva seu aquest dels
   ha ser són també aquesta molt entre fins quan tot als pel sobre on han l d
ro și de la în a cu nu pe o un este care să din că se mai pentru sunt ce au fi ca dar după sau fost
   această acest lui ei prin până între fără foarte are către
sv och att det i en som är på för med av den till inte om ett har de jag var så men kan från vi
   eller när man ska efter också vid under där mot över än han hon blir nu sig sin
da og at det i en er på som for med af den til ikke de har et jeg var kan så men om fra vi eller
   når man skal efter også ved under der mod blev havde hun bliver hvor nu sig sin
no og at det i en er på som for med av den til ikke de har et jeg var kan så men om fra vi eller
   når man skal etter også ved under der mot ble hadde hun blir hvor nå seg sin
is og að í er á það sem til við um ekki en með var af fyrir eru ég hann hún þetta þá frá eða því
   hafa hefur verið upp svo voru úr eftir sér
fi ja on ei se että hän oli ovat mutta kun joka niin myös kuin sen tai jos mitä vain ole nyt minä
   hänen jo sitä siitä olla ollut voi sekä vielä mukaan jotka ennen tämä ne
et ja on ei et see ta oli kui ka mis aga või siis seda oma kes ma nii nagu välja pole veel ning
   olid ole peale enam kuid tema selle oleks saab üle
hu a az és hogy nem is egy van meg ez de volt csak azt még már el ha vagy mint ami ki majd lehet
   kell fel pedig itt minden után szerint ezt aki én sem be
pl i w na z nie się do że jest to o jak po co ale od za przez dla tym tak może jego już są był być
   oraz przy które który tylko także czy ze jako tego lub jej
cs a v na se je že s z do to o i ve pro ale si jako po jsem od by za které jeho nebo jsou který
   byl bylo až při také podle této už tak není jen ze k
sk a v na sa je že s z do to o i vo pre ale si ako po som od by za ktoré jeho alebo sú ktorý bol
   bolo až pri tiež podľa tejto už tak nie len zo k
sl in je na v se da so za z ne pa bi ki po kot tudi o ali s od kako še bil že le do pri tako lahko
   bilo njegov več kaj ima ko iz ker
hr i je u na se da su za od s ne koji a što o iz kao bi po ili ali samo sve to ga nije koje te već
   bio jer može mu će biti kako prema sam
lt ir yra į kad su iš ne tai bet kaip buvo jo už apie tik ar nuo dar jie prie gali per po taip jos
   kuris kurie būti bei
lv un ir ar no ka uz par kas bet tas arī vai to pie gan ja lai pēc bija tikai kā būt viņš savu līdz
   jau nav šis
sq dhe në të e për me një që është nga si u ka i se nuk do ishte janë por edhe më kjo ky duke pas
   kur kanë deri tij
eu eta da ez bat du ere izan zen dira egin hau baina dute den dela beste edo zuen bere horrek gero
   behar dago
gl o a os as de que e do da en un unha é para con non no na se por máis dos das como pero foi ao
   ser cando moi tamén está eu pola polo ata entre súa seu son
tr ve bir bu için de da ile olarak çok olan daha gibi en ne kadar sonra var her o ama değil ise
   olduğu ya mi şey diye ben kendi göre
az və bir bu üçün ilə də da olan olaraq daha o çox var kimi sonra ki hər ən isə deyil görə edir
id yang dan di dari untuk dengan ini itu pada adalah tidak dalam akan ke juga atau oleh ada mereka
   saya telah bisa karena sudah kita seperti lebih tersebut dia
vi và của là có trong được cho không một các với những người này để khi đã về từ như cũng ra đến
   nhiều tại vào năm đó sẽ
tl ang ng sa na mga ay at ni si kay para ito hindi may kung siya ko niya nang mo lang din rin
sw ya na wa kwa katika ni la za kuwa cha hii huo yake huyo kama hiyo pia watu baada lakini kutoka
   wake yao
af die van en in is het dit nie wat vir om te op met word aan ook hy sy as by was kan daar sal hulle
   ons maar
CYRILLIC
ru и в не на что я с он как это по но из у за от же для так все бы его то было только мы к о был
   или ещё еще если когда есть она они мне до вы
uk і в не на що я з він як це по але із у за від же для так все би його то було тільки ми до та
   або ще якщо коли є вона вони й про
bg и в не на че аз с той как това по но от за са да се ще е към които при до му го или може само
   има беше ни си която като след
sr и у не на да је се са за од су који а што о из као би по или али то га није које већ био јер
   може ће бити како
mk и во не на дека јас со тој како ова по но од за се да ќе е кон кои при до му го или може само
   има беше што ги
be і у не на што я з ён як гэта па але з за ад для так усе бы яго было толькі мы да або яшчэ калі
   ёсць яна яны
kk және да де бұл бір үшін мен деп сол ол оның бар осы болып деген кейін жоқ емес туралы қазақстан
mn нь бол юм байна бөгөөд болон энэ тэр гэж нэг би хийх дээр байсан уу
ARABIC
ar في من على أن إلى التي عن مع هذا الذي ما لا هذه كان أو بعد كما قد لم بين كل ذلك و يوم كانت هو هي
   عند حيث غير قبل خلال ان الى
fa و در به از که این را با است برای آن یک خود تا کرد بر هم نیز می شد شده باید اما ما کند بود
   های هر یا پس
ur کے کی میں ہے کا اور سے کو نے پر یہ کہ ہیں اس ہو تھا بھی ایک جو تو نہیں لیے گیا وہ کر اپنے تھے
"""
WORD = re.compile(r"[^\W\d_]+")
LANGUAGE_SAMPLE = 10_000  # characters looked at; 1,500 words are more than enough


@functools.cache
def language_tables():
    """code point -> language or family; family -> {word: the languages that have it}."""
    scripts, words, family = {}, {}, ""
    parts = SCRIPTS.split()
    for span, name in zip(parts[::2], parts[1::2]):
        first, last = span.split("-")
        scripts.update(dict.fromkeys(range(int(first, 16), int(last, 16) + 1), name))
    for line in FUNCTION_WORDS.strip().split("\n"):
        if line.isupper():
            family = line
            continue
        if not line.startswith(" "):
            code, line = line.split(" ", 1)
        for word in line.split():
            codes = words.setdefault(family, {}).setdefault(word, [])
            codes += [code] * (code not in codes)
    return scripts, words


def identify_language(text):
    """(code, score in 0..1), ("und", 0.0) without letters.

    A word found in k of the lists gives each of them 1/k point. With b and r the points of the
    winner and of the runner-up, f the share of the winner's words among all words:
    score = share of the script's letters x min(1, f / 0.20) x b^2 / (b^2 + r^2).
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
        codes = words[script].get(word, ())
        for code in codes:
            points[code] += n / len(codes)
            found[code] += n
    if not points:
        return "und", 0.0
    (winner, b), (_, r) = (points.most_common(2) + [("", 0)])[:2]
    frequent = min(1, found[winner] / counts.total() / 0.20)
    return winner, share * frequent * b * b / (b * b + r * r)


def language_rule(text, *, languages="en", min_score=0.65):
    """FineWeb section 3.2: only English with a score above 0.65. "any" takes every language."""
    code, score = identify_language(text)
    if languages != "any" and code not in languages.split(","):
        return code, score, "language"
    return code, score, None if score > min_score else "language_score"

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
ABBREVIATIONS = "Mr Mrs Ms Dr Prof St Sr Jr vs etc Inc Ltd Co Corp Gen Gov Sen Rep No Vol Fig approx"
SENTENCE_END = regex.compile(
    r"(?<!\.)(?<!\b\p{L})"
    + "".join(rf"(?<!\b{word})" for word in ABBREVIATIONS.split())
    + r"(?:\.(?!\.)|[!?])(?=[!?\"'”’»)\]]*(?:\s|$))|[\p{SB=STerm}--!?](?!\p{SB=STerm})",
    regex.V1,
)
STOP = regex.compile(r"[\p{SB=STerm}\p{SB=ATerm}]$")  # 170 marks: . ! ? 。 ؟ । and so on


@functools.lru_cache(4)  # three stages ask for the same text
def words_in(text):
    """The tokens of a text, punctuation marks included."""
    return TOKEN.findall(text)


def count_sentences(line):
    """Sentences of one line; what follows the last end counts as one too."""
    ends = [match.end() for match in SENTENCE_END.finditer(line)]
    rest = line[ends[-1] if ends else 0 :]
    return len(ends) + any(character.isalnum() for character in rest)


# A stage that measures is written as a generator of (reason, value, sign, limit), in order; a text
# fails at the first value that lies on the wrong side: `sign` says which side that is. A limit of
# NaN ("off") never fails, since every comparison with NaN is false.
FAILS = {">": operator.gt, "<": operator.lt, "≥": operator.ge, "≤": operator.le}


def measured(checks):
    """Makes of a generator of checks a function text -> first failing reason, or None."""

    @functools.wraps(checks)
    def rule(text, **limits):
        for reason, value, sign, limit in checks(text, **limits):
            if FAILS[sign](value, limit):
                return reason
        return None

    rule.checks = checks
    return rule


# --------------------------------------------------------------------------- 5. Gopher


@measured
def gopher_repetition(
    text,
    *,
    dup_para_frac=0.30,
    dup_para_char_frac=0.20,
    dup_line_frac=0.30,
    dup_line_char_frac=0.20,
    top_2_gram=0.20,
    top_3_gram=0.18,
    top_4_gram=0.16,
    duplicated_5_n_grams=0.15,
    duplicated_6_n_grams=0.14,
    duplicated_7_n_grams=0.13,
    duplicated_8_n_grams=0.12,
    duplicated_9_n_grams=0.11,
    duplicated_10_n_grams=0.10,
):
    """Repeated lines, paragraphs and word n-grams (Gopher, table A1). Fractions of len(text) in
    characters but for the two that count lines and paragraphs; a first occurrence is no repeat."""
    n_chars = max(len(text), 1)
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    for name, pieces, limit, char_limit in (
        ("para", paragraphs, dup_para_frac, dup_para_char_frac),
        ("line", lines, dup_line_frac, dup_line_char_frac),
    ):
        n_repeats, n_repeated_chars = repeats(pieces)
        yield f"dup_{name}_frac", n_repeats / len(pieces), ">", limit
        yield f"dup_{name}_char_frac", n_repeated_chars / n_chars, ">", char_limit

    words = words_in(text)
    for n, limit in ((2, top_2_gram), (3, top_3_gram), (4, top_4_gram)):
        # The most frequent n-gram, once counts too; joined by spaces it has n - 1 of them.
        counts = Counter(zip(*(words[i:] for i in range(n))))
        gram, count = max(counts.items(), key=lambda item: item[1], default=((), 0))
        n_gram_chars = sum(map(len, gram)) + n - 1
        yield f"top_{n}_gram", n_gram_chars * count / n_chars, ">", limit

    limits = (duplicated_5_n_grams, duplicated_6_n_grams, duplicated_7_n_grams)
    limits += (duplicated_8_n_grams, duplicated_9_n_grams, duplicated_10_n_grams)
    n_repeated_chars = 1
    for n, limit in enumerate(limits, start=5):
        if n_repeated_chars:  # a repeated 6-gram holds a repeated 5-gram: without one, stop looking
            n_repeated_chars = repeated_n_gram_chars(words, n)
        yield f"duplicated_{n}_n_grams", n_repeated_chars / n_chars, ">", limit


def repeats(pieces):
    """(how many pieces stood there before, how many characters they have)"""
    seen, n_repeats, n_chars = set(), 0, 0
    for piece in pieces:
        if piece in seen:
            n_repeats, n_chars = n_repeats + 1, n_chars + len(piece)
        seen.add(piece)
    return n_repeats, n_chars


def repeated_n_gram_chars(words, n):
    """Characters in n-grams seen before, scanned greedily so that none counts twice: at a repeat
    go on behind it, else one word further. Spaces between the words do not count."""
    grams = list(zip(*(words[i:] for i in range(n))))
    if len(set(grams)) == len(grams):
        return 0
    seen, i, n_chars = set(), 0, 0
    while i < len(grams):
        if grams[i] in seen:
            n_chars += sum(map(len, grams[i]))
            i += n
        else:
            seen.add(grams[i])
            i += 1
    return n_chars


STOP_WORDS = frozenset("the be to of and that have with".split())


@measured
def gopher_quality(
    text,
    *,
    min_words=50,
    max_words=100_000,
    min_avg_word=3,
    max_avg_word=10,
    max_hashes=0.1,
    max_ellipses=0.1,
    max_bullets=0.9,
    max_end_ellipses=0.3,
    min_alpha=0.8,
    min_stop_words=2,
):
    """Does it look like prose at all? (Gopher, section A1.1.) Lengths count the words that are
    more than punctuation; the other ratios divide by all tokens, punctuation marks included."""
    words = words_in(text)
    real = [word for word in words if any(map(str.isalnum, word))]
    n_words, lines = max(len(words), 1), text.splitlines() or [""]
    average = sum(map(len, real)) / max(len(real), 1)
    yield "short_doc", len(real), "<", min_words
    yield "long_doc", len(real), ">", max_words
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
    n_alpha = sum(any(map(str.isalpha, word)) for word in real)
    yield "below_alpha", n_alpha / n_words, "<", min_alpha
    yield "stop_words", len(STOP_WORDS.intersection(words)), "<", min_stop_words


# --------------------------------------------------------------------------- 6. duplicates
# MinHash (Broder 1997): of each of 112 hash functions keep the smallest value over a text's 5-word
# shingles. Two texts share one such minimum with probability s, their shingles' Jaccard similarity.
# Cut in 14 bands of 8, they match if all 8 of any band agree: P = 1 - (1 - s^8)^14.

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
    """64-bit hashes of the non-empty lines, blanks and carriage returns left out (FNV-1a, mixed)."""
    out, n = np.empty(len(data) // 2 + 1, np.uint64), 0
    h, length = np.uint64(0xCBF29CE484222325), 0
    for i in range(len(data) + 1):
        c = data[i] if i < len(data) else np.uint8(10)
        if c == 10:
            if length:
                out[n] = mix(h)
                n += 1
            h, length = np.uint64(0xCBF29CE484222325), 0
        elif c > 32:
            h = (h ^ np.uint64(c)) * np.uint64(0x100000001B3)
            length += 1
    return out[:n].copy()


def hash_text(text):
    """The 64-bit hash of a str with all blanks and line ends left out."""
    data = "".join(text.split()).encode("utf-8", "surrogatepass")
    return hash_lines(np.frombuffer(data, np.uint8))[0] if data else np.uint64(0)


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
    """A 64-bit key for each band: equal keys mean that all n_rows minima agree.

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
    """Union-find: neighbours in the sorted order with equal keys come under the smaller root."""
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


def first_of_equals(keys, counted):
    """(N,) uint64, (N,) bool -> (N,) bool: no counted document before it has the same key."""
    first = ~counted
    at = np.flatnonzero(counted)
    first[at[np.unique(keys[at], return_index=True)[1]]] = True
    return first


EMPTY = np.zeros(0, np.uint64)

# --------------------------------------------------------------------------- 7. C4

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = re.compile(
    r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
)
END_MARKS = (".", "?", "!", '"', "'")


def c4_line(
    line,
    *,
    max_word_length=1000,
    citations=True,
    terminal_punct=False,
    min_words=3,
    lorem_ipsum=True,
    javascript=True,
    curly_bracket=True,
    policy=True,
):
    """(the line without citation marks, reason or None); two reasons condemn the whole text."""
    words, small = line.split(), line.lower()
    if any(len(word) > max_word_length for word in words):
        return line, "too_long_word"
    line = CITATION.sub("", line) if citations else line
    # C4 demands a terminal mark; FineWeb does not, since that costs 30% of all tokens.
    if terminal_punct and (not line.endswith(END_MARKS) or line.endswith("...")):
        return line, "no_terminal_punct"
    if len(words) < min_words:
        return line, "too_few_words"
    if lorem_ipsum and "lorem ipsum" in small:
        return line, "lorem_ipsum"
    if javascript and "javascript" in small:
        return line, "javascript"
    if curly_bracket and "{" in line:
        return line, "curly_bracket"
    if policy and POLICY.search(small):
        return line, "policy"
    return line, None


def c4(text, *, min_sentences=5, **line_limits):
    """(text of the good lines, None), or (text, reason). C4, section 2.2; per line, then per text."""
    kept, n_sentences = [], 0
    for line in text.splitlines():
        line, reason = c4_line(line.strip(), **line_limits)
        if reason in ("lorem_ipsum", "curly_bracket"):
            return text, reason
        if reason is None:
            kept.append(line)
            n_sentences += count_sentences(line)
    if n_sentences < min_sentences:
        return text, "too_few_sentences"
    return "\n".join(kept), None


# --------------------------------------------------------------------------- 8. FineWeb


@measured
def fineweb(
    text, *, line_punct=0.12, short_line=0.67, short_line_chars=30, char_dup=0.1, list_ratio=0.3
):
    """FineWeb's own three rules (section 3.6) and one more that its code has."""
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

LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
IPV4 = re.compile(rf"(?:{BYTE}\.){{3}}{BYTE}")
EMAIL = re.compile(
    rf"(?<!{ATOM})(?<!{ATOM}\.)\b{ATOM}{{1,64}}+(?:\.{ATOM}{{1,64}}+){{0,8}}+@"
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
HOSTS = "22.214.171.124 126.96.36.199 188.8.131.52 184.108.40.206 220.127.116.11 18.104.22.168".split()
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

STAGES = "read url extract language repetition quality exact minhash c4 fineweb pii".split()


def exact(url_keys, text_keys, *, urls=True, texts=True):
    """(N,), (N,) hashes -> (N,) reason or "": the first page of a URL stays, then of a text."""
    reasons = np.full(len(url_keys), "", "U14")
    if urls:
        reasons[~first_of_equals(url_keys, url_keys != 0) & (url_keys != 0)] = "duplicate_url"
    if texts:
        counted = reasons == ""
        reasons[~first_of_equals(text_keys, counted) & counted] = "duplicate_text"
    return reasons


RULES = {
    "url": url_rule,
    "language": language_rule,
    "gopher_repetition": gopher_repetition,
    "gopher_quality": gopher_quality,
    "exact": exact,
    "minhash": signature,
    "c4": c4,
    "fineweb": fineweb,
    "pii": mask_pii,
}


def read_settings(changes):
    """["NAME=VALUE", ...] -> {stage: {threshold: value}, or None where a stage is off}.

    The names are the rules' own keyword arguments behind the first word of the stage."""
    settings, known = {}, {}
    for stage, rule in RULES.items():
        functions = (c4, c4_line) if rule is c4 else (getattr(rule, "checks", rule),)
        settings[stage] = {
            name: parameter.default
            for function in functions
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind == parameter.KEYWORD_ONLY and name != "blocklist"
        }
        known |= {f"{stage.split('_')[0]}_{name}": (stage, name) for name in settings[stage]}
    for change in changes:
        name, _, value = change.partition("=")
        if name in settings and value == "off":
            settings[name] = None
            continue
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *settings], 3) or list(known)
            raise ValueError(f"--set {change}: no such setting; there are {', '.join(near)}")
        stage, name = known[name]
        if settings[stage] is None:
            continue
        old = settings[stage][name]
        try:
            if isinstance(old, bool):
                settings[stage][name] = {"on": True, "off": False}[value]
            elif isinstance(old, str):
                settings[stage][name] = value
            elif value == "off" and stage != "minhash":
                settings[stage][name] = math.nan
            else:
                settings[stage][name] = type(old)(float(value))
        except (KeyError, ValueError):
            wanted = "on or off" if isinstance(old, bool) else "a number or off"
            raise ValueError(f"--set {change}: the value must be {wanted}") from None
    return settings


def clean_page(raw, settings, blocklist=None):
    """One raw page through all stages that need no other page.

    Returns {"stage", "reason", "sizes", "record", "keys"}: the stage it fails at (None: none),
    its characters after each stage passed, the document, and (2 + bands,) uint64: hash of the
    URL, hash of the text, band keys. C4 and later come after the search for duplicates in the
    order of the pipeline, but they look at one page alone: the worker has it in hand, so it asks
    them at once, and the duplicates are counted first when all pages are known."""
    document, reason = open_document(raw)
    record = {"id": raw["id"], "url": raw["url"], "text": ""}
    page = {"stage": None, "reason": None, "sizes": [], "record": record, "keys": None}

    def passes(stage, reason):
        if reason:
            page.update(stage=stage, reason=reason)
        else:
            page["sizes"].append(len(record["text"]))
        return not reason

    def limits(stage):
        return settings[stage] or {}

    def ask(stage, rule, *arguments, **more):
        return settings[stage] and rule(*arguments, **settings[stage], **more)

    if not passes("read", reason):
        return page
    if not passes("url", record["url"] and ask("url", url_rule, record["url"], blocklist=blocklist)):
        return page
    text = extract_text(document["html"]) if "html" in document else document["text"]
    record["text"] = text = text.encode("utf-8", "replace").decode().strip()
    if not passes("extract", None if text else "empty"):
        return page
    code, score, reason = language_rule(text, **limits("language"))
    record.update(language=code, language_score=round(score, 3))
    if not passes("language", settings["language"] and reason):
        return page
    if not passes("repetition", ask("gopher_repetition", gopher_repetition, text)):
        return page
    if not passes("quality", ask("gopher_quality", gopher_quality, text)):
        return page

    n_bands = limits("minhash").get("bands", BANDS)
    page["keys"] = keys = np.zeros(3 + n_bands, np.uint64)
    keys[:2] = hash_text(record["url"] or ""), hash_text(text)
    found = ask("minhash", signature, text)
    if found is not None:
        keys[2], keys[3:] = 1, found
    record["id"] = record["id"] or f"{keys[1]:016x}"
    page["side"] = "val" if keys[1] < VAL_FRACTION * 2.0**64 else "train"
    page["sizes"] += [len(text)] * 2  # exact and minhash, judged when all pages are known
    if settings["c4"]:
        record["text"], reason = c4(text, **settings["c4"])
        if not passes("c4", reason):
            return page
    else:
        passes("c4", None)
    if not passes("fineweb", ask("fineweb", fineweb, record["text"])):
        return page
    if settings["pii"]:
        record["text"] = mask_pii(record["text"], **settings["pii"])
    passes("pii", None)
    return page


def clean_batch(batch):
    return [clean_page(raw, *WORKER) for raw in batch]


WORKER = ()  # (settings, blocklist) of this worker process, set once when it starts


def start_worker(*parts):
    global WORKER
    WORKER = parts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def batches_of(raws):
    """Raw pages in lists of about BATCH_BYTES, so that handing them over costs little."""
    batch, n_bytes = [], 0
    for raw in raws:
        batch.append(raw)
        n_bytes += len(raw["body"])
        if n_bytes >= BATCH_BYTES or len(batch) >= BATCH_PAGES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def map_in_order(function, batches, n_workers, *parts):
    """(input bytes read, function(batch)) in the order of the batches, whatever the number of workers; a few
    batches for each worker are under way at a time, so memory does not grow with the crawl."""
    with ProcessPoolExecutor(n_workers, initializer=start_worker, initargs=parts) as pool:
        waiting = deque()
        try:
            for batch in batches:
                waiting.append((batch[-1]["done"], pool.submit(function, batch)))
                if len(waiting) > 2 * n_workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def count_page(counts, sizes, stage, reason, first=0):
    """Adds one page to {stage: {"in", "kept", "characters", "reasons"}} from stage `first` on."""
    last = STAGES.index(stage) if stage else len(STAGES)
    for name, size in zip(STAGES[first:last], sizes[first:last]):
        counts[name]["in"] += 1
        counts[name]["kept"] += 1
        counts[name]["characters"] += size
    if stage:
        counts[stage]["in"] += 1
        counts[stage]["reasons"][reason] += 1


def table(counts):
    lines = [f"{'stage':12}{'in':>10}{'kept':>10}{'dropped':>10}{'characters':>15}  reasons"]
    for stage, row in counts.items():
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in row["reasons"].most_common())
        dropped = row["in"] - row["kept"]
        lines.append(
            f"{stage:12}{row['in']:10,}{row['kept']:10,}{dropped:10,}{row['characters']:15,}  {reasons}"
        )
    return lines


def run(files, out, settings, blocklist, n_workers, rejects=None):
    """The whole pipeline: files -> shards and stats.json in `out`. Returns the statistics.

    First pass: workers clean pages; those that reach the duplicates wait in a file beside the
    output, and only their keys stay in memory (136 bytes each). Then the keys tell who is a
    duplicate, and the second pass copies the others into shards."""
    os.makedirs(out, exist_ok=True)
    start, n_bytes = time.perf_counter(), sum(map(os.path.getsize, files))
    counts = {s: {"in": 0, "kept": 0, "characters": 0, "reasons": Counter()} for s in STAGES}
    damaged, keys, first_late = [], [], STAGES.index("exact")
    progress = show_progress(counts, start, n_bytes)

    def report(message):
        damaged.append(message)
        if len(damaged) <= MAX_WARNINGS:
            print(f"warning: {message}", file=sys.stderr)

    def drop(page, stage, reason):
        if rejects:
            line = {**page["record"], "stage": stage, "reason": reason}
            rejects.write(json.dumps(line, ensure_ascii=False) + "\n")

    with open(os.path.join(out, ".candidates.jsonl"), "w+", encoding="utf-8") as waiting:
        raws = batches_of(read_files(files, report))
        for done, pages in map_in_order(clean_batch, raws, n_workers, settings, blocklist):
            for page in pages:
                if page["keys"] is None:
                    count_page(counts, page["sizes"], page["stage"], page["reason"])
                    drop(page, page["stage"], page["reason"])
                else:
                    count_page(counts, page["sizes"][:first_late], None, None)
                    keys.append(page.pop("keys"))
                    waiting.write(json.dumps(page, ensure_ascii=False) + "\n")
            progress(done)
        verdicts = find_duplicates(np.array(keys, np.uint64), settings)
        waiting.seek(0)

        def survivors():
            for line, (stage, reason) in zip(waiting, verdicts):
                page = json.loads(line)
                stage, reason = (stage, reason) if stage else (page["stage"], page["reason"])
                count_page(counts, page["sizes"], stage, reason, first_late)
                if stage:
                    drop(page, stage, reason)
                else:
                    yield page["side"], page["record"]

        n_kept = write_shards(survivors(), out)
    progress(n_bytes, last=True)
    seconds = time.perf_counter() - start
    stats = {"documents": n_kept, "stages": counts, "damaged": damaged[:1000]}
    stats |= {"n_damaged": len(damaged), "seconds": round(seconds, 1)}
    return stats | {"pages_per_s": round(counts["read"]["in"] / seconds, 1), "settings": settings}


def find_duplicates(keys, settings):
    """(N, 3 + bands) keys -> N times (stage, reason) or (None, None)."""
    n = len(keys)
    if not n:
        return []
    reasons = np.full(n, "", "U14")
    if settings["exact"]:
        reasons = exact(keys[:, 0], keys[:, 1], **settings["exact"])
    verdicts = [("exact", str(reason)) if reason else (None, None) for reason in reasons]
    signed = np.flatnonzero((reasons == "") & (keys[:, 2] == 1))
    for i in signed[~first_of_cluster(keys[signed, 3:])]:
        verdicts[i] = ("minhash", "near_duplicate")
    return verdicts


def write_shards(documents, out):
    """(side, record) pairs -> train-00000.jsonl.gz, ..., val-00000.jsonl.gz, ...; the counts.

    Written beside the old ones and put in their place at the very end, all or nothing."""
    n_kept, n_chars, shards, files = {"train": 0, "val": 0}, Counter(), Counter(), {}
    temporary = []

    def next_shard(side):
        if side in files:
            files[side].close()
        temporary.append(os.path.join(out, f".{side}-{shards[side]:05d}.jsonl.gz"))
        shards[side] += 1
        n_chars[side] = 0
        files[side] = gzip.GzipFile(temporary[-1], "wb", compresslevel=6, mtime=0)

    try:
        for side in n_kept:
            next_shard(side)
        for side, record in documents:
            if n_chars[side] > SHARD_CHARS:
                next_shard(side)
            files[side].write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            n_kept[side] += 1
            n_chars[side] += len(record["text"])
        for file in files.values():
            file.close()
        for name in os.listdir(out):
            if re.fullmatch(r"(train|val)-\d{5}\.jsonl\.gz", name):
                os.remove(os.path.join(out, name))
        for name in temporary:
            folder, name = os.path.split(name)
            os.replace(os.path.join(folder, name), os.path.join(folder, name[1:]))
    finally:
        for name in temporary:
            if os.path.exists(name):
                os.remove(name)
    return n_kept


def read_files(files, report):
    """The raw pages of all files, each with "done": the input bytes read so far."""
    before = 0
    for file in files:
        for raw in read_raw(file, report):
            yield {**raw, "done": before + raw["offset"]}
        before += os.path.getsize(file)


# --------------------------------------------------------------------------- what it shows


def show_progress(counts, start, n_bytes):
    """A function done_bytes -> None that redraws the table on a terminal once a second, and
    elsewhere prints a line every ten seconds."""
    terminal, shown = sys.stdout.isatty(), {"at": start, "lines": 0}

    def progress(done, last=False):
        now = time.perf_counter()
        if not last and now - shown["at"] < (1 if terminal else 10):
            return
        shown["at"], n_pages = now, counts["read"]["in"]
        left = (now - start) * (n_bytes - done) / max(done, 1)
        line = f"{n_pages:,} pages | {counts['quality']['kept']:,} good ones before duplicates | "
        line += f"{n_pages / (now - start):,.0f} pages/s | {left / 60:.0f} min left"
        lines = table(counts) + [line] if terminal and not last else [line]
        lines = table(counts) if last else lines
        if shown["lines"]:
            print(f"\x1b[{shown['lines']}A\x1b[J", end="")
        shown["lines"] = len(lines) if terminal else 0
        width = shutil.get_terminal_size().columns if terminal and not last else 10_000
        print("\n".join(line[: width - 1] for line in lines), flush=True)

    return progress


def match_curve(bands=BANDS, rows=ROWS):
    """The probability of a match at each similarity, as one line of text."""
    steps = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    chances = (f"{s:.2f}: {1 - (1 - s**rows) ** bands:.1%}" for s in steps)
    return f"MinHash {bands} x {rows}, similarity: chance of a match | " + " | ".join(chances)


def explain(name, files, settings, blocklist):
    """Prints every rule's measured value beside its limit for one page, and the verdict."""
    if name == "-":
        raw = {"url": None, "id": None, "kind": "text", "body": sys.stdin.buffer.read()}
        raw["kind"] = "html" if raw["body"].lstrip().startswith(b"<") else "text"
    elif os.path.isfile(name):
        raw = next(iter(read_raw(name, print)), None)
    else:
        raw = next((raw for raw in read_files(files, print) if raw["url"] == name), None)
    if raw is None:
        raise ValueError(f"--explain {name}: no such file, nor a page of this URL in {files}")
    document, reason = open_document(raw)
    print(f"{'stage':18} {'rule':24} {'value':>12}   fails if\n{'read':18} {reason or 'ok'}")
    if reason:
        return
    url = document["url"]
    if url and settings["url"]:
        print(f"{'url':18} {url_rule(url, blocklist=blocklist, **settings['url']) or 'ok':24} {url}")
    text = extract_text(document["html"]) if "html" in document else document["text"].strip()
    n = len(document.get("html") or document["text"])
    print(f"{'extract':18} {'characters':24} {len(text):12,}   = 0 (of {n:,} of the page)")
    code, score, reason = language_rule(text, **(settings["language"] or {}))
    limits = settings["language"] or {"languages": "any", "min_score": math.nan}
    print(f"{'language':18} {code:24} {score:12.3f}   ≤ {limits['min_score']}, not {limits['languages']}")
    for stage, rule in RULES.items():
        if not settings[stage]:
            print(f"{stage:18} off")
        elif stage in ("exact", "minhash"):
            print(f"{stage:18} needs the other pages of the crawl")
        elif stage == "c4":
            limits = {k: v for k, v in settings["c4"].items() if k != "min_sentences"}
            for line in text.splitlines():
                if (reason := c4_line(line.strip(), **limits)[1]) and line.strip():
                    print(f"{'c4':18} {reason:24} {line.strip()[:50]!r}")
            text, reason = c4(text, **settings["c4"])
            print(f"{'c4':18} {reason or 'ok'}")
        elif hasattr(rule, "checks"):
            for reason, value, sign, limit in rule.checks(text, **settings[stage]):
                fails = "  <-- fails" if FAILS[sign](value, limit) else ""
                print(f"{stage:18} {reason:24} {value:12.4g}   {sign} {limit}{fails}")
    page = clean_page(raw, settings, blocklist)
    verdict = f"dropped by {page['stage']}: {page['reason']}" if page["stage"] else "kept"
    print(f"verdict: {verdict}" + (" (if no duplicate)" if page["keys"] is not None else ""))


def extract_batch(batch):
    """For --only extract: [(url, text)] of the pages that are pages."""
    documents = [open_document(raw)[0] for raw in batch]
    return [
        {"url": d["url"], "text": extract_text(d["html"]) if "html" in d else d["text"]}
        for d in documents
        if d
    ]


def only_extract(files, out, n_workers):
    """Writes {"url", "text"} lines for scoring: to `out` if that is a .jsonl file, else into it."""
    path = out if out.endswith(".jsonl") else os.path.join(out, "extracted.jsonl")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    n, warn = 0, functools.partial(print, "warning:", file=sys.stderr)
    with open(path + ".part", "w", encoding="utf-8") as file:
        for _, pages in map_in_order(extract_batch, batches_of(read_files(files, warn)), n_workers):
            n += len(pages)
            for page in pages:
                line = json.dumps(page, ensure_ascii=False).encode("utf-8", "replace").decode()
                file.write(line + "\n")
    os.replace(path + ".part", path)
    print(f"wrote {n:,} extracted pages to {path}")


def input_files(paths):
    """Files as given, folders as the files in them that we can read, in a fixed order."""
    files = []
    for path in paths:
        if os.path.isdir(path):
            for folder, _, names in sorted(os.walk(path)):
                named = (n for n in sorted(names) if re.search(READABLE, n))
                files += [os.path.join(folder, name) for name in named]
        elif os.path.isfile(path):
            files.append(path)
        else:
            hint = "; `python world.py` makes the default input" if "world" in path else ""
            raise ValueError(f"no such file or folder: {path}{hint}")
    if not files:
        raise ValueError(f"nothing to read in {', '.join(paths)}: no .warc, .wet, .html, .jsonl, .txt")
    return files


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="The crawl becomes clean text.", epilog=settings_help(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="*", default=["out/world/crawl.warc.gz"], help="WARC, WET, HTML, JSON lines, text, folders")
    add("--out", default="out/docs", help="folder for the documents (%(default)s)")
    add("--language", default="en", help="codes to keep, like en,de, or any (%(default)s)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a threshold or rule; =off switches it off")
    add("--blocklist", metavar="DIR", help="UT1 lists: DIR/CATEGORY/domains and /urls")
    add("--explain", metavar="PAGE", help="an HTML file, a URL in the inputs, or - for standard input")
    add("--rejects", metavar="FILE", help="keep every dropped page with its reason")
    add("--only", choices=["extract"], help="stop after extraction: lines {url, text}")
    add("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    args = parser.parse_args(arguments)
    try:
        settings = read_settings([f"language_languages={args.language}", *args.set])
        if args.workers < 1:
            raise ValueError(f"--workers {args.workers}: at least one is needed")
        print("config:", json.dumps(vars(args) | {"settings": settings}))
        blocklist = load_blocklist(args.blocklist) if args.blocklist else None
        if args.explain:
            files = [] if args.explain == "-" or os.path.isfile(args.explain) else input_files(args.inputs)
            return explain(args.explain, files, settings, blocklist)
        files = input_files(args.inputs)
        if args.only:
            return only_extract(files, args.out, args.workers)
        if settings["minhash"]:
            print(match_curve(settings["minhash"]["bands"], settings["minhash"]["rows"]))
        with open(args.rejects or os.devnull, "w", encoding="utf-8") as rejects:
            stats = run(files, args.out, settings, blocklist, args.workers, args.rejects and rejects)
        stats_path = os.path.join(args.out, "stats.json")
        with open(stats_path + ".part", "w") as file:
            json.dump(stats, file, indent=1)
        os.replace(stats_path + ".part", stats_path)
        n = stats["documents"]
        print(f"wrote {n['train']:,} train and {n['val']:,} val documents to {args.out}; {stats['pages_per_s']:,} pages/s; next: python bpe.py")
    except (ValueError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


def settings_help():
    pairs = (f"{stage.split('_')[0]}_{name}={value}" for stage, limits in read_settings([]).items() for name, value in limits.items())
    return "settings:\n" + textwrap.fill("  ".join(pairs), 98, break_long_words=False)


if __name__ == "__main__":
    sys.exit(main())
