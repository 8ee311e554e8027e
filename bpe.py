"""2. Text becomes tokens: byte-level BPE, learned here, cut by GPT-4's rule.

A network reads numbers, so text is spelled with pieces from a fixed list, the vocabulary. The list
starts as the 256 bytes, so that nothing is unspellable, and grows by one rule: join the two
neighbours that most often stand side by side into a new token, and again. Common words end as one
token, rare ones as several. A pattern first cuts text into words, numbers, marks and blanks, and no
token reaches across a cut: otherwise "dog.", "dog!" and "dog?" would each be learned apart.

    python bpe.py                         out/docs/ -> out/tokenizer.json, out/tokens/*.npy
    python bpe.py a.txt b.txt             the same from plain text; the last 10% of each is val
    python bpe.py --show "Hello, world!"  the tokens in colour with their ids, also of others'
                                          vocabularies: --tokenizer cl100k_base.tiktoken

On one core of a shared, busy AMD EPYC (Zen 4): 8,192 tokens learned from 5.2 MB in 0.42-0.55 s,
text encoded at 12-19 MB/s. The first run of all compiles for 3.5 s of CPU time.

Reading order: the whole idea in three short functions (join_pair, naive_train, naive_encode); then
the same fast, in the order in which text passes through it: cut (pieces), learn (train), encode
(Tokenizer); then other people's files, the chat, streams, and the command.
Sources: Sennrich, Haddow and Birch 2016 (BPE); Radford et al. 2019 (bytes); tiktoken (the pattern).
Left out: Unicode normalisation, vocabularies that are no byte-level BPE, documents larger than
memory. An unbroken run of a million random letters is exact but takes 25 s (see merge).
"""
import argparse
import base64
import bisect
import collections
import concurrent.futures
import functools
import glob
import gzip
import hashlib
import itertools
import json
import os
import signal
import sys
import time
import zlib

import numba
import numpy as np
import regex

# GPT-4's cut, alternatives tried in order: 's 't 're ...; a word with at most one blank or mark
# before it; up to three digits; marks with at most one space before and line ends behind; blanks at
# the end of the text; blanks up to the last line end; blanks but one, which goes with the next
# word; a blank. `?+`, `++`, `*+` never give back what they took, which saves backtracking. tiktoken
# writes `\s++$`, but `$` differs between Python, Rust and Oniguruma; `(?!\S)` is the same in all.
GPT4_SPLIT = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"
              r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++(?!\S)|\s*[\r\n]|\s+(?!\S)|\s")
# Each digit alone: the tokens of a number are its columns, as in sums on paper.
DIGIT_SPLIT = GPT4_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# GPT-2's cut, built into Hugging Face's "ByteLevel" step.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The patterns that `cut` knows by heart.
MAX_DIGITS = {GPT4_SPLIT: 3, DIGIT_SPLIT: 1}
# Between a word and the next, where none of these patterns has a piece that reaches across.
BETWEEN_WORDS = regex.compile(r"\p{L}(?= \p{L})")

# Special tokens have an id of their own that no text can produce: they are never learned, never
# merged, and encoded only where the caller allows it. END stands behind every document; the three
# of the chat join the vocabulary at fine-tuning.
END = "<|endoftext|>"
CHAT_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im_sep|>")
ROLES = ("system", "user", "assistant")
# Default: the embedding stays a small part of a network of a million parameters.
VOCAB_SIZE = 1024
# Characters per job of a worker: 0.15 s of work, long beside the cost of sending it, and short
# beside any input for which a second core matters.
BATCH_CHARS = 1 << 21
# Distinct pieces whose ids are remembered: most of running text, in some 30 MB.
CACHE_PIECES = 1 << 17
# Pale blue, green, yellow, red, violet among a terminal's 256.
COLOURS = (153, 157, 223, 217, 189)
# Bytes that NumPy writes before the numbers of a 1-D .npy.
NPY_HEADER = 128


# ---- the idea ------------------------------------------------------------------------------------
# Trained on "low lower lowest", the first merges are (b"l", b"o"), (b"lo", b"w"), (b" ", b"low"):
# after three of them each of the words begins with one token. Encoding repeats what was learned.

def join_pair(parts, pair):
    """[b"a", b"b", b"c"], (b"a", b"b") -> [b"ab", b"c"], at every place from left to right."""
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def naive_train(texts, n_merges, pattern=GPT4_SPLIT):
    """All of BPE training: count pairs of neighbours, join the most frequent one, start over. Ties
    go to the lexicographically greatest pair of byte strings, so that the result is one only.
    Every round reads the whole corpus, and that is all that is wrong with it; `train` does not."""
    words = [[bytes([byte]) for byte in piece.encode()]
             for text in texts for piece in regex.findall(pattern, text)]
    merges = []
    while len(merges) < n_merges:
        counts = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts:
            break
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        words = [join_pair(word, merges[-1]) for word in words]
    return merges


def naive_encode(text, merges, pattern=GPT4_SPLIT):
    """All of BPE encoding: replay the merges in the order they were learned. Returns the tokens as
    byte strings. It tries every merge on every piece; `Tokenizer.encode` only those that occur."""
    tokens = []
    for piece in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        for pair in merges:
            parts = join_pair(parts, pair)
        tokens += parts
    return tokens


