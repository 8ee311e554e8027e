"""What all scripts stand on: files whole or not at all, locks, one-line errors, clean terminals."""
import argparse
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import common

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def contents(folder):
    return {path: Path(folder, path).read_text() for path in common.files_in(folder)}


def save(folder, text, names, owned=()):
    with common.staged(folder, owned) as staging:
        for path in (Path(staging, name) for name in names):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


# ---- files ----

def dying(function, calls, n):
    """function, but the process is killed before call n of all that count in `calls`."""
    def call(*arguments, **named):
        if next(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call


def test_a_kill_at_any_call_leaves_old_or_new(tmp_path):
    """SIGKILL before the nth call that changes the disk: after recover, the owned files are all old
    or all new, others stay, and the next replacement goes through."""
    status, n = -signal.SIGKILL, 0
    while status:
        folder, n = tmp_path / str(n), n + 1
        save(folder, "old", ("a", "b", "c", "mine"))
        if not (child := os.fork()):
            try:
                calls = itertools.count(1)
                for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
                    setattr(os, name, dying(getattr(os, name), calls, n))
                save(folder, "new", ("b", "c", "deep/d"), "abc")
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        common.recover(folder)
        left = {name: text for name, text in contents(folder).items() if name[0] != "."}
        assert left.pop("mine") == "old"
        assert left in (dict.fromkeys("abc", "old"), dict.fromkeys(("b", "c", "deep/d"), "new"))
        save(folder, "newer", "e", ("[abc]", "deep/d"))
        assert contents(folder) == {"mine": "old", "e": "newer"}
    assert n > 15


def test_a_reader_that_recovers_beside_the_writer_loses_nothing(tmp_path):
    """While others look into the folder, 20 saves of 20 files arrive whole (they once did not)."""
    code = "import sys, common\nprint(flush=True)\nwhile True: common.recover(sys.argv[1])"
    names, readers = [str(n) for n in range(20)], [python(code, tmp_path) for _ in range(2)]
    try:
        for reader in readers:
            reader.stdout.readline()
        for text in names:
            save(tmp_path, text, names)
            assert contents(tmp_path) == dict.fromkeys(names, text)
    finally:
        for reader in readers:
            reader.kill()
            assert not reader.communicate()[1]


@pytest.mark.parametrize("disk", [".", "deep"])
def test_folders_may_be_on_disks_of_their_own(disk, tmp_path):
    """The folder, or one in it, is a mount point: nothing can be renamed across disks."""
    (tmp_path / "out/deep").mkdir(parents=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "out" / disk], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not allowed to mount a file system")
    try:
        for text in ("old", "new"):
            save(tmp_path / "out", text, ("a", "deep/b"))
            assert contents(tmp_path / "out") == {"a": text, "deep/b": text}
    finally:
        subprocess.run(["umount", tmp_path / "out" / disk], check=True)


@pytest.mark.parametrize("code", [
    "common.write_file(path + '/x', lambda file: file.write(b'new' * 9999))",
    "with common.staged(path) as new, open(new + '/x', 'w') as f: f.write('new' * 9999)"])
def test_a_full_disk_is_one_line_and_changes_nothing(code, tmp_path):
    """When the system refuses to write more, the old file stays and the error is one line."""
    (tmp_path / "x").write_text("old")
    process = python(f"""
import argparse, resource, sys, common
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
path = sys.argv.pop()
def run(args):
    {code}
sys.exit(common.run_command(argparse.ArgumentParser(prog="x.py"), run))
""", tmp_path)
    _, error = process.communicate()
    assert process.returncode == 2 and error.startswith("x.py: ") and error.count("\n") == 1
    assert contents(tmp_path) == {"x": "old"}


@pytest.mark.skipif(common.fcntl is None, reason="this system has no file locks")
def test_a_killed_run_holds_no_lock(tmp_path):
    """A second run is told who is first. Once that is killed, the next run clears its live.jsonl
    away, even if there is nothing left to do."""
    first = python("import common, sys, time\nwith common.locked(sys.argv[1], 'train.py'):\n"
                   " common.Run(sys.argv[1], 0, 9, 9); print(flush=True); time.sleep(60)", tmp_path)
    first.stdout.readline()
    with pytest.raises(ValueError, match=rf"train.py \(process {first.pid}\) is writing there"):
        with common.locked(tmp_path, "sft.py"):
            pass
    assert sorted(os.listdir(tmp_path)) == [".lock", "live.jsonl"]
    first.kill()
    first.communicate()
    with common.locked(tmp_path, "sft.py"):
        assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("content,message", [
    (b"{", "no JSON"), (b"[" * 100_000, "no JSON"), (b"[1]", "not a JSON object"),
    (b"\xff\xfe", "UTF-8")])
def test_json_errors_name_the_file(content, message, tmp_path):
    """Whatever a JSON file holds, the answer is an object or a ValueError with its path."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for read in (common.read_json, lambda path: list(common.read_json_lines(path))):
        with pytest.raises(ValueError, match=rf"{path}.*{message}"):
            read(path)
    path.write_bytes(b'{"a": 1}\n\n{"b": 2}\n')
    assert list(common.read_json_lines(path)) == [(1, {"a": 1}), (3, {"b": 2})]


# ---- the command line and the terminal ----

@pytest.mark.parametrize("error,status,said", [
    (ValueError("bad \x1b[31m value"), 2, "x.py: bad \\x1b[31m value\n"),
    (OSError("disk"), 2, "x.py: disk\n"), (None, 0, ""),
    (signal.SIGINT, 130, "x.py: stopped; finished files are whole\n"),
    (signal.SIGTERM, 143, "x.py: stopped; finished files are whole\n")])
def test_failures_are_one_line_and_a_status(error, status, said, capsys, monkeypatch):
    """ValueError and OSError give 2, Ctrl-C 130, SIGTERM 143, and one line; no handler stays."""
    def run(args):
        if isinstance(error, Exception):
            raise error
        if error:
            signal.raise_signal(error)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = [*map(signal.getsignal, signal.valid_signals())]
    assert common.run_command(argparse.ArgumentParser(prog="x.py"), run, []) == status
    assert capsys.readouterr().err == said
    assert [*map(signal.getsignal, signal.valid_signals())] == before


def test_what_the_terminal_lacks_is_escaped():
    """A character that stdout cannot encode, as in a pipe on Windows, does not end the script."""
    script = python("""
import argparse, sys, common
sys.stdout.reconfigure(encoding="latin-1")
sys.exit(common.run_command(argparse.ArgumentParser(), lambda args: print("\\u3000")))""")
    assert script.communicate()[0] == "\\u3000\n" and script.returncode == 0


def test_nothing_raw_reaches_the_terminal():
    """Escape sequences, C1 controls and direction marks become visible; letters stay."""
    assert common.printable("a\x1b]0;x\x07\x9b2J\u202eb\nç日") == (
        "a\\x1b]0;x\\x07\\x9b2J\\u202eb\\nç日")
    assert common.printable("a\nb", keep="\n") == "a\nb"


def test_live_lines_fit_the_terminal(monkeypatch, capsys):
    """On a terminal a line that is not kept is shortened; elsewhere every line is printed whole."""
    monkeypatch.setenv("COLUMNS", "40")
    for terminal, shown in ((False, "x" * 100 + "\n"), (True, "\r\x1b[K" + "x" * 39)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
        common.show_line("x" * 100, keep=False)
        assert capsys.readouterr().out == shown


# ---- processes and runs ----

def sleep(_):
    os.write(1, b"\n")
    time.sleep(60)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_end_with_a_killed_parent(method):
    """After SIGKILL of the parent no worker is left, which would keep its end of the pipe open."""
    parent = python(f"""
import multiprocessing, common, tests.test_common
multiprocessing.set_start_method("{method}")
list(common.map_in_order(tests.test_common.sleep, [(1,), (2,), (3,)], 2))""")
    for _ in range(2):
        parent.stdout.readline()
    parent.kill()
    parent.communicate(timeout=20)


def test_a_run_saves_logs_and_goes_on(tmp_path):
    """Ten saves a run. A signal just after step 34 went by unsaved ends the run at 35, saved; the
    log goes on from there, and live.jsonl goes at the end."""
    def go(run):
        for step in run.steps():
            run.show("", keep=False, step=step)
            if run.save_due():
                yield step
            if step == 34:
                signal.raise_signal(signal.SIGINT)
    run = common.Run(tmp_path, 0, 100, 10)
    assert list(go(run)) == [10, 20, 30, 35] and run.step == 35
    assert json.loads((tmp_path / "live.jsonl").read_text().splitlines()[-1]) == {"step": 35}
    assert run.close("x.py") == 130 and os.listdir(tmp_path) == []
    again = common.Run(tmp_path, run.step, 100, 10, run.log)
    assert list(go(again)) == [*range(40, 101, 10)] and again.close("x.py") == 0
    assert [line["step"] for line in again.log] == list(range(1, 101))


def test_a_second_signal_stops_at_once(tmp_path):
    """Who presses Ctrl-C twice does not wait for the step to end."""
    with pytest.raises(KeyboardInterrupt):
        for _ in common.Run(tmp_path, 0, 100, 10).steps():
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
