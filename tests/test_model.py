"""The whole network: every gradient, the KV cache, and the same network in PyTorch."""
import numpy as np
import pytest

import checkpoint
import model
from conftest import differences, relative_error


def test_every_gradient_is_the_central_difference(small):
    """Every parameter's gradient equals (loss(p + h) - loss(p - h)) / 2h, in float64."""
    params, config, ids, targets, mask = small
    _, grads = model.loss_and_grads(params, config, ids, targets, mask)
    for name, p in params.items():
        some = np.random.default_rng(3).choice(p.size, min(p.size, 8), replace=False)
        expected = differences(
            lambda: model.loss_and_grads(params, config, ids, targets, mask)[0], p, some)
        scale = np.abs(grads[name]).max()
        assert np.abs(grads[name].flat[some] - expected).max() < 1e-6 * scale, name


@pytest.mark.parametrize("B,rows", [(1, 512), (2, 512), (3, 5)])
def test_what_goes_through_at_a_time_changes_nothing(small, monkeypatch, B, rows):
    """Micro-batches of B sequences, logits of a few rows at a time: the same loss and gradients."""
    params, config, ids, targets, mask = small
    loss, grads = model.loss_and_grads(params, config, ids, targets, mask)
    monkeypatch.setattr(model, "HEAD_ROWS", rows)
    buffers = model.Buffers(config, B, 11, np.float64)
    again, parts = model.loss_and_grads(params, config, ids, targets, mask, buffers=buffers)
    assert abs(again - loss) < 1e-13
    assert relative_error(model.vector(parts), model.vector(grads)) < 1e-12


def test_loss_is_minus_log_of_the_targets_probability(small):
    """The loss is -log softmax(logits)[target], averaged over the mask; of no token it is 0."""
    params, config, ids, targets, mask = small
    logits = model.forward(params, config, ids)
    p = np.take_along_axis(np.exp(logits), targets[..., None], 2)[..., 0] / np.exp(logits).sum(2)
    assert relative_error(model.token_losses(params, config, ids, targets), -np.log(p)) < 1e-12
    loss, _ = model.loss_and_grads(params, config, ids, targets, mask)
    assert abs(loss + (np.log(p) * mask).sum() / mask.sum()) < 1e-12
    loss, grads = model.loss_and_grads(params, config, ids, targets, 0 * mask)
    assert loss == 0 and not model.vector(grads).any()


def test_the_future_is_unseen(small):
    """Changing token 7 leaves the logits of positions 0 to 6 the same bits."""
    params, config, ids, _, _ = small
    logits = model.forward(params, config, ids)
    ids[:, 7] = (ids[:, 7] + 1) % 37
    assert (model.forward(params, config, ids)[:, :7] == logits[:, :7]).all()


def test_cache_gives_the_logits_of_the_whole(small):
    """Prefill and decode give what one forward over the whole text gives; a cache has an end."""
    params, config, ids, _, _ = small
    logits = model.forward(params, config, ids)
    cache, lengths = model.Cache(params, config, 3, 16), np.array([2, 5, 3])
    first = model.prefill(config, cache, ids[:, :5], lengths)
    assert relative_error(first, logits[range(3), lengths - 1]) < 1e-12
    for rows in ([0, 1, 2], [0, 2], [2], [1, 0]):  # sequences may leave the batch and come back
        positions = cache.lengths[rows]
        out = model.decode(config, cache, ids[rows, positions], np.array(rows))
        assert relative_error(out, logits[rows, positions]) < 1e-12
    short = model.Cache(params, config, 3, 4)
    with pytest.raises(ValueError, match="fit into a cache"):
        model.prefill(config, short, ids[:, :5], lengths)
    short.lengths[:] = [2, 4, 3]
    with pytest.raises(ValueError, match="one is full"):
        model.decode(config, short, ids[:, 5], np.arange(3))


@pytest.mark.peer
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_pytorchs(tied, tmp_path):
    """Logits, loss and all gradients are those of transformers' Llama on a folder that we wrote."""
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    config = model.Config(vocab=301, ctx=64, dim=48, layers=3, heads=6, kv_heads=2, hidden=100,
                          tied=tied)
    params = model.init_params(config, 4)
    model.vector(params)[:] *= 3
    checkpoint.save(str(tmp_path / "llama"), params, config)
    llama = transformers.LlamaForCausalLM.from_pretrained(str(tmp_path / "llama"),
                                                          attn_implementation="eager")
    ids, targets = np.random.default_rng(5).integers(0, 301, (2, 4, 50))
    logits = llama(torch.tensor(ids)).logits
    assert relative_error(model.forward(params, config, ids), logits.detach().numpy()) < 1e-4
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1),
                                               torch.tensor(targets).flatten())
    theirs.backward()
    loss, grads = model.loss_and_grads(params, config, ids, targets)
    assert abs(loss - theirs.item()) < 1e-5 * loss
    expected = {name: p.grad.numpy() for name, p in llama.named_parameters()}
    assert set(expected) == set(grads)
    for name in grads:
        assert relative_error(grads[name], expected[name]) < 1e-4, name


def test_separate_arrays_do_as_parameters(small):
    """Parameters in arrays of their own are copied together; a missing one is named."""
    params, config, ids, targets, mask = small
    separate = {k: p.copy() for k, p in params.items()}
    loss, _ = model.loss_and_grads(separate, config, ids, targets, mask)
    assert loss == model.loss_and_grads(params, config, ids, targets, mask)[0]
    del separate["model.norm.weight"]
    with pytest.raises(ValueError, match="norm.weight"):
        model.pack(separate, config)


def test_what_does_not_fit_is_named(small):
    """Ids outside the vocabulary, too many or too few are a ValueError and never a bad read."""
    params, config, ids, _, mask = small
    for wrong, message in ((np.full((3, 11), 37), "token id 37 "),
                           (np.full((3, 11), -1), "token id -1 "),
                           (np.zeros((3, 17), int), "context of 16")):
        for function, *batch in ((model.forward, wrong), (model.loss_and_grads, wrong, ids),
                                 (model.loss_and_grads, ids, wrong)):
            with pytest.raises(ValueError, match=message):
                function(params, config, *batch)
    for batch in (ids[:, 1:], ids), (ids, ids, mask[:, 1:]), (ids[0], ids[0]):
        with pytest.raises(ValueError, match=r"must all be \(B,T\)"):
            model.loss_and_grads(params, config, *batch)


def test_grown_rows_look_like_old_ones(small):
    """New embedding rows have the mean and spread of the old ones, and nothing else changes."""
    params, config, *_ = small
    grown, wider = model.grow(params, config, 4000)
    old, new = params["model.embed_tokens.weight"], grown["model.embed_tokens.weight"]
    assert wider.vocab == 4000 and (new[:37] == old.astype(np.float32)).all()
    assert np.abs(new[37:].mean(0) - old.mean(0)).max() < 0.05
    assert np.abs(new[37:].std(0) / old.std(0) - 1).max() < 0.1
    for name in params.keys() - {"model.embed_tokens.weight", "lm_head.weight"}:
        assert (grown[name] == params[name].astype(np.float32)).all()