# ---- cut text into pieces ------------------------------------------------------------------------
# The slow twin is one line: regex.findall(pattern, text). It would be most of the time of encoding,
# so our own patterns are also written as a loop over kinds of characters; the tests hold the two
# equal on every code point. Any other pattern goes through the regex.

OTHER, LETTER, NUMBER, BLANK, SPACE, LINE_END, NOTHING = range(7)
APOSTROPHE, E, L, R, V = map(ord, "'elrv")
SDMT = tuple(map(ord, "sdmt"))
# The s of old prints, which is an s where case is ignored.
LONG_S = 0x17F


@functools.cache
def character_kinds():
    """Kind of every code point as the regex sees it, (0x110000,) uint8."""
    kinds = np.full(0x110000, OTHER, np.uint8)
    every = "".join(map(chr, range(0x110000)))
    for kind, members in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (BLANK, r"\s+"), (SPACE, " "),
                          (LINE_END, r"[\r\n]")):
        # A space is a blank too and a line end as well: the later, narrower kind wins.
        for run in regex.finditer(members, every):
            kinds[run.start():run.end()] = kind
    return kinds


@numba.njit(cache=True)
def cut(points, kinds, max_digits, bounds):
    """regex.findall(pattern, text): the pattern's alternatives, one after the other. What makes it
    fast is that no two of them need to be tried at length: the kinds of a piece's first one or two
    characters decide which matches, so nothing is ever read twice but the end of blanks.
    points: code points and kinds: theirs, both (n + 2,), ending in two of NOTHING, so that looking
    ahead needs no test for the end. Writes the bounds of the pieces (piece k is
    bounds[k]:bounds[k + 1], and bounds[0] is 0), returns how many pieces there are."""
    n, i = 0, 0
    while kinds[i] != NOTHING:
        # A piece begins at i; j finds where it ends. 32 is the bit that makes an A an a.
        kind, j = kinds[i], i + 1
        a, b = points[j] | 32, points[j + 1] | 32
        quote = points[i] == APOSTROPHE
        # '(?i:[sdmt]|ll|ve|re)
        if quote and (a in SDMT or points[j] == LONG_S):
            j += 1
        elif quote and ((a == L and b == L) or (b == E and (a == V or a == R))):
            j += 2
        # \p{N}{1,3}, tried before words since a digit cannot stand before the letters of one
        elif kind == NUMBER:
            while kinds[j] == NUMBER and j - i < max_digits:
                j += 1
        # [^\r\n\p{L}\p{N}]?+\p{L}++
        elif kind == LETTER or (kind != LINE_END and kinds[j] == LETTER):
            while kinds[j] == LETTER:
                j += 1
        #  ?[^\s\p{L}\p{N}]++[\r\n]*+
        elif kind == OTHER or (kind == SPACE and kinds[j] == OTHER):
            while kinds[j] == OTHER:
                j += 1
            while kinds[j] == LINE_END:
                j += 1
        # The four kinds of blanks: all of them if the text ends there, else up to the last line
        # end among them, else all but one, else the only one.
        else:
            line_end = j if kind == LINE_END else 0
            while BLANK <= kinds[j] <= LINE_END:
                j += 1
                if kinds[j - 1] == LINE_END:
                    line_end = j
            if kinds[j] != NOTHING:
                j = line_end if line_end else max(j - 1, i + 1)
        n, i = n + 1, j
        bounds[n] = j
    return n


def empty_slots(n):
    """An empty hash table for n entries: a power of two of slots, at least twice as many as
    entries, so that a walk to the next free slot is short. 0 is free, k + 1 stands for entry k."""
    return np.zeros(1 << (2 * n + 1).bit_length(), np.int32)


@numba.njit(cache=True)
def number_pieces(points, bounds, slots, firsts, numbers):
    """Number the distinct pieces in order of appearance, so that Python handles each only once:
    numbers (n,) says which piece stands at each place, firsts at which place each stands first.
    Returns how many are distinct. Its slow twin is a dict from the strings to their numbers."""
    # Each piece's hash says in which slot to look; the slots from there on to the next free one
    # hold the pieces that may be the same, and only equal characters prove it.
    n = 0
    for k in range(len(numbers)):
        start, length = bounds[k], bounds[k + 1] - bounds[k]
        key = np.uint64(0xCBF29CE484222325)  # FNV-1a, by code points
        for i in range(start, start + length):
            key = (key ^ np.uint64(points[i])) * np.uint64(0x100000001B3)
        slot = np.int64(key >> np.uint64(40)) & (len(slots) - 1)
        while slots[slot]:
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


