"""Tokenizers of other people: Hugging Face's tokenizer.json and tiktoken's rank files.

Hugging Face lists the merges as pairs, tiktoken only the tokens that they made. Readers return a
dict, the arguments of bpe.Tokenizer. What would change ids and is not done here is refused by name.

Sources: the `tokenizers` library; tiktoken.
"""
import base64
import hashlib
import zlib

import numpy as np
import regex

from common import parse_json
from kernels.pieces import character_kinds, empty_slots, recover_merges

MAX_VOCAB = 1 << 22  # ids above this are damage: the largest vocabularies have some 260,000
# GPT-2's split pattern, built into Hugging Face's "ByteLevel" step.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Hugging Face writes each byte as a visible letter: itself if printable, else 256, 257, ... So a
# space, the 33rd that is not, becomes chr(256 + 32), a G with a dot above. GPT-4 has the bytes in
# this order.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_ORDER = PRINTABLE + [byte for byte in range(256) if byte not in PRINTABLE]
LETTER_OF = {byte: chr(byte if k < len(PRINTABLE) else 256 + k - len(PRINTABLE))
             for k, byte in enumerate(BYTE_ORDER)}
BYTE_OF = {letter: byte for byte, letter in LETTER_OF.items()}


def byte_ids(tokens):
    """Id of each single byte, (256,): ours are 0 to 255, those of others stand in any order."""
    ids = {token: k for k, token in enumerate(tokens)}
    if missing := [byte for byte in range(256) if bytes([byte]) not in ids]:
        raise ValueError(f"no token for byte {missing[0]}; byte-level BPE needs all 256")
    return np.array([ids[bytes([byte])] for byte in range(256)])


def check_pattern(pattern):
    """Refuse what is no pattern, or has a capturing group: the regex would give its text twice."""
    try:
        if regex.compile(f"({pattern})").groups > 1:
            raise ValueError("a capturing group; write (?:...) in place of (...)")
    except (ValueError, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"the split pattern {pattern!r:.60} is damaged: {error}") from None


def whole_pre_tokens(tokenizer):
    """Text of each ordinary token that is whole characters -> its id in a tuple."""
    others = {*tokenizer.special_tokens.values(), *tokenizer.added_tokens.values()}
    texts = {k: token.decode("utf-8", "ignore") for k, token in enumerate(tokenizer.tokens)
             if token is not None and k not in others}
    return {text: (k,) for k, text in texts.items() if text.encode() == tokenizer.tokens[k]}


def fingerprint(tokenizer, without=()):
    """A hash of all that decides ids, without the special tokens in `without`. The Unicode tables
    of `regex` are part of it: newer ones know more letters."""
    special = dict(tokenizer.special_tokens)
    gone = {special.pop(name, None) for name in without}
    content = ([token for k, token in enumerate(tokenizer.tokens) if k not in gone],
               tokenizer.merge_rows.tolist(), sorted(special.items()), tokenizer.pattern,
               tokenizer.ignore_merges, sorted(tokenizer.added_tokens.items()),
               ids_before(tokenizer.post_processor), zlib.crc32(character_kinds()))
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def read_tokenizer(content):
    """Bytes of a tokenizer.json or a rank file -> arguments of Tokenizer."""
    if content.lstrip()[:1] == b"{":
        return from_tree(parse_json(content.decode(), "its content"))
    return from_ranks(content)


# ---- tokenizer.json ------------------------------------------------------------------------------

def to_tree(tokenizer):
    """Tokenizer -> content of a tokenizer.json: split by our pattern, each pre-token left whole
    ("Isolated"); write bytes as letters ("ByteLevel", which by default adds a space before and
    splits as GPT-2 did); merge."""
    words = ["".join([LETTER_OF[byte] for byte in token or b""]) for token in tokenizer.tokens]
    special = tokenizer.special_tokens
    named = {k: name for name, k in (special | tokenizer.added_tokens).items()}
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


# Options of a file, of its model and of its added tokens that change ids.
NOT_DONE = {"normalizer", "truncation", "padding", "dropout", "continuing_subword_prefix",
            "end_of_word_suffix", "byte_fallback", "lstrip", "rstrip", "single_word"}


