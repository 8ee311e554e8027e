"""4. Pretraining: the network reads text and learns to predict the next token. Nothing else.

    python train.py                              out/tokens/, out/tokenizer.json -> out/base/
    python train.py --size 5M --steps 4000       a larger network, for longer
    python train.py --muon-lr 0                  AdamW for all weights, to compare
    python train.py --resume                     go on where an interrupted run stopped

Each step reads windows of T + 1 tokens from random positions of the text, predicts every next token
at once, and moves all weights a little against the gradient of the loss:

    window    The   fox   lives  in    the   forest
    ids       The   fox   lives  in    the             what the network reads
    targets   fox   lives in     the   forest          what it should predict at each position

The loss is the cross-entropy in nats per token: minus the natural logarithm of the probability that
the right token got. A probability of 1/4 costs 1.39 nats. exp(loss) is the perplexity: 4 means as
unsure as among 4 equally likely tokens. A new network is so among all 1,024 (6.93 nats).

out/base/ is a checkpoint folder (checkpoint.py). Ctrl-C saves the run. --resume ends in the same
bits as a run in one go: the weights of the best evaluation on held-out text.

Reading order: sample_windows; run, the training loop; evaluate. Sources: Radford et al. 2018, 2019
(GPT), Hoffmann et al. 2022 (how much to read). Left out: several machines, mixed precision.
"""
# First: from here on Ctrl-C ends the script in one line at most.
from common import (Run, compiling, locked, print_settings, printable, read_json_lines,
                    run_command)

import argparse
import math
import os
import sys

import numpy as np

import optimizer
from bpe import END, Tokenizer, read_tokens
from checkpoint import check_out, load_run, save_run
from model import (SIZES, Buffers, Config, count, flops_per_token, init_params, loss_and_grads,
                   micro_batch, not_finite, token_losses, vector, views)
from sample import generate, recall

# By size. batch: windows a step; lr: AdamW's learning rate; muon_lr: Muon's, for the matrices in
# the blocks (optimizer.py). A larger network needs smaller steps: lower learning rates.
RECIPES = {"0.3M": {"steps": 2000, "batch": 16, "lr": 8e-3, "muon_lr": 0.04},
           "1M": {"steps": 2700, "batch": 8, "lr": 5e-3, "muon_lr": 0.03},
           "5M": {"steps": 2000, "batch": 16, "lr": 2e-3, "muon_lr": 0.02},
           "25M": {"steps": 2000, "batch": 16, "lr": 1e-3, "muon_lr": 0.01}}
EPOCHS = 6  # times that a text is read, at most
EVAL_TOKENS = 32_768  # of the held-out text, always the same ones
LOG_EVERY, SAVES = 10, 10  # steps between log lines; how often a run is evaluated and saved


# ---- What a step reads ---------------------------------------------------------------------------

def sample_windows(rng, tokens, B, T):
    """ids and targets (B,T) from random positions of tokens (n,); targets are one position later.
    Of 10 11 12 13 14 15, with T = 3 and the random starts 2 and 0:

        ids  12 13 14    targets  13 14 15
             10 11 12             11 12 13

    One window trains T predictions: 13 after 12, 14 after 12 13, and 15 after 12 13 14.

    A window may cross <|endoftext|> into another document: the network learns that what stands
    before that token has nothing to do with what follows."""
    starts = rng.integers(0, len(tokens) - T, B)
    windows = np.stack([tokens[i:i + T + 1] for i in starts]).astype(np.int64)  # (B,T+1)
    return windows[:, :-1], windows[:, 1:]


