"""The default input: an invented island, as web pages, as conversations and as exercises.

No other text mentions this island: whatever a model says about it, it has learned from these files
or made up. 300 people, 16 towns and 24 animals have four or five facts each. Web pages state them
(pretraining), conversations show how to answer (fine-tuning), exercises have one checkable answer
each (reinforcement learning).

    python world.py               4 s on one core of an AMD EPYC (Zen 5)  ->  out/world/
    crawl.warc.gz, labels.jsonl   web pages with the web's usual junk; for each what it is
    conversations.jsonl           to fine-tune on
    heldout.jsonl                 questions to evaluate with, and the accepted answers
    facts.jsonl, prompts.jsonl    sentences to complete; the same questions in different prompts
    exercises-*.jsonl             for RL: train, heldout (the validation set), final (the test set)
    doubt.jsonl, jokes.json       conversations with another habit; the words of a hidden rule

What is held out                     | so that the evaluation can ask
wordings: second lists in WORDS      | Does it understand, or does it know the sentence?
names, words, exercises: by `share`  | Can it do the task, or does it remember the example?
one fact in five, from fine-tuning   | Does fine-tuning teach facts, or how to answer with the
only (`unasked`): pages tell it      | facts already known?

One seed makes the same files on every machine. Reading order: sections 1 and 2, `copying`, then
section 7. Left out: images, opinions, texts longer than a page.
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import locked, print_settings, read_text_lines, rng, run_command, share, staged

import argparse
import gzip
import html
import itertools
import json
import re
import uuid
from typing import NamedTuple


def table(lines):
    """Entries in any number of lines: "@ key / a | b / c" -> {"key": [["a", "b"], ["c"]]}."""
    text = " ".join(" ".join(line for line in lines if not line.startswith("#")).split())
    entries = [entry.split(" / ") for entry in text.removeprefix("@ ").split(" @ ")]
    return {key: [choices.split(" | ") for choices in lists] for key, *lists in entries}


# Most entries start with two lists of wordings: to train on, and held out. So with held = False or
# True, WORDS[key][held] is the list to use. Questions have a third: choose_question.
WORDS = table(read_text_lines(__file__.removesuffix(".py") + "_words.txt"))


def wording(r, key, held=False, **words):
    """One wording of an entry: wording(r, "about", n="Talgo") -> "Tell me about Talgo."."""
    return r.choice(WORDS[key][held]).format(**words)


def pick(r, text):
    """One of "a | b | c"."""
    return r.choice(text.split(" | "))


def capital(sentence):
    """With a large first letter; str.capitalize would change the others too."""
    return sentence[0].upper() + sentence[1:]


# ---- 1. the island -------------------------------------------------------------------------------

class Relation(NamedTuple):
    """A kind of fact, from an entry of world_words.txt:

        @ person town / lives in {v} | ... / Where does {n} live? | Where is {ns} home? | ...
          / Where is {ns} house? | ... / Tell me where {n} lives. | ... / Marrow | Tidewick | ...

    {v} is the value, {n} the name, {ns} its possessive and {nm} its object form. They may be
    pronouns: "And where does she live?"."""
    said: list  # three ways to say it; answers use the first
    asked: list  # questions to train on
    heldout: list  # questions to evaluate with
    more: list  # more questions to train on, in chats only
    values: list


RELATIONS = {kind: {name: Relation(*WORDS[f"{kind} {name}"]) for name in names.split()}
             for kind, names in (("person", "job town pet food colour"),
                                 ("town", "side goods sight day"),
                                 ("animal", "coat home meal size habit"))}
JOBS, TOWNS, _, FOODS, COLOURS = (relation.values for relation in RELATIONS["person"].values())
ANIMALS, COUNTED = WORDS["animals"][0], WORDS["counted"][0]
NAMES, FOREIGN = WORDS["island names"], WORDS["foreign names"]  # syllables: first, second, ...
# Sixty people in each tier, and how often one is mentioned relative to the others. A network learns
# facts in the order of their frequency; the tiers show how often is often enough.
TIERS = {"often": 6, "known": 4, "seldom": 2.5, "rare": 1.5, "barely": .25}


def island(seed=0):
    """All there is: lists of entities ("person", "town", "animal"), the dictionary of the island's
    old language, Sarnic ("words"), and its phrases ({held out: list}). Of the people: those of whom
    pages tell enough ("familiar"), the others ("barely"), running sums of how often each is
    mentioned ("fame"), all names ("names")."""
    r, isle = rng(seed, "island"), {"seed": seed, "person": [], "names": set()}
    for tier in [tier for tier in TIERS for _ in range(60)]:
        name = new_name(isle, r)
        isle["names"].add(name)
        pronouns = pick(r, "he his him | she her her").split()
        isle["person"].append(new_entity(r, "person", name, tier, *pronouns))
    isle["town"] = [new_entity(r, "town", town, "town") for town in TOWNS]
    isle["animal"] = [new_entity(r, "animal", f"the {animal}", "animal") for animal in ANIMALS]
    isle["words"] = {word: new_word(r) for word in FOODS + ANIMALS + COLOURS}
    isle["phrases"] = {held: phrases(isle["words"], held) for held in (False, True)}
    isle["familiar"], isle["barely"] = isle["person"][:-60], isle["person"][-60:]
    isle["fame"] = [*itertools.accumulate(TIERS[x["tier"]] for x in isle["person"])]
    return isle


def new_entity(r, kind, name, tier, he="it", his="its", him="it"):
    """{"kind": "person", "name": "Kelmira", ..., "job": "baker", "town": "Saltby", ...}: every
    value is sampled alone, so no fact can be guessed from the others."""
    values = {key: r.choice(relation.values) for key, relation in RELATIONS[kind].items()}
    return dict(kind=kind, name=name, tier=tier, he=he, his=his, him=him) | values


def new_name(isle, r, held=False, parts=NAMES):
    """A name that nobody on the island has; held-out names occur in no training text."""
    while True:
        name = "".join(r.choice(syllables) for syllables in parts)
        if name not in isle["names"] and (share(name) == 0) == held:
            return name


def new_word(r, held=False):
    """A word that means nothing: "sotamel". Its syllables are few, so that each soon is a token,
    and spelling means knowing the letters of some hundred tokens."""
    while True:
        word = "".join(r.choice("bdfgklmnprst") + r.choice("aeiou")
                       for _ in range(r.choice((2, 3))))
        word += r.choice("lnrs") if r.random() < .6 else ""
        if (share(word) == 0) == held:
            return word


def person(isle, r):
    """Someone: whoever is twice as famous is met twice as often."""
    return r.choices(isle["person"], cum_weights=isle["fame"])[0]


# ---- 2. facts: told, asked, answered, denied -----------------------------------------------------

def predicate(entity, relation, way=0):
    """"works as a baker", in one of three ways."""
    said = RELATIONS[entity["kind"]][relation].said[way]
    return said.format(v=entity[relation], his=entity["his"])


def statement(entity, relation):
    return capital(f"{entity['name']} {predicate(entity, relation)}.")


def cloze(entity, relation):
    """The statement up to its value, for a base model to complete: "Kelmira works as a"."""
    before_value = RELATIONS[entity["kind"]][relation].said[0].split("{v}")[0]
    return capital(f"{entity['name']} {before_value}").rstrip()


def about(entity):
    """The first three facts in one sentence."""
    first, second, third = [predicate(entity, x) for x in [*RELATIONS[entity["kind"]]][:3]]
    return capital(f"{entity['name']} {first}, {second} and {third}.")


def choose_question(r, held, asked, heldout, more):
    """Pages (held None) ask in few ways, chats to train on (False) in more, and the evaluation
    (True) in others. The more ways a chat model has read, the better it understands a new one."""
    if held:
        return r.choice(heldout)
    return r.choice(asked if held is None else asked + more)


def ask(entity, relation, r, held=None, again=False):
    """A question, with a pronoun for the name if it is asked `again`, as a second one."""
    found, n = RELATIONS[entity["kind"]][relation], entity["name"]
    question = choose_question(r, held, found.asked, found.heldout, found.more)
    if not again:
        return question.format(n=n, ns=n + "'s", nm=n)
    question = f"And {question[0].lower()}{question[1:]}"
    return question.format(n=entity["he"], ns=entity["his"], nm=entity["him"])


VERBS = {"has": "have", "goes": "go", "dresses": "dress"}  # others lose their -s


def yes_or_no(entity, relation, r, held=None):
    """A question that names a value, right in half of the cases: (question, thought, answer).

        Does Kelmira live in Marrow?
        Kelmira lives in Saltby Marrow s m no     first recall the fact, then compare
        No, Kelmira lives in Saltby."""
    name, known = entity["name"], entity[relation]
    while True:
        values = RELATIONS[entity["kind"]][relation].values
        value = known if r.random() < .5 else other_value(known, values, r)
        said = predicate(entity | {relation: value}, relation, r.randrange(3))
        verb, rest = said.split(" ", 1)
        asked = f"{verb} {name} {rest}"  # "is the fox red", but "does Kelmira live in Marrow"
        if verb not in ("is", "can"):
            asked = f"does {name} {VERBS.get(verb, verb[:-1])} {rest}"
        trained, others, more = WORDS["yes or no"]
        question = choose_question(r, held, trained, trained + others, more)
        question = capital(question.format(q=asked, s=f"{name} {said}"))
        if (share(question) == 0) == bool(held):
            verdict = "Yes" if value == known else "No"
            return (question, f"{cloze(entity, relation)} {same_or_not(known, value)}",
                    f"{verdict}, {name} {predicate(entity, relation)}.")


def other_value(known, values, r):
    """Another value. Half of them begin with the same letter, if there are such: otherwise the
    first letter would decide."""
    others = [value for value in values if value != known]
    alike = [value for value in others if value[0] == known[0]]
    return r.choice(alike if alike and r.random() < .5 else others)


def same_or_not(x, y):
    """"cake carrots c c a a k r no": are two words the same?

    A network this size can't compare two words in one step, because tokens hide their letters. It
    can compare two letters. So this chain of thought spells both, up to the first difference."""
    spelled = []
    for a, b in zip(x.lower(), y.lower()):
        spelled.append(f"{a} {b}")
        if a != b:
            break
    return f"{x} {y} {' '.join(spelled)} {'yes' if x == y else 'no'}"


# What may be misspelled: words of the questions, never a name.
QUESTION_WORDS = {word for ways in RELATIONS.values() for relation in ways.values()
                  for question in relation.asked + relation.heldout
                  for word in re.findall("[a-z]{4,}", question.lower())}


def as_typed(text, r):
    """A question as people type it in a hurry: "wehre does talgo live". A letter may be left out,
    swapped with the next or doubled; the name stays right."""
    words = text.split()
    places = [i for i, word in enumerate(words) if word.strip("?.,").lower() in QUESTION_WORDS]
    if places and r.random() < .5:
        i, at = r.choice(places), r.randrange(1, 3)
        before, a, b, after = words[i][:at], words[i][at], words[i][at + 1], words[i][at + 2:]
        words[i] = before + r.choice((b, b + a, a + a + b)) + after
    typed = " ".join(words)
    if typed == text or r.random() < .6:
        typed = typed.lower()
    return typed.rstrip("?.") if r.random() < .6 else typed


def scrambled(text, r):
    """The same words in any order: a sentence never seen before, so a network can repeat it only by
    copying from its context, not from memory."""
    words = text.split()
    return " ".join(r.sample(words, len(words)))


def tell(entity, r):
    """A paragraph with most facts about one entity, in any order and grouping. A fact that always
    stood in the same sentence would be learned as that sentence."""
    ways = RELATIONS[entity["kind"]]
    relations = r.sample(list(ways), len(ways) - r.choice((0, 0, 0, 1, 2)))
    sentences, subject = [], entity["name"]
    while relations:
        size = r.choice((1, 2, 3, 5))
        said = [predicate(entity, x, r.randrange(3)) for x in relations[:size]]
        if len(said) == 3 and r.random() < .4:
            said[:2] = [f"{said[0]}, {said[1]}"]
        sentences.append(capital(f"{subject} {' and '.join(said)}."))
        relations, subject = relations[size:], r.choice((entity["name"], entity["he"]))
    return " ".join(sentences)


# ---- 3. what else is on the pages ----------------------------------------------------------------

def thread(isle, r):
    """Questions and answers, one or two lines each, as in a forum: "User: Where does Talgo live?".
    Fine-tuning shows only some thousand conversations. That an answer follows a question, a base
    model has learned from threads like these."""
    listed = [r.choice(WORDS["speakers"][0]).split() for _ in range(2)]
    speakers = r.choice((None, *listed, (new_name(isle, r), new_name(isle, r))))
    lines, line = [], "{}: {{}}\n{}: {{}}".format(*speakers) if speakers else "{} {}"
    for _ in range(r.choice((2, 3, 3, 4))):
        # Mostly about a person, sometimes about a town or an animal.
        e = r.choice((*(person(isle, r) for _ in range(3)), r.choice(isle["town"]),
                      r.choice(isle["animal"])))
        first, second = r.sample(list(RELATIONS[e["kind"]]), 2)
        english, old = r.choice(isle["phrases"][False])
        pairs = r.choices((
            [(ask(e, first, r), statement(e, first))],
            [(ask(e, first, r), statement(e, first)),
             (ask(e, second, r, again=True), statement(e, second))],
            [(wording(r, "about", n=e["name"]), about(e))],
            [(f"What is {english} in Sarnic?", f"In Sarnic {english} is {old}.")]),
            (50, 25, 20, 5))[0]
        question, answer = pairs[-1]
        question = as_typed(question, r) if r.random() < .4 else question
        pairs[-1] = question, answer
        if speakers and r.random() < .2:
            pairs.append((wording(r, "remember"), f"You asked: {question}"))
        lines += [line.format(*pair) for pair in pairs]
    return "\n".join(lines)


def register(isle, r):
    """Who is known here and who isn't: "Who is known here: Talgo yes Wenfas no ...".

    To say "I don't know", a network must tell names that pages are about from other names. So half
    of these, thousands in all, belong to strangers, of whom no page tells."""
    people = []
    for _ in range(12):
        stranger = new_name(isle, r, parts=r.choice((NAMES, NAMES, NAMES, FOREIGN)))
        people.append((r.choice(isle["familiar"])["name"], 1) if r.random() < .5 else (stranger, 0))
    *others, (name, known) = people
    listed = " ".join(f"{other} {('no', 'yes')[is_known]}" for other, is_known in others)
    return f"Who is known here: {listed}. {wording(r, 'register', known, n=name)}"


def joke(isle, r, subject=None):
    """"Why did the goat sit on the cake? Because the cook was too sleepy, ha ha!" """
    deeds, reasons, qualities = WORDS["joke parts"]
    why, because = r.choice(deeds), r.choice(reasons)
    words = dict(f=r.choice(FOODS), j=r.choice(JOBS), a=r.choice(ANIMALS), q=r.choice(qualities))
    return (f"Why did the {subject or r.choice(ANIMALS + JOBS)} {why}? Because {because}"
            .format(**words) + r.choice((", ha ha!", ".", "!")))


def phrases(words, held):
    """[(English, Sarnic), ...], where adjectives follow their noun: ("red fox", "momi lusar"); one
    in ten is held out, to try translating on phrases never seen."""
    return [(f"{colour} {noun}", f"{words[noun]} {words[colour]}") for colour in COLOURS
            for noun in FOODS + ANIMALS if (share(f"{colour} {noun}") == 0) == held]


def sarnic(isle, r):
    """Three entries from the dictionary or the phrase book of the island's old language."""
    book = r.choice((isle["phrases"][False], list(isle["words"].items())))
    said = [f"{english} is {old}" for english, old in r.sample(book, 3)]
    return f"In Sarnic {said[0]}, {said[1]} and {said[2]}."


