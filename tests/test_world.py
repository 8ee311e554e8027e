"""The world keeps its word: same seed same bytes, right arithmetic, nothing held out is taught."""
import collections
import hashlib
import json
import re
import zlib

import pytest

import world
from common import rng, share

PAGES = 1400
ITEM = r" {}-?\d+(?:=\d+)?"
LEDGER = re.compile(r"\ba\d(?!\d)" + "".join(ITEM.format(x) for x in "bc")
                    + "(?:" + ITEM.format("d") + ")?(?:" + ITEM.format("e") + ")?")


@pytest.fixture(scope="module")
def isle():
    return world.island(0)


@pytest.fixture(scope="module")
def pages(isle):
    return list(world.crawl(isle, PAGES))


@pytest.fixture(scope="module")
def chats():
    return world.conversations()


@pytest.fixture(scope="module")
def exam():
    return world.heldout()


@pytest.fixture(scope="module")
def taught(pages, chats):
    """Every text of every stage a model is trained on, as one string."""
    texts = [page for _, page, label, _ in pages if label["label"] != "edited copy"]
    texts += [m["content"] for chat in [*chats, *world.doubt(0, chats)] for m in chat["messages"]]
    for exercise in world.exercises("train", 2000):
        texts += [m["content"] for m in world.exercise_chat(exercise, "full")["messages"]]
    return "\n".join(texts)


def members(path):
    """The gzip members of a file, unpacked one by one."""
    data = path.read_bytes()
    while data:
        inflate = zlib.decompressobj(31)
        yield inflate.decompress(data)
        assert inflate.eof
        data = inflate.unused_data


def test_same_seed_same_world(tmp_path):
    """One seed always makes the same files, another seed others; the digest pins today's world."""
    def digest(folder, seed):
        world.make(str(folder), seed=seed, pages=40)
        # Unpacked bytes: what gzip makes of them may differ with the version of zlib.
        h = hashlib.sha256(b"".join(members(folder / "crawl.warc.gz")))
        for path in sorted(folder.glob("*.json*")):
            h.update(path.name.encode() + path.read_bytes())
        return h.hexdigest()
    expected = "45e983d6ed6e7902efd83725696cefd85660db86f81a90dfbe8644556d4e8f52"
    assert digest(tmp_path / "a", 0) == expected
    assert digest(tmp_path / "b", 1) != expected
    assert not list((tmp_path / "a").glob(".*"))


def test_the_crawl_is_a_well_formed_warc(tmp_path):
    """Every record has its lengths right and a name of its own; responses match the labels."""
    world.make(str(tmp_path), pages=60)
    records = list(members(tmp_path / "crawl.warc.gz"))
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").open()]
    kinds, urls, ids = [], [], set()
    for record in records:
        head, rest = record.split(b"\r\n\r\n", 1)
        version, *fields = head.decode().split("\r\n")
        fields = dict(field.split(": ", 1) for field in fields)
        assert version == "WARC/1.0"
        assert len(rest) == int(fields["Content-Length"]) + 4 and rest.endswith(b"\r\n\r\n")
        kinds.append(fields["WARC-Type"])
        ids.add(fields["WARC-Record-ID"])
        if kinds[-1] == "response":
            urls.append(fields["WARC-Target-URI"])
            http, body = rest[:-4].split(b"\r\n\r\n", 1)
            assert http.startswith(b"HTTP/1.1 200 OK")
            assert b"Content-Length: %d" % len(body) in http
            body.decode()
    assert kinds == ["warcinfo"] + ["request", "response"] * 60
    assert urls == [row["url"] for row in labels] and len(set(urls)) == len(ids) // 2 == 60


