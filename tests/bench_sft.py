"""What the default world becomes: pages kept and dropped, what the assistant can do, and the time.

Reads a finished run in out/ (or in the folder that BENCH_OUT names); where there is none, it makes
one in a temporary folder, which takes some minutes."""
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time

from bench import ROOT
from common import read_json_lines, read_text_lines

STAGES = ("world.py", "data.py", "bpe.py", "train.py", "sft.py")


def finished(stages, wanted, folder):
    """The out/ folder with `wanted` in it: the one that is there, or out/ in folder, made now."""
    out = os.environ.get("BENCH_OUT", os.path.join(ROOT, "out"))
    if os.path.exists(os.path.join(out, wanted)):
        return out
    for script in stages:
        subprocess.run([sys.executable, os.path.join(ROOT, script)], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)
    return os.path.join(folder, "out")


def bench_make():
    """Minutes of `make` in a copy of the source alone, with environment and compiling."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(ROOT, os.path.join(folder, "copy"), ignore=shutil.ignore_patterns(
            "out", ".venv", ".git", "__pycache__", "*.egg-info"))
        start = time.perf_counter()
        subprocess.run(["make", f"PYTHON={sys.executable}"], cwd=copy, check=True,
                       stdout=subprocess.DEVNULL)
        return {"make_minutes": (time.perf_counter() - start) / 60}


def bench_world():
    """Of the pages that are good by their label, the part that became documents; of the junk, the
    part that did not."""
    with tempfile.TemporaryDirectory() as folder:
        out = finished(STAGES[:2], "docs", folder)
        kept = {row["url"] for path in glob.glob(f"{out}/docs/*.gz")
                for _, row in read_json_lines(path)}
        labels = [row for _, row in read_json_lines(f"{out}/world/labels.jsonl")]
    good = [row["url"] in kept for row in labels if row["label"] == "good"]
    junk = [row["url"] not in kept for row in labels if row["label"] != "good"]
    return {"world_kept_good": sum(good) / len(good), "world_dropped_junk": sum(junk) / len(junk)}


def bench_sft():
    """What the assistant does greedily on held-out questions: the share that is right, by kind. Of
    first_prompts.txt, what people ask any assistant, the share that is said to be outside; and how
    often island questions are refused so, or known people called unknown."""
    from checkpoint import open_model
    from sample import complete, recall
    from sft import evaluate, prompt_ids, read_questions

    with tempfile.TemporaryDirectory() as folder:
        out = finished(STAGES, "sft", folder)
        questions = read_questions(f"{out}/world/heldout.jsonl", "kind")
        facts = [fact for _, fact in read_json_lines(f"{out}/world/facts.jsonl")
                 if fact["tier"] != "barely"]
        known, net = recall(*open_model(f"{out}/base"), facts), open_model(f"{out}/sft")
        scores = evaluate(net, questions)
        prompts = [[{"role": "user", "content": line.strip()}]
                   for line in read_text_lines(f"{ROOT}/tests/first_prompts.txt")]
        island = [q["messages"] for q in questions if q["kind"] in (
            "person", "town", "animal", "typed", "context", "yes or no", "about")]
        refused, wrongly = (
            ["only know the island" in text
             for text in complete(net, [prompt_ids(net, messages) for messages in asked])]
            for asked in (prompts, island))
    figures = {f"sft_{kind.replace(' ', '_')}": greedy for kind, (_, _, greedy, _) in scores.items()
               if kind != "barely"}
    return figures | {"facts_recalled_base": known, "sft_false_idk": scores["person"][3],
                      "sft_unknown_abstains": scores["unknown"][3],
                      "sft_outside_real": sum(refused) / len(refused),
                      "sft_false_outside": sum(wrongly) / len(wrongly)}
