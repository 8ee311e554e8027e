"""crawl/rules.py: every rule kept and broken by an example whose arithmetic can be followed."""
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crawl import rules
from crawl.duplicates import near_duplicates
from crawl.language import identify_language
from kernels.hashing import n_gram_chars
from pages import ANY_TEXT, PROSE, growth

# ---- URLs ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def blocklist(tmp_path_factory):
    """Two hosts and a URL on a list, among 300,000 other hosts."""
    folder = tmp_path_factory.mktemp("adult")
    hosts = "".join(f"host{i}.example\n" for i in range(300_000))
    (folder / "domains").write_text(f"blocked.co.uk\nBad.nice.com\r\n\n{hosts}")
    (folder / "urls").write_text("shop.example/one/page.html\n")
    rules.hash_lines(np.zeros(1, np.uint8))  # compiled before the time counts
    start = time.process_time()
    found = rules.load_blocklist(folder.parent)
    assert time.process_time() - start < 1 and found[0].nbytes == 8 * 300_002  # 8 bytes an entry
    return found


@pytest.mark.parametrize("url, reason", [
    ("https://www.pornhub.com/x", "domain"),
    ("https://old.blocked.co.uk/", "domain"),
    ("http://host299999.example/", "domain"),
    ("http://host300000.example/", None),
    ("https://bad.nice.com:8080/a?b", "subdomain"),
    ("http://more.bad.nice.com/", None),  # only the host itself is listed
    ("https://nice.com/", None),
    ("https://www.shop.example/one/page.html", "url"),
    ("https://www.shop.example/one/page.html?x", None),
    ("https://a.example/xxx/1", "hard_blacklisted"),
    ("https://a.example/XXX/1", None),  # case is kept, as in datatrove
    ("https://a.example/poker-night", None),
    ("https://a.example/poker-bonus", "soft_blacklisted"),
    ("https://a.example/poker-poker", None),  # two distinct words are asked for
    ("https://a.example/free/-/PornTips", "blacklisted_subword"),
    ("https://sussex.example/middlesex", None),
    ("", None),
])
def test_url_rule(blocklist, url, reason):
    """Each of the six checks, and what lies just beside it."""
    assert rules.url_rule(url, blocklist=blocklist) == reason


def test_a_folder_without_lists_is_an_error(tmp_path):
    """Not an empty blocklist."""
    with pytest.raises(ValueError, match="no CATEGORY/domains"):
        rules.load_blocklist(tmp_path)


# ---- words and sentences -------------------------------------------------------------------------

def test_words():
    """Punctuation stands alone; numbers, don't, addresses and runs of dots are one token."""
    text = ('He paid $3.50 -- "state-of-the-art", don\'t ask... see www.a.example/b or '
            'a.b@c.example!!')
    assert rules.words_in(text) == [
        "He", "paid", "$", "3.50", "--", '"', "state", "-", "of", "-", "the", "-", "art", '"', ",",
        "don't", "ask", "...", "see", "www.a.example/b", "or", "a.b@c.example", "!!"]


@pytest.mark.parametrize("line, n", [
    ("Hello world. How are you? Fine!", 3), ("Mr. Smith went to the U.S. in 3.5 days", 1),
    ("", 0), ("...", 0), ('He said "no." Then he left.', 2), ("Wait... what?!", 1), ("no end", 1),
    ("這是。那是。", 2)])
def test_sentences(line, n):
    """Abbreviations, initials, numbers and dots in a row end no sentence."""
    assert rules.count_sentences(line) == n


# ---- Gopher --------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, reason", [
    (PROSE, None),
    ("I am your father.\n" * 4, "dup_line_frac"),  # lines: 4 equal and the empty last, 3/5 > 0.30
    ("I am your father.\n\n" * 4, "dup_para_frac"),  # 3/4 > 0.30
    # 1 of 4 paragraphs is a repeat (0.25), with 100 of 256 characters (0.39 > 0.20).
    ("\n\n".join(["x" * 100, "x" * 100, "a b", "c d e"]), "dup_para_char_frac"),
    ("\n".join(["x" * 100, "x" * 100, "a b", "c d e"]), "dup_line_char_frac"),
    ("I am Frank, I am Frank, I am Frank", "top_2_gram"),  # "I am" 4 x 3 / 34 = 0.35 > 0.20
    # "I am": 4 x 3 / 62 = 0.19; "I am Frank": 10 x 3 / 62 = 0.48 > 0.18
    ("I am Frank, you are Jhon. I am Frank. I am Frank you are Jhon", "top_3_gram"),
])
def test_gopher_repetition(text, reason):
    """Lines, paragraphs and short n-grams, with the examples of datatrove's own tests."""
    assert rules.gopher_repetition(text) == reason


