"""The arithmetic of the network (and the loops of bpe.py and data.py), twice: plain and fast.

plain.py is the complete algorithm in NumPy, with its derivations: read it first. rows.py (and how
to read Numba), matmul.py and attention.py do the same faster, in functions of the same names. With
PLAIN=1 in the environment the network runs on plain.py, and Numba is not imported here.

Numba compiles a kernel at its first call and keeps the machine code on disk, so only the first run
waits. It compiles again when the kernel's own file has changed, but not when the change is in
another file whose functions the kernel calls: the old code would run without a word. So the folder
for machine code is named by a hash of all files in kernels/.
"""
import atexit
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

KEPT = 2  # folders of machine code; the older one may serve a run that began before an edit


def machine_code_folder():
    """Path of a folder for machine code that can be written to; older ones beside it are removed.

    It lies in the folder that NUMBA_CACHE_DIR names. Without that it lies in __pycache__, or where
    that is read-only in the user's cache, or else in a temporary folder that goes with the run."""
    here, content = Path(__file__).resolve().parent, hashlib.sha256()
    for path in sorted(here.glob("*.py")):
        content.update(path.read_bytes())
    name = "byhand-" + content.hexdigest()[:16]
    given = Path(os.environ.get("NUMBA_CACHE_DIR", ""))
    if given.name.startswith("byhand-"):  # set below, by the process that started this one
        given = given.parent
    for parent in [given] if given.name else [here / "__pycache__", Path("~/.cache/byhand")]:
        try:
            folder = parent.expanduser() / name
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # fails where the disk is read-only
            os.utime(folder)  # the last one used is the newest
            by_age = sorted(folder.parent.glob("byhand-*"), key=os.path.getmtime)
            for old in by_age[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
            return str(folder)
        except (OSError, RuntimeError):  # RuntimeError: there is no home
            pass
    parent = tempfile.mkdtemp(prefix="byhand")  # nobody else can write here
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    return os.path.join(parent, name)


os.environ["NUMBA_CACHE_DIR"] = machine_code_folder()
if "numba" in sys.modules:  # it has read the environment already
    sys.modules["numba"].config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]

from kernels.plain import probabilities, unflatten  # noqa: E402

if os.environ.get("PLAIN", "0") not in ("", "0"):
    from kernels.plain import (adamw, attention, attention_backward, attention_step,
                               fused_attention_backward, fused_attention_forward, matmul, nesterov,
                               orthogonalize, rmsnorm, rmsnorm_backward, rope, sample_tokens,
                               scatter_add, softmax_cross_entropy, store_kv, sum_of_squares, swiglu,
                               swiglu_backward)
else:
    from kernels.attention import (attention, attention_backward, attention_step,
                                   fused_attention_backward, fused_attention_forward)
    from kernels.matmul import matmul, orthogonalize
    from kernels.rows import (adamw, nesterov, rmsnorm, rmsnorm_backward, rope, sample_tokens,
                              scatter_add, softmax_cross_entropy, store_kv, sum_of_squares, swiglu,
                              swiglu_backward)
