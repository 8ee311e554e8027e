"""5. Pretraining: the network reads text and learns to guess the next token. Nothing else.

Each step draws windows of T + 1 tokens at random places of the training text, asks the network for
every next token at once, and moves all parameters a little against the gradient of the loss. The
loss is in nats per token: exp(loss) is the number of tokens it wavers between. Bits per byte of
text can be compared between tokenizers.

    python train.py                              out/tokens/, out/tokenizer.json -> out/base/
    python train.py --size 5M --steps 4000       a larger network, for longer
    python train.py --resume                     go on where an interrupted run stopped

On two cores of an AMD EPYC (Zen 4), the default world's 1M model: 3,000 steps of 16 x 128 tokens =
6.1M tokens take 5 min, 23,000-24,000 tokens a second.

out/base/ is a checkpoint folder (model.py), with the optimizer's averages and where the run stands
beside the weights, and log.jsonl, one line for each one shown. Ctrl-C saves; --resume goes on to
the same bits as if nothing had happened. A loss that is no number stops the run and says why.

Sources: AdamW (Loshchilov and Hutter 2019), gradient clipping (Pascanu et al. 2013), warm-up and
linear decay to zero (Bergsma et al. 2025). Left out: several machines, mixed precision.
"""
import argparse
import json
import math
import os
import signal
import sys
import time

import numba
import numpy as np

from bpe import END, Tokenizer
from kernels import adamw, matmul, sum_of_squares
from model import (SIZES, Buffers, Config, count, flat, flops_per_token, forward, init_params,
                   loss_and_grads, micro_batch, read_safetensors, save, token_losses, views)
from sample import generate, open_model

RECIPES = {  # size: (learning rate, windows a step, steps): small networks bear large steps
    "0.3M": (5e-3, 16, 2000), "1M": (3e-3, 16, 3000),
    "5M": (1.5e-3, 16, 2000), "25M": (8e-4, 16, 2000)}
# AdamW's averages look back over some 1 / (1 - beta) steps: 10 for the gradient, 20 for its square
# (GPT-3's value; the usual 0.999 would remember the first, wild steps for a thousand).
BETA1, BETA2, EPS = 0.9, 0.95, 1e-8
DECAY = 0.1  # weight decay of the matrices: each step they shrink by lr * 0.1
CLIP = 1.0  # the longest gradient that is taken as it is
WARMUP = 0.05  # part of the steps in which the learning rate rises
EVAL_TOKENS = 32_768  # of the validation text, always the same ones
LOG_EVERY, EVALS = 10, 10  # steps between lines; how often a run is evaluated, sampled and saved


# ---- What a step is made of ----

def learning_rate(step, steps, peak):
    """Of step 0, 1, ...: rises linearly over the first WARMUP of them, then falls linearly to zero.

    It rises because AdamW's averages are of few gradients at first, and falls because large steps
    find the valley and small ones its floor. Falling to zero is why the number of steps has to be
    known beforehand."""
    warmup = max(1, int(WARMUP * steps))
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def draw_windows(rng, tokens, B, T):
    """ids and targets (B,T) from random places of tokens; a target is the id one place further on.

    A window may begin in mid-sentence and cross <|endoftext|> into another document: the network
    learns that what stands before that mark has nothing to do with what follows."""
    starts = rng.integers(0, len(tokens) - T, B)
    windows = tokens[starts[:, None] + np.arange(T + 1)].astype(np.int64)  # (B,T+1), read from disk
    return windows[:, :-1], windows[:, 1:]


class Optimizer:
    """AdamW: two running averages, of the gradient and of its square, for each parameter.

    What it does with them stands in kernels/rows.py (adamw). Both are flat vectors in the order of
    model.shapes, so training takes four times the memory of the weights: they, their gradients
    and these two."""

    def __init__(self, params, config):
        self.m1, self.m2 = np.zeros_like(flat(params)), np.zeros_like(flat(params))
        self.n_decayed = count(config)[1]  # the matrices, which come first

    def step(self, params, grads, number, lr, decay=DECAY):
        """Changes params; number counts from 1. Returns the gradient's length before clipping.

        A longer gradient is cut to length CLIP and keeps its direction, so that one odd batch can't
        throw the parameters far off."""
        norm = math.sqrt(sum_of_squares(flat(grads)))
        scale = CLIP / norm if norm > CLIP else 1.0
        adamw(flat(params), flat(grads), self.m1, self.m2, scale, lr, BETA1, BETA2, EPS, decay,
              self.n_decayed, number)
        return norm


