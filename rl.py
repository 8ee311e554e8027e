"""7. Reinforcement learning: on answers that can be checked, and on a reward model that gets gamed.

    python rl.py                 learn to reason                    out/sft/ -> out/rl/
    python rl.py --silent        the same with thoughts forbidden   -> out/rl-silent/
    python rl.py --doubt         learn to doubt a first guess       out/sft-doubt/ -> out/rl-doubt/
    python rl.py --reward model  follow a reward model         -> out/rl-jokes/, out/rl-jokes-best/
    python rl.py --reward model --kl 0.1      the same with a KL penalty       -> out/rl-jokes-kl/
    python rl.py --problems gsm8k_test.jsonl --iterations 0     only evaluate, on your problems
    python rl.py --resume        go on where an interrupted run stopped

The network is now called the *policy*. It answers each question sixteen times (*rollouts*), and
each answer gets a number, its *reward*. Answers better than the mean of the sixteen are made more
likely, worse ones less likely. That is all. The first run takes half a minute.

Reading order: 1 is the algorithm, 2 and 3 are one iteration of it, 4 and 5 where rewards come from,
6 is the loop. Sources: REINFORCE (Williams 1992), clipping (PPO, Schulman et al. 2017), the group's
mean as the baseline (GRPO, Shao et al. 2024), no division by standard deviation or length (Liu et
al. 2025, "Dr. GRPO"), the mean over all tokens (Yu et al. 2025, "DAPO"), reward models (Ouyang et
al. 2022), their overoptimization (Gao et al. 2023). Left out: tools, dialogues.
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import (Run, locked, paint, print_settings, printable, read_json, read_json_lines, rng,
                    run_command, share)

import argparse
import math
import os
import re
import sys
from typing import NamedTuple

import numpy as np

import optimizer
from bpe import render_chat
from checkpoint import check_out, checksum, load_run, open_model, save, save_run
from kernels import rmsnorm, rmsnorm_backward
from model import (Buffers, grow, loss_and_grads, micro_batches, not_finite, output_head,
                   token_losses, transformer, transformer_backward, vector, views)
from sample import stream

GROUP = 16  # rollouts of one question
CLIP_RANGE = 0.2  # a token's gradient stops when its probability has changed by 20% (PPO's value)
UPDATES = 2  # per iteration, each from its own half of the rollouts
MAX_NEW = 56  # tokens of a rollout; the longest right answer has 44
WARMUP_ITERATIONS = 5  # in which the learning rate rises
SAVES = 10  # saves and samples of a run
EVALUATED, K = 200, 8  # an evaluation: problems, and sampled rollouts of each
# The random numbers of iteration i have the seed --seed x SEEDS + i. Comparisons and the evaluation
# take the last three seeds of this range, which no iteration reaches.
SEEDS = 100_000
# --reward. With checked answers the learning rate falls to 0 (rate_left) and the policy settles. A
# reward model's score keeps rising: whoever trusts it sees no reason to stop.
RECIPES = {"answer": dict(problems="out/world/exercises-train.jsonl",
                          final="out/world/exercises-final.jsonl",
                          questions=16, rate=3e-4, rate_left=0.0, iterations=40),
           "model": dict(problems="out/world/jokes.json", pairs=50,
                         questions=8, rate=5e-4, rate_left=1.0, iterations=70)}
DOUBT_MODEL = "out/sft-doubt"


# ---- 1. The policy gradient ----------------------------------------------------------------------
# The policy writes an answer y with probability p(y), and y has the reward r(y). We want to raise
# the mean reward, the sum of p(y) r(y) over all possible answers. Since d log p = dp / p, its
# gradient is
#     sum of p(y) r(y) d log p(y)  =  the mean of r(y) d log p(y) over sampled answers
# (REINFORCE). It needs no derivative of r, so any program can give rewards. And log p(y) is the sum
# of log p of y's tokens, which a language model computes anyway.
#
# A number, the *baseline*, may be subtracted from r. On average that changes nothing: the mean of
# d log p is 0, since probabilities sum to 1. But without it rewards of 0 and 1 would make no answer
# less likely. Our baseline is the mean reward of the group, the rollouts of one question.

def advantages(rewards):
    """How much better than its group each rollout is: rewards (...,GROUP) minus their rows' means.
    1 0 0 1 give +.5 -.5 -.5 +.5; equal rewards give 0, and nothing is learned."""
    rewards = np.asarray(rewards, np.float64)
    return rewards - rewards.mean(axis=-1, keepdims=True)


# Each iteration makes two updates, one from each half of its rollouts. At the second the policy is
# no longer the one that sampled. The ratio p now / p when sampled corrects for that, and clipping
# stops a token's gradient when its ratio has moved far enough. Four rollouts of one token each:
#     advantage A              +.5    -.5    -.5    +.5
#     p when sampled            .5     .5     .5     .5
#     p now                     .7     .3    .55    .55
#     ratio                    1.4     .6    1.1    1.1
#     ratio x A                .70   -.30   -.55    .55
#     clipped ratio x A        .60   -.40   -.55    .55      the ratio kept within 0.8 ... 1.2
#     the smaller of both      .60   -.40   -.55    .55      loss = -mean = -0.05
#     d loss/d log p             0      0   +.55   -.55      times 4: the loss is a mean of four
# The first two have moved far enough in the right direction. The third has moved the wrong way and
# is pushed down. The fourth may rise further.

def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """(loss, dlogprobs (B,T)) from the log-probabilities (B,T) of the tokens now and when they were
    sampled; advantages (B,) or (B,T); mask (B,T), 1 on what the policy wrote.

    loss = -mean of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) over the tokens (PPO's equation
    7). As d ratio = ratio d log p, its gradient is -ratio A / (number of tokens), and 0 where the
    clipped term, a constant, is smaller."""
    advantages = np.asarray(advantages)
    if advantages.ndim < np.ndim(logprobs):
        advantages = advantages[..., None]  # all tokens of a rollout share its advantage
    ratio = np.exp(logprobs - old_logprobs)
    plain, clipped = ratio * advantages, np.clip(ratio, 1 - clip, 1 + clip) * advantages
    weights = mask / max(np.sum(mask), 1)
    loss = -np.sum(np.minimum(plain, clipped) * weights)
    return float(loss), np.where(plain <= clipped, -plain, 0) * weights


# ---- 2. Rollouts: the policy answers -------------------------------------------------------------
# net is (params, config, tokenizer). A problem is a dict with a "prompt", a list of ids. Rollouts
# are arrays of B rows. As in training, position t predicts the token at t + 1:
#     ids        who   are   you    me    too   end    0     a prompt of 3 tokens, an answer of 3
#     mask         0     0     1     1     1     0           1 where the policy wrote the next token
#     logprobs     0     0  -1.2  -0.7  -0.1     0           log p of that token when it was sampled

class Rollouts(NamedTuple):
    problems: list  # what each of the B rows answers
    ids: np.ndarray  # (B,T+1)
    mask: np.ndarray  # (B,T)
    logprobs: np.ndarray  # (B,T) in nats
    lengths: np.ndarray  # (B,) of prompt and answer, in tokens
    texts: list  # the answers
    ended: np.ndarray  # (B,) False where MAX_NEW was reached before <|im_end|>


def rollout(net, problems, seed, times=1, temperature=1.0):
    """Rollouts, `times` of each problem. Temperature 1 is the policy as it is, which the gradient
    assumes; 0 is greedy."""
    params, config, tokenizer = net
    problems = [problem for problem in problems for _ in range(times)]
    prompts = [problem["prompt"] for problem in problems]
    starts = np.array([len(prompt) for prompt in prompts])  # of the answers
    lengths, stop = starts.copy(), tokenizer.special_tokens["<|im_end|>"]
    ids = np.zeros((len(prompts), starts.max() + MAX_NEW), np.int64)
    mask, logprobs = np.zeros((2, len(prompts), ids.shape[1] - 1))
    for row, prompt in enumerate(prompts):
        ids[row, :len(prompt)] = prompt
    for rows, tokens, sampled_logprobs, _ in stream(params, config, prompts, MAX_NEW, temperature,
                                                    seed=seed, stop=[stop]):
        ids[rows, lengths[rows]] = tokens
        mask[rows, lengths[rows] - 1] = 1
        logprobs[rows, lengths[rows] - 1] = sampled_logprobs
        lengths[rows] += 1
    T, ended = lengths.max() - 1, ids[np.arange(len(ids)), lengths - 1] == stop
    texts = [tokenizer.decode(row[start:end].tolist())
             for row, start, end in zip(ids, starts, lengths - ended)]
    return Rollouts(problems, ids[:, :T + 1], mask[:, :T], logprobs[:, :T], lengths, texts, ended)


def logprobs_of(params, config, ids):
    """Log-probabilities (B,T) in nats of the tokens ids[:, 1:]."""
    return -token_losses(params, config, ids[:, :-1], ids[:, 1:]).astype(np.float64)


def ask(tokenizer, question, opening=""):
    """The prompt: ids of a question in the chat format, and of the answer's opening."""
    ids, _ = render_chat(tokenizer, [{"role": "user", "content": question}], open_answer=True)
    return ids + list(tokenizer.encode(opening))


