"""Sampling against the naive loop and the full forward pass; terminal, demonstrations, chat."""
import io
import json
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest

import bpe
import checkpoint
import kernels
import model
import sample

CONFIG = model.Config(vocab=61, ctx=24, dim=32, layers=2, heads=4, kv_heads=2, hidden=40)


@pytest.fixture(scope="module")
def net():
    """A network with clear preferences: an untrained one finds all tokens about equally likely."""
    params = model.init_params(CONFIG, 3)
    for p in params.values():
        p *= 8 if p.ndim == 2 else 2
    return params, CONFIG


def small_net(tokenizer, ctx, bos=(), eos=()):
    config = replace(CONFIG, vocab=tokenizer.vocab_size, ctx=ctx, bos=bos, eos=eos)
    return model.init_params(config, 1), config, tokenizer


@pytest.fixture
def tokenizer():
    return bpe.train(["the cat sat on the mat. the hat!"] * 3, 270, (bpe.END,))


@pytest.fixture
def chatty(tokenizer):
    tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    return tokenizer


@pytest.fixture
def base(tmp_path, tokenizer):
    """A folder like out/: base/ with a random network, and tokens/."""
    end = tokenizer.special_tokens[bpe.END]
    checkpoint.save(str(tmp_path / "base"), *small_net(tokenizer, 32, (end,), (end,)))
    (tmp_path / "tokens").mkdir()
    tokens = tokenizer.encode_documents(["the cat sat on the mat. the hat! "] * 20)
    np.save(tmp_path / "tokens" / "train.npy", tokens)
    np.save(tmp_path / "tokens" / "val.npy", tokens[:200])
    return str(tmp_path / "base")


def test_what_temperature_top_k_and_top_p_keep():
    """Probabilities worked out by hand; top-p 0.71 of 0.4, 0.3, 0.2, 0.1 needs the first three."""
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    for how, expected in (((), [0.1, 0.4, 0.2, 0.3]), ((1, 0, 0.6), [0, 4 / 7, 0, 3 / 7]),
                          ((0.5,), [1 / 30, 16 / 30, 4 / 30, 9 / 30]), ((2, 1), [0, 1, 0, 0])):
        np.testing.assert_allclose(kernels.probabilities(logits, *how), expected, rtol=1e-6)
    for top_k, top_p, kept in (
            (0, 0.39, [1]), (0, 0.41, [1, 3]), (0, 0.69, [1, 3]), (0, 0.71, [1, 2, 3]),
            (0, 0.91, [0, 1, 2, 3]), (2, 1, [1, 3]), (3, 1, [1, 2, 3]), (2, 0.5, [1])):
        assert np.flatnonzero(kernels.probabilities(logits, 1, top_k, top_p)).tolist() == kept


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.8}])
def test_generate_equals_the_naive_loop(net, how):
    """The cache changes nothing: the same seed gives the same text as reading everything anew."""
    assert sample.generate(*net, [[7, 3]], 15, seed=2, **how)[0] == sample.naive_generate(
        *net, [7, 3], 15, seed=2, **how)


def test_the_cache_gives_what_the_full_forward_pass_gives(net):
    """Greedy tokens are its argmax, logprobs are minus its losses, at any temperature."""
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab, (3, 5))
    new = sample.generate(*net, ids, 12, temperature=0)
    assert new.shape == (3, 12) and new.dtype == np.int64 and len(np.unique(new)) > 3
    logits = model.forward(*net, np.concatenate([ids, new], axis=1))
    np.testing.assert_array_equal(logits[:, 4:-1].argmax(axis=2), new)
    steps = list(sample.stream(*net, ids, 12, temperature=0.7, top_k=20, top_p=0.9))
    new, logprobs = (np.stack([step[k] for step in steps], axis=1) for k in (1, 2))
    whole = np.concatenate([ids, new], axis=1)
    losses = model.token_losses(*net, whole[:, :-1], whole[:, 1:])
    np.testing.assert_allclose(logprobs, -losses[:, 4:], atol=1e-4)


