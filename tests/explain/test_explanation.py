"""One picture explained: what is shown, what the words say of it, the files; any shape and size of picture."""

from __future__ import annotations

import io
import json
import os
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing, open_image
from deepcait.errors import ConfigError, WeightsError
from deepcait.explain import METHODS, Original, drawing, writer
from deepcait.explain.colours import colourise, linear_rgb, scale
from deepcait.explain.figures import read_results
from deepcait.explain.gallery import Entry, gallery
from deepcait.explain.layers import measure_layers
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.block import LayerScaleBlock
from deepcait.model.networks import require_cait
from tests.explain.test_maps import model_and_images
from tests.processes.harness import DEMO

SHIP = min((DEMO / "test" / "ship").iterdir())


def classifier_of(img_size=32):
    model, _ = model_and_images(img_size)
    return deepcait.Classifier(
        model, classes=["cat", "dog", "owl", "emu", "<b>"], preprocessing=Preprocessing(model.config.img_size)
    )


@pytest.fixture(scope="module")
def found():
    return classifier_of((24, 48)).explain(SHIP, methods=METHODS, steps=4, target="owl")


# -- what is shown, and the words for it ------------------------------------------------------------------------------


def test_maps_are_what_their_words_say(found):
    assert tuple(found.maps) == METHODS
    rows_LAT = found.class_attention
    assert (found.grid, rows_LAT.shape) == ((3, 6), (2, 4, 19))
    mean = found.maps["class-attention"]
    np.testing.assert_allclose(mean.values, rows_LAT.mean((0, 1))[1:].reshape(3, 6), rtol=1e-5)
    assert "mean over 2 class blocks and 4 heads" in mean.caption
    assert f"({100 * rows_LAT[:, :, 0].mean():.1f} %) is omitted; the rest is not renormalised" in mean.details
    weighted = found.maps["gradient"]
    by_hand = found.gradient.clip(min=0).mean((0, 1))[1:].reshape(3, 6)
    np.testing.assert_allclose(weighted.values, by_hand, rtol=1e-5, atol=1e-7)
    assert 'the logit of "owl"' in weighted.caption
    assert "Negative products are set to 0" in weighted.details
    rolled = found.maps["rollout"]
    for word in ("after the second head mixing", "half the weight on the skip connection", "is omitted"):
        assert word in rolled.details
    assert rolled.lowest == pytest.approx(rolled.values.min())
    assert "Positive values are shown" in found.maps["integrated-gradients"].details
    assert found.maps["integrated-gradients"].values.shape == (24, 48)
    assert "a single patch is replaced" in found.maps["occlusion"].caption
    for made in found.maps.values():
        assert made.grid.shape == (3, 6)
        assert 0 <= made.faithfulness.deletion <= 1
        # It is the probability of the class asked about that falls, and comes back.
        whole = pytest.approx(found.probability, rel=1e-4)
        assert made.faithfulness.deletion_curve[0] == made.faithfulness.insertion_curve[-1] == whole
        # All are compared with the same lots.
        assert made.faithfulness.random_deletion == mean.faithfulness.random_deletion
    assert "attention to itself" in found.heads_details
    assert "Bicubic from 3 x 6 patches" in found.heads_details


def test_the_class_asked_about(found):
    classifier = classifier_of((24, 48))
    (answers,) = classifier.predict(SHIP)
    assert (found.label, found.target) == ("owl", 2)
    assert found.probability == pytest.approx({one.label: one.probability for one in answers}["owl"], rel=1e-5)
    first = classifier.explain(SHIP)
    assert first.label == answers[0].label
    assert tuple(first.maps) == ("class-attention", "rollout", "gradient")
    assert first.maps["rollout"].faithfulness is None
    assert classifier.explain(SHIP, methods=["rollout"]).gradient is None  # it was not asked for
    other = classifier.explain(SHIP, target=0, methods=["gradient"])
    assert np.abs(other.gradient - found.gradient).max() > 1e-4
    for wrong in ("owll", 7, -1):
        with pytest.raises(ConfigError, match="class: (the model has no class|expected an index)"):
            classifier.explain(SHIP, target=wrong)
    with pytest.raises(ConfigError, match="method: expected one of"):
        classifier.explain(SHIP, methods=["magic"])
    with pytest.raises(ConfigError, match="no map 'occlusion' was computed"):
        first.overlay("occlusion")


