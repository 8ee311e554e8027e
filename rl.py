"""7. Reinforcement learning: on answers that can be checked, and on a reward model that gets gamed.

    python rl.py                 learn to reason                    out/sft/ -> out/rl/
    python rl.py --silent        the same with thoughts forbidden   -> out/rl-silent/
    python rl.py --doubt         learn to doubt a first guess       out/sft-doubt/ -> out/rl-doubt/
    python rl.py --reward model  follow a learned reward      -> out/rl-jokes/, out/rl-jokes-best/
    python rl.py --reward model --kl 0.1      the same, held near its start    -> out/rl-jokes-kl/
    python rl.py --problems gsm8k_test.jsonl --iterations 0     only evaluate, on your own problems
    python rl.py --resume        go on where an interrupted run stopped

The network is the *policy*. It writes sixteen answers to each question (*rollouts*), and each gets
a number (its *reward*). An update makes answers above the group's mean more likely and those below
it less likely. That is all. The first run takes about a minute. 35% of its sampled answers are
right before, 93% after; 45% contain a *chain of thought* (a calculation in steps) before, all do
after. Without thoughts 8% are right after (one seed each).

Reads exercises-train.jsonl, exercises-final.jsonl and jokes.json in out/world/. Reading order: 1
and 2 are the algorithm, 3 rewards by checking, 4 rewards by a model of them, 5 the loop. Sources:
REINFORCE (Williams 1992), clipping (PPO, Schulman et al. 2017), the group's mean as the baseline
(GRPO, Shao et al. 2024), not divided by standard deviation or length (Liu et al. 2025, "Dr. GRPO"),
the mean over all tokens (Yu et al. 2025, "DAPO"), reward models (Ouyang et al. 2022), their
overoptimization (Gao et al. 2023). Left out: tools, dialogues.
"""
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
from common import (Run, locked, paint, print_settings, printable, read_json, read_json_lines, rng,
                    run_command, share)
from kernels import rmsnorm, rmsnorm_backward
from model import (Buffers, grow, loss_and_grads, micro_batches, not_finite, output_head,
                   token_losses, transformer, transformer_backward, vector, views)
from sample import batches, stream

GROUP = 16  # rollouts of one question
CLIP_RANGE = 0.2  # a token's gradient stops when its probability has changed by 20% (PPO's value)
PAUSES = 10  # saves and samples of a run
UPDATES = 2  # per iteration, each from its own half of the rollouts
MAX_NEW = 56  # tokens of a rollout; the longest right answer has 44
WARMUP_ITERATIONS = 5  # in which the learning rate rises
# --reward. With checked answers the learning rate falls to 0 and the policy settles. A reward
# model's score keeps rising, and whoever trusts it sees no reason to stop.
RECIPES = {"answer": dict(questions=16, rate=3e-4, rate_left=0.0, iterations=40),
           "model": dict(questions=8, rate=5e-4, rate_left=1.0, iterations=70)}
EVALUATED, K = 200, 8  # an evaluation: problems, and sampled rollouts of each
SEEDS = 100_000  # the seed of an iteration is --seed times this, plus the iteration
PROBLEMS, FINAL = "out/world/exercises-train.jsonl", "out/world/exercises-final.jsonl"
JOKES = "out/world/jokes.json"
SILENCE = "<think></think>"  # how an answer with --silent begins
# RL can only reward what happens now and then. The assistant of out/sft sometimes thinks; this one
# guesses, and in one answer of seven says "wait" and calculates.
DOUBT_MODEL = "out/sft-doubt"
DOUBT_COMMAND = ("python sft.py --base out/sft --data out/world/doubt.jsonl --mix-lengths "
                 f"--epochs 1 --lr 5e-4 --muon-lr 0 --pages none --out {DOUBT_MODEL}")


