"""The world keeps its word: same seed same bytes, right arithmetic, nothing held out is taught."""
import collections
import gzip
import hashlib
import json
import re
import statistics
import zlib

import pytest

import data
import world
from common import rng, share

SIGNS = {"plus": "+", "minus": "-", "times": "*"}
LEDGER = re.compile(r"\ba\d(?!\d) b-?\d+(?:=\d+)? c-?\d+(?:=\d+)?(?: d-?\d+(?:=\d+)?)?"
                    r"(?: e-?\d+(?:=\d+)?)?")
ISLE = world.island(0)

once = pytest.fixture(scope="module")
pages = once(lambda: list(world.crawl(ISLE, 1400)))
chats = once(lambda: world.conversations(ISLE))
exam = once(lambda: world.heldout(ISLE))


@once
def made(tmp_path_factory):
    """The folder of a small world."""
    world.make(str(folder := tmp_path_factory.mktemp("world")), pages=40)
    return folder


@once
def taught(pages, chats):
    """Every text of every stage a model is trained on, as one string."""
    texts = [page for _, page, label in pages if label["label"] != "edited copy"]
    worked = [" ".join(x.values()) for x in world.exercises(ISLE, "train", 2000)]
    talks = [*chats, *world.doubt(ISLE, chats)]
    return "\n".join(texts + worked + said(talks, 0) + said(talks, 1))


def rows(path):
    return [json.loads(line) for line in path.open()]


def said(chats, side):
    """What users (side 0) or assistants (1) say."""
    return [m["content"] for chat in chats for m in chat["messages"][side::2]]


def members(path):
    """The gzip members of a file, unpacked one by one."""
    packed = path.read_bytes()
    while packed:
        inflate = zlib.decompressobj(31)
        yield inflate.decompress(packed)
        assert inflate.eof
        packed = inflate.unused_data


def test_same_seed_same_world(made, tmp_path):
    """One seed always makes the same files, another seed others; the digest pins today's world."""
    def digest(folder):
        # Unpacked bytes: what gzip makes of them may differ with the version of zlib.
        h = hashlib.sha256(b"".join(members(folder / "crawl.warc.gz")))
        for path in sorted(folder.glob("*.json*")):
            h.update(path.name.encode() + path.read_bytes())
        return h.hexdigest()
    today = "2b3a19479037ed869e00945b82324a621ee401917e34055c9ae1e668856a579e"
    world.make(str(tmp_path), seed=1, pages=40)
    assert digest(made) == today != digest(tmp_path)
    assert [path.name for path in made.glob(".*")] == [".lock"]


def test_the_crawl_is_a_well_formed_warc(made):
    """Every record has its lengths right and a name of its own; responses match the labels."""
    kinds, urls, ids = [], [], set()
    for record in members(made / "crawl.warc.gz"):
        head, rest = record.removeprefix(b"WARC/1.0\r\n").split(b"\r\n\r\n", 1)
        fields = dict(field.split(": ", 1) for field in head.decode().split("\r\n"))
        assert len(rest) == int(fields["Content-Length"]) + 4 and rest.endswith(b"\r\n\r\n")
        kinds.append(fields["WARC-Type"])
        ids.add(fields["WARC-Record-ID"])
        if kinds[-1] == "response":
            urls.append(fields["WARC-Target-URI"])
            http, body = rest[:-4].split(b"\r\n\r\n", 1)
            assert http.startswith(b"HTTP/1.1 200 OK") and body.decode()
            assert b"Content-Length: %d" % len(body) in http
    assert kinds == ["warcinfo"] + ["request", "response"] * 40 and len(ids) == len(kinds)
    assert urls == [row["url"] for row in rows(made / "labels.jsonl")] and len(set(urls)) == 40


def test_the_island_is_as_large_as_promised():
    """Every value occurs, every fact has its own prompt, people are met as often as TIERS says."""
    for kind, count in (("person", 300), ("town", 16), ("animal", 24)):
        assert len({x["name"] for x in ISLE[kind]}) == len(ISLE[kind]) == count
    for name, relation in world.RELATIONS["person"].items():
        assert {p[name] for p in ISLE["person"]} == set(relation.values)
    facts, r = world.facts(ISLE), rng("test")
    assert len({f["prompt"] for f in facts}) == len(facts) == 300 * 5 + 16 * 4 + 24 * 5
    met = collections.Counter(world.person(ISLE, r)["tier"] for _ in range(20000))
    # 0.011 is three standard errors of a share near a half.
    assert [met[tier] / 20000 for tier in world.TIERS] == pytest.approx(
        [x / 14.25 for x in (6, 4, 2.5, 1.5, .25)], abs=.011)


