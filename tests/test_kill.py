"""Stop it anywhere: each script, killed or stopped and started again, leaves the files of a run
that nobody disturbed, to the bit; and so does a run in another process, on more threads.

A run is disturbed before a call that changes the disk, before a step of its work, or at any moment.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import common
from pages import PROSE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Runs a script with a small network, yet large enough for kernels on several threads. With
# DISTURB="9 disk 5" it gets signal 9 before the fifth call that changes the disk.
START = """
import os, sys
sys.path.insert(0, sys.argv[1])
import bpe, data, model, rl, sft, train
model.SIZES["0.3M"] = dict(ctx=64, dim=128, layers=1, heads=4, kv_heads=2, hidden=160)
rl.RECIPES = {name: recipe | {"questions": 2, "iterations": 8}
              for name, recipe in rl.RECIPES.items()}
rl.EVALUATED, rl.MAX_NEW, rl.PAIRS_PER_STEP, rl.TEST_PAIRS = 2, 8, 4, 4
number, where, nth = os.environ["DISTURB"].split()
calls = [0]
def disturbed(function):
    def call(*arguments, **named):
        calls[0] += 1
        if calls[0] == int(nth):
            os.kill(os.getpid(), int(number))
        return function(*arguments, **named)
    return call
if where == "disk":
    for name in ("rename", "replace", "remove", "unlink", "mkdir", "rmdir", "fsync"):
        setattr(os, name, disturbed(getattr(os, name)))
if where == "step":
    for owner, name in ((train, "sample_windows"), (sft, "to_arrays"), (rl, "rollout"),
                        (bpe, "jobs"), (data.Funnel, "count")):
        setattr(owner, name, disturbed(getattr(owner, name)))
sys.exit(globals()[sys.argv[2].replace("jokes", "rl")].main(sys.argv[3:]))
"""
COMMANDS = {
    "data": ["new.jsonl", "--workers", "2"],
    "bpe": ["new.txt", "--vocab-size", "280"],
    "train": ["--tokens", "out/bpe/tokens", "--tokenizer", "out/bpe/tokenizer.json", "--size",
              "0.3M", "--batch", "16", "--steps", "20", "--facts", "none"],
    "sft": ["--base", "out/train", "--data", "talks.jsonl", "--pages", "out/data"],
    "rl": ["--model", "out/sft", "--problems", "sums.jsonl", "--final", "sums.jsonl"],
    "jokes": ["--model", "out/sft", "--reward", "model", "--pairs", "8"]}
CALLS = {"data": (16, 224), "bpe": (25, 4), "train": (306, 20), "sft": (426, 28), "rl": (246, 12),
         "jokes": (269, 10)}  # of a whole run: those that change the disk, and its steps


def start(script, folder, flags, disturb="9 any 0", after=None, threads=1):
    """(status, what it printed) of a script in folder. after: seconds after its first line at which
    it gets the signal that `disturb` names."""
    environment = os.environ | {"DISTURB": disturb, "NUMBA_NUM_THREADS": str(threads),
                                "OPENBLAS_NUM_THREADS": str(threads)}
    with subprocess.Popen([sys.executable, "-c", START, ROOT, script, *flags], cwd=folder,
                          env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        said = process.stdout.readline()
        if after is not None:
            time.sleep(after)
            process.send_signal(int(disturb.split()[0]))
        said += process.stdout.read()
    return process.returncode, said


def files(folder):
    """{path: content} of what a run leaves; of its log not the times, nor the mean loss since the
    last line, which a resumed run begins anew."""
    found = {path: Path(folder, path).read_bytes() for path in common.files_in(folder)}
    found.pop(".lock", None)
    if "log.jsonl" in found:
        left_out = rb'"(seconds|tokens_per_s|loss)": [^,}]*,? ?'
        found["log.jsonl"] = re.sub(left_out, b"", found["log.jsonl"])
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, {script: seconds}): out/ has the undisturbed runs of all scripts, old/ those of
    data.py and bpe.py on other inputs."""
    folder, r = tmp_path_factory.mktemp("runs"), random.Random(0)
    for name in ("old", "new"):
        texts = ["\n".join(" ".join(r.choices(PROSE.lower().split(), k=12)) for _ in range(12))
                 for _ in range(150)]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{PROSE}\n{text}"}) + "\n" for text in texts))
        (folder / f"{name}.txt").write_text("\n".join(texts))
    sums = [(r.randrange(9), r.randrange(9)) for _ in range(400)]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"{a} + {b}?"},
        {"role": "assistant", "content": f"{a + b}"}]}) + "\n" for a, b in sums))
    (folder / "sums.jsonl").write_text("".join(json.dumps(
        {"question": f"{a} + {b}?", "answer": f"#### {a + b}"}) + "\n" for a, b in sums[:30]))
    os.makedirs(folder / "out/world")
    (folder / "out/world/jokes.json").write_text(json.dumps(
        {"question": "A {subject}?", "subjects": ["fox", "owl"], "foods": ["fig"]}))
    seconds = {}
    for script, flags in COMMANDS.items():
        begin = time.perf_counter()
        status, said = start(script, folder, [*flags, "--out", f"out/{script}"])
        assert status == 0, said
        seconds[script] = time.perf_counter() - begin
        if script in ("data", "bpe"):
            assert start(script, folder, [flags[0].replace("new", "old"), *flags[1:], "--out",
                                          f"old/{script}"])[0] == 0
    return folder, seconds


