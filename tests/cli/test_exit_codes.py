"""The exit code is the command's, whatever threads pyarrow, OpenVINO, ONNX Runtime and aiohttp leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
PACKAGES = [name for name in ("pyarrow.dataset", "openvino", "onnxruntime", "aiohttp") if find_spec(name.split(".")[0])]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
# Every package at work in threads of its own, then an early end of the command.
BUSY = """
import asyncio, sys, threading
from concurrent.futures import ThreadPoolExecutor

def openvino():
    import numpy as np, openvino
    from openvino import opset13 as ops
    x = ops.parameter([1, 8], np.float32)
    compiled = openvino.Core().compile_model(openvino.Model([ops.relu(x)], [x]), "CPU")
    request = compiled.create_infer_request()
    request.start_async({0: np.zeros((1, 8), np.float32)})
    return request

def onnxruntime():
    import onnxruntime
    return onnxruntime.get_available_providers()

def pyarrow():
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table({"a": list(range(10_000))}), "busy.parquet", row_group_size=100)
    file = open("busy.parquet", "rb")
    return pq.read_table(file), file

def aiohttp():
    import aiohttp
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def wait():
        async with aiohttp.ClientSession() as session:
            await asyncio.sleep(60)

    return loop, asyncio.run_coroutine_threadsafe(wait(), loop)

kept = [globals()[name.split(".")[0]]() for name in sys.argv[1].split(",")]
del kept
pool = ThreadPoolExecutor(2)
pool.submit(print, "pool", flush=True)

import atexit
atexit.register(print, "atexit", flush=True)
sys.argv = ["deepcait", *sys.argv[2:]]
from deepcait.cli.main import command
print("unflushed", end="")
command()
"""


def ends(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in a process in which all the packages have worked."""
    done = subprocess.run(
        [sys.executable, "-c", BUSY, ",".join(PACKAGES), *words],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def write_parquet(path: Path, labels: list) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Image.new("RGB", (8, 8)).save(path.with_suffix(".png"))
    images = [{"bytes": path.with_suffix(".png").read_bytes(), "path": f"{row}.png"} for row in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=4)


def check(folder: Path, times: int) -> None:
    """Early ends of three kinds, each some times."""
    for kind, labels in (("list", [[row % 3] for row in range(40)]), ("float", [row / 3 for row in range(40)])):
        write_parquet(folder / f"{kind}.parquet", labels)
    for number in range(times):
        code, out, err = ends(folder, "info", "nothing")
        assert (code, "no model" in err or "nothing" in err) == (2, True), (number, code, err)
        assert sorted(out.split()) == ["atexit", "pool", "unflushed"] or "unflushed" in out
        code, _, err = ends(folder, "--version")
        assert code == 0, (number, code, err)
        for kind in ("list", "float"):
            done = subprocess.run(
                [sys.executable, "-m", "deepcait", "doctor", "--data", f"{kind}.parquet"],
                cwd=folder,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 2, (number, kind, done.returncode, done.stderr)
            assert "in the column label" in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.process
def test_exit_codes_hold(tmp_path):
    check(tmp_path, times=2)


@pytest.mark.soak
def test_exit_codes_hold_in_fifty_runs(tmp_path):
    check(tmp_path, times=50)


def test_a_thread_that_waits_for_ever_does_not_keep_the_code_from_the_process(tmp_path):
    """As pyarrow's threads do: one needs the interpreter after the command has ended."""
    script = """
import sys, threading, time
threading.Thread(target=lambda: [time.sleep(0.0005) for _ in range(10**9)], daemon=True).start()
from deepcait.cli import exits
print("before", end="")
exits.leave(3)
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "before", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_at_the_end_is_an_error():
    script = "from deepcait.cli import exits; print('text'); exits.leave(0)"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output can't be written: No space left on device.")