def pieces(text, pattern):
    """Text -> its distinct pieces, list of str, and which one stands at each place, list of int:
    "a cat, a hat" -> ["a", " cat", ",", " a", " hat"], [0, 1, 2, 3, 4], and with another ", a cat"
    behind it [0, 1, 2, 3, 4, 2, 3, 1]. In 5 MB, 25 of 26 pieces are such repetitions."""
    try:
        points = np.frombuffer((text + "\0\0").encode("utf-32-le"), np.int32)
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate, U+{ord(text[error.start]):04X} at "
                         f"character {error.start}, which UTF-8 cannot hold; remove it") from None
    # Some other pattern: what it does not match stays, as pieces too.
    if pattern not in MAX_DIGITS:
        parts = [part for part in regex.split(f"({pattern})", text) if part]
        number = {part: k for k, part in enumerate(dict.fromkeys(parts))}
        return list(number), [number[part] for part in parts]
    kinds = character_kinds()[points]
    kinds[-2:] = NOTHING
    bounds = np.zeros(len(text) + 1, np.int64)
    n = cut(points, kinds, MAX_DIGITS[pattern], bounds)
    firsts, numbers = np.empty(n, np.int64), np.empty(n, np.int64)
    firsts = firsts[:number_pieces(points, bounds, empty_slots(n), firsts, numbers)]
    places = zip(bounds[firsts].tolist(), bounds[firsts + 1].tolist())
    return [text[a:b] for a, b in places], numbers.tolist()


# ---- learn merges --------------------------------------------------------------------------------
# naive_train reads the whole corpus for every merge. Three ideas save that:
#   1. Equal pieces are merged alike, so each distinct one is kept once, as a "word", with the
#      number of its occurrences: 5 MB of prose and code are 1.2 million pieces, but 45,000 words.
#   2. A merge changes only the words in which its pair stands, so each pair has a list of them.
#   3. In those words it changes only the counts beside it, so counts are corrected, not made anew.
# In "x a b y" joining a and b takes one from (x,a), (a,b), (b,y) and adds one to (x,ab), (ab,y).

@numba.njit(cache=True)
def find_pair(slots, rows, left, right):
    """The slot of a pair of ids in a hash table of rows [left, right, ...], or the free slot where
    it belongs. The key is both ids in one number, times an odd constant near 2**64 / golden ratio,
    of which the upper half is well mixed (Knuth's multiplicative hashing)."""
    slot = (np.uint64(left << 32 | right) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    slot = np.int64(slot) & (len(slots) - 1)
    while slots[slot] and (rows[slots[slot] - 1, 0] != left or rows[slots[slot] - 1, 1] != right):
        slot = (slot + 1) & (len(slots) - 1)
    return slot


def empty_pairs(size):
    """Room for so many pairs, and for as many notes. A note says of a pair "it stands in this word"
    and which note says so before it, so that a pair's notes form a list. In this order:
        slots      the hash table of find_pair
        rows       (size, 2), a pair's ids [left, right]
        counts     (size,), how often each pair stands in the corpus
        heads      (size,), each pair's newest note, 0 for none
        note_word, note_next   (size,), each note's word and the note before it
        used       (2,), how many pairs and how many notes there are"""
    return (empty_slots(size), np.zeros((size, 2), np.int64), np.zeros(size, np.int64),
            np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32),
            np.zeros(2, np.int64))


@numba.njit(cache=True)
def add_to_pair(pairs, left, right, amount, word):
    """Change a pair's count; where it grows, note the word, to find it when the pair is joined."""
    slots, rows, counts, heads, note_word, note_next, used = pairs
    slot = find_pair(slots, rows, left, right)
    if not slots[slot]:
        rows[used[0], 0], rows[used[0], 1] = left, right
        used[0] += 1
        slots[slot] = used[0]
    pair = slots[slot] - 1
    counts[pair] += amount
    if amount > 0:
        used[1] += 1
        note_word[used[1]], note_next[used[1]], heads[pair] = word, heads[pair], used[1]


@numba.njit(cache=True)
def learn(ids, starts, ends, weights, pairs, order, n_merges):
    """naive_train on words, the distinct pieces: word w is ids[starts[w]:ends[w]], shrinks in place
    and counts weights[w] times. Yields left, right, count and the tokens left in the corpus; merge
    k makes id 256 + k. order (256 + n_merges,): each token's rank among all, sorted by bytes, so
    that ties compare two numbers; the caller enters a new token's before asking for the next."""
    _, rows, counts, heads, note_word, note_next, used = pairs
    n_tokens = 0
    for word in range(len(starts)):
        n_tokens += (ends[word] - starts[word]) * weights[word]
        for i in range(starts[word] + 1, ends[word]):
            add_to_pair(pairs, ids[i - 1], ids[i], weights[word], word)
    for new in range(256, 256 + n_merges):
        # A plain search for the maximum: half of all the time, but a heap would need bookkeeping
        # at every change of a count. Tuples compare as in naive_train: the count, then the bytes.
        best, pair = (1, -1, -1), -1
        for k, count in enumerate(counts[:used[0]]):
            if count >= best[0]:
                rank = (count, order[rows[k, 0]], order[rows[k, 1]])
                if rank > best:
                    best, pair = rank, k
        if pair < 0:
            return
        # Some words on the list have lost the pair to another merge by now: nothing happens there.
        left, right, note = rows[pair, 0], rows[pair, 1], heads[pair]
        while note:
            word, note = note_word[note], note_next[note]
            start, end, weight = starts[word], ends[word], weights[word]
            i = j = start  # read at i, write at j
            while i < end:
                ids[j] = ids[i]
                if ids[i] == left and i + 1 < end and ids[i + 1] == right:
                    ids[j] = new
                    add_to_pair(pairs, left, right, -weight, word)
                    if j > start:
                        add_to_pair(pairs, ids[j - 1], left, -weight, word)
                        add_to_pair(pairs, ids[j - 1], new, weight, word)
                    if i + 2 < end:
                        add_to_pair(pairs, right, ids[i + 2], -weight, word)
                        add_to_pair(pairs, new, ids[i + 2], weight, word)
                    i += 1
                i, j = i + 1, j + 1
            n_tokens -= (end - j) * weight
            ends[word] = j
        yield left, right, best[0], n_tokens
        # The caller has entered order[new], so the tokens from there on move up.
        for k in range(new):
            order[k] += order[k] >= order[new]