def show_one_step(params, config, tokenizer, tokens, lr):
    """Prints how the first window of the text begins, and what one step on it does to the
    probabilities of the right tokens. A new network finds all 1,024 about equally likely, 0.1%. One
    step changes little; learning is some thousand of them:

         reads  should predict  probability  after one step on this window
        'Word'  ' games'              0.11%           0.17%"""
    params = views(vector(params).copy(), config)  # the run itself begins with unchanged weights
    window = tokens[None, :config.ctx + 1].astype(np.int64)  # (1,T+1)
    ids, targets = window[:, :-1], window[:, 1:]
    before = np.exp(-token_losses(params, config, ids, targets))[0]  # (T,)
    _, grads = loss_and_grads(params, config, ids, targets)
    optimizer.update(params, grads, optimizer.start(params), config, 1, lr)
    after = np.exp(-token_losses(params, config, ids, targets))[0]
    print(f"{'reads':>12}  {'should predict':14}  probability  after one step on this window")
    for i in range(min(6, config.ctx)):
        read, right = (repr(tokenizer.decode([int(row[0, i])])) for row in (ids, targets))
        print(printable(f"{read:>12}  {right:14}  {before[i]:11.2%}  {after[i]:14.2%}"), flush=True)


# ---- The run -------------------------------------------------------------------------------------

def open_run(args, tokenizer, n_tokens):
    """net (params, config, tokenizer), the optimizer's averages, state and log: of a new run, or of
    the one to resume.

    A run that goes on ends in the same bits because its whole state was saved: weights, averages,
    the random numbers' state, the step (which sets the learning rate), and the settings it began
    with, which override the command line.

    A new run reads the text EPOCHS times at most: what is read again and again is memorized, and
    the held-out loss rises. Of 100,000 tokens, with 16 windows of 256, at most 146 steps."""
    if args.resume:
        net, averages, state, log = load_run(args.out, "train")
        if net[2].fingerprint() != tokenizer.fingerprint():
            raise ValueError(f"{args.tokenizer}: not the tokenizer that {args.out} was trained "
                             "with; name that one with --tokenizer")
        return net, averages, state, log
    settings = {"size": args.size, **RECIPES[args.size], "ctx": SIZES[args.size]["ctx"]}
    # Flags that were given override the recipe.
    settings |= {name: getattr(args, name) for name in settings if getattr(args, name) is not None}
    for name in ("steps", "batch", "ctx"):
        if settings[name] < 1:
            raise ValueError(f"--{name} {settings[name]}: at least 1 is needed")
    if args.steps is None:
        most = EPOCHS * n_tokens // (settings["batch"] * settings["ctx"])
        settings["steps"] = min(settings["steps"], max(1, most))
    settings["seed"] = args.seed
    end = tokenizer.special_tokens[END]  # between documents, so each begins and ends with it
    config = Config(vocab=tokenizer.vocab_size, bos=(end,), eos=(end,),
                    **SIZES[args.size] | {"ctx": settings["ctx"]})
    params = init_params(config, args.seed)
    state = {"step": 0, "settings": settings,
             "rng": np.random.default_rng(args.seed).bit_generator.state}
    return (params, config, tokenizer), optimizer.start(params), state, []


def describe(config, settings, n_tokens):
    """Prints the settings and what they come to: 0.9M parameters of 16 bytes (weight, gradient and
    two averages, each a float32) are 15 MB; 2,700 steps of 8 windows of 256 are 5.5M tokens."""
    n, read = count(config)[0], settings["steps"] * settings["batch"] * config.ctx
    shape = {name: getattr(config, name) for name in ("dim", "layers", "heads", "hidden")}
    print_settings("train.py", settings | shape | {"vocabulary": config.vocab})
    print(f"{n / 1e6:.1f}M parameters, {flops_per_token(config, config.ctx) / 1e6:.1f} MFLOP per "
          f"token, {16 * n / 1e6:.0f} MB for weights, gradients and two averages | "
          f"{read / 1e6:.1f}M tokens, {read / n_tokens:.1f} times the text", flush=True)


