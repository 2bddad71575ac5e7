"""The servers' own description, from the messages that they read and write."""

from typing import Any

from pydantic.json_schema import models_json_schema

import oneway
from oneway.serving.protocol import (
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
    "413": "the request is too large",
    "429": "too many queries wait; see Retry-After",
    "503": "no scores can be released; nothing clean is told",
    "504": "there was no answer in time",
}


def openapi_document(paths: dict[str, Any], *, token: bool) -> dict[str, Any]:
    """Return an OpenAPI document.

    Args:
        paths: Its paths, whose schemas refer to ``MESSAGES`` by name.
        token: Whether a bearer token is needed.
    """
    _, defined = models_json_schema(
        [(message, "validation") for message in MESSAGES],
        ref_template="#/components/schemas/{model}",
    )
    components: dict[str, Any] = {"schemas": defined["$defs"]}
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
        path: {"get": operation("What the model takes and gives", _said("ModelMetadata"))},
        f"{path}/ready": {"get": ready},
        f"{path}/infer": {
            "post": operation("Ask", _said("InferResponse"), body=_said("InferRequest"))
        },
    }


def operation(
    summary: str, answer: dict[str, Any], *, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return one operation with the errors that it may answer with."""
    told: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "done", "content": {"application/json": {"schema": answer}}},
            **{
                status: {
                    "description": meaning,
                    "content": {"application/json": {"schema": _said("ErrorMessage")}},
                }
                for status, meaning in REFUSALS.items()
            },
        },
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        told["requestBody"] = {"required": True, "content": content}
    return told


def _health() -> dict[str, Any]:
    told = {
        name: _flag(f"Whether the server is {name}", name, {}, {}) for name in ("live", "ready")
    }
    return {
        "/v2": {"get": operation("What the server is", _said("ServerMetadata"))},
        **{f"/v2/health/{name}": {"get": {**one, "security": []}} for name, one in told.items()},
    }


def _flag(
    summary: str, name: str, more: dict[str, Any], refusals: dict[str, str]
) -> dict[str, Any]:
    """Return an operation that answers 200 for yes and 503 for no, with the same message."""
    properties = {name: {"type": "boolean"}, **more}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    told = operation(summary, schema)
    yes = told["responses"]["200"]
    told["responses"] = {
        "200": yes,
        **{status: one for status, one in told["responses"].items() if status in refusals},
        "503": {**yes, "description": "no"},
    }
    return told


def _said(message: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{message}"}
