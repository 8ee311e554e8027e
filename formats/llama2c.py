"""llama2.c's files: a small Llama as one .bin file, and its tokenizer.

Source: llama2.c (export.py, version 0; tokenizer.py).
"""
import math
import os
import struct

import numpy as np


def read_model(path):
    """(arguments of model.Config, name -> array) of a .bin file in llama2.c's first format: seven
    int32, then float32 matrices, each kind for all layers.

    It rotates neighbours (0,1), (2,3) ... where we rotate halves, so the rows of q and k are put in
    another order: in each head the even ones first, then the odd ones. Scores don't change, as q
    and k are reordered alike. A negative vocabulary in the header means an untied output head."""
    with open(path, "rb") as file:
        head = file.read(28)
        if len(head) < 28:
            raise ValueError(f"{path}: not a llama2.c model (only {len(head)} bytes)")
        dim, hidden, layers, heads, kv_heads, vocab, ctx = map(int, np.frombuffer(head, np.int32))
        if (min(dim, hidden, layers, heads, kv_heads, abs(vocab), ctx) < 1 or layers > 1000
                or dim % (2 * heads) or heads % kv_heads):
            raise ValueError(f"{path}: not a llama2.c model (its header says dim {dim}, {heads} "
                             f"and {kv_heads} heads, {layers} layers, vocabulary {vocab})")
        # The order in the file: the embedding, then each kind of weight for all layers.
        D, kv = dim // heads, dim // heads * kv_heads
        shapes = {"model.embed_tokens.weight": (abs(vocab), dim)}
        for part, shape in [
                ("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)),
                ("self_attn.k_proj", (kv, dim)), ("self_attn.v_proj", (kv, dim)),
                ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,)),
                ("mlp.gate_proj", (hidden, dim)), ("mlp.down_proj", (dim, hidden)),
                ("mlp.up_proj", (hidden, dim))]:
            shapes |= {f"model.layers.{layer}.{part}.weight": shape for layer in range(layers)}
        shapes |= {"model.norm.weight": (dim,), "angles": (ctx, D)}  # angles we compute ourselves
        shapes |= {} if vocab > 0 else {"lm_head.weight": (-vocab, dim)}
        size, needed = os.path.getsize(path), 28 + 4 * sum(map(math.prod, shapes.values()))
        if size != needed:
            raise ValueError(f"{path}: has {size} bytes, its header asks for {needed}: cut short "
                             "or damaged")
        arrays = {name: np.fromfile(file, np.float32, math.prod(shape)).reshape(shape)
                  for name, shape in shapes.items()}
    del arrays["angles"]
    for name, x in arrays.items():
        if "q_proj" in name or "k_proj" in name:
            # (heads, pairs, 2, dim) -> (heads, 2, pairs, dim)
            arrays[name] = x.reshape(-1, D // 2, 2, dim).transpose(0, 2, 1, 3).reshape(-1, dim)
    sizes = dict(vocab=abs(vocab), ctx=ctx, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads,
                 hidden=hidden, tied=vocab > 0, bos=(1,), eos=(1, 2))  # SentencePiece's <s>, </s>
    return sizes, arrays


class Tokenizer:
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
            raise ValueError(f"{path}: no llama2.c tokenizer, or cut off at byte {start}") from None
        # The file writes bytes as "<0x0A>". Ids 0 to 2 are markers, which no text may produce.
        self.tokens[3:259] = [bytes([byte]) for byte in range(256)]
        self.ids = {token: k for k, token in enumerate(self.tokens) if k > 2}
        self.vocab_size, self.special_tokens = len(self.tokens), {"<|endoftext|>": 1}

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
