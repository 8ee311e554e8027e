"""Measures data.py against trafilatura and datasketch, each pair in turn on the same machine.

Real pages are found through TEST_DATA (real_pages.warc.gz, real_pages.json). Every function returns
{name: number}; figures named x_vs_y are how many times faster we are."""
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor

import bench
import data
from crawl.rules import language_rule


def real_pages():
    """(path, {url: what people marked}, {url: HTML}, {url: bytes})"""
    path, gold = (os.path.join(os.environ["TEST_DATA"], "real_pages" + end)
                  for end in (".warc.gz", ".json"))
    bodies = {page.url: page.body.partition(b"\r\n\r\n")[2]
              for page in data.read_files([path], print)}
    pages = {page["url"]: page["html"] for page in data.read_documents(path)}
    return path, json.load(open(gold, encoding="utf-8")), pages, bodies


def squeeze(text):
    return " ".join((text or "").split())


def f1(texts, gold):
    """2 hits / (2 hits + missed + junk) over the segments that people marked."""
    hit = missed = junk = 0
    for url, page in gold.items():
        text = squeeze(texts.get(url))
        found = [squeeze(s) in text for s in page["with"]]
        hit, missed = hit + sum(found), missed + len(found) - sum(found)
        junk += sum(squeeze(s) in text for s in page["without"])
    return 2 * hit / (2 * hit + missed + junk)


def trafilatura_text(html):
    import trafilatura

    return trafilatura.extract(html, favor_precision=True, include_comments=False)


def bench_extraction():
    """Both get the pages' bytes, so finding the charset is in both times."""
    _, gold, _, bodies = real_pages()
    texts = [{url: extract(body) for url, body in bodies.items()}
             for extract in (data.extract_text, trafilatura_text)]
    some = list(bodies.values())[::3]
    ours_s, baseline_s = bench.by_turns(lambda: list(map(data.extract_text, some)),
                                        lambda: list(map(trafilatura_text, some)), turns=3, warm=0)
    return {"extraction_f1": f1(texts[0], gold), "extraction_f1_trafilatura": f1(texts[1], gold),
            "extraction_pages_per_s": len(some) / ours_s,
            "extraction_speed_vs_trafilatura": baseline_s / ours_s}


def bench_language():
    """Against fastText lid.176's labels, on pages with 50 words or more."""
    _, gold, pages, _ = real_pages()
    right = n = true = taken = found = 0
    for url, html in pages.items():
        text, label = data.extract_text(html), gold[url]["lang"]
        if label is None or len(text.split()) < 50:
            continue
        code, score = data.identify_language(text)
        kept = language_rule(code, score) is None
        right, n = right + (code == label), n + 1
        true, taken, found = true + (label == "en"), taken + kept, found + (kept and label == "en")
    return {"english_precision": found / taken, "english_recall": found / true,
            "language_accuracy": right / n}


def datasketch_duplicates(texts):
    from datasketch import MinHash, MinHashLSH

    lsh, n = MinHashLSH(num_perm=112, params=(14, 8)), 0
    for i, text in enumerate(texts):
        words = re.sub(r"[^\w\s]", " ", text.lower()).split()
        minhash = MinHash(num_perm=112, seed=1)
        minhash.update_batch({" ".join(words[j : j + 5]).encode() for j in range(len(words) - 4)})
        n += bool(lsh.query(minhash))
        lsh.insert(i, minhash)
    return n


def bench_minhash():
    """Documents per second from texts to verdicts, one core, on the real pages' texts."""
    texts = [data.extract_text(html) for html in real_pages()[2].values()]
    texts = texts + [text[: len(text) * 9 // 10] for text in texts]
    found, found_datasketch = (~data.near_duplicates(texts)).sum(), datasketch_duplicates(texts)
    ours_s, baseline_s = bench.by_turns(lambda: data.near_duplicates(texts),
                                        lambda: datasketch_duplicates(texts), turns=3, warm=0)
    return {"minhash_docs_per_s": len(texts) / ours_s, "minhash_found": int(found),
            "minhash_found_datasketch": found_datasketch,
            "minhash_vs_datasketch": baseline_s / ours_s}


def bench_pipeline():
    """Our whole pipeline from the crawl's file to shards, every language kept, against the
    baseline's extraction alone of the same pages (already unpacked) by as many processes."""
    path, _, _, bodies = real_pages()
    settings, _ = data.read_settings(["language_languages=any"])
    with (tempfile.TemporaryDirectory() as out, ProcessPoolExecutor(2) as pool,
          contextlib.redirect_stdout(io.StringIO())):
        list(pool.map(trafilatura_text, list(bodies.values())[:4]))
        data.near_duplicates(["a b c d e f"])
        ours_s, baseline_s = bench.by_turns(
            lambda: data.clean_crawl([path], out, settings, None, 2),
            lambda: list(pool.map(trafilatura_text, bodies.values(), chunksize=8)),
            turns=3, warm=0)
    return {"pipeline_pages_per_s": len(bodies) / ours_s,
            "pipeline_vs_trafilatura": baseline_s / ours_s}


def bench_memory():
    """Peak resident memory of the largest worker over 2 x 343 real pages."""
    with tempfile.TemporaryDirectory() as out:
        return {"worker_peak_mb": bench.child("-c", """
import resource, sys, data
settings, _ = data.read_settings(["language_languages=any"])
data.clean_crawl([sys.argv[1]] * 2, sys.argv[2], settings, None, 2)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
""", real_pages()[0], out)}


def bench_million():
    """Keys and clusters of a million documents."""
    s, mb = bench.child("-c", """
import time, numpy as np
from kernels.hashing import first_of_cluster
text = np.random.default_rng(0).integers(0, 1 << 63, 1_000_000, np.uint64)
first_of_cluster(np.zeros((2, 14), np.uint64))
start = time.perf_counter()
keys = text[:, None] % np.uint64(800_000) * np.uint64(16) + np.arange(1, 15, dtype=np.uint64)
stays = first_of_cluster(keys)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print([time.perf_counter() - start, int(peak.split()[1]) / 1024])
""")
    return {"million_cluster_s": s, "million_peak_mb": mb}


if __name__ == "__main__":
    sys.argv += ["--only", "bench_data"]
    bench.main()
