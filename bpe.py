"""2. Text becomes tokens: byte-level BPE (byte-pair encoding), trained here.

A network reads numbers, so text is written in tokens of a fixed list, the vocabulary. It starts as
the 256 bytes, which can spell everything, and grows by one rule: join the most frequent pair of
neighbours into a new token. Common words end as one token, rare ones as several. Before that a
pattern splits text into pre-tokens: words, digits, punctuation, whitespace. No token reaches across
two of them; otherwise "dog.", "dog!" and "dog?" would each be learned apart.

    python bpe.py                         out/docs/ -> out/tokenizer.json, out/tokens/; 2 seconds
    python bpe.py a.txt b.txt             the same from plain text; the last 10% of each is val
    python bpe.py --show "Hello, world!"  the tokens in colour, their ids and bytes
    python bpe.py --show "hello world" --gpt4    the ids that GPT-4 has for it

Reading order: the idea (three short functions, all of BPE), the chat; then the same fast: train,
Tokenizer, and their loops in kernels/pieces.py. The files are read and written in formats/.
Sources: Sennrich, Haddow and Birch 2016 (BPE); Radford et al. 2019 (bytes); tiktoken (the pattern).
Left out: Unicode normalization, vocabularies that are not byte-level BPE.
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import (in_colour, locked, map_in_order, paint, print_settings, printable, recover,
                    run_command, show_line, staged, write_file)

import argparse
import collections
import json
import os
import sys
import time

import numpy as np
import regex

from formats.tokenizers import (GPT2_SPLIT, byte_ids, check_pattern,  # noqa: F401 (for others)
                                fingerprint, gpt4_excerpt, read_tokenizer, to_tree,
                                whole_pre_tokens)
from formats.tokens import jobs, read_texts, read_tokens, write_tokens  # noqa: F401 (for train.py)
from kernels.pieces import empty_slots, find_merges, merge_table, merge_words, pre_token_spans

# GPT-4's split pattern: each match is a pre-token, by the first alternative that fits. A space is
# written as _ in the examples. `?+`, `++` and `*+` never give back what they took, which is faster.
GPT4_SPLIT = (
    # The end of a contraction: "I'll" -> I, 'll.
    r"'(?i:[sdmt]|ll|ve|re)"
    # A word with at most one other character before it, mostly a space: "a cat" -> a, _cat.
    r"|[^\r\n\p{L}\p{N}]?+\p{L}++"
    # Up to three digits: "1984" -> 198, 4.
    r"|\p{N}{1,3}"
    # Punctuation, with a space before it and line ends after it: "x += 1" -> x, _+=, _, 1.
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    # Whitespace: all of it at the end of the text; or up to its last line end; or all but its last
    # character, which goes with the next word.
    r"|\s++(?!\S)|\s*[\r\n]|\s+(?!\S)|\s")
# Each digit alone: the tokens of a number are its columns, as in sums on paper.
DIGIT_SPLIT = GPT4_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

# Special tokens have ids that no text can produce. END stands after every document; the chat's come
# with fine-tuning.
END = "<|endoftext|>"
CHAT_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im_sep|>")
ROLES = ("system", "user", "assistant")

VOCAB_SIZE = 1024  # default: the embedding stays a small part of a network of a million parameters
CACHE_SIZE = 1 << 17  # distinct pre-tokens whose ids are remembered: most of a text, in 30 MB
COLOURS = (153, 157, 223, 217, 189)  # pale blue, green, yellow, red, violet of a terminal's 256


# ---- the idea ------------------------------------------------------------------------------------
# Training, by hand. "low lower lowest" has three pre-tokens, spaces written as _:
#     l o w      _ l o w e r      _ l o w e s t
# Count pairs of neighbours. (l,o) and (o,w) occur three times each, (w,e) and (_,l) twice. Of equal
# counts the greater pair wins, so the first merge is o + w, and the new token is ow:
#     l ow       _ l ow e r       _ l ow e s t
# Now (l,ow) occurs three times. After that (low,e) and (_,low) occur twice, and low + e wins:
#     low        _ lowe r         _ lowe s t
# Encoding repeats the merges in the order they were learned: "slow" is s l o w -> s l ow -> s low.
# The network gets numbers, ids. A byte's id is its value, 0 to 255; the first merge makes id 256.
# So ow is 256, low 257, lowe 258; s is the byte 115, and "slow" is 115 257.
# A character outside ASCII has two to four bytes, here separate tokens until merges join them:
# "é" is 195 169. So no text lies outside the vocabulary, whatever the language.

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
    """All of BPE training: count pairs of neighbours, join the most frequent one, start over.
    Returns the merges, pairs of byte strings. Of equal counts the greatest pair of byte strings
    wins, so that the result is unique."""
    words = [[bytes([byte]) for byte in word.encode()]
             for text in texts for word in regex.findall(pattern, text)]
    merges = []
    for _ in range(n_merges):
        counts = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts:
            break
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        words = [join_pair(word, merges[-1]) for word in words]
    return merges


def naive_encode(text, merges, pattern=GPT4_SPLIT):
    """All of BPE encoding: repeat the merges in the order they were learned. Returns the tokens,
    byte strings."""
    words = [[bytes([byte]) for byte in word.encode()] for word in regex.findall(pattern, text)]
    for pair in merges:
        words = [join_pair(word, pair) for word in words]
    return [token for word in words for token in word]


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


# ---- training, fast ------------------------------------------------------------------------------
# naive_train reads the whole corpus for every merge. But most pre-tokens repeat, 25 of 26 in 5 MB
# of prose and code. So each distinct one is counted once; kernels/pieces.py does the rest.

MAX_DIGITS = {GPT4_SPLIT: 3, DIGIT_SPLIT: 1}  # the patterns that have a compiled loop


def pre_tokenize(text, pattern):
    """Text -> its distinct pre-tokens, list of str, and the number of each in order, (n,) int64:
    "a cat, a cat" -> ["a", " cat", ",", " a"], [0, 1, 2, 3, 1]."""
    if pattern in MAX_DIGITS:
        starts, ends, numbers = pre_token_spans(text, MAX_DIGITS[pattern])
        return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist())], numbers
    number = {}  # split also returns what the pattern does not match, so no text is lost
    numbers = [number.setdefault(part, len(number))
               for part in regex.split(f"({pattern})", text) if part]
    return list(number), np.array(numbers, np.int64)


def count_pre_tokens(texts, pattern):
    """How often each pre-token occurs: all that training needs to know of the texts."""
    counts = collections.Counter()
    for text in texts:
        distinct, numbers = pre_tokenize(text, pattern)
        counts.update(dict(zip(distinct, np.bincount(numbers).tolist())))
    return counts


def train(texts, vocab_size, special_tokens=(), pattern=GPT4_SPLIT, workers=None, show=None):
    """A Tokenizer of vocab_size ids (fewer if the texts run out of pairs): 256 bytes, the merges of
    naive_train, special tokens. texts may be a stream: memory grows only with the distinct
    pre-tokens. workers: processes, None for one per core. show: e.g. print."""
    n_merges = vocab_size - 256 - len(special_tokens)
    if n_merges < 0:
        raise ValueError(f"a vocabulary of {vocab_size} is too small: 256 bytes and "
                         f"{len(special_tokens)} special tokens need {vocab_size - n_merges}")
    check_pattern(pattern)
    counts = collections.Counter()
    work = ((group, pattern) for group, _ in jobs(texts, pattern in MAX_DIGITS))
    for part in map_in_order(count_pre_tokens, work, workers):
        counts.update(part)
    if not counts:
        raise ValueError("no text to learn from: the corpus is empty")
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


# ---- Tokenizer: encoding, fast -------------------------------------------------------------------
# naive_encode tries every merge on every pre-token. Here each distinct pre-token is merged once, by
# the pairs that occur in it, and then looked up.

class Tokenizer:
    """A vocabulary. With the three merges of the example above and END:

    tokens          id -> bytes: the 256 bytes, b"ow", b"low", b"lowe", b"<|endoftext|>"
    merge_rows      (M,3) ids [left, right, made]: [111,119,256], [108,256,257], [257,101,258]
    special_tokens  name -> id: {"<|endoftext|>": 259}

    Only other people's have gaps (None in tokens), bytes in another order, and
    ignore_merges   a pre-token that is a token stays whole, whatever the merges make of it
    added_tokens    name -> id, found in any text although not special
    post_processor  names ids to put before a text; only kept for the file"""

    def __init__(self, tokens, merge_rows, special_tokens, pattern=GPT4_SPLIT, ignore_merges=False,
                 added_tokens=(), post_processor=None):
        check_pattern(pattern)
        self.tokens, self.special_tokens = list(tokens), dict(special_tokens)
        self.pattern, self.ignore_merges = pattern, ignore_merges
        self.added_tokens, self.post_processor = dict(added_tokens), post_processor
        self.byte_ids = byte_ids(self.tokens)
        self.merge_rows = np.array(merge_rows, np.int64).reshape(-1, 3)
        self.slots = merge_table(self.merge_rows, empty_slots(len(self.merge_rows)))
        self.whole = whole_pre_tokens(self) if ignore_merges else {}
        self.cache = dict(self.whole)  # pre-token -> its ids, a tuple

    @property
    def vocab_size(self):
        return len(self.tokens)

    @property
    def merges(self):
        """Pairs of byte strings, first learned first."""
        return [(self.tokens[a], self.tokens[b]) for a, b, _ in self.merge_rows.tolist()]

    def token_bytes(self, token_id):
        """The bytes that an id stands for; of a special token its name's."""
        if 0 <= token_id < len(self.tokens) and self.tokens[token_id] is not None:
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
        """A hash of all that decides ids. Checkpoints and tokens carry it, so that they are never
        read with another vocabulary. chat=False: without the chat's tokens, which no document has.
        """
        return fingerprint(self, () if chat else CHAT_SPECIALS)

    def encode_ordinary(self, text):
        """Ids of text in which nothing is special, a list."""
        distinct, numbers = pre_tokenize(text, self.pattern)
        if len(self.cache) > len(self.whole) + CACHE_SIZE:  # full: begin anew
            self.cache = dict(self.whole)
        cache = self.cache
        if new := [word for word in distinct if word not in cache]:
            cache.update(zip(new, merge_words(new, self.byte_ids, self.slots, self.merge_rows)))
        ids_of = [cache[word] for word in distinct]
        return [k for number in numbers.tolist() for k in ids_of[number]]

    def encode(self, text, allowed_special=()):
        """Ids of text, a list. Names of special tokens are plain text unless allowed ("all"): else
        anyone could end the other's turn in a chat by typing <|im_end|>."""
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        if unknown := set(allowed) - set(self.special_tokens):
            raise ValueError(f"{', '.join(sorted(unknown))}: no special token of this vocabulary")
        ids_of = self.added_tokens | {name: self.special_tokens[name] for name in allowed}
        if not ids_of:
            return self.encode_ordinary(text)
        # The longest first, or <|a|> would hide <|a|>b.
        names = "|".join(map(regex.escape, sorted(ids_of, key=len, reverse=True)))
        ids = []
        for k, part in enumerate(regex.split(f"({names})", text)):  # every second part is a name
            ids += [ids_of[part]] if k % 2 else self.encode_ordinary(part)
        return ids

    def encode_documents(self, texts, ended=True):
        """List of texts -> (n,) uint16, or uint32 where ids need it. END stands after each text;
        after the last one only if it has ended (see jobs). With END as 259, ["low", "a"] becomes
        257 259 97 259."""
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
        try:
            return Tokenizer(**read_tokenizer(content))
        except ValueError as error:
            raise ValueError(f"{path}: {error} (expected a tokenizer.json or rank file)") from None


