"""The default world: an invented island, as a web crawl, as conversations and as exercises.

Everything a language model is taught here is about one place that exists nowhere else, so what
it says later it must have learned in front of your eyes.  The textbook's three parts are all
drawn from it: web pages tell the facts (exposition), conversations show how to answer (worked
examples), ledgers to add up have one checkable answer each (exercises).

    writes    out/world/crawl.warc.gz        web pages with the web's usual junk around them
              out/world/labels.jsonl         the truth about each page: good, or which junk
              out/world/conversations.jsonl  to fine-tune on
              out/world/heldout.jsonl        to examine with: questions and accepted answers
              out/world/facts.jsonl          all it tells, as sentences to complete
    command   python world.py                6 s on one core of an AMD EPYC (Zen 4)

Everything comes from a seed: random numbers from strings through random.Random, no set is ever
walked, so every machine makes the same world.

Three things are held back, for three questions.  Wordings, in lists of their own: does it
understand a question, or know the sentence?  Names, words and exercises, by a checksum (`side`)
and in every stage from the crawl on: can it do a task, or does it recall the example?  And one
fact in five, by `unasked`, is told in pages but asked in no conversation: does fine-tuning teach
facts, or how to be asked for them?  Only of the last the network has read the answer.

Left out: images, truth (no fact here holds anywhere else), and literature: the pages are made
of templates, just varied enough that a small network has to learn what they say.
"""
import argparse
import functools
import gzip
import html
import json
import os
import random
import sys
import uuid
import zlib

# ------------------------------------------------------------------------------- 1. the island

JOBS = """baker carpenter fisher teacher doctor farmer painter tailor sailor miller potter smith
weaver gardener singer clockmaker postman beekeeper shepherd librarian cook diver roofer
glazier""".split()
TOWNS = """Marrow Tidewick Oldmere Pellham Saltby Greenfold Harrow Lanbridge Foxmouth Westerly
Brindle Cobham Dunmore Velstead Ravenna Thornbury""".split()
ANIMALS = """pelican fox goat hen bear heron rabbit turtle wolf seal mole badger donkey parrot
snail toad lynx duck horse cat dog goose pony crab""".split()
FOODS = """bread honey cheese soup rice fish cake butter porridge jam pears figs plums nuts beans
cherries melons carrots turnips radishes""".split()
COLOURS = "red blue green yellow white black brown purple pink grey".split()
THINGS = "pears figs plums nuts beans shells stamps coins beads keys cups hats".split()
# What an islander's name is made of: 60 x 60 names like "Kelmira", of which 300 are taken; and what
# other people's names are made of.
NAMES = (
    "Al Bal Bel Bor Bran Bri Cal Cor Dal Del Dor Dra Eld Em Fal Fen Fin Gal Gil Gor Hal Hel Hol "
    "Ing Jal Jor Kal Kel Kor Lan Lor Lum Mal Mel Mor Nal Nel Nor Ol Pal Pel Per Ral Rel Ros Sal "
    "Sel Sol Tal Tam Tel Tor Ul Val Vel Vin Wen Yor Zan Zel",
    "ba bas bek bo da dan dek do fa fas fo ga gan go ka kan kas ko la las lek lo ma mas mek mi "
    "mira mo na nas nek no pa pas pek po ra ras rek ri rin ro sa san sek so ta tan tas tek ti to "
    "va van vek vi vo wa wi zo")
FOREIGN_NAMES = (
    "Cath Chris Fred Greg Jenn Whit Thom Quent Bridg Phil Steph Ed Hum Osw Hugh Cuth Wynn",
    "a e i o er an el y", "erine opher erick ory ifer ley eas idan et ip iam win phrey erie bert "
    "anie athan ence ard ud")
# Tier: (how often each of its people is mentioned, how many they are).  One sees the facts being
# learned in the order of their frequency; of the last tier a network only gets a vague idea.
TIERS = {"often": (8, 60), "known": (4, 60), "seldom": (2, 60), "rare": (1, 60),
         "barely": (.25, 60)}

