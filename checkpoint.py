"""Checkpoints: a network as a folder that other people's programs open, and theirs opened here.

    config.json             the sizes               tokenizer.json          the vocabulary
    model.safetensors       the parameters          tokenizer_config.json   the form of a chat
    optimizer.safetensors   its running averages    state.json, log.jsonl   the run so far

The first four are a Hugging Face model folder (LlamaForCausalLM); the others let training go on to
the same bits. Nothing is pickled, so opening a model can't run code. The folder is replaced as a
whole or not at all (common.staged). What we write carries checksums, so that a damaged file is
named instead of used. Half-precision weights are read as float32; we write float32.

Also read: folders of other Llama-family models (in parts, in half precision, with tied or untied
head, grouped queries, Llama 3's rope scaling), and llama2.c's .bin files with their tokenizer. What
a config.json asks for that we can't do is refused by name: a network that is almost a Llama would
load and write nonsense.

Reading order: save and load, open_model; the formats are in formats/huggingface.py and
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
from formats.huggingface import (describe, read_safetensors, read_sizes, seal, unseal, weight_files,
                                 write_json, write_safetensors)
from model import Config, count, pack, shapes, vector, views

FILES = ("config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
         "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "optimizer.safetensors", "state.json", "log.jsonl")  # what belongs to a checkpoint

# bpe.render_chat in the template language of the Hugging Face hub, Jinja. For the messages of user
# "Hi" and assistant "Yes" it writes, without the spaces,
#     <|im_start|> user <|im_sep|> Hi <|im_end|> <|im_start|> assistant <|im_sep|> Yes <|im_end|>
# {% generation %} marks "Yes <|im_end|>", so that their assistant masks equal our loss masks.
# add_generation_prompt is our open_answer: it ends with <|im_start|>assistant<|im_sep|>.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}")


# ---- save and load -------------------------------------------------------------------------------

def save(folder, params, config, tokenizer=None, averages=None, state=None, log=None):
    """Writes a checkpoint folder. tokenizer: a bpe.Tokenizer; averages: name -> flat vector of the
    optimizer; state: anything JSON can hold; log: a list of dicts. What belonged to the checkpoint
    before and is not given now goes: old averages must not stay beside new weights.

    Raises ValueError if `folder` holds other things: training must not mix with them."""
    check_out(folder)
    with staged(folder, FILES) as new:
        config_json = describe(config)
        if tokenizer is not None:
            config_json["tokenizer_fingerprint"] = tokenizer.fingerprint()
            tokenizer.save(f"{new}/tokenizer.json")
            write_json(f"{new}/tokenizer_config.json", describe_tokenizer(tokenizer, config))
        write_json(f"{new}/config.json", seal(config_json))
        write_safetensors(f"{new}/model.safetensors", params)
        if averages is not None:
            write_safetensors(f"{new}/optimizer.safetensors", averages)
        if state is not None:
            write_json(f"{new}/state.json", seal(state))
        if log is not None:
            with open(f"{new}/log.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in log)


def check_out(folder):
    """Refuses a folder that is neither empty nor a checkpoint. Call it before training, too: else
    the work of hours would end in this error."""
    recover(folder)
    if os.path.isfile(folder):
        raise ValueError(f"{folder}: is a file, not a folder to save a checkpoint in")
    # live.jsonl is the log of a run that has not saved yet; "*" leaves out hidden files.
    names = sorted({*glob.glob("*", root_dir=folder)} - {"live.jsonl"})
    if names and "config.json" not in names:
        raise ValueError(f"{folder}: holds {names[0]} and is no checkpoint; choose an empty folder "
                         "with --out")


def load(path):
    """(params, config) of a Llama-family checkpoint folder or a llama2.c .bin file. What is
    missing, too much, damaged or of another shape is a ValueError that names it."""
    # A file is llama2.c's, a folder is Hugging Face's or ours.
    if os.path.isfile(path):
        sizes, arrays = llama2c.read_model(path)
        return pack(arrays, Config(**sizes)), Config(**sizes)
    config = read_config(path)
    wanted, files, n = shapes(config), weight_files(path), count(config)[0]
    # A damaged config could ask for more memory than there is. Half precision has two bytes a
    # number, so n parameters can't come from files of fewer than 2n bytes.
    if 2 * n > sum(map(os.path.getsize, files)):
        raise ValueError(f"{path}: config.json has {n:,} parameters, more than the weight files "
                         "hold: these are cut short, or it is damaged")
    # All parameters are views into one vector; here each is filled from the files.
    params, found = views(np.empty(n, np.float32), config), set()
    for file in files:
        for name, numbers in read_safetensors(file):
            if name in wanted and numbers.shape == wanted[name]:
                params[name][...] = numbers
                found.add(name)
            elif name in wanted:
                raise ValueError(f"{file}: {name} is {numbers.shape}, "
                                 f"config.json says {wanted[name]}")
            # Passed over: a copy of the tied embedding, and angles, which we compute.
            elif name != "lm_head.weight" and "rotary_emb" not in name:
                raise ValueError(f"{file}: unexpected {name}; only plain Llama networks are read")
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]}")
    return params, config


def read_config(folder):
    """The Config of a checkpoint folder."""
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
    any other would read and write, but nonsense, as id 300 means another word there. Our
    checkpoints have its fingerprint in config.json; of others only the number of tokens can be
    compared. tokenizer_path: for models that come without one, such as llama2.c's."""
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
    """Content of tokenizer_config.json. It names no token that does not exist: transformers would
    give that an id of its own, outside of the embedding."""
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.ctx}
    # A chat model ends its turn with <|im_end|>, a base model its document with END.
    if ends := [name for name in ("<|im_end|>", END) if name in tokenizer.special_tokens]:
        content |= {"eos_token": ends[0], "pad_token": ends[-1]}
    if set(CHAT_SPECIALS) <= set(tokenizer.special_tokens):
        content["chat_template"] = CHAT_TEMPLATE
    return content


# ---- runs that stop and go on: train.py, sft.py, rl.py -------------------------------------------

def save_run(out, stage, net, averages, state, log):
    """Saves a run of the script `stage`: net (params, config, tokenizer), the optimizer's averages,
    the state that the script needs to go on (the step, its settings, and where its random numbers
    stand, so that the next ones are those of an uninterrupted run), and the log."""
    save(out, *net, averages, {"stage": stage} | state, log)


def load_run(out, stage):
    """(net, averages, state, log) as a run of `stage` saved them. A checkpoint without state.json
    is a network that is trained but no run to go on with."""
    recover(out)
    path = f"{out}/state.json"
    if not os.path.exists(path):
        raise ValueError(f"{path}: no run to go on with there; leave out --resume to begin one")
    state = unseal(read_json(path), path)
    if state.get("stage") != stage:
        raise ValueError(f"{path}: not a run of {stage}.py; --out names the folder to go on in")
    net = open_model(out)
    # Copies, as an array read from a file can't be written to.
    averages = {name: x.copy() for name, x in read_safetensors(f"{out}/optimizer.safetensors")}
    if any(x.shape != vector(net[0]).shape for x in averages.values()):
        raise ValueError(f"{out}/optimizer.safetensors: does not fit the parameters")
    return net, averages, state, [line for _, line in read_json_lines(f"{out}/log.jsonl")]


def checksum(params):
    """A number that tells whether weights are the same bits as before."""
    return zlib.crc32(vector(params))