def test_pages_state_the_facts_and_never_contradict_them(pages):
    """Wherever a page begins to state a fact it states it right; famous people come more often."""
    text = "\n".join(page for _, page, label in pages if label["label"] == "good")
    seen = collections.Counter()
    for fact in world.facts(ISLE):
        for match in re.finditer(re.escape(fact["prompt"]) + r"\b", text):
            assert text[match.end():].startswith(fact["answer"]), fact
            seen[fact["tier"]] += 1
    assert seen["often"] > seen["known"] > seen["seldom"] > seen["rare"] > seen["barely"] > 0


def test_no_held_out_question_was_ever_trained(chats, exam):
    """No user's turn of an evaluation is in a training conversation; every answer is accepted."""
    asked = set(said(chats, 0))
    for q in exam:
        assert asked.isdisjoint(said([q], 0)), q
        answers = said([q], 1) if q["kind"] == "dialogue" else [q["model_answer"]]
        accepted = q.get("answers", [q["answer"]])
        assert len(answers) == len(accepted) in ((10, 11, 12) if q["kind"] == "dialogue" else (1,))
        assert all(any(x in text for x in right) for text, right in zip(answers, accepted))
        assert answers[-1] == q["model_answer"] and accepted[-1] == q["answer"]
    counts = {kind: n for kind, (_, _, n) in world.TALKS.items() if n}
    assert collections.Counter(q["kind"] for q in exam) == counts | {"dialogue": world.DIALOGUES}


def test_no_conversation_tells_what_is_never_asked(chats):
    """One fact and one sum in five appear in no training conversation, in whatever sentence."""
    answers, n = "\n".join(said(chats, 1)), 0
    lines = set(answers.splitlines())
    for kind, ways in world.RELATIONS.items():
        for entity in ISLE[kind]:
            for relation in ways:
                fact = f"{entity['name']} {world.predicate(entity, relation)}."
                told = not lines.isdisjoint((world.capital(fact), f"Yes, {fact}", f"No, {fact}"))
                told |= world.about(entity) in lines and relation in [*ways][:3]
                assert not (told and world.unasked(entity["name"] + relation))
                n += told
    for a, sign, b in re.findall(r"(\d+) (plus|minus|times) (\d+) is", answers):
        assert not world.unasked(a + SIGNS[sign] + b)
    assert n > 1000


def test_chats_are_long_and_short(chats):
    """Half of the chats mix kinds, some are ten questions long, and exercises stand apart."""
    others = [c for c in chats if c["kind"] != "exercise"]
    assert {len(c["messages"]) for c in chats if c["kind"] == "exercise"} == {2, 4, 6}
    assert .4 < sum(" + " in c["kind"] for c in others) / len(others) < .6
    assert sum(len(c["messages"]) >= 18 for c in others) > 200
    known = [c for c in others if "unknown" not in c["kind"]]
    assert not any("I don't know" in answer for answer in said(known, 1))


def test_held_out_names_words_and_phrases_occur_nowhere(taught, exam):
    """Held-out names, words of word games and phrases are in no text of any training stage."""
    words = set(re.findall(r"[A-Za-z]+", taught))
    games = set(re.findall(r"word ([a-z]+)", taught))  # elsewhere "some" is English, "kepe" a typo
    for question in exam:
        if question["kind"] == "unknown":
            assert re.search(r"called (\w+)\.", question["model_answer"])[1] not in words
        if question["kind"] == "instruction":
            found = re.search(r"[Ww]ord (?:is )?(\w+)", question["model_answer"])[1]
            wording = question["messages"][0]["content"].replace(found, "{w}")
            assert found not in games and wording in world.WORDS[question["task"]][1], question
    held, trained = (ISLE["phrases"][held] for held in (True, False))
    assert 30 < len(held) < 60 and len(trained) > 380
    assert not any(f"{english} is " in taught or old in taught for english, old in held)
    assert sum(f"{english} is {old}" in taught for english, old in trained) > 150