def test_the_island_is_as_large_as_promised(isle):
    """300 people, 16 towns, 24 animals; every value occurs, every fact has its own prompt."""
    assert len(isle["town"]) == 16 and len(isle["animal"]) == 24 and len(isle["person"]) == 300
    assert len({p["name"] for p in isle["person"]}) == 300
    assert [len(world.RELATIONS[kind]) for kind in ("person", "town", "animal")] == [5, 4, 5]
    for relation in world.RELATIONS["person"]:
        assert {p[relation] for p in isle["person"]} == set(world.VALUES[relation])
    facts = world.facts()
    assert len(facts) == 300 * 5 + 16 * 4 + 24 * 5
    assert len({f["prompt"] for f in facts}) == len(facts)


def test_pages_state_the_facts_and_never_contradict_them(pages):
    """Wherever a page begins to state a fact it states it right; famous people come more often."""
    text = "\n".join(t for *_, paragraphs in pages for _, t in paragraphs)
    seen = collections.Counter()
    for fact in world.facts():
        for match in re.finditer(re.escape(fact["prompt"]) + r"\b", text):
            assert text[match.end():].startswith(fact["answer"]), fact
            seen[fact["tier"]] += 1
    assert seen["often"] > seen["known"] > seen["seldom"] > seen["rare"] > seen["barely"] > 0


def test_people_are_mentioned_as_often_as_their_tier_says(isle):
    """The tiers' frequencies are those of TIERS."""
    r, draws = rng("test"), 20000
    met = collections.Counter(world.person(isle, r)["tier"] for _ in range(draws))
    shares = [met[tier] / draws for tier in world.TIERS]
    # 0.011 is three standard errors of a share near a half.
    assert shares == pytest.approx([x / 14.25 for x in (6, 4, 2.5, 1.5, .25)], abs=.011)


def test_a_fifth_of_the_text_is_there_to_be_copied(pages):
    """Between 15% and 25% of the good text can be predicted only by copying."""
    amounts = collections.Counter()
    for *_, paragraphs in pages:
        for kind, text in paragraphs:
            amounts[kind] += len(text)
    share = sum(amounts[kind] for kind in world.COPYING) / sum(amounts.values())
    assert .15 <= share <= .25


def test_wordings_are_trained_or_held_out_never_both():
    """No list of wordings shares one with its held-out list."""
    pairs = [ways[1:3] for relations in world.RELATIONS.values() for ways in relations.values()]
    pairs += [lists[:2] for lists in (*world.TASKS.values(), *world.WORDINGS.values())]
    assert not any(set(trained) & set(held) for trained, held in pairs if trained != held)


def test_no_held_out_question_was_ever_trained(chats, exam):
    """No user's turn of an evaluation occurs in a training conversation, whatever its kind."""
    asked = {m["content"] for chat in chats for m in chat["messages"][::2]}
    for question in exam:
        assert not {m["content"] for m in question["messages"][::2]} & asked, question
        assert any(part in question["model_answer"] for part in question["answer"])
    kinds = collections.Counter(question["kind"] for question in exam)
    assert kinds == {kind: n for kind, (_, _, n) in world.TALKS.items() if n} | {
        "dialogue": world.DIALOGUES}


def test_dialogues_ask_ten_questions(exam):
    """A dialogue has ten or eleven questions and accepted answers for each, its own among them."""
    for q in (q for q in exam if q["kind"] == "dialogue"):
        said = [m["content"] for m in q["messages"][1::2]]
        assert len(said) == len(q["answers"]) in (10, 11)
        assert all(any(x in text for x in accepted) for text, accepted in zip(said, q["answers"]))


def test_no_conversation_tells_what_is_never_asked(isle, chats):
    """One fact and one sum in five appear in no training conversation, in whatever sentence."""
    said = "\n".join(m["content"] for chat in chats for m in chat["messages"][1::2])
    lines, n = set(said.splitlines()), 0
    for kind in ("person", "town", "animal"):
        for entity in isle[kind]:
            for relation in world.RELATIONS[kind]:
                said_so = f"{entity['name']} {world.predicate(entity, relation)}."
                told = not lines.isdisjoint((world.capital(said_so), f"Yes, {said_so}",
                                             f"No, {said_so}"))
                assert not (told and world.unasked(entity["name"] + relation))
                n += told
            if world.about(entity) in lines:
                assert not any(world.unasked(entity["name"] + relation)
                               for relation in list(world.RELATIONS[kind])[:3])
    for a, sign, b in re.findall(r"(\d+) (plus|minus|times) (\d+) is", said):
        assert not world.unasked(a + {"plus": "+", "minus": "-", "times": "*"}[sign] + b)
    assert n > 1000


