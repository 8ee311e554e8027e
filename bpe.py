"""2. Text becomes tokens: byte-level BPE (byte-pair encoding), trained here.

A network reads numbers, so text is written in tokens of a fixed list, the vocabulary. The list
starts as the 256 bytes, which can spell everything, and grows by one rule: join the most frequent
pair of neighbours into a new token, and again. Common words end as one token, rare ones as several.
Before that a pattern splits text into pre-tokens: words, digits, punctuation, whitespace. No token
reaches across two of them; otherwise "dog.", "dog!" and "dog?" would each be learned apart.

    python bpe.py                         out/docs/ -> out/tokenizer.json, out/tokens/
    python bpe.py a.txt b.txt             the same from plain text; the last 10% of each is val
    python bpe.py --show "Hello, world!"  the tokens in colour, their ids and bytes
    python bpe.py --show "hello world" --gpt4    the ids that GPT-4 has for it

It takes about two seconds; the first run of all takes two more, to compile.
Reading order: the idea (three short functions, all of BPE), the chat; then the same fast: train,
Tokenizer, and their loops in kernels/pieces.py.
Sources: Sennrich, Haddow and Birch 2016 (BPE); Radford et al. 2019 (bytes); tiktoken (the pattern).
Left out: Unicode normalization, vocabularies that are not byte-level BPE.
What is a letter comes from the Unicode tables of the `regex` package. A newer package may give
newly added scripts other ids; the fingerprint covers the tables, so this is noticed.
"""
import argparse
import base64
import collections
import functools
import glob
import hashlib
import itertools
import json
import os
import sys
import time
import zlib

import numpy as np
import regex

from common import (in_colour, locked, map_in_order, paint, print_settings, printable, read_json,
                    read_json_lines, read_text_lines, recover, run_command, staged, write_file)
from kernels.pieces import (character_kinds, empty_slots, find_merges, index_merges, merge_all,
                            pre_token_spans, recover_merges)

# GPT-4's split pattern, alternatives tried in order: 's 't 're ...; a word with at most one space
# or punctuation character before it; up to three digits; punctuation, with at most one space before
# and line ends after it; whitespace at the end of the text, or up to its last line end, or all but
# the last character, which goes with the next word. `?+`, `++`, `*+` never give back what they took
# (faster). tiktoken writes `\s++$`; `(?!\S)` means the same in Python, Rust and Oniguruma.
GPT4_SPLIT = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"
              r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++(?!\S)|\s*[\r\n]|\s+(?!\S)|\s")
# Each digit alone: the tokens of a number are its columns, as in sums on paper.
DIGIT_SPLIT = GPT4_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# GPT-2's split pattern, built into Hugging Face's "ByteLevel" step.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Patterns with a compiled loop, and how many digits they keep together.
MAX_DIGITS = {GPT4_SPLIT: 3, DIGIT_SPLIT: 1}
# A character after which all three patterns end a pre-token, whatever follows later.
PRE_TOKEN_END = regex.compile(r"\p{L}(?=\P{L})|\p{N}(?=\P{N})|\S(?= )")

# Special tokens have ids that no text can produce: they are never learned, never merged, and
# encoded only where the caller allows it. END stands after every document; the three of the chat
# join the vocabulary at fine-tuning.
END = "<|endoftext|>"
CHAT_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im_sep|>")
ROLES = ("system", "user", "assistant")

VOCAB_SIZE = 1024  # default: the embedding stays a small part of a network of a million parameters
MAX_VOCAB = 1 << 22  # ids above this are damage: the largest vocabularies have some 260,000
JOB_CHARS = 1 << 21  # characters per job of a worker: 0.15 s of work, long beside sending it
CACHE_SIZE = 1 << 17  # distinct pre-tokens whose ids are remembered: most of a text, in 30 MB
NPY_HEADER = 128  # bytes that NumPy writes before the numbers of a 1-D .npy
COLOURS = (153, 157, 223, 217, 189)  # pale blue, green, yellow, red, violet of a terminal's 256


