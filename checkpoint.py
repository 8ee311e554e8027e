"""Checkpoints: a network as a folder that other people's programs open, and theirs opened here.

    FOLDER/config.json            the sizes            FOLDER/model.safetensors       the parameters
    FOLDER/tokenizer.json         the vocabulary       FOLDER/tokenizer_config.json   the chat format
    FOLDER/optimizer.safetensors  AdamW's averages     FOLDER/state.json, log.jsonl   the run so far

The first four are a Hugging Face model folder (LlamaForCausalLM); the last three let training go on
to the same bits. Nothing is pickled, so opening a model can't run code. The folder is replaced whole
or not at all (common.staged). What we write carries checksums, so that a damaged file is named
instead of used. Half-precision weights are read as float32; we write float32.

Also read: folders of other Llama-family models (in parts, in half precision, with tied or untied
head, grouped queries, Llama 3's rope scaling), and llama2.c's .bin files with their tokenizer. What
a config.json asks for that we can't do is refused by name: a network that is almost a Llama would
load and write nonsense.

Reading order: save and load; runs that go on; then, to skip at first, the formats themselves.
Sources: the safetensors format; transformers' LlamaConfig; llama2.c (export.py, version 0).
"""
import json
import math
import os
import struct
import zlib
from dataclasses import replace

import numpy as np

from bpe import CHAT_SPECIALS, END, Tokenizer
from common import parse_json, read_json, read_json_lines, recover, staged
from model import Config, count, shapes, vector, views

FILES = ("config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
         "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "optimizer.safetensors", "state.json", "log.jsonl")  # what belongs to a checkpoint
MAX_SIZE = 1 << 24  # of any number in a config.json; a larger one is damage

# bpe.render_chat in the template language of the Hugging Face hub. {% generation %} marks what the
# assistant says, so that their assistant masks equal our loss masks.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}")


# ---- save and load -------------------------------------------------------------------------------

def save(folder, params, config, tokenizer=None, averages=None, state=None, log=None):
    """Writes a checkpoint folder. tokenizer: a bpe.Tokenizer; averages: name -> flat vector of the
    optimizer; state: anything JSON can hold; log: a list of dicts.

    Raises ValueError if `folder` holds other things: training must not mix with them."""
    check_out(folder)
    with staged(folder, FILES) as new:
        config_json = describe(config)
        if tokenizer is not None:
            config_json["tokenizer_fingerprint"] = tokenizer.fingerprint()
            tokenizer.save(os.path.join(new, "tokenizer.json"))
            write_json(os.path.join(new, "tokenizer_config.json"), describe_tokenizer(
                tokenizer, config))
        write_json(os.path.join(new, "config.json"), seal(config_json))
        write_safetensors(os.path.join(new, "model.safetensors"), params)
        if averages is not None:
            write_safetensors(os.path.join(new, "optimizer.safetensors"), averages)
        if state is not None:
            write_json(os.path.join(new, "state.json"), seal(state))
        if log is not None:
            with open(os.path.join(new, "log.jsonl"), "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in log)


def check_out(folder):
    """Refuses a folder that is neither empty nor a checkpoint. Call it before training, too."""
    if os.path.isdir(folder):
        recover(folder)
    elif os.path.exists(folder):
        raise ValueError(f"{folder}: is a file, not a folder to save a checkpoint in")
    names = [name for name in sorted(os.listdir(folder)) if name != "live.jsonl"
             and not name.startswith(".")] if os.path.isdir(folder) else []
    if names and "config.json" not in names:
        raise ValueError(f"{folder}: holds {names[0]} and is no checkpoint; choose an empty folder "
                         "with --out")


def load(path):
    """(params, config) of a Llama-family checkpoint folder or a llama2.c .bin file. What is
    missing, too much, damaged or of another shape is a ValueError that names it."""
    if os.path.isfile(path):
        return load_llama2c(path)
    config = read_config(path)
    wanted, files = shapes(config), weight_files(path)
    # Half precision takes two bytes a number. Without this check a damaged config could ask for
    # more memory than there is.
    if 2 * count(config)[0] > sum(map(os.path.getsize, files)):
        raise ValueError(f"{path}: config.json describes {count(config)[0]:,} parameters, more than "
                         "the weight files hold: these are cut short, or it is damaged")
    params, found = views(np.empty(count(config)[0], np.float32), config), set()
    for file in files:
        for name, numbers in read_safetensors(file):
            if name not in wanted:
                if name == "lm_head.weight" or "rotary_emb" in name:
                    continue  # a copy of the tied embedding; angles that we compute
                raise ValueError(f"{file}: unexpected {name}; only plain Llama networks are read")
            if numbers.shape != wanted[name]:
                raise ValueError(f"{file}: {name} is {numbers.shape}, "
                                 f"config.json says {wanted[name]}")
            params[name][...] = numbers
            found.add(name)
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]}")
    return params, config


