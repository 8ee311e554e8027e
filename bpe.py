"""2. Text becomes tokens: byte-level BPE (byte-pair encoding), trained here.

A network reads numbers, so text is written in tokens of a fixed list, the vocabulary. The list
starts as the 256 bytes, which can spell everything, and grows by one rule: join the most frequent
pair of neighbours into a new token, and again. Common words end as one token, rare ones as several.
Before that a pattern splits text into pre-tokens: words, digits, punctuation, whitespace. No token
reaches across two of them; otherwise "dog.", "dog!" and "dog?" would each be learned apart.

    python bpe.py                         out/docs/ -> out/tokenizer.json, out/tokens/; 2 seconds
    python bpe.py a.txt b.txt             the same from plain text; the last 10% of each is val
    python bpe.py --show "Hello, world!"  the tokens in colour, their ids and bytes
    python bpe.py --show "hello world" --gpt4    the ids that GPT-4 has for it

Reading order: the idea (three short functions, all of BPE), the chat; then the same fast: train,
Tokenizer, and their loops in kernels/pieces.py. Other people's files: formats/tokenizers.py.
Sources: Sennrich, Haddow and Birch 2016 (BPE); Radford et al. 2019 (bytes); tiktoken (the pattern).
Left out: Unicode normalization, vocabularies that are not byte-level BPE.
"""
import argparse
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
                    read_json_lines, read_text_lines, recover, run_command, show_line, staged,
                    write_file)
from formats.tokenizers import (GPT2_SPLIT, byte_ids, check_pattern, from_ranks, from_tree,
                                gpt4_excerpt, ids_before, to_tree)
from formats.tokens import read_tokens, write_tokens  # noqa: F401 (train.py imports it from here)
from kernels.pieces import (character_kinds, empty_slots, find_merges, index_merges, merge_all,
                            pre_token_spans)

# GPT-4's split pattern, alternatives tried in order: 's 't 're ...; a word with at most one space
# or punctuation character before it; up to three digits; punctuation, with at most one space before
# and line ends after it; whitespace at the end of the text, or up to its last line end, or all but
# the last character, which goes with the next word. `?+`, `++`, `*+` never give back what they took
# (faster). tiktoken's `\s++$` is `\s++(?!\S)` here, which means the same to every regex library.
GPT4_SPLIT = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"
              r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++(?!\S)|\s*[\r\n]|\s+(?!\S)|\s")
# Each digit alone: the tokens of a number are its columns, as in sums on paper.
DIGIT_SPLIT = GPT4_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
MAX_DIGITS = {GPT4_SPLIT: 3, DIGIT_SPLIT: 1}  # patterns with a compiled loop; digits in a pre-token
# A character after which GPT-2's, GPT-4's and our pattern end a pre-token, whatever follows later.
PRE_TOKEN_END = regex.compile(r"\p{L}(?=\P{L})|\p{N}(?=\P{N})|\S(?= )")

# Special tokens have ids that no text can produce: they are never merged, and encoded only where
# the caller allows it. END stands after every document; the chat's come with fine-tuning.
END = "<|endoftext|>"
CHAT_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im_sep|>")
ROLES = ("system", "user", "assistant")

