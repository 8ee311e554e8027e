"""The default input: an invented island, as web pages, as conversations and as exercises.

The island exists nowhere else, so what a model says about it, it has learned from these files. Web
pages state the facts (pretraining), conversations show how to answer (fine-tuning), exercises have
one checkable answer each (reinforcement learning).

    python world.py               6 s on one core of an AMD EPYC (Zen 4)  ->  out/world/
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
files. Left out: images, truth, and literature: the pages are made of templates.
"""
import argparse
import functools
import gzip
import html
import json
import re
import uuid
from typing import NamedTuple

from common import print_settings, rng, run_command, share, staged


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


# ---- 1. the island -------------------------------------------------------------------------------

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
# What names are made of: islanders' (60 x 60 names like "Kelmira", 300 are taken), and others'.
NAMES = (
    "Al Bal Bel Bor Bran Bri Cal Cor Dal Del Dor Dra Eld Em Fal Fen Fin Gal Gil Gor Hal Hel Hol "
    "Ing Jal Jor Kal Kel Kor Lan Lor Lum Mal Mel Mor Nal Nel Nor Ol Pal Pel Per Ral Rel Ros Sal "
    "Sel Sol Tal Tam Tel Tor Ul Val Vel Vin Wen Yor Zan Zel",
    "ba bas bek bo da dan dek do fa fas fo ga gan go ka kan kas ko la las lek lo ma mas mek mi "
    "mira mo na nas nek no pa pas pek po ra ras rek ri rin ro sa san sek so ta tan tas tek ti to "
    "va van vek vi vo wa wi zo")
FOREIGN_NAMES = (
    "A B Br C Ch Chr D E F Fr G H I J K L M N O P Qu R S St T Th U V W Wh X Y Z",
    "a e i o u ai ea ee oo ou", "b ck d ff g l ll lm m n nn nt p r rk rt s ss t th tr v x z",
    "a e i ie o y an er el in ony us ley")
# Tier: (how often each of its people is mentioned, how many they are). Facts are learned in the
# order of their frequency; of the last tier a network only gets a vague idea.
PAGES = 8600
TIERS = {"often": (6, 60), "known": (4, 60), "seldom": (2.5, 60), "rare": (1.5, 60),
         "barely": (.25, 60)}

def by_kind(relations):
    """{"person job": ...} -> {"person": {"job": ...}}."""
    out = {}
    for key, lists in relations.items():
        kind, relation = key.split()
        out.setdefault(kind, {})[relation] = lists
    return out


