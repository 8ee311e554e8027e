"""The edges of size and number: the right result, or a clear stop."""
import gzip
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import bpe
import model
import rl
import sample
import sft
import train
import world
from formats.tokens import read_texts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def net(**sizes):
    small = dict(vocab=300, ctx=8, dim=16, layers=1, heads=2, kv_heads=1, hidden=12)
    config = model.Config(**small | sizes)
    return model.init_params(config, 1), config


@pytest.mark.parametrize("vocab", [65_536, 65_537])
def test_ids_beyond_16_bits(vocab):
    """The last id of a large vocabulary is stored, predicted, and gets its gradient."""
    params, config = net(vocab=vocab)
    dtype = np.uint16 if vocab <= 1 << 16 else np.uint32
    ids = np.array([[1, vocab - 1, 2]], dtype).astype(np.int64)
    loss, grads = model.loss_and_grads(params, config, ids, ids[:, ::-1])
    logits = model.forward(params, config, ids)[0].astype(np.float64)
    expected = np.log(np.exp(logits).sum(-1)) - logits[[0, 1, 2], ids[0, ::-1]]
    assert abs(loss - expected.mean()) < 1e-5 and grads["model.embed_tokens.weight"][-1].any()
    tokens = [bytes([byte]) for byte in range(256)] + [b"??%d" % k for k in range(vocab - 257)]
    tokenizer = bpe.Tokenizer(tokens, [], {})
    tokenizer.add_special_tokens([bpe.END])
    assert tokenizer.vocab_size == vocab
    assert tokenizer.encode_documents(["a"]).tolist() == [97, vocab - 1]


@pytest.mark.parametrize("sizes", [
    {"ctx": 1}, {"ctx": 2, "dim": 2, "heads": 1}, {"dim": 16, "heads": 2, "kv_heads": 2},
    {"dim": 256, "heads": 1, "kv_heads": 1}, {"dim": 64, "heads": 8, "kv_heads": 1}])
def test_small_and_large_heads_and_contexts(sizes):
    """Contexts of 1 and 2, heads of 2 to 256: finite gradients, greedy tokens are forward's."""
    params, config = net(**sizes)
    ids = np.arange(3 * config.ctx).reshape(3, -1) % 300
    loss, grads = model.loss_and_grads(params, config, ids, ids)
    assert np.isfinite(loss) and model.not_finite(grads) is None
    new = sample.generate(params, config, ids[:, :1], 3, temperature=0)
    if config.ctx > 1:
        assert (new[:, 0] == model.forward(params, config, ids[:, :1])[:, -1].argmax(-1)).all()


def test_huge_and_damaged_weights():
    """Logits of 10,000 and more give a finite loss; a NaN or an infinity an error, and no text."""
    params, config = net()
    model.vector(params)[:] *= 3e4
    ids = np.arange(8)[None]
    loss, grads = model.loss_and_grads(params, config, ids, ids[:, ::-1])
    assert np.isfinite(loss) and loss > 1000 and model.not_finite(grads) is None
    for damage in (np.nan, np.inf):
        params["model.norm.weight"][3] = damage
        with pytest.raises(ValueError, match="weights are damaged"):
            sample.generate(params, config, [[1]], 3)


@pytest.fixture
def tokens(tmp_path, monkeypatch, command):
    """A folder with tokens of a short text; returns a function that runs train.py there."""
    (tmp_path / "text.txt").write_text("The fox lives in the forest. " * 200)
    monkeypatch.chdir(tmp_path)
    assert command(bpe, "text.txt", "--vocab-size", "280", "--workers", "1") == 0
    return lambda *flags: command(train, "--size", "0.3M", *flags)


@pytest.mark.parametrize("rate", ["100", "1e30"])
def test_extreme_learning_rates(rate, tokens, capsys):
    """A run ends with finite weights, or in one sentence that says what broke."""
    status = tokens("--steps", "10", "--ctx", "8", "--batch", "2", "--lr", rate)
    error = capsys.readouterr().err
    assert status == 0 or status == 2 and "try a third" in error and error.count("\n") == 1


