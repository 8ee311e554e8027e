"""Compiled loops over texts: n-grams, shingles, MinHash, clusters of near-duplicates.

Words become 64-bit hashes, and only these are compared. crawl/rules.py and crawl/duplicates.py say
why.

Sources: FNV-1a (Fowler, Noll, Vo; RFC 9923), the finalizer of SplitMix64 (Steele and others, 2014),
MinHash (Broder 1997), union-find with path halving (Tarjan and van Leeuwen 1984).
"""
import numpy as np
from numba import njit

# ---- hashing -------------------------------------------------------------------------------------
# FNV-1a takes in one item at a time (a byte, a character, the hash of a word): h = (h ^ item) *
# prime mod 2^64. The product moves bits only upwards, so `mix` spreads them at the end.
START, PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


@njit(cache=True)
def absorb(h, item):
    return (h ^ np.uint64(item)) * PRIME


@njit(cache=True)
def mix(h):
    """Every bit of h changes about half of the bits of the result."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@njit(cache=True)
def hash_lines(data):
    """(n,) uint8, lines of text -> (lines,) uint64, without empty lines; spaces do not count."""
    hashes, n, h = np.empty(len(data) // 2 + 1, np.uint64), 0, START
    for i in range(len(data) + 1):
        byte = data[i] if i < len(data) else np.uint8(10)
        if byte == 10 and h != START:
            hashes[n], h = mix(h), START
            n += 1
        elif byte not in (10, 13, 32):
            h = absorb(h, byte)
    return hashes[:n].copy()


def hash_text(text):
    """The hash of a str (uint64), whitespace left out; 0 for nothing."""
    data = "".join(text.split()).encode("utf-8", "surrogatepass")
    return hash_lines(np.frombuffer(data, np.uint8))[0] if data else np.uint64(0)


# ---- n-grams -------------------------------------------------------------------------------------
# They are counted in a hash table with open addressing: a key belongs in slot `key mod size` or, if
# another key is there, in the next free one (0). Size 8, keys 3, 11, 5: slots 3, 4 (3 is taken), 5.

@njit(cache=True)
def n_gram_chars(ids, lengths):
    """(n,) words as numbers, (n,) their lengths -> (11,) characters; entry n is about n-grams.

    n = 2-4 : characters of the most frequent n-gram (the first of several), with its n - 1 spaces,
              times its count;
    n = 5-10: characters, without spaces, of all n-grams that occurred before. After a repeat the
              scan goes on behind it, so no character counts twice; otherwise one word further."""
    chars, n_words, size = np.zeros(11), len(ids), 16
    while size < 2 * n_words:
        size *= 2
    slots = np.zeros(n_words, np.int64)  # of the n-gram at each word
    for n in range(2, 11):
        keys, counts, i = np.zeros(size, np.uint64), np.zeros(size, np.int64), 0
        while i + n <= n_words:
            h, length = START, n - 1 if n < 5 else 0
            for j in range(i, i + n):
                h = absorb(h, ids[j])
                length += lengths[j]
            h = mix(h) | np.uint64(1)  # never 0, a free slot
            slot = np.int64(h >> np.uint64(8)) & (size - 1)  # mod size, a power of two
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
            most, first = counts.max(), 0
            while counts[slots[first]] < most:
                first += 1
            chars[n] = (lengths[first : first + n].sum() + n - 1) * most
    return chars


# ---- shingles and MinHash ------------------------------------------------------------------------

@njit(cache=True)
def shingle_hashes(codes, table, n_words):
    """(n,) uint32 code points -> (shingles,) uint64, one for each run of n_words words.

    table[code] is what a character becomes (shingle_alphabet in crawl/duplicates.py): 0 ends a
    word, 1 vanishes, a digit is "0". A number such as 1999 or 3.14 becomes one single "0"."""
    words, n, h, last, zero = np.empty(len(codes) // 2 + 1, np.uint64), 0, START, 0, ord("0")
    for i in range(len(codes) + 1):
        code = codes[i] if i < len(codes) else np.uint32(0)
        c = table[code] if code < len(table) else code
        if c == 1 or (c == zero and last == zero):
            continue
        if last == zero and (code == ord(".") or code == ord(",")) and i + 1 < len(codes):
            following = codes[i + 1]
            if following < len(table) and table[following] == zero:
                continue
        last = c
        if c != 0:
            h = absorb(h, c)
        elif h != START:
            words[n], h = mix(h), START
            n += 1
    shingles = np.empty(max(n - n_words + 1, 0), np.uint64)
    for i in range(len(shingles)):
        h = START
        for j in range(i, i + n_words):
            h = absorb(h, words[j])
        shingles[i] = mix(h)
    return shingles


@njit(cache=True)
def band_keys(shingles, functions, n_bands, n_rows):
    """(S,) uint64 shingles, (2, n_bands * n_rows) hash functions -> (n_bands,) uint64.

    Function k is h(x) = (x ^ functions[1, k]) * functions[0, k]; its minimum over the shingles
    counts. A band's key is one hash of its n_rows minima, so a text needs 14 numbers, not 112."""
    smallest = np.full(n_bands * n_rows, np.uint64(0xFFFFFFFFFFFFFFFF))
    for x in shingles:
        for k in range(len(smallest)):
            h = (x ^ functions[1, k]) * functions[0, k]
            smallest[k] = min(smallest[k], h)
    keys = np.empty(n_bands, np.uint64)
    for band in range(n_bands):
        h = absorb(START, band)
        for k in range(band * n_rows, (band + 1) * n_rows):
            h = absorb(h, mix(smallest[k]))
        keys[band] = mix(h)
    return keys


@njit(cache=True)
def unite(root, keys, order):
    """Union-find, in place: texts with equal keys (n,) come under the same root (n,). order: (n,)
    the texts sorted by key. On its way to the root each text skips one step (path halving), so the
    next walk is shorter."""
    for i in range(1, len(order)):
        if keys[order[i]] == keys[order[i - 1]]:
            a, b = order[i], order[i - 1]
            while root[a] != a or root[b] != b:
                root[a], root[b] = root[root[a]], root[root[b]]
                a, b = root[a], root[b]
            root[max(a, b)] = min(a, b)


def first_of_cluster(keys):
    """(N, bands) uint64 -> (N,) bool: is this text the first of its cluster? Texts are linked if
    they share a key in any band, and links chain: a ~ b and b ~ c put all three in one cluster. A
    text without keys (all 0) is linked to none."""
    root = np.arange(len(keys))
    for band in range(keys.shape[1]):
        column = np.ascontiguousarray(keys[:, band])
        unite(root, column, np.argsort(column, kind="stable"))
    return (root == np.arange(len(keys))) | ~keys.any(axis=1)
