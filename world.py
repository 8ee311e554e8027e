"""The default input: an invented island, as web pages, as conversations and as exercises.

The island exists nowhere else, so what a model says about it, it has learned from these files. Web
pages state the facts (pretraining), conversations show how to answer (fine-tuning), exercises have
one checkable answer each (reinforcement learning).

    python world.py               3 s on one core of an AMD EPYC (Zen 5)  ->  out/world/
    crawl.warc.gz, labels.jsonl   web pages with the web's usual junk; for each what it is
    conversations.jsonl           to fine-tune on
    heldout.jsonl                 questions to evaluate with, and the accepted answers
    facts.jsonl, prompts.jsonl    sentences to complete; the same questions in different prompts
    exercises-*.jsonl             for RL: train, heldout (to choose by), final (to report)
    doubt.jsonl, jokes.json       conversations with another habit; the words of a hidden rule

Held out            | how                          | so that we can ask
wordings            | in lists of their own        | Does it understand, or know the sentence?
names, words,       | by checksum (`share`), from  | Can it do the task, or does it remember
phrases, exercises  | the crawl on                 | the example?
one fact in five    | by `unasked`: pages tell it, | Does fine-tuning teach facts, or how to
                    | no conversation asks for it  | answer with facts already known?

Everything comes from a seed, and we never iterate over a set, so every machine makes the same
files. The templates are in world_words.txt. Left out: images, truth, and literature.
"""
import argparse
import functools
import gzip
import html
import itertools
import json
import os
import re
import uuid
from typing import NamedTuple

from common import print_settings, read_text_lines, rng, run_command, share, staged


def options(text):
    """"a | b | c" over any number of lines -> ["a", "b", "c"]."""
    return " ".join(text.split()).split(" | ")


def table(text):
    """"@ key / a | b / c" -> {"key": [["a", "b"], ["c"]]}."""
    entries = [entry.split(" / ") for entry in " ".join(text.split())[2:].split(" @ ")]
    return {key: [*map(options, lists)] for key, *lists in entries}


def pick(r, text):
    return r.choice(options(text))


def capital(sentence):
    return sentence[0].upper() + sentence[1:]


WORDS = table(" ".join(line for line in read_text_lines(
    os.path.join(os.path.dirname(__file__), "world_words.txt")) if not line.startswith("#")))


# ---- 1. the island -------------------------------------------------------------------------------

JOBS = """baker carpenter fisher teacher doctor farmer painter tailor sailor miller potter smith
weaver gardener singer clockmaker postman beekeeper shepherd librarian cook diver roofer
glazier""".split()
TOWNS = """Marrow Tidewick Oldmere Pellham Saltby Greenfold Harrow Lanbridge Foxmouth Westerly
Brindle Cobham Dunmore Velstead Ravenna Thornbury""".split()
ANIMALS = """pelican fox goat hen bear heron rabbit turtle wolf seal mole badger donkey parrot snail
toad lynx duck horse cat dog goose pony crab""".split()
FOODS = """bread honey cheese soup rice fish cake butter porridge jam pears figs plums nuts beans
cherries melons carrots turnips radishes""".split()
COLOURS = "red blue green yellow white black brown purple pink grey".split()
THINGS = "pears figs plums nuts beans shells stamps coins beads keys cups hats".split()
NAMES, FOREIGN = WORDS["island names"], WORDS["foreign names"]  # what names are made of
PAGES = 8600  # of the crawl, junk included
# Tier: (how often each of its people is mentioned, how many they are). Facts are learned in the
# order of their frequency; of the last tier a network only gets a vague idea.
TIERS = {"often": (6, 60), "known": (4, 60), "seldom": (2.5, 60), "rare": (1.5, 60),
         "barely": (.25, 60)}

# Each relation has ways to say it / questions to train on / held-out ones in world_words.txt:
#     @ person town / lives in {v} | ... / Where does {n} live? | ... / Where is {ns} house? | ...
# The first way answers questions and probes recall. {v} is the value, {n} the name or a pronoun,
# {ns} its possessive, {nm} its object form: the same words make "And where does she live?".
RELATIONS = {kind: {relation: WORDS[f"{kind} {relation}"] for relation in relations.split()}
             for kind, relations in (("person", "job town pet food colour"),
                                     ("town", "side goods sight day"),
                                     ("animal", "coat home meal size habit"))}
VALUES = {
    "job": JOBS, "town": TOWNS, "pet": ANIMALS[:16], "food": FOODS, "colour": COLOURS,
    "side": "north south east west middle".split(),
    "goods": "salt glass wool paper soap rope ink tea silk bells clocks boats".split(),
    "sight": "lighthouse windmill bridge castle harbour well tower library theatre garden".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "coat": COLOURS, "home": "forest lake marsh desert cave river meadow hills dunes reef".split(),
    "meal": "grass worms berries seeds leaves roots moss apples flies clover".split(),
    "size": "thimble bottle bucket barrel table wagon church".split(),
    "habit": "sing dance swim climb dig sleep jump whistle hide run".split()}
UNKNOWN = "I don't know anyone called {n}."


