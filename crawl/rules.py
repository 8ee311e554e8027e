"""The published rules: what makes a page worth reading, and what of it is masked.

    URL (RefinedWeb), language, repetition and quality (Gopher), C4, FineWeb, personal data

Thresholds are keyword arguments with the published defaults. Where code and paper differ a comment
names both values; we use the paper's unless it says otherwise.

Sources: RefinedWeb (arXiv 2306.01116), Gopher (2112.11446, section A1.1), C4 (1910.10683, section
2.2), FineWeb (2406.17557), and datatrove, the code that FineWeb ran, where the papers are silent.
"""
import functools
import ipaddress
import itertools
import operator
import os
import re
from collections import Counter

import numpy as np
import regex

from kernels.hashing import hash_lines, hash_text, n_gram_chars

# ---- what a rule is ------------------------------------------------------------------------------
# A rule is a generator of checks (reason, value, sign, limit), and a page fails at the first check
# that is true: ("short_doc", 48, "<", 50) drops a text of 48 words, since 48 < 50. So the verdict
# and --explain share one piece of code. A limit of NaN is off: comparisons with NaN are false.
# c4_lines and mask_pii change the text instead.
FAILS = {
    ">": operator.gt, "<": operator.lt, "≥": operator.ge, "≤": operator.le,
    "not in": lambda code, codes: codes != "any" and code not in codes.split(","),
}


def first_failure(checks):
    """The reason of the first check that fails, or None."""
    return next((why for why, value, sign, limit in checks if FAILS[sign](value, limit)), None)


def as_rule(checks):
    """Turns a generator of checks into a function -> reason or None; .checks is the generator."""
    @functools.wraps(checks)
    def rule(*arguments, **limits):
        return first_failure(checks(*arguments, **limits))

    rule.checks = checks
    return rule


# ---- URLs ----------------------------------------------------------------------------------------
# Our own lists are small, because nobody would notice a page dropped by mistake. `--blocklist DIR`
# adds FineWeb's, the UT1 collection: DIR/CATEGORY/domains and DIR/CATEGORY/urls.
BLOCKED = frozenset(  # adult sites, gambling, and shorteners, which are never a page of their own
    "pornhub.com xvideos.com xnxx.com xhamster.com redtube.com youporn.com onlyfans.com "
    "bet365.com pokerstars.com 888casino.com betway.com bwin.com unibet.com "
    "bit.ly tinyurl.com adf.ly t.co ow.ly goo.gl".split())
HARD = frozenset(  # one of them as a word of the URL is enough
    "porn porno xxx milf hentai blowjob camgirl camgirls creampie cumshot gangbang sexcam viagra "
    "cialis levitra onlinecasino freespins sportsbetting casinobonus essaywriting "
    "replicawatches".split())
SOFT = frozenset(  # harmless alone, telling in pairs
    "sex sexy nude naked teen teens girls hot webcam escort amateur fetish erotic "
    "casino poker slots slot betting bet jackpot roulette blackjack bonus online "
    "cheap pills pharmacy replica warez keygen crack torrent loans payday".split())
SUBWORD = re.compile("buyviagra|freeporn|livesex|pornhub|porntube|sexcam|xvideos")
# Second-level labels under which countries register names (co.uk): enough of the public suffixes.
SECOND_LEVEL = frozenset("ac co com edu gob gouv gov id in mil ne net nom or org web".split())


@functools.cache  # a worker loads it once
def load_blocklist(folder):
    """UT1 lists -> (domain hashes, URL hashes), sorted uint64; two empty ones without a folder.
    Five million domains take 40 MB; a set of strings would take 600 MB."""
    found = {"domains": [np.zeros(0, np.uint64)], "urls": [np.zeros(0, np.uint64)]}
    for parent, _, names in os.walk(folder) if folder else ():
        for name in sorted(set(names) & set(found)):
            with open(os.path.join(parent, name), "rb") as file:
                while data := file.read(16 << 20) + file.readline():
                    data = data.lower() if name == "domains" else data
                    found[name].append(hash_lines(np.frombuffer(data, np.uint8)))
    if folder and sum(map(len, found.values())) == 2:
        raise ValueError(f"--blocklist {folder}: no CATEGORY/domains or CATEGORY/urls in it")
    return tuple(np.unique(np.concatenate(hashes)) for hashes in found.values())


