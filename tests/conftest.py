"""What the tests share: where the real inputs are, and a network small enough for differences."""
import os
import signal
import sys

import numpy as np
import pytest

import model


# What a shell starts in the background ignores SIGINT, and so would the scripts started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def command(monkeypatch):
    """command(script, *flags): its main() as if it were typed."""
    def run(script, *flags):
        monkeypatch.setattr(sys, "argv", [script.__name__ + ".py", *map(str, flags)])
        return script.main()
    return run


@pytest.fixture
def real():
    """Path of a real input by name, from the folder in TEST_DATA (see the README)."""
    folder = os.environ.get("TEST_DATA")

    def find(name):
        path = os.path.join(folder or "", name)
        if not folder or not os.path.exists(path):
            pytest.skip(f"TEST_DATA names no folder with {name}")
        return path
    return find


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def small(request):
    """(params, config, ids, targets, mask) in float64: odd sizes, two query heads a kv head."""
    config = model.Config(vocab=37, ctx=16, dim=24, layers=2, heads=4, kv_heads=2, hidden=21,
                          tied=request.param)
    rng = np.random.default_rng(1)
    params = model.init_params(config, 1, np.float64)
    flat = model.vector(params)
    flat += rng.normal(0, 0.2, flat.size)  # norms off 1, no symmetry
    ids, targets = rng.integers(0, 37, (2, 3, 11))
    return params, config, ids, targets, rng.integers(0, 2, (3, 11))


def differences(f, x, indices, h=1e-5):
    """Central differences of the scalar f() by x.flat[index], for each index."""
    def at(index, value):
        old, x.flat[index] = x.flat[index], value
        result, x.flat[index] = f(), old
        return result

    return np.array([(at(i, x.flat[i] + h) - at(i, x.flat[i] - h)) / (2 * h) for i in indices])


def relative_error(found, expected):
    """Largest deviation over the length scale of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)