# ---- the command (skip at first) -----------------------------------------------------------------

def readable(token):
    """A token's bytes as text: spaces as dots, half characters and line ends as escapes."""
    return printable(token.decode("utf-8", "backslashreplace").replace(" ", "·"))


def show_tokens(tokenizer, text):
    """Print the tokens of text and below them their ids, in the same colours, or between bars:

    s|low
    115 257
    2 tokens, 4 bytes

    Then the bytes of a short text, as numbers and as bits."""
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
    """Train (unless --tokenizer brings one), then encode both parts. The texts are read twice, as
    keeping them would take memory."""
    if args.show is not None:
        if args.gpt4:
            print("excerpt of GPT-4's vocabulary, right only for hello, Hello, world, helloworld")
            return show_tokens(Tokenizer(**gpt4_excerpt()), args.show)
        path = args.tokenizer or f"{args.out}/tokenizer.json"
        return show_tokens(Tokenizer.load(path), args.show)
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
            tokenizer = train(read_texts(args.inputs, docs, "train"), args.vocab_size, [END],
                              DIGIT_SPLIT if args.digits == 1 else GPT4_SPLIT, args.workers,
                              show_line)
            show_line(f"learned {tokenizer.vocab_size:,} tokens in "
                      f"{time.perf_counter() - start:.1f} s")
        os.makedirs(f"{staging}/tokens")
        info = {"tokenizer": tokenizer.fingerprint(chat=False)}  # read_tokens compares it
        for part in ("train", "val"):
            start = time.perf_counter()
            work = jobs(read_texts(args.inputs, docs, part), tokenizer.pattern in MAX_DIGITS)
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
