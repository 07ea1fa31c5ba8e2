"""More than the service can do at once: 503 and when to come again; what was let in is answered, at the end too."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from deepcait.errors import ConfigError
from deepcait.serve.app import Service
from deepcait.serve.counters import Counters
from deepcait.serve.limits import Limits
from deepcait.serve.pipeline import Pipeline
from deepcait.serve.refusal import RequestError
from deepcait.serve.upload import Upload
from tests.serve.harness import BOUNDARY, command, form, live, part, picture_bytes, request, wait_until

GOOD = request(body=form(part(picture_bytes())))


def send_all(running, number: int, data: bytes = GOOD):
    """Send the same request on several connections; the connections."""
    opened = [running.open() for _ in range(number)]
    for connection in opened:
        connection.send(data)
    return opened


def assert_overloaded(reply) -> None:
    assert reply.status == 503, reply
    assert int(reply.headers["retry-after"]) >= 1
    assert set(reply.json) == {"error", "remedy"}


def test_a_full_queue(patient):
    """The network holds one image, three wait, the fifth is told 503 at once; then all four are answered."""
    with live(patient, max_batch=1, max_queue=3, max_images=3, max_wait_s=0) as running:
        first = send_all(running, 1)
        wait_until(lambda: patient.batches == [1])
        waiting = send_all(running, 3)
        wait_until(lambda: running.service.pipeline.num_waiting == 3)
        reply = running.ask(GOOD)
        assert_overloaded(reply)
        assert "3 images of at most 3" in reply.json["error"]
        patient.go.set()
        assert [connection.read().status for connection in first + waiting] == [200] * 4
        assert running.ask(GOOD).status == 200
    assert patient.batches == [1] * 5


def test_a_request_of_many_pictures_is_let_in_whole_or_not(patient):
    with live(patient, max_batch=1, max_queue=3, max_images=3, max_wait_s=0) as running:
        (first,) = send_all(running, 1)
        wait_until(lambda: patient.batches == [1])
        (second,) = send_all(running, 1)
        wait_until(lambda: running.service.pipeline.num_waiting == 1)
        three = form(*[part(picture_bytes())] * 3)
        assert_overloaded(running.ask(request(body=three)))
        patient.go.set()
        assert first.read().status == second.read().status == 200
        assert len(running.ask(request(body=three)).json) == 3


def test_what_waits_becomes_one_batch(patient):
    with live(patient, max_batch=8) as running:
        (first,) = send_all(running, 1)
        wait_until(lambda: patient.batches == [1])
        rest = send_all(running, 11)
        wait_until(lambda: running.service.pipeline.num_waiting == 11)
        wait_until(lambda: len(running.service.pipeline._placed) == 11)
        patient.go.set()
        assert {connection.read().status for connection in [first, *rest]} == {200}
    assert patient.batches == [1, 8, 3]


def test_too_many_requests_at_once(patient):
    """Those who have not sent their body yet count, too."""
    with live(patient, max_requests=2) as running:
        opened = send_all(running, 2, GOOD[:-9])
        wait_until(lambda: running.service._num_requests == 2)
        assert_overloaded(running.ask(GOOD))
        for connection in opened:
            connection.send(GOOD[-9:])
        patient.go.set()
        assert [connection.read().status for connection in opened] == [200, 200]


def test_too_many_bytes_at_once(classifier):
    with live(classifier, max_buffered_bytes=100_000) as running:
        large = request(body=form(part(bytes(90_000))))
        (opened,) = send_all(running, 1, large[:-9])
        wait_until(lambda: running.service._num_buffered_bytes > 90_000)
        assert_overloaded(running.ask(request(body=form(part(bytes(50_000))))))
        opened.send(large[-9:])
        assert opened.read().status == 400  # no picture, but read
        assert running.ask(GOOD).status == 200


def test_bodies_that_wait_for_a_decoder_count(classifier, monkeypatch):
    """A body that has come in whole is still in memory: it is counted until its picture is decoded."""
    go = threading.Event()
    monkeypatch.setattr(Pipeline, "_decode", _after(go, Pipeline._decode))
    large = request(body=form(part(picture_bytes() + bytes(50_000))))
    with live(classifier, max_buffered_bytes=140_000) as running:
        opened = send_all(running, 2, large)
        wait_until(lambda: running.service.pipeline.num_waiting == 2)
        reply = running.ask(large)
        go.set()
        assert_overloaded(reply)
        assert "memory" in reply.json["error"]
        assert [connection.read().status for connection in opened] == [200, 200]
        assert running.service.pipeline.num_bytes == 0
        assert running.ask(large).status == 200
        assert running.predict(b"no picture").status == 400
        assert running.service.pipeline.num_bytes == 0


def test_pictures_of_a_client_that_left_are_not_decoded(classifier, monkeypatch):
    go, decoded, decode = threading.Event(), [], Pipeline._decode

    def counted(self, picture):
        decoded.append(picture.name)
        assert go.wait(30)
        return decode(self, picture)

    monkeypatch.setattr(Pipeline, "_decode", counted)
    three = request(body=form(*(part(picture_bytes(), filename=f"{number}.png") for number in range(3))))
    with live(classifier) as running:
        (opened,) = send_all(running, 1, three)
        wait_until(lambda: decoded == ["0.png"])
        opened.close()
        wait_until(lambda: running.service._num_requests == 0)
        go.set()
        assert running.predict(picture_bytes()).status == 200
    assert decoded == ["0.png", "0.png"]


def test_each_request_of_a_batch_gets_as_many_answers_as_it_asked_for(patient):
    with live(patient, max_batch=8) as running:
        opened = send_all(running, 1)
        wait_until(lambda: patient.batches == [1])
        for topk in (1, 3, 2):
            opened += send_all(running, 1, request(f"/predict?topk={topk}", form(part(picture_bytes()))))
        wait_until(lambda: len(running.service.pipeline._placed) == 3)
        patient.go.set()
        assert [len(connection.read().json[0]["predictions"]) for connection in opened] == [3, 1, 3, 2]
    assert patient.batches == [1, 3]


def _after(event, function):
    """The function, once the event is set."""

    def waits(*args):
        assert event.wait(30)
        return function(*args)

    return waits


def test_the_deadline(patient, monkeypatch):
    """Neither an image in the network nor one in the queue keeps its client longer than the deadline."""
    deadlines, timeout = [], asyncio.timeout

    def noted(seconds):
        if seconds != 77.0:
            return timeout(seconds)
        deadlines.append(timeout(None))
        return deadlines[-1]

    monkeypatch.setattr(asyncio, "timeout", noted)
    with live(patient, deadline_s=77.0, max_batch=1) as running:
        connections = send_all(running, 3)
        wait_until(lambda: patient.batches == [1] and running.service.pipeline.num_waiting == 2)
        loop = running.service.pipeline._loop
        for deadline in deadlines:  # it passes
            loop.call_soon_threadsafe(deadline.reschedule, 0.0)
        for connection in connections:
            assert_overloaded(connection.read())
        wait_until(lambda: running.service._num_requests == 0)
        patient.go.set()
        wait_until(lambda: running.service.pipeline.num_waiting == 0)
        assert running.ask(GOOD).status == 200
    # The two that nobody waited for any more were dropped, not computed.
    assert patient.batches == [1, 1]


def test_a_client_that_leaves_while_it_waits(patient):
    """Its place is free at once, its picture is not computed, and it is counted as gone."""
    with live(patient, max_batch=1) as running:
        (first,) = send_all(running, 1)
        wait_until(lambda: patient.batches == [1])
        (second,) = send_all(running, 1)
        wait_until(lambda: running.service.pipeline.num_waiting == 1)
        second.close()
        wait_until(lambda: running.service._num_requests == 1)
        patient.go.set()
        assert first.read().status == 200
        wait_until(lambda: running.service.pipeline.num_waiting == 0)
        text = running.ask(request("/metrics", method="GET")).body.decode()
    assert patient.batches == [1]
    assert 'deepcait_requests_total{path="/predict",status="200"} 1\n' in text
    assert 'deepcait_requests_total{path="/predict",status="499"} 1\n' in text


def test_a_deadline_before_the_body_is_whole(patient):
    """That is the client's slowness, not ours: 408."""
    with live(patient, deadline_s=0.2) as running, running.connect() as connection:
        connection.send(GOOD[:-9])
        reply = connection.read()
        assert (reply.status, set(reply.json)) == (408, {"error", "remedy"})


