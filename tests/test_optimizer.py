"""The optimizer: schedule, clipping, AdamW and Muon against plain NumPy."""
import numpy as np
import pytest

import kernels
import model
import optimizer


def network(dtype=np.float32, tied=True):
    """(params, config, a function step -> grads), small, with tall, wide and square matrices."""
    config = model.Config(vocab=37, ctx=8, dim=24, layers=2, heads=4, kv_heads=2, hidden=56,
                          tied=tied)

    def grads(step):
        rng = np.random.default_rng(step)
        return model.views(rng.normal(0, 0.1, model.count(config)[0]).astype(dtype), config)
    return model.init_params(config, 1, dtype), config, grads


def test_learning_rate_rises_and_falls_to_zero():
    """The rate rises over the first twentieth of the steps and is zero after the last."""
    rates = [optimizer.learning_rate(step, 100, 2.0) for step in range(101)]
    assert rates[0] == 2 / 5 and rates[4] == 2 and rates[-1] == 0
    assert all(a < b for a, b in zip(rates[:5], rates[1:5]))
    assert all(a > b for a, b in zip(rates[5:], rates[6:]))
    assert optimizer.learning_rate(0, 1, 2.0) == 2  # a run of one step learns something


def test_a_long_gradient_is_shortened_to_one_and_a_short_one_kept():
    """clip_scale returns the length over all parameters, and never a scale above 1."""
    grads = network()[2](0)
    for factor in (100, 1e-5):
        model.vector(grads)[:] *= factor
        norm, scale = optimizer.clip_scale(grads)
        assert abs(norm / np.linalg.norm(model.vector(grads)) - 1) < 1e-5
        assert scale == (1 / norm if factor == 100 else 1)


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
    """Five steps in float64 move each kind of parameter by its own rule, and decay no norm."""
    params, config, grads = network(np.float64, tied)
    averages = optimizer.start(params)
    expected = {name: p.copy() for name, p in params.items()}
    m1, m2 = ({name: np.zeros(p.shape) for name, p in params.items()} for _ in range(2))
    for step in range(1, 6):
        norm = optimizer.update(params, grads(step), averages, config, step, 0.01, 0.1, muon_lr)
        for name, p in expected.items():
            g = grads(step)[name] / max(1, norm)
            decay = 0.1 if p.ndim == 2 else 0
            if muon_lr and p.ndim == 2 and "layers" in name:
                muon_numpy(p, g, m1[name], muon_lr, decay, step)
            else:
                adamw_numpy(p, g, m1[name], m2[name], 0.01, decay, step)
    for name, p in expected.items():
        assert np.abs(params[name] - p).max() < 1e-9, name
    assert np.abs(averages["m1"] - np.concatenate([m.ravel() for m in m1.values()])).max() < 1e-12


@pytest.mark.parametrize("shape", [(24, 24), (56, 24), (24, 56), (128, 344), (1, 9)])
def test_orthogonalized_matrix_is_u_vt_of_the_svd(shape):
    """Newton-Schulz keeps both sets of singular vectors and brings the values near 1."""
    rng = np.random.default_rng(3)
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    s = np.geomspace(1, 0.05, min(shape))
    x = ((u * s) @ vt).astype(np.float32)
    out = np.stack([x, 100 * x, 0 * x])
    kernels.orthogonalize(out.reshape(-1), [shape] * 3, optimizer.NEWTON_SCHULZ, 5)
    assert np.abs(out[1] - out[0]).max() < 1e-5 and not out[2].any()
    out = out[0]
    inside = u.T @ out @ vt.T  # U^T (U S V^T) V: diagonal if the singular vectors agree
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-4
    assert 0.68 < np.diag(inside).min() and np.diag(inside).max() < 1.21
    assert np.abs(out - u @ inside @ vt).max() < 1e-4  # and nothing lies outside of them
