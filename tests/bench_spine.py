"""How fast matmul, attention, training, decoding and start-up are, each beside a baseline.

Training and its baseline run in processes of their own, since each holds its threads.
    python tests/bench_spine.py step '{"dim": 256, ...}' STEPS      our side of a turn: JSON
"""
import json
import os
import resource
import statistics
import sys
import tempfile
import time

import numpy as np

from bench import by_turns, child

SIZES = {"5m": dict(vocab=2048, ctx=256, dim=256, layers=6, heads=8, kv_heads=8, hidden=688),
         "1m": dict(vocab=1024, ctx=128, dim=128, layers=4, heads=4, kv_heads=4, hidden=344)}
HEADS = ((16, 4, 128, 32), (16, 8, 256, 32), (8, 8, 256, 64), (4, 8, 512, 64))  # B, H, T, D
STEPS = {"5m": 9, "1m": 61}  # in a turn of ours or of theirs
TURNS = 3
BATCH = 16


# ---- matmul and attention ----

def training_shapes():
    """(M, K, N, trans_a, trans_b) of every product in a step of both sizes."""
    for s in SIZES.values():
        C, F = s["dim"], s["hidden"]
        rows = 1024 if s is SIZES["5m"] else 2048  # of a micro-batch
        for M, N in ((3 * C, C), (C, C), (2 * F, C), (C, F)):
            yield from ((rows, N, M, False, True), (rows, M, N, False, False),
                        (M, rows, N, True, False))


def matmul_ratios():
    """Speed ours / NumPy's, per shape."""
    from kernels import matmul
    rng, ratios = np.random.default_rng(0), []
    for M, K, N, trans_a, trans_b in training_shapes():
        a = rng.standard_normal((K, M) if trans_a else (M, K), np.float32)
        b = rng.standard_normal((N, K) if trans_b else (K, N), np.float32)
        A, B, c = a.T if trans_a else a, b.T if trans_b else b, np.empty((M, N), np.float32)
        ours, theirs = by_turns(lambda: matmul(a, b, trans_a, trans_b, out=c),
                                lambda: np.matmul(A, B, out=c))
        ratios.append(theirs / ours)
    return ratios