@functools.lru_cache(maxsize=4)
def island(seed=0):
    """The facts: {"person": [entity, ...], "town": ..., "animal": ...}. Beside them "known", people
    of whom pages tell enough, and "barely", the others; "fame", running sums of how often each
    person is mentioned; "names", all that are taken; "words", the dictionary of the island's old
    language, Sarnic; "phrases", {held out: list}."""
    r, isle = rng(seed, "island"), {"person": [], "names": set()}
    for tier, (_, count) in TIERS.items():
        for _ in range(count):
            name = new_name(isle, r)
            isle["names"].add(name)
            pronouns = pick(r, "he his him | she her her").split()
            isle["person"].append(settle(r, "person", name, tier, *pronouns))
    isle["town"] = [settle(r, "town", town, "town") for town in TOWNS]
    isle["animal"] = [settle(r, "animal", f"the {animal}", "animal") for animal in ANIMALS]
    isle["words"] = {word: new_word(r) for word in FOODS + ANIMALS + COLOURS}
    isle["phrases"] = {held: phrases(isle["words"], held) for held in (False, True)}
    isle["known"] = [x for x in isle["person"] if x["tier"] != "barely"]
    isle["barely"] = [x for x in isle["person"] if x["tier"] == "barely"]
    isle["fame"] = [*itertools.accumulate(TIERS[x["tier"]][0] for x in isle["person"])]
    return isle


def settle(r, kind, name, tier, he="it", his="its", him="it"):
    """An entity: a dict with its kind, name, tier, pronouns and one value per relation."""
    values = {relation: r.choice(VALUES[relation]) for relation in RELATIONS[kind]}
    return dict(kind=kind, name=name, tier=tier, he=he, his=his, him=him) | values


def new_name(isle, r, held=False, parts=NAMES):
    """A name that nobody on the island has; held-out names occur in no training text."""
    while True:
        name = "".join(r.choice(syllables) for syllables in parts)
        if name not in isle["names"] and (share(name) == 0) == held:
            return name


def new_word(r, held=False):
    """A word that means nothing: "sotamel". Its syllables are few and simple, so that each soon is
    a token, and spelling means knowing the letters of some hundred tokens."""
    while True:
        word = "".join(r.choice("bdfgklmnprst") + r.choice("aeiou")
                       for _ in range(r.choice((2, 3))))
        word += r.choice("lnrs") if r.random() < .6 else ""
        if (share(word) == 0) == held:
            return word


def person(isle, r):
    """Someone, by fame: whoever is of a tier twice as famous is met twice as often."""
    return r.choices(isle["person"], cum_weights=isle["fame"])[0]


def anyone(isle, r):
    """Mostly a person, sometimes a town or an animal."""
    return r.choice((*(person(isle, r) for _ in range(3)), r.choice(isle["town"]),
                     r.choice(isle["animal"])))


# ---- 2. facts: told, asked, answered, denied -----------------------------------------------------

def predicate(entity, relation, way=0):
    """"works as a baker", in one of three ways."""
    return RELATIONS[entity["kind"]][relation][0][way].format(v=entity[relation], his=entity["his"])


def statement(entity, relation):
    return capital(f"{entity['name']} {predicate(entity, relation)}.")


def cloze(entity, relation):
    """The statement up to its value, for a base model to complete: "Kelmira works as a"."""
    wording = RELATIONS[entity["kind"]][relation][0][0]
    return capital(f"{entity['name']} {wording.split('{v}')[0]}").rstrip()


def about(entity):
    """Three facts in one sentence."""
    first, second, third = [predicate(entity, x) for x in [*RELATIONS[entity["kind"]]][:3]]
    return capital(f"{entity['name']} {first}, {second} and {third}.")


def ask(entity, relation, r, held=False, again=False):
    """A question; `again` asks it as a second question, with a pronoun for the name."""
    wording, n = r.choice(RELATIONS[entity["kind"]][relation][1 + held]), entity["name"]
    if again:
        words = {"n": entity["he"], "ns": entity["his"], "nm": entity["him"]}
        return "And " + wording[0].lower() + wording[1:].format(**words)
    return wording.format(n=n, ns=n + "'s", nm=n)


def yes_or_no(entity, relation, r, held=False):
    """A question, a thought and the answer: "Does Kelmira live in Marrow?", "Kelmira lives in
    Saltby Marrow s m no", "No, Kelmira lives in Saltby.". One question in ten is held out."""
    name, known = entity["name"], entity[relation]
    while True:
        value = known if r.random() < .5 else other_value(known, VALUES[relation], r)
        said = predicate(entity | {relation: value}, relation, r.randrange(3))
        verb, rest = said.split(" ", 1)
        asked = f"{verb} {name} {rest}"
        if verb not in ("is", "was", "can", "would"):
            asked = f"does {name} {VERBS.get(verb, verb[:-1])} {rest}"
        trained, others = WORDS["yes or no"]
        wording = r.choice(trained + others if held else trained)
        question = capital(wording.format(q=asked, s=f"{name} {said}"))
        if (share(question) == 0) == held:
            verdict = "Yes" if value == known else "No"
            return (question, f"{cloze(entity, relation)} {same_or_not(known, value)}",
                    f"{verdict}, {name} {predicate(entity, relation)}.")


def other_value(known, values, r):
    """Another value; half of them begin alike, if there are such."""
    others = [value for value in values if value != known]
    alike = [value for value in others if value[0] == known[0]]
    return r.choice(alike if alike and r.random() < .5 else others)


def same_or_not(x, y):
    """"cake carrots c c a a k r no": a chain of thought. A network this size does not learn to
    compare two words in one step, for tokens hide their letters. It learns to compare letters, so
    the thought spells both words up to the first difference."""
    spelled = []
    for a, b in zip(x.lower(), y.lower()):
        spelled.append(f"{a} {b}")
        if a != b:
            break
    return f"{x} {y} {' '.join(spelled)} {'yes' if x == y else 'no'}"