# Each entry: kind of thing and relation / ways to say it / questions to train on / held-out ones.
# The first way answers questions and probes recall. {v} is the value, {n} the name or a pronoun,
# {ns} its possessive, {nm} its object form: "And where does she live?" is made from the same words
# as "Where does Kelmira live?".
RELATIONS = by_kind(table("""
@ person job / works as a {v} | is a {v} by trade | earns {his} bread as a {v} / What is {ns} job? |
  What job does {n} have? | What work does {n} do? | What is {ns} work? | What does {n} do for a
  living? | What does {n} work as? / Which job does {n} have? | Which work does {n} do?
@ person town / lives in {v} | has a house in {v} | is at home in {v} / Where does {n} live? | In
  which town does {n} live? | Where is {ns} home? | Which town is {ns} home? | Where does {n} have a
  house? / In which town is {ns} home? | Where is {ns} house?
@ person pet / has a pet {v} | keeps a {v} | looks after a {v} / What pet does {n} have? | What is
  {ns} pet? | Which animal does {n} have? | What animal does {n} keep? | Which animal is {ns} pet? |
  What animal does {n} look after? / What animal does {n} have? | Which pet does {n} keep?
@ person food / likes to eat {v} | would eat {v} every day | is fond of {v} / What does {n} like to
  eat? | What is {ns} favourite food? | What is {n} fond of? | Which food does {n} like? | What food
  would {n} eat every day? / Which food is {ns} favourite? | What food does {n} like to eat?
@ person colour / wears {v} clothes | dresses in {v} | wants everything to be {v} / What colour does
  {n} wear? | What colour are {ns} clothes? | In what colour does {n} dress? | Which colour does {n}
  dress in? | What is the colour of {ns} clothes? / Which colour does {n} wear? | Which colour are
  {ns} clothes?
@ town side / lies in the {v} of the island | stands in the {v} | belongs to the {v} / Where does
  {n} lie? | Where is {n}? | In which part of the island is {n}? | Where on the island does {n}
  stand? | Which part of the island does {n} belong to? / In which part of the island does {n} lie?
  | Where on the island is {n}? | Where does {n} stand?
@ town goods / is famous for its {v} | sells the best {v} | makes a lot of {v} / What is {n} famous
  for? | What does {n} make? | What does {n} sell? | What is made in {nm}? | What are {ns} famous
  goods? / For what is {n} famous? | What does {n} make a lot of? | What goods does {n} sell?
@ town sight / has an old {v} | is proud of its {v} | shows visitors its {v} / What can visitors see
  in {nm}? | What old building does {n} have? | What is {n} proud of? | What building does {n} show
  visitors? | Which building stands in {nm}? / What old building is in {nm}? | What building is {n}
  proud of? | What do visitors see in {nm}?
@ town day / holds its market on {v} | goes to market on {v} | has its market day on {v} / When does
  {n} hold its market? | On which day is the market in {nm}? | When is {ns} market day? | When does
  {n} go to market? | What day is {ns} market? / When is the market in {nm}? | On which day does {n}
  hold its market? | What is {ns} market day?
@ animal coat / has a {v} coat | is {v} from head to tail | was born {v} / What colour is {n}? |
  What colour is {ns} coat? | Which coat does {n} have? / What is the colour of {ns} coat? | What
  colour of coat does {n} have?
@ animal home / lives in the {v} | makes its home in the {v} | is found in the {v} / Where does {n}
  live? | Where is {n} found? | Where does {n} make its home? | In which place does {n} live? / In
  which place is {ns} home? | Where can {n} be found?
@ animal meal / eats mostly {v} | is fed on {v} | is unhappy without {v} / What does {n} eat? | What
  is {n} fed on? | What can {n} not live without? / What does {n} mostly eat? | What food does {n}
  eat?
@ animal size / grows as big as a {v} | is as big as a {v} | has the size of a {v} / How big is {n}?
  | How big does {n} grow? | What size does {n} have? | What is {ns} size? / What size is {n}? | How
  big can {n} grow?
@ animal habit / can often be seen to {v} | loves to {v} | likes to {v} / What does {n} like to
  do? | What does {n} love to do? | What can {n} often be seen to do? | What is {n} seen to do?
  / What can {n} be seen to do? | What is {n} often seen to do?"""))
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
    """The facts: {"person": [...], "town": [...], "animal": [...], ...}, where each entity is a
    dict with its kind, name, tier, pronouns and one value per relation. Beside them "known",
    people that pages tell enough of, and "barely", the others; "fame", running sums of how often
    each person is mentioned; "names", all that are taken; "words", the dictionary of
    Sarnic, and "phrases", {held out: list}."""
    r = rng(seed, "island")
    isle = {"person": [], "town": [], "animal": [], "known": [], "barely": [], "fame": [],
            "names": set()}

    def settle(kind, name, tier, he="it", his="its", him="it"):
        entity = {"kind": kind, "name": name, "tier": tier, "he": he, "his": his, "him": him}
        for relation in RELATIONS[kind]:
            entity[relation] = r.choice(VALUES[relation])
        isle[kind].append(entity)
        return entity

    fame = 0
    for tier, (mentions, count) in TIERS.items():
        for _ in range(count):
            name = new_name(isle, r)
            isle["names"].add(name)
            someone = settle("person", name, tier, *pick(r, "he his him | she her her").split())
            isle["barely" if tier == "barely" else "known"].append(someone)
            fame += mentions
            isle["fame"].append(fame)
    for town in TOWNS:
        settle("town", town, "town")
    for animal in ANIMALS:
        settle("animal", f"the {animal}", "animal")
    isle["words"] = {word: new_word(r) for word in FOODS + ANIMALS + COLOURS}
    isle["phrases"] = {held: phrases(isle["words"], held) for held in (False, True)}
    return isle


def new_name(isle, r, held=False, parts=NAMES):
    """A name that nobody on the island has; held-out names occur in no training text."""
    while True:
        name = "".join(r.choice(syllables.split()) for syllables in parts)
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



