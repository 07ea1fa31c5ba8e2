"""`deepcait doctor`: what it prints, how it ends, and what it leaves on the disk."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def damaged(photos):
    """The photographs with one of them cut in half and a hidden folder."""
    path = photos / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    (photos / ".cache").mkdir()
    return photos


def test_sound_data(run, run_json, photos):
    code, out, err = run("doctor", "--data", photos, "--strict")
    assert (code, err) == (0, "")
    assert "folder: all 12 images, 3 classes" in out
    assert "0 errors, 0 warnings, 0 notes" in out
    assert run_json("doctor", "--data", photos)["findings"] == []


def test_damaged_data(run, run_json, damaged):
    facts = run_json("doctor", "--data", damaged)
    assert facts["summary"] == {"errors": 1, "warnings": 1, "notes": 0}
    assert facts["by_kind"] == {"undecodable": 1, "hidden_folder": 1}
    assert facts["leave_out"] == [str(damaged / "cat" / "1.png")]
    code, out, _ = run("doctor", "--data", damaged)
    assert code == 0
    assert f"{damaged / 'cat' / '1.png'}: the image can't be decoded" in out
    assert "1 error, 1 warning, 0 notes" in out


def test_strict_exits_with_3(run, damaged):
    code, out, err = run("doctor", "--data", damaged, "--strict")
    assert code == 3
    assert err == f"{damaged}: 1 error\n"
    code, out, err = run("doctor", "--data", damaged, "--strict", "--json")
    assert code == 3
    assert json.loads(out)["summary"]["errors"] == 1


def test_the_fix_list_is_written_and_nothing_deleted(run, damaged, tmp_path):
    before = sorted(damaged.rglob("*"))
    out = tmp_path / "list.txt"
    out.write_text("old")
    assert run("doctor", "--data", damaged, "--fix-list", out, "--strict")[0] == 3
    comment, line = out.read_text().splitlines()
    assert comment.startswith("# ")
    assert line == str(damaged / "cat" / "1.png")
    assert sorted(damaged.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "photos"]


def test_many_findings_are_cut_short(run, run_json, photos):
    for index in range(9):
        (photos / "dog" / f"bad_{index}.png").write_bytes(b"")
    _, out, _ = run("doctor", "--data", photos)
    assert out.count("bad_") == 6
    assert "and 3 more" in out
    assert run_json("doctor", "--data", photos)["by_kind"] == {"empty_file": 9}


def test_the_demo_is_sound(run):
    assert run("doctor", "--data", "builtin:demo", "--strict", "--workers", "0")[0] == 0


def test_mistakes(run, photos, tmp_path):
    assert run("doctor", "--data", tmp_path / "gone")[0] == 2
    code, _, err = run("doctor", "--data", photos, "--workers", "-1")
    assert code == 2
    assert "--workers" in err
    code, _, err = run("doctor", "--data", photos, "--fix-list", tmp_path / "no" / "list.txt")
    assert code == 2
    assert "does not exist" in " ".join(err.split())


def test_help_has_examples(run):
    code, out, _ = run("doctor", "--help")
    assert code == 0
    assert "Examples:\n    deepcait doctor" in out
