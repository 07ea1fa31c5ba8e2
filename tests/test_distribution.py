"""Whole: wheel and sdist hold what they should, and what is installed from each works without the checkout.

Packages that deepcait needs come from this environment: nothing is fetched. `make soak` runs the whole demo from each.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deepcait"
pytestmark = [pytest.mark.process, pytest.mark.xdist_group("distribution")]

# In a process of its own: the examples of the docstrings, and that all of it came from the installed package.
DOCTESTS = """
import doctest, importlib, pathlib, sys
import deepcait
home = pathlib.Path(deepcait.__file__).parent
print(home)
tried = failed = 0
for path in sorted(home.rglob("*.py")):
    if ">>> " in path.read_text(encoding="utf-8"):
        name = ".".join(path.relative_to(home.parent).with_suffix("").parts).removesuffix(".__init__")
        result = doctest.testmod(importlib.import_module(name))
        tried, failed = tried + result.attempted, failed + result.failed
print(tried, failed)
"""


def run(*argv: object, cwd: Path, path: Path | None = None) -> str:
    """Run a program where nothing of the checkout is at hand; what it printed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run([*map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """Build wheel and sdist of a tree with the backend that is installed here."""
    pytest.importorskip("hatchling")
    run(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=source)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def digests(wheel: Path) -> dict[str, str]:
    """Every file of the package in a wheel with its sha256."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("deepcait/")]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def test_the_wheel_is_the_package_as_it_stands(built):
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    here = {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert digests(built[0]) == here
    assert sum(path.stat().st_size for path in built) < 30_000_000
    kinds = {Path(name).suffix for name in here}
    assert kinds >= {".py", ".yaml", ".png", ".safetensors", ".html", ".css", ".js", ".cpp"}


def test_the_sdist_makes_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and newer
        archive.extractall(tmp_path)
    (tree,) = tmp_path.iterdir()
    for name in ("README.md", "LICENSE", "Makefile", "constraints.txt", "docs/index.md", "tests/conftest.py"):
        assert (tree / name).is_file(), name
    again, _ = build(tree, tmp_path / "again")
    assert digests(again) == digests(built[0])


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def site(request, built, tmp_path_factory) -> Path:
    """A folder into which pip installed deepcait, and only that."""
    folder = tmp_path_factory.mktemp(request.param)
    given = built[0] if request.param == "wheel" else built[1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index"]
    run(*pip, "--no-build-isolation", "--target", folder, given, cwd=folder)
    return folder


def test_what_was_installed_runs_its_examples_and_the_model_in_it(site, tmp_path):
    home, counts = run(sys.executable, "-c", DOCTESTS, cwd=tmp_path, path=site).splitlines()
    assert Path(home) == site / "deepcait"
    tried, failed = map(int, counts.split())
    assert tried >= 20
    assert failed == 0
    picture = next((site / "deepcait" / "assets" / "demo" / "test" / "cat").iterdir())
    told = run(sys.executable, "-m", "deepcait", "predict", "builtin:nano", picture, cwd=tmp_path, path=site)
    assert "%" in told


@pytest.mark.soak
def test_the_demo_runs_from_what_was_installed(site, tmp_path):
    told = run(sys.executable, "-m", "deepcait", "demo", "--out", tmp_path / "demo", cwd=tmp_path, path=site)
    assert str(site) in told
    assert (tmp_path / "demo" / "run" / "best" / "model.safetensors").is_file()