# ---- the idea ------------------------------------------------------------------------------------
# One merge by hand. "low lower lowest" is these bytes ("l" is 108, "o" 111, "w" 119, space 32):
#     108 111 119   32 108 111 119 101 114   32 108 111 119 101 115 116
# The pairs 108 111 and 111 119 occur three times each, and the greater wins: 111 119 -> 256, "ow".
#     108 256   32 108 256 101 114   32 108 256 101 115 116
# Next: 108 256 -> 257, "low"; 257 101 -> 258, "lowe". Encoding repeats the merges in this order.

def join_pair(tokens, pair):
    """[b"a", b"b", b"c"], (b"a", b"b") -> [b"ab", b"c"], wherever it occurs, from left to right."""
    joined = []
    for token in tokens:
        if joined and (joined[-1], token) == pair:
            joined[-1] += token
        else:
            joined.append(token)
    return joined


def naive_train(texts, n_merges, pattern=GPT4_SPLIT):
    """All of BPE training: count pairs of neighbours, join the most frequent one, start over. Ties
    go to the greatest pair of byte strings in lexicographic order, so that the result is unique.
    Returns pairs of byte strings. Each merge reads the whole corpus; in `train` it does not."""
    words = [[bytes([byte]) for byte in word.encode()]
             for text in texts for word in regex.findall(pattern, text)]
    merges = []
    while len(merges) < n_merges:
        counts = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts:
            break
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        words = [join_pair(word, merges[-1]) for word in words]
    return merges


def naive_encode(text, merges, pattern=GPT4_SPLIT):
    """All of BPE encoding: repeat the merges in the order they were learned. Returns the tokens as
    byte strings. It tries every merge on every pre-token; `Tokenizer.encode` only what occurs."""
    encoded = []
    for word in regex.findall(pattern, text):
        tokens = [bytes([byte]) for byte in word.encode()]
        for pair in merges:
            tokens = join_pair(tokens, pair)
        encoded += tokens
    return encoded


# ---- the chat ------------------------------------------------------------------------------------

def render_chat(tokenizer, messages, open_answer=False):
    """Messages [{"role", "content"}, ...] -> ids and mask, lists of int. Each message becomes
    <|im_start|>ROLE<|im_sep|>TEXT<|im_end|>. The mask is 1 on what the model learns to say: the
    assistant's texts, each with the <|im_end|> at which it stops. In GPT-4's vocabulary:

    text  |im_start| user |im_sep|    Hi |im_end| |im_start| assistant |im_sep|  Yes |im_end|
    ids       100264  882   100266 13347   100265     100264     78191   100266 9642   100265
    mask           0    0        0     0        0          0         0        0    1        1

    What people write never becomes a special token. open_answer: end with the head of an answer
    (<|im_start|>assistant<|im_sep|>), for the model to go on."""
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


# ---- train ---------------------------------------------------------------------------------------

def pre_tokenize(text, pattern):
    """Text -> its distinct pre-tokens, list of str, and the number of each in order, list of int.
    "a cat, a cat" -> ["a", " cat", ",", " a"], [0, 1, 2, 3, 1]. In 5 MB of text 25 of 26 are such
    repetitions. What the pattern does not match stays, as pre-tokens too."""
    if pattern not in MAX_DIGITS:
        parts = [part for part in regex.split(f"({pattern})", text) if part]
        number = {part: k for k, part in enumerate(dict.fromkeys(parts))}
        return list(number), [number[part] for part in parts]
    starts, ends, numbers = pre_token_spans(text, MAX_DIGITS[pattern])
    return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist())], numbers.tolist()


def check_pattern(pattern):
    """Refuse what is no pattern, or has a capturing group: the regex would give its text twice."""
    try:
        groups = regex.compile(f"({pattern})").groups
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"the split pattern {pattern!r:.60} is damaged: {error}") from None
    if groups != 1:
        raise ValueError(f"the split pattern {pattern!r:.60} has a capturing group, which would "
                         "repeat its text; write (?:...) in place of (...)")


