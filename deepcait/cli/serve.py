"""Serve predictions and class attention over HTTP, with a web page.

Examples:
    deepcait serve builtin:nano                          then open http://127.0.0.1:8000/
    deepcait serve runs/pets --port 0                    a free port, which is printed
    deepcait serve runs/pets --cors-origin https://pets.example.org
    curl -F "image=@cat.jpg" http://127.0.0.1:8000/predict
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal
from urllib.parse import urlsplit

import tyro

from deepcait.cli.console import Console
from deepcait.cli.engine import choose_engine
from deepcait.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Options of `deepcait serve`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file, builtin:nano."""
    host: str = "127.0.0.1"
    """Address to listen on; the default can be reached from this machine only."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    allow_host: Annotated[tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]], tyro.conf.arg(metavar="NAME")] = ()
    """Accepted Host names, for a proxy in front of the service; can be repeated."""
    cors_origin: Annotated[tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]], tyro.conf.arg(metavar="ORIGIN")] = ()
    """Origins whose pages may use the service (CORS), * for all; can be repeated."""
    engine: Literal["eager", "compile", "onnx", "openvino"] | None = None
    """Inference engine (default: the one that `bench --autotune` stored in the model's folder, else PyTorch)."""
    precision: Literal["auto", "fp32", "fp32-strict", "bf16", "fp16", "int8"] = "auto"
    """Number format of matrix products; auto is fp32. bf16 or int8 without --engine uses the engine eager."""
    threads: int | None = None
    """Threads of the network (default: the engine's choice)."""
    device: str | None = None
    """Device, for example cpu or cuda:0 (default: a GPU if there is one)."""
    max_batch: int | None = None
    """Largest batch (default: what `bench --autotune` stored, else 16)."""
    max_wait_ms: float = 2.0
    """Longest time in milliseconds that an incomplete batch waits for pending requests."""
    max_queue: int = 128
    """Largest number of waiting images; further requests get status 503."""
    max_images: int = 32
    """Largest number of images per request."""
    max_megabytes: float = 20.0
    """Largest size of a request body in megabytes."""
    max_pixels: int | None = None
    """Largest accepted number of pixels of an image, checked before decoding (default: 40,000,000)."""
    max_bytes: int | None = None
    """Largest size of a request body in bytes; replaces --max-megabytes."""
    max_megapixels: float = 40.0
    """The same as --max-pixels, in millions."""
    deadline_s: float = 30.0
    """Time limit in seconds from the headers of a request to its response."""
    json: bool = False
    """Print the address as one JSON object and nothing else."""


def _require_numbers(args: Args) -> None:
    for option, number in (
        ("--max-wait-ms", args.max_wait_ms),
        ("--max-megabytes", args.max_megabytes),
        ("--max-megapixels", args.max_megapixels),
        ("--deadline-s", args.deadline_s),
    ):
        if not 0 <= number < math.inf:
            raise ConfigError(f"{option}: expected a number of 0 or more, got {number}.", remedy="Leave it out.")


def run(args: Args) -> int | None:
    """Load the model, listen, and serve until SIGINT or SIGTERM."""
    from deepcait.classifier import load

    try:
        from deepcait.serve.limits import Limits
        from deepcait.serve.run import is_loopback, require_names, serve
    except ModuleNotFoundError as error:
        if (error.name or "deepcait").startswith("deepcait"):
            raise
        raise ConfigError(
            f"serve needs the package {error.name}, which is not installed.", remedy='pip install "deepcait[serve]"'
        ) from error
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f"--threads: expected 1 or more, got {args.threads}.", remedy="Use 1 or more.")
    _require_numbers(args)
    hosts, origins = [*chain(*args.allow_host)], [*chain(*args.cors_origin)]
    require_names(hosts, origins)
    console = Console(json=args.json)
    chosen = choose_engine(args.spec, args.engine, console, precision=args.precision, device=args.device)
    threads = args.threads or chosen.threads
    limits = Limits(
        max_batch=(chosen.batch or Limits.max_batch) if args.max_batch is None else args.max_batch,
        max_wait_s=args.max_wait_ms / 1000,
        max_queue=args.max_queue,
        max_requests=args.max_queue,
        max_images=args.max_images,
        max_body_bytes=round(args.max_megabytes * 2**20) if args.max_bytes is None else args.max_bytes,
        max_pixels=round(args.max_megapixels * 1e6) if args.max_pixels is None else args.max_pixels,
        deadline_s=args.deadline_s,
        body_timeout_s=min(Limits.body_timeout_s, 0.75 * args.deadline_s),
    )
    classifier = load(args.spec, device=args.device, engine=chosen.engine, precision=chosen.precision, threads=threads)

    def listening(address: str) -> None:
        height, width = classifier.preprocessing.img_size
        facts = {"url": address, "model": args.spec, "classes": classifier.model.num_classes}
        console.result(facts | {"img_size": [height, width]})
        if not args.json:
            console.say(f"serving {args.spec} ({facts['classes']:,} classes, {height} x {width} px) at {address}")
        if not is_loopback(urlsplit(address).hostname or ""):
            console.note(
                "Anyone who can reach this address can use the service: there is no password. Put a proxy in front."
            )

    serve(
        classifier,
        name=args.spec,
        host=args.host,
        port=args.port,
        threads=threads,
        limits=limits,
        allow_hosts=hosts,
        cors_origins=origins,
        listening=listening,
    )
    if not args.json:
        console.say("stopped; all accepted requests have been completed")
