"""Which language is a text in? Its script and its most frequent words say it.

A script that only one language uses decides alone. Within the Latin, Cyrillic and Arabic scripts
the function words of each language vote: every running text is full of "the", "der" or "de la".
They stand in function_words.txt, one language a line: its script, its code, its words. Languages
that share short words must all be listed (without Finnish, its "on" would count as English).

FineWeb asks fastText's lid.176, a trained classifier; on long texts this comes close to it.
"""
import functools
import os
import re
import unicodedata
from collections import Counter, defaultdict

from common import read_text_lines

FUNCTION_WORDS = os.path.join(os.path.dirname(__file__), "function_words.txt")
# First and last code point, and the language or, in capitals, a script of several languages.
SCRIPTS = (
    "0041-024F LATIN 1E00-1EFF LATIN 0370-03FF el 1F00-1FFF el 0400-052F CYRILLIC 0531-058F hy "
    "0591-05FF he 0600-06FF ARABIC 0750-077F ARABIC FB50-FDFF ARABIC FE70-FEFC ARABIC 0900-097F hi "
    "0980-09FF bn 0A00-0A7F pa 0A80-0AFF gu 0B80-0BFF ta 0C00-0C7F te 0C80-0CFF kn 0D00-0D7F ml "
    "0D80-0DFF si 0E00-0E7F th 0E80-0EFF lo 1000-109F my 10A0-10FF ka 1100-11FF ko AC00-D7AF ko "
    "1200-137F am 1780-17FF km 3040-30FF ja 3400-4DBF zh 4E00-9FFF zh"
)
WORD = re.compile(r"[^\W\d_]+")
LANGUAGE_SAMPLE = 10_000  # characters looked at; 1,500 words are more than enough


@functools.cache
def language_tables():
    """code point -> language or script; script -> {word: the languages that have it}."""
    scripts, words = {}, defaultdict(lambda: defaultdict(list))
    for span, name in re.findall(r"(\S+) (\S+)", SCRIPTS):
        first, last = (int(point, 16) for point in span.split("-"))
        scripts.update(dict.fromkeys(range(first, last + 1), name))
    for line in read_text_lines(FUNCTION_WORDS):
        script, code, *listed = line.split()
        for word in listed:
            words[script][word].append(code)
    return scripts, words


def identify_language(text):
    """(code, score in 0..1); ("und", 0.0), "undetermined", if neither script nor words decide.

    A word found in k of the lists gives each of them 1/k point. With b and r the points of the
    winner and of the runner-up, f the share of the winner's words among all words:
    score = share of the script's letters x min(1, f / 0.20) x b^2 / (b^2 + r^2).
    "their" among nine unknown words: 1 x 0.1 / 0.20 x 1 = 0.5, under the threshold of 0.65. With
    b = 30 and r = 10 the last factor is 900 / 1000; with b = r it is 1/2, and nothing passes."""
    scripts, words = language_tables()
    text = unicodedata.normalize("NFC", text[:LANGUAGE_SAMPLE])
    letters = Counter()
    for character, n in Counter(text).items():
        if character.isalpha():
            letters[scripts.get(ord(character), "und")] += n
    if letters["ja"] * 10 > letters["zh"]:  # Japanese mixes its kana with Chinese characters
        letters["ja"] += letters.pop("zh", 0)
    if not letters.total():
        return "und", 0.0
    script, n = letters.most_common(1)[0]
    share = n / letters.total()
    if script not in words:
        return script, 0.0 if script == "und" else share
    points, found, counts = Counter(), Counter(), Counter(WORD.findall(text.lower()))
    for word, n in counts.items():
        codes = words[script].get(word, ())  # not words[script][word]: that would add the word
        for code in codes:
            points[code] += n / len(codes)
            found[code] += n
    if not points:
        return "und", 0.0
    (winner, b), (_, r) = (points.most_common(2) + [("", 0)])[:2]
    frequent = min(1, found[winner] / counts.total() / 0.20)
    return winner, share * frequent * b * b / (b * b + r * r)
