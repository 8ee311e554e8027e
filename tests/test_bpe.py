"""Tokenizer: the fast code against the naive, the pattern, the file formats, peers, bad input."""
import base64
import json
import os
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

import bpe

DATA = os.environ.get("TEST_DATA", "")
RANKS = os.path.join(DATA, "cl100k_base.tiktoken")
needs_ranks = pytest.mark.skipif(not os.path.exists(RANKS),
                                 reason="TEST_DATA names no folder with cl100k_base.tiktoken")
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

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
    """What strings are made of in the wild, and worse: scripts, emoji, marks, controls, blanks."""
    parts = [
        lambda: rng.choice(["'s", "'T", "'Ll", "'vE", "'RE", "'d", "'M", "'ſ", "'x", "''", "'l"]),
        lambda: rng.choice(" \t\n\r\v\f\x85\xa0\u2028\u3000\u1680\x1c\x1f") * rng.randint(1, 4),
        lambda: " " * rng.randint(1, 9) + rng.choice(["", "\n", "\r\n", "\n\n"]),
        lambda: "".join(rng.choices("0123456789٣४½²Ⅷ", k=rng.randint(1, 7))),
        lambda: "".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 8))),
        lambda: "".join(rng.choices("ABCXYZabcéßñçŁǅ", k=rng.randint(1, 5))),
        lambda: "".join(rng.choices("привет мир Ωλφא ب ت हिन्दी ไทย 한국어 日本語", k=rng.randint(1, 6))),
        lambda: rng.choice("🙂👩‍👩‍👧🇩🇪👍🏽❤️𝔘𐍈") * rng.randint(1, 2),
        lambda: "e" + "".join(rng.choices("\u0301\u0308\u20dd\u200d\ufe0f", k=rng.randint(1, 3))),
        lambda: chr(rng.randint(0, 0x20)) + chr(rng.randint(0x7F, 0xA0)),
        lambda: "".join(rng.choices("!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`\"", k=rng.randint(1, 5))),
        lambda: any_character(rng),
        lambda: rng.choice(["def f(x):\n    return x", "<|endoftext|>", "http://a.b/?d", " don't"])]
    return "".join(rng.choice(parts)() for _ in range(n))


@pytest.fixture(scope="module")
def small():
    """A tokenizer with a few merges and END as its last id."""
    return bpe.train(TEXTS * 3, 320, [bpe.END], workers=1)


@pytest.fixture(scope="module")
def gpt4():
    return bpe.Tokenizer.load(RANKS)


# ---- learning

@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pattern", [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT, bpe.GPT2_SPLIT])
def test_fast_and_naive_training_learn_the_same_merges(seed, pattern):
    rng = random.Random(seed)
    texts = TEXTS + [random_text(rng, 40), "".join(rng.choices("ab", k=200)),
                     "abab" * 20 + "a" * 31]
    fast = bpe.train(texts, 256 + 90, pattern=pattern, workers=1)
    assert fast.merges == bpe.naive_train(texts, 90, pattern)


def test_ties_go_to_the_greatest_pair_of_byte_strings():
    merges = bpe.train(["ab cd ab cd"], 258, workers=1).merges
    assert merges == [(b"c", b"d"), (b"a", b"b")]
    texts = ["xa", "xb", "ya", "yb"]  # every pair once: the left half decides, then the right
    assert bpe.train(texts, 260, workers=1).merges == [tuple(w.encode() for w in pair) for pair in
                                                       ("yb", "ya", "xb", "xa")]


