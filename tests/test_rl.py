"""RL: the policy gradient, rollouts, rewards, the reward model's backward, and runs that repeat."""
import json
import os
import signal
import types

import numpy as np
import pytest

import bpe
import checkpoint
import model
import optimizer
import rl
from conftest import differences, relative_error

CONFIG = model.Config(vocab=37, ctx=24, dim=24, layers=2, heads=4, kv_heads=2, hidden=21)


class Letters:
    """A tokenizer of one letter a token, whose last id ends an answer."""
    special_tokens = {"<|im_end|>": CONFIG.vocab - 1}

    def decode(self, ids):
        return "".join(chr(97 + k) for k in ids)


def opinionated(config, seed, dtype=np.float32):
    """A network that finds some tokens much more likely than others, as a trained one does."""
    params = model.init_params(config, seed, dtype)
    for p in params.values():
        p *= 6 if p.ndim == 2 else 2
    return params


def random_case(seed=0):
    """logprobs, old_logprobs, advantages (B,), mask: some tokens far outside the clip range."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(2, (6, 9))
    return (old + rng.normal(0, 0.3, old.shape), old, rng.normal(0, 1, 6),
            rng.integers(0, 2, old.shape))


# ---- The policy gradient ----

def test_the_tables_in_rl_py():
    """Advantages of groups in rows, and the KL penalty of three probabilities."""
    assert rl.advantages([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 8]]).tolist() == [
        [.5, -.5, -.5, .5], [0, 0, 0, 0], [-2, -2, -2, 6]]
    for p, penalty, slope in ((.3, .16, -.67), (.5, 0, 0), (.7, .05, .29)):
        loss, ((found,),) = rl.kl_penalty(np.log([[p]]), np.log([[.5]]), np.ones((1, 1)))
        assert np.allclose((loss, found), (penalty, slope), atol=0.005)


@pytest.mark.parametrize("ratio, advantages, mask, loss, slopes", [
    ([[1.4], [.6], [1.1], [1.1]], [.5, -.5, -.5, .5], np.ones((4, 1)), -0.05,  # the table in rl.py
     [[0], [0], [.55 / 4], [-.55 / 4]]),
    (0.5, [1], [[1, 0]], -0.5, [[-0.5, 0]]),  # good, but has become less likely: pulled back
    (1.5, [-1], [[1, 0]], 1.5, [[1.5, 0]]),  # bad, and more likely: pushed down
    (1, [1, -1], [[1, 1, 1], [1, 0, 0]], (-3 + 1) / 4, np.array([[-1, -1, -1], [1, 0, 0]]) / 4),
    (1, [1], [[0, 0]], 0, [[0, 0]])])  # no token counts
def test_losses_by_hand(ratio, advantages, mask, loss, slopes):
    """A gradient stops outside of the clip range, and only in the direction that the advantage
    wants; the mean is over tokens, not over rollouts."""
    old = np.full(np.shape(mask), -1.0)
    found, dlogprobs = rl.policy_loss(old + np.log(ratio), old, advantages, np.array(mask), 0.2)
    assert abs(found - loss) < 1e-12 and np.allclose(dlogprobs, slopes)


def test_gradients_by_central_differences():
    """dlogprobs of both losses are their slopes."""
    new, old, advantages, mask = random_case()
    for f in (lambda: rl.policy_loss(new, old, advantages, mask, 0.2),
              lambda: rl.kl_penalty(new, old, mask)):
        expected = differences(lambda: f()[0], new, range(new.size), 1e-7)
        assert relative_error(f()[1].reshape(-1), expected) < 1e-6


@pytest.mark.peer
def test_gradients_are_pytorchs():
    """GRPO's loss, clipped and with the KL penalty, and its gradient are those of autograd."""
    torch = pytest.importorskip("torch")
    new, old, advantages, mask = random_case(seed=7)
    before, now, counted = old + 0.1, torch.tensor(new, requires_grad=True), torch.tensor(mask)
    ratio, d = (now - torch.tensor(old)).exp(), torch.tensor(before) - now
    better = torch.tensor(advantages)[:, None]
    theirs = -torch.minimum(ratio * better, ratio.clamp(0.8, 1.2) * better)
    theirs = ((theirs + 0.3 * (d.exp() - d - 1)) * counted).sum() / counted.sum()
    theirs.backward()
    loss, dlogprobs = rl.policy_loss(new, old, advantages, mask, 0.2)
    penalty, dpenalty = rl.kl_penalty(new, before, mask)
    assert abs(loss + 0.3 * penalty - theirs.item()) < 1e-12
    assert np.allclose(dlogprobs + 0.3 * dpenalty, now.grad.numpy(), atol=1e-13)


