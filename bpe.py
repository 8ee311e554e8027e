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

On one core of a shared, busy AMD EPYC (Zen 4): 8,192 tokens learned from 5.2 MB in 0.45-0.65 s,
text encoded at 12-19 MB/s. The first run of all compiles for 3.5 s of CPU time.
Reading order: the idea (join_pair, naive_train); the same merges learned fast (pieces, learn,
train); encoding (merge, Tokenizer); other people's files; the chat; the command.
Sources: Sennrich, Haddow and Birch 2016 (BPE); Radford et al. 2019 (bytes); tiktoken (the pattern).
Left out: Unicode normalisation, vocabularies that are no byte-level BPE, documents larger than
memory. An unbroken run of a million random letters is exact but takes 25 s (see merge).
"""
import argparse
import base64
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
MAX_DIGITS = {GPT4_SPLIT: 3, DIGIT_SPLIT: 1}  # the patterns that `cut` knows by heart

END = "<|endoftext|>"  # stands behind every document
CHAT_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im_sep|>")  # join the vocabulary at fine-tuning
ROLES = ("system", "user", "assistant")
VOCAB_SIZE = 1024  # default: the embedding stays a small part of a network of a million parameters
BATCH_CHARS = 1 << 22  # text per job of a worker process: long beside the cost of sending it
CACHE_PIECES = 1 << 17  # pieces whose ids are remembered: most of running text, some 30 MB
COLOURS = (153, 157, 223, 217, 189)  # pale blue, green, yellow, red, violet of a terminal's 256


# ---- the idea ------------------------------------------------------------------------------------

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
    """All of BPE training. Ties go to the lexicographically greatest pair of byte strings."""
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


# ---- cut text into pieces ------------------------------------------------------------------------
# With the regex, cutting would be most of the time of encoding. So the patterns of our own are also
# written as a loop over kinds of characters; the tests hold it to the regex, kind by kind.

OTHER, LETTER, NUMBER, BLANK, SPACE, LINE_END, NOTHING = range(7)
APOSTROPHE, E, L, R, V = map(ord, "'elrv")
SDMT = tuple(map(ord, "sdmt"))
LONG_S = 0x17F  # the s of old prints, which is an s where case is ignored


@functools.cache
def character_kinds():
    """Kind of every code point as the regex sees it, (0x110000,) uint8."""
    kinds = np.full(0x110000, OTHER, np.uint8)
    every = "".join(map(chr, range(0x110000)))
    for kind, members in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (BLANK, r"\s+"), (SPACE, " "),
                          (LINE_END, r"[\r\n]")):
        for run in regex.finditer(members, every):
            kinds[run.start():run.end()] = kind
    return kinds


@numba.njit(cache=True)
def cut(points, kinds, max_digits, ends):
    """The pattern's alternatives, one after the other. points: code points and kinds: theirs, both
    (n + 2,), ending in two of NOTHING. Writes where each piece ends, returns how many there are."""
    n, i = 0, 0
    while kinds[i] != NOTHING:
        kind, j = kinds[i], i + 1
        a, b = points[j] | 32, points[j + 1] | 32  # 32: the bit that makes A an a
        quote = points[i] == APOSTROPHE
        if quote and (a in SDMT or points[j] == LONG_S):
            j += 1
        elif quote and ((a == L and b == L) or (b == E and (a == V or a == R))):
            j += 2
        elif kind == NUMBER:
            while kinds[j] == NUMBER and j - i < max_digits:
                j += 1
        elif kind == LETTER or (kind != LINE_END and kinds[j] == LETTER):
            while kinds[j] == LETTER:
                j += 1
        elif kind == OTHER or (kind == SPACE and kinds[j] == OTHER):
            while kinds[j] == OTHER:
                j += 1
            while kinds[j] == LINE_END:
                j += 1
        else:
            line_end = j if kind == LINE_END else 0
            while BLANK <= kinds[j] <= LINE_END:
                j += 1
                if kinds[j - 1] == LINE_END:
                    line_end = j
            if kinds[j] != NOTHING:
                j = line_end if line_end else max(j - 1, i + 1)
        ends[n] = i = j
        n += 1
    return n


@numba.njit(cache=True)
def number_pieces(points, ends, slots, firsts, numbers):
    """Number the distinct pieces in order of appearance, so that Python handles each only once:
    numbers (n,) says which piece stands at each place, firsts at which place each stands first.
    slots: an empty hash table, a power of two. Returns how many are distinct."""
    n, start = 0, 0
    for k in range(len(ends)):
        key = np.uint64(0xCBF29CE484222325)  # FNV-1a, by code points
        for i in range(start, ends[k]):
            key = (key ^ np.uint64(points[i])) * np.uint64(0x100000001B3)
        slot, same = np.int64(key >> np.uint64(40)) & (len(slots) - 1), False
        while slots[slot] and not same:
            first = firsts[slots[slot] - 1]
            begin = ends[first - 1] if first else 0
            same = ends[first] - begin == ends[k] - start
            for i in range(ends[k] - start if same else 0):
                if points[begin + i] != points[start + i]:
                    same = False
                    break
            if not same:
                slot = (slot + 1) & (len(slots) - 1)
        if not same:
            firsts[n], n = k, n + 1
            slots[slot] = n
        numbers[k] = slots[slot] - 1
        start = ends[k]
    return n


def pieces(text, pattern):
    """Text -> its distinct pieces, list of str, and which one stands at each place, list of int."""
    try:
        points = np.frombuffer((text + "\0\0").encode("utf-32-le"), np.int32)
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate, U+{ord(text[error.start]):04X} at "
                         f"character {error.start}, which UTF-8 cannot hold; remove it") from None
    if pattern not in MAX_DIGITS:  # some other: what it does not match stays, as pieces too
        parts = [part for part in regex.split(f"({pattern})", text) if part]
        number = {part: k for k, part in enumerate(dict.fromkeys(parts))}
        return list(number), [number[part] for part in parts]
    kinds = character_kinds()[points]
    kinds[-2:] = NOTHING
    ends = np.empty(len(text), np.int64)
    ends = ends[:cut(points, kinds, MAX_DIGITS[pattern], ends)]
    firsts, numbers = np.empty_like(ends), np.empty_like(ends)
    slots = np.zeros(1 << (2 * len(ends)).bit_length(), np.int32)
    firsts = firsts[:number_pieces(points, ends, slots, firsts, numbers)]
    starts = np.concatenate(([0], ends))[firsts]
    return [text[a:b] for a, b in zip(starts.tolist(), ends[firsts].tolist())], numbers.tolist()


# ---- learn merges --------------------------------------------------------------------------------

@numba.njit(cache=True)
def find_pair(slots, rows, left, right):
    """Hash table of pairs: slots (a power of two) hold 1 + the number of a row [left, right, ...].
    Returns the slot of the pair, or the free one (0) where it belongs."""
    slot = (np.uint64(left << 32 | right) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    slot = np.int64(slot) & (len(slots) - 1)
    while slots[slot] and (rows[slots[slot] - 1, 0] != left or rows[slots[slot] - 1, 1] != right):
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@numba.njit(cache=True)
def add_to_pair(pairs, used, left, right, amount, word):
    """Change a pair's count; where it grows, note the word (a linked list), to find it later."""
    slots, rows, counts, heads, link_words, link_next = pairs
    slot = find_pair(slots, rows, left, right)
    if not slots[slot]:
        rows[used[0], 0], rows[used[0], 1] = left, right
        used[0] += 1
        slots[slot] = used[0]
    pair = slots[slot] - 1
    counts[pair] += amount
    if amount > 0:
        used[1] += 1
        link_words[used[1]], link_next[used[1]], heads[pair] = word, heads[pair], used[1]