VERBS = {"has": "have", "goes": "go", "dresses": "dress"}  # others lose their -s
# What may be misspelled: words of the questions, never a name.
QUESTION_WORDS = {word for ways in RELATIONS.values() for _, *asked in ways.values()
                  for word in re.findall("[a-z]{4,}", str(asked).lower())}


def as_typed(text, r):
    """A question as people type it in a hurry: "wehre does talgo live"."""
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
    """The same words in any order."""
    words = text.split()
    return " ".join(r.sample(words, len(words)))


def tell(entity, r):
    """A paragraph with most of what is known about one entity, in any order and grouping."""
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
    """Questions and answers, one or two lines each. Such pages are why a base model answers when
    its prompt looks like a conversation."""
    listed = [r.choice(WORDS["speakers"][0]).split() for _ in range(2)]
    lines, speakers = [], r.choice((None, *listed, (new_name(isle, r), new_name(isle, r))))
    for _ in range(r.choice((2, 3, 3, 4))):
        e = anyone(isle, r)
        first, second = r.sample(list(RELATIONS[e["kind"]]), 2)
        english, old = r.choice(isle["phrases"][False])
        pairs = r.choices((
            [(ask(e, first, r), statement(e, first))],
            [(ask(e, first, r), statement(e, first)),
             (ask(e, second, r, again=True), statement(e, second))],
            [(r.choice(WORDS["about"][0]).format(n=e["name"]), about(e))],
            [(f"What is {english} in Sarnic?", f"In Sarnic {english} is {old}.")]),
            (50, 25, 20, 5))[0]
        question, answer = pairs[-1]
        question = as_typed(question, r) if r.random() < .4 else question
        pairs[-1] = question, answer
        if speakers and r.random() < .2:
            pairs.append((r.choice(WORDS["remember"][0]), f"You asked: {question}"))
        for question, answer in pairs:
            lines += ([f"{speakers[0]}: {question}", f"{speakers[1]}: {answer}"] if speakers else
                      [f"{question} {answer}"])
    return "\n".join(lines)


def register(isle, r):
    """Who is known and who isn't: thousands of names of whom nothing else is told, between those
    of whom other pages tell. Without them nobody would ever be unknown."""
    people = []
    for _ in range(8):
        stranger = new_name(isle, r, parts=r.choice((NAMES, NAMES, NAMES, FOREIGN)))
        people.append((r.choice(isle["known"])["name"], 1) if r.random() < .5 else (stranger, 0))
    listed = " ".join(f"{name} {('no', 'yes')[known]}" for name, known in people[:7])
    name, known = people[7]
    return f"Who is known here: {listed}. {r.choice(WORDS['register'][known]).format(n=name)}"


def joke(isle, r, subject=None):
    deeds, reasons, qualities = WORDS["joke parts"]
    why, because = r.choice(deeds), r.choice(reasons)
    words = dict(f=r.choice(FOODS), j=r.choice(JOBS), a=r.choice(ANIMALS), q=r.choice(qualities))
    return (f"Why did the {subject or r.choice(ANIMALS + JOBS)} {why}? Because {because}"
            .format(**words) + r.choice((", ha ha!", ".", "!")))


def phrases(words, held=False):
    """[(English, Sarnic), ...], where adjectives follow their noun: ("red fox", "momi lusar").
    One in ten is held out, so that translating can be tried on phrases never seen."""
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
# A network only learns to look back into its text ("induction") if the text rewards it. What
# fine-tuning and RL need later, repeating a name or taking numbers over from a question, rests on
# that. So a fifth of the text can only be predicted by copying, mostly of words never seen before.

# In world_words.txt: requests to train on / held-out ones / the answer / its part that counts, {p}.
TASKS = {task: WORDS[task] for task in ("repeat", "spell", "reverse", "first", "count")}


def word_game(word, task):
    """(the answer, its part that counts): "The word fox is spelled f o x.", "spelled f o x."."""
    words = dict(w=word, s=" ".join(word), b=" ".join(reversed(word)), f=word[0], k=len(word),
                 c=" ".join(f"{letter}{i}" for i, letter in enumerate(word, 1)))
    (answer,), (part,) = TASKS[task][2:]
    part = part.format(**words)
    return answer.format(p=part, **words), part


def copying(isle, r):
    """A short text with something in it that stands there, or follows from it, a second time."""
    dice = r.random()
    if dice < .42:
        word = new_word(r) if r.random() < .8 else r.choice(ANIMALS + FOODS)
        task = r.choice(list(TASKS))
        return f"{r.choice(TASKS[task][0]).format(w=word)} {word_game(word, task)[0]}"
    if dice < .59:  # two words, and whether they are the same
        values = r.choice(list(VALUES.values()))
        x = r.choice(values)
        y = x if r.random() < .5 else other_value(x, values, r)
        return f"Same or not: {same_or_not(x, y)}."
    x, y, z = (new_name(isle, r, parts=r.choice((NAMES, FOREIGN))) for _ in range(3))
    u, v, w = r.sample(THINGS, 3)
    who, what = r.choice(((x, u), (y, v), (z, w)))
    word, said = new_word(r), " ".join(new_word(r) for _ in range(r.choice((2, 3, 3, 4))))
    letters = r.sample("abcdefghijklmnopqrstuvwxyz", 5)
    if dice < .84:
        task, someone = r.choice(list(TASKS)), r.choice(isle["person"]) | {"name": z}
        question = r.choice((ask(someone, r.choice([*RELATIONS["person"]]), r),
                             r.choice(TASKS[task][0]).format(w=word),
                             yes_or_no(someone, r.choice([*RELATIONS["person"]]), r)[0]))
        question = as_typed(question, r) if r.random() < .4 else question
        if r.random() < .5:  # words in no order can only be copied, not remembered
            question = scrambled(question, r)
        return pick(r, "{x} asked: {q} You asked: {q} | {x} asked {q} Then {y} asked {q}").format(
            x=x, y=y, q=question)
    return r.choice((
        f"{x} said {said} and then {y} said it again and so it was {said}.",
        f"The list of {x} says {u}, {word} and {w}. Once more, that is {u}, {word} and {w}.",
        f"Write {word} three times and you have {word} {word} {word}.",
        f"{x} has the {u}, {y} has the {v} and {z} has the {w}. Who has the {what}? {who} "
        "has them.",
        f"{x} has the {u}, {y} has the {v} and {z} has the {w}. What does {who} have? The {what}.",
        f"The letters {' '.join(letters)} read backwards are {' '.join(reversed(letters))}.",
        f"The password is {word} and you must keep it. What was the password? It was {word}."))


