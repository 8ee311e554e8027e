"""Pretraining: what a step does, that a resumed run is the same run, and what bad input says."""
import json
import os
import signal
import sys

import numpy as np
import pytest

import bpe
import model
import train

TEXT = "The pelican of Sarn sells honey. Who sells honey? The pelican does. " * 60


@pytest.fixture
def room(tmp_path, monkeypatch, command):
    """A folder with a small tokenizer and tokens in it; returns a function that runs train.py."""
    tokenizer = bpe.train([TEXT], 300, (bpe.END,))
    os.makedirs(tmp_path / "out/tokens")
    tokenizer.save(str(tmp_path / "out/tokenizer.json"))
    for name in ("train", "val"):
        np.save(tmp_path / f"out/tokens/{name}.npy", np.array(tokenizer.encode(TEXT), np.uint16))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model.SIZES, "0.3M",
                        dict(ctx=16, dim=16, layers=2, heads=2, kv_heads=1, hidden=24))

    return lambda *flags: command(train, "--size", "0.3M", "--batch", "3", *flags)


def test_learning_rate_rises_and_falls_to_zero():
    rates = [train.learning_rate(step, 100, 2.0) for step in range(101)]
    assert rates[0] == 2 / 5 and rates[4] == 2 and rates[-1] == 0
    assert all(a < b for a, b in zip(rates[:5], rates[1:5]))
    assert all(a > b for a, b in zip(rates[5:], rates[6:]))
    assert train.learning_rate(0, 1, 2.0) == 2  # a run of one step learns something


def test_targets_are_the_next_tokens():
    tokens = np.arange(50, dtype=np.uint16)
    ids, targets = train.draw_windows(np.random.default_rng(0), tokens, 400, 7)
    assert (targets == ids + 1).all() and (np.diff(ids) == 1).all()
    assert ids.min() == 0 and targets.max() == 49  # every place of the text can be drawn


def test_a_long_gradient_is_cut_to_length_one():
    config = model.Config(vocab=5, ctx=4, dim=4, layers=1, heads=1, kv_heads=1, hidden=4)
    grads = model.init_params(config, 1)
    for factor, length in ((100, 1.0), (0.001, None)):
        model.vector(grads)[:] *= factor
        params, optimizer = model.init_params(config), train.Optimizer(grads, config)
        norm = optimizer.step(params, grads, 1, 0.1)
        assert abs(norm / np.linalg.norm(model.vector(grads)) - 1) < 1e-5
        taken = np.linalg.norm(optimizer.m1) / (1 - train.BETA1)
        assert abs(taken - (length or norm)) < 1e-4


def test_it_learns_the_text_by_heart_and_says_what_it_did(room, capsys):
    assert room("--steps", "150", "--lr", "0.02") == 0
    lines = [json.loads(line) for line in open("out/base/log.jsonl")]
    nats = [line["val_loss"] for line in lines if "val_loss" in line]
    assert nats[0] > 1.5 and nats[-1] < 0.5
    out = capsys.readouterr().out
    assert out.startswith("size 0.3M steps 150")
    assert "bits/byte" in out and "python sample.py" in out


def test_evaluation_is_the_mean_over_side_by_side_windows():
    config = model.Config(vocab=9, ctx=4, dim=8, layers=1, heads=1, kv_heads=1, hidden=8)
    params, tokens = model.init_params(config, 3), np.random.default_rng(1).integers(0, 9, 30)
    token_bytes = np.arange(1, 10)
    nats, bits = train.evaluate(params, config, tokens, token_bytes, model.Buffers(config, 2, 4))
    logits = model.forward(params, config, tokens[:28].reshape(7, 4)).reshape(28, 9).astype(float)
    targets = tokens[1:29]
    expected = np.log(np.exp(logits).sum(1)) - logits[range(28), targets]
    assert abs(nats - expected.mean()) < 1e-5
    assert abs(bits - expected.sum() / np.log(2) / token_bytes[targets].sum()) < 1e-5


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(room, monkeypatch, capsys):
    assert room("--steps", "30", "--out", "out/whole") == 0
    draw, calls = train.draw_windows, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 13:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of a step
        return draw(*arguments)
    monkeypatch.setattr(train, "draw_windows", interrupted)
    assert room("--steps", "30") == 0
    assert "stopped at step 13" in capsys.readouterr().out
    assert room("--resume") == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert open(f"out/whole/{name}", "rb").read() == open(f"out/base/{name}", "rb").read()
    steps = [json.loads(line)["step"] for line in open("out/base/log.jsonl")]
    assert steps == sorted(steps) and steps[-1] == 30


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_save(room, monkeypatch, capsys):
    assert room("--steps", "10") == 0
    before = open("out/base/model.safetensors", "rb").read()
    monkeypatch.setattr(train, "loss_and_grads", lambda *a, **k: (float("nan"), None))
    monkeypatch.setattr(train, "first_call", lambda *a: 1e9)
    assert room("--steps", "10") == 2
    assert "step 1: the loss is nan" in capsys.readouterr().err
    assert open("out/base/model.safetensors", "rb").read() == before


def test_bad_input_is_one_clear_sentence(room, capsys):
    def said(*flags):
        assert room(*flags) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err
    assert "no run to go on with" in said("--resume")
    assert "fewer than one window" in said("--ctx", "5000")
    assert "python bpe.py" in said("--tokens", "nowhere")
    assert "nowhere.json" in said("--tokenizer", "nowhere.json")
    os.mkdir("out/other")
    with open("out/other/state.json", "w") as file:
        file.write('{"stage": "sft"}')
    assert "not a run of train.py" in said("--resume", "--out", "out/other")
    np.save("out/tokens/train.npy", np.full(1000, 300, np.uint16))
    assert "token 300 is not in the vocabulary of 288" in said()
    assert not os.path.exists("out/base/model.safetensors")
