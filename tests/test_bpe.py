"""Tokenizer: the fast code against the naive, the pattern, the file formats, peers, bad input."""
import base64
import copy
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest

import bpe
from kernels import pieces

DATA = os.environ.get("TEST_DATA", "")
RANKS = os.path.join(DATA, "cl100k_base.tiktoken")
needs_ranks = pytest.mark.skipif(not os.path.exists(RANKS),
                                 reason="TEST_DATA names no folder with cl100k_base.tiktoken")
OURS = [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT, bpe.GPT2_SPLIT]
SCRIPT = os.path.abspath(bpe.__file__)

TEXTS = ["the cat sat on the mat. the cat's hat, THE CAT'S HAT", "aaaaaaa aaaa aa a\n\n\n  aaa",
         "In 1984 there were 12345678 hats;\tnone fit.\r\n  ",
         "naïve café 東京 東京タワー 🙂🙂 ﬁ ſ 'ſ 'S 'lL"]


def any_character(rng):
    """Assigned long enough that all programs know its kind: their Unicode versions differ."""
    while True:
        c = chr(rng.randrange(0xA1, 0x30000))
        if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs"):
            return c


def random_text(rng, n):
    """What strings are made of in the wild, and worse: scripts, emoji, punctuation, controls."""
    parts = [
        lambda: rng.choice(["'s", "'T", "'Ll", "'vE", "'RE", "'d", "'M", "'ſ", "'x", "''", "'l"]),
        lambda: rng.choice(" \t\n\r\v\f\x85\xa0\u2028\u3000\u1680\x1c\x1f") * rng.randint(1, 4),
        lambda: " " * rng.randint(1, 9) + rng.choice(["", "\n", "\r\n", "\n\n"]),
        lambda: "".join(rng.choices("0123456789٣४½²Ⅷ", k=rng.randint(1, 7))),
        lambda: "".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 8))),
        lambda: "".join(rng.choices("ABCXYZabcéßñçŁǅ", k=rng.randint(1, 5))),
        lambda: "".join(rng.choices("привет мир Ωλφא ب ت हिन्दी ไทย 한국어 日本", k=rng.randint(1, 6))),
        lambda: rng.choice("🙂👩‍👩‍👧🇩🇪👍🏽❤️𝔘𐍈") * rng.randint(1, 2),
        lambda: "e" + "".join(rng.choices("\u0301\u0308\u20dd\u200d\ufe0f", k=rng.randint(1, 3))),
        lambda: chr(rng.randint(0, 0x20)) + chr(rng.randint(0x7F, 0xA0)),
        lambda: "".join(rng.choices("!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`\"", k=rng.randint(1, 5))),
        lambda: any_character(rng),
        lambda: rng.choice(["def f(x):\n    return x", "<|endoftext|>", "http://a.b/?d", " don't"])]
    return "".join(rng.choice(parts)() for _ in range(n))


def split(text, pattern):
    """Pre-tokens in order; no two of the distinct ones may be equal."""
    distinct, numbers = bpe.pre_tokenize(text, pattern)
    assert len(set(distinct)) == len(distinct)
    return [distinct[k] for k in numbers]


@pytest.fixture(scope="module")
def small():
    """A tokenizer with a few merges and END as its last id."""
    return bpe.train(TEXTS * 3, 320, [bpe.END], workers=1)


@pytest.fixture(scope="module")
def gpt4():
    return bpe.Tokenizer.load(RANKS)


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
    """"low lower lowest": ow, then low, then lowe, as the comment beside naive_train works out."""
    merges = [(b"o", b"w"), (b"l", b"ow"), (b"low", b"e"), (b" ", b"lowe")]
    assert bpe.naive_train(["low lower lowest"], 4) == merges
    tokenizer = bpe.train(["low lower lowest"], 260, workers=1)
    assert tokenizer.merges == merges and tokenizer.encode("low lower") == [257, 259, ord("r")]