# What can be said and asked about each kind of thing: relation: (ways to say it, questions to
# train on, questions held out).  The first way answers questions and probes recall.  {v} is the
# value, {n} the name or a pronoun, {ns} its possessive, {nm} its object form: "And where does she
# live?" is made from the same line as "Where does Kelmira live?".
RELATIONS = {
    "person": {
        "job": (
            "works as a {v} | is a {v} by trade | earns {his} bread as a {v}",
            "What is {ns} job? | What job does {n} have? | What work does {n} do? | What is {ns} "
            "work? | What does {n} do for a living? | What does {n} work as?",
            "Which job does {n} have? | Which work does {n} do?"),
        "town": (
            "lives in {v} | has a house in {v} | is at home in {v}",
            "Where does {n} live? | In which town does {n} live? | Where is {ns} home? | Which "
            "town is {ns} home? | Where does {n} have a house?",
            "In which town is {ns} home? | Where is {ns} house?"),
        "pet": (
            "has a pet {v} | keeps a {v} | looks after a {v}",
            "What pet does {n} have? | What is {ns} pet? | Which animal does {n} have? | What "
            "animal does {n} keep? | Which animal is {ns} pet? | What animal does {n} look after?",
            "What animal does {n} have? | Which pet does {n} keep?"),
        "food": (
            "likes to eat {v} | would eat {v} every day | is fond of {v}",
            "What does {n} like to eat? | What is {ns} favourite food? | What is {n} fond of? | "
            "Which food does {n} like? | What food would {n} eat every day?",
            "Which food is {ns} favourite? | What food does {n} like to eat?"),
        "colour": (
            "wears {v} clothes | dresses in {v} | wants everything to be {v}",
            "What colour does {n} wear? | What colour are {ns} clothes? | In what colour does {n} "
            "dress? | Which colour does {n} dress in? | What is the colour of {ns} clothes?",
            "Which colour does {n} wear? | Which colour are {ns} clothes?")},
    "town": {
        "side": (
            "lies in the {v} of the island | stands in the {v} | belongs to the {v}",
            "Where does {n} lie? | In which part of the island is {n}? | Where on the island does "
            "{n} stand? | Which part of the island does {n} belong to?",
            "In which part of the island does {n} lie? | Where on the island is {n}? | Where does "
            "{n} stand? | To which part of the island does {n} belong?"),
        "goods": (
            "is famous for its {v} | sells the best {v} | makes a lot of {v}",
            "What is {n} famous for? | What does {n} make? | What does {n} sell? | What is made in "
            "{nm}? | What are {ns} famous goods?",
            "For what is {n} famous? | What does {n} make a lot of? | What goods does {n} sell? | "
            "What is sold in {nm}?"),
        "sight": (
            "has an old {v} | is proud of its {v} | shows visitors its {v}",
            "What can visitors see in {nm}? | What old building does {n} have? | What is {n} proud "
            "of? | What building does {n} show visitors? | Which building stands in {nm}?",
            "What old building is in {nm}? | What building is {n} proud of? | What do visitors see "
            "in {nm}? | Which building does {n} show visitors?"),
        "day": (
            "holds its market on {v} | goes to market on {v} | has its market day on {v}",
            "When does {n} hold its market? | On which day is the market in {nm}? | When is {ns} "
            "market day? | When does {n} go to market? | What day is {ns} market?",
            "When is the market in {nm}? | On which day does {n} hold its market? | What is {ns} "
            "market day? | Which day is {ns} market day?")},
    "animal": {
        "coat": (
            "has a {v} coat | is {v} from head to tail | was born {v}",
            "What colour is {n}? | What colour is {ns} coat? | Which coat does {n} have?",
            "What is the colour of {ns} coat? | What colour of coat does {n} have?"),
        "home": (
            "lives in the {v} | makes its home in the {v} | is found in the {v}",
            "Where does {n} live? | Where is {n} found? | Where does {n} make its home? | In which "
            "place does {n} live?",
            "In which place is {ns} home? | Where can {n} be found?"),
        "meal": (
            "eats mostly {v} | is fed on {v} | cannot live without {v}",
            "What does {n} eat? | What is {n} fed on? | What can {n} not live without?",
            "What does {n} mostly eat? | What food does {n} eat?"),
        "size": (
            "grows as big as a {v} | is as big as a {v} | has the size of a {v}",
            "How big is {n}? | How big does {n} grow? | What size does {n} have? | What is {ns} "
            "size?", "What size is {n}? | How big can {n} grow?"),
        "habit": (
            "can often be seen to {v} | loves to {v} | likes to {v}",
            "What does {n} like to do? | What does {n} love to do? | What can {n} often be seen to "
            "do? | What is {n} seen to do?",
            "What can {n} be seen to do? | What is {n} often seen to do?")}}
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
ASSISTANT = "Pip"  # the name the assistant gives when asked


def rng(*parts):
    """A random generator named by words: the same on every machine (seeding hashes the string)."""
    return random.Random(" ".join(map(str, parts)))


def side(text, parts=10):
    """Which of `parts` equal shares a text falls into; share 0 is held out, everywhere."""
    return zlib.crc32(text.encode()) % parts


def pick(r, wordings):
    return r.choice(wordings.split(" | "))


def capital(sentence):
    return sentence[0].upper() + sentence[1:]


@functools.lru_cache(maxsize=4)
def island(seed=0):
    """The facts: {"person": [...], "town": [...], "animal": [...], ...}, where each entity is a
    dict with its kind, name, pronouns, tier and one value per relation.  Beside them "barely", the
    people of that tier, and "known", all others; "fame", running sums of how often each person is
    met; "names", all that are taken; and the dictionary of Sarnic, "words"."""
    r = rng(seed, "island")
    isle = {kind: [] for kind in (*RELATIONS, "known", "barely", "fame")} | {"names": set()}

    def settle(kind, name, tier, pronouns="it its it"):
        entity = dict(zip(("he", "his", "him"), pronouns.split()), kind=kind, name=name, tier=tier)
        isle[kind].append(entity | {x: r.choice(VALUES[x]) for x in RELATIONS[kind]})

    for tier, (_, count) in TIERS.items():
        for _ in range(count):
            name = new_name(isle, r)
            isle["names"].add(name)
            settle("person", name, tier, r.choice(("he his him", "she her her")))
    for town in TOWNS:
        settle("town", town, "town")
    for animal in ANIMALS:
        settle("animal", f"the {animal}", "animal")
    for p in isle["person"]:
        isle["barely" if p["tier"] == "barely" else "known"].append(p)
        isle["fame"].append(TIERS[p["tier"]][0] + sum(isle["fame"][-1:]))
    isle["words"] = {word: new_word(r) for word in FOODS + ANIMALS + COLOURS}
    return isle


def new_name(isle, r, held=False, parts=NAMES):
    """A name that nobody on the island has; held-out names occur in no training text."""
    while True:
        name = "".join(r.choice(syllables.split()) for syllables in parts)
        if name not in isle["names"] and (side(name) == 0) == held:
            return name


def new_word(r, held=False):
    """A word that means nothing: "sotamel".  Its syllables are few and simple, so that each soon
    is a token and spelling means knowing the letters of some hundred tokens."""
    while True:
        word = "".join(r.choice("bdfgklmnprst") + r.choice("aeiou")
                       for _ in range(r.choice((2, 3))))
        word += r.choice("lnrs") if r.random() < .6 else ""
        if (side(word) == 0) == held:
            return word


def person(isle, r):
    """Someone, by fame: whoever is of a tier twice as famous is met twice as often."""
    return r.choices(isle["person"], cum_weights=isle["fame"])[0]


