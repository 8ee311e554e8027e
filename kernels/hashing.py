"""Compiled loops over texts: n-grams, shingles, MinHash, clusters of near-duplicates.

Every loop here first turns words into 64-bit numbers (hashes): equal words have equal numbers, and
two different ones have the same number once in 2^64 cases, which never happens here. After that
only numbers are compared. crawl/rules.py and crawl/duplicates.py say what is computed and why; the
tests compute the same with Python's dicts and sets.

Sources: FNV-1a (Fowler, Noll, Vo; RFC 9923), the finalizer of SplitMix64 (Steele and others, 2014),
MinHash (Broder 1997), union-find with path halving (Tarjan and van Leeuwen 1984).
"""
import numpy as np
from numba import njit

# ---- hashing -------------------------------------------------------------------------------------
# FNV-1a takes in one item at a time: h = (h ^ item) * prime, modulo 2^64. The items are bytes in
# the original; here they are also characters and the hashes of words. `mix` comes at the end, since
# the multiplication moves bits only upwards: without it the low bits know nothing of the high ones.

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
    hashes, n = np.empty(len(data) // 2 + 1, np.uint64), 0
    h, length = START, 0
    for i in range(len(data) + 1):
        byte = data[i] if i < len(data) else np.uint8(10)
        if byte == 10:
            if length:
                hashes[n] = mix(h)
                n += 1
            h, length = START, 0
        elif byte != 32 and byte != 13:
            h = absorb(h, byte)
            length += 1
    return hashes[:n].copy()


def hash_text(text):
    """The hash of a str (uint64), whitespace left out; 0 for nothing."""
    data = "".join(text.split()).encode("utf-8", "surrogatepass")
    return hash_lines(np.frombuffer(data, np.uint8))[0] if data else np.uint64(0)


# ---- n-grams -------------------------------------------------------------------------------------
# Counting needs a dictionary. Here it is an open-addressing hash table: an array of keys, at least
# twice as long as there are words. A key belongs in slot `key mod size`; if another key is there,
# in the next free one. So whoever looks for it starts at the same slot and goes on until it finds
# the key or a free slot (0). Size 8, keys 3, 11, 5 in this order: slots 3, 4 (3 was taken), 5.


@njit(cache=True)
def n_gram_chars(ids, lengths):
    """(n,) words as numbers, (n,) their lengths -> (11,) characters; entry n is about n-grams.

    n = 2-4 : characters of the most frequent n-gram, with its n - 1 spaces, times its count; of
              several equally frequent ones the first counts, and once is a count, too;
    n = 5-10: characters, without spaces, of all n-grams that occurred before. Greedy, so that no
              character counts twice: after a repeat go on behind it, otherwise one word further."""
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
            h = mix(h) | np.uint64(1)  # never 0, which is a free slot; size is a power of two, so
            slot = np.int64(h >> np.uint64(8)) & (size - 1)  # "& (size - 1)" is "mod size"
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

    table[code] is what a character becomes: 0 ends a word, 1 vanishes, a digit is "0" (see
    crawl/duplicates.py). A number such as 1999 or 3.14 becomes one single 0."""
    words, n = np.empty(len(codes) // 2 + 1, np.uint64), 0
    zero, dot, comma = np.uint32(48), np.uint32(46), np.uint32(44)
    h, length, last = START, 0, np.uint32(0)
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
            h = absorb(h, c)
            length += 1
        elif length:
            words[n] = mix(h)
            n += 1
            h, length = START, 0
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

    Function k is h(x) = (x ^ functions[1, k]) * functions[0, k]; of each the minimum over the
    shingles counts. A band's key is one hash of its n_rows minima: equal keys mean equal minima.
    So a text needs 14 numbers of 8 bytes and not 112."""
    n = n_bands * n_rows
    smallest = np.full(n, np.uint64(0xFFFFFFFFFFFFFFFF))
    for x in shingles:
        for k in range(n):
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
    """Union-find: texts with equal keys come under the same root. Changes root (n,) in place.

    keys: (n,) of one band; order: (n,) the texts sorted by key, so equal ones are neighbours.
    root[i] leads, in one step or several, to the first text of i's cluster. Each walk to a root
    lets every text it passes skip one step (path halving), so walks stay short."""
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
    """(N, bands) uint64 -> (N,) bool: is this text the first of all that it is linked to?

    Texts are linked if they share a key in any band, and links chain: a ~ b and b ~ c put all
    three in one cluster. One band at a time is sorted, so memory is the keys and one order."""
    root = np.arange(len(keys))
    for band in range(keys.shape[1]):
        column = np.ascontiguousarray(keys[:, band])
        unite(root, column, np.argsort(column, kind="stable"))
    return root == np.arange(len(keys))