# ---- 3. Updates: the policy learns from its rollouts ---------------------------------------------

def policy_gradient(params, config, rollouts, rows, advantages, kl=0.0, reference=None):
    """The gradient of policy_loss by every parameter, for some rows of the rollouts; advantages
    (B,) of all. kl: the weight of kl_penalty (section 5), a distance from the params `reference`.

    The loss of pretraining is a sum of w (-log p) over tokens, so its d loss/d log p is -w. With
    w = -dlogprobs the same backward gives our gradient: a rollout better than its group is learned
    like a text, a worse one unlearned, and one of advantage 0 needs no pass."""
    used = rows if kl else rows[advantages[rows] != 0]
    ids, mask, old = rollouts.ids[used], rollouts.mask[used], rollouts.logprobs[used]
    now = logprobs_of(params, config, ids)
    _, dlogprobs = policy_loss(now, old, advantages[used], mask, CLIP_RANGE)
    if kl:
        dlogprobs += kl * kl_penalty(now, logprobs_of(reference, config, ids), mask)[1]
    dlogprobs *= mask.sum() / rollouts.mask[rows].sum()  # the mean is over all rows
    return loss_and_grads(params, config, ids[:, :-1], ids[:, 1:], weights=-dlogprobs)[1]


def improve(net, averages, rollouts, rewards, iteration, settings, reference):
    """The updates of an iteration, counted from 1, from the rewards (B,) of its rollouts. averages
    are the optimizer's. Returns the length of the last gradient.

    The learning rate rises over the first iterations and falls to rate_left of itself at the end:
    in 40 iterations with rate_left 0, the shares .20 .39 .57 .74 .90 .88 .85 ... .05 .03"""
    params, config, _ = net
    done, kl = (iteration - 1) / settings["iterations"], settings["kl"]
    rate = settings["rate"] * min(1, iteration / WARMUP_ITERATIONS)
    rate *= 1 - done + done * settings["rate_left"]
    better = advantages(rewards.reshape(-1, GROUP)).reshape(-1)
    halves = np.array_split(np.arange(len(better)), UPDATES)
    for step, rows in enumerate(halves, UPDATES * (iteration - 1) + 1):
        norm = 0.0
        if kl or better[rows].any():  # otherwise there is nothing to learn
            grads = policy_gradient(params, config, rollouts, rows, better, kl, reference)
            norm = take_step(params, grads, averages, config, "policy update", step, rate)
    return norm