def test_a_row_is_sampled_alike_whatever_else_is_in_the_batch(net, monkeypatch):
    """Each row is as if it were alone, with its seed, also if memory holds only four at a time; of
    equal prompts in a batch only one is read."""
    prompts, read = [[7, 3, 0], [7, 3], [7, 3, 0], [1], [7, 3], [7] * 9], []
    how, prefill = {"temperature": 1.3, "top_p": 0.95}, sample.prefill
    monkeypatch.setattr(sample, "prefill", lambda config, cache, ids, lengths: (
        read.append((len(ids), cache.k.shape[1])), prefill(config, cache, ids, lengths))[1])
    together = sample.generate(*net, prompts, 9, seed=4, **how)
    with monkeypatch.context() as patch:
        patch.setattr(sample, "BATCH_BYTES", 130_000)
        assert sample.generate(*net, prompts, 9, seed=4, **how) == together
    assert read == [(4, 6), (3, 4), (2, 4)]  # prompts read, rows of the cache
    assert together == [sample.generate(*net, [prompt], 9, seed=[(4, row)], **how)[0]
                        for row, prompt in enumerate(prompts)]
    assert [row[:5] for row in together[:3]] == sample.generate(*net, prompts[:3], 5, seed=4, **how)
    assert together[0] != together[2] != sample.generate(*net, prompts, 9, seed=6, **how)[2]


def test_rows_end_at_a_stop_id_and_the_others_go_on_unchanged(net):
    """A row's text is the one without stops, up to its first stop; then it leaves the batch."""
    ids = np.random.default_rng(5).integers(0, CONFIG.vocab, (6, 4))
    free = sample.generate(*net, ids, 15, seed=1)
    stop = [int(free[0, 3]), int(free[2, 6])]
    ended = sample.generate(*net, ids, 15, seed=1, stop=stop)
    for row, expected in zip(ended, free.tolist()):
        n = min((k + 1 for k, token in enumerate(expected) if token in stop), default=15)
        assert row == expected[:n]
    assert len({len(row) for row in ended}) > 2
    steps = [rows.tolist() for rows, *_ in sample.stream(*net, ids, 15, seed=1, stop=stop)]
    assert [sum(row in rows for rows in steps) for row in range(6)] == list(map(len, ended))


def test_the_context_is_filled_and_never_passed(net, capsys):
    """Rows end at ctx tokens; of a prompt that fills the context the end is kept, with a notice."""
    new = sample.generate(*net, [[1] * 20, [2] * 10, [3] * 23], 100)
    assert [len(row) for row in new] == [4, 14, 1] and not capsys.readouterr().err
    long = np.random.default_rng(6).integers(0, CONFIG.vocab, (1, 40))
    new = sample.generate(*net, long, 5, temperature=0)
    assert "40 tokens: only its last 19 are read" in capsys.readouterr().err
    np.testing.assert_array_equal(new, sample.generate(*net, long[:, -19:], 5, temperature=0))
    assert sample.generate(*net, long, 100).shape == (1, 12)  # at most half is given up
    assert sample.generate(*net, long[:, :3], 0).shape == (1, 0)


@pytest.mark.parametrize("temperature", [0, 1])
def test_ids_without_a_token_are_never_sampled(net, temperature):
    """Padding of the vocabulary can be the likeliest of all: it still is never written."""
    unused = sum(sample.generate(*net, [[1], [2], [3]], 15, temperature), [])
    config = replace(CONFIG, unused=tuple(set(unused)))
    new = sum(sample.generate(net[0], config, [[1], [2], [3]], 15, temperature), [])
    assert len(new) == 45 and not set(new) & set(unused)


