"""The whole way at its smallest, by the commands that people type: from a crawl to an answer."""
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_from_a_crawl_to_an_answer(tmp_path):
    """World, data, tokens, pretraining, SFT and a chat, each by its default command."""
    def run(script, *flags, said=None):
        done = subprocess.run([sys.executable, os.path.join(ROOT, script), *flags], cwd=tmp_path,
                              input=said, capture_output=True, text=True, encoding="utf-8",
                              env=os.environ | {"NUMBA_NUM_THREADS": "1"})
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def shorten(name, n):
        path = tmp_path / "out/world" / name
        path.write_text("".join(path.read_text("utf-8").splitlines(True)[:n]), "utf-8")
    named = [run("world.py", "--pages", "400")]
    shorten("conversations.jsonl", 400)
    shorten("heldout.jsonl", 20)
    shorten("facts.jsonl", 20)
    named += [run("data.py"),
              run("bpe.py", "--vocab-size", "512"),
              run("train.py", "--size", "0.3M", "--steps", "60"),
              run("sft.py", "--epochs", "1")]
    # Every stage's last line names the next command.
    for out, script in zip(named, ("data.py", "bpe.py", "train.py", "sample.py", "sample.py")):
        assert f"next: python {script}" in out.splitlines()[-1]
    assert " nats" in named[3] and "held-out questions" in named[4]
    assert "out/sft" in run("sample.py", "--chat", said="Who are you?\n/quit\n")
