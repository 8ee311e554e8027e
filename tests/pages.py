"""What the tests of the crawl share: a text that passes all rules, and WARC records to order."""
import gc
import gzip
import os
import time

from hypothesis import strategies as st

from crawl import warc

PROSE = (
    "The harbour was quiet when the first boats of the morning came in with their nets. "
    "Old men sat along the wall and talked of the weather, which had been kind that week. "
    "A girl of about ten carried bread to the houses that stand above the church. "
    "Nobody knew that the ferry would not return to the island before the end of winter. "
    "It had been agreed that the council and the fishermen would have to meet again soon. "
)
GERMAN = "Die Kinder spielten im Garten, als ihre Mutter sie rief und das Essen fertig war. "
# From broken entities and tags to lone surrogates: anything a page may hold.
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=400),
    st.text("<>/=\"'&#;! \n\tabipldtrx0159.-", max_size=400),
    st.lists(st.sampled_from("the of a. ! ? … ... # - • \n \n\n { [1] @ :: 1.2.3.4 漢 é".split(" ")),
             max_size=80).map(" ".join),
)


def http(body, headers="Content-Type: text/html; charset=utf-8"):
    """An HTTP response, as a WARC record holds it."""
    body = body if isinstance(body, bytes) else body.encode()
    return b"HTTP/1.1 200 OK\r\n" + headers.encode() + b"\r\n\r\n" + body


def record(block, url="http://a.example/1", kind="response", content_type="application/http",
           length=None):
    """A WARC record; length: what it says of its block's length, if not the truth."""
    length = len(block) if length is None else length
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Record-ID: <urn:x>",
             f"Content-Type: {content_type}", f"Content-Length: {length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + block + b"\r\n\r\n"


PAGES = [record(http(f"<p>page {i}</p>"), f"http://a.example/{i}") for i in range(5)]


def write(folder, content, name="crawl.warc"):
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(content)
    return path


def read(path):
    """(documents, messages about damage)"""
    damage = []
    return list(warc.read_documents(path, damage.append)), damage


def lines_of(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().split("\n")[:-1]


def growth(function, small, large):
    """How many times longer function(large) takes than function(small): the best times of up to
    eight rounds, since other programs disturb (and the garbage collector, which is off)."""
    best = [float("inf"), float("inf")]
    gc.disable()
    for _ in range(8):
        for i, text in enumerate((small, large)):
            start = time.process_time()
            function(text)
            best[i] = min(best[i], max(time.process_time() - start, 1e-3))
        if best[1] < 2.1 * best[0]:
            break
    gc.enable()
    return best[1] / best[0]