def evaluate(params, config, tokens, token_bytes, buffers):
    """(nats per token, bits per byte) over the first EVAL_TOKENS tokens, window beside window.

    token_bytes (V,): each token's length in bytes. A tokenizer with longer tokens has fewer and
    harder guesses; bits for all of them over bytes of text is the same measure for both, and what
    the text would take when compressed with this network."""
    T = buffers.T
    n = max(1, min(EVAL_TOKENS, len(tokens) - 1) // T)  # windows
    windows = np.asarray(tokens[:n * T + 1], np.int64)
    ids, targets = windows[:-1].reshape(n, T), windows[1:].reshape(n, T)
    nats = token_losses(params, config, ids, targets, buffers).sum(dtype=np.float64)
    return nats / targets.size, nats / math.log(2) / token_bytes[targets].sum()


def recall(params, config, tokenizer, facts):
    """Part of the facts {"prompt", "answer"} that the network completes: of all tokens of the
    answer, each the likeliest. Loss falls smoothly; this jumps when facts are really known.

    Nothing is generated: one forward pass over prompt and answer tells, at every place, which token
    would have come next. If each is the answer's, greedy decoding would write just that."""
    told = [list(tokenizer.encode(fact["prompt"])) for fact in facts]
    full = [ids + list(tokenizer.encode(fact["answer"])) for ids, fact in zip(told, facts)]
    ids = np.zeros((len(full), max(map(len, full))), np.int64)  # behind an answer: unseen padding
    for row, tokens in zip(ids, full):
        row[:len(tokens)] = tokens
    best = np.concatenate([forward(params, config, ids[i:i + 64]).argmax(-1)  # 64: logits are large
                           for i in range(0, len(ids), 64)])
    # What is said at place i is the guess for place i + 1.
    return sum(list(row[len(start) - 1:len(tokens) - 1]) == tokens[len(start):]
               for row, start, tokens in zip(best, told, full)) / len(facts)


# ---- What goes in and what is shown ----

def read_tokens(folder, name, config):
    """A memory-mapped token file (bpe.py's), if it fits the vocabulary and one window. Mapped, a
    file larger than memory trains as well: only what a step draws is read."""
    path = os.path.join(folder, name + ".npy")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no tokens there; python bpe.py makes them")
    tokens = np.load(path, mmap_mode="r")
    if len(tokens) < config.ctx + 2:
        raise ValueError(f"{path}: {len(tokens)} tokens, fewer than one window of "
                         f"{config.ctx + 2}; give bpe.py more text, or train.py a smaller --ctx")
    if (top := int(tokens.max())) >= config.vocab:
        raise ValueError(f"{path}: token {top} is not in the vocabulary of {config.vocab}; "
                         "python bpe.py writes tokens and tokenizer together")
    return tokens


def read_facts(path):
    """Every fourth of the facts that the default world asks about (world.py), or none: a part
    is enough to follow a curve by."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f][::4]


def matmul_peak(seconds=0.2):
    """FLOP/s of our best large product on this machine: what a whole step is compared with. The
    rest of a step (norms, softmax, the optimizer) does few operations and waits for memory."""
    a, b = np.ones((2048, 512), np.float32), np.ones((512, 512), np.float32)
    out, best, stop = np.empty((2048, 512), np.float32), math.inf, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        begin = time.perf_counter()
        matmul(a, b, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2 * a.shape[0] * b.size / best


def first_call(params, config, buffers, grads):
    """Runs everything once, so that compiling is over (and told) before the clock starts. Trains
    nothing: the gradients are overwritten, and the step is taken on zeros. Returns matmul_peak."""
    begin = time.perf_counter()
    ids = np.zeros((buffers.B, buffers.T), np.int64)
    loss_and_grads(params, config, ids, ids, grads=grads, buffers=buffers)
    zeros = views(np.zeros_like(flat(params)), config)
    Optimizer(params, config).step(zeros, zeros, 1, 0.0)
    peak = matmul_peak()
    if (seconds := time.perf_counter() - begin) > 3:
        print(f"compiled the kernels in {seconds:.0f} s (kept on disk: the next run starts at "
              "once)")
    return peak


class Log:
    """Lines for people on the terminal, where a new one overwrites the last; JSON lines in a
    file. fresh: an old run's file at path goes first."""

    def __init__(self, path, fresh):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self.path, self.live = path, sys.stdout.isatty()
        if fresh and os.path.exists(path):
            os.remove(path)

    def show(self, line, keep=True, **numbers):
        """keep: the line stays. Off a terminal every line does. numbers: for the file."""
        # \r goes back to the line's start, \033[K wipes it.
        print(("\r\033[K" if self.live else "") + line, end="\n" if keep or not self.live else "",
              flush=True)
        if numbers:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(numbers) + "\n")