@pytest.mark.parametrize("ids,how,said", [
    ([], {}, "none"), ([[]], {}, "none"), ([[1], []], {}, "none"), ([1, 2], {}, "none"),
    (np.ones((1, 2, 3), int), {}, "none"), ([[61]], {}, "61"), ([[-1]], {}, "-1"),
    *(([[1]], {"temperature": t}, "temperature.*must") for t in (-1, np.nan, np.inf, 1e-40)),
    ([[1]], {"top_k": -1}, "top-k.*must"), ([[1]], {"top_p": 0}, "top-p.*must"),
    ([[1]], {"top_p": 1.1}, "top-p.*must"), ([[1]], {"max_new_tokens": -1}, "tokens.*must")])
def test_what_cannot_be_sampled_with(net, ids, how, said):
    """Empty or misshapen prompts, unknown ids and settings out of range: the error names them."""
    with pytest.raises(ValueError, match=said):
        sample.generate(*net, ids, **({"max_new_tokens": 3} | how))


def test_a_batch_at_25m_parameters_fits_into_memory():
    """Of 1,600 rows, as many at a time as have keys and values of at most BATCH_BYTES (256 MB)."""
    config = model.Config(vocab=1024, **model.SIZES["25M"])
    batches = sample.split_rows(config, [60] * 1600, 200)
    row_bytes = 4 * 2 * config.layers * config.kv_heads * config.head_dim * 260
    assert np.concatenate(batches).tolist() == list(range(1600))
    assert 10 < max(map(len, batches)) == len(batches[0]) < sample.BATCH_BYTES / row_bytes


def test_texts_end_before_the_stop_id(monkeypatch, chatty):
    """complete stops at config.eos and at every chat token, and these are not in its texts."""
    net, specials = small_net(chatty, 64, eos=(5,)), chatty.special_tokens

    def fake(params, config, ids, *args, stop, **kwargs):
        assert stop == {5, *(specials[name] for name in bpe.CHAT_SPECIALS)}
        return [[*chatty.encode("the mat"), specials["<|im_end|>"]], [*chatty.encode("hat"), 5]]
    monkeypatch.setattr(sample, "generate", fake)
    assert sample.complete(net, [[1], [2]]) == ["the mat", "hat"]


def test_recall_counts_what_greedy_decoding_would_write(tokenizer):
    """A fact is recalled if generate at temperature 0 writes its answer."""
    net, facts = small_net(tokenizer, 32), []
    for prompt in ("the cat", "on", "sat on the mat"):
        new = sample.generate(*net[:2], [tokenizer.encode(prompt)], 1, temperature=0)[0]
        facts.append({"prompt": prompt, "answer": tokenizer.decode(new)})
        assert list(tokenizer.encode(facts[-1]["answer"])) == new
    assert sample.recall(*net, facts) == 1
    facts[1]["answer"] = "q"
    assert sample.recall(*net, facts) == pytest.approx(2 / 3)


@pytest.fixture
def written(monkeypatch, capsys, tokenizer):
    """written(new) -> what is printed while the ids new are written; painted text in capitals."""
    def run(new, max_new_tokens=9, logits=(), **how):
        steps = (([0], [token], [0.0], [logits]) for token in new)
        monkeypatch.setattr(sample, "paint", lambda text, code: text.upper())
        net, ids = (None, replace(CONFIG, ctx=50), tokenizer), []
        sample.write(net, steps, {"stop": {269}, "max_new_tokens": max_new_tokens}, ids, **how)
        assert ids == new
        return capsys.readouterr().out
    return run


@pytest.mark.parametrize("most,text,ended,shown", [
    (0, "né 東🙂\x1b]0;t\x07\n\x9b1m\r", False, "né 東🙂\\x1b]0;t\\x07\n\\x9b1m\\r ...\n"),
    (0, "aa", True, "aa\n"), (3, "aa", False, "aa (THE CONTEXT OF 50 TOKENS IS FULL)\n"),
    (0, "\udce6", True, "�\n"),  # a byte that begins a character
    (0, "a <b <think>two+2 < </think> four <th", True, "a <b <think>TWO+2 < </THINK> four <th\n")])
