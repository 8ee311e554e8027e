"""7. Practice: a network gets better by trying; and how that goes wrong when the judge is learned.

    python rl.py                   learn to think             out/sft/ -> out/rl/
    python rl.py --silent          the same with thoughts forbidden      -> out/rl-silent/
    python rl.py --doubt           learn to question oneself  -> out/rl-doubt-start/, out/rl-doubt/
    python rl.py --reward model    please a learned judge     -> out/rl-judge/, out/rl-judge-best/
    python rl.py --reward model --kl 0.1    the same on a leash   -> out/rl-judge-kl/
    python rl.py --problems gsm8k_test.jsonl --iterations 0    only try problems of your own
    python rl.py --resume          go on where an interrupted run stopped

Until here somebody showed the right answer. Now the network answers each question sixteen times by
itself, something says how good each answer was, and answers better than their group are made
likelier, worse ones less likely. That is all. It needs no new kernel: the gradient is that of the
loss in pretraining, each token weighed by how much better its answer was (its advantage). What a
network says is now what it does, so in this trade it is called a policy.

On two cores of an AMD EPYC (Zen 4) the first takes 46 s. Drawn at temperature 1, 29% of the answers
are right before and 90% after (the worst of three seeds); 43% think before, all do after; silent
practice stays under 12%. pass@8, whether any of eight answers is right, goes from 90% to 96%:
little was taught that was not there, but it became a habit. log.jsonl has each iteration's figures,
state.json those before and after.

Sources: REINFORCE (Williams 1992); the clipped ratio (Schulman et al. 2017, "PPO"); the group as
its own yardstick instead of a second network that predicts rewards (GRPO, in Shao et al. 2024,
"DeepSeekMath"). Left out of GRPO: dividing advantages by the group's standard deviation, which
makes most of problems that nearly always or never work, and dividing by each answer's length, which
makes long wrong answers cheap (both: Liu et al. 2025, "Dr. GRPO"); our mean is over all tokens (Yu
et al. 2025, "DAPO"). The penalty on moving away from the start (KL) is off unless --kl says how
dear it is: a checked answer can't be fooled, and how a judge is fooled is to be seen.
Learned judges: Christiano et al. 2017, Ouyang et al. 2022; what becomes of them: Gao et al. 2023.
Left out: tools, conversations of several turns, sampling while learning.
"""
import argparse
import json
import math
import os
import re
import signal
import sys
import time
from typing import NamedTuple

import numpy as np

import world
from bpe import render_chat
from kernels import rmsnorm, rmsnorm_backward
from model import (Buffers, flat, head, loss_and_grads, save, token_losses, trunk, trunk_backward,
                   views)
from sample import open_model, paint, stream
from sft import grow, read_conversations, read_lines, to_arrays
from train import Log, Optimizer, duration, keep, learning_rate, reopen

GROUP = 16  # answers to one question
CLIP = 0.2  # by how much a token's probability changes before its gradient stops (PPO's)
UPDATES = 2  # of the network per iteration, each by its own half of the answers
MAX_NEW = 56  # tokens of an answer; the longest right one has 44
WARMUP = 5  # iterations in which the learning rate rises
# Reward: (questions an iteration, learning rate, what is left of it at the end, iterations). Where
# answers are checked it falls to 0, and the network settles. For a judge it stays: whoever trusts
# the judge sees nothing but its score rising, and has no reason to stop.
RECIPES = {"answer": (16, 3e-4, 0.0, 40), "model": (8, 5e-4, 1.0, 70)}
SHOW_EVERY = 5  # iterations between samples and saves
TRIED, TRIES = 200, 8  # problems, and drawn answers to each, in an examination
SEEDS = 100_000  # random numbers of a run come from its seed times this, plus the iteration
SILENCE = "<think></think>"  # what a forbidden thought looks like


# ---- 1. The gradient of doing better ----
# An iteration draws answers with the network as it is, then updates it twice, by half of them each.
# At the first update the ratio p_now / p_drawn is 1 (but for rounding), and clipping does nothing.
# At the second the network has moved already, so its answers are a little out of date; the ratio
# says by how much, and clipping keeps the step from going by them too far. That is all it is for.

