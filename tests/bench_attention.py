"""How fast attention is, forward and backward together, beside PyTorch's fused kernel."""
import statistics
import time

import numpy as np

SHAPES = ((16, 4, 128, 32), (16, 8, 256, 32), (8, 8, 256, 64), (4, 8, 512, 64))  # B, H, T, D
ROUNDS = 15  # ours and theirs take turns, so that a slower minute of the machine hits both


def bench_attention():
    """Speed ratio ours / theirs, median of the four shapes, each in its own natural layout."""
    import torch
    from numba import get_num_threads

    from kernels import fused_attention_backward, fused_attention_forward

    torch.set_num_threads(get_num_threads())
    rng, figures = np.random.default_rng(0), {}
    for B, H, T, D in SHAPES:
        qkv, do = (rng.standard_normal((B, T, n * H, D), np.float32) for n in (3, 1))
        o, dqkv, lse = np.empty_like(do), np.empty_like(qkv), np.empty((B, H, T), np.float32)
        tq, tk, tv = (torch.tensor(x).transpose(1, 2).contiguous().requires_grad_()
                      for x in np.split(qkv, 3, axis=2))
        tdo = torch.tensor(do).transpose(1, 2).contiguous()

        def ours():
            fused_attention_forward(qkv, H, o, lse)
            fused_attention_backward(do, qkv, H, o, lse, dqkv)

        def theirs():
            to = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, is_causal=True)
            torch.autograd.grad(to, (tq, tk, tv), tdo)

        times = {ours: [], theirs: []}
        for turn in range(ROUNDS + 2):
            for run, seconds in times.items():
                start = time.perf_counter()
                run()
                if turn >= 2:  # the first two turns compile and warm up
                    seconds.append(time.perf_counter() - start)
        ours_s, theirs_s = map(statistics.median, times.values())
        figures[f"attention_vs_torch_{B}x{H}x{T}x{D}"] = theirs_s / ours_s
        print(f"attention forward+backward {B}x{H}x{T}x{D}: {1e3 * ours_s:.2f} ms, "
              f"PyTorch {1e3 * theirs_s:.2f} ms, {theirs_s / ours_s:.2f} times as fast")
    return {"attention_vs_torch": statistics.median(figures.values()), **figures}


if __name__ == "__main__":
    print(bench_attention())
