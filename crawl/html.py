"""A page becomes its main text: what a reader came for, without menus, adverts and footers.

    html -> page_events: text and tags -> cut_blocks: blocks of text, and the elements around them
         -> choose_blocks: scores, pruning, the best element -> extract_text: lines

The idea, text length against link length, is that of Boilerpipe (Kohlschuetter and others, 2010)
and Readability. FineWeb uses trafilatura; `python tests/bench_data.py` compares the two. Time is
linear in the size of any page. Start at choose_blocks, which scores a small page.
"""
import functools
import html as html_entities
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crawl.warc import CONTROL, decode_html

# ---- what tags mean (skip at first) --------------------------------------------------------------

# These tags are dropped and do not break a line of text. Every other one ends a block, except <a>,
# whose characters count as link, and those of BREAKS below.
INLINE = frozenset(
    "abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark nobr q rp "
    "rt ruby s samp small source span strike strong sub sup time tt u var wbr".split())
SILENT = INLINE | {"/" + tag for tag in INLINE} | {"/br", "/td", "/th"}
UNSEEN = frozenset(  # what stands in these is never the page's text
    "address aside audio button canvas datalist dialog embed figcaption figure footer head iframe "
    "map math menu nav noscript object optgroup select svg template video".split())
RAW = {tag: re.compile(rf"</(?i:{tag})(?![\w-])[^>]*+>?")  # no tags inside but their own end
       for tag in "noembed script style textarea title xmp".split()}
VOID = frozenset("area base col embed hr input link meta param track".split())  # no end tag
HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
LISTS = frozenset("ul ol dl table thead tbody tfoot".split())
ITEMS = frozenset("li dt dd tr pre blockquote".split())  # short by nature
LEAVES = HEADINGS | ITEMS | {"p"}  # kept or dropped one by one, not by their sum
# Opening one of these ends an open one of those; every other block only ends an open p.
ENDS = {"li": ("p", "li"), "dt": ("p", "dt", "dd"), "dd": ("p", "dt", "dd"), "tr": ("p", "tr"),
        "body": ("head",)}
COST = dict.fromkeys("p li tr dd pre blockquote".split(), 10)  # a block's score starts at -10 here,
COST_ELSE = 40  # and at -40 in other tags: a short heading or div is mostly a label
# Whole words of class, id, role or itemprop that name what stands around an article.
NOISE = frozenset(
    "ad ads adv advert advertisement affiliate alert author banner bio breadcrumb breadcrumbs "
    "byline caption comment comments consent cookie cookies copyright credit credits dialog disqus "
    "feed follow footer gallery hidden infobox legal login masthead menu meta modal nav navbar "
    "navigation newsletter noprint overlay pager pagination paging popup popular print promo "
    "promoted promotion rating ratings recommend recommended related reply respond rss share "
    "sharing sidebar signup sitemap skip slider social sponsor sponsored subscribe subscription "
    "tag tags teaser teasers toolbar trending widget widgets".split())
MAIN_NAME = re.compile(
    r"(?i)(?:^|\s)(?:articlebody|"
    r"(?:article|post|entry|story|blog|news|page|main)[-_]?(?:body|content|text|entry))(?:\s|$)")
MAX_ATTRIBUTES = 2000  # characters of a tag's attributes that are looked at
SHORT, TINY = 250, 100  # characters of main text under which we look again, with weaker rules

# Linear, since it cannot fail once "<" begins a tag, even with an open quote or without ">".
TAG = re.compile(
    r"<(?:(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')?+)*+)>?"
    r"|!--(?:.*?-->|.*)|[!?/][^>]*+>?)", re.S)
ATTRIBUTE = re.compile(
    r"([^\s=\"'/]++)(?:\s*+=\s*+(?:\"([^\"]*+)\"?+|'([^']*+)'?+|([^\s\"'>]++)))?+")
NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # splits share-box, share_box, shareBox
INVISIBLE = re.compile(r"(?i)display\s*:\s*none|visibility\s*:\s*hidden")
VISIBLE = re.compile(r"\w")  # blocks of icons and rules alone are no text
# Two separators (ASCII's own) that no page has: extract_text removes control characters first.
NEW_LINE, NEW_CELL = "\x1e", "\x1f"
BREAKS = {"br": NEW_LINE, "td": NEW_CELL, "th": NEW_CELL}


@dataclass(slots=True)
class Element:
    """An element of the page. Elements and blocks are in page order, so the blocks inside one are
    a range: blocks[element.first : element.end]."""
    tag: str
    unseen: bool  # its text is never shown, or never the page's own
    noise: bool  # its tag and names speak against it
    main: bool  # they speak for it
    first: int
    end: int = -1  # known once the element ends


class Block(NamedTuple):
    """A piece of text between two tags that break lines."""
    text: str
    links: int  # characters that are links
    tag: str  # of the innermost element around it
    prefix: str  # "- " for the first block of a list item


