"""Tokenizer: the fast code against the naive, the pattern, the file formats, peers, bad input."""
import base64
import copy
import gzip
import json
import os
import random
import unicodedata

import numpy as np
import pytest

import bpe
from formats import tokenizers as tokenizer_files
from formats import tokens
from formats.tokenizers import gpt4_excerpt, to_tree
from kernels import pieces

OURS = [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT, bpe.GPT2_SPLIT]
BYTES = [bytes([byte]) for byte in range(256)]
TEXTS = ["the cat sat on the mat. the cat's hat, THE CAT'S HAT", "aaaaaaa aaaa aa a\n\n\n  aaa",
         "In 1984 there were 12345678 hats;\tnone fit.\r\n  ",
         "naïve café 東京 東京タワー 🙂🙂 ﬁ ſ 'ſ 'S 'lL"]


# What strings are made of in the wild, and worse. Last: characters whose kind every program knows,
# as their Unicode versions differ.
ALPHABETS = [
    ["'s", "'T", "'Ll", "'vE", "'RE", "'d", "'M", "'ſ", "'x", "''", "'l"], "ABCXYZabcéßñçŁǅ",
    " \t\n\r\v\f\x85\xa0\u2028\u3000\u1680\x1c\x1f", [" ", "   ", "  \n", " \r\n", "\n\n"],
    "0123456789٣४½²Ⅷ", "etaoinshrdlu", "привет мир Ωλφא ب ت हिन्दी ไทย 한국어 日本",
    "🙂👩‍👩‍👧🇩🇪👍🏽❤️𝔘𐍈", ["e\u0301", *"\u0308\u20dd\u200d\ufe0f"], [*map(chr, range(0xA1))],
    "!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`\"", ["def f(x):\n    return x", "<|endoftext|>", "a.b/?d"],
    [c for c in map(chr, range(0xA1, 0x30000))
     if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs")]]


def random_text(rng, n):
    """n times a few characters of one alphabet."""
    return "".join("".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 5)))
                   for _ in range(n))


def split(text, pattern):
    """Pre-tokens in order; the distinct ones are distinct."""
    distinct, numbers = bpe.pre_tokenize(text, pattern)
    assert len(set(distinct)) == len(distinct)
    return [distinct[k] for k in numbers]


def write_ranks(path, tokens):
    """A rank file as tiktoken's."""
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % k for k, t in enumerate(tokens)))


@pytest.fixture(scope="module")
def small():
    """A tokenizer with a few merges and END as its last id."""
    return bpe.train(TEXTS * 3, 320, [bpe.END], workers=1)


