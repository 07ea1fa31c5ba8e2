"""What the service answers: the same as `predict`, in whatever company a picture passes through the network."""

from __future__ import annotations

import io
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import deepcait
from deepcait.data import open_image
from deepcait.serve import pipeline
from deepcait.serve.refusal import CONTENT_SECURITY_POLICY
from tests.serve.conftest import Patient, small_classifier, without_attention
from tests.serve.harness import form, live, part, picture_bytes, request, wait_until
from tests.serve.schema import differences


def assert_same(result, predictions) -> None:
    """An answer of the service, and what the model itself says."""
    assert [answer["label"] for answer in result["predictions"]] == [answer.label for answer in predictions]
    assert [answer["index"] for answer in result["predictions"]] == [answer.index for answer in predictions]
    for answer, expected in zip(result["predictions"], predictions, strict=True):
        assert abs(answer["probability"] - expected.probability) <= 1e-5


def test_predict_answers_like_the_command(service, classifier):
    files = [picture_bytes(0), picture_bytes(1, (300, 50), "JPEG"), picture_bytes(2, (20, 90), "WEBP")]
    reply = service.ask(
        request(body=form(*(part(data, filename=f"dir/{i}", kind="image/jpeg") for i, data in enumerate(files))))
    )
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert [result["file"] for result in reply.json] == ["dir/0", "dir/1", "dir/2"]
    for result, data in zip(reply.json, files, strict=True):
        assert set(result) == {"file", "predictions"}
        assert_same(result, classifier.predict(open_image(data))[0])


def test_pictures_differ(classifier):
    """The comparison above could not fail with a model that says the same of everything."""
    first, second = classifier.predict([open_image(picture_bytes(seed)) for seed in (0, 1)])
    assert abs(first[0].probability - second[0].probability) > 1e-3


def test_topk_and_names(service):
    data = picture_bytes()
    reply = service.ask(request("/predict?topk=2", form(part(data, filename=""), part(data, filename="ä\u2603.png"))))
    assert [result["file"] for result in reply.json] == ["image 1", "ä\u2603.png"]
    assert {len(result["predictions"]) for result in reply.json} == {2}
    assert len(service.predict(data, path="/predict?topk=999999").json[0]["predictions"]) == 3


def test_a_file_without_a_type_is_a_file(service):
    """As Python's requests sends it."""
    typed, bare = (service.ask(request(body=form(part(picture_bytes(), kind=kind)))) for kind in ("image/png", None))
    assert (bare.status, bare.body) == (200, typed.body)


def test_what_is_just_within_the_limits_of_a_form(service):
    """A boundary of 70 characters, and eight headers of a part."""
    long, more = 70 * "b", b"".join(b"A%d: b\r\n" % number for number in range(6))
    headers = {"Content-Type": f"multipart/form-data; boundary={long}"}
    assert service.ask(request(body=form(more + part(picture_bytes()), boundary=long), headers=headers)).status == 200


def test_every_batch_gives_the_same_answers(classifier):
    """24 clients with requests of 1 to 5 pictures, mixed with explanations; batches of up to 7."""
    files = [picture_bytes(seed, format="JPEG") for seed in range(9)]
    expected = classifier.predict([open_image(data) for data in files])
    faults = []

    def client(number: int) -> None:
        generator = np.random.default_rng(number)
        for _ in range(4):
            chosen = generator.integers(0, len(files), generator.integers(1, 6))
            try:
                if number % 4 == 0:
                    chosen = chosen[:1]
                    results = [running.predict(files[chosen[0]], path="/explain").json]
                else:
                    results = running.predict(*(files[index] for index in chosen)).json
                for result, index in zip(results, chosen, strict=True):
                    assert_same(result, expected[index])
            except Exception as error:  # whatever it is: an end of this thread alone would not be seen
                faults.append(error)

    with live(classifier, max_batch=7, max_wait_s=0.01) as running:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counters = running.service.counters
        assert counters.get("images_total") > counters.get("batches_total")
    assert faults == []


