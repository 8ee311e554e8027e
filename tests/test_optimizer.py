"""The optimizer: schedule, clipping, AdamW and Muon against plain NumPy."""
import numpy as np
import pytest

import kernels
import model
import optimizer


def test_learning_rate_rises_and_falls_to_zero():
    """The rate rises over the first twentieth of the steps and is zero after the last."""
    rates = [optimizer.learning_rate(step, 100, 2.0) for step in range(101)]
    assert rates[0] == 2 / 5 and rates[4] == 2 and rates[-1] == 0
    assert (np.diff(rates[:5]) > 0).all() and (np.diff(rates[5:]) < 0).all()
    assert optimizer.learning_rate(0, 1, 2.0) == 2  # a run of one step learns something


def adamw_numpy(p, g, m1, m2, lr, decay, step):
    """Algorithm 2 of Loshchilov & Hutter 2019, as written there."""
    m1[:] = 0.9 * m1 + 0.1 * g
    m2[:] = 0.95 * m2 + 0.05 * g ** 2
    p[:] = p - lr * decay * p - lr * m1 / (1 - 0.9**step) / (np.sqrt(m2 / (1 - 0.95**step)) + 1e-8)


def muon_numpy(p, g, m1, lr, decay, step):
    """Jordan et al. 2024 on one matrix, with the polynomial applied to the singular values."""
    momentum = 0.85 + 0.1 * min(1, step / 300)
    m1[:] = momentum * m1 + (1 - momentum) * g
    u, s, vt = np.linalg.svd((1 - momentum) * g + momentum * m1, full_matrices=False)
    s /= np.sqrt((s ** 2).sum())
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
    rows, columns = p.shape
    p[:] = p - lr * decay * p - lr * max(1, rows / columns) ** 0.5 * (u * s) @ vt


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_update_is_its_plain_numpy_version(tied, muon_lr):
    """Short gradients, then clipped ones, move each kind of parameter by its own rule."""
    config = model.Config(vocab=37, ctx=8, dim=24, layers=2, heads=4, kv_heads=2, hidden=56,
                          tied=tied)
    params, rng = model.init_params(config, 1, np.float64), np.random.default_rng(0)
    averages, expected = optimizer.start(params), {name: p.copy() for name, p in params.items()}
    m1, m2 = ({name: np.zeros(p.shape) for name, p in params.items()} for _ in range(2))
    for step in range(1, 6):
        flat = rng.normal(0, 0.1 if step > 2 else 1e-4, model.count(config)[0])
        length = np.linalg.norm(flat)
        for name, g in model.views(flat / max(1, length), config).items():
            p, decay = expected[name], 0.1 if g.ndim == 2 else 0
            if muon_lr and g.ndim == 2 and "layers" in name:
                muon_numpy(p, g, m1[name], muon_lr, decay, step)
            else:
                adamw_numpy(p, g, m1[name], m2[name], 0.01, decay, step)
        grads = model.views(flat, config)
        norm = optimizer.update(params, grads, averages, config, step, 0.01, 0.1, muon_lr)
        assert abs(norm / length - 1) < 1e-12 and (norm > 1) == (step > 2)
    for name, p in expected.items():
        assert np.abs(params[name] - p).max() < 1e-9, name
    assert np.abs(averages["m1"] - np.concatenate([m.ravel() for m in m1.values()])).max() < 1e-12


@pytest.mark.parametrize("shape", [(24, 24), (56, 24), (128, 344), (1, 9)])
def test_orthogonalized_matrix_is_u_vt_of_the_svd(shape):
    """Newton-Schulz keeps the singular vectors, brings the values near 1, and ignores length."""
    u, s, vt = np.linalg.svd(np.random.default_rng(3).standard_normal(shape), full_matrices=False)
    x = (u * np.geomspace(1, 0.05, s.size) @ vt).astype(np.float32)
    out = np.stack([x, 100 * x, 0 * x])
    kernels.orthogonalize(out.reshape(-1), [shape] * 3, optimizer.NEWTON_SCHULZ, 5)
    values = np.diag(u.T @ out[0] @ vt.T)
    assert 0.68 < values.min() and values.max() < 1.21
    assert np.abs(out[0] - u * values @ vt).max() < 1e-4
    assert np.abs(out[1] - out[0]).max() < 1e-5 and not out[2].any()
