"""The whole way at its smallest, by the commands that people type: from a crawl to an answer."""
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# In place of every script: it leaves what make looks for, and train.py waits to be stopped.
STAGE = """
import os, sys, time
script, *flags = sys.argv[1:]
made = {"world.py": "world/facts.jsonl", "data.py": "docs/stats.json", "bpe.py": "tokenizer.json",
        "train.py": "base/state.json", "sft.py": "sft/state.json"}.get(script, "report.html")
os.makedirs(os.path.dirname("out/" + made), exist_ok=True)
open("out/" + made, "w").close()
print("began", script, flush=True)
if script == "train.py" and not flags:
    try:
        time.sleep(60)
    finally:
        os._exit(130)
"""


def test_from_a_crawl_to_an_answer(tmp_path):
    """World, data, tokens, pretraining, SFT, a chat and the report, each by its default command."""
    def run(script, *flags, said=None):
        done = subprocess.run([sys.executable, os.path.join(ROOT, script), *flags], cwd=tmp_path,
                              input=said, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout
    named = [run("world.py", "--pages", "400")]
    for name, n in (("conversations", 400), ("heldout", 20), ("facts", 20)):
        path = tmp_path / f"out/world/{name}.jsonl"
        path.write_text("".join(path.read_text("utf-8").splitlines(True)[:n]), "utf-8")
    named += [run("data.py"),
              run("bpe.py", "--vocab-size", "512"),
              run("train.py", "--size", "0.3M", "--steps", "60"),
              run("sft.py", "--epochs", "1")]
    # Every stage's last line names the next command.
    for out, script in zip(named, ("data.py", "bpe.py", "train.py", "sample.py", "sample.py")):
        assert f"next: python {script}" in out.splitlines()[-1]
    assert " nats" in named[3] and "held-out questions" in named[4]
    assert "out/sft" in run("sample.py", "--chat", said="Who are you?\n/quit\n")
    # The report ends in a table of every stage's time and result; what a stop cut in two adds up.
    (tmp_path / "out/times.txt").write_text(
        "world.py 7 s\ntrain.py 9 s\ntrain.py 90 s\ntrain.py --resume --out out/base 70 s\n")
    table = run("look.py", "--report").splitlines()[-5:]
    for row, pattern in zip(table, (
            r"world.py +7 s  400 conversations, 20 held-out questions",
            r"data.py +- s  [1-9]\d\d of 4\d\d pages kept",
            r"bpe.py +- s  512 kinds of token; the text is [\d,]+ tokens",
            r"train.py +160 s  \d\.\d{3} bits per byte of held-out text, \d+% of the facts",
            r"sft.py +- s  right answers: \w.* \d+%")):
        assert re.fullmatch(pattern, row), row


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_goes_on_where_it_was_stopped(tmp_path):
    """Ctrl-C in training: the time so far is noted, and the next make resumes there. A third one
    only writes the report again."""
    shutil.copy(os.path.join(ROOT, "pyproject.toml"), tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/ready").touch()
    (tmp_path / "stage.py").write_text(STAGE)
    noted = tmp_path / "out/times.txt"

    def make(stop=None):
        with subprocess.Popen(
                ["make", "-f", os.path.join(ROOT, "Makefile"), f"RUN={sys.executable} stage.py"],
                cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
            for line in running.stdout:
                if line == f"began {stop}\n":
                    os.killpg(running.pid, signal.SIGINT)
        stages = re.findall(r"(?m)^(.*) \d+ s$", noted.read_text())
        noted.unlink()
        return running.returncode, stages
    status, stages = make(stop="train.py")
    assert status and stages == ["world.py", "data.py", "bpe.py", "train.py"]
    sample, report = "sample.py --model out/base --demo dreams", "look.py --report"
    assert make() == (0, ["train.py --resume --out out/base", sample, "sft.py", report])
    assert make() == (0, [report])
