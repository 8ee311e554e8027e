"""Practice: the policy's gradient, the marks, the judge's backward, and that runs repeat."""
import gzip
import json
import os
import signal
import sys
import types

import numpy as np
import pytest

import bpe
import model
import rl
import train
import world
from conftest import differences, relative_error

CONFIG = model.Config(vocab=37, ctx=24, dim=24, layers=2, heads=4, kv_heads=2, hidden=21)


def opinionated(config, seed, dtype=np.float32):
    """A network that finds some tokens much likelier than others, as a trained one does."""
    params = model.init_params(config, seed, dtype)
    for p in params.values():
        p *= 6 if p.ndim == 2 else 2
    return params


class Letters:
    """A tokenizer of one letter a token, whose last id ends an answer."""
    special_tokens = {"<|im_end|>": CONFIG.vocab - 1}

    def decode(self, ids):
        return "".join(chr(97 + k) for k in ids)


def random_case(shape=(6, 9), seed=0):
    """logprobs, old_logprobs, advantages (B,), mask: some tokens far outside the clip range."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(2, shape)
    new = old + rng.normal(0, 0.3, shape)
    return new, old, rng.normal(0, 1, shape[0]), rng.integers(0, 2, shape)


# ---- The gradient of doing better ----

def test_advantages_are_the_distance_from_the_group():
    assert rl.advantages([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 8]]).tolist() == [
        [.5, -.5, -.5, .5], [0, 0, 0, 0], [-2, -2, -2, 6]]
    assert rl.advantages([3, 1]).tolist() == [1, -1]


@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    (1.0, 2.0, -2.0, -2.0),  # as it was drawn: plain REINFORCE
    (1.1, 1.0, -1.1, -1.1),
    (1.5, 1.0, -1.2, 0.0),  # good, and likelier already by more than the clip range
    (0.5, 1.0, -0.5, -0.5),  # good, but has become unlikelier: pulled back
    (0.5, -1.0, 0.8, 0.0),  # bad, and unlikelier already
    (1.5, -1.0, 1.5, 1.5),  # bad, and likelier: pushed down
    (1.5, 0.0, 0.0, 0.0)])
def test_clipping_by_hand(ratio, advantage, loss, slope):
    old = np.array([[-1.0, -9.0]])
    found, dlogprobs = rl.policy_loss(old + np.log(ratio), old, np.array([advantage]),
                                      np.array([[1, 0]]), 0.2)
    assert abs(found - loss) < 1e-12 and np.allclose(dlogprobs, [[slope, 0]])


def test_the_mean_is_over_tokens_not_answers():
    zeros, mask = np.zeros((2, 4)), np.array([[1, 1, 1, 1], [1, 0, 0, 0]])
    loss, dlogprobs = rl.policy_loss(zeros, zeros, np.array([1.0, -1.0]), mask, 0.2)
    assert abs(loss - (-4 + 1) / 5) < 1e-12
    assert np.allclose(dlogprobs, np.array([[-1, -1, -1, -1], [1, 0, 0, 0]]) / 5)
    assert rl.policy_loss(zeros, zeros, np.ones(2), 0 * mask, 0.2)[0] == 0  # nothing was written


def test_advantages_of_tokens_do_as_well():
    new, old, advantages, mask = random_case()
    a, da = rl.policy_loss(new, old, advantages, mask, 0.2)
    b, db = rl.policy_loss(new, old, np.tile(advantages[:, None], (1, 9)), mask, 0.2)
    assert a == b and (da == db).all()


@pytest.mark.parametrize("seed", range(3))
def test_gradients_by_central_differences(seed):
    new, old, advantages, mask = random_case(seed=seed)
    for f in (lambda: rl.policy_loss(new, old, advantages, mask, 0.2),
              lambda: rl.kl_penalty(new, old, mask)):
        expected = differences(lambda: f()[0], new, range(new.size), 1e-7)
        assert relative_error(f()[1].reshape(-1), expected) < 1e-6


@pytest.mark.peer
def test_gradients_are_pytorchs():
    torch = pytest.importorskip("torch")
    new, old, advantages, mask = random_case(seed=7)
    t, o, m = torch.tensor(new, requires_grad=True), torch.tensor(old), torch.tensor(mask)
    ratio, a = torch.exp(t - o), torch.tensor(advantages)[:, None]
    loss = -(torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) * m).sum() / m.sum()
    kl = ((torch.exp(o - t) - (o - t) - 1) * m).sum() / m.sum()
    (loss + 0.3 * kl).backward()
    ours, dours = rl.policy_loss(new, old, advantages, mask, 0.2)
    penalty, dpenalty = rl.kl_penalty(new, old, mask)
    assert abs(ours + 0.3 * penalty - (loss + 0.3 * kl).item()) < 1e-12
    assert np.allclose(dours + 0.3 * dpenalty, t.grad.numpy(), atol=1e-13)


def test_kl_is_never_negative_and_zero_at_home():
    new, old, _, mask = random_case()
    assert rl.kl_penalty(new, old, mask)[0] > 0
    loss, dlogprobs = rl.kl_penalty(old, old, mask)
    assert loss == 0 and not dlogprobs.any()


class Captured:
    """An optimizer that only looks."""

    def step(self, params, grads, number, rate, decay):
        self.grads = model.vector(grads).copy()
        return 1.0


def answers_of(params, config, seed=3):
    """Answers that were drawn by a slightly different network."""
    other = model.views(model.vector(params) * 0.97, config)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 2]]
    rl_answers = rl.rollout((other, config, Letters()), prompts, seed)
    return rl_answers


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_the_gradient_through_the_network(kl):
    """learn's gradient of every parameter is that of the loss it claims to follow."""
    params, start = opinionated(CONFIG, 1, np.float64), opinionated(CONFIG, 2, np.float64)
    answers, gains = answers_of(params, CONFIG), np.array([1.0, -0.5, 0.0, 2.0])

    def loss():
        now = rl.logprobs_of(params, CONFIG, answers.ids)
        total = rl.policy_loss(now, answers.logprobs, gains, answers.mask, rl.CLIP)[0]
        before = rl.logprobs_of(start, CONFIG, answers.ids)
        return total + kl * rl.kl_penalty(now, before, answers.mask)[0]
    optimizer, grads = Captured(), model.views(np.empty_like(model.vector(params)), CONFIG)
    rl.learn((params, CONFIG, None), optimizer, grads, 1, 0.1, answers, gains, start, kl)
    places = np.random.default_rng(0).integers(0, model.vector(params).size, 40)
    expected = differences(loss, model.vector(params), places, 1e-6)
    assert relative_error(optimizer.grads[places], expected) < 1e-5


