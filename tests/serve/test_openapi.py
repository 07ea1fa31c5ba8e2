"""The OpenAPI document: sound as a document, and true of what the service takes and answers."""

from __future__ import annotations

import json
import re

import pytest

import deepcait
from deepcait.serve.app import _KNOWN_PATHS
from deepcait.serve.limits import Limits
from deepcait.serve.openapi import describe
from deepcait.serve.upload import IMAGE_TYPES
from tests.serve import test_bodies, test_refusals
from tests.serve.harness import form, part, picture_bytes, request
from tests.serve.schema import TYPES, WORDS, differences, find, schemas_in

METHODS = {"get", "post"}


@pytest.fixture(scope="module")
def document(service):
    reply = service.ask(request("/openapi.json", method="GET"))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json


def test_it_is_sound(document):
    assert document["openapi"] == "3.1.0"
    assert document["info"].keys() >= {"title", "version"}
    assert document["info"]["version"] == deepcait.__version__
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        assert find(document, reference)
    names = []
    for path, item in document["paths"].items():
        assert path.startswith("/")
        assert item.keys() <= METHODS
        for operation in item.values():
            names.append(operation["operationId"])
            assert operation["summary"].endswith(".")
            assert "200" in operation["responses"]
            for status, response in operation["responses"].items():
                assert re.fullmatch(r"[1-5]\d\d", status)
                assert ("$ref" in response) != ("description" in response)
    assert len(set(names)) == len(names)
    for response in document["components"]["responses"].values():
        assert response["description"]
    found = list(schemas_in(document))
    assert len(found) > 40
    for schema in found:
        assert schema.keys() <= WORDS, schema
        assert schema.keys() == {"$ref"} or "$ref" not in schema
        assert schema.get("type") in (None, *TYPES)
        assert set(schema.get("required", ())) <= schema.get("properties", {}).keys()
        assert schema.get("type") != "array" or "items" in schema


def test_it_has_every_path(document, service):
    static = {path for path in service.service._assets if path != "/"}
    assert document["paths"].keys() == _KNOWN_PATHS
    for path, item in document["paths"].items():
        for method in METHODS:
            status = service.ask(request(path, method=method.upper())).status
            assert (status == 405) == (method not in item), (path, method)
    assert not static & document["paths"].keys()


def content(document, path: str, reply):
    """What the document says of the body of an answer."""
    method = "post" if "post" in document["paths"][path] else "get"
    response = document["paths"][path][method]["responses"][str(reply.status)]
    response = find(document, response["$ref"]) if "$ref" in response else response
    kind = reply.headers["content-type"].partition(";")[0]
    return response["content"][kind]["schema"]


@pytest.mark.parametrize("path", ["/model", "/healthz", "/openapi.json", "/metrics", "/"])
def test_what_is_fetched_is_as_described(document, service, path):
    reply = service.ask(request(path, method="GET"))
    kind = reply.headers["content-type"]
    value = reply.json if kind == "application/json" else reply.body.decode()
    assert differences(document, content(document, path, reply), value) == []


@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_the_three_bodies_are_as_described(document, service, path):
    body = document["paths"][path]["post"]["requestBody"]["content"]
    data = picture_bytes()
    sent = test_bodies.encoded(data)
    assert body.keys() == {"multipart/form-data", "application/json", *IMAGE_TYPES}
    assert differences(document, body["application/json"]["schema"], sent) == []
    assert differences(document, body["multipart/form-data"]["schema"], {"image": ["..."]}) == []
    requests = [test_bodies.raw(data, kind, path) for kind in IMAGE_TYPES]
    requests += [test_bodies.as_json(sent, path), request(path, form(part(data)))]
    for one in requests:
        reply = service.ask(one)
        assert reply.status == 200
        assert differences(document, content(document, path, reply), reply.json) == []


def test_the_limits_are_the_service_s():
    document = describe(Limits(max_images=7))
    for path, most in (("/predict", 7), ("/explain", 1)):
        for kind, key in (("multipart/form-data", "image"), ("application/json", "images")):
            schema = document["paths"][path]["post"]["requestBody"]["content"][kind]["schema"]
            assert schema["properties"][key]["maxItems"] == most
    schema = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for value in ({"images": []}, {"images": 8 * ["QUJD"]}, {"images": [3]}, {"image": ["QUJD"]}, [], {}):
        assert differences(document, schema, value), value


@pytest.mark.parametrize("name", [*test_refusals.REFUSED, *test_bodies.REFUSED])
def test_every_refusal_is_described(document, name):
    """Its status; what is not HTTP has no path."""
    data, status, _ = (test_refusals.REFUSED | test_bodies.REFUSED)[name]
    described = document["components"]["responses"]
    assert str(status) in described
    method, _, rest = data.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
    operation = document["paths"].get(path, {}).get(method.decode("latin-1").lower())
    if operation and status != 404:
        assert str(status) in operation["responses"]
