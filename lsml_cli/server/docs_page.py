"""The page at /docs: every endpoint of the OpenAPI document, with an example as a curl command.

It is one HTML document that loads nothing, so it is complete without a network.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_BLANKS = {"string": "…", "integer": 1, "number": 0.5, "boolean": True}  # example values by JSON type


@dataclass(frozen=True)
class Endpoint:
    """One method of one path, as the page shows it.

    Attributes:
        parameters: Query parameters, as OpenAPI describes them.
        fields: Fields of the request's body: name, type, description, whether it is required.
        curl: A command that sends an example request.
        answer: Example of the answer, as JSON; "" if it has none.
        statuses: Description of each status.
    """

    method: str
    path: str
    description: str
    parameters: list[Mapping[str, Any]]
    fields: list[tuple[str, str, str, bool]]
    curl: str
    answer: str
    statuses: Mapping[str, str]


def render_docs(openapi: Mapping[str, Any], base_url: str, needs_password: bool) -> tuple[str, str]:
    """Return the page, and the content security policy to send with it.

    Args:
        openapi: The OpenAPI document.
        base_url: Address of the server for the examples, without a slash at its end.
        needs_password: Whether the examples have to give user and password.
    """
    style = _read_style()
    page = (
        _environment()
        .get_template("docs.html.j2")
        .render(
            info=openapi["info"],
            endpoints=list_endpoints(openapi, base_url, needs_password),
            base_url=base_url,
            style=Markup(style),
        )
    )
    style_hash = base64.b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    return page, f"{policy}; frame-ancestors 'none'"


def list_endpoints(openapi: Mapping[str, Any], base_url: str, needs_password: bool) -> list[Endpoint]:
    """Return the endpoints in the order of the document."""
    return [
        _describe_endpoint(method.upper(), path, operation, base_url, needs_password)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]


def example_of(schema: Mapping[str, Any]) -> Any:
    """Return an example value: the one that a schema gives, else one built from its properties."""
    if "example" in schema:
        return schema["example"]
    json_type = schema.get("type")
    if isinstance(json_type, list):  # such as a number or null
        json_type = json_type[0]
    if json_type == "object":
        return {name: example_of(field) for name, field in schema.get("properties", {}).items()}
    if json_type == "array":
        return [example_of(schema.get("items", {}))]
    return _BLANKS.get(str(json_type))


def _describe_endpoint(
    method: str, path: str, operation: Mapping[str, Any], base_url: str, needs_password: bool
) -> Endpoint:
    parameters = operation.get("parameters", [])
    body_schema = _json_schema(operation.get("requestBody", {}))
    required = body_schema.get("required", [])
    fields = [
        (name, _type_name(field), field.get("description", ""), name in required)
        for name, field in body_schema.get("properties", {}).items()
    ]
    url = base_url + path
    if parameters:
        url += "?" + "&".join(f"{parameter['name']}=1" for parameter in parameters)
    answers = {status: answer for status, answer in operation["responses"].items() if answer["description"]}
    schemas = [_json_schema(answer) for status, answer in sorted(answers.items()) if status.startswith("2")]
    answer_schema = next((schema for schema in schemas if schema), {})
    return Endpoint(
        method,
        path,
        operation.get("description", ""),
        parameters,
        fields,
        _curl_command(method, url, body_schema, needs_password),
        _format_json(example_of(answer_schema)) if answer_schema else "",
        {status: answer["description"] for status, answer in sorted(answers.items())},
    )


def _json_schema(content_holder: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON schema of a request's body or an answer, empty if it has none."""
    schema: Mapping[str, Any] = content_holder.get("content", {}).get("application/json", {}).get("schema", {})
    return schema


def _type_name(schema: Mapping[str, Any]) -> str:
    json_type = schema.get("type", "any value")
    return " or ".join(json_type) if isinstance(json_type, list) else str(json_type)


def _curl_command(method: str, url: str, body_schema: Mapping[str, Any], needs_password: bool) -> str:
    words = ["curl", *(["-u", "USER:PASS"] if needs_password else [])]
    if method != "GET" and not body_schema:
        words += ["-X", method]
    command = shlex.join([*words, url])
    if not body_schema:
        return command
    body = shlex.quote(_format_json(example_of(body_schema)))
    return f"{command} \\\n  -H 'Content-Type: application/json' -d {body}"


def _format_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lsml_cli.server"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _read_style() -> str:
    return resources.files("lsml_cli.server").joinpath("templates", "docs.css").read_text("utf-8")