# ---- from tags to blocks -------------------------------------------------------------------------

def page_events(html):
    """Yields (text, "", "") and (None, tag or /tag, attributes) in page order, without comments,
    scripts and inline tags: "a<b>b</b><br><p>" gives "a", "b", NEW_LINE, then the p."""
    position, n = 0, len(html)
    while match := TAG.search(html, position):
        if match.start() > position:
            yield html[position : match.start()], "", ""
        closing, tag, attributes = match.groups()
        position = match.end()
        tag = closing + tag.lower() if tag else ""
        if tag in RAW:
            end = RAW[tag].search(html, position)
            position = end.end() if end else n  # left open, it runs to the end of the page
        elif tag in BREAKS:
            yield BREAKS[tag], "", ""
        elif tag and tag not in SILENT:
            yield None, tag, attributes[:MAX_ATTRIBUTES]
    if position < n:
        yield html[position:], "", ""


@functools.lru_cache(4096)
def weigh_names(tag, attributes):
    """(noise, main) of an element. class="shareBox" is noise (it has the word "share"),
    class="shareholder" is not; class="post-content sidebar" is main: that outweighs noise."""
    noise, main = tag == "form", tag in ("article", "main")
    for name, *quoted in ATTRIBUTE.findall(attributes):
        name, value = name.lower(), "".join(quoted)
        if name in ("class", "id", "role", "itemprop"):
            noise = noise or any(word.lower() in NOISE for word in NAME_WORD.findall(value))
            main = main or MAIN_NAME.search(value) is not None
        noise = (noise or name == "hidden"
                 or (name == "style" and INVISIBLE.search(value) is not None))
    return noise and not main and tag not in ("body", "html"), main


def tidy(text, verbatim):
    """The raw text of a block -> its lines; tabs separate the cells of a table row."""
    if "&" in text:
        # Python refuses to read numbers of thousands of digits, and no character needs eight.
        text = re.sub(r"&#(?:\d{8,}|[xX][0-9a-fA-F]{8,});?", "\ufffd", text)
        text = html_entities.unescape(text)
    if verbatim:
        lines = text.replace(NEW_LINE, "\n").expandtabs(4).split("\n")
        return "\n".join(line.rstrip() for line in lines).strip("\n")
    if NEW_LINE not in text and NEW_CELL not in text:
        return " ".join(text.split())
    lines = []
    for line in text.split(NEW_LINE):
        cells = (" ".join(cell.split()) for cell in line.split(NEW_CELL))
        lines.append("\t".join(filter(None, cells)))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip())


def cut_blocks(html):
    """Page -> (elements, blocks). Element 0 is the page itself. An end tag of what is not open is
    ignored; any other also ends the elements inside: "<div><p>a</div>b" ends the p."""
    page, blocks = Element("", False, False, False, 0), []
    elements, stack, n_open = [page], [page], Counter()  # stack: the open elements
    pieces, links, in_link, bullet = [], 0, False, ""
    for text, tag, attributes in itertools.chain(page_events(html), [(None, "/", "")]):
        if not tag:
            if not stack[-1].unseen:
                pieces.append(text)
                links += len(text.strip()) if in_link else 0
            continue
        if tag in ("a", "/a"):
            in_link = tag == "a" and "href" in attributes.lower()
            continue
        text = "".join(pieces)  # every other tag ends a block
        if text and not text.isspace() and VISIBLE.search(text := tidy(text, n_open["pre"])):
            blocks.append(Block(text, links, stack[-1].tag, bullet))
            bullet = ""
        pieces, links = [], 0
        if closing := tag[0] == "/":
            bullet, tag = "", tag[1:]
            n_left = max(n_open[tag] - 1, 0)
        elif tag in VOID:
            continue
        while n_open[tag] > n_left if closing else stack[-1].tag in ENDS.get(tag, ("p",)):
            ended = stack.pop()
            ended.end = len(blocks)
            n_open[ended.tag] -= 1
        if not closing:
            unseen = tag in UNSEEN or stack[-1].unseen
            stack.append(Element(tag, unseen, *weigh_names(tag, attributes), len(blocks)))
            elements.append(stack[-1])
            n_open[tag] += 1
            bullet = "- " if tag == "li" else bullet
    for element in stack:
        element.end = len(blocks)
    return elements, blocks


# ---- from blocks to main text --------------------------------------------------------------------