PROBLEMS = [{"prompt": prompt} for prompt in ([1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 2])]


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_the_gradient_through_the_network(kl):
    """policy_gradient of some rows, for every parameter, is that of the loss it claims to follow.
    The rollouts are of a slightly different network."""
    params, start = opinionated(CONFIG, 1, np.float64), opinionated(CONFIG, 2, np.float64)
    other = model.views(model.vector(params) * 0.97, CONFIG)
    rollouts = rl.rollout((other, CONFIG, Letters()), PROBLEMS, 3)
    rows, advantages = np.array([0, 1, 2]), np.array([1.0, -0.5, 0.0, 2.0])
    ids, mask = rollouts.ids[rows], rollouts.mask[rows]

    def loss():
        now = rl.logprobs_of(params, CONFIG, ids)
        total = rl.policy_loss(now, rollouts.logprobs[rows], advantages[rows], mask,
                               rl.CLIP_RANGE)[0]
        return total + kl * rl.kl_penalty(now, rl.logprobs_of(start, CONFIG, ids), mask)[0]
    grads = rl.policy_gradient(params, CONFIG, rollouts, rows, advantages, kl, start)
    some = np.random.default_rng(0).integers(0, model.vector(params).size, 40)
    expected = differences(loss, model.vector(params), some, 1e-6)
    assert relative_error(model.vector(grads)[some], expected) < 1e-5


@pytest.mark.parametrize("rate_left, last", [(0.0, 0.3), (1.0, 1.0)])
def test_each_iteration_updates_twice_from_whole_groups(monkeypatch, rate_left, last):
    """Updates are numbered through, the rate warms up and falls, groups of two keep their means;
    where all rewards are equal, there is no update."""
    seen, steps = [], []
    monkeypatch.setattr(rl, "policy_gradient", lambda params, config, rollouts, rows, *rest: (
        seen.append((rows.tolist(), rest[0].tolist()))))
    monkeypatch.setattr(rl, "take_step", lambda *args: steps.append(args[-2:]) or 0.5)
    monkeypatch.setattr(rl, "GROUP", 2)
    settings = {"rate": 1.0, "rate_left": rate_left, "iterations": 10, "kl": 0.0}
    for iteration in (1, 8):
        rl.improve((None,) * 3, None, None, np.array([1, 1, 0, 4, 2, 0]), iteration, settings, None)
    assert [step for step, _ in steps] == [1, 2, 15, 16]
    assert np.allclose([rate for _, rate in steps], [1 / rl.WARMUP_ITERATIONS] * 2 + [last] * 2)
    assert seen[:2] == [(rows, [0, 0, -2, 2, 1, -1]) for rows in ([0, 1, 2], [3, 4, 5])]
    assert rl.improve((None,) * 3, None, None, np.ones(6), 9, settings, None) == 0.0
    assert len(steps) == 4


def test_eight_armed_bandit(monkeypatch):
    """Eight arms, one of which pays: in 50 updates the policy pulls nothing else."""
    config = model.Config(vocab=9, ctx=6, dim=16, layers=1, heads=2, kv_heads=2, hidden=16)
    net = (model.init_params(config, 0), config, types.SimpleNamespace(
        special_tokens={"<|im_end|>": 8}, decode=lambda ids: "".join(map(str, ids))))
    averages, arm = optimizer.start(net[0]), [{"prompt": [7, 7]}]
    for step in range(50):
        rollouts = rl.rollout(net, arm, step, times=32)
        rewards = np.array([text.startswith("3") for text in rollouts.texts], float)
        grads = rl.policy_gradient(net[0], config, rollouts, np.arange(32), rl.advantages(rewards))
        rl.take_step(net[0], grads, averages, config, "step", step + 1, 1e-2)
    rollouts = rl.rollout(net, arm, 1234, times=200)
    assert np.mean([text.startswith("3") for text in rollouts.texts]) > 0.95


# ---- Rollouts ----