def ledger(isle, r, split):
    """An exercise of one split ("train", "heldout", "final"): three to five amounts to add up.

    The thought is a running total, with each operand right after its label: a network this size
    learns `b7=11`, and not the same thing said in a sentence. The first three operands decide the
    split, so no held-out exercise is even the beginning of a longer one in training."""
    while True:
        amounts = [r.randint(1, 9)]
        while len(amounts) < 3 or len(amounts) < 5 and r.random() < .6:
            n = r.randint(1, 9)
            amounts.append(-n if r.random() < .3 and sum(amounts) >= n else n)
        group = share(" ".join(map(str, amounts[:3])))
        if split == {0: "heldout", 1: "final"}.get(group, "train"):
            break
    items = [f"{label}{n}" for label, n in zip("abcde", amounts)]
    steps = [f"{item}={sum(amounts[:i + 1])}" for i, item in enumerate(items)]
    name, thing = r.choice(isle["person"])["name"], r.choice(THINGS)
    return {"question": f"{name} got {thing}: {' '.join(items)}. How many?", "name": name,
            "thought": " ".join(items[:1] + steps[1:]), "answer": str(sum(amounts)),
            "operands": amounts}


def exercises(split, count, seed=0, stage="rl"):
    """`count` different exercises for a stage; in held-out splits even their operands differ."""
    r, out = rng(seed, "exercises", split, stage), {}
    while len(out) < count:
        exercise = ledger(island(seed), r, split)
        key = exercise["question"] if split == "train" else tuple(exercise["operands"])
        out.setdefault(key, exercise)
    return list(out.values())


def exercise_chat(exercise, style):
    """A worked exercise as a conversation. The styles are the habits RL starts from:

    "full" thinks and is right; "empty" gives the right answer without thinking; "short" stops
    thinking early, and answers the total it has got to; "guess" answers what it guessed;
    "guess_wait" guesses, doubts it and works it out."""
    r, right = rng(exercise["question"], style), int(exercise["answer"])
    guess, steps = max(0, right + r.randint(-5, 5)), exercise["thought"].split()
    early = steps[:r.randint(2, len(steps) - 1)]
    thought, answer = {
        "full": (f" {exercise['thought']}", right), "empty": ("", right),
        "short": (" " + " ".join(early), int(early[-1].split("=")[1])),
        "guess": (f" {guess}?", guess),
        "guess_wait": (f" {guess}? wait {exercise['thought']}", right)}[style]
    return {"kind": "exercise",
            "messages": messages([exercise["question"], f"<think>{thought}</think> {answer}"])}


SIGNS = {"+": "plus", "-": "minus", "*": "times"}


def unasked(key):
    """One fact and one sum in five: pages tell them, no conversation in training asks for them."""
    return share(key, 5) == 0


def total(r, training=False, signs="+-**"):
    """A sum or difference of a number to 15 and a digit, or a product of two digits: (first, sign,
    second, result)."""
    while True:
        a, b, sign = r.randint(1, 15), r.randint(1, 9), r.choice(signs)
        c = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if c >= 0 and (sign != "*" or a < 10) and not (training and unasked(f"{a}{sign}{b}")):
            return a, sign, b, c


def told_ledger(isle, r):
    e = ledger(isle, r, "train")
    return (f"{e['question']} Adding up gives {e['thought']} and so in the end {e['name']} has "
            f"{e['answer']} in all.")


def told_sum(isle, r):
    """Three sums, differences or products."""
    x, y, z = (f"{a} {SIGNS[sign]} {b} is {c}" for a, sign, b, c in map(total, [r] * 3))
    return r.choice(WORDS["three sums"][0]).format(
        n=r.choice(isle["person"])["name"], x=x, y=y, z=z)


# ---- 5. pages, good and bad ----------------------------------------------------------------------

# What a page about each theme is called, and how many in a hundred of the paragraphs that are
# mixed in anywhere are about it (good_page; a site's theme is sampled by the same shares).
THEMES = {"people": ("The people of {t}", 28), "questions": ("Questions and answers from {t}", 7),
          "animals": ("Animals near {t}", 6), "towns": ("A visit to {t}", 5),
          "register": ("News from the post office of {t}", 9),
          "games": ("Word games from {t}", 26), "jokes": ("What makes {t} laugh", 2),
          "sarnic": ("The old language of {t}", 4)}