def test_gopher_n_grams():
    """100 different words of 4 letters, and once more: the repeat covers 400 of 999 characters."""
    words = [f"{i:04}" for i in range(100)]
    text = " ".join(words + words)
    measured = {reason: value for reason, value, _, _ in rules.gopher_repetition.checks(text)}
    assert measured["top_4_gram"] == pytest.approx((4 * 4 + 3) * 2 / 999)
    assert measured["duplicated_5_n_grams"] == pytest.approx(400 / 999)
    # the scan jumps by n, so for n = 7 two words are left: 14 x 7 = 98
    assert measured["duplicated_7_n_grams"] == pytest.approx(14 * 7 * 4 / 999)
    for n in range(5, 11):  # each rule alone
        off = {f"duplicated_{i}_n_grams": float("nan") for i in range(5, 11) if i != n}
        assert rules.gopher_repetition(text, **off) == f"duplicated_{n}_n_grams"
    # "aaaa bbbb" 100 times among fresh words, and so on up to the 4-gram rule
    for n, pattern in ((2, "aaaa bbbb"), (3, "aaaa bbbb cccc"), (4, "aaaa bbbb cccc dddd")):
        text = " ".join(f"{pattern} {i:04} {i + 5000:04}" for i in range(100))
        off = {f"top_{i}_gram": float("nan") for i in (2, 3, 4) if i != n}
        assert rules.gopher_repetition(text, **off) == f"top_{n}_gram"


def plain_n_gram_chars(words, n):
    """What the compiled loop counts, with a dict and a set."""
    grams = list(zip(*(words[i:] for i in range(n))))
    if n < 5:
        gram, count = max(Counter(grams).items(), key=lambda item: item[1], default=((), 0))
        return len(" ".join(gram)) * count
    seen, i, total = set(), 0, 0
    while i < len(grams):
        total += len("".join(grams[i])) if grams[i] in seen else 0
        i, _ = i + (n if grams[i] in seen else 1), seen.add(grams[i])
    return total


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), max_size=80))
def test_n_gram_counts_equal_the_plain_ones(words):
    """The compiled hash table counts what a dict counts."""
    chars = n_gram_chars(*rules.as_arrays(words))
    assert chars[2:].tolist() == [plain_n_gram_chars(words, n) for n in range(2, 11)]


LIST = "".join(f"- the boat and net number{i}\n" for i in range(16))


@pytest.mark.parametrize("text, reason", [
    (PROSE, None),
    ("the sun and " * 16, "short_doc"),  # 48 < 50 words
    ("the sun and " * 17, None),  # 51
    ("... " * 60 + "the sun and " * 16, "short_doc"),  # punctuation counts as no word here
    ("a of " * 60, "below_avg"),  # (1 + 2) / 2 = 1.5 < 3
    ("the and incomprehensibilities " * 40, None),  # (3 + 3 + 21) / 3 = 9
    ("the and incomprehensibilities indistinguishability " * 40, "above_avg"),  # 45 / 4 > 10
    ("the boat and # net " * 20, "too_many_hashes"),  # 1/5 > 0.1
    ("the boat and net with nine more words… to go home " * 10, None),  # 10 / 110 = 0.09
    ("the boat and net… " * 20, "too_many_ellipsis"),  # 1/5 > 0.1
    (LIST, "too_many_bullets"),  # 16/16 > 0.9
    (LIST + "the end and\nthe other end\n", None),  # 16/18 = 0.89
    ("the boat and net of the\nboat that I would have with the rest ...\n" * 10,
     "too_many_end_ellipsis"),
    ("the boat and 1234 567 890 " * 15, "below_alpha"),  # 3/6 < 0.8
    ("the boat and net , " * 15, None),  # 4/5 = 0.8: punctuation is in the denominator
    ("the boat and net , ; " * 15, "below_alpha"),  # 4/6
    ("The Boat And net " * 20, "stop_words"),  # case counts: none of the eight
    ("the boat The net " * 20, "stop_words"),  # one is not enough
    ("the sun and moon " * 25_000, None),  # 100,000 words
    ("the sun and moon " * 25_000 + "the", "long_doc"),
])
def test_gopher_quality(text, reason):
    """Each rule just broken and just kept."""
    assert rules.gopher_quality(text) == reason