def count_pre_tokens(texts, ended=True, *, pattern):
    """Distinct pre-tokens and how often each occurs: all that training needs to know of texts.
    Whether the last one ended (see jobs) makes no difference to it."""
    counts = collections.Counter()
    for text in texts:
        distinct, numbers = pre_tokenize(text, pattern)
        counts.update(dict(zip(distinct, np.bincount(numbers).tolist())))
    return counts


def train(texts, vocab_size, special_tokens=(), pattern=GPT4_SPLIT, workers=None, show=None):
    """Learn a Tokenizer of vocab_size ids: 256 bytes, the merges of naive_train, special tokens
    (fewer if the texts run out of pairs). texts may be a stream: memory grows only with the
    distinct pre-tokens. workers: processes that count, None for one per core. show: e.g. print."""
    n_merges = vocab_size - 256 - len(special_tokens)
    if n_merges < 0:
        raise ValueError(f"a vocabulary of {vocab_size} is too small: 256 bytes and "
                         f"{len(special_tokens)} special tokens need {vocab_size - n_merges}")
    check_pattern(pattern)
    counts = collections.Counter()
    for part in map_in_order(functools.partial(count_pre_tokens, pattern=pattern),
                             jobs(texts, pattern), workers):
        counts.update(part)
    if not counts:
        raise ValueError("no text to learn a tokenizer from; the corpus is empty")
    words, weights = [word.encode() for word in counts], np.array(list(counts.values()))
    n_bytes = sum(len(word) * count for word, count in zip(words, counts.values()))
    merges, tokens = [], [bytes([byte]) for byte in range(256)]
    for left, right, count, n_tokens in find_merges(words, weights, n_merges):
        merges.append((left, right, len(tokens)))
        tokens.append(tokens[left] + tokens[right])
        k = len(merges)
        if show and (k <= 8 or k > n_merges - 8 or k % (n_merges // 8 + 1) == 0):
            show(f"merge {k:,}/{n_merges:,} | {readable(tokens[left])} + {readable(tokens[right])}"
                 f" | {count:,} times | {n_bytes / n_tokens:.3f} bytes/token")
    tokenizer = Tokenizer(tokens, merges, {}, pattern)
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


# ---- Tokenizer -----------------------------------------------------------------------------------

class Tokenizer:
    """A vocabulary and what is needed to use it fast.

    tokens: id -> bytes (None in a gap). merge_rows (M,3): ids [left, right, made], first learned
    first. special_tokens: name -> id. pattern: splits text into pre-tokens. A vocabulary learned
    here has the bytes as ids 0 to 255, then an id per merge, then the special tokens.

    Other people's vocabularies have other ids, and more. ignore_merges: a pre-token that is a token
    is that token, whatever the merges make of it (tiktoken). added_tokens: name -> id, found in any
    text although not special. post_processor: the entry of tokenizer.json that names the bos_ids,
    which belong before every text (beginning of sequence); `encode` leaves them to the caller."""

    def __init__(self, tokens, merge_rows, special_tokens, pattern=GPT4_SPLIT, ignore_merges=False,
                 added_tokens=(), post_processor=None):
        check_pattern(pattern)
        self.tokens, self.special_tokens = list(tokens), dict(special_tokens)
        self.pattern, self.ignore_merges = pattern, ignore_merges
        self.added_tokens, self.post_processor = dict(added_tokens), post_processor
        self.bos_ids = ids_before(post_processor)
        self.merge_rows = np.array(merge_rows, np.int64).reshape(-1, 3)
        self.byte_ids = byte_ids(self.tokens)
        self.slots = empty_slots(len(self.merge_rows))
        index_merges(self.slots, self.merge_rows, 0, len(self.merge_rows))
        not_text = {*self.special_tokens.values(), *self.added_tokens.values()}
        # A token that is half a character cannot be a whole pre-token.
        self.whole = {text: (k,) for k, token in enumerate(self.tokens if ignore_merges else ())
                      if token is not None and k not in not_text
                      and (text := token.decode("utf-8", "ignore")).encode() == token}
        self.cache = dict(self.whole)  # pre-token -> its ids

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

    def fingerprint(self, chat=True):
        """Hash of all that decides ids, the Unicode tables included. Checkpoints and tokens carry
        it, so that they are never used with another vocabulary. chat=False: without the chat's
        tokens; no document has them, so its tokens still fit the tokenizer that sft.py extended."""
        special = {name: k for name, k in self.special_tokens.items()
                   if chat or name not in CHAT_SPECIALS}
        gone = {*self.special_tokens.values()} - {*special.values()}
        content = ([token for k, token in enumerate(self.tokens) if k not in gone],
                   self.merge_rows.tolist(), sorted(special.items()), self.pattern,
                   self.ignore_merges, sorted(self.added_tokens.items()), self.bos_ids,
                   zlib.crc32(character_kinds()))
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def encode_ordinary(self, text):
        """Ids of text, in which nothing is special: naive_encode, with each distinct pre-token
        merged once and then looked up. Splitting the text then takes most of the time."""
        (distinct, numbers), cache = pre_tokenize(text, self.pattern), self.cache
        if len(cache) > len(self.whole) + CACHE_SIZE:
            cache = self.cache = dict(self.whole)
        new = [word for word in distinct if word not in cache]
        if new:  # laid end to end, so that one call merges them all
            encoded = [word.encode() for word in new]
            ends = np.cumsum([len(word) for word in encoded])
            starts = [0, *ends.tolist()]
            ids = self.byte_ids[np.frombuffer(b"".join(encoded), np.uint8)]
            merge_all(ids, ends, self.slots, self.merge_rows)
            ids, ends = ids.tolist(), ends.tolist()
            cache.update((word, tuple(ids[a:b])) for word, a, b in zip(new, starts, ends))
        ids_of = [cache[word] for word in distinct]
        return list(itertools.chain.from_iterable(map(ids_of.__getitem__, numbers)))

    def encode(self, text, allowed_special=()):
        """Ids of text, a list. Names of special tokens are plain text unless allowed ("all"): else
        anyone could end a document, or the other's turn in a chat, by typing <|im_end|>."""
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        for name in allowed:
            if name not in self.special_tokens:
                raise ValueError(f"{name!r} is not among the special tokens of this vocabulary "
                                 f"({', '.join(self.special_tokens) or 'it has none'})")
        ids_of = self.added_tokens | {name: self.special_tokens[name] for name in allowed}
        if not ids_of:
            return self.encode_ordinary(text)
        # The longest first, or <|a|> would hide <|a|>b. The parentheses keep the names in the list.
        names = "|".join(map(regex.escape, sorted(ids_of, key=len, reverse=True)))
        ids = []
        for k, part in enumerate(regex.split(f"({names})", text)):  # every second one is a name
            ids += [ids_of[part]] if k % 2 else self.encode_ordinary(part)
        return ids

    def encode_documents(self, texts, ended=True):
        """List of texts -> (n,) uint16, or uint32 where ids do not fit into 16 bits: two bytes a
        token halve the file and the memory that training reads. END stands after each text, and
        after the last one too unless it goes on in the next job (see jobs)."""
        ids = []
        for text in texts:
            ids += [*self.encode(text), self.special_tokens[END]]
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        return np.array(ids if ended else ids[:-1], dtype)

    def decode(self, ids):
        """Text of the ids. What is no UTF-8, such as half a character, becomes U+FFFD: a network
        may write the bytes in any order. Only whole texts are decoded, never token by token."""
        return b"".join([self.token_bytes(token_id) for token_id in ids]).decode("utf-8", "replace")

    def save(self, path):
        """Write a tokenizer.json."""
        content = json.dumps(to_tree(self), ensure_ascii=False).encode()
        write_file(str(path), lambda file: file.write(content))

    @staticmethod
    def load(path):
        """Read a tokenizer.json, ours or a foreign byte-level BPE, or a tiktoken rank file."""
        recover(os.path.dirname(path))
        if not os.path.exists(path):
            raise ValueError(f"{path}: no tokenizer there; python bpe.py makes one")
        with open(path, "rb") as file:
            content = file.read()
        read, content = ((from_tree, read_json(path)) if content.lstrip()[:1] == b"{" else
                         (from_ranks, content))
        try:
            return read(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error} (expected a tokenizer.json or rank file)") from None


def byte_ids(tokens):
    """Id of each single byte, (256,): ours are 0 to 255, those of others stand in any order."""
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        raise ValueError(f"no token for byte {missing[0]}; byte-level BPE needs all 256")
    return np.array([ids[bytes([byte])] for byte in range(256)])


# ---- texts in, tokens out ------------------------------------------------------------------------
# Texts flow from the files through the workers into one file of tokens. Nothing here holds more
# than the document being read and a few jobs, so a corpus may be larger than memory.

def jobs(texts, pattern):
    """Group texts into jobs of about JOB_CHARS: (list of texts, whether the last one ends there). A
    longer text is divided where a pre-token ends and goes on in the next job: so one long file
    keeps all cores busy. With a foreign pattern, whose ends we do not know, it stays whole."""
    group, size = [], 0
    for text in [texts] if isinstance(texts, str) else texts:
        start = 0
        while (pattern in (GPT4_SPLIT, DIGIT_SPLIT, GPT2_SPLIT)
               and (end := PRE_TOKEN_END.search(text, start + JOB_CHARS))):
            yield [*group, text[start:end.end()]], False
            group, size, start = [], 0, end.end()
        group.append(text[start:])
        size += len(group[-1])
        if size >= JOB_CHARS:
            yield group, True
            group, size = [], 0
    if group:
        yield group, True


def read_texts(inputs, folder, part):
    """Yields the texts of a part, "train" or "val": the documents in data.py's shards in folder, or
    the first 90% or last 10% of each plain text file named. A single text can only be divided in
    one place, so that what is held out stays apart from what is learned."""
    for path in inputs:
        text = "".join(read_text_lines(path))
        if not text:
            raise ValueError(f"{path} is empty")
        yield text[:len(text) * 9 // 10] if part == "train" else text[len(text) * 9 // 10:]
    recover(folder)
    shards = [] if inputs else sorted(glob.glob(f"{folder}/{part}-*.jsonl.gz"))
    if not inputs and not shards:
        raise ValueError(f"no {folder}/{part}-*.jsonl.gz; run python data.py, or name a text file")
    for path in shards:
        for number, document in read_json_lines(path):
            if not isinstance(document.get("text"), str):
                raise ValueError(f"{path}, line {number}: no text there; run python data.py again")
            yield document["text"]


def write_tokens(path, arrays, dtype):
    """Stream arrays into one 1-D .npy; returns [number of tokens, checksum]. The header has that
    number, so it is written last; NumPy pads headers to 64 bytes, so its size is known before."""
    n = checksum = 0
    with open(path, "wb") as file:
        file.seek(NPY_HEADER)
        for array in arrays:
            file.write(array.tobytes())
            n, checksum = n + len(array), zlib.crc32(array, checksum)
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n,)})
        assert file.tell() == NPY_HEADER
    return [n, checksum]