def advantages(rewards):
    """How much better than its group each answer did: rewards (...,GROUP) less the rows' means.

    If all answers are equally good nothing can be learned, and the advantages are 0."""
    rewards = np.asarray(rewards, np.float64)
    return rewards - rewards.mean(axis=-1, keepdims=True)


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """(loss, dlogprobs (B,T)) from the log-probabilities (B,T) of the tokens now and when they were
    drawn; advantages (B,) or (B,T); mask (B,T), 1 on what the network wrote.

    loss = -mean of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), ratio = p_now / p_drawn.
    Its gradient is -A ratio / (number of tokens), since d ratio = ratio d log p; where the ratio
    has left the clip range in the direction that A wants, the second term is the smaller one, is
    constant, and the token has had its share."""
    advantages = np.asarray(advantages)
    if advantages.ndim < np.ndim(logprobs):
        advantages = advantages[..., None]  # every token of an answer earns what the answer did
    ratio = np.exp(logprobs - old_logprobs)
    gain, clipped = ratio * advantages, np.clip(ratio, 1 - clip, 1 + clip) * advantages
    weights = mask / max(np.sum(mask), 1)
    loss = -np.sum(np.minimum(gain, clipped) * weights)
    return float(loss), np.where(gain <= clipped, -gain, 0) * weights


def kl_penalty(logprobs, start_logprobs, mask):
    """(loss, dlogprobs) of the distance from where practice began: the mean of e^d - d - 1 with
    d = log p_start - log p, an estimate of the KL divergence that is never negative (Schulman's k3,
    GRPO's equation 4). Its slope 1 - e^d pulls p back to p_start from either side."""
    gap, weights = start_logprobs - logprobs, mask / max(np.sum(mask), 1)
    return float(np.sum((np.exp(gap) - gap - 1) * weights)), (1 - np.exp(gap)) * weights


def learn(net, optimizer, grads, number, rate, answers, gains, start=None, kl=0.0):
    """One update from answers with advantages gains (B,). Returns the gradient's length.

    The bridge to the network: the loss of pretraining sums w (-log p), so its gradient is that of
    our loss if w = -d loss/d log p. A good answer's tokens get weights above 0, as if it stood in a
    textbook; a bad one's get weights below 0. Answers without a gradient are not worth a pass."""
    params, config, _ = net
    busy = np.ones(len(gains), bool) if kl else gains != 0
    if not busy.any():
        return 0.0
    ids, mask, drawn = answers.ids[busy], answers.mask[busy], answers.logprobs[busy]
    now = logprobs_of(params, config, ids)
    _, dlogprobs = policy_loss(now, drawn, gains[busy], mask, CLIP)
    if kl:
        dlogprobs += kl * kl_penalty(now, logprobs_of(start, config, ids), mask)[1]
    dlogprobs *= mask.sum() / answers.mask.sum()  # the mean is over all answers, idle ones too
    loss_and_grads(params, config, ids[:, :-1], ids[:, 1:], grads=grads, weights=-dlogprobs)
    norm = optimizer.step(params, grads, number, rate, decay=0.0)
    if not math.isfinite(norm):
        raise ValueError(f"update {number}: the gradient is {norm}; the folder keeps the last save")
    return norm


# ---- 2. Trying ----

class Answers(NamedTuple):
    """B answers, each behind its prompt. Token t + 1 of ids is the target of place t elsewhere."""
    ids: np.ndarray  # (B,T+1)
    mask: np.ndarray  # (B,T) 1 where the target was written by the network
    logprobs: np.ndarray  # (B,T) of those targets when they were drawn
    lengths: np.ndarray  # (B,) of prompt and answer
    texts: list  # of the answers
    ended: np.ndarray  # (B,) False where the answer was cut off

    def part(self, rows):
        return Answers(self.ids[rows], self.mask[rows], self.logprobs[rows], self.lengths[rows],
                       [self.texts[row] for row in rows], self.ended[rows])


