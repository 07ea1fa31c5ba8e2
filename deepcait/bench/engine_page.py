"""The results of `compare_engines` as a page and as a table."""

from __future__ import annotations

from typing import Any

from deepcait.bench.page import markdown_table

_EACH = ("p95", "images/s", "MiB", "error")
COLUMNS = ("engine", "deepcait, ms", *_EACH, "timm, ms", *_EACH, "ratio", "quartiles", "of limit")


def markdown(result: dict[str, Any], command: str) -> str:
    """The results as a page."""
    lines = [
        f"# Inference: {result['model']} against timm",
        "",
        f"    {command}",
        "",
        f"{result['threads']} threads, medians of {result['rounds']} alternating rounds; "
        f"{result.get('gpu', result['cpu'])}; commit {result['environment']['commit']}.",
    ]
    if noted := fallbacks(result):
        lines += ["", *noted]
    for row in result["batches"]:
        low, high = row["best_quartiles"][0], row["best_quartiles"][2]
        own, peer = row["best_ours"].removesuffix(" ours"), row["best_peer"].removesuffix(" timm")
        lines += [
            "",
            f"Batch {row['batch']}: deepcait's fastest engine whose error is no larger ({own}) is "
            f"{row['best_ratio']:.2f} times as fast as timm's fastest ({peer}; quartiles {low:.2f} to {high:.2f})"
            + ("." if row["limit"] is None else f" and reaches {row['of_limit']:.2f} of the limit."),
            *(_best_line(precision, found) for precision, found in row["best"].items()),
            "",
            *markdown_table(COLUMNS, table(row)),
        ]
    memory = result["memory_bytes"]
    lines += [
        "",
        "MiB: growth of the process (on a GPU, of its allocated memory) at its peak during the first call of this "
        "size; engines keep that memory. Error: "
        "root mean square difference from the model's own logits, divided by their standard deviation. Of limit: the "
        "time of the matrix products alone in the same precision, divided by deepcait's time."
        + (" timm has no int8, so its cells are empty there." if "int8" in result["batches"][0]["best"] else ""),
        "",
        f"Peak activation memory in PyTorch at batch {memory['batch']}, counted: deepcait {memory['ours'] / 2**20:.1f} "
        f"MiB, timm {memory['timm'] / 2**20:.1f} MiB (ratio {memory['ratio']:.2f}).",
    ]
    return "\n".join(lines) + "\n"


def _best_line(precision: str, found: dict[str, Any]) -> str:
    """deepcait's fastest in a precision against timm's; in int8 against timm's fastest in any precision."""
    limit, rms = found["limit"], found["rms"]
    peer = f"timm's fastest, {found['timm']}" if precision == "int8" else f"timm with {found['timm']}"
    text = f"In {precision}: deepcait with {found['ours']} is {found['ratio']:.2f} times as fast as {peer}"
    if found["less_exact"]:
        text += f", at a larger error ({rms['ours']:.1e}; timm {rms['timm']:.1e})"
    if limit is None:
        return f"{text}; the limit of the matrix products was not measured."
    unit = "GOPS" if precision == "int8" else "GFLOPS"
    return (
        f"{text}; matrix products alone take {1e3 * limit['median_s']:.1f} ms ({limit['library']}, "
        f"{limit['gflops']:.0f} {unit})."
    )


def fallbacks(result: dict[str, Any]) -> list[str]:
    """A line on the engines that compute in fp32 in place of a shorter format; none if there are none."""
    names = result.get("in_fp32")
    return [f"{', '.join(names)}: deepcait computes in fp32 here."] if names else []


def summary(row: dict[str, Any]) -> list[str]:
    """The best engines of a batch size, one line each: in all precisions, and in int8 if it was measured."""
    overall = f"best: {row['best_ours']}, {row['best_ratio']:.2f} times as fast as {row['best_peer']}"
    if row["limit"] is not None:
        overall += f"; {row['of_limit']:.2f} of the speed of the matrix products alone ({row['limit']['library']})"
    return [overall, *(_best_line("int8", found) for name, found in row["best"].items() if name == "int8")]


def table(row: dict[str, Any]) -> list[list[str]]:
    """One row of text cells per engine, for `COLUMNS`; what was not measured is empty."""
    lines = []
    for engine, found in row["engines"].items():
        cells = [text for who in ("ours", "timm") for text in _cells(found[who])]
        spread, near = found["quartiles"], found["ours"]["of_limit"]
        shares = [f"{found['ratio']:.2f}", f"{spread[0]:.2f} to {spread[2]:.2f}"] if spread else ["", ""]
        lines.append([engine, *cells, *shares, "" if near is None else f"{near:.2f}"])
    return lines


def _cells(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return [""] * (1 + len(_EACH))
    return [
        f"{1e3 * found['median_s']:.1f}",
        f"{1e3 * found['p95_s']:.1f}",
        f"{found['images_per_s']:.1f}",
        f"{found['first_call_bytes'] / 2**20:.0f}",
        f"{found['rms']:.1e}",
    ]
