"""What every script does alike, so that each script can show what is its own.

    the command line   run_command, print_settings
    the terminal       printable, in_colour, paint, show_line, duration, compiling
    reading files      read_text_lines, parse_json, read_json, read_json_lines
    writing files      write_file, staged, recover, locked
    processes          map_in_order
    random numbers     rng, share
    a training run     Run: counts steps, stops when asked, logs, says when to evaluate and save

Results are replaced whole or not at all, whenever a script is killed. (live.jsonl and the file of
data.py --rejects grow line by line.) A failure is one sentence on stderr, with the file, what was
found and what helps. Skip this file at first, but for Run.
"""
import os
import signal
import sys

# A script imports this file first, and then for a second NumPy and Numba. Until run_command takes
# over, Ctrl-C and SIGTERM end it at once: imports may turn KeyboardInterrupt into an ImportError.
# A program that only imports our scripts keeps its handlers.
if os.path.dirname(os.path.realpath(getattr(sys.modules["__main__"], "__file__", "/"))) == (
        os.path.dirname(os.path.realpath(__file__))):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))

import collections
import contextlib
import ctypes
import gzip
import itertools
import json
import multiprocessing
import random
import shutil
import threading
import time
import zlib
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks; there, two runs on one folder are not noticed
    fcntl = None


# ---- the command line ----------------------------------------------------------------------------

def run_command(parser, run, argv=None):
    """Parses the command line, calls run(args), and returns the exit status: what run returns or 0,
    2 if the input was wrong, 130 if SIGINT (Ctrl-C) stopped it, 143 if SIGTERM did."""
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # for what the terminal's encoding lacks
    try:
        with on_signals(signal.default_int_handler, interrupt):
            return run(args) or 0
    except (ValueError, OSError, BrokenProcessPool) as error:
        print(f"{parser.prog}: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        sys.unraisablehook = lambda _: None  # half-made objects of Numba complain when they go
        new_line = "\n" if sys.stderr.isatty() else ""  # behind the terminal's ^C
        print(f"{new_line}{parser.prog}: stopped; finished files are whole", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


@contextlib.contextmanager
def on_signals(on_int, on_term):
    """Has SIGINT and SIGTERM call these functions, inside of `with`."""
    old_int, old_term = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGINT, on_int)
        signal.signal(signal.SIGTERM, on_term)
        yield
    finally:
        signal.signal(signal.SIGINT, old_int)
        signal.signal(signal.SIGTERM, old_term)


def interrupt(number, frame):
    """SIGTERM raises what Ctrl-C does, with the signal's number."""
    raise KeyboardInterrupt(number)


def print_settings(name, settings):
    """The first line of every script: "train.py | size 1M | steps 3000 | ..."."""
    shown = [name]
    for key, value in settings.items():
        if isinstance(value, (list, tuple)):
            value = " ".join(map(str, value)) or "none"
        if value is not None:
            shown.append(f"{key.replace('_', ' ')} {value}")
    print(printable(" | ".join(shown)), flush=True)


# ---- the terminal --------------------------------------------------------------------------------

def printable(text, keep=""):
    """Text with control characters, except those in `keep`, as escapes: in pages, models and files
    they may rename a terminal's window or hide lines."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def in_colour():
    """Whether to use colours: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text, code):
    """Text in a colour, by its ANSI code: "32" is green, "2" dim."""
    return f"\x1b[{code}m{text}\x1b[0m" if in_colour() else text


def show_line(text, keep=True):
    """Prints a line. On a terminal a line that is not kept is cut to its width, and the next one
    overwrites it."""
    if not sys.stdout.isatty():
        print(text, flush=True)
    elif keep:
        print("\r\x1b[K" + text, flush=True)  # back to the line's start; erase
    else:
        width = shutil.get_terminal_size().columns - 1
        print("\r\x1b[K" + text[:width], end="", flush=True)


def duration(seconds):
    """For people: 99 s, but 2 min."""
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


@contextlib.contextmanager
def compiling():
    """Around the first, tiny use of kernels, when Numba compiles them: says how long it took."""
    start = time.perf_counter()
    yield
    if (seconds := time.perf_counter() - start) > 3:
        print(f"compiled the kernels in {seconds:.0f} s, kept on disk for the next run", flush=True)


# ---- reading files -------------------------------------------------------------------------------