def open_model(path, tokenizer_path=None):
    """(params, config, tokenizer) of a checkpoint. It must be the tokenizer it was trained with:
    any other would read and write, but nonsense. Ours leave its fingerprint in config.json; of
    others only the number of tokens can be compared."""
    params, config = load(path)
    file = tokenizer_path or os.path.join(path, "tokenizer.json")
    if not os.path.exists(file):
        raise ValueError(f"{file}: no tokenizer there; name the model's with --tokenizer")
    tokenizer = Llama2cTokenizer(file) if file.endswith(".bin") else Tokenizer.load(file)
    wanted = None
    if os.path.isdir(path):
        wanted = read_json(os.path.join(path, "config.json")).get("tokenizer_fingerprint")
    if wanted not in (None, tokenizer.fingerprint()) or tokenizer.vocab_size > config.vocab:
        raise ValueError(f"{file}: not the tokenizer that {path} was trained with ({config.vocab} "
                         f"tokens, fingerprint {wanted}); leave out --tokenizer, or name that one")
    # Embeddings are often padded to a round number of rows. Such ids must never be sampled.
    known = [token is not None for token in tokenizer.tokens]
    known += [False] * (config.vocab - len(known))
    return params, replace(config, unused=tuple(np.flatnonzero(np.invert(known)).tolist())), tokenizer


# ---- runs that stop and go on: train.py, sft.py, rl.py -------------------------------------------

def save_run(out, stage, net, averages, state, log):
    """Saves a run of the script `stage`: net (params, config, tokenizer), the optimizer's averages,
    the state that the script needs to go on, and the log."""
    save(out, *net, averages, {"stage": stage} | state, log)


def load_run(out, stage):
    """(net, averages, state, log) as a run of `stage` saved them."""
    if os.path.isdir(out):
        recover(out)
    path = os.path.join(out, "state.json")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no run to go on with there; leave out --resume to begin one")
    state = unseal(read_json(path), path)
    if state.get("stage") != stage:
        raise ValueError(f"{path}: not a run of {stage}.py; --out names the folder to go on in")
    net = open_model(out)
    averages = {name: x.copy() for name, x in
                read_safetensors(os.path.join(out, "optimizer.safetensors"))}
    for name, x in averages.items():
        if x.shape != vector(net[0]).shape:
            raise ValueError(f"{out}/optimizer.safetensors: {name} does not fit the parameters")
    log = os.path.join(out, "log.jsonl")
    return net, averages, state, [line for _, line in read_json_lines(log)]


def checksum(params):
    """A number that tells whether weights are the same bits as before."""
    return zlib.crc32(vector(params))


# ---- config.json (skip at first) -----------------------------------------------------------------

def describe(config):
    """Config -> content of config.json, with the keys that transformers reads a Llama by."""
    content = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "torch_dtype": "float32", "vocab_size": config.vocab, "max_position_embeddings": config.ctx,
        "hidden_size": config.dim, "num_hidden_layers": config.layers, "head_dim": config.head_dim,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden, "rope_theta": config.theta, "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": config.bos[0] if config.bos else None,
        "eos_token_id": (list(config.eos) if len(config.eos) > 1 else
                         config.eos[0] if config.eos else None)}
    if config.rope_scaling:
        factor, low, high, original = config.rope_scaling
        content["rope_scaling"] = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original}
    return content