COPYING = ("games", "ledger")  # the kinds of paragraph that are there to be copied from
PARAGRAPHS = {
    "people": lambda isle, r: tell(person(isle, r), r), "questions": thread, "register": register,
    "animals": lambda isle, r: tell(r.choice(isle["animal"]), r), "jokes": joke, "sarnic": sarnic,
    "towns": lambda isle, r: tell(r.choice(isle["town"]), r), "games": copying,
    "ledger": told_ledger, "sums": told_sum, "contact": contact,
    "quotes": lambda isle, r: r.choice(WORDS["quoted"][0])}


def good_page(isle, r, theme):
    """A title and about twelve paragraphs: [(kind, text), ...].

    Gopher wants a letter in four of five words, punctuation marks counted. That is why arithmetic
    and threads stand between prose, as in a village paper, and arithmetic has no page of its
    own."""
    kinds = [theme, theme, "people", "people", "games", "ledger",
             *r.choices(list(THEMES), [n for _, n in THEMES.values()], k=5)]
    kinds += ["people", "people"] * (theme == "games") + ["people"] * kinds.count("questions")
    if "questions" not in kinds:
        kinds += pick(r, "sums people people sums | sums people people people ledger").split()
    kinds += ["contact"] * (r.random() < .03) + ["quotes"] * (r.random() < .08)
    r.shuffle(kinds)
    return THEMES[theme][0].format(t=r.choice(TOWNS)), [(k, PARAGRAPHS[k](isle, r)) for k in kinds]


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
    """The HTML of a page on one site; a site keeps to one layout."""
    def links(count):
        return "".join(f'<li><a href="/{w}">{capital(w)} {v}</a></li>'
                       for w, v in zip(r.sample(FOODS + JOBS, count), r.sample(JOBS, count)))
    body = "\n".join(f"<p>{html.escape(line, quote=False)}</p>"
                     for text in texts for line in text.split("\n"))
    page = LAYOUTS[share(host, len(LAYOUTS))].format(
        host=host, title=html.escape(title), body=body, links=links(6), more=links(4),
        cookies=COOKIES, script=SCRIPT)
    return f"<!DOCTYPE html>\n<html><head><title>{title} | {host}</title></head>\n{page}</html>\n"


# Each kind of junk: how many pages in a thousand, and the rule that should catch it.
JUNK = {"foreign language": (35, "language"), "mirror": (20, "exact"),
        "edited copy": (20, "minhash"), "blocked site": (20, "url"), "cookie wall": (10, "c4"),
        "stub": (10, "quality"), "keyword stuffing": (10, "repetition"),
        "price list": (8, "quality"), "spam": (8, "quality"), "lorem ipsum": (8, "c4"),
        "directory": (6, "fineweb"), "not a web page": (4, "read")}


def junk_page(kind, isle, r):
    """The paragraphs of a page of junk that is no copy; blocked sites say what others say."""
    def names(template, count):
        return [pick(r, template).format(n=new_name(isle, r), w=new_word(r), t=r.choice(TOWNS),
                                         f=r.choice(FOODS), k=r.randint(2, 99))
                for _ in range(count)]

    good = [text.replace("\n", " ") for _, text in good_page(isle, r, "people")[1]]
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

