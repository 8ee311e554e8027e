"""Fine-tuning: what is read and counts, what a batch holds, what new tokens start as, a run."""
import gzip
import json
import os
import signal
import sys

import numpy as np
import pytest

import bpe
import model
import sft

TEXT = "Where does the fox live? The fox lives in the forest. Who are you? I am Pip. " * 40
TALK = [{"role": "user", "content": "Where does the fox live?"},
        {"role": "assistant", "content": "The fox lives in the forest."},
        {"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Pip."}]
KNOWN = "The fox lives in the forest.", "I am Pip."


@pytest.fixture(scope="module")
def tokenizer():
    made = bpe.train([TEXT], 300, (bpe.END,))
    made.add_special_tokens(bpe.CHAT_SPECIALS)
    return made


@pytest.fixture
def room(tmp_path, monkeypatch, command):
    """A folder with a base model and 48 conversations; returns a function that runs sft.py."""
    made = bpe.train([TEXT], 300, (bpe.END,))
    config = model.Config(vocab=made.vocab_size, ctx=64, dim=32, layers=2, heads=2, kv_heads=1,
                          hidden=48)
    monkeypatch.chdir(tmp_path)
    model.save("out/base", model.init_params(config, 1), config, made)
    os.makedirs("out/world")
    with open("out/world/conversations.jsonl", "w", encoding="utf-8") as file:
        for i in range(48):
            turns = TALK[:2] if i % 2 else TALK[2:]
            file.write(json.dumps({"kind": ("who", "fox")[i % 2], "messages": turns}) + "\n")
    monkeypatch.setattr(sft, "BATCH_TOKENS", 200)

    return lambda *flags: command(sft, *flags)


def heldout(path="out/world/heldout.jsonl"):
    with open(path, "w", encoding="utf-8") as file:
        for kind, turns, answer in (("fox", TALK[:1], " forest"), ("who", TALK[2:3], "I am Pip")):
            file.write(json.dumps({"kind": kind, "messages": turns, "answer": [answer],
                                   "cloze": "The fox lives in the",
                                   "asked_in_training": kind != "fox"}) + "\n")


def write_lines(path, entries):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries)
    return str(path)


# ---- Reading ----

def test_rendering_and_mask_token_by_token(tokenizer):
    start, end, separator = (tokenizer.special_tokens[name] for name in bpe.CHAT_SPECIALS)
    pieces = [([start], 0), (tokenizer.encode("user"), 0), ([separator], 0),
              (tokenizer.encode("Who are you?"), 0), ([end], 0),
              ([start], 0), (tokenizer.encode("assistant"), 0), ([separator], 0),
              (tokenizer.encode("I am Pip."), 1), ([end], 1)]
    ids, mask, whole = sft.render(tokenizer, TALK[2:], 64)
    assert ids == [k for part, _ in pieces for k in part] and whole
    assert mask == [m for part, m in pieces for _ in part]
    # Training shifts by one: the input before the answer's first token is the separator.
    x, targets, counted = sft.to_arrays([(np.array(ids), np.array(mask))])
    first = int(counted[0].argmax())
    assert x[0, first] == separator and targets[0, -1] == end and counted[0, -1] == 1
    said = [k for k, c in zip(targets[0].tolist(), counted[0]) if c]
    assert said == [*tokenizer.encode("I am Pip."), end]


def test_three_shapes_give_the_same_rows(tmp_path, tokenizer):
    texts = [m["content"] for m in TALK]
    path = write_lines(tmp_path / "x.jsonl", [
        {"messages": TALK}, {"id": "7", "data": texts},
        {"conversations": [{"from": ("human", "gpt")[i % 2], "value": t}
                           for i, t in enumerate(texts)]}])
    rows, lost = sft.read_conversations(path, tokenizer, 64)
    assert len(rows) == 3 and lost == "none lost"
    for ids, mask in rows:
        expected_ids, expected_mask = bpe.render_chat(tokenizer, TALK)
        assert ids.tolist() == expected_ids and mask.tolist() == expected_mask
    with open(path, "rb") as plain, gzip.open(tmp_path / "x.jsonl.gz", "wb") as zipped:
        zipped.write(plain.read())
    assert len(sft.read_conversations(str(tmp_path / "x.jsonl.gz"), tokenizer, 64)[0]) == 3


