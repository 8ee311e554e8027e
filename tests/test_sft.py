"""Supervised fine-tuning: rows and the loss mask, batches, evaluation, and runs that go on."""
import gzip
import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

import bpe
import checkpoint
import model
import sample
import sft
from common import read_json_lines

TEXT = "Where does the fox live? The fox lives in the forest. Who are you? I am Pip. " * 40
TALK = [{"role": "user", "content": "Where does the fox live?"},
        {"role": "assistant", "content": "The fox lives in the forest."},
        {"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Pip."}]
HELDOUT = [{"kind": "fox", "messages": TALK[:1], "answer": [" forest"], "asked_in_training": False,
            "cloze": "The fox lives in the"},
           {"kind": "who", "messages": TALK[2:3], "answer": ["I am Pip"]},
           {"kind": "both", "messages": TALK, "answer": ["Pip"],
            "answers": [[" forest"], ["I am Pip"]]}]


@pytest.fixture(scope="module")
def tokenizer():
    made = bpe.train([TEXT], 300, (bpe.END,))
    made.add_special_tokens(bpe.CHAT_SPECIALS)
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with an untrained base model and 48 conversations of two kinds."""
    folder, made = tmp_path_factory.mktemp("base"), bpe.train([TEXT], 300, (bpe.END,))
    config = model.Config(vocab=made.vocab_size, ctx=64, dim=32, layers=2, heads=2, kv_heads=1,
                          hidden=48)
    checkpoint.save(str(folder / "out/base"), model.init_params(config, 1), config, made)
    os.makedirs(folder / "out/world")
    write(folder / "out/world/conversations.jsonl",
          [{"kind": ("chat + who", "fox")[i % 2], "messages": TALK[:2] if i % 2 else TALK[2:]}
           for i in range(48)])
    return folder


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    """A copy of that folder as working directory; returns a function that types a command."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft, "BATCH_TOKENS", 200)
    return lambda *flags: sft.main(list(map(str, flags)))


def write(path, entries):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries)
    return str(path)


def heldout(entries=HELDOUT):
    return write("out/world/heldout.jsonl", entries)


def weights(folder):
    return model.vector(checkpoint.load(folder)[0])


# ---- rows ----

def test_the_mask_counts_what_the_assistant_says(tokenizer):
    """Counted targets are what it says, from the first token after <|im_sep|> to <|im_end|>."""
    start, end, separator = (tokenizer.special_tokens[name] for name in bpe.CHAT_SPECIALS)
    said = tokenizer.encode("I am Pip.")
    head = [start, *tokenizer.encode("user"), separator, *tokenizer.encode("Who are you?"), end,
            start, *tokenizer.encode("assistant"), separator]
    row = sft.render(tokenizer, TALK[2:], 64)
    assert row == (head + said + [end], [0] * len(head) + [1] * (len(said) + 1), True)
    ids, targets, mask = (x[0] for x in sft.to_arrays([row[:2]]))
    assert targets[mask == 1].tolist() == said + [end] and set(mask) == {0, 1}
    assert ids[mask == 1].tolist() == [separator] + said


def test_three_shapes_give_the_same_rows(tmp_path, tokenizer):
    """messages, UltraChat and ShareGPT, here gzipped, are read alike."""
    shapes = [{"messages": TALK}, {"id": "7", "data": [m["content"] for m in TALK]},
              {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[m["role"]],
                                  "value": m["content"]} for m in TALK]}]
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, shapes)).encode()))
    rows, lost = sft.read_conversations(path, tokenizer, 64)
    assert len(rows) == 3 and lost == "none lost"
    for ids, mask in rows:
        assert (ids.tolist(), mask.tolist()) == bpe.render_chat(tokenizer, TALK)


def test_malformed_lines_are_named_and_skipped(tmp_path, tokenizer, capsys):
    """All are counted and the first is named, control characters escaped; blank lines are none."""
    bad = [{"\x1b[2Jkey": "x"}, '{"a\x1b": 1', "[1]", '"text"', {"data": "user said"},
           {"messages": [{"role": "user"}]}, {"messages": 7}, {"conversations": [7]},
           {"messages": [{"role": "pirate", "content": "arr"}]}, {"data": ["hi", 7]},
           {"messages": [{"role": ["user"], "content": "x"}]}, '{"data": ["\\ud800", "x"]}',
           {"conversations": [{"from": ["human"], "value": "x"}]}]
    path = write(tmp_path / "x.jsonl", [{"messages": TALK}, "", *bad])
    rows, lost = sft.read_conversations(path, tokenizer, 64)
    assert len(rows) == 1 and lost == f"{len(bad)} malformed"
    shown, = capsys.readouterr().err.splitlines()
    assert "line 3:" in shown and "\x1b" not in shown and "x1b[2Jkey" in shown