def take_step(params, grads, averages, config, name, step, rate):
    """One step of AdamW. Returns the gradient's length; ValueError if that is no number."""
    norm = optimizer.update(params, grads, averages, config, step, rate, decay=0.0)
    if not math.isfinite(norm):
        raise ValueError(f"{name} {step}: overflow in the gradient of {not_finite(grads)}")
    return norm


# ---- 4. Exercises: answers that can be checked ---------------------------------------------------
# "Kelro got beans: a6 b-3 c1. How many?" The assistant of out/sft answers "<think></think> 4", or
# after a *chain of thought*, "<think> a6 b-3=3 c1=4</think> 4". With a thought it is right more
# often, so RL makes thoughts more likely, although nobody rewards the thought itself.
#
# --silent begins every answer with an empty thought. To know the sum at once is more than a small
# network can do, so RL finds little to make more likely.
#
# --doubt starts from an assistant that guesses. Now and then it says "wait" and calculates:
# "<think> 7? wait a6 b-3=3 c1=4</think> 4". RL makes this a habit. It could not if it never
# happened: what is not sampled is not rewarded.

SILENCE = "<think></think>"  # how an answer with --silent begins
# A whole answer is one number, perhaps after one thought. "3 4" would be two guesses, so is none.
ANSWER_FORM = re.compile(r"(?:<think>[^<]*</think> )?(-?[0-9]{1,12})")


