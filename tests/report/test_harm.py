"""The report never harms a training, and says what it can of a run that is unfinished, damaged or of another kind."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from deepcait.cli.main import main
from deepcait.report.page import render_report, write_at_end
from deepcait.report.parts import interval
from deepcait.report.record import read_run
from deepcait.report.results import measure_run
from deepcait.weights import resolve
from tests.report.reading import SECTIONS, read_page, section

pytestmark = pytest.mark.xdist_group("report")


def copy_of(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_a_training_does_not_fail_for_want_of_a_page(bench, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise MemoryError("no room for a page")

    monkeypatch.setattr("deepcait.report.page.write_report", broken)
    folder = tmp_path / "run"
    assert main(bench.train(folder, "--set", "epochs=1", "--json")) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["report"] is None
    assert (
        f"note: no report was written (MemoryError no room for a page); try again with `deepcait report {folder}`"
        in said.err
    )
    monkeypatch.undo()
    # Gone on with, the finished run gets its page.
    assert main(bench.train(folder, "--set", "epochs=1", "--resume")) == 0
    assert (folder / "report.html").exists()


def test_a_folder_in_its_place_is_a_warning(bench, tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    (folder).mkdir()
    assert main(bench.train(folder, "--set", "epochs=1")) == 0
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    assert main(["report", str(folder)]) == 2
    assert "report.html" in capsys.readouterr().err
    assert write_at_end(folder) is None
    assert "no report was written" in caplog.text


def test_only_the_main_process_writes_it(run, tmp_path, monkeypatch):
    folder = copy_of(run, tmp_path)
    (folder / "report.html").unlink()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert write_at_end(folder) is None
    assert not (folder / "report.html").exists()


@pytest.mark.process
def test_it_needs_nothing_of_the_explain_extra(run, tmp_path):
    """Neither matplotlib nor captum is imported: a training ends with its page where neither is installed."""
    program = (
        "import sys; sys.modules['matplotlib'] = sys.modules['captum'] = None\n"
        "from deepcait.cli.main import main\n"
        f"sys.exit(main(['report', {str(run)!r}, '--out', {str(tmp_path / 'page.html')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").exists()


def test_gone_pictures_leave_the_rest(run, bench, tmp_path):
    folder = copy_of(run, tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(bench.data), str(tmp_path / "gone")))
    assert main(["report", str(folder)]) == 0
    page = read_page(folder / "report.html")
    assert "could not be evaluated again" in section(page, "confusion").text
    assert str(tmp_path / "gone") in section(page, "mistakes").text
    assert "deepcait report RUN --data DATA" in section(page, "mistakes").text
    assert section(page, "curves").find("svg")
    # Told where they are now, it has everything again.
    assert main(["report", str(folder), "--data", str(bench.data)]) == 0
    assert section(read_page(folder / "report.html"), "confusion").find("table")


def test_a_run_that_has_just_begun(run, tmp_path):
    """No evaluation, no model, a half-written row: the page says so."""
    folder = copy_of(run, tmp_path)
    for name in ("best", "last", "checkpoints"):
        shutil.rmtree(folder / name)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:2]) + '\n{"kind": "tr')
    (folder / "status.json").write_text(json.dumps({"state": "running", "step": 2}))
    assert main(["report", str(folder)]) == 0
    page = read_page(folder / "report.html")
    assert "not finished" in page.find("header")[0].text
    assert "not evaluated yet" in section(page, "metrics").text


DAMAGES = [
    ('"top1": 0', '"top1": 7'),
    ('"top1": ', '"top1": "x", "x": '),
    ('"loss": ', '"loss": "x", "x": '),
    ('"correct1": ', '"correct1": 9'),
    ('"correct5": ', '"correct5": -'),
    ('"num_images": 24', '"num_images": 0'),
    ('"num_images": 24', '"num_images": null'),
    ('"epoch": ', '"epoch": "x", "x": '),
    ('"grad_norm": ', '"grad_norm": NaN, "x": '),
    ('"weights": "', '"weights": ["'),
    ('"images_per_s": ', '"images_per_s": "x", "x": '),
    ('"seconds": ', '"seconds": [], "x": '),
    ("{", "\0\0\xff"),
    ("\n", "}{"),
]


@pytest.mark.parametrize(("sound", "damaged"), DAMAGES)
@pytest.mark.parametrize("where", ["first", "every"])
def test_damaged_rows_are_left_out(run, tmp_path, sound, damaged, where):
    """A disk that changed some bytes of the journal: the page is made of what is left, and shows nothing impossible."""
    folder = copy_of(run, tmp_path)
    shutil.rmtree(folder / "best")  # what the journal says is enough here
    changed = 0
    for name in ("metrics.jsonl", "timing.jsonl"):
        text = (folder / name).read_text()
        new = text.replace(sound, damaged, *([1] if where == "first" else []))
        changed += new != text
        (folder / name).write_bytes(new.encode("latin-1"))
    assert changed
    assert main(["report", str(folder)]) == 0
    page = read_page(folder / "report.html")
    assert [node.attributes["id"] for node in page.find("section")] == SECTIONS
    text = section(page, "metrics").text
    shares = [float(share) for share in re.findall(r"(\S+) %", text) if share != "95"]
    assert shares or where == "every"
    assert all(0 <= share <= 100 for share in shares)
    assert not re.search(r"\b(nan|inf|None)\b", page.find("main")[0].text)
    # Two of them compared are no reason to fail, either.
    assert main(["report", str(run), str(folder), "--images", "3", "--out", str(tmp_path / "both.html")]) == 0


def test_fewer_images(run, tmp_path):
    out = tmp_path / "few.html"
    assert main(["report", str(run), "--images", "12", "--out", str(out)]) == 0
    text = section(read_page(out), "confusion").text
    assert text.startswith("Confusion 12 validation images")
    assert "12 of 24, evenly spaced" in text


def test_another_model_than_the_one_counted_is_reported(run, tmp_path):
    """What training counted is shown beside what the saved model answers now."""
    folder = copy_of(run, tmp_path)
    record = read_run(folder)
    printed = record.best["correct1"]
    wrong = dataclasses.replace(record, eval_rows=[record.best | {"correct1": printed - 1}])
    results = measure_run(record)
    (tmp_path / "page.html").write_text(render_report(wrong, results, ""), encoding="utf-8")
    words = section(read_page(tmp_path / "page.html"), "metrics").text
    assert f"{printed} of 24 correct, NOT the same as during training: {printed - 1} of 24." in words
    unknown = dataclasses.replace(record, eval_rows=[{"top1": 0.5, "epoch": 1}])
    (tmp_path / "page.html").write_text(render_report(unknown, results, ""), encoding="utf-8")
    assert section(read_page(tmp_path / "page.html"), "metrics").text.endswith(f"{printed} of 24 correct.")


def test_top5_of_six_classes(run, tmp_path):
    """And where the counts are lost, the accuracy is not called one that nobody measured."""
    record = read_run(run)
    six = dataclasses.replace(record, data=record.data | {"classes": list("abcdef")})
    row = record.best | {"top5": 0.75, "correct5": 18}
    for rows, words in (
        ([row], (f"Top-5 75.00 % {interval(18, 24)}", f"95 %: {interval(row['correct1'], 24)}; chance 16.67 %")),
        ([{"top1": 0.5, "epoch": 1}], ("Top-1, best epoch 50.00 % chance 16.67 %",)),
        ([], ("Top-1, best epoch – not evaluated; chance 16.67 %",)),
    ):
        text = render_report(dataclasses.replace(six, eval_rows=rows), None, "gone")
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        page = read_page(tmp_path / "page.html")
        for part in words:
            assert part in page.find("header")[0].text
        # Key, table and tile say the same.
        assert ("75.00 %" in section(page, "metrics").text) == (rows == [row])
        assert ("top-5" in section(page, "curves").text) == (rows == [row])


def test_a_network_without_class_attention(run, tmp_path):
    """A teacher's report has no maps, and does not speak of any."""
    record = read_run(run)
    found = measure_run(record)
    bare = [[dataclasses.replace(one, attention=None) for one in some] for some in (found.worst, found.nearest)]
    results = dataclasses.replace(found, worst=bare[0], nearest=bare[1])
    (tmp_path / "page.html").write_text(render_report(record, results, ""), encoding="utf-8")
    mistakes = section(read_page(tmp_path / "page.html"), "mistakes")
    assert len(mistakes.find("img")) == len(found.worst) + len(found.nearest)
    assert "This model has no class attention" in mistakes.text
    assert "Right:" not in mistakes.text
    assert mistakes.find("p", class_="legend") == []


def test_two_classes_of_one_name(run, tmp_path):
    """ImageNet has two cranes: one is the answer, the other the truth, and each is marked as what it is."""
    record = read_run(run)
    found = measure_run(record)
    answers = [(0, "crane", 0.5), (2, "owl", 0.3), (1, "crane", 0.2)]
    crane = dataclasses.replace(found.worst[0], label="crane", truth=1, answers=answers)
    results = dataclasses.replace(found, worst=[crane], nearest=[])
    (tmp_path / "page.html").write_text(render_report(record, results, ""), encoding="utf-8")
    (bars,) = section(read_page(tmp_path / "page.html"), "mistakes").find("ul", class_="bars")
    assert [(item.text, item.attributes.get("class")) for item in bars.find("li")] == [
        ("crane 50.0 %", "target"),
        ("owl 30.0 %", None),
        ("crane 20.0 %", "truth"),
    ]


def test_a_best_model_that_gives_no_numbers(run, tmp_path, monkeypatch):
    def diverged(folder):
        found = resolve(folder)
        with torch.no_grad():
            found.model.head.bias[0] = torch.nan
        return found

    monkeypatch.setattr("deepcait.report.results.resolve", diverged)
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert "NaN or infinite logits" in section(read_page(out), "confusion").text
