"""How the source is laid out: imports go one way, importing does no work, PLAIN=1 needs no Numba,
and make types the commands that the README tells."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up; a file imports only from lines before its own (within a folder, also from
# files of the same folder). The files of the last line stand side by side and pass files on.
LAYERS = [["common"], ["kernels"], ["crawl", "formats"], ["world", "data", "bpe"], ["model"],
          ["optimizer"], ["checkpoint"], ["sample"], ["train", "sft", "rl", "look"]]
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
# Training needs none of the code that makes its input: any other files will do.
NOT_BY_TRAINING = ("world", "data")
# {module name: path} of every source file but the tests.
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for folder in (".", "kernels", "crawl", "formats")
           for path in sorted(ROOT.joinpath(folder).glob("*.py"))}


def imports(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    """No file imports from its own layer or a later one, and no training what makes its input."""
    top = name.split(".")[0]
    assert top in LAYER, f"{name} has no layer; add it to LAYERS"
    for other in (imported.split(".")[0] for imported in imports(MODULES[name])):
        if other in LAYER and other != top:
            assert LAYER[other] < LAYER[top], f"{name} imports {other}"
            assert top not in ("train", "sft", "rl") or other not in NOT_BY_TRAINING


def test_importing_does_no_work():
    """An import prints nothing, warns of nothing, starts no thread, compiles no kernel, and leaves
    the signals of other people's programs alone."""
    script = f"""
import numba.core.dispatcher as numba, signal
handlers = [*map(signal.getsignal, signal.valid_signals())]
def compile(*arguments):
    raise AssertionError("compiled at import")
numba.Dispatcher.compile = compile
import {", ".join(MODULES)}, threading
assert threading.active_count() == 1
assert handlers == [*map(signal.getsignal, signal.valid_signals())]
"""
    result = subprocess.run([sys.executable, "-B", "-W", "error", "-c", script], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == result.stderr == "", result.stderr


def test_plain_trains_to_the_same_losses_without_numba():
    """With PLAIN=1 a network is trained and sampled as with the kernels; Numba is not imported."""
    script = """
import json, sys, numpy as np, model, optimizer
config = model.Config(vocab=9, ctx=8, dim=16, layers=1, heads=2, kv_heads=1, hidden=24)
params = model.init_params(config)
averages, ids = optimizer.start(params), np.arange(8)[None] % 9
losses = []
for step in range(1, 30):
    loss, grads = model.loss_and_grads(params, config, ids[:, :-1], ids[:, 1:])
    losses.append(loss)
    optimizer.update(params, grads, averages, config, step, 0.02, muon_lr=0.02)
cache = model.Cache(params, config, 1, 8)
token = model.prefill(config, cache, ids[:, :3], np.array([3])).argmax(1)
print(json.dumps([losses, token.tolist(), "numba" in sys.modules]))
"""
    plain, fast = (json.loads(subprocess.check_output(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PLAIN": x})) for x in "10")
    assert plain[1:] == [[3], False] and fast[1:] == [[3], True]
    assert plain[0][-1] < plain[0][0] / 2
    np.testing.assert_allclose(plain[0], fast[0], rtol=1e-5)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_types_the_plain_commands():
    """Each stage of make is its script without a flag (once --digits differed); a text of one's own
    meets no file of the default run."""
    def commands(*arguments):
        shown = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
        return re.findall(r"bin/python (\w+\.py.*?) *; status", shown.stdout)
    stages = [command for command in commands() if not command.startswith(("sample", "look"))]
    assert stages == ["world.py", "data.py", "bpe.py", "train.py", "sft.py"]
    own = commands("TEXT=my.txt")
    assert len(own) == 3 and not re.search("out/(?!text)", " ".join(own)), own


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_refuses_an_old_python_before_it_makes_an_environment(tmp_path):
    """Else a newer one would find the old one's environment, in which nothing can be installed."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    done = subprocess.run(["make", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "Python 3.11 or newer is needed" in done.stdout
    assert not os.path.exists(tmp_path / ".venv")
    shown = subprocess.run(["make", "-n"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert "-m venv --clear .venv" in shown