@pytest.fixture
def refused(tmp_path):
    """refused(content, why): Tokenizer.load says so in one line that names the file."""
    def check(content, why):
        path = tmp_path / "refused"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(ValueError, match=why) as error:
            bpe.Tokenizer.load(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    return check


# ---- train ---------------------------------------------------------------------------------------

def test_the_merges_by_hand():
    """"low lower lowest" gives ow, low, lowe, as beside naive_train."""
    merges = [(b"o", b"w"), (b"l", b"ow"), (b"low", b"e"), (b" ", b"lowe")]
    assert bpe.naive_train(["low lower lowest"], 4) == merges
    tokenizer = bpe.train(["low lower lowest"], 260, workers=1)
    assert tokenizer.merges == merges and tokenizer.encode("low lower") == [257, 259, ord("r")]
    assert bpe.naive_encode("slow", merges[:3]) == [b"s", b"low"] and "é".encode() == b"\xc3\xa9"
    assert tokenizer.encode("slow") == [115, 257]


def test_the_counts_by_hand():
    """The example of kernels/pieces.py: "xaby" three times and "ab" twice."""
    ids, starts, ends = np.array(list(b"xabyab")), np.array([0, 4]), np.array([4, 6])
    pairs, weights = pieces.empty_pairs(30), np.array([3, 2])
    pieces.count_all(pairs, ids, starts, ends, weights)
    assert pairs.counts[:3].tolist() == [3, 5, 3]  # (x,a), (a,b), (b,y)
    assert (pairs.newest[1], pairs.older[4], pairs.older[2]) == (4, 2, 0)
    pair = pieces.most_frequent(pairs, np.arange(256, dtype=np.int32))
    assert pieces.join_everywhere(pairs, pair, ids, starts, ends, weights, 256) == 5
    assert pairs.rows[3:5].tolist() == [[ord("x"), 256], [256, ord("y")]]
    assert pairs.counts[:6].tolist() == [0, 0, 0, 3, 3, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pattern", OURS)
def test_fast_and_naive_training_learn_the_same_merges(seed, pattern):
    """On text full of ties and repetitions."""
    rng = random.Random(seed)
    texts = TEXTS + [random_text(rng, 40), "".join(rng.choices("ab", k=200)),
                     "abab" * 20 + "a" * 31]
    fast = bpe.train(texts, 256 + 90, pattern=pattern, workers=1)
    assert fast.merges == bpe.naive_train(texts, 90, pattern)


def test_results_do_not_depend_on_workers(monkeypatch):
    """Merges and the stream of tokens are the same from one process and from two."""
    monkeypatch.setattr(tokens, "JOB_CHARS", 300)
    rng = random.Random(1)
    texts = [random_text(rng, 15) for _ in range(60)]
    one, two = (bpe.train(texts, 400, [bpe.END], workers=workers) for workers in (1, 2))
    assert one.merges == two.merges == bpe.naive_train(texts, 143)
    texts.append(random_text(rng, 2000))  # longer than a job
    streams = [np.concatenate(list(bpe.map_in_order(
        one.encode_documents, tokens.jobs(texts, True), workers))) for workers in (1, 2)]
    assert np.array_equal(*streams) and streams[0].dtype == np.uint16
    assert streams[0].tolist() == [k for text in texts for k in
                                   [*one.encode(text), one.special_tokens[bpe.END]]]


@pytest.mark.parametrize("pattern", OURS[:2])
def test_long_texts_are_divided_where_pre_tokens_end(pattern, monkeypatch):
    """The parts' pre-tokens are the whole text's, also without spaces or words."""
    monkeypatch.setattr(tokens, "JOB_CHARS", 20)
    for text in (random_text(random.Random(2), 5000), "東京は、日本の首都。" * 99,
                 "1,22,333\n4,5,66\n" * 99, "- - " * 99):
        parts = [part for texts, _ in tokens.jobs(text, True) for part in texts]
        assert len(parts) > 9
        assert [word for part in parts for word in split(part, pattern)] == split(text, pattern)


def test_training_ends_when_nothing_is_left_to_join_and_says_how_it_goes():
    """"abc abc" has three merges; the last line has the bytes per token that encoding gives."""
    lines = []
    tokenizer = bpe.train(["abc abc"], 1 << 40, [bpe.END], show=lines.append)
    assert tokenizer.special_tokens == {bpe.END: 259} and tokenizer.vocab_size == 260
    assert tokenizer.encode("abc abc") == [257, 258]
    assert lines[0].endswith(" | b + c | 2 times | 1.400 bytes/token") and len(lines) == 3
    assert lines[-1].endswith("/1,099,511,627,519 | · + abc | 1 times | 3.500 bytes/token")


# ---- pre-tokenize --------------------------------------------------------------------------------

@pytest.mark.parametrize("pattern", OURS)
def test_the_loop_splits_where_the_regex_splits(pattern):
    """On 4,000 strings of every kind, and each code point between letters, digits and spaces."""
    rng = random.Random(2)
    texts = [random_text(rng, rng.randint(0, 12)) for _ in range(4000)]
    texts += ["".join(f"a{chr(c)}a 1{chr(c)} {chr(c)}" for c in range(first, first + 0x800))
              for first in range(0, 0x110000, 0x800) if first != 0xD800]
    for text in texts:
        assert split(text, pattern) == bpe.regex.findall(pattern, text), repr(text[:99])


def test_foreign_patterns(monkeypatch):
    """What they do not match is kept, and no text is divided."""
    monkeypatch.setattr(tokens, "JOB_CHARS", 3)
    assert split("one, two", r"\w+") == ["one", ", ", "two"]
    made = bpe.train(["ab cd ef gh"], 300, pattern=r"\w+ \w+", workers=1)
    assert b"ab cd" in made.tokens and b"ef gh" in made.tokens and b"d e" not in made.tokens


@pytest.mark.parametrize("pattern", [r"(\w+)|\s+", "a)(b", "(?P<name>a)", "(", "["])
def test_patterns_with_groups_or_errors_are_refused_everywhere(pattern, small, refused):
    """A capturing group once repeated its text."""
    with pytest.raises(ValueError, match="the split pattern .* is damaged"):
        bpe.train(["ab cd"], 260, pattern=pattern, workers=1)
    tree = to_tree(small)
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    refused(tree, "the split pattern")


# ---- encode and decode ---------------------------------------------------------------------------

def test_encoding_repeats_the_merges(small, monkeypatch):
    """The tokens are naive_encode's, also with a cache that is always full."""
    rng = random.Random(3)
    for case in range(300):
        text = random_text(rng, 8) + rng.choice(TEXTS)
        tokens = [small.token_bytes(k) for k in small.encode(text)]
        assert tokens == bpe.naive_encode(text, small.merges)
        if case == 200:
            monkeypatch.setattr(bpe, "CACHE_SIZE", 3)
    assert len(small.cache) < 99


def test_round_trip(small):
    """Every text comes back; ids are a list of int; half a character becomes U+FFFD."""
    rng = random.Random(4)
    for text in ["", "\0", "\U0010FFFF", "a" * 5000, *(random_text(rng, 20) for _ in range(500))]:
        assert small.decode(ids := small.encode(text)) == text
        assert isinstance(ids, list) and all(type(k) is int for k in ids)
    assert small.decode(np.array([0xE6, ord("a")], np.uint16)) == "\ufffda"


def test_special_tokens(small):
    """They are text unless allowed; the longest name counts."""
    assert small.special_tokens == {bpe.END: 319} and small.vocab_size == 320
    assert 319 not in small.encode("a<|endoftext|>b")
    for allowed in ("all", {bpe.END}):
        assert small.encode("a<|endoftext|>b", allowed) == [ord("a"), 319, ord("b")]
    assert small.decode([319]) == "<|endoftext|>"
    two = bpe.Tokenizer(BYTES, [], {"<|a|>": 256, "<|a|>b": 257})
    two.tokens += [b"<|a|>", b"<|a|>b"]
    assert two.encode("<|a|>b<|a|>", "all") == [257, 256]


def test_bad_calls_are_refused(small):
    """Unknown ids and names, surrogates, too small vocabularies, no text."""
    for bad in (320, -1, 10**12):
        with pytest.raises(ValueError, match=f"unknown token id {bad}: .*0 to 319"):
            small.decode([bad])
    for text, names, why in (("x", ["<|pad|>"], r"<\|pad\|>: no special token"),
                             ("abc\ud800", (), "position 3: surrogates not allowed")):
        with pytest.raises(ValueError, match=why):
            small.encode(text, names)
    with pytest.raises(ValueError, match="256 bytes and 1 special tokens need 257"):
        bpe.train(["abc"], 256, [bpe.END])
    for empty in ([], ["", ""]):
        with pytest.raises(ValueError, match="corpus is empty"):
            bpe.train(empty, 300)


# ---- the chat ------------------------------------------------------------------------------------

def test_chat_token_by_token():
    """Ids and mask of a conversation in which the user types an end token."""
    tokenizer = bpe.Tokenizer(BYTES, [], {})
    with pytest.raises(ValueError, match="no chat tokens; python sft.py adds them"):
        bpe.render_chat(tokenizer, [])
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)  # 256 start, 257 end, 258 separator
    ids, mask = bpe.render_chat(tokenizer, [
        {"role": "user", "content": "Hi<|im_end|>"}, {"role": "assistant", "content": "Yo"}])
    assert ids == [256, *b"user", 258, *b"Hi<|im_end|>", 257, 256, *b"assistant", 258, *b"Yo", 257]
    assert mask == [0] * 6 + [0] * 13 + [0] * 11 + [1, 1, 1]
    assert tokenizer.decode(ids) == ("<|im_start|>user<|im_sep|>Hi<|im_end|><|im_end|>"
                                     "<|im_start|>assistant<|im_sep|>Yo<|im_end|>")
    ids, mask = bpe.render_chat(tokenizer, [{"role": "user", "content": "a"}], open_answer=True)
    assert ids == [256, *b"user", 258, *b"a", 257, 256, *b"assistant", 258] and mask == [0] * 19
    for message in ({"role": "robot", "content": "x"}, {"role": "user"}, {"content": "x"},
                    {"role": "user", "content": None}):
        with pytest.raises(ValueError, match="a role"):
            bpe.render_chat(tokenizer, [message])


# ---- tokenizer files -----------------------------------------------------------------------------

@pytest.mark.parametrize("pattern", OURS)
def test_save_and_load(pattern, tmp_path):
    """A saved tokenizer comes back, can grow, and leaves no other file."""
    path = tmp_path / "deep" / "tokenizer.json"
    made = bpe.train(TEXTS * 3, 320, [bpe.END], pattern, workers=1)
    made.save(path)
    again = bpe.Tokenizer.load(path)
    assert os.listdir(path.parent) == ["tokenizer.json"] and again.pattern == pattern
    assert again.encode("1234") == made.encode("1234") and again.fingerprint() == made.fingerprint()
    again.add_special_tokens(bpe.CHAT_SPECIALS)
    assert again.special_tokens["<|im_sep|>"] == 322 == again.vocab_size - 1
    assert again.fingerprint() != made.fingerprint() == again.fingerprint(chat=False)


def foreign(small, **model):
    """Our file as others write theirs: merges as "a b", GPT-2's split inside ByteLevel."""
    tree = to_tree(small)
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
    tree["pre_tokenizer"] = dict(tree["decoder"], use_regex=True)
    tree["model"] |= model
    return tree


def template(*items, ids):
    """A post_processor like Llama 3's; "A" is the text."""
    return {"type": "TemplateProcessing",
            "single": [{"Sequence" if name == "A" else "SpecialToken": {"id": name, "type_id": 0}}
                       for name in items],
            "pair": [{"Sequence": {"id": name, "type_id": k}} for k, name in enumerate("AB")],
            "special_tokens": {bpe.END: {"id": bpe.END, "ids": ids, "tokens": [bpe.END]}}}


@pytest.mark.peer
def test_foreign_files_are_read_as_they_are_meant(small, tmp_path):
    """GPT-2's form, an added token, a BOS: Hugging Face's ids, before and after our own saving."""
    tokenizers = pytest.importorskip("tokenizers")
    tree, path = foreign(small), str(tmp_path / "tokenizer.json")
    tree["added_tokens"].append(dict(tree["added_tokens"][0], id=320, content="<x>",
                                     special=False))
    tree["post_processor"] = {"type": "Sequence", "processors": [
        dict(tree["decoder"], trim_offsets=False), template(bpe.END, "A", ids=[319])]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(tree, file)
    for _ in range(2):
        ours, peer = bpe.Tokenizer.load(path), tokenizers.Tokenizer.from_file(path)
        assert ours.added_tokens == {"<x>": 320} and ours.merges == small.merges
        assert ours.pattern == bpe.GPT2_SPLIT and ours.post_processor == tree["post_processor"]
        for text in ("the cat<x> sat", "<x><x>", bpe.END + "<x", TEXTS[3]):
            assert [319, *ours.encode(text, "all")] == peer.encode(text).ids
        assert ours.encode(bpe.END + "<x>")[-1] == 320 and 319 not in ours.encode(bpe.END)
        assert ours.encode_documents(["a<x>"]).tolist() == [*ours.encode("a"), 320, 319]
        ours.save(path)


def test_a_token_that_no_merges_make_still_matches_a_whole_pre_token(tmp_path):
    """tiktoken's rule, kept when the ranks are saved as a tokenizer.json (ignore_merges)."""
    path = tmp_path / "ranks"
    write_ranks(path, [*BYTES, b"abc", b"xy"])
    for _ in range(2):
        found = bpe.Tokenizer.load(path)
        assert found.merges == [(b"x", b"y")]
        assert found.encode("abc") == [256] and found.encode("abcd xy") == [*b"abcd ", 257]
        found.save(path)


def test_the_fingerprint_covers_all_that_decides_ids(small, monkeypatch):
    """Pattern, merges, ignore_merges, added tokens, BOS, and the Unicode tables."""
    base = small.tokens, small.merge_rows, small.special_tokens
    made = [small, bpe.Tokenizer(*base, bpe.DIGIT_SPLIT), bpe.Tokenizer(*base, ignore_merges=True),
            bpe.Tokenizer(small.tokens, small.merge_rows[:-1], small.special_tokens),
            bpe.Tokenizer(*base, added_tokens={"<x>": 300}),
            bpe.Tokenizer(*base, post_processor=template(bpe.END, "A", ids=[319]))]
    found = {tokenizer.fingerprint() for tokenizer in made}
    newer = pieces.character_kinds().copy()
    newer[0x11DB0] = pieces.OTHER if newer[0x11DB0] == pieces.LETTER else pieces.LETTER
    monkeypatch.setattr(tokenizer_files, "character_kinds", lambda: newer)
    assert len(found | {small.fingerprint()}) == len(made) + 1


def test_bad_files_are_refused(small, tmp_path, refused):
    """Empty, cut off, no JSON, deeply nested, a byte or a rank missing."""
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="file: no tokenizer there; python bpe.py makes one"):
        bpe.Tokenizer.load(path)
    write_ranks(path, BYTES)
    lines = path.read_bytes()
    for content, why in ((b"", "no token for byte 0"), (b'{"a":' * 100_000, "no JSON"),
                         (json.dumps(to_tree(small)).encode()[:2000], "no JSON"),
                         (b'{"model": 3}', "damaged, or no byte-level BPE"),
                         (lines[:lines.index(b"yA== 200")], "no token for byte 200"),
                         (lines[:-4], "line 256 "), (lines[7:], "line 1 ")):
        refused(content, why)


def test_what_would_change_ids_is_refused_by_name(small, refused):
    """Parts of a tokenizer.json that we do not do."""
    ours, other = to_tree(small), foreign(small)
    twice, never = ours["pre_tokenizer"], dict(other["pre_tokenizer"], use_regex=False)
    twice["pretokenizers"][1]["use_regex"] = True  # splits twice
    for option in ("byte_fallback", "continuing_subword_prefix", "dropout"):
        refused(foreign(small, **{option: 1}), option)
    refused(foreign(small, type="WordPiece"), "WordPiece")
    refused(other | {"post_processor": template("A", "A", ids=[319])}, "damaged")
    for part, values in (("normalizer", [{"type": "NFC"}]), ("truncation", [{"max_length": 9}]),
                         ("padding", [{"strategy": "Fixed"}]),
                         ("post_processor", [template(bpe.END, "A", bpe.END, ids=[319]),
                                             template("A", bpe.END, ids=[319]),
                                             {"type": "BertProcessing"}]),
                         ("pre_tokenizer", [None, {"type": "Whitespace"}, twice, never])):
        for value in values:
            refused(other | {part: value}, f"needs .*{part}")
    for token in ({"id": -1}, {"id": 10**11}, {"id": 5}, {"id": 1.0}, {"id": True},
                  {"content": ""}, {"content": "a", "id": 319}, {"content": "\ud800"},
                  {"content": small.tokens[300].decode(), "id": 320},  # of the vocabulary
                  {"lstrip": True}, {"single_word": True}):
        refused(other | {"added_tokens": [other["added_tokens"][0] | token]},
                "cannot have the id|the same id|surrogates|lstrip|single_word")


ODD = [None, True, 0, -1, 7, 10**11, 1.5, "", "x", "(", "a b", "\ud800", "Ġ", [], [1], ["a", "b"],
       [[]], {}, {"a": 1}, {"type": "BPE"}, {"type": "ByteLevel"}, "\n"]


def mutate(rng, node):
    """A copy of a JSON tree with one random node replaced, removed, doubled or swapped."""
    tree = at = json.loads(json.dumps(node))
    while keys := list(at) if isinstance(at, dict) else range(len(at)):
        key, other, change = rng.choice(keys), rng.choice(keys), rng.randrange(4)
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
            at = at[key]
            continue
        if change == 0:
            del at[key]
        elif change == 1:
            at[key], at[other] = at[other], at[key]
        else:
            at[key] = rng.choice(ODD) if change == 2 else copy.deepcopy(at[other])
        break
    return tree


def rewrite(path, content):
    """Writes a new file: to write over the old one would wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def damaged(path, n):
    """Cuts a file off n times and flips a bit of it n times, each time for one iteration."""
    rng, content = random.Random(str(n) + path.name), path.read_bytes()
    for _ in range(n):
        at = rng.randrange(len(content))
        flipped = bytes([content[at] ^ 1 << rng.randrange(8)])
        for broken in (content[:at], content[:at] + flipped + content[at + 1:]):
            rewrite(path, broken)
            yield
    rewrite(path, content)


@pytest.mark.parametrize("cases", [1000, pytest.param(100_000, marks=pytest.mark.long)])
def test_any_tokenizer_file_gives_a_tokenizer_or_a_value_error(cases, small, tmp_path):
    """Mutated tokenizer.json and rank files: one that encodes, or one error that names the file."""
    rng, path, opened = random.Random(cases), tmp_path / "file", 0
    tree = foreign(bpe.train(["ab abc abcd"], 260, [bpe.END], workers=1))
    trees = [tree | {"post_processor": template(bpe.END, "A", ids=[259])}, to_tree(small)]
    write_ranks(path, small.tokens[:-1])
    lines = path.read_bytes()
    for case in range(cases):
        at = rng.randrange(len(lines))
        rewrite(path, json.dumps(mutate(rng, rng.choice(trees))).encode() if case % 3 else
                lines[:at] + rng.randbytes(rng.randint(0, 3)) + lines[at + rng.randint(0, 3):])
        try:
            tokenizer = bpe.Tokenizer.load(path)
            tokenizer.decode(tokenizer.encode("ab 12 <x>\n" + bpe.END, "all"))
            tokenizer.fingerprint()
            opened += 1
        except ValueError as error:
            assert str(path) in str(error), path.read_bytes()
    print(f"{cases:,} files, {opened:,} opened")
    assert 0.05 < opened / cases < 0.95


# ---- beside other programs -----------------------------------------------------------------------

def test_the_real_gpt4_vocabulary(real):
    """Its size, the ids that we print, and that the built-in excerpt is a part of it."""
    gpt4 = bpe.Tokenizer.load(real("cl100k_base.tiktoken"))
    assert gpt4.vocab_size == 100_256 and len(gpt4.merges) == 100_000
    for text, ids in (("hello world", [15339, 1917]), ("helloworld", [71, 96392]),
                      ("\ufffd", [5809]), ("user", [882]), ("Hi", [13347]),
                      ("assistant", [78191]), ("Yes", [9642])):
        assert gpt4.encode(text) == ids
    excerpt = bpe.Tokenizer(**gpt4_excerpt())
    known = [k for k, token in enumerate(excerpt.tokens) if token is not None]
    assert len(known) == 270 and all(excerpt.tokens[k] == gpt4.tokens[k] for k in known)
    assert set(excerpt.merges) <= set(gpt4.merges)


@pytest.mark.peer
def test_the_gpt4_vocabulary_beside_tiktoken_and_hugging_face(real, tmp_path):
    """tiktoken's ids are ours, and Hugging Face's from the file we saved."""
    tiktoken, tokenizers = map(pytest.importorskip, ("tiktoken", "tokenizers"))
    from bench_bpe import TIKTOKEN_SPLIT
    path = str(tmp_path / "tokenizer.json")
    gpt4 = bpe.Tokenizer.load(real("cl100k_base.tiktoken"))
    gpt4.save(path)
    openai = tiktoken.Encoding(
        "cl100k", pat_str=TIKTOKEN_SPLIT, special_tokens={},
        mergeable_ranks={token: k for k, token in enumerate(gpt4.tokens)})
    again, hugging_face = bpe.Tokenizer.load(path), tokenizers.Tokenizer.from_file(path)
    for case in range(20_000):
        text = random_text(rng := random.Random(case), rng.randint(1, 10))
        assert gpt4.encode(text) == openai.encode_ordinary(text), repr(text)
        if case < 1000:
            assert gpt4.encode(text) == again.encode(text) == hugging_face.encode(text).ids


def same_ids(ours, peer):
    """2,000 texts have the same ids, special tokens included."""
    assert ours.vocab_size == peer.get_vocab_size()
    for case in range(2000):
        ids = ours.encode(text := random_text(random.Random(case), 8), "all")
        assert ids == peer.encode(text).ids, repr(text)


@pytest.mark.peer
@pytest.mark.parametrize("pattern", [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT])
def test_hugging_face_opens_our_file(pattern, tmp_path):
    """Its library gives the ids that we give."""
    tokenizers, path = pytest.importorskip("tokenizers"), str(tmp_path / "tokenizer.json")
    ours = bpe.train(TEXTS * 3, 330, [bpe.END, *bpe.CHAT_SPECIALS], pattern, workers=1)
    ours.save(path)
    same_ids(ours, tokenizers.Tokenizer.from_file(path))


@pytest.mark.peer
@pytest.mark.parametrize("llama", [False, True])
def test_we_open_what_hugging_face_trained(llama, tmp_path):
    """GPT-2's form and Llama 3's, trained there, give the same ids here."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import Regex, models, pre_tokenizers, trainers
    peer = tokenizers.Tokenizer(models.BPE(ignore_merges=llama))
    old = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" \
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama)
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(old), "isolated"), byte_level]) if llama else byte_level
    rng = random.Random(9)
    texts = [random_text(rng, 50) for _ in range(200)] + TEXTS * 50
    peer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    peer.save(str(tmp_path / "tokenizer.json"))
    same_ids(bpe.Tokenizer.load(tmp_path / "tokenizer.json"), peer)