def test_long_conversations_lose_whole_turns(tmp_path, tokenizer):
    """A row ends behind an answer and within ctx tokens; what has no such end is counted."""
    first, both = (len(bpe.render_chat(tokenizer, TALK[:n])[0]) for n in (2, 4))
    for ctx, n in ((both, 4), (both - 1, 2), (first, 2), (first - 1, 0)):
        ids, mask, whole = sft.render(tokenizer, TALK, ctx)
        assert (ids, mask) == bpe.render_chat(tokenizer, TALK[:n]) and whole == (n == 4)
    assert sft.render(tokenizer, TALK[:3], both)[0] == bpe.render_chat(tokenizer, TALK[:2])[0]
    path = write(tmp_path / "x.jsonl", [{"messages": TALK}, {"messages": TALK[2:]},
                                        {"messages": TALK[:1]}, {"messages": []}])
    rows, lost = sft.read_conversations(path, tokenizer, both - 1)
    assert len(rows) == 2 and lost == "1 cut at a turn, 2 without an answer"


def test_pages_are_replayed_in_order(tmp_path, tokenizer):
    """Rows are the documents' tokens, <|endoftext|> before each, up to the number asked for."""
    texts = [TEXT[:300], TEXT[300:900], TEXT[900:2000]]
    with gzip.open(tmp_path / "train-00000.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    end = tokenizer.special_tokens[bpe.END]
    config = model.Config(vocab=300, ctx=16, bos=(end,))
    rows = sft.read_pages(str(tmp_path), tokenizer, config, 200)
    stream = [k for text in texts for k in [end, *tokenizer.encode(text)]]
    assert np.concatenate([ids for ids, _ in rows]).tolist() == stream[:200 // 16 * 16]
    assert all(len(ids) == 16 and mask.all() for ids, mask in rows)


# ---- batches ----

def test_an_epoch_holds_every_row_once():
    """By length, within BATCH_TOKENS (a longer row is alone), in another order each epoch. Mixed:
    32 rows of any length."""
    lengths = np.random.default_rng(0).integers(5, 120, 500)
    batches, mixed = sft.plan(lengths, (0, 0)), sft.plan(lengths, (0, 0), mixed=True)
    for epoch in (batches, mixed):
        assert sorted(k for batch in epoch for k in batch) == list(range(500))
    assert all(len(b) * lengths[b].max() <= sft.BATCH_TOKENS for b in batches)
    assert all(np.ptp(lengths[b]) <= 16 for b in batches) and len(mixed) == 16
    assert all(len(b) in (31, 32) and np.ptp(lengths[b]) > 80 for b in mixed)
    assert batches == sft.plan(lengths, (0, 0)) != sft.plan(lengths, (0, 1))
    order = [lengths[b].max() for b in batches]
    assert order != sorted(order)
    assert sft.plan(np.array([5000]), 0) == [[0]]


def test_padding_and_uncounted_targets_change_nothing(small):
    """Two rows in one batch have the mean loss and gradient of both alone, whatever the targets
    that don't count. With no counted token both are 0."""
    params, config, *_ = small
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 37, n), np.array([0] * (n - 3) + [1] * 3)) for n in (6, 9)]
    ids, targets, mask = sft.to_arrays(rows)
    together, grads = model.loss_and_grads(params, config, ids, targets, mask)
    alone = [model.loss_and_grads(params, config, *sft.to_arrays([row])) for row in rows]
    assert abs(together - np.mean([loss for loss, _ in alone])) < 1e-12
    mean = sum(model.vector(g) for _, g in alone) / 2
    assert np.abs(model.vector(grads) - mean).max() < 1e-12
    other = np.where(mask == 1, targets, 5)
    assert model.loss_and_grads(params, config, ids, other, mask)[0] == together
    loss, grads = model.loss_and_grads(params, config, ids, targets, 0 * mask)
    assert loss == 0 and not model.vector(grads).any()


# ---- evaluation ----

def test_dialogues_are_answered_turn_by_turn(tmp_path, monkeypatch):
    """A question with "answers" is answered after each user turn, behind the model's own earlier
    answers and not those of the file; each answer is scored, and all n-th turns asked at once."""
    calls = []
    monkeypatch.setattr(sft, "complete", lambda net, prompts, temperature, seed: (
        calls.append(prompts) or [str(len(prompt)) for prompt in prompts]))
    monkeypatch.setattr(sft, "prompt_ids", lambda net, talk: [m["content"] for m in talk])
    write(tmp_path / "heldout.jsonl", [HELDOUT[0], HELDOUT[2] | {"answers": [["1"], ["9"]]}])
    scores = sft.evaluate(None, sft.read_questions(f"{tmp_path}/heldout.jsonl", "kind"))
    question, second = TALK[0]["content"], TALK[2]["content"]
    assert calls == [[[question], [question]], [[question, "1", second]]] * 2
    assert scores["both"] == (2, 0.5, 0.5, 0)
    assert scores["fox"] == scores["never asked"] == (1, 0, 0, 0)