def bench_matmul():
    """One thread each: two programs' threads waiting for each other in one process measure that."""
    print_ratios = ("import json, sys; sys.path[:0] = ['tests']; import bench_spine as b; "
                    "print(json.dumps(b.matmul_ratios()))")
    one = dict(NUMBA_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    avx2 = dict(NUMBA_CPU_NAME="haswell",
                NUMBA_CPU_FEATURES="+avx,+avx2,+fma,+sse4.2,+popcnt,+bmi,+bmi2")
    return {"matmul_vs_openblas": statistics.median(child("-c", print_ratios, **one)),
            "matmul_avx2_vs_openblas": statistics.median(child("-c", print_ratios, **one, **avx2))}


def bench_attention():
    """Speed ours / PyTorch's, forward and backward, each in its own layout; median of HEADS."""
    import torch
    from numba import get_num_threads

    from kernels import fused_attention_backward, fused_attention_forward
    torch.set_num_threads(get_num_threads())
    rng, ratios = np.random.default_rng(0), []
    for B, H, T, D in HEADS:
        qkv, do = (rng.standard_normal((B, T, n * H, D), np.float32) for n in (3, 1))
        o, dqkv, lse = np.empty_like(do), np.empty_like(qkv), np.empty((B, H, T), np.float32)
        q, k, v, tdo = (torch.tensor(x).transpose(1, 2).contiguous()
                        for x in (*np.split(qkv, 3, axis=2), do))
        inputs = [x.requires_grad_() for x in (q, k, v)]

        def ours():
            fused_attention_forward(qkv, H, o, lse)
            fused_attention_backward(do, qkv, H, o, lse, dqkv)

        def theirs():
            to = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
            torch.autograd.grad(to, inputs, tdo)
        ours_s, theirs_s = by_turns(ours, theirs, turns=15)
        ratios.append(theirs_s / ours_s)
        print(f"   {B}x{H}x{T}x{D}: {1e3 * ours_s:.2f} ms, PyTorch {1e3 * theirs_s:.2f} ms")
    return {"attention_vs_torch": statistics.median(ratios)}


# ---- training ----

def trainer(config, batch):
    """A new network's params, and the function that makes one training step of it."""
    import model
    import optimizer
    params = model.init_params(config)
    buffers = model.Buffers(config, model.micro_batch(config, batch, config.ctx), config.ctx)
    averages = optimizer.start(params)
    grads = model.views(np.empty_like(model.vector(params)), config)

    def step(ids, targets, number=1, rate=1e-3, muon_lr=None):  # AdamW alone, as PyTorch's
        model.loss_and_grads(params, config, ids, targets, grads=grads, buffers=buffers)
        optimizer.update(params, grads, averages, config, number, rate, muon_lr=muon_lr)
    return params, step


def random_steps(sizes, batch):
    """A function muon_lr -> None that trains a network of these sizes on random windows."""
    from model import Config
    _, step = trainer(Config(**sizes), batch)
    rng = np.random.default_rng(0)

    def random_step(muon_lr=None):
        windows = rng.integers(0, sizes["vocab"], (batch, sizes["ctx"] + 1))
        step(windows[:, :-1], windows[:, 1:], muon_lr=muon_lr)
    return random_step


def our_step(sizes, turns):
    """Our side: median seconds of a whole step, and peak memory."""
    seconds, = by_turns(random_steps(sizes, BATCH), turns=turns, warm=3)
    return {"seconds": seconds,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def sgemm_flops():
    """What OpenBLAS reaches on both threads with large matrices, FLOP/s."""
    return child("-c", "import numpy as np, time, json\n"
                       "a, t = np.ones((2048, 2048), np.float32), []\n"
                       "for _ in range(9):\n"
                       " s = time.perf_counter(); a @ a; t.append(time.perf_counter() - s)\n"
                       "print(json.dumps(2 * 2048**3 / sorted(t)[4]))")


def bench_train():
    """Tokens per second of a whole step, ours / PyTorch's; memory likewise (smaller is better)."""
    from model import Config, flops_per_token
    figures = {}
    for name, sizes in SIZES.items():
        runs = {"ours": [], "eager": [], "compile": []}
        for _ in range(TURNS):
            job = "step", json.dumps(sizes), STEPS[name]
            runs["ours"].append(child("tests/bench_spine.py", *job))
            for how in ("eager", "compile"):
                runs[how].append(child("tests/peer_torch.py", *job, how))
        seconds, memory = ({who: statistics.median(r[what] for r in turns)
                            for who, turns in runs.items()} for what in ("seconds", "peak_mb"))
        for how in ("eager", "compile"):
            figures[f"train_{name}_vs_{how}"] = seconds[how] / seconds["ours"]
        flops = flops_per_token(Config(**sizes), sizes["ctx"]) * BATCH * sizes["ctx"]
        print("   " + ", ".join(f"{who} {BATCH * sizes['ctx'] / s:,.0f} tok/s "
                                f"{flops / s / 1e9:.0f} GFLOP/s" for who, s in seconds.items()))
        if name == "5m":
            figures["train_5m_share_of_sgemm"] = flops / seconds["ours"] / sgemm_flops()
            figures["memory_5m_vs_eager"] = memory["ours"] / memory["eager"]
    return figures


def bench_muon():
    """What Muon adds to a step of the default network: time with it over time without, minus 1."""
    step = random_steps(SIZES["1m"] | {"ctx": 256}, 8)
    without, with_muon = by_turns(step, lambda: step(0.01), turns=55, warm=5)
    return {"muon_share_of_step": with_muon / without - 1}


def bench_shakespeare():
    """Our time to 1.90 nats per character over nanoGPT's recipe's whole time; same text, split."""
    path = os.path.join(os.environ.get("TEST_DATA", ""), "tinyshakespeare.txt")
    if not os.path.exists(path):
        return {}
    ours = child("tests/bench_spine.py", "shakespeare", path)
    theirs = child("tests/peer_torch.py", "shakespeare", path)
    for seconds, nats in ours["curve"]:
        print(f"   {seconds:5.1f} s  {nats:.3f} nats  " + "#" * int(nats * 16))
    print(f"   nanoGPT's recipe: {theirs['seconds']:.1f} s, {theirs['nats']:.3f} nats")
    return {"shakespeare_time_vs_nanogpt": ours["seconds"] / theirs["seconds"],
            "shakespeare_nats": ours["nats"]}


def our_shakespeare(path, steps=850, batch=12, T=64, rate=0.01):
    """Our recipe for the same characters: a smaller network, larger steps, decay to zero."""
    import model
    import optimizer
    import train
    text = open(path, encoding="utf-8").read()
    index = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = np.array([index[c] for c in text])
    tokens, val = ids[:len(ids) * 9 // 10], ids[len(ids) * 9 // 10:]
    config = model.Config(vocab=len(index), ctx=T, dim=64, layers=4, heads=4, kv_heads=4,
                          hidden=192)
    _, step = trainer(config, batch)  # compile first
    step(*train.sample_windows(np.random.default_rng(1), tokens, batch, T))
    (params, step), rng = trainer(config, batch), np.random.default_rng(0)
    n, seconds, curve = (len(val) - 1) // T, 0.0, []
    for number in range(1, steps + 1):
        start = time.perf_counter()
        step(*train.sample_windows(rng, tokens, batch, T), number,
             optimizer.learning_rate(number - 1, steps, rate))
        seconds += time.perf_counter() - start
        if number % (steps // 10) == 0:
            nats = model.token_losses(params, config, val[:n * T].reshape(n, T),
                                      val[1:n * T + 1].reshape(n, T))
            curve.append((seconds, float(nats.mean(dtype=np.float64))))
    return {"seconds": seconds, "nats": curve[-1][1], "curve": curve}


# ---- decoding and start-up ----

def seconds_per_token(params, config, prompts, n):
    """Of sample.generate, sampling included: the median of several runs."""
    from sample import generate
    seconds, = by_turns(lambda: generate(params, config, prompts, n), turns=7, warm=1)
    return seconds / (len(prompts) * n)


def bench_decode():
    """Speed of decoding, one sequence and many."""
    import checkpoint
    import model
    figures, rng = {}, np.random.default_rng(0)
    config = model.Config(vocab=32000, ctx=256, dim=288, layers=6, heads=6, kv_heads=6, hidden=768)
    params = model.init_params(config)
    ours = seconds_per_token(params, config, np.ones((1, 4), int), 60)
    read, = by_turns(model.vector(params).sum, turns=15)
    figures["decode_15m_vs_memory_speed"] = read / ours
    path = os.path.join(os.environ.get("TEST_DATA", ""), "stories260K.bin")
    if os.path.exists(path):
        params, config = checkpoint.load(path)
        seconds = seconds_per_token(params, config, np.ones((1, 1), int), 200)
        figures["decode_260k_us_per_token"] = seconds * 1e6
    config = model.Config(**SIZES["1m"])
    params = model.init_params(config)
    one = seconds_per_token(params, config, rng.integers(0, 1024, (1, 8)), 64)
    many = seconds_per_token(params, config, rng.integers(0, 1024, (64, 8)), 64)
    return figures | {"batch64_vs_batch1": one / many}


def bench_start():
    """Seconds to the first training step: the first time ever, and with the kernels on disk."""
    first_step = ("import time, json; t = time.perf_counter()\n"
                  "import sys; sys.path[:0] = ['tests']\n"
                  "import bench_spine as b; b.our_step(b.SIZES['1m'], 1)\n"
                  "import sample, numpy as np, model; c = model.Config(**b.SIZES['1m'])\n"
                  "sample.generate(model.init_params(c), c, np.ones((1, 2), int), 2)\n"
                  "print(json.dumps(time.perf_counter() - t))")
    with tempfile.TemporaryDirectory() as cache:
        first = child("-c", first_step, NUMBA_CACHE_DIR=cache)
        later = statistics.median(child("-c", first_step, NUMBA_CACHE_DIR=cache) for _ in range(3))
    return {"compile_first_s": first, "start_later_s": later}


if __name__ == "__main__":
    if sys.argv[1] == "step":
        print(json.dumps(our_step(json.loads(sys.argv[2]), int(sys.argv[3]))))
    else:
        print(json.dumps(our_shakespeare(sys.argv[2])))