def read_tokens(folder, part, tokenizer=None):
    """folder/PART.npy ("train" or "val"), memory-mapped, (n,) uint16 or uint32. info.json beside it
    has the tokenizer's fingerprint ("tokenizer") and each part's [length, checksum]; tokens from
    elsewhere have none. ValueError: not there, damaged, or of another tokenizer."""
    recover(os.path.dirname(os.path.normpath(folder)))
    path, info = f"{folder}/{part}.npy", f"{folder}/info.json"
    if not os.path.exists(path):
        raise ValueError(f"{path}: no tokens there; python bpe.py makes them")
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")
        sound = (tokens.ndim == 1 and tokens.dtype in (np.uint16, np.uint32)
                 and os.path.getsize(path) == tokens.offset + tokens.nbytes)
    except Exception:  # NumPy raises nearly anything on a damaged header
        sound = False
    info = read_json(info) if os.path.exists(info) else None
    if not sound or info and info.get(part) != [len(tokens), zlib.crc32(tokens)]:
        raise ValueError(f"{path}: damaged, or not 1-D uint16 or uint32; run python bpe.py again")
    if tokenizer and (info and info.get("tokenizer") != tokenizer.fingerprint(chat=False)
                      or tokens.max(initial=0) >= tokenizer.vocab_size):
        raise ValueError(f"{path}: tokens of another tokenizer; python bpe.py makes them anew, "
                         "together with their tokenizer.json")
    return tokens