def is_listed(hashes, text):
    """Is the text's hash in the sorted hashes?"""
    wanted = hash_text(text)
    i = np.searchsorted(hashes, wanted)
    return i < len(hashes) and bool(hashes[i] == wanted)


@as_rule
def url_rule(url, blocklist=((), ()), *, soft_words=2):
    """Six checks in datatrove's order (RefinedWeb, section 3.1 and appendix G.1).

    A listed domain blocks all its hosts, a listed host only itself. Words stand between the URL's
    punctuation; subwords are searched in the URL without punctuation:

        http://www.shop.co.uk/poker-bonus    domain shop.co.uk, host www.shop.co.uk
        words {http, www, shop, co, uk, poker, bonus}: 2 of SOFT, 2 >= 2: dropped"""
    address = url.split("://", 1)[-1]
    host = re.split(r"[/?#]", address, maxsplit=1)[0].rpartition("@")[2].partition(":")[0]
    host = host.lower().rstrip(".")
    labels = host.split(".")
    is_second_level = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL
    domain = ".".join(labels[-3:] if is_second_level else labels[-2:])
    domains, urls = blocklist
    yield "domain", domain in BLOCKED or is_listed(domains, domain), ">", 0
    yield "subdomain", host in BLOCKED or is_listed(domains, host), ">", 0
    forms = (url, address, address.removeprefix("www."))
    yield "url", any(is_listed(urls, form) for form in forms), ">", 0
    words = frozenset(re.split(r"[^A-Za-z0-9]+", url))
    yield "hard_blacklisted", len(words & HARD), ">", 0
    yield "soft_blacklisted", len(words & SOFT), "≥", soft_words
    yield "blacklisted_subword", len(SUBWORD.findall(re.sub(r"[^a-z0-9]", "", url.lower()))), ">", 0


# ---- language ------------------------------------------------------------------------------------

@as_rule
def language_rule(code, score, *, languages="en", min_score=0.65):
    """FineWeb keeps English with a score above 0.65 (section 3.3); "any" takes every language."""
    yield "language", code, "not in", languages
    yield "language_score", score, "≤", min_score


# ---- words and sentences -------------------------------------------------------------------------
# The thresholds were tuned on spaCy's English tokens, where punctuation counts as a word; on web
# pages this finds 0.5% fewer. Bounded or possessive ("++") repeats keep it linear on any text.
TOKEN = re.compile(
    r"https?://\S+|www\.\S+|[\w.+-]{1,64}+@[\w-]{1,64}(?:\.[\w-]{1,64})+|"
    r"\w+(?:[.,:'’&/]\w+)*+|\.{2,}|-{2,}|={2,}|\*{2,}|!{2,}|\?{2,}|~{2,}|[^\w\s]")
# A sentence ends at . ! ? and the like, with the quotes and brackets that close after it, unless
# the dot belongs to an initial (J.), an acronym (U.S.) or an abbreviation.
ABBREVIATIONS = "Mr Mrs Ms Dr Prof St Sr Jr vs etc Inc Ltd Co Corp Gen Gov Sen Rep No Vol Fig"
SENTENCE_END = regex.compile(
    r"(?<!\.)(?<!\b\p{L})" + "".join(rf"(?<!\b{word})" for word in ABBREVIATIONS.split())
    + r"(?:\.(?!\.)|(?<![!?])[!?]++)(?=[\"'”’»)\]]*(?:\s|$))|[\p{SB=STerm}--!?](?!\p{SB=STerm})",
    regex.V1)
TERMINAL = regex.compile(r"[\p{SB=STerm}\p{SB=ATerm}]$")  # 170 characters: . ! ? 。 ؟ । ...