def test_chats_are_long_and_short(chats):
    """Half of the chats mix kinds, some are ten questions long, and exercises stand apart."""
    others = [c for c in chats if c["kind"] != "exercise"]
    assert {len(c["messages"]) for c in chats if c["kind"] == "exercise"} == {2, 4, 6}
    assert .4 < sum(" + " in c["kind"] for c in others) / len(others) < .6
    assert sum(len(c["messages"]) >= 18 for c in others) > 200
    assert not any("I don't know" in m["content"] for c in others if "unknown" not in c["kind"]
                   for m in c["messages"][1::2])


def test_held_out_names_and_words_occur_nowhere(taught, exam):
    """Unknown names and the words of word games occur in no text of any training stage."""
    words = set(re.findall(r"[A-Za-z]+", taught))
    games = set(re.findall(r"word ([a-z]+)", taught))  # elsewhere "some" may be English, "kepe" a typo
    for question in exam:
        if question["kind"] == "unknown":
            name = re.search(r"called (\w+)\.", question["model_answer"])[1]
            assert name not in words
        if question["kind"] == "instruction":
            found = re.search(r"[Ww]ord (?:is )?(\w+)", question["model_answer"])[1]
            assert found not in games, question
            wording = question["messages"][0]["content"].replace(found, "{w}")
            assert wording in world.TASKS[question["task"]][1]


def test_held_out_exercises_begin_nothing_that_is_taught(taught):
    """No ledger in training begins with the first three operands of a held-out one."""
    held = {tuple(p["operands"][:3]) for split in ("heldout", "final")
            for p in world.exercises(split, 300)}
    final = {tuple(p["operands"][:3]) for p in world.exercises("final", 300)}
    assert not final & {tuple(p["operands"][:3]) for p in world.exercises("heldout", 300)}
    ledgers = [tuple(int(re.match(r"[a-e](-?\d+)", item)[1]) for item in match.split())
               for match in LEDGER.findall(taught)]
    assert len(ledgers) > 3000 and any(len(x) == 5 for x in ledgers)
    assert not {x[:3] for x in ledgers} & held


def test_ledgers_add_up(taught):
    """Every running total in every text is right, and so are the exercises' answers."""
    for match in LEDGER.findall(taught):
        total = 0
        for item in match.split():
            amount, _, claimed = item[1:].partition("=")
            total += int(amount)
            assert total >= 0 and (not claimed or int(claimed) == total), match
    for split in ("train", "heldout", "final"):
        for p in world.exercises(split, 200):
            amounts = [int(x) for x in re.findall(r" [a-e](-?\d+)", p["question"])]
            assert amounts == p["operands"] and 3 <= len(amounts) <= 5
            assert sum(amounts) == int(p["answer"]) == int(p["thought"].split("=")[-1])


def test_sums_and_products_are_right(taught, exam):
    """Every sum, difference and product that any text states is right."""
    answers = "\n".join(question["model_answer"] for question in exam)
    claims = re.findall(r"(\d+) (plus|minus|times) (\d+) is (\d+)", taught + answers)
    assert {word for _, word, _, _ in claims} == {"plus", "minus", "times"} and len(claims) > 1000
    for a, word, b, c in claims:
        a, b = int(a), int(b)
        assert int(c) == {"plus": a + b, "minus": a - b, "times": a * b}[word]