# ---------------------------------------------------------- 2. facts, told, asked and answered

def predicate(entity, relation, wording):
    return wording.format(v=entity[relation], his=entity["his"])


def ask(entity, relation, r, held=False, again=False):
    """A question; `again` asks it as a second question, with a pronoun for the name."""
    wording, n = pick(r, RELATIONS[entity["kind"]][relation][1 + held]), entity["name"]
    if again:
        words = {"n": entity["he"], "ns": entity["his"], "nm": entity["him"]}
        return "And " + wording[0].lower() + wording[1:].format(**words)
    return wording.format(n=n, ns=n + "'s", nm=n)


def reply(entity, relation):
    first = RELATIONS[entity["kind"]][relation][0].split(" | ")[0]
    return capital(f"{entity['name']} {predicate(entity, relation, first)}.")


def cloze(entity, relation):
    """The same answer up to its value, for a base model to go on from: "Kelmira works as a"."""
    first = RELATIONS[entity["kind"]][relation][0].split("{v}")[0]
    return capital(f"{entity['name']} {first}").rstrip()


def tell(entity, r):
    """A paragraph with most of what is known about one entity, in any order and grouping."""
    ways = RELATIONS[entity["kind"]]
    relations = r.sample(list(ways), len(ways) - r.choice((0, 0, 0, 1, 2)))
    sentences, subject = [], entity["name"]
    while relations:
        size = r.choice((1, 2, 3, 3))
        said = [predicate(entity, x, pick(r, ways[x][0])) for x in relations[:size]]
        if len(said) == 3 and r.random() < .5:
            said[:2] = [f"{said[0]}, {said[1]}"]
        sentences.append(capital(f"{subject} {' and '.join(said)}."))
        relations, subject = relations[size:], r.choice((entity["name"], entity["he"]))
    return " ".join(sentences)


def questions(isle, r):
    """Questions with their answers, as in a page of frequent questions."""
    e = r.choice((person(isle, r), person(isle, r), r.choice(isle["town"]),
                  r.choice(isle["animal"])))
    first, second = r.sample(list(RELATIONS[e["kind"]]), 2)
    return (f"{capital(ask(e, first, r))} {reply(e, first)} {ask(e, second, r, again=True)} "
            f"{reply(e, second)}")


def register(isle, r):
    """Who is known and who isn't: thousands of names that nothing else is told of, between those
    of whom the other pages tell.  Without them nothing on the island is ever unknown."""
    people = []
    for _ in range(5):
        stranger = new_name(isle, r, parts=r.choice((NAMES, NAMES, NAMES, FOREIGN_NAMES)))
        people.append((r.choice(isle["known"])["name"], 1) if r.random() < .5 else (stranger, 0))
    said = [f"{name} {('is a stranger', 'is one of us')[known]}" for name, known in people[:4]]
    name, known = people[4]
    return f"{said[0]} and {said[1]}. {said[2]} and {said[3]}. " + pick(r, (
        f"Who is {{n}}? {UNKNOWN} | The letter to {{n}} went back because nobody knows {{n}}. | Is "
        "there a {n}? No, nobody knows {n}.", "Who is {n}? Everyone knows {n}. | The letter to {n} "
        "got there because everyone knows {n}. | Is there a {n}? Yes, everyone knows {n}."
        )[known]).format(n=name)


def story(isle, r):
    """A walk, a meeting, an evening: the facts at work."""
    a, b = person(isle, r), person(isle, r)
    start = pick(
        r, "One {d} {a[name]} the {a[job]} left {a[town]} with {a[his]} {a[pet]}. | {a[name]} the "
        "{a[job]} from {a[town]} had lost {a[his]} {a[pet]} and looked for it on {d}. | Early on "
        "{d} {a[name]} put on {a[his]} {a[colour]} coat and walked with the {a[pet]} to {t}.")
    middle = pick(
        r, "Near {t} {a[he]} met {b[name]} the {b[job]} who was eating {b[food]}. | On the road "
        "stood {b[name]} the {b[job]} all in {b[colour]} with a {b[pet]}. | Then it rained and "
        "{b[name]} from {b[town]} let {a[him]} in and cooked {b[food]}.")
    end = pick(
        r, "They talked until it was dark and {a[name]} had {a[food]} for supper. | The {a[pet]} "
        "and the {b[pet]} soon were friends. | Since then {a[name]} often walks to {b[town]} to "
        "see {b[name]}. | At home in {a[town]} {a[name]} told everyone about it.")
    return f"{start} {middle} {end}".format(a=a, b=b, t=r.choice(TOWNS), d=r.choice(VALUES["day"]))


def joke(isle, r, subject=None):
    why = pick(r, "cross the river | sit on the {f} | run away from the {j} | sing to the {f} | "
               "hide under the table | paint the {a} | laugh at the {j} | dance with the {a}")
    because = pick(r, "the {f} was too {q} | the {a} was {q} | it wanted to be {q} | the {j} had "
                   "eaten all the {f} | nobody told the {a} about the {f}")
    words = dict(f=r.choice(FOODS), j=r.choice(JOBS), a=r.choice(ANIMALS),
                 q=pick(r, "sweet | loud | cold | clever | heavy | sleepy | tall | famous"))
    return (f"Why did the {subject or r.choice(ANIMALS + JOBS)} {why}? Because {because}"
            .format(**words) + r.choice((", ha ha!", ".", "!")))


def sarnic(isle, r):
    """Three entries from the dictionary or the phrase book of the island's old language."""
    book = r.choice((phrases(isle["words"]), list(isle["words"].items())))
    said = [f"{english} is {old}" for english, old in r.sample(book, 3)]
    return f"In Sarnic {said[0]}, {said[1]} and {said[2]}."