@functools.lru_cache(1)  # three rules ask for the same text
def words_in(text):
    return TOKEN.findall(text)


def count_sentences(line):
    """Sentences of one line; what follows the last end counts as one too."""
    ends = [match.end() for match in SENTENCE_END.finditer(line)]
    rest = line[ends[-1] if ends else 0 :]
    return len(ends) + any(character.isalnum() for character in rest)


# ---- Gopher --------------------------------------------------------------------------------------

@as_rule
def gopher_repetition(
    text, *, dup_para_frac=0.30, dup_para_char_frac=0.20, dup_line_frac=0.30,
    dup_line_char_frac=0.20, top_2_gram=0.20, top_3_gram=0.18, top_4_gram=0.16,
    duplicated_5_n_grams=0.15, duplicated_6_n_grams=0.14, duplicated_7_n_grams=0.13,
    duplicated_8_n_grams=0.12, duplicated_9_n_grams=0.11, duplicated_10_n_grams=0.10,
):
    """Repeated lines, paragraphs and n-grams, runs of n words (Gopher, table A1): what repeats
    itself is generated, or a menu. Values are shares of the text's characters, or ("_frac" without
    "_char") of its lines and paragraphs; a first occurrence is no repeat.

    "I am your father.\\n" four times: 3 of 5 lines are repeats (the last is empty), 0.6 > 0.30.
    "I am Frank, I am Frank, I am Frank": the first of the most frequent 2-grams, "I am", has 4
    characters, 3 times: 12 of 34, 0.35 > 0.20. Long repeats are less likely by chance, so the limit
    falls with n."""
    n_chars = max(len(text), 1)
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    for name, pieces, limit, char_limit in (
        ("para", paragraphs, dup_para_frac, dup_para_char_frac),
        ("line", lines, dup_line_frac, dup_line_char_frac),
    ):
        n_repeats, n_repeated_chars = repeats(pieces)
        yield f"dup_{name}_frac", n_repeats / len(pieces), ">", limit
        yield f"dup_{name}_char_frac", n_repeated_chars / n_chars, ">", char_limit
    chars = n_gram_chars(*as_arrays(words_in(text))) / n_chars
    limits = (top_2_gram, top_3_gram, top_4_gram, duplicated_5_n_grams, duplicated_6_n_grams,
              duplicated_7_n_grams, duplicated_8_n_grams, duplicated_9_n_grams,
              duplicated_10_n_grams)
    for n, limit in enumerate(limits, 2):
        yield f"top_{n}_gram" if n < 5 else f"duplicated_{n}_n_grams", chars[n], ">", limit


def repeats(pieces):
    """(how many pieces occurred before, how many characters these have)"""
    counts = Counter(pieces)
    return len(pieces) - len(counts), sum(len(piece) * (n - 1) for piece, n in counts.items())


def as_arrays(words):
    """(n,) a 64-bit number for each word, equal for equal words, and (n,) their lengths."""
    return np.fromiter(map(hash, words), np.int64), np.fromiter(map(len, words), np.int64)


STOP_WORDS = frozenset("the be to of and that have with".split())


