"""The loops of byte-level BPE, compiled: pre-tokenize, find the merges, merge.

bpe.py tells the idea in three short functions; the tests hold these loops equal to them. A hash
table is an array `slots`: 0 is free, k + 1 stands for entry k, which lies in the slot that its hash
names or in the next free one after it. Skip at first.
"""
import bisect
import collections
import functools

import numba
import numpy as np
import regex

from kernels.hashing import START, absorb

# ---- pre-tokenize --------------------------------------------------------------------------------
# The regex would take most of the time of encoding, so our patterns are also a loop over kinds of
# characters.

OTHER, LETTER, NUMBER, WHITESPACE, SPACE, LINE_END, NOTHING = range(7)
APOSTROPHE, E, L, SDMT, VR = ord("'"), ord("e"), ord("l"), tuple(b"sdmt"), tuple(b"vr")
LONG_S = 0x17F  # the s of old prints, an s where case is ignored


@functools.cache
def character_kinds():
    """Kind of every code point, (0x110000,) uint8, from the Unicode tables of `regex`."""
    kinds = np.full(0x110000, OTHER, np.uint8)
    every = "".join(map(chr, range(0x110000)))
    for kind, members in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (WHITESPACE, r"\s+"),
                          (SPACE, " "), (LINE_END, r"[\r\n]")):
        # A space and a line end are whitespace too: the later, narrower kind wins.
        for run in regex.finditer(members, every):
            kinds[run.start():run.end()] = kind
    return kinds


@numba.njit(cache=True)
def pre_token_bounds(points, kinds, max_digits, bounds):
    """regex.findall(GPT4_SPLIT, text). The first one or two characters of a pre-token decide which
    alternative of the pattern matches. points, kinds: code points and their kinds, (n + 2,); the
    last two are NOTHING, so looking ahead needs no test. Pre-token k is bounds[k]:bounds[k + 1];
    returns how many there are."""
    n, i = 0, 0
    while kinds[i] != NOTHING:
        # A pre-token begins at i and ends before j. 32 is the bit that makes an A an a.
        kind, j = kinds[i], i + 1
        next1, next2, quote = points[j] | 32, points[j + 1] | 32, points[i] == APOSTROPHE
        if quote and (next1 in SDMT or points[j] == LONG_S):  # '(?i:[sdmt]...
            j += 1
        elif quote and (next1 == next2 == L or (next2 == E and next1 in VR)):  # ...|ll|ve|re)
            j += 2
        elif kind == NUMBER:  # \p{N}{1,3}, before words: no word begins with a digit
            while kinds[j] == NUMBER and j - i < max_digits:
                j += 1
        elif kind == LETTER or (kind != LINE_END and kinds[j] == LETTER):
            while kinds[j] == LETTER:  # [^\r\n\p{L}\p{N}]?+\p{L}++
                j += 1
        elif kind == OTHER or (kind == SPACE and kinds[j] == OTHER):
            while kinds[j] == OTHER:  #  ?[^\s\p{L}\p{N}]++[\r\n]*+
                j += 1
            while kinds[j] == LINE_END:
                j += 1
        else:  # whitespace: all if the text ends there, or up to its last line end, or all but one
            line_end = j if kind == LINE_END else 0
            while WHITESPACE <= kinds[j] <= LINE_END:
                j += 1
                if kinds[j - 1] == LINE_END:
                    line_end = j
            if kinds[j] != NOTHING:
                j = line_end if line_end else max(j - 1, i + 1)
        n, i = n + 1, j
        bounds[n] = j
    return n


def empty_slots(n):
    """An empty hash table for n entries: a power of two of slots, at least half of them free."""
    return np.zeros(1 << (2 * n + 1).bit_length(), np.int32)


@numba.njit(cache=True)
def number_distinct(points, bounds, slots, firsts, numbers):
    """Number the distinct pre-tokens in order of appearance. Writes numbers (n,), one for each
    pre-token, and firsts, where each distinct one comes first; returns how many are distinct."""
    n = 0
    for k in range(len(numbers)):
        start, length = bounds[k], bounds[k + 1] - bounds[k]
        key = START
        for i in range(start, start + length):
            key = absorb(key, points[i])
        slot = np.int64(key >> np.uint64(40)) & (len(slots) - 1)
        while slots[slot]:  # maybe by another pre-token; compare the characters
            first, i = firsts[slots[slot] - 1], 0
            while i < length and points[bounds[first] + i] == points[start + i]:
                i += 1
            if i == length == bounds[first + 1] - bounds[first]:
                break
            slot = (slot + 1) & (len(slots) - 1)
        if not slots[slot]:
            firsts[n], n = k, n + 1
            slots[slot] = n
        numbers[k] = slots[slot] - 1
    return n