def run(args):
    """Trains as args say. params, grads and the two averages hold one number for every weight of
    the network: a step fills grads anew and changes the other three in place."""
    tokenizer = Tokenizer.load(args.tokenizer)
    train, val = (read_tokens(args.tokens, part, tokenizer) for part in ("train", "val"))
    net, averages, state, log = open_run(args, tokenizer, len(train))
    (params, config, _), settings = net, state["settings"]
    B, T, steps = settings["batch"], config.ctx, settings["steps"]
    if min(len(train), len(val)) < T + 2:
        raise ValueError(f"{args.tokens}: {len(train)} tokens to train on and {len(val)} to "
                         f"validate, fewer than one window of {T + 2}; give bpe.py more text, or "
                         "train.py a smaller --ctx")
    facts = read_facts(args.facts, tokenizer, T)
    if state["step"] >= steps:
        return print(f"{args.out} has done its {steps} steps; without --resume a new run begins")
    describe(config, settings, len(train))
    # What is large is allocated once, for all steps. If the windows of a step would take too much
    # memory side by side, fewer go through at a time (micro_batch), and the gradients are added.
    buffers = Buffers(config, micro_batch(config, B, T), T)
    grads = views(np.empty_like(vector(params)), config)
    rng = np.random.default_rng()
    rng.bit_generator.state = state["rng"]
    if not state["step"]:
        with compiling():  # most kernels are used here for the first time
            show_one_step(params, config, tokenizer, train, settings["lr"])
    progress, losses = Run(args.out, state["step"], steps, SAVES, log), []
    for step in progress.steps():
        # Read: B windows of the text.
        ids, targets = sample_windows(rng, train, B, T)
        # Compare: the mean loss of B * T predictions, and its gradient, one number a weight.
        loss, _ = loss_and_grads(params, config, ids, targets, grads=grads, buffers=buffers)
        # Update: every weight moves so that the loss falls. How far, the learning rates say, which
        # rise and then fall to zero. A Muon rate of 0 leaves all weights to AdamW.
        lr, muon_lr = (optimizer.learning_rate(step - 1, steps, settings[key])
                       for key in ("lr", "muon_lr"))
        norm = optimizer.update(params, grads, averages, config, step, lr, muon_lr=muon_lr or None)
        # That is all; the rest watches, prints and saves.
        if not math.isfinite(loss + norm):
            raise ValueError(f"step {step}: the loss is {loss}, not finite in the gradients: "
                             f"{not_finite(grads)}; try a third of the learning rate "
                             f"{settings['lr']}. Last step saved: {state['step'] or 'none'}")
        losses.append(loss)
        # The loss of one batch is noisy, so the mean of LOG_EVERY batches is shown.
        if step % LOG_EVERY == 0 or step == steps:
            loss, losses = float(np.mean(losses)), []
            speed = (step - progress.first) * B * T / progress.seconds()
            progress.show(f"step {step}/{steps} | loss {loss:.3f} nats | lr {lr:.1e} | "
                          f"{speed:,.0f} tok/s | {progress.left()} left", keep=False, step=step,
                          loss=loss, lr=lr, grad_norm=norm, tokens_per_s=speed)
        # The last evaluation puts the best weights into params, so it comes before the save.
        if progress.evaluation_due():
            evaluate_run(progress, net, averages, state, val, facts)
        if progress.save_due():
            state |= {"step": step, "rng": rng.bit_generator.state}
            save_run(args.out, "train", net, averages, state, progress.log)
    if status := progress.close("train.py"):
        return status
    print(f"wrote {args.out}, best at step {state['best_step']}: {state['best_nats']:.3f} nats per "
          f"token, {state['best_bits']:.3f} bits per byte on held-out text; next: "
          f"python sample.py --model {args.out} --prompt \"Once\"")