def duration(seconds):
    """For people: minutes from 100 s on."""
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


# ---- A run that stops and goes on. All that it is lies in its checkpoint; sft.py and rl.py do the
#      same. ----

def keep(folder, stage, net, optimizer, state):
    """Saves a run of this stage: net (params, config, tokenizer), both averages, and its state."""
    save(folder, *net, {"m1": optimizer.m1, "m2": optimizer.m2}, {"stage": stage} | state)


def reopen(folder, stage):
    """(net, optimizer, state) as a run of this stage kept them."""
    path = os.path.join(folder, "state.json")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no run to go on with there; leave out --resume")
    with open(path, encoding="utf-8") as f:
        state = json.load(f)
    if state.get("stage") != stage:
        raise ValueError(f"{path}: not a run of {stage}.py; --out names the folder to go on in")
    net = open_model(folder)
    optimizer = Optimizer(*net[:2])
    moments = dict(read_safetensors(os.path.join(folder, "optimizer.safetensors")))
    optimizer.m1[:], optimizer.m2[:] = moments["m1"], moments["m2"]
    return net, optimizer, state


# ---- The run. Draw, gradient, step, thousands of times: the rest of run() is there to see what
#      happens meanwhile, and to lose nothing when it stops. ----

def start(a, tokenizer):
    """settings, config, params, optimizer, rng and step: fresh, or from the checkpoint to resume.

    A run that goes on has the same bits because its whole state is in the checkpoint: parameters,
    both averages, the random numbers' state, the step (which sets the learning rate), and the
    settings it began with, which therefore override the command line."""
    if not a.resume:
        rate, batch, steps = RECIPES[a.size]
        settings = {"size": a.size, "steps": a.steps or steps, "batch": a.batch or batch,
                    "lr": a.lr or rate, "seed": a.seed}
        sizes = SIZES[a.size] | ({"ctx": a.ctx} if a.ctx else {})
        config = Config(vocab=tokenizer.vocab_size, **sizes)
        params = init_params(config, a.seed)
        return settings, config, params, Optimizer(params, config), np.random.default_rng(a.seed), 0
    (params, config, known), optimizer, state = reopen(a.out, "train")
    if known.fingerprint() != tokenizer.fingerprint():
        raise ValueError(f"{a.tokenizer}: not the tokenizer that {a.out} was trained with")
    rng = np.random.default_rng()
    rng.bit_generator.state = state["rng"]
    return state["settings"], config, params, optimizer, rng, state["step"]


def describe(config, settings, tokens):
    """The first lines: every setting, and what they come to. 16 bytes a parameter: four float32."""
    B, T, steps = settings["batch"], config.ctx, settings["steps"]
    n, total, mega = count(config)[0], steps * B * T, 1e-6
    print(" ".join(f"{key} {value}" for key, value in (settings | vars(config)).items()))
    print(f"{n * mega:.1f}M parameters, {flops_per_token(config, T) * mega:.1f} MFLOP per token, "
          f"{16 * n * mega:.0f} MB for weights, gradients and two averages | {steps} steps of {B} "
          f"x {T} tokens = {total * mega:.1f}M, {total / len(tokens):.1f} times the text | "
          f"{numba.get_num_threads()} threads", flush=True)


