"""The baseline of our training: the same jobs in PyTorch, run in a process of its own.

    python tests/peer_torch.py step '{"dim": 256, ...}' STEPS eager|compile    one line of JSON
    python tests/peer_torch.py shakespeare TEXT_FILE                           likewise
"""
import json
import math
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from bench import by_turns
from bench_spine import BATCH


class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Llama(nn.Module):
    """model.py's network: rotary halves, grouped-query attention, SwiGLU, tied head."""

    def __init__(self, vocab, ctx, dim, layers, heads, kv_heads, hidden):
        super().__init__()
        self.heads, self.kv_heads, self.D = heads, kv_heads, dim // heads
        self.embed = nn.Embedding(vocab, dim)
        sizes = {"q": (dim, dim), "k": (dim, kv_heads * self.D), "v": (dim, kv_heads * self.D),
                 "o": (dim, dim), "gate": (dim, hidden), "up": (dim, hidden), "down": (hidden, dim)}
        self.blocks = nn.ModuleList(nn.ModuleDict(
            {name: nn.Linear(*size, bias=False) for name, size in sizes.items()}
            | {"norm1": Norm(dim), "norm2": Norm(dim)}) for _ in range(layers))
        self.norm = Norm(dim)
        angles = torch.outer(torch.arange(ctx), 1e4 ** (-torch.arange(0, self.D, 2) / self.D))
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], -1))
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def rotate(self, x):  # (B,heads,T,D)
        return x * self.cos[:x.shape[2]] + x.roll(self.D // 2, -1) * self.sin[:x.shape[2]]

    def forward(self, ids, targets):
        x = self.embed(ids)
        B, T, C = x.shape
        for b in self.blocks:
            n = b["norm1"](x)
            q, k, v = (b[name](n).view(B, T, -1, self.D).transpose(1, 2) for name in "qkv")
            shared = self.heads != self.kv_heads
            o = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True,
                                               enable_gqa=shared)
            x = x + b["o"](o.transpose(1, 2).reshape(B, T, C))
            n = b["norm2"](x)
            x = x + b["down"](F.silu(b["gate"](n)) * b["up"](n))
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train_step(model, loss_of, optimizer, windows):
    loss_of(windows[:, :-1], windows[:, 1:]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def step_speed(sizes, turns, how):
    """Median seconds of a whole step (forward, loss, backward, clip, AdamW), and peak memory."""
    torch.set_num_threads(2)
    model = Llama(**sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=True)
    loss_of = torch.compile(model) if how == "compile" else model
    seconds, = by_turns(lambda: train_step(
        model, loss_of, optimizer, torch.randint(0, sizes["vocab"], (BATCH, sizes["ctx"] + 1))),
        turns=turns, warm=3)
    return {"seconds": seconds,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


class GPT(nn.Module):
    """nanoGPT's network for characters on a CPU: LayerNorm, GELU, learned positions, tied head."""

    def __init__(self, vocab, ctx=64, dim=128, layers=4, heads=4):
        super().__init__()
        self.heads = heads
        self.token, self.position = nn.Embedding(vocab, dim), nn.Embedding(ctx, dim)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm1": nn.LayerNorm(dim, bias=False), "norm2": nn.LayerNorm(dim, bias=False),
            "qkv": nn.Linear(dim, 3 * dim, bias=False), "out": nn.Linear(dim, dim, bias=False),
            "up": nn.Linear(dim, 4 * dim, bias=False), "down": nn.Linear(4 * dim, dim, bias=False)})
            for _ in range(layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if deep else 0.02)

    def forward(self, ids, targets):
        x = self.token(ids) + self.position.weight[:ids.shape[1]]
        for b in self.blocks:
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                       for t in b["qkv"](b["norm1"](x)).chunk(3, -1))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + b["out"](o.transpose(1, 2).flatten(2))
            x = x + b["down"](F.gelu(b["up"](b["norm2"](x))))
        logits = self.norm(x) @ self.token.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def shakespeare(path, steps=2000, batch=12, T=64):
    """nanoGPT's published CPU recipe: seconds without evaluation, nats per validation character."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    text = open(path, encoding="utf-8").read()
    index = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([index[c] for c in text])
    train, val = ids[:len(ids) * 9 // 10], ids[len(ids) * 9 // 10:]
    model = GPT(len(index))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  betas=(0.9, 0.99), fused=True)
    start = time.perf_counter()
    for step in range(steps):
        cosine = 1e-4 + 0.9e-3 * (1 + math.cos(math.pi * (step - 100) / (steps - 100))) / 2
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1) / 100 if step < 100 else cosine
        windows = torch.stack([train[i:i + T + 1] for i in torch.randint(len(train) - T, (batch,))])
        train_step(model, model, optimizer, windows)
    seconds, n = time.perf_counter() - start, (len(val) - 1) // T
    with torch.no_grad():
        loss = model(val[:n * T].view(n, T), val[1:n * T + 1].view(n, T)).item()
    return {"seconds": seconds, "nats": loss}


if __name__ == "__main__":
    if sys.argv[1] == "step":
        print(json.dumps(step_speed(json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
    else:
        print(json.dumps(shakespeare(sys.argv[2])))