@numba.njit(cache=True)
def compare(data, where, a, b):
    """Order of two tokens' bytes: below, at or above 0. where: a place in data and the length."""
    for k in range(min(where[a, 1], where[b, 1])):
        if data[where[a, 0] + k] != data[where[b, 0] + k]:
            return np.int64(data[where[a, 0] + k]) - np.int64(data[where[b, 0] + k])
    return where[a, 1] - where[b, 1]


@numba.njit(cache=True)
def learn(data, starts, lengths, weights, n_merges, pairs):
    """The merges of naive_train, one at a time: yields left, right, count, tokens in the corpus.
    Merge k makes id 256 + k. Words are distinct pieces: their bytes end to end in data, with first
    byte, length and number of occurrences. A merge touches only the words in which its pair stands,
    and only the counts beside it: in "x a b y" a+b takes one from (x,a), (a,b) and (b,y) and adds
    one to (x,ab) and (ab,y). `where` keeps a place of each token in data, to compare bytes."""
    slots, rows, counts, heads, link_words, link_next = pairs
    symbols, used = data.astype(np.int64), np.zeros(2, np.int64)  # used: pairs, links
    where = np.ones((256 + n_merges, 2), np.int64)
    n_tokens = 0
    for word in range(len(starts)):
        n_tokens += lengths[word] * weights[word]
        for i in range(starts[word], starts[word] + lengths[word]):
            where[data[i], 0] = i
            if i > starts[word]:
                add_to_pair(pairs, used, symbols[i - 1], symbols[i], weights[word], word)
    for new in range(256, 256 + n_merges):
        best, count = -1, 1  # a plain search for the maximum: half of the time, but no bookkeeping
        for pair in range(used[0]):
            if counts[pair] >= count:
                order = counts[pair] - count if best >= 0 else 1
                if order == 0:
                    order = compare(data, where, rows[pair, 0], rows[best, 0])
                if order == 0:
                    order = compare(data, where, rows[pair, 1], rows[best, 1])
                if order > 0:
                    best, count = pair, counts[pair]
        if best < 0:
            return
        left, right = rows[best, 0], rows[best, 1]
        where[new, 1] = where[left, 1] + where[right, 1]
        link = heads[best]
        while link:
            word, link = link_words[link], link_next[link]
            weight, end = weights[word], starts[word] + lengths[word]
            i = j = at = starts[word]  # read at i, write at j; symbol i begins at byte `at`
            while i < end:
                symbol = symbols[i]
                if symbol == left and i + 1 < end and symbols[i + 1] == right:
                    where[new, 0], symbol = at, new
                    add_to_pair(pairs, used, left, right, -weight, word)
                    if j > starts[word]:
                        add_to_pair(pairs, used, symbols[j - 1], left, -weight, word)
                        add_to_pair(pairs, used, symbols[j - 1], new, weight, word)
                    if i + 2 < end:
                        add_to_pair(pairs, used, right, symbols[i + 2], -weight, word)
                        add_to_pair(pairs, used, new, symbols[i + 2], weight, word)
                    i += 1
                    n_tokens -= weight
                symbols[j] = symbol
                at += where[symbol, 1]
                i += 1
                j += 1
            lengths[word] = j - starts[word]
        yield left, right, count, n_tokens