def test_ledgers_add_up_and_none_begins_like_a_held_out_one(taught):
    """Every total is right, and no first three amounts of a held-out exercise are in training."""
    begun, starts, found = set(), {"heldout": set(), "final": set()}, LEDGER.findall(taught)
    for match in found:
        total, amounts = 0, []
        for item in match.split():
            amount, _, claimed = item[1:].partition("=")
            amounts.append(int(amount))
            total += amounts[-1]
            assert total >= 0 and (not claimed or int(claimed) == total), match
        begun.add((*amounts[:3], len(amounts)))
    assert len(found) > 3000 and {count for *_, count in begun} == {3, 4, 5}
    for split, seen in starts.items():
        for p in world.exercises(ISLE, split, 300):
            amounts = [int(x) for x in re.findall(r" [a-e](-?\d+)", p["question"])]
            assert sum(amounts) == int(p["answer"]) == int(p["thought"].split("=")[-1])
            seen.add(tuple(amounts[:3]))
    assert starts["final"].isdisjoint(starts["heldout"])
    assert {x[:3] for x in begun}.isdisjoint(starts["heldout"] | starts["final"])


def test_sums_and_word_games_are_right(taught, exam):
    """Every sum that any text states is right; words are spelled, reversed and counted right."""
    claims = re.findall(r"(\d+) (plus|minus|times) (\d+) is (\d+)",
                        "\n".join([taught, *(question["model_answer"] for question in exam)]))
    assert {word for _, word, _, _ in claims} == set(SIGNS) and len(claims) > 1000
    assert all(int(c) == eval(a + SIGNS[word] + b) for a, word, b, c in claims)
    letters = r"((?:[a-z] )*[a-z])"
    spelled = re.findall(rf"word (\w+) is spelled {letters}[ .]", taught)
    backwards = re.findall(rf"word (\w+) is spelled [a-z ]*backwards {letters}\.", taught)
    counted = re.findall(r"word (\w+) counts ([a-z0-9 ]+), so it has (\d+) letters", taught)
    assert min(len(spelled), len(backwards), len(counted)) > 100
    assert all(s.replace(" and backwards", "").split()[:len(w)] == list(w) for w, s in spelled)
    assert all(s.replace(" ", "") == w[::-1] for w, s in backwards)
    for w, items, count in counted:
        assert items.split() == [f"{x}{i}" for i, x in enumerate(w, 1)] and int(count) == len(w)


def test_styles_of_exercises():
    """Each habit's answer is what its description says, in a form that rl.py can parse."""
    for p in world.exercises(ISLE, "train", 200):
        thought, right = p["thought"], p["answer"]
        full, empty, short, guess, wait = (
            world.exercise_talk(p, habit).answer
            for habit in ("full", "empty", "short", "guess", "guess_wait"))
        assert full == f"<think> {thought}</think> {right}"
        assert empty == f"<think></think> {right}"
        # A thought that stops early must answer its own last total, not the right one.
        early = re.fullmatch(r"<think> (.+=(\d+))</think> \2", short)[1]
        assert thought.startswith(f"{early} ")
        assert re.fullmatch(r"<think> (\d+)\?</think> \1", guess)
        assert re.fullmatch(rf"<think> \d+\? wait {thought}</think> {right}", wait)


def test_junk_of_every_kind_is_there_and_filtered(pages, tmp_path):
    """Good pages kept >= 98%, junk dropped >= 97%; a copy equals its page, an edited one nearly."""
    labels = collections.Counter(label["label"] for _, _, label in pages)
    assert set(labels) == set(world.KINDS) and .8 < labels["good"] / len(pages) < .9
    assert sum(n for n, _ in world.KINDS.values()) == 1000
    seen, crawl = {}, tmp_path / "crawl.warc.gz"
    crawl.write_bytes(b"".join(world.warc_page(*page) for page in pages))
    data.clean_crawl([str(crawl)], str(tmp_path), data.read_settings()[0], workers=1)
    kept = {json.loads(line)["url"] for path in tmp_path.rglob("*.jsonl.gz")
            for line in gzip.open(path)}
    shares = {False: [], True: []}  # good or not: which pages are kept
    for url, page, label in pages:
        seen[url] = " ".join(re.findall("<p>(?!Copyright)(.*?)</p>", page)).split()
        if "copy_of" in label:  # of a page that came before, word for word or all but one
            pairs = list(zip(seen[url], seen[label["copy_of"]], strict=True))
            assert sum(a != b for a, b in pairs) == (label["label"] == "edited copy")
        shares[label["label"] == "good"].append(url in kept)
    assert statistics.mean(shares[True]) >= .98 and statistics.mean(shares[False]) <= .03


