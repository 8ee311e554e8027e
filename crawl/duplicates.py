"""What occurs twice: equal URLs, equal texts, and nearly equal texts (MinHash).

Copies waste training and make a model memorize; FineWeb's crawls lost 44% of their text here
(section 3.4). This is the one stage that must know all pages. It needs 128 bytes of each: hashes
of its URL and its text, and a signature of 14 numbers.

MinHash (Broder 1997) never compares two texts. A text is the set of its shingles, the runs of five
words in it. Two texts are as similar as the share of shingles they have in common (Jaccard: both /
either). Take a hash function, and of each text the shingle with the smallest hash:

    shingle           a  b  c  d      text 1 = {a, b, c}, text 2 = {b, c, d}: similarity 2 / 4
    hash function 1   7  3  9  5      minimum of text 1: 3, of text 2: 3    they agree
    hash function 2   1  8  4  6                         1              4   they differ

Two minima agree if the smallest of all four hashes belongs to a common shingle: here in 2 of 4
cases. So each hash function says "the same" with probability s, the similarity. 112 functions are
grouped in 14 bands of 8 rows, and two texts match if all rows of any band agree; with the two above
as one band the texts have the keys (3, 1) and (3, 4): no match. At s = 0.8 one band agrees with
probability 0.8^8 = 0.168, none of 14 with 0.832^14 = 0.076: 92% of such pairs are found. At s = 0.5
it is 5%. So P = 1 - (1 - s^8)^14 is a steep curve. To find matches each band's keys are sorted.

Sources: FineWeb (arXiv 2406.17557, section 3.4) for 5 words, 14 bands, 8 rows; datatrove for the
normalisation before shingling.
"""
import functools
import unicodedata

import numpy as np

from kernels.hashing import band_keys, first_of_cluster, hash_text, shingle_hashes

SHINGLE_WORDS, BANDS, ROWS = 5, 14, 8

# "In 1999 the Café — closed, at 3.14 pm" becomes: in 0 the cafe closed at 0 pm. Copies that differ
# only in dates, accents, case or punctuation are the same to MinHash.


@functools.cache
def shingle_alphabet():
    """uint32 (65536,): what becomes of each character before shingling, as datatrove does it.

    0 ends a word (whitespace, punctuation, symbols), 1 vanishes (accents on their own), digits all
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


@functools.cache
def hash_functions(n):
    """(n,) odd multipliers and (n,) offsets of h(x) = (x ^ offset) * multiplier mod 2^64."""
    random = np.random.default_rng(1)
    return random.integers(0, 1 << 64, (2, n), np.uint64) | np.array([[1], [0]], np.uint64)


def signature(text, *, words=SHINGLE_WORDS, bands=BANDS, rows=ROWS):
    """(bands,) uint64 keys of a text; None under `words` words: such a text is like no other."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    shingles = shingle_hashes(codes, shingle_alphabet(), words)
    return band_keys(shingles, hash_functions(bands * rows), bands, rows) if len(shingles) else None


def near_duplicates(texts, *, words=SHINGLE_WORDS, bands=BANDS, rows=ROWS):
    """(N,) bool, True where a document stays: the first of each cluster of near-duplicates.
    FineWeb keeps an arbitrary one. A text too short for a shingle always stays."""
    found = (signature(text, words=words, bands=bands, rows=rows) for text in texts)
    found = [np.zeros(bands, np.uint64) if keys is None else keys for keys in found]
    return are_first(np.array(found, np.uint64).reshape(-1, bands))


def are_first(signatures):
    """(N, bands) uint64, zeros for none -> (N,) bool, True where a text stays."""
    stays, signed = np.ones(len(signatures), bool), np.flatnonzero(signatures.any(axis=1))
    stays[signed] = first_of_cluster(signatures[signed])
    return stays


def repeated(hashes):
    """(N,) uint64 -> (N,) bool: did this hash occur before?"""
    again = np.ones(len(hashes), bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    return again


def exact(url_hashes, text_hashes, *, urls=True, texts=True):
    """(N,) hashes of URLs (0: none) and of texts -> N reasons or None: the first page of a URL
    stays, and of those the first of a text. URLs A, A, B with texts x, y, y: the second goes by its
    URL, the third stays, since the y before it is gone already."""
    reasons, left = np.full(len(url_hashes), None), np.arange(len(url_hashes))
    if urls:
        again = repeated(url_hashes) & (url_hashes != 0)
        reasons[again], left = "duplicate_url", left[~again]
    if texts:
        reasons[left[repeated(text_hashes[left])]] = "duplicate_text"
    return reasons.tolist()


# ---- as the pipeline uses it ---------------------------------------------------------------------


def page_keys(url, text, minhash):
    """(2 + bands,) uint64: hash of the URL (0: none), of the text, and the signature (zeros: none).

    minhash: the keyword arguments of signature, or None if that rule is off."""
    bands = signature(text, **minhash) if minhash else None
    no_bands = np.zeros(minhash["bands"] if minhash else 0, np.uint64)
    return np.array([hash_text(url), hash_text(text), *(no_bands if bands is None else bands)],
                    np.uint64)


def find_duplicates(keys, settings):
    """The keys of all pages (N, 2 + bands), in the order of the input -> for each None, or (stage,
    reason). Of duplicates the first stays, so the number of workers makes no difference."""
    found = [None] * len(keys)
    if settings["exact"] and found:
        reasons = exact(keys[:, 0], keys[:, 1], **settings["exact"])
        found = [reason and ("exact", reason) for reason in reasons]
    if settings["minhash"] and found:
        left = np.flatnonzero([why is None for why in found])
        for i in left[~are_first(keys[left, 2:])]:
            found[i] = "minhash", "near_duplicate"
    return found