def test_the_counts_by_hand():
    """"xaby" three times and "ab" twice: joining a and b leaves (x,ab) and (ab,y), three each."""
    ids = np.frombuffer(b"xabyab", np.uint8).astype(np.int64)
    starts, ends, weights = np.array([0, 4]), np.array([4, 6]), np.array([3, 2])
    pairs = pieces.empty_pairs(30)
    pieces.count_pairs(ids, starts, ends, weights, pairs)
    assert pairs.counts[:3].tolist() == [3, 5, 3]  # (x,a), (a,b), (b,y)
    pair = pieces.most_frequent(pairs, np.arange(256, dtype=np.int32))
    assert pieces.join_everywhere(ids, starts, ends, weights, pairs, pair, 256) == 5
    assert pairs.rows[3:5].tolist() == [[ord("x"), 256], [256, ord("y")]]
    assert pairs.counts[:6].tolist() == [0, 0, 0, 3, 3, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pattern", OURS)
def test_fast_and_naive_training_learn_the_same_merges(seed, pattern):
    """Corrected counts choose what counting anew chooses, on text full of ties and repetitions."""
    rng = random.Random(seed)
    texts = TEXTS + [random_text(rng, 40), "".join(rng.choices("ab", k=200)),
                     "abab" * 20 + "a" * 31]
    fast = bpe.train(texts, 256 + 90, pattern=pattern, workers=1)
    assert fast.merges == bpe.naive_train(texts, 90, pattern)


def test_results_do_not_depend_on_workers(monkeypatch):
    """Merges and the stream of tokens are the same from one process and from two."""
    monkeypatch.setattr(bpe, "JOB_CHARS", 300)
    rng = random.Random(1)
    texts = [random_text(rng, 15) for _ in range(60)]
    one, two = (bpe.train(texts, 400, [bpe.END], workers=workers) for workers in (1, 2))
    assert one.merges == two.merges == bpe.naive_train(texts, 143)
    texts.append(random_text(rng, 2000))  # longer than a job
    streams = [np.concatenate(list(bpe.map_in_order(
        one.encode_documents, bpe.jobs(texts, one.pattern), workers))) for workers in (1, 2)]
    assert np.array_equal(*streams) and streams[0].dtype == np.uint16
    assert streams[0].tolist() == [k for text in texts for k in
                                   [*one.encode(text), one.special_tokens[bpe.END]]]


@pytest.mark.parametrize("pattern", OURS)
def test_long_texts_are_divided_where_pre_tokens_end(pattern, monkeypatch):
    """The parts' pre-tokens are the whole text's, and each document ends exactly once."""
    monkeypatch.setattr(bpe, "JOB_CHARS", 20)
    text = random_text(random.Random(2), 5000)
    made = list(bpe.jobs(["short", text, "end"], pattern))
    parts = [part for texts, _ in made for part in texts]
    assert len(made) > 50 and "".join(parts) == f"short{text}end"
    assert made[0][0][0] == "short" and made[-1][0][-1] == "end" and made[-1][1]
    assert sum(len(texts) - (not ended) for texts, ended in made) == 3  # texts that end
    assert [word for part in parts for word in split(part, pattern)] == [
        *split("short", pattern), *split(text, pattern), *split("end", pattern)]


@pytest.mark.parametrize("text", ["東京は、日本の首都。" * 99, "1,22,333\n4,5,66\n" * 99, "- - " * 99])
def test_text_without_words_is_divided_too(text, monkeypatch):
    """Chinese, CSV and dashes have no letter, space, letter; they still become several jobs."""
    monkeypatch.setattr(bpe, "JOB_CHARS", 50)
    made = list(bpe.jobs([text], bpe.GPT4_SPLIT))
    assert len(made) > 5 and "".join(part for texts, _ in made for part in texts) == text
    assert [word for texts, _ in made for word in split(texts[0], bpe.GPT4_SPLIT)] == split(
        text, bpe.GPT4_SPLIT)


def test_a_foreign_pattern_is_never_divided(monkeypatch):
    """Nobody knows where its pre-tokens end: here "ab cd" is one."""
    monkeypatch.setattr(bpe, "JOB_CHARS", 3)
    assert list(bpe.jobs(["ab cd ef gh"], r"\w+ \w+")) == [(["ab cd ef gh"], True)]


def test_training_stops_when_nothing_is_left_to_join():
    """Three merges use up "abc abc", however many are asked for."""
    tokenizer = bpe.train(["abc abc"], 1 << 40, [bpe.END], workers=1)
    assert tokenizer.decode(tokenizer.encode("abc abc")) == "abc abc"
    assert tokenizer.vocab_size == 256 + 3 + 1  # bc, abc, " abc"
    assert tokenizer.special_tokens == {bpe.END: tokenizer.vocab_size - 1}


def test_training_says_how_it_goes():
    """The last line has the last merge, and the bytes per token that encoding then gives."""
    lines, text = [], " ".join(TEXTS)
    tokenizer = bpe.train([text], 300, workers=1, show=lines.append)
    left, right = map(bpe.readable, tokenizer.merges[-1])
    density = len(text.encode()) / len(tokenizer.encode(text))
    assert lines[-1].startswith(f"merge 44/44 | {left} + {right} | ")
    assert lines[-1].endswith(f" times | {density:.3f} bytes/token")
    assert lines[0].startswith("merge 1/44 | a + a | 12 times | ")


# ---- pre-tokenize --------------------------------------------------------------------------------

@pytest.mark.parametrize("pattern", OURS)
def test_the_loop_splits_where_the_regex_splits(pattern):
    """The compiled loop is regex.findall, on 4,000 strings of every kind."""
    rng = random.Random(2)
    for _ in range(4000):
        text = random_text(rng, rng.randint(0, 12))
        assert split(text, pattern) == bpe.regex.findall(pattern, text), repr(text)


def test_the_loop_knows_every_character():
    """Each code point between letters, digits and spaces, so that its kind decides the split."""
    for first in range(0, 0x110000, 0x800):
        if first != 0xD800:
            text = "".join(f"a{chr(c)}a 1{chr(c)} {chr(c)}" for c in range(first, first + 0x800))
            assert split(text, bpe.GPT4_SPLIT) == bpe.regex.findall(bpe.GPT4_SPLIT, text)


def test_other_patterns_keep_what_they_do_not_match():
    """Text is never lost between two matches."""
    assert split("one, two", r"\w+") == ["one", ", ", "two"]


@pytest.mark.parametrize("pattern", [r"(\w+)|\s+", "a)(b", "(?P<name>a)", "(", "["])
def test_patterns_with_groups_or_errors_are_refused_everywhere(pattern, small):
    """A capturing group would repeat its text: "ab cd" became "abab cdcd"."""
    with pytest.raises(ValueError, match="the split pattern .* (capturing group|damaged)"):
        bpe.train(["ab cd"], 260, pattern=pattern, workers=1)
    with pytest.raises(ValueError, match="the split pattern"):
        bpe.Tokenizer(small.tokens, small.merge_rows, {}, pattern=pattern)


# ---- encode and decode ---------------------------------------------------------------------------

def test_encoding_repeats_the_merges(small):
    """The fast encoder's tokens are the naive one's."""
    rng = random.Random(3)
    for _ in range(300):
        text = random_text(rng, 8) + rng.choice(TEXTS)
        tokens = [small.token_bytes(k) for k in small.encode(text)]
        assert tokens == bpe.naive_encode(text, small.merges)


def test_round_trip(small):
    """Every text comes back; ids are a list of int; half a character becomes U+FFFD."""
    rng = random.Random(4)
    for text in ["", "\0", "\U0010FFFF", "a" * 5000, *(random_text(rng, 20) for _ in range(500))]:
        assert small.decode(small.encode(text)) == text
    ids = small.encode("plain")
    assert isinstance(ids, list) and all(type(k) is int for k in ids)
    assert small.decode(np.array(ids, np.uint16)) == "plain"
    assert small.decode([0xE6, ord("a")]) == "\ufffda"


def test_a_full_cache_starts_over(small, monkeypatch):
    """Forgetting pre-tokens changes no ids and keeps memory bounded."""
    expected = [small.encode(text) for text in TEXTS]
    monkeypatch.setattr(bpe, "CACHE_SIZE", 3)
    assert [small.encode(text) for text in TEXTS] == expected
    assert len(small.cache) < 40


def test_special_tokens(small):
    """Typed by a user they are text; only a caller that allows them gets their ids."""
    end = small.special_tokens[bpe.END]
    assert end == small.vocab_size - 1 == 319
    assert end not in small.encode("a<|endoftext|>b")
    assert small.encode("a<|endoftext|>b", "all") == [*small.encode("a"), end, *small.encode("b")]
    assert small.encode("<|endoftext|>", {bpe.END}) == [end]
    assert small.decode([end]) == "<|endoftext|>"
    with pytest.raises(ValueError, match="<|pad|>"):
        small.encode("x", ["<|pad|>"])


def test_the_longest_special_token_wins():
    """<|a|>b is not read as <|a|> and a b, and no merge is ever learned across either."""
    tokenizer = bpe.train(["<|a|><|a|><|a|>"] * 9, 300, ["<|a|>", "<|a|>b"], workers=1)
    assert tokenizer.encode("<|a|>b<|a|>", "all") == [tokenizer.special_tokens["<|a|>b"],
                                                       tokenizer.special_tokens["<|a|>"]]


def test_bad_calls_are_refused(small):
    """Unknown ids, surrogates, vocabularies smaller than the bytes, and no text at all."""
    for bad in (320, -1, 10**12, 1.5):
        with pytest.raises(ValueError, match=f"unknown token id {bad}: .*0 to 319"):
            small.decode([bad])
    with pytest.raises(ValueError, match="position 3: surrogates not allowed"):
        small.encode("abc\ud800")
    with pytest.raises(ValueError, match="256 bytes and 1 special tokens need 257"):
        bpe.train(["abc"], 256, [bpe.END])
    for empty in ([], ["", ""]):
        with pytest.raises(ValueError, match="corpus is empty"):
            bpe.train(empty, 300)


# ---- the chat ------------------------------------------------------------------------------------

def test_chat_token_by_token():
    """Ids and mask of a conversation in which the user types an end token."""
    tokenizer = bpe.Tokenizer([bytes([b]) for b in range(256)], [], {})
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)  # 256 start, 257 end, 258 separator
    ids, mask = bpe.render_chat(tokenizer, [
        {"role": "user", "content": "Hi<|im_end|>"}, {"role": "assistant", "content": "Yo"}])
    assert ids == [256, *b"user", 258, *b"Hi<|im_end|>", 257, 256, *b"assistant", 258, *b"Yo", 257]
    assert mask == [0] * 6 + [0] * 13 + [0] * 11 + [1, 1, 1]
    assert tokenizer.decode(ids) == ("<|im_start|>user<|im_sep|>Hi<|im_end|><|im_end|>"
                                     "<|im_start|>assistant<|im_sep|>Yo<|im_end|>")
    ids, mask = bpe.render_chat(tokenizer, [{"role": "user", "content": "a"}], open_answer=True)
    assert ids == [256, *b"user", 258, *b"a", 257, 256, *b"assistant", 258]
    assert mask == [0] * 19