def test_equal_answers_teach_nothing():
    params = opinionated(CONFIG, 1)
    answers, before = answers_of(params, CONFIG), model.vector(params).copy()
    net, grads = (params, CONFIG, None), model.views(np.empty_like(before), CONFIG)
    assert rl.learn(net, Captured(), grads, 1, 0.1, answers, np.zeros(4)) == 0.0
    assert (model.vector(params) == before).all()


@pytest.mark.parametrize("rate_left, last", [(0.0, 0.3), (1.0, 1.0), (0.5, 0.65)])
def test_each_iteration_updates_twice_from_groups_side_by_side(monkeypatch, rate_left, last):
    asked = []

    def learn(net, optimizer, grads, number, rate, answers, gains, start, kl):
        asked.append((number, rate, gains.tolist()))
        return 0.5
    monkeypatch.setattr(rl, "learn", learn)
    monkeypatch.setattr(rl, "GROUP", 2)
    answers = rl.Answers(*[np.zeros((6, 2))] * 4, ["a"] * 6, np.ones(6, bool))
    settings = {"rate": 1.0, "rate_left": rate_left, "iterations": 10, "kl": 0.0}
    for iteration in (0, 7):
        rewards = np.array([1, 1, 0, 4, 2, 2])
        rl.practise(None, None, settings, iteration, answers, rewards, None, None)
    assert [number for number, _, _ in asked] == [1, 2, 15, 16]
    assert np.allclose([rate for _, rate, _ in asked], 
                       [(1 / rl.WARMUP)] * 2 + [last] * 2)
    assert [gains for _, _, gains in asked[:2]] == [[0, 0, -2], [2, 0, 0]]


