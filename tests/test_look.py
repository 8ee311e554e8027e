"""Looking at the run: every view over HTTP, what is refused, streams, the report, the pictures, and
the page in a real browser."""
import base64
import gc
import http.client
import json
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree

import numpy as np
import pytest

import bpe
import checkpoint
import data
import look
import model

SCRIPT = "<script>document.title = 'owned'</script>"
CHROME = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder like out/ after a tiny run: untrained base and sft, logs, exercises, a crawl."""
    out = tmp_path_factory.mktemp("look")
    (out / "world").mkdir()
    text = "the cat sat on the mat. the hat! How many? It is 7."
    tokenizer = bpe.train([text] * 3, 290, (bpe.END,))
    tokenizer.save(str(out / "tokenizer.json"))
    for name in ("base", "sft"):
        end = tokenizer.special_tokens[bpe.END]
        config = model.Config(vocab=tokenizer.vocab_size, ctx=96, dim=16, layers=2, heads=2,
                              kv_heads=1, hidden=24, bos=(end,), eos=(end,))
        checkpoint.save(str(out / name), model.init_params(config, 1), config, tokenizer, log=[
            {"step": 10, "loss": 5.5}, {"step": 20, "val_loss": 4.5, "recall": 0.25}])
        tokenizer.add_special_tokens(bpe.CHAT_SPECIALS)
    (out / "rl-jokes").mkdir()
    for name, lines in {
            "world/facts.jsonl": [{"prompt": "the cat", "answer": " sat"}],
            "world/exercises-final.jsonl": [{"question": "How many?", "answer": "it\n#### 7"}],
            "world/conversations.jsonl": [{"messages": [
                {"role": "user", "content": SCRIPT}, {"role": "assistant", "content": "the hat"}]}],
            "world/heldout.jsonl": [{"kind": "cat", "messages": [
                {"role": "user", "content": "the cat </script>"}]}],
            "rl-jokes/live.jsonl": [{"iteration": k, "reward_model": k / 3, "gold_reward": -k}
                                    for k in range(4)]}.items():
        (out / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with open(out / "rl-jokes" / "live.jsonl", "a") as file:
        file.write('{"iteration": 4, "rew')  # a run is just writing this line
    record = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><p>%s</p></html>"
    (out / "world" / "crawl.warc.gz").write_bytes(b"".join(
        b"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: %s\r\nContent-Type: application/http"
        b"; msgtype=response\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (url, len(body), body)
        for url, body in ((b"http://a.example/", record % b"The old harbour keeps a small red boat "
                           b"for every child who learns to sail there."),
                          (b"http://b.example/porn", record % b"&lt;script&gt;"))))
    data.main([str(out / "world" / "crawl.warc.gz"), "--out", str(out / "docs"), "--workers", "1",
               *[f"--set={rule}=off" for rule in ("gopher_repetition", "gopher_quality", "c4",
                                                  "fineweb", "language")]])
    return str(out)


@pytest.fixture(scope="module")
def server(out):
    """look.py's server on a free port, in a thread."""
    with look.Server(out, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def request(server, method, path, body=None, **headers):
    """(status, headers, body) of a request as the page sends it, but for the headers given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    headers = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def ask(server, view, **asked):
    """What a view answers, which must be a success."""
    status, _, body = request(server, "POST", "/" + view, asked)
    assert status == 200, body
    return json.loads(body)


# ---- Views ----

def test_the_crawl_and_every_rule_of_one_page(server):
    """The funnel shows what data.py counted; a page shows its values, limits and verdict."""
    assert "read keeps 2 of 2" in ask(server, "funnel")["say"]
    shown = ask(server, "explain", url="http://a.example/")
    assert shown["verdict"].startswith("dropped at") and len(shown["examples"]) == 2
    row = next(row for row in shown["rows"] if row["rule"] == "short_doc")
    assert row == {"stage": "quality", "rule": "short_doc", "value": "16", "limit": "< 50",
                   "fails": True}
    shown = ask(server, "explain", url="http://b.example/porn")
    assert shown["verdict"].startswith("dropped at url")
    assert ask(server, "explain", pasted="<p>" + SCRIPT.replace("<", "&lt;"))["text"] == SCRIPT


def test_tokens_with_all_merges_and_with_fewer(server, out):
    """Ids are those of bpe.py; without merges there are bytes; the steps end in the tokens."""
    tokenizer = bpe.Tokenizer.load(out + "/tokenizer.json")
    shown = ask(server, "tokens", text="the cat é")
    assert [token["id"] for token in shown["tokens"]] == tokenizer.encode("the cat é")
    assert shown["tokens"][-1]["text"] == "\\xa9" and shown["bytes"] == 10
    assert [token["id"] for token in ask(server, "tokens", text="the", merges=0)["tokens"]] == [
        *b"the"]
    steps = ask(server, "tokens", text="on the")["steps"]
    assert steps[0] == ["·", "t", "h", "e"] and steps[-1] == ["·the"]
    assert ask(server, "tokens", text="")["tokens"] == []


def test_curves_of_runs_and_of_one_that_goes_on(server):
    """Base has losses and recall, in words too; a run under way is read to its last whole line."""
    runs = {run["name"]: run for run in ask(server, "curves")["runs"]}
    assert list(runs) == ["base", "sft", "rl-jokes"] and runs["rl-jokes"]["live"]
    assert [panel["say"] for panel in runs["base"]["panels"]] == [
        "loss, nats per token, at step 20: held-out 4.5, training 5.5",
        "shares, at step 20: facts recalled 25%"]
    assert "iteration 3: reward model 1, gold reward -3" in runs["rl-jokes"]["panels"][0]["say"]
    xml.etree.ElementTree.fromstring(runs["rl-jokes"]["panels"][0]["svg"])


def test_another_candidate_leads_elsewhere(server):
    """Candidates are sorted probabilities; the network goes on after the ids that were sent."""
    shown = ask(server, "candidates", prompt="the cat", tokens=5)
    first = shown["steps"][0]
    p = [rival["p"] for rival in first["candidates"]]
    assert len(p) == look.CANDIDATES and p == sorted(p, reverse=True) and first["id"] in [
        rival["id"] for rival in first["candidates"]]
    ids = [*shown["ids"], first["candidates"][1]["id"]]
    assert ask(server, "candidates", ids=ids, tokens=3)["ids"] == ids


def test_attention_weights_are_those_of_the_network(server, out):
    """One map a head, rows that sum to 1, nothing from later tokens; the output they give is o."""
    net = params, config, tokenizer = checkpoint.open_model(out + "/base")
    ids = [*config.bos, *tokenizer.encode("the cat sat")]
    p = look.attention_of(net, ids)
    assert p.shape == (2, 2, len(ids), len(ids))
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    assert not np.triu(p, 1).any()
    buffers = model.Buffers(config, 1, len(ids))
    model.transformer(params, config, np.array([ids]), buffers)
    saved = buffers.saved[1]
    v = saved.qkv[:, -1]  # the one key/value head, (T,D)
    np.testing.assert_allclose(p[1, 1] @ v, saved.o.reshape(len(ids), 2, -1)[:, 1], atol=1e-6)
    shown = ask(server, "attention", text="the cat sat", layer=1, head=1)
    assert len(shown["heads"]) == len(shown["heads"][0]) == 2
    xml.etree.ElementTree.fromstring(shown["svg"])


def test_the_mask_is_that_of_render_chat(server, out):
    """What the assistant says and its end are on, all else is off; text stays text."""
    shown = ask(server, "mask")["tokens"]
    tokenizer = bpe.Tokenizer.load(out + "/sft/tokenizer.json")
    ids, mask = bpe.render_chat(tokenizer, [{"role": "user", "content": SCRIPT},
                                            {"role": "assistant", "content": "the hat"}])
    assert [token["id"] for token in shown] == ids and [token["on"] for token in shown] == [
        bool(on) for on in mask]


def test_a_chat_streams_and_the_same_seed_gives_the_same_text(server):
    """Base and assistant answer in lines of JSON; the last one has the number of tokens."""
    asked = {"messages": [{"role": "user", "content": "the cat"}], "tokens": 20, "temperature": 1}
    texts = []
    for name in ("base", "sft", "sft"):
        status, headers, body = request(server, "POST", "/chat", asked | {"model": name})
        parts = [json.loads(line) for line in body.splitlines()]
        assert status == 200 and 0 < parts[-1]["tokens"] <= 20 and "Content-Length" not in headers
        texts.append("".join(part["text"] for part in parts))
    assert texts[1] == texts[2] != texts[0]


def test_rollouts_have_rewards_and_advantages(server, monkeypatch):
    """Right answers that ended get 1, also after a thought; advantage is reward minus mean."""
    tokenizer = look.run_tokenizer(server.out)
    end = tokenizer.special_tokens["<|im_end|>"]
    texts = ["7", "<think>7</think> 7", "<think>7</think> 8", "7 cats"] * 4
    monkeypatch.setattr(look, "generate", lambda *rest, **more: [
        [*tokenizer.encode(text), end] for text in texts[:-1]] + [tokenizer.encode("7")])
    shown = ask(server, "rollouts", model="sft")
    assert [row["reward"] for row in shown["rollouts"]] == [1, 1, 0, 0] * 4
    assert shown["mean"] == 0.5 and shown["rollouts"][2]["advantage"] == -0.5


def test_a_missing_stage_says_what_makes_it(tmp_path):
    """In an empty folder every view is an error that names a command."""
    with look.Server(str(tmp_path), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for view in look.VIEWS:
            asked = {"messages": [{"role": "user", "content": "x"}]} if view == "chat" else {}
            status, _, body = request(server, "POST", "/" + view, asked)
            assert status == 400 and "python " in json.loads(body)["error"], view
        assert ask(server, "overview")["models"] == []
        server.shutdown()


# ---- What is refused ----

@pytest.mark.parametrize("status,method,path,headers", [
    (403, "GET", "/", {"Host": "evil.example"}), (403, "POST", "/overview", {"Host": "127.0.0.1"}),
    (403, "POST", "/overview", {"Origin": "http://evil.example"}),
    (403, "POST", "/overview", {"Origin": "null"}),
    (403, "GET", "/", {"Sec_Fetch_Site": "cross-site"}), (404, "GET", "/etc/passwd", {}),
    (404, "GET", "/../look.py", {}), (404, "POST", "/report", {}), (501, "PUT", "/", {}),
    (415, "POST", "/overview", {"Content_Type": "text/plain"}),
    (413, "POST", "/overview", {"Content_Length": "65537"}),
    (413, "POST", "/overview", {"Content_Length": "9" * 3000}),
    (411, "POST", "/overview", {"Content_Length": "-1"}),
    (411, "POST", "/overview", {"Content_Length": "²"})])
def test_foreign_and_oversized_requests(server, status, method, path, headers):
    """Another host, site, path, method or type is refused, and so is a body too large to read."""
    try:
        body = b"" if "Content_Length" in headers else b"{}"
        assert request(server, method, path, body, **headers)[0] == status
    except UnicodeEncodeError:  # http.client sends no such header; say it by hand
        with socket.create_connection(("127.0.0.1", server.server_port)) as raw:
            raw.sendall(f"POST /overview HTTP/1.1\r\nHost: {server.names[0]}\r\nContent-Type: "
                        "application/json\r\nContent-Length: ²\r\n\r\n".encode())
            assert f" {status} ".encode() in raw.recv(1000)


@pytest.mark.parametrize("view,body", [
    ("tokens", b"{"), ("tokens", b"[]"), ("tokens", b"[" * 60_000), ("tokens", b"\xff\xfe"),
    ("tokens", {"text": 7}), ("tokens", {"text": "x" * 5000}), ("tokens", {"merges": -1}),
    ("tokens", b'{"merges": NaN}'), ("tokens", {"merges": True}), ("tokens", {"merges": 1e99}),
    ("attention", {"layer": 99}), ("attention", {"model": "../base"}), ("chat", {"model": "/"}),
    ("candidates", {"ids": [10**30]}), ("candidates", {"ids": [-1]}), ("candidates", {"ids": "ab"}),
    ("candidates", {"ids": [1.5]}), ("candidates", {"temperature": -1}),
    ("candidates", {"tokens": 10**9}), ("chat", {"messages": []}), ("chat", {"messages": ["x"]}),
    ("chat", {"messages": [{"role": "user", "content": None}]}),
    ("chat", {"model": "sft", "messages": [{"role": "god", "content": "x"}]}),
    ("chat", {"model": "sft", "messages": [{"role": "user", "content": "cat " * 500}]}),
    ("mask", {"number": 5}), ("mask", {"messages": [{"role": "user"}]}),
    ("rollouts", {"number": 9}), ("explain", {"url": "http://nowhere.example/"}),
    ("curves", {"width": "wide"})])
def test_requests_that_make_no_sense(server, view, body, capfd):
    """A wrong value is one sentence with status 400, never a traceback."""
    status, _, found = request(server, "POST", "/" + view, body)
    assert status == 400 and json.loads(found)["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_the_page_may_load_nothing_else(server):
    """The policy allows our script and style by their hashes, our server, and drawings."""
    status, headers, page = request(server, "GET", "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert b"http://" not in page and b"https://" not in page and b"innerHTML" not in page
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_too_many_requests_at_once(server):
    """Beyond BUSY requests under way the answer is 429; when they are done all is as before."""
    for _ in range(look.BUSY):
        assert server.busy.acquire(blocking=False)
    assert request(server, "POST", "/overview", {})[0] == 429
    for _ in range(look.BUSY):
        server.busy.release()
    assert request(server, "POST", "/overview", {})[0] == 200


def test_a_stream_stops_when_the_browser_goes_away(server, monkeypatch):
    """The network does not write on for nobody; the place is free again."""
    written, closed = [], threading.Event()

    def endless(out, asked):
        try:
            while True:
                written.append(1)
                yield {"text": "x" * 1000}
        finally:
            closed.set()
    monkeypatch.setitem(look.VIEWS, "endless", endless)
    with socket.create_connection(("127.0.0.1", server.server_port)) as raw:
        raw.sendall(f"POST /endless HTTP/1.1\r\nHost: {server.names[0]}\r\nContent-Type: "
                    "application/json\r\nContent-Length: 2\r\n\r\n{}".encode())
        assert b"200" in raw.recv(100)
    assert closed.wait(10) and written
    assert request(server, "POST", "/overview", {})[0] == 200


def test_an_error_in_the_middle_of_a_stream_is_its_last_line(server, monkeypatch):
    """Damaged weights are noticed at the first token that they spoil; the page shows that."""
    def breaks(out, asked):
        yield {"text": "the "}
        raise ValueError("the network's output is not a number")
    monkeypatch.setitem(look.VIEWS, "breaks", breaks)
    lines = request(server, "POST", "/breaks", {})[2].splitlines()
    assert [json.loads(line) for line in lines] == [
        {"text": "the "}, {"error": "the network's output is not a number"}]


def memory_of(server, n):
    """Growth of this process in MB during n requests of all kinds."""
    before = []
    for k in range(n):
        if k == n // 4:
            gc.collect()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        view = ("overview", "tokens", "curves", "attention", "candidates", "mask")[k % 6]
        ask(server, view, **({"text": f"the cat {k}"} if view in ("tokens", "attention") else {}))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_hundreds_of_requests_in_flat_memory(server):
    """Nothing is kept of a request, and no thread stays."""
    assert memory_of(server, 300) < 20 and threading.active_count() < 10


@pytest.mark.long
def test_ten_thousand_requests_in_flat_memory(server):
    """The same for a long day."""
    assert memory_of(server, 10_000) < 20 and threading.active_count() < 10


# ---- Files ----

def test_the_report_is_one_file_that_stands_alone(out, capsys):
    """It holds the answers of all views, no text in it ends the script, and it loads nothing."""
    assert look.main(["--out", out, "--report"]) == 0
    page = open(out + "/report.html", encoding="utf-8").read()
    recorded = page.split('id="recorded">')[1].split("</script>")[0]
    answers = json.loads(recorded)
    assert set(look.VIEWS) | {"overview"} == set(answers) and "<" not in recorded
    assert not any("error" in answer for answer in answers.values())
    assert "Content-Security-Policy" in page and "//" not in page.replace(recorded, "").split(
        "<script>")[0]
    assert "the cat </script>" == answers["chat"]["models"][0]["turns"][0]["question"]


def test_pictures_are_drawn_from_the_run(out, tmp_path, capsys):
    """Those whose stage ran are SVG; the other one's line says what makes it."""
    assert look.main(["--out", out, "--pictures", str(tmp_path / "pictures")]) == 0
    drawn = sorted(os.listdir(tmp_path / "pictures"))
    assert drawn == ["attention.svg", "learning.svg", "mask.svg", "pipeline.svg"]
    for name in drawn:
        xml.etree.ElementTree.parse(tmp_path / "pictures" / name)
    assert "no reward.svg" in (said := capsys.readouterr().out) and "rl.py --reward model" in said


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
        page = next(target["targetId"] for target in self.send("Target.getTargets")["targetInfos"]
                    if target["type"] == "page")
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
@pytest.mark.parametrize("width,height", [(1200, 900), (390, 844)])
def test_the_page_in_a_browser(server, out, tmp_path, width, height):
    """One types, sees tokens, chooses a candidate, chats; <script> stays text; a phone fits."""
    browser = Browser(tmp_path, width, height)
    try:
        browser.send("Page.navigate", url=f"http://{server.names[0]}/#tokens")
        tokens = "[...document.querySelectorAll('#tokens .out .token')].map(x => x.firstChild.data)"
        browser.wait(f"{tokens}.length > 0")
        browser.run("document.querySelector('#tokens textarea').focus()")
        browser.send("Input.insertText", text=SCRIPT)
        browser.wait(f"{tokens}.join('').includes('</script>')")
        browser.run("location.hash = 'mask'")
        browser.wait("document.querySelector('#mask .out').textContent.includes('im_start')")
        assert browser.run("document.querySelectorAll('script').length") == 1
        assert "owned" not in browser.run("document.title")

        browser.run("location.hash = 'candidates'")
        rivals = "document.querySelectorAll('#candidates .rival')"
        browser.wait(f"{rivals}.length == {look.CANDIDATES}")
        wanted = browser.run(f"{rivals}[3].firstChild.textContent")
        browser.run(f"{rivals}[3].click()")
        browser.wait("document.querySelector('#candidates .token').textContent == "
                     + json.dumps(wanted))

        browser.run("location.hash = 'chat'")
        browser.wait("document.querySelectorAll('#chat h3').length == 2")
        browser.run("form('chat').text.value = 'the cat'; form('chat')[3].click()")
        browser.wait("[...document.querySelectorAll('#chat .columns p:last-child')]"
                     ".every(x => x.textContent.length > 20)")
        for name in look.VIEWS:
            browser.run(f"location.hash = '{name}'")
            browser.wait(f"document.querySelector('#{name} .out').children.length")
            assert browser.run("document.documentElement.scrollWidth") <= width, name
            images = f"[...document.querySelectorAll('#{name} img')]"
            browser.wait(f"{images}.every(x => x.naturalWidth)")
            assert browser.run(f"{images}.every(x => x.closest('button') || x.alt)")
        shot = base64.b64decode(browser.send("Page.captureScreenshot")["data"])
        assert len(shot) > 5000

        look.report(out)
        browser.send("Page.navigate", url=f"file://{out}/report.html")
        browser.wait("document.querySelectorAll('section .out > *').length > 15")
        assert browser.run("document.querySelectorAll('.missing').length") == 0
    finally:
        browser.close()
