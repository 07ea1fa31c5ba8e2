"""What takes long to import is imported by what needs it alone; counted in modules, since seconds differ."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "numpy", "PIL", "huggingface_hub")
# torch._dynamo alone takes longer than everything else of `predict`.
SLOW = ("torch._dynamo", "torch._inductor", "torchvision", "timm", "sympy", "networkx", "matplotlib", "onnxruntime")
ASK = "import sys; print([name for name in {heavy!r} if name in sys.modules])"


def heavy_after(code: str, heavy: tuple[str, ...] = HEAVY) -> str:
    program = f"{code}\n{ASK.format(heavy=heavy)}"
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


@pytest.mark.process
def test_predict_and_info_import_nothing_slow(tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.full((32, 32, 3), 90, dtype=np.uint8)).save(image)
    calls = (["predict", "builtin:nano", str(image)], ["info", "builtin:nano"])
    code = "from deepcait.cli.main import main\n" + "\n".join(f"assert main({argv}) == 0" for argv in calls)
    assert heavy_after(code, SLOW) == "[]"


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