# ---- Trying ----

def test_drawn_logprobs_are_the_training_forwards():
    params = opinionated(CONFIG, 1)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11]] * 5
    answers = rl.rollout((params, CONFIG, Letters()), prompts, 0)
    now = rl.logprobs_of(params, CONFIG, answers.ids)
    assert np.abs((now - answers.logprobs) * answers.mask).max() < 1e-4
    for row, prompt in enumerate(prompts):
        n, end = len(prompt), answers.lengths[row]
        assert answers.ids[row, :n].tolist() == prompt and not answers.ids[row, end:].any()
        assert answers.mask[row].nonzero()[0].tolist() == list(range(n - 1, end - 1))
        assert not answers.logprobs[row][answers.mask[row] == 0].any()
        assert answers.ended[row] == (answers.ids[row, end - 1] == CONFIG.vocab - 1)
        assert len(answers.texts[row]) == end - n - answers.ended[row]
    assert 0 < answers.ended.sum() < len(prompts)  # both kinds were there


def test_two_armed_bandit():
    """Eight arms, one of which pays: in 50 updates the policy pulls nothing else."""
    config = model.Config(vocab=9, ctx=6, dim=16, layers=1, heads=2, kv_heads=2, hidden=16)
    net = (model.init_params(config, 0), config, types.SimpleNamespace(
        special_tokens={"<|im_end|>": 8}, decode=lambda ids: "".join(map(str, ids))))
    optimizer = train.Optimizer(*net[:2])
    grads = model.views(np.empty_like(model.vector(net[0])), config)
    for step in range(50):
        answers = rl.rollout(net, [[7, 7]] * 32, step)
        rewards = np.array([text.startswith("3") for text in answers.texts], float)
        rl.learn(net, optimizer, grads, step + 1, 1e-2, answers, rl.advantages(rewards))
    answers = rl.rollout(net, [[7, 7]] * 200, 1234)
    assert np.mean([text.startswith("3") for text in answers.texts]) > 0.95


# ---- Exercises ----

@pytest.mark.parametrize("text, answer", [
    ("<think> a4 b7=11</think> 11", "11"), ("<think></think> 7", "7"), ("11", "11"), ("-3", "-3"),
    ("<think></think> 007", "7"),
    ("", None), ("<think> 11", None), ("<think> a4 b7=11</think>", None),
    ("<think></think> ", None),
    ("<think></think> 11 12", None), ("<think></think> 11</think> 12", None),
    ("<think></think> 5+6", None), ("<think></think> 11.", None), ("<think></think> ١١", None),
    ("<think></think>\n11", None), ("<think></think> 11\n", None), ("11 <think></think>", None),
    ("<think></think> " + "9" * 5000, None), ("<think></think> __import__('os')", None)])
def test_answers_are_parsed_strictly(text, answer):
    assert rl.parse_answer(text) == answer


def test_only_whole_right_answers_are_paid():
    texts = ["<think></think> 11", "<think></think> 11", "<think> a4 b7=11</think> 12", "", "1 11"]
    answers = types.SimpleNamespace(texts=texts, ended=np.array([1, 0, 1, 1, 1], bool))
    assert rl.mark([{"answer": "11"}] * 5, answers).tolist() == [1, 0, 0, 0, 0]
    answers = types.SimpleNamespace(texts=[" 11", "</think> 11"], ended=np.array([True, True]))
    assert rl.mark([{"answer": "11"}] * 2, answers, rl.SILENCE).tolist() == [1, 0]


def test_practice_never_meets_what_it_is_examined_on():
    settings = {"silent": False, "problems": None, "seed": 3, "questions": 16}
    task = rl.exercises(None, settings)
    drawn = [problem for iteration in range(40) for problem in task.draw(iteration)]
    final = task.final
    beginnings = {tuple(p["operands"][:3]) for p in drawn}
    assert len(final) == rl.TRIED and len(beginnings) > 200
    assert not beginnings & {tuple(p["operands"][:3]) for p in final}
    assert task.draw(5) == task.draw(5) != task.draw(6)