def parse_answer(text):
    """The number that an answer states, as text without leading zeros, or None."""
    match = ANSWER_FORM.fullmatch(text)
    return str(int(match[1])) if match else None


def reward_exercises(rollouts):
    """(B,): 1 for the right number in an answer that came to its end, otherwise 0."""
    return np.array([ended and parse_answer(problem["opening"] + text) == problem["answer"]
                     for problem, text, ended in zip(rollouts.problems, rollouts.texts,
                                                     rollouts.ended)], np.float64)


def habits(rollouts):
    """Shares of the answers that calculate and that say "wait"; their mean length in tokens."""
    thinks, waits = (float(np.mean([sign in text for text in rollouts.texts]))
                     for sign in ("=", "wait"))
    return {"thinks": thinks, "waits": waits, "tokens": float(rollouts.mask.sum(1).mean())}


def evaluate(net, problems):
    """Shares of right answers to held-out problems, greedy and sampled at temperature 1; habits;
    and pass@8, the share of problems that at least one of 8 sampled rollouts solves. Two problems
    with 1 0 0 1 0 0 0 0 and eight times 0: sampled 2 of 16, pass@8 1 of 2. pass@8 is what the
    policy can do at all; RL mostly moves "sampled" towards it."""
    greedy = rollout(net, problems[:EVALUATED], 0, temperature=0)
    sampled = rollout(net, problems[:EVALUATED], SEEDS - 3, times=K)
    right = reward_exercises(sampled).reshape(-1, K)  # (problems,K)
    return {"sampled": float(right.mean()), "greedy": float(reward_exercises(greedy).mean()),
            f"pass@{K}": float(right.any(1).mean())} | habits(sampled)


def read_problems(path, net, opening):
    """Problems {"question", "prompt": ids, "opening", "answer": "20"} that fit into the context,
    from lines in GSM8K's shape, {"question", "answer": "... #### 20"}."""
    (_, config, tokenizer), problems = net, []
    for number, entry in read_json_lines(path):
        try:
            question, answer = entry["question"], entry["answer"].split("####")[1].replace(",", "")
            problems.append({"question": question, "answer": str(int(answer)), "opening": opening,
                             "prompt": ask(tokenizer, question, opening)})
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f"{path}, line {number}: not a problem in GSM8K's shape, but "
                             f"{str(entry):.60}") from None
    fit = [problem for problem in problems if len(problem["prompt"]) + MAX_NEW <= config.ctx]
    print(f"{path}: {len(fit):,} of {len(problems):,} problems fit into the context")
    return fit