def rollout(net, prompts, seed, temperature=1.0):
    """Answers to prompts, lists of ids: all at once, and whoever has finished leaves the batch."""
    params, config, tokenizer = net
    stop, B = tokenizer.special_tokens["<|im_end|>"], len(prompts)
    begins = np.array([len(prompt) for prompt in prompts])
    ends = begins.copy()
    ids = np.zeros((B, begins.max() + MAX_NEW), np.int64)
    for row, prompt in zip(ids, prompts):
        row[:len(prompt)] = prompt
    mask, logprobs = np.zeros((2, B, ids.shape[1] - 1))
    for rows, tokens, token_logprobs, _ in stream(params, config, prompts, MAX_NEW, temperature,
                                                  seed=seed, stop=[stop]):
        ids[rows, ends[rows]] = tokens
        mask[rows, ends[rows] - 1] = 1
        logprobs[rows, ends[rows] - 1] = token_logprobs
        ends[rows] += 1
    ended = ids[np.arange(B), ends - 1] == stop
    texts = [tokenizer.decode(row[i:j].tolist()) for row, i, j in zip(ids, begins, ends - ended)]
    T = ends.max() - 1
    return Answers(ids[:, :T + 1], mask[:, :T], logprobs[:, :T], ends, texts, ended)


def logprobs_of(params, config, ids):
    """Log-probabilities (B,T) of the tokens ids[:, 1:], in nats."""
    return -token_losses(params, config, ids[:, :-1], ids[:, 1:]).astype(np.float64)


def ask(tokenizer, text, opening=""):
    """The ids of a question, and of how the answer is made to begin."""
    ids, _ = render_chat(tokenizer, [{"role": "user", "content": text}], open_answer=True)
    return ids + list(tokenizer.encode(opening))


class Task(NamedTuple):
    """What practice needs to know of its subject; items are what one can be asked about."""
    draw: object  # iteration -> items
    prompt: object  # item -> ids
    reward: object  # items, Answers -> rewards (B,)
    report: object  # items, Answers, rewards -> {what: number}, for people
    final: list  # items to examine with, which no stage has seen


# ---- 3. Exercises: answers that can be checked ----

# The whole answer must be this: a thought, if any, and one number. No other text, so that a second
# number can't be smuggled in; few digits, so that int() is quick; parsed, never evaluated.
ANSWER = re.compile(r"(?:<think>[^<]*</think> )?(-?[0-9]{1,12})")


def parse_answer(text):
    """The number that an answer comes to, as text without leading zeros, or None."""
    match = ANSWER.fullmatch(text)
    return str(int(match[1])) if match else None


def mark(problems, answers, opening=""):
    """Rewards (B,): 1 for the right number in an answer that came to its end, otherwise 0. Nothing
    is paid for good form: what is paid for is what one gets."""
    marks = [ended and parse_answer(opening + text) == problem["answer"]
             for problem, text, ended in zip(problems, answers.texts, answers.ended)]
    return np.array(marks, np.float64)


def habits(answers):
    """Shares of answers that calculate in their thought and that say "wait"; tokens an answer."""
    return {"thinks": float(np.mean(["=" in text for text in answers.texts])),
            "waits": float(np.mean(["wait" in text for text in answers.texts])),
            "tokens": float(answers.mask.sum(1).mean())}


def exercises(net, settings):
    """The Task of solving world.py's exercises, or those of a file."""
    opening = SILENCE if settings["silent"] else ""

    def prompt(problem):
        return ask(net[2], problem["question"], opening)
    if settings["problems"]:
        own, final = read_problems(settings["problems"],
                                   lambda problem: len(prompt(problem)) + MAX_NEW <= net[1].ctx)
    else:
        own, final = None, world.problems("final", TRIED)

    def draw(iteration):
        seed = f"{settings['seed']} practice {iteration}"
        if own:
            return world.rng(seed).choices(own, k=settings["questions"])
        return world.problems("train", settings["questions"], seed)

    def report(problems, answers, rewards):
        return {"right": float(rewards.mean())} | habits(answers)
    return Task(draw, prompt, lambda problems, answers: mark(problems, answers, opening), report,
                final)


def examine(net, task):
    """How a network does at the final problems, drawing by the same random numbers in every run:
    the share of answers that are right when drawn at temperature 1 (pass@1) and greedily, and of
    problems that any of TRIES draws solves (pass@8); habits of the drawn ones."""
    problems = task.final
    prompts = [task.prompt(problem) for problem in problems]
    greedy = rollout(net, prompts, 0, temperature=0)
    repeated = [problem for problem in problems for _ in range(TRIES)]
    drawn = rollout(net, [prompt for prompt in prompts for _ in range(TRIES)], SEEDS - 3)
    right = task.reward(repeated, drawn).reshape(-1, TRIES)
    return {"drawn": float(right.mean()), "greedy": float(task.reward(problems, greedy).mean()),
            "pass@8": float(right.any(1).mean())} | habits(drawn)


