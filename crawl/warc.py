"""Files become pages: WARC and WET files, HTML, JSON lines and plain text, gzipped or not.

    file -> unpack_members: bytes in pieces -> read_warc, read_json_pages: pages as they lie in
    the file -> open_page: HTML or text

The last arrow (undo HTTP's encodings, decode characters) costs ten times more than the others and
is left to the workers. Nothing in a file from the web is trusted, and damage costs only the record
it stands in.

Sources: WARC 1.1 (ISO 28500), gzip (RFC 1952), HTTP (RFC 9112), charsets by the WHATWG Encoding
Standard. Skip at first: everything but Page and open_page.
"""
import itertools
import json
import mmap
import os
import re
import sys
import zlib
from collections import defaultdict
from dataclasses import dataclass, field

from common import printable

CHUNK = 1 << 16  # bytes read or unpacked at once
MAX_HELD = 8 << 20  # a gzip member up to this size is checked whole before any of it is used
MAX_RECORD = 64 << 20  # bytes; longer records are skipped
MAX_PAGE = 2 << 20  # bytes of HTML after unpacking; the rest is cut off (Common Crawl: 1 to 5 MB)
MAX_TEXT = 8 << 20  # bytes of a plain text; longer ones are dropped. Both bound a worker's memory
KINDS = {".warc": "warc", ".wet": "warc", ".jsonl": "json", ".html": "html", ".htm": "html",
         ".xhtml": "html", ".txt": "text"}  # by a file's name, before .gz


@dataclass
class Page:
    """One page on its way from a file to a shard; each stage of data.py fills in what it finds."""
    kind: str  # what `body` is: an HTTP response ("http"), "html" or "text"
    body: bytes  # as it lies in the file, until the page is opened
    url: str = ""
    id: str = ""
    media_type: str = ""  # such as text/html, as the crawler found it
    done: int = 0  # bytes of the input up to here
    html: str = ""
    text: str = ""
    language: str = "und"
    language_score: float = 0.0
    characters: dict = field(default_factory=dict)  # {stage passed: characters of text after it}
    dropped: tuple = ()  # (stage, the rule that it broke there), or nothing
    keys: object = None  # what duplicates are found by, see crawl/duplicates.py

    def record(self):
        """What is written of a page."""
        return {"id": self.id, "url": self.url or None, "text": self.text,
                "language": self.language, "language_score": round(self.language_score, 3)}


# Control characters, except tab and line end: they steer a terminal (ESC ] 0 ; ... renames it).
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# ---- any file ------------------------------------------------------------------------------------

def warn(message):
    print("warning:", printable(message), file=sys.stderr)


def read_documents(path, report=warn):
    """Yields {"url", "id", and "html" or "text"} for each page of a file or folder, in order.
    Damage is skipped and reported with report(message)."""
    for page in read_files(input_files([path]), report):
        if open_page(page) is None:
            content = {"text": page.text} if page.kind == "text" else {"html": page.html}
            yield {"url": page.url or None, "id": page.id or None, **content}


def kind_of(path):
    """What is in a file, by its name; None for a name that does not say it."""
    return KINDS.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])


def input_files(paths):
    """Files as given; of folders the files whose names say what they hold, in a fixed order."""
    files = []
    for path in paths:
        if not os.path.exists(path):
            hint = "; python world.py makes the default input" if "world" in path else ""
            raise ValueError(f"no such file or folder: {path}{hint}")
        found = [path] if not os.path.isdir(path) else [
            os.path.join(folder, name) for folder, _, names in sorted(os.walk(path))
            for name in sorted(names) if kind_of(name)]
        if not found or not kind_of(found[0]):
            raise ValueError(f"{path}: no name that ends in {' '.join(KINDS)} (or one with .gz)")
        files += found
    return files


def read_files(files, report):
    """Yields the pages of all files; page.done counts the bytes of the input up to a page."""
    before = 0
    for path in files:
        with open(path, "rb") as file:
            kind, pieces = kind_of(path), unpack_members(path, file, report)
            if kind == "warc":
                pages = read_warc(path, pieces, report)
            elif kind == "json":
                pages = read_json_pages(path, pieces, report)
            else:
                body = b""
                while len(body) <= MAX_TEXT and (piece := next(pieces, b"")) != b"":
                    body += piece or b""
                pages = [Page(kind, body)]
            for page in pages:
                page.done = before + file.tell()
                yield page
            before += os.path.getsize(path)