def test_explain(service, classifier):
    data = picture_bytes(3, (64, 64))
    reply = service.predict(data, path="/explain").json
    image = classifier.preprocessing(open_image(data))
    expected_LAT = classifier.model.class_attention(image[None])[0].detach().numpy()
    assert_same(reply, classifier.predict(open_image(data))[0])
    assert (reply["size"], reply["grid"], reply["box"]) == ([64, 64], [8, 8], [0, 0, 64, 64])
    attention = np.array(reply["attention"])
    assert attention.shape == (2, 4, 64)
    np.testing.assert_allclose(attention, expected_LAT[:, :, 1:], atol=1e-6)
    np.testing.assert_allclose(reply["class_token"], expected_LAT[:, :, 0], atol=1e-6)
    np.testing.assert_allclose(attention.sum(-1) + reply["class_token"], 1, atol=1e-4)


@pytest.mark.parametrize("engine", [None, "eager"])
def test_an_image_is_decoded_once_and_passes_once(engine, monkeypatch):
    """To explain, through the network itself; to predict, through the engine if there is one."""
    classifier = small_classifier(engine=engine)
    passes, decoded = Counter(), []
    modules = {"model": classifier.model.patch_embed, "attention": classifier.model.blocks_token_only[0].attn}
    if engine:
        modules["engine"] = classifier.network
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: passes.update([name]))
    open_once = pipeline.open_image
    monkeypatch.setattr(
        pipeline, "open_image", lambda *args, **options: (decoded.append(1), open_once(*args, **options))[1]
    )
    with live(classifier) as running:
        explained = running.predict(picture_bytes(3), path="/explain").json
        assert (passes, len(decoded)) == ({"model": 1, "attention": 1}, 1)
        passes.clear()
        predicted = running.predict(picture_bytes(3)).json[0]
        assert (passes, len(decoded)) == ({"engine": 1} if engine else {"model": 1, "attention": 1}, 2)
    assert [one["label"] for one in explained["predictions"]] == [one["label"] for one in predicted["predictions"]]


def test_an_explanation_that_fails_leaves_predictions_alone():
    """Both are in one batch."""
    classifier = small_classifier(Patient)
    classifier.model.blocks_token_only[1].attn = torch.nn.Identity()
    classifier.model.blocks_token_only[1].attn.forward = lambda tokens_BTD: tokens_BTD[:, :1]
    with live(classifier, max_batch=3, max_wait_s=0) as running:
        first = running.open()
        first.send(request(body=form(part(picture_bytes(0)))))
        wait_until(lambda: classifier.batches == [1])
        others = [running.open(), running.open()]
        for connection, path in zip(others, ("/predict", "/explain"), strict=True):
            connection.send(request(path, form(part(picture_bytes(1)))))
        wait_until(lambda: running.service.pipeline.num_waiting == 2)
        classifier.go.set()
        assert [connection.read().status for connection in (first, others[0])] == [200, 200]
        refused = others[1].read()
    assert refused.status == 500
    assert "blocks_token_only.1.attn (Identity)" in refused.json["error"]


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (40, 100), (33, 5000), (5000, 33)])
@pytest.mark.parametrize("crop_ratio", [1.0, 0.875])
def test_the_box_is_where_the_model_looks(size, crop_ratio):
    """A picture whose colours are its coordinates: the seen part's first and last pixels say where it lies."""
    preprocessing = small_classifier(crop_ratio=crop_ratio).preprocessing
    width, height = size
    columns, rows = np.meshgrid(255 * (np.arange(width) + 0.5) / width, 255 * (np.arange(height) + 0.5) / height)
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], -1).round().astype(np.uint8))
    seen = np.asarray(preprocessing.frame(image)).astype(float)
    left, top, right, bottom = preprocessing.seen_box(width, height)
    steps = (np.arange(32) + 0.5) / 32
    for axis, side, low, high in ((1, width, left, right), (0, height, top, bottom)):
        got = seen[..., 1 - axis].mean(1 - axis) * side / 255
        # Half a grey value, and at the borders the filter's one-sidedness.
        np.testing.assert_allclose(got[2:-2], (low + (high - low) * steps)[2:-2], atol=side / 255 + 1)


def test_a_turned_picture_is_upright(service):
    exif = Image.Exif()
    exif[0x0112] = 6
    reply = service.predict(picture_bytes(size=(60, 30), format="JPEG", exif=exif), path="/explain").json
    assert reply["size"] == [30, 60]