@pytest.mark.parametrize("message", [{"role": "robot", "content": "x"}, {"role": "user"},
                                     {"content": "x"}, {"role": "user", "content": None}])
def test_chat_refuses_other_messages(message):
    """A tokenizer without chat tokens, an unknown role, a content that is no text."""
    tokenizer = bpe.Tokenizer([bytes([b]) for b in range(256)], [], {})
    with pytest.raises(ValueError, match="sft.py"):
        bpe.render_chat(tokenizer, [])
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    with pytest.raises(ValueError, match="a role"):
        bpe.render_chat(tokenizer, [message])


# ---- tokenizer files -----------------------------------------------------------------------------

def test_save_and_load(small, tmp_path):
    """A saved tokenizer comes back whole, can grow, and leaves no other file."""
    path = tmp_path / "deep" / "tokenizer.json"
    small.save(path)
    again = bpe.Tokenizer.load(path)
    assert again.merges == small.merges and again.special_tokens == small.special_tokens
    assert again.tokens == small.tokens and again.pattern == small.pattern
    assert again.fingerprint() == small.fingerprint()
    again.add_special_tokens(bpe.CHAT_SPECIALS)
    assert again.special_tokens["<|im_sep|>"] == small.vocab_size + 2 == again.vocab_size - 1
    assert again.fingerprint() != small.fingerprint()
    digits = bpe.train(["12 34 1234"], 258, pattern=bpe.DIGIT_SPLIT, workers=1)
    digits.save(path)
    assert bpe.Tokenizer.load(path).encode("1234") == digits.encode("1234") == list(b"1234")
    assert os.listdir(path.parent) == ["tokenizer.json"]


