"""The OpenAPI document of a server, from the messages that it reads and writes."""

from typing import Any

import msgspec

import oneway
from oneway.openinference.messages import (
    ErrorMessage,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ServerMetadata,
)

MESSAGES = (ErrorMessage, InferRequest, InferResponse, ModelMetadata, ServerMetadata)

REFUSALS = {
    "400": "the request is not as it must be",
    "401": "a bearer token is needed",
    "404": "there is no such model or version",
    "408": "the request did not arrive in time",
    "412": "the guard is of another version than the one that the client requires",
    "413": "the request is too large",
    "415": "the request is packed",
    "421": "the server is asked by a name that is not its own",
    "429": "too many queries wait; see Retry-After",
    "431": "path and headers are too large",
    "500": "the server itself failed",
    "502": "before an address: the guarded server's answer is not as it must be",
    "503": "no scores can be released, and no clean score is in the answer",
    "504": "there was no answer in time",
}


def openapi_document(paths: dict[str, Any], *, token: bool) -> dict[str, Any]:
    """Return an OpenAPI document.

    Args:
        paths: The paths of the model, whose schemas refer to ``MESSAGES`` by name.
        token: Whether clients must send a bearer token.
    """
    _, defined = msgspec.json.schema_components(
        MESSAGES, ref_template="#/components/schemas/{name}"
    )
    components: dict[str, Any] = {"schemas": defined}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "oneway", "version": oneway.__version__},
        "paths": {**_health(), **paths},
        "components": components,
    }
    if token:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
    return document


def model_paths(path: str) -> dict[str, Any]:
    """Return the paths of one model of the Open Inference Protocol."""
    ready = _flag("Whether it can answer", "ready", {"name": {"type": "string"}}, REFUSALS)
    return {
        path: {"get": operation("What the model takes and gives", _schema("ModelMetadata"))},
        f"{path}/config": {"get": operation("The same, as Triton says it", {"type": "object"})},
        f"{path}/ready": {"get": ready},
        f"{path}/infer": {
            "post": operation("Ask", _schema("InferResponse"), body=_schema("InferRequest"))
        },
    }


def operation(
    summary: str, answer: dict[str, Any], *, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return one operation with the errors that it may answer with."""
    described: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "done", "content": {"application/json": {"schema": answer}}},
            **{
                status: {
                    "description": meaning,
                    "content": {"application/json": {"schema": _schema("ErrorMessage")}},
                }
                for status, meaning in REFUSALS.items()
            },
        },
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _health() -> dict[str, Any]:
    paths = {"/v2": {"get": operation("What the server is", _schema("ServerMetadata"))}}
    index = {"type": "array", "items": {"type": "object"}}
    paths["/v2/repository/index"] = {"post": operation("Which models there are", index)}
    for name in ("live", "ready"):
        probe = _flag(f"Whether the server is {name}", name, {}, {})
        paths[f"/v2/health/{name}"] = {"get": {**probe, "security": []}}
    return paths


def _flag(
    summary: str, name: str, more: dict[str, Any], refusals: dict[str, str]
) -> dict[str, Any]:
    """Return an operation that answers 200 for yes and 503 for no, with the same message."""
    properties = {name: {"type": "boolean"}, **more}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    described = operation(summary, schema)
    responses = described["responses"]
    described["responses"] = {
        "200": responses["200"],
        **{status: responses[status] for status in refusals},
        "503": {**responses["200"], "description": "no"},
    }
    return described


def _schema(message: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{message}"}
