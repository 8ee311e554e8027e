"""Measures every figure the README gives, beside a baseline in the same run, and what was asked.

    make bench                                    all of them, about half an hour
    python tests/bench.py --only attention_vs_torch
    python tests/bench.py --json figures.json     name -> number

Ratios of speed are ours / theirs (more is better), of time and memory likewise (less is better).
The functions that measure stand in bench_*.py, one file a subject. A baseline that is not installed
leaves its figures out; real inputs need TEST_DATA (see the README). Nothing else should run.
"""
import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
ASKED = {  # function: {figure: what was asked}, in the order of the pipeline
    "bench_data.bench_extraction": {
        "extraction_f1": ">= 0.92", "extraction_f1_trafilatura": "",
        "extraction_speed_vs_trafilatura": ""},
    "bench_data.bench_language": {
        "english_precision": ">= 0.98", "english_recall": ">= 0.98",
        "language_accuracy": ">= 0.97"},
    "bench_data.bench_minhash": {"minhash_vs_datasketch": ">= 20"},
    "bench_data.bench_pipeline": {"pipeline_vs_trafilatura": ">= 2"},
    "bench_data.bench_memory": {"worker_peak_mb": "<= 400"},
    "bench_data.bench_million": {"million_cluster_s": "", "million_peak_mb": "<= 2000"},
    "bench_bpe.bench_train": {"bpe_train_vs_tokenizers": ">= 1.5"},
    "bench_bpe.bench_encode": {
        "bpe_encode_vs_tokenizers": ">= 5", "bpe_encode_vs_tiktoken": ">= 0.6"},
    "bench_spine.bench_matmul": {
        "matmul_vs_openblas": ">= 0.92", "matmul_avx2_vs_openblas": ">= 0.7"},
    "bench_spine.bench_attention": {"attention_vs_torch": ">= 1.3"},
    "bench_spine.bench_train": {
        "train_5m_vs_eager": ">= 1.25", "train_5m_vs_compile": ">= 1.15",
        "train_1m_vs_eager": ">= 1.3", "train_1m_vs_compile": ">= 1.15",
        "train_5m_share_of_sgemm": "", "memory_5m_vs_eager": "<= 0.6"},
    "bench_spine.bench_muon": {"muon_share_of_step": "<= 0.1"},
    "bench_spine.bench_shakespeare": {
        "shakespeare_time_vs_nanogpt": "<= 0.25", "shakespeare_nats": "<= 1.9"},
    "bench_spine.bench_decode": {
        "decode_15m_vs_memory_speed": ">= 0.7", "decode_260k_us_per_token": "<= 150",
        "batch64_vs_batch1": ">= 8"},
    "bench_spine.bench_start": {"compile_first_s": "<= 30", "start_later_s": "<= 2"},
    "bench_sft.bench_world": {"world_kept_good": ">= 0.98", "world_dropped_junk": ">= 0.97"},
    "bench_sft.bench_sft": {
        "facts_recalled_base": "", "sft_person": ">= 0.98", "sft_town": ">= 0.96",
        "sft_animal": ">= 0.99", "sft_context": ">= 0.96", "sft_yes_or_no": ">= 0.9",
        "sft_about": ">= 0.85", "sft_unknown_abstains": ">= 0.95", "sft_instruction": ">= 0.9",
        "sft_sum": ">= 0.97", "sft_dialogue": ">= 0.85", "sft_never_asked": ">= 0.92",
        "sft_false_idk": "<= 0.03", "sft_outside_real": ">= 0.9", "sft_false_outside": "<= 0.02"},
    "bench_sft.bench_make": {"make_minutes": "<= 6"},
    "bench_rl.bench_thinking": {
        "rl_start_accuracy": "<= 0.35", "rl_end_accuracy": ">= 0.9",
        "rl_direct_accuracy": "<= 0.15", "rl_seconds": "<= 90"},
    "bench_rl.bench_reward_model": {
        "hack_true_score_fall": "", "hack_kl_true_score_kept": ">= 0.9"},
    "bench_rl.bench_rollouts": {"rollout_tokens_per_s_vs_torch": ">= 2"},
}


def by_turns(*functions, turns=31, warm=2):
    """Median seconds of each; they take turns, so that a slower minute hits all of them."""
    times = [[] for _ in functions]
    for _ in range(warm + turns):
        for f, seconds in zip(functions, times):
            start = time.perf_counter()
            f()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[warm:]) for seconds in times]


def child(*command, **environment):
    """The last line a Python process prints, as JSON. OpenBLAS chooses its kernel by itself."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    out = subprocess.check_output([sys.executable, *map(str, command)], cwd=ROOT, text=True,
                                  env=inherited | environment)
    return json.loads(out.splitlines()[-1])


def met(value, asked):
    """What to say of a figure, beside what was asked for."""
    if not asked:
        return ""
    sign, bound = asked.split()
    good = value >= float(bound) if sign == ">=" else value <= float(bound)
    return f"asked {asked}" + ("" if good else ": MISSED")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="one figure, or a part of a function's name")
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    figures = {}
    for function, asked in ASKED.items():
        if args.only not in function and args.only not in asked:
            continue
        module, name = function.split(".")
        start = time.perf_counter()
        print(f"{function} ...", flush=True)
        try:
            found = getattr(importlib.import_module(module), name)()
        except ImportError as error:
            print(f"   left out: {error}")
            continue
        for figure, value in found.items():
            print(f"   {figure:32s} {value:9.3f}   {met(value, asked.get(figure))}")
        print(f"   ({time.perf_counter() - start:.0f} s)", flush=True)
        figures |= found
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(figures, file, indent=1)
    if not figures:
        sys.exit(f"bench.py: nothing is called {args.only}; there are " + ", ".join(
            figure for asked in ASKED.values() for figure in asked))


if __name__ == "__main__":
    main()