def test_what_would_fail_late_is_found_first(tokens, tmp_path, capsys):
    """A tokenizer that did not make the tokens is an error, and a fact longer than --ctx is left
    out: either once lost a tenth of the run."""
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"prompt": "Where the fox", "answer": " lives nobody knows"}\n')
    flags = "--steps", "2", "--ctx", "8", "--batch", "2", "--facts", facts
    assert tokens(*flags) == 0
    bpe.train(["abc"], 256).save(tmp_path / "none.json")
    assert tokens(*flags, "--tokenizer", tmp_path / "none.json") == 2
    assert "tokens of another tokenizer" in capsys.readouterr().err


def test_a_billion_tokens_are_trained_on_at_once(tokens, tmp_path):
    """A token file of 2 GB (sparse on disk) is mapped, not read: little memory."""
    path, info, n = tmp_path / "out/tokens/train.npy", tmp_path / "out/tokens/info.json", 10**9
    np.lib.format.open_memmap(path, "w+", np.uint16, (n,))
    info.write_text(json.dumps(json.loads(info.read_text()) | {"train": [n, 0]}))
    script = ("import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (9 * 10**8,) * 2)\n"
              f"sys.path.insert(0, {ROOT!r}); import train; sys.exit(train.main(sys.argv[1:]))")
    flags = "--size", "0.3M", "--steps", "2", "--batch", "2", "--ctx", "8"
    done = subprocess.run([sys.executable, "-c", script, *flags], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n", [8, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("name, read", [
    ("conversations.jsonl", lambda path, net: sft.read_conversations(path, net[2], 64)),
    ("heldout.jsonl", lambda path, net: sft.read_questions(path, "kind")),
    ("prompts.jsonl", lambda path, net: sft.read_questions(path, "way")),
    ("exercises-train.jsonl", lambda path, net: rl.read_problems(path, net, "")),
    ("jokes.json", lambda path, net: rl.read_jokes(path, net[2])),
    ("facts.jsonl", lambda path, net: train.read_facts(path, net[2], 64)),
    ("train-0000.jsonl.gz", lambda path, _: [*read_texts((), os.path.dirname(path), "train")])])
def test_damaged_data_is_read_or_named(name, read, n, tmp_path, data_files, capsys):
    """Each file between the stages, cut off n times and with a bit flipped n times: it is read, or
    one ValueError names it. A packed one never gives other text: gzip has a checksum."""
    folder, net = data_files
    content, r = (folder / name).read_bytes(), random.Random(name)
    path, whole, seen = tmp_path / name, read(str(folder / name), net), set()
    for i in range(n):
        flipped = bytearray(content)
        flipped[r.randrange(len(content))] ^= 1 << r.randrange(8)
        for broken in (content[:len(content) * i // n], flipped):
            path.write_bytes(broken)
            try:
                found = read(str(path), net)
                seen.add("read")
                assert not name.endswith(".gz") or found == whole
            except ValueError as error:
                seen.add("named")
                assert name in str(error) and "\n" not in str(error)
    assert "named" in seen or name == "conversations.jsonl"  # there a bad line is skipped, and said


@pytest.fixture(scope="module")
def data_files(tmp_path_factory):
    """A folder with what the stages hand over, shortened, and a net to read it with."""
    folder = tmp_path_factory.mktemp("data")
    world.make(str(folder / "world"), pages=30)
    for name in os.listdir(folder / "world"):
        if name.endswith((".json", ".jsonl")):
            lines = (folder / "world" / name).read_bytes().splitlines(True)[:12]
            (folder / name).write_bytes(b"".join(lines))
    documents = "".join(json.dumps({"text": f"Fox {n} lives here."}) + "\n" for n in range(99))
    (folder / "train-0000.jsonl.gz").write_bytes(gzip.compress(documents.encode()))
    tokenizer = bpe.train(["the fox lives in the forest " * 9], 270, (bpe.END,))
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    params, config = net(vocab=tokenizer.vocab_size, ctx=512)
    return folder, (params, config, tokenizer)