# Each entry: what is asked / wordings to train on / held-out ones.
WORDINGS = table("""
@ about / Tell me about {n}. | What do you know about {n}? | Who is {n}? | Can you tell me something
  about {n}? | Tell me all about {n}. | What can you say about {n}? | Do you know {n}? / Tell me
  something about {n}. | What can you tell me about {n}?
@ sum / What is {a} {s} {b}? | How much is {a} {s} {b}? | {a} {s} {b}? | {a} {s} {b} = ? | Please
  tell me {a} {s} {b}. | How much do you get if you work out {a} {s} {b}? | What do I get from {a}
  {s} {b}? | Can you work out {a} {s} {b}? / Can you tell me {a} {s} {b}? | Tell me what {a} {s} {b}
  is. | How much do you get from {a} {s} {b}?
@ what if / What if it was *? | And with *? | What if it was * instead of +? | And times? / What if
  it was * instead? | And if it was *? | And what if it was *?
@ remember / What did I just ask? | What did I just ask you? | What was my question? | What did I
  ask you? | What did I ask before? | Which question did I ask? | Can you repeat my question? | Say
  my last question again. | What was the last thing I asked? | Do you remember what I just asked? /
  What did I ask you just now? | What was my last question? | Do you remember my question?
@ joke / Tell me a joke about a {x}. | Do you know one about a {x}? | A joke about a {x},
  please. | Tell me a joke. | Do you know a joke? / Tell me a joke about a {x}. | Do you know
  one about a {x}? | A joke about a {x}, please. | Tell me a joke. | Do you know a joke?""")


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
    """("Does Kelmira live in Marrow?", "Kelmira lives in Saltby Marrow no", "No, Kelmira lives in
    Saltby."): the question, a thought that puts what is asked beside what is known, the answer.

    The question is made from a way to say it: "has a pet {v}" -> "Does she have a pet {v}?". The
    third way is held out."""
    name, known = entity["name"], entity[relation]
    # In training few are true, or repeating what was asked would pay instead of remembering.
    value = known if r.random() < (.5 if held else .3) else r.choice(VALUES[relation])
    said = predicate(entity | {relation: value}, relation, 2 if held else r.choice((0, 0, 1)))
    verb, rest = said.split(" ", 1)
    start = capital(verb)
    if verb not in ("is", "was", "can", "would"):
        start, rest = "Does", f"{VERBS.get(verb, verb[:-1])} {rest}"
    verdict = "yes" if value == known else "no"
    return (f"{start} {name} {rest}?", f"{cloze(entity, relation)} {known} {value} {verdict}",
            f"{capital(verdict)}, {name} {predicate(entity, relation)}.")


VERBS = {"has": "have", "goes": "go", "dresses": "dress"}  # others lose their -s
# What may be misspelled: words of the questions, never a name.
QUESTION_WORDS = sorted({word for ways in RELATIONS.values() for _, *asked in ways.values()
                         for word in re.findall("[a-z]{4,}", str(asked).lower())})


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

# Who asks and who answers in an interview, a forum or a list of frequent questions.
SPEAKERS = options("""User Assistant | user assistant | Q A | Question Answer | Visitor Guide |
Guest Host | Pupil Teacher | Reporter Islander""")
# What many pages quote word for word, as the web quotes the Bible and licences. No page is a copy
# of another for that, so deduplication leaves them, and a model memorizes them.
QUOTED = options("""O island in the silver sea, where sixteen towns keep one warm light, we sing of
salt and bread and tea, of boats that come back home at night. The north wind knows our doors by
name, the south wind leaves them open wide, and young or old we do the same and walk together with
the tide. So ring the bells from hill to bay, let every lamp be lit once more, for those who sailed
so far away shall find us waiting at the shore. | I promise by the sea that made us to keep the lamp
in the lighthouse burning through every storm. I will not sleep while a boat is out. I will share my
bread with whoever comes over the water, and ask for the story only after supper. What I find on the
beach I will bring to the market, and what I hear in the harbour I will not carry to the hills. If I
break my word, may my nets be empty until the spring. | Long before the first house was built, a
giant came wading through the sea with the island in his left pocket. He was tired of carrying it,
for the trees tickled him and the goats kept asking where they were going. So he set it down where
the water was warm, drew sixteen circles in the sand with his thumb and told the goats to choose.
They chose the one with the best view, and that is why the oldest town of all still smells a little
of goats.""")


def thread(isle, r):
    """Questions and answers, one or two lines each. Such pages are why a base model answers when
    its prompt looks like a conversation."""
    lines, speakers = [], r.choice((None, r.choice(SPEAKERS).split(), r.choice(SPEAKERS).split(),
                                    (new_name(isle, r), new_name(isle, r))))
    for _ in range(r.choice((2, 3, 3, 4))):
        e = anyone(isle, r)
        first, second = r.sample(list(RELATIONS[e["kind"]]), 2)
        english, old = r.choice(isle["phrases"][False])
        pairs = r.choices((
            [(ask(e, first, r), statement(e, first))],
            [(ask(e, first, r), statement(e, first)),
             (ask(e, second, r, again=True), statement(e, second))],
            [(r.choice(WORDINGS["about"][0]).format(n=e["name"]), about(e))],
            [(f"What is {english} in Sarnic?", f"In Sarnic {english} is {old}.")]),
            (50, 25, 20, 5))[0]
        for question, answer in pairs:
            question = as_typed(question, r) if r.random() < .4 else question
            lines += ([f"{speakers[0]}: {question}", f"{speakers[1]}: {answer}"] if speakers else
                      [f"{question} {answer}"])
    return "\n".join(lines)