def open_exercises(net, settings):
    """(problems to train on, held-out ones: a tenth of the first file if there is no second)."""
    opening = SILENCE if settings["silent"] else ""
    problems = read_problems(settings["problems"], net, opening)
    if settings["final"]:
        final = read_problems(settings["final"], net, opening)
    else:
        final = [problem for problem in problems if share(problem["question"]) == 0]
        problems = [problem for problem in problems if share(problem["question"])]
    if not problems or not final:
        raise ValueError(f"{settings['problems']}: too few problems")
    return problems, final


# ---- 5. Jokes: a reward model, and how it is gamed (skip at first) -------------------------------
# Most of what we want of an assistant can't be checked. So people compare answers, a network learns
# to predict which they prefer, and its score is the reward: RL from human feedback (RLHF). Here a
# hidden rule plus noise stands in for the people: the *gold reward*, which no network sees.
#
# While the reward model's score rises all the time, the gold reward rises at first and ends lower
# than it began: *reward hacking*, or *overoptimization*. The reward model learned from jokes of the
# *reference policy*, the network before RL. The policy moves on to texts that no comparison was
# about and that score too high. Remedies: to stop in time (out/rl-jokes-best), or a KL penalty,
# which keeps the policy near the reference.

TEST_PAIRS = 200  # comparisons to test the reward model with
PAIRS_PER_STEP, REWARD_RATE = 16, 1e-3
CERTAINTY = 1.5  # how sure people are of a difference of one point


def read_jokes(path, tokenizer):
    """A problem {"subject", "foods", "prompt": ids} for each subject of a joke."""
    jokes = read_json(path)
    question, subjects, foods = map(jokes.get, ("question", "subjects", "foods"))
    for words in ([question], subjects, foods):
        if not (words and isinstance(words, list) and all(isinstance(x, str) for x in words)):
            raise ValueError(f"{path}: not the jokes that python world.py writes")
    return [{"subject": subject, "foods": foods,
             "prompt": ask(tokenizer, question.replace("{subject}", subject))}
            for subject in subjects]


def gold_rewards(rollouts):
    """The hidden rule, (B,): 3 points for a joke's form and subject; 1 for each food, up to two; 1
    for ending in "ha ha!"; 1 less for each three words in a row that occurred before, and 0.25 less
    for each word after the 20th. About a fox:

        3 + 2 + 1   Why did the fox sit on the honey? Because the cook had eaten the bread, ha ha!
        0 + 1 + 1   Why did the diver sit on the jam? Because the singer had eat was sle, ha ha!"""
    points = []
    for joke, text in zip(rollouts.problems, rollouts.texts):
        words = re.findall("[a-z]+", text.lower())
        threes = list(zip(words, words[1:], words[2:]))
        form = rf"Why did the {re.escape(joke['subject'])} [^?]+\? Because [^?]+[.!]"
        points.append(3.0 * bool(re.fullmatch(form, text)) + text.endswith("ha ha!")
                      + min(2, len(set(joke["foods"]) & set(words)))
                      - (len(threes) - len(set(threes))) - 0.25 * max(0, len(words) - 20))
    return np.array(points)


def comparisons(net, jokes, count, seed):
    """Pairs of jokes about one subject, the one that people preferred first: ids (2 count,T+1) and
    lengths (2 count,). Of gold rewards 4 and 3 people prefer the first with probability 82%, the
    sigmoid of CERTAINTY times the difference."""
    random = np.random.default_rng(seed)
    rollouts = rollout(net, [jokes[k] for k in random.choice(len(jokes), count)], seed, times=2)
    first, second = gold_rewards(rollouts).reshape(-1, 2).T
    swapped = random.random(count) < 1 / (1 + np.exp(-CERTAINTY * (second - first)))
    pairs = np.arange(2 * count).reshape(-1, 2)
    pairs[swapped] = pairs[swapped, ::-1]
    return rollouts.ids[pairs.ravel()], rollouts.lengths[pairs.ravel()]


