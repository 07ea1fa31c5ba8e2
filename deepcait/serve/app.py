"""The service as an ASGI application: its paths, and which requests are accepted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepcait.errors import ConfigError, DeepcaitError, ImageError
from deepcait.serve.cors import Cors
from deepcait.serve.counters import Counters
from deepcait.serve.limits import Limits
from deepcait.serve.openapi import describe
from deepcait.serve.pages import read_assets, sample_names
from deepcait.serve.pipeline import Pipeline, Seen, Timing
from deepcait.serve.refusal import BODY_READ, SECURITY_HEADERS, Answer, Refusal, RequestError, json_bytes, overloaded
from deepcait.serve.upload import Upload, read_images, require_body_type

if TYPE_CHECKING:
    from deepcait.classifier import Classifier
    from deepcait.model import CaiT

_DEFAULT_TOPK = 5
_DIGITS = 6  # of an attention weight: enough for a page, and the response stays small
_OWN = (b"same-origin", b"none")  # Sec-Fetch-Site of requests of our own page, and of requests without a page
_MORE = "More: `deepcait help status-421-and-403`."
_KNOWN_PATHS = {"/", "/predict", "/explain", "/healthz", "/metrics", "/model", "/openapi.json"}


class Service:
    """The application: routes, inside checks of every request.

    Args:
        classifier: the model.
        name: name of the model on the page.
        limits: of requests.
        hosts: accepted names in the Host header; None accepts any. A service on a loopback address accepts only its
            own, so that no page of another host can reach it by a changed DNS entry.
        cors_origins: origins whose pages may use the service.

    Raises:
        ConfigError: something that is not an origin.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        name: str,
        limits: Limits | None = None,
        hosts: Collection[str] | None = None,
        cors_origins: Sequence[str] = (),
    ) -> None:
        self.cors = Cors(cors_origins)
        self.classifier = classifier
        self.explainable = _with_class_stage(classifier)
        self.name = name
        self.limits = limits or Limits()
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.counters = Counters()
        self.pipeline = Pipeline(classifier, self.limits, self.counters)
        self._assets = read_assets(classifier.classes)
        self._description = json_bytes(describe(self.limits))
        self._num_requests = 0
        self._num_buffered_bytes = 0
        self._routes = Starlette(
            routes=[
                Route("/predict", self._predict, methods=["POST"]),
                Route("/explain", self._explain, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/metrics", self._metrics),
                Route("/model", self._model),
                Route("/openapi.json", self._openapi),
                *(Route(path, self._asset) for path in self._assets),
            ],
            exception_handlers={
                RequestError: _refuse,
                HTTPException: _refuse_method,
                DeepcaitError: _refuse_model,
                Exception: _refuse_defect,
            },
        )

    def close(self) -> None:
        """Finish waiting requests and end the threads."""
        self.pipeline.close()

    # -- checks ----------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request; count it."""
        if scope["type"] != "http":
            raise ValueError(f"expected http, got {scope['type']}")
        began_s = time.perf_counter()
        status = 0
        origin = next((value for name, value in scope["headers"] if name == b"origin"), b"").decode("latin-1")

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(self.cors.add_headers(message, origin))

        application: ASGIApp = self._routes
        try:
            self._require_fitting_headers(scope, origin)
            self._require_known_path(scope["path"])
            application = self.cors.preflight(scope, origin) or self._routes
        except RequestError as error:
            application = Refusal(error)
        try:
            await application(scope, receive, counting_send)
        except ClientDisconnect:
            status = 499  # the client has left; proxies log this status
        except asyncio.CancelledError:  # a second signal: waiting requests are refused, not cut off
            if status:
                raise
            await Refusal(overloaded("the service was stopped before it could respond."))(scope, receive, counting_send)
        finally:
            path = scope["path"]
            known = path if path in _KNOWN_PATHS else "static" if path in self._assets else "other"
            self.counters.add("requests_total", path=known, status=status)
            self.counters.add("request_seconds_total", time.perf_counter() - began_s)

    def _require_fitting_headers(self, scope: Scope, origin: str) -> None:
        if scope["http_version"] not in ("1.0", "1.1"):
            problem = f"request: expected HTTP/1.1, got HTTP/{scope['http_version']}."
            raise RequestError(400, problem, remedy="Use a client for HTTP/1.1.")
        num_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        host = ""
        framed_by = set()
        for name, value in scope["headers"]:
            num_bytes += len(name) + len(value)
            if name in (b"content-length", b"transfer-encoding"):
                framed_by.add(name)
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"sec-fetch-site" and value not in _OWN and scope["method"] == "POST":
                if not self.cors.allows(origin):
                    problem = "the request comes from a page of another origin."
                    remedy = f"Use the page at /, or start the service with --cors-origin ORIGIN. {_MORE}"
                    raise RequestError(403, problem, remedy=remedy)
        if len(framed_by) > 1 or (scope["http_version"] == "1.0" and b"transfer-encoding" in framed_by):
            # A proxy in front may find the end of the body elsewhere (RFC 9112, 6.1 and 6.3).
            problem = (
                "the length of the body is ambiguous: Transfer-Encoding in HTTP/1.0, or together with Content-Length."
            )
            raise RequestError(400, problem, remedy="Send Content-Length, or chunks in HTTP/1.1, not both.")
        if num_bytes > self.limits.max_header_bytes:
            raise RequestError(
                431,
                f"headers: expected at most {self.limits.max_header_bytes:,} bytes, got {num_bytes:,}.",
                remedy="Send fewer and shorter headers.",
            )
        if self.hosts is not None and _host_name(host) not in self.hosts:
            raise RequestError(
                421,
                f"Host: expected {' or '.join(sorted(self.hosts))}, got {host[:100]!r}.",
                remedy=f"Use one of these names, or start the service with --allow-host NAME. {_MORE}",
            )

    def _require_known_path(self, path: str) -> None:
        """Here, not in the router, which accepts a line break at the end of a path."""
        if path not in _KNOWN_PATHS and path not in self._assets:
            problem = f"there is no path {path[:100]!r}."
            raise RequestError(404, problem, remedy=f"Use one of {', '.join(sorted(_KNOWN_PATHS))}.")

    @asynccontextmanager
    async def _admitted(self, request: Request) -> AsyncIterator[None]:
        """Count the request as open, until the deadline at most."""
        if self._num_requests >= self.limits.max_requests:
            raise overloaded(f"{self.limits.max_requests} requests are open, the most at once.")
        self._num_requests += 1
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                yield
        except TimeoutError:
            if not request.scope.get(BODY_READ):
                raise _slow_body(self.limits.deadline_s) from None
            raise overloaded(f"there was no result within {self.limits.deadline_s:g} s.") from None
        finally:
            self._num_requests -= 1

    # -- paths -----------------------------------------------------------------------------------------------------

    async def _predict(self, request: Request) -> Response:
        topk = _topk(request)
        async with self._admitted(request):
            seen, timing = await self._ask(request, explain=False, topk=topk)
        return Answer([_as_result(one) for one in seen], headers=_server_timing(timing))

    async def _explain(self, request: Request) -> Response:
        topk = _topk(request)
        if self.explainable is None:
            problem = "the model has no class attention, so it can't explain its predictions."
            raise RequestError(400, problem, remedy="Send the image to /predict.")
        async with self._admitted(request):
            (seen,), timing = await self._ask(request, explain=True, topk=topk)
        return Answer(_as_explanation(seen, self.explainable.config.grid), headers=_server_timing(timing))

    async def _ask(self, request: Request, *, explain: bool, topk: int) -> tuple[list[Seen], Timing]:
        self.pipeline.expect()
        try:
            uploads = await self._read(request)
            if explain and len(uploads) != 1:
                raise RequestError(
                    400, f"expected one image to explain, got {len(uploads)}.", remedy="Send one image per request."
                )
        except BaseException:
            self.pipeline.forget()
            raise
        job = self.pipeline.submit(uploads, explain=explain, topk=topk)
        leaving = asyncio.ensure_future(request.receive())  # the body is read: only a disconnect can follow
        try:
            await asyncio.wait((job.done, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not job.done.done():
                raise ClientDisconnect
            return job.done.result(), job.timing
        except ImageError as error:
            raise RequestError(400, error.problem, remedy=error.remedy) from error
        finally:
            job.done.cancel()
            leaving.cancel()

    async def _read(self, request: Request) -> list[Upload]:
        """The images of the body."""
        require_body_type(request.headers.get("content-type", ""))
        if encoding := request.headers.get("content-encoding"):
            raise RequestError(
                415, f"Content-Encoding: expected none, got {encoding[:40]!r}.", remedy="Send the body uncompressed."
            )
        if int(request.headers.get("content-length", 0)) > self.limits.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.body_timeout_s), aclosing(self._chunks(request)) as chunks:
                return await read_images(request.headers, chunks, self.limits)
        except TimeoutError:
            raise _slow_body(self.limits.body_timeout_s) from None

    async def _chunks(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives, and count it."""
        num_bytes = 0
        try:
            while not request.scope.get(BODY_READ):
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                request.scope[BODY_READ] = not message.get("more_body", False)
                num_bytes += len(chunk)
                self._num_buffered_bytes += len(chunk)
                if num_bytes > self.limits.max_body_bytes:
                    raise self._too_large()
                # A body that has been read stays in memory until its images are decoded.
                if self._num_buffered_bytes + self.pipeline.num_bytes > self.limits.max_buffered_bytes:
                    raise overloaded("the memory for request bodies is full.")
                yield chunk
        finally:
            self._num_buffered_bytes -= num_bytes
            self.counters.add("body_bytes_total", num_bytes)

    def _too_large(self) -> RequestError:
        return RequestError(
            413,
            f"body: expected at most {self.limits.max_body_bytes:,} bytes, got more.",
            remedy="Make the images smaller, or send them in several requests.",
        )

    async def _healthz(self, request: Request) -> Response:
        if not self.pipeline.is_alive():
            raise overloaded("a thread of the service has ended.")
        return Answer({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        gauges: dict[str, tuple[str, float]] = {
            "queue_images": ("Images in the queue now.", self.pipeline.num_waiting),
            "requests_open": ("Open predict and explain requests now.", self._num_requests),
        }
        headers = {**SECURITY_HEADERS, "cache-control": "no-store"}
        return Response(self.counters.text(gauges), 200, headers, "text/plain; version=0.0.4; charset=utf-8")

    async def _model(self, request: Request) -> Response:
        config = self.explainable.config if self.explainable else None
        facts = {
            "model": self.name,
            "classes": self.classifier.model.num_classes,
            "img_size": list(self.classifier.preprocessing.img_size),
            "grid": list(config.grid) if config else [],
            "blocks": config.cls_depth if config else 0,
            "heads": config.num_heads if config else 0,
            "max_body_bytes": self.limits.max_body_bytes,
            "samples": sample_names(self.classifier.classes),
        }
        return Answer(facts)

    async def _openapi(self, request: Request) -> Response:
        return Answer(self._description)

    async def _asset(self, request: Request) -> Response:
        asset = self._assets[request.scope["path"]]
        headers = {**SECURITY_HEADERS, "etag": asset.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == asset.etag:
            return Response(None, 304, headers)
        return Response(asset.content, 200, headers, asset.media_type)


def _with_class_stage(classifier: Classifier) -> CaiT | None:
    """The model, if it has class attention."""
    try:
        return classifier.cait if len(classifier.cait.blocks_token_only) else None
    except ConfigError:
        return None


def _slow_body(limit_s: float) -> RequestError:
    problem = f"the body did not arrive within {limit_s:g} s."
    return RequestError(408, problem, remedy="Send smaller requests, or over a faster connection.")


def _topk(request: Request) -> int:
    topk = _DEFAULT_TOPK
    for name, value in request.query_params.multi_items():
        if name != "topk":
            raise RequestError(400, f"unknown query parameter {name[:40]!r}.", remedy="Only topk is known.")
        if not (value.isascii() and value.isdigit() and 0 < len(value) <= 6 and int(value) > 0):
            raise RequestError(400, f"topk: expected 1 or more, got {value[:40]!r}.", remedy="Give a whole number.")
        topk = int(value)
    return topk


def _as_result(seen: Seen) -> dict[str, Any]:
    """The object of an image, as `predict --json` prints it."""
    return {"file": seen.name, "predictions": [prediction._asdict() for prediction in seen.predictions]}


def _as_explanation(seen: Seen, grid: tuple[int, int]) -> dict[str, Any]:
    """The same with the class attention: to the patches, row by row, and to the class token itself."""
    attention_LAT = seen.attention
    assert attention_LAT is not None
    rounded = [[[round(weight, _DIGITS) for weight in head] for head in block] for block in attention_LAT.tolist()]
    return _as_result(seen) | {
        "size": list(seen.size),
        "box": [round(side, 3) for side in seen.box],
        "grid": list(grid),
        "attention": [[head[1:] for head in block] for block in rounded],
        "class_token": [[head[0] for head in block] for block in rounded],
    }


def _server_timing(timing: Timing) -> dict[str, str]:
    stations = {"decode": timing.decode_s, "queue": timing.queue_s, "network": timing.network_s}
    texts = [f"{name};dur={1000 * seconds:.2f}" for name, seconds in stations.items()]
    return {"server-timing": ", ".join([*texts, f'batch;desc="{timing.batch}"'])}


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; empty if it is not a name."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return Refusal(error)


async def _refuse_method(request: Request, error: Exception) -> Response:
    """Another method: the only thing that the router refuses."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {})["Allow"]
    problem = f"method: expected {allowed}, got {request.method[:20]}."
    return Refusal(RequestError(405, problem, remedy=f"Use {allowed}.", headers={"allow": allowed}))


async def _refuse_model(request: Request, error: Exception) -> Response:
    """An error of the model, not of the request."""
    assert isinstance(error, DeepcaitError)
    return Refusal(RequestError(500, error.problem, remedy=error.remedy))


async def _refuse_defect(request: Request, error: Exception) -> Response:
    return Refusal(
        RequestError(500, "a defect of deepcait.", remedy="The log of the service has the traceback; report it.")
    )