VOCAB_SIZE = 1024  # default: the embedding stays a small part of a network of a million parameters
JOB_CHARS = 1 << 21  # characters per job of a worker: 0.15 s of work, long beside sending it
CACHE_SIZE = 1 << 17  # distinct pre-tokens whose ids are remembered: most of a text, in 30 MB
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

    What people write never becomes a special token. open_answer: end with
    <|im_start|>assistant<|im_sep|>, for the model to go on."""
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
    """Text -> its distinct pre-tokens, list of str, and the number of each in order, list of int:
    "a cat, a cat" -> ["a", " cat", ",", " a"], [0, 1, 2, 3, 1]. Most repeat: 25 of 26 in 5 MB."""
    if pattern in MAX_DIGITS:
        starts, ends, numbers = pre_token_spans(text, MAX_DIGITS[pattern])
        return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist())], numbers.tolist()
    number = {}  # split also returns what the pattern does not match, so no text is lost
    numbers = [number.setdefault(part, len(number))
               for part in regex.split(f"({pattern})", text) if part]
    return list(number), numbers


def count_pre_tokens(texts, ended=True, *, pattern):
    """How often each pre-token occurs: all that training needs to know of the texts of a job."""
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
    counts, count = collections.Counter(), functools.partial(count_pre_tokens, pattern=pattern)
    for part in map_in_order(count, jobs(texts, pattern), workers):
        counts.update(part)
    if not counts:
        raise ValueError("no text to learn a tokenizer from; the corpus is empty")
    merges, tokens = [], [bytes([byte]) for byte in range(256)]
    for k, (left, right, times, density) in enumerate(find_merges(counts, n_merges), 1):
        merges.append((left, right, len(tokens)))
        tokens.append(tokens[left] + tokens[right])
        if show and (k <= 8 or k > n_merges - 8 or k % (n_merges // 8 + 1) == 0):
            show(f"merge {k:,}/{n_merges:,} | {readable(tokens[left])} + {readable(tokens[right])}"
                 f" | {times:,} times | {density:.3f} bytes/token")
    tokenizer = Tokenizer(tokens, merges, {}, pattern)
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


# ---- Tokenizer -----------------------------------------------------------------------------------

class Tokenizer:
    """A vocabulary and what is needed to use it fast.

    tokens: id -> bytes (None in a gap); here the 256 bytes, an id per merge, the special tokens.
    merge_rows (M,3): ids [left, right, made], first learned first. special_tokens: name -> id.
    Only other people's have: ignore_merges, a pre-token that is a token is that token, whatever the
    merges make of it (tiktoken); added_tokens, name -> id, found in any text although not special;
    post_processor, which names ids to put before a text and is only kept for the file."""

    def __init__(self, tokens, merge_rows, special_tokens, pattern=GPT4_SPLIT, ignore_merges=False,
                 added_tokens=(), post_processor=None):
        check_pattern(pattern)
        self.tokens, self.special_tokens = list(tokens), dict(special_tokens)
        self.pattern, self.ignore_merges = pattern, ignore_merges
        self.added_tokens, self.post_processor = dict(added_tokens), post_processor
        self.byte_ids = byte_ids(self.tokens)
        self.merge_rows = np.array(merge_rows, np.int64).reshape(-1, 3)
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
        if known and self.tokens[token_id] is not None:
            return self.tokens[token_id]
        raise ValueError(f"unknown token id {token_id}: this vocabulary has 0 to "
                         f"{len(self.tokens) - 1}; were the ids made by another tokenizer?")

    def add_special_tokens(self, names):
        """Give each new name the next id."""
        for name in names:
            if name not in self.special_tokens:
                self.special_tokens[name] = len(self.tokens)
                self.tokens.append(name.encode())

    def fingerprint(self, chat=True):
        """Hash of all that decides ids, with the Unicode tables of `regex`: newer ones know more
        letters. Checkpoints and tokens carry it, and are never used with another vocabulary.
        chat=False: without the chat's tokens, which sft.py adds and no document has."""
        left_out = () if chat else CHAT_SPECIALS
        special = {name: k for name, k in self.special_tokens.items() if name not in left_out}
        gone = {self.special_tokens.get(name) for name in left_out}
        content = ([token for k, token in enumerate(self.tokens) if k not in gone],
                   self.merge_rows.tolist(), sorted(special.items()), self.pattern,
                   self.ignore_merges, sorted(self.added_tokens.items()),
                   ids_before(self.post_processor), zlib.crc32(character_kinds()))
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def encode_ordinary(self, text):
        """naive_encode, but each distinct pre-token is merged once and then looked up."""
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
        if unknown := set(allowed) - set(self.special_tokens):
            raise ValueError(f"{', '.join(sorted(unknown))}: no special token of this vocabulary")
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
        """List of texts -> (n,) uint16, or uint32 where ids do not fit into 16 bits. END stands
        after each text; after the last one only if it has ended (see jobs)."""
        ids = []
        for text in texts:
            ids += [*self.encode(text), self.special_tokens[END]]
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        return np.array(ids if ended else ids[:-1], dtype)

    def decode(self, ids):
        """Text of the ids. What is no UTF-8, such as half a character, becomes U+FFFD."""
        return b"".join([self.token_bytes(token_id) for token_id in ids]).decode("utf-8", "replace")

    def save(self, path):
        """Write a tokenizer.json."""
        content = json.dumps(to_tree(self), ensure_ascii=False)
        write_file(str(path), lambda file: file.write(content.encode()))

    @staticmethod
    def load(path):
        """Read a tokenizer.json, ours or a foreign byte-level BPE, or a tiktoken rank file."""
        recover(os.path.dirname(path))
        if not os.path.exists(path):
            raise ValueError(f"{path}: no tokenizer there; python bpe.py makes one")
        with open(path, "rb") as file:
            content = file.read()
        tree = read_json(path) if content.lstrip()[:1] == b"{" else None
        try:
            return Tokenizer(**(from_ranks(content) if tree is None else from_tree(tree)))
        except ValueError as error:
            raise ValueError(f"{path}: {error} (expected a tokenizer.json or rank file)") from None


# ---- texts in, tokens out ------------------------------------------------------------------------
# A few jobs are in memory at a time, so a corpus may be larger than memory.

