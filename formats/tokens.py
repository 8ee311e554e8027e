"""The files on both sides of bpe.py: texts in, tokens out.

Tokens are 1-D .npy files, memory-mapped. The info.json beside them has the tokenizer's fingerprint
("tokenizer") and each part's [length, checksum].
"""
import glob
import os
import zlib

import numpy as np
import regex

from common import read_json, read_json_lines, read_text_lines, recover

JOB_CHARS = 1 << 21  # characters per job of a worker: 0.15 s of work, long beside sending it
HEADER = 128  # bytes that NumPy writes before the numbers of a 1-D .npy
CHECKED_BYTES = 1 << 26  # larger files are opened unread, in no time
# A character after which GPT-4's split pattern and ours end a pre-token: a letter or a digit before
# another kind, anything visible before a space.
PRE_TOKEN_END = regex.compile(r"\p{L}(?=\P{L})|\p{N}(?=\P{N})|\S(?= )")


# ---- texts ---------------------------------------------------------------------------------------

def read_texts(inputs, folder, part):
    """Yields the texts of a part, "train" or "val": the first 90% or last 10% of each plain text
    file in inputs; without inputs, the documents in data.py's shards in folder."""
    for path in inputs:
        text = "".join(read_text_lines(path))
        if not text:
            raise ValueError(f"{path} is empty")
        n = len(text) * 9 // 10
        yield text[:n] if part == "train" else text[n:]
    if inputs:
        return
    recover(folder)
    shards = sorted(glob.glob(f"{folder}/{part}-*.jsonl.gz"))
    if not shards:
        raise ValueError(f"no {folder}/{part}-*.jsonl.gz; run python data.py, or name a text file")
    for path in shards:
        for number, document in read_json_lines(path):
            if not isinstance(document.get("text"), str):
                raise ValueError(f"{path}, line {number}: no text there; run python data.py again")
            yield document["text"]


def jobs(texts, divide):
    """Group texts into jobs of about JOB_CHARS: (list of texts, whether the last one ends there).
    divide: a longer text becomes several jobs; only for the patterns of PRE_TOKEN_END. With
    JOB_CHARS = 5, ["a cat sat", "on"] becomes (["a cat"], False), ([" sat", "on"], True)."""
    group, size = [], 0
    for text in [texts] if isinstance(texts, str) else texts:
        start = 0
        while divide and (end := PRE_TOKEN_END.search(text, start + JOB_CHARS)):
            yield [*group, text[start:end.end()]], False
            group, size, start = [], 0, end.end()
        group.append(text[start:])
        size += len(group[-1])
        if size >= JOB_CHARS:
            yield group, True
            group, size = [], 0
    if group:
        yield group, True


# ---- tokens --------------------------------------------------------------------------------------

def write_tokens(path, arrays):
    """Stream arrays into one .npy; returns [number of tokens, checksum]. The header, which has the
    number, is written last."""
    n, checksum, dtype = 0, 0, np.dtype(np.uint16)
    with open(path, "wb") as file:
        file.seek(HEADER)
        for array in arrays:
            file.write(array.tobytes())
            n, checksum, dtype = n + len(array), zlib.crc32(array, checksum), array.dtype
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype.str, "fortran_order": False, "shape": (n,)})
        assert file.tell() == HEADER
    return [n, checksum]


def read_tokens(folder, part, tokenizer=None):
    """folder/PART.npy ("train" or "val"), memory-mapped, (n,) uint16 or uint32. ValueError: not
    there, damaged, or of another tokenizer. Tokens from elsewhere may have no info.json. Above
    CHECKED_BYTES the numbers are not looked at: that would read the whole file."""
    recover(os.path.dirname(os.path.normpath(folder)))
    path, info = f"{folder}/{part}.npy", f"{folder}/info.json"
    if not os.path.exists(path):
        raise ValueError(f"{path}: no tokens there; python bpe.py makes them")
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")
        sound = (tokens.ndim == 1 and tokens.dtype in (np.uint16, np.uint32)
                 and os.path.getsize(path) == tokens.offset + tokens.nbytes)
    except Exception:  # NumPy raises nearly anything on a damaged header
        sound = False
    info = read_json(info) if os.path.exists(info) else None
    small = sound and tokens.nbytes <= CHECKED_BYTES
    if not sound or small and info and info.get(part) != [len(tokens), zlib.crc32(tokens)]:
        raise ValueError(f"{path}: damaged, or not 1-D uint16 or uint32; run python bpe.py again")
    if tokenizer and (info and info.get("tokenizer") != tokenizer.fingerprint(chat=False)
                      or small and tokens.max(initial=0) >= tokenizer.vocab_size):
        raise ValueError(f"{path}: tokens of another tokenizer; python bpe.py makes them anew, "
                         "together with their tokenizer.json")
    return tokens