def test_counting_does_not_depend_on_workers(monkeypatch):
    monkeypatch.setattr(bpe, "JOB_CHARS", 300)
    rng = random.Random(1)
    texts = [random_text(rng, 15) for _ in range(60)]
    one, two = (bpe.train(texts, 400, [bpe.END], workers=workers) for workers in (1, 2))
    assert one.merges == two.merges == bpe.naive_train(texts, 143)
    texts.append(random_text(rng, 2000))  # longer than a job
    streams = [np.concatenate(list(bpe.map_in_order(one.encode_documents, bpe.jobs(texts, bpe.GPT4_SPLIT), workers)))
               for workers in (1, 2)]
    assert np.array_equal(*streams)
    assert streams[0].dtype == np.uint16
    expected = [k for text in texts for k in [*one.encode(text), one.special_tokens[bpe.END]]]
    assert streams[0].tolist() == expected


@pytest.mark.parametrize("pattern", [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT, bpe.GPT2_SPLIT])
def test_long_texts_are_cut_between_pieces(pattern, monkeypatch):
    monkeypatch.setattr(bpe, "JOB_CHARS", 50)
    text = random_text(random.Random(2), 5000)
    jobs = list(bpe.jobs(["short", text, "end"], pattern))
    parts = [part for texts, _ in jobs for part in texts]
    assert len(jobs) > 20 and "".join(parts) == f"short{text}end"
    assert jobs[0][0][0] == "short" and jobs[-1][0][-1] == "end" and jobs[-1][1]
    assert sum(len(texts) - (not ended) for texts, ended in jobs) == 3  # texts that end
    assert [piece for part in parts for piece in cut(part, pattern)] == [
        *cut("short", pattern), *cut(text, pattern), *cut("end", pattern)]


def test_training_stops_when_nothing_is_left_to_join():
    tokenizer = bpe.train(["abc abc"], 1000, [bpe.END], workers=1)
    assert tokenizer.decode(tokenizer.encode("abc abc")) == "abc abc"
    assert tokenizer.vocab_size == 256 + 3 + 1  # bc, abc, " abc"
    assert tokenizer.special_tokens == {bpe.END: tokenizer.vocab_size - 1}


def test_training_says_how_it_goes():
    lines, text = [], " ".join(TEXTS)
    tokenizer = bpe.train([text], 300, workers=1, show=lines.append)
    left, right = map(bpe.readable, tokenizer.merges[-1])
    density = len(text.encode()) / len(tokenizer.encode(text))
    assert lines[-1].startswith(f"merge 44/44 | {left} + {right} | ")
    assert lines[-1].endswith(f" times | {density:.3f} bytes/token")
    assert lines[0] == "merge 1/44 | a + a | 12 times | " + lines[0].split(" | ")[3]


# ---- cutting

def cut(text, pattern):
    """Pieces in order; no two of the distinct ones may be equal."""
    distinct, numbers = bpe.pre_tokenize(text, pattern)
    assert len(set(distinct)) == len(distinct)
    return [distinct[k] for k in numbers]


@pytest.mark.parametrize("pattern", [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT])
def test_the_loop_cuts_where_the_regex_cuts(pattern):
    rng = random.Random(2)
    for _ in range(4000):
        text = random_text(rng, rng.randint(0, 12))
        assert cut(text, pattern) == bpe.regex.findall(pattern, text), repr(text)


def test_the_loop_knows_every_character():
    """Each code point between letters, digits and blanks, so that its kind decides the cut."""
    for first in range(0, 0x110000, 0x800):
        if first != 0xD800:
            text = "".join(f"a{chr(c)}a 1{chr(c)} {chr(c)}" for c in range(first, first + 0x800))
            assert cut(text, bpe.GPT4_SPLIT) == bpe.regex.findall(bpe.GPT4_SPLIT, text)


def test_other_patterns_keep_what_they_do_not_match():
    assert cut("one, two", r"\w+") == ["one", ", ", "two"]


# ---- encoding and decoding

def test_encoding_replays_the_merges(small):
    rng = random.Random(3)
    for _ in range(300):
        text = random_text(rng, 8) + rng.choice(TEXTS)
        tokens = [small.token_bytes(k) for k in small.encode(text)]
        assert tokens == bpe.naive_encode(text, small.merges)