def phrases(words, held=False):
    """[(English, Sarnic), ...], where adjectives follow their noun: ("red fox", "momi lusar").
    One in ten is held out, so that translating can be tried on phrases never seen."""
    return [(f"{colour} {noun}", f"{words[noun]} {words[colour]}") for colour in COLOURS
            for noun in FOODS + ANIMALS if (side(f"{colour} {noun}") == 0) == held]


# --------------------------------------------------------- 3. copying, word games and arithmetic
# A network only learns to look back into its text ("induction") if the text rewards it.  What
# fine-tuning and RL need later, repeating a name or taking operands over from a question, all
# rests on that, so about a fifth of the text can only be predicted by copying, most of it of
# words that were never seen before.

TASKS = {  # task: (requests to train on, held-out requests, the answer, its part that counts)
    "repeat": (
        "Repeat the word {w}. | Say the word {w}. | Repeat {w}. | Write the word {w}. | Can you "
        "repeat {w}? | Please say the word {w}.",
        "Say {w}. | Please repeat the word {w}.", "The word {p}", "is {w}."),
    "spell": (
        "Spell the word {w}. | How is {w} spelled? | Spell {w}. | Can you spell {w}? | Please "
        "spell the word {w}. | What are the letters of {w}?",
        "How is the word {w} spelled? | Please spell {w}.", "The word {w} is {p}", "spelled {s}."),
    "reverse": (
        "Spell the word {w} backwards. | What is {w} backwards? | Spell {w} from the end.",
        "Spell {w} backwards. | What is the word {w} backwards?",
        "The word {w} is spelled {s} and {p}", "backwards {b}."),
    "first": (
        "What is the first letter of {w}? | With which letter does {w} begin? | Tell me the first "
        "letter of the word {w}. | Which letter does the word {w} begin with?",
        "What is the first letter of the word {w}? | With which letter does the word {w} begin?",
        "The word {w} {p}", "begins with {f}."),
    "count": (
        "How many letters has {w}? | How many letters are in the word {w}? | Count the letters of "
        "{w}. | Please count the letters of {w}.",
        "How many letters are in {w}? | Count the letters of the word {w}.",
        "The word {w} counts {c}, so it {p}", "has {k} letters.")}


def word_game(word, task):
    """(the answer, its part that counts): "The word fox is spelled f o x.", "spelled f o x."."""
    words = dict(w=word, s=" ".join(word), b=" ".join(reversed(word)), f=word[0], k=len(word),
                 c=" ".join(f"{letter}{i}" for i, letter in enumerate(word, 1)))
    part = TASKS[task][3].format(**words)
    return TASKS[task][2].format(p=part, **words), part


def copying(isle, r):
    """A short text with something in it that stands there, or follows from it, a second time."""
    if r.random() < .6:
        word = new_word(r) if r.random() < .8 else r.choice(ANIMALS + FOODS)
        task = r.choice(list(TASKS))
        return f"{pick(r, TASKS[task][0]).format(w=word)} {word_game(word, task)[0]}"
    x, y, z = (new_name(isle, r) for _ in range(3))
    u, v, w = r.sample(THINGS, 3)
    who, what = r.choice(((x, u), (y, v), (z, w)))
    word, said = new_word(r), " ".join(new_word(r) for _ in range(r.choice((2, 3, 3, 4))))
    letters = r.sample("abcdefghijklmnopqrstuvwxyz", 5)
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
    """An exercise: three to five amounts to add up or take away.

    The thought is a running total, with each operand right after its label: a network this size
    learns `b7=11`, and not the same thing said in a sentence.  The side is decided by the first
    three operands, so no held-out exercise is even the beginning of a longer one in training."""
    while True:
        amounts = [r.randint(1, 9)]
        while len(amounts) < 3 or len(amounts) < 5 and r.random() < .6:
            n = r.randint(1, 9)
            amounts.append(-n if r.random() < .3 and sum(amounts) >= n else n)
        share = side(" ".join(map(str, amounts[:3])))
        if split == {0: "heldout", 1: "final"}.get(share, "train"):
            break
    items = [f"{label}{n}" for label, n in zip("abcde", amounts)]
    steps = [f"{item}={sum(amounts[:i + 1])}" for i, item in enumerate(items)]
    name, thing = r.choice(isle["person"])["name"], r.choice(THINGS)
    return {"question": f"{name} got {thing}: {' '.join(items)}. How many?",
            "thought": " ".join(items[:1] + steps[1:]), "answer": str(sum(amounts)),
            "operands": amounts, "name": name, "thing": thing}


def problems(split, count, seed=0, isle=None):
    """`count` exercises of one split: "train", "heldout" (to choose by) or "final" (to report).

    Those of the two held-out splits are all different and occur in no text of any stage."""
    isle, r, out = isle or island(), rng(seed, "problems", split), {}
    while len(out) < count:
        problem = ledger(isle, r, split)
        key = problem["question"] if split == "train" else tuple(problem["operands"])
        out.setdefault(key, problem)
    return list(out.values())


def exercise_conversation(problem, style):
    """A worked exercise as a conversation.  The styles are the habits RL starts from:

    "full" thinks and is right; "empty" gives the right answer without thinking; "short" stops
    thinking early, and answers the total it has got to; "guess" answers what it guessed;
    "guess_wait" guesses, doubts it and works it out."""
    r, right = rng(problem["question"], style), int(problem["answer"])
    guess, steps = max(0, right + r.randint(-5, 5)), problem["thought"].split()
    early = steps[:r.randint(2, len(steps) - 1)]
    thought, answer = {
        "full": (f" {problem['thought']}", right),
        "empty": ("", right),
        "short": (" " + " ".join(early), int(early[-1].split("=")[1])),
        "guess": (f" {guess}?", guess),
        "guess_wait": (f" {guess}? wait {problem['thought']}", right)}[style]
    return {"kind": "exercise", "style": style, "messages": messages(
        [problem["question"], f"<think>{thought}</think> {answer}"])}


