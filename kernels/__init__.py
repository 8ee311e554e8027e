"""The engine room: every loop that takes time, written for the compiler. model.py tells the story.

Reading order: rows.py (one pass over rows, and how to read Numba), matmul.py (the big one),
attention.py (both combined). Numba compiles each kernel at its first call and keeps the result on
disk, so only the first run waits. Each has a plain NumPy twin in tests/ that it must equal: where a
loop is hard to follow, that says what it computes.
"""
from kernels.attention import attention, attention_backward, attention_forward, attention_step
from kernels.matmul import matmul
from kernels.rows import (adamw, rmsnorm, rmsnorm_backward, rope, scatter_add,
                          softmax_cross_entropy, store_kv, sum_of_squares, swiglu, swiglu_backward)