# ---- 1. The policy gradient ----------------------------------------------------------------------
# An iteration samples rollouts and updates the policy twice, from half of the groups each time. At
# the second update the policy has moved, and the ratio p_now / p_when_sampled says by how much.
# Clipping stops a token's gradient once its ratio has moved far enough. Four rollouts of one
# question, of one token each:
#     reward                     1      0      0      1      mean 0.5
#     advantage A              +.5    -.5    -.5    +.5      reward - mean
#     p when sampled            .5     .5     .5     .5
#     p now                     .7     .3    .55    .55
#     ratio                    1.4     .6    1.1    1.1
#     ratio A                  .70   -.30   -.55    .55
#     clipped ratio A          .60   -.40   -.55    .55      the ratio kept within 0.8 ... 1.2
#     the smaller of both      .60   -.40   -.55    .55      loss = -mean = -0.05
#     4 d loss/d log p           0      0   +.55   -.55
# The first two have moved far enough in the right direction. The third has moved the wrong way and
# is pushed down. The fourth may rise further.

def advantages(rewards):
    """How much better than its group each rollout is: rewards (...,GROUP) minus their rows' means.
    If all are equally good, the advantages are 0 and nothing is learned."""
    rewards = np.asarray(rewards, np.float64)
    return rewards - rewards.mean(axis=-1, keepdims=True)


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """(loss, dlogprobs (B,T)) from the log-probabilities (B,T) of the tokens now and when they were
    sampled; advantages (B,) or (B,T); mask (B,T), 1 on what the policy wrote.

    loss = -mean of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) over the tokens (PPO's equation
    7). As d ratio = ratio d log p, its gradient is -ratio A / (number of tokens), and 0 where the
    smaller term is the clipped one, a constant."""
    advantages = np.asarray(advantages)
    if advantages.ndim < np.ndim(logprobs):
        advantages = advantages[..., None]  # all tokens of a rollout share its advantage
    ratio = np.exp(logprobs - old_logprobs)
    plain, clipped = ratio * advantages, np.clip(ratio, 1 - clip, 1 + clip) * advantages
    weights = mask / max(np.sum(mask), 1)
    loss = -np.sum(np.minimum(plain, clipped) * weights)
    return float(loss), np.where(plain <= clipped, -plain, 0) * weights


def policy_update(net, averages, grads, step, rate, rollouts, rows, advantages, reference, kl):
    """One update of the policy net (params, config, tokenizer) from some rows of the rollouts and
    their advantages; kl: the weight of kl_penalty. Returns the gradient's length.

    Pretraining's loss is a sum of w (-log p) over tokens: its d loss/d log p is -w. With weights
    w = -dlogprobs the same backward pass gives our gradient: a rollout above the mean is learned
    like a text, one below it is unlearned. One of advantage 0 needs no pass."""
    params, config, _ = net
    used = np.ones(len(rows), bool) if kl else advantages != 0
    if not used.any():
        return 0.0
    ids, mask, old = (x[rows[used]] for x in (rollouts.ids, rollouts.mask, rollouts.logprobs))
    now = logprobs_of(params, config, ids)
    _, dlogprobs = policy_loss(now, old, advantages[used], mask, CLIP_RANGE)
    if kl:
        dlogprobs += kl * kl_penalty(now, logprobs_of(reference, config, ids), mask)[1]
    dlogprobs *= mask.sum() / rollouts.mask[rows].sum()  # the mean is over all rows
    loss_and_grads(params, config, ids[:, :-1], ids[:, 1:], grads=grads, weights=-dlogprobs)
    norm = optimizer.update(params, grads, averages, config, step, rate, decay=0.0)
    return finite(norm, grads, f"policy update {step}")


def finite(norm, grads, what):
    """norm; or ValueError, before anything is saved, if it is no number."""
    if not math.isfinite(norm):
        raise ValueError(f"{what}: overflow in the gradient of {not_finite(grads)}")
    return norm


# ---- 2. Rollouts ---------------------------------------------------------------------------------

class Rollouts(NamedTuple):
    """B rollouts, each after its prompt. Token t + 1 of ids is the target of position t."""
    ids: np.ndarray  # (B,T+1)
    mask: np.ndarray  # (B,T) 1 where the policy wrote the target
    logprobs: np.ndarray  # (B,T) of those targets when they were sampled, in nats
    lengths: np.ndarray  # (B,) of prompt and answer
    texts: list  # the answers
    ended: np.ndarray  # (B,) False where MAX_NEW was reached before <|im_end|>