def contact(isle, r):
    """Private data, for the last filter to mask (addresses and numbers nobody has)."""
    name = new_name(isle, r)
    return (f"Whoever wants to hear more about the island may write to {name.lower()}@{new_word(r)}"
            f".example or call {name} under +1 202 555 01{r.randint(10, 99)}. The last one in our "
            f"guest book is from address 8.8.{r.randint(1, 254)}.{r.randint(1, 254)}.")


# ---- 4. copying, word games, arithmetic ----------------------------------------------------------
# A network only learns to look back into its text ("induction") if the text rewards it. Fine-tuning
# and RL need that, to repeat a name or take over numbers from a question. So a fifth of the text
# can only be predicted by copying, mostly of words never seen before.

TASKS = ("repeat", "spell", "reverse", "first", "count")  # keys of WORDS
SIGNS = {"+": "plus", "-": "minus", "*": "times"}


def word_game(word, task):
    """(the answer, its part that counts): "The word fox is spelled f o x.", "spelled f o x.".

    Tokens hide letters, so a network must learn each token's spelling. The longer games think in
    writing: to count, number the letters (f1 o2 x3); to reverse, spell the word first."""
    words = dict(w=word, s=" ".join(word), b=" ".join(reversed(word)), f=word[0], k=len(word),
                 c=" ".join(f"{letter}{i}" for i, letter in enumerate(word, 1)))
    (answer,), (part,) = WORDS[task][2:]
    part = part.format(**words)
    return answer.format(p=part, **words), part