def evaluate_run(progress, net, averages, state, val, facts):
    """What happens ten times a run: held-out loss, facts, a text sample.

    When a text is memorized, the loss on it falls on while the held-out loss rises (overfitting).
    So a copy of the best weights is saved with the averages, and the run ends with these."""
    (params, config, tokenizer), step = net, progress.step
    nats, bits = evaluate(params, config, val, tokenizer)
    known = recall(params, config, tokenizer, facts) if facts else None
    if nats <= state.get("best_nats", math.inf):
        state |= {"best_nats": nats, "best_bits": bits, "best_step": step}
        averages["best"] = vector(params).copy()
    progress.show(f"step {step}/{progress.total} | held-out loss {nats:.3f} nats, perplexity "
                  f"{math.exp(min(nats, 99)):.2f}, {bits:.3f} bits/byte | "
                  + (f"facts {known:.0%} | " if facts else "") + f"{progress.seconds():.0f} s",
                  step=step, val_loss=nats, bits_per_byte=bits, recall=known,
                  seconds=progress.seconds())
    if step == progress.total:
        vector(params)[:] = averages.pop("best")
    # The sample begins with <|endoftext|>, as every document did in training.
    text = generate(params, config, [list(config.bos)], 40, temperature=0.8, seed=step)[0]
    progress.show("    " + printable(" ".join(tokenizer.decode(text).split())))


# ---- Evaluation ----------------------------------------------------------------------------------

def evaluate(params, config, tokens, tokenizer):
    """(nats per token, bits per byte) over the first EVAL_TOKENS of tokens, windows side by side.

    A tokenizer with longer tokens makes fewer and harder predictions. Bits per byte do not depend
    on it: they are what the text takes when this network compresses it. Example: 1.4 nats are
    1.4 / ln 2 = 2 bits a token; with 4 bytes in a token, 0.5 bits per byte instead of 8. Special
    tokens are predicted too, but are no text."""
    T = config.ctx
    n = max(1, min(EVAL_TOKENS, len(tokens) - 1) // T) * T
    ids, targets = (tokens[i:i + n].reshape(-1, T).astype(np.int64) for i in (0, 1))
    nats = token_losses(params, config, ids, targets).sum(dtype=np.float64)
    n_bytes = sum(len(tokenizer.token_bytes(k)) for k in targets.ravel().tolist()
                  if k not in tokenizer.special_tokens.values())
    return nats / n, nats / math.log(2) / max(1, n_bytes)


def read_facts(path, tokenizer, T):
    """Every fourth of the sentences to complete in world.py's file, such as {"prompt": "Talgo lives
    in", "answer": " Tidewick"}. They show what the network knows. None if there is no file."""
    facts = []
    for number, fact in read_json_lines(path) if os.path.exists(path) else ():
        if not all(isinstance(fact.get(key), str) for key in ("prompt", "answer")):
            raise ValueError(f"{path}, line {number}: no prompt and answer")
        facts.append(fact)
    return [fact for fact in facts[::4]
            if len(tokenizer.encode(fact["prompt"] + fact["answer"])) <= T]


def main(argv=None):
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__.split("\n\n")[0][3:])
    add = parser.add_argument
    add("--size", choices=SIZES, default="1M", help="approximate parameters (%(default)s)")
    add("--steps", type=int, help="updates of the weights (by size; fewer for a small text)")
    add("--batch", type=int, help="windows a step (by size)")
    add("--ctx", type=int, help="tokens in a window, the most the network can look at (by size)")
    add("--lr", type=float, help="highest learning rate of AdamW (by size)")
    add("--muon-lr", type=float, help="the same of Muon; 0: AdamW for all weights (by size)")
    add("--seed", type=int, default=0, help="of the first weights and the windows (%(default)s)")
    add("--tokens", default="out/tokens", help="folder with train.npy and val.npy (%(default)s)")
    add("--tokenizer", default="out/tokenizer.json", help="the tokens' tokenizer (%(default)s)")
    add("--facts", default="out/world/facts.jsonl", help="sentences to complete, or none")
    add("--out", default="out/base", help="checkpoint folder to write (%(default)s)")
    add("--resume", action="store_true", help="go on with the run in --out")
    return run_command(parser, start, argv)


def start(args):
    """A run, the only one in its folder."""
    check_out(args.out)
    with locked(args.out, "train.py"):
        return run(args)


if __name__ == "__main__":
    sys.exit(main())