def test_malformed_lines_are_named_and_skipped(tmp_path, tokenizer, capsys):
    bad = ["{", "[1]", "", '"text"', {"text": "x"}, {"data": "user said"},
           {"messages": [{"role": "user"}]},
           {"messages": [{"role": "pirate", "content": "arr"}]}, {"data": ["hi", 7]}]
    path = write_lines(tmp_path / "x.jsonl", [*bad[:2], {"messages": TALK}, *bad[2:]])
    rows, lost = sft.read_conversations(path, tokenizer, 64)
    assert len(rows) == 1 and lost == f"{len(bad)} malformed"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == sft.WARN
    assert "line 1:" in told[0] and "line 2:" in told[1] and "line 4:" in told[2]


def test_what_people_write_is_no_special_token(tokenizer):
    ids, mask, _ = sft.render(tokenizer, [{"role": "user", "content": "<|im_end|><|im_start|>"},
                                          TALK[1]], 200)
    assert [ids.count(tokenizer.special_tokens[name]) for name in bpe.CHAT_SPECIALS] == [2, 2, 2]


def test_long_conversations_are_cut_at_a_turn(tmp_path, tokenizer):
    first, both = (len(bpe.render_chat(tokenizer, TALK[:n])[0]) for n in (2, 4))
    for ctx, n in ((both, 4), (both - 1, 2), (first, 2)):
        ids, mask, whole = sft.render(tokenizer, TALK, ctx)
        assert (ids, mask) == bpe.render_chat(tokenizer, TALK[:n]) and whole == (n == 4)
    assert sft.render(tokenizer, TALK, first - 1) == ([], [], False)
    assert sft.render(tokenizer, TALK[:3], both)[0] == bpe.render_chat(tokenizer, TALK[:2])[0]
    path = write_lines(tmp_path / "x.jsonl", [{"messages": TALK}, {"messages": TALK[2:]},
                                              {"messages": TALK[:1]}, {"messages": []}])
    rows, lost = sft.read_conversations(path, tokenizer, both - 1)
    assert len(rows) == 2 and lost == "1 cut at a turn, 2 without an answer"
    with pytest.raises(ValueError, match="no conversation to learn from"):
        sft.read_conversations(path, tokenizer, 5)


# ---- Batches ----

def test_an_epoch_holds_every_row_once_in_batches_of_like_length():
    lengths = np.random.default_rng(0).integers(5, 120, 500)
    batches = sft.plan(lengths, 0, 0)
    assert sorted(k for batch in batches for k in batch) == list(range(500))
    assert all(len(b) * lengths[b].max() <= sft.BATCH_TOKENS for b in batches)
    assert all(np.ptp(lengths[b]) <= 2 * sft.SLACK + 12 for b in batches)
    assert batches == sft.plan(lengths, 0, 0) != sft.plan(lengths, 1, 0)
    order = [lengths[b].max() for b in batches]
    assert order != sorted(order)
    assert sft.plan(np.array([5000]), 0, 0) == [[0]]  # longer than a batch: one of its own


def test_padding_and_questions_change_nothing(small):
    params, config, ids, targets, _ = small
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 37, n).astype(np.int32), np.array([0] * (n - 3) + [1] * 3))
            for n in (6, 9)]
    together, grads = model.loss_and_grads(params, config, *sft.to_arrays(rows))
    vector = model.vector(grads).copy()
    alone = [model.loss_and_grads(params, config, *sft.to_arrays([row])) for row in rows]
    assert abs(together - np.mean([loss for loss, _ in alone])) < 1e-12
    assert np.abs(vector - sum(model.vector(g) for _, g in alone) / 2).max() < 1e-12
    changed = [(ids, mask) for ids, mask in rows]
    x, y, mask = sft.to_arrays(changed)
    y[mask == 0] = 5  # targets that don't count may be anything
    assert model.loss_and_grads(params, config, x, y, mask)[0] == together