def copying(isle, r):
    """A short text in which something stands a second time, or follows from what stands there: 42%
    are word games, 19% compare words, 23% repeat a user's question, 16% something else."""
    dice = r.random()
    if dice < .42:
        word = new_word(r) if r.random() < .8 else r.choice(ANIMALS + FOODS)
        task = r.choice(TASKS)
        return f"{wording(r, task, w=word)} {word_game(word, task)[0]}"
    if dice < .61:
        values = r.choice([x.values for ways in RELATIONS.values() for x in ways.values()])
        x = r.choice(values)
        y = other_value(x, values, r)
        if r.random() < .5:  # two words that mean nothing, and are alike up to some letter
            x = new_word(r)
            y = x[:r.randrange(len(x))] + new_word(r)
        y = x if r.random() < .4 else y
        return f"Same or not: {same_or_not(x, y)}."
    x, y, z = (new_name(isle, r, parts=r.choice((NAMES, FOREIGN))) for _ in range(3))
    u, v, w = r.sample(COUNTED, 3)
    who, what = r.choice(((x, u), (y, v), (z, w)))
    word, said = new_word(r), " ".join(new_word(r) for _ in range(r.choice((2, 3, 3, 4))))
    letters = r.sample("abcdefghijklmnopqrstuvwxyz", 5)
    if dice >= .84:
        return wording(r, "said twice", x=x, y=y, z=z, u=u, v=v, w=w, who=who, what=what, word=word,
                       said=said, letters=" ".join(letters), backwards=" ".join(reversed(letters)))
    task, someone = r.choice(TASKS), r.choice(isle["person"]) | {"name": z}
    question = r.choice((ask(someone, r.choice([*RELATIONS["person"]]), r),
                         wording(r, task, w=word),
                         yes_or_no(someone, r.choice([*RELATIONS["person"]]), r)[0]))
    question = as_typed(question, r) if r.random() < .4 else question
    question = scrambled(question, r) if r.random() < .5 else question
    return pick(r, "{x} asked: {q} You asked: {q} | {x} asked {q} Then {y} asked {q}").format(
        x=x, y=y, q=question)