def test_a_text_and_why_it_ends(written, tokenizer, most, text, ended, shown):
    """Characters and tags come byte by byte; thoughts are dimmed; no control character is raw."""
    new = [int(tokenizer.byte_ids[byte]) for byte in text.encode("utf-8", "surrogateescape")]
    assert written(new + [269] * ended, most) == shown


@pytest.mark.parametrize("token,line", [(11, 1), (16, 6)])
def test_candidates_show_the_sampled_one_even_if_it_is_rare(written, tokenizer, token, line):
    """The likeliest as bars of their probability; a rarer one that was sampled stands below."""
    logits = np.full(tokenizer.vocab_size, -np.inf)
    logits[[10, 11, 12, 13, 14, 15, 16]] = np.log([0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02])
    lines = written([token], logits=logits, candidates=True).split("\n")
    assert [k for k, text in enumerate(lines) if text.endswith("<- SAMPLED")] == [line]
    assert "50.0% " + "█" * 20 in lines[0] and "\x1b" not in "".join(lines)


def test_commands(command, capsys, base):
    """Every way to let a base model write runs and prints what it promises."""
    assert command(sample, "--model", base, "--prompt", "the cat", "--tokens", 9) == 0
    head, text = capsys.readouterr().out.split("\n", 1)
    assert head.startswith(f"sample.py | model {base} | prompt the cat | tokens 9 | temperature")
    assert text.startswith("the cat") and "tokens/s" in text
    assert command(sample, "--model", base, "--tokens", 4, "--probs") == 0
    assert 1 <= capsys.readouterr().out.count("<- sampled") <= 4
    for seed in (0, 0, 1):
        assert command(sample, "--model", base, "--samples", 3, "--seed", seed) == 0
    first, again, other = (re.findall("(.*)\n.*tokens/s", out) for out in
                           capsys.readouterr().out.split("sample.py |")[1:])
    assert first == again != other and len(set(first)) == 3
    assert command(sample, "--model", base, "--prompt", "the cat " * 30) == 0
    out, error = capsys.readouterr()
    assert error.count("only its last 16 are read") == error.count("\n") == 1
    assert "(the context of 32 tokens is full)" in out and "16 tokens in" in out
    for demo, said, n in (("dreams", "s/s", 5), ("regurgitation", "quoted", 1), ("zip", "xz", 2)):
        assert command(sample, "--model", base, "--demo", demo, "--tokens", 12) == 0
        assert capsys.readouterr().out.count(said) == n


def test_bad_input_is_one_clear_line(command, capsys, base, tmp_path):
    """Status 2 and one line that names what was wrong and what helps."""
    other, no_bos = tmp_path / "other.json", ["--model", tmp_path / "m" / "no_bos"]
    bpe.train(["something else"], 265, (bpe.END,)).save(str(other))
    checkpoint.save(str(no_bos[1]), *small_net(bpe.Tokenizer.load(str(other)), 32))
    for flags, said in (
            (["--model", tmp_path / "nowhere"], "python train.py"),
            (["--model", base, "--tokenizer", other], "not the tokenizer that"),
            (["--model", base, "--tokenizer", tmp_path / "none.json"], "no tokenizer there"),
            (["--model", base, "--temperature", "-1"], "temperature -1.0: must be from"),
            (["--model", base, "--tokens", "0"], "--tokens 0: must be at least 1"),
            (["--model", base, "--samples", "-3"], "--samples -3: must be at least 1"),
            (["--model", base, "--seed", "-1"], "--seed -1"),
            (["--model", base, "--top-p", "2"], "top-p 2.0"),
            (no_bos, "give a --prompt"),
            ([*no_bos, "--prompt", "some", "--demo", "zip"], "python bpe.py makes them"),
            (["--model", base, "--chat"], "python sft.py adds them"),
            (["--model", base, "--prompt", "\udc80"], "sample.py: ")):
        assert command(sample, *flags) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and "Traceback" not in error


