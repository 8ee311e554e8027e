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
# The first word of a letter's Unicode name is its script (GREEK SMALL LETTER ALPHA). These scripts
# tell the language; CJK are the Chinese characters, which Japanese uses too.
SCRIPTS = {
    "GREEK": "el", "ARMENIAN": "hy", "HEBREW": "he", "DEVANAGARI": "hi", "BENGALI": "bn",
    "GURMUKHI": "pa", "GUJARATI": "gu", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn",
    "MALAYALAM": "ml", "SINHALA": "si", "THAI": "th", "LAO": "lo", "MYANMAR": "my",
    "GEORGIAN": "ka", "HANGUL": "ko", "ETHIOPIC": "am", "KHMER": "km", "HIRAGANA": "ja",
    "KATAKANA": "ja", "KATAKANA-HIRAGANA": "ja", "CJK": "zh"}
WORD = re.compile(r"[^\W\d_]+")
LANGUAGE_SAMPLE = 10_000  # characters looked at; 1,500 words are more than enough


@functools.cache
def function_words():
    """script -> {word: the languages that have it}."""
    words = defaultdict(lambda: defaultdict(list))
    for line in read_text_lines(FUNCTION_WORDS):
        script, code, *listed = line.split()
        for word in listed:
            words[script][word].append(code)
    return words


def identify_language(text):
    """(code, score in 0..1); ("und", 0.0), "undetermined", if neither script nor words decide.

    A word found in k of the lists gives each of them 1/k point. With b and r the points of the
    winner and of the runner-up, f the share of the winner's words among all words:
    score = share of the script's letters x min(1, f / 0.20) x b^2 / (b^2 + r^2).
    "their" among nine unknown words: 1 x 0.1 / 0.20 x 1 = 0.5, under the threshold of 0.65. With
    b = 30 and r = 10 the last factor is 900 / 1000; with b = r it is 1/2, and nothing passes."""
    words = function_words()
    text = unicodedata.normalize("NFC", text[:LANGUAGE_SAMPLE])
    letters = Counter()
    for character, n in Counter(text).items():
        if character.isalpha():
            script = unicodedata.name(character, "und").split()[0]
            letters[SCRIPTS.get(script, script if script in words else "und")] += n
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
