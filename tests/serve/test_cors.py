"""Pages of other origins: refused by default, allowed by name."""

from __future__ import annotations

import json

import pytest

from deepcait.cli.main import main
from deepcait.errors import ConfigError
from deepcait.serve.cors import Cors
from tests.serve.harness import command, form, live, part, picture_bytes, request
from tests.serve.test_refusals import assert_refused

PETS, OTHER = "https://pets.example.org", "https://other.example.org"
GOOD = form(part(picture_bytes()))


def from_page(origin: str, path: str = "/predict", body: bytes = GOOD, method: str = "POST") -> bytes:
    """What a browser sends for a page of an origin."""
    return request(path, body, method=method, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})


def preflight(origin: str | None, path: str = "/predict", **more: str) -> bytes:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Sec-Fetch-Site": "cross-site"}
    return request(path, method="OPTIONS", headers=asked | more)


def allowed(reply) -> str | None:
    return reply.headers.get("access-control-allow-origin")


@pytest.fixture(scope="module")
def open_to_pets(classifier):
    with live(classifier, cors_origins=[PETS, "http://localhost:3000"]) as running:
        yield running


def test_off_by_default(service):
    assert_refused(service.ask(from_page(PETS)), 403, "--cors-origin")
    assert_refused(service.ask(preflight(PETS)), 405, "OPTIONS")
    reply = service.ask(from_page(PETS, "/model", b"", "GET"))
    assert reply.status == 200  # the browser does not let the page read it
    assert not {name for name in reply.headers if name.startswith("access-control") or name == "vary"}


@pytest.mark.parametrize("origin", [PETS, "http://localhost:3000"])
def test_an_allowed_origin(open_to_pets, origin):
    asked = open_to_pets.ask(preflight(origin))
    assert (asked.status, asked.body, allowed(asked)) == (204, b"", origin)
    assert asked.headers["access-control-allow-methods"] == "GET, POST"
    assert asked.headers["access-control-allow-headers"] == "content-type"
    assert "access-control-allow-private-network" not in asked.headers
    assert "access-control-allow-credentials" not in asked.headers
    for data, status in (
        (from_page(origin), 200),
        (from_page(origin, body=b"x"), 400),
        (from_page(origin, "/no"), 404),
    ):
        reply = open_to_pets.ask(data)
        assert (reply.status, allowed(reply), reply.headers["vary"]) == (status, origin, "origin")
    assert "server-timing" in reply.headers["access-control-expose-headers"]


def test_from_a_public_page_to_this_machine(open_to_pets):
    asked = open_to_pets.ask(preflight(PETS, **{"Access-Control-Request-Private-Network": "true"}))
    assert asked.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("origin", [OTHER, "null", "http://pets.example.org", PETS + ":8443", "https://pets.example"])
def test_every_other_origin(open_to_pets, origin):
    for data in (from_page(origin), preflight(origin)):
        reply = open_to_pets.ask(data)
        assert_refused(reply, 403, "--cors-origin")
        assert allowed(reply) is None
    reply = open_to_pets.ask(from_page(origin, "/model", b"", "GET"))
    assert (reply.status, allowed(reply), reply.headers["vary"]) == (200, None, "origin")


def test_what_is_no_preflight(open_to_pets):
    assert_refused(open_to_pets.ask(request("/predict", method="OPTIONS", headers={"Origin": PETS})), 405, "OPTIONS")
    assert_refused(open_to_pets.ask(preflight(None)), 403, "Origin")
    assert_refused(open_to_pets.ask(preflight(PETS, "/nothing")), 404, "/nothing")
    assert_refused(open_to_pets.ask(preflight(PETS, Host="evil.example")), 421, "evil.example")


def test_the_page_of_the_service_itself(open_to_pets):
    own = {"Origin": open_to_pets.url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    reply = open_to_pets.ask(request(body=GOOD, headers=own))
    assert (reply.status, allowed(reply)) == (200, None)


def test_all_origins(classifier):
    with live(classifier, cors_origins=["*"]) as running:
        for origin in (PETS, OTHER, "null"):
            assert allowed(running.ask(preflight(origin))) == origin
            assert running.ask(from_page(origin)).status == 200


@pytest.mark.parametrize(
    ("origin", "word"),
    [
        ("pets.example.org", "pets.example.org"),
        ("https://pets.example.org/", "Give https://pets.example.org."),
        ("https://pets.example.org/app?x", "Give https://pets.example.org."),
        ("https://pets.example.org:443", "Give https://pets.example.org."),
        ("http://[::1]:80", "Give http://[::1]."),
        ("https://me@pets.example.org", "origin of a page"),
        ("https://pets.example.org:port", "origin of a page"),
        ("file:///home", "origin of a page"),
        ("https://", "origin of a page"),
        ("https://*.example.org", "origin of a page"),
        ("https://pets example.org", "origin of a page"),
        ("https://bücher.example", "origin of a page"),
        ("null", "origin of a page"),
        ("", "origin of a page"),
    ],
)
def test_what_is_no_origin(origin, word, capsys):
    with pytest.raises(ConfigError):
        Cors([PETS, origin])
    assert main(["serve", "gone", "--cors-origin", origin, "--json"]) == 2  # before the model is looked for
    printed = json.loads(capsys.readouterr().out)
    assert word in printed["error"] + printed["remedy"]


def test_origins_are_compared_as_browsers_write_them():
    cors = Cors(["HTTPS://Pets.Example.org", "http://[::1]:8000"])
    assert cors.allows(PETS)
    assert cors.allows("http://[::1]:8000")
    assert not cors.allows("")


@pytest.mark.process
def test_the_option_is_repeated():
    """So is --allow-host: a further one does not replace the one before."""
    options = ("--cors-origin", PETS, "--cors-origin", OTHER, "--allow-host", "a.example", "--allow-host", "b.example")
    with command(*options) as running:
        assert [running.ask(preflight(origin)).status for origin in (PETS, OTHER, "null")] == [204, 204, 403]
        for host, status in (("a.example", 200), ("b.example", 200), ("c.example", 421)):
            assert running.ask(request("/healthz", method="GET", headers={"Host": host})).status == status