def read_problems(path, fits):
    """(to practise on, to examine with) from a file in GSM8K's shape, {"question", "answer": "...
    #### 18"} a line. One in ten is held out, as everywhere by a checksum; fits: problem -> bool."""
    problems = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            entry = json.loads(line)
            answer = entry["answer"].split("####")[1].replace(",", "").strip()
            problems.append({"question": entry["question"], "answer": str(int(answer))})
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f'{path}, line {number}: not {{"question", "answer": "... #### '
                             f'NUMBER"}}, but {line.strip():.60}') from None
    short = [problem for problem in problems if fits(problem)]
    held = [world.side(problem["question"]) == 0 for problem in short]
    print(f"{path}: {len(short)} of {len(problems)} problems fit into the context with an answer, "
          f"{sum(held)} of them are held out")
    if all(held) or not any(held):
        raise ValueError(f"{path}: too few problems fit; train.py --ctx lets a network read more")
    return ([problem for problem, out in zip(short, held) if not out],
            [problem for problem, out in zip(short, held) if out][:TRIED])


# ---- 4. Another habit to begin with ----
# Practice makes likelier what happens now and then; what never happens it can't reward. In sft.py's
# worked exercises some answers think (world.HABITS), so the assistant does that now and then. To
# watch something else being discovered, --doubt first exchanges this habit: it guesses, and in one
# answer of seven it says "wait", throws the guess away and calculates.

DOUBT = {"guess": 85, "guess_wait": 15}  # % of each style (world.exercise_conversation)
DOUBTS, REPLAYED = 4000, 4000  # examples of it, and old conversations, lest they be forgotten
DOUBT_ROWS = 32  # examples a step
DOUBT_RATE = 5e-4  # highest learning rate: half of sft.py's, for the same reason


def give_doubt(net, data, seed):
    """Fine-tunes net in place. Returns the last loss."""
    params, config, tokenizer = net
    r = world.rng(seed, "doubt")
    rows, _ = read_conversations(data, tokenizer, config.ctx, leave_out=("exercise",))
    rows = r.sample(rows, min(REPLAYED, len(rows)))
    styles = r.choices(list(DOUBT), DOUBT.values(), k=DOUBTS)
    for problem, style in zip(world.problems("train", DOUBTS, f"{seed} doubt"), styles):
        rows.append(render_chat(tokenizer, world.exercise_conversation(problem, style)["messages"]))
    # Not batched by length as in sft.py: here the long answers are the rare ones, and what came in
    # batches of its own was unlearned between them.
    r.shuffle(rows)
    steps = math.ceil(len(rows) / DOUBT_ROWS)
    optimizer, grads = Optimizer(params, config), views(np.empty_like(flat(params)), config)
    for step in range(steps):
        loss, _ = loss_and_grads(params, config, *to_arrays(rows[step::steps]), grads)
        optimizer.step(params, grads, step + 1, learning_rate(step, steps, DOUBT_RATE), 0.0)
    return loss


# ---- 5. A learned judge ----
# For most of what we want of an assistant there is no checker. So people compare answers, a network
# learns to predict what they prefer, and its score is the reward. People here are a rule and noise,
# hidden from the networks, so that we can always see what the judge's favourites are really worth:
# more at first, and in the end less than before. The judge has seen the jokes that the network told
# in the beginning, and is right about them. Practice leaves them, for where the judge errs upwards:
# "Why did the roofer sit on the roofer sit on the roofer sit on the turnips?", whoever the joke was
# to be about. A checked answer has no such place: its reward is the truth.

PAIRS = 1000  # comparisons that the judge learns from
AGREED = 200  # more, to see how often it is right
PAIRS_A_STEP, JUDGE_RATE = 16, 1e-3  # each comparison is used once; what fills no step, never
CERTAIN = 1.5  # how sure people are of a difference of one point: 82%


def true_score(subject, joke):
    """What people really think of a joke, in points. 3 if it is about the subject and has the form
    of a joke; they laugh at food (1 for each, up to two) and at "ha ha!" (1), and are bored by
    repetition (1 less for any three words in a row said before) and by more than 20 words."""
    words = re.findall("[a-z]+", joke.lower())
    threes = list(zip(words, words[1:], words[2:]))
    form = re.fullmatch(rf"Why did the {subject} [^?]+\? Because [^?]+[.!]", joke)
    return (3.0 * bool(form) + min(2, len(set(world.FOODS) & set(words))) + joke.endswith("ha ha!")
            - (len(threes) - len(set(threes))) - 0.25 * max(0, len(words) - 20))