def test_weights_that_give_no_numbers_explain_nothing():
    classifier = classifier_of()
    with torch.no_grad():
        classifier.model.head.weight[1, 3] = torch.nan
    with pytest.raises(WeightsError, match="NaN or infinite logits"):
        classifier.explain(SHIP)


def test_words_fit_any_number_of_class_blocks():
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 3}
    for number in (1, 3):
        model = CaiT(CaiTConfig(cls_depth=number, **sizes))
        classifier = deepcait.Classifier(model, classes=None, preprocessing=Preprocessing((32, 32)))
        made = classifier.explain(SHIP)
        assert (
            f"over {number} class block{'s' if number > 1 else ''} and 2 heads" in made.maps["class-attention"].caption
        )
        assert "all blocks" in made.maps["rollout"].caption


@pytest.mark.parametrize("img_size", [16, (40, 24), (8, 96), (128, 128)])
@pytest.mark.parametrize("size", [(1, 1), (700, 31), (31, 700)])
def test_any_shape_of_picture_and_model(img_size, size):
    classifier = classifier_of(img_size)
    image = Image.effect_noise(size, 90).convert("RGB")
    made = classifier.explain(image)
    rows, columns = classifier.model.config.grid
    assert made.grid == (rows, columns)
    assert made.frame.size == classifier.model.config.img_size[::-1]
    assert made.heads.shape == (2, 4, rows, columns)


@pytest.mark.parametrize("size", [(144, 144), (72, 144), (8, 96), (96, 8)])
def test_titles_of_the_head_grid_do_not_run_into_each_other(size, monkeypatch):
    """However narrow the panels are."""
    drawn, draw_text = [], ImageDraw.ImageDraw.text

    def text(self, place, words, *, font, fill):
        drawn.append((*place, place[0] + font.getlength(words), words))
        draw_text(self, place, words, font=font, fill=fill)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    sheet = drawing.head_grid(Image.new("RGB", size), np.ones((2, 16, 4, 4), np.float32), "A caption.")
    titles = [one for one in drawn if one[-1] != "A caption."]
    assert len(titles) == 2 * 18
    for (_, top, end, _), (begin, next_top, _, _) in pairwise(titles):
        assert end < begin or top < next_top
    assert max(end for _, _, end, _ in drawn) <= sheet.width


@pytest.mark.parametrize("name", ["x" * 200, "a " + "y" * 200 + " b", "\u732b" * 200])
def test_a_caption_is_never_cut_off(name, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, place, words, *, font, fill: drawn.append((place[0] + font.getlength(words), words)),
    )
    sheet = drawing.side_by_side(Image.new("RGB", (32, 32)), np.ones((4, 4), np.float32), f"Of {name}.")
    text = "".join(words for _, words in drawn).replace(" ", "")
    whole = f"Of{name}.".replace(" ", "")
    assert text in (whole, whole.encode("ascii", "backslashreplace").decode())  # escaped without a font that has it
    assert max(end for end, _ in drawn) <= sheet.width


