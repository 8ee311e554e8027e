"""crawl/duplicates.py and kernels/hashing.py: copies are found, as often as the formula says."""
import numpy as np
import pytest

from crawl import duplicates
from crawl.duplicates import find_duplicates, near_duplicates, signature
from kernels import hashing
from pages import GERMAN, PROSE


def jaccard_pair(rng, n, s):
    """Two texts of n shingles each, and their Jaccard similarity: s, as near as n lets it be."""
    n_shared = round(2 * n * s / (1 + s))
    words = [f"w{x:x}" for x in rng.integers(0, 1 << 60, 2 * n - n_shared + 8)]
    return (" ".join(words[: n + 4]), " ".join(words[n - n_shared : 2 * n - n_shared + 4]),
            n_shared / (2 * n - n_shared))


@pytest.mark.parametrize("s", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_match_rate_follows_the_formula(s):
    """1,500 pairs of similarity s match at the rate 1 - (1 - s^8)^14, up to 3.5 sampling errors."""
    rng, pairs, matches, expected = np.random.default_rng(int(100 * s)), 1500, 0, 0
    for _ in range(pairs):
        a, b, similarity = jaccard_pair(rng, 100, s)
        matches += bool((signature(a) == signature(b)).any())
        expected += 1 - (1 - similarity**8) ** 14
    p = expected / pairs
    assert abs(matches / pairs - p) < 3.5 * (p * (1 - p) / pairs) ** 0.5


def test_near_duplicates_keep_the_first_of_each_cluster():
    """One word or the case changed: a copy. Too short for a shingle: never one."""
    edited = PROSE.replace("ten carried", "nine carried")
    texts = [PROSE, "short one", edited, GERMAN, PROSE.upper() + "!", "short one", GERMAN]
    assert near_duplicates(texts).tolist() == [True, True, False, True, False, True, False]
    assert near_duplicates([]).tolist() == []


def test_normalisation_before_shingling():
    """Numbers, accents, case and punctuation make no difference; a word does."""
    same = ["In 1999 the Café — closed, at 3.14 pm; sadly",
            "in 2024 THE cafe closed at 2,5 PM sadly", "in 7 the cafe\u0301 closed at 0 pm sadly"]
    assert len({signature(text).tobytes() for text in same}) == 1
    assert signature("one two three four") is None
    assert signature("one two three four five") is not None
    assert not (signature("in 7 the cafe closed at 0 pm gladly") == signature(same[0])).all()


def plain_hash(items):
    """FNV-1a and SplitMix64's finalizer, with Python's integers."""
    h, mask = 0xCBF29CE484222325, (1 << 64) - 1
    for item in items:
        h = (h ^ item) * 0x100000001B3 & mask
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & mask
    h = (h ^ h >> 27) * 0x94D049BB133111EB & mask
    return h ^ h >> 31


def test_shingles_equal_the_plain_ones():
    """The compiled loop hashes the runs of words that slicing gives."""
    text, words = "The Café: 3.14, 2.", ["the", "cafe", "0", "0"]
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    for n in (1, 2, 4, 5):
        hashes = [plain_hash(map(ord, word)) for word in words]
        runs = [hashes[i : i + n] for i in range(len(words) - n + 1)]
        found = hashing.shingle_hashes(codes, duplicates.shingle_alphabet(), n)
        assert found.tolist() == [plain_hash(run) for run in runs]


def test_lines_are_hashed_without_spaces():
    """A list of hosts: empty lines go, \\r and spaces do not count; bytes as the plain hash."""
    data = np.frombuffer(b"a b\r\n\n  \nab\nc", np.uint8)
    expected = [plain_hash(b"ab"), plain_hash(b"ab"), plain_hash(b"c")]
    assert hashing.hash_lines(data).tolist() == expected
    assert hashing.hash_text(" a\nb ") == expected[0] and hashing.hash_text(" \n") == 0


def plain_clusters(keys):
    """Is each row the first of its cluster? Spread the smallest label until nothing moves."""
    labels, before = list(range(len(keys))), None
    while labels != before:
        before, labels = labels, [
            min(labels[j] for j in range(len(keys)) if (keys[i] == keys[j]).any())
            for i in range(len(keys))]
    return [label == i for i, label in enumerate(labels)]


def test_clusters_chain():
    """0 ~ 2 in the first band and 2 ~ 1 in the second: one cluster; so for 200 random rows."""
    keys = np.array([[1, 9], [2, 8], [1, 8], [5, 5], [6, 5], [7, 7]], np.uint64)  # 0-2-1, 3-4, 5
    assert hashing.first_of_cluster(keys).tolist() == [True, False, False, True, False, True]
    keys = np.random.default_rng(0).integers(1, 160, (200, 3)).astype(np.uint64)
    assert hashing.first_of_cluster(keys).tolist() == plain_clusters(keys)


def test_duplicates_of_urls_then_of_texts_then_near_ones():
    """Page 1 has the URL of page 0; page 2 its text; page 4 the text of page 1, which is gone, and
    the band of page 0; page 3 has no URL and no bands."""
    keys = np.array([[7, 1, 5], [7, 2, 6], [0, 1, 6], [0, 3, 0], [8, 2, 5], [0, 4, 0]], np.uint64)
    url, text, near = (("exact", "duplicate_url"), ("exact", "duplicate_text"),
                       ("minhash", "near_duplicate"))
    assert find_duplicates(keys) == [(), url, text, (), near, ()]
    assert find_duplicates(keys[:0]) == []