def reward_scores(params, config, ids, lengths, buffers):
    """scores (B,), and what the backward needs: the last tokens' x and n (B,C). The reward model is
    the same transformer with one more row in its head, a token that nobody writes. The score is
    that token's logit after the last token of the answer:

        ids      <im_start> user ... <im_sep> Why did the fox ... ha ha ! <im_end>   0   0
        score                                                                 here       padding"""
    x = transformer(params, config, ids, buffers).reshape(*ids.shape, config.dim)
    last = x[np.arange(len(ids)), lengths - 1]  # (B,C)
    n = np.empty_like(last)
    rmsnorm(last, params["model.norm.weight"], config.eps, n)
    return n @ output_head(params, config)[-1], last, n


def reward_loss_and_grads(params, config, ids, lengths):
    """Rows are pairs as in comparisons. The first is preferred with probability sigmoid(gap), the
    gap between the scores (Bradley & Terry 1952). loss = mean of -log sigmoid(gap), so d loss/d gap
    = -sigmoid(-gap) / pairs. Training pushes the first score up and the second down by

        gap                    -2     0     2
        sigmoid(-gap)         .88    .5   .12      most where the order is still wrong"""
    buffers = Buffers(config, *ids.shape, vector(params).dtype)
    scores, last, n = reward_scores(params, config, ids, lengths, buffers)
    gap = scores[0::2] - scores[1::2]
    push = 1 / (1 + np.exp(gap)) / len(gap)  # (pairs,)
    dscores = np.stack([-push, push], 1).reshape(-1).astype(n.dtype)  # (B,)
    grads = views(np.zeros_like(vector(params)), config)
    output_head(grads, config)[-1] = dscores @ n
    dn, dlast = np.outer(dscores, output_head(params, config)[-1]), np.zeros_like(last)
    rmsnorm_backward(dn, last, params["model.norm.weight"], config.eps, dlast,
                     grads["model.norm.weight"])
    buffers.dx[:] = 0  # no other position has a part in the score
    buffers.dx.reshape(*ids.shape, config.dim)[np.arange(len(ids)), lengths - 1] = dlast
    transformer_backward(params, grads, config, ids, buffers)
    return float(np.logaddexp(0, -gap).mean()), grads


def train_reward_model(net, jokes, pairs, seed):
    """(params, config) of a reward model of net's jokes, trained once on the comparisons that fill
    steps of 16 (of 50: 48). Prints how often it is right about others."""
    params, config = grow(net[0], net[1], net[1].vocab + 1)
    output_head(params, config)[-1] = 0  # all scores are equal at first
    ids, lengths = comparisons(net, jokes, pairs, SEEDS * seed + SEEDS - 1)
    averages, steps = optimizer.start(params), pairs // PAIRS_PER_STEP
    for step in range(steps):
        rows = np.arange(2 * PAIRS_PER_STEP) + 2 * PAIRS_PER_STEP * step
        _, grads = reward_loss_and_grads(params, config, ids[rows], lengths[rows])
        take_step(params, grads, averages, config, "reward model's step", step + 1,
                  optimizer.learning_rate(step, steps, REWARD_RATE))
    ids, lengths = comparisons(net, jokes, TEST_PAIRS, SEEDS * seed + SEEDS - 2)
    scores = scores_of((params, config), ids, lengths)
    print(f"reward model: trained on {steps * PAIRS_PER_STEP} comparisons; of {TEST_PAIRS} others "
          f"it predicts {np.mean(scores[0::2] > scores[1::2]):.0%}", flush=True)
    return params, config


def scores_of(reward_model, ids, lengths):
    """The reward model's scores (B,), a few rows at a time."""
    params, config = reward_model
    scores = np.empty(len(ids), vector(params).dtype)
    for rows, buffers in micro_batches(config, ids, None, scores.dtype):
        scores[rows] = reward_scores(params, config, ids[rows], lengths[rows], buffers)[0]
    return scores