def rollout(net, prompts, seed, temperature=1.0):
    """Rollouts of prompts, a list of lists of ids. Temperature 1 is the policy as it is, which the
    gradient assumes; 0 is greedy."""
    params, config, tokenizer = net
    stop, B = tokenizer.special_tokens["<|im_end|>"], len(prompts)
    starts = np.array([len(prompt) for prompt in prompts])
    ends = starts.copy()
    ids = np.zeros((B, starts.max() + MAX_NEW), np.int64)
    for row, prompt in zip(ids, prompts):
        row[:len(prompt)] = prompt
    mask, logprobs = np.zeros((2, B, ids.shape[1] - 1))
    for batch in batches(config, starts.tolist(), MAX_NEW):  # as many as memory should hold
        for going, tokens, token_logprobs, _ in stream(
                params, config, [prompts[row] for row in batch], MAX_NEW, temperature,
                seed=[(seed, row) for row in batch], stop=[stop]):
            rows = np.array(batch)[going]
            ids[rows, ends[rows]] = tokens
            mask[rows, ends[rows] - 1] = 1
            logprobs[rows, ends[rows] - 1] = token_logprobs
            ends[rows] += 1
    ended = ids[np.arange(B), ends - 1] == stop
    texts = [tokenizer.decode(row[i:j].tolist()) for row, i, j in zip(ids, starts, ends - ended)]
    T = ends.max() - 1
    return Rollouts(ids[:, :T + 1], mask[:, :T], logprobs[:, :T], ends, texts, ended)


def logprobs_of(params, config, ids):
    """Log-probabilities (B,T) in nats of the tokens ids[:, 1:]."""
    return -token_losses(params, config, ids[:, :-1], ids[:, 1:]).astype(np.float64)


def ask(tokenizer, question, opening=""):
    """The prompt: ids of a question in the chat format, and of the answer's opening."""
    ids, _ = render_chat(tokenizer, [{"role": "user", "content": question}], open_answer=True)
    return ids + list(tokenizer.encode(opening))


# ---- 3. Exercises: answers that can be checked ---------------------------------------------------

# The whole answer must be a thought, if any, and one number: a second one can't be smuggled in.
ANSWER_FORM = re.compile(r"(?:<think>[^<]*</think> )?(-?[0-9]{1,12})")


def parse_answer(text):
    """The number that an answer states, as text without leading zeros, or None."""
    match = ANSWER_FORM.fullmatch(text)
    return str(int(match[1])) if match else None


def reward_exercises(problems, rollouts):
    """Rewards (B,): 1 for the right number in an answer that came to its end, otherwise 0.
    A thought earns nothing by itself: the policy learns exactly what is rewarded."""
    return np.array([ended and parse_answer(problem["opening"] + text) == problem["answer"]
                     for problem, text, ended in zip(problems, rollouts.texts, rollouts.ended)],
                    np.float64)


def rollout_exercises(net, problems, settings, iteration):
    """(rollouts, rewards (B,), figures to show) of one iteration on the exercises."""
    r = rng(settings["seed"], "exercises", iteration)
    batch = [problem for problem in r.choices(problems, k=settings["questions"])
             for _ in range(GROUP)]
    prompts = [problem["prompt"] for problem in batch]
    rollouts = rollout(net, prompts, SEEDS * settings["seed"] + iteration)
    rewards = reward_exercises(batch, rollouts)
    return rollouts, rewards, {"right": float(rewards.mean())} | habits(rollouts)


def habits(rollouts):
    """Shares of the answers that calculate in their thought and that say "wait"; mean length."""
    thinks, waits = (float(np.mean([sign in text for text in rollouts.texts]))
                     for sign in ("=", "wait"))
    return {"thinks": thinks, "waits": waits, "tokens": float(rollouts.mask.sum(1).mean())}


def evaluate(net, problems):
    """Shares of right answers to held-out problems, sampled at temperature 1 and greedy; habits;
    and pass@8, the share of problems that at least one of 8 sampled rollouts solves. This is what
    the policy can do at all. RL mostly moves the first figure towards it."""
    problems = problems[:EVALUATED]
    greedy = rollout(net, [problem["prompt"] for problem in problems], 0, temperature=0)
    repeated = [problem for problem in problems for _ in range(K)]
    sampled = rollout(net, [problem["prompt"] for problem in repeated], SEEDS - 3)
    right = reward_exercises(repeated, sampled).reshape(-1, K)
    return {"sampled": float(right.mean()),
            "greedy": float(reward_exercises(problems, greedy).mean()),
            f"pass@{K}": float(right.any(1).mean())} | habits(sampled)