@as_rule
def gopher_quality(
    text, *, min_words=50, max_words=100_000, min_avg_word=3, max_avg_word=10, max_hashes=0.1,
    max_ellipses=0.1, max_bullets=0.9, max_end_ellipses=0.3, min_alpha=0.8, min_stop_words=2,
):
    """Does it look like prose? (Gopher, section A1.1.) Lengths count the words that are more than
    punctuation; the ratios divide by all tokens, punctuation included.

    "the sun and " 16 times has 48 words, 48 < 50: dropped; 17 times 51: kept. Stop words count in
    lower case, as in the paper, so "The" is none; a text needs two different ones."""
    counts = Counter(words_in(text))
    real = {word: n for word, n in counts.items() if any(map(str.isalnum, word))}
    n_tokens, n_words = max(counts.total(), 1), sum(real.values())
    lines = text.splitlines() or [""]
    yield "short_doc", n_words, "<", min_words  # captions, labels, messages of servers
    yield "long_doc", n_words, ">", max_words  # logs, lists of names
    average = sum(len(word) * n for word, n in real.items()) / max(n_words, 1)
    yield "below_avg", average, "<", min_avg_word  # tables of letters and numbers
    yield "above_avg", average, ">", max_avg_word  # addresses, words run together
    yield "too_many_hashes", text.count("#") / n_tokens, ">", max_hashes  # clouds of tags
    n_ellipses = text.count("...") + text.count("…")
    yield "too_many_ellipsis", n_ellipses / n_tokens, ">", max_ellipses  # teasers: "read more..."
    n_bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
    yield "too_many_bullets", n_bullets / len(lines), ">", max_bullets  # lists and nothing else
    n_ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    yield "too_many_end_ellipsis", n_ends / len(lines), ">", max_end_ellipses
    # Figures and symbols. Plain prose has 0.85 here, and 0.98 if punctuation counts as no word.
    n_alpha = sum(n for word, n in real.items() if any(map(str.isalpha, word)))
    yield "below_alpha", n_alpha / n_tokens, "<", min_alpha
    yield "stop_words", len(STOP_WORDS & counts.keys()), "<", min_stop_words  # no running text


# ---- C4 ------------------------------------------------------------------------------------------

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses? cookies|use of cookies")


# min_sentences, min_words: 5 and 3 as in datatrove; C4's final paper and code: 3 and 5.
def c4_lines(
    text, *, min_sentences=5, max_word_length=1000, citations=True, terminal_punct=False,
    min_words=3, lorem_ipsum=True, javascript=True, curly_bracket=True, policy=True,
):
    """(the good lines as a text, checks of the whole).

    C4 (section 2.2) removes bad lines, and then looks at what is left. Two kinds of lines drop the
    whole text: the filler "lorem ipsum", and a curly bracket, which means code. Words are what
    whitespace separates, counted before citation marks ([12]) go. That a line ends in punctuation
    is asked by C4, not by FineWeb: it would cost 30% of all tokens."""
    kept, n_sentences, n_fillers, n_brackets = [], 0, 0, 0
    for line in map(str.strip, text.splitlines()):
        words, small = line.split(), line.lower()
        line = CITATION.sub("", line) if citations else line
        no_end = not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")
        longest = max(map(len, words), default=0)
        if longest > max_word_length or len(words) < min_words or (terminal_punct and no_end):
            continue
        if lorem_ipsum and "lorem ipsum" in small:
            n_fillers += 1
        elif javascript and "javascript" in small:
            continue
        elif curly_bracket and "{" in line:
            n_brackets += 1
        elif not (policy and POLICY.search(small)):
            kept.append(line)
            n_sentences += count_sentences(line)
    checks = [("lorem_ipsum", n_fillers, ">", 0), ("curly_bracket", n_brackets, ">", 0),
              ("too_few_sentences", n_sentences, "<", min_sentences)]
    return "\n".join(kept), checks


def c4(text, **limits):
    """(the good lines, None), or (text, reason)."""
    kept, checks = c4_lines(text, **limits)
    reason = first_failure(checks)
    return (text if reason else kept), reason


# ---- FineWeb -------------------------------------------------------------------------------------

