"""Every view over HTTP, what is refused, the report, the pictures, the page in a real browser."""
import gc
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree
from http.client import HTTPConnection

import numpy as np
import pytest

import bpe
import checkpoint
import data
import look
import model
import rl
from pages import PROSE, http, record, write

SCRIPT = "<script>document.title = 'owned'</script>"
CONVERSATION = [{"role": "user", "content": SCRIPT}, {"role": "assistant", "content": "the hat"}]
CHROME = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder like out/ after a tiny run: untrained base and sft, logs, exercises, a crawl."""
    out = tmp_path_factory.mktemp("look")
    tokenizer = bpe.train(["the cat sat on the mat. the hat! How many? It is 7."] * 3, 290,
                          (bpe.END,))
    tokenizer.save(str(out / "tokenizer.json"))
    for name in ("base", "sft"):
        end = tokenizer.special_tokens[bpe.END]
        config = model.Config(vocab=tokenizer.vocab_size, ctx=96, dim=16, layers=2, heads=2,
                              kv_heads=1, hidden=24, bos=(end,), eos=(end,))
        checkpoint.save(str(out / name), model.init_params(config, 1), config, tokenizer, log=[
            {"step": 10, "loss": 5.5}, {"step": 20, "val_loss": 4.5, "recall": 0.25}])
        tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    for name in ("world", "tokens", "rl-jokes"):
        (out / name).mkdir()
    np.save(out / "tokens" / "train.npy", np.arange(9, dtype=np.uint16))
    # A run is just writing its last line.
    (out / "rl-jokes/live.jsonl").write_text(
        '{"iteration": 0, "reward_model": 1, "gold_reward": 2}\n'
        '{"iteration": 3, "reward_model": 2, "gold_reward": -3}\n{"it')
    for name, line in (("exercises-final", {"question": "How many?", "answer": "it\n#### 7"}),
                       ("conversations", {"messages": CONVERSATION})):
        (out / f"world/{name}.jsonl").write_text(json.dumps(line) + "\n")
    crawl = write(out / "world", record(http("<p>" + PROSE[:83]), "http://a.example/")
                  + record(http("<p>&lt;script&gt;"), "http://b.example/porn"), "crawl.warc.gz")
    rules = "gopher_repetition", "gopher_quality", "c4", "fineweb", "language"
    data.main([crawl, "--out", str(out / "docs"), "--workers", "1",
               *[f"--set={rule}=off" for rule in rules]])
    return str(out)


@pytest.fixture(scope="module")
def server(out):
    """look.py's server on a free port, in a thread."""
    with look.Server(out, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def send(server, method, path, body=b"{}", **headers):
    """The response to a request as the page sends it, but for the headers given."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def ask(server, view, body=None, **asked):
    """What a view answers, a list."""
    with send(server, "POST", "/" + view, body or json.dumps(asked).encode()) as response:
        return [json.loads(line) for line in response]


# ---- Views ----

def test_the_crawl_and_every_rule_of_one_page(server):
    """The funnel shows what data.py counted; a page shows its values, limits and verdict."""
    assert ask(server, "funnel")[0]["bars"][0] == {
        "name": "read", "share": 1.0, "figure": "2", "note": ""}
    assert len(ask(server, "explain")[0]["pages"]) == 2
    for url, verdict, row in (
            ("http://a.example/", "dropped at", ["quality", "short_doc", 16, "< 50", "fails"]),
            ("http://b.example/porn", "dropped at url", ["extract", "empty", 8, "< 1", ""])):
        shown, = ask(server, "explain", url=url)[0]["pages"]
        assert shown["verdict"].startswith(verdict) and row in shown["rows"]


def test_tokens_with_all_merges_and_with_fewer(server, out):
    """Ids are those of bpe.py; without merges they are bytes; the steps end in the tokens."""
    tokenizer = bpe.Tokenizer.load(out + "/tokenizer.json")
    shown, = ask(server, "tokens", text="on the é")
    ids = [[token["id"] for token in size["tokens"]] for size in shown["sizes"]]
    assert ids == [list("on the é".encode()), tokenizer.encode("on the é")]
    assert shown["sizes"][1]["tokens"][-1]["text"] == "\\xa9"
    assert shown["steps"][0] == ["·", "t", "h", "e"] and shown["steps"][-1] == ["·the"]
    assert ask(server, "tokens", text="")[0]["sizes"][0]["tokens"] == []


def test_curves_of_runs_and_of_one_that_goes_on(server):
    """Base has losses and recall, in words too; a run under way is read to its last whole line."""
    base, sft = ask(server, "curves")[0]["runs"]
    assert (base["name"], sft["name"], base["live"]) == ("base", "sft", False)
    assert [chart["say"] for chart in base["charts"]] == [
        "loss, nats per token, step 20: held-out: 4.5, training: 5.5",
        "share of answers, step 20: facts recalled: 25%"]
    run, = ask(server, "reward")[0]["runs"]
    said = run["charts"][0]["say"]
    assert run["live"] and "iteration 3: reward model: 2, gold reward: -3" in said


def test_another_candidate_leads_elsewhere(server):
    """Candidates are sorted probabilities; the network goes on after the ids that were sent."""
    shown, = ask(server, "candidates", prompt="the cat")
    first = shown["steps"][0]
    p = [rival["p"] for rival in first["candidates"]]
    assert len(p) == look.N_CANDIDATES and p == sorted(p, reverse=True) and first["id"] in [
        rival["id"] for rival in first["candidates"]]
    ids = [*shown["ids"], first["candidates"][1]["id"]]
    assert ask(server, "candidates", ids=" ".join(map(str, ids)))[0]["ids"] == ids


def test_attention_weights_are_those_of_the_network(server, out):
    """One map a head: softmax of q k / sqrt(D) of earlier tokens, which with v gives the output."""
    params, config, tokenizer = checkpoint.open_model(out + "/base")
    ids = [*config.bos, *tokenizer.encode("the cat sat")]
    T, buffers = len(ids), model.Buffers(config, 1, len(ids))
    model.transformer(params, config, np.array([ids]), buffers)
    shown = ask(server, "attention", text="the cat sat")[0]["layers"]
    for layer, saved in enumerate(buffers.saved):
        qkv = saved.qkv.reshape(T, 4, 8)  # two query heads, one key head, one value head
        for head in range(2):
            e = np.tril(np.exp(qkv[:, head] @ qkv[:, 2].T / 8**0.5))
            p = e / e.sum(1, keepdims=True)
            np.testing.assert_allclose(p @ qkv[:, 3], saved.o.reshape(T, 2, 8)[:, head], atol=1e-6)
            assert shown[layer][head] == (100 * p).round().tolist()


def test_the_mask_is_that_of_render_chat(server, out):
    """What the assistant says and its end are on, all else is off; text stays text."""
    shown = ask(server, "mask")[0]["messages"]
    ids, mask = bpe.render_chat(bpe.Tokenizer.load(out + "/sft/tokenizer.json"), CONVERSATION)
    assert len(shown) == 2 and [
        (token["id"], token["on"]) for row in shown for token in row] == list(zip(ids, mask))


def test_a_chat_streams_and_the_same_seed_gives_the_same_text(server):
    """All models answer side by side, a token longer each time; what was said before counts."""
    def said(**asked):
        first, *parts = ask(server, "chat", **asked)
        assert first["models"] == ["base", "sft"] and len(parts) > 20
        return {name: [part["texts"][name] for part in parts if part["texts"][name] is not None][-1]
                for name in ("base", "sft")}
    asked = {"question": "the cat", "temperature": 1, "seed": 3}
    first = said(**asked)
    assert first == said(**asked) and first["base"] != first["sft"]
    before = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "hat"}]
    assert said(**asked, history={"sft": before})["sft"] != first["sft"]


def test_rollouts_have_rewards_and_advantages(server, monkeypatch):
    """Rewards are those of rl.py for answers that ended; advantage is reward minus mean."""
    tokenizer = checkpoint.open_model(server.out + "/sft")[2]
    end = tokenizer.special_tokens["<|im_end|>"]
    texts = ["7", "<think> 7</think> 7", "<think>7</think> 8", "7 cats", "5</think> 7", "07",
             "<think>1</think> <think>2</think> 7", " 7"] * 2
    monkeypatch.setattr(look, "generate", lambda *rest, **more: [
        [*tokenizer.encode(text), end] for text in texts[:-1]] + [tokenizer.encode("7")])
    shown, = ask(server, "rollouts")
    assert [reward for reward, _, _ in shown["rows"][:-1]] == [
        rl.parse_answer(text) == "7" for text in texts[:-1]]
    assert shown["mean"] == 6 / 16 and shown["rows"][-1] == [0, -6 / 16, "7"]


@pytest.mark.parametrize("view", look.VIEWS.values(), ids=str)
def test_a_missing_stage_says_what_makes_it(view, tmp_path):
    """In an empty folder every view is an error that names a command."""
    found, = look.answers(view, str(tmp_path), b"{}")
    assert "python " in found["error"]


# ---- What is refused ----

@pytest.mark.parametrize("status,method,path,headers", [
    (403, "GET", "/", {"Host": "evil.example"}), (403, "POST", "/mask", {"Host": "127.0.0.1"}),
    (403, "POST", "/mask", {"Origin": "http://evil.example"}),
    (403, "POST", "/mask", {"Origin": "null"}), (404, "GET", "/etc/passwd", {}),
    (404, "GET", "/../look.py", {}), (404, "POST", "/report", {}), (501, "PUT", "/", {}),
    (415, "POST", "/mask", {"Content_Type": "text/plain"}),
    *[(413, "POST", "/mask", {"Content_Length": length})
      for length in (str(2**18 + 1), "9" * 3000, "-1", b"\xb2")]])  # Python calls b2 a digit
def test_foreign_and_oversized_requests(server, status, method, path, headers):
    """Another host, site, path, method or type is refused, and so is a body too large to read."""
    assert send(server, method, path, b"" if "Content_Length" in headers else b"{}",
                **headers).status == status


@pytest.mark.parametrize("view,body", [
    ("tokens", b"{"), ("tokens", b"[]"), ("tokens", b"[" * 60_000), ("tokens", b"\xff\xfe"),
    ("tokens", {"text": 7}), ("tokens", b'{"text": "\\ud800"}'), ("tokens", {"out": "/"}),
    ("mask", b'{"conversation": NaN}'), ("mask", {"conversation": True}), ("chat", {"seed": 1e99}),
    ("mask", {"conversation": 1.5}), ("mask", {"conversation": 5}), ("rollouts", {"problem": 9}),
    ("attention", {"model": "../base"}), ("attention", {"model": "world"}),
    ("candidates", {"ids": f"{10**30}"}), ("candidates", {"ids": "-1"}),
    ("candidates", {"ids": "x"}), ("candidates", {"temperature": -1}),
    ("candidates", {"temperature": 1e-9}), ("candidates", {"ids": "0 " * 500}),
    ("chat", {"question": "x", "history": []}), ("chat", {"question": "cat " * 500}),
    ("chat", {"question": "x", "history": {"sft": "x"}}),
    ("chat", {"question": "x", "history": {"sft": [7]}}),
    ("chat", {"question": "x", "history": {"sft": [{"role": "god", "content": "x"}]}}),
    ("explain", {"url": "http://nowhere.example/"})])
def test_requests_that_make_no_sense(server, view, body, capfd):
    """A wrong value is one sentence, the answer's last line, never a traceback."""
    assert (ask(server, view, body) if isinstance(body, bytes) else ask(server, view, **body)
            )[-1]["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_the_page_may_load_nothing_else(server):
    """The policy allows our script and style, by a nonce that is new each time, and our server."""
    nonces = set()
    for _ in range(2):
        response = send(server, "GET", "/")
        assert response.status == 200 and response.headers["X-Content-Type-Options"] == "nosniff"
        page = response.read()
        policy = re.search(rb'Security-Policy" content="(.*?)">', page, re.DOTALL)[1]
        assert b"default-src 'none'" in policy and b"unsafe" not in policy
        assert not re.search(rb"https?:|src=|@import|url\(|innerHTML", page)
        nonces.add(re.search(rb"script-src 'nonce-(\w{32})'", policy)[1])
    assert len(nonces) == 2


def test_too_many_connections_wait(server):
    """Beyond CONNECTIONS a request waits until another one is done."""
    held = [socket.create_connection(("127.0.0.1", server.server_port))
            for _ in range(look.CONNECTIONS)]
    found = []
    waiting = threading.Thread(target=lambda: found.append(ask(server, "funnel")))
    waiting.start()
    time.sleep(0.5)
    assert not found and threading.active_count() < look.CONNECTIONS + 10
    for connection in held:
        connection.close()
    waiting.join(60)
    assert found


def test_a_stream_stops_when_the_browser_goes_away(server, monkeypatch):
    """The network does not write on for nobody; the connection is free again."""
    closed = threading.Event()

    def endless(out):
        """Title. Text."""
        try:
            while True:
                yield {"text": "x" * 1000}
        finally:
            closed.set()
    monkeypatch.setitem(look.VIEWS, "endless", endless)
    with send(server, "POST", "/endless") as response:
        assert response.read(10) and not closed.is_set()
    assert closed.wait(60) and ask(server, "funnel")


@pytest.mark.parametrize("n", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_requests_in_flat_memory(server, n):
    """Nothing is kept of a request, and no thread stays."""
    before = 0
    for k in range(n):
        if k == n // 4:
            gc.collect()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        view = ("funnel", "tokens", "curves", "attention", "candidates", "mask")[k % 6]
        ask(server, view, **({"text": f"the cat {k}"} if view in ("tokens", "attention") else {}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # KB
    assert threading.active_count() < 10


# ---- Files ----

def test_the_report_is_one_file_that_stands_alone(out, capsys):
    """It holds the answers of all views, and no text in it ends the script."""
    assert look.main(["--out", out, "--report"]) == 0
    page = open(out + "/report.html", encoding="utf-8").read()
    about = page.split('id="about">')[1].split("</script>")[0]
    answers = json.loads(about)["recorded"]
    assert set(look.VIEWS) == set(answers) and "<" not in about
    assert not any("error" in part for parts in answers.values() for part in parts)
    assert SCRIPT[:7] in "".join(token["text"] for token in answers["mask"][0]["messages"][0])


def test_pictures_are_drawn_from_the_run(out, tmp_path, capsys):
    """They are SVG; where their stage has not run, a line says what makes it."""
    for folder in (out, str(tmp_path)):
        assert look.main(["--out", folder, "--pictures", str(tmp_path / "pictures")]) == 0
    for name in look.PICTURES:
        xml.etree.ElementTree.parse(tmp_path / "pictures" / f"{name}.svg")
    assert "no reward.svg: no such run has begun yet; python rl.py" in capsys.readouterr().out


def test_the_grid_has_a_zero_without_a_sign():
    """Curves below 0 too: -0.9 and 4.9 give lines at 0, 2 and 4."""
    log = [{"iteration": k, "gold_reward": y} for k, y in enumerate((4.9, -0.9))]
    drawn = look.chart(log, "jokes", {"gold_reward": "gold"}, ".3g")["svg"]
    assert ">-0<" not in drawn and all(f">{y}<" in drawn for y in (0, 2, 4))


def test_the_command_says_where_to_look(tmp_path, capsys):
    """Without a run it is one sentence that names the first command."""
    assert look.main(["--out", str(tmp_path / "none")]) == 2
    assert "python world.py" in capsys.readouterr().err


# ---- A real browser ----

class Browser:
    """A headless Chromium, driven through two pipes: a command is JSON and a zero byte."""

    def __init__(self, folder, width, height):
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}', CHROME, "--headless",
             "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}",
             f"--window-size={width},{height}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(their_in), os.close(their_out)
        self.out, self.replies, self.session, self.n = our_out, os.fdopen(our_in, "rb"), {}, 0
        page = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=page,
                                               flatten=True)["sessionId"]}
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)

    def send(self, method, **params):
        self.n += 1
        os.write(self.out, json.dumps({"id": self.n, "method": method, "params": params}
                                      | self.session).encode() + b"\0")
        while True:
            reply = b"".join(iter(lambda: self.replies.read(1), b"\0"))
            if json.loads(reply).get("id") == self.n:
                return json.loads(reply)["result"]

    def run(self, script):
        """The value of JavaScript."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script):
        """Until it is true; its value."""
        for _ in range(600):
            if found := self.run(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"not within a minute: {script}")

    def close(self):
        self.process.terminate()
        self.process.wait()


@pytest.mark.skipif(not CHROME, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("width,height", [(1280, 900), (390, 844)])
def test_the_page_in_a_browser(server, out, tmp_path, width, height):
    """One types, sees tokens, chooses a candidate, chats; <script> stays text; a phone fits."""
    browser = Browser(tmp_path, width, height)
    run, wait = browser.run, browser.wait
    try:
        browser.send("Page.navigate", url=f"http://{server.names[0]}/")
        wait("document.querySelectorAll('body > details').length == 10")
        for name in look.VIEWS:  # the keyboard opens a view
            run(f"document.querySelector('#{name} summary').focus()")
            if name != "funnel":
                browser.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
            wait(f"document.querySelector('#{name} .out').children.length")
            assert run("document.documentElement.scrollWidth") <= width, name
        wait("document.querySelectorAll('img').length == 5 && "
             "[...document.querySelectorAll('img')].every(x => x.naturalWidth && x.alt)")

        run("document.querySelector('#tokens textarea').select()")
        browser.send("Input.insertText", text=SCRIPT)
        wait("[...document.querySelectorAll('#tokens .chip')].map(x => x.firstChild.data).join('')"
             ".includes('</script>')")
        assert run("document.querySelectorAll('script').length") == 2
        assert "owned" not in run("document.title")

        wanted = run("const bar = document.querySelectorAll('#candidates .bar')[3];"
                     "bar.click(); bar.firstChild.innerText")
        wait(f"document.querySelector('#candidates .chip').innerText == {json.dumps(wanted)}")

        written = "[...document.querySelectorAll('#chat .columns:last-child p')].every(" \
            "x => x.innerText.length > 9)"
        wait("document.querySelectorAll('#chat h2').length == 4 && " + written)  # the examples
        run("views.chat.form.question.value = 'the cat'; views.chat.form.requestSubmit()")
        wait("document.querySelectorAll('#chat h2').length == 5 && " + written)
        assert run("said.sft.length") == 2  # the examples are not remembered

        look.report(out)
        browser.send("Page.navigate", url=f"file://{out}/report.html")
        wait("document.querySelectorAll('details[open] .out > *').length > 30")
        assert run("document.querySelectorAll('.error:not(:empty)').length") == 0
    finally:
        browser.close()