def read_problems(path, net, opening):
    """Problems {"question", "prompt": ids, "opening", "answer": "20"} that fit into the context,
    from a file in GSM8K's shape: a line is {"question", "answer": "... #### 20"}."""
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
        problems = [problem for problem in problems if share(problem["question"]) != 0]
    if not problems or not final:
        raise ValueError(f"{settings['problems']}: too few problems")
    return problems, final


# ---- 4. Jokes: a reward model, and how it is exploited (skip at first) ---------------------------
# Most of what we want of an assistant can't be checked. So people compare answers, a network learns
# to predict which they prefer, and its score is the reward: RL from human feedback. Here the people
# are a rule plus noise, the *gold reward*, which no network sees. It rises at first and ends lower
# than it began, while the reward model's score rises all the time: *reward hacking*, or
# *overoptimization*. The reward model is right about jokes of the reference policy, from which it
# learned. The policy leaves them for others, about which it errs: "Why did the roofer sit on the
# roofer sit on the roofer sit on the turnips?" A KL penalty keeps the policy near the reference.

PAIRS, TEST_PAIRS = 1000, 200  # comparisons to train the reward model on, and to test it with
PAIRS_PER_STEP, REWARD_RATE = 16, 1e-3  # each comparison is used once
CERTAINTY = 1.5  # how sure people are of a difference of one point: 82%, the sigmoid of 1.5


def gold_reward(subject, joke, foods):
    """What people really think of a joke: 3 points if it is about the subject and has a joke's
    form; 1 for each food, up to two; 1 for ending in "ha ha!"; 1 less for each three words in a row
    that occurred before, and 0.25 less for each word after the 20th."""
    words = re.findall("[a-z]+", joke.lower())
    threes = list(zip(words, words[1:], words[2:]))
    form = re.fullmatch(rf"Why did the {re.escape(subject)} [^?]+\? Because [^?]+[.!]", joke)
    return (3.0 * bool(form) + min(2, len(set(foods) & set(words))) + joke.endswith("ha ha!")
            - (len(threes) - len(set(threes))) - 0.25 * max(0, len(words) - 20))


def read_jokes(path):
    """The question with {subject} in it, the subjects, and the foods of the gold reward."""
    jokes = read_json(path)
    for words in ([jokes.get("question")], jokes.get("subjects"), jokes.get("foods")):
        if not (words and isinstance(words, list) and all(isinstance(x, str) for x in words)):
            raise ValueError(f"{path}: not the jokes that python world.py writes")
    return jokes


def tell_jokes(net, jokes, subjects, seed):
    """(rollouts, gold rewards (B,)) of one joke about each subject."""
    rollouts = rollout(net, [ask(net[2], jokes["question"].replace("{subject}", subject))
                             for subject in subjects], seed)
    return rollouts, np.array([gold_reward(subject, text, jokes["foods"])
                               for subject, text in zip(subjects, rollouts.texts)])


def rollout_jokes(net, reward_model, jokes, settings, iteration):
    """(rollouts, rewards (B,), figures to show) of one iteration on the jokes."""
    r = rng(settings["seed"], "jokes", iteration)
    subjects = np.repeat(r.choices(jokes["subjects"], k=settings["questions"]), GROUP).tolist()
    rollouts, gold = tell_jokes(net, jokes, subjects, SEEDS * settings["seed"] + iteration)
    rewards = scores_of(reward_model, rollouts.ids, rollouts.lengths)
    return rollouts, rewards, {"reward_model": float(rewards.mean()),
                               "gold_reward": float(gold.mean()),
                               "tokens": float(rollouts.mask.sum(1).mean())}