@pytest.mark.parametrize("n", [2, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("script", COMMANDS)
def test_disturbed_runs_end_with_the_same_bits(script, how, n, runs):
    """n times SIGKILL, or SIGINT and SIGTERM, which end with 130 or 143 and one line. After each,
    the old files or the new ones are there, whole. The same command, with --resume where there is
    something to resume, ends in the files of an undisturbed run."""
    (folder, seconds), out, r = runs, f"{how}/{script}", random.Random(script + how)
    wanted, met, status = files(folder / "out" / script), 0, 0
    while met < n or status:
        if status == 0:  # begin another run
            shutil.rmtree(folder / out, ignore_errors=True)
            if (folder / "old" / script).exists():
                shutil.copytree(folder / "old" / script, folder / out)
        number = signal.SIGKILL if how == "kill" else r.choice((signal.SIGINT, signal.SIGTERM))
        where = r.choice(("disk", "step", "any")) if met < n else None
        nth = r.randint(1, CALLS[script][where == "step"])
        after = r.uniform(0, seconds[script]) if where == "any" else None
        resume = any((folder / out / name).exists() for name in ("state.json", ".ready/state.json"))
        flags = [*COMMANDS[script], "--out", out, *["--resume"] * resume]
        status, said = start(script, folder, flags, f"{number} {where} {nth}", after)
        met += status != 0
        case = f"{script} {flags} {number} {where} {nth} {after}: {status}, {said}"
        if how == "kill":
            assert status in (0, -number), case
        elif "next: python" not in said and "begin another run" not in said:  # it had ended
            assert status in (0, 128 + number) and "Traceback" not in said, case
            assert len(re.findall(r"(?m)^(?:\w+.py: )?stopped", said)) == (status != 0), case
        if status == 0:
            assert files(folder / out) == wanted, case
            assert script != "jokes" or files(folder / f"{out}-best") == files(
                folder / "out/jokes-best"), case
        elif script in ("data", "bpe"):
            common.recover(folder / out)
            left = {path: content for path, content in files(folder / out).items()
                    if not path.startswith(".new")}
            assert left in (files(folder / "old" / script), wanted), case


@pytest.mark.parametrize("script", COMMANDS)
def test_threads_and_processes_change_no_bit(script, runs):
    """A fresh process on two threads, or three workers, leaves the same files."""
    folder, _ = runs
    flags = [*COMMANDS[script], "--out", f"again/{script}"]
    flags += ["--workers", "3"] if script in ("data", "bpe") else []
    status, said = start(script, folder, flags, threads=2)
    assert status == 0 and files(folder / "again" / script) == files(folder / "out" / script), said


@pytest.mark.skipif(common.fcntl is None, reason="this system has no file locks")
@pytest.mark.parametrize("script", COMMANDS)
def test_a_second_run_on_a_folder_is_refused(script, runs):
    """Each script refuses a folder that another run writes to, in one line that names that run."""
    folder, _ = runs
    with common.locked(folder / "out" / script, "x.py"):
        status, said = start(script, folder, [*COMMANDS[script], "--out", f"out/{script}"])
    assert status == 2 and f"x.py (process {os.getpid()}) is writing there" in said.splitlines()[-1]


# Runs a script as `python SCRIPT` does, and prints a line when its second import begins: from then
# on signals must be heeded.
BEGIN = """
import os, signal, sys
class Imports:
    n = 0
    def find_spec(self, *_):
        self.n += 1
        if self.n == 2:
            os.write(1, b"\\n")
del sys.argv[0]
__file__ = sys.argv[0]
sys.path[0] = os.path.dirname(__file__)
sys.meta_path.insert(0, Imports())
exec(compile(open(__file__).read(), __file__, "exec"))
"""


@pytest.mark.parametrize("n", [3, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("script", ["world", "data", "bpe", "sample", "train", "sft", "rl", "look"])
def test_a_stop_while_a_script_begins_says_little(script, n, tmp_path):
    """SIGINT or SIGTERM at n random moments of the first second, in which NumPy and Numba are
    imported, ends with 130 or 143 and one line at most (it was a traceback, or an ImportError)."""
    (tmp_path / "new.txt").write_text(PROSE * 9)
    flags = ["new.txt", "--vocab-size", "280"] if script == "bpe" else ["--help"]
    r = random.Random(script)
    for _ in range(n):
        number, after = r.choice((signal.SIGINT, signal.SIGTERM)), r.uniform(0, 1)
        with subprocess.Popen([sys.executable, "-c", BEGIN, f"{ROOT}/{script}.py", *flags],
                              cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(after)
            process.send_signal(number)
            out, error = process.communicate()
        # Python's last act is to give the signals back to the system, whose -15 a shell calls 143.
        ended = "--help" in out or "next: python" in out
        assert process.returncode in (128 + number, *(0, -number) * ended), (after, out, error)
        assert error.count("\n") <= 1, (after, error)