def foreign(small, **model):
    """Our file as others write theirs: merges as "a b", GPT-2's split inside ByteLevel."""
    tree = bpe.to_tree(small)
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
    tree["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                             "use_regex": True}
    tree["model"] |= model
    return tree


def template(*items, ids):
    """A post_processor like Llama 3's."""
    kinds = {"A": "Sequence"}
    return {"type": "TemplateProcessing",
            "single": [{kinds.get(name, "SpecialToken"): {"id": name, "type_id": 0}}
                       for name in items],
            "pair": [{"Sequence": {"id": name, "type_id": k}} for k, name in enumerate("AB")],
            "special_tokens": {bpe.END: {"id": bpe.END, "ids": ids, "tokens": [bpe.END]}}}


def test_a_gpt2_shaped_file_opens(small, tmp_path):
    """Merges as strings and GPT-2's built-in pattern are understood."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(foreign(small)))
    loaded = bpe.Tokenizer.load(path)
    assert loaded.pattern == bpe.GPT2_SPLIT and loaded.merges == small.merges
    assert loaded.decode(loaded.encode(TEXTS[3])) == TEXTS[3]


def test_added_tokens_and_bos_are_read_as_they_are_meant(small, tmp_path):
    """Hugging Face finds non-special added tokens in any text, and puts BOS before it: the same
    ids, before and after our own saving."""
    tokenizers = pytest.importorskip("tokenizers")
    tree, path = bpe.to_tree(small), str(tmp_path / "tokenizer.json")
    tree["added_tokens"].append(dict(tree["added_tokens"][0], id=320, content="<x>",
                                     special=False))
    tree["post_processor"] = {"type": "Sequence", "processors": [
        dict(tree["decoder"], trim_offsets=False), template(bpe.END, "A", ids=[319])]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(tree, file)
    for _ in range(2):
        ours, peer = bpe.Tokenizer.load(path), tokenizers.Tokenizer.from_file(path)
        assert ours.bos_ids == [319] and ours.added_tokens == {"<x>": 320}
        for text in ("the cat<x> sat", "<x><x>", bpe.END + "<x"):
            assert ours.bos_ids + ours.encode(text, "all") == peer.encode(text).ids
        assert ours.encode(bpe.END + "<x>")[-1] == 320 and 319 not in ours.encode(bpe.END)
        assert ours.encode_documents(["a<x>"]).tolist() == [*ours.encode("a"), 320, 319]
        ours.save(path)


def test_a_token_that_no_merges_make_still_matches_a_whole_pre_token(tmp_path):
    """tiktoken's rule, kept when the ranks are saved as a tokenizer.json (ignore_merges)."""
    path = tmp_path / "ranks"
    tokens = [*(bytes([b]) for b in range(256)), b"abc", b"xy"]
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % k for k, t in enumerate(tokens)))
    ranks = bpe.Tokenizer.load(path)
    assert ranks.merges == [(b"x", b"y")]
    assert ranks.encode("abc") == [256] and ranks.encode("abcd xy") == [*b"abcd ", 257]
    ranks.save(tmp_path / "tokenizer.json")
    assert bpe.Tokenizer.load(tmp_path / "tokenizer.json").encode("abc") == [256]