def count_pieces(texts, ended=True, *, pattern):
    """Distinct pieces and how often each occurs: all that training needs to know of a text. Where
    a document ends (ended, see batches) does not matter to it."""
    counts = collections.Counter()
    for text in texts:
        distinct, numbers = pieces(text, pattern)
        counts.update(dict(zip(distinct, np.bincount(numbers).tolist())))
    return counts


def train(texts, vocab_size, special_tokens=(), pattern=GPT4_SPLIT, workers=None, show=None):
    """Learn a Tokenizer of vocab_size ids: 256 bytes, merges, special tokens (fewer if the texts
    run out of pairs). The merges are naive_train's, found by `learn`. texts may be a stream: memory
    grows with the distinct pieces only. workers: processes that count, None for one per core; the
    result is the same. show: e.g. print."""
    n_merges = vocab_size - 256 - len(special_tokens)
    if n_merges < 0:
        raise ValueError(f"a vocabulary of {vocab_size} is too small: 256 bytes and "
                         f"{len(special_tokens)} special tokens need {vocab_size - n_merges}")
    counts = collections.Counter()
    for part in in_order(functools.partial(count_pieces, pattern=pattern), batches(texts), workers):
        counts.update(part)
    if not counts:
        raise ValueError("no text to learn a tokenizer from; the corpus is empty")
    words = [piece.encode() for piece in counts]
    ids = np.frombuffer(b"".join(words), np.uint8).astype(np.int64)
    lengths, weights = np.array([len(word) for word in words]), np.array(list(counts.values()))
    ends, n_bytes = np.cumsum(lengths), int(lengths @ weights)
    # There is at most one pair per id at first, and a merge takes one id away and makes two pairs.
    pairs = empty_pairs(3 * len(ids) + 1)
    merges, tokens = [], [bytes([byte]) for byte in range(256)]
    ranked, order = list(tokens), np.arange(256 + n_merges, dtype=np.int32)
    for left, right, count, n_tokens in learn(ids, ends - lengths, ends, weights, pairs, order,
                                              n_merges):
        k, token = len(merges), tokens[left] + tokens[right]
        merges.append((left, right, len(tokens)))
        place = bisect.bisect(ranked, token)
        ranked.insert(place, token)
        order[len(tokens)] = place
        tokens.append(token)
        if show and (k < 8 or k >= n_merges - 8 or k % (n_merges // 8 + 1) == 0):
            show(f"merge {k + 1:,}/{n_merges:,} | {printable(tokens[left])} + "
                 f"{printable(tokens[right])} | {count:,} times | "
                 f"{n_bytes / n_tokens:.3f} bytes/token")
    tokenizer = Tokenizer(tokens, merges, {}, pattern)
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


# ---- encode --------------------------------------------------------------------------------------
# naive_encode tries every merge in turn; here the pairs that stand in the piece are looked up in a
# table, which says which of them was learned first. With merges 1: l+o and 2: lo+w, "low" is
#     l o w   (l,o) is merge 1, (o,w) is none    -> lo w
#     lo w    (lo,w) is merge 2                  -> low
# two rounds for three bytes, however many merges there are. And each distinct piece is merged only
# once; its ids stay in a dict. A piece seen before costs one look-up, however long it is.

@numba.njit(cache=True)
def index_merges(slots, rows, first, n):
    """Make rows first..n-1 of the merges, [left, right, made], findable by their pair."""
    for k in range(first, n):
        slots[find_pair(slots, rows, rows[k, 0], rows[k, 1])] = k + 1


@numba.njit(cache=True)
def merge(ids, start, end, slots, rows):
    """Merge ids[start:end] in place and return the new end: the earliest learned pair first, at all
    its places at once, as naive_encode does. Each round searches the whole piece, which suits
    pieces of a few bytes; for very long ones a heap of pairs would be better."""
    while True:
        best = len(rows) + 1
        for i in range(start, end - 1):
            found = slots[find_pair(slots, rows, ids[i], ids[i + 1])]
            if 0 < found < best:
                best = found
        if best > len(rows):
            return end
        left, right, made = rows[best - 1]
        i = j = start  # read at i, write at j
        while i < end:
            ids[j] = ids[i]
            if ids[i] == left and i + 1 < end and ids[i + 1] == right:
                ids[j] = made
                i += 1
            i, j = i + 1, j + 1
        end = j


@numba.njit(cache=True)
def merge_all(ids, ends, slots, rows):
    """Merge every piece of ids in place; ends becomes where what is left of each now ends."""
    start = 0
    for k in range(len(ends)):
        start, ends[k] = ends[k], merge(ids, start, ends[k], slots, rows)


@numba.njit(cache=True)
def recover_merges(ids, ends, slots, rows):
    """Tokens in the order they were learned -> the merges that made them, into rows, and how many.
    The merges before a token bring its bytes down to two parts: those two were joined. No others
    can have been: what happens inside a token's bytes does not depend on what stands around."""
    n, start = 0, 0
    # A token that comes down to one part is a byte or known already; one of three or more can only
    # be matched as a whole piece.
    for k in range(len(ends)):
        if merge(ids, start, ends[k], slots, rows) == start + 2:
            rows[n, 0], rows[n, 1], rows[n, 2] = ids[start], ids[start + 1], k
            index_merges(slots, rows, n, n + 1)
            n += 1
        start = ends[k]
    return n


def byte_ids(tokens):
    """Id of each single byte, (256,): ours are 0 to 255, those of others stand in any order."""
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        raise ValueError(f"has no token for byte {missing[0]}; byte-level BPE needs all 256")
    return np.array([ids[bytes([byte])] for byte in range(256)])


class Tokenizer:
    """A vocabulary and what is needed to use it fast.

    tokens: id -> bytes (None in a gap). merge_rows (M,3): ids [left, right, made], first learned
    first. special_tokens: name -> id. pattern: cuts text before anything is merged. whole_pieces:
    a piece that is a token is that token, whatever the merges make of it, as in tiktoken.

    A vocabulary learned here has the bytes as ids 0 to 255, then one id per merge, then the special
    tokens; but nothing below relies on that, since other people's vocabularies differ."""

    def __init__(self, tokens, merge_rows, special_tokens, pattern=GPT4_SPLIT, whole_pieces=False):
        self.tokens, self.special_tokens = list(tokens), dict(special_tokens)
        self.pattern, self.whole_pieces = pattern, whole_pieces
        self.merge_rows = np.array(merge_rows, np.int64).reshape(-1, 3)
        self.byte_ids = byte_ids(self.tokens)
        self.slots = empty_slots(len(self.merge_rows))
        index_merges(self.slots, self.merge_rows, 0, len(self.merge_rows))
        special = set(self.special_tokens.values())
        # What is half a character or special is no piece of ordinary text.
        self.whole = {text: (k,) for k, token in enumerate(self.tokens if whole_pieces else ())
                      if token is not None and k not in special
                      and (text := token.decode("utf-8", "ignore")).encode() == token}
        self.cache = dict(self.whole)  # piece -> its ids

    @property
    def vocab_size(self):
        """Ids are 0 to vocab_size - 1."""
        return len(self.tokens)

    @property
    def merges(self):
        """Pairs of byte strings, first learned first."""
        return [(self.tokens[a], self.tokens[b]) for a, b, _ in self.merge_rows.tolist()]

    def token_bytes(self, token_id):
        """The bytes that an id stands for; of a special token its name's."""
        known = isinstance(token_id, (int, np.integer)) and 0 <= token_id < len(self.tokens)
        if not known or self.tokens[token_id] is None:
            raise ValueError(f"unknown token id {token_id}: this vocabulary has 0 to "
                             f"{len(self.tokens) - 1}; were the ids made by another tokenizer?")
        return self.tokens[token_id]

    def add_special_tokens(self, names):
        """Give each new name the next id."""
        for name in names:
            if name not in self.special_tokens:
                self.special_tokens[name] = len(self.tokens)
                self.tokens.append(name.encode())

    def fingerprint(self):
        """Hash of all that decides ids. Checkpoints carry it, so that no other vocabulary fits."""
        content = (self.tokens, self.merge_rows.tolist(), sorted(self.special_tokens.items()),
                   self.pattern, self.whole_pieces)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def encode_ordinary(self, text):
        """Ids of text, in which nothing is special: naive_encode, with each distinct piece merged
        once, then looked up. Running text repeats itself so much that merging takes the smallest
        part of the time; cutting and the list of ids take most."""
        (distinct, numbers), cache = pieces(text, self.pattern), self.cache
        if len(cache) > len(self.whole) + CACHE_PIECES:
            cache = self.cache = dict(self.whole)
        new = [piece for piece in distinct if piece not in cache]
        if new:  # laid end to end, so that one call merges them all
            encoded = [piece.encode() for piece in new]
            ends = np.cumsum([len(piece) for piece in encoded])
            starts = [0, *ends.tolist()]
            ids = self.byte_ids[np.frombuffer(b"".join(encoded), np.uint8)]
            merge_all(ids, ends, self.slots, self.merge_rows)
            ids, ends = ids.tolist(), ends.tolist()
            cache.update((piece, tuple(ids[a:b])) for piece, a, b in zip(new, starts, ends))
        ids_of = [cache[piece] for piece in distinct]
        return list(itertools.chain.from_iterable(map(ids_of.__getitem__, numbers)))

    def encode(self, text, allowed_special=()):
        """Ids of text, a list. Names of special tokens are plain text unless allowed ("all"): else
        anyone could end a document, or the other's turn in a chat, by typing <|im_end|>."""
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        for name in allowed:
            if name not in self.special_tokens:
                raise ValueError(f"{name!r} is not among the special tokens of this vocabulary "
                                 f"({', '.join(self.special_tokens) or 'it has none'})")
        if not allowed:
            return self.encode_ordinary(text)
        # The longest first, or <|a|> would hide <|a|>b. The parentheses keep the names in the list.
        names = "|".join(map(regex.escape, sorted(allowed, key=len, reverse=True)))
        ids = []
        for k, part in enumerate(regex.split(f"({names})", text)):  # every second one is a name
            ids += [self.special_tokens[part]] if k % 2 else self.encode_ordinary(part)
        return ids

    def encode_documents(self, texts, ended=True):
        """List of texts -> (n,) uint16, or uint32 where ids do not fit into 16 bits: two bytes a
        token halve the file and the memory that training reads. END stands behind each text, and
        behind the last one too unless it goes on elsewhere (see batches)."""
        ids = []
        for text in texts:
            ids += [*self.encode_ordinary(text), self.special_tokens[END]]
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        return np.array(ids if ended else ids[:-1], dtype)

    def decode(self, ids):
        """Text of the ids. What is no UTF-8, such as half a character, becomes U+FFFD: a network
        may write the bytes in any order. Only whole texts are decoded, never token by token."""
        return b"".join([self.token_bytes(token_id) for token_id in ids]).decode("utf-8", "replace")

    def save(self, path):
        """Write a tokenizer.json."""
        content = json.dumps(to_tree(self), ensure_ascii=False).encode()
        write_whole(path, lambda file: file.write(content))

    @staticmethod
    def load(path):
        """Read a tokenizer.json, ours or a foreign byte-level BPE, or a tiktoken rank file."""
        if not os.path.exists(path):
            raise ValueError(f"{path}: no tokenizer there; python bpe.py makes one")
        with open(path, "rb") as file:
            content = file.read()
        try:
            if not content.strip():
                raise ValueError("is empty")
            return from_tree(content) if content.lstrip()[:1] == b"{" else from_ranks(content)
        except ValueError as error:
            raise ValueError(f"{path} {error} (expected a tokenizer.json or a rank file)") from None


# ---- other people's files ------------------------------------------------------------------------
# Both kinds spell the same thing, the merges in their order: Hugging Face as a list of pairs,
# tiktoken only by the ranks of the tokens made (see recover_merges).

@functools.cache
def byte_letters():
    """Hugging Face writes each byte as a visible letter: itself if printable, else 256, 257, ...
    So a space, the 33rd byte that is not, is written as chr(256 + 32), a G with a dot above."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def to_tree(tokenizer):
    """Tokenizer -> content of the tokenizer.json that Hugging Face's tokenizers reads: first cut
    by our pattern, each piece left whole ("Isolated"); then spell bytes as letters ("ByteLevel",
    which on its own would add a space before and cut as GPT-2 did); then merge."""
    letters, special = byte_letters(), tokenizer.special_tokens
    words = ["".join([letters[byte] for byte in token or b""]) for token in tokenizer.tokens]
    ordinary = {words[k]: k for k, token in enumerate(tokenizer.tokens)
                if token is not None and k not in special.values()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": k, "content": name} | added for name, k in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated",
             "invert": False}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": tokenizer.whole_pieces,
                  "vocab": ordinary | special,
                  "merges": [[words[a], words[b]] for a, b, _ in tokenizer.merge_rows.tolist()]}}


def split_pattern(pre_tokenizer):
    """The pattern that a pre_tokenizer cuts by, or None if it does anything else: then our ids
    would differ from those the file's own network was trained on, without a word. It may be a lone
    ByteLevel, which cuts as GPT-2 did, or one Split and a ByteLevel that does not cut again."""
    *splits, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    cuts = bool(last.get("use_regex", True))
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(splits) + cuts != 1:
        return None
    if cuts:
        return GPT2_SPLIT
    split, pattern = splits[0], splits[0].get("pattern", {}).get("Regex")
    plain = split["type"] == "Split" and split["behavior"] == "Isolated" and not split.get("invert")
    return pattern if plain and pattern and not regex.compile(pattern).groups else None


def from_tree(content):
    """tokenizer.json -> Tokenizer. What would change ids and is not done here is refused. Merges
    are pairs, or strings "LEFT RIGHT" in older files; spaces in tokens are spelled as letters."""
    try:
        tree = json.loads(content)
        model, special = tree["model"], {t["content"]: t["id"] for t in tree["added_tokens"]}
        pattern = split_pattern(tree["pre_tokenizer"] or {"type": "none"})
        asked = {f"model type {model['type']}": model["type"] != "BPE",
                 "a normalizer": tree.get("normalizer"),
                 "a pre_tokenizer other than one Split and ByteLevel": pattern is None}
        asked |= {name: model.get(name) for name in (
            "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")}
        if any(asked.values()):
            raise ValueError("needs what is not done here: "
                             + ", ".join(name for name, wanted in asked.items() if wanted))
        bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        vocab = model["vocab"]
        tokens = [None] * (1 + max([*vocab.values(), *special.values()], default=-1))
        for word, k in vocab.items():
            tokens[k] = None if word in special else bytes([bytes_of[letter] for letter in word])
        for name, k in special.items():
            tokens[k] = name.encode()
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        rows = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
    except (json.JSONDecodeError, UnicodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("is cut off or no byte-level BPE: "
                         f"{type(error).__name__} {error}") from None
    return Tokenizer(tokens, rows, special, pattern, bool(model.get("ignore_merges")))


def from_ranks(content):
    """tiktoken's lines "BASE64 RANK" -> Tokenizer with GPT-4's pattern and no special tokens. The
    rank is the id, and the order in which the merges apply; which two parts made a token the file
    does not say, since tiktoken joins any two neighbours whose union is a token."""
    tokens = []
    for line in content.splitlines():
        try:
            token, rank = line.split()
            if int(rank) != len(tokens):
                raise ValueError
            tokens.append(base64.b64decode(token, validate=True))
        except ValueError:
            raise ValueError(f"is cut off or broken: line {len(tokens) + 1} is {line[:40]!r}, not "
                             f'"BASE64 {len(tokens)}"') from None
    ids = byte_ids(tokens)[np.frombuffer(b"".join(tokens), np.uint8)]
    ends, rows = np.cumsum([len(token) for token in tokens]), np.zeros((len(tokens), 3), np.int64)
    rows = rows[:recover_merges(ids, ends, empty_slots(len(tokens)), rows)]
    return Tokenizer(tokens, rows, {}, GPT4_SPLIT, whole_pieces=True)


# ---- chat ----------------------------------------------------------------------------------------

def render_chat(tokenizer, messages, open_answer=False):
    """Messages [{"role", "content"}, ...] -> ids and mask, lists of int. Each message becomes
    <|im_start|>ROLE<|im_sep|>TEXT<|im_end|>, and the mask is 1 on what the model is to learn to
    say: the assistant's texts, each with the <|im_end|> at which it stops. What people write never
    becomes a special token. open_answer: end with the head of an answer, for the model to go on."""
    if not set(CHAT_SPECIALS) <= set(tokenizer.special_tokens):
        raise ValueError("this tokenizer has no chat tokens; python sft.py adds them")
    start, end, separator = [tokenizer.special_tokens[name] for name in CHAT_SPECIALS]
    ids, mask = [], []
    for message in [*messages, *([{"role": "assistant", "content": ""}] if open_answer else [])]:
        role, text = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(text, str):
            raise ValueError(f"a message needs a role ({', '.join(ROLES)}) and a text as content, "
                             f"not {role!r} and {text!r:.40}")
        head, body = [start, *tokenizer.encode(role), separator], [*tokenizer.encode(text), end]
        ids += head + body
        mask += [0] * len(head) + [int(role == "assistant")] * len(body)
    return (ids[:-1], mask[:-1]) if open_answer else (ids, mask)


# ---- streams and files ---------------------------------------------------------------------------
# Texts flow from the files through the workers into one file of tokens. Nothing here holds more
# than the document being read and a few jobs, so a corpus may be larger than memory.

def batches(texts):
    """Group texts into jobs of about BATCH_CHARS: (list of texts, whether the last one ends there).
    A longer text is cut between words, where every piece ends anyway, and goes on in the next job:
    so one long file keeps all cores busy, and memory does not grow with it."""
    batch, size = [], 0
    for text in [texts] if isinstance(texts, str) else texts:
        start = 0
        while gap := BETWEEN_WORDS.search(text, start + BATCH_CHARS):
            yield [*batch, text[start:gap.end()]], False
            batch, size, start = [], 0, gap.end()
        batch.append(text[start:])
        size += len(batch[-1])
        if size >= BATCH_CHARS:
            yield batch, True
            batch, size = [], 0
    if batch:
        yield batch, True


def in_order(work, jobs, workers=None):
    """Yield work(*job) in the order of the jobs, from several processes (the threads of one would
    take turns at Python's lock): itertools.starmap(work, jobs), on all cores. Few jobs are under
    way at a time, so that a stream of any length passes through. A single job runs here, since it
    is not worth a process."""
    jobs, waiting, workers = iter(jobs), collections.deque(), workers or os.cpu_count()
    first = list(itertools.islice(jobs, 2))
    if workers == 1 or len(first) < 2:
        yield from itertools.starmap(work, itertools.chain(first, jobs))
        return
    with concurrent.futures.ProcessPoolExecutor(  # workers leave Ctrl-C to us
            workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        for job in itertools.chain(first, jobs):
            waiting.append(pool.submit(work, *job))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_whole(path, write):
    """Call write(file) on a temporary file, then give it its name: nothing is ever half-written."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.part", "wb") as file:
        write(file)
    os.replace(f"{path}.part", path)


def write_tokens(file, arrays, dtype):
    """Stream arrays into one 1-D .npy and return its length, which the header, written last, says.
    NumPy pads headers to a multiple of 64 bytes, so its place is known before."""
    file.seek(NPY_HEADER)
    n = sum(file.write(array.tobytes()) for array in arrays) // np.dtype(dtype).itemsize
    file.seek(0)
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n,)})
    assert file.tell() == NPY_HEADER
    return n