# ---- other people's files (skip at first) --------------------------------------------------------
# Both kinds hold the merges in their order: Hugging Face as a list of pairs, tiktoken only by the
# ranks of the tokens made (see recover_merges). What would change ids and is not done here is
# refused by name: else a foreign network would read and write nonsense without an error.

# Hugging Face writes each byte as a visible letter: itself if printable, else 256, 257, ... So a
# space, the 33rd byte that is not, becomes chr(256 + 32), a G with a dot above. In this order GPT-4
# numbers the bytes.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_ORDER = PRINTABLE + [byte for byte in range(256) if byte not in PRINTABLE]
LETTER_OF = {byte: chr(byte if k < len(PRINTABLE) else 256 + k - len(PRINTABLE))
             for k, byte in enumerate(BYTE_ORDER)}
BYTE_OF = {letter: byte for byte, letter in LETTER_OF.items()}


def to_tree(tokenizer):
    """Tokenizer -> content of the tokenizer.json that Hugging Face's tokenizers reads: first split
    by our pattern, each pre-token left whole ("Isolated"); then write bytes as letters
    ("ByteLevel", which by default adds a space before and splits as GPT-2 did); then merge."""
    special, added = tokenizer.special_tokens, tokenizer.added_tokens
    words = ["".join([LETTER_OF[byte] for byte in token or b""]) for token in tokenizer.tokens]
    named = {k: name for name, k in (special | added).items()}
    vocab = {named.get(k, words[k]): k for k, token in enumerate(tokenizer.tokens)
             if token is not None}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": k, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": name in special} for k, name in sorted(named.items())],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated",
             "invert": False}, byte_level]},
        "post_processor": tokenizer.post_processor, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": tokenizer.ignore_merges, "vocab": vocab,
                  "merges": [[words[a], words[b]] for a, b, _ in tokenizer.merge_rows.tolist()]}}


