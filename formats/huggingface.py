"""The files of a Hugging Face model folder: config.json, and arrays in safetensors.

config.json can describe many networks. One that asks for what model.py does not do is refused by
name: a network that is almost a Llama would load and write nonsense. A number out of all proportion
is refused as damage, so that no file makes us take more memory than it has bytes.

Sources: transformers' LlamaConfig; the safetensors format.
"""
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np

from common import parse_json, read_json

MAX_SIZE = 1 << 24  # of any whole number in a config.json; a larger one is damage


# ---- config.json ---------------------------------------------------------------------------------

FIELDS = {  # key in config.json -> attribute of model.Config
    "vocab_size": "vocab", "max_position_embeddings": "ctx", "hidden_size": "dim",
    "num_hidden_layers": "layers", "head_dim": "head_dim", "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads", "intermediate_size": "hidden", "rope_theta": "theta",
    "rms_norm_eps": "eps", "tie_word_embeddings": "tied"}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
DEFAULTS = {"max_position_embeddings": 2048, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
            "mlp_bias": False, "rope_type": "default"}  # transformers' own
KNOWN = {"model_type": ["llama"], "hidden_act": ["silu"], "attention_bias": [False],
         "mlp_bias": [False], "rope_type": ["default", "llama3"]}  # the values that we can do


def describe(config):
    """Config -> content of config.json, with the keys that transformers reads a Llama by."""
    eos = list(config.eos) or [None]
    content = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
               "torch_dtype": "float32"}
    content |= {key: getattr(config, field) for key, field in FIELDS.items()}
    content |= {"attention_bias": False, "mlp_bias": False,
                "bos_token_id": config.bos[0] if config.bos else None,
                "eos_token_id": eos if len(eos) > 1 else eos[0]}
    if config.rope_scaling:
        content["rope_scaling"] = {"rope_type": "llama3"} | dict(zip(SCALING, config.rope_scaling))
    return content


def sizes_of(content):
    """Content of a config.json -> the arguments of model.Config, a dict."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling is {rope!r:.40}, not an object")
    older = {"num_key_value_heads": content.get("num_attention_heads"),  # no grouped queries
             "rope_type": rope.get("type")}
    # Of two values the later one counts. As in transformers, null is none.
    given = {key: value for source in (DEFAULTS, older, rope, content)
             for key, value in source.items() if value is not None}
    for key, known in KNOWN.items():
        if given.get(key) not in known:
            raise ValueError(f"{key} is {given.get(key)!r:.40}; only plain Llama networks are read")
    sizes = {field: number(given, key, whole=field not in ("theta", "eps"))
             for key, field in FIELDS.items() if field not in ("head_dim", "tied")}
    D = sizes["dim"] // sizes["heads"]
    if given.get("head_dim", D) != D:
        raise ValueError(f"head_dim is {given['head_dim']!r:.40}, not hidden_size / heads = {D}")
    bos, eos = (token_ids(given, key, sizes["vocab"]) for key in ("bos_token_id", "eos_token_id"))
    scaling = SCALING if given["rope_type"] == "llama3" else ()
    return sizes | {"tied": bool(given["tie_word_embeddings"]), "bos": bos[:1], "eos": eos,
                    "rope_scaling": tuple(number(given, key, whole=False) for key in scaling)}


def number(content, key, whole=True):
    """A positive number of a config.json."""
    value = content.get(key)
    good = type(value) in (int, float) and 0 < value < math.inf
    if not good or whole and (value != int(value) or value > MAX_SIZE):
        raise ValueError(f"{key} is {value!r:.40}, not a sensible {'whole ' * whole}number")
    return int(value) if whole else float(value)


def token_ids(content, key, vocab):
    """An id, a list of ids or nothing -> those ids that the vocabulary has, a tuple."""
    ids = content.get(key, [])
    ids = ids if isinstance(ids, list) else [ids]
    if any(type(k) is not int for k in ids):
        raise ValueError(f"{key} is {ids!r:.40}, no token id")
    return tuple(k for k in ids if 0 <= k < vocab)


def write_json(path, content):
    Path(path).write_text(json.dumps(content, indent=1), "utf-8")


def seal(content):
    """content with a checksum of itself, so that damage is noticed."""
    return content | {"checksum": zlib.crc32(json.dumps(content, sort_keys=True).encode())}


def read_sealed(path):
    """The object in a JSON file, without its checksum, which must be right if there is one."""
    content = read_json(path)
    rest = {key: value for key, value in content.items() if key != "checksum"}
    if content not in (rest, seal(rest)):
        raise ValueError(f"{path}: damaged, or changed by hand (then remove \"checksum\" from it)")
    return rest


# ---- safetensors ---------------------------------------------------------------------------------
# 8 bytes: length of the header. The header, JSON: name -> dtype, shape, begin and end of its bytes.
# Then the numbers of all arrays, one after the other.

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_safetensors(path):
    """Yields (name, array), views into the memory-mapped file, so that a large one is never in
    memory whole. NumPy has no BF16: its bits are the upper half of a float32's."""
    try:
        content, arrays = np.memmap(path, np.uint8, "r"), {}
        begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header, data = parse_json(content[8:begin].tobytes(), "its header"), content[begin:]
        checksum = header.pop("__metadata__", {}).get("crc32")  # only our files have one
        for name, entry in header.items():
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if dtype not in DTYPES:
                raise ValueError(f"{name} is {dtype:.20}, not one of {', '.join(DTYPES)}")
            arrays[name] = data[start:end].view(DTYPES[dtype]).reshape(shape)
            if start < 0 or arrays[name].shape != tuple(shape):
                raise ValueError(f"{name} of shape {shape!r:.40} is not in the file")
        if checksum is not None and checksum != str(zlib.crc32(data)):
            raise ValueError("its checksum is not that of its numbers")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short or damaged "
                         f"({type(error).__name__}: {error})"[:300]) from None
    for name, numbers in arrays.items():
        bits = numbers.dtype == np.uint16
        yield name, (numbers.astype(np.uint32) << 16).view(np.float32) if bits else numbers


def write_safetensors(path, arrays):
    """Writes name -> float32 array. Spaces after the header bring the numbers to a multiple of 8
    bytes, so that programs may map them into memory as they are."""
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}
    header, start, crc = {}, 0, 0
    for name, x in arrays.items():
        end, crc = start + x.nbytes, zlib.crc32(x, crc)
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [start, end]}
        start = end
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
    index, names = Path(folder, "model.safetensors.index.json"), ["model.safetensors"]
    if index.exists():
        parts = read_json(index).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(x, str) for x in parts.values()):
            raise ValueError(f"{index}: has no weight_map from names to files")
        names = dict.fromkeys(map(os.path.basename, parts.values()))
    paths = [Path(folder, name) for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the checkpoint is not complete")
    return paths