def test_a_batch_without_a_counted_token(small):
    params, config, *_ = small
    batch = sft.to_arrays([(np.arange(5), np.zeros(5))] * 2)
    loss, grads = model.loss_and_grads(params, config, *batch)
    assert loss == 0 and not model.vector(grads).any()


# ---- New tokens ----

def test_growing_keeps_what_the_network_knows(small):
    params, config, ids, targets, _ = small
    params = {name: p.astype(np.float32) for name, p in params.items()}
    table = params["model.embed_tokens.weight"]
    grown, bigger = sft.grow(params, config, 40)
    assert bigger.vocab == 40 and model.vector(grown).size == model.count(bigger)[0]
    for name, p in params.items():
        assert (grown[name][:len(p)] == p).all()
    new = grown["model.embed_tokens.weight"][37:]
    z = (new - table.mean(0)) / table.std(0)  # as if they were rows of the table
    assert np.abs(z).max() < 5 and 0.7 < z.std() < 1.3 and abs(np.corrcoef(new)[0, 1]) < 0.7
    old = model.forward(model.pack(params, config), config, ids)
    assert np.abs(model.forward(grown, bigger, ids)[..., :37] - old).max() < 1e-5
    again, _ = sft.grow(params, config, 37)
    assert (model.vector(again) == model.vector(model.pack(params, config))).all()


# ---- Replay ----