def test_a_model_that_fails(classifier, monkeypatch):
    """Everyone in the batch is told; the thread lives on."""
    with live(classifier) as running:
        with monkeypatch.context() as patch:
            patch.setattr(classifier, "logits", lambda images: classifier.model(images) * float("nan"))
            reply = running.ask(GOOD)
            assert (reply.status, set(reply.json)) == (500, {"error", "remedy"})
            assert "checkpoint" in reply.json["remedy"]
            patch.setattr(classifier, "logits", lambda images: 1 / 0)
            assert running.ask(GOOD).status == 500
        assert running.ask(GOOD).status == 200
        assert running.ask(request("/healthz", method="GET")).status == 200


def test_health_says_no_when_a_thread_has_ended(classifier):
    with live(classifier) as running:
        running.service.pipeline._to_decode.put(None)
        wait_until(lambda: not running.service.pipeline.is_alive())
        assert_overloaded(running.ask(request("/healthz", method="GET")))
        running.service.pipeline._threads[0] = running.service.pipeline._threads[1]


def test_the_end_answers_what_was_let_in(patient):
    """The service is told to end while one image is in the network and five wait: six answers."""
    answers = []
    with live(patient, max_batch=2, max_wait_s=0) as running:
        connections = send_all(running, 6)
        wait_until(lambda: patient.batches and running.service._num_requests == 6)
        threading.Timer(0.3, patient.go.set).start()
        reader = threading.Thread(target=lambda: answers.extend(connection.read() for connection in connections))
        reader.start()
    reader.join(60)
    assert [reply.status for reply in answers] == [200] * 6
    with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
        running.ask(GOOD)


