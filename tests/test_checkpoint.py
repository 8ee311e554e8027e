"""Checkpoints: the same bits again, other programs' files, and damage that is named."""
import itertools
import json
import os
import random
import signal
import struct
from dataclasses import replace

import numpy as np
import pytest

import bpe
import checkpoint
import model
import sample
from conftest import relative_error
from formats import llama2c
from test_bpe import ODD, damaged, mutate, rewrite


@pytest.fixture
def tiny():
    """(params, config, tokenizer) of a chat model with a vocabulary of 290."""
    tokenizer = bpe.train(["a cat and a hat and a bat"], 262, (bpe.END,))
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    ids = tokenizer.special_tokens
    config = model.Config(vocab=tokenizer.vocab_size, ctx=16, dim=8, layers=1, heads=2, kv_heads=1,
                          hidden=12, bos=(ids[bpe.END],), eos=(ids["<|im_end|>"],))
    return model.init_params(config, 2), config, tokenizer


def change_json(path, **changes):
    """Edits a JSON file as a person would, checksum removed."""
    content = json.load(open(path)) | changes
    content.pop("checksum", None)
    json.dump(content, open(path, "w"))


# ---- Our own ----

@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_folder_loads_to_the_same_bits(tied, tiny, tmp_path):
    """Parameters, sizes, averages, state and log come back."""
    _, config, tokenizer = tiny
    config = replace(config, rope_scaling=(8.0, 1.0, 4.0, 8.0), tied=tied)
    params = model.init_params(config, 2)
    folder, m1 = str(tmp_path / "checkpoint"), model.vector(params) * 2
    for _ in range(2):  # the second save replaces the first
        checkpoint.save_run(folder, "train", (params, config, tokenizer), {"m1": m1}, {"step": 7},
                            [{"step": 7, "loss": 1.5}])
    (again, read, _), averages, state, log = checkpoint.load_run(folder, "train")
    assert read == config and (model.vector(again) == model.vector(params)).all()
    assert (averages["m1"] == m1).all() and state["step"] == 7 and log == [{"step": 7, "loss": 1.5}]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    with pytest.raises(ValueError, match="not a run of sft.py"):
        checkpoint.load_run(folder, "sft")


def test_saving_touches_nothing_else(tiny, tmp_path):
    """Other files were once deleted, and a link was replaced by a folder."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/precious.txt").write_text("keep me")
    with pytest.raises(ValueError, match="holds docs and is no checkpoint"):
        checkpoint.save(str(tmp_path), *tiny)
    assert (tmp_path / "docs/precious.txt").read_text() == "keep me"
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for _ in range(2):
        checkpoint.save(str(tmp_path / "out"), *tiny)
        (tmp_path / "out/notes.txt").write_text("mine")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk/config.json").exists()
    assert (tmp_path / "disk/notes.txt").read_text() == "mine"


def dying(function, calls, n):
    """function, but the process is killed before call n of all that count in `calls`."""
    def call(*args, **named):
        if next(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **named)
    return call


def test_a_save_that_is_killed_leaves_the_old_or_the_new(tiny, tmp_path):
    """SIGKILL before each call that changes the disk: the folder opens as the one or the other."""
    folder, seen, (params, config, tokenizer) = str(tmp_path / "m"), set(), tiny
    for n in range(1, 60):
        checkpoint.save_run(folder, "train", tiny, {"m1": np.ones(3)}, {"step": 1}, [])
        if not (child := os.fork()):
            try:
                calls = itertools.count(1)
                for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
                    setattr(os, name, dying(getattr(os, name), calls, n))
                params["model.norm.weight"][:] = 5
                checkpoint.save(folder, params, config, tokenizer)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found, _, _ = checkpoint.open_model(folder)
        new = bool((found["model.norm.weight"] == 5).all())
        assert new or (found["model.norm.weight"] == 1).all()
        # Old averages would not fit the new weights.
        for name in ("state.json", "optimizer.safetensors"):
            assert new != os.path.exists(f"{folder}/{name}")
        assert not os.path.exists(f"{folder}/.ready")
        seen.add(new)
        if status == 0:
            break
    assert status == 0 and n > 20 and seen == {False, True}


def test_exported_tokenizer_config_names_only_tokens_that_exist(tiny, tmp_path):
    """A tokenizer without end tokens gets no eos_token."""
    for tokenizer, eos, pad in ((tiny[2], "<|im_end|>", bpe.END),
                                (bpe.train(["a cat and a hat"], 260), None, None)):
        checkpoint.save(str(tmp_path / "m"), *tiny[:2], tokenizer)
        about = json.load(open(tmp_path / "m" / "tokenizer_config.json"))
        assert (about.get("eos_token"), about.get("pad_token")) == (eos, pad)


@pytest.mark.peer
def test_transformers_masks_the_assistant_as_we_do(tiny, tmp_path):
    """The exported chat template gives our ids, and its assistant mask is our loss mask."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    checkpoint.save(str(tmp_path / "m"), *tiny)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    talk = [{"role": "user", "content": "a cat?"}, {"role": "assistant", "content": "a hat"}] * 2
    out = theirs.apply_chat_template(talk, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = bpe.render_chat(tiny[2], talk)
    assert list(out["input_ids"]) == ids and list(out["assistant_masks"]) == mask


# ---- Other people's ----

@pytest.mark.peer
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied,scaling,parts", [
    (False, None, "5GB"), (True, None, "20KB"),
    (False, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 16}, "5GB")])