def test_another_resolution_than_the_stored_one(tmp_path):
    """Maps of builtin:nano at 48 x 64: positions are resized, rows still sum to 1."""
    command = ["explain", "builtin:nano", str(SHIP), "--out", str(tmp_path), "--img-size", "48x64", "--steps", "0"]
    assert main(command) == 0
    arrays = dict(np.load(tmp_path / "000_00001" / "maps.npz"))
    assert arrays["class_attention_rows"].shape == (2, 4, 1 + 12 * 16)
    np.testing.assert_allclose(arrays["class_attention_rows"].sum(-1), 1, atol=1e-5)
    assert arrays["rollout"].shape == (12, 16)
    expected = deepcait.load("builtin:nano", img_size=(48, 64))
    image_1CHW = expected.preprocessing(open_image(SHIP))[None]
    rows = expected.model.class_attention(image_1CHW)[0].detach()
    np.testing.assert_allclose(arrays["class_attention_rows"], rows, atol=1e-6)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_the_brightest_place_is_the_largest_value():
    """A map with one large value, at the place where it must appear: rows are rows, columns are columns."""
    values = np.zeros((3, 6), np.float32)
    values[2, 1] = 1
    shown = np.asarray(drawing.heat(values, (60, 30))).astype(int)
    light = shown.sum(-1)
    y, x = np.unravel_index(light.argmax(), light.shape)
    assert (y // 10, x // 10) == (2, 1)
    assert tuple(shown[y, x]) == tuple(scale()[-1])
    assert tuple(shown[0, -1]) == tuple(scale()[0])
    flat = np.asarray(drawing.heat(np.zeros((2, 2), np.float32), (8, 8)))
    assert (flat == scale()[0]).all()


def test_a_narrow_strip_is_not_enlarged_beyond_the_limit():
    assert drawing.enlarge(Image.new("RGB", (1, 3000))).size == (1, 3000)
    assert drawing.enlarge(Image.new("RGB", (2, 1000))).size == (8, 4000)
    assert drawing.enlarge(Image.new("RGB", (5000, 7))).size == (5000, 7)
    assert drawing.enlarge(Image.new("RGB", (32, 40))).size == (224, 280)


def test_a_reduced_original_keeps_the_place_of_its_box():
    reduced = Original(Image.new("RGB", (4000, 2000)), (1000.0, 0.0, 3000.0, 2000.0)).reduced(400)
    assert reduced.image.size == (400, 200)
    assert reduced.box == (100.0, 0.0, 300.0, 200.0)
    assert reduced.reduced(400) is reduced


def test_opacity():
    frame = Image.new("RGB", (16, 16), (200, 10, 10))
    values = np.eye(4, dtype=np.float32)
    grey = np.asarray(frame.convert("L").convert("RGB"))
    assert np.array_equal(np.asarray(drawing.overlay(frame, values, opacity=0)), grey)
    whole = np.asarray(drawing.overlay(frame, values, opacity=1))
    assert np.array_equal(whole, np.asarray(drawing.heat(values, (16, 16))))


def test_every_panel_of_the_head_grid_is_its_own(found):
    sheet = np.asarray(found.head_grid())
    _, A, _, _ = found.heads.shape
    panel_px, gap_px, title_px = 144, 8, 18
    height = drawing.fit(found.frame, panel_px).height
    panels = [
        sheet[top + title_px : top + title_px + height, left : left + panel_px].tobytes()
        for top in (gap_px + y * (height + title_px + gap_px) for y in range(2))
        for left in (gap_px + x * (panel_px + gap_px) for x in range(2 + A))
    ]
    assert len(set(panels)) == 2 * (2 + A) - 1  # the photograph stands in both rows


def test_colours_are_even_to_the_eye_and_safe():
    """Lightness grows in equal steps, in grey and for the colour-blind too; no step leaves the screen's colours."""
    linear = np.where(scale() / 255 <= 0.04045, scale() / 255 / 12.92, ((scale() / 255 + 0.055) / 1.055) ** 2.4)
    # Machado et al. 2009, complete protanopia, deuteranopia and tritanopia, on linear sRGB; and grey.
    simulated = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    for name, matrix in simulated.items():
        luminance = (linear @ np.array(matrix).T).clip(0, 1) @ (0.2126, 0.7152, 0.0722)
        lightness = 116 * np.cbrt(luminance) - 16
        # Eight values apart each colour is lighter: rounding to 8 bits leaves single steps uneven.
        assert (lightness[8:] - lightness[:-8] > 0.5).all(), name
        assert lightness[-1] - lightness[0] > 65, name
    ends = np.linspace((0.24, -0.01, -0.105), (0.93, -0.03, 0.15), 256)
    assert linear_rgb(ends).min() > -1e-3
    assert linear_rgb(ends).max() < 1 + 1e-3
    assert np.array_equal(colourise(np.array([-1.0, 0.0, 1.0, 2.0])), scale()[[0, 0, -1, -1]])


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_files_hold_what_was_shown(found, tmp_path):
    paths = found.save(tmp_path / "deep" / "folder")
    names = [path.name for path in paths]
    assert names == ["heads.png", *(f"{method.replace('-', '_')}.png" for method in METHODS), "maps.npz"]
    for path in paths[:-1]:
        assert Image.open(path).size[0] >= 360
    arrays = dict(np.load(paths[-1]))
    assert set(arrays) == {"class_attention_rows", "gradient_products", "target"} | {
        method.replace("-", "_") for method in METHODS
    }
    np.testing.assert_array_equal(arrays["gradient_products"], found.gradient)
    assert int(arrays["target"]) == 2
    assert (arrays["integrated_gradients"] < 0).any()  # signed values are kept
    image = drawing.to_bytes(found.head_grid())
    assert image == (tmp_path / "deep" / "folder" / "heads.png").read_bytes()
    assert Image.open(io.BytesIO(image)).format == "PNG"


def test_the_page_escapes_what_it_shows(found):
    entry = Entry(name="<script>x</script>.png", folder="<i>", explanation=found, predictions=[(0, "<b>", 0.5)])
    page = gallery("<spec>", "<facts>", [entry])
    for text in ("<script>x", "<i>", "<b>", "<spec>", "<facts>"):
        assert text not in page.partition("</style>")[2].replace("<i></i>", "")
    assert "&lt;script&gt;x" in page


def test_a_file_name_that_is_no_text(tmp_path):
    """Archives of other systems leave names that are no UTF-8: explained like any other, shown as far as it can be."""
    picture_path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(picture_path, "wb") as file:
        file.write(SHIP.read_bytes())
    out = tmp_path / "out"
    command = ["explain", "builtin:nano", os.fsdecode(picture_path), "--out", str(out), "--steps", "0", "--json"]
    assert main(command) == 0
    assert "<h2>caf?.png</h2>" in (out / "index.html").read_text(encoding="utf-8")
    assert (out / "000_caf_" / "maps.npz").exists()


def test_many_pictures_of_one_name(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.open(SHIP).save(tmp_path / folder / "same name.png")
    out = tmp_path / "out"
    command = ["explain", "builtin:nano", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), "--json"]
    assert main([*command, "--steps", "0", "--method", "gradient, rollout", "--class", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["class"]["index"] for one in printed["images"]] == [3, 3]
    assert [set(one["maps"]) for one in printed["images"]] == 2 * [{"class-attention", "rollout", "gradient"}]
    assert sorted(path.name for path in out.iterdir()) == ["000_same_name", "001_same_name", "index.html"]


def test_the_folder_holds_what_the_page_shows(tmp_path):
    """Explained again into the same folder: nothing of the call before is left, and nothing else is touched."""
    for name in ("one", "two", "three"):
        Image.open(SHIP).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"

    def explain(*names: str, method: str) -> None:
        paths = [str(tmp_path / f"{name}.png") for name in names]
        assert main(["explain", "builtin:nano", *paths, "--out", str(out), "--steps", "0", "--method", method]) == 0

    explain("one", "two", "three", method="rollout")
    for mine in ("001_two/notes.txt", "007_of_mine/heads.png", "figures/mine.png"):
        (out / mine).parent.mkdir(exist_ok=True)
        (out / mine).write_text("mine")
    (out / "figures" / "talking_heads.png").write_text("earlier")
    captions = {"Talking heads": "", "../index.html": "", "mine.jpg/..": ""}
    (out / "figures" / "figures.json").write_text(json.dumps({"captions": captions}))
    explain("one", "three", method="gradient")
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == [
        *(f"000_one/{name}" for name in ("class_attention.png", "gradient.png", "heads.png", "maps.npz")),
        *(f"001_three/{name}" for name in ("class_attention.png", "gradient.png", "heads.png", "maps.npz")),
        "001_two/notes.txt",
        "007_of_mine/heads.png",
        "figures/mine.png",
        "index.html",
    ]


def test_a_file_is_decoded_once_and_the_network_runs_once(tmp_path, monkeypatch):
    """Maps, gradient, the five predictions and the figures of the layers come out of one pass over the patch stage."""
    opened, passes = [], []
    run_block = LayerScaleBlock.forward
    monkeypatch.setattr(deepcait.Classifier, "open", lambda self, path: (opened.append(path), open_image(path))[1])
    monkeypatch.setattr(LayerScaleBlock, "forward", lambda self, x: (passes.append(self), run_block(self, x))[1])
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        path.write_bytes(SHIP.read_bytes())
    model, _ = model_and_images()
    classifier = deepcait.Classifier(model, classes=None, preprocessing=Preprocessing(model.config.img_size))
    writer.write_gallery(classifier, paths, tmp_path / "out", name="a model", results=read_results(None))
    assert opened == paths
    assert len(passes) == 2 * len(model.blocks)
    measured = json.loads((tmp_path / "out" / "figures" / "figures.json").read_text())["layers"]
    image_1CHW = classifier.preprocessing(open_image(SHIP))
    assert measured["attention_ratio"] == pytest.approx(measure_layers(model, [image_1CHW]).attention_ratio.tolist())


@pytest.mark.parametrize("already", ["cats/one.png", "001_owls/one.png", "index.html"])
def test_a_folder_of_other_things_stays_as_it_is(tmp_path, capsys, already):
    """Pictures beside the classes of a data set would be one class more in the next training."""
    out = tmp_path / "out"
    (out / already).parent.mkdir(parents=True)
    (out / already).write_text("<html>mine</html>")
    assert main(["explain", "builtin:nano", str(SHIP), "--out", str(out), "--steps", "0"]) == 2
    assert f"such as {already.partition('/')[0]}." in " ".join(capsys.readouterr().err.split())
    assert [path for path in out.rglob("*") if path.is_file()] == [out / already]


def test_what_an_interrupted_call_left_is_no_hindrance(tmp_path):
    out = tmp_path / "out"
    (out / "000_ship").mkdir(parents=True)
    (out / "000_ship" / "rollout.png").write_text("half")
    assert main(["explain", "builtin:nano", str(SHIP), "--out", str(out), "--steps", "0"]) == 0
    assert (out / "index.html").is_file()


def test_two_classes_of_one_name(found):
    """ImageNet has two cranes: only the one that is asked about is bold."""
    answers = [(4, "crane", 0.5), (2, "crane", 0.3)]
    page = gallery("spec", "", [Entry(name="x", folder="y", explanation=found, predictions=answers)])
    assert found.target == 2
    assert re.findall(r'<li( class="target")? style="--part: ([\d.]+)%"', page) == [
        ("", "50.0"),
        (' class="target"', "30.0"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "-1"], "--steps: expected 0 or more"),
        (["--img-size", "32x"], "--img-size"),
        (["--img-size", "33"], "33"),
        (["--class", "99"], "no class '99'"),
        (["--figures", "--table", "no.csv"], "no.csv"),
        (["--table", "no.csv"], "--table is only used with --figures"),
        (["--method", ""], "method"),
        (["--out", str(SHIP)], "not a folder"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_mistakes_of_the_user(tmp_path, capsys, options, words):
    command = ["explain", "builtin:nano", str(SHIP), "--out", str(tmp_path / "out"), *options]
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "remedy:" in said
    assert not (tmp_path / "out").exists()


def test_no_picture_and_a_broken_one(tmp_path, capsys):
    """Nothing is written, the good pictures before the broken one neither."""
    (tmp_path / "broken.png").write_bytes(SHIP.read_bytes()[:90])
    for pictures, words in (
        ([], "no image was given"),
        ([str(SHIP), str(tmp_path / "broken.png")], "broken.png"),
        (["gone.png"], "gone.png"),
    ):
        assert main(["explain", "builtin:nano", *pictures, "--out", str(tmp_path / "o")]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
    other = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="Linear has no class attention"):
        require_cait(other)