def read_config(folder):
    """The Config that a folder's config.json describes."""
    path = os.path.join(folder, "config.json")
    if os.path.isdir(folder):
        recover(folder)
    if not os.path.exists(path):
        raise ValueError(f"{folder}: no checkpoint there (no config.json); "
                         "python train.py makes one")
    c = unseal(read_json(path), path)
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_scaling is {rope!r:.40}, not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))

    def number(source, key, default=None, whole=True):
        """A positive number; None in the file means that it is not given, as in transformers."""
        value = default if source.get(key) is None else source[key]
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        if not good or not math.isfinite(value) or whole and (
                value != int(value) or value > MAX_SIZE):
            raise ValueError(f"{path}: {key} is {value!r:.40}, not a sensible "
                             f"{'whole number' if whole else 'number'}")
        return int(value) if whole else float(value)

    def token_ids(value):
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(not isinstance(k, int) or isinstance(k, bool) for k in ids):
            raise ValueError(f"{path}: {value!r:.40} is no token id")
        return tuple(k for k in ids if 0 <= k < vocab)

    vocab = number(c, "vocab_size")
    heads, dim = number(c, "num_attention_heads"), number(c, "hidden_size")
    for fits, problem in [
            (c.get("model_type") == "llama", f"model_type {c.get('model_type')!r}, not 'llama'"),
            (c.get("hidden_act", "silu") == "silu",
             f"hidden_act {c.get('hidden_act')!r}, not 'silu'"),
            (not c.get("attention_bias") and not c.get("mlp_bias"), "biases"),
            (kind in ("default", "llama3"), f"rotary embedding of type {kind!r}"),
            (c.get("head_dim") in (None, dim // heads), "head_dim of its own")]:
        if not fits:
            raise ValueError(f"{path}: {problem}; only plain Llama networks are read")
    scaling = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    # How a text ends may stand in generation_config.json instead, which goes before config.json.
    more, eos = os.path.join(folder, "generation_config.json"), c.get("eos_token_id")
    if os.path.exists(more):
        eos = read_json(more).get("eos_token_id", eos)
    try:
        return Config(
            vocab=vocab, ctx=number(c, "max_position_embeddings", 2048), dim=dim,
            layers=number(c, "num_hidden_layers"), heads=heads,
            kv_heads=number(c, "num_key_value_heads", heads), hidden=number(c, "intermediate_size"),
            theta=number(c if c.get("rope_theta") else rope, "rope_theta", 1e4, whole=False),
            eps=number(c, "rms_norm_eps", 1e-6, whole=False),
            tied=bool(c.get("tie_word_embeddings", False)),
            rope_scaling=tuple(number(rope, key, whole=False) for key in scaling)
            if kind == "llama3" else (),
            bos=token_ids(c.get("bos_token_id"))[:1], eos=token_ids(eos))
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path not in str(error) else str(error)) from None


def describe_tokenizer(tokenizer, config):
    """Content of tokenizer_config.json; it names no token that does not exist."""
    specials, end = tokenizer.special_tokens, [k for k in ("<|im_end|>", END)
                                               if k in tokenizer.special_tokens]
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.ctx}
    if end:
        content |= {"eos_token": end[0], "pad_token": end[-1]}
    if set(CHAT_SPECIALS) <= set(specials):
        content["chat_template"] = CHAT_TEMPLATE
    return content


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


# ---- safetensors (skip at first) -----------------------------------------------------------------
# 8 bytes: length of the header. The header, JSON: name -> dtype, shape, begin and end of its bytes.
# Then the numbers of all arrays, one after the other.

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16,  # BF16: raw bits, see below
          "F64": np.float64, "I64": np.int64}


def read_safetensors(path):
    """Yields (name, array), one at a time, so that a large file is never in memory whole. NumPy has
    no BF16; it is the upper half of a float32, so its bits move up by 16."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
        if length > size - 8:
            raise ValueError(f"{path}: not a safetensors file, or cut short ({size} bytes)")
        try:
            header = parse_json(file.read(length), "its header")
            about = header.pop("__metadata__", {})
            entries = [(name, entry["dtype"], tuple(map(int, entry["shape"])),
                        *map(int, entry["data_offsets"])) for name, entry in header.items()]
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: not a safetensors file ({type(error).__name__}: {error})"
                             [:300]) from None
        crc = 0
        for name, dtype, shape, begin, end in sorted(entries, key=lambda entry: entry[3]):
            if dtype not in DTYPES:
                raise ValueError(f"{path}: {name} has numbers of type {dtype!r:.20}; known are "
                                 + ", ".join(DTYPES))
            n_bytes = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
            if min((*shape, begin), default=0) < 0 or end - begin != n_bytes or (
                    8 + length + end > size):
                raise ValueError(f"{path}: {name} should have {n_bytes} bytes; "
                                 "the file is cut short or damaged")
            file.seek(8 + length + begin)
            content = file.read(n_bytes)
            crc = zlib.crc32(content, crc)
            numbers = np.frombuffer(content, DTYPES[dtype]).reshape(shape)
            if dtype == "BF16":
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            yield name, numbers
        if isinstance(about, dict) and about.get("crc32", str(crc)) != str(crc):
            raise ValueError(f"{path}: damaged (its checksum is not that of its numbers)")


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
        file.write(struct.pack("<Q", len(text)) + text)
        for x in arrays.values():
            file.write(x.data)


def weight_files(folder):
    """model.safetensors, or the parts that the index of a large model names (by their last names
    only, so that an index can't point out of the folder)."""
    index = os.path.join(folder, "model.safetensors.index.json")
    names = ["model.safetensors"]
    if os.path.exists(index):
        parts = read_json(index).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(x, str) for x in parts.values()):
            raise ValueError(f"{index}: has no weight_map from names to files")
        names = dict.fromkeys(map(os.path.basename, parts.values()))
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(f"{path}: no such file; the checkpoint is not complete")
    return paths


# ---- llama2.c (skip at first) --------------------------------------------------------------------