def test_what_transformers_saved_opens_with_equal_logits(kind, tied, scaling, parts, tmp_path):
    """In parts, in half precision, with Llama 3's rope."""
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
    params, config = checkpoint.load(str(tmp_path / "m"))
    ids = np.random.default_rng(0).integers(0, 99, (2, 60))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    expected = theirs(torch.tensor(ids)).logits.detach().numpy()
    assert relative_error(model.forward(params, config, ids), expected) < 1e-4


def test_what_a_checkpoint_says_of_ids_is_read(tiny, tmp_path):
    """Lists of ids too; generation_config.json goes first; ids that no token has are unused."""
    (params, config, tokenizer), folder = tiny, str(tmp_path / "m")
    n = tokenizer.vocab_size
    checkpoint.save(folder, *model.grow(params, config, n + 6), tokenizer)
    assert checkpoint.open_model(folder)[1].unused == tuple(range(n, n + 6))
    change_json(folder + "/config.json", bos_token_id=3, eos_token_id=[4, 5])
    read = checkpoint.read_config(folder)
    assert (read.bos, read.eos) == ((3,), (4, 5))
    json.dump({"eos_token_id": [7, 8]}, open(folder + "/generation_config.json", "w"))
    assert checkpoint.read_config(folder).eos == (7, 8)


def test_the_real_stories_model_tells_its_story(real):
    """llama2.c's files, greedy from the BOS token 1."""
    params, config, tokenizer = checkpoint.open_model(real("stories260K.bin"), real("tok512.bin"))
    new = sample.generate(params, config, [config.bos], 120, temperature=0)[0]
    assert tokenizer.decode(new).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too "
        "high.\n")


def test_the_real_llama2c_tokenizer(real):
    """Text comes back, whole words are one token, and text never becomes a marker."""
    tokenizer = llama2c.Tokenizer(real("tok512.bin"))
    assert tokenizer.vocab_size == 512 and tokenizer.special_tokens == {bpe.END: 1}
    for text in ("Once upon a time", "a\nb", " two  spaces", "naïve 東京 🙂", "",
                 "<s> </s> <0x0A>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.decode([1, *ids]) == text
        assert not {0, 1, 2} & set(ids)
    assert [tokenizer.token_bytes(k) for k in tokenizer.encode("Once upon")] == [b" Once", b" upon"]
    assert tokenizer.encode("\n")[-1] == 13
    assert tokenizer.encode("東")[1:] == [3 + byte for byte in "東".encode()]


def test_llama2c_merges_the_best_score_first(tmp_path):
    """With ab -2 and ba -1, "aba" is a and ba; damaged files are named."""
    pieces = [(b"<unk>", 0), (b"<s>", 0), (b"</s>", 0),
              *((f"<0x{k:02X}>".encode(), 0) for k in range(256)),
              (b" ", -9), (b"a", -9), (b"b", -9), (b"ab", -2), (b"ba", -1),
              (b"<", -9), (b"s", -9), (b">", -9), (b"<s", -5)]
    path = tmp_path / "tiny.bin"
    content = struct.pack("<i", 6) + b"".join(struct.pack("<fi", s, len(t)) + t for t, s in pieces)
    path.write_bytes(content)
    tokenizer = llama2c.Tokenizer(path)
    assert [tokenizer.tokens[k] for k in tokenizer.encode("aba")] == [b" ", b"a", b"ba"]
    assert [tokenizer.tokens[k] for k in tokenizer.encode("<s>")] == [b" ", b"<s", b">"]
    for wrong in (content[:-2], content[:200], b"", b"text that is no tokenizer at all" * 30):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="tiny.bin"):
            llama2c.Tokenizer(path)