def test_many_ids_need_wide_tokens(small):
    """65,536 ids fit into 16 bits, one more does not."""
    again = bpe.Tokenizer(small.tokens, small.merge_rows, small.special_tokens)
    again.add_special_tokens(f"<{k}>" for k in range((1 << 16) - again.vocab_size))
    assert again.encode_documents(["a"]).dtype == np.uint16
    again.add_special_tokens(["<last>"])
    assert again.encode_documents(["a"]).dtype == np.uint32


def test_the_fingerprint_covers_all_that_decides_ids(small, monkeypatch):
    """Pattern, merges, rules for whole pre-tokens, added tokens, BOS, and the Unicode tables."""
    base = small.tokens, small.merge_rows, small.special_tokens
    made = [small, bpe.Tokenizer(*base, bpe.DIGIT_SPLIT), bpe.Tokenizer(*base, ignore_merges=True),
            bpe.Tokenizer(small.tokens, small.merge_rows[:-1], small.special_tokens),
            bpe.Tokenizer(*base, added_tokens={"<x>": 300}),
            bpe.Tokenizer(*base, post_processor=template(bpe.END, "A", ids=[319]))]
    found = {tokenizer.fingerprint() for tokenizer in made}
    newer = pieces.character_kinds().copy()
    newer[0x11DB0] = pieces.OTHER if newer[0x11DB0] == pieces.LETTER else pieces.LETTER
    monkeypatch.setattr(bpe, "character_kinds", lambda: newer)
    assert len(found | {small.fingerprint()}) == len(made) + 1


def test_bad_files_are_refused(small, tmp_path, refused):
    """Empty, cut off, not JSON, deeply nested, no rank file, a byte missing, a rank missing."""
    with pytest.raises(ValueError, match="file: no tokenizer there; python bpe.py makes one"):
        bpe.Tokenizer.load(tmp_path / "file")
    small.save(tmp_path / "file")
    refused(b"", "no token for byte 0")
    refused((tmp_path / "file").read_bytes()[:2000], "no JSON")
    refused(b'{"a":' * 100_000, "no JSON")
    refused(b'{"model": 3}', "damaged, or no byte-level BPE")
    refused(b"not a rank file", "line 1 ")
    lines = [base64.b64encode(bytes([b])) + b" %d" % b for b in range(256)]
    (tmp_path / "file").write_bytes(b"\n".join(lines))
    assert bpe.Tokenizer.load(tmp_path / "file").encode("az") == list(b"az")
    refused(b"\n".join(lines[:200]), "no token for byte 200")
    refused(b"\n".join(lines)[:-3], "line 256 ")
    refused(b"\n".join(lines[1:]), "line 1 ")


def test_what_would_change_ids_is_refused_by_name(small, refused):
    """Parts of a tokenizer.json that we do not do: else ids would differ without an error."""
    for model in ({"byte_fallback": True}, {"continuing_subword_prefix": "##"}, {"dropout": 0.1}):
        refused(foreign(small, **model), next(iter(model)))
    refused(foreign(small, type="WordPiece"), "WordPiece")
    refused(foreign(small) | {"normalizer": {"type": "NFC"}}, "normalizer")
    refused(foreign(small) | {"truncation": {"max_length": 9}}, "truncation")
    refused(foreign(small) | {"padding": {"strategy": {"Fixed": 9}}}, "padding")
    for items in ((bpe.END, "A", bpe.END), ("A", bpe.END), ("A", "A")):
        refused(foreign(small) | {"post_processor": template(*items, ids=[319])}, "post_processor")
    refused(foreign(small) | {"post_processor": template(bpe.END, "A", ids=[999])}, "damaged")
    refused(foreign(small) | {"post_processor": {"type": "BertProcessing"}}, "post_processor")
    twice, never = bpe.to_tree(small)["pre_tokenizer"], foreign(small)["pre_tokenizer"]
    twice["pretokenizers"][1]["use_regex"], never["use_regex"] = True, False
    for other in ({"type": "Whitespace"}, twice, never):  # twice and never: how often it splits
        refused(foreign(small) | {"pre_tokenizer": other}, "a pre_tokenizer other")
    for pattern in ("(", "(a)|b"):
        tree = bpe.to_tree(small)
        tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
        refused(tree, "the split pattern")