@as_rule
def fineweb(
    text, *, line_punct=0.12, short_line=0.67, short_line_chars=30, char_dup=0.1, list_ratio=0.3
):
    """FineWeb's own three rules (section 3.6) and a fourth of its code, on what C4 left.
    13 of 100 lines end in terminal punctuation: kept; 12 of 100: 0.12 <= 0.12, dropped."""
    lines = [line for line in text.split("\n") if line.strip()]
    n_lines = max(len(lines), 1)
    yield "empty", len(lines), "<", 1
    # Menus and lists have no full stops. paper: <= 0.12; code: < 0.12
    n_terminal = sum(bool(TERMINAL.search(line.rstrip())) for line in lines)
    yield "line_punct_ratio", n_terminal / n_lines, "≤", line_punct
    # Labels, results, tables. paper: shorter than 30 characters, >= 0.67; code: <= 30, > 0.67
    n_short = sum(len(line) < short_line_chars for line in lines)
    yield "short_line_ratio", n_short / n_lines, "≥", short_line
    # Lines that come again. paper: >= 0.1; code: > 0.01, ten times stricter
    yield "char_dup_ratio", repeats(lines)[1] / max(len(text.replace("\n", "")), 1), "≥", char_dup
    # Texts that are lists: in the code only.
    yield "list_ratio", text.count("\n") / max(len(words_in(text)), 1), ">", list_ratio


# ---- personal data -------------------------------------------------------------------------------
# Bounded ("{1,64}") or possessive ("++") repeats keep these linear on any text.
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
IPV4 = re.compile(rf"(?:{BYTE}\.){{3}}{BYTE}")
EMAIL = re.compile(rf"\b{ATOM}{{1,64}}+(?:\.{ATOM}{{1,64}}+){{0,8}}+@"
                   rf"(?:{LABEL}(?:\.{LABEL}){{1,8}}|\[{IPV4.pattern}\])", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)", re.ASCII)
# A telephone number has a plus and a country code (not 0 or 1x: ITU-T E.164), the groups of North
# America (area code, then 3 and 4 digits), or a word such as "Tel." before it.
PHONE = regex.compile(
    r"""(?<![\w.,+/-])(?=[+(0-9])(?:
    \+1[ .-]?\(?[2-9][0-9]{2}\)?[ .-]?[0-9]{3}[ .-]?[0-9]{4}  # +1 (202) 555-0123
    |\+[2-9](?:[ ./()-]{0,3}[0-9]){7,14}+  # +49 (0)30 1234567
    |(?:1[ .-])?\([2-9][0-9]{2}\)[ .-]?[0-9]{3}[ .-][0-9]{4}  # (202) 555-0123
    |(?:1[.-])?[2-9][0-9]{2}([.-])[0-9]{3}\1[0-9]{4}  # 202-555-0123, 1.202.555.0123
    |(?<![0-9][ ])(?:1[ ])?[2-9][0-9]{2}[ ][0-9]{3}[ ][0-9]{4}(?![ ][0-9])  # 202 555 0123
    |(?<=\b(?i:tel|telefon|telephone|phone|fon|fax|mobile?|call)[.:]{0,2}[ ]?\(?)
     0(?:[ ./()-]{0,3}[0-9]){6,12}+  # Tel. 030/1234567
    )(?![\w/-]|[.,][0-9])""", regex.X | regex.ASCII)
# Replacements: FineWeb's addresses and hosts; then examples of NANP (555-01xx) and RFC 3849.
EMAILS = ("email@example.com", "firstname.lastname@example.org")
HOSTS = ("22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11",
         "18.104.22.168")
PHONES = ("+1 202-555-0123", "+1 202-555-0187")
HOSTS_6 = ("2001:db8::1", "2001:db8::2")


def is_public(address):
    """False for private, local and malformed addresses (leading zeros)."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def mask_pii(text, *, emails=True, ipv4=True, ipv6=True, phones=True):
    """Replaces what points to a person by something of the same kind, in turns. FineWeb does
    e-mail and public IPv4 addresses; IPv6 and telephone numbers are ours."""
    for wanted, sign, pattern, names in (
        (emails, "@", EMAIL, EMAILS), (ipv4, ".", IPV4, HOSTS), (ipv6, ":", IPV6, HOSTS_6),
        (phones, "", PHONE, PHONES),
    ):
        if wanted and sign in text:
            turn = itertools.cycle(names)
            is_host = pattern in (IPV4, IPV6)
            text = pattern.sub(
                lambda m: next(turn) if not is_host or is_public(m[0]) else m[0], text)
    return text