def split_pattern(pre_tokenizer):
    """The pattern that a pre_tokenizer splits by, or None if it does anything else. It may be a
    lone ByteLevel, which splits as GPT-2 did, or one Split and a ByteLevel that does not split."""
    *splits, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    gpt2 = bool(last.get("use_regex", True))
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(splits) + gpt2 != 1:
        return None
    if gpt2:
        return GPT2_SPLIT
    split, pattern = splits[0], splits[0].get("pattern", {}).get("Regex")
    plain = split["type"] == "Split" and split["behavior"] == "Isolated" and not split.get("invert")
    return pattern if plain and pattern and isinstance(pattern, str) else None


def ids_before(post_processor):
    """The ids that a post_processor puts before a text; ValueError if it does anything else."""
    steps = (post_processor or {"processors": []}).get("processors", [post_processor])
    ids = []
    for step in [step for step in steps if step["type"] != "ByteLevel"]:  # which changes no ids
        *before, text = step["single"] if step["type"] == "TemplateProcessing" else [{}]
        if "Sequence" not in text or any("SpecialToken" not in item for item in before):
            raise ValueError("needs what is not done here: a post_processor that does more than "
                             "put tokens before a text")
        for item in before:
            ids += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    return ids


def from_tree(tree):
    """Content of a tokenizer.json -> Tokenizer; ValueError on what is not done here. Merges are
    pairs, or strings "LEFT RIGHT" in older files."""
    try:
        model, vocab, added = tree["model"], tree["model"]["vocab"], tree["added_tokens"]
        pattern = split_pattern(tree["pre_tokenizer"] or {"type": "none"})
        refused = {f"model type {model['type']}": model["type"] != "BPE",
                   "a pre_tokenizer other than one Split and ByteLevel": pattern is None}
        refused |= {name: tree.get(name) for name in ("normalizer", "truncation", "padding")}
        refused |= {name: model.get(name) for name in (
            "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")}
        refused |= {f"added tokens with {name}": any(token.get(name) for token in added)
                    for name in ("lstrip", "rstrip", "single_word")}
        if any(refused.values()):
            raise ValueError("needs what is not done here: "
                             + ", ".join(name for name, found in refused.items() if found))
        special, plain = [{token["content"]: token["id"] for token in added
                           if token.get("special", True) == wanted} for wanted in (True, False)]
        ids = vocab | special | plain
        for name, k in [*vocab.items(), *special.items(), *plain.items()]:
            if type(k) is not int or not 0 <= k < MAX_VOCAB or ids[name] != k or not name:
                raise ValueError(f"token {name!r:.40} cannot have the id {k!r:.40}")
        if len(set(ids.values())) < len(ids):
            raise ValueError("two tokens have the same id")
        tokens = [None] * (1 + max(ids.values(), default=-1))
        for name, k in ids.items():
            tokens[k] = (name.encode() if name in special or name in plain
                         else bytes([BYTE_OF[letter] for letter in name]))
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        rows = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
        tokenizer = Tokenizer(tokens, rows, special, pattern, bool(model.get("ignore_merges")),
                              plain, tree.get("post_processor"))
        if any(type(k) is not int or tokens[k] is None for k in tokenizer.bos_ids):
            raise ValueError(f"unknown ids {tokenizer.bos_ids} in the post_processor")
        return tokenizer
    except (LookupError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"damaged, or no byte-level BPE: {type(error).__name__} "
                         f"{str(error)!r:.80}") from None


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
            raise ValueError(f"line {len(tokens) + 1} is {line[:40]!r}, not "
                             f'"BASE64 {len(tokens)}"') from None
    return from_tokens(tokens)