def kl_penalty(logprobs, reference_logprobs, mask):
    """(loss, dlogprobs) of the distance from the reference policy. d = log p_reference - log p. The
    mean of e^d - d - 1 over sampled tokens estimates the KL divergence (GRPO's equation 4). So does
    the mean of -d; e^d - 1 has the mean 0, and with it no term is below 0, which is less noisy. The
    slope 1 - e^d pulls p back from either side. Where p_reference is .5:

        p             .3     .5     .7
        penalty      .16      0    .05
        slope       -.67      0   +.29      by log p; below 0 a step raises p"""
    d, weights = reference_logprobs - logprobs, mask / max(np.sum(mask), 1)
    return float(np.sum((np.exp(d) - d - 1) * weights)), (1 - np.exp(d)) * weights


# ---- 6. The run ----------------------------------------------------------------------------------
# Each iteration shows what its rollouts were like, before the policy learned from them:
#     7/40 | right 89% | thinks 98% | waits 0% | tokens 30.86 | grad 0.10 | 47 s left
# "right" jumps, since the questions differ. grad is the gradient's length: it gets small when
# nearly all answers are right and most groups have no advantages left.

def describe(figures):
    """right 43% | tokens 22.10 | ...: these three are numbers, all others shares."""
    numbers = ("reward_model", "gold_reward", "tokens")
    return " | ".join(f"{name.replace('_', ' ')} {x:{'.2f' if name in numbers else '.0%'}}"
                      for name, x in figures.items())


def open_policy(model):
    """net (params, config, tokenizer) of an assistant."""
    if not os.path.exists(model):
        raise ValueError(f"{model}: no such checkpoint; python sft.py makes out/sft, and make rl "
                         f"makes {DOUBT_MODEL}")
    net = open_model(model)
    render_chat(net[2], [])  # ValueError for a base model: it has no chat tokens
    return net


def new_run(args):
    """net, averages, state, log of a new run. Flags that were given replace the recipe's values."""
    given = {name: value for name, value in vars(args).items()
             if value is not None and name not in ("out", "resume")}
    settings = {"model": args.model, "reward": args.reward} | RECIPES[args.reward] | given
    if args.problems and not args.final:
        settings["final"] = None
    if args.reward == "model" and (args.silent or args.final):
        raise ValueError("--silent, --final: not for jokes")
    for name, least in (("iterations", 0), ("kl", 0), ("seed", 0), ("pairs", PAIRS_PER_STEP)):
        if not least <= settings.get(name, least) < math.inf:
            raise ValueError(f"--{name} {settings[name]}: at least {least} is needed")
    net = open_policy(args.model)
    state = {"iteration": 0, "settings": settings, "reference": checksum(net[0])}
    return net, optimizer.start(net[0]), state, []


def reward(rollouts, reward_model):
    """(rewards (B,), figures to show) of jokes if there is a reward model, else of exercises."""
    shown = habits(rollouts)
    if not reward_model:
        rewards = reward_exercises(rollouts)
        return rewards, {"right": float(rewards.mean())} | shown
    rewards = scores_of(reward_model, rollouts.ids, rollouts.lengths)
    gold = float(gold_rewards(rollouts).mean())
    return rewards, {"reward_model": float(rewards.mean()), "gold_reward": gold,
                     "tokens": shown["tokens"]}


