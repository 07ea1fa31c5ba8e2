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
    for row in result["batches"]:
        low, high = row["best_quartiles"][0], row["best_quartiles"][2]
        own, peer = row["best_ours"].removesuffix(" ours"), row["best_peer"].removesuffix(" timm")
        lines += [
            "",
            f"Batch {row['batch']}: deepcait's fastest engine whose error is no larger ({own}) is "
            f"{row['best_ratio']:.2f} times as fast as timm's fastest ({peer}; quartiles {low:.2f} to {high:.2f}) and "
            f"reaches {row['of_limit']:.2f} of the limit.",
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
        "time of the matrix products alone in the same precision, divided by deepcait's time.",
        "",
        f"Peak activation memory in PyTorch at batch {memory['batch']}, counted: deepcait {memory['ours'] / 2**20:.1f} "
        f"MiB, timm {memory['timm'] / 2**20:.1f} MiB (ratio {memory['ratio']:.2f}).",
    ]
    return "\n".join(lines) + "\n"


def _best_line(precision: str, found: dict[str, Any]) -> str:
    limit = found["limit"]
    return (
        f"In {precision}: deepcait with {found['ours']} is {found['ratio']:.2f} times as fast as timm with "
        f"{found['timm']}; matrix products alone take {1e3 * limit['median_s']:.1f} ms ({limit['library']}, "
        f"{limit['gflops']:.0f} GFLOPS)."
    )


def table(row: dict[str, Any]) -> list[list[str]]:
    """One row of text cells per engine, for `COLUMNS`."""
    lines = []
    for engine, found in row["engines"].items():
        cells = [
            text
            for who in ("ours", "timm")
            for text in (
                f"{1e3 * found[who]['median_s']:.1f}",
                f"{1e3 * found[who]['p95_s']:.1f}",
                f"{found[who]['images_per_s']:.1f}",
                f"{found[who]['first_call_bytes'] / 2**20:.0f}",
                f"{found[who]['rms']:.1e}",
            )
        ]
        spread = found["quartiles"]
        shares = (f"{found['ratio']:.2f}", f"{spread[0]:.2f} to {spread[2]:.2f}", f"{found['ours']['of_limit']:.2f}")
        lines.append([engine, *cells, *shares])
    return lines