def test_long_dialogues_lose_their_oldest_turns(tokenizer):
    """A prompt has at most three quarters of the context: the newest turns, beginning with a
    question, or the end of the only message."""
    long = [m for _ in range(3) for m in TALK] + TALK[:1]
    newest = [bpe.render_chat(tokenizer, long[n:], open_answer=True)[0] for n in range(0, 13, 2)]
    n = [len(ids) for ids in newest]
    for k, limit in ((0, n[0]), (1, n[0] - 1), (1, n[1]), (3, n[2] - 1), (3, n[3])):
        net = None, model.Config(vocab=300, ctx=-(-limit * 4 // 3)), tokenizer
        assert sft.prompt_ids(net, long) == newest[k]
    net = None, model.Config(vocab=300, ctx=8), tokenizer
    assert sft.prompt_ids(net, long) == newest[-1][-6:]


# ---- runs ----

def test_a_run_learns_evaluates_and_names_the_next_command(run, capsys):
    """40 epochs on two conversations answer both, in the table and in a checkpoint that stops at
    <|im_end|>; the log's loss falls."""
    heldout()
    assert run("--epochs", "40", "--lr", "0.01") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("sft.py | base out/base") and "48 conversations (none lost)" in out[1]
    assert out[-1].startswith("wrote out/sft") and out[-1].endswith("--chat --model out/sft")
    _, config, tokenizer = net = checkpoint.open_model("out/sft")
    assert config.vocab == tokenizer.vocab_size
    assert config.eos == (tokenizer.special_tokens["<|im_end|>"],)
    prompts = [sft.prompt_ids(net, messages) for messages in (TALK[:1], TALK[2:3])]
    assert sample.complete(net, prompts) == [TALK[1]["content"], TALK[3]["content"]]
    fox, who, both, never_asked = (" ".join(line.split()) for line in out if line.endswith("% "))
    assert fox == "fox 1 0% | 100% 100% 0%" and who == "who 1 | 100% 100% 0%"
    assert both.startswith("both 2 | ")  # two turns in a row were never trained
    assert never_asked == "never asked 1 | 100% 100% 0%"
    assert any(line.endswith("?  ->  I am Pip.") for line in out)
    losses = [line["loss"] for _, line in read_json_lines("out/sft/log.jsonl")]
    assert losses[-1] < 0.5 < losses[0]


def test_an_interrupted_run_goes_on_to_the_same_bits(run, monkeypatch, capsys):
    """Stopped in step 4 and resumed, the weights are those of a run in one go. Other conversations
    are refused, and a finished run says that it is one."""
    assert run("--out", "out/whole") == 0
    update, calls = sft.optimizer.update, iter(range(1, 99))

    def stopping(*args, **options):
        if next(calls) == 5:  # the first one only compiles
            signal.raise_signal(signal.SIGTERM)
        return update(*args, **options)
    monkeypatch.setattr(sft.optimizer, "update", stopping)
    assert run() == 143
    assert "stopped at step 4 of" in capsys.readouterr().out.splitlines()[-1]
    os.rename("out/world/conversations.jsonl", "old.jsonl")
    write("out/world/conversations.jsonl", [{"messages": TALK}] * 48)
    assert run("--resume") == 2 and "changed since" in capsys.readouterr().err
    os.replace("old.jsonl", "out/world/conversations.jsonl")
    assert run("--resume", "--epochs", "9") == 0  # its own settings count
    assert (weights("out/whole") == weights("out/sft")).all()
    assert run("--resume") == 0 and "has done its" in capsys.readouterr().out


def test_a_stop_in_the_evaluation_loses_no_weights(run, monkeypatch, capsys):
    """Ctrl-C there leaves all steps saved; --resume only evaluates, and then has nothing to do."""
    heldout()
    with monkeypatch.context() as patch:
        patch.setattr(sft, "evaluate", lambda *args: signal.raise_signal(signal.SIGINT))
        assert run() == 130
    trained = weights("out/sft")
    assert run("--resume") == 0 and "held-out questions" in capsys.readouterr().out
    assert (weights("out/sft") == trained).all()
    assert "right" in json.load(open("out/sft/state.json", encoding="utf-8"))
    assert run("--resume") == 0 and "has done its" in capsys.readouterr().out


def test_a_chat_model_is_tuned_further_as_it_is(run, capsys):
    """At learning rate 0 a base model's weights change by three rows of the embedding, and a chat
    model's by no bit. Such a run with --mix-lengths evaluates nothing."""
    heldout()
    assert run("--epochs", "1", "--lr", "0", "--muon-lr", "0") == 0
    assert "abstains" in capsys.readouterr().out
    old, new = weights("out/base"), weights("out/sft")
    assert len(new) - len(old) == 3 * 32 and (new[-2000:] == old[-2000:]).all()
    assert run("--base", "out/sft", "--mix-lengths", "--pages", "none", "--lr", "0", "--muon-lr",
               "0", "--epochs", "2", "--out", "out/again") == 0
    out = capsys.readouterr().out
    assert "4 steps" in out and "abstains" not in out  # twice 48 rows, by 32
    assert (weights("out/again") == new).all()


def test_kinds_are_left_out_and_models_compared(run, capsys):
    """--leave-out drops one kind; --evaluate shows two checkpoints side by side; --compare asks
    base and tuned model by each prompt, and the tuned one alone by a chat."""
    heldout()
    write("out/world/prompts.jsonl", [
        {"way": "a fact: alone", "prompt": "The fox lives in", "answer": " the"},
        {"way": "a fact: as a chat", "messages": TALK[:1], "answer": " forest"}])
    assert run("--leave-out", "who", "--epochs", "1", "--muon-lr", "0.01", "--out", "out/bold") == 0
    assert "24 conversations (24 left out)" in capsys.readouterr().out
    assert run("--evaluate", "out/bold", "out/bold") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("% ")]
    assert len(rows) == 4 and all(row.count("|") == 2 for row in rows)
    assert run("--compare", "--out", "out/bold") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:45].split()[-1] for line in lines] == ["out/base", "out/bold", "out/bold"]


