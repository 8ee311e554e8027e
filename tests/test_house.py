"""How the source is laid out: imports go one way, importing does no work, PLAIN=1 needs no Numba."""
import ast
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# From the ground up; a file imports only from lines before its own (within a folder,
# also from files of the same folder). The last line stands side by side: files pass between them.
LAYERS = ["common", "kernels", ("crawl", "formats"), ("world", "data", "bpe"), "model", "optimizer", "checkpoint",
          "sample", ("train", "sft", "rl", "look")]
RANK = {name: rank for rank, names in enumerate(LAYERS)
        for name in ((names,) if isinstance(names, str) else names)}
NOT_BY_STAGES = {"train": {"world", "data"}, "sft": {"world", "data"}, "rl": {"world", "data"}}


def modules():
    """(module name, path) of every source file but the tests."""
    for folder in ("", "kernels", "crawl", "formats"):
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            if name.endswith(".py"):
                dotted = ".".join(filter(None, [folder, name.removesuffix(".py")]))
                yield dotted.removesuffix(".__init__"), os.path.join(ROOT, folder, name)


def imports(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(open(path, encoding="utf-8").read())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("name,path", list(modules()))
def test_imports_go_one_way(name, path):
    """No file imports from its own layer or a later one, and no stage imports the generator."""
    room = name.split(".")[0]
    assert room in RANK, f"{name} has no layer; add it to LAYERS"
    for imported in imports(path):
        other = imported.split(".")[0]
        if other in RANK and other != room:
            assert RANK[other] < RANK[room], f"{name} imports {imported}"
            assert other not in NOT_BY_STAGES.get(room, ()), f"{name} imports {imported}"


def test_importing_does_no_work():
    """An import prints nothing, warns of nothing, starts no thread and compiles no kernel."""
    names = ", ".join(name for name, _ in modules())
    script = f"""
import numba.core.dispatcher as numba
def compile(*arguments):
    raise AssertionError("compiled at import")
numba.Dispatcher.compile = compile
import {names}, threading
assert threading.active_count() == 1
"""
    result = subprocess.run([sys.executable, "-B", "-W", "error", "-c", script], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == result.stderr == "", result.stderr


def test_plain_needs_no_numba_for_the_network():
    """With PLAIN=1 a network is trained and sampled without Numba being imported."""
    script = """
import sys, numpy as np, model, optimizer
config = model.Config(vocab=9, ctx=8, dim=8, layers=1, heads=2, kv_heads=1, hidden=8)
params = model.init_params(config)
averages, ids = optimizer.start(params), np.arange(8)[None] % 9
losses = []
for step in range(1, 30):
    loss, grads = model.loss_and_grads(params, config, ids[:, :-1], ids[:, 1:])
    losses.append(loss)
    optimizer.update(params, grads, averages, config, step, 0.02, muon_lr=0.02)
cache = model.Cache(params, config, 1, 8)
token = model.prefill(config, cache, ids[:, :3], np.array([3])).argmax(1)
assert losses[-1] < losses[0] / 2 and token == 3, losses
assert "numba" not in sys.modules
print(losses[0], losses[-1])
"""
    out = [subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PLAIN": plain}) for plain in ("1",)]
    assert out[0].returncode == 0, out[0].stderr