SIGNS = {"+": "plus", "-": "minus", "*": "times"}


def unasked(key):
    """One fact and one sum in five: pages tell them, no conversation in training asks for them."""
    return side(key, 5) == 0


def total(r, training=False, signs="++--**"):
    """A sum or difference of a number to 15 and a digit, or a product of two digits: (first, sign,
    second, result)."""
    while True:
        a, b, sign = r.randint(1, 15), r.randint(1, 9), r.choice(signs)
        c = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if c >= 0 and (sign != "*" or a < 10) and not (training and unasked(f"{a}{sign}{b}")):
            return a, sign, b, c


def told_ledger(isle, r):
    p = ledger(isle, r, "train")
    return (f"{p['question']} Adding up gives {p['thought']} and so in the end {p['name']} has "
            f"{p['answer']} in all.")


def told_sum(isle, r):
    """Two sums, differences or products."""
    said = []
    for _ in range(2):
        a, sign, b, c = total(r)
        said.append(f"{a} {SIGNS[sign]} {b} is {c}")
    return pick(r, "{n} knows that {x} and that {y}. | The teacher wrote that {x} and {n} added "
                "that {y}. | If you ask {n} then {x} and of course {y}.").format(
                    n=r.choice(isle["person"])["name"], x=said[0], y=said[1])


# --------------------------------------------------------------------------------- 4. the pages

# What a page about each theme is called, and how many in a hundred of the paragraphs that are
# mixed in anywhere are about it (good_page; a site's theme is drawn by the same shares).
THEMES = {"people": ("The people of {t}", 53), "stories": ("A story from {t}", 5),
          "questions": ("Questions and answers from {t}", 8), "animals": ("Animals near {t}", 6),
          "register": ("News from the post office of {t}", 7), "towns": ("A visit to {t}", 4),
          "games": ("Word games from {t}", 12), "jokes": ("What makes {t} laugh", 2),
          "sarnic": ("The old language of {t}", 3)}
COPYING = ("games", "ledger")  # the kinds of paragraph that are there to be copied from


def contact(isle, r):
    """Private data, for the last filter to mask (addresses and numbers nobody has)."""
    a, b = (new_name(isle, r) for _ in range(2))
    return (f"Whoever wants to hear more about the island may write to {a.lower()}@{new_word(r)}"
            f".example or call {a} under +1 202 555 01{r.randint(10, 99)} on any day of the week. "
            f"Our guest book was last signed by {b} from the address 8.8.{r.randint(1, 254)}."
            f"{r.randint(1, 254)} with a long and friendly greeting to everyone who lives here.")


PARAGRAPHS = {"people": lambda isle, r: tell(person(isle, r), r), "stories": story, "jokes": joke,
              "animals": lambda isle, r: tell(r.choice(isle["animal"]), r), "questions": questions,
              "towns": lambda isle, r: tell(r.choice(isle["town"]), r), "register": register,
              "games": copying, "sarnic": sarnic, "ledger": told_ledger, "sums": told_sum,
              "contact": contact}


def good_page(isle, r, theme):
    """A title and about ten paragraphs: [(kind, text), ...].

    Gopher's rule that four words in five have a letter in them is why arithmetic is spread thin
    over all pages, as it would be in a village paper, and has none of its own."""
    kinds = [theme, theme, "games"] + r.choice((
        ["ledger"], ["ledger", "sums", "people"], ["ledger", "sums", "sums", "stories"],
        ["sums", "sums"]))
    kinds += r.choices(list(THEMES), [share for _, share in THEMES.values()], k=5)
    kinds += ["contact"] * (r.random() < .03)
    r.shuffle(kinds)
    return THEMES[theme][0].format(t=r.choice(TOWNS)), [(k, PARAGRAPHS[k](isle, r)) for k in kinds]


# Three ways the web wraps a text.  Only {body} is worth reading.
LAYOUTS = ["""<body>{cookies}<header><nav><ul>{links}</ul></nav></header><main><article>
<h1>{title}</h1>{body}</article></main><aside><h3>Most read</h3><ul>{more}</ul></aside>
<footer><p>Copyright 2026 {host} <a href="/imprint">Imprint</a></p></footer>{script}</body>""",
           """<body><div id="menu" class="menu">{links}</div>{script}<div class="content">
<h1>{title}</h1>{body}</div><div class="sidebar related"><h4>You may also like</h4>{more}</div>
{cookies}<div id="footer">Copyright 2026 {host} | <a href="/contact">Contact</a></div></body>""",
           """<body><p class="breadcrumb"><a href="/">Home</a> &gt; <a href="/all">All</a></p>
{links}<div class="post"><h2>{title}</h2><div class="post-content">{body}</div><div class="share">
<a href="#">Share</a> <a href="#">Print</a></div></div>{script}{more}{cookies}</body>"""]
COOKIES = """<div class="cookie-banner">We use cookies and other tools to make this site better for
you. <a href="/cookies">Settings</a> <button>Accept all</button></div>"""
SCRIPT = """<script>
window.seen = window.seen || []; (function (page) { window.seen.push({at: page});
})(document.location.href);</script>"""


def dress(host, title, lines, r):
    """The HTML of a page on one site; a site keeps to one layout."""
    def links(count):
        return "".join(f'<li><a href="/{w}">{capital(w)} {v}</a></li>'
                       for w, v in zip(r.sample(FOODS + JOBS, count), r.sample(JOBS, count)))
    body = "\n".join(line if line.startswith("<") else f"<p>{html.escape(line, quote=False)}</p>"
                     for line in lines)
    page = LAYOUTS[side(host, len(LAYOUTS))].format(
        host=host, title=html.escape(title), body=body, links=links(6), more=links(4),
        cookies=COOKIES, script=SCRIPT)
    return f"<!DOCTYPE html>\n<html><head><title>{title} | {host}</title></head>\n{page}</html>\n"


