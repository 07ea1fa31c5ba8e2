"""Precision: the number format in which an engine computes products, by its name on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from deepcait.errors import ConfigError

PRECISIONS = ("auto", "fp32", "fp32-strict", "bf16", "fp16", "int8")
# Precisions of each engine on a CPU, in addition to auto and fp32-strict, which are fp32 there.
ON_CPU = {
    "eager": ("fp32", "bf16", "int8"),
    "compile": ("fp32", "bf16", "int8"),
    "onnx": ("fp32",),
    "openvino": ("fp32", "bf16"),
}
# PyTorch's engines on a GPU: autocast.
ON_GPU = ("fp32", "bf16", "fp16")

# Precisions that `all` means in benchmarks.
MEASURED = tuple(dict.fromkeys(name for formats in ON_CPU.values() for name in formats))


def choose_precision(asked: str, engine: str, device_type: str = "cpu") -> str:
    """Return the precision that an engine computes in: fp32, bf16, fp16 or int8.

    Args:
        asked: one of `PRECISIONS`. auto is fp32. fp32-strict is fp32 on a CPU.
        engine: one of `ENGINES`.
        device_type: cpu, or cuda.

    Raises:
        ConfigError: the precision is unknown, or the engine does not offer it.

    >>> choose_precision("auto", "eager"), choose_precision("bf16", "openvino")
    ('fp32', 'bf16')
    """
    if asked not in PRECISIONS:
        raise ConfigError(
            f"precision: expected one of {', '.join(PRECISIONS)}, got {asked!r}.", remedy="Use auto if in doubt."
        )
    if asked == "auto":
        return "fp32"
    offered = offered_by(engine, device_type)
    if asked == "fp32-strict" and device_type == "cpu":
        return "fp32"
    if asked not in offered:
        place = "a CPU" if device_type == "cpu" else "a GPU"
        others = [name for name, formats in ON_CPU.items() if asked in formats and device_type == "cpu"]
        remedy = f"Choose the engine {' or '.join(others)}, or" if others else "Choose"
        raise ConfigError(
            f"precision: the engine {engine} does not compute in {asked} on {place}; it offers {', '.join(offered)}.",
            remedy=f"{remedy} one of these precisions.",
        )
    return asked


def offered_by(engine: str, device_type: str = "cpu") -> tuple[str, ...]:
    """Return the precisions that an engine offers on a device of this type: cpu, or cuda."""
    return ON_CPU[engine] if device_type == "cpu" else ON_GPU


def require_offered(engines: Sequence[str], precisions: Sequence[str], device_type: str = "cpu") -> None:
    """Raise unless every precision is offered by at least one of the engines.

    Raises:
        ConfigError: one is not; the message names engines that offer it.
    """
    for precision in precisions:
        if not any(precision in offered_by(engine, device_type) for engine in engines):
            choose_precision(precision, engines[0], device_type)


def engine_for(engine: str | None, precision: str) -> str | None:
    """Return the given engine; eager if only a precision below fp32 was given."""
    return "eager" if engine is None and precision in ("bf16", "fp16", "int8") else engine