def read_json_pages(path, pieces, report):
    """Yields a page for each line {"text" or "html", optionally "url", "id"}."""
    number, rest = 0, b""
    for piece in itertools.chain(pieces, [b"\n"]):
        *lines, rest = [b""] if piece is None else (rest + piece).split(b"\n")
        rest = rest[:MAX_RECORD]  # a longer line is reported as no JSON
        for number, line in enumerate(lines, number + 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                kind = "text" if row.get("html") is None else "html"
                body = row[kind].encode("utf-8", "replace")
                url, name = (CONTROL.sub("", str(row.get(key) or "")) for key in ("url", "id"))
                yield Page(kind, body, url, name)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                report(f'{path}: line {number} is not {{"text": ...}}; skipped')


# ---- gzip ----------------------------------------------------------------------------------------
MEMBER_START = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")  # magic number, deflate, flags


def unpack_members(path, file, report):
    """Yields the bytes of a file in pieces, unpacked if it is gzip. A .warc.gz is a chain of gzip
    members, one a record; other files are one long member. At damage it yields None, what was begun
    is void, and goes on at the next member."""
    if file.read(2) != b"\x1f\x8b":
        file.seek(0)
        while piece := file.read(16 * CHUNK):
            yield piece
        return
    start, size = 0, os.path.getsize(path)
    while start < size:
        file.seek(start)
        try:
            yield from unpack_member(file)
            start = file.tell()
        except (zlib.error, EOFError) as error:
            report(f"{path}: damaged gzip member at byte {start}: {error}; skipped")
            yield None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                match = MEMBER_START.search(content, start + 1)
                start = match.start() if match else size


def unpack_member(file):
    """Yields the bytes of the gzip member that begins here, and leaves the file behind it. Up to
    MAX_HELD bytes come in one piece, if their checksum is right; more come as they are unpacked."""
    inflate, held = zlib.decompressobj(31), bytearray()
    while not inflate.eof and (packed := inflate.unconsumed_tail or file.read(CHUNK)):
        held += inflate.decompress(packed, 16 * CHUNK)
        if len(held) > MAX_HELD:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
    if not inflate.eof:
        raise EOFError("the file ends inside it")
    file.seek(-len(inflate.unused_data), os.SEEK_CUR)


# ---- WARC ----------------------------------------------------------------------------------------
# A record of a WARC file. Lines end in \r\n (some tools write \n). The block, an HTTP response, has
# Content-Length bytes, and two line ends follow it:
#
#     WARC/1.0
#     WARC-Type: response
#     WARC-Target-URI: http://a.example/
#     Content-Length: 5
#
#     block
#
# After damage the search goes on one byte after the damaged record's start, not after its claimed
# length, so a wrong length cannot swallow the next record.
RECORD_START, EMPTY_LINE = re.compile(rb"WARC/1\.\d\r?\n[\w-]+:"), re.compile(rb"\r?\n\r?\n")
RECORD_END, LINE_ENDS = re.compile(rb"\r?\n\r?\n|[\r\n]*\Z"), re.compile(rb"[\r\n]*")


def read_warc(path, pieces, report):
    """Yields the responses (WARC) and conversions (WET), with one record in memory at a time."""
    buffer, at, before, lost = b"", 0, 0, False  # before: bytes of records before the buffer
    for piece in itertools.chain(pieces, [b""]):
        if piece is None:  # what was begun in this member is void
            buffer, at, before, lost = b"", 0, before + len(buffer), False
            continue
        buffer, at, before = buffer[at:] + piece, 0, before + at
        while (at := LINE_ENDS.match(buffer, at).end()) < len(buffer):
            if lost:
                start = RECORD_START.search(buffer, at)
                if not start:
                    at = max(at, len(buffer) - 40)  # a start may lie across the end of a piece
                    break
                at, lost = start.start(), False
            try:
                record = parse_record(buffer, at, at_end=not piece)
            except ValueError as error:
                report(f"{path}: damaged record at byte {before + at} (unpacked): {error}; skipped")
                at, lost = at + 1, True
                continue
            if record is None:
                break  # it goes on in the next piece
            headers, block, at = record
            is_http = headers["content-type"].startswith("application/http")
            if (headers["warc-type"], is_http) in (("response", True), ("conversion", False)):
                yield Page("http" if is_http else "text", block,
                           headers["warc-target-uri"].strip("<>"), headers["warc-record-id"],
                           headers["warc-identified-payload-type"])


def parse_record(buffer, at, at_end):
    """(headers, block, end) of the record at `at`; None if more bytes are needed; ValueError."""
    header_end = EMPTY_LINE.search(buffer, at, at + CHUNK)
    if not header_end and not at_end and len(buffer) < at + CHUNK:
        return None
    header = buffer[at : header_end.start()] if header_end else b""
    if not RECORD_START.match(header) or RECORD_START.search(header, 1):
        raise ValueError("it has no header of its own")
    headers = parse_headers(header)
    length = int(headers["content-length"])  # a ValueError if it is no number
    if not 0 <= length <= MAX_RECORD:
        raise ValueError(f"Content-Length is {length}")
    start, end = header_end.end(), header_end.end() + length
    if len(buffer) < end + 4 and not at_end:
        return None
    if len(buffer) < end:
        raise ValueError(f"{end - len(buffer)} of its {length} bytes are missing")
    if not RECORD_END.match(buffer, end):
        raise ValueError(f"it does not end after its {length} bytes")
    return headers, buffer[start:end], end


def parse_headers(block):
    """Header lines after a first line -> dict, names in lower case, "" for a name not there. Only
    \\n ends a line, not U+2028 as for str.splitlines: a URL with one could bring a header."""
    headers = defaultdict(str)
    for line in block.split(b"\n")[1:]:
        name, _, value = line.decode("utf-8", "replace").partition(":")
        headers[name.strip().lower()] = CONTROL.sub("", value).strip()
    return headers


# ---- opening a page ------------------------------------------------------------------------------

def open_page(page):
    """Turns the body into page.html or page.text; returns None, or the reason why it cannot. That
    a response is HTML is said by the crawler (WARC-Identified-Payload-Type), or else by the server
    (Content-Type), or else by its first tags."""
    body, page.body, headers = page.body, b"", defaultdict(str)
    if page.kind == "text":
        if len(body) > MAX_TEXT:
            return "too_long"
        lines = body.decode("utf-8-sig", "replace").splitlines()  # whatever ends them
        page.text = CONTROL.sub(" ", "\n".join(lines))
        return None
    if page.kind == "http":
        head_end = EMPTY_LINE.search(body, 0, CHUNK)
        if body.startswith(b"HTTP/") and head_end:
            headers, body = parse_headers(body[: head_end.start()]), body[head_end.end() :]
        body = unwrap_body(body, headers)
        if body is None:
            return "unreadable_encoding"
        media_type = (page.media_type or headers["content-type"]).partition(";")[0].strip().lower()
        is_html = media_type in ("text/html", "application/xhtml+xml") or not media_type and (
            re.search(rb"(?i)<(!doctype\s+html|html|head|body)\b", body[:2048]))
        if not is_html:
            return "not_html"
    page.html = decode_html(body[:MAX_PAGE], headers["content-type"])
    return None


CHUNK_SIZE = re.compile(rb"(?:\r\n)?([0-9a-fA-F]{1,8})[^\r\n]{0,256}\r\n")


def unwrap_body(body, headers):
    """Undoes Transfer-Encoding: chunked, then Content-Encoding gzip or deflate; None if it cannot.

    A chunked body is "5\\r\\nhello\\r\\n0\\r\\n\\r\\n": sizes in hexadecimal, a size of 0 ends it.
    What does not look wrapped stays: crawlers often unwrap bodies but keep the headers."""
    if "chunked" in headers["transfer-encoding"].lower():
        pieces, at = [], 0
        while (match := CHUNK_SIZE.match(body, at)) and (size := int(match[1], 16)):
            pieces.append(body[match.end() : match.end() + size])
            at = match.end() + size
        body = b"".join(pieces) or body
    encoding = headers["content-encoding"].lower()
    for bits in (47, -15) if re.search("gzip|deflate", encoding) else ():
        try:  # 47: with a gzip or zlib header; -15: deflate without one
            return zlib.decompressobj(bits).decompress(body, MAX_PAGE)
        except zlib.error:
            continue
    is_packed = re.search(r"\b(br|zstd|gzip|deflate|compress)\b", encoding)
    return None if is_packed and b"<" not in body[:512] else body


META_CHARSET = re.compile(
    r"(?ai)<meta[^>]{0,500}?charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([-\w]{2,40})")
# The names we trust: Python knows codecs that are no charsets (punycode, hex), some of them slow.
CHARSET = re.compile(r"utf-?8|utf-?16|windows-|cp\d|iso|latin|us-ascii|koi8|gb|big5|euc|shift|mac")
# Browsers read these as a larger charset (WHATWG).
LARGER = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "gb2312": "gb18030",
          "iso-8859-9": "cp1254", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}


def decode_html(body, content_type=""):
    """Bytes -> str by byte order mark, HTTP header or `<meta>`; otherwise UTF-8 with replacement.
    A page with a one-byte charset that is valid UTF-8 is read as UTF-8: other text hardly ever is,
    so the label is wrong."""
    if body.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        charset = "utf-8-sig" if body.startswith(b"\xef") else "utf-16"
        return body.decode(charset, "replace")
    declared = re.search(r"(?i)charset\s*=\s*[\"']?\s*([-\w]{2,40})", content_type)
    meta = None if declared else META_CHARSET.search(body[:4096].decode("latin-1"))
    charset = (declared or meta or ["", ""])[1].lower()
    charset = LARGER.get(charset, charset) if CHARSET.match(charset) else "utf-8"
    if meta and charset.startswith("utf-16"):
        charset = "utf-8"  # a <meta> found by its ASCII letters cannot stand in a UTF-16 page
    one_byte = re.match("windows|cp125|iso-8859|latin", charset)
    for name, errors in (("utf-8" if one_byte else charset, "strict"), (charset, "replace")):
        try:
            return body.decode(name, errors)
        except (UnicodeError, LookupError):
            continue
    return body.decode("utf-8", "replace")