def read_texts(inputs, folder, part):
    """Stream the texts of a part, "train" or "val": of the shards in folder, or of the plain text
    files named, the first 90% or the last 10% of each one's characters. data.py has parted its
    documents already; a text that is one document can only be parted by place, and cutting it
    where it stands keeps what is held out away from what is learned."""
    for path in inputs:
        try:
            with open(path, encoding="utf-8", newline="") as file:  # line ends stay as they are
                text = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error.reason}, byte {error.start}") from None
        if not text:
            raise ValueError(f"{path} is empty")
        yield text[:len(text) * 9 // 10] if part == "train" else text[len(text) * 9 // 10:]
    shards = [] if inputs else sorted(glob.glob(f"{folder}/{part}-*.jsonl.gz"))
    if not inputs and not shards:
        raise ValueError(f"no {folder}/{part}-*.jsonl.gz; run python data.py, or name a text file")
    for path in shards:
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                yield from (json.loads(line)["text"] for line in file)
        except (EOFError, KeyError, TypeError, ValueError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}); run python data.py again") from None


def read_tokens(folder, part, tokenizer=None):
    path = os.path.join(folder, part + ".npy")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no tokens there; python bpe.py makes them")
    return np.load(path, mmap_mode="r")


# ---- the command ---------------------------------------------------------------------------------

