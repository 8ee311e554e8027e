"""What occurs twice: equal URLs, equal texts, and nearly equal texts (MinHash).

Copies waste training and make a model memorize; FineWeb's crawls lost 44% of their text here
(section 3.4). Of each page only 128 bytes are needed: its keys, 64-bit hashes. Two pages with an
equal key are duplicates: one key is of the URL, one of the text, and 14 come from MinHash.

MinHash (Broder 1997) never compares two texts. A text is the set of its shingles, the runs of five
words in it. The similarity of two texts is the share of shingles they have in common (Jaccard).
Take a hash function, and of each text the smallest hash of its shingles:

    shingle           a  b  c  d      smallest in text 1 = {a, b, c}   in text 2 = {b, c, d}
    hash function 1   7  3  9  5      3, of b                          3, of b            equal
    hash function 2   1  8  4  6      1, of a                          4, of c            differ

Here the similarity is 2 / 4: two shingles of four are common. Two minima are equal if the smallest
of all four hashes is that of a common shingle, so with probability 2 / 4 too, for any function.

A band is a group of hash functions, its rows; a text's key in it is the list of its minima. With
these two functions as one band text 1 has the key (3, 1) and text 2 the key (3, 4): they don't
match. FineWeb takes 14 bands of 8 functions, and two texts match if they have the same key in any
band. At similarity s one band agrees with probability s^8, and any of 14 with P = 1 - (1 - s^8)^14.
This is a steep curve: at s = 0.8 one band agrees with 0.8^8 = 0.168, none of 14 with
0.832^14 = 0.076, so 92% of such pairs are found; at s = 0.5 only 5%.

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
    """uint32 (65536,): what each character becomes: 0 ends a word (whitespace, punctuation,
    symbols), 1 vanishes (accents on their own), digits become "0", letters lower case."""
    table = np.arange(1 << 16, dtype=np.uint32)
    for code in range(1 << 16):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind[0] == "L":
            base, *marks = unicodedata.normalize("NFD", character.lower())
            if all(map(unicodedata.combining, marks)):
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
    """(N,) bool: which texts to keep, the first of each cluster of near-duplicates. (FineWeb keeps
    an arbitrary one.)"""
    keys = np.zeros((len(texts), bands), np.uint64)
    for row, text in zip(keys, texts):
        if (found := signature(text, words=words, bands=bands, rows=rows)) is not None:
            row[:] = found
    return first_of_cluster(keys)


def match_curve(words, bands, rows):
    """The probability of a match at each similarity, as one line."""
    chances = (f"{s:.2f} {1 - (1 - s**rows) ** bands:.1%}" for s in np.arange(0.5, 0.96, 0.05))
    return f"MinHash {bands} x {rows}: chance that similar texts match | " + " | ".join(chances)


# ---- as the pipeline uses it ---------------------------------------------------------------------
# A key of 0 is like no other: so nothing more is needed for a rule that is off, a page without a
# URL and a text too short for a shingle.

def exact(url, text, *, urls=True, texts=True):
    """The keys of a URL and of a text."""
    return hash_text(url if urls else ""), hash_text(text if texts else "")


def page_keys(url, text, settings):
    """(2 + bands,) uint64: the keys of a page."""
    minhash = settings["minhash"]
    keys = np.zeros(2 + (minhash["bands"] if minhash else 0), np.uint64)
    if settings["exact"]:
        keys[:2] = exact(url, text, **settings["exact"])
    if minhash and (bands := signature(text, **minhash)) is not None:
        keys[2:] = bands
    return keys


def find_duplicates(keys):
    """Keys of all pages (N, 2 + bands), in the order of the input -> for each () if it stays, the
    first of its duplicates, or (stage, reason). URLs A, A, B with texts x, y, y: the second page
    goes by its URL, and the third stays, since the y before it is gone already."""
    found, left = [()] * len(keys), np.arange(len(keys))
    for stage, reason, columns in (("exact", "duplicate_url", slice(0, 1)),
                                   ("exact", "duplicate_text", slice(1, 2)),
                                   ("minhash", "near_duplicate", slice(2, None))):
        stays = first_of_cluster(keys[left, columns])
        for i in left[~stays]:
            found[i] = stage, reason
        left = left[stays]
    return found