def refused(path, why):
    """Loading is one ValueError that says why."""
    with pytest.raises(ValueError, match=why):
        checkpoint.load(str(path))


def test_broken_files_are_named_with_what_is_wrong(tiny, tmp_path):
    """Cut short, or something else; no JSON; no checkpoint at all."""
    checkpoint.save(str(tmp_path), *tiny[:2])
    weights, about = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    for content, why in [(b"", "cut short"), (b"PK\x03\x04" * 5000, "cut short"),
                         (struct.pack("<Q", 9) + b"no header" + b"." * 20_000, "no JSON"),
                         (whole[:-1], "cut short"), (whole[:1000], "cut short")]:
        weights.write_bytes(content)
        refused(tmp_path, why)
    about.write_text(about.read_text().replace("10000.0", "20000.0"))
    refused(tmp_path, "damaged, or changed by hand")
    about.write_text("[1]")
    refused(tmp_path, "not a JSON object")
    refused(tmp_path / "nowhere", "python train.py")
    for content, why in [(b"not a model at all, by any means", "not a llama2.c model"), (
            struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + bytes(1000), "cut short or damaged")]:
        (tmp_path / "short.bin").write_bytes(content)
        refused(tmp_path / "short.bin", why)


@pytest.mark.parametrize("changes, why", [
    ({"model_type": "gpt2"}, "'gpt2'"), ({"attention_bias": True}, "attention_bias"),
    ({"head_dim": 99}, "head_dim"), ({"hidden_act": "gelu"}, "'gelu'"),
    ({"rope_scaling": {"type": "yarn"}}, "'yarn'"), ({"rope_scaling": "linear"}, "linear"),
    ({"num_key_value_heads": 3}, "must divide"), ({"vocab_size": 10**12}, "vocab_size"),
    ({"vocab_size": 10**6}, "more than"), ({"num_hidden_layers": 10**9}, "num_hidden"),
    ({"hidden_size": None}, "hidden_size"), ({"rms_norm_eps": "x"}, "rms_norm_eps"),
    ({"eos_token_id": "end"}, "no token id")])
def test_what_is_no_plain_llama_is_refused_by_name(changes, why, tiny, tmp_path):
    """A config.json that asks for what model.py does not do, or that is damaged."""
    checkpoint.save(str(tmp_path), *tiny[:2])
    change_json(tmp_path / "config.json", **changes)
    refused(tmp_path, why)


@pytest.mark.parametrize("n", [20, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "optimizer.safetensors",
                                  "state.json", "tokenizer.json"])
def test_damage_is_named_or_harmless(name, n, tiny, tmp_path):
    """A file of a run, cut off or with a flipped bit: the same run, or an error that names it."""
    folder, expected = str(tmp_path / "m"), model.vector(tiny[0])
    checkpoint.save_run(folder, "train", tiny, {"m1": expected + 1}, {"step": 3}, [])
    for _ in damaged(tmp_path / "m" / name, n):
        try:
            (params, config, tokenizer), averages, state, _ = checkpoint.load_run(folder, "train")
        except ValueError as error:
            assert folder in str(error), error
            continue
        assert (model.vector(params) == expected).all() and config == tiny[1]
        assert tokenizer.fingerprint() == tiny[2].fingerprint()
        assert (averages["m1"] == expected + 1).all() and state["step"] == 3


