"""The whole network: every gradient, the KV cache, and the same network in PyTorch."""
import numpy as np
import pytest

import checkpoint
import model
from conftest import differences, relative_error


# ---- Gradients ----

def test_every_gradient_is_the_central_difference(small):
    """Every parameter's gradient equals (loss(p + h) - loss(p - h)) / 2h, in float64."""
    params, config, ids, targets, mask = small
    _, grads = model.loss_and_grads(params, config, ids, targets, mask)
    rng = np.random.default_rng(3)
    for name, p in params.items():
        positions = rng.choice(p.size, min(p.size, 8), replace=False)

        def f():
            return model.loss_and_grads(params, config, ids, targets, mask)[0]
        expected = differences(f, p, positions)
        scale = np.abs(grads[name]).max()
        assert np.abs(grads[name].flat[positions] - expected).max() < 1e-6 * scale, name


def test_micro_batches_change_nothing(small):
    """The gradient of a sum is the sum of the gradients, however the batch is split."""
    params, config, ids, targets, mask = small
    loss, grads = model.loss_and_grads(params, config, ids, targets, mask)
    for B in (1, 2):
        again, parts = model.loss_and_grads(params, config, ids, targets, mask,
                                            buffers=model.Buffers(config, B, 11, np.float64))
        assert abs(again - loss) < 1e-13
        assert relative_error(model.vector(parts), model.vector(grads)) < 1e-12


def test_rows_of_logits_in_blocks_change_nothing(small, monkeypatch):
    """Logits made 5 rows at a time give the loss and gradients of logits made at once."""
    params, config, ids, targets, mask = small
    loss, grads = model.loss_and_grads(params, config, ids, targets, mask)
    monkeypatch.setattr(model, "HEAD_ROWS", 5)
    again, parts = model.loss_and_grads(params, config, ids, targets, mask)
    assert abs(again - loss) < 1e-13
    assert relative_error(model.vector(parts), model.vector(grads)) < 1e-12


def test_loss_is_minus_log_of_the_targets_probability(small):
    """The loss is -log softmax(logits)[target], averaged over the mask."""
    params, config, ids, targets, mask = small
    logits = model.forward(params, config, ids)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])
    assert relative_error(model.token_losses(params, config, ids, targets), nats) < 1e-12
    loss, _ = model.loss_and_grads(params, config, ids, targets, mask)
    assert abs(loss - (nats * mask).sum() / mask.sum()) < 1e-12


def test_nothing_to_learn_is_no_loss_and_no_gradient(small):
    """A batch whose mask is all zeros has loss 0 and gradient 0, and no division by zero."""
    params, config, ids, targets, mask = small
    loss, grads = model.loss_and_grads(params, config, ids, targets, np.zeros_like(mask))
    assert loss == 0 and (model.vector(grads) == 0).all()


def test_the_future_is_unseen(small):
    """Changing token 7 leaves the logits of positions 0 to 6 the same bits."""
    params, config, ids, _, _ = small
    logits = model.forward(params, config, ids)
    ids[:, 7] = (ids[:, 7] + 1) % 37
    assert (model.forward(params, config, ids)[:, :7] == logits[:, :7]).all()


def test_cache_gives_the_logits_of_the_whole(small):
    """Prefill and decode, row by row, give what one forward over the whole text gives."""
    params, config, ids, _, _ = small
    logits = model.forward(params, config, ids)
    cache, lengths = model.Cache(params, config, 3, 16), np.array([2, 5, 3])
    first = model.prefill(config, cache, ids[:, :5], lengths)
    assert relative_error(first, logits[range(3), lengths - 1]) < 1e-12
    for rows in ([0, 1, 2], [0, 2], [2], [1, 0]):  # sequences may leave the batch and come back
        rows = np.array(rows)
        positions = cache.lengths[rows]
        out = model.decode(config, cache, ids[rows, positions], rows)
        assert relative_error(out, logits[rows, positions]) < 1e-12


def test_separate_arrays_do_as_parameters(small):
    """Parameters in arrays of their own are copied together; a missing one is named."""
    params, config, ids, targets, mask = small
    separate = {k: p.copy() for k, p in params.items()}
    loss, _ = model.loss_and_grads(separate, config, ids, targets, mask)
    assert loss == model.loss_and_grads(params, config, ids, targets, mask)[0]
    with pytest.raises(ValueError, match="norm.weight"):
        model.pack({k: p for k, p in params.items() if k != "model.norm.weight"}, config)


# ---- Against PyTorch ----

def torch_twin(config, params, folder):
    """transformers' own LlamaForCausalLM from a folder that we wrote."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    checkpoint.save(folder, params, config)
    return transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")


@pytest.mark.peer
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_pytorchs(tied, tmp_path):
    """Logits, loss and all gradients are those of transformers' LlamaForCausalLM."""
    torch = pytest.importorskip("torch")
    config = model.Config(vocab=301, ctx=64, dim=48, layers=3, heads=6, kv_heads=2, hidden=100,
                          tied=tied)
    params = model.init_params(config, 4)
    model.vector(params)[:] *= 3
    twin = torch_twin(config, params, str(tmp_path / "twin"))
    rng = np.random.default_rng(5)
    ids, targets = rng.integers(0, 301, (2, 4, 50))
    logits = twin(torch.tensor(ids)).logits
    assert relative_error(model.forward(params, config, ids), logits.detach().numpy()) < 1e-4
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1),
                                               torch.tensor(targets).flatten())
    theirs.backward()
    loss, grads = model.loss_and_grads(params, config, ids, targets)
    assert abs(loss - theirs.item()) < 1e-5 * loss
    for name, p in twin.named_parameters():
        if name in grads:
            assert relative_error(grads[name], p.grad.numpy()) < 1e-4, name
    assert {n for n, _ in twin.named_parameters()} == set(grads)


def test_ids_outside_are_named(small):
    """An id outside the vocabulary, or a text beyond the context, is a ValueError, never a bad read."""
    params, config, ids, targets, _ = small
    for bad in (37, -1):
        wrong = ids.copy()
        wrong[1, 2] = bad
        with pytest.raises(ValueError, match=f"token id {bad} "):
            model.forward(params, config, wrong)
        with pytest.raises(ValueError, match=f"token id {bad} "):
            model.loss_and_grads(params, config, ids, wrong)
    with pytest.raises(ValueError, match="context of 16"):
        model.forward(params, config, np.zeros((1, 17), int))


def test_grown_rows_look_like_old_ones(small):
    """New embedding rows have the mean and spread of the old ones, and nothing else changes."""
    params, config, ids, _, _ = small
    grown, wider = model.grow(params, config, 4000)
    old, new = params["model.embed_tokens.weight"], grown["model.embed_tokens.weight"]
    assert wider.vocab == 4000 and (new[:37] == old.astype(np.float32)).all()
    assert np.abs(new[37:].mean(0) - old.mean(0)).max() < 0.05
    assert np.abs(new[37:].std(0) / old.std(0) - 1).max() < 0.1
    same, _ = model.grow(params, config, config.vocab)
    assert (model.vector(same) == model.vector(params).astype(np.float32)).all()


def test_what_is_not_finite_is_named(small):
    """The first array with a NaN is named, so that a failed run can say where it went wrong."""
    params = small[0]
    assert model.not_finite(params) is None
    params["model.layers.1.mlp.up_proj.weight"][3, 4] = np.inf
    assert model.not_finite(params) == "model.layers.1.mlp.up_proj.weight"
