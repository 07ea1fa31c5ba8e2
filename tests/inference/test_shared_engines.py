"""Engines in many threads, in copies, in pickles and after a fork."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import deepcait
from deepcait.errors import ConfigError
from deepcait.inference import ENGINES, build_engine
from tests.documents.shown import blocks
from tests.inference.tiny import scrambled

ROOT = Path(__file__).parent.parent.parent
NAMES = [pytest.param(name, marks=() if name == "eager" else pytest.mark.slow) for name in ENGINES]
PATH = ROOT / "deepcait" / "assets" / "demo" / "test" / "frog"


@pytest.fixture(scope="module")
def model():
    return scrambled()


@pytest.mark.parametrize("name", NAMES)
def test_many_threads_get_the_logits_of_one(model, name):
    engine = build_engine(name, model, threads=1)
    batches = [torch.randn(1 + number % 3, 3, 32, 32) for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        # From the first call on, before anything is prepared.
        found = list(threads.map(engine, batches))
    for images_BCHW, logits_BK in zip(batches, found, strict=True):
        assert torch.equal(engine(images_BCHW), logits_BK)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_computes_the_same_or_is_refused(model, name):
    engine = build_engine(name, model, threads=1)
    images_BCHW = torch.randn(2, 3, 32, 32)
    expected_BK = engine(images_BCHW)
    for make in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        if name in ("onnx", "openvino"):
            with pytest.raises(ConfigError, match=f"engine {name}: its program can't be copied or pickled"):
                make(engine)
        else:
            made = make(engine)
            assert torch.equal(made(images_BCHW), expected_BK)
            assert (made.name, made.threads, made.precision) == (name, 1, "fp32")
    assert torch.equal(engine(images_BCHW), expected_BK)


@pytest.mark.parametrize("how", [{}, {"engine": "eager"}, {"tta": "flip"}])
def test_a_classifier_survives_copies_and_threads(how):
    nano = deepcait.load("builtin:nano", device="cpu", **how)
    images = sorted(PATH.iterdir())[:3]
    expected = nano.predict(images)
    for other in (copy.deepcopy(nano), pickle.loads(pickle.dumps(nano))):
        assert other.predict(images) == expected
        assert repr(other) == repr(nano)
    with ThreadPoolExecutor(4) as threads:
        assert all(found == expected for found in threads.map(lambda _: nano.predict(images), range(4)))


def test_the_application_of_the_guide_answers():
    """docs/guides/serve.md: in another server."""
    page = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
    (block,) = [block for block in blocks(page) if block.language == "python" and "def app(" in block.text]
    names: dict = {}
    exec(compile(block.text, "service.py", "exec"), names)
    answers = []
    for body in (min(PATH.iterdir()).read_bytes(), b"no image"):
        environ = {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        status: list[str] = []
        found = names["app"](environ, lambda line, headers, status=status: status.append(line))
        answers.append((status[0], json.loads(b"".join(found))))
    (good, predictions), (bad, error) = answers
    assert good == "200 OK"
    assert len(predictions) == 5
    assert set(predictions[0]) == {"index", "label", "probability"}
    assert bad == "400 Bad Request"
    assert set(error) == {"error", "remedy"}


FORK = """
import os, sys, torch
from deepcait import DeepcaitError, load
from deepcait.inference import build_engine

torch.set_num_threads(2)
nano = load("builtin:nano", device="cpu")
images_BCHW = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
engines = {name: build_engine(name, nano.model) for name in sys.argv[1:]}
for engine in engines.values():
    engine(images_BCHW)
expected_BK = nano.logits(images_BCHW)
torch.mm(torch.rand(2000, 2000), torch.rand(2000, 2000))  # starts PyTorch's threads
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for name, engine in engines.items():
    try:
        engine(images_BCHW)
    except DeepcaitError as error:
        print(name, error, flush=True)
print("logits", torch.allclose(nano.logits(images_BCHW), expected_BK, atol=1e-4), flush=True)
print("own", torch.allclose(build_engine("eager", nano.model)(images_BCHW), expected_BK, atol=1e-4), flush=True)
os._exit(7)
"""


def forked(*names: str) -> list[str]:
    """What a forked process prints when it uses engines and a classifier that were made before."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, *names],
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    return done.stdout.splitlines()


def check_fork(*names: str) -> None:
    *refused, logits, own = forked(*names)
    assert [line.split()[0] for line in refused] == list(names)
    assert all("before this process was forked" in line for line in refused)
    assert (logits, own) == ("logits True", "own True")


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork_an_engine_is_an_error_and_a_model_computes():
    check_fork("eager")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork_engines_of_other_programs_are_errors_onnx_openvino():
    check_fork("onnx", "openvino")
