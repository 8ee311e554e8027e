"""Speed of bpe.py beside Hugging Face tokenizers and tiktoken, one core each, in one run.

The text is about 5 MB that nearly every machine has: the standard library's sources, Python's own
documentation and, where TEST_DATA names them, Shakespeare and school problems. Every timing starts
from a fresh tokenizer, whose cache is empty.
"""
import base64
import json
import os
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path

import bpe

TEXT_BYTES = 5_200_000
VOCAB = 8192
# The pattern as tiktoken itself publishes it for cl100k_base.
TIKTOKEN_SPLIT = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
                  r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")


def bench_text():
    """Prose first, sources after, TEXT_BYTES long."""
    import pydoc_data.topics
    texts, data = [], os.environ.get("TEST_DATA")
    if data:
        texts.append(Path(data, "tinyshakespeare.txt").read_text("utf-8"))
        for line in Path(data, "gsm8k_test.jsonl").read_text("utf-8").splitlines():
            problem = json.loads(line)
            texts.append(problem["question"] + "\n" + problem["answer"] + "\n")
    texts += pydoc_data.topics.topics.values()
    texts += [path.read_text("utf-8", "replace")
              for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    return "\n".join(texts)[:TEXT_BYTES]


def chunks(text):
    """Parts of 100,000 characters, which the others like better."""
    return [text[i:i + 100_000] for i in range(0, len(text), 100_000)]


def ratio(ours, theirs, rounds):
    """Median seconds of theirs / of ours, alternating, on one core. Each returns its seconds."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        times = [(ours(), theirs()) for _ in range(rounds)]
    finally:
        os.sched_setaffinity(0, cores)
    mine, other = (statistics.median(column) for column in zip(*times))
    print(f"  ours {mine:.3f} s ({TEXT_BYTES / 1e6 / mine:.1f} MB/s), theirs {other:.3f} s",
          flush=True)
    return other / mine


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bench_train():
    """Training a vocabulary of 8,192."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    parts = chunks(bench_text())
    bpe.train(["compile first"], 260)

    def theirs():
        fresh = Tokenizer(models.BPE())
        fresh.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(bpe.GPT4_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        trainer = trainers.BpeTrainer(vocab_size=VOCAB, show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        return timed(lambda: fresh.train_from_iterator(parts, trainer))
    return {"bpe_train_vs_tokenizers": ratio(
        lambda: timed(lambda: bpe.train(parts, VOCAB, workers=1)), theirs, 3)}


def bench_encode():
    """Encoding: against tokenizers with a vocabulary of 8,192, against tiktoken with GPT-4's."""
    import tiktoken
    from tokenizers import Tokenizer
    text, figures = bench_text(), {}
    parts = chunks(text)
    trained = bpe.train(parts, VOCAB, workers=1)
    trained.encode("compile first")

    def ours(path):
        fresh = bpe.Tokenizer.load(path)
        return timed(lambda: fresh.encode(text))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tokenizer.json"
        trained.save(path)

        def hugging_face():
            fresh = Tokenizer.from_file(path)
            return timed(lambda: fresh.encode_batch(parts))
        figures["bpe_encode_vs_tokenizers"] = ratio(lambda: ours(path), hugging_face, 3)
    ranks_path = os.environ.get("TEST_DATA", "") + "/cl100k_base.tiktoken"
    if not os.path.exists(ranks_path):
        print("  tiktoken: set TEST_DATA to a folder with cl100k_base.tiktoken")
        return figures

    def openai():
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(
            bytes.split, Path(ranks_path).read_bytes().splitlines())}
        fresh = tiktoken.Encoding("cl100k", pat_str=TIKTOKEN_SPLIT, mergeable_ranks=ranks,
                                  special_tokens={})
        return min(timed(lambda: fresh.encode_ordinary(text)),
                   timed(lambda: [fresh.encode_ordinary(part) for part in parts]))
    figures["bpe_encode_vs_tiktoken"] = ratio(lambda: ours(ranks_path), openai, 5)
    return figures