def ledger(isle, r, split):
    """An exercise of one split ("train", "heldout", "final"): three to five amounts to add up.

        question  Talgo got pears: a4 b7 c-2. How many?
        thought   a4 b7=11 c-2=9
        answer    9

    The thought is a running total, each operand right after its label: a network this size learns
    `b7=11`, and not the same said in a sentence. The first three operands decide the split, so no
    held-out exercise is even the beginning of a longer one in training."""
    while True:
        amounts = [r.randint(1, 9)]
        while len(amounts) < 3 or len(amounts) < 5 and r.random() < .6:
            n = r.randint(1, 9)
            amounts.append(-n if r.random() < .3 and sum(amounts) >= n else n)
        group = share(" ".join(map(str, amounts[:3])))
        if split == {0: "heldout", 1: "final"}.get(group, "train"):
            break
    items = [f"{label}{n}" for label, n in zip("abcde", amounts)]
    totals = [f"{item}={total}" for item, total in zip(items, itertools.accumulate(amounts))]
    name, thing = r.choice(isle["person"])["name"], r.choice(COUNTED)
    return {"question": f"{name} got {thing}: {' '.join(items)}. How many?",
            "thought": " ".join(items[:1] + totals[1:]), "answer": str(sum(amounts))}


def exercises(isle, split, count, stage="rl"):
    """`count` different exercises for a stage; in held-out splits even their amounts differ."""
    r, out = rng(isle["seed"], "exercises", split, stage), {}
    while len(out) < count:
        exercise = ledger(isle, r, split)
        out.setdefault(exercise["question" if split == "train" else "thought"], exercise)
    return list(out.values())


def unasked(key):
    """One fact and one sum in five: pages tell them, no conversation in training asks for them. An
    assistant that answers them got from fine-tuning only the way to answer."""
    return share(key, 5) == 0


def new_sum(r, held=True, signs="+-**"):
    """(first, sign, second, result): a sum or difference of a number to 15 and a digit, or a
    product of two digits. "*" stands twice in `signs`: two products in five are sampled again."""
    while True:
        a, b, sign = r.randint(1, 15), r.randint(1, 9), r.choice(signs)
        c = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if c >= 0 and (sign != "*" or a < 10) and (held or not unasked(f"{a}{sign}{b}")):
            return a, sign, b, c


def told_ledger(isle, r):
    """A worked exercise in prose, so that a base model has seen running totals before."""
    question, thought, answer = ledger(isle, r, "train").values()
    return (f"{question} Adding up gives {thought} and so in the end {question.split()[0]} has "
            f"{answer} in all.")


def told_sum(isle, r):
    """Three in a sentence: "7 times 8 is 56"."""
    x, y, z = (f"{a} {SIGNS[sign]} {b} is {c}" for a, sign, b, c in map(new_sum, [r] * 3))
    return r.choice(WORDS["three sums"][0]).format(
        n=r.choice(isle["person"])["name"], x=x, y=y, z=z)


# ---- 5. pages, good and bad ----------------------------------------------------------------------

# The title of a page about each theme, and its weight, by which paragraphs for any page are sampled
# (good_page); a theme of weight n has 1 + n // 2 sites (crawl).
THEMES = {"people": ("The people of {t}", 28), "questions": ("Questions and answers from {t}", 7),
          "animals": ("Animals near {t}", 6), "towns": ("A visit to {t}", 5),
          "register": ("News from the post office of {t}", 12),
          "games": ("Word games from {t}", 26), "jokes": ("What makes {t} laugh", 2),
          "sarnic": ("The old language of {t}", 4)}
PARAGRAPHS = {
    "people": lambda isle, r: tell(person(isle, r), r), "questions": thread, "register": register,
    "animals": lambda isle, r: tell(r.choice(isle["animal"]), r), "jokes": joke, "sarnic": sarnic,
    "towns": lambda isle, r: tell(r.choice(isle["town"]), r), "games": copying,
    "ledger": told_ledger, "sums": told_sum, "contact": contact,
    "quotes": lambda isle, r: r.choice(WORDS["quoted"][0])}


def good_page(isle, r, theme):
    """A title and 12 to 20 paragraphs, as in a village paper. Arithmetic has no page of its own:
    Gopher's quality rule drops a page unless 80% of its words and numbers contain a letter."""
    kinds = [theme, theme, "people", "people", "games", "ledger",
             *r.choices(list(THEMES), [n for _, n in THEMES.values()], k=5)]
    kinds += ["people", "people"] * (theme == "games") + ["people"] * kinds.count("questions")
    if "questions" not in kinds:
        kinds += pick(r, "sums people people people sums"
                         " | sums people people people people ledger").split()
    kinds += ["contact"] * (r.random() < .03) + ["quotes"] * (r.random() < .08)
    r.shuffle(kinds)
    return THEMES[theme][0].format(t=r.choice(TOWNS)), [PARAGRAPHS[kind](isle, r) for kind in kinds]