def test_sampled_logprobs_are_the_training_forwards():
    """Ids, mask, ends and log-probabilities of each row fit each other."""
    params = opinionated(CONFIG, 1)
    rollouts = rl.rollout((params, CONFIG, Letters()), PROBLEMS, 0, times=5)
    now = rl.logprobs_of(params, CONFIG, rollouts.ids)
    assert np.abs((now - rollouts.logprobs) * rollouts.mask).max() < 1e-4
    for row, (problem, end) in enumerate(zip(rollouts.problems, rollouts.lengths)):
        n = len(problem["prompt"])
        assert problem == PROBLEMS[row // 5] and rollouts.ids[row, :n].tolist() == problem["prompt"]
        assert not rollouts.ids[row, end:].any()
        assert rollouts.mask[row].nonzero()[0].tolist() == list(range(n - 1, end - 1))
        assert not rollouts.logprobs[row][rollouts.mask[row] == 0].any()
        assert rollouts.ended[row] == (rollouts.ids[row, end - 1] == CONFIG.vocab - 1)
        assert len(rollouts.texts[row]) == end - n - rollouts.ended[row]
    assert 0 < rollouts.ended.sum() < 20  # both kinds were there


# ---- Exercises ----

@pytest.mark.parametrize("text, answer", [
    ("<think> a4 b7=11</think> 11", "11"), ("<think></think> 007", "7"), ("-3", "-3"), ("", None),
    ("<think> 11", None), ("<think> a4 b7=11</think>", None), ("<think></think> 11 12", None),
    ("<think></think> 11</think> 12", None), ("<think></think> 11.", None),
    ("<think></think> ١١", None), ("<think></think> 11\n", None), ("11 <think></think>", None),
    ("<think></think> " + "9" * 5000, None)])
def test_answers_are_parsed_strictly(text, answer):
    """A thought, if any, and one number are an answer; whatever could smuggle in more is none."""
    assert rl.parse_answer(text) == answer


def rollouts_of(problems, texts):
    """Rollouts of which only problems and texts count; a text without its end has a "~"."""
    ended = np.array(["~" not in text for text in texts])
    return rl.Rollouts(problems, None, np.ones((len(texts), 3)), None, None,
                       [text.rstrip("~") for text in texts], ended)


def test_only_whole_right_answers_are_rewarded():
    """An answer that was cut off earns nothing, nor does a wrong one; the opening counts as its."""
    free = ["<think></think> 11", "<think></think> 11~", "<think> a4 b7=11</think> 12", "", "1 11"]
    silent = [" 11", "</think> 11", "<think> b7=11</think> 11"]
    for opening, texts in (("", free), (rl.SILENCE, silent)):
        problem = {"answer": "11", "opening": opening}
        rewards = rl.reward_exercises(rollouts_of([problem] * len(texts), texts))
        assert rewards.tolist() == [1] + [0] * (len(texts) - 1)


def test_an_evaluation_counts_rollouts_and_problems(monkeypatch):
    """9 of 16 sampled answers right, 1 of 2 greedy ones, and pass@8 over two problems."""
    texts = {0: ["1", "0"], 1.0: ["1"] * 8 + ["2"] + ["0"] * 7}  # by temperature
    monkeypatch.setattr(rl, "rollout", lambda net, problems, seed, times=1, temperature=1.0: (
        rollouts_of(np.repeat(problems, times), texts[temperature])))
    problems = [{"opening": "", "answer": answer} for answer in "12"]
    found = rl.evaluate(None, problems)
    assert (found["sampled"], found["greedy"], found["pass@8"]) == (9 / 16, 0.5, 1.0)
    texts[1.0][8] = "3"
    assert rl.evaluate(None, problems)["pass@8"] == 0.5


def bytes_net(ctx):
    """A net of which only the tokenizer, bytes with chat tokens, and the context count."""
    tokenizer = bpe.train(["a"], 256, ())
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    return None, model.Config(vocab=tokenizer.vocab_size, ctx=ctx), tokenizer


def test_gsm8k_is_read_whole(real):
    """All of GSM8K's answers are numbers to us; a tenth is held out; what is too long, left out."""
    settings = {"silent": False, "problems": real("gsm8k_test.jsonl"), "final": None}
    train, final = rl.open_exercises(bytes_net(4096), settings)
    assert 1319 - 170 < len(train) < 1319 - 100 and len(train) + len(final) == 1319
    answers = {p["question"][:19]: p["answer"] for p in train + final}
    assert answers["James decides to ru"] == "540"
    short, final = rl.open_exercises(bytes_net(256), settings)
    assert 0 < len(short) < 500 and all(len(p["question"]) < 200 for p in short + final)


@pytest.mark.parametrize("line", ["no json", "[1]", '{"question": "a", "answer": "b"}',
                                  '{"question": "a", "answer": "#### b"}', '{"answer": "#### 1"}',
                                  '{"question": 3, "answer": "#### 1"}'])
def test_files_of_another_shape_are_named(tmp_path, line):
    """The file and the line are named; blank lines before it are no mistake."""
    path, good = tmp_path / "p.jsonl", '{"question": "a", "answer": "so #### 1,200"}\n\n  \n'
    path.write_text(good)
    problem, = rl.read_problems(str(path), bytes_net(256), "")
    assert problem["answer"] == "1200"
    path.write_text(good + line + "\n")
    with pytest.raises(ValueError, match="p.jsonl, line 4"):
        rl.read_problems(str(path), bytes_net(256), "")


# ---- The reward model ----

def test_reward_model_backward_by_central_differences(monkeypatch):
    """The gradient of the Bradley-Terry loss by every parameter, the head's row among them; scores
    do not depend on padding."""
    params = opinionated(CONFIG, 4, np.float64)
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(0, 36, (6, 11)), np.array([11, 4, 7, 7, 2, 9])
    loss, grads = rl.reward_loss_and_grads(params, CONFIG, ids, lengths)
    ours = model.vector(grads)
    some = np.concatenate([rng.integers(0, ours.size, 40), np.arange(36 * 24, 36 * 24 + 5)])
    expected = differences(lambda: rl.reward_loss_and_grads(params, CONFIG, ids, lengths)[0],
                           model.vector(params), some, 1e-6)
    assert relative_error(ours[some], expected) < 1e-6
    scores = rl.scores_of((params, CONFIG), ids, lengths)
    assert abs(loss - np.mean(np.log1p(np.exp(-(scores[::2] - scores[1::2]))))) < 1e-9
    for row, n in enumerate(lengths):
        ids[row, n:] = 5
    monkeypatch.setattr(model, "MICRO_BATCH", 12_000)  # four rows at a time
    assert np.allclose(rl.scores_of((params, CONFIG), ids, lengths), scores, atol=1e-12)


FOODS = ["honey", "bread", "jam"]
GOOD = "Why did the fox sit on the honey? Because the cook had eaten the bread, ha ha!"


@pytest.mark.parametrize("subject, text, points", [
    ("fox", GOOD, 6), ("fox", GOOD.replace(", ha ha!", "."), 5), ("fox", "", 0),
    ("owl", GOOD, 3),  # not about an owl
    ("fox", "Why did the diver sit on the jam? Because the singer had eat was sle, ha ha!", 2),
    ("fox", "Why did the fox sit on the honey? Because the honey was the honey was the honey was.",
     3 + 1 - 4)])
def test_the_gold_reward_of_a_joke(subject, text, points):
    """Form and subject 3, foods and "ha ha!" 1 each, repetition minus 1 for each three words; the
    first and the last but one are the docstring's examples."""
    joke = {"subject": subject, "foods": FOODS}
    assert rl.gold_rewards(rollouts_of([joke], [text])).tolist() == [points]


def test_people_mostly_prefer_the_better_joke(monkeypatch):
    """Six points apart at a certainty of 1/3, sigmoid(2) = 88% of the comparisons are right; both
    rows of a pair stay together, in either order, with their lengths."""
    better = np.random.default_rng(0).random(400) < 0.5  # whether a pair's first joke is

    def fake(net, problems, seed, times):
        texts = [GOOD if first == better[k] else "" for k in range(400) for first in (True, False)]
        ids = np.arange(800)[:, None]
        return rollouts_of(np.repeat(problems, times), texts)._replace(ids=ids, lengths=ids[:, 0])
    monkeypatch.setattr(rl, "rollout", fake)
    monkeypatch.setattr(rl, "CERTAINTY", 1 / 3)
    ids, lengths = rl.comparisons(None, [{"subject": "fox", "foods": FOODS}], 400, 5)
    assert (ids[:, 0] == lengths).all() and (ids[::2] // 2 == ids[1::2] // 2).all()
    assert sorted(lengths) == list(range(800))
    assert 0.82 < ((lengths[::2] % 2 == 0) == better).mean() < 0.94


# ---- A run ----

def write(path, *rows):
    """A file of JSON lines."""
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an untrained assistant, exercises and jokes."""
    monkeypatch.chdir(tmp_path)
    lines = [{"question": f"Kelmira got pears: a{i} b{j}. How many?",
              "answer": f"a{i} b{j}={i + j}\n#### {i + j}"}
             for i in range(1, 9) for j in range(1, 9)]
    os.makedirs("out/world")
    write("out/world/exercises-train.jsonl", *lines[8:])
    write("out/world/exercises-final.jsonl", *lines[:8])
    write("out/world/jokes.json", {"question": "Tell me a joke about a {subject}.",
                                   "subjects": ["fox", "owl"], "foods": FOODS})
    texts = [line["question"] + line["answer"] for line in lines] + ["Tell me a joke about a fox."]
    tokenizer = bpe.train(texts, 300, (bpe.END,))
    config = model.Config(vocab=tokenizer.vocab_size + len(bpe.CHAT_SPECIALS), ctx=96, dim=16,
                          layers=1, heads=2, kv_heads=1, hidden=24)
    params = opinionated(config, 0)
    checkpoint.save("out/base", params, config, tokenizer)
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    checkpoint.save("out/sft", params, config, tokenizer)
    for recipe in rl.RECIPES.values():
        for name, value in {"questions": 2, "rate": 1e-2, "iterations": 5}.items():
            monkeypatch.setitem(recipe, name, value)
    for name, value in {"GROUP": 4, "MAX_NEW": 12, "EVALUATED": 3, "K": 2, "SAVES": 2,
                        "TEST_PAIRS": 4, "PAIRS_PER_STEP": 4}.items():
        monkeypatch.setattr(rl, name, value)


def run(*flags):
    return rl.main(list(map(str, flags)))


def weights(folder):
    return (model.vector(checkpoint.load(folder)[0]).tobytes(),
            *(x.tobytes() for _, x in
              checkpoint.read_safetensors(f"{folder}/optimizer.safetensors")))


JOKES = ("--reward", "model", "--pairs", 8)


@pytest.mark.parametrize("flags, out", [((), "out/rl"), (JOKES, "out/rl-jokes"),
                                        (("--silent", "--kl", 0.1), "out/rl-silent-kl")])
def test_seeds_reproduce_and_resuming_changes_no_bit(folder, monkeypatch, flags, out, capsys):
    """Another seed gives another run. One that Ctrl-C stopped in its third iteration saves it, and
    ends after --resume in the same bits and a whole log."""
    if out != "out/rl-jokes":  # an untrained network is never right: reward what it can do
        monkeypatch.setattr(rl, "reward_exercises", lambda rollouts: np.array(
            [len(text) % 3 for text in rollouts.texts], float))
    assert run(*flags) == 0
    whole = weights(out)
    assert run(*flags, "--out", "out/other", "--seed", 1) == 0 and weights("out/other") != whole
    capsys.readouterr()
    rollout = rl.rollout

    def interrupted(net, problems, seed, **more):
        if seed == 3:
            signal.raise_signal(signal.SIGINT)
        return rollout(net, problems, seed, **more)
    monkeypatch.setattr(rl, "rollout", interrupted)
    assert run(*flags, "--out", "out/part") == 130
    assert "stopped at step 3" in capsys.readouterr().out and weights("out/part") != whole
    monkeypatch.setattr(rl, "rollout", rollout)
    assert run("--resume", "--out", "out/part") == 0
    assert weights("out/part") == whole
    steps = [json.loads(line)["iteration"] for line in open("out/part/log.jsonl")]
    assert steps == [1, 2, 3, 4, 5]
    assert run("--resume", "--out", "out/part") == 0
    assert "has done its 5" in capsys.readouterr().out


def test_the_best_policy_by_gold_reward_is_kept_beside_the_last(folder, capsys):
    """Under --out DIR/ too, nothing comes into the folder DIR but the checkpoint; the log has the
    gold reward of every iteration, and the policy's vocabulary does not grow."""
    assert run(*JOKES, "--out", "out/jokes/") == 0
    said = capsys.readouterr().out
    assert said.count("reward model ") >= 3 and said.count("gold reward ") >= 3
    gold = [json.loads(line)["gold_reward"] for line in open("out/jokes/log.jsonl")]
    state = json.load(open("out/jokes/state.json"))
    assert state["best"] == max(gold) == gold[state["best_iteration"] - 1]
    assert os.path.exists("out/jokes-best/model.safetensors")
    assert not [name for name in os.listdir("out/jokes") if "best" in name]
    assert checkpoint.load("out/jokes")[1].vocab == checkpoint.load("out/sft")[1].vocab


def test_a_reference_that_changed_is_refused(folder, capsys):
    """--resume compares the reference policy's weights with those that the run began with."""
    assert run(*JOKES) == 0
    state = json.load(open("out/rl-jokes/state.json"))
    del state["checksum"]
    write("out/rl-jokes/state.json", state | {"iteration": 2})
    params, config, tokenizer = checkpoint.open_model("out/sft")
    params["model.norm.weight"][0] += 1
    checkpoint.save("out/sft", params, config, tokenizer)
    assert run("--resume", "--out", "out/rl-jokes") == 2
    assert "out/sft: has changed" in capsys.readouterr().err


@pytest.mark.parametrize("flags, which", [(JOKES, "reward_loss_and_grads"),
                                          (("--kl", 0.1), "loss_and_grads")])
def test_a_gradient_that_is_no_number_stops_the_run(folder, monkeypatch, capsys, flags, which):
    """The parameter is named, and the last save stays as it was."""
    assert run(*flags, "--out", "out/x") == 0
    before, calls, original = weights("out/x"), [], getattr(rl, which)

    def damaged(*args, **kwargs):
        loss, grads = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            grads["model.layers.0.mlp.up_proj.weight"][1, 2] = np.nan
        return loss, grads
    monkeypatch.setattr(rl, which, damaged)
    assert run(*flags, "--out", "out/x") == 2
    assert "model.layers.0.mlp.up_proj.weight" in capsys.readouterr().err
    assert weights("out/x") == before and len(calls) == 2


@pytest.mark.parametrize("flags, message", [
    (("--model", "out/base"), "sft.py"), (("--model", "nowhere"), "nowhere"),
    (("--doubt",), "make rl makes out/sft-doubt"),
    (("--resume",), "leave out --resume"), (("--problems", "none.jsonl"), "none.jsonl"),
    (("--iterations", -1), "--iterations -1"), (("--seed", -1), "--seed -1"),
    (("--kl", "nan"), "--kl nan"), (("--reward", "model", "--pairs", 0), "--pairs 0"),
    (("--reward", "model", "--silent"), "jokes"), (("--problems", "short.jsonl"), "too few"),
    (("--reward", "model", "--problems", "short.jsonl"), "not the jokes"),
    (("--reward", "model"), "out/world/jokes.json"),  # foods must be a list
    (("--out", "out/sft/"), "replace the model"), (("--out", "out"), "out: holds"),
    (("--out", "out/sft", "--resume"), "not a run of rl.py")])
def test_what_is_wrong_is_said_in_one_line(folder, capsys, flags, message):
    """Each mistake ends with status 2 and one sentence that names it."""
    write("short.jsonl", {"question": "What is 1?", "answer": "#### 1"})
    write("out/sft/state.json", {"stage": "sft"})
    write("out/world/jokes.json", {"question": "A {subject}", "subjects": ["fox"], "foods": "figs"})
    assert run(*flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("rl.py: ") and message in said and said.count("\n") == 1


def test_problems_of_ones_own(folder, capsys):
    """Too long ones are counted out; --iterations 0 evaluates and writes nothing; --final names
    what to evaluate on."""
    write("own.jsonl", {"question": "long " * 300, "answer": "#### 1"},
          *({"question": f"What is {k}?", "answer": f"#### {k}"} for k in range(60)))
    assert run("--problems", "own.jsonl", "--iterations", 0) == 0
    said = capsys.readouterr().out
    assert "60 of 61 problems" in said and "sampled 0%" in said and "never right" in said
    assert not os.path.exists("out/rl-problems")
    assert run("--problems", "own.jsonl", "--final", "out/world/exercises-final.jsonl") == 0
    said = capsys.readouterr().out
    assert "8 of 8 problems" in said and os.path.exists("out/rl-problems/config.json")
