"""What RL reaches, over seeds, and how fast rollouts are sampled beside PyTorch.

Reads a finished run's out/ (or the folder that BENCH_OUT names; none: makes one); trains in a
temporary folder: bench_thinking four times, bench_reward_model four times, some minutes each."""
import os
import subprocess
import sys
import tempfile

import numpy as np

from bench import ROOT, by_turns
from bench_sft import STAGES, finished
from common import read_json, read_json_lines

SEEDS = 3
SHAPE = dict(vocab=1027, ctx=128, dim=128, layers=4, heads=4, kv_heads=4, hidden=344)


def train(out, folder, name, *flags):
    """One run of rl.py: its state and its log."""
    command = [sys.executable, os.path.join(ROOT, "rl.py"), "--out", f"{folder}/{name}", *flags]
    subprocess.run(command, cwd=os.path.dirname(os.path.abspath(out)), check=True,
                   stdout=subprocess.DEVNULL)
    return (read_json(f"{folder}/{name}/state.json"),
            [line for _, line in read_json_lines(f"{folder}/{name}/log.jsonl")])


def bench_thinking():
    """Sampled answers that are right before and after, the worst of the seeds; the same with
    thoughts forbidden; the seconds of the slowest run."""
    with tempfile.TemporaryDirectory() as folder:
        out = finished(STAGES, "sft", folder)
        runs = [train(out, folder, f"{seed}", "--seed", str(seed)) for seed in range(SEEDS)]
        silent, _ = train(out, folder, "silent", "--silent")
    return {"rl_start_accuracy": max(state["before"]["sampled"] for state, _ in runs),
            "rl_end_accuracy": min(state["after"]["sampled"] for state, _ in runs),
            "rl_direct_accuracy": silent["after"]["sampled"],
            "rl_seconds": max(log[-1]["seconds"] for _, log in runs)}


def bench_reward_model():
    """How far the gold reward ends below its start, the least of the seeds; and with a KL penalty,
    the share of the best gold reward that is left at the end. Means of five iterations."""
    def smooth(log):
        gold = np.array([line["gold_reward"] for line in log])
        return [gold[i:i + 5].mean() for i in range(0, len(gold), 5)]
    with tempfile.TemporaryDirectory() as folder:
        out = finished(STAGES, "sft", folder)
        rewards = [(log[0]["gold_reward"], smooth(log)[-1]) for _, log in (
            train(out, folder, f"{seed}", "--reward", "model", "--seed", str(seed))
            for seed in range(SEEDS))]
        kept = smooth(train(out, folder, "kl", "--reward", "model", "--kl", "0.1")[1])
    return {"hack_true_score_fall": min(first - last for first, last in rewards),
            "hack_kl_true_score_kept": kept[-1] / max(kept)}


def torch_rollout(network, prompts, steps):
    """Samples steps tokens after prompts (B,T), with a KV cache: (B,steps)."""
    import torch
    import torch.nn.functional as F
    (B, T), D = prompts.shape, network.D
    shape = (len(network.blocks), B, network.kv_heads, T + steps, D)
    keys, values, out, begin = torch.empty(shape), torch.empty(shape), [], 0
    new = prompts
    with torch.inference_mode():
        for _ in range(steps):
            x, end = network.embed(new), begin + new.shape[1]
            cos, sin = network.cos[begin:end], network.sin[begin:end]
            for b, k_cache, v_cache in zip(network.blocks, keys, values):
                n = b["norm1"](x)
                q, k, v = (b[name](n).view(B, end - begin, -1, D).transpose(1, 2) for name in "qkv")
                q, k = (t * cos + t.roll(D // 2, -1) * sin for t in (q, k))
                k_cache[:, :, begin:end], v_cache[:, :, begin:end] = k, v
                o = F.scaled_dot_product_attention(q, k_cache[:, :, :end], v_cache[:, :, :end],
                                                   is_causal=begin == 0)
                x = x + b["o"](o.transpose(1, 2).reshape(B, end - begin, -1))
                n = b["norm2"](x)
                x = x + b["down"](F.silu(b["gate"](n)) * b["up"](n))
            logits = network.norm(x[:, -1]) @ network.embed.weight.T
            new = torch.multinomial(logits.softmax(-1), 1)
            out.append(new)
            begin = end
    return torch.cat(out, 1)


def bench_rollouts():
    """Tokens per second, ours / PyTorch's: 16 rollouts of 32 tokens of each of 16 prompts of 24.
    Ours reads each prompt once, which the usual way with PyTorch does not."""
    import torch

    import model
    import sample
    from peer_torch import Llama
    torch.set_num_threads(os.cpu_count())
    config = model.Config(**SHAPE)
    params, network = model.init_params(config), Llama(**SHAPE)
    prompts = np.random.default_rng(0).integers(0, config.vocab, (16, 24)).repeat(16, 0)
    ours_s, theirs_s = by_turns(
        lambda: sample.generate(params, config, prompts, 32),
        lambda: torch_rollout(network, torch.tensor(prompts), 32), turns=5, warm=1)
    return {"rollout_tokens_per_s_vs_torch": theirs_s / ours_s}