def jobs(texts, pattern):
    """Group texts into jobs of about JOB_CHARS: (list of texts, whether the last one ends there). A
    longer text is divided where a pre-token ends, so that one long file keeps all cores busy; with
    a foreign pattern, whose ends we do not know, it stays whole."""
    group, size, known = [], 0, pattern in (GPT4_SPLIT, DIGIT_SPLIT, GPT2_SPLIT)
    for text in [texts] if isinstance(texts, str) else texts:
        start = 0
        while known and (end := PRE_TOKEN_END.search(text, start + JOB_CHARS)):
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
    """Yields the texts of a part, "train" or "val": the first 90% or last 10% of each plain text
    file in inputs; without inputs, the documents in data.py's shards in folder."""
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


# ---- the command ---------------------------------------------------------------------------------

def readable(token):
    """A token's bytes as text: spaces as dots, half characters and line ends as escapes, so that
    b" caf\\xc3\\n" becomes ·caf\\xc3\\n."""
    return printable(token.decode("utf-8", "backslashreplace").replace(" ", "·"))


def show_tokens(tokenizer, text):
    """Print the tokens of text and below them their ids, on the same colours, or between bars. Then
    the bytes of a short text, as numbers and as bits."""
    ids = tokenizer.encode(text, allowed_special="all")
    tokens = [tokenizer.token_bytes(k) for k in ids]
    codes = [f"30;48;5;{COLOURS[k % len(COLOURS)]}" for k in range(len(ids))]
    print(("" if in_colour() else "|").join(map(paint, map(readable, tokens), codes)))
    print(" ".join(map(paint, map(str, ids), codes)))
    n_bytes = sum(map(len, tokens))
    print(f"{len(ids)} tokens, {n_bytes} bytes")
    for k, token in zip(ids, tokens) if n_bytes <= 16 else ():
        rows = [f"{readable(bytes([byte])):4} {byte:3}  {byte:08b}" for byte in token]
        print("\n".join(rows) + f"  -> {readable(token)}, token {k}")


def run(args):
    """Train (unless --tokenizer brings one), then encode both parts. The texts are read twice:
    reading is cheap, and keeping them would take memory."""
    if args.show is not None:
        if args.gpt4:
            print("excerpt of GPT-4's vocabulary, right only for hello, Hello, world, helloworld")
        return show_tokens(Tokenizer(**gpt4_excerpt()) if args.gpt4 else Tokenizer.load(
            args.tokenizer or f"{args.out}/tokenizer.json"), args.show)
    docs = f"{args.out}/docs"
    print_settings("bpe.py", {
        "input": args.inputs or docs, "vocabulary": args.tokenizer or args.vocab_size,
        "digits": None if args.tokenizer else args.digits,
        "workers": args.workers or os.cpu_count(), "output": args.out})
    train(["ab ab"], 258, workers=1).encode("a")  # compiles or loads the loops before time is taken
    with locked(args.out, "bpe.py"), staged(args.out) as staging:
        start = time.perf_counter()
        if args.tokenizer:
            tokenizer = Tokenizer.load(args.tokenizer)
            tokenizer.add_special_tokens([END])
        else:
            pattern = GPT4_SPLIT if args.digits == 3 else DIGIT_SPLIT
            tokenizer = train(read_texts(args.inputs, docs, "train"), args.vocab_size, [END],
                              pattern, args.workers, show_line)
            seconds = time.perf_counter() - start
            show_line(f"learned {tokenizer.vocab_size:,} tokens in {seconds:.1f} s")
        os.makedirs(f"{staging}/tokens")
        info = {"tokenizer": tokenizer.fingerprint(chat=False)}
        for part in ("train", "val"):
            start = time.perf_counter()
            work = jobs(read_texts(args.inputs, docs, part), tokenizer.pattern)
            arrays = map_in_order(tokenizer.encode_documents, work, args.workers)
            info[part] = write_tokens(f"{staging}/tokens/{part}.npy", arrays)
            show_line(f"{part} | {info[part][0]:,} tokens | {time.perf_counter() - start:.1f} s")
        with open(f"{staging}/tokens/info.json", "w", encoding="utf-8") as file:
            json.dump(info, file)
        tokenizer.save(f"{staging}/tokenizer.json")
    print(f"wrote {args.out}/tokenizer.json and {args.out}/tokens/; next: python train.py")


def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser("bpe.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("inputs", nargs="*", help="plain text files (default: OUT/docs/)")
    add("--vocab-size", type=int, default=VOCAB_SIZE, help="ids, special too")
    add("--digits", type=int, choices=(1, 3), default=1, help="most in a token")
    add("--tokenizer", help="use this tokenizer.json or rank file, train none")
    add("--show", metavar="TEXT", help="print the tokens of TEXT, write nothing")
    add("--gpt4", action="store_true", help="with --show: GPT-4's ids of the few words built in")
    add("--workers", type=int, help="processes (default: one per core)")
    add("--out", default="out", help="folder of the run")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