def comparisons(net, jokes, count, seed):
    """ids (2 count,T+1), lengths and gold rewards (count,2) of pairs of jokes. People preferred
    row 2i to row 2i + 1."""
    random = np.random.default_rng(seed)
    subjects = random.choice(jokes["subjects"], count).repeat(2).tolist()
    rollouts, gold = tell_jokes(net, jokes, subjects, seed)
    gap = gold[1::2] - gold[0::2]  # people prefer the second with probability sigmoid(c gap)
    preferred = 2 * np.arange(count) + (random.random(count) < 1 / (1 + np.exp(-CERTAINTY * gap)))
    order = np.stack([preferred, preferred ^ 1], 1).reshape(-1)
    return rollouts.ids[order], rollouts.lengths[order], gold[order].reshape(-1, 2)


def reward_scores(params, config, ids, lengths, buffers):
    """scores (B,), and what the backward needs: the last tokens' x and n (B,C).

    The reward model is the same transformer. Its head is one more row of the vocabulary, a token
    that is never written. The score is that token's logit after the last token of the answer."""
    x = transformer(params, config, ids, buffers).reshape(*ids.shape, config.dim)
    last = x[np.arange(len(ids)), lengths - 1]  # (B,C)
    n = np.empty_like(last)
    rmsnorm(last, params["model.norm.weight"], config.eps, n)
    return n @ output_head(params, config)[-1], last, n


def reward_loss_and_grads(params, config, ids, lengths, grads):
    """Bradley & Terry 1952: people prefer the first of a pair with probability sigmoid(s1 - s2).
    loss = mean of -log sigmoid(gap), so d loss/d gap = -sigmoid(-gap) / pairs."""
    buffers = Buffers(config, *ids.shape, vector(params).dtype)
    scores, last, n = reward_scores(params, config, ids, lengths, buffers)
    gap = scores[0::2] - scores[1::2]
    push = 1 / (1 + np.exp(gap)) / len(gap)  # (pairs,)
    dscores = np.stack([-push, push], 1).reshape(-1).astype(n.dtype)  # (B,)
    vector(grads)[:] = 0
    output_head(grads, config)[-1] = dscores @ n
    dn, dlast = np.outer(dscores, output_head(params, config)[-1]), np.zeros_like(last)
    rmsnorm_backward(dn, last, params["model.norm.weight"], config.eps, dlast,
                     grads["model.norm.weight"])
    buffers.dx[:] = 0
    buffers.dx.reshape(*ids.shape, config.dim)[np.arange(len(ids)), lengths - 1] = dlast
    transformer_backward(params, grads, config, ids, buffers)
    return float(np.logaddexp(0, -gap).mean())


def train_reward_model(net, jokes, pairs, seed):
    """(params, config) of a reward model of net's jokes, trained on so many comparisons."""
    params, config = grow(net[0], net[1], net[1].vocab + 1)
    output_head(params, config)[-1] = 0  # all scores are equal at first
    ids, lengths, _ = comparisons(net, jokes, pairs, SEEDS * seed + SEEDS - 1)
    averages, grads = optimizer.start(params), views(np.empty_like(vector(params)), config)
    steps = pairs // PAIRS_PER_STEP
    for step in range(steps):
        rows = slice(2 * PAIRS_PER_STEP * step, 2 * PAIRS_PER_STEP * (step + 1))
        reward_loss_and_grads(params, config, ids[rows], lengths[rows], grads)
        norm = optimizer.update(params, grads, averages, config, step + 1,
                                optimizer.learning_rate(step, steps, REWARD_RATE), decay=0.0)
        finite(norm, grads, f"step {step + 1} of the reward model")
    ids, lengths, gold = comparisons(net, jokes, TEST_PAIRS, SEEDS * seed + SEEDS - 2)
    scores = scores_of((params, config), ids, lengths).reshape(-1, 2)
    gap, gold_gap = scores[:, 0] - scores[:, 1], gold[:, 0] - gold[:, 1]
    agrees = np.sum(gap * gold_gap > 0) / max(1, np.count_nonzero(gold_gap))
    print(f"reward model: trained on {pairs} comparisons; of {TEST_PAIRS} others it predicts "
          f"{np.mean(gap > 0):.0%}, and {agrees:.0%} as the gold reward has it", flush=True)
    return params, config


