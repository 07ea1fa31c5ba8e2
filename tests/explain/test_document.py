"""Every command and every piece of Python in docs/guides/explain.md runs as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from deepcait.cli.main import main
from tests.processes.harness import DEMO, make_bench

PAGE = (Path(__file__).parent.parent.parent / "docs" / "guides" / "explain.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the page speaks of: cat.jpg, photos and two runs."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.open(min((DEMO / "test" / "cat").iterdir())).convert("RGB").save("cat.jpg")
    bench = make_bench(tmp_path / "bench")
    shutil.copytree(bench.data, "photos")
    for name in ("RUN", "OTHER_RUN"):
        assert main(bench.train(Path(name), "--set", "epochs=1", f"data.source={tmp_path / 'photos'}")) == 0
    # Two pictures are enough to explain.
    for path in sorted((tmp_path / "bench").rglob("*.png"))[2:]:
        path.unlink()
    return tmp_path


def test_commands(folder):
    commands = re.findall(r"^deepcait (.+)$", PAGE, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        words = shlex.split(command)
        if words[0] == "explain":
            words = ["bench" if word == "photos" else word for word in words]
        assert main(words) == 0, command
    for name in ("explanation/index.html", "layers/figures/figures.json", "RUN/report.html", "both.html", "some.html"):
        assert (folder / name).exists()


def test_python(folder, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/guides/explain.md", "exec"), {})
    assert "Attention weights of the class token" in capsys.readouterr().out
    assert Path("overlay.png").exists()