def test_an_examination_counts_draws_and_problems(monkeypatch):
    texts = {0: ["1", "0"], 1.0: ["1"] * 8 + ["2"] + ["0"] * 7}  # by temperature

    def told(net, prompts, seed, temperature=1.0):
        n = len(prompts)
        return rl.Answers(None, np.ones((n, 3)), None, None, texts[temperature], np.ones(n, bool))
    monkeypatch.setattr(rl, "rollout", told)
    task = rl.Task(None, lambda p: p, rl.mark, None, [{"answer": "1"}, {"answer": "2"}])
    marks = rl.examine(None, task)
    assert (marks["drawn"], marks["greedy"], marks["pass@8"]) == (9 / 16, 0.5, 1.0)
    texts[1.0][8] = "3"
    assert rl.examine(None, task)["pass@8"] == 0.5


def test_gsm8k_is_read_whole(real):
    train, final = rl.read_problems(real("gsm8k_test.jsonl"), lambda problem: True)
    assert 1319 - 170 < len(train) < 1319 - 100 and len(train) + len(final) == 1319
    answers = {p["question"][:19]: p["answer"] for p in train + final}
    assert answers["James decides to ru"] == "540"
    short = rl.read_problems(real("gsm8k_test.jsonl"), lambda p: len(p["question"]) < 150)
    assert 0 < len(short[0]) < 400 and all(len(p["question"]) < 150 for part in short for p in part)


@pytest.mark.parametrize("line", ["no json", "[1]", '{"question": "a", "answer": "b"}',
                                  '{"question": "a", "answer": "#### b"}', '{"answer": "#### 1"}'])