def scores_of(reward_model, ids, lengths):
    """The reward model's scores (B,), a few rows at a time."""
    params, config = reward_model
    scores = np.empty(len(ids), vector(params).dtype)
    for rows, buffers in micro_batches(config, ids, None, scores.dtype):
        scores[rows] = reward_scores(params, config, ids[rows], lengths[rows], buffers)[0]
    return scores


def kl_penalty(logprobs, reference_logprobs, mask):
    """(loss, dlogprobs) of the distance from the *reference policy*, the network before RL. With
    d = log p_reference - log p, the mean of e^d - d - 1 estimates the KL divergence (GRPO's
    equation 4). Its slope 1 - e^d pulls p back from either side."""
    d, weights = reference_logprobs - logprobs, mask / max(np.sum(mask), 1)
    return float(np.sum((np.exp(d) - d - 1) * weights)), (1 - np.exp(d)) * weights


# ---- 5. The run ----------------------------------------------------------------------------------

def describe(figures):
    """right 43% | tokens 22.10 | ..."""
    numbers = ("reward_model", "gold_reward", "tokens")  # the others are shares
    return " | ".join(f"{name.replace('_', ' ')} " + (f"{x:.2f}" if name in numbers else f"{x:.0%}")
                      for name, x in figures.items())


def open_policy(model):
    """net (params, config, tokenizer) of an assistant."""
    if not os.path.exists(model):
        command = DOUBT_COMMAND if model == DOUBT_MODEL else "python sft.py"
        raise ValueError(f"{model}: no such checkpoint; to make it: {command}")
    net = open_model(model)
    if "<|im_end|>" not in net[2].special_tokens:
        raise ValueError(f"{model}: a base model; python sft.py makes an assistant of it")
    return net


def new_run(args):
    """net, averages, state, log of a new run, from the command line."""
    settings = {"model": args.model, "reward": args.reward} | RECIPES[args.reward]
    settings |= {"kl": args.kl, "seed": args.seed}
    if args.iterations is not None:
        settings["iterations"] = args.iterations
    if args.reward == "model":
        settings["pairs"] = args.pairs
        if args.silent or args.doubt or args.problems or args.final:
            raise ValueError("--silent, --doubt, --problems, --final: not for jokes")
    else:
        settings |= {"silent": args.silent, "problems": args.problems or PROBLEMS,
                     "final": args.final or (None if args.problems else FINAL)}
    for name, least in (("iterations", 0), ("kl", 0), ("seed", 0), ("pairs", PAIRS_PER_STEP)):
        if not least <= settings.get(name, least) < math.inf:
            raise ValueError(f"--{name} {settings[name]}: at least {least} is needed")
    net = open_policy(args.model)
    state = {"iteration": 0, "settings": settings, "reference": checksum(net[0])}
    return net, optimizer.start(net[0]), state, []


def improve(net, averages, grads, settings, iteration, rollouts, rewards, reference):
    """The updates of an iteration. Returns the last gradient's length."""
    done = (iteration - 1) / settings["iterations"]
    rate = settings["rate"] * min(1, iteration / WARMUP_ITERATIONS)
    rate *= 1 - done + done * settings["rate_left"]
    better = advantages(rewards.reshape(-1, GROUP)).reshape(-1)
    for update, rows in enumerate(np.array_split(np.arange(len(better)), UPDATES)):
        norm = policy_update(net, averages, grads, (iteration - 1) * UPDATES + update + 1, rate,
                             rollouts, rows, better[rows], reference, settings["kl"])
    return norm


