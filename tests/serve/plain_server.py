"""The plain server that ours is measured against: one request, one forward pass, nothing else.

`python -m tests.serve.plain_server --port 0`; `--pool` passes the picture through the network in Starlette's pool of
threads in place of the event loop.
"""

from __future__ import annotations

import socket
import sys

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import deepcait
from deepcait.data import open_image


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    classifier = deepcait.load("builtin:nano")

    def classify(data: bytes):
        (predictions,) = classifier.predict(open_image(data))
        return [prediction._asdict() for prediction in predictions]

    async def predict(request: Request) -> JSONResponse:
        async with request.form() as form:
            file = form["image"]
            data = await file.read()
        predictions = await run_in_threadpool(classify, data) if "--pool" in argv else classify(data)
        return JSONResponse([{"file": file.filename, "predictions": predictions}])

    with socket.create_server(("127.0.0.1", int(argv[argv.index("--port") + 1])), backlog=512) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
        uvicorn.Server(uvicorn.Config(app, http="h11", log_level="error", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1:])