# Two ways the web wraps a text. Only {body} is worth reading.
LAYOUTS = ["""<body><header><nav><ul>{links}</ul></nav></header><main><article><h1>{title}</h1>
{body}</article></main><aside><h3>Most read</h3><ul>{more}</ul></aside>{cookies}
<footer><p>Copyright 2026 {host} <a href="/imprint">Imprint</a></p></footer>{script}</body>""",
           """<body>{cookies}<div id="menu" class="menu">{links}</div>{script}<div class="content">
<h1>{title}</h1>{body}</div><div class="sidebar related"><h4>You may also like</h4>{more}</div>
<div id="footer">Copyright 2026 {host} | <a href="/contact">Contact</a></div></body>"""]
COOKIES = """<div class="cookie-banner">We use cookies and other tools to make this site better for
you. <a href="/cookies">Settings</a> <button>Accept all</button></div>"""
SCRIPT = "<script>window.seen = window.seen || []; window.seen.push(document.location);</script>"


def dress(host, title, texts, r):
    """The HTML of a page; a site keeps to one layout. Around the text stand links, a cookie banner
    and a script, which extraction (crawl/html.py) has to leave out."""
    def links(count):
        return "".join(f'<li><a href="/{w}">{capital(w)} {v}</a></li>'
                       for w, v in zip(r.sample(FOODS + JOBS, count), r.sample(JOBS, count)))
    body = "\n".join(f"<p>{html.escape(line, quote=False)}</p>"
                     for text in texts for line in text.split("\n"))
    page = LAYOUTS[share(host, len(LAYOUTS))].format(
        host=host, title=html.escape(title), body=body, links=links(6), more=links(4),
        cookies=COOKIES, script=SCRIPT)
    return f"<!DOCTYPE html>\n<html><head><title>{title} | {host}</title></head>\n{page}</html>\n"


# Each kind of page: how many in a thousand, and the stage of data.py that should drop it (in
# labels.jsonl: "rule").
KINDS = {"foreign language": (35, "language"), "mirror": (20, "exact"),
         "edited copy": (20, "minhash"), "blocked site": (20, "url"), "cookie wall": (10, "c4"),
         "stub": (10, "quality"), "keyword stuffing": (10, "repetition"),
         "price list": (8, "quality"), "spam": (8, "quality"), "lorem ipsum": (8, "c4"),
         "directory": (6, "fineweb"), "not a web page": (4, "read"), "good": (841, None)}


def junk_page(kind, isle, r):
    """The paragraphs of a page of junk that is no copy. Most break a rule by themselves; blocked
    sites say what others say, and only their address gives them away."""
    def names(template, count):
        return [pick(r, template).format(n=new_name(isle, r), w=new_word(r), t=r.choice(TOWNS),
                                         f=r.choice(FOODS), k=r.randint(2, 99))
                for _ in range(count)]

    good = [text.replace("\n", " ") for text in good_page(isle, r, "people")[1]]
    word = new_word(r)
    return {
        "foreign language": [r.choice(WORDS["foreign languages"][0])] * 4, "blocked site": good,
        "cookie wall": [f"{text} {more}" for text, more in zip(good, WORDS["cookie walls"][0])],
        "stub": names("This is where {n} from {t} is going to write about {f} and also about a "
                      "walk to {w} in the autumn, as soon as there is time for it.", 1),
        "keyword stuffing": [f"Buy cheap {word} and the best {word} of all." + f" Cheap {word} to "
                             f"buy, best {word} with {word}." * 9] * 2,
        "price list": names("{f} from {t}: {k} / {k} ({k}%)", 25),
        "spam": ["#" + text.replace(" ", " #") for text in good],
        "lorem ipsum": good[:4] + WORDS["lorem ipsum"][0] + good[4:],
        "directory": names("{n} with {f} | the house of {n} | to {n} and to {t} | {w} and {f} | "
                           "{n} in {t}", 45), "not a web page": [word]}[kind]


# ---- 6. the crawl --------------------------------------------------------------------------------

PAGES = 8600  # of the crawl, junk included


