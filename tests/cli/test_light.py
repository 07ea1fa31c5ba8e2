"""Importing deepcait and asking for help is light: no torch, no timm, no matplotlib."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "numpy", "PIL", "huggingface_hub")
ASK = "import sys; print([name for name in {heavy!r} if name in sys.modules])"


def heavy_after(code: str) -> str:
    program = f"{code}\n{ASK.format(heavy=HEAVY)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.process
@pytest.mark.parametrize(
    "code",
    [
        "import deepcait; dir(deepcait)",
        "from deepcait.cli.main import main; main(['--help'])",
        "from deepcait.cli.main import main; main(['evl'])",
        "from deepcait.cli.main import main; main(['eval', '--help'])",
        "from deepcait.cli.main import main; main(['predict', '--topk'])",
    ],
)
def test_nothing_heavy_is_imported(code):
    assert heavy_after(code) == "[]"


@pytest.mark.process
def test_the_question_can_say_yes():
    assert "torch" in heavy_after("import deepcait; deepcait.CaiT")


def test_every_public_name_is_there():
    import deepcait

    for name in deepcait.__all__:
        assert getattr(deepcait, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        deepcait.nothing  # noqa: B018


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP, which PyTorch brings for Linux")
@pytest.mark.parametrize(
    ("own", "turns"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_waiting_threads_sleep_soon_unless_somebody_chose(own, turns):
    """PyTorch's OpenMP says itself what it took."""
    environment = {"PATH": "/usr/bin:/bin", "OMP_DISPLAY_ENV": "VERBOSE"} | own
    argv = [sys.executable, "-m", "deepcait", "info", "builtin:nano"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr
