"""The application: endpoints, limits and statuses."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect

from ..modeling.aliases import Open, Values
from ..version import __version__
from .batching import Batcher, Busy, Draining, Job
from .metrics import Metrics
from .requests import Question, Refused, arguments_of, inputs_of, parsed, read
from .served import ServedPipeline
from .settings import BODY, BODY_SECONDS, DRAIN_SECONDS, KEEP_SECONDS, Settings

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
GONE = 499  # what the metrics call a request whose client is gone
_READ_ON = 8  # limits of a body that are read, to answer a client that sends first and reads then

T = TypeVar("T")


class Service:
    """What the endpoints do.

    Args:
        pipeline: of the model.
        settings: of the server.
    """

    def __init__(self, pipeline: ServedPipeline, settings: Settings) -> None:
        self.pipeline, self.settings, self.metrics = pipeline, settings, Metrics()
        self.batcher = Batcher(pipeline, settings, self.metrics)
        self.reader = ThreadPoolExecutor(1, "reader")  # the tokenizer is used by one thread at a time
        self.described = {"model": settings.model, "version": __version__, "tasks": pipeline.described()}

    def drain(self) -> None:
        """Accept no more requests; safe in a signal handler."""
        self.batcher.drain()

    def close(self) -> None:
        """End the threads, when all accepted requests are answered."""
        self.batcher.close()
        self.reader.shutdown()

    def check_token(self, request: Request) -> None:
        """Check that a request has the token, where one is needed.

        Raises:
            HTTPException: it has not.
        """
        if self.settings.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.settings.token.encode())
        if scheme.lower() != "bearer" or not same:
            reason = "The request needs the header 'Authorization: Bearer TOKEN' with the token of this server."
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})

    async def predict(self, request: Request) -> Response:
        """Answer a request, and count it."""
        start, tasks = time.monotonic(), set[str]()
        try:
            answers = await self._answers(request, tasks)
            response: Response = JSONResponse(answers)
            status = 200
        except Refused as problem:
            status = problem.status
            response = JSONResponse({"detail": problem.detail}, status, problem.headers)
        except (ClientDisconnect, _Gone):
            status, response = GONE, Response(status_code=GONE)
        except Exception:
            logger.exception("A request could not be answered.")
            status = 500
            response = JSONResponse({"detail": "The model could not answer. The log of the server says why."}, status)
        self.metrics.on_request(status, time.monotonic() - start, tasks if status == 200 else ())
        return response

    async def _answers(self, request: Request, tasks: set[str]) -> Open:
        question = parsed(await self._body(request))
        asked = arguments_of(self.pipeline, question)
        inputs = inputs_of(self.pipeline, question, self.settings.max_queue)
        if not inputs:
            return []
        try:
            self.batcher.admit(len(inputs))
        except Busy as problem:
            raise Refused(429, str(problem), headers={"Retry-After": str(problem.seconds)}) from None
        except Draining:
            raise _ending() from None
        try:
            work = asyncio.get_running_loop().run_in_executor(self.reader, read, self.pipeline, question, inputs, asked)
            job = Job(await _unless_gone(request, work))
        except BaseException:
            self.batcher.release(len(inputs))
            raise
        tasks.update(name for item in job.items for name in item.readings)
        job.answers.add_done_callback(lambda _: self.batcher.release(len(inputs)))
        self.batcher.submit(job)
        try:
            answers = await _unless_gone(request, asyncio.wrap_future(job.answers))
        except (ValueError, TypeError) as problem:
            raise Refused(422, str(problem), ["body", "inputs"]) from None
        return answers if isinstance(question.inputs, list) else answers[0]

    async def _body(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
            Refused: it is too large or too slow, or the server ends.
        """
        work = asyncio.ensure_future(asyncio.wait_for(_received(request), BODY_SECONDS))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=0.2)
                if self.batcher.draining and not work.done():
                    raise _ending()
            return work.result()
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused(408, f"The body was not there after {BODY_SECONDS:g} s.", headers=_CLOSE) from None
        finally:
            work.cancel()


class _Gone(Exception):
    """The client has closed the connection."""


_CLOSE = {"Connection": "close"}


def _ending() -> Refused:
    return Refused(503, "The server ends and accepts no more requests.", headers={"Retry-After": "5", **_CLOSE})


async def _received(request: Request) -> bytes:
    too_large = Refused(413, f"A body has at most {BODY} bytes. Divide the request.", headers=_CLOSE)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > _READ_ON * BODY:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        parts.append(part)
        if size > BODY:
            parts.clear()
        if size > _READ_ON * BODY:
            break
    if size > BODY:
        raise too_large
    return b"".join(parts)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is canceled when the client closes the connection.

    Raises:
        _Gone: it did.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    wanted, gone = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait([wanted, gone], return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        raise _Gone
    finally:
        for one in (wanted, gone):
            one.cancel()


def create_app(service: Service) -> FastAPI:
    """The endpoints of a service, which ends with them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    title = f"hf-multitask: {service.settings.model}"
    app = FastAPI(title=title, version=__version__, lifespan=lifespan)
    guarded = [Depends(_async(service.check_token))]
    page = PAGE.read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", summary="Whether the server accepts requests", responses={503: _said("The server ends.")})
    async def ready() -> JSONResponse:
        draining = service.batcher.draining
        return JSONResponse({"status": "draining" if draining else "ready"}, 503 if draining else 200)

    @app.get("/tasks", summary="The model and its tasks", dependencies=guarded)
    async def tasks() -> JSONResponse:
        return JSONResponse(service.described)

    @app.get("/metrics", summary="Figures in the format of Prometheus", dependencies=guarded)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post(
        "/predict",
        summary="The answers of the tasks to one input or several",
        dependencies=guarded,
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": Question.model_json_schema()}}}
        },
        responses={
            200: _said("A dict by task, as the pipeline answers; of a list of inputs, a list of them."),
            401: _said("The token is missing or wrong."),
            413: _said("The body, an input or the number of inputs is too large."),
            422: _said("A field cannot be used; `detail` says which, and why."),
            429: _said("Too many inputs are waiting; the header Retry-After says for how long."),
            503: _said("The server ends."),
        },
    )
    async def predict(request: Request) -> Response:
        return await service.predict(request)

    return app


class Server(uvicorn.Server):
    """A server that stops accepting requests at a signal, and ends when all accepted ones are answered.

    Args:
        service: what the endpoints do.

    Attributes:
        when_started: called once the server accepts connections.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.when_started: Callable[[], None] = lambda: None
        options: Values = {
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": KEEP_SECONDS,
        }
        super().__init__(uvicorn.Config(create_app(service), timeout_graceful_shutdown=DRAIN_SECONDS, **options))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See :class:`uvicorn.Server`."""
        await super().startup(sockets)
        if self.started:
            self.when_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See :class:`uvicorn.Server`."""
        self.service.drain()
        super().handle_exit(sig, frame)


def make_server(pipeline: ServedPipeline, settings: Settings) -> Server:
    """A server of a pipeline, whose model runs as soon as it is made."""
    return Server(Service(pipeline, settings))


def _said(description: str) -> dict[str, Open]:
    return {"description": description}


def _async(check: Callable[[Request], None]) -> Callable[[Request], Awaitable[None]]:
    """A check that FastAPI runs in its own thread."""

    async def run(request: Request) -> None:
        check(request)

    return run