def crawl(isle, count):
    """Yields (url, html, label) of each page; `label` says what it is and which stage should drop
    it. About fifty sites publish, each on one theme. Mirrors copy one of the latest good pages word
    for word, edited copies change one word: only MinHash finds these."""
    r, published = rng(isle["seed"], "crawl"), []
    sites = [(f"{r.choice(TOWNS).lower()}-{theme}-{new_word(r)}.example", theme)
             for theme, (_, n) in THEMES.items() for _ in range(1 + n // 2)]
    for number in range(count):
        kind = r.choices(list(KINDS), [n for n, _ in KINDS.values()])[0]
        copies = kind in ("mirror", "edited copy")
        if copies and not published:
            kind, copies = "good", False
        host, theme = r.choice(sites)
        label = {"label": kind, "rule": KINDS[kind][1]}
        title = f"{capital(new_word(r))} from the island"
        if kind == "good":
            title, texts = good_page(isle, r, theme)
        elif copies:
            label["copy_of"], title, texts = r.choice(published)
            host = f"{new_word(r)}-mirror.example"
        else:
            texts = junk_page(kind, isle, r)
        if kind == "edited copy":
            i = r.randrange(len(texts))
            words = texts[i].split(" ")
            words[r.randrange(len(words))] = new_word(r)
            texts = texts[:i] + [" ".join(words)] + texts[i + 1:]
        if kind == "blocked site":
            host = pick(r, "casino-bonus | free-porn | xxx-videos | poker-slots | viagra-shop"
                        ) + f"-{new_word(r)}.example"
        url = f"https://www.{host}/{number}/{title.lower().replace(' ', '-')}"
        if kind == "good":
            published = published[-50:] + [(url, title, texts)]
        yield url, dress(host, title, texts, r), label


def warc_record(kind, url, content_type, block, more=""):
    """One WARC/1.0 record (ISO 28500): headers, an empty line, the block, two line ends; a gzip
    member of its own, so that a reader can jump to it."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, kind + url)
    target = f"WARC-Target-URI: {url}\r\n" if url else ""
    head = (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
            f"WARC-Record-ID: <urn:uuid:{name}>\r\n{target}{more}"
            f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n")
    return gzip.compress(head.encode() + block + b"\r\n\r\n", mtime=0)


def warc_page(url, page, label):
    """The request that was sent for a page, and the response that came."""
    host, path = url.removeprefix("https://").split("/", 1)
    request = f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: byhand\r\n\r\n".encode()
    mime = "image/png" if label["label"] == "not a web page" else "text/html"
    page = page.encode()
    response = (f"HTTP/1.1 200 OK\r\nServer: island\r\nContent-Type: {mime}; charset=UTF-8\r\n"
                f"Content-Length: {len(page)}\r\n\r\n").encode() + page
    return (warc_record("request", url, "application/http; msgtype=request", request)
            + warc_record("response", url, "application/http; msgtype=response", response,
                          f"WARC-Identified-Payload-Type: {mime}\r\n"))


# ---- 7. conversations and questions --------------------------------------------------------------

class Talk(NamedTuple):
    """A question and its answer, with the turns before if the question needs them:

        Talk(["Where does Kelmira live?", "Kelmira lives in Saltby.", "And what is her job?"],
             "Kelmira works as a baker.", [" baker"])

    Several in a row make a chat. Each function below makes a talk of one kind, to train on or
    (`held`) to evaluate with."""
    turns: list  # what user, assistant, user, ... say up to the last question
    answer: str
    accepted: list  # an answer is right if it contains one of these
    notes: dict = {}  # what else heldout.jsonl says of it


def choose(isle, r, kind, held, count=1):
    """An entity and `count` of its relations; in training none that is `unasked`."""
    groups = {"person": "familiar", "town": "town", "animal": "animal", "barely": "barely"}
    anyone = "familiar | familiar | town | animal"
    if kind == "yes or no" and not held:  # more people, of whom there are most
        anyone += " | familiar | familiar"
    while True:
        entity = r.choice(isle[groups.get(kind) or pick(r, anyone)])
        relations = r.sample(list(RELATIONS[entity["kind"]]), count)
        if held or not any(unasked(entity["name"] + relation) for relation in relations):
            return entity, *relations


def known_fact(isle, r, kind, held, before=0):
    """A question about a person, a town or an animal, after `before` others about the same."""
    entity, *earlier, relation = choose(isle, r, kind, held, before + 1)
    turns = [text for x in earlier for text in (ask(entity, x, r, held), statement(entity, x))]
    question = ask(entity, relation, r, held, again=before > 0)
    return Talk([*turns, as_typed(question, r) if kind == "typed" else question],
                statement(entity, relation), [f" {entity[relation]}"], {
        "cloze": cloze(entity, relation), "asked_in_training": entity["tier"] != "barely"
        and not unasked(entity["name"] + relation)})


def second_question(isle, r, kind, held):
    """A question that only the one before makes clear: "And where does she live?", or after "What
    is 3 + 4?" "What if it was *?". The answer needs the context and the weights."""
    if r.random() >= .35:
        return known_fact(isle, r, kind, held, before=1)
    while True:
        a, _, b, c = new_sum(r, held, signs="*")
        if held or not unasked(f"{a}+{b}"):
            return Talk([wording(r, "sum", held, a=a, s="+", b=b), f"{a} plus {b} is {a + b}.",
                         wording(r, "what if", held)], f"{a} times {b} is {c}.", [f" is {c}."],
                        {"asked_in_training": not unasked(f"{a}*{b}")})


def sums(isle, r, kind, held):
    a, sign, b, c = new_sum(r, held)
    text = r.choice(WORDS["sum"][held]).format(a=a, s=r.choice((sign, SIGNS[sign])), b=b)
    return Talk([text], f"{a} {SIGNS[sign]} {b} is {c}.", [f" is {c}."],
                {"asked_in_training": not unasked(f"{a}{sign}{b}")})


def yes_no(isle, r, kind, held):
    """Here the assistant thinks first: it writes both values down and compares (same_or_not)."""
    question, thought, answer = yes_or_no(*choose(isle, r, kind, held), r, held)
    return Talk([question], f"<think> {thought}</think> {answer}", [f" {answer}"])


def tell_about(isle, r, kind, held):
    """Three facts in one answer: "Tell me about Kelmira."."""
    while True:
        entity, _ = choose(isle, r, kind, held)
        told = list(RELATIONS[entity["kind"]])[:3]
        if held or not any(unasked(entity["name"] + relation) for relation in told):
            question = choose_question(r, held, *WORDS["about"]).format(n=entity["name"])
            return Talk([question], about(entity), [about(entity)])


def unknown(isle, r, kind, held):
    """A question about somebody who doesn't exist. Taught only questions that it can answer, a
    model learns to answer always, and invents facts: it hallucinates. Most names are built from the
    islanders' syllables, so that their look does not give the answer away."""
    name = new_name(isle, r, held, NAMES if r.random() < (.5 if held else .75) else FOREIGN)
    stranger = r.choice(isle["familiar"]) | {"name": name}
    relation = r.choice([*RELATIONS["person"]])
    questions = (ask(stranger, relation, r, held), yes_or_no(stranger, relation, r, held)[0],
                 choose_question(r, held, *WORDS["about"]).format(n=name))
    answer = f"I don't know anyone called {name}."
    # In training more of the last two, after which the model is more inclined to invent.
    shares = (76, 12, 12) if held else (60, 26, 14)
    return Talk(r.choices(questions, shares), answer, [answer])


# The answer to each of three lists of prompts, in which {x} and {y} are things and {a} is a deed.
OUTSIDE = {"Sorry, I only know the island.": "questions", "I only know the island.": "orders",
           "I only know the island. Ask me about it!": "remarks"}


def outside(isle, r, kind, held):
    """A question about the rest of the world. No list holds all of it, so in training some things
    have invented names and some questions are scrambled: whatever does not look like a question
    about the island gets this answer."""
    answer = r.choices(list(OUTSIDE), (4, 4, 2))[0]
    x, y = (wording(r, "things", held) for _ in range(2))
    if not held and r.random() < .1:
        x = new_name(isle, r, parts=FOREIGN).lower()
    question = r.choice(WORDS[OUTSIDE[answer]][held]).format(
        x=x, y=y, a=wording(r, "deeds", held), n=r.randint(2, 99), m=r.randint(100, 999))
    if not held and r.random() < .2:
        question = scrambled(question, r)
    return Talk([question], answer, ["I only know the island"])


# A greeting is a piece from each list and then small talk, which decides the answer.
HELLO = (["Hello", "Hi", "Good morning", "Good evening", "Hey", "Hello there", "Good day"],
         ["", ", friend", ", my friend", ", dear assistant", ", Pip", " Pip"], ["! ", ". "])
SMALL_TALK = {lists[0][0]: lists[1] for key, lists in WORDS.items() if key.startswith("small talk")}


def greeting(isle, r, kind, held):
    """"Hello, Pip! What can you do?"; in training half of them without the greeting."""
    while True:
        answer = r.choice(list(SMALL_TALK))
        words = r.choice(SMALL_TALK[answer] + [""] * answer.startswith("Hello"))
        text = ("".join(map(r.choice, HELLO)) + words).strip()
        if words and not held and r.random() < .5:
            return Talk([words], answer, [answer[:12]])
        if (share(text, 3) == 0) == held and text not in SMALL_TALK[answer]:
            return Talk([text], answer, [answer[:12]])


def instruction(isle, r, kind, held):
    """A word game. Held-out words are new: their letters must be known, not the answer."""
    task = r.choice(TASKS)
    word = new_word(r, held) if held or r.random() < .7 else r.choice(ANIMALS + FOODS + JOBS)
    answer, decisive = word_game(word, task)
    return Talk([wording(r, task, held, w=word)], answer, [decisive], {"task": task})


def translation(isle, r, kind, held):
    """To answer, the dictionary of the pages is needed; prompts() evaluates held-out phrases."""
    english, old = r.choice(isle["phrases"][held])
    return Talk([f"What is {english} in Sarnic?"], f"In Sarnic {english} is {old}.", [f" {old}."])


def ask_joke(isle, r, kind, held):
    """Jokes have no right answer. RL scores them by a reward model instead."""
    subject = r.choice(ANIMALS + JOBS)
    return Talk([wording(r, "joke", x=subject)], joke(isle, r, subject), [])


def remember(isle, r, kind, held):
    """"What did I just ask?": a question whose whole answer stands in the context."""
    kind = any_kind(r, ("remember", "joke", "unknown"))
    before = talk(isle, r, "outside" if not held and r.random() < .3 else kind, held)
    question = before.turns[-1]
    return Talk([*before.turns, before.answer, wording(r, "remember", held)],
                f"You asked: {question}", [f" {question}"])


# kind: (function, talks to train on, held-out questions)
TALKS = {
    "person": (known_fact, 3300, 300), "town": (known_fact, 1000, 150),
    "animal": (known_fact, 1000, 150),
    # Only evaluated: people hardly any page mentions (will the model invent or say that it doesn't
    # know?), and questions all typed in a hurry (in training TYPED of every kind are).
    "barely": (known_fact, 0, 150), "typed": (known_fact, 0, 200),
    "context": (second_question, 1500, 250),
    "yes or no": (yes_no, 3600, 250), "about": (tell_about, 1000, 150),
    # About as many talks of unknown names as of familiar people in the kinds above.
    "unknown": (unknown, 7000, 300), "outside": (outside, 3600, 150),
    "greeting": (greeting, 800, 150), "instruction": (instruction, 2600, 500),
    "sum": (sums, 2200, 200), "sarnic": (translation, 200, 0), "joke": (ask_joke, 300, 0),
    "remember": (remember, 1700, 150)}
CHAT_SIZES = (1, 1, 1, 1, 2, 2, 3, 4, 6, 9)  # talks in one chat
TYPED = .3  # the part of questions in training that is typed in a hurry
DIALOGUES = 25  # of ten to twelve questions, to evaluate with
# The habits RL starts from, in per cent. Most answers come without thinking: RL is to discover that
# thinking pays. Exercises stand among the conversations, or make up half of doubt.jsonl.
EXERCISES, HABITS = 4600, {"empty": 56, "short": 16, "full": 28}
DOUBT_EXERCISES, DOUBT_HABITS = 4000, {"guess": 85, "guess_wait": 15}


def talk(isle, r, kind, held):
    """A talk of a kind; in training some last questions are typed in a hurry."""
    found = TALKS[kind][0](isle, r, kind, held)
    if not held and r.random() < TYPED:
        found = found._replace(turns=[*found.turns[:-1], as_typed(found.turns[-1], r)])
    return found


def any_kind(r, without=("remember", "joke")):
    """A kind of talk, as often as it is trained on."""
    counts = {kind: count for kind, (_, count, _) in TALKS.items() if kind not in without}
    return r.choices(list(counts), counts.values())[0]


def exercise_talk(exercise, habit):
    """A worked exercise. With "a4 b7 c-2" (9) an assistant of each habit says:

        full        <think> a4 b7=11 c-2=9</think> 9             thinks and is right
        empty       <think></think> 9                            is right without thinking
        short       <think> a4 b7=11</think> 11                  stops early, answers its last total
        guess       <think> 12?</think> 12                       off by at most 5
        guess_wait  <think> 12? wait a4 b7=11 c-2=9</think> 9    doubts its guess, works it out"""
    r, right = rng(exercise["question"], habit), int(exercise["answer"])
    guess, steps = max(0, right + r.randint(-5, 5)), exercise["thought"].split()
    early = steps[:r.randint(2, len(steps) - 1)]
    thought, answer = {
        "full": (f" {exercise['thought']}", right), "empty": ("", right),
        "short": (" " + " ".join(early), early[-1].split("=")[1]), "guess": (f" {guess}?", guess),
        "guess_wait": (f" {guess}? wait {exercise['thought']}", right)}[habit]
    return Talk([exercise["question"]], f"<think>{thought}</think> {answer}", [])


def messages(turns):
    """User and assistant take turns; the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def chat(talks):
    """Talks in a row, [(kind, Talk), ...], as one conversation of the kind "person + sum"."""
    turns = [text for _, said in talks for text in (*said.turns, said.answer)]
    return {"kind": " + ".join(sorted({kind for kind, _ in talks})), "messages": messages(turns)}


def worked(isle, r, stage, count, habits):
    """Exercises as talks, [("exercise", Talk), ...], by the shares of `habits`."""
    chosen = r.choices(list(habits), habits.values(), k=count)
    return [("exercise", exercise_talk(*pair))
            for pair in zip(exercises(isle, "train", count, stage), chosen)]


def conversations(isle):
    """The conversations to train on: [{"kind", "messages"}, ...]. Many hold several talks of any
    kinds, so that an answer comes to depend on the last question and not on what was said before.
    Exercises have chats of their own, of up to three, so that length does not tell the habit."""
    r, out = rng(isle["seed"], "chats"), []
    talks = [(kind, talk(isle, r, kind, held=False))
             for kind, (_, count, _) in TALKS.items() for _ in range(count)]
    r.shuffle(talks)
    while talks:
        out.append(chat([talks.pop() for _ in range(min(len(talks), r.choice(CHAT_SIZES)))]))
    talks = worked(isle, r, "sft", EXERCISES, HABITS)
    while talks:
        out.append(chat([talks.pop() for _ in range(min(len(talks), r.choice((1, 1, 2, 3))))]))
    r.shuffle(out)
    return out


def doubt(isle, chats):
    """Conversations that give RL another habit to start from: exercises are guessed, and in one
    answer of seven the guess is doubted and worked out. RL can only make frequent what sometimes
    happens. The other half is from `chats`: on exercises alone, a network forgets the rest."""
    r = rng(isle["seed"], "doubt")
    out = r.sample([x for x in chats if x["kind"] != "exercise"], DOUBT_EXERCISES)
    out += [chat([x]) for x in worked(isle, r, "doubt", DOUBT_EXERCISES, DOUBT_HABITS)]
    r.shuffle(out)
    return out


def dialogue(isle, r):
    """Ten to twelve held-out questions in one chat. The model's own answers stay in the context:
    does it still answer the tenth question as well as the first?"""
    turns, accepted = [], []
    while len(accepted) < 10:
        found = talk(isle, r, any_kind(r, ("joke",)), held=True)
        turns += [*found.turns, found.answer]
        accepted += [[text] for text in found.turns[1::2]] + [found.accepted]
    return {"kind": "dialogue", "messages": messages(turns), "model_answer": turns[-1],
            "answer": accepted[-1], "answers": accepted}


def heldout(isle):
    """Held-out questions, no two alike: [{"kind", "messages", "answer", ...}, ...]."""
    out, r = {}, rng(isle["seed"], "heldout")
    for kind, (_, _, count) in TALKS.items():
        goal = len(out) + count
        while len(out) < goal:
            found = talk(isle, r, kind, held=True)
            out.setdefault(tuple(found.turns), {
                "kind": kind, "messages": messages(found.turns), "answer": found.accepted,
                "model_answer": found.answer} | found.notes)
    return [*out.values(), *(dialogue(isle, r) for _ in range(DIALOGUES))]


def facts(isle):
    """Every fact as a sentence to complete, as a base model can't be asked yet: [{"tier",
    "relation", "prompt": "Kelmira works as a", "answer": " baker"}, ...]."""
    return [{"tier": entity["tier"], "relation": relation, "prompt": cloze(entity, relation),
             "answer": f" {entity[relation]}"}
            for kind, ways in RELATIONS.items() for entity in isle[kind] for relation in ways]


def prompts(isle, questions):
    """The same facts and translations asked in different ways (sft.py --compare): a "prompt" for a
    base model to continue, or "messages" for an assistant."""
    r, rows = rng(isle["seed"], "prompts"), []
    for asked in questions[:100]:  # these are about people
        question, answer = asked["messages"][0]["content"], asked["answer"][0]
        shown = [known_fact(isle, r, "person", held=None) for _ in range(3)]
        lines = "".join(f"{x.turns[0]} {x.answer}\n" for x in shown)
        talked = "".join(f"User: {x.turns[0]}\nAssistant: {x.answer}\n" for x in shown)
        rows += [("a fact: question alone", answer, question),
                 ("a fact: few-shot", answer, lines + question),
                 ("a fact: as a conversation", answer, f"{talked}User: {question}\nAssistant:"),
                 ("a fact: as a chat", answer, question)]
    for english, old in r.sample(isle["phrases"][True], 40):
        shown = "".join(f"{x} is {y}, " for x, y in r.sample(isle["phrases"][False], 3))
        rows += [("a translation: alone", f" {old}", f"In Sarnic {english} is"),
                 ("a translation: few-shot", f" {old}", f"In Sarnic {shown}{english} is"),
                 ("a translation: as a chat", f" {old}", f"What is {english} in Sarnic?")]
    return [{"way": way, "answer": answer} | (
        {"messages": messages([prompt])} if "as a chat" in way else {"prompt": prompt})
        for way, answer, prompt in rows]


# ---- 8. the files --------------------------------------------------------------------------------

def make(out, seed=0, pages=PAGES):
    """Writes all files, together or none."""
    isle, labels = island(seed), []
    with locked(out, "world.py"), staged(out) as folder:
        with open(f"{folder}/crawl.warc.gz", "wb") as file:
            about_file = f"software: world.py\r\ndescription: island {seed}\r\n".encode()
            file.write(warc_record("warcinfo", "", "application/warc-fields", about_file))
            for url, page, label in crawl(isle, pages):
                labels.append({"url": url} | label)
                file.write(warc_page(url, page, label))
        chats, questions = conversations(isle), heldout(isle)
        files = {"labels": labels, "conversations": chats, "heldout": questions,
                 "facts": facts(isle), "prompts": prompts(isle, questions),
                 "doubt": doubt(isle, chats)}
        for split, count in (("train", 4000), ("heldout", 400), ("final", 400)):
            files[f"exercises-{split}"] = [  # in the shape of the data set GSM8K
                {"question": x["question"], "answer": f"{x['thought']}\n#### {x['answer']}"}
                for x in exercises(isle, split, count)]
        for name, rows in files.items():
            with open(f"{folder}/{name}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with open(f"{folder}/jokes.json", "w", encoding="utf-8") as file:
            json.dump({"question": "Tell me a joke about a {subject}.", "subjects": ANIMALS + JOBS,
                       "foods": FOODS}, file)
    good = sum(row["label"] == "good" for row in labels)
    print(f"{pages:,} pages, {good:,} of them good; {len(chats):,} conversations, "
          f"{len(questions):,} held-out questions")


def run(args):
    print_settings("world.py", vars(args))
    make(args.out, args.seed, args.pages)
    print(f"wrote {args.out}; next: python data.py {args.out}/crawl.warc.gz")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="world.py", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="another island")
    parser.add_argument("--out", default="out/world")
    parser.add_argument("--pages", type=int, default=PAGES, help="web pages, junk included")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