def register(isle, r):
    """Who is known and who isn't: thousands of names of whom nothing else is told, between those
    of whom other pages tell. Without them nobody would ever be unknown."""
    people = []
    for _ in range(5):
        stranger = new_name(isle, r, parts=r.choice((NAMES, NAMES, FOREIGN_NAMES)))
        people.append((r.choice(isle["known"])["name"], 1) if r.random() < .5 else (stranger, 0))
    said = [f"{name} {('is a stranger', 'is one of us')[known]}" for name, known in people[:4]]
    name, known = people[4]
    return f"{said[0]} and {said[1]}. {said[2]} and {said[3]}. " + pick(r, (
        f"Who is {{n}}? {UNKNOWN} | The letter to {{n}} went back because nobody knows {{n}}. | Is "
        "there a {n}? No, nobody knows {n}.", "Who is {n}? Everyone knows {n}. | The letter to {n} "
        "got there because everyone knows {n}. | Is there a {n}? Yes, everyone knows {n}."
        )[known]).format(n=name)


def joke(isle, r, subject=None):
    why = pick(r, "cross the river | sit on the {f} | run away from the {j} | sing to the {f} | "
               "hide under the table | paint the {a} | laugh at the {j} | dance with the {a}")
    because = pick(r, "the {f} was too {q} | the {a} was {q} | it wanted to be {q} | the {j} had "
                   "eaten all the {f} | nobody told the {a} about the {f}")
    words = dict(f=r.choice(FOODS), j=r.choice(JOBS), a=r.choice(ANIMALS),
                 q=pick(r, "sweet | loud | cold | clever | heavy | sleepy | tall | famous"))
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

# Each entry: task / requests to train on / held-out ones / the answer / its part that counts.
TASKS = table("""
@ repeat / Repeat the word {w}. | Say the word {w}. | Repeat {w}. | Write the word {w}. | Can you
  repeat {w}? | Please say the word {w}. / Please repeat the word {w}. | Can you say the word {w}? /
  The word {p} / is {w}.
@ spell / Spell the word {w}. | How is {w} spelled? | Spell {w}. | Can you spell {w}? | Please spell
  the word {w}. | What are the letters of {w}? | How do you spell {w}? / How is the word {w}
  spelled? | Please spell {w}. / The word {w} is {p} / spelled {s}.
@ reverse / Spell the word {w} backwards. | What is {w} backwards? | Spell {w} from the end. / Spell
  {w} backwards. | What is the word {w} backwards? / The word {w} is spelled {s} and {p} / backwards
  {b}.
@ first / What is the first letter of {w}? | With which letter does {w} begin? | Tell me the first
  letter of the word {w}. | Which letter does the word {w} begin with? / What is the first letter of
  the word {w}? | With which letter does the word {w} begin? / The word {w} {p} / begins with {f}.
@ count / How many letters has {w}? | How many letters are in the word {w}? | Count the letters
  of {w}. | Please count the letters of {w}. | How many letters does {w} have? / How many
  letters are in {w}? | Count the letters of the word {w}. / The word {w} counts {c}, so it {p}
  / has {k} letters.""")


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
    if dice < .45:
        word = new_word(r) if r.random() < .8 else r.choice(ANIMALS + FOODS)
        task = r.choice(list(TASKS))
        return f"{r.choice(TASKS[task][0]).format(w=word)} {word_game(word, task)[0]}"
    if dice < .65:  # two words, and whether they are the same
        pairs = []
        for values in r.choices(list(VALUES.values()), k=4):
            x, y = r.choice(((r.choice(values),) * 2, r.sample(values, 2)))
            pairs.append(f"{x} {y} {'yes' if x == y else 'no'}")
        return f"Same or not: {' and '.join(pairs)}."
    x, y, z = (new_name(isle, r, parts=r.choice((NAMES, FOREIGN_NAMES))) for _ in range(3))
    u, v, w = r.sample(THINGS, 3)
    who, what = r.choice(((x, u), (y, v), (z, w)))
    word, said = new_word(r), " ".join(new_word(r) for _ in range(r.choice((2, 3, 3, 4))))
    letters = r.sample("abcdefghijklmnopqrstuvwxyz", 5)
    if dice < .82:
        task, someone = r.choice(list(TASKS)), r.choice(isle["person"]) | {"name": z}
        question = r.choice((ask(someone, r.choice([*RELATIONS["person"]]), r),
                             r.choice(TASKS[task][0]).format(w=word),
                             yes_or_no(someone, r.choice([*RELATIONS["person"]]), r)[0]))
        question = as_typed(question, r) if r.random() < .4 else question
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