def test_round_trip(small):
    rng = random.Random(4)
    for text in ["", "\0", "\U0010FFFF", "a" * 5000, *(random_text(rng, 20) for _ in range(500))]:
        assert small.decode(small.encode(text)) == text
    ids = small.encode("plain")
    assert isinstance(ids, list) and all(type(k) is int for k in ids)
    assert small.decode(np.array(ids, np.uint16)) == "plain"


def test_a_full_cache_starts_over(small, monkeypatch):
    expected = [small.encode(text) for text in TEXTS]
    monkeypatch.setattr(bpe, "CACHE_SIZE", 3)
    assert [small.encode(text) for text in TEXTS] == expected
    assert len(small.cache) < 40


def test_half_characters_decode_to_the_replacement(small):
    assert small.decode([0xE6, ord("a")]) == "\ufffda"


def test_special_tokens(small):
    end = small.special_tokens[bpe.END]
    assert end == small.vocab_size - 1 == 319
    assert end not in small.encode("a<|endoftext|>b")
    assert small.encode("a<|endoftext|>b", "all") == [*small.encode("a"), end, *small.encode("b")]
    assert small.encode("<|endoftext|>", {bpe.END}) == [end]
    assert small.decode([end]) == "<|endoftext|>"
    with pytest.raises(ValueError, match="<|pad|>"):
        small.encode("x", ["<|pad|>"])


def test_special_tokens_never_merge():
    tokenizer = bpe.train(["<|a|><|a|><|a|>"] * 9, 300, ["<|a|>", "<|a|>b"], workers=1)
    assert tokenizer.encode("<|a|>b<|a|>", "all") == [tokenizer.special_tokens["<|a|>b"],
                                                       tokenizer.special_tokens["<|a|>"]]


# ---- files

def test_save_and_load(small, tmp_path):
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
    """Our file as others write theirs: merges as "a b", GPT-2's cut inside ByteLevel."""
    tree = bpe.to_tree(small)
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
    tree["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                             "use_regex": True}
    tree["model"] |= model
    return tree


def test_a_gpt2_shaped_file_opens(small, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(foreign(small)))
    loaded = bpe.Tokenizer.load(path)
    assert loaded.pattern == bpe.GPT2_SPLIT and loaded.merges == small.merges
    assert loaded.decode(loaded.encode(TEXTS[3])) == TEXTS[3]


def test_a_token_that_no_merges_make_still_matches_a_whole_piece(tmp_path):
    path = tmp_path / "ranks"
    tokens = [*(bytes([b]) for b in range(256)), b"abc", b"xy"]
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % k for k, t in enumerate(tokens)))
    ranks = bpe.Tokenizer.load(path)
    assert ranks.merges == [(b"x", b"y")]
    assert ranks.encode("abc") == [256] and ranks.encode("abcd xy") == [*b"abcd ", 257]
    ranks.save(tmp_path / "tokenizer.json")
    assert bpe.Tokenizer.load(tmp_path / "tokenizer.json").encode("abc") == [256]


def test_many_ids_need_wide_tokens(small):
    again = bpe.Tokenizer(small.tokens, small.merge_rows, small.special_tokens)
    again.add_special_tokens(f"<{k}>" for k in range((1 << 16) - again.vocab_size))
    assert again.encode_documents(["a"]).dtype == np.uint16
    again.add_special_tokens(["<last>"])
    assert again.encode_documents(["a"]).dtype == np.uint32


def test_the_fingerprint_covers_all_that_decides_ids(small):
    other = bpe.Tokenizer(small.tokens, small.merge_rows, small.special_tokens, bpe.DIGIT_SPLIT)
    whole = bpe.Tokenizer(small.tokens, small.merge_rows, small.special_tokens, ignore_merges=True)
    fewer = bpe.Tokenizer(small.tokens, small.merge_rows[:-1], small.special_tokens)
    assert len({tok.fingerprint() for tok in (small, other, whole, fewer)}) == 4