# ---- the command and its files -------------------------------------------------------------------

@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*flags) in an empty folder: exit status, what it printed, what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*flags):
        capsys.readouterr()
        return bpe.main(list(flags)), *capsys.readouterr()
    return call


def test_the_command_on_a_text_file(run, tmp_path):
    """Both parts decode to the text; its last tenth is val; --show agrees."""
    text = " ".join(TEXTS) * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    status, shown, _ = run("a.txt", "--vocab-size", "300")
    lines = shown.splitlines()
    assert status == 0 and "vocabulary 300" in lines[0] and "next: python train.py" in lines[-1]
    assert "merge 1/43 |" in shown and "merge 43/43 |" in shown
    tokenizer = bpe.Tokenizer.load("out/tokenizer.json")
    parts = [bpe.read_tokens("out/tokens", part, tokenizer) for part in ("train", "val")]
    assert all(part.dtype == np.uint16 and part[-1] == 299 for part in parts)
    assert "".join(tokenizer.decode(part[:-1]) for part in parts) == text
    assert tokenizer.decode(parts[0][:-1]) == text[:len(text) * 9 // 10]
    _, shown, _ = run("--show", "the cat\n\x1b[31m")
    assert "\x1b" not in shown and "·cat|\\n" in shown
    assert " ".join(map(str, tokenizer.encode("the cat\n\x1b[31m"))) in shown


def test_the_command_on_documents(run):
    """No arguments: out/docs/, digits one by one, END after each document."""
    os.makedirs("out/docs")
    for part, texts in (("train", TEXTS), ("val", TEXTS[:1])):
        with gzip.open(f"out/docs/{part}-00000.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": "x", "text": text}) + "\n" for text in texts)
    assert run()[0] == 0
    tokenizer = bpe.Tokenizer.load("out/tokenizer.json")
    assert tokenizer.pattern == bpe.DIGIT_SPLIT
    tokens = bpe.read_tokens("out/tokens", "train", tokenizer)
    assert tokenizer.decode(tokens) == "".join(text + bpe.END for text in TEXTS)


