"""Checkpoints: a network as a folder that other people's programs open, and theirs opened here.

    config.json             the sizes               tokenizer.json          the vocabulary
    model.safetensors       the parameters          tokenizer_config.json   the form of a chat
    optimizer.safetensors   its running averages    state.json, log.jsonl   the run so far

The first four are a Hugging Face model folder (LlamaForCausalLM); the others let training go on to
the same bits. Nothing is pickled, so opening a model can't run code. The folder is replaced whole
or not at all (common.staged), and checksums tell a damaged file.

Also read, and made float32: other Llama-family models (in parts, in half precision, with Llama 3's
rope scaling), and llama2.c's .bin files with their tokenizer.

Reading order: save, load, open_model; the formats are in formats/huggingface.py and
formats/llama2c.py. Source: transformers' modeling_llama.py for the names of the parameters.
"""
import glob
import json
import os
import zlib
from dataclasses import replace

import numpy as np

from bpe import CHAT_SPECIALS, END, Tokenizer
from common import read_json, read_json_lines, recover, staged
from formats import llama2c
from formats.huggingface import (describe, read_safetensors, read_sealed, seal, sizes_of,
                                 weight_files, write_json, write_safetensors)
from model import Config, count, pack, shapes, vector, views

FILES = ("config.json", "generation_config.json", "model.safetensors*", "model-*.safetensors",
         "tokenizer.json", "tokenizer_config.json", "optimizer.safetensors", "state.json",
         "log.jsonl")  # what belongs to a checkpoint

# bpe.render_chat in Jinja, the template language of the Hugging Face hub. For the messages of user
# "Hi" and assistant "Yes" it writes, without the spaces,
#     <|im_start|> user <|im_sep|> Hi <|im_end|> <|im_start|> assistant <|im_sep|> Yes <|im_end|>
# {% generation %} marks "Yes <|im_end|>", what our loss mask counts; add_generation_prompt is our
# open_answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}")


# ---- save and load -------------------------------------------------------------------------------