def from_tree(tree):
    """Content of a tokenizer.json -> arguments of Tokenizer."""
    try:
        model, vocab, added = tree["model"], tree["model"]["vocab"], tree["added_tokens"]
        refused = {name for part in (tree, model, *added) for name in NOT_DONE & part.keys()
                   if part[name]} | {model["type"]} - {"BPE"}
        if refused:
            raise ValueError(f"needs what is not done here: {', '.join(sorted(refused))}")
        entries = [*vocab.items(), *((token["content"], token["id"]) for token in added)]
        ids = dict(entries)
        for name, k in entries:
            if type(k) is not int or not 0 <= k < MAX_VOCAB or ids[name] != k or not name:
                raise ValueError(f"token {name!r:.40} cannot have the id {k!r:.40}")
        if len(set(ids.values())) < len(ids):
            raise ValueError("two tokens have the same id")
        special, plain = [{token["content"]: token["id"] for token in added
                           if bool(token.get("special", True)) == wanted}
                          for wanted in (True, False)]
        tokens = [None] * (1 + max(ids.values(), default=-1))
        for name, k in ids.items():
            tokens[k] = (name.encode() if name in special or name in plain
                         else bytes([BYTE_OF[letter] for letter in name]))
        # Older files have merges as strings "LEFT RIGHT".
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        rows = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
        ids_before(post_processor := tree.get("post_processor"))  # refuses what is not done here
        return {"tokens": tokens, "merge_rows": rows, "special_tokens": special,
                "pattern": split_pattern(tree["pre_tokenizer"] or {}),
                "ignore_merges": bool(model.get("ignore_merges")),
                "added_tokens": plain, "post_processor": post_processor}
    except (LookupError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"damaged, or no byte-level BPE: {type(error).__name__} "
                         f"{str(error)!r:.80}") from None


def split_pattern(pre_tokenizer):
    """The pattern that a pre_tokenizer splits by: that of a Split before a ByteLevel that does not
    split; GPT-2's if there is only a ByteLevel."""
    match pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        case [{"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated",
               "invert": False},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}] if pattern:
            return pattern
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}] if rest.get("use_regex", 1):
            return GPT2_SPLIT
    raise ValueError("needs a pre_tokenizer that is not one Split and ByteLevel")


def ids_before(post_processor):
    """The ids that a post_processor puts before a text. Llama 3's template is <|begin_of_text|>,
    then the text: [128000]."""
    steps = (post_processor or {"processors": []}).get("processors", [post_processor])
    ids = []
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                pass  # changes no ids
            case {"type": "TemplateProcessing", "single": [*before, {"Sequence": _}]}:
                for item in before:
                    ids += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
            case _:
                raise ValueError("needs a post_processor that does more than put tokens before a "
                                 "text; this is not done here")
    return ids


# ---- tiktoken's ranks ----------------------------------------------------------------------------

def from_ranks(content):
    """tiktoken's lines "BASE64 RANK" -> arguments of Tokenizer, no special tokens among them."""
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
    """Tokens in the order of their merges, list of bytes (None in a gap) -> arguments of Tokenizer.
    Which two parts made a token is not in the file; it is recovered."""
    parts = [token or b"" for token in tokens]
    ids = byte_ids(tokens)[np.frombuffer(b"".join(parts), np.uint8)]
    ends = np.cumsum([len(part) for part in parts])
    rows = np.zeros((len(tokens), 3), np.int64)
    n = recover_merges(ids, ends, empty_slots(len(tokens)), rows)
    return {"tokens": tokens, "merge_rows": rows[:n], "special_tokens": {}, "ignore_merges": True}


# What GPT-4's vocabulary (cl100k_base) has for "hello world", "Hello world" and "helloworld". The
# last is not hello + world, since "ow" was learned before "lo": el, ow, ld; ell; orld; ellow;
# elloworld, and the h stays alone.
GPT4_EXCERPT = {269: "or", 289: " w", 301: "el", 363: "ow", 385: "lo", 509: "ld", 616: "ell",
                1410: "orld", 1917: " world", 4896: "ello", 5412: "ellow", 9906: "Hello",
                15339: "hello", 96392: "elloworld"}


def gpt4_excerpt():
    """Arguments of a Tokenizer with GPT-4's bytes and GPT4_EXCERPT: 270 of its 100,256 tokens."""
    tokens = [bytes([byte]) for byte in BYTE_ORDER] + [None] * 100_000
    for k, text in GPT4_EXCERPT.items():
        tokens[k] = text.encode()
    return from_tokens(tokens)