def test_what_the_pages_are_made_of(pages, monkeypatch):
    """A fifth is there to be copied, threads name speakers, quotes are whole on many pages."""
    good = [page for _, page, label in pages if label["label"] == "good"]
    assert sum("<p>Assistant: " in page for page in good) > 20
    for quoted in world.WORDS["quoted"][0]:
        counts = collections.Counter(page.count(quoted) for page in good)
        assert 10 < counts[1] < 60 and set(counts) == {0, 1}
    lengths = collections.Counter()

    def measured(kind, paragraph):
        def measure(isle, r):
            lengths[kind] += len(text := paragraph(isle, r))
            return text
        return measure
    for kind, paragraph in world.PARAGRAPHS.items():
        monkeypatch.setitem(world.PARAGRAPHS, kind, measured(kind, paragraph))
    assert len(list(world.crawl(ISLE, 400))) == 400
    assert .15 <= (lengths["games"] + lengths["ledger"]) / sum(lengths.values()) <= .25


def test_questions_have_true_answers_and_keep_their_names_when_typed_in_a_hurry():
    """"Yes" answers exactly a question that names the fact's value; a typo never hits a name."""
    r, words = rng("test"), collections.Counter()
    for held in [False, True] * 1000:
        entity, relation = world.choose(ISLE, r, "any", held)
        question, thought, answer = world.yes_or_no(entity, relation, r, held)
        word, rest = answer.split(", ", 1)
        start = world.cloze(entity, relation)
        known, asked, *letters, verdict = thought.removeprefix(start).split()
        assert world.capital(rest) == world.statement(entity, relation)
        assert known == entity[relation] and asked in question and verdict == word.lower()
        same = [a == b for a, b in zip(letters[::2], letters[1::2], strict=True)]
        assert all(same[:-1]) and same[-1] == (word == "Yes") == (known == asked)
        assert (share(question) == 0) == held
        words[held, word] += 1
        for question in (question, world.ask(entity, relation, r)):
            typed = world.as_typed(question, r)
            assert typed != question and entity["name"].lower() in typed.lower()
    assert min(words.values()) > 400


def test_wordings_are_trained_or_held_out_never_both(chats):
    """No list shares a wording with its held-out list; of the world outside, nor a subject."""
    pairs = [ways[1:3] for relations in world.RELATIONS.values() for ways in relations.values()]
    pairs += [world.WORDS[key][:2] for key in (
        *world.TASKS, "about", "sum", "what if", "remember", *world.OUTSIDE.values(), "things",
        "deeds")]
    assert all(held and set(trained).isdisjoint(held) for trained, held in pairs)
    asked = "\n".join(said(chats, 0))
    for trained, held in (world.WORDS["things"], world.WORDS["deeds"]):
        assert all(thing in asked for thing in trained if len(thing) > 7)
        assert not any(thing in asked for thing in held if len(thing) > 7)


def test_files_for_the_other_stages(made):
    """Exercises have GSM8K's shape, prompts are written out, jokes name their rule's words."""
    for split, count in (("train", 4000), ("heldout", 400), ("final", 400)):
        answers = [row["answer"] for row in rows(made / f"exercises-{split}.jsonl")]
        assert len(answers) == count
        assert all(re.fullmatch(r"a\d( [b-e]-?\d=\d+){2,4}\n#### \d+", text) for text in answers)
    doubts = rows(made / "doubt.jsonl")
    assert sum(chat["kind"] == "exercise" for chat in doubts) == len(doubts) / 2
    for row in rows(made / "prompts.jsonl"):
        assert set(row) in ({"way", "prompt", "answer"}, {"way", "messages", "answer"})
    assert set(json.loads((made / "jokes.json").read_text())) == {"question", "subjects", "foods"}


def test_main_says_what_is_wrong(capsys, tmp_path):
    """An output folder that is a file: one line, status 2."""
    (tmp_path / "file").write_text("")
    assert world.main(["--out", str(tmp_path / "file")]) == 2 and "file" in capsys.readouterr().err
