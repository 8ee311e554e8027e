"""5. Pretraining: the network reads text and learns to predict the next token. Nothing else.

    python train.py                              out/tokens/, out/tokenizer.json -> out/base/
    python train.py --size 5M --steps 4000       a larger network, for longer
    python train.py --muon-lr 0                  AdamW for all weights, to compare
    python train.py --resume                     go on where an interrupted run stopped

Each step takes windows of T + 1 tokens from random positions of the training text, asks the network
for every next token at once, and moves all weights a little against the gradient of the loss:

    window    The   fox   lives  in    the   forest
    ids       The   fox   lives  in    the             what the network reads
    targets   fox   lives in     the   forest          what it should predict at each position

The loss is the cross-entropy in nats per token: minus the logarithm of the probability that the
right token got. exp(loss) is the perplexity: 2.2 means as unsure as between 2.2 equally likely
tokens. Bits per byte of text can be compared between tokenizers.

out/base/ is a checkpoint folder (checkpoint.py) with the optimizer's averages, the state of the run
and log.jsonl beside the weights. Ctrl-C saves; --resume goes on to the same bits as if nothing had
happened. At the end the folder holds the weights of the best evaluation on held-out text.

Reading order: sample_windows; run, the training loop; evaluate. Sources: Radford et al. 2018, 2019
(GPT), Hoffmann et al. 2022 (how much to read). Left out: several machines, mixed precision.
"""
import argparse
import math
import sys

import numpy as np

import optimizer
from bpe import END, Tokenizer, read_tokens
from checkpoint import check_out, load_run, save_run
from common import (Run, compiling, locked, print_settings, printable, read_json_lines,
                    run_command)
from model import (SIZES, Buffers, Config, count, flops_per_token, init_params, loss_and_grads,
                   micro_batch, not_finite, token_losses, vector, views)
from sample import generate, recall

RECIPES = {  # size: (learning rate, Muon's learning rate, windows a step, steps)
    "0.3M": (8e-3, 0.04, 16, 2000), "1M": (5e-3, 0.03, 8, 2400),
    "5M": (2e-3, 0.02, 16, 2000), "25M": (1e-3, 0.01, 16, 2000)}
EPOCHS = 6  # times that a text is read at most: a small text needs fewer steps
EVAL_TOKENS = 32_768  # of the held-out text, always the same ones
LOG_EVERY, PAUSES = 10, 10  # steps between log lines; how often a run is evaluated and saved


# ---- What a step reads ---------------------------------------------------------------------------

def sample_windows(rng, tokens, B, T):
    """ids and targets (B,T) from random positions of tokens (n,); targets are one position later.

    A window may begin in mid-sentence and cross <|endoftext|> into another document: the network
    learns that what stands before that token has nothing to do with what follows."""
    starts = rng.integers(0, len(tokens) - T, B)
    windows = np.stack([tokens[i:i + T + 1] for i in starts]).astype(np.int64)  # (B,T+1)
    return windows[:, :-1], windows[:, 1:]


def show_one_step(params, config, tokenizer, tokens, lr):
    """Prints how the first window of the text begins, and what one step on that window does to the
    probabilities of the right tokens. The step is taken on a copy of the weights."""
    params = views(vector(params).copy(), config)
    window = tokens[None, :config.ctx + 1].astype(np.int64)  # (1,T+1)
    ids, targets = window[:, :-1], window[:, 1:]
    before = np.exp(-token_losses(params, config, ids, targets))[0]
    _, grads = loss_and_grads(params, config, ids, targets)
    optimizer.update(params, grads, optimizer.start(params), config, 1, lr)
    after = np.exp(-token_losses(params, config, ids, targets))[0]
    print(f"{'reads':>12}  {'should predict':14}  probability  after one step on this window")
    for i in range(min(6, config.ctx)):
        read, right = (repr(tokenizer.decode([int(row[0, i])])) for row in (ids, targets))
        print(printable(f"{read:>12}  {right:14}  {before[i]:11.2%}  {after[i]:14.2%}"), flush=True)


# ---- The run -------------------------------------------------------------------------------------