def from_tokens(tokens):
    """Tokens in the order of their merges, list of bytes (None in a gap) -> Tokenizer. Which two
    parts made a token nobody says, since tiktoken joins any two neighbours whose union is a token;
    so that is recovered."""
    parts = [token or b"" for token in tokens]
    ids = byte_ids(tokens)[np.frombuffer(b"".join(parts), np.uint8)]
    ends = np.cumsum([len(part) for part in parts])
    rows = np.zeros((len(tokens), 3), np.int64)
    rows = rows[:recover_merges(ids, ends, empty_slots(len(tokens)), rows)]
    return Tokenizer(tokens, rows, {}, GPT4_SPLIT, ignore_merges=True)


# What GPT-4's vocabulary (cl100k_base) has for "hello world", "Hello world" and "helloworld". The
# last is not hello + world, since "ow" was learned before "lo": el, ow, ld; ell; orld; ellow;
# elloworld, and the h stays alone.
GPT4_EXCERPT = {269: "or", 289: " w", 301: "el", 363: "ow", 385: "lo", 509: "ld", 616: "ell",
                1410: "orld", 1917: " world", 4896: "ello", 5412: "ellow", 9906: "Hello",
                15339: "hello", 96392: "elloworld"}


def gpt4_excerpt():
    """Tokenizer of GPT-4's bytes and of GPT4_EXCERPT: 270 of its 100,256 tokens."""
    tokens = [bytes([byte]) for byte in BYTE_ORDER] + [None] * 100_000
    for k, text in GPT4_EXCERPT.items():
        tokens[k] = text.encode()
    return from_tokens(tokens)


# ---- the command ---------------------------------------------------------------------------------

def readable(token):
    """A token's bytes as text: spaces as dots, half characters and line ends as escapes, so that
    b" caf\\xc3\\n" becomes ·caf\\xc3\\n."""
    return printable(token.decode("utf-8", "backslashreplace").replace(" ", "·"))


