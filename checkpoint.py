"""Checkpoints: a network as a folder that other people's programs open, and theirs opened here.

    FOLDER/config.json            the sizes            FOLDER/model.safetensors       the parameters
    FOLDER/tokenizer.json         the vocabulary       FOLDER/tokenizer_config.json   the chat form
    FOLDER/optimizer.safetensors  AdamW's averages     FOLDER/state.json, log.jsonl   the run so far

The first four are a Hugging Face model folder (LlamaForCausalLM); the last three let training go on
to the same bits. Nothing is pickled, so opening a model can't run code. The folder is replaced as a
whole or not at all (common.staged). What we write carries checksums, so that a damaged file is named
instead of used. Half-precision weights are read as float32; we write float32.

Also read: folders of other Llama-family models (in parts, in half precision, with tied or untied
head, grouped queries, Llama 3's rope scaling), and llama2.c's .bin files with their tokenizer. What
a config.json asks for that we can't do is refused by name: a network that is almost a Llama would
load and write nonsense.

The formats themselves are in formats/huggingface.py and formats/llama2c.py.
"""
import json
import os
import zlib
from dataclasses import replace

import numpy as np

from bpe import CHAT_SPECIALS, END, Tokenizer
from common import read_json, read_json_lines, recover, staged
from formats import llama2c
from formats.huggingface import (describe, read_safetensors, read_sizes, seal, unseal, weight_files,
                                 write_json, write_safetensors)
from model import Config, count, pack, shapes, vector, views

FILES = ("config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
         "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "optimizer.safetensors", "state.json", "log.jsonl")  # what belongs to a checkpoint

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
        sizes, arrays = llama2c.read_model(path)
        return pack(arrays, Config(**sizes)), Config(**sizes)
    config = read_config(path)
    wanted, files = shapes(config), weight_files(path)
    # Half precision takes two bytes a number. Without this check a damaged config could ask for
    # more memory than there is.
    if 2 * count(config)[0] > sum(map(os.path.getsize, files)):
        raise ValueError(f"{path}: config.json has {count(config)[0]:,} parameters, more than "
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


def read_config(folder):
    """The Config of a checkpoint folder."""
    if os.path.isdir(folder):
        recover(folder)
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise ValueError(f"{folder}: no checkpoint there (no config.json); "
                         "python train.py makes one")
    sizes = read_sizes(folder)
    try:
        return Config(**sizes)
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: {error}") from None


def open_model(path, tokenizer_path=None):
    """(params, config, tokenizer) of a checkpoint. It must be the tokenizer it was trained with:
    any other would read and write, but nonsense. Ours leave its fingerprint in config.json; of
    others only the number of tokens can be compared."""
    params, config = load(path)
    file = tokenizer_path or os.path.join(path, "tokenizer.json")
    if not os.path.exists(file):
        raise ValueError(f"{file}: no tokenizer there; name the model's with --tokenizer")
    tokenizer = llama2c.Tokenizer(file) if file.endswith(".bin") else Tokenizer.load(file)
    wanted = None
    if os.path.isdir(path):
        wanted = read_json(os.path.join(path, "config.json")).get("tokenizer_fingerprint")
    if wanted not in (None, tokenizer.fingerprint()) or tokenizer.vocab_size > config.vocab:
        raise ValueError(f"{file}: not the tokenizer that {path} was trained with ({config.vocab} "
                         f"tokens, fingerprint {wanted}); leave out --tokenizer, or name that one")
    # Embeddings are often padded to a round number of rows. Such ids must never be sampled.
    known = [token is not None for token in tokenizer.tokens]
    known += [False] * (config.vocab - len(known))
    unused = np.flatnonzero(np.invert(known)).tolist()
    return params, replace(config, unused=tuple(unused)), tokenizer


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