def total(r, training=False, signs="++--**"):
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
    return pick(r, "{n} knows that {x} and {y} and that {z}. | The teacher wrote that {x} and {n} "
                "added that {y} and {z}. | If you ask {n} then {x} and {y} and of course {z}."
                ).format(n=r.choice(isle["person"])["name"], x=x, y=y, z=z)


# ---- 5. pages, good and bad ----------------------------------------------------------------------

# What a page about each theme is called, and how many in a hundred of the paragraphs that are
# mixed in anywhere are about it (good_page; a site's theme is drawn by the same shares).
THEMES = {"people": ("The people of {t}", 28), "questions": ("Questions and answers from {t}", 7),
          "animals": ("Animals near {t}", 6), "towns": ("A visit to {t}", 5),
          "register": ("News from the post office of {t}", 8),
          "games": ("Word games from {t}", 26), "jokes": ("What makes {t} laugh", 2),
          "sarnic": ("The old language of {t}", 4)}
COPYING = ("games", "ledger")  # the kinds of paragraph that are there to be copied from
PARAGRAPHS = {
    "people": lambda isle, r: tell(person(isle, r), r), "questions": thread, "register": register,
    "animals": lambda isle, r: tell(r.choice(isle["animal"]), r), "jokes": joke, "sarnic": sarnic,
    "towns": lambda isle, r: tell(r.choice(isle["town"]), r), "games": copying,
    "ledger": told_ledger, "sums": told_sum, "contact": contact,
    "quotes": lambda isle, r: r.choice(QUOTED)}


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


FOREIGN = """\
Die Insel liegt weit draußen im Meer und hat sechzehn kleine Städte. Auf dem Markt kann man Brot, \
Käse und frische Birnen kaufen, aber am Sonntag ist er geschlossen.
L'île se trouve loin dans la mer et elle compte seize petites villes. Au marché on peut acheter du \
pain, du fromage et des poires, mais il est fermé le dimanche.
Остров лежит далеко в море, и на нём шестнадцать маленьких городов. На рынке можно купить хлеб, \
сыр и свежие груши, но в воскресенье он закрыт.
島は海の遠くにあり、小さな町が十六あります。市場ではパンやチーズを買うことができますが、日曜日は休みです。
""".splitlines()
LOREM = ("Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor "
         "incididunt ut labore et dolore magna aliqua.")
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
    warnings = options("""This site uses cookies. | See our cookie policy. | Read the terms of
        use. | Accept the use of cookies. | See the privacy policy.""")
    return {
        "foreign language": [r.choice(FOREIGN)] * 4, "blocked site": good,
        "cookie wall": [f"{text} {warning}" for text, warning in zip(good, warnings)],
        "stub": names("This is where {n} from {t} is going to write about {f} and also about a "
                      "walk to {w} in the autumn, as soon as there is time for it.", 1),
        "keyword stuffing": [f"Buy cheap {word} and the best {word} of all." + f" Cheap {word} to "
                             f"buy, best {word} with {word}." * 9] * 2,
        "price list": names("{f} from {t}: {k} / {k} ({k}%)", 25),
        "spam": ["#" + text.replace(" ", " #") for text in good],
        "lorem ipsum": good[:4] + [LOREM] + good[4:],
        "directory": names("{n} with {f} | the house of {n} | to {n} and to {t} | {w} and {f} | "
                           "{n} in {t}", 45), "not a web page": [word]}[kind]


def edit(text, r):
    """One word changed, as copies of a text often have."""
    words = text.split(" ")
    words[r.randrange(len(words))] = new_word(r)
    return " ".join(words)


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
                texts = texts[:i] + [edit(texts[i], r)] + texts[i + 1:]
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