def show_tokens(tokenizer, text):
    """Print the tokens of text and below them their ids, on the same colours. Without colours, bars
    divide the tokens. Then the bytes of a short text, as numbers and as bits."""
    ids = tokenizer.encode(text, allowed_special="all")
    tokens = [tokenizer.token_bytes(k) for k in ids]
    codes = [f"30;48;5;{COLOURS[k % len(COLOURS)]}" for k in range(len(ids))]
    print(("" if in_colour() else "|").join(map(paint, map(readable, tokens), codes)))
    print(" ".join(map(paint, map(str, ids), codes)))
    print(f"{len(ids)} tokens, {sum(map(len, tokens))} bytes")
    if sum(map(len, tokens)) <= 16:
        for k, token in zip(ids, tokens):
            rows = [f"{readable(bytes([byte])):4} {byte:3}  {byte:08b}" for byte in token]
            print("\n".join(rows) + f"  -> {readable(token)}, token {k}")


def run(args):
    """Train (unless --tokenizer brings one) and encode both parts. The texts are read twice, once
    to learn from and once to encode: reading is cheap, and keeping them would take memory."""
    if args.show is not None:
        if args.gpt4:
            print("excerpt of GPT-4's vocabulary, right only for hello, Hello, world, helloworld")
        show_tokens(gpt4_excerpt() if args.gpt4 else
                    Tokenizer.load(args.tokenizer or f"{args.out}/tokenizer.json"), args.show)
        return
    docs = f"{args.out}/docs"
    print_settings("bpe.py", {
        "input": args.inputs or docs, "vocabulary": args.tokenizer or args.vocab_size,
        "digits": None if args.tokenizer else args.digits,
        "workers": args.workers or os.cpu_count(), "output": args.out})
    train(["ab ab"], 258, workers=1).encode("a")  # compiles or loads the loops before time is taken
    with locked(args.out, "bpe.py"), staged(args.out) as staging:
        if args.tokenizer:
            tokenizer = Tokenizer.load(args.tokenizer)
            tokenizer.add_special_tokens([END])
        else:
            start = time.perf_counter()
            tokenizer = train(read_texts(args.inputs, docs, "train"), args.vocab_size, [END],
                              GPT4_SPLIT if args.digits == 3 else DIGIT_SPLIT, args.workers, print)
            print(f"learned {tokenizer.vocab_size:,} tokens in {time.perf_counter() - start:.1f} s")
        os.makedirs(f"{staging}/tokens")
        info = {"tokenizer": tokenizer.fingerprint(chat=False)}
        for part in ("train", "val"):
            start = time.perf_counter()
            arrays = map_in_order(
                tokenizer.encode_documents,
                jobs(read_texts(args.inputs, docs, part), tokenizer.pattern), args.workers)
            info[part] = write_tokens(f"{staging}/tokens/{part}.npy", arrays,
                                      tokenizer.encode_documents([]).dtype)
            print(f"{part} | {info[part][0]:,} tokens | "
                  f"{time.perf_counter() - start:.1f} s", flush=True)
        write_file(f"{staging}/tokens/info.json",
                   lambda file: file.write(json.dumps(info).encode()))
        tokenizer.save(f"{staging}/tokenizer.json")
    print(f"wrote {args.out}/tokenizer.json and {args.out}/tokens/; next: python train.py")


def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser("bpe.py", description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="*", help="plain text files (default: OUT/docs/)")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="ids, special too")
    parser.add_argument("--digits", type=int, choices=(1, 3), default=1, help="most in a token")
    parser.add_argument("--tokenizer", help="use this tokenizer.json or rank file, train none")
    parser.add_argument("--show", metavar="TEXT", help="print the tokens of TEXT, write nothing")
    parser.add_argument("--gpt4", action="store_true",
                        help="with --show: GPT-4's ids, of the few words that are built in")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--out", default="out", help="folder of the run")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