def count_pieces(texts, pattern):
    """Distinct pieces and how often each occurs: all that training needs to know of a text."""
    counts = collections.Counter()
    for text in texts:
        distinct, numbers = pieces(text, pattern)
        counts.update(dict(zip(distinct, np.bincount(numbers).tolist())))
    return counts


def train(texts, vocab_size, special_tokens=(), pattern=GPT4_SPLIT, workers=None, show=None):
    """Learn a Tokenizer of vocab_size ids: 256 bytes, merges, special tokens (fewer if the texts
    run out of pairs). texts may be a stream: memory grows with the distinct pieces only. workers:
    processes that count, None for one per core; the result is the same. show: e.g. print."""
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
    data = np.frombuffer(b"".join(words), np.uint8)
    lengths, weights = np.array([len(word) for word in words]), np.array(list(counts.values()))
    size = 3 * len(data) + 1  # a merge takes one symbol away and makes two pairs at most
    pairs = (np.zeros(1 << (2 * size).bit_length(), np.int32), np.zeros((size, 2), np.int64),
             np.zeros(size, np.int64), *(np.zeros(size, np.int32) for _ in range(3)))
    tokens, merges, n_bytes = [bytes([byte]) for byte in range(256)], [], int(lengths @ weights)
    starts = np.cumsum(lengths) - lengths
    for left, right, count, n_tokens in learn(data, starts, lengths, weights, n_merges, pairs):
        k = len(merges)
        merges.append((left, right, len(tokens)))
        tokens.append(tokens[left] + tokens[right])
        if show and (k < 8 or k >= n_merges - 8 or k % (n_merges // 8 + 1) == 0):
            show(f"merge {k + 1:,}/{n_merges:,} | {printable(tokens[left])} + "
                 f"{printable(tokens[right])} | {count:,} times | "
                 f"{n_bytes / n_tokens:.3f} bytes/token")
    tokenizer = Tokenizer(tokens, merges, {}, pattern)
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


# ---- encode --------------------------------------------------------------------------------------

@numba.njit(cache=True)
def index_merges(slots, rows, first, n):
    """Make rows first..n-1 of the merges, [left, right, made], findable by their pair."""
    for k in range(first, n):
        slots[find_pair(slots, rows, rows[k, 0], rows[k, 1])] = k + 1


@numba.njit(cache=True)
def merge(ids, start, end, slots, rows):
    """Merge ids[start:end] in place and return the new end: the earliest learned pair first, at all
    its places at once. Each round searches the whole piece, which suits pieces of a few bytes."""
    while True:
        best = len(rows) + 1
        for i in range(start, end - 1):
            found = slots[find_pair(slots, rows, ids[i], ids[i + 1])]
            if 0 < found < best:
                best = found
        if best > len(rows):
            return end
        left, right, made = rows[best - 1, 0], rows[best - 1, 1], rows[best - 1, 2]
        i = j = start  # read at i, write at j
        while i < end:
            if ids[i] == left and i + 1 < end and ids[i + 1] == right:
                ids[j] = made
                i += 2
            else:
                ids[j] = ids[i]
                i += 1
            j += 1
        end = j


@numba.njit(cache=True)
def merge_all(ids, ends, slots, rows):
    """Merge every piece of ids in place; ends becomes where what is left of each now ends."""
    start = 0
    for k in range(len(ends)):
        end = ends[k]
        ends[k] = merge(ids, start, end, slots, rows)
        start = end


@numba.njit(cache=True)
def recover_merges(ids, ends, slots, rows):
    """Tokens in the order they were learned -> the merges that made them, into rows, and how many.
    The merges before a token bring its bytes down to two parts: those two were joined. No others
    can have been: what happens inside a token's bytes does not depend on what stands around."""
    n, start = 0, 0
    for k in range(len(ends)):
        if merge(ids, start, ends[k], slots, rows) == start + 2:
            rows[n, 0], rows[n, 1], rows[n, 2] = ids[start], ids[start + 1], k
            index_merges(slots, rows, n, n + 1)
            n += 1
        start = ends[k]
    return n


def byte_ids(tokens):
    """Id of each single byte, (256,)."""
    ids = np.full(256, -1)
    for token_id, token in enumerate(tokens):
        if token is not None and len(token) == 1:
            ids[token[0]] = token_id
    if ids.min() < 0:
        raise ValueError(f"has no token for byte {ids.argmin()}; byte-level BPE needs all 256")
    return ids


class Tokenizer:
    """tokens: id -> bytes (None in a gap); merge_rows (M,3): ids [left, right, made], first learned
    first; whole_pieces: a piece that is a token is that token, whatever the merges make of it."""

    def __init__(self, tokens, merge_rows, special_tokens, pattern=GPT4_SPLIT, whole_pieces=False):
        self.tokens, self.special_tokens = list(tokens), dict(special_tokens)
        self.pattern, self.whole_pieces = pattern, whole_pieces
        self.merge_rows = np.array(merge_rows, np.int64).reshape(-1, 3)
        self.byte_ids = byte_ids(self.tokens)
        self.slots = np.zeros(1 << (2 * len(self.merge_rows) + 1).bit_length(), np.int32)
        index_merges(self.slots, self.merge_rows, 0, len(self.merge_rows))
        self.whole, special = {}, set(self.special_tokens.values())
        for k, token in enumerate(self.tokens if whole_pieces else ()):
            text = (token or b"").decode("utf-8", "ignore")
            if text.encode() == token and k not in special:  # no piece is half a character
                self.whole[text] = (k,)
        self.cache = dict(self.whole)  # piece -> its ids

    def __getstate__(self):
        """What is sent to a worker process: all but what the cache has learned."""
        return self.__dict__ | {"cache": dict(self.whole)}

    @property
    def vocab_size(self):
        return len(self.tokens)

    @property
    def merges(self):
        """Pairs of byte strings, first learned first."""
        return [(self.tokens[a], self.tokens[b]) for a, b, _ in self.merge_rows.tolist()]

    def token_bytes(self, token_id):
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
        """Ids of text, in which nothing is special. Each distinct piece is merged once, then looked
        up: running text repeats itself so much that merging takes the smallest part of the time."""
        (distinct, numbers), cache = pieces(text, self.pattern), self.cache
        if len(cache) > len(self.whole) + CACHE_PIECES:
            cache = self.cache = dict(self.whole)
        new = [piece for piece in distinct if piece not in cache]
        if new:
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
        """Ids of text, a list. Names of special tokens are plain text unless allowed ("all")."""
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        for name in allowed:
            if name not in self.special_tokens:
                raise ValueError(f"{name!r} is not among the special tokens of this vocabulary "
                                 f"({', '.join(self.special_tokens) or 'it has none'})")
        if not allowed:
            return self.encode_ordinary(text)
        names = "|".join(map(regex.escape, sorted(allowed, key=len, reverse=True)))
        parts = regex.split(f"({names})", text)  # ordinary, special, ordinary, ...
        ids = self.encode_ordinary(parts[0])
        for name, ordinary in zip(parts[1::2], parts[2::2]):
            ids += [self.special_tokens[name], *self.encode_ordinary(ordinary)]
        return ids

    def encode_documents(self, texts):
        """List of texts -> (n,) uint16 or uint32, END behind each text."""
        ids = []
        for text in texts:
            ids += self.encode_ordinary(text)
            ids.append(self.special_tokens[END])
        return np.array(ids, np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def decode(self, ids):
        """Text of the ids. What is no UTF-8, such as half a character, becomes U+FFFD."""
        return b"".join([self.token_bytes(token_id) for token_id in ids]).decode("utf-8", "replace")

    def save(self, path):
        """Write a tokenizer.json."""
        write_whole(path, lambda file: file.write(
            json.dumps(to_tree(self), ensure_ascii=False).encode()))

    @staticmethod
    def load(path):
        """Read a tokenizer.json, ours or a foreign byte-level BPE, or a tiktoken rank file."""
        with open(path, "rb") as file:
            content = file.read()
        try:
            if not content.strip():
                raise ValueError("is empty")
            return from_tree(content) if content.lstrip()[:1] == b"{" else from_ranks(content)
        except ValueError as error:
            raise ValueError(f"{path} {error} (expected a tokenizer.json or a rank file)") from None


# ---- file formats --------------------------------------------------------------------------------

@functools.cache
def byte_letters():
    """Hugging Face writes each byte as a visible letter: itself if printable, else 256, 257, ..."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def to_tree(tokenizer):
    """Tokenizer -> content of the tokenizer.json that Hugging Face's tokenizers reads."""
    letters, special = byte_letters(), tokenizer.special_tokens
    words = ["".join([letters[byte] for byte in token or b""]) for token in tokenizer.tokens]
    ordinary = {words[k]: k for k, token in enumerate(tokenizer.tokens)
                if token is not None and k not in special.values()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": k, "content": name, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}
                         for name, k in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated",
             "invert": False}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": tokenizer.whole_pieces,
                  "vocab": ordinary | special,
                  "merges": [[words[a], words[b]] for a, b, _ in tokenizer.merge_rows.tolist()]}}


def split_pattern(pre_tokenizer):
    """The pattern that a pre_tokenizer cuts by, or None if it does anything else."""
    *splits, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(splits) > 1:
        return None
    if not splits:
        return GPT2_SPLIT if last.get("use_regex", True) else None
    plain = splits[0]["type"] == "Split" and splits[0]["behavior"] == "Isolated"
    if not plain or splits[0].get("invert") or last.get("use_regex", True):
        return None
    pattern = splits[0]["pattern"].get("Regex")
    return pattern if pattern and not regex.compile(pattern).groups else None


def from_tree(content):
    """tokenizer.json -> Tokenizer. What would change ids and is not done here is refused."""
    try:
        tree = json.loads(content)
        model, special = tree["model"], {t["content"]: t["id"] for t in tree["added_tokens"]}
        pattern = split_pattern(tree["pre_tokenizer"] or {"type": "none"})
        refused = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                     "byte_fallback") if model.get(name)]
        refused += ["model type " + model["type"]] if model["type"] != "BPE" else []
        refused += ["a normalizer"] if tree.get("normalizer") else []
        refused += ["a pre_tokenizer other than one Split and ByteLevel"] if pattern is None else []
        if refused:
            raise ValueError("needs what is not done here: " + ", ".join(refused))
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
    """tiktoken's lines "BASE64 RANK" -> Tokenizer with GPT-4's pattern and no special tokens."""
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
    slots = np.zeros(1 << (2 * len(tokens)).bit_length(), np.int32)
    rows = rows[:recover_merges(ids, ends, slots, rows)]
    return Tokenizer(tokens, rows, {}, GPT4_SPLIT, whole_pieces=True)


