"""The whole network: its gradients, PyTorch's, and files that others wrote or will read."""
import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest

import model
from conftest import differences, relative_error


# ---- Gradients ----

def test_every_gradient_is_the_central_difference(small):
    params, config, ids, targets, mask = small
    _, grads = model.loss_and_grads(params, config, ids, targets, mask)
    rng = np.random.default_rng(3)
    for name, p in params.items():
        places = rng.choice(p.size, min(p.size, 8), replace=False)

        def f():
            return model.loss_and_grads(params, config, ids, targets, mask)[0]
        expected = differences(f, p, places)
        scale = np.abs(grads[name]).max()
        assert np.abs(grads[name].flat[places] - expected).max() < 1e-6 * scale, name


def test_micro_batches_change_nothing(small):
    params, config, ids, targets, mask = small
    loss, grads = model.loss_and_grads(params, config, ids, targets, mask)
    for B in (1, 2):
        again, parts = model.loss_and_grads(params, config, ids, targets, mask,
                                            buffers=model.Buffers(config, B, 11, np.float64))
        assert abs(again - loss) < 1e-13
        assert relative_error(model.vector(parts), model.vector(grads)) < 1e-12


def test_rows_of_logits_in_blocks_change_nothing(small, monkeypatch):
    params, config, ids, targets, mask = small
    loss, grads = model.loss_and_grads(params, config, ids, targets, mask)
    monkeypatch.setattr(model, "HEAD_ROWS", 5)
    again, parts = model.loss_and_grads(params, config, ids, targets, mask)
    assert abs(again - loss) < 1e-13
    assert relative_error(model.vector(parts), model.vector(grads)) < 1e-12


def test_loss_is_minus_log_of_the_targets_probability(small):
    params, config, ids, targets, mask = small
    logits = model.forward(params, config, ids)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])
    assert relative_error(model.token_losses(params, config, ids, targets), nats) < 1e-12
    loss, _ = model.loss_and_grads(params, config, ids, targets, mask)
    assert abs(loss - (nats * mask).sum() / mask.sum()) < 1e-12


def test_nothing_to_learn_is_no_loss_and_no_gradient(small):
    params, config, ids, targets, mask = small
    loss, grads = model.loss_and_grads(params, config, ids, targets, np.zeros_like(mask))
    assert loss == 0 and (model.vector(grads) == 0).all()


def test_the_future_is_unseen(small):
    params, config, ids, _, _ = small
    logits = model.forward(params, config, ids)
    ids[:, 7] = (ids[:, 7] + 1) % 37
    assert (model.forward(params, config, ids)[:, :7] == logits[:, :7]).all()


def test_cache_gives_the_logits_of_the_whole(small):
    params, config, ids, _, _ = small
    logits = model.forward(params, config, ids)
    cache, lengths = model.Cache(params, config, 3, 16), np.array([2, 5, 3])
    first = model.prefill(config, cache, ids[:, :5], lengths)
    assert relative_error(first, logits[range(3), lengths - 1]) < 1e-12
    for rows in ([0, 1, 2], [0, 2], [2], [1, 0]):  # sequences may leave the batch and come back
        rows = np.array(rows)
        places = cache.lengths[rows]
        out = model.decode(config, cache, ids[rows, places], rows)
        assert relative_error(out, logits[rows, places]) < 1e-12


def test_separate_arrays_do_as_parameters(small):
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
    model.save(folder, params, config)
    return transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")


@pytest.mark.peer
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_pytorchs(tied, tmp_path):
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


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied,scaling,parts", [
    (False, None, "5GB"), (True, None, "20KB"),
    (False, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 16}, "5GB")])
def test_what_transformers_saved_opens_with_equal_logits(kind, tied, scaling, parts, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=56, num_hidden_layers=2, rope_theta=500.0,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6,
        initializer_range=0.3, tie_word_embeddings=tied, rope_scaling=scaling))
    theirs.to(getattr(torch, kind)).save_pretrained(tmp_path / "m", max_shard_size=parts)
    if parts == "20KB":
        assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    params, config = model.load(str(tmp_path / "m"))
    ids = np.random.default_rng(0).integers(0, 99, (2, 60))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    expected = theirs(torch.tensor(ids)).logits.detach().numpy()
    assert relative_error(model.forward(params, config, ids), expected) < 1e-4


# ---- Files ----

def test_a_saved_folder_loads_to_the_same_bits(small, tmp_path):
    _, config, ids, _, _ = small
    params = model.init_params(replace(config, rope_scaling=(8.0, 1.0, 4.0, 8)), 2)
    folder = str(tmp_path / "checkpoint")
    for _ in range(2):  # the second save replaces the first
        model.save(folder, params, config, optimizer={"m1": np.ones(3, np.float32)},
                   state={"step": 7})
    again, read = model.load(folder)
    assert read == config and (model.vector(again) == model.vector(params)).all()
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]
    assert json.load(open(os.path.join(folder, "state.json"))) == {"step": 7}
    moments = dict(model.read_safetensors(os.path.join(folder, "optimizer.safetensors")))
    assert (moments["m1"] == 1).all()


def test_the_real_stories_model_tells_its_story(real):
    """A Llama that others trained, from llama2.c's file: greedy from the BOS token 1."""
    params, config = model.load(real("stories260K.bin"))
    data, at, words = open(real("tok512.bin"), "rb").read(), 4, []
    for _ in range(config.vocab):
        _, n = struct.unpack_from("<fi", data, at)
        words.append(data[at + 8:at + 8 + n].decode())
        at += 8 + n
    cache, said, row = model.Cache(params, config, 1, 100), "", np.array([0])
    logits = model.prefill(config, cache, np.array([[1]]), np.array([1]))
    for _ in range(80):
        token = logits.argmax(1)
        said += words[token[0]]
        logits = model.decode(config, cache, token, row)
    assert said.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.")


def test_broken_files_are_named_with_what_is_wrong(small, tmp_path):
    params, config, _, _, _ = small
    folder = str(tmp_path / "m")
    model.save(folder, params, config)
    weights = os.path.join(folder, "model.safetensors")
    whole = open(weights, "rb").read()
    for content, message in [(b"", "cut short"), (b"PK\x03\x04" * 9, "cut short"),
                             (struct.pack("<Q", 9) + b"no header" + b"." * 99, "not JSON"),
                             (whole[:-1], "cut short or damaged"), (whole[:1000], "cut short")]:
        open(weights, "wb").write(content)
        with pytest.raises(ValueError, match=message):
            model.load(folder)
    description = json.load(open(os.path.join(folder, "config.json")))
    for change, message in [({"model_type": "gpt2"}, "'gpt2'"),
                            ({"attention_bias": True}, "biases"),
                            ({"head_dim": 99}, "head_dim"), ({"hidden_act": "gelu"}, "'gelu'"),
                            ({"rope_scaling": {"type": "yarn"}}, "'yarn'"),
                            ({"num_key_value_heads": 3}, "must divide")]:
        open(weights, "wb").write(whole)
        json.dump(description | change, open(os.path.join(folder, "config.json"), "w"))
        with pytest.raises(ValueError, match=message):
            model.load(folder)
    with pytest.raises(ValueError, match="python train.py"):
        model.load(str(tmp_path / "nowhere"))
    short = tmp_path / "short.bin"
    short.write_bytes(struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + bytes(1000))
    with pytest.raises(ValueError, match="cut short"):
        model.load(str(short))
    short.write_bytes(b"not a model at all, by any means")
    with pytest.raises(ValueError, match="not a llama2.c model"):
        model.load(str(short))


def test_ids_outside_are_named(small):
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