@needs_ranks
def test_the_real_gpt4_vocabulary(gpt4):
    assert gpt4.vocab_size == 100_256 and len(gpt4.merges) == 100_000
    assert gpt4.encode("hello world") == [15339, 1917]
    assert gpt4.encode("Hello world") == [9906, 1917]
    assert gpt4.encode("helloworld") == [71, 96392]
    assert gpt4.merges[:2] == [(b" ", b" "), (b"  ", b"  ")]
    text = random_text(random.Random(5), 500)
    assert gpt4.decode(gpt4.encode(text)) == text
    assert gpt4.encode("\ufffd") == [5809]


# ---- beside other programs

def peer_encoding():
    tiktoken = pytest.importorskip("tiktoken")
    from bench_bpe import TIKTOKEN_SPLIT
    with open(RANKS, "rb") as file:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file)}
    return tiktoken.Encoding("cl100k", pat_str=TIKTOKEN_SPLIT, mergeable_ranks=ranks,
                             special_tokens={})


@pytest.mark.peer
@needs_ranks
def test_tiktoken_gives_the_same_ids(gpt4):
    peer, rng = peer_encoding(), random.Random(6)
    for _ in range(20_000):
        text = random_text(rng, rng.randint(1, 10))
        assert gpt4.encode(text) == peer.encode_ordinary(text), repr(text)


@pytest.mark.peer
@pytest.mark.parametrize("pattern", [bpe.GPT4_SPLIT, bpe.DIGIT_SPLIT])
def test_hugging_face_opens_our_file_with_equal_ids(pattern, tmp_path):
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


# ---- chat

def test_chat_token_by_token():
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
    tokenizer = bpe.Tokenizer([bytes([b]) for b in range(256)], [], {})
    with pytest.raises(ValueError, match="sft.py"):
        bpe.render_chat(tokenizer, [])
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    with pytest.raises(ValueError, match="a role"):
        bpe.render_chat(tokenizer, [message])


# ---- bad input

def test_bad_calls(small):
    for bad in (320, -1, 10**12, 1.5):
        with pytest.raises(ValueError, match=f"unknown token id {bad}: .*0 to 319"):
            small.decode([bad])
    with pytest.raises(ValueError, match=r"lone surrogate, U\+D800 at character 3"):
        small.encode("abc\ud800")
    with pytest.raises(ValueError, match="lone surrogate"):
        bpe.train(["\udfff"], 300, workers=1)
    with pytest.raises(ValueError, match="256 bytes and 1 special tokens need 257"):
        bpe.train(["abc"], 256, [bpe.END])
    with pytest.raises(ValueError, match="corpus is empty"):
        bpe.train([], 300)
    with pytest.raises(ValueError, match="corpus is empty"):
        bpe.train(["", ""], 300)


def test_bad_files(small, tmp_path):
    path = tmp_path / "file"

    def refused(content, why):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=why) as error:
            bpe.Tokenizer.load(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="file: no tokenizer there; python bpe.py makes one"):
        bpe.Tokenizer.load(path)
    small.save(path)
    whole = path.read_bytes()
    refused(b"", "is empty")
    refused(whole[:2000], "is cut off")
    refused(b'{"model": 3}', "is cut off or no byte-level BPE")
    refused(b"not a rank file", "line 1 ")
    lines = [base64.b64encode(bytes([b])) + b" %d" % b for b in range(256)]
    path.write_bytes(b"\n".join(lines))
    assert bpe.Tokenizer.load(path).encode("az") == list(b"az")
    refused(b"\n".join(lines[:200]), "no token for byte 200")
    refused(b"\n".join(lines)[:-3], "line 256 ")
    refused(b"\n".join(lines[1:]), "line 1 ")
    for model in ({"byte_fallback": True}, {"continuing_subword_prefix": "##"}, {"dropout": 0.1}):
        refused(json.dumps(foreign(small, **model)).encode(), next(iter(model)))
    refused(json.dumps(foreign(small, type="WordPiece")).encode(), "WordPiece")
    refused(json.dumps(foreign(small) | {"normalizer": {"type": "NFC"}}).encode(), "a normalizer")
    twice, never = bpe.to_tree(small)["pre_tokenizer"], foreign(small)["pre_tokenizer"]
    twice["pretokenizers"][1]["use_regex"], never["use_regex"] = True, False
    for other in ({"type": "Whitespace"}, twice, never):  # twice and never: how often it cuts
        refused(json.dumps(foreign(small) | {"pre_tokenizer": other}).encode(),
                "a pre_tokenizer other")