# ---- C4 ------------------------------------------------------------------------------------------

FIVE = "One is here.\nTwo is here.\nThree is here.\nFour is here.\nFive is here."


@pytest.mark.parametrize("line, kept", [
    ("A good line of text", "A good line of text"), ("too short", ""),
    ("a b " + "x" * 1000, "a b " + "x" * 1000), ("a b " + "x" * 1001, ""),
    ("Please enable JavaScript now", ""), ("We link our Privacy Policy here", ""),
    ("This site uses cookies daily", ""),
    ("Cited[12] and [edit] cited[citation needed]", "Cited and  cited")])
def test_c4_lines(line, kept):
    """A bad line goes and the text stays; citation marks go from good lines."""
    assert rules.c4(f"{FIVE}\n  {line} \n\n") == (f"{FIVE}\n{kept}".strip(), None)


def test_c4_texts():
    """What condemns the whole text: fewer than five sentences, filler, code."""
    assert rules.c4(FIVE) == (FIVE, None)
    four = FIVE.rpartition("\n")[0]
    assert rules.c4(four) == (four, "too_few_sentences")
    assert rules.c4(four, min_sentences=4)[1] is None
    assert rules.c4(FIVE + "\nLorem ipsum dolor sit")[1] == "lorem_ipsum"
    assert rules.c4(FIVE + "\nLorem ipsum")[1] is None  # the line went first, with two words
    assert rules.c4(FIVE + "\nif (a) { b")[1] == "curly_bracket"
    assert rules.c4(FIVE + "\nif (a) { b", curly_bracket=False)[1] is None
    assert rules.c4("a\n\n", min_words=float("nan"))[1] == "too_few_sentences"
    ends = FIVE + '\nit goes on and on...\nshe said "yes"'
    assert rules.c4(ends)[0] == ends  # C4's own rule is off, as in FineWeb
    assert rules.c4(ends, terminal_punct=True)[0] == FIVE + '\nshe said "yes"'


# ---- FineWeb -------------------------------------------------------------------------------------

LONG, BRIEF = "a line of more than thirty characters {}", "only short {} lines here."


def lines(pattern, n, first=0):
    return "\n".join(pattern.format(i) for i in range(first, first + n))


@pytest.mark.parametrize("text, reason", [
    (PROSE, None),
    ("\n \n", "empty"),
    (lines(LONG + ".", 12) + "\n" + lines(LONG, 88), "line_punct_ratio"),  # 12/100 <= 0.12
    (lines(LONG + ".", 13) + "\n" + lines(LONG, 87, 13), None),
    (lines(BRIEF, 67) + "\n" + lines(LONG, 33), "short_line_ratio"),  # 67/100 >= 0.67
    (lines(BRIEF, 66) + "\n" + lines(LONG, 34), None),
    # 1 of 10 lines of 41 characters stood there before: 41 / 410 = 0.1 >= 0.1 (code: > 0.01)
    (lines(LONG + ".", 9) + "\n" + lines(LONG + ".", 1), "char_dup_ratio"),
    (lines(LONG + ".", 10) + "\n" + lines(LONG + ".", 1), None),  # 1/11
    # 70 of 100 lines have 30 characters, which is not shorter than 30 (code: <= 30)
    (lines("a line of thirty characters {:02}", 70) + "\n" + lines(LONG + ".", 30), None),
    # 3 line ends / 10 words = 0.3, not above it
    (lines("hyperdimensionalities_{}_uncharacteristically.", 3) + "\nin three dimensions.", None),
    (lines("hyperdimensionalities-{}_uncharacteristically.", 9), None),  # 8/36 words
    (lines("hyperdimensionalities_{}_uncharacteristically.", 9), "list_ratio"),  # 8/18
])
def test_fineweb(text, reason):
    """Each of the four rules at its limit in the paper."""
    assert rules.fineweb(text) == reason


# ---- personal data -------------------------------------------------------------------------------