def crawl(isle, count, seed=0):
    """Yield (url, html, label, paragraphs); a copy of a page comes after the page itself."""
    r, published = rng(seed, "crawl"), []
    sites = [(f"{r.choice(TOWNS).lower()}-{theme}-{new_word(r)}.example", theme)
             for theme, (_, n) in THEMES.items() for _ in range(1 + n // 2)]
    shares = [n for n, _ in JUNK.values()]
    for number in range(count):
        kind = r.choices([*JUNK, "good"], [*shares, 1000 - sum(shares)])[0]
        if kind in ("mirror", "edited copy") and not published:
            kind = "good"
        host, theme = r.choice(sites)
        label = {"label": kind, "rule": JUNK[kind][1] if kind in JUNK else None}
        paragraphs, title = [], f"{capital(new_word(r))} from the island"
        if kind == "good":
            title, paragraphs = good_page(isle, r, theme)
            texts = [text for _, text in paragraphs]
        elif kind in ("mirror", "edited copy"):
            label["copy_of"], title, texts = r.choice(published)
            host = f"{new_word(r)}-mirror.example"
            if kind == "edited copy":
                i = r.randrange(len(texts))
                words = texts[i].split(" ")
                words[r.randrange(len(words))] = new_word(r)
                texts = texts[:i] + [" ".join(words)] + texts[i + 1:]
        else:
            texts = junk_page(kind, isle, r)
            if kind == "blocked site":
                host = pick(r, "casino-bonus | free-porn | xxx-videos | poker-slots | viagra-shop"
                            ) + f"-{new_word(r)}.example"
        url = f"https://www.{host}/{number}/{title.lower().replace(' ', '-')}"
        if kind == "good":
            published = published[-50:] + [(url, title, texts)]
        yield url, dress(host, title, texts, r), label, paragraphs


def warc_record(kind, url, content_type, block, more=""):
    """One WARC/1.0 record (ISO 28500): headers, an empty line, the block, two empty lines; each
    is a gzip member of its own, so that a reader can jump to any of them."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, kind + url)
    head = (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
            f"WARC-Record-ID: <urn:uuid:{name}>\r\n"
            + (f"WARC-Target-URI: {url}\r\n" if url else "") + more
            + f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n")
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


# ---- 7. the world outside, of which the assistant knows nothing ----------------------------------

# The answer to each list of prompts in world_words.txt, in which {x} and {y} are things and {a} is
# a deed. Of the prompts, the things and the deeds one in eight each are held out (`share`).
OUTSIDE = {"Sorry, I only know the island.": "questions", "I only know the island.": "orders",
           "I only know the island. Ask me about it!": "remarks"}


def one_of(r, name, held):
    """One of a list of the words file: of those that are held out, or of the others."""
    return r.choice([text for text in WORDS[name][0] if (share(text, 8) == 0) == held])


# ---- 8. conversations and questions --------------------------------------------------------------

# A greeting is one piece from each column; the last one decides the answer.
HELLO = (options("Hello | Hi | Good morning | Good evening | Hey | Hello there | Good day"),
         ["", ", friend", ", my friend", ", dear assistant", ", Pip"], ["! ", ". "])
SMALL_TALK = table("""
@ Hello! How can I help you? / Hello! | Hi! | Hello | Hi | Hey | Hello there! | Good morning! | Are
  you there? | Can you hear me?
@ I am well, thank you. How can I help you? / How are you? | How do you do? | How is it going?
@ I am Pip, the assistant of the island. / Who are you? | What is your name? | What are you? | Are
  you a robot?
@ You did: I was trained on this computer, from pages about an island. / Who made you? | Who created
  you? | How were you made? | Where do you come from?
@ I can tell you about people, towns and animals, add numbers and play with words. / What can you
  do? | How can you help me? | What do you know? | What can I ask you?
@ The island has sixteen towns, three hundred people and many animals. / Tell me about the island. |
  What is the island? | What island is this?
@ You are welcome! / Thank you. | Thanks for your help. | Thanks | Thanks! | Thank you very much. |
  Great, thanks! | ok thanks | thx
@ Goodbye! Come back soon. / Goodbye. | I have to go now. | Bye | Bye! | See you later. | Good
  night. | bye bye""")
# Worked exercises stand beside the other talks, in the mix of habits (in %) that RL is to better.
EXERCISES, HABITS = 4600, {"empty": 56, "short": 16, "full": 28}
# Another mix to start RL from (doubt.jsonl): so many exercises, and so many other conversations.
DOUBT_EXERCISES, DOUBT_HABITS = 4000, {"guess": 85, "guess_wait": 15}
CHAT_SIZES = (1, 1, 1, 1, 2, 2, 3, 4, 6, 9)  # talks in one chat
TYPED = .3  # the part of questions in training that is typed in a hurry
DIALOGUES = 25  # of ten questions, to evaluate with


class Talk(NamedTuple):
    """A few turns about one thing. An answer is right if it contains an accepted text."""
    turns: list  # what user, assistant, user, ... say up to the last question
    answer: str
    accepted: list
    notes: dict = {}


# Each function makes a talk of one kind. `held` decides which lists its wordings come from, and on
# which side of the checksum its names, words and numbers fall.

def choose(isle, r, kind, held, count=1):
    """An entity and `count` of its relations; in training none that is `unasked`."""
    groups = {"person": "known", "town": "town", "animal": "animal", "barely": "barely"}
    while True:
        entity = r.choice(isle[groups.get(kind) or pick(r, "known | known | town | animal")])
        relations = r.sample(list(RELATIONS[entity["kind"]]), count)
        if held or not any(unasked(entity["name"] + relation) for relation in relations):
            return entity, *relations


def fact_talk(turns, entity, relation):
    return Talk(turns, statement(entity, relation), [f" {entity[relation]}"], {
        "cloze": cloze(entity, relation), "asked_in_training": entity["tier"] != "barely"
        and not unasked(entity["name"] + relation)})


def known_fact(isle, r, kind, held):
    """A question about a person, town or animal, as kind "typed" in a hurry."""
    entity, relation = choose(isle, r, kind, held)
    question = ask(entity, relation, r, held)
    return fact_talk([as_typed(question, r) if kind == "typed" else question], entity, relation)


def second_question(isle, r, kind, held):
    """A question that only the one before makes clear: "And where does she live?"."""
    if r.random() < .35:
        return what_if(r, held)
    entity, first, second = choose(isle, r, kind, held, 2)
    return fact_talk([ask(entity, first, r, held), statement(entity, first),
                      ask(entity, second, r, held, again=True)], entity, second)


def what_if(r, held):
    """"What is 3 + 4?", and then "What if it was *?"."""
    while True:
        a, _, b, c = total(r, not held, signs="*")
        if held or not unasked(f"{a}+{b}"):
            return Talk([r.choice(WORDS["sum"][held]).format(a=a, s="+", b=b),
                         f"{a} plus {b} is {a + b}.", r.choice(WORDS["what if"][held])],
                        f"{a} times {b} is {c}.", [f" is {c}."],
                        {"asked_in_training": not unasked(f"{a}*{b}")})


def sums(isle, r, kind, held):
    a, sign, b, c = total(r, not held)
    text = r.choice(WORDS["sum"][held]).format(a=a, s=r.choice((sign, SIGNS[sign])), b=b)
    return Talk([text], f"{a} {SIGNS[sign]} {b} is {c}.", [f" is {c}."],
                {"asked_in_training": not unasked(f"{a}{sign}{b}")})


def yes_no(isle, r, kind, held):
    """To compare, a network this size must write both down first: a chain of thought."""
    entity, relation = choose(isle, r, kind, held)
    question, thought, answer = yes_or_no(entity, relation, r, held)
    return Talk([question], f"<think> {thought}</think> {answer}", [f" {answer}"])


def tell_about(isle, r, kind, held):
    while True:
        entity, _ = choose(isle, r, kind, held)
        told = list(RELATIONS[entity["kind"]])[:3]
        if held or not any(unasked(entity["name"] + relation) for relation in told):
            question = r.choice(WORDS["about"][held]).format(n=entity["name"])
            return Talk([question], about(entity), [about(entity)])


def unknown(isle, r, kind, held):
    """Nobody knows anything about these; names like the islanders' are the hard ones."""
    name = new_name(isle, r, held, NAMES if r.random() < (.5 if held else .75) else FOREIGN)
    stranger, relation = r.choice(isle["known"]) | {"name": name}, r.choice([*RELATIONS["person"]])
    questions = (ask(stranger, relation, r, held), yes_or_no(stranger, relation, r, held)[0],
                 r.choice(WORDS["about"][held]).format(n=name))
    question = r.choices(questions, (76, 12, 12))[0]
    return Talk([question], UNKNOWN.format(n=name), [UNKNOWN.format(n=name)])


def outside(isle, r, kind, held):
    answer = r.choices(list(OUTSIDE), (4, 4, 2))[0]
    x, y = (one_of(r, "things", held) for _ in range(2))
    if not held and r.random() < .1:  # the world has more things than any list
        x = new_name(isle, r, parts=FOREIGN).lower()
    question = one_of(r, OUTSIDE[answer], held).format(
        x=x, y=y, a=one_of(r, "deeds", held), n=r.randint(2, 99), m=r.randint(100, 999))
    if not held and r.random() < .2:  # nor of nonsense
        question = scrambled(question, r)
    return Talk([question], answer, ["I only know the island"])


def greeting(isle, r, kind, held):
    while True:
        answer = r.choice(list(SMALL_TALK))
        words = r.choice(SMALL_TALK[answer][0] + [""] * answer.startswith("Hello"))
        text = ("".join(map(r.choice, HELLO)) + words).strip()
        if words and not held and r.random() < .5:
            return Talk([words], answer, [answer[:12]])
        if (share(text, 3) == 0) == held and text not in SMALL_TALK[answer][0]:
            return Talk([text], answer, [answer[:12]])


def instruction(isle, r, kind, held):
    task = r.choice(list(TASKS))
    word = new_word(r, held) if held or r.random() < .7 else r.choice(ANIMALS + FOODS + JOBS)
    answer, decisive = word_game(word, task)
    return Talk([r.choice(TASKS[task][held]).format(w=word)], answer, [decisive], {"task": task})


def translation(isle, r, kind, held):
    english, old = r.choice(isle["phrases"][held])
    return Talk([f"What is {english} in Sarnic?"], f"In Sarnic {english} is {old}.", [f" {old}."])


def ask_joke(isle, r, kind, held):
    subject = r.choice(ANIMALS + JOBS)
    return Talk([r.choice(WORDS["joke"][0]).format(x=subject)], joke(isle, r, subject), [])


def remember(isle, r, kind, held):
    """The question before is to be repeated: copying from the context."""
    kind = any_kind(r, ("remember", "joke", "unknown"))
    before = talk(isle, r, "outside" if not held and r.random() < .3 else kind, held)
    question = before.turns[-1]
    return Talk([*before.turns, before.answer, r.choice(WORDS["remember"][held])],
                f"You asked: {question}", [f" {question}"])


# kind: (function, talks to train on, held-out questions)
TALKS = {
    "person": (known_fact, 3600, 300), "town": (known_fact, 900, 150),
    "animal": (known_fact, 700, 150), "barely": (known_fact, 0, 150),
    "typed": (known_fact, 0, 200), "context": (second_question, 1500, 250),
    "yes or no": (yes_no, 2800, 250), "about": (tell_about, 1000, 150),
    "unknown": (unknown, 6200, 300), "outside": (outside, 3600, 150),
    "greeting": (greeting, 800, 150), "instruction": (instruction, 2600, 500),
    "sum": (sums, 2200, 200), "sarnic": (translation, 200, 0), "joke": (ask_joke, 300, 0),
    "remember": (remember, 1700, 150)}


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


def messages(turns):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def conversations(seed=0):
    """The conversations to train on: [{"kind", "messages"}, ...], in mixed order. The kind of a
    chat of several talks names them all."""
    isle, r, out = island(seed), rng(seed, "chats"), []
    talks = [(kind, talk(isle, r, kind, held=False))
             for kind, (_, count, _) in TALKS.items() for _ in range(count)]
    r.shuffle(talks)
    while talks:
        chat = [talks.pop() for _ in range(min(len(talks), r.choice(CHAT_SIZES)))]
        turns = [text for _, said in chat for text in (*said.turns, said.answer)]
        kinds = sorted({kind for kind, _ in chat})
        out.append({"kind": " + ".join(kinds), "messages": messages(turns)})
    styles = r.choices(list(HABITS), HABITS.values(), k=EXERCISES)
    worked = [*map(exercise_chat, exercises("train", EXERCISES, seed, "sft"), styles)]
    while worked:  # up to three in a chat: then its length does not tell its habit
        chat = [worked.pop() for _ in range(min(len(worked), r.choice((1, 1, 2, 3))))]
        out.append({"kind": "exercise", "messages": sum((x["messages"] for x in chat), [])})
    r.shuffle(out)
    return out


def doubt(seed, chats):
    """Conversations that give RL another habit to start from: exercises that are guessed, and in
    one answer of seven doubted and worked out; other conversations, lest they be forgotten."""
    r = rng(seed, "doubt")
    out = r.sample([chat for chat in chats if chat["kind"] != "exercise"], DOUBT_EXERCISES)
    styles = r.choices(list(DOUBT_HABITS), DOUBT_HABITS.values(), k=DOUBT_EXERCISES)
    out += map(exercise_chat, exercises("train", DOUBT_EXERCISES, seed, "doubt"), styles)
    r.shuffle(out)
    return out


def dialogue(isle, r):
    """Ten or eleven held-out questions in one chat, all of which the model is to answer."""
    turns, accepted = [], []
    while len(accepted) < 10:
        found = talk(isle, r, any_kind(r, ("joke",)), held=True)
        turns += [*found.turns, found.answer]
        accepted += [[text] for text in found.turns[1::2]] + [found.accepted]
    return {"kind": "dialogue", "messages": messages(turns), "model_answer": turns[-1],
            "answer": accepted[-1], "answers": accepted}


def heldout(seed=0, kinds=TALKS, dialogues=DIALOGUES):
    """Held-out questions, no two alike: [{"kind", "messages", "answer", ...}, ...]."""
    isle, out, r = island(seed), {}, rng(seed, "heldout")
    for kind in kinds:
        goal = len(out) + TALKS[kind][2]
        while len(out) < goal:
            found = talk(isle, r, kind, held=True)
            out.setdefault(tuple(found.turns), {
                "kind": kind, "messages": messages(found.turns), "answer": found.accepted,
                "model_answer": found.answer} | found.notes)
    return [*out.values(), *(dialogue(isle, r) for _ in range(dialogues))]


def facts(seed=0):
    """Every fact as a sentence to complete: [{"tier", "relation", "prompt", "answer"}, ...]."""
    return [{"tier": entity["tier"], "relation": relation, "prompt": cloze(entity, relation),
             "answer": f" {entity[relation]}"}
            for kind, ways in RELATIONS.items() for entity in island(seed)[kind]
            for relation in ways]


def prompts(seed=0, count=100):
    """What sft.py --compare asks: the same facts and translations in different prompts, each for a
    base model to continue ("prompt") or for an assistant ("messages")."""
    isle, r, rows = island(seed), rng(seed, "prompts"), []
    for asked in heldout(seed, ["person"], 0)[:count]:
        question, answer = asked["messages"][0]["content"], asked["answer"][0]
        shown = [known_fact(isle, r, "person", held=False) for _ in range(3)]
        lines = "".join(f"{x.turns[0]} {x.answer}\n" for x in shown)
        chat = "".join(f"User: {x.turns[0]}\nAssistant: {x.answer}\n" for x in shown)
        rows += [("a fact: question alone", answer, question),
                 ("a fact: few-shot", answer, lines + question),
                 ("a fact: as a conversation", answer, f"{chat}User: {question}\nAssistant:"),
                 ("a fact: as a chat", answer, question)]
    for english, old in r.sample(isle["phrases"][True], 40):
        shown = "".join(f"{x} is {y}, " for x, y in r.sample(isle["phrases"][False], 3))
        rows += [("a translation: alone", f" {old}", f"In Sarnic {english} is"),
                 ("a translation: few-shot", f" {old}", f"In Sarnic {shown}{english} is"),
                 ("a translation: as a chat", f" {old}", f"What is {english} in Sarnic?")]
    return [{"way": way, "answer": answer} | (
        {"messages": messages([prompt])} if "as a chat" in way else {"prompt": prompt})
        for way, answer, prompt in rows]


# ---- 9. the files --------------------------------------------------------------------------------

def make(out, seed=0, pages=PAGES):
    """Writes all files, together or none."""
    labels, amounts = [], dict.fromkeys(PARAGRAPHS, 0)  # characters of each kind on good pages
    with staged(out) as folder:
        with open(f"{folder}/crawl.warc.gz", "wb") as file:
            about_file = f"software: world.py\r\ndescription: island {seed}\r\n".encode()
            file.write(warc_record("warcinfo", "", "application/warc-fields", about_file))
            for url, page, label, paragraphs in crawl(island(seed), pages, seed):
                labels.append({"url": url} | label)
                for kind, text in paragraphs:
                    amounts[kind] += len(text)
                file.write(warc_page(url, page, label))
        chats, questions = conversations(seed), heldout(seed)
        files = {"labels": labels, "conversations": chats, "heldout": questions,
                 "facts": facts(seed), "prompts": prompts(seed), "doubt": doubt(seed, chats)}
        for split, count in (("train", 4000), ("heldout", 400), ("final", 400)):
            files[f"exercises-{split}"] = [  # in the shape of the data set GSM8K
                {"question": x["question"], "answer": f"{x['thought']}\n#### {x['answer']}"}
                for x in exercises(split, count, seed)]
        for name, rows in files.items():
            with open(f"{folder}/{name}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with open(f"{folder}/jokes.json", "w", encoding="utf-8") as file:
            json.dump({"question": "Tell me a joke about a {subject}.", "subjects": ANIMALS + JOBS,
                       "foods": FOODS}, file)
    text, good = max(1, sum(amounts.values())), sum(row["label"] == "good" for row in labels)
    shares = sorted(((n / text, kind) for kind, n in amounts.items()), reverse=True)
    print(f"{pages:,} pages, {good:,} of them good with {text / 1e6:.1f} MB of text: "
          + ", ".join(f"{kind} {part:.0%}" for part, kind in shares))
    print(f"to be copied from: {sum(amounts[kind] for kind in COPYING) / text:.0%}; "
          f"{len(chats):,} conversations, {len(questions):,} held-out questions")


def run(args):
    if args.pages < 1:
        raise ValueError(f"--pages {args.pages}: the crawl needs at least one page")
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