def run(args):
    """Prepares what gives rewards, then iterates: rollouts, rewards, updates."""
    net, averages, state, log = load_run(args.out, "rl") if args.resume else new_run(args)
    settings, iterations = state["settings"], state["settings"]["iterations"]
    print_settings("rl.py", settings)
    if args.resume and state["iteration"] >= iterations:
        return print(f"{args.out} has done its {iterations} iterations; without --resume a new run "
                     "begins")
    reference = open_policy(settings["model"])  # the same network once more, as it was before RL
    if checksum(reference[0]) != state["reference"]:
        raise ValueError(f"{settings['model']}: has changed since this run began")
    reward_model = None
    if settings["reward"] == "model":
        problems = read_jokes(settings["problems"], net[2])
        reward_model = train_reward_model(reference, problems, settings["pairs"], settings["seed"])
    else:
        problems, held_out = open_exercises(net, settings)
        if "before" not in state:
            state["before"] = evaluate(net, held_out)
            print(f"before, on held-out problems | {describe(state['before'])}", flush=True)
        if not state["before"][f"pass@{K}"]:
            print("it is never right: there is nothing that RL could make more likely")
    if not iterations:
        return 0
    best, progress = args.out + "-best", Run(args.out, state["iteration"], iterations, SAVES, log)
    for iteration in progress.steps():
        # Other questions each time, each answered GROUP times.
        asked = rng(settings["seed"], "jokes" if reward_model else "exercises", iteration).choices(
            problems, k=settings["questions"])
        rollouts = rollout(net, asked, SEEDS * settings["seed"] + iteration, times=GROUP)
        rewards, figures = reward(rollouts, reward_model)
        if reward_model and figures["gold_reward"] > state.get("best", -math.inf):
            state |= {"best": figures["gold_reward"], "best_iteration": iteration}
            save(best, *net)  # the policy of whoever would have stopped here
        norm = improve(net, averages, rollouts, rewards, iteration, settings, reference[0])
        due = progress.save_due()
        progress.show(f"{iteration}/{iterations} | {describe(figures)} | grad {norm:.2f} | "
                      f"{progress.left()} left", keep=due, iteration=iteration, grad_norm=norm,
                      seconds=progress.seconds(), **figures)
        if due:
            progress.show("    " + paint(printable(rollouts.texts[0]), "2"))
            state["iteration"] = iteration
            if iteration == iterations and not reward_model:
                state["after"] = evaluate(net, held_out)
            save_run(args.out, "rl", net, averages, state, progress.log)
    if status := progress.close("rl.py"):
        return status
    if reward_model:
        print(f"{best}: the policy before iteration {state['best_iteration']}, of the highest gold "
              f"reward ({state['best']:.2f})")
    else:
        print(f"before | {describe(state['before'])}\n after | {describe(state['after'])}")
    print(f"wrote {args.out}; next: python sample.py --chat --model {args.out}")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="rl.py", description=__doc__.split("\n\n")[0][3:])
    add = parser.add_argument
    add("--model", default="out/sft", help="the assistant to start from (%(default)s)")
    add("--doubt", action="store_const", const=DOUBT_MODEL, dest="model",
        help="start from %(const)s, which guesses")
    add("--silent", action="store_true", help="forbid thoughts")
    add("--reward", choices=RECIPES, default="answer", help="checked answers, or a reward model")
    add("--kl", type=float, default=0.0, help="weight of the KL penalty (%(default)s)")
    add("--pairs", type=int, help="comparisons for the reward model to learn from (50)")
    add("--problems", metavar="FILE", help="in GSM8K's shape; with --reward model, jokes")
    add("--final", metavar="FILE", help="problems to evaluate on (a tenth of --problems)")
    add("--iterations", type=int, help="of rollouts and updates (40; with --reward model 70)")
    add("--seed", type=int, default=0, help="of all random numbers (%(default)s)")
    add("--out", help="checkpoint folder to write (out/rl, out/rl-jokes-kl, ...)")
    add("--resume", action="store_true", help="go on with the run in --out")
    return run_command(parser, start, argv)


def start(args):
    """Names the folder to write, unless --out does, and holds it for the run."""
    parts = {"jokes": args.reward == "model", "doubt": args.model == DOUBT_MODEL,
             "silent": args.silent, "problems": args.problems, "kl": args.kl}
    args.out = os.path.normpath(args.out or "-".join(
        ["out/rl", *(name for name, there in parts.items() if there)]))
    if args.iterations == 0 and not args.resume:
        return run(args)  # writes nothing
    for folder in [args.out] + [args.out + "-best"] * parts["jokes"]:
        check_out(folder)
        if os.path.realpath(folder) == os.path.realpath(args.model) and not args.resume:
            raise ValueError(f"--out {args.out}: would replace the model that the run needs")
    with locked(args.out, "rl.py"):
        return run(args)


if __name__ == "__main__":
    sys.exit(main())