@pytest.mark.parametrize("text, masked", [
    ("Write to jo.e+x@mail.example.org.", "Write to email@example.com."),
    ("a@b.cd, c@d.ef and g@h.ij",
     "email@example.com, firstname.lastname@example.org and email@example.com"),
    ("'joe@x.example' or <joe@[8.8.8.8]>",
     "'email@example.com' or <firstname.lastname@example.org>"),
    ("joe@example is none", None),
    ("from 8.8.8.8 to 9.9.9.9", "from 22.214.171.124 to 126.96.36.199"),
    ("192.168.0.1 127.0.0.1 192.0.2.7 0.1.2.3 108.0.0.01", None),
    (".3.3.3.0", ".22.214.171.124"),
    ("2606:4700:4700::1111 answers", "2001:db8::1 answers"),
    ("at 12:30:45, fe80::1, std::vector, ::1", None),
])
def test_addresses_are_masked(text, masked):
    """E-mail, IPv4 and IPv6 addresses in turn; private and malformed ones stay."""
    assert rules.mask_pii(text) == (text if masked is None else masked)


@pytest.mark.parametrize("number", [
    "+49 30 1234567", "+49 (0)30 1234567", "+33 1 23 45 67 89", "+44 20 7946 0958", "+1 2025550173",
    "+1 (202) 555-0173", "(202) 555-0173", "212-555-0199", "212.555.0199", "(283)182-3829",
    "(283)-182-3829", "283 182 3829", "1-283-182-3829", "1 (283) 182-3829"])
def test_telephone_numbers_are_masked(number):
    """In the forms of North America and of the world, alone and inside a sentence; one with a
    leading zero only after a word such as "Tel."; and nothing with masking off."""
    assert rules.mask_pii(number) == "+1 202-555-0123"
    assert rules.mask_pii(f"Call {number}, or 8.8.8.") == "Call +1 202-555-0123, or 8.8.8."
    assert rules.mask_pii("phone: (030) 1234567.") == "phone: (+1 202-555-0123."
    assert rules.mask_pii(number, phones=False) == number


@pytest.mark.parametrize("text", [
    "In 1914-1918, 2021-05-14, 1,234,567 or 3.14159265, ISBN 978-3-16-148410-0, +5",
    "score +10 12 13 15 20", "the year 0123/456789", "rooms 200 300 4000 500", "283-182.3829",
    "at +02:00 or 12/13/2024", "Room 030/1234567", "part 212-555-01990", "x212-555-0199"])
def test_other_numbers_stay(text):
    """Years, scores, dates, columns and parts of longer numbers are no telephone numbers."""
    assert rules.mask_pii(text) == text


# ---- hostile texts -------------------------------------------------------------------------------

def all_rules(text):
    for rule in (rules.gopher_repetition, rules.gopher_quality, rules.fineweb, rules.url_rule):
        assert rule(text) is None or isinstance(rule(text), str)
    kept, _ = rules.c4(text)
    assert isinstance(kept, str) and isinstance(rules.mask_pii(text), str)
    code, score = identify_language(text)
    assert isinstance(code, str) and 0 <= score <= 1
    assert near_duplicates([text])[0] and rules.count_sentences(text) >= 0


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
@example("")
@example("\ud800 \udfff" + "\u0301" * 50)
def test_no_rule_crashes_on_any_string(text):
    """A reason or None for any text, lone surrogates included."""
    all_rules(text)


PARTS = ("a| |\n|.|!|!?|? |。|a.|a. |a\n|+-|+|+1111 |+1 |1 |1-|(2|+49 1|0 |tel |tel. 0|212-555-|@|"
         "a@|a.a@a|a@a.|1.|:|a:|[1|www.|http://|a-|a'|\".|\"|...|- |{|İ|\u0301|1|漢|é\u0301|/|\t|"
         "mr. |u.s.|terms of |lorem ipsum ")


@pytest.mark.parametrize("part", [*PARTS.split("|"), "x" * 1001 + " "])
def test_rules_are_linear_on_hostile_texts(part):
    """A text of twice the size takes all rules together at most 2.5 times as long."""
    text = part * (50_000 // len(part))
    assert growth(all_rules, text + "x", text + text + "x") <= 2.5  # "x": so that nothing matches


def test_numbers_cost_no_more_than_other_text():
    """Once "+111...x" cost 0.7 ms each, since groups of digits were tried in all ways."""
    text = PROSE * 500
    assert growth(rules.mask_pii, text, ("+" + "1" * 16 + "x ") * (len(text) // 19)) < 9
