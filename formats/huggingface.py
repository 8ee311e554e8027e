"""The files of a Hugging Face model folder: config.json, and numbers in safetensors.

config.json can describe many networks. What it asks for that model.py does not do is refused by
name: a network that is almost a Llama would load and write nonsense. Numbers out of all proportion
are damage, and no file makes us take more memory than it has bytes.

Sources: transformers' LlamaConfig; the safetensors format.
"""
import json
import math
import os
import zlib

import numpy as np

from common import parse_json, read_json

MAX_SIZE = 1 << 24  # of any number in a config.json; a larger one is damage
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


# ---- config.json ---------------------------------------------------------------------------------

def describe(config):
    """Config -> content of config.json, with the keys that transformers reads a Llama by."""
    eos = list(config.eos) or [None]
    content = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "torch_dtype": "float32", "vocab_size": config.vocab, "max_position_embeddings": config.ctx,
        "hidden_size": config.dim, "num_hidden_layers": config.layers, "head_dim": config.head_dim,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden, "rope_theta": config.theta, "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": config.bos[0] if config.bos else None,
        "eos_token_id": eos if len(eos) > 1 else eos[0]}
    if config.rope_scaling:
        content["rope_scaling"] = {"rope_type": "llama3"} | dict(zip(SCALING, config.rope_scaling))
    return content


def read_sizes(folder):
    """The arguments of model.Config that a folder's config.json describes, a dict."""
    path = os.path.join(folder, "config.json")
    content = unseal(read_json(path), path)
    # How a text ends may stand in generation_config.json instead, which goes before config.json.
    more = os.path.join(folder, "generation_config.json")
    eos = read_json(more).get("eos_token_id") if os.path.exists(more) else None
    try:
        return sizes_of(content if eos is None else content | {"eos_token_id": eos})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def sizes_of(content):
    """Content of a config.json -> the arguments of model.Config."""
    get = content.get
    rope = get("rope_parameters") or get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling is {rope!r:.40}, not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    vocab, dim = number(content, "vocab_size"), number(content, "hidden_size")
    heads = number(content, "num_attention_heads")
    for wrong, problem in [
            (get("model_type") != "llama", f"model_type {get('model_type')!r}, not 'llama'"),
            (get("hidden_act", "silu") != "silu", f"hidden_act {get('hidden_act')!r}, not 'silu'"),
            (get("attention_bias") or get("mlp_bias"), "biases"),
            (kind not in ("default", "llama3"), f"rotary embedding of type {kind!r}"),
            (get("head_dim") not in (None, dim // heads), "head_dim of its own")]:
        if wrong:
            raise ValueError(f"{problem:.80}; only plain Llama networks are read")
    scaling = SCALING if kind == "llama3" else ()
    return dict(
        vocab=vocab, ctx=number(content, "max_position_embeddings", 2048), dim=dim, heads=heads,
        layers=number(content, "num_hidden_layers"), hidden=number(content, "intermediate_size"),
        kv_heads=number(content, "num_key_value_heads", heads),
        theta=number(content if get("rope_theta") else rope, "rope_theta", 1e4, whole=False),
        eps=number(content, "rms_norm_eps", 1e-6, whole=False),
        tied=bool(get("tie_word_embeddings", False)),
        rope_scaling=tuple(number(rope, key, whole=False) for key in scaling),
        bos=token_ids(get("bos_token_id"), vocab)[:1], eos=token_ids(get("eos_token_id"), vocab))


def number(content, key, default=None, whole=True):
    """A positive number; None in the file means that it is not given, as in transformers."""
    value = default if content.get(key) is None else content[key]
    good = type(value) in (int, float) and 0 < value < math.inf
    if not good or whole and (value != int(value) or value > MAX_SIZE):
        raise ValueError(f"{key} is {value!r:.40}, not a sensible {'whole ' * whole}number")
    return int(value) if whole else float(value)


def token_ids(value, vocab):
    """An id, a list of ids or None -> those ids that the vocabulary has, a tuple."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(k) is not int for k in ids):
        raise ValueError(f"{value!r:.40} is no token id")
    return tuple(k for k in ids if 0 <= k < vocab)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)


def seal(content):
    """content with a checksum of itself, so that damage is noticed."""
    return content | {"checksum": zlib.crc32(json.dumps(content, sort_keys=True).encode())}


def unseal(content, path):
    """content without its checksum, if it has one and is as it was written."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    if "checksum" in content and content != seal(rest):
        raise ValueError(f"{path}: damaged, or changed by hand (then remove \"checksum\" from it)")
    return rest


# ---- safetensors --------------------------------------------------------------------------------
# 8 bytes: length of the header. The header, JSON: name -> dtype, shape, begin and end of its bytes.
# Then the numbers of all arrays, one after the other.

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # BF16: raw bits, see below


def read_safetensors(path):
    """Yields (name, array), views into the memory-mapped file, so that a large one is never in
    memory whole. NumPy has no BF16; it is the upper half of a float32, so its bits move up."""
    try:
        content, arrays = np.memmap(path, np.uint8, "r"), {}
        begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header, data = parse_json(content[8:begin].tobytes(), "its header"), content[begin:]
        about = header.pop("__metadata__", {})
        for name, entry in header.items():
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if dtype not in DTYPES:
                raise ValueError(f"{name} has numbers of type {dtype:.20}; known are "
                                 + ", ".join(DTYPES))
            arrays[name] = data[start:end].view(DTYPES[dtype]).reshape(shape)
            if start < 0 or arrays[name].shape != tuple(shape):
                raise ValueError(f"{name} of shape {shape!r:.40} is not in the file")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short or damaged "
                         f"({type(error).__name__}: {error})"[:300]) from None
    if isinstance(about, dict) and "crc32" in about and about["crc32"] != str(zlib.crc32(data)):
        raise ValueError(f"{path}: damaged (its checksum is not that of its numbers)")
    for name, numbers in arrays.items():
        bits = numbers.dtype == np.uint16
        yield name, (numbers.astype(np.uint32) << 16).view(np.float32) if bits else numbers


def write_safetensors(path, arrays):
    """Writes name -> float32 array. Spaces after the header bring the numbers to a multiple of 8
    bytes, so that programs may map them into memory as they are."""
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}
    crc, header, start = 0, {}, 0
    for name, x in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape),
                        "data_offsets": [start, start + x.nbytes]}
        start, crc = start + x.nbytes, zlib.crc32(x, crc)
    header["__metadata__"] = {"format": "pt", "crc32": str(crc)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in arrays.values():
            file.write(x.data)


def weight_files(folder):
    """model.safetensors, or the parts that the index of a large model names (by their last names
    only, so that an index can't point out of the folder)."""
    index, names = os.path.join(folder, "model.safetensors.index.json"), ["model.safetensors"]
    if os.path.exists(index):
        parts = read_json(index).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(x, str) for x in parts.values()):
            raise ValueError(f"{index}: has no weight_map from names to files")
        names = dict.fromkeys(map(os.path.basename, parts.values()))
    paths = [os.path.join(folder, name) for name in names]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise ValueError(f"{missing[0]}: no such file; the checkpoint is not complete")
    return paths