@pytest.mark.parametrize("token", [
    {"id": -1}, {"id": 10**11}, {"id": 5}, {"id": 1.0}, {"id": True}, {"content": ""},
    {"content": "a", "id": 319}, {"content": "\ud800"}, {"lstrip": True}, {"single_word": True}])
def test_impossible_added_tokens_are_refused(small, refused, token):
    """Ids that are negative, huge, taken or no numbers; names that are empty or mean two tokens."""
    tree = bpe.to_tree(small)
    tree["added_tokens"][0] |= token
    refused(tree, "cannot have the id|the same id|surrogates|added tokens with")


ODD = [None, True, 0, -1, 7, 10**11, 1.5, "", "x", "(", "a b", "\ud800", "Ġ", [], [1], ["a", "b"],
       [[]], {}, {"a": 1}, {"type": "BPE"}, {"type": "ByteLevel"}, "\n"]


def mutate(rng, node):
    """A copy of a JSON tree with one random node replaced, removed, doubled or swapped."""
    tree = json.loads(json.dumps(node))
    at = tree
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            return tree
        key = rng.choice(keys)
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
            at = at[key]
            continue
        other = rng.choice(keys)
        change = rng.randrange(4)
        if change == 0:
            del at[key]
        elif change == 1:
            at[key], at[other] = at[other], at[key]
        else:
            at[key] = rng.choice(ODD) if change == 2 else copy.deepcopy(at[other])
        return tree


@pytest.mark.parametrize("cases", [1000, pytest.param(100_000, marks=pytest.mark.long)])
def test_any_tokenizer_file_gives_a_tokenizer_or_a_value_error(cases, small, tmp_path):
    """Mutated tokenizer.json and rank files: a tokenizer that encodes, or one error naming it."""
    rng, path, opened = random.Random(cases), tmp_path / "file", 0
    tree = foreign(bpe.train(["ab abc abcd"], 260, [bpe.END], workers=1))
    tree["post_processor"] = template(bpe.END, "A", ids=[259])
    trees = [tree, bpe.to_tree(small)]
    lines = [base64.b64encode(t) + b" %d\n" % k for k, t in enumerate(small.tokens[:-1])]
    for case in range(cases):
        if case % 3:
            content = json.dumps(mutate(rng, rng.choice(trees))).encode()
        else:
            content = bytearray(b"".join(lines))
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(content))
                content[at:at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        path.unlink(missing_ok=True)  # writing over a file would wait for the disk
        path.write_bytes(content)
        try:
            tokenizer = bpe.Tokenizer.load(path)
            tokenizer.decode(tokenizer.encode("ab 12 <x>\n" + bpe.END, "all"))
            tokenizer.fingerprint()
            opened += 1
        except ValueError as error:
            assert str(path) in str(error), content
    print(f"{cases:,} files, {opened:,} opened")
    assert 0.05 < opened / cases < 0.95


# ---- beside other programs -----------------------------------------------------------------------

@needs_ranks
def test_the_real_gpt4_vocabulary(gpt4):
    """100,256 tokens with their 100,000 merges; the ids of the lesson."""
    assert gpt4.vocab_size == 100_256 and len(gpt4.merges) == 100_000
    assert gpt4.encode("hello world") == [15339, 1917]
    assert gpt4.encode("Hello world") == [9906, 1917]
    assert gpt4.encode("helloworld") == [71, 96392]
    assert gpt4.merges[:2] == [(b" ", b" "), (b"  ", b"  ")]
    text = random_text(random.Random(5), 500)
    assert gpt4.decode(gpt4.encode(text)) == text
    assert gpt4.encode("\ufffd") == [5809]
    assert [gpt4.encode(text) for text in ("user", "Hi", "assistant", "Yes")] == [
        [882], [13347], [78191], [9642]]  # the example of render_chat


@needs_ranks
def test_the_excerpt_is_the_real_vocabulary(gpt4):
    """Every token built in, the 256 bytes too, has its id and its two parts from the real file."""
    excerpt, merges = bpe.gpt4_excerpt(), set(gpt4.merges)
    assert all(token in (None, gpt4.tokens[k]) for k, token in enumerate(excerpt.tokens))
    assert sum(token is not None for token in excerpt.tokens) == 270
    assert set(excerpt.merges) <= merges


@pytest.mark.peer
@needs_ranks
def test_tiktoken_gives_the_same_ids(gpt4):
    """On 20,000 random texts."""
    tiktoken = pytest.importorskip("tiktoken")
    from bench_bpe import TIKTOKEN_SPLIT
    with open(RANKS, "rb") as file:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file)}
    peer, rng = tiktoken.Encoding("cl100k", pat_str=TIKTOKEN_SPLIT, mergeable_ranks=ranks,
                                  special_tokens={}), random.Random(6)
    for _ in range(20_000):
        text = random_text(rng, rng.randint(1, 10))
        assert gpt4.encode(text) == peer.encode_ordinary(text), repr(text)