def test_gpt4s_ids_without_a_download(run):
    """The README's examples, said to be an excerpt; and "a" as 97 and 01100001."""
    for text, ids in (("hello world", "15339 1917"), ("Hello world", "9906 1917"),
                      ("helloworld", "71 96392")):
        assert run("--show", text, "--gpt4")[1].splitlines()[2] == ids
    shown = run("--show", "a", "--gpt4")[1]
    assert "excerpt" in shown and "a     97  01100001  -> a, token 64\n" in shown
    assert "01100001" not in run("--show", "a" * 17, "--gpt4")[1]


def contents():
    """All files below out/ but the lock, with their bytes."""
    return {os.path.join(parent, name): open(os.path.join(parent, name), "rb").read()
            for parent, _, names in os.walk("out") for name in names if name != ".lock"}


@pytest.mark.parametrize("args, content, why", [
    ([], b"", "no out/docs/train-*.jsonl.gz"), (["missing.txt"], b"", "missing.txt"),
    (["a.txt"], b"", "is empty"), (["a.txt"], b"\xff\xfe\0", "no text in UTF-8"),
    (["a.txt", "--vocab-size", "256"], b"some text", "too small"),
    (["--show", "x"], b"", "tokenizer.json"),
    *(([], shard, "train-00000.jsonl.gz") for shard in (
        gzip.compress(b'{"text": "hello"}\n' * 99)[:-9], b"plain", gzip.compress(b"7\n"),
        gzip.compress(b'{"txt": 1}\n'), gzip.compress(b'{"text": 7}\n')))])
