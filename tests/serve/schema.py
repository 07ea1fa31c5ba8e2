"""As much of JSON Schema as the OpenAPI document uses."""

from __future__ import annotations

TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
}  # fmt: skip
# The words of JSON Schema that the document uses; another one needs its line in `differences`.
WORDS = {
    "$ref", "type", "const", "required", "properties", "additionalProperties", "items", "minItems", "maxItems",
    "minimum", "maximum", "default", "description", "contentMediaType", "contentEncoding",
}  # fmt: skip


def find(document, reference: str):
    """What a reference inside the document points to."""
    assert reference.startswith("#/"), reference
    found = document
    for key in reference[2:].split("/"):
        found = found[key]
    return found


def differences(document, schema: dict, value, where: str = "$") -> list[str]:
    """Where a value differs from its schema."""
    if "$ref" in schema:
        return differences(document, find(document, schema["$ref"]), value, where)
    if "const" in schema and value != schema["const"]:
        return [f"{where}: {value!r}"]
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{where}: {type(value).__name__}, not {kind}"]
    found = []
    if kind in ("integer", "number"):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            found.append(f"{where}: {value}")
    if kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for index, item in enumerate(value):
            found += differences(document, schema["items"], item, f"{where}[{index}]")
    if kind == "object":
        known = schema.get("properties", {})
        found += [f"{where}: no {key}" for key in schema.get("required", ()) if key not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{where}: a {key}" for key in value if key not in known]
        for key in known.keys() & value.keys():
            found += differences(document, known[key], value[key], f"{where}.{key}")
    return found


def schemas_in(value):
    """Every schema of the document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "schema":
                yield from nested(inner)
            elif key == "schemas":
                for one in inner.values():
                    yield from nested(one)
            else:
                yield from schemas_in(inner)
    if isinstance(value, list):
        for inner in value:
            yield from schemas_in(inner)


def nested(schema):
    yield schema
    for inner in (*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])):
        yield from nested(inner)