def test_the_explanation_is_small(service):
    assert len(service.predict(picture_bytes(), path="/explain").body) < 12_000


def test_timing_is_reported(service):
    header = service.predict(picture_bytes()).headers["server-timing"]
    assert [word.partition(";")[0] for word in header.split(", ")] == ["decode", "queue", "network", "batch"]


def test_health_and_model(service):
    assert service.ask(request("/healthz", method="GET")).json == {"status": "ok"}
    facts = service.ask(request("/model", method="GET")).json
    assert (facts["classes"], facts["blocks"], facts["heads"], facts["grid"]) == (3, 2, 4, [8, 8])
    assert facts["samples"] == []


@pytest.mark.parametrize("class_token", [None, "average", "inserted"])
def test_a_model_without_class_attention(class_token):
    """It predicts; what it can't do is one plain sentence, and nothing is a defect."""
    classifier = without_attention(class_token)
    with live(classifier) as running:
        assert_same(running.predict(picture_bytes()).json[0], classifier.predict(open_image(picture_bytes()))[0])
        refused = running.predict(picture_bytes(), path="/explain")
        facts = running.ask(request("/model", method="GET")).json
        document = running.ask(request("/openapi.json", method="GET")).json
    assert refused.status == 400
    assert refused.json["error"] == "the model has no class attention, so it can't explain its predictions."
    assert (facts["grid"], facts["blocks"], facts["heads"]) == ([], 0, 0)
    assert differences(document, document["components"]["schemas"]["Model"], facts) == []


def test_metrics_count(classifier):
    with live(classifier) as running:
        running.predict(picture_bytes(0), picture_bytes(1))
        running.predict(b"no picture")
        running.ask(b"nonsense\r\n\r\n")
        running.ask(request("/secret/path", method="GET"))
        text = running.ask(request("/metrics", method="GET")).body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['deepcait_requests_total{path="/predict",status="200"}'] == "1"
    assert lines['deepcait_requests_total{path="/predict",status="400"}'] == "1"
    assert lines['deepcait_requests_total{path="other",status="404"}'] == "1"
    assert lines['deepcait_refused_connections_total{status="400"}'] == "1"
    assert (lines["deepcait_images_total"], lines["deepcait_queue_images"]) == ("2", "0")
    assert "secret" not in text


def test_the_page_and_its_headers(service):
    page = service.ask(request("/", method="GET"))
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    assert "<style" not in text
    assert "http://" not in text + service.ask(request("/static/page.js", method="GET")).body.decode()
    assert text.count("<script") == text.count('<script type="module" src="static/page.js"></script>') == 1
    again = service.ask(request("/", method="GET", headers={"If-None-Match": page.headers["etag"]}))
    assert (again.status, again.body) == (304, b"")
    other = service.ask(request("/", method="GET", headers={"If-None-Match": '"of-another-version"'}))
    assert (other.status, other.body) == (200, page.body)


@pytest.mark.parametrize("spec", ["builtin:nano", None], ids=["CIFAR-10", "other classes"])
def test_sample_images_are_those_of_the_models_classes(spec, classifier):
    """The ten of CIFAR-10 for a model of its classes; none for another, though it has a class cat."""
    with live(deepcait.load(spec, device="cpu") if spec else classifier) as running:
        samples = running.ask(request("/model", method="GET")).json["samples"]
        reply = running.ask(request("/static/samples/cat.png", method="GET"))
    if spec:
        assert [one["label"] for one in samples] == sorted(deepcait.load(spec, device="cpu").classes)
        assert Image.open(io.BytesIO(reply.body)).size == (32, 32)
    else:
        assert (samples, reply.status) == ([], 404)


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/model", "/static/page.js", "/nothing", "/predict"])
def test_every_answer_has_the_security_headers(service, path):
    headers = service.ask(request(path, method="GET")).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_one_connection_takes_many_requests(service):
    data = request(body=form(part(picture_bytes())))
    with service.connect() as connection:
        connection.send(data + data)  # the second before the first is answered
        first, second = connection.read(), connection.read()
        connection.send(data)
        third = connection.read()
    assert first.status == second.status == third.status == 200
    assert first.body == second.body == third.body