def comparisons(net, count, seed):
    """ids (2 count,T+1) and lengths of answers in pairs, of which people preferred row 2i to row
    2i + 1, and their true scores (count,2)."""
    rng = np.random.default_rng(seed)
    subjects = rng.choice(world.ANIMALS + world.JOBS, count).repeat(2).tolist()
    answers = rollout(net, [joke_prompt(net[2], subject) for subject in subjects], seed)
    true = np.array([*map(true_score, subjects, answers.texts)]).reshape(-1, 2)
    second = rng.random(count) > 1 / (1 + np.exp(CERTAIN * (true[:, 1] - true[:, 0])))
    # Of rows 2i and 2i + 1 the preferred one first.
    order = (2 * np.arange(count)[:, None] + np.stack([second, ~second], 1)).reshape(-1)
    return answers.ids[order], answers.lengths[order], true.reshape(-1)[order].reshape(-1, 2)


def joke_prompt(tokenizer, subject):
    return ask(tokenizer, f"Tell me a joke about a {subject}.")


def judge_scores(params, config, ids, lengths, buffers):
    """scores (B,), and what the backward needs: the last tokens' x and n (B,C).

    The judge is the same network with a scalar head on the last token, where all of the answer has
    been read. The head is one more row of the vocabulary, a token never written, whose logit is the
    score: so optimizer, files and gradients need nothing new."""
    x = trunk(params, config, ids, buffers).reshape(*ids.shape, config.dim)
    last = x[np.arange(len(ids)), lengths - 1]  # (B,C)
    n = np.empty_like(last)
    rmsnorm(last, params["model.norm.weight"], config.eps, n)
    return n @ head(params, config)[-1], last, n


def judge_loss_and_grads(params, config, ids, lengths, grads):
    """Bradley & Terry 1952: the first of a pair wins with probability sigmoid(s1 - s2).

    loss = mean of -log sigmoid(gap), so d loss/d gap = -sigmoid(-gap) / pairs; the head gets dscore
    n, and what comes back through the last token's norm is all that the trunk gets."""
    buffers = Buffers(config, *ids.shape, flat(params).dtype)
    scores, last, n = judge_scores(params, config, ids, lengths, buffers)
    gap = scores[0::2] - scores[1::2]
    push = 1 / (1 + np.exp(gap)) / len(gap)  # (pairs,)
    dscores = np.stack([-push, push], 1).reshape(-1).astype(n.dtype)  # (B,)
    flat(grads)[:] = 0
    head(grads, config)[-1] = dscores @ n
    dlast = np.zeros_like(last)
    rmsnorm_backward(np.outer(dscores, head(params, config)[-1]), last, params["model.norm.weight"],
                     config.eps, dlast, grads["model.norm.weight"])
    buffers.dx[:] = 0
    buffers.dx.reshape(*ids.shape, config.dim)[np.arange(len(ids)), lengths - 1] = dlast
    trunk_backward(params, grads, config, ids, buffers)
    return float(np.logaddexp(0, -gap).mean())


def train_judge(net, pairs, seed):
    """(params, config) of a judge of net's jokes, that learned from so many comparisons."""
    params, config = grow(net[0], net[1], net[1].vocab + 1)
    head(params, config)[-1] = 0  # no opinion yet
    ids, lengths, _ = comparisons(net, pairs, SEEDS * seed + SEEDS - 1)
    optimizer, grads = Optimizer(params, config), views(np.empty_like(flat(params)), config)
    steps = pairs // PAIRS_A_STEP
    for step in range(steps):
        rows = slice(2 * PAIRS_A_STEP * step, 2 * PAIRS_A_STEP * (step + 1))
        judge_loss_and_grads(params, config, ids[rows], lengths[rows], grads)
        optimizer.step(params, grads, step + 1, learning_rate(step, steps, JUDGE_RATE), 0.0)
    ids, lengths, true = comparisons(net, AGREED, SEEDS * seed + SEEDS - 2)
    scores = scores_of((params, config), ids, lengths).reshape(-1, 2)
    agrees, truly = scores[:, 0] > scores[:, 1], np.sign(true[:, 0] - true[:, 1])
    print(f"the judge learned from {pairs} comparisons; of {AGREED} others it predicts "
          f"{agrees.mean():.0%}; it prefers what is truly better in "
          f"{np.sum(truly == 2 * agrees - 1) / max(1, np.count_nonzero(truly)):.0%}", flush=True)
    return params, config