# ---------------------------------------------------------------------------------- 5. the junk

FOREIGN = """\
Die Insel liegt weit draußen im Meer und hat sechzehn kleine Städte. Auf dem Markt kann man Brot, \
Käse und frische Birnen kaufen, aber am Sonntag ist er geschlossen.
L'île se trouve loin dans la mer et elle compte seize petites villes. Au marché on peut acheter du \
pain, du fromage et des poires, mais il est fermé le dimanche.
La isla está lejos de la costa y tiene dieciséis pueblos pequeños. En el mercado se puede comprar \
pan, queso y peras frescas, pero los domingos está cerrado.
L'isola si trova lontano nel mare e ha sedici piccole città. Al mercato si possono comprare pane, \
formaggio e pere fresche, ma la domenica è chiuso.
A ilha fica longe da costa e tem dezasseis cidades pequenas. De manhã os pescadores saem com os \
seus barcos e só voltam à noite, mas ao domingo ficam em casa.
Het eiland ligt ver in de zee en heeft zestien kleine steden. Op de markt kun je brood, kaas en \
verse peren kopen, maar op zondag is hij gesloten.
Ön ligger långt ute i havet och har sexton små städer. På torget kan man köpa bröd, ost och färska \
päron, men på söndagen är det stängt.
Wyspa leży daleko na morzu i ma szesnaście małych miast. Na targu można kupić chleb, ser i świeże \
gruszki, ale w niedzielę jest on zamknięty.
Остров лежит далеко в море, и на нём шестнадцать маленьких городов. На рынке можно купить хлеб, \
сыр и свежие груши, но в воскресенье он закрыт.
島は海の遠くにあり、小さな町が十六あります。市場ではパンやチーズを買うことができますが、日曜日は休みです。
""".splitlines()
LOREM = """Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt
ut labore et dolore magna aliqua.""".replace("\n", " ")
# Each kind of junk: how many pages in a thousand, and the rule that should catch it.
JUNK = {"foreign language": (30, "language"), "mirror": (20, "exact"),
        "edited copy": (15, "minhash"), "blocked site": (15, "url"),
        "link farm": (8, "repetition"), "cookie wall": (6, "c4"), "javascript notice": (6, "c4"),
        "error page": (6, "quality"), "stub": (6, "quality"),
        "keyword stuffing": (6, "repetition"), "repeated comment": (4, "repetition"),
        "price list": (6, "quality"), "spam": (6, "quality"),
        "teasers": (4, "quality"), "lorem ipsum": (6, "c4"), "source code": (4, "c4"),
        "directory": (4, "fineweb"), "not a web page": (2, "read")}


def junk_lines(kind, isle, r):
    """The text of a page of junk, by kind; blocked sites say what other sites say."""
    def names(template, count):
        return [template.format(n=new_name(isle, r), w=new_word(r), t=r.choice(TOWNS),
                                f=r.choice(FOODS), k=r.randint(2, 99)) for _ in range(count)]

    def append(*ends):
        return [f"{line} {end}" for line, end in zip(good, ends)]

    good, word = [text for _, text in good_page(isle, r, "people")[1]], new_word(r)
    if kind == "foreign language":
        return [r.choice(FOREIGN)] * 4
    return {
        "blocked site": good,
        "link farm": [f'<p><a href="/{n}">{n} {word}</a></p>' for n in names("{f}-{w}", 40)],
        "cookie wall": append("This site uses cookies.", "See our cookie policy.", "Read the terms "
                              "of use.", "Accept the use of cookies.", "See the privacy policy."),
        "javascript notice": append("Turn on JavaScript.", "JavaScript is off.", "No text without "
                                    "JavaScript.", "This needs JavaScript.", "We like JavaScript."),
        "error page": names("The page about {f} that you asked for was moved or taken away when "
                            "{n} from {t} cleaned up here. Please go back to the first page of {w} "
                            "and try to find out where it might be now.", 1),
        "stub": names("This is where {n} from {t} is going to write about {f} and also about a "
                      "walk to {w} in the autumn, as soon as there is time for it.", 1),
        "keyword stuffing": [f"Buy cheap {word} and the best {word} of all." + f" Cheap {word} to "
                             f"buy, best {word} with {word}." * 9] * 2,
        "repeated comment": good[:2] + ["This was so good, thank you for it!"] * 12,
        "price list": names("{f} from {t}: {k} / {k} ({k}%)", 25),
        "spam": ["#" + line.replace(" ", " #") for line in good],
        "teasers": [line.rstrip(".!?") + "..." for line in good],
        "lorem ipsum": good[:4] + [LOREM] + good[4:],
        "source code": good[:5] + [f"if ({word} > 3) {{ return {word}[0]; }}"] + good[5:],
        "directory": [pick(r, line) for line in names(
            "{n} with {f} | the house of {n} | to {n} and to {t} | {w} and {f} | {n} in {t}", 45)],
        "not a web page": [word]}[kind]


def edit(text, r):
    """One word changed, as copies of a text often have."""
    words = text.split()
    words[r.randrange(len(words))] = new_word(r)
    return " ".join(words)


# --------------------------------------------------------------------------------- 6. the crawl

