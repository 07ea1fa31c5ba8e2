"""Time the steps of a new user: clone, environment, and the tutorial on a folder of images.

    python docs/results/trial.py PHOTOS IMAGE

PHOTOS is a folder of class folders; IMAGE is one image. Everything else happens in a new folder: a clone of this
checkout, a new environment, installed with the extras that the tutorial names, then its commands. Each step's seconds
go to trial.json, with what it printed last. The time for reading is not measured.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PORT = 8765
INSTALL = [
    "python -m venv env",
    "env/bin/pip install -q -c constraints.txt .[serve,explain]",
]
TUTORIAL = [
    "env/bin/deepcait doctor --data photos",
    "env/bin/deepcait train --data photos --out runs/first --model builtin:nano --dry-run",
    "env/bin/deepcait train --data photos --out runs/first --model builtin:nano",
    "env/bin/deepcait eval runs/first --data photos --split val",
    "env/bin/deepcait predict runs/first image.jpg --topk 3",
    "env/bin/deepcait explain runs/first image.jpg --out explanation",
    "env/bin/deepcait export runs/first --to timm --out pets",
    "env/bin/deepcait export runs/first --to pt2 --out pets.pt2",
]


def environment() -> dict[str, str]:
    """The variables of this process, without those that would lead back into a checkout."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}


def timed(command: str, cwd: Path) -> dict:
    """Run one command; its seconds, and the last line that it printed."""
    argv = command.split()
    argv[0] = sys.executable if argv[0] == "python" else argv[0]
    began = time.perf_counter()
    done = subprocess.run(argv, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    lines = done.stdout.strip().splitlines()
    print(f"{seconds:8.1f} s  {command}", flush=True)
    return {"command": command, "seconds": round(seconds, 1), "last_line": lines[-1] if lines else ""}


def served(cwd: Path) -> list[dict]:
    """Start the service, ask it once over HTTP, end it; the seconds until it answered at all, and of the answer."""
    command = f"env/bin/deepcait serve runs/first --port {PORT}"
    began = time.perf_counter()
    server = subprocess.Popen(command.split(), cwd=cwd, env=environment(), stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(f"{command}: ended with {server.returncode}") from None
                time.sleep(0.05)
        up = time.perf_counter()
        head = '--x\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n\r\n'
        body = head.encode() + (cwd / "image.jpg").read_bytes() + b"\r\n--x--\r\n"
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/predict?topk=2", data=body)
        request.add_header("Content-Type", "multipart/form-data; boundary=x")
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
        done = time.perf_counter()
    finally:
        server.terminate()
        server.wait(timeout=60)
    return [
        {"command": command, "seconds": round(up - began, 1), "last_line": "answers /healthz"},
        {"command": "POST /predict?topk=2", "seconds": round(done - up, 3), "last_line": text.strip()},
    ]


def main() -> None:
    """Go the whole way and write what it took."""
    photos, image = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "deepcait"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        shutil.copytree(photos, clone / "photos")
        shutil.copy2(image, clone / "image.jpg")
        install = [timed(command, clone) for command in INSTALL]
        steps = [*[timed(command, clone) for command in TUTORIAL], *served(clone)]
    facts = {
        "what": "the tutorial from a fresh clone, each command once, one after the other",
        "command": "python docs/results/trial.py PHOTOS IMAGE",
        "date": datetime.date.today().isoformat(),
        "commit": commit.strip(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "pictures": sum(path.is_file() for path in photos.rglob("*")),
        "classes": sum(path.is_dir() for path in photos.iterdir()),
        "install": install,
        "install_s": round(sum(step["seconds"] for step in install), 1),
        "steps": steps,
        "steps_s": round(sum(step["seconds"] for step in steps), 1),
    }
    (HERE / "trial.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{facts['install_s']} s to install, {facts['steps_s']} s for the rest")


if __name__ == "__main__":
    main()