def printable(token):
    """A token's bytes, readable: spaces as dots, half characters and line ends as escapes, so that
    b" caf\\xc3\\n" becomes ·caf\\xc3\\n."""
    text = token.decode("utf-8", "backslashreplace").replace(" ", "·")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def in_colour():
    """Colours are for terminals, and there too only without NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text, code):
    """Text in a colour (an ANSI code such as "32", green), where colours are shown."""
    return f"\x1b[{code}m{text}\x1b[0m" if in_colour() else text


def show_tokens(tokenizer, text):
    """Print the tokens of text, each on its own colour, and below them their ids, on the same
    colours. Where there are none, bars part the tokens."""
    ids = tokenizer.encode(text, allowed_special="all")
    tokens = [tokenizer.token_bytes(k) for k in ids]
    codes = [f"30;48;5;{COLOURS[k % len(COLOURS)]}" for k in range(len(ids))]
    print(("" if in_colour() else "|").join(map(paint, map(printable, tokens), codes)))
    print(" ".join(map(paint, map(str, ids), codes)))
    print(f"{len(ids)} tokens, {sum(map(len, tokens))} bytes")


def run(args):
    """Train (unless --tokenizer brings one) and encode both parts. The texts are read twice, once
    to learn from and once to encode: reading is cheap, and keeping them would take memory."""
    saved, docs = f"{args.out}/tokenizer.json", f"{args.out}/docs"
    print(f"bpe.py | input {' '.join(args.inputs) or docs} | vocabulary "
          f"{args.tokenizer or args.vocab_size} | digits {args.digits} | workers "
          f"{args.workers or os.cpu_count()} | output {args.out}", flush=True)
    # A first tiny use loads the compiled loops, so that the times below are those of the work.
    began = time.perf_counter()
    train(["ab ab"], 258, workers=1).encode("a")
    print(f"loops ready in {time.perf_counter() - began:.1f} s (the first run compiles them)")
    if args.tokenizer:
        tokenizer = Tokenizer.load(args.tokenizer)
        tokenizer.add_special_tokens([END])
    else:
        began = time.perf_counter()
        tokenizer = train(read_texts(args.inputs, docs, "train"), args.vocab_size, [END],
                          GPT4_SPLIT if args.digits == 3 else DIGIT_SPLIT, args.workers, print)
        print(f"learned {tokenizer.vocab_size:,} tokens in {time.perf_counter() - began:.1f} s")
    dtype = tokenizer.encode_documents([]).dtype
    for part in ("train", "val"):
        began = time.perf_counter()
        arrays = in_order(tokenizer.encode_documents, batches(read_texts(args.inputs, docs, part)),
                          args.workers)
        write_whole(f"{args.out}/tokens/{part}.npy", lambda file: print(
            f"{part} | {write_tokens(file, arrays, dtype):,} tokens | "
            f"{time.perf_counter() - began:.1f} s", flush=True))
    tokenizer.save(saved)
    print(f"wrote {saved} and {args.out}/tokens/; next: python train.py")


def main():
    """Parse, run, turn what went wrong into one line and an exit status: 2, or 130 at Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="*", help="plain text files (default: OUT/docs/)")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="ids, special too")
    parser.add_argument("--digits", type=int, choices=(1, 3), default=3, help="most in a token")
    parser.add_argument("--tokenizer", help="use this tokenizer.json or rank file, train none")
    parser.add_argument("--show", metavar="TEXT", help="print the tokens of TEXT, write nothing")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--out", default="out", help="folder of the run")
    args = parser.parse_args()
    try:
        if args.show is None:
            run(args)
        else:
            show_tokens(Tokenizer.load(args.tokenizer or f"{args.out}/tokenizer.json"), args.show)
    except (ValueError, OSError) as error:
        print(f"bpe.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bpe.py: stopped; files are written whole at the end, so nothing is half-done")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