def scores_of(judge, ids, lengths):
    params, config = judge
    buffers = Buffers(config, *ids.shape, flat(params).dtype, training=False)
    return judge_scores(params, config, ids, lengths, buffers)[0]


def jokes(net, settings):
    """The Task of telling jokes that a judge likes, who learned from jokes of net as it is now."""
    judge = train_judge(net, settings["pairs"], settings["seed"])

    def draw(iteration):
        r = world.rng(settings["seed"], "jokes", iteration)
        return r.choices(world.ANIMALS + world.JOBS, k=settings["questions"])

    def report(subjects, answers, rewards):
        true = np.mean([true_score(*both) for both in zip(subjects, answers.texts)])
        return {"judge": float(rewards.mean()), "true": float(true),
                "tokens": float(answers.mask.sum(1).mean())}
    return Task(draw, lambda subject: joke_prompt(net[2], subject),
                lambda _, answers: scores_of(judge, answers.ids, answers.lengths), report, [])


# ---- 6. The run ----

def tell(settings):
    return "rl.py | " + " | ".join(f"{key} {value}" for key, value in settings.items())


def begin(a):
    """settings, net, optimizer, start and state: a new run, or the one to resume. start is the same
    network once more, as it was before practice, which changes net in place."""
    if a.resume:
        net, optimizer, state = reopen(a.out, "rl")
        print(tell(state["settings"]) + f" | from iteration {state['iteration']}", flush=True)
        return state["settings"], net, optimizer, open_model(state["settings"]["start"]), state
    if a.iterations is not None and a.iterations < 0 or a.pairs < PAIRS_A_STEP:
        raise ValueError(f"--iterations {a.iterations}, --pairs {a.pairs}: needed are 0 or more, "
                         f"and {PAIRS_A_STEP} or more")
    if a.reward == "model" and (a.silent or a.doubt or a.problems):
        raise ValueError("--silent, --doubt and --problems are about exercises; --reward model "
                         "is about jokes")
    questions, rate, rate_left, iterations = RECIPES[a.reward]
    if a.iterations is not None:
        iterations = a.iterations
    settings = {"start": a.out + "-start" if a.doubt else a.model, "reward": a.reward,
                "silent": a.silent, "problems": a.problems, "kl": a.kl, "pairs": a.pairs,
                "questions": questions, "rate": rate, "rate_left": rate_left,
                "iterations": iterations, "seed": a.seed}
    print(tell(settings), flush=True)
    net = open_model(a.model)
    if "<|im_end|>" not in net[2].special_tokens:
        raise ValueError(f"{a.model} is a base model and can't be asked; python sft.py comes first")
    if a.doubt:
        tick = time.perf_counter()
        loss = give_doubt(net, a.data, a.seed)
        save(settings["start"], *net)
        print(f"fine-tuned on {DOUBTS:,} exercises, " + ", ".join(
            f"{share}% {style}" for style, share in DOUBT.items())
            + f" | loss {loss:.3f} nats | {duration(time.perf_counter() - tick)}", flush=True)
    return settings, net, Optimizer(*net[:2]), open_model(settings["start"]), {"iteration": 0}


def show(numbers):
    """right 43% | tokens 22.10 | ..."""
    shares = ("right", "drawn", "greedy", "pass@8", "thinks", "waits")
    return " | ".join(f"{what} {x:.0%}" if what in shares else f"{what} {x:.2f}"
                      for what, x in numbers.items())


def practise(net, optimizer, settings, iteration, answers, rewards, start, grads):
    """What is learned from one iteration's answers. Returns the last gradient's length."""
    gains = advantages(rewards.reshape(-1, GROUP)).reshape(-1)
    done = iteration / settings["iterations"]
    rate = settings["rate"] * min(1, (iteration + 1) / WARMUP)
    rate *= 1 - done + done * settings["rate_left"]
    for update, rows in enumerate(np.array_split(np.arange(len(gains)), UPDATES)):
        norm = learn(net, optimizer, grads, iteration * UPDATES + update + 1, rate,
                     answers.part(rows), gains[rows], start, settings["kl"])
    return norm