# ---- chat ----------------------------------------------------------------------------------------

def render_chat(tokenizer, messages, open_answer=False):
    """Messages [{"role", "content"}, ...] -> ids and mask, lists of int. The mask is 1 on what the
    model is to learn to say: the assistant's texts, each with the <|im_end|> at which it stops.
    What people write never becomes a special token. open_answer: end with the head of an answer."""
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

def batches(texts):
    """Group texts into lists of about BATCH_CHARS."""
    batch, size = [], 0
    for text in [texts] if isinstance(texts, str) else texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_order(work, items, workers=None):
    """Yield work(item) in the order of the items, from several processes (the threads of one would
    take turns at Python's lock). Few items are under way at a time, so that a stream of any
    length passes through. The first item runs here: often it is the only one."""
    items, waiting = iter(items), collections.deque()
    yield from map(work, items if workers == 1 else itertools.islice(items, 1))
    with concurrent.futures.ProcessPoolExecutor(  # workers leave Ctrl-C to us
            workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > pool._max_workers:
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
    """Stream arrays into one 1-D .npy and return its length, which the header learns at the end."""
    def header():
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n,)})
    n = 0
    header()
    for array in arrays:
        file.write(array.tobytes())
        n += len(array)
    file.seek(0)
    header()
    return n