def read_text_lines(path):
    """Yields the lines of a UTF-8 text file, gzipped or not."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if str(path).endswith(".gz") and not packed:  # gzip.open finds no fault with an empty file
            raise ValueError(f"{path}: damaged, it does not begin like a gzip file")
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8", newline="\n") as lines:
            yield from lines
    except FileNotFoundError:
        hint = "; python world.py makes out/world/" if "world" in path else ""
        raise ValueError(f"{path}: no such file{hint}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, or no text in UTF-8 ({error})") from None


def parse_json(text, where):
    """The object {...} in JSON text; `where` names the text in the error."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON ({error})"[:300]) from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object {{...}}, but {str(text).strip():.40}")
    return value


def read_json(path):
    """The object {...} in a JSON file."""
    return parse_json("".join(read_text_lines(path)), path)


def read_json_lines(path):
    """Yields (line number, object) of a JSON lines file; skips empty lines."""
    for number, line in enumerate(read_text_lines(path), 1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")


# ---- writing files -------------------------------------------------------------------------------

def write_file(path, write):
    """Calls write(file) on PATH.part, which then gets its name: a rename is done or not done."""
    path, part = Path(path), Path(f"{path}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as file:
            write(file)
        sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sync(path):
    """Waits until the disk has the file's bytes. Otherwise the system may write the file's new name
    before them, and a crash of the machine in between would leave it empty."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


# Files that belong together, such as weights and their configuration, are written into FOLDER/.new.
# When all are on the disk, a rename to FOLDER/.ready decides that they count. They are moved up:
#
#     a, b                      the old files
#     a, b    .new/a            a kill here leaves the old ones; .new means nothing
#     a, b    .ready/a, b       a kill from here on leaves the new ones, because whoever opens the
#     a', b   .ready/b          folder next moves the rest up (recover)
#     a', b'

@contextlib.contextmanager
def staged(folder, owned=()):
    """with staged(folder) as staging: files written into `staging` replace those in `folder` at the
    end, all or none. What matches a pattern in `owned` and was not written anew is removed; other
    files stay."""
    recover(folder)
    folder, new = Path(folder), Path(folder, ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield str(new)
        old = {str(path.relative_to(folder)) for pattern in owned for path in folder.glob(pattern)}
        (new / ".remove").write_text("\n".join(old - set(files_in(new))), "utf-8")
        for path in files_in(new):
            sync(new / path)
        new.rename(folder / ".ready")
    finally:
        shutil.rmtree(new, ignore_errors=True)  # after the rename there is none
    recover(folder)


def recover(folder):
    """Moves up what a killed `staged` left in .ready; whoever reads such a folder calls it first.
    It may itself be killed and repeated. Processes take turns: the second finds nothing left."""
    ready = Path(folder, ".ready")
    if not ready.is_dir():
        return
    with contextlib.ExitStack() as at_end:
        if fcntl:
            directory = os.open(folder, os.O_RDONLY)
            at_end.callback(os.close, directory)  # which ends the turn
            fcntl.flock(directory, fcntl.LOCK_EX)
        if (remove := ready / ".remove").exists():
            for path in remove.read_text("utf-8").splitlines():
                Path(folder, path).unlink(missing_ok=True)
            remove.unlink()
        for path in files_in(ready):
            Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(ready / path, Path(folder, path))  # a copy if it is on another disk
        shutil.rmtree(ready, ignore_errors=True)


def files_in(folder):
    """Relative paths of all files below a folder."""
    return [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()]


@contextlib.contextmanager
def locked(folder, name):
    """Holds `folder` for a run of the script `name`; a second run gets a ValueError that names the
    first. The system releases the lock when the process ends, even killed."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, ".lock"), "a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(f"{folder}: {file.read() or 'another run'} is writing there; wait for "
                             "it, or choose another folder with --out") from None
        file.truncate(0)
        file.write(f"{name} (process {os.getpid()})")
        file.flush()
        Path(folder, "live.jsonl").unlink(missing_ok=True)  # of a Run that was killed
        yield
        file.truncate(0)


# ---- processes -----------------------------------------------------------------------------------

def map_in_order(work, jobs, workers=None):
    """Yields work(*job) in the order of the jobs, computed by several processes (threads would take
    turns at Python's lock). Two workers have at most five jobs under way, so a stream of any length
    takes little memory. A single job is not worth a process and runs here."""
    jobs, waiting, workers = iter(jobs), collections.deque(), workers or os.cpu_count()
    first = list(itertools.islice(jobs, 2))
    if workers == 1 or len(first) < 2:
        yield from itertools.starmap(work, itertools.chain(first, jobs))
        return
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        for job in itertools.chain(first, jobs):
            waiting.append(pool.submit(work, *job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def start_worker():
    """A worker leaves Ctrl-C to its parent, and ends with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


# ---- random numbers ------------------------------------------------------------------------------

def rng(*words):
    """A random generator named by words, the same on every machine: rng(0, "jokes", 3) makes the
    choices of the third iteration on jokes, whatever ran before it."""
    return random.Random(" ".join(map(str, words)))


def share(text, parts=10):
    """Into which of `parts` equal buckets (0, 1, ...) a text's hash puts it. Bucket 0 is held out,
    so a text is on the same side whatever other texts there are."""
    return zlib.crc32(text.encode()) % parts


# ---- a training run ------------------------------------------------------------------------------

def keep_freed_memory():
    """Asks glibc, where that is the C library, to keep what a step frees for the next one. To give
    it back and get it anew, cleared page by page, took a quarter of fine-tuning's time."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library or function
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: give back only what is more than 1 GB
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD: 32 MB and more is mapped on its own


class Run:
    """Counts the steps of a training run, logs them, and stops when asked. A script's loop:

        run = Run(out, step, steps, saves=10, log=[])
        for step in run.steps():        # step + 1, ..., steps
            ...                         # one update of the weights
            run.show("step 10/100 | loss 2.3", step=step, loss=2.3)
            if run.evaluation_due():    # about ten times in a long run, and at its end
                ...
            if run.save_due():          # the same, and when it is stopped
                ...                     # save together with run.log
        return run.close("train.py")

    SIGINT (Ctrl-C) and SIGTERM only ask for a stop: the step is finished and saved first. A second
    signal stops at once. log: the numbers that `show` was given, a dict a line, for the
    checkpoint's log.jsonl; live.jsonl has the same while the run goes on, for whoever watches."""

    def __init__(self, out, step, steps, saves, log=()):
        keep_freed_memory()
        self.out, self.first, self.step, self.total, self.log = out, step, step, steps, list(log)
        self.every, self.start = max(1, steps // saves), time.perf_counter()
        self.signal, self.saved = 0, False  # the signal that asked for a stop; is this step saved?
        Path(out).mkdir(parents=True, exist_ok=True)
        self.live = open(Path(out, "live.jsonl"), "w", encoding="utf-8")
        self.live.writelines(json.dumps(line) + "\n" for line in self.log)

    def steps(self):
        """Yields the numbers of the steps to come. After a signal it ends once a step is saved: if
        the signal came after `save_due` had said no, that is the next one."""
        with on_signals(self.ask_to_stop, self.ask_to_stop):
            while self.step < self.total and not (self.signal and self.saved):
                self.step, self.saved = self.step + 1, False
                yield self.step

    def ask_to_stop(self, number, frame):
        if self.signal:  # the second one
            raise KeyboardInterrupt(number)
        self.signal = number

    def evaluation_due(self):
        """Whether to evaluate at this step. A signal changes nothing: a run that was stopped
        evaluates at the same steps."""
        return self.step % self.every == 0 or self.step == self.total

    def save_due(self):
        """Whether to save at this step."""
        self.saved = self.evaluation_due() or self.signal > 0
        return self.saved

    def show(self, line, keep=True, **numbers):
        """A line for people, and numbers for the log."""
        show_line(line, keep)
        if numbers:
            self.log.append(numbers)
            self.live.write(json.dumps(numbers) + "\n")
            self.live.flush()

    def seconds(self):
        """Since the run began or was resumed."""
        return time.perf_counter() - self.start

    def left(self):
        """The time for the steps to come, for people: after 30 of 100 steps in 15 s, 35 s."""
        return duration(self.seconds() / max(1, self.step - self.first) * (self.total - self.step))

    def close(self, name):
        """Ends a run whose last step is saved; returns the exit status. After a signal it says how
        to go on with the script `name`."""
        self.live.close()
        os.remove(self.live.name)
        if self.step == self.total:
            return 0
        print(f"stopped at step {self.step} of {self.total} and saved in {self.out}; to go on: "
              f"python {name} --resume --out {self.out}")
        return 128 + self.signal