def test_the_command_refuses_in_one_line(run, args, content, why):
    """Status 2, one line that names the file, nothing written."""
    os.makedirs("out/docs")
    with open("out/docs/train-00000.jsonl.gz" if why[:5] == "train" else "a.txt", "wb") as file:
        file.write(content)
    before = contents()
    status, _, said = run(*args)
    assert status == 2 and why in said and said.count("\n") == 1 and contents() == before


# ---- read_tokens ---------------------------------------------------------------------------------

@pytest.fixture
def stored(run, tmp_path):
    """The folder of a run's tokens, and its tokenizer."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 40)
    assert run("a.txt", "--vocab-size", "270")[0] == 0
    return tmp_path / "out/tokens", bpe.Tokenizer.load(tmp_path / "out/tokenizer.json")


def test_tokens_are_checked_when_opened(stored, small, monkeypatch):
    """Missing, damaged, of another tokenizer: the file and the command. Of a large file only the
    numbers are not looked at."""
    folder, tokenizer = stored
    path = folder / "train.npy"

    def refuses(why, tokenizer=tokenizer):
        with pytest.raises(ValueError, match=why):
            bpe.read_tokens(folder, "train", tokenizer)

    assert isinstance(bpe.read_tokens(folder, "train", tokenizer), np.memmap)
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)  # as sft.py does: the tokens still fit
    assert bpe.read_tokens(folder, "val", tokenizer)[-1] == 268
    refuses("train.npy: tokens of another tokenizer; python bpe.py", small)
    path.write_bytes(path.read_bytes()[:-2] + bytes(2))
    refuses("train.npy: damaged")
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "CHECKED_BYTES", 9)
        assert bpe.read_tokens(folder, "train", tokenizer)[-1] == 0
        refuses("train.npy: tokens of another tokenizer", small)
        os.truncate(path, 500)
        refuses("train.npy: damaged")
    os.remove(folder / "info.json")
    for wrong in (np.zeros((3, 3), np.uint16), np.zeros(9, np.int64), np.zeros(9, ">u2"),
                  np.zeros(9, object)):
        np.save(path, wrong)
        refuses("train.npy: damaged.*python bpe.py")
    np.save(path, np.full(9, 300, np.uint16))  # without info.json, ids are checked
    assert len(bpe.read_tokens(folder, "train")) == 9
    refuses("train.npy: tokens of another tokenizer")
    path.unlink()
    refuses("train.npy: no tokens there; python bpe.py makes them")


@pytest.mark.parametrize("n", [100, pytest.param(2000, marks=pytest.mark.long)])
def test_damaged_files_are_named_or_make_no_difference(stored, n):
    """Tokens, info.json, tokenizer.json: an error that names a file, or the same as before."""
    folder, tokenizer = stored
    expected, saved = bpe.read_tokens(folder, "train").tolist(), folder.parent / "tokenizer.json"
    for path in (folder / "train.npy", folder / "info.json", saved):
        for _ in damaged(path, n):
            try:
                found = bpe.Tokenizer.load(saved)
                assert bpe.read_tokens(folder, "train", found).tolist() == expected
                assert found.fingerprint() == tokenizer.fingerprint()
            except ValueError as error:
                assert str(folder.parent) in str(error)