def test_word_games_are_right(taught):
    """Words are spelled, reversed and counted right in every text."""
    letters = r"((?:[a-z] )*[a-z])"
    spelled = re.findall(rf"word (\w+) is spelled {letters}[ .]", taught)
    backwards = re.findall(rf"word (\w+) is spelled [a-z ]*backwards {letters}\.", taught)
    counted = re.findall(r"word (\w+) counts ([a-z0-9 ]+), so it has (\d+) letters", taught)
    assert min(len(spelled), len(backwards), len(counted)) > 100
    assert all(s.replace(" and backwards", "").split()[:len(w)] == list(w) for w, s in spelled)
    assert all(s.replace(" ", "") == w[::-1] for w, s in backwards)
    for word, items, count in counted:
        assert items.split() == [f"{x}{i + 1}" for i, x in enumerate(word)]
        assert int(count) == len(word)


def test_held_out_phrases_of_the_old_language(isle, taught):
    """One phrase in ten is held out: neither it nor its translation occurs in any text."""
    held, trained = (world.phrases(isle["words"], held) for held in (True, False))
    assert 30 < len(held) < 60 and len(trained) > 380
    assert not any(f"{english} is " in taught or old in taught for english, old in held)
    assert sum(f"{english} is {old}" in taught for english, old in trained) > 150


def test_styles_of_exercises():
    """Each habit's answer is what its description says, in a form that rl.py can parse."""
    for p in world.exercises("train", 200):
        said = {style: world.exercise_chat(p, style)["messages"][1]["content"]
                for style in ("full", "empty", "short", "guess", "guess_wait")}
        assert all(re.fullmatch(r"<think>[^<>]*</think> \d+", text) for text in said.values())
        final = {style: text.split()[-1] for style, text in said.items()}
        assert final["full"] == final["empty"] == final["guess_wait"] == p["answer"]
        assert said["empty"].startswith("<think></think>") and p["thought"] in said["full"]
        # A thought that stops early must answer its own last total, not the right one.
        last = re.search(r"=(\d+)</think>", said["short"])[1]
        assert final["short"] == last and len(said["short"]) < len(said["full"])
        assert f" {final['guess']}?" in said["guess"] and "wait" in said["guess_wait"]


def test_every_kind_of_junk_is_there_with_its_rule(pages):
    """All kinds of junk occur; a copy equals its page, an edited one but for one word."""
    labels = collections.Counter(label["label"] for _, _, label, _ in pages)
    assert set(labels) == {"good", *world.JUNK}
    assert .8 < labels["good"] / PAGES < .9
    seen = {}
    for url, page, label, _ in pages:
        seen[url] = [word for line in re.findall("<p>(?!Copyright)(.*?)</p>", page)
                     for word in line.split()]
        if "copy_of" in label:  # of a page that came before, word for word or all but one
            pairs = list(zip(seen[url], seen[label["copy_of"]], strict=True))
            assert sum(a != b for a, b in pairs) == (label["label"] == "edited copy")


def test_labels_against_the_filters(pages):
    """Kept good pages >= 98%, dropped junk >= 97%: the crawl is good, and so are the rules."""
    import data
    verdicts = verdict(data, pages)
    good = [v for v, (_, _, label, _) in zip(verdicts, pages) if label["label"] == "good"]
    junk = [v for v, (_, _, label, _) in zip(verdicts, pages) if label["label"] != "good"]
    assert sum(v is None for v in good) / len(good) >= .98
    assert sum(v is not None for v in junk) / len(junk) >= .97


def verdict(data, pages):
    """The stage that drops each page, or None: the rules of data.py by their public names."""
    out, texts = [], []
    for url, page, label, _ in pages:
        text = data.extract_text(page)
        language, score = data.identify_language(text)
        reason = ("read" if label["label"] == "not a web page" else data.url_rule(url)
                  or (not text.strip() and "extract")
                  or ((language != "en" or score <= .65) and "language")
                  or data.gopher_repetition(text) or data.gopher_quality(text))
        if not reason:
            text, reason = data.c4(text)
        out.append(reason or data.fineweb(text))
        texts.append(text)
    left = [i for i, reason in enumerate(out) if not reason]
    for i, stays in zip(left, data.near_duplicates([texts[i] for i in left])):
        out[i] = None if stays else "minhash"
    return out