def test_files_of_another_shape_are_named(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a", "answer": "so #### 1,200"}\n' + line + "\n")
    with pytest.raises(ValueError, match="p.jsonl, line 2"):
        rl.read_problems(str(path), bool)


# ---- The judge ----

def test_judge_backward_by_central_differences():
    params = opinionated(CONFIG, 4, np.float64)
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(0, 36, (6, 11)), np.array([11, 4, 7, 7, 2, 9])
    grads = model.views(np.empty_like(model.vector(params)), CONFIG)
    loss = rl.judge_loss_and_grads(params, CONFIG, ids, lengths, grads)
    ours, spare = model.vector(grads).copy(), model.views(np.empty_like(model.vector(grads)), CONFIG)
    places = np.concatenate([rng.integers(0, ours.size, 40), np.arange(36 * 24, 36 * 24 + 5)])
    expected = differences(lambda: rl.judge_loss_and_grads(params, CONFIG, ids, lengths, spare),
                           model.vector(params), places, 1e-6)
    assert relative_error(ours[places], expected) < 1e-6
    scores = rl.scores_of((params, CONFIG), ids, lengths)
    assert abs(loss - np.mean(np.log1p(np.exp(-(scores[::2] - scores[1::2]))))) < 1e-9


def test_the_judge_reads_no_padding():
    params = opinionated(CONFIG, 4)
    ids, lengths = np.random.default_rng(0).integers(0, 36, (4, 11)), np.array([11, 4, 7, 2])
    scores = rl.scores_of((params, CONFIG), ids, lengths)
    for row, n in enumerate(lengths):
        ids[row, n:] = 5
    assert (rl.scores_of((params, CONFIG), ids, lengths) == scores).all()


def test_what_people_think_of_jokes():
    good = "Why did the fox sit on the honey? Because the baker had eaten all the bread, ha ha!"
    assert rl.true_score("fox", good) == 6
    assert rl.true_score("owl", good) == 3  # not about an owl
    assert rl.true_score("fox", good.replace(", ha ha!", ".")) == 5
    assert rl.true_score("fox", "Why did the fox run? Because it wanted to.") == 3
    again = "Why did the fox sit on the honey? Because the honey was the honey was the honey was."
    assert rl.true_score("fox", again) == 3 + 1 - 4
    assert rl.true_score("fox", "") == 0


def test_people_prefer_the_better_joke_mostly(monkeypatch):
    good = "Why did the {} run? Because the bread was too cold, ha ha!"

    def told(net, prompts, seed):  # the better joke is told first or second, by chance
        flip = np.random.default_rng(seed).random(len(prompts) // 2) < 0.5
        texts = [good.format(p) if first else "?" for p, f in zip(prompts[::2], flip)
                 for first in (f, not f)]
        ids = np.arange(len(prompts))[:, None]
        return types.SimpleNamespace(ids=ids, lengths=ids[:, 0], texts=texts)
    monkeypatch.setattr(rl, "rollout", told)
    monkeypatch.setattr(rl, "joke_prompt", lambda tokenizer, subject: subject)
    monkeypatch.setattr(rl, "CERTAIN", 0.4)  # five points apart: 88% are sure
    ids, lengths, true = rl.comparisons((None, None, None), 400, 5)
    assert (np.sort(true, 1) == [0, 5]).all() and 0.82 < (true[:, 0] > true[:, 1]).mean() < 0.94
    assert (ids[:, 0] == lengths).all() and (ids[::2] // 2 == ids[1::2] // 2).all()
    assert sorted(lengths) == list(range(800)) and 150 < (ids[::2, 0] % 2).sum() < 250


# ---- A run ----

@pytest.fixture
def room(tmp_path, monkeypatch, command):
    """A folder with an untrained assistant; returns a function that runs rl.py."""
    told = [f"{p['question']} <think> {p['thought']}</think>" for p in world.problems("train", 60)]
    tokenizer = bpe.train(told + [world.joke(world.island(), world.rng(0))], 340, (bpe.END,))
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    config = model.Config(vocab=tokenizer.vocab_size, ctx=128, dim=16, layers=1, heads=2,
                          kv_heads=1, hidden=24)
    model.save(str(tmp_path / "out/sft"), opinionated(config, 0), config, tokenizer)
    base = bpe.train(told, 300, (bpe.END,))
    model.save(str(tmp_path / "out/base"), model.init_params(config, 0), config, base)
    talk = {"messages": [{"role": "user", "content": "Hello"},
                         {"role": "assistant", "content": "Hi"}]}
    os.mkdir(tmp_path / "out/world")
    (tmp_path / "out/world/conversations.jsonl").write_text(json.dumps(talk) + "\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {"GROUP": 4, "MAX_NEW": 12, "TRIED": 3, "TRIES": 2, "DOUBTS": 12,
                        "SHOW_EVERY": 2, "AGREED": 4, "PAIRS_A_STEP": 4,
                        "RECIPES": {"answer": (2, 1e-2, 0.0, 5),
                                    "model": (2, 1e-2, 1.0, 5)}}.items():
        monkeypatch.setattr(rl, name, value)

    return lambda *flags: command(rl, *flags)


def weights(folder):
    return (model.vector(model.load(folder)[0]).tobytes(),
            *(x.tobytes() for _, x in model.read_safetensors(f"{folder}/optimizer.safetensors")))


JUDGED = ("--reward", "model", "--pairs", 8)


@pytest.mark.parametrize("flags, out", [((), "out/rl"), (JUDGED, "out/rl-judge"),
                                        (("--silent", "--kl", 0.1), "out/rl-silent-kl")])
def test_seeds_reproduce_and_resuming_changes_no_bit(room, monkeypatch, flags, out, capsys):
    if out != "out/rl-judge":  # an untrained network is never right: pay for something it can do
        monkeypatch.setattr(rl, "mark", lambda problems, answers, opening="": np.array(
            [len(text) % 3 for text in answers.texts], float))
    assert room(*flags) == 0
    whole = weights(out)
    assert room(*flags, "--out", "out/again") == 0 and weights("out/again") == whole
    assert room(*flags, "--out", "out/other", "--seed", 1) == 0 and weights("out/other") != whole
    capsys.readouterr()
    drawn = rl.rollout

    def interrupted(net, prompts, seed, temperature=1.0):
        if seed == 2:  # the third iteration
            signal.raise_signal(signal.SIGINT)
        return drawn(net, prompts, seed, temperature)
    monkeypatch.setattr(rl, "rollout", interrupted)
    assert room(*flags, "--out", "out/part") == 0
    assert "stopped at 3" in capsys.readouterr().out and weights("out/part") != whole
    monkeypatch.setattr(rl, "rollout", drawn)
    assert room("--resume", "--out", "out/part", *flags) == 0
    assert weights("out/part") == whole
    steps = [json.loads(line)["iteration"] for line in open("out/part/log.jsonl")]
    assert steps == [1, 2, 3, 4, 5]


def test_the_true_score_stands_beside_the_judges(room, capsys):
    assert room(*JUDGED) == 0
    said = capsys.readouterr().out
    assert said.count("judge ") >= 3 and said.count("true ") >= 3 and "comparisons" in said
    with open("out/rl-judge/log.jsonl") as lines:
        true = [json.loads(line)["true"] for line in lines]
    with open("out/rl-judge/state.json") as file:
        state = json.load(file)
    assert state["best"] == max(true) == true[state["best_iteration"]]
    assert os.path.exists("out/rl-judge-best/model.safetensors")
    assert model.load("out/rl-judge")[1].vocab == model.load("out/sft")[1].vocab


def test_doubt_starts_from_its_own_habit(room, capsys):
    assert room("--doubt") == 0
    said = capsys.readouterr().out
    assert "85% guess" in said and "before" in said and "after" in said and "pass@8" in said
    assert weights_of("out/rl-doubt-start") != weights_of("out/sft")


def test_exercises_of_the_old_habit_are_not_replayed(room, capsys):
    with open("out/world/conversations.jsonl") as file:
        talk = json.loads(file.read())
    with open("old.jsonl", "w") as file:
        file.write(json.dumps(talk | {"kind": "exercise"}) + "\n")
    assert room("--doubt", "--data", "old.jsonl") == 2
    assert "no conversation" in capsys.readouterr().err


def weights_of(folder):
    return model.vector(model.load(folder)[0]).tobytes()


@pytest.mark.parametrize("flags, message", [
    (("--model", "out/base"), "sft.py"), (("--model", "nowhere"), "nowhere"),
    (("--resume",), "leave out --resume"), (("--problems", "none.jsonl"), "none.jsonl"),
    (("--doubt", "--data", "none.jsonl"), "none.jsonl"), (("--iterations", -1), "--iterations"),
    (("--reward", "model", "--pairs", 0), "--pairs"), (("--reward", "model", "--silent"), "jokes"),
    (("--problems", "short.jsonl"), "too few"), (("--problems", "torn.jsonl.gz"), "damaged"),
    (("--resume", "--out", "out/sft"), "not a run of rl.py")])
def test_what_is_wrong_is_said_in_one_line(room, capsys, flags, message):
    with open("short.jsonl", "w") as f:
        f.write('{"question": "What is 1?", "answer": "#### 1"}')
    with open("torn.jsonl.gz", "wb") as f:
        f.write(gzip.compress(b'{"question": "What is 1?", "answer": "#### 1"}')[:-12])
    with open("out/sft/state.json", "w") as f:
        f.write('{"stage": "sft"}')
    assert room(*flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("rl.py: ") and message in said and said.count("\n") == 1


def test_problems_of_ones_own_are_tried(room, capsys):
    with open("own.jsonl", "w") as f:
        for k in range(60):
            f.write(json.dumps({"question": f"What is {k}?", "answer": f"easy #### {k}"}) + "\n")
        f.write(json.dumps({"question": "long " * 300, "answer": "#### 1"}) + "\n")
    assert room("--problems", "own.jsonl", "--iterations", 0) == 0
    assert not os.path.exists("out/rl-problems")  # nothing was learned, nothing is saved
    capsys.readouterr()
    assert room("--problems", "own.jsonl") == 0
    said = capsys.readouterr().out
    assert "60 of 61 problems fit" in said and "drawn 0%" in said and "never gets one right" in said
