"""The page's server: what it streams, what it refuses, and that X-ray shows what transformers computes."""

import base64
import hashlib
import json
import re
import socket
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import uvicorn
from conftest import conversation, tiny_model
from transformers import AutoModelForCausalLM

import eval_model
from dataset import prompt_ids
from eval_model import EvalConfig
from generate import stream
from infra.checkpoint import save_model
from infra.conversation import Chat
from infra.inside import token_probabilities
from infra.source_shapes import shape_lines
from infra.web import MOST_WAITING, Desk, application
from infra.web_requests import MOST_BYTES
from infra.xray import describe_step
from model import WeakWater

ROOT = Path(__file__).resolve().parents[1]
ASKED = [{"role": "user", "content": "你好"}]


class Server:
    """The page's server on a port of its own."""

    def __init__(self, model, tokenizer, answer=stream, others=(), **flags):
        """others: {mode: model} of more stages."""

        def load_stage(config, mode):
            if mode not in others:
                raise FileNotFoundError
            return replace(config, model_mode=mode), others[mode], tokenizer

        chat = Chat(model, tokenizer, EvalConfig(**flags), answer, prompt_ids, load_stage)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(
            uvicorn.Config(
                application(lambda: chat, self.port), log_level="warning", timeout_graceful_shutdown=1
            )
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def post(self, path, body, **headers):
        """(status, text) of an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, **body):
        """The parts of a reply."""
        status, text = self.post("/reply", {"mode": 2, "messages": ASKED, **body})
        assert status == 200, text
        events = [line[5:] for line in text.splitlines() if line.startswith("data:")]
        return [part for event in events for part in json.loads(event)]

    def open_reply(self):
        """A connection on which a reply has begun."""
        body = json.dumps({"mode": 2, "messages": ASKED, "sampling": {"max_new_tokens": 9}}).encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        head = f"POST /reply HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        received = b""
        while b'"before"' not in received:
            received += (more := connection.recv(4096))
            assert more, received
        return connection, json.loads(re.search(rb"data: (.*)", received)[1])[0]

    def close(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve(tokenizer):
    servers = []

    def start(*args, **how):
        servers.append(Server(*(args or [tiny_model()]), tokenizer, **how))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def plain(tokenizer):
    """A server for tests that leave nothing behind."""
    server = Server(tiny_model(), tokenizer)
    yield server
    server.close()


def test_reply_is_what_the_model_generates_and_tells_its_numbers(plain, tokenizer):
    first, *parts, last = plain.ask(sampling={"temperature": 0, "max_new_tokens": 20})
    prompt = prompt_ids(tokenizer, ASKED)
    sampling = EvalConfig(temperature=0, max_new_tokens=20)
    expected = [id for [id] in stream(tiny_model(), [prompt], sampling)]
    ids = [id for part in [*parts, last] for id in part["ids"]]
    assert first == {"prompt": prompt, "left_out": 0, "before": 0}
    assert ids == expected and len(ids) == 20 and last["why"] == "length"
    assert "".join(part["text"] for part in parts) == tokenizer.decode(expected)
    assert last["used"] == (len(prompt) + 20) / 128 and last["seconds"] > 0


def test_seed_and_history_and_thinking_are_the_requests(plain, tokenizer):
    sampled = {"temperature": 1.5, "max_new_tokens": 8}
    replies = [plain.ask(sampling={**sampled, "seed": seed})[1:-1] for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]
    messages = conversation("一", "二", "三", system="算")
    begin, *_ = plain.ask(messages=messages, sampling={"max_new_tokens": 1})
    assert begin["prompt"] == prompt_ids(tokenizer, messages)
    thought = plain.ask(thinking=0, sampling={"max_new_tokens": 9})
    text = "".join(part.get("text", "") for part in thought)
    assert text.startswith("<think></think>\n<answer>")


def test_turns_that_do_not_fit_are_left_out_and_counted(plain):
    messages = conversation(*["你好"] * 21)
    begin, *_ = plain.ask(messages=messages, sampling={"max_new_tokens": 1})
    assert 0 < begin["left_out"] < 20 and len(begin["prompt"]) <= 127


def test_other_stages_are_found_and_asked(serve):
    server = serve(tiny_model(), others={0: tiny_model(seed=1)})
    with urllib.request.urlopen(f"{server.url}/about") as response:
        about = json.load(response)
    assert [stage["mode"] for stage in about["stages"]] == [0, 2] and about["mode"] == 2
    assert about["stages"][0]["parameters"] == 69_072 and about["sampling"]["top_p"] == 1.0
    sampling = {"max_new_tokens": 5}
    begin, *parts = server.ask(mode=0, sampling=sampling)
    assert len(begin["prompt"]) < 10 and parts[:-1] != server.ask(sampling=sampling)[1:-1]


def test_requests_of_other_pages_and_for_other_hosts_are_refused(plain):
    body, own = {"mode": 2, "messages": ASKED, "sampling": {"max_new_tokens": 1}}, f"127.0.0.1:{plain.port}"
    assert plain.post("/reply", body, Host=own, Origin=f"http://{own}")[0] == 200
    assert plain.post("/reply", body, Host=f"localhost:{plain.port}")[0] == 200
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{plain.port}", "Origin": f"http://evil.example:{plain.port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{plain.port}"},
        {"Host": "127.0.0.1:1"},
    ):
        assert plain.post("/reply", body, **headers)[0] == 403, headers
    page = urllib.request.Request(f"{plain.url}/", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(page)


def test_page_allows_no_script_but_its_own_and_no_other_host(plain):
    with urllib.request.urlopen(f"{plain.url}/") as response:
        policy, page = response.headers["Content-Security-Policy"], response.read().decode()
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert not re.findall(r"https?://|src=|@import|url\(", page)


@pytest.mark.parametrize(
    "path, body, status, expected",
    [
        ("/reply", b"{", 400, "expected JSON"),
        ("/reply", b"\xff", 400, "expected JSON"),
        ("/reply", b"[" * 100_000, 400, "expected JSON"),
        ("/reply", b"[]", 400, "expected a JSON object, found a list"),
        ("/reply", {}, 400, "expected one of 2 under"),
        ("/reply", {"mode": 9}, 400, "expected one of 2 under"),
        ("/reply", {"mode": 2}, 400, "expected a list under"),
        ("/reply", {"mode": 2, "messages": []}, 400, "found an empty list"),
        ("/reply", {"mode": 2, "messages": [1]}, 400, "found a number"),
        ("/reply", {"mode": 2, "messages": conversation("问", "答")}, 400, "a question as the last message"),
        ("/reply", {"mode": 2, "messages": conversation("\ud800")}, 400, "half of a surrogate pair"),
        ("/reply", {"mode": 2, "messages": conversation("长" * 9000)}, 400, "found a message of "),
        ("/reply", {"mode": 2, "messages": ASKED, "thinking": -1}, 400, "a number of tokens under"),
        ("/reply", {"mode": 2, "messages": ASKED, "sampling": {"device": "x"}}, 400, "expected some of"),
        ("/reply", {"mode": 2, "messages": ASKED, "sampling": {"top_k": 1.5}}, 400, "a whole number"),
        ("/reply", {"mode": 2, "messages": ASKED, "sampling": {"top_p": "1"}}, 400, "a number under"),
        ("/reply", {"mode": 2, "messages": ASKED, "sampling": {"top_p": 7}}, 400, "must be at most 1"),
        ("/reply", {"mode": 2, "messages": ASKED, "sampling": {"top_p": float("nan")}}, 400, "nan"),
        ("/reply", b"a" * 1_000_000, 413, "found a request of 1,000,000 bytes, expected at most 262,144"),
        ("/xray", {"mode": 2, "prompt": [1], "reply": []}, 400, "token ids below 400 under"),
        ("/xray", {"mode": 2, "prompt": [1], "reply": [400]}, 400, "token ids below 400 under"),
        ("/xray", {"mode": 2, "prompt": [1] * 100, "reply": [9] * 29}, 400, "found 129 tokens, expected at"),
        ("/step", {"mode": 2, "prompt": [1], "reply": [9], "position": 1}, 400, "expected a number below 1"),
        ("/nothing", {}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_bad_request_is_told_what_is_wrong_with_it(path, body, status, expected, plain):
    found, text = plain.post(path, body)
    assert found == status and expected in json.loads(text)["error"]
    assert plain.ask(sampling={"max_new_tokens": 1})[-1]["why"]  # the next one is answered


def test_what_the_model_refuses_is_the_last_part_of_a_reply(serve):
    model = tiny_model()
    server = serve(model, others={0: model})
    *_, last = server.ask(mode=0, messages=conversation("长" * 400))
    assert last["error"].startswith("found a prompt of ") and "expected 1 to 127" in last["error"]
    assert server.ask(sampling={"temperature": 1e-300, "max_new_tokens": 3})[-1]["why"]


def test_replies_whose_browser_has_gone_are_not_begun(serve):
    begun, going = [], threading.Event()

    def held(model, prompts, sampling, shared):
        begun.append(1)
        going.wait(30)
        yield [9]

    server = serve(answer=held)
    opened = [server.open_reply()[0] for _ in range(4)]
    for connection in opened[1:]:
        connection.close()
    time.sleep(1)
    going.set()
    connection, begin = server.open_reply()
    connection.recv(4096)
    assert len(begun) == 2 and begin["before"] <= 1
    connection.close()
    opened[0].close()


def test_computing_stops_when_the_browser_has_gone(serve):
    steps = []

    def endless(model, prompts, sampling, shared):
        while True:
            steps.append(1)
            time.sleep(0.01)
            yield [7 + len(steps) % 200]

    server = serve(answer=endless)
    connection, _ = server.open_reply()
    connection.recv(4096)
    connection.close()
    time.sleep(1)
    count = len(steps)
    time.sleep(0.5)
    assert count > 0 and len(steps) == count
    assert server.open_reply()[1]["before"] == 0


def test_replies_are_made_one_at_a_time_and_not_too_many_wait(serve):
    going, busy, most = threading.Event(), [], []

    def held(model, prompts, sampling, shared):
        busy.append(1)
        most.append(len(busy))
        going.wait(30)
        busy.pop()
        yield [9]

    server = serve(answer=held)
    opened = [server.open_reply() for _ in range(MOST_WAITING)]
    body = {"mode": 2, "messages": ASKED, "sampling": {"max_new_tokens": 9}}
    threading.Timer(5, going.set).start()  # or one that is not refused would wait
    status, text = server.post("/reply", body)
    going.set()
    assert [begin["before"] for _, begin in opened] == list(range(MOST_WAITING))
    assert status == 503 and "8 replies are waited for" in text
    deadline = time.time() + 30
    while server.post("/reply", body)[0] == 503 and time.time() < deadline:
        time.sleep(0.1)
    assert most == [1] * len(most) and len(most) >= MOST_WAITING
    for connection, _ in opened:
        connection.close()


def test_request_of_any_length_is_read_without_keeping_it(plain):
    body = b"x" * (40 * MOST_BYTES)
    tracemalloc.start()
    try:
        assert plain.post("/reply", body)[0] == 413
        assert tracemalloc.get_traced_memory()[1] < 10 * MOST_BYTES
    finally:
        tracemalloc.stop()


# ---- X-ray ----


@pytest.fixture(scope="module")
def oracle(tokenizer, tmp_path_factory):
    """(our model, transformers' of the same weights)."""
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_model(seed=3), folder, tokenizer, 128)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return WeakWater.from_pretrained(folder).eval(), theirs


def test_step_is_what_transformers_computes(oracle, tokenizer):
    ours, theirs = oracle
    ids, chosen = torch.randint(7, 400, (20,), generator=torch.Generator().manual_seed(1)).tolist(), 11
    step = describe_step(ours, tokenizer, ids, chosen)
    with torch.no_grad():
        out = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
        *hidden, last = (state[0, -1] for state in out.hidden_states)
        states = [*map(theirs.model.norm, hidden), last]  # theirs is normed already
        logits = theirs.lm_head(torch.stack(states))
    probabilities = logits.softmax(-1)
    attention = torch.stack([weights[0, :, -1] for weights in out.attentions])
    assert torch.allclose(torch.tensor(step["attention"]), attention, atol=1e-5) and attention.shape == (
        3,
        6,
        20,
    )
    rivals = [id for id in probabilities[-1].argsort(descending=True).tolist() if id != chosen][:5]
    found = torch.tensor([row["of"] for row in step["lens"]])
    assert torch.allclose(found, probabilities[:, [chosen, *rivals]], atol=1e-5) and len(found) == 4
    largest = torch.tensor([row["probability"] for row in step["lens"]])
    assert torch.allclose(largest, probabilities.max(-1).values, atol=1e-5)


def test_last_layer_of_the_lens_is_the_probability_of_the_chip(oracle, tokenizer):
    ours, _ = oracle
    prompt, reply = [1, 30, 31], [40, 41, 42]
    for position, (own, rivals) in enumerate(token_probabilities(ours, prompt, reply)):
        of = describe_step(ours, tokenizer, prompt + reply[:position], reply[position])["lens"][-1]["of"]
        assert of == pytest.approx([own, *(value for _, value in rivals)], abs=1e-6)


def test_shapes_are_those_of_the_lines_they_name(oracle):
    model, lines = oracle[0], (ROOT / "model.py").read_text(encoding="utf-8").splitlines()
    shapes = shape_lines(model, 20)
    for part in shapes.values():
        assert part
        for found in part:
            assert found["code"] in lines[found["line"] - 1] and found["shape"] in lines[found["line"] - 1]
    numbers = {found["code"]: found["numbers"] for part in shapes.values() for found in part}
    seen, attend = {}, model.model.layers[0].self_attn.attend

    def watched(q, k, *more):
        seen["q"], seen["k"] = tuple(q.shape), tuple(k.shape)
        seen["attended"] = tuple((result := attend(q, k, *more)).shape)
        return result

    model.model.layers[0].self_attn.attend = watched
    model(torch.arange(20)[None])
    del model.model.layers[0].self_attn.attend
    by_name = {code.split(" = ")[0]: shape for code, shape in numbers.items()}
    assert (
        by_name["q"] == str(seen["q"]) == "(1, 6, 20, 8)"
        and by_name["k"] == str(seen["k"]) == "(1, 2, 20, 8)"
    )
    assert str(seen["attended"]) in numbers.values() and by_name["hidden"] == "(1, 20, 48)"


def test_port_that_is_taken_is_told(plain):
    argv = ["--web", f"--port={plain.port}", "--device=cpu"]
    with pytest.raises(ValueError, match=f"--port {plain.port} cannot be used .Address already in use"):
        eval_model.main(argv)


def test_a_model_that_is_missing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a checkpoint"):
        eval_model.main(["--web", "--port=0", f"--model_dir={tmp_path}/none", "--device=cpu"])


def test_models_are_loaded_in_the_thread_that_computes(tokenizer):
    threads, model = [], tiny_model()

    def load_stage(config, mode):
        threads.append(threading.current_thread())
        return replace(config, model_mode=mode), model, tokenizer

    def open_chat():
        threads.append(threading.current_thread())
        return Chat(model, tokenizer, EvalConfig(), stream, prompt_ids, load_stage)

    desk = Desk(open_chat)
    threads.append(desk.thread.submit(threading.current_thread).result())
    desk.thread.shutdown()
    assert len(threads) == 5 and len(set(threads)) == 1 and threads[0] is not threading.current_thread()