def run(a):
    """Trains as the arguments a say: draw, gradient, step; now and then a line, an evaluation, a
    sample and a save."""
    tokenizer = Tokenizer.load(a.tokenizer)
    settings, config, params, optimizer, rng, step = start(a, tokenizer)
    B, T, steps = settings["batch"], config.ctx, settings["steps"]
    train, val = (read_tokens(a.tokens, name, config) for name in ("train", "val"))
    facts = read_facts(a.facts)
    token_bytes = np.array([len(tokenizer.token_bytes(k)) for k in range(config.vocab)])
    describe(config, settings, train)
    # What is large is allocated here, once, and used by every step.
    buffers = Buffers(config, micro_batch(config, B, T), T)
    grads = views(np.empty_like(flat(params)), config)
    peak = first_call(params, config, buffers, grads)
    log, every = Log(os.path.join(a.out, "log.jsonl"), fresh=not a.resume), max(1, steps // EVALS)
    # Ctrl-C asks for a stop behind the step, so that what is saved is whole.
    stop = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    begin, begun, seen = time.perf_counter(), step, []
    while step < steps and not stop:
        tick = time.perf_counter()
        ids, targets = draw_windows(rng, train, B, T)
        loss, _ = loss_and_grads(params, config, ids, targets, grads=grads, buffers=buffers)
        if not math.isfinite(loss):
            raise ValueError(f"step {step + 1}: the loss is {loss}; a learning rate of "
                             f"{settings['lr']} is too much for this network, try a third. "
                             f"{a.out} keeps the last save")
        lr = learning_rate(step, steps, settings["lr"])
        norm = optimizer.step(params, grads, step + 1, lr)
        step += 1
        seen.append((loss, time.perf_counter() - tick))
        if step % LOG_EVERY == 0 or step == steps or stop:
            loss, seconds = np.mean([x for x, _ in seen]), np.median([s for _, s in seen])
            # The share of the peak says how near the whole step is to nothing but products.
            seen, speed = [], B * T / seconds
            share = speed * flops_per_token(config, T) / peak
            left = (time.perf_counter() - begin) / (step - begun) * (steps - step)
            log.show(f"step {step}/{steps} | loss {loss:.3f} nats | lr {lr:.1e} | grad {norm:.2f}"
                     f" | {speed:,.0f} tok/s | {share:.0%} of matmul peak | {duration(left)} left",
                     keep=False, step=step, loss=loss, lr=lr, grad_norm=norm, tokens_per_s=speed)
        if step % every == 0 or step == steps or stop:
            nats, bits = evaluate(params, config, val, token_bytes, buffers)
            known = recall(params, config, tokenizer, facts) if facts else None
            knows = f"knows {known:.0%} of the facts | " if facts else ""
            spent = time.perf_counter() - begin
            log.show(f"step {step}/{steps} | loss {loss:.3f} nats | validation {nats:.3f} nats | "
                     f"{bits:.3f} bits/byte | {knows}{duration(spent)}", step=step, val_loss=nats,
                     bits_per_byte=bits, recall=known, seconds=spent)
            first = tokenizer.special_tokens[END]  # after it, a document begins
            text = generate(params, config, np.array([[first]]), 40, temperature=0.8, seed=step)[0]
            log.show("    it writes: " + " ".join(tokenizer.decode(text).split()))
            keep(a.out, "train", (params, config, tokenizer), optimizer,
                 {"step": step, "settings": settings, "rng": rng.bit_generator.state})
    if step < steps:
        print(f"stopped at step {step} and saved in {a.out}; go on with: python train.py --resume "
              f"--out {a.out}")
    else:
        print(f"wrote {a.out}: validation {nats:.3f} nats per token, {bits:.3f} bits per byte; "
              "next: python sample.py --prompt \"Once\"")


def main():
    parser = argparse.ArgumentParser(description="Pretrain a base model on tokens.")
    add = parser.add_argument
    add("--size", choices=SIZES, default="1M",
        help="the dial: about so many parameters (default 1M)")
    add("--steps", type=int, help="default: by size")
    add("--batch", type=int, help="windows a step (default 16)")
    add("--ctx", type=int, help="tokens in a window (default: by size)")
    add("--lr", type=float, help="highest learning rate (default: by size)")
    add("--seed", type=int, default=0)
    add("--tokens", default="out/tokens", help="folder of train.npy and val.npy")
    add("--tokenizer", default="out/tokenizer.json")
    add("--facts", default="out/world/facts.jsonl", help="questions to probe its memory with")
    add("--out", default="out/base", help="checkpoint folder to write")
    add("--resume", action="store_true", help="go on with the run in --out")
    try:
        run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