# ---- the command

def command(*args, cwd):
    return subprocess.run([sys.executable, os.path.join(HERE, "bpe.py"), *args], cwd=cwd,
                          capture_output=True, text=True, encoding="utf-8")


def test_the_command_on_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(TEXTS) * 20, encoding="utf-8")
    done = command("a.txt", "--vocab-size", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "vocabulary 300" in lines[0] and lines[-1].endswith("next: python train.py")
    assert "merge 1/43 |" in done.stdout and "merge 43/43 |" in done.stdout
    tokenizer = bpe.Tokenizer.load(tmp_path / "out/tokenizer.json")
    parts = [np.load(tmp_path / f"out/tokens/{part}.npy", mmap_mode="r")
             for part in ("train", "val")]
    text = " ".join(TEXTS) * 20
    assert all(part.dtype == np.uint16 and part[-1] == 299 for part in parts)
    assert "".join(tokenizer.decode(part[:-1]) for part in parts) == text
    assert tokenizer.decode(parts[0][:-1]) == text[:len(text) * 9 // 10]
    shown = command("--show", "the cat\n", cwd=tmp_path)
    assert "\x1b" not in shown.stdout and "·cat|\\n" in shown.stdout
    assert " ".join(map(str, tokenizer.encode("the cat\n"))) in shown.stdout


def test_the_command_on_documents(tmp_path):
    import gzip
    os.makedirs(tmp_path / "out/docs")
    for part, texts in (("train", TEXTS), ("val", TEXTS[:1])):
        path = tmp_path / f"out/docs/{part}-00000.jsonl.gz"
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": "x", "text": text}) + "\n" for text in texts)
    done = command("--vocab-size", "270", "--digits", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tokenizer = bpe.Tokenizer.load(tmp_path / "out/tokenizer.json")
    assert tokenizer.pattern == bpe.DIGIT_SPLIT
    train = np.load(tmp_path / "out/tokens/train.npy").tolist()
    assert tokenizer.decode(train) == "".join(text + bpe.END for text in TEXTS)


def test_damaged_documents_are_told(tmp_path):
    import gzip
    content = gzip.compress(b'{"text": "hello"}\n' * 999 + os.urandom(999))
    path = tmp_path / "train-00000.jsonl.gz"
    for wrong in (content, content[:-99], content[:40] + b"xyz" + content[43:], b"plain",
                  gzip.compress(b'{"txt": 1}\n'), gzip.compress(b"7\n")):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="train-00000.jsonl.gz is damaged"):
            list(bpe.read_texts([], tmp_path, "train"))


@pytest.mark.parametrize("args, why", [
    ([], "no out/docs/train-*.jsonl.gz"), (["missing.txt"], "missing.txt"),
    (["empty.txt"], "is empty"), (["binary"], "is not UTF-8"),
    (["a.txt", "--vocab-size", "256"], "too small"), (["--show", "x"], "tokenizer.json")])
def test_the_command_refuses_in_one_line(args, why, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    done = command(*args, cwd=tmp_path)
    assert done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1
    assert not os.path.exists(tmp_path / "out/tokenizer.json")