def run(args):
    """Opens what gives rewards, then iterates: rollouts, rewards, updates; ten saves a run."""
    net, averages, state, log = load_run(args.out, "rl") if args.resume else new_run(args)
    settings, iterations = state["settings"], state["settings"]["iterations"]
    learned = settings["reward"] == "model"
    print_settings("rl.py", settings)
    if args.resume and state["iteration"] >= iterations:
        return print(f"{args.out} has done its {iterations} iterations; leave out --resume to "
                     "begin another run")
    # The reference policy: the same network once more, as it was before RL.
    reference = open_policy(settings["model"])
    if checksum(reference[0]) != state["reference"]:
        raise ValueError(f"{settings['model']}: has changed since this run began")
    if learned:
        jokes = read_jokes(JOKES)
        reward_model = train_reward_model(reference, jokes, settings["pairs"], settings["seed"])
    else:
        problems, held_out = open_exercises(net, settings)
        if "before" not in state:
            state["before"] = evaluate(net, held_out)
            print(f"before, on held-out problems | {describe(state['before'])}", flush=True)
        if not state["before"][f"pass@{K}"]:
            print("it is never right: there is nothing that RL could make more likely")
    if not iterations:
        return 0
    grads, best = views(np.empty_like(vector(net[0])), net[1]), args.out + "-best"
    progress = Run(args.out, state["iteration"], iterations, PAUSES, log)
    for iteration in progress.steps():
        if learned:
            rollouts, rewards, figures = rollout_jokes(net, reward_model, jokes, settings,
                                                       iteration)
            if figures["gold_reward"] > state.get("best", -math.inf):
                state |= {"best": figures["gold_reward"], "best_iteration": iteration}
                save(best, *net)  # the policy of whoever would have stopped here
        else:
            rollouts, rewards, figures = rollout_exercises(net, problems, settings, iteration)
        norm = improve(net, averages, grads, settings, iteration, rollouts, rewards, reference[0])
        pause = progress.pause()
        progress.show(f"{iteration}/{iterations} | {describe(figures)} | grad {norm:.2f} | "
                      f"{progress.left()} left", keep=pause, iteration=iteration, grad_norm=norm,
                      seconds=progress.seconds(), **figures)
        if pause:
            progress.show("    " + paint(printable(rollouts.texts[0]), "2"))
            state["iteration"] = iteration
            if iteration == iterations and not learned:
                state["after"] = evaluate(net, held_out)
            save_run(args.out, "rl", net, averages, state, progress.log)
    if status := progress.close("rl.py"):
        return status
    if learned:
        print(f"{best}: the policy before iteration {state['best_iteration']}, of the highest gold "
              f"reward ({state['best']:.2f})")
    else:
        print(f"before | {describe(state['before'])}\n after | {describe(state['after'])}")
    print(f"wrote {args.out}; next: python sample.py --chat --model {args.out}")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="rl.py", description=__doc__.split("\n\n")[0][3:])
    add = parser.add_argument
    add("--model", default="out/sft", help="the assistant to start from (%(default)s)")
    add("--doubt", action="store_true", help=f"start from {DOUBT_MODEL}, which guesses")
    add("--silent", action="store_true", help="forbid thoughts")
    add("--reward", choices=RECIPES, default="answer", help="checked answers, or a reward model")
    add("--kl", type=float, default=0.0, help="weight of the KL penalty (%(default)s)")
    add("--pairs", type=int, default=PAIRS, help="comparisons for the reward model (%(default)s)")
    add("--problems", metavar="FILE", help=f"problems in GSM8K's shape ({PROBLEMS})")
    add("--final", metavar="FILE", help="problems to evaluate on (a tenth of --problems)")
    add("--iterations", type=int, help="of rollouts and updates (40; with --reward model 70)")
    add("--seed", type=int, default=0, help="of all random numbers (%(default)s)")
    add("--out", help="checkpoint folder to write (out/rl, out/rl-jokes-kl, ...)")
    add("--resume", action="store_true", help="go on with the run in --out")
    return run_command(parser, start, argv)


def start(args):
    """Names the folder to write, unless --out does, and holds it for the run."""
    if args.doubt:
        args.model = DOUBT_MODEL
    jokes = args.reward == "model"
    args.out = os.path.normpath(args.out or "out/rl" + "-jokes" * jokes + "-doubt" * args.doubt
                                + "-silent" * args.silent + "-problems" * bool(args.problems)
                                + "-kl" * bool(args.kl))
    if args.iterations == 0 and not args.resume:
        return run(args)  # writes nothing
    for folder in [args.out] + [args.out + "-best"] * jokes:
        check_out(folder)
        if os.path.realpath(folder) == os.path.realpath(args.model) and not args.resume:
            raise ValueError(f"--out {args.out}: would replace the model that the run needs")
    with locked(args.out, "rl.py"):
        return run(args)


if __name__ == "__main__":
    sys.exit(main())
