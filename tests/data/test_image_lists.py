"""The images below a folder: which, in what order, and that links end."""

from __future__ import annotations

import pytest

from deepcait.data.listing import list_images, natural_key
from deepcait.errors import DataError


def test_list_images_is_natural_recursive_and_skips_hidden(tmp_path):
    for name in (
        "img10.png",
        "img2.PNG",
        "b/1.jpg",
        ".hidden.png",
        ".git/x.png",
        "b/.ipynb_checkpoints/1.jpg",
        "a.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["b/1.jpg", "img2.PNG", "img10.png"]
    assert list_images(str(tmp_path / "a.txt")) == [tmp_path / "a.txt"]


def test_list_images_ends_on_a_link_that_leads_back(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").write_bytes(b"")
    try:
        (tmp_path / "real" / "loop").symlink_to(tmp_path)
        (tmp_path / "linked").symlink_to(tmp_path / "real")
    except OSError:
        pytest.skip("no links here")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["linked/1.png", "real/1.png"]


def test_list_images_ends_on_links_that_lead_to_each_other(tmp_path):
    for here, there in (("a", "b"), ("b", "a")):
        (tmp_path / here).mkdir()
        (tmp_path / here / "1.png").write_bytes(b"")
        for link in ("one", "two"):
            (tmp_path / here / link).symlink_to(tmp_path / there)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a/1.png", "a/one/1.png", "a/two/1.png", "b/1.png", "b/one/1.png", "b/two/1.png"]


def test_list_images_ends_on_a_link_above_the_folder_it_began_in(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "1.png").write_bytes(b"")
    (tmp_path / "other" / "up").symlink_to(tmp_path)
    assert [path.name for path in list_images(tmp_path / "set")] == ["1.png"]


def test_list_images_errors(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        list_images(tmp_path / "gone")
    with pytest.raises(DataError, match="no images"):
        list_images(tmp_path)


def test_natural_key_orders_any_names():
    names = ["10", "a", "2", "a10", "a2", "", "a02", "1b", "b1"]
    assert sorted(names, key=natural_key) == ["", "1b", "2", "10", "a", "a02", "a2", "a10", "b1"]