def choose_blocks(elements, blocks, prune):
    """The numbers of the blocks that are main text. A page of six lines, and its scores:

        <body><ul><li><a href=/>Home page</a></ul>             li :   9 - 2 *  9 - 10 = -19
        <article><h1>Boats</h1>                                h1 :   5 - 2 *  0 - 40 = -35
        <p>300 characters, 20 of them <a href=/n>a link</a>    p  : 300 - 2 * 20 - 10 = 250
        <div class=share><p>Tell all your friends!</div>       p  :  22 - 2 *  0 - 10 =  12
        </article>
        <div class=legal><p>All rights reserved</div></body>   p  :  19 - 2 *  0 - 10 =   9

    1. Score: characters - 2 x characters in links - a cost. Prose is positive, menus are negative.
    2. Prune: an element with a noisy name goes with all in it (share, legal), unless it holds half
       of the page's positive scores (here 271): then the name lies.
    3. Choose: the element whose remaining blocks have the largest sum, doubled if it is called
       article: body has -19 - 35 + 250 = 196, the article 2 * (-35 + 250) = 430 and wins.
    4. Inside it remove containers with a negative sum (lists and tables: without cost, since their
       items are short by nature) and blocks that are nearly all link. Left: the heading and p."""
    ranges = np.array([(element.first, element.end) for element in elements]).T
    # 1. Score.
    prose = np.array([len(block.text) - 2 * block.links for block in blocks], int)
    scores = prose - np.array([COST.get(block.tag, COST_ELSE) for block in blocks], int)
    # 2. Prune.
    left = np.ones(len(blocks), bool)
    if prune:
        noise = np.array([element.noise for element in elements])
        positive = sums_inside(ranges, scores.clip(0))
        left = is_outside(ranges[:, noise & (2 * positive < positive[0])], len(blocks))
    # 3. Choose.
    sums = sums_inside(ranges, scores * left)
    best = int(np.argmax(sums * [1 + element.main for element in elements]))
    first, end = ranges[:, best].tolist()
    # 4. Remove. The elements inside the best one come behind it.
    without_cost = sums_inside(ranges, prose * left)
    bad = [e for e in np.flatnonzero(sums < 0).tolist() if e > best
           and elements[e].tag not in LEAVES
           and (elements[e].tag not in LISTS or without_cost[e] < 0)]
    left &= is_outside(ranges[:, bad], len(blocks))
    chosen = [i for i in range(first, end)
              if left[i] and blocks[i].links <= 0.8 * len(blocks[i].text)]
    return find_lead(blocks, scores, left, first) + drop_loose_ends(blocks, scores, chosen)


def sums_inside(ranges, values):
    """(2, E) ranges of blocks, (B,) a value for each block -> (E,) the sums over the ranges."""
    total = np.zeros(len(values) + 1, int)
    np.cumsum(values, out=total[1:])
    return total[ranges[1]] - total[ranges[0]]


def is_outside(ranges, n):
    """(n,) bool: does a block lie in none of the ranges? As many began before it as ended."""
    begun, ended = (np.bincount(side, minlength=n + 1) for side in ranges)
    return np.cumsum(begun - ended)[:n] == 0


def find_lead(blocks, scores, left, first):
    """The h1 before block `first`, where the best element begins, and the prose between the two;
    without an h1, a heading just before it. left: (B,) bool, the blocks that are not pruned."""
    for i in range(first - 1, -1, -1):
        if blocks[i].tag == "h1" and left[i]:
            return [i] + [j for j in range(i + 1, first) if scores[j] > 0 and left[j]]
    return [i for i in range(first)[-1:] if blocks[i].tag in HEADINGS and left[i]]


def drop_loose_ends(blocks, scores, chosen):
    """The chosen blocks without headings over removed link lists ("Related") and without labels at
    the end ("Share this")."""
    is_link_list = [2 * block.links > len(block.text) for block in blocks] + [True]
    kept = set(chosen)
    result = [i for i in chosen
              if blocks[i].tag not in HEADINGS or i + 1 in kept or not is_link_list[i + 1]]
    while result and scores[result[-1]] < 0 and blocks[result[-1]].tag not in ITEMS:
        result.pop()
    return result


def extract_text(html):
    """The main text of a page (str or bytes), an empty line between blocks; list items begin with
    "- ", tabs separate the cells of a table row, code keeps its lines."""
    html = decode_html(html) if isinstance(html, bytes) else html
    elements, blocks = cut_blocks(CONTROL.sub(" ", html))
    text = join_blocks(blocks, choose_blocks(elements, blocks, prune=True))
    if len(text) < SHORT:
        text = max(text, join_blocks(blocks, choose_blocks(elements, blocks, prune=False)), key=len)
    if len(text) < TINY:
        all_prose = [i for i, block in enumerate(blocks) if 2 * block.links < len(block.text)]
        text = max(text, join_blocks(blocks, all_prose), key=len)
    return CONTROL.sub(" ", text)  # again: &#x9d; is one


def join_blocks(blocks, chosen):
    """Items and rows on consecutive lines, an empty line between all others."""
    text, before = [], ""
    for block in (blocks[i] for i in chosen):
        text += ["\n" if block.tag == before in ("li", "tr") else "\n\n", block.prefix, block.text]
        before = block.tag
    return "".join(text[1:])