def open_run(args, tokenizer, n_tokens):
    """settings, config, params, averages, state, log: fresh, or from the checkpoint to resume.

    A run that goes on has the same bits because its whole state is in the checkpoint: weights,
    optimizer's averages, the random numbers' state, the step (which sets the learning rate), and
    the settings it began with, which therefore override the command line."""
    if args.resume:
        (params, config, known), averages, state, log = load_run(args.out, "train")
        if known.fingerprint() != tokenizer.fingerprint():
            raise ValueError(f"{args.tokenizer}: not the tokenizer that {args.out} was trained "
                             "with; name that one with --tokenizer")
        return state["settings"], config, params, averages, state, log
    lr, muon_lr, batch, steps = RECIPES[args.size]
    ctx = SIZES[args.size]["ctx"] if args.ctx is None else args.ctx
    batch = batch if args.batch is None else args.batch
    for name, value in (("--ctx", ctx), ("--batch", batch),
                        ("--steps", 1 if args.steps is None else args.steps)):
        if value < 1:
            raise ValueError(f"{name} {value}: at least 1 is needed")
    if args.steps is None:
        args.steps = min(steps, max(1, EPOCHS * n_tokens // (batch * ctx)))
    settings = {"size": args.size, "steps": args.steps, "batch": batch, "seed": args.seed,
                "lr": lr if args.lr is None else args.lr,
                "muon_lr": muon_lr if args.muon_lr is None else args.muon_lr}
    end = tokenizer.special_tokens[END]
    config = Config(vocab=tokenizer.vocab_size, bos=(end,), eos=(end,),
                    **SIZES[args.size] | {"ctx": ctx})
    params = init_params(config, args.seed)
    state = {"step": 0, "rng": np.random.default_rng(args.seed).bit_generator.state}
    return settings, config, params, optimizer.start(params), state, []


def describe(config, settings, n_tokens):
    """The first lines: every setting, and what they come to. 16 bytes a parameter: four float32."""
    B, T, steps, n = settings["batch"], config.ctx, settings["steps"], count(config)[0]
    print_settings("train.py", settings | {
        "ctx": T, "dim": config.dim, "layers": config.layers, "heads": config.heads,
        "hidden": config.hidden, "vocabulary": config.vocab})
    print(f"{n / 1e6:.1f}M parameters, {flops_per_token(config, T) / 1e6:.1f} MFLOP per token, "
          f"{16 * n / 1e6:.0f} MB for weights, gradients and two averages | {steps} steps of {B} "
          f"windows x {T} tokens = {steps * B * T / 1e6:.1f}M tokens, "
          f"{steps * B * T / n_tokens:.1f} times the text", flush=True)


def run(args):
    """Trains as args say: read windows, compute the gradient, update; ten times a run an
    evaluation, a text sample and a save."""
    tokenizer = Tokenizer.load(args.tokenizer)
    if END not in tokenizer.special_tokens:
        raise ValueError(f"{args.tokenizer}: has no {END} to stand between documents; "
                         "python bpe.py adds it")
    train, val = (read_tokens(args.tokens, part, tokenizer) for part in ("train", "val"))
    settings, config, params, averages, state, log = open_run(args, tokenizer, len(train))
    B, T, steps = settings["batch"], config.ctx, settings["steps"]
    check_text(args.tokens, train, val, T)
    facts = read_facts(args.facts, tokenizer, config)
    if state["step"] >= steps:
        print(f"{args.out} has done its {steps} steps; leave out --resume to begin another run")
        return 0
    describe(config, settings, len(train))
    # What is large is allocated here, once, and used by every step.
    buffers = Buffers(config, micro_batch(config, B, T), T)
    grads = views(np.empty_like(vector(params)), config)
    rng = np.random.default_rng()
    rng.bit_generator.state = state["rng"]
    with compiling():
        one_step(params, grads, config, buffers)
    if state["step"] == 0:
        show_one_step(params, config, tokenizer, train, settings["lr"])
    progress = Run(args.out, state["step"], steps, PAUSES, log)
    losses = []
    for step in progress.steps():
        ids, targets = sample_windows(rng, train, B, T)
        loss, _ = loss_and_grads(params, config, ids, targets, grads=grads, buffers=buffers)
        lr, muon_lr = (optimizer.learning_rate(step - 1, steps, settings[key])
                       for key in ("lr", "muon_lr"))  # muon_lr 0: AdamW for all weights
        norm = optimizer.update(params, grads, averages, config, step, lr, muon_lr=muon_lr or None)
        if not math.isfinite(loss + norm):
            raise ValueError(f"step {step}: the loss is {loss}, and {not_finite(grads)} was the "
                             f"first gradient to overflow; a learning rate of {settings['lr']} is "
                             f"too large, try a third. {saved(args.out, state)}")
        losses.append(loss)
        if step % LOG_EVERY == 0 or step == steps:
            loss, losses = float(np.mean(losses)), []
            speed = (step - progress.first) * B * T / progress.seconds()
            progress.show(f"step {step}/{steps} | loss {loss:.3f} nats | lr {lr:.1e} | "
                          f"{speed:,.0f} tok/s | {progress.left()} left", keep=False, step=step,
                          loss=loss, lr=lr, grad_norm=norm, tokens_per_s=speed)
        if progress.pause():
            state |= {"step": step, "settings": settings, "rng": rng.bit_generator.state}
            evaluate_and_save(progress, (params, config, tokenizer), averages, state, val, facts)
    if status := progress.close("train.py"):
        return status
    print(f"wrote {args.out}, best at step {state['best_step']}: {state['best_nats']:.3f} nats per "
          f"token, {state['best_bits']:.3f} bits per byte on held-out text; next: "
          f"python sample.py --model {args.out} --prompt \"Once\"")


def evaluate_and_save(progress, net, averages, state, val, facts):
    """What happens ten times a run: held-out loss, facts, a save, a text sample. Keeps a copy of
    the best weights so far; the last save is of these."""
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
    save_run(progress.out, "train", net, averages, state, progress.log)
    text = generate(params, config, [list(config.bos)], 40, temperature=0.8, seed=step)[0]
    progress.show("    " + printable(" ".join(tokenizer.decode(text).split())))


def saved(out, state):
    """What is in `out` when a run fails, for messages."""
    return f"{out} keeps step {state['step']}" if state["step"] else "Nothing was saved yet"


def one_step(params, grads, config, buffers):
    """Runs everything once on zeros, so that compiling is over before the clock starts."""
    ids = np.zeros((buffers.B, buffers.T), np.int64)
    loss_and_grads(params, config, ids, ids, grads=grads, buffers=buffers)
    zeros = views(np.zeros_like(vector(params)), config)
    optimizer.update(zeros, zeros, optimizer.start(zeros), config, 1, 0.0, muon_lr=0.01)


# ---- Evaluation ----------------------------------------------------------------------------------

def evaluate(params, config, tokens, tokenizer):
    """(nats per token, bits per byte) over the first EVAL_TOKENS of tokens, windows side by side.

    A tokenizer with longer tokens makes fewer and harder predictions. The bits of all of them over
    the bytes of the text do not depend on it: what the text would take when compressed with this
    network. Special tokens are predicted, too, but are no text."""
    T = config.ctx
    n = max(1, min(EVAL_TOKENS, len(tokens) - 1) // T)  # windows
    windows = np.asarray(tokens[:n * T + 1], np.int64)
    ids, targets = windows[:-1].reshape(n, T), windows[1:].reshape(n, T)
    nats = token_losses(params, config, ids, targets).sum(dtype=np.float64)
    specials = set(tokenizer.special_tokens.values())
    n_bytes = sum(len(tokenizer.token_bytes(k)) for k in targets.ravel().tolist()
                  if k not in specials)
    return nats / targets.size, nats / math.log(2) / max(1, n_bytes)


def read_facts(path, tokenizer, config):
    """Every fourth of the facts {"prompt", "answer"} that world.py wrote: sentences to complete,
    to follow by what the network knows. None for another text ("none", or no such file)."""
    if path == "none":
        return []
    try:
        facts = [fact for _, fact in read_json_lines(path)][::4]
    except ValueError:
        return []
    return [fact for fact in facts
            if len(tokenizer.encode(fact["prompt"] + fact["answer"])) <= config.ctx]


def check_text(folder, train, val, T):
    """Both parts must hold at least one window."""
    for part, tokens in (("train", train), ("val", val)):
        if len(tokens) < T + 2:
            raise ValueError(f"{folder}/{part}.npy: {len(tokens)} tokens, fewer than one window of "
                             f"{T + 2}; give bpe.py more text, or train.py a smaller --ctx")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__.split("\n\n")[0][3:])
    add = parser.add_argument
    add("--size", choices=SIZES, default="1M", help="about so many parameters (%(default)s)")
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

    def locked_run(args):
        check_out(args.out)
        with locked(args.out, "train.py"):
            return run(args)
    return run_command(parser, locked_run, argv)


if __name__ == "__main__":
    sys.exit(main())