@pytest.mark.peer
@pytest.mark.parametrize("pattern", [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT])
def test_hugging_face_opens_our_file_with_equal_ids(pattern, tmp_path):
    """The same ids and the same text back, special tokens included."""
    tokenizers = pytest.importorskip("tokenizers")
    ours = bpe.train(TEXTS * 3, 330, [bpe.END, *bpe.CHAT_SPECIALS], pattern, workers=1)
    ours.save(tmp_path / "tokenizer.json")
    peer, rng = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), random.Random(7)
    assert peer.get_vocab_size() == ours.vocab_size
    for _ in range(3000):
        text = random_text(rng, 8)
        assert ours.encode(text, "all") == peer.encode(text).ids, repr(text)
        assert peer.decode(ours.encode(text), skip_special_tokens=False) == text


@pytest.mark.peer
@needs_ranks
def test_hugging_face_opens_the_gpt4_vocabulary_we_saved(gpt4, tmp_path):
    """GPT-4's ranks as a tokenizer.json give Hugging Face's library the same ids."""
    tokenizers = pytest.importorskip("tokenizers")
    gpt4.save(tmp_path / "tokenizer.json")
    peer, rng = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), random.Random(8)
    again = bpe.Tokenizer.load(tmp_path / "tokenizer.json")
    for _ in range(1000):
        text = random_text(rng, 8)
        assert gpt4.encode(text) == again.encode(text) == peer.encode(text).ids, repr(text)


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
    ours = bpe.Tokenizer.load(tmp_path / "tokenizer.json")
    assert ours.vocab_size == peer.get_vocab_size()
    for _ in range(2000):
        text = random_text(rng, 8)
        assert ours.encode(text, "all") == peer.encode(text).ids, repr(text)


# ---- the command and its files -------------------------------------------------------------------

@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*flags) in an empty folder: exit status, what it printed, what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*flags):
        capsys.readouterr()
        return bpe.main(list(flags)), *capsys.readouterr()
    return call


def contents(folder="out"):
    """All files below a folder but the lock, with their bytes."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in set(names) - {".lock"}:
            with open(os.path.join(parent, name), "rb") as file:
                found[os.path.relpath(os.path.join(parent, name), folder)] = file.read()
    return found


def test_the_command_on_a_text_file(run, tmp_path):
    """Tokens of both parts decode to the text; its last tenth is val; --show agrees."""
    text = " ".join(TEXTS) * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    status, shown, _ = run("a.txt", "--vocab-size", "300")
    lines = shown.splitlines()
    assert status == 0 and "vocabulary 300" in lines[0]
    assert lines[-1].endswith("next: python train.py")
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
    """No arguments: out/docs/, 1,024 ids at most, digits one by one, END after each document."""
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
    """The three examples of the lesson, said to be an excerpt; and "a" as 97 and 01100001."""
    for text, ids in (("hello world", "15339 1917"), ("Hello world", "9906 1917"),
                      ("helloworld", "71 96392")):
        assert run("--show", text, "--gpt4")[1].splitlines()[2] == ids
    shown = run("--show", "a", "--gpt4")[1]
    assert "excerpt" in shown and "a     97  01100001  -> a, token 64\n" in shown
    assert "01100001" not in run("--show", "a" * 17, "--gpt4")[1]


@pytest.mark.parametrize("args, why", [
    ([], "no out/docs/train-*.jsonl.gz"), (["missing.txt"], "missing.txt"),
    (["empty.txt"], "is empty"), (["binary"], "no text in UTF-8"),
    (["a.txt", "--vocab-size", "256"], "too small"), (["--show", "x"], "tokenizer.json")])
def test_the_command_refuses_in_one_line(run, args, why, tmp_path):
    """Status 2, one line on stderr, and no file."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    status, _, said = run(*args)
    assert status == 2 and why in said and said.count("\n") == 1 and not contents()


@pytest.mark.parametrize("content", [
    gzip.compress(b'{"text": "hello"}\n' * 99)[:-9], b"plain", gzip.compress(b'{"txt": 1}\n'),
    gzip.compress(b"7\n"), gzip.compress(b'{"text": 7}\n')])
def test_damaged_documents_are_named(content, tmp_path):
    """Cut off, not gzip, without a text: one error with the shard's name."""
    (tmp_path / "train-00000.jsonl.gz").write_bytes(content)
    with pytest.raises(ValueError, match="train-00000.jsonl.gz"):
        list(bpe.read_texts([], tmp_path, "train"))