def read_texts(inputs, folder, part):
    """Stream the texts of a part, "train" or "val": of the shards in folder, or of the plain text
    files named, the first 90% or the last 10% of each one's characters."""
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
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


# ---- the command ---------------------------------------------------------------------------------

def printable(token):
    """A token's bytes, readable: spaces as dots, half characters and line ends as escapes."""
    text = token.decode("utf-8", "backslashreplace").replace(" ", "·")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show_tokens(tokenizer, text):
    """Print the tokens of text, each on its own colour, and below them their ids."""
    ids = tokenizer.encode(text, allowed_special="all")
    tokens = [tokenizer.token_bytes(k) for k in ids]
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    def paint(k, cell):
        return f"\x1b[30;48;5;{COLOURS[k % len(COLOURS)]}m{cell}\x1b[0m" if coloured else cell
    print(("" if coloured else "|").join(paint(k, printable(t)) for k, t in enumerate(tokens)))
    print(" ".join(paint(k, str(token_id)) for k, token_id in enumerate(ids)))
    print(f"{len(ids)} tokens, {sum(map(len, tokens))} bytes")


def run(args):
    """Train (unless --tokenizer brings one) and encode both parts."""
    saved, docs = f"{args.out}/tokenizer.json", f"{args.out}/docs"
    print(f"bpe.py | input {' '.join(args.inputs) or docs} | vocabulary "
          f"{args.tokenizer or args.vocab_size} | digits {args.digits} | workers "
          f"{args.workers or os.cpu_count()} | output {args.out}", flush=True)
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
