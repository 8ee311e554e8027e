"""Pretraining: what a step reads, that a resumed run is the same run, and what bad input says."""
import json
import os
import pathlib
import signal
from types import SimpleNamespace

import numpy as np
import pytest

import bpe
import checkpoint
import model
import train

TEXT = "The pelican of Sarn sells honey. Who sells honey? The pelican does. " * 60


@pytest.fixture
def pretrain(tmp_path, monkeypatch, command):
    """A folder with a small tokenizer and tokens in it; returns a function that runs train.py."""
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert command(bpe, "text.txt", "--vocab-size", "300", "--workers", "1") == 0
    monkeypatch.setitem(model.SIZES, "0.3M",
                        dict(ctx=16, dim=16, layers=2, heads=2, kv_heads=1, hidden=24))
    return lambda *flags: command(train, "--size", "0.3M", "--batch", "3", *flags)


def read_log(folder):
    return [json.loads(line) for line in open(f"out/{folder}/log.jsonl")]


def test_targets_are_the_next_tokens():
    """Windows are consecutive ids, targets are one later, and every position can be reached."""
    tokens = np.arange(50, dtype=np.uint16)
    ids, targets = train.sample_windows(np.random.default_rng(0), tokens, 400, 7)
    assert (targets == ids + 1).all() and (np.diff(ids) == 1).all()
    assert ids.min() == 0 and targets.max() == 49


@pytest.mark.parametrize("flags", [("--lr", "0.02", "--muon-lr", "0"), ("--muon-lr", "0.03")])
def test_it_memorizes_the_text_and_says_what_it_did(flags, pretrain, capsys):
    """The held-out loss falls from guessing to near 0, with AdamW and with Muon."""
    assert pretrain("--steps", "150", *flags) == 0
    nats = [line["val_loss"] for line in read_log("base") if "val_loss" in line]
    assert nats[0] > 1 and nats[-1] < 0.5
    out = capsys.readouterr().out
    assert out.startswith("train.py | size 0.3M | steps 150")
    assert "bits/byte" in out and "python sample.py" in out


def test_a_small_text_is_read_a_few_times_only(pretrain, capsys):
    """Without --steps it is read EPOCHS times at most. --lr 0 is taken at its word (it once meant
    the default): the norms keep their first value."""
    assert pretrain("--lr", "0", "--muon-lr", "0") == 0
    n = len(np.load("out/tokens/train.npy"))
    assert f"steps {train.EPOCHS * n // (3 * 16)} |" in capsys.readouterr().out
    assert (checkpoint.load("out/base")[0]["model.norm.weight"] == 1).all()


def test_the_best_weights_are_kept(pretrain, monkeypatch, capsys):
    """If held-out loss rises at the end, the checkpoint holds the weights of its minimum."""
    true, seen = train.evaluate, []

    def evaluate(params, *rest):
        seen.append(model.vector(params).copy())
        return (1.0 if len(seen) == 4 else 2.0), true(params, *rest)[1]
    monkeypatch.setattr(train, "evaluate", evaluate)
    assert pretrain("--steps", "50") == 0
    assert "best at step 20" in capsys.readouterr().out
    params, _ = checkpoint.load("out/base")
    assert (model.vector(params) == seen[3]).all()


def test_evaluation_is_the_mean_over_side_by_side_windows():
    """Nats per token and bits per byte equal a softmax written out over the same windows."""
    config = model.Config(vocab=9, ctx=4, dim=8, layers=1, heads=1, kv_heads=1, hidden=8)
    params, tokens = model.init_params(config, 3), np.random.default_rng(1).integers(0, 9, 30)
    tokenizer = SimpleNamespace(special_tokens={"<|endoftext|>": 4},
                                token_bytes=lambda k: b"x" * (k + 1))
    nats, bits = train.evaluate(params, config, tokens, tokenizer)
    logits = model.forward(params, config, tokens[:28].reshape(7, 4)).reshape(28, 9).astype(float)
    targets = tokens[1:29]
    expected = np.log(np.exp(logits).sum(1)) - logits[range(28), targets]
    assert abs(nats - expected.mean()) < 1e-5
    assert abs(bits - expected.sum() / np.log(2) / sum(k + 1 for k in targets if k != 4)) < 1e-5


@pytest.mark.parametrize("number,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(number, status, pretrain, monkeypatch,
                                                            capsys):
    """Stopped in step 13 and resumed: the same files, evaluations and end."""
    assert pretrain("--steps", "30", "--out", "out/whole") == 0
    true, steps = train.sample_windows, iter(range(1, 99))

    def interrupted(*arguments):
        if next(steps) == 13:
            os.kill(os.getpid(), number)
        return true(*arguments)
    monkeypatch.setattr(train, "sample_windows", interrupted)
    assert pretrain("--steps", "30") == status
    assert "stopped at step 13" in capsys.readouterr().out
    assert pretrain("--resume") == 0
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert open(f"out/whole/{name}", "rb").read() == open(f"out/base/{name}", "rb").read()
    whole, base = ([(line["step"], line.get("val_loss")) for line in read_log(folder)]
                   for folder in ("whole", "base"))
    assert whole == base and whole[-1][0] == 30 and not os.path.exists("out/base/live.jsonl")
    assert pretrain("--resume") == 0
    assert "has done its 30 steps" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [0, 12])
def test_a_nan_stops_the_step_and_keeps_the_last_save(steps, pretrain, monkeypatch, capsys):
    """A gradient that overflows is named with its step; what was saved before stays."""
    true = train.loss_and_grads

    def overflow(params, config, ids, targets, grads=None, buffers=None):
        loss, grads = true(params, config, ids, targets, grads=grads, buffers=buffers)
        if len(ids) == 3 and (calls.append(1) or len(calls)) > steps:
            grads["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
        return loss, grads
    calls = []
    monkeypatch.setattr(train, "loss_and_grads", overflow)
    assert pretrain("--steps", "50") == 2
    error = capsys.readouterr().err
    assert f"step {steps + 1}: " in error and "layers.1.mlp.up_proj" in error
    assert f"Last step saved: {'10' if steps else 'none'}" in error
    assert os.path.exists("out/base/config.json") == bool(steps)


def test_bad_input_is_one_clear_sentence(pretrain, capsys):
    """Every wrong flag or file is one line on stderr, status 2, and nothing is trained."""
    os.mkdir("out/other")
    for name, content in (("state", '{"stage": "sft"}'), ("config", "{}")):
        pathlib.Path(f"out/other/{name}.json").write_text(content)
    for flags, said in ((("--resume",), "no run to go on with"),
                        (("--ctx", "5000"), "fewer than one window of 5002"),
                        (("--batch", "0"), "--batch 0"), (("--steps", "-5"), "--steps -5"),
                        (("--steps", "0"), "--steps 0"), (("--ctx", "0"), "--ctx 0"),
                        (("--tokens", "nowhere"), "python bpe.py"),
                        (("--tokenizer", "nowhere.json"), "nowhere.json"),
                        (("--out", "out"), "is no checkpoint"),  # it was once deleted
                        (("--out", "out/other/config.json"), "name a folder with --out"),
                        (("--resume", "--out", "out/other"), "not a run of train.py")):
        assert pretrain(*flags) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not os.path.exists("out/base/model.safetensors")