def load_llama2c(path):
    """llama2.c's first format: seven int32, then float32 matrices, each kind for all layers.

    It rotates neighbours (0,1), (2,3) ... where we rotate halves, so the rows of q and k are put in
    another order: in each head the even ones first, then the odd ones. Scores don't change, as q
    and k are reordered alike. A negative vocabulary in the header means an untied output head."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(28)
        if len(head) < 28:
            raise ValueError(f"{path}: not a llama2.c model (only {len(head)} bytes)")
        dim, hidden, layers, heads, kv_heads, vocab, ctx = map(int, np.frombuffer(head, np.int32))
        if not (0 < dim <= 65536 and 0 < heads <= dim and 0 < kv_heads <= heads
                and 0 < layers <= 1000 and dim % heads == 0 and 0 < hidden <= MAX_SIZE
                and 0 < ctx <= MAX_SIZE and 0 < abs(vocab) <= MAX_SIZE):
            raise ValueError(f"{path}: not a llama2.c model (its header says dim {dim}, "
                             f"{heads} heads, {layers} layers, vocabulary {vocab})")
        config = Config(abs(vocab), ctx, dim, layers, heads, kv_heads, hidden, tied=vocab > 0,
                        bos=(1,), eos=(1, 2))  # SentencePiece's <s> and </s>
        D = config.head_dim
        needed = 28 + 4 * (count(config)[0] + ctx * D)  # with tables of angles, which we compute
        if size != needed:
            raise ValueError(f"{path}: has {size} bytes, its header asks for {needed}: cut short "
                             "or damaged")
        numbers = np.fromfile(file, np.float32)
    params, start = views(np.empty(count(config)[0], np.float32), config), 0
    # The order in the file: the embedding, then each kind of weight for all layers.
    order = ["model.embed_tokens.weight"]
    for part in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                 "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj",
                 "mlp.up_proj"):
        order += [f"model.layers.{layer}.{part}.weight" for layer in range(layers)]
    order += ["model.norm.weight", None] + ([] if config.tied else ["lm_head.weight"])
    for name in order:
        n = params[name].size if name else ctx * D  # None: the tables of angles
        if name:
            x = numbers[start:start + n].reshape(params[name].shape)
            if "q_proj" in name or "k_proj" in name:
                # (heads, pairs, 2, dim) -> (heads, 2, pairs, dim)
                x = x.reshape(-1, D // 2, 2, dim).transpose(0, 2, 1, 3).reshape(-1, dim)
            params[name][...] = x
        start += n
    return params, config


class Llama2cTokenizer:
    """The tokenizer of llama2.c's models, with the methods of bpe.Tokenizer that sampling uses.

    Its file: int32 longest length, then per token float32 score, int32 length, bytes. As in
    SentencePiece, text begins with a space, and what merges first is not the pair learned first but
    the one whose union scores best: with ab -2 and ba -1, "aba" becomes a ba. Nothing
    pre-tokenizes. Ids: 1 comes before every document, 3 to 258 are the bytes, for characters that
    are no token of their own."""

    def __init__(self, path):
        with open(path, "rb") as file:
            content, start, self.tokens, self.scores = file.read(), 4, [], []
        try:
            while start < len(content) or len(self.tokens) < 259:
                score, n = struct.unpack_from("<fi", content, start)
                self.tokens += struct.unpack_from(f"{max(n, 0)}s", content, start + 8)
                self.scores.append(score)
                start += 8 + n
                if n < 0:
                    raise struct.error
        except struct.error:
            raise ValueError(f"{path}: no llama2.c tokenizer, or cut short at byte {start}") from None
        # The file writes bytes as "<0x0A>". Ids 0 to 2 are markers, which no text may produce.
        self.tokens[3:259] = [bytes([byte]) for byte in range(256)]
        self.ids = {token: k for k, token in enumerate(self.tokens) if k > 2}
        self.vocab_size, self.special_tokens = len(self.tokens), {END: 1}

    def fingerprint(self):
        """A hash that no checkpoint of ours asks for."""
        return "llama2.c"

    def token_bytes(self, token_id):
        """The bytes that an id stands for."""
        return self.tokens[token_id]

    def encode(self, text):
        """Ids of text: its characters, then merge by merge. Slow, but prompts are short."""
        ids = []
        for c in map(str.encode, " " + text if text else ""):
            ids += [self.ids[c]] if c in self.ids else [byte + 3 for byte in c]
        while True:
            unions = [self.ids.get(self.tokens[a] + self.tokens[b]) for a, b in zip(ids, ids[1:])]
            best = max((k for k in unions if k), key=self.scores.__getitem__, default=None)
            if best is None:
                return ids
            ids[unions.index(best):unions.index(best) + 2] = [best]

    def decode(self, ids):
        """Text of the ids, without markers and the space that encoding put first."""
        text = b"".join([self.tokens[k] for k in ids if k > 2]).decode("utf-8", "replace")
        return text.removeprefix(" ")