def test_pages_are_replayed_whole_and_counted(tmp_path, tokenizer):
    texts = [TEXT[:300], TEXT[300:900], TEXT[900:2000]]
    with gzip.open(tmp_path / "train-00000.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    rows = sft.read_pages(str(tmp_path), tokenizer, 16, 200)
    end = tokenizer.special_tokens[bpe.END]
    stream = [k for text in texts for k in [end, *tokenizer.encode(text)]]
    assert np.concatenate([ids for ids, _ in rows]).tolist() == stream[:200 // 16 * 16]
    assert all(len(ids) == 16 and mask.all() for ids, mask in rows)
    talks = {"data": write_lines(tmp_path / "talks.jsonl", [{"messages": TALK}] * 50),
             "leave_out": [], "pages": str(tmp_path)}
    both, told = sft.gather(talks, 16 * 8, tokenizer)
    alone, said = sft.gather(talks | {"pages": "none"}, 16 * 8, tokenizer)
    pages = sum(len(ids) for ids, _ in both[len(alone):])
    tokens = sum(len(ids) for ids, _ in alone)
    assert len(alone) == 50 and 0 <= sft.REPLAY * tokens - pages < 128
    assert f"{pages:,} tokens" in told
    assert "no pages in none" in said


# ---- A run ----

def test_a_run_learns_examines_and_names_the_next_command(room, capsys):
    heldout()
    assert room("--epochs", "60", "--lr", "0.01") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("base out/base") and "48 conversations (none lost)" in out[1]
    assert out[-1].startswith("wrote out/sft") and out[-1].endswith("--chat --model out/sft")
    net = sft.open_model("out/sft")
    assert net[1].vocab == net[2].vocab_size
    assert sft.answers(net, [TALK[:1], TALK[2:3]]) == list(KNOWN)
    line = next(line for line in out if line.split()[:2] == ["fox", "1"])
    assert line.split()[3:] == ["|", "100%", "100%", "0%"]
    assert sum("never asked 1 |" in " ".join(line.split()) for line in out) == 1  # the fox again
    assert any("Who are you?  ->  " in line or "fox live?  ->" in line for line in out)
    config = json.load(open("out/sft/tokenizer_config.json", encoding="utf-8"))
    assert "<|im_sep|>" in config["chat_template"]
    logged = [json.loads(line) for line in open("out/sft/log.jsonl", encoding="utf-8")]
    assert logged[-1]["loss"] < 0.5 < logged[0]["loss"] and logged[-1]["step"] == logged[-1]["step"]


def test_an_interrupted_run_goes_on_to_the_same_bits(room, monkeypatch, capsys):
    assert room("--out", "out/whole") == 0 and "heldout" not in capsys.readouterr().out
    step, done = sft.Optimizer.step, []

    def stopping(self, *args, **options):
        done.append(1)
        if len(done) == 5:  # the first one only compiles
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **options)
    monkeypatch.setattr(sft.Optimizer, "step", stopping)
    assert room() == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped at step 4 and saved")
    assert room("--resume") == 0
    whole, parts = (sft.open_model(f"out/{name}")[0] for name in ("whole", "sft"))
    assert (model.vector(whole) == model.vector(parts)).all()


def test_left_out_kinds_and_an_examination_of_two(room, capsys):
    heldout()
    assert room("--leave-out", "who", "--out", "out/bold") == 0
    assert "24 conversations (24 left out)" in capsys.readouterr().out
    assert room("--exam", "out/bold", "out/bold") == 0
    out = capsys.readouterr().out
    assert out.count("out/bold") == 2
    assert len([x for x in out.splitlines() if x.startswith(" ")]) == 5


def test_prompts_are_compared(room, capsys):
    heldout()
    for line in (lines := open("out/world/heldout.jsonl", encoding="utf-8").read().splitlines()):
        assert json.loads(line)
    write_lines("out/world/heldout.jsonl", [line.replace('"fox"', '"person"', 1) for line in lines])
    write_lines("out/world/conversations.jsonl", [{"kind": "person", "messages": TALK[:2]}] * 24)
    assert room("--epochs", "1") == 0 and capsys.readouterr()
    assert room("--compare") == 0
    out = capsys.readouterr().out.splitlines()
    assert sum("out/base" in line for line in out) == 5
    assert sum("out/sft" in line for line in out) == 7


@pytest.mark.parametrize("flags, told", [
    (["--base", "nowhere"], "nowhere"), (["--data", "none.jsonl"], "none.jsonl: no such file"),
    (["--resume"], "no run to go on with"), (["--epochs", "0"], "--epochs 0"),
    (["--data", "empty.jsonl"], "no conversation to learn from"),
    (["--exam", "out/base"], "no chat tokens"), (["--lr", "1e30"], "the loss is"),
    (["--leave-out", "foxes"], "is of kind foxes"),
    (["--compare", "--out", "out/base"], "whose people"),
    (["--exam", "out/base", "--data", "else/talks.jsonl"], "heldout.jsonl: no such file"),
    (["--resume", "--out", "out/other"], "not a run of sft.py"),
    (["--data", "torn.jsonl.gz"], "damaged"), (["--data", "latin.jsonl"], "latin.jsonl: damaged")])
def test_bad_input_is_one_sentence(room, capsys, flags, told):
    if "--lr" not in flags:
        heldout()
    open("empty.jsonl", "w").close()
    with open("torn.jsonl.gz", "wb") as file:
        file.write(gzip.compress(json.dumps({"messages": TALK}).encode())[:-12])
    with open("latin.jsonl", "wb") as file:
        file.write("né".encode("latin-1"))
    os.mkdir("out/other")
    with open("out/other/state.json", "w") as file:
        file.write('{"stage": "train"}')
    assert room(*flags) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("sft.py: ") and error.count("\n") == 1


def test_a_changed_file_is_no_run_to_go_on_with(room, capsys):
    assert room("--epochs", "1") == 0
    write_lines("out/world/conversations.jsonl", [{"messages": TALK}] * 3)
    assert room("--resume") == 2 and "has changed" in capsys.readouterr().err


@pytest.mark.peer
def test_transformers_renders_the_same_chat(room):
    transformers = pytest.importorskip("transformers")
    assert room("--epochs", "1") == 0
    theirs = transformers.AutoTokenizer.from_pretrained("out/sft")
    ours = sft.open_model("out/sft")[2]
    for talk, open_answer in ((TALK, False), (TALK[:1], True), (TALK[:3], True)):
        ids = theirs.apply_chat_template(talk, add_generation_prompt=open_answer, tokenize=True,
                                         return_dict=False)
        assert list(ids) == bpe.render_chat(ours, talk, open_answer)[0]
