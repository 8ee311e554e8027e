"""Files of tokens: 1-D .npy, memory-mapped, with an info.json beside them that says whose they are.

info.json has the tokenizer's fingerprint ("tokenizer") and each part's [length, checksum].
"""
import os
import zlib

import numpy as np

from common import read_json, recover

HEADER = 128  # bytes that NumPy writes before the numbers of a 1-D .npy
CHECKED_BYTES = 1 << 26  # larger files are opened unread, in no time


def write_tokens(path, arrays):
    """Stream arrays into one 1-D .npy; returns [number of tokens, checksum]. The header has that
    number, so it is written last."""
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
    """folder/PART.npy ("train" or "val"), memory-mapped, (n,) uint16 or uint32. Tokens from
    elsewhere may have no info.json. ValueError: not there, damaged, or of another tokenizer.
    Above CHECKED_BYTES neither checksum nor highest id is looked at: that reads the whole file."""
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