def run(a):
    settings, net, optimizer, start, state = begin(a)
    checked, iterations = settings["reward"] == "answer", settings["iterations"]
    task = exercises(net, settings) if checked else jokes(start, settings)
    if checked and "before" not in state:
        state["before"] = examine(net, task)
        print(f"before, on {len(task.final)} problems never seen | {show(state['before'])}",
              flush=True)
        if not state["before"]["pass@8"]:
            print("it never gets one right: there is nothing that practice could make likelier")
    if not iterations:
        return
    log = Log(os.path.join(a.out, "log.jsonl"), fresh=not a.resume)
    grads, stop, tick = views(np.empty_like(flat(net[0])), net[1]), [], time.perf_counter()
    iteration = begun = state["iteration"]
    old_handler = signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    while iteration < iterations and not stop:
        items = [item for item in task.draw(iteration) for _ in range(GROUP)]
        answers = rollout(net, [task.prompt(item) for item in items],
                          SEEDS * settings["seed"] + iteration)
        rewards = task.reward(items, answers)
        numbers = task.report(items, answers, rewards)
        if not checked and numbers["true"] > state.get("best", -math.inf):
            state |= {"best": numbers["true"], "best_iteration": iteration}
            save(a.out + "-best", *net)  # for whoever would have stopped here
        norm = practise(net, optimizer, settings, iteration, answers, rewards, start[0], grads)
        iteration += 1
        seconds = time.perf_counter() - tick
        shown = iteration % SHOW_EVERY == 0 or iteration in (1, iterations) or stop
        log.show(f"{iteration}/{iterations} | {show(numbers)} | grad {norm:.2f} | "
                 f"{duration(seconds / (iteration - begun) * (iterations - iteration))} left",
                 keep=shown, iteration=iteration, grad_norm=norm, seconds=seconds, **numbers)
        if shown:
            log.show(paint(f"    {answers.texts[0]}", "2"))
            state |= {"iteration": iteration, "settings": settings}
            keep(a.out, "rl", net, optimizer, state)
    signal.signal(signal.SIGINT, old_handler)
    if iteration < iterations:
        print(f"stopped at {iteration} and saved in {a.out}; go on with: python rl.py --resume "
              f"--out {a.out}")
    else:
        finish(a.out, net, optimizer, state, duration(time.perf_counter() - tick),
               examine(net, task) if checked else None)


def finish(out, net, optimizer, state, took, after):
    """Says what became of it; the figures go into the checkpoint, too."""
    if after is None:
        print(f"wrote {out} in {took}, and {out}-best as it was behind iteration "
              f"{state['best_iteration']}, when the true score was best ({state['best']:.2f}); "
              f"next: python sample.py --chat --model {out}")
        return
    keep(out, "rl", net, optimizer, state | {"after": after})
    print(f"before | {show(state['before'])}\n after | {show(after)}\n"
          f"wrote {out} in {took}; next: python sample.py --chat --model {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", default="out/sft", help="checkpoint to start from")
    add("--doubt", action="store_true", help="first make it guess, and doubt now and then")
    add("--silent", action="store_true", help="forbid thoughts")
    add("--reward", choices=RECIPES, default="answer", help="who says what is good")
    add("--kl", type=float, default=0.0, help="how dear it is to move away from the start")
    add("--pairs", type=int, default=PAIRS, help="comparisons that the judge learns from")
    add("--problems", metavar="FILE", help="problems of your own, in the shape of GSM8K")
    add("--iterations", type=int, help="default: " + ", ".join(
        f"{n} ({reward})" for reward, (*_, n) in RECIPES.items()))
    add("--data", default="out/world/conversations.jsonl", help="conversations to replay")
    add("--seed", type=int, default=0)
    add("--out", help="checkpoint folder to write (default out/rl, -doubt, -judge-kl, ...)")
    add("--resume", action="store_true", help="go on with the run in --out")
    a = parser.parse_args()
    names = {"judge": a.reward == "model", "doubt": a.doubt, "silent": a.silent,
             "problems": a.problems, "kl": a.kl}
    a.out = a.out or "-".join(["out/rl", *(name for name, given in names.items() if given)])
    try:
        run(a)
    except (ValueError, OSError) as error:
        print(f"rl.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"rl.py: stopped; what was saved, if anything, is in {a.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