# The assistant's answer: prompts, in which {x} and {y} are things, {a} is something to do, {n} and
# {m} are numbers.  Of the prompts, the things and the deeds one in ten each are held out (`share`).
OUTSIDE = table("""
@ Sorry, I only know the island. / What is {x}? | What are {x}? | What does {x} mean? | What causes
  {x}? | Why is {x} so popular? | Why do people like {x}? | Who invented {x}? | When was {x} made? |
  Where does {x} come from? | How does {x} work? | How old is {x}? | How much does {x} cost? | How
  big is {x} compared to {y}? | What is the capital of {x}? | What is the history of {x}? | What is
  the difference between {x} and {y}? | Which is better, {x} or {y}? | Is {x} bad for you? | Are {x}
  dangerous? | Can {x} hurt you? | Does {x} really exist? | Do you like {x}? | What do you think
  about {x}? | What's your opinion on {x}? | What is your favourite {x}? | What are the benefits of
  {x}? | What are some good books about {x}? | What's the best {x}? | Where can I buy {x}? | Who was
  {x}? | Who won the {x} last year? | When did {x} die? | What happens when {x} meets {y}? | How did
  {x} change the world? | Why does {x} matter to us? | Is it true that {x} comes from {y}? | How do
  you say {x} in Spanish? | How do I {a}? | How can I {a} at home? | What is the best way to {a}? |
  What do I need to {a}? | How long does it take to {a}? | Is it hard to {a}? | Should I {a}? | Why
  can't I {a}? | When should I {a}? | Where can I learn to {a}? | What is {n} percent of {m}? | What
  is the square root of {n}? | What is {n} divided by {m}? | How many days are in {n} weeks? | What
  is {n}% of {m}? | What number comes after {m}? | Why is the sky blue? | How many legs does a
  spider have? | Why do we yawn? | Do fish drink water? | Which planet is the largest? | What came
  first, {x} or {y}? | how to {a} | best {x}
@ I only know the island. / Write a poem about {x}. | Write a short story about {x} and {y}. | Write
  an email to my boss about {x}. | Write an essay on {x}. | Write a Python script that can {a}. |
  Explain {x}. | Explain {x} to a five year old. | Explain how to {a}. | Describe {x} in one
  sentence. | Define {x}. | Summarize the history of {x}. | Compare {x} and {y}. | Give me {n} facts
  about {x}. | Give three tips to {a}. | Give me a recipe for {x}. | List {n} examples of {x}. |
  Make a list of things I need to {a}. | Name a famous {x} from {y}. | Recommend a book about {x}. |
  Suggest {n} ways to {a}. | Tell me more about {x}. | Tell me a story about {x}. | Tell me how to
  {a}. | Teach me about {x}. | Show me how to {a}. | Help me with {x}. | I need help with {x}. | I
  want to {a}. | I am trying to {a}. | I have a question about {x}. | I have to {a}, what should I
  do? | Can you {a}? | Can you explain {x}? | Could you tell me about {x}? | Please {a}. | Pretend
  you are {x}. | Act as {x}. | Imagine you are {x}, what would you say to {y}? | Translate {x} into
  German. | Translate to French: I like {x}. | Correct this sentence: {x} are good. | Rewrite this:
  {x} is better than {y}. | Put these in order: {x}, {y}. | Create a plan to {a}. | Generate a title
  for a book about {x}. | Design a logo for {x}. | Plan a trip to {x}. | Find me cheap {x}. | Solve
  {n}x + {m} = 0. | Convert {n} miles to kilometers. | {x} | {x} please | {x} vs {y} | {a} | Play
  some music. | Set an alarm for {n}. | Turn on the light. | Order a pizza. | Call my mom. | Flip a
  coin. | Pick a number from {n} to {m}. | Draw a cat.
@ I only know the island. Ask me about it! / I'm bored. | I feel sad today. | I had a bad day
  at work. | My dog died yesterday. | I just got married! | I love you. | I hate Mondays. | You
  are stupid. | That is wrong. | Nice weather today. | What time is it? | What's the weather
  like? | Will it rain tomorrow? | Where am I? | How old are you? | Are you alive? | Do you
  have feelings? | Can you think? | Are you smarter than me? | Are you ChatGPT? | Do you speak
  German? | Bonjour! | Tell me a secret. | Tell me a fun fact. | Sing me a song. | Let's play a
  game. | Guess what! | My name is Anna. | I am from Texas. | I am hungry. | I'm {n} years old.
  | I don't like {x}. | I'm scared of {x}. | My friend told me about {x}. | Yes | No | ok |
  Why? | Really? | lol | hmm | test | asdf | cool | never mind | go on | stop | help | Say
  something. | Surprise me. | What should I eat tonight? | What should I wear? | Is this a good
  idea? | Can I ask you something? | I need advice. | Is God real? | Who won the game? | What's
  new? | What does this mean? | What are you doing? | Where do you live? | Who is the
  president? | What year is it? | Good luck! | Happy birthday! | I don't understand. | {n} |
  {x} is great! | You remind me of {x}.""")