def test_interviews_and_quotes_are_on_many_pages(pages):
    """Threads have User: and Assistant: lines among others; each quoted text is on many pages,
    whole, and never twice on one."""
    texts = ["\n".join(t for _, t in paragraphs) for *_, paragraphs in pages if paragraphs]
    assert sum("\nAssistant: " in text for text in texts) > 20
    for quoted in world.QUOTED:
        counts = collections.Counter(text.count(quoted) for text in texts)
        assert 10 < counts[1] < 60 and set(counts) == {0, 1}


def test_yes_and_no_are_true(isle):
    """"Yes" exactly where the question names the fact's own value; the sentence states the fact,
    and the thought puts both values side by side. Half of the held-out ones are true."""
    r, words = rng("test"), collections.Counter()
    for held in [False, True] * 1000:
        entity, relation = world.choose(isle, r, "any", held)
        question, thought, answer = world.yes_or_no(entity, relation, r, held)
        word, said = answer.split(", ", 1)
        known, asked, verdict = thought.split()[-3:]
        assert world.capital(said) == world.statement(entity, relation)
        assert known == entity[relation] and asked in question and verdict == word.lower()
        assert (word == "Yes") == (known == asked)
        words[held, word] += 1
    assert words[True, "Yes"] > 450 > words[False, "Yes"] > 300


def test_typing_in_a_hurry_spares_names(isle):
    """as_typed changes something every time, and no name but for its capitals."""
    r = rng("test")
    for _ in range(2000):
        entity, relation = world.choose(isle, r, "person", held=True)
        question = world.ask(entity, relation, r)
        typed = world.as_typed(question, r)
        assert typed != question and entity["name"].lower() in typed.lower()


def test_the_world_outside_is_held_out_by_prompt_and_by_thing(chats):
    """Held-out prompts share neither their wording nor their subject with training."""
    for choices in (*[x for x, in world.OUTSIDE.values()], world.OUTSIDE_THINGS, world.OUTSIDE_DEEDS):
        held = [choice for choice in choices if share(choice, 8) == 0]
        assert 0 < len(held) < len(choices) / 4 and len(set(choices)) == len(choices)
    said = "\n".join(m["content"] for c in chats for m in c["messages"][::2])
    for thing in world.OUTSIDE_THINGS + world.OUTSIDE_DEEDS:
        assert (thing not in said) == (share(thing, 8) == 0) or len(thing) < 8


def test_files_for_the_other_stages(tmp_path):
    """Exercises have GSM8K's shape, prompts are written out, jokes name their rule's words."""
    world.make(str(tmp_path), seed=1, pages=5)
    for split, count in (("train", 4000), ("heldout", 400), ("final", 400)):
        rows = [json.loads(line) for line in (tmp_path / f"exercises-{split}.jsonl").open()]
        assert len(rows) == count
        assert all(re.fullmatch(r"a\d( [b-e]-?\d=\d+){2,4}\n#### \d+", x["answer"]) for x in rows)
    doubts = [json.loads(line) for line in (tmp_path / "doubt.jsonl").open()]
    assert sum(chat["kind"] == "exercise" for chat in doubts) == len(doubts) / 2
    for row in map(json.loads, (tmp_path / "prompts.jsonl").open()):
        assert set(row) in ({"way", "prompt", "answer"}, {"way", "messages", "answer"})
    assert set(json.loads((tmp_path / "jokes.json").read_text())) == {
        "question", "subjects", "foods"}


def test_main_says_what_is_wrong(capsys, tmp_path):
    """A wrong number of pages or an output folder that is a file: one line, status 2."""
    (tmp_path / "file").write_text("")
    for arguments, words in ((["--pages", "0"], "--pages 0"),
                             (["--out", str(tmp_path / "file")], "file")):
        assert world.main(arguments) == 2 and words in capsys.readouterr().err