def save(folder, params, config, tokenizer=None, averages=None, state=None, log=None):
    """Writes a checkpoint folder. tokenizer: a bpe.Tokenizer; averages: name -> flat vector of the
    optimizer; state: a dict for JSON; log: a list of dicts. Files of an older checkpoint that are
    not written anew are removed: old averages must not stay beside new weights."""
    check_out(folder)
    with staged(folder, FILES) as new:
        content = describe(config)
        if tokenizer is not None:
            content["tokenizer_fingerprint"] = tokenizer.fingerprint()
            tokenizer.save(f"{new}/tokenizer.json")
            write_json(f"{new}/tokenizer_config.json", describe_tokenizer(tokenizer, config))
        write_json(f"{new}/config.json", seal(content))
        write_safetensors(f"{new}/model.safetensors", params)
        if averages is not None:
            write_safetensors(f"{new}/optimizer.safetensors", averages)
        if state is not None:
            write_json(f"{new}/state.json", seal(state))
        if log is not None:
            with open(f"{new}/log.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in log)


def check_out(folder):
    """Refuses a folder that is neither empty nor a checkpoint. Training calls it before it begins,
    or the work of hours would end in this error."""
    recover(folder)
    if os.path.isfile(folder):
        raise ValueError(f"{folder}: a file; name a folder with --out")
    # live.jsonl is the log of a run that has not saved yet; "*" leaves out hidden files.
    names = sorted({*glob.glob("*", root_dir=folder)} - {"live.jsonl"})
    if names and "config.json" not in names:
        raise ValueError(f"{folder}: holds {names[0]} and is no checkpoint; choose an empty folder "
                         "with --out")


def load(path):
    """(params, config) of a Llama-family folder or a llama2.c .bin file. What is missing, too much,
    damaged or of another shape is a ValueError that names it."""
    if os.path.isfile(path):
        config = Config(**llama2c.read_sizes(path))
        return pack(llama2c.read_weights(path, config, shapes(config)), config), config
    config, files = read_config(path), weight_files(path)
    # A damaged config.json could ask for more memory than there is. n parameters in half precision
    # have 2n bytes.
    if 2 * (n := count(config)[0]) > sum(map(os.path.getsize, files)):
        raise ValueError(f"{path}: config.json has {n:,} parameters, more than the weight files "
                         "hold: one of them is cut short or damaged")
    params, missing = views(np.empty(n, np.float32), config), shapes(config)
    for file in files:
        for name, numbers in read_safetensors(file):
            # Passed over: angles, which we compute, and a copy of the tied embedding.
            if "rotary_emb" in name or name == "lm_head.weight" and config.tied:
                continue
            shape = missing.pop(name, "none, or no second one")
            if numbers.shape != shape:
                raise ValueError(f"{file}: has {name} of shape {numbers.shape}, where a Llama of "
                                 f"config.json's sizes has {shape}")
            params[name][...] = numbers
    if missing:
        raise ValueError(f"{path}: {len(missing)} weights are missing, such as {min(missing)}")
    return params, config


def read_config(folder):
    """The Config of a checkpoint folder."""
    recover(folder)
    path, more = f"{folder}/config.json", f"{folder}/generation_config.json"
    if not os.path.exists(path):
        raise ValueError(f"{path}: no checkpoint there; python train.py makes one")
    content = read_sealed(path)
    # How a text ends may stand in generation_config.json too, which goes before config.json.
    eos = read_json(more).get("eos_token_id") if os.path.exists(more) else None
    try:
        return Config(**sizes_of(content if eos is None else content | {"eos_token_id": eos}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def open_model(path, tokenizer_path=None):
    """(params, config, tokenizer) of a checkpoint. tokenizer_path: for models without one, such as
    llama2.c's. It must be the one of training: with another, id 300 means another word. Our
    config.json has its fingerprint; of others only the number of tokens can be compared."""
    params, config = load(path)
    file = tokenizer_path or f"{path}/tokenizer.json"
    if not os.path.exists(file):
        raise ValueError(f"{file}: no tokenizer there; name the model's with --tokenizer")
    tokenizer = llama2c.Tokenizer(file) if file.endswith(".bin") else Tokenizer.load(file)
    about = read_json(f"{path}/config.json") if os.path.isdir(path) else {}
    wanted = about.get("tokenizer_fingerprint")
    if wanted not in (None, tokenizer.fingerprint()) or tokenizer.vocab_size > config.vocab:
        raise ValueError(f"{file}: not the tokenizer that {path} was trained with ({config.vocab} "
                         f"tokens, fingerprint {wanted}); leave out --tokenizer, or name that one")
    # Embeddings are often padded: 50,257 tokens in 50,304 rows. Such ids must never be sampled.
    gaps = [k for k, token in enumerate(tokenizer.tokens) if token is None]
    unused = (*gaps, *range(tokenizer.vocab_size, config.vocab))
    return params, replace(config, unused=unused), tokenizer


def describe_tokenizer(tokenizer, config):
    """Content of tokenizer_config.json. It names only tokens that exist: to others transformers
    would give ids outside of the embedding."""
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.ctx}
    # A chat model ends its turn with <|im_end|>, a base model its document with END.
    if ends := [name for name in ("<|im_end|>", END) if name in tokenizer.special_tokens]:
        content |= {"eos_token": ends[0], "pad_token": ends[-1]}
    if set(CHAT_SPECIALS) <= set(tokenizer.special_tokens):
        content["chat_template"] = CHAT_TEMPLATE
    return content


# ---- runs that stop and go on: train.py, sft.py, rl.py -------------------------------------------

def save_run(out, stage, net, averages, state, log):
    """Saves a run of the script `stage`. net: (params, config, tokenizer). state: what else it
    needs to go on to the same bits: the step, the settings, how far the random numbers are."""
    save(out, *net, averages, {"stage": stage} | state, log)


def load_run(out, stage):
    """(net, averages, state, log) as a run of `stage` saved them."""
    recover(out)
    path = f"{out}/state.json"
    if not os.path.exists(path):
        raise ValueError(f"{path}: no run to go on with there; leave out --resume to begin one")
    state = read_sealed(path)
    if state.get("stage") != stage:
        raise ValueError(f"{path}: not a run of {stage}.py; --out names the folder to go on in")
    net = open_model(out)
    # Copies, as arrays that are mapped from a file can't be written to.
    averages = {name: np.array(x) for name, x in read_safetensors(f"{out}/optimizer.safetensors")}
    if any(x.shape != vector(net[0]).shape for x in averages.values()):
        raise ValueError(f"{out}/optimizer.safetensors: does not fit the parameters")
    return net, averages, state, [line for _, line in read_json_lines(f"{out}/log.jsonl")]


def checksum(params):
    """A number that tells whether weights are the same bits as before."""
    return zlib.crc32(vector(params))
