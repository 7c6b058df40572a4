"""The chat as a page: a server for this machine alone, and one generation at a time.

The browser keeps the conversation and sends all of it with each question, so that tabs do not meet. One
thread owns the models; what it makes goes to the browser as server-sent events, until the browser has gone.
"""

import asyncio
import json
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from infra.checkpoint import promised_context
from infra.cli import UserError
from infra.commands import SET
from infra.conversation import Chat, stages_of
from infra.reply import prompt_for, reply_ids
from infra.terminal import as_text
from infra.thinking import InCircles
from infra.tokenizer import TAGS
from infra.web_guard import OwnPageOnly, page_headers
from infra.web_requests import body_of, chat_of, position_of, reply_of, stage_of
from infra.xray import describe_reply, describe_step

HOST, PAGE = "127.0.0.1", Path(__file__).with_name("page.html")
MOST_WAITING = 8  # replies, the one that is being made included
PAUSE = 0.05  # seconds between two events: each of them takes a core from the model


def serve(open_chat: Callable[[], Chat], port: int) -> None:
    """Serve the page until Ctrl-C, with the stage of the chat that is opened and the others that there are.

    Raises UserError for a port that is taken, and what `open_chat` raises.
    """
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(f"--port {port} cannot be used ({error.strerror}): pass another one") from None
    port = listener.getsockname()[1]
    settings = uvicorn.Config(application(open_chat, port), log_level="warning", timeout_graceful_shutdown=1)
    print(f"the chat is at http://{HOST}:{port} (Ctrl-C ends the program)", flush=True)
    uvicorn.Server(settings).run(sockets=[listener])


def application(open_chat: Callable[[], Chat], port: int) -> Starlette:
    desk = Desk(open_chat)
    routes = {"/reply": desk.reply, "/xray": desk.xray, "/step": desk.step}
    return Starlette(
        routes=[
            Route("/", show_page),
            Route("/about", desk.about),
            *(Route(path, answer, methods=["POST"]) for path, answer in routes.items()),
        ],
        middleware=[Middleware(OwnPageOnly, hosts=(f"{HOST}:{port}", f"localhost:{port}"))],
        exception_handlers={
            UserError: lambda request, error: JSONResponse({"error": str(error)}, 400),
            HTTPException: lambda request, error: JSONResponse({"error": error.detail}, error.status_code),
        },
    )


async def show_page(request: Request) -> HTMLResponse:
    page = PAGE.read_text(encoding="utf-8")
    return HTMLResponse(page, headers=page_headers(page))


class Desk:
    """Where requests wait for the one thread that owns the models.

    It loads them too: if two threads compute, each has a team of OpenMP threads, and tokens take longer.
    """

    def __init__(self, open_chat: Callable[[], Chat]):
        self.thread, self.unfinished, self.run = ThreadPoolExecutor(1), [], secrets.token_hex(8)
        chat = self.thread.submit(open_chat).result()
        stages = stages_of(chat)
        loaded = iter(lambda: self.thread.submit(next, stages, None).result(), None)  # Ctrl-C waits for one
        self.config, self.chats = chat.config, {stage.config.model_mode: stage for stage in loaded}

    async def about(self, request: Request) -> JSONResponse:
        """The stages that there are, the sampling given at the start, and a name of this run."""
        stages = [{"mode": mode, "parameters": it.model.num_parameters()} for mode, it in self.chats.items()]
        sampling = {name: getattr(self.config, name) for name in SET}
        about = {"stages": stages, "mode": self.config.model_mode, "sampling": sampling, "tags": TAGS}
        return JSONResponse({**about, "run": self.run})

    async def reply(self, request: Request) -> EventSourceResponse:
        """{"mode", "messages", "sampling", "thinking"} -> events: the prompt, token after token, the end."""
        chat, question = chat_of(self.chats, await body_of(request))
        prompt, kept = await run_in_threadpool(prompt_for, chat, question)
        self.unfinished = [work for work in self.unfinished if not work.done()]
        before = len(self.unfinished)
        if before >= MOST_WAITING:
            raise HTTPException(503, f"{before} replies are waited for already: try again later")
        basket, has_gone = Basket(), Event()

        def work():
            try:
                for part in parts_of(chat, prompt):
                    basket.put(part)
                    if has_gone.is_set():
                        return
            finally:
                basket.put(None)

        self.unfinished.append(self.thread.submit(work))
        begin = {"prompt": prompt, "left_out": len(chat.messages) + 1 - len(kept), "before": before}
        return EventSourceResponse(events(begin, basket, self.unfinished[-1], has_gone), sep="\n")

    async def xray(self, request: Request) -> JSONResponse:
        """{"mode", "prompt", "reply"} -> what `describe_reply` tells."""
        body = await body_of(request)
        chat = stage_of(self.chats, body)
        return await self.described(describe_reply, chat, *reply_of(chat, body))

    async def step(self, request: Request) -> JSONResponse:
        """{"mode", "prompt", "reply", "position"} -> what `describe_step` tells."""
        body = await body_of(request)
        chat = stage_of(self.chats, body)
        prompt, reply = reply_of(chat, body)
        position = position_of(reply, body)
        return await self.described(describe_step, chat, prompt + reply[:position], reply[position])

    async def described(self, describe: Callable, chat: Chat, *ids) -> JSONResponse:
        working = self.thread.submit(describe, chat.model, chat.tokenizer, *ids)
        return JSONResponse(await asyncio.wrap_future(working))


class Basket:
    """What a thread has made for a coroutine, which is woken once for all that it then takes together."""

    def __init__(self):
        self.parts, self.has_parts, self.loop = deque(), asyncio.Event(), asyncio.get_running_loop()

    def put(self, part) -> None:
        self.parts.append(part)
        if len(self.parts) == 1:
            self.loop.call_soon_threadsafe(self.has_parts.set)

    async def take(self) -> list:
        await self.has_parts.wait()
        self.has_parts.clear()
        return [self.parts.popleft() for _ in iter(lambda: len(self.parts), 0)]  # until it is empty


async def events(begin: dict, basket: Basket, work: Future, has_gone: Event) -> AsyncIterator[dict]:
    """Parts of a reply, some in each event. When the browser goes, the thread turns to the next reply."""
    try:
        yield {"data": json.dumps([begin])}
        parts = []
        while parts[-1:] != [None]:
            parts = await basket.take()
            yield {"data": json.dumps([part for part in parts if part])}
            await asyncio.sleep(PAUSE)
        work.result()  # raises what it raised
    finally:
        has_gone.set()
        work.cancel()


def parts_of(chat: Chat, prompt: list[int]) -> Iterator[dict]:
    """{"ids", "text"} when characters are complete; last {"ids", "why", "seconds", "used"} or {"error"}."""
    start, ids, sent, why = time.perf_counter(), [], 0, "end"

    def counted():
        for id in reply_ids(chat, prompt):
            ids.append(id)
            yield id

    try:
        for text in as_text(chat.tokenizer, counted()):
            yield {"ids": ids[sent:], "text": text}
            sent = len(ids)
        room = chat.model.config.max_position_embeddings - len(prompt)
        if len(ids) >= min(chat.config.max_new_tokens, room):
            why = "length"
    except InCircles:
        why = "circle"
    except UserError as error:
        yield {"error": str(error)}
        return
    used = (len(prompt) + len(ids)) / promised_context(chat.model.config, chat.tokenizer)
    yield {"ids": ids[sent:], "why": why, "seconds": time.perf_counter() - start, "used": used}
