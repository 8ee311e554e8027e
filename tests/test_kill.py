"""Kill it anywhere: train.py, sft.py and rl.py end with the bits of a run that nobody disturbed.

Each run is killed by SIGKILL, at a call that changes the disk or at any moment, and started again
with --resume (from the beginning where nothing was saved). data.py and bpe.py have their own in
test_data.py and test_bpe.py.
"""
import json
import os
import random
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Runs a script with a tiny network. With KILL=n it dies before the nth call that changes the disk;
# with KILL=-n before the nth training step.
START = """
import os, sys
sys.path.insert(0, os.getcwd() if os.path.exists("train.py") else sys.argv.pop(1))
import model, train, sft, rl
model.SIZES["0.3M"] = dict(ctx=64, dim=16, layers=1, heads=2, kv_heads=1, hidden=24)
rl.RECIPES["answer"] |= {"questions": 2, "iterations": 8}
rl.GROUP, rl.EVALUATED, rl.PAUSES = 4, 2, 4
rl.MAX_NEW = 8
kill, calls = int(os.environ.get("KILL", 0)), [0]
def dying(function):
    def call(*arguments, **named):
        calls[0] += 1
        if calls[0] == abs(kill):
            os.kill(os.getpid(), 9)
        return function(*arguments, **named)
    return call
if kill > 0:
    for name in ("rename", "replace", "remove", "makedirs", "fsync"):
        setattr(os, name, dying(getattr(os, name)))
if kill < 0:
    train.sample_windows, sft.to_arrays, rl.rollout = map(dying, (
        train.sample_windows, sft.to_arrays, rl.rollout))
script = sys.argv.pop(1)
sys.argv[0] = script + ".py"
sys.exit({"train": train, "sft": sft, "rl": rl}[script].main())
"""
COMMANDS = {
    "train": ("out/base", ["--size", "0.3M", "--batch", "2", "--steps", "40", "--facts", "none"]),
    "sft": ("out/sft", ["--data", "talks.jsonl", "--pages", "none", "--epochs", "3"]),
    "rl": ("out/rl", ["--problems", "sums.jsonl", "--final", "sums.jsonl"])}


def start(script, folder, *flags, kill=0, seconds=None, threads=1):
    """The exit status of a script in folder; it may be killed after some seconds."""
    command = [sys.executable, "-c", START, ROOT, script, *flags]
    environment = os.environ | {"KILL": str(kill), "NUMBA_NUM_THREADS": str(threads)}
    try:
        return subprocess.run(command, cwd=folder, env=environment, timeout=seconds,
                              capture_output=True).returncode  # a timeout ends with SIGKILL
    except subprocess.TimeoutExpired:
        return -9


def final_files(folder):
    """What a run leaves, but for times and for the mean loss since the last log line, which a
    resumed run starts anew: weights, averages, configuration, tokenizer, log."""
    names = ("model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json")
    files = {name: open(os.path.join(folder, name), "rb").read() for name in names}
    lines = [json.loads(line) for line in open(os.path.join(folder, "log.jsonl"))]
    left_out = ("seconds", "tokens_per_s", "loss")
    files["log"] = [{k: x for k, x in line.items() if k not in left_out} for line in lines]
    assert not [name for name in os.listdir(folder) if name in (".new", ".ready", "live.jsonl")]
    return files


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder, {script: its final files}) of runs that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    r = random.Random(0)
    text = "".join(f"{a} plus {b} is {a + b}. " for a in range(40) for b in range(10))
    (folder / "text.txt").write_text(text)
    talks = [{"messages": [{"role": "user", "content": f"{a} + {b}?"},
                           {"role": "assistant", "content": f"{a + b}"}]}
             for a, b in ((r.randrange(9), r.randrange(9)) for _ in range(400))]
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    sums = [{"question": f"{a} + {a}?", "answer": f"#### {2 * a}"} for a in range(30)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    subprocess.run([sys.executable, os.path.join(ROOT, "bpe.py"), "text.txt", "--vocab-size", "280",
                    "--workers", "1"], cwd=folder, check=True, capture_output=True)
    files = {}
    for script, (out, flags) in COMMANDS.items():
        assert start(script, folder, *flags, "--out", out) == 0
        files[script] = final_files(folder / out)
    return folder, files


@pytest.mark.parametrize("n", [2, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("script", COMMANDS)
def test_a_killed_run_ends_with_the_same_bits(script, n, undisturbed):
    """n kills, each in a run of its own that is then finished: same files as undisturbed."""
    folder, expected = undisturbed
    _, flags = COMMANDS[script]
    r, out = random.Random(script), f"out/{script}-killed"
    for k in range(n):
        subprocess.run(["rm", "-rf", out], cwd=folder, check=True)
        kill = (r.randrange(1, 60), -r.randrange(1, 30), 0)[k % 3]
        seconds = r.uniform(1, 8) if kill == 0 else None
        start(script, folder, *flags, "--out", out, kill=kill, seconds=seconds)
        resume = ["--resume"] if (folder / out / "state.json").exists() or (
            folder / out / ".ready").exists() else []
        assert start(script, folder, *flags, "--out", out, *resume) == 0
        assert final_files(folder / out) == expected[script], (script, kill, seconds)


@pytest.mark.parametrize("script", COMMANDS)
def test_threads_and_processes_change_no_bit(script, undisturbed):
    """The same command in a fresh process, on two threads instead of one: the same files."""
    folder, expected = undisturbed
    out, (_, flags) = f"out/{script}-again", COMMANDS[script]
    assert start(script, folder, *flags, "--out", out, threads=2) == 0
    assert final_files(folder / out) == expected[script]