def pre_token_spans(text, max_digits):
    """Text -> the distinct pre-tokens' starts and ends in it, and the number of each pre-token in
    order. "ab ab ab" -> "ab" and " ab": [0, 2], [2, 5], [0, 1, 1]."""
    points = np.frombuffer((text + "\0\0").encode("utf-32-le"), np.int32)
    kinds = character_kinds()[points]
    kinds[-2:] = NOTHING
    bounds = np.zeros(len(text) + 1, np.int64)
    n = pre_token_bounds(points, kinds, max_digits, bounds)
    firsts, numbers = np.empty(n, np.int64), np.empty(n, np.int64)
    firsts = firsts[:number_distinct(points, bounds, empty_slots(n), firsts, numbers)]
    return bounds[firsts], bounds[firsts + 1], numbers


# ---- pairs of neighbours -------------------------------------------------------------------------

@numba.njit(cache=True)
def find_pair(slots, rows, left, right):
    """The slot of a pair of ids in a hash table of rows [left, right, ...], or the free slot where
    it belongs. Knuth's multiplicative hashing: the upper half of a product with an odd constant
    near 2**64 / golden ratio is well mixed."""
    slot = (np.uint64(left << 32 | right) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    slot = np.int64(slot) & (len(slots) - 1)
    while slots[slot] and (rows[slots[slot] - 1, 0] != left or rows[slots[slot] - 1, 1] != right):
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@numba.njit(cache=True)
def join(ids, start, end, left, right, new):
    """bpe.join_pair in place: the pair becomes the id `new` in ids[start:end]; returns the new end.
    """
    i = j = start  # read at i, write at j
    while i < end:
        ids[j] = ids[i]
        if ids[i] == left and i + 1 < end and ids[i + 1] == right:
            ids[j] = new
            i += 1
        i, j = i + 1, j + 1
    return j


# ---- train ---------------------------------------------------------------------------------------
# naive_train reads the whole corpus for every merge. Two ideas save that:
#   1. Each distinct pre-token is kept once, as a "word" with a weight, the number of occurrences.
#   2. A merge changes only the words that contain its pair, so each pair has a list of them. Their
#      pairs are subtracted from the counts, and after the merge their new pairs are added.
#
# Two words, "xaby" of weight 3 and "ab" of weight 2. The most frequent pair is (a,b):
#                         (x,a)  (a,b)  (b,y)  (x,ab)  (ab,y)
#     counts at first        3      5      3
#     x a b y -> x ab y     -3     -3     -3      +3      +3
#     a b     -> ab                -2
#     counts now             0      0      0       3       3
# "xaby" goes on the lists of (x,ab) and (ab,y). It stays on those of (x,a) and (b,y), which does no
# harm: nothing in it would be joined.
#
# Pair k is rows[k] = [left id, right id] and occurs counts[k] times. Its words are a linked list:
# newest[k] is the newest entry, entry e stands for the word word_of[e], and older[e] is the entry
# before it (0: none). used = [number of pairs, of entries].
# At first, entries 1, 2, 3 are "xaby" on the lists of (x,a), (a,b), (b,y); entry 4 is "ab" on that
# of (a,b). So newest of (a,b) is 4, older[4] is 2, and older[2] is 0.
Pairs = collections.namedtuple("Pairs", "slots rows counts newest word_of older used")


def empty_pairs(size):
    """Pairs with space for `size` pairs, and as many entries."""
    newest, word_of, older = np.zeros((3, size), np.int32)
    word_of[0] = -1  # no word
    return Pairs(empty_slots(size), np.zeros((size, 2), np.int64), np.zeros(size, np.int64),
                 newest, word_of, older, np.zeros(2, np.int64))


@numba.njit(cache=True)
def count_pairs(pairs, word, ids, start, end, amount, new):
    """Add `amount` to the count of each pair in the word ids[start:end], and put the word on the
    lists of those with an id >= new: it is on the others already."""
    used = pairs.used
    for i in range(start + 1, end):
        left, right = ids[i - 1], ids[i]
        slot = find_pair(pairs.slots, pairs.rows, left, right)
        if not pairs.slots[slot]:
            pairs.rows[used[0], 0], pairs.rows[used[0], 1] = left, right
            used[0] += 1
            pairs.slots[slot] = used[0]
        pair = pairs.slots[slot] - 1
        pairs.counts[pair] += amount
        if max(left, right) >= new and pairs.word_of[pairs.newest[pair]] != word:
            used[1] += 1
            pairs.word_of[used[1]], pairs.older[used[1]] = word, pairs.newest[pair]
            pairs.newest[pair] = used[1]


@numba.njit(cache=True)
def count_all(pairs, ids, starts, ends, weights):
    """Count the pairs of all words: word w is ids[starts[w]:ends[w]], with weight weights[w]."""
    for word in range(len(starts)):
        count_pairs(pairs, word, ids, starts[word], ends[word], weights[word], 0)


@numba.njit(cache=True)
def most_frequent(pairs, ranks):
    """The pair with the highest count, or -1 if none is left. Of equal counts the greatest byte
    strings win, as in naive_train; ranks[id] is a token's rank in their order. This plain search is
    half of all the time."""
    best, pair = (1, -1, -1), -1
    for k, count in enumerate(pairs.counts[:pairs.used[0]]):
        if count >= best[0]:
            key = (count, ranks[pairs.rows[k, 0]], ranks[pairs.rows[k, 1]])
            if key > best:
                best, pair = key, k
    return pair


@numba.njit(cache=True)
def join_everywhere(pairs, pair, ids, starts, ends, weights, new):
    """Replace the pair by the id `new` in the words on its list, and correct the counts. ends[w]
    moves down as word w shrinks. Returns how many tokens fewer the corpus has."""
    (left, right), entry, fewer = pairs.rows[pair], pairs.newest[pair], 0
    while entry:
        word, entry = pairs.word_of[entry], pairs.older[entry]
        start, end, weight = starts[word], ends[word], weights[word]
        count_pairs(pairs, word, ids, start, end, -weight, new)
        ends[word] = join(ids, start, end, left, right, new)
        count_pairs(pairs, word, ids, start, ends[word], weight, new)
        fewer += (end - ends[word]) * weight
    return fewer


def find_merges(counts, n_merges):
    """naive_train on a dict, distinct pre-token -> how often it occurs. Yields for each merge left,
    right, its count and the corpus's bytes per token now; merge k makes id 256 + k."""
    words, weights = [word.encode() for word in counts], np.array(list(counts.values()))
    ids = np.frombuffer(b"".join(words), np.uint8).astype(np.int64)
    lengths = np.array([len(word) for word in words])
    ends = np.cumsum(lengths)
    starts, n_bytes = ends - lengths, int(lengths @ weights)
    # There is at most one pair per id at first, and a merge takes one id away and makes two pairs.
    pairs = empty_pairs(3 * len(ids) + 1)
    count_all(pairs, ids, starts, ends, weights)
    tokens, n_tokens = [bytes([byte]) for byte in range(256)], n_bytes
    in_order, ranks = list(tokens), np.arange(256 + min(n_merges, len(ids)), dtype=np.int32)
    for new in range(256, len(ranks)):
        pair = most_frequent(pairs, ranks)
        if pair < 0:
            return
        (left, right), count = pairs.rows[pair].tolist(), int(pairs.counts[pair])
        n_tokens -= join_everywhere(pairs, pair, ids, starts, ends, weights, new)
        tokens.append(tokens[left] + tokens[right])
        ranks[new] = bisect.bisect(in_order, tokens[new])
        in_order.insert(ranks[new], tokens[new])
        ranks[:new] += ranks[:new] >= ranks[new]  # the tokens behind the new one move up
        yield left, right, count, n_bytes / n_tokens


# ---- encode --------------------------------------------------------------------------------------
# naive_encode tries every merge in turn. Here a table tells which pair of a pre-token was learned
# first. With merges 1: l+o and 2: lo+w, "low" takes two rounds, however many merges there are:
#     l o w   (l,o) is merge 1, (o,w) is none    -> lo w
#     lo w    (lo,w) is merge 2                  -> low

@numba.njit(cache=True)
def merge_table(rows, slots):
    """Enter all merges, rows of [left, right, made]."""
    for k in range(len(rows)):
        slots[find_pair(slots, rows, rows[k, 0], rows[k, 1])] = k + 1
    return slots


@numba.njit(cache=True)
def merge(ids, start, end, slots, rows):
    """Merge ids[start:end] in place, the earliest learned pair first; returns the new end. Each
    round reads the whole pre-token: a million random letters without a space take 25 s."""
    while True:
        best = len(rows) + 1
        for i in range(start + 1, end):
            found = slots[find_pair(slots, rows, ids[i - 1], ids[i])]
            if 0 < found < best:
                best = found
        if best > len(rows):
            return end
        left, right, made = rows[best - 1]
        end = join(ids, start, end, left, right, made)


@numba.njit(cache=True)
def merge_all(ids, ends, slots, rows):
    """Merge every pre-token of ids in place; ends[k] becomes the new end of the k-th."""
    start = 0
    for k in range(len(ends)):
        start, ends[k] = ends[k], merge(ids, start, ends[k], slots, rows)


def merge_words(words, byte_ids, slots, rows):
    """Words, list of str -> the ids of each, tuples. byte_ids (256,): the id of each byte."""
    encoded = [word.encode() for word in words]
    ends = np.cumsum([len(word) for word in encoded])
    starts, ids = [0, *ends.tolist()], byte_ids[np.frombuffer(b"".join(encoded), np.uint8)]
    merge_all(ids, ends, slots, rows)
    ids = ids.tolist()
    return [tuple(ids[a:b]) for a, b in zip(starts, ends.tolist())]


@numba.njit(cache=True)
def recover_merges(ids, ends, slots, rows):
    """Tokens in the order they were learned -> the merges that made them, into rows; returns how
    many. The merges before a token bring its bytes down to two parts, and these were joined. One
    part: it is a byte or known already; three or more: it only matches a whole pre-token."""
    n, start = 0, 0
    for k in range(len(ends)):
        if merge(ids, start, ends[k], slots, rows) == start + 2:
            rows[n, 0], rows[n, 1], rows[n, 2] = ids[start], ids[start + 1], k
            slots[find_pair(slots, rows, ids[start], ids[start + 1])] = n + 1
            n += 1
        start = ends[k]
    return n
