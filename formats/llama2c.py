"""llama2.c's files: a small Llama as one .bin file, and its tokenizer.

Source: llama2.c (export.py, version 0; tokenizer.py).
"""
import math
import os
import struct

import numpy as np

KINDS = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
         "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj",
         "mlp.up_proj")  # a layer's weights, in the order of the file


def read_sizes(path):
    """The arguments of model.Config in the header of a .bin file, seven int32. A negative
    vocabulary means an untied output head."""
    header = np.fromfile(path, np.int32, 7).tolist()
    dim, hidden, layers, heads, kv_heads, vocab, ctx = header if len(header) == 7 else [0] * 7
    if (min(dim, hidden, layers, heads, kv_heads, abs(vocab), ctx) < 1 or layers > 1000
            or dim % (2 * heads) or heads % kv_heads):
        raise ValueError(f"{path}: not a llama2.c model (its header says {header})")
    return dict(vocab=abs(vocab), ctx=ctx, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads,
                hidden=hidden, tied=vocab > 0, bos=(1,), eos=(1, 2))  # SentencePiece's <s>, </s>


def read_weights(path, config, shapes):
    """name -> float32 array; the file has each kind of weight for all layers. shapes: of each name.

    llama2.c's rope rotates neighbours (0,1), (2,3) ... where ours rotates halves. So in each head
    the even rows of q and k go first, then the odd ones. Scores don't change: both move alike."""
    shapes = shapes | {"angles": (config.ctx, config.head_dim)}  # we compute these
    names = ["model.embed_tokens.weight", *(f"model.layers.{layer}.{kind}.weight" for kind in KINDS
                                            for layer in range(config.layers)),
             "model.norm.weight", "angles"] + ([] if config.tied else ["lm_head.weight"])
    sizes = [math.prod(shapes[name]) for name in names]
    found, needed = os.path.getsize(path), 28 + 4 * sum(sizes)
    if found != needed:
        raise ValueError(f"{path}: has {found} bytes, its header asks for {needed}: cut short or "
                         "damaged")
    parts = np.split(np.fromfile(path, np.float32, offset=28), np.cumsum(sizes)[:-1])
    arrays = {name: part.reshape(shapes[name]) for name, part in zip(names, parts)}
    for name, x in arrays.items():
        if "q_proj" in name or "k_proj" in name:
            heads = x.reshape(-1, config.head_dim // 2, 2, config.dim)  # (heads, pairs, 2, dim)
            arrays[name] = heads.transpose(0, 2, 1, 3).reshape(x.shape)
    return arrays


class Tokenizer:
    """Their tokenizer, with the methods of bpe.Tokenizer that sampling uses.

    The file: int32 longest length, then per token float32 score, int32 length, bytes. As in
    SentencePiece, text begins with a space, nothing pre-tokenizes, and the pair whose union scores
    best merges first: with ab -2 and ba -1, "aba" becomes a ba. Id 1 comes before every document;
    3 to 258 are the bytes, for characters that are no token."""

    def __init__(self, path):
        with open(path, "rb") as file:
            content, start, self.tokens, self.scores = file.read(), 4, [], []
        try:
            while start < len(content) or len(self.tokens) < 259:
                score, n = struct.unpack_from("<fi", content, start)
                self.tokens += struct.unpack_from(f"{n}s", content, start + 8)  # error if n < 0
                self.scores.append(score)
                start += 8 + n
        except struct.error:
            raise ValueError(f"{path}: no llama2.c tokenizer, or cut off at byte {start}") from None
        # The file writes bytes as "<0x0A>". Ids 0 to 2 are markers, which no text may produce.
        self.tokens[3:259] = [bytes([byte]) for byte in range(256)]
        self.ids = {token: k for k, token in enumerate(self.tokens) if k > 2}
        self.vocab_size, self.special_tokens = len(self.tokens), {"<|endoftext|>": 1}

    def fingerprint(self):
        """Never that of a checkpoint of ours."""
        return "llama2.c"

    def token_bytes(self, token_id):
        return self.tokens[token_id]

    def encode(self, text):
        """Ids of text, a list. Slow, but prompts are short."""
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