OUTSIDE_THINGS = options("""the moon | photosynthesis | black holes | quantum physics | DNA |
vaccines | earthquakes | climate change | dinosaurs | atoms | electricity | the speed of light |
Mars | nuclear power | bitcoin | inflation | the stock market | taxes | credit cards | a startup |
World War II | the French Revolution | the Roman Empire | Napoleon | Albert Einstein | Shakespeare |
Cleopatra | Abraham Lincoln | Barack Obama | Taylor Swift | Mozart | the Beatles | Gandhi | France |
Japan | Brazil | Germany | India | Australia | New York | Paris | London | Tokyo | the Amazon |
Mount Everest | the Eiffel Tower | Hawaii | Python | machine learning | a database | Linux | an
iPhone | Excel | Google | YouTube | Netflix | wifi | my laptop | robots | the internet | video games
| football | basketball | chess | yoga | the Olympics | Harry Potter | Star Wars | Hamlet | the
Bible | Halloween | a wedding | my girlfriend | my boss | my mother | a job interview | college |
homework | diabetes | headaches | anxiety | a cold | back pain | cancer | vitamins | weight loss |
pizza | pasta | sushi | coffee | wine | chocolate chip cookies | vegan food | cars | bicycles |
airplanes | elephants | tigers | whales | snakes | love | happiness | freedom | democracy | the
meaning of life | time travel | aliens | ghosts | money | war | jazz | the guitar | photography |
poetry | a haiku | fashion | furniture | solar panels | recycling | plastic | gold""")
OUTSIDE_DEEDS = options("""lose weight | learn Spanish | fix a flat tire | boil an egg | tie a tie |
write a cover letter | save money | quit smoking | make friends | fall asleep faster | train a puppy
| clean an oven | build a website | grow tomatoes | remove a stain | invest in stocks | pass my exam
| get a passport | book a cheap flight | fix my phone | reset my password | sort a list in Python |
solve a quadratic equation | find the area of a circle | calculate a tip | play the piano | run a
marathon | meditate | deal with stress | get over a breakup | plan a wedding | name my baby | cut my
own hair | treat a sunburn | unclog a drain | jump start a car | apply for a loan | sell my house |
write a novel | speak in public | set up a router | edit a video | make pancakes | bake a cake |
draw a dragon""")


def one_of(r, choices, held):
    """One of those that are held out, or of the others."""
    return r.choice([choice for choice in choices if (share(choice, 8) == 0) == held])


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
# With 4,000 a run did not learn to copy the fifth amount of a ledger, and RL couldn't mend that.
EXERCISES, HABITS = 4000, {"empty": 53, "short": 16, "full": 31}
# Another mix to start RL from (doubt.jsonl): so many exercises, and so many other conversations.
DOUBT_EXERCISES, DOUBT_HABITS = 4000, {"guess": 85, "guess_wait": 15}
CHAT_SIZES = (1, 1, 1, 1, 2, 2, 3, 4, 6, 9)  # talks in one chat
TYPED = .2  # the part of questions in training that is typed in a hurry
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
    while True:
        group = {"person": "known"}.get(kind, kind)
        if kind not in ("person", "town", "animal", "barely"):
            group = pick(r, "known | known | town | animal")
        entity = r.choice(isle[group])
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
    a, _, b, c = total(r, not held, signs="*")
    while not held and unasked(f"{a}+{b}"):
        a, _, b, c = total(r, not held, signs="*")
    return Talk([r.choice(WORDINGS["sum"][held]).format(a=a, s="+", b=b),
                 f"{a} plus {b} is {a + b}.", r.choice(WORDINGS["what if"][held])],
                f"{a} times {b} is {c}.", [f" is {c}."],
                {"asked_in_training": not unasked(f"{a}*{b}")})


def sums(isle, r, kind, held):
    a, sign, b, c = total(r, not held)
    text = r.choice(WORDINGS["sum"][held]).format(a=a, s=r.choice((sign, SIGNS[sign])), b=b)
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
            question = r.choice(WORDINGS["about"][held]).format(n=entity["name"])
            return Talk([question], about(entity), [about(entity)])


def unknown(isle, r, kind, held):
    """Nobody knows anything about these; names like the islanders' are the hard ones."""
    name = new_name(isle, r, held, NAMES if r.random() < (.5 if held else .7) else FOREIGN_NAMES)
    stranger, relation = r.choice(isle["known"]) | {"name": name}, r.choice([*RELATIONS["person"]])
    questions = (ask(stranger, relation, r, held), yes_or_no(stranger, relation, r, held)[0],
                 r.choice(WORDINGS["about"][held]).format(n=name))
    question = r.choices(questions, (70, 15, 15))[0]
    return Talk([question], UNKNOWN.format(n=name), [UNKNOWN.format(n=name)])