def test_tokens_and_tokenizer_are_replaced_together(run, tmp_path, monkeypatch):
    """Stopped while val is written, or stumbling over a damaged val, all old files stay."""
    (tmp_path / "a.txt").write_text("one two three " * 99)
    (tmp_path / "b.txt").write_text("four five six, seven " * 99)
    assert run("a.txt", "--vocab-size", "270")[0] == 0
    before, write = contents(), bpe.write_tokens

    def stop(path, arrays, dtype):
        if path.endswith("val.npy"):
            raise KeyboardInterrupt
        return write(path, arrays, dtype)
    with monkeypatch.context() as patch:
        patch.setattr(bpe, "write_tokens", stop)
        assert run("b.txt", "--vocab-size", "270")[0] == 130
    assert contents() == before
    assert run("b.txt", "--vocab-size", "270")[0] == 0
    assert all(contents()[name] != before[name] for name in before)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.long)])
def test_killed_at_any_moment(run, tmp_path, kills):
    """SIGKILL leaves the old files or the new ones, all together; the next run clears up."""
    rng, sets = random.Random(kills), []
    for k, name in enumerate(("a.txt", "b.txt")):
        (tmp_path / name).write_text(" ".join(random_text(random.Random(k), 9) for _ in range(99)),
                                     encoding="utf-8")
        start = time.perf_counter()
        subprocess.run([sys.executable, SCRIPT, name, "--vocab-size", "300"], check=True,
                       stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        sets.append(contents())
    for k in range(kills):
        child = subprocess.Popen([sys.executable, SCRIPT, "ab"[k % 2] + ".txt", "--vocab-size",
                                  "300"], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(took / 2, took * 1.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        tokenizer = bpe.Tokenizer.load("out/tokenizer.json")
        parts = [bpe.read_tokens("out/tokens", part, tokenizer) for part in ("train", "val")]
        found = {name: content for name, content in contents().items() if name[0] != "."}
        assert found in sets and all(len(part) for part in parts)
    assert run("a.txt", "--vocab-size", "300")[0] == 0 and contents() == sets[0]


# ---- read_tokens ---------------------------------------------------------------------------------

@pytest.fixture
def stored(run, tmp_path, small):
    """The folder of a run's tokens, and its tokenizer."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 40)
    assert run("a.txt", "--vocab-size", "270")[0] == 0
    return tmp_path / "out/tokens", bpe.Tokenizer.load(tmp_path / "out/tokenizer.json")


def test_tokens_are_checked_when_opened(stored, small):
    """Missing, of another tokenizer, of another shape or type: the file and the command."""
    folder, tokenizer = stored
    tokens = bpe.read_tokens(folder, "val", tokenizer)
    assert isinstance(tokens, np.memmap) and tokens[-1] == tokenizer.vocab_size - 1
    with pytest.raises(ValueError, match="other.npy: no tokens there; python bpe.py makes them"):
        bpe.read_tokens(folder, "other", tokenizer)
    with pytest.raises(ValueError, match="train.npy: tokens of another tokenizer; python bpe.py"):
        bpe.read_tokens(folder, "train", small)
    extended = bpe.Tokenizer.load(folder.parent / "tokenizer.json")
    extended.add_special_tokens(bpe.CHAT_SPECIALS)  # as sft.py does: the tokens still fit
    assert np.array_equal(bpe.read_tokens(folder, "val", extended), tokens)
    os.remove(folder / "info.json")
    for wrong in (np.zeros((3, 3), np.uint16), np.zeros(9, np.int64), np.zeros(9, ">u2"),
                  np.zeros(9, object)):
        np.save(folder / "train.npy", wrong)
        with pytest.raises(ValueError, match="train.npy: damaged.*python bpe.py"):
            bpe.read_tokens(folder, "train", tokenizer)
    np.save(folder / "train.npy", np.full(9, 300, np.uint16))  # without info.json, ids are checked
    assert len(bpe.read_tokens(folder, "train")) == 9
    with pytest.raises(ValueError, match="train.npy: tokens of another tokenizer"):
        bpe.read_tokens(folder, "train", tokenizer)


@pytest.mark.parametrize("cases", [100, pytest.param(2000, marks=pytest.mark.long)])
def test_damaged_files_are_named_or_make_no_difference(stored, cases):
    """Tokens, info.json and tokenizer.json cut off or with a flipped bit: an error that names a
    file, or the same tokens and tokenizer; never other ones without a word."""
    folder, tokenizer = stored
    rng, expected, harmless = random.Random(cases), bpe.read_tokens(folder, "train").tolist(), 0
    saved = folder.parent / "tokenizer.json"
    for path in (folder / "train.npy", folder / "info.json", saved):
        content = path.read_bytes()
        for case in range(2 * cases):
            damaged = bytearray(content)
            if case % 2:
                del damaged[rng.randrange(len(damaged)):]
            else:
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            try:
                found = bpe.Tokenizer.load(saved)
                assert bpe.read_tokens(folder, "train", found).tolist() == expected
                assert found.fingerprint() == tokenizer.fingerprint()
                harmless += 1
            except ValueError as error:
                assert str(folder.parent) in str(error)
        path.write_bytes(content)
    print(f"{6 * cases} damaged files, {harmless} without effect")
