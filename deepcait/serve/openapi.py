"""The OpenAPI 3.1 document of the service: its paths, their requests and their responses."""

from __future__ import annotations

from typing import Any

from deepcait.runtime.environment import version
from deepcait.serve.limits import Limits
from deepcait.serve.upload import BYTES, FIELD, FORM, IMAGE_TYPES, JSON

# Status -> when a request gets it.
_REFUSALS = {
    400: "The request or an image in it is damaged, too large in pixels, or not what was expected.",
    403: "The request comes from a page of an origin that is not allowed.",
    404: "There is no such path.",
    405: "The path has another method.",
    408: "The headers or the body did not arrive in time.",
    413: "The body is too large, or it has too many images.",
    415: "The media type of the body is not supported.",
    421: "The Host header is not a name of this service.",
    431: "The headers are too large.",
    500: "The model or the service failed.",
    503: "The service is overloaded; Retry-After is the number of seconds to wait.",
}
_ANY_REQUEST = (400, 405, 408, 421, 431, 500)
_IMAGE_REQUEST = (*_ANY_REQUEST, 403, 413, 415, 503)


def describe(limits: Limits) -> dict[str, Any]:
    """Return the document of a service with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "deepcait",
            "version": version("deepcait") or "unknown",
            "summary": "Predictions and class attention of one model.",
            "description": f"A body has at most {limits.max_body_bytes:,} bytes, an image at most "
            f"{limits.max_pixels:,} pixels. Every error is an object with `error` and `remedy`.",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/predict": {"post": _predict(limits)},
            "/explain": {"post": _explain()},
            "/model": {"get": _get("model", "Return facts about the model.", "The facts.", _ref("Model"))},
            "/healthz": {"get": _healthz()},
            "/metrics": {"get": _get("metrics", "Return counters for Prometheus.", "Plain text.", kind="text/plain")},
            "/openapi.json": {"get": _get("openapi", "Return this document.", "OpenAPI 3.1.", {"type": "object"})},
            "/": {"get": _get("page", "Return the web page.", "HTML.", kind="text/html")},
        },
        "components": {
            "schemas": _schemas(),
            "parameters": {"topk": _topk()},
            "responses": {str(status): _refusal(status, text) for status, text in _REFUSALS.items()},
        },
    }


def _predict(limits: Limits) -> dict[str, Any]:
    results = {"type": "array", "minItems": 1, "items": _ref("Result")}
    return {
        "operationId": "predict",
        "summary": "Classify one or more images.",
        "parameters": [{"$ref": "#/components/parameters/topk"}],
        "requestBody": _body(limits.max_images),
        "responses": _responses("One object per image, in the order of the request.", results, _IMAGE_REQUEST),
    }


def _explain() -> dict[str, Any]:
    return {
        "operationId": "explain",
        "summary": "Classify one image and return its class attention.",
        "parameters": [{"$ref": "#/components/parameters/topk"}],
        "requestBody": _body(1),
        "responses": _responses("Predictions and class attention.", _ref("Explanation"), _IMAGE_REQUEST),
    }


def _healthz() -> dict[str, Any]:
    schema = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
    made = _get("healthz", "Return whether the service works.", "It works.", schema)
    made["responses"]["503"] = {"$ref": "#/components/responses/503"}
    return made


def _get(
    name: str, summary: str, answer: str, schema: dict[str, Any] | None = None, *, kind: str = JSON
) -> dict[str, Any]:
    responses = _responses(answer, schema or {"type": "string"}, _ANY_REQUEST, kind=kind)
    return {"operationId": name, "summary": summary, "responses": responses}


def _body(max_images: int) -> dict[str, Any]:
    """The three kinds of body."""
    many = {"minItems": 1, "maxItems": max_images}
    file = {"type": "string", "contentMediaType": BYTES}
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: {"type": "array", **many, "items": file, "description": "Image files."}},
        "additionalProperties": False,
    }
    text = {"type": "string", "contentEncoding": "base64", "description": "The base64 of an image file."}
    json = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", **many, "items": text}},
        "additionalProperties": False,
    }
    raw = {kind: {"schema": {"description": "An image file."}} for kind in IMAGE_TYPES}
    return {"required": True, "content": {FORM: {"schema": form}, JSON: {"schema": json}, **raw}}


def _responses(
    answer: str, schema: dict[str, Any], refusals: tuple[int, ...], *, kind: str = JSON
) -> dict[str, dict[str, Any]]:
    refused = {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(refusals)}
    return {"200": {"description": answer, "content": {kind: {"schema": schema}}}, **refused}


def _refusal(status: int, text: str) -> dict[str, Any]:
    made: dict[str, Any] = {"description": text, "content": {JSON: {"schema": _ref("Error")}}}
    if status == 503:
        made["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return made


def _topk() -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": 999_999, "default": 5}
    return {"name": "topk", "in": "query", "description": "Predictions per image.", "schema": schema}


def _schemas() -> dict[str, Any]:
    number = {"type": "number", "minimum": 0, "maximum": 1}
    integer = {"type": "integer", "minimum": 0}
    sides = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": 1}}
    weights = {"type": "array", "items": {"type": "array", "items": number}}
    prediction = {"index": integer, "label": {"type": "string"}, "probability": number}
    file = {"type": "string", "description": "The name that the client gave, or the position of the image."}
    result = {"file": file, "predictions": {"type": "array", "items": _ref("Prediction")}}
    explanation = {
        "size": _described(sides, "Width and height of the upright image in pixels."),
        "box": {
            "type": "array",
            "minItems": 4,
            "maxItems": 4,
            "items": {"type": "number"},
            "description": "The part of it that is the model's input: left, top, right, bottom, in pixels.",
        },
        "grid": _described(sides, "Rows and columns of patches."),
        "attention": {
            "type": "array",
            "items": weights,
            "description": "The class token's attention to the patches: attention[block][head][patch], row by row.",
        },
        "class_token": _described(weights, "Its attention to itself: class_token[block][head]."),
    }
    sample = {"path": {"type": "string"}, "label": {"type": "string"}}
    model = {
        "model": {"type": "string"},
        "classes": integer,
        "img_size": _described(sides, "Height and width in pixels."),
        "grid": {
            "type": "array",
            "maxItems": 2,
            "items": integer,
            "description": "Rows and columns of patches; empty, with 0 blocks and heads, without class attention.",
        },
        "blocks": _described(integer, "Class blocks."),
        "heads": integer,
        "max_body_bytes": integer,
        "samples": {"type": "array", "items": _object(sample)},
    }
    return {
        "Prediction": _object(prediction),
        "Result": _object(result),
        "Explanation": _object(result | explanation),
        "Model": _object(model),
        "Error": _object({"error": {"type": "string"}, "remedy": {"type": "string"}}),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """A schema: all of these properties and no others."""
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    return schema | {"description": text}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