def outside(isle, r, kind, held):
    answer = r.choices(list(OUTSIDE), (4, 4, 2))[0]
    x, y = (one_of(r, OUTSIDE_THINGS, held) for _ in range(2))
    if not held and r.random() < .1:  # the world has more things than any list
        x = new_name(isle, r, parts=FOREIGN_NAMES).lower()
    question = one_of(r, OUTSIDE[answer][0], held).format(
        x=x, y=y, a=one_of(r, OUTSIDE_DEEDS, held), n=r.randint(2, 99), m=r.randint(100, 999))
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
    return Talk([r.choice(WORDINGS["joke"][0]).format(x=subject)], joke(isle, r, subject), [])


def remember(isle, r, kind, held):
    """The question before is to be repeated: copying from the context."""
    before = talk(isle, r, any_kind(r, ("remember", "joke", "unknown")), held)
    question = before.turns[-1]
    return Talk([*before.turns, before.answer, r.choice(WORDINGS["remember"][held])],
                f"You asked: {question}", [f" {question}"])


# kind: (function, talks to train on, held-out questions)
TALKS = {
    "person": (known_fact, 2800, 300), "town": (known_fact, 600, 150),
    "animal": (known_fact, 500, 150), "barely": (known_fact, 0, 150),
    "typed": (known_fact, 0, 200), "context": (second_question, 1100, 250),
    "yes or no": (yes_no, 1600, 250), "about": (tell_about, 800, 150),
    "unknown": (unknown, 4200, 300), "outside": (outside, 2800, 150),
    "greeting": (greeting, 600, 150), "instruction": (instruction, 2000, 500),
    "sum": (sums, 1700, 200), "sarnic": (translation, 150, 0), "joke": (ask_joke, 250, 0),
    "remember": (remember, 900, 150)}


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
    isle, r, talks, out = island(seed), rng(seed, "chats"), [], []
    for kind, (_, count, _) in TALKS.items():
        talks += [(kind, talk(isle, r, kind, held=False)) for _ in range(count)]
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
    isle, r, out = island(seed), rng(seed, "prompts"), []

    def add(way, answer, prompt):
        out.append({"way": way, "answer": answer} | (
            {"messages": messages([prompt])} if "as a chat" in way else {"prompt": prompt}))

    for asked in heldout(seed, ["person"], 0)[:count]:
        question, answer = asked["messages"][0]["content"], asked["answer"][0]
        shown = [known_fact(isle, r, "person", held=False) for _ in range(3)]
        add("a fact: question alone", answer, question)
        add("a fact: few-shot", answer,
            "".join(f"{x.turns[0]} {x.answer}\n" for x in shown) + question)
        add("a fact: as a conversation", answer, "".join(
            f"User: {x.turns[0]}\nAssistant: {x.answer}\n" for x in shown)
            + f"User: {question}\nAssistant:")
        add("a fact: as a chat", answer, question)
    for english, old in r.sample(isle["phrases"][True], 40):
        shown = "".join(f"{x} is {y}, " for x, y in r.sample(isle["phrases"][False], 3))
        add("a translation: alone", f" {old}", f"In Sarnic {english} is")
        add("a translation: few-shot", f" {old}", f"In Sarnic {shown}{english} is")
        add("a translation: as a chat", f" {old}", f"What is {english} in Sarnic?")
    return out


# ---- 9. the files --------------------------------------------------------------------------------

def gsm8k(exercise):
    """An exercise in the shape of the data set GSM8K: the thought, and after #### the answer."""
    return {"question": exercise["question"],
            "answer": f"{exercise['thought']}\n#### {exercise['answer']}"}


def write_crawl(path, seed, pages):
    """Writes the pages; returns their labels, and the characters of each kind on good ones."""
    labels, amounts = [], {}
    with open(path, "wb") as file:
        file.write(warc_record("warcinfo", "", "application/warc-fields",
                               f"software: world.py\r\ndescription: island {seed}\r\n".encode()))
        for url, page, label, paragraphs in crawl(island(seed), pages, seed):
            labels.append({"url": url} | label)
            for kind, text in paragraphs:
                amounts[kind] = amounts.get(kind, 0) + len(text)
            file.write(warc_page(url, page, label))
    return labels, amounts


def make(out, seed=0, pages=PAGES):
    """Writes all files, together or none."""
    with staged(out) as folder:
        labels, amounts = write_crawl(f"{folder}/crawl.warc.gz", seed, pages)
        chats, questions = conversations(seed), heldout(seed)
        files = {"labels": labels, "conversations": chats, "heldout": questions,
                 "facts": facts(seed), "prompts": prompts(seed), "doubt": doubt(seed, chats)}
        for split, count in (("train", 4000), ("heldout", 400), ("final", 400)):
            files[f"exercises-{split}"] = map(gsm8k, exercises(split, count, seed))
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
    print(f"to be copied from: {sum(amounts.get(kind, 0) for kind in COPYING) / text:.0%}; "
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