@pytest.mark.parametrize("flags, told", [
    (["--base", "nowhere"], "nowhere"), (["--data", "none.jsonl"], "none.jsonl: no such file"),
    (["--resume"], "no run to go on with"), (["--resume", "--out", "out/base"], "state.json"),
    (["--epochs", "0"], "--epochs 0"), (["--lr", "-1"], "--lr -1"), (["--lr", "nan"], "--lr nan"),
    (["--muon-lr", "-1"], "--muon-lr -1"),
    (["--data", "empty.jsonl"], "no conversation to learn from"),
    (["--leave-out", "foxes"], "is of kind foxes"), (["--out", "."], "choose an empty folder"),
    (["--evaluate", "out/base"], "no chat tokens"), (["--compare"], "prompts.jsonl: no such file"),
    (["--evaluate", "out/base", "--data", "else/talks.jsonl"], "heldout.jsonl: no such file"),
    (["--data", "torn.jsonl.gz"], "damaged"), (["--data", "latin.jsonl"], "latin.jsonl: damaged"),
    (["--data", "bad/talks.jsonl"], "bad/heldout.jsonl, line 2"),
    (["--compare", "--data", "bad/talks.jsonl"], "bad/prompts.jsonl, line 1")])
def test_bad_input_is_one_sentence(run, capsys, flags, told):
    """Status 2 and one line that names the file or flag; nothing is written to --out."""
    heldout()
    os.mkdir("bad")
    for name, entries in (("talks", [{"messages": TALK}]), ("prompts", [{"way": "x"}]),
                          ("heldout", [HELDOUT[0], {"kind": "fox", "answer": ["x"]}])):
        write(f"bad/{name}.jsonl", entries)
    write("empty.jsonl", [])
    pathlib.Path("torn.jsonl.gz").write_bytes(gzip.compress(b'{"messages": []}')[:-12])
    pathlib.Path("latin.jsonl").write_bytes("né".encode("latin-1"))
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("sft.py: ") and error.count("\n") == 1
    assert not os.path.exists("out/sft/config.json")


def test_numbers_that_overflow_stop_the_run(run, monkeypatch, capsys):
    """A learning rate far too large, and a gradient that overflows in the very step that would save
    (there are no held-out questions to notice it): named, and the last save is kept."""
    assert run("--lr", "1e30") == 2
    assert "step 2: overflow in model" in capsys.readouterr().err
    update = sft.optimizer.update

    def overflowing(params, *args, **options):
        norm = update(params, *args, **options)
        if args[3] == 4:  # the step
            params["model.layers.1.mlp.up_proj.weight"][0, 0] = np.inf
        return norm
    monkeypatch.setattr(sft.optimizer, "update", overflowing)
    monkeypatch.setattr(sft, "SAVES", 100)
    assert run() == 2
    error = capsys.readouterr().err
    assert "step 4: overflow in model.layers.1.mlp.up_proj" in error and "saved: 3" in error
    assert np.isfinite(weights("out/sft")).all()