def test_what_was_memorized_is_shown(monkeypatch, capsys, tokenizer):
    """A network that knows the quoted text and nothing else recites every passage of just that."""
    monkeypatch.setattr(sample, "PASSAGE", 64)
    parts = np.random.default_rng(1).integers(0, 256, (8, 300), np.uint16)
    quoted, val = parts[0, :70], np.concatenate([parts[6], parts[7], parts[0, :70]])
    train = np.concatenate([part for k in range(1, 6) for part in (parts[k], quoted)])
    known = {tuple(quoted[i:i + 16]): quoted[i + 16:i + 64] for i in range(7)}
    monkeypatch.setattr(sample, "generate", lambda params, config, ids, n, temperature: np.array(
        [known.get(tuple(row), np.full(n, 269)) for row in ids]))
    sample.regurgitation(small_net(tokenizer, 100), train, val)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1::2] == ["  quoted 4 times or more (7): 48.0 on average, at most 48",
                           "  once in the training text (32): 0.0 on average, at most 0",
                           "  held out (32): 0.0 on average, at most 0"]


def test_the_zip_counts_the_networks_bits(capsys, base):
    """Bits per byte are the loss of a full forward pass over bytes of text, special tokens none."""
    params, config, tokenizer = net = checkpoint.open_model(base)
    val = np.load(base + "/../tokens/val.npy").astype(np.int64)
    sample.lossy_zip(net, val, val)
    logits = model.forward(params, config, val[:192].reshape(6, 32)).reshape(192, -1)
    p = np.exp(logits.astype(np.float64))
    bits = -np.log2(p[np.arange(192), val[1:193]] / p.sum(axis=1)).sum()
    n_bytes = sum(len(tokenizer.token_bytes(int(k))) for k in val[1:193] if k != config.eos[0])
    out = capsys.readouterr().out
    assert out.startswith(f"{n_bytes} bytes") and f" network {bits / n_bytes:5.2f} " in out
    assert f"exp(loss): {2 ** (bits / 192):.2f} a token" in out


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "be kind"}]])
def test_the_oldest_turns_fall_out(chatty, system):
    """A question and its answer at a time, never the system's message nor the last question."""
    talk = [{"role": ("user", "assistant")[k % 2], "content": f"{k} the cat"} for k in range(7)]
    prompts = [bpe.render_chat(chatty, system + talk[n:], open_answer=True)[0] for n in range(7)]
    for n, limit in ((0, len(prompts[0])), (2, len(prompts[0]) - 1), (6, len(prompts[6]))):
        net = None, replace(CONFIG, ctx=160), chatty  # 150 tokens without the room for an answer
        assert sample.trim(net, system + talk, 150 - limit) == (n, prompts[n])
    with pytest.raises(ValueError, match="shorter"):
        sample.trim(net, system + talk, 150 - len(prompts[6]) + 1)


@pytest.fixture
def chat(monkeypatch, capsys, chatty):
    """chat(lines) -> (what was printed, the prompts that the network was given)."""
    net, end = small_net(chatty, 100), chatty.special_tokens["<|im_end|>"]

    def run(lines, system=(), interrupt=None):
        prompts, lines = [], iter(lines)

        def fake(params, config, ids, *args, **kwargs):
            prompts.append(list(ids[0]))
            for token in [*chatty.encode("the hat"), end]:
                yield [0], [token], [0.0], [np.zeros(config.vocab)]
                if interrupt:
                    raise interrupt
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines, "/quit"))
        monkeypatch.setattr(sample, "stream", fake)
        sample.chat(net, list(system), {"seed": 0, "stop": {end}, "max_new_tokens": 20})
        return capsys.readouterr().out, prompts
    return run


