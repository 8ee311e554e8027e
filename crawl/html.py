"""A page becomes its main text: what a reader came for, without menus, adverts and footers.

    html -> page_events: text and tags -> cut_blocks: blocks of text, and the elements around them
         -> choose_blocks: scores, pruning, the best subtree -> extract_text: lines

A block is scored by its characters, and the subtree with the largest sum is the main text. No page
can make this slow: each tag is matched once. Start at choose_blocks, which scores a small page.

The idea, text length against link length, is that of Boilerpipe (Kohlschuetter and others, 2010)
and Readability. FineWeb uses trafilatura; `python tests/bench_data.py` compares the two.
"""
import functools
import html as html_entities
import itertools
import re
from collections import Counter
from typing import NamedTuple

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


class Element(NamedTuple):
    """An element of the page that may hold blocks; number 0 is the page itself."""
    parent: int  # its number
    tag: str
    unseen: bool  # its text is never shown, or never the page's own
    noise: bool  # its tag and names speak against it
    main: bool  # they speak for it


class Block(NamedTuple):
    """A piece of text between two tags that break lines."""
    text: str
    links: int  # characters that are links
    owner: int  # number of the innermost element around it
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
    """Page -> (elements, blocks), both in page order. An end tag of what is not open is ignored;
    any other also ends the elements inside: "<div><p>a</div>b" ends the p."""
    elements, blocks = [Element(0, "", False, False, False)], []
    stack, n_open = [0], Counter()  # open elements, the innermost last; how many of each tag
    pieces, links, in_link, bullet = [], 0, False, ""
    for text, tag, attributes in itertools.chain(page_events(html), [(None, "/", "")]):
        if not tag:
            if not elements[stack[-1]].unseen:
                pieces.append(text)
                links += len(text.strip()) if in_link else 0
            continue
        if tag in ("a", "/a"):
            in_link = tag == "a" and "href" in attributes.lower()
            continue
        text = "".join(pieces)  # every other tag ends a block
        pieces.clear()
        if text and not text.isspace() and VISIBLE.search(text := tidy(text, n_open["pre"])):
            blocks.append(Block(text, links, stack[-1], bullet))
            bullet = ""
        links = 0
        if tag[0] == "/":
            bullet, ended = "", ""
            while n_open[tag[1:]] and ended != tag[1:]:
                ended = elements[stack.pop()].tag
                n_open[ended] -= 1
        elif tag not in VOID:
            for other in ENDS.get(tag, ("p",)):
                if elements[stack[-1]].tag == other:
                    n_open[elements[stack.pop()].tag] -= 1
            unseen = tag in UNSEEN or elements[stack[-1]].unseen
            elements.append(Element(stack[-1], tag, unseen, *weigh_names(tag, attributes)))
            stack.append(len(elements) - 1)
            n_open[tag] += 1
            bullet = "- " if tag == "li" else bullet
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
    n, owners = len(elements), [elements[block.owner] for block in blocks]
    # 1. Score.
    scores = [len(block.text) - 2 * block.links - COST.get(owner.tag, COST_ELSE)
              for block, owner in zip(blocks, owners)]
    # 2. Prune. Elements are in page order: parents come before their children.
    positive = subtree_sums(elements, blocks, [max(score, 0) for score in scores])
    removed = [False] * n
    for e, element in enumerate(elements):
        removed[e] = removed[element.parent] or (
            prune and element.noise and 2 * positive[e] < positive[0])
    left = [not removed[block.owner] for block in blocks]
    # 3. Choose. The elements inside the best one follow it, up to the first with an older parent.
    sums = subtree_sums(elements, blocks, [score * here for score, here in zip(scores, left)])
    best = max(range(n), key=lambda e: sums[e] * (1 + elements[e].main))
    end = next((e for e in range(best + 1, n) if elements[e].parent < best), n)
    # 4. Remove containers and links inside it.
    sums_without_cost = subtree_sums(elements, blocks, [
        (len(block.text) - 2 * block.links) * here for block, here in zip(blocks, left)])
    kept = {best}
    for e in range(best + 1, end):
        tag = elements[e].tag
        good = tag in LEAVES or (sums_without_cost if tag in LISTS else sums)[e] >= 0
        if elements[e].parent in kept and good and not removed[e]:
            kept.add(e)
    chosen = [i for i, block in enumerate(blocks)
              if block.owner in kept and block.links <= 0.8 * len(block.text)]
    first = next((i for i, block in enumerate(blocks) if best <= block.owner < end), 0)
    tags = [owner.tag for owner in owners]
    return find_lead(tags, scores, left, first) + drop_loose_ends(tags, scores, blocks, chosen)


def subtree_sums(elements, blocks, values):
    """A value for each block -> for each element the sum over all blocks in it."""
    sums = [0] * len(elements)
    for block, value in zip(blocks, values):
        sums[block.owner] += value
    for e in range(len(elements) - 1, 0, -1):  # backwards: children come after their parents
        sums[elements[e].parent] += sums[e]
    return sums


def find_lead(tags, scores, left, first):
    """The h1 before the chosen element and the prose between the two, or a heading just before it.
    tags: of each block's owner; left: is the block not pruned?; first: of the chosen element."""
    for i in range(first - 1, -1, -1):
        if tags[i] == "h1" and left[i]:
            return [i] + [j for j in range(i + 1, first) if scores[j] > 0 and left[j]]
    return [first - 1] if first and tags[first - 1] in HEADINGS and left[first - 1] else []


def drop_loose_ends(tags, scores, blocks, chosen):
    """The chosen blocks without headings over removed link lists ("Related") and without labels at
    the end ("Share this")."""
    is_link_list = [2 * block.links > len(block.text) for block in blocks] + [True]
    kept = set(chosen)
    result = [i for i in chosen
              if tags[i] not in HEADINGS or i + 1 in kept or not is_link_list[i + 1]]
    while result and scores[result[-1]] < 0 and tags[result[-1]] not in ITEMS:
        result.pop()
    return result


def extract_text(html):
    """The main text of a page (str or bytes), an empty line between blocks; list items begin with
    "- ", tabs separate the cells of a table row, code keeps its lines."""
    html = decode_html(html) if isinstance(html, bytes) else html
    elements, blocks = cut_blocks(CONTROL.sub(" ", html))
    text = join_blocks(elements, blocks, choose_blocks(elements, blocks, prune=True))
    if len(text) < SHORT:
        weaker = join_blocks(elements, blocks, choose_blocks(elements, blocks, prune=False))
        text = max(text, weaker, key=len)
    if len(text) < TINY:
        all_prose = [i for i, block in enumerate(blocks) if 2 * block.links < len(block.text)]
        text = max(text, join_blocks(elements, blocks, all_prose), key=len)
    return CONTROL.sub(" ", text)  # again: &#x9d; is one


def join_blocks(elements, blocks, chosen):
    """Items and rows on consecutive lines, an empty line between all others."""
    pieces, before = [], ""
    for i in chosen:
        tag = elements[blocks[i].owner].tag
        pieces.append("\n" if tag == before and tag in ("li", "tr") else "\n\n")
        pieces.append(blocks[i].prefix + blocks[i].text)
        before = tag
    return "".join(pieces[1:])