def test_asked_to_end_at_once(patient):
    """A second Ctrl-C cancels what still waits: it is refused like everything else, and nothing is raised."""
    service = Service(patient, name="test")
    head, body = GOOD.split(b"\r\n\r\n", 1)
    headers = [tuple(line.lower().split(b": ", 1)) for line in head.split(b"\r\n")[1:]]
    headers = [(name, value.replace(BOUNDARY.lower().encode(), BOUNDARY.encode())) for name, value in headers]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/predict", "raw_path": b"/predict",
        "query_string": b"", "headers": headers, "root_path": "", "scheme": "http",
    }  # fmt: skip
    bodies, sent = [body], []

    async def receive():
        if not bodies:
            await asyncio.sleep(30)  # the client stays
        return {"type": "http.request", "body": bodies.pop(), "more_body": False}

    async def send(message):
        sent.append(message)

    async def cancel_it():
        task = asyncio.create_task(service(scope, receive, send))
        while not patient.batches:
            await asyncio.sleep(0.005)
        task.cancel()
        await task

    asyncio.run(cancel_it())
    patient.go.set()
    service.close()
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert set(json.loads(sent[1]["body"])) == {"error", "remedy"}


@pytest.mark.parametrize("limits", [{"max_batch": 0}, {"deadline_s": -1}, {"max_queue": 5}, {"max_wait_s": -0.1}])
def test_limits_that_do_not_fit(limits):
    with pytest.raises(ConfigError, match="expected"):
        Limits(**limits)


@pytest.mark.process
def test_the_command():
    """The line says the address; SIGTERM in the middle of requests loses none; the exit code is 0."""
    with command("--json", "--max-batch", "4", "--threads", "1") as running:
        facts = json.loads(running.first_line)
        assert facts["url"] == running.url
        assert (facts["classes"], facts["img_size"]) == (10, [32, 32])
        connections = send_all(running, 24)
        wait_until(lambda: b'status="200"' in running.ask(request("/metrics", method="GET")).body)
        ended: list[tuple[int, str, str]] = []
        stopper = threading.Thread(target=lambda: ended.append(running.stop()))
        stopper.start()
        replies = [connection.read() for connection in connections]
        stopper.join()
    assert [reply.status for reply in replies] == [200] * 24
    assert all(reply.json[0]["predictions"] for reply in replies)
    assert ended == [(0, "", "")]


def test_retry_after_grows_with_the_queue(patient):
    with live(patient, max_batch=1, max_queue=3, max_images=3, max_wait_s=0) as running:
        running.service.pipeline._image_s = 4.0
        first = send_all(running, 1)
        wait_until(lambda: patient.batches == [1])
        first += send_all(running, 3)
        wait_until(lambda: running.service.pipeline.num_waiting == 3)
        reply = running.ask(GOOD)
        assert_overloaded(reply)
        assert reply.headers["retry-after"] == "12"
        running.service.pipeline._image_s = 4000.0
        assert running.ask(GOOD).headers["retry-after"] == "60"
        patient.go.set()
        assert {connection.read().status for connection in first} == {200}


def test_after_its_end_it_takes_nothing(classifier):
    """Nobody would answer: whoever came still would wait for ever."""
    pipeline = Pipeline(classifier, Limits(), Counters())
    pipeline.close()

    async def come_late():
        pipeline.expect()
        pipeline.submit([Upload("a.png", bytearray(picture_bytes()))], explain=False, topk=1)

    with pytest.raises(RequestError, match="503"):
        asyncio.run(come_late())


def test_a_lone_request_does_not_wait_for_others(classifier):
    """A batch waits only for requests that are on their way; here none is: waiting would outlast the deadline."""
    with live(classifier, max_wait_s=1000.0, deadline_s=20.0) as running:
        assert running.ask(GOOD).status == 200
