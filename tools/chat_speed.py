"""What the chat costs beside the bare loop that it stands on: what `tools/benchmark.py chat` measures."""

import io
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from http.client import HTTPConnection

import torch
import uvicorn

from Config import LLMConfig
from dataset import prompt_ids
from eval_model import EvalConfig
from generate import stream
from infra.chat import reply
from infra.conversation import Chat
from infra.device import pick_device
from infra.tokenizer import ChatTokenizer
from infra.web import application
from model import WeakWater

QUESTION, NEW_TOKENS, TIMES = "小明有345个苹果，又买了278个。小明一共有多少个苹果？", 128, 5


class Clock(io.StringIO):
    """A terminal that notes when text arrives."""

    def __init__(self):
        super().__init__()
        self.times = []

    def isatty(self):
        return True

    def write(self, text):
        self.times.append(time.perf_counter())
        return super().write(text)


def measure_chat(candidate: str, config) -> dict:
    """{first_token_seconds, tokens_per_second} of replies of NEW_TOKENS; medians, after one to warm up."""

    def open_chat():
        tokenizer, device = ChatTokenizer(config.tokenizer), pick_device(config.device)
        torch.manual_seed(0)
        shape = LLMConfig.preset(config.preset, vocab_size=len(tokenizer), eos_token_id=-1)  # none ends early
        model = WeakWater(shape).to(device).eval()
        sampling = EvalConfig(temperature=1.0, max_new_tokens=NEW_TOKENS)  # so that none goes in circles
        return Chat(model, tokenizer, sampling, stream, prompt_ids, no_other_stage)

    arrivals = {"bare loop": bare_loop, "terminal": terminal, "page": page}[candidate](open_chat)
    found = []
    for _ in range(1 + TIMES):
        start = time.perf_counter()
        times = next(arrivals)
        found.append((times[0] - start, (NEW_TOKENS - 1) / (times[-1] - times[0])))
    arrivals.close()
    first, speed = (statistics.median(column) for column in zip(*found[1:]))
    return {"first_token_seconds": first, "tokens_per_second": speed}


def no_other_stage(config, mode):
    raise FileNotFoundError


def bare_loop(open_chat: Callable[[], Chat]) -> Iterator[list[float]]:
    """When each token of a reply arrived; and so again."""
    chat = open_chat()
    while True:
        clock, prompt = Clock(), prompt_ids(chat.tokenizer, [{"role": "user", "content": QUESTION}])
        for [id] in stream(chat.model, [prompt], chat.config, chat.shared):
            print(chat.tokenizer.decode([id]), end="", flush=True, file=clock)
        yield clock.times


def terminal(open_chat: Callable[[], Chat]) -> Iterator[list[float]]:
    """The same of what is printed, the line of numbers under it left out."""
    chat = open_chat()
    while True:
        chat.messages, chat.replies = [], 0
        with redirect_stdout(Clock()) as clock:
            reply(chat, QUESTION)
        yield clock.times[: -2 * 2]  # two lines, each with its end


def page(open_chat: Callable[[], Chat]) -> Iterator[list[float]]:
    """The same of the events that a browser receives."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application(open_chat, port), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    body = json.dumps({"mode": 2, "messages": [{"role": "user", "content": QUESTION}]})
    connection = HTTPConnection("127.0.0.1", port)  # is kept, as browsers do
    try:
        while True:
            connection.request("POST", "/reply", body)
            yield [time.perf_counter() for line in connection.getresponse() if b'"text"' in line]
    finally:
        connection.close()
        server.should_exit = True
        thread.join()