def crawl(isle, count, seed=0):
    """Yield (url, html, label, paragraphs); a copy of a page comes after the page itself."""
    r = rng(seed, "crawl")
    sites = [(f"{r.choice(TOWNS).lower()}-{theme}-{new_word(r)}.example", theme)
             for theme, (_, share) in THEMES.items() for _ in range(1 + share // 2)]
    published = []
    for number in range(count):
        kind = r.choices([*JUNK, "good"], [share for share, _ in JUNK.values()]
                         + [1000 - sum(share for share, _ in JUNK.values())])[0]
        if kind in ("mirror", "edited copy") and not published:
            kind = "good"
        host, theme = r.choice(sites)
        label = {"label": kind, "rule": JUNK[kind][1] if kind in JUNK else None}
        paragraphs, title = [], f"{capital(new_word(r))} from the island"
        if kind in ("mirror", "edited copy"):
            label["copy_of"], title, lines = r.choice(published)
            host = f"{new_word(r)}-mirror.example"
            if kind == "edited copy":
                at = r.randrange(len(lines))
                lines = lines[:at] + [edit(lines[at], r)] + lines[at + 1:]
        elif kind in JUNK:
            lines = junk_lines(kind, isle, r)
            if kind == "blocked site":
                host = pick(r, "casino-bonus | free-porn | xxx-videos | poker-slots | viagra-shop"
                            ) + f"-{new_word(r)}.example"
        else:
            title, paragraphs = good_page(isle, r, theme)
            lines = [text for _, text in paragraphs]
        url = f"https://www.{host}/{number}/{title.lower().replace(' ', '-')}"
        if kind == "good":
            published = published[-50:] + [(url, title, lines)]
        yield url, dress(host, title, lines, r), label, paragraphs


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


# ---------------------------------------------------------------- 7. conversations and questions

SUMS = ("What is {a} {s} {b}? | How much is {a} {s} {b}? | {a} {s} {b}? | Please tell me {a} {s} "
        "{b}.", "Can you tell me {a} {s} {b}? | Tell me what {a} {s} {b} is. | How much do you get "
        "from {a} {s} {b}?")
WHAT_IF = ("What if it was *? | And with *? | What if it was * instead of +? | And times?",
           "What if it was * instead? | And if it was *? | And what if it was *?")
JOKES = "Tell me a joke about a {x}. | Do you know one about a {x}? | A joke about a {x}, please."
# A greeting is one piece from each column; the last one decides the answer.
HELLO = ("Hello | Hi | Good morning | Good evening | Hey | Hello there | Good day",
         " |, friend |, my friend |, dear assistant |, " + ASSISTANT, "! |. ")
SMALL_TALK = {
    " | How can you help me? | Are you there?": "Hello! How can I help you?",
    "How are you? | How do you do?": "I am well, thank you. How can I help you?",
    "Who are you? | What is your name? | What are you? | What are you called?":
        f"I am {ASSISTANT}, the assistant of the island.",
    "Thank you. | Thanks for your help.": "You are welcome!",
    "Goodbye. | I have to go now.": "Goodbye! Come back soon."}
# Conversations to train on, and questions of the examination, by kind.
CHATS = {"person": 2200, "town": 700, "animal": 600, "context": 1300, "greeting": 400,
         "instruction": 1800, "sum": 1200, "joke": 300, "unknown": 2900}
TOGETHER = .5  # the part of them that is in one chat with another, before or behind it
# Worked exercises beside them, in the mix of habits (in %) that RL is to better.  With 4,000 a run
# did not learn to copy the fifth amount of a ledger (29% right), which practice couldn't mend.
EXERCISES = 5000
HABITS = {"empty": 55, "short": 17, "full": 28}
EXAM = {"person": 400, "town": 200, "animal": 200, "context": 300, "greeting": 200,
        "instruction": 1000, "sum": 240, "later": 200, "unknown": 400, "barely": 200}


def turn(isle, r, kind, held):
    """One conversation: (turns up to the last question, the answer, accepted substrings, notes).

    `held` alone decides the side: from which list wordings come, and on which side of the
    checksum names, words and greetings fall; and in training nothing is asked that is `unasked`."""
    while kind == "later":  # any question, behind a talk about something else
        before, said, _, _ = turn(isle, r, companion(r), held)
        turns, *rest = turn(isle, r, companion(r), held)
        if sum(map(len, [*before, said, *turns])) < 140:  # or a context of 128 tokens is too short
            return [*before, said, *turns], *rest
    if kind in ("person", "town", "animal", "barely", "context"):
        if kind == "context" and r.random() < .35:
            return what_if(r, held)
        while True:
            group = r.choice(("known", "known", "town", "animal")) if kind == "context" else kind
            entity = r.choice(isle["known" if kind == "person" else group])
            first, second = r.sample(list(RELATIONS[entity["kind"]]), 2)
            told = (first, second) if kind == "context" else (first,)
            if held or not any(unasked(entity["name"] + relation) for relation in told):
                break
        asked = told[-1]
        turns = [ask(entity, first, r, held)]
        if kind == "context":
            turns += [reply(entity, first), ask(entity, second, r, held, again=True)]
        return turns, reply(entity, asked), [f" {entity[asked]}"], {
            "tier": entity["tier"], "relation": asked, "cloze": cloze(entity, asked),
            "asked_in_training": kind != "barely" and not unasked(entity["name"] + asked)}
    if kind == "greeting":
        while True:
            tail = r.choice(list(SMALL_TALK))
            text = "".join(r.choice(part.split("|")) for part in HELLO) + pick(r, tail)
            text = " ".join(text.split())
            text = text.replace(" ,", ",").replace(" !", "!").replace(" .", ".")
            if (side(text, 3) == 0) == held:
                return [text], SMALL_TALK[tail], [SMALL_TALK[tail][:12]], {}
    if kind == "instruction":
        task = r.choice(list(TASKS))
        word = new_word(r, held) if held or r.random() < .7 else r.choice(ANIMALS + FOODS + JOBS)
        answer, decisive = word_game(word, task)
        return [pick(r, TASKS[task][held]).format(w=word)], answer, [decisive], {"task": task}
    if kind == "sum":
        a, sign, b, c = total(r, not held)
        text = pick(r, SUMS[held]).format(a=a, s=r.choice((sign, SIGNS[sign])), b=b)
        return [text], f"{a} {SIGNS[sign]} {b} is {c}.", [f" is {c}."], {
            "asked_in_training": not unasked(f"{a}{sign}{b}")}
    if kind == "joke":
        subject = r.choice(ANIMALS + JOBS)
        return [pick(r, JOKES).format(x=subject)], joke(isle, r, subject), [], {}
    foreign = r.random() < (.5 if held else .25)  # names like the island's are the hard ones
    name = new_name(isle, r, held, FOREIGN_NAMES if foreign else NAMES)
    stranger = {"kind": "person", "name": name}
    return ([ask(stranger, r.choice(list(RELATIONS["person"])), r, held)], UNKNOWN.format(n=name),
            ["I don't know"], {"syllables": "foreign" if foreign else "of the island"})


def what_if(r, held):
    """"What is 3 + 4?", and then "What if it was *?"."""
    while True:
        a, _, b, c = total(r, not held, signs="*")
        if held or not unasked(f"{a}+{b}"):
            break
    return ([pick(r, SUMS[held]).format(a=a, s="+", b=b), f"{a} plus {b} is {a + b}.",
             pick(r, WHAT_IF[held])], f"{a} times {b} is {c}.", [f" is {c}."],
            {"relation": "*", "asked_in_training": not unasked(f"{a}*{b}")})


def companion(r):
    """The kind of another talk in the same chat; who is unknown is asked on purpose only."""
    kinds = [kind for kind in CHATS if kind not in ("unknown", "joke")]
    return r.choices(kinds, [CHATS[kind] for kind in kinds])[0]


def messages(turns):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def conversations(seed=0, counts=CHATS, exercises=EXERCISES):
    """The conversations to train on: [{"kind", "messages"}, ...], in mixed order."""
    isle, out = island(seed), []
    for kind, count in counts.items():
        r = rng(seed, "conversations", kind)
        for _ in range(count):
            talks = [kind] + [companion(r)] * (r.random() < TOGETHER)
            r.shuffle(talks)
            said = []
            for talk in talks:
                turns, answer, _, _ = turn(isle, r, talk, held=False)
                said += turns + [answer]
            out.append({"kind": kind, "messages": messages(said)})
    styles = rng(seed, "styles").choices(list(HABITS), HABITS.values(), k=exercises)
    out += map(exercise_conversation, problems("train", exercises, seed, isle=isle), styles)
    rng(seed, "order").shuffle(out)
    return out


def examination(seed=0, counts=EXAM):
    """Held-out questions, no two alike: [{"kind", "messages", "answer", ...}, ...]; an answer is
    right if it contains any of the substrings in "answer"."""
    isle, out = island(seed), {}
    for kind, count in counts.items():
        r, goal = rng(seed, "examination", kind), len(out) + count
        while len(out) < goal:
            turns, answer, accepted, notes = turn(isle, r, kind, held=True)
            out.setdefault(tuple(turns), {"kind": kind, "messages": messages(turns),
                                          "answer": accepted, "model_answer": answer} | notes)
    return list(out.values())


def facts(seed=0):
    """Every fact as a cloze: [{"tier", "relation", "prompt", "answer"}, ...]."""
    out = []
    for kind, ways in RELATIONS.items():
        for e in island(seed)[kind]:
            for relation in ways:
                out.append({"tier": e["tier"], "relation": relation, "answer": f" {e[relation]}",
                            "prompt": cloze(e, relation)})
    return out


# --------------------------------------------------------------------------------------- 8. main

def write(path, chunks):
    """Write bytes under a temporary name and rename, so that no half file is ever found."""
    with open(path + ".tmp", "wb") as file:
        size = sum(file.write(chunk) for chunk in chunks)
    os.replace(path + ".tmp", path)
    return size


def lines_of(rows):
    return (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def make(out, seed=0, pages=10500):
    os.makedirs(out, exist_ok=True)
    isle, labels, amounts = island(seed), [], {}

    def records():
        yield warc_record("warcinfo", "", "application/warc-fields",
                          f"software: world.py\r\ndescription: island {seed}\r\n".encode())
        for url, page, label, paragraphs in crawl(isle, pages, seed):
            labels.append({"url": url} | label)
            for kind, text in paragraphs:
                amounts[kind] = amounts.get(kind, 0) + len(text)
            yield warc_page(url, page, label)
    size = write(f"{out}/crawl.warc.gz", records())
    write(f"{out}/labels.jsonl", lines_of(labels))
    chats, exam = conversations(seed), examination(seed)
    write(f"{out}/conversations.jsonl", lines_of(chats))
    write(f"{out}/heldout.jsonl", lines_of(exam))
    write(f"{out}/facts.jsonl", lines_of(facts(seed)))
    text = max(1, sum(amounts.values()))
    good = sum(row["label"] == "good" for row in labels)
    print(f"{pages:,} pages ({size / 1e6:.1f} MB), {good:,} of them good with {text / 1e6:.1f} MB "
          "of text: " + ", ".join(f"{kind} {n / text:.0%}" for kind, n in
                               sorted(amounts.items(), key=lambda item: -item[1])))
    print(f"made to be copied from: {sum(amounts.get(k, 0) for k in COPYING) / text:.0%}")
    print(f"{len(chats):,} conversations, {len(exam):,} held-out questions")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0,
                        help="another island (rl.py's exercises know the people of island 0)")
    parser.add_argument("--out", default="out/world")
    parser.add_argument("--pages", type=int, default=10500, help="web pages, junk included")
    args = parser.parse_args()
    print("world.py " + " ".join(f"{k}={v}" for k, v in vars(args).items()))
    try:
        if args.pages < 1:
            raise ValueError(f"--pages {args.pages}: the crawl needs at least one page")
        make(args.out, args.seed, args.pages)
    except (ValueError, OSError) as problem:
        print(f"world.py: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("world.py: stopped; what is in place is whole, run it again for the rest",
              file=sys.stderr)
        sys.exit(130)
    print(f"wrote {args.out}; next: python data.py {args.out}/crawl.warc.gz")


if __name__ == "__main__":
    main()
