"""Run the commands on 250 photographs in a disordered folder; no file may be dropped without a message.

    python docs/results/walk/walk.py PHOTOS OUT

PHOTOS: the photographs that photographs.csv lists, in seven coarse classes. OUT: a new folder, in which the class
folders are made, then disturbed as `DISORDER` says, then used: doctor, train, eval, predict, report, export, serve.
Prints every command with its exit code and output, and ends with 1 if a planted file is read or left out other than
the table says, or left out without its name or its suffix in the output of doctor, train and predict. OUT/walk.json has
the verdict; docs/results/walk/walk.json is one.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from deepcait.runtime.environment import environment

HERE = Path(__file__).parent
READ, BROKEN, OTHER = "read", "can't be read", "no image"
EMPTY = "unicorn"  # a class folder without an image
STEPS: list[dict[str, object]] = []  # each command, its exit code and seconds


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of a file in this format."""
    held = io.BytesIO()
    image.save(held, form, **options)
    return held.getvalue()


def disorder(image: Image.Image) -> dict[str, tuple[bytes, str]]:
    """Files to plant among the dogs: name -> content, and what has to become of it."""
    jpeg, rotated = encoded(image, "JPEG"), Image.Exif()
    rotated[0x0112] = 6
    grey16 = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    return {
        "browser.jfif": (jpeg, READ),
        "no_suffix": (jpeg, READ),
        "capital.JPG": (jpeg, READ),
        "wrong_suffix.png": (jpeg, READ),
        "rotated.jpg": (encoded(image, "JPEG", exif=rotated), READ),
        "print.jpg": (encoded(image.convert("CMYK"), "JPEG"), READ),
        "transparent.png": (encoded(image.convert("RGBA"), "PNG"), READ),
        "palette.gif": (encoded(image.convert("P"), "GIF"), READ),
        "grey16.png": (encoded(grey16, "PNG"), READ),
        "web.webp": (encoded(image, "WEBP"), READ),
        "Hündin größer 犬.jpg": (jpeg, READ),
        "two  spaces, comma.jpg": (jpeg, READ),
        "empty.jpg": (b"", BROKEN),
        "cut.jpg": (jpeg[: len(jpeg) // 2], BROKEN),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", BROKEN),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), OTHER),
        "notes.txt": (b"these are the good ones\n", OTHER),
        "Thumbs.db": (b"\xd0\xcf\x11\xe0" + bytes(60), OTHER),
        "raw.cr2": (b"II*\0" + bytes(60), OTHER),
    }


def build(photos: Path, data: Path) -> dict[str, str]:
    """Make the class folders and the disorder; returns what has to become of each planted file."""
    with (HERE / "photographs.csv").open(encoding="utf-8") as listed:
        for row in csv.DictReader(listed):
            place = data / row["class"]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / row["file"], place / row["file"])
    first = next(iter(sorted((data / "dog").iterdir())))
    planted = disorder(Image.open(first).convert("RGB").resize((160, 120)))
    for name, (content, _) in planted.items():
        (data / "dog" / name).write_bytes(content)
    shutil.copy(first, data / "mammal" / "same_as_a_dog.JPEG")
    (data / EMPTY).mkdir()
    (data / ".DS_Store").write_bytes(bytes(16))
    return {name: fate for name, (_, fate) in planted.items()}


def call(*words: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run one command of deepcait; print and return what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "deepcait", *words], capture_output=True, text=True, check=False, errors="replace"
    )
    text, seconds = done.stdout + done.stderr, time.perf_counter() - began
    print(f"$ deepcait {' '.join(words)}\n{text}[{done.returncode}, {seconds:.0f} s]\n", flush=True)
    command = " ".join(word.replace(sys.argv[2], "OUT").replace(sys.argv[1], "PHOTOS") for word in words)
    STEPS.append({"command": f"deepcait {command}", "exit_code": done.returncode, "seconds": round(seconds, 1)})
    if done.returncode not in codes or "Traceback" in text:
        raise SystemExit(f"deepcait {words[0]}: exit code {done.returncode}")
    return text


def unnamed(planted: dict[str, str], text: str, fates: tuple[str, ...]) -> list[str]:
    """Planted files of these fates that neither their names nor their suffixes name in a text."""
    left = [name for name, fate in planted.items() if fate in fates]
    return [name for name in left if name not in text and not (Path(name).suffix and Path(name).suffix in text)]


def ask_service(run: str, image: Path) -> None:
    """Start the service, send one photograph as it is, and stop it."""
    service = subprocess.Popen(
        [sys.executable, "-m", "deepcait", "serve", run, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    for line in service.stdout or ():
        lines.append(line)
        if found := re.search(r"http://[\w.]+:\d+", line):
            break
    else:
        raise SystemExit("".join(lines))
    request = urllib.request.Request(
        found[0] + "/predict", data=image.read_bytes(), headers={"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        print("POST /predict", answer.status, answer.read()[:200].decode(), "\n")
    service.terminate()
    service.wait(60)


def main() -> None:
    """Build, walk, and count what was lost."""
    photos, out = Path(sys.argv[1]), Path(sys.argv[2])
    data, run = out / "photographs", str(out / "run")
    planted = build(photos, data)
    where = ["--data", str(data)]
    lost = {}
    found = call("doctor", *where, "--fix-list", str(out / "fix.txt"), codes=(0, 2, 3))
    lost["doctor"] = unnamed(planted, found, (BROKEN, OTHER))
    # The doctor's list is what a user does next; what it can't fix, the message of train names.
    training = [*where, "--out", run, "--model", "builtin:nano"]
    settings = ["--set", "epochs=2", "data.test_fraction=0.2", f"data.exclude={out / 'fix.txt'}"]
    listed = (out / "fix.txt").read_text(encoding="utf-8")
    said = call("train", *training, "--dry-run", *settings, codes=(0, 2))
    lost["empty class"] = [] if EMPTY in said + listed else [EMPTY]
    if EMPTY not in listed:
        (data / EMPTY).rmdir()  # as the message says
        call("train", *training, "--dry-run", *settings)
    found = call("train", *training, *settings)
    lost["train"] = unnamed(planted, found + listed, (BROKEN, OTHER))
    found = call("eval", run, *where)
    held_out = "test part of the run" in found and "held out: used neither for training" in found
    lost["eval"] = [] if held_out else [found.splitlines()[0]]
    answers = out / "answers.jsonl"
    found = call("predict", run, str(data), "--out", str(answers), codes=(3,))
    rows = {Path(row["file"]).name: row for row in map(json.loads, answers.read_text(encoding="utf-8").splitlines())}
    lost["predict"] = unnamed(planted, found, (OTHER,))
    for name, fate in planted.items():
        wanted = {READ: "predictions", BROKEN: "error"}.get(fate)
        if wanted and wanted not in rows.get(name, {}):
            lost["predict"].append(f"{name}: {rows.get(name)}")
    call("report", run)
    call("export", run, "--to", "pt2", "--out", str(out / "model.pt2"))
    ask_service(run, data / "dog" / "capital.JPG")
    print("lost without a word:", lost)
    verdict = {
        "what": "250 photographs in a disordered folder, walked through with the commands; lost: what vanished unsaid",
        "command": "python docs/results/walk/walk.py PHOTOS OUT",
        "date": date.today().isoformat(),
        **{key: value for key, value in environment().items() if key not in ("cuda", "platform")},
        "planted": planted,
        "steps": STEPS,
        "lost": lost,
    }
    (out / "walk.json").write_text(json.dumps(verdict, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(int(any(lost.values())))


if __name__ == "__main__":
    main()