def test_chat_remembers_resets_and_saves(chat, chatty, tmp_path):
    """Each prompt is the whole conversation since /reset; /save adds it to a file as one line."""
    file = tmp_path / "chat.jsonl"
    system, answer = ({"role": role, "content": text} for role, text in (
        ("system", "be kind"), ("assistant", "the hat")))
    cat, sat, on = ({"role": "user", "content": text} for text in ("the cat", "sat", "<|im_end|>"))
    out, prompts = chat(["/save nothing", "the cat", "", "sat", f"/save {file}", "/reset",
                         on["content"], f"/save {file}", "/what", "/quit", "never"], [system])
    assert prompts == [bpe.render_chat(chatty, messages, open_answer=True)[0] for messages in (
        [system, cat], [system, cat, answer, sat], [system, on])]
    assert [json.loads(line)["messages"] for line in file.read_text().splitlines()] == [
        [system, cat, answer, sat, answer], [system, on, answer]]
    assert out.count("assistant> the hat\n") == 3 and out.count("(/reset, /save FILE") == 2
    assert f"(saved to {file})" in out and "bye" in out


def test_chat_says_once_what_it_forgets_and_refuses_what_is_too_long(chat, chatty):
    """A notice where messages fall out, none at a turn that loses no more; errors in a line."""
    out, prompts = chat(["the cat sat on"] * 4 + ["x" * 300, "the mat"])
    notices = [line for line in out.split("\n") if "are not read" in line]
    assert len(notices) == len(set(notices)) > 0 and "please say it shorter" in out
    assert max(map(len, prompts)) <= 93 and len(prompts) == 5
    assert "the mat<|im_end|>" in chatty.decode(prompts[-1])


def test_an_answer_that_fills_the_context_goes_on(monkeypatch, chatty):
    """The oldest messages fall out, and the network reads the rest and the answer so far."""
    net, prompts = small_net(chatty, 100), []
    talk = [{"role": ("user", "assistant")[k % 2], "content": "the cat"} for k in range(9)]

    def fake(params, config, ids, max_new_tokens, **how):
        prompts.append(ids[0])
        assert len(ids[0]) < 100
        for n in range(min(max_new_tokens, 100 - len(ids[0]))):
            yield [0], [65], [0.0], [np.zeros(config.vocab)]
    monkeypatch.setattr(sample, "stream", fake)
    assert len(list(sample.answer(net, talk, 40, 0, {66}))) == 40
    asked = [bpe.render_chat(chatty, talk[n:], open_answer=True)[0] for n in range(0, 9, 2)]
    read = [next(n for n, ids in enumerate(asked) if ids == prompt[:len(ids)])
            for prompt in prompts]
    assert len(prompts) > 1 and read == sorted(set(read))
    written = 0
    for n, prompt in zip(read, prompts):  # the answer so far stands behind the question
        assert prompt == asked[n] + [65] * written and len(prompt) <= 94
        written += 100 - len(prompt)


def test_ctrl_c_ends_an_answer_and_sigterm_the_chat(chat, tmp_path):
    """What was written before Ctrl-C stays in the conversation; a bad file name is one line."""
    out, prompts = chat([f"/save {tmp_path}", "the", f"/save {tmp_path}"],
                        interrupt=KeyboardInterrupt())
    assert "the (stopped)\n" in out and "directory" in out.split("stopped")[1] and len(prompts) == 1
    with pytest.raises(KeyboardInterrupt):
        chat(["the"], interrupt=KeyboardInterrupt(signal.SIGTERM))


def test_chat_command_runs_on_a_checkpoint(command, monkeypatch, capsys, tmp_path, chatty):
    """From the command line to an answer; the chat ends where the input ends."""
    checkpoint.save(str(tmp_path / "sft"), *small_net(chatty, 64, bos=(3,)))
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n"))
    assert command(sample, "--model", tmp_path / "sft", "--chat", "--system", "be kind") == 0
    assert capsys.readouterr().out.count("assistant> ") == 1