def bin_file(rng):
    """A small llama2.c file, its header changed in up to three numbers, mostly of the size that the
    header asks for."""
    numbers = [8, 12, 1, 2, 1, 9, 4]  # dim, hidden, layers, heads, kv heads, vocabulary, context
    for _ in range(rng.randrange(4)):
        numbers[rng.randrange(7)] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, -1, -9, 1 << 30, -1 << 31])
    dim, hidden, layers, heads, kv_heads, vocab, ctx = numbers
    D = dim // (heads or 1)
    n = (abs(vocab) * dim * (1 + (vocab < 0)) + dim + ctx * D
         + layers * (2 * dim + 2 * dim * dim + 2 * D * kv_heads * dim + 3 * hidden * dim))
    n_bytes = 4 * n + rng.choice([0, 0, 0, 0, 1, -4])
    return struct.pack("<7i", *numbers) + bytes(n_bytes if 0 <= n_bytes < 20_000 else 100)


def mutated(rng, whole, name):
    """A file with a changed node or two in its JSON (safetensors: its header), or some bytes."""
    if name == "model.bin":
        return bin_file(rng)
    size = struct.unpack("<Q", whole[:8])[0] if name == "model.safetensors" else None
    text, rest = (whole[8:8 + size], whole[8 + size:]) if size else (whole, b"")
    for _ in range(rng.randrange(3)):
        text = json.dumps(mutate(rng, json.loads(text))).encode()
    content = (struct.pack("<Q", len(text)) if size else b"") + text + rest
    if rng.random() < 0.3:
        at = rng.randrange(min(len(content), 3000))
        new = rng.choice([b"", rng.randbytes(3), json.dumps(rng.choice(ODD)).encode()])
        content = content[:at] + new + content[at + rng.randrange(9):]
    return content


@pytest.mark.parametrize("n", [300, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors",
                                  "model.safetensors.index.json", "model.bin"])
def test_any_file_gives_a_network_or_a_valueerror(name, n, tiny, tmp_path):
    """Mutated files without checksums: parameters of the described shapes, or a ValueError with the
    path."""
    rng, path, opened = random.Random(name), tmp_path / name, 0
    checkpoint.save(str(tmp_path), tiny[0], replace(tiny[1], rope_scaling=(8.0, 1.0, 4.0, 8.0)))
    change_json(tmp_path / "config.json")
    for file, content in (("generation_config.json", {"eos_token_id": [3, 4]}), (
            "model.safetensors.index.json", {"weight_map": {"x": "model.safetensors"}})):
        (tmp_path / file).write_text(json.dumps(content))
    whole = path.read_bytes() if name != "model.bin" else b""
    for _ in range(n):
        rewrite(path, content := mutated(rng, whole, name))
        try:
            found, config = checkpoint.load(str(path if name == "model.bin" else tmp_path))
        except ValueError as error:
            assert str(tmp_path) in str(error), content
            continue
        assert {name: x.shape for name, x in found.items()} == model.shapes(config)
        opened += 1
    print(f"{n:,} of {name}, {opened:,} opened")
    assert 0.05 < opened / n < 0.95


@pytest.mark.parametrize("entry", [
    {"dtype": ["F32"]}, {"dtype": "I8"}, {"data_offsets": [0]}, {"data_offsets": []},
    {"data_offsets": [-64, -32]}, {"shape": [10**30, 0]}, {"shape": [-1]}, {"shape": [1] * 99},
    {"shape": None}, {"shape": "8"}])
def test_an_odd_entry_of_safetensors_is_one_error(entry, tiny, tmp_path):
    """Wrong types and numbers in the header name the file."""
    checkpoint.save(str(tmp_path), *tiny[:2])
    text = json.dumps({"model.norm.weight": {
        "dtype": "F32", "shape": [8], "data_offsets": [0, 32]} | entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(9000))
    refused(tmp_path, "model.safetensors: not a safetensors file")
