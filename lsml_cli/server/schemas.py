"""JSON schemas of requests and answers, for /docs and /openapi.json. The server accepts more than they say."""

from __future__ import annotations

from typing import Any

from lsml_cli.server.status_phrases import STATUS_PHRASES

Schema = dict[str, Any]


def _object_schema(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _array_schema(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _value_schema(json_type: str, description: str, **more: Any) -> Schema:
    return {"type": json_type, "description": description, **more}


_CONFIG_EXAMPLE = (
    '<View><Text name="text" value="$text"/><Choices name="topic" toName="text">'
    '<Choice value="News"/><Choice value="Sport"/></Choices></View>'
)
_PROJECT = _value_schema(
    "string",
    'The project\'s id, alone or as Label Studio sends it: "2.1795192449"',
    pattern=r"^[0-9]{1,12}(\.[0-9]+)?$",
    example="2",
)
_LABEL_CONFIG = _value_schema("string", "Labelling XML", example=_CONFIG_EXAMPLE)
_VERSION = _value_schema("string", "The model_version of predictions", example="news@20261120T213015")
_TASK = _object_schema(
    {"id": {"type": "integer"}, "data": _object_schema({}) | {"example": {"text": "Two goals in the last minute"}}},
    ("data",),
)
_REGION = _object_schema(
    {name: {"type": "string"} for name in ("id", "from_name", "to_name", "type")}
    | {"value": _object_schema({}), "score": {"type": "number"}},
    ("from_name", "to_name", "type", "value"),
) | {
    "example": {
        "id": "Gb1c9VbVBG",
        "from_name": "topic",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": ["Sport"]},
        "score": 0.98,
    }
}
_RESULT = _object_schema(
    {"result": _array_schema(_REGION), "score": {"type": ["number", "null"]}, "model_version": _VERSION},
) | {"description": "A prediction, or an empty object for a task that has none"}


def _request_body(schema: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


REQUEST_BODIES: dict[str, Schema] = {
    "setup": _request_body(
        _object_schema(
            {"project": _PROJECT, "schema": _LABEL_CONFIG, "hostname": {"type": "string"}, "extra_params": {}}
        )
    ),
    "predict": _request_body(
        _object_schema(
            {
                "tasks": _array_schema(_TASK),
                "project": _PROJECT,
                "label_config": _LABEL_CONFIG,
                "params": _object_schema(
                    {
                        "context": {
                            "type": ["object", "null"],
                            "description": "Context of an interactive editor",
                            "example": None,
                        }
                    }
                ),
            },
            ("tasks",),
        )
    ),
    "webhook": _request_body(
        _object_schema(
            {
                "action": _value_schema("string", "START_TRAINING, or an event's name", example="ANNOTATION_CREATED"),
                "project": _object_schema({"id": {"type": "integer"}}),
                "annotation": _object_schema({}),
                "annotations": _array_schema(_object_schema({})),
            },
            ("action",),
        )
    ),
    "train": _request_body(_object_schema({"project": _PROJECT}, ("project",))),
}

Responses = dict[int | str, dict[str, Any]]


def _responses(schema: Schema, *, status: int = 200, has_body: bool = False, **more: str) -> Responses:
    responses: Responses = {status: {"description": "Success", "content": {"application/json": {"schema": schema}}}}
    if has_body:
        responses |= {
            400: {"description": "The body is invalid, or the model cannot fill the label config"},
            413: {"description": "The body has too many bytes"},
        }
    responses[401] = {"description": "User and password are missing or wrong"}
    for code, text in more.items():
        responses[code.removeprefix("s")] = {"description": text}
    return responses


_TRAINING_ERRORS: Responses = {
    status: {"description": text} for status, text in [(409, "Training is off"), *STATUS_PHRASES.items()]
}
_STATUS = _object_schema(
    {"status": {"type": "string"}, "job": _value_schema("string", "Id of the training job, if there is one")}
)

RESPONSES: dict[str, Responses] = {
    "health": _responses(
        _object_schema({name: {"type": "string"} for name in ("status", "model_class", "model_version", "lsml")})
    ),
    "setup": _responses(_object_schema({"model_version": _VERSION}, ("model_version",)), has_body=True),
    "predict": _responses(
        _object_schema({"results": _array_schema(_RESULT), "model_version": _VERSION}, ("results",)),
        has_body=True,
    ),
    "webhook": _responses(_STATUS, has_body=True, s201="Training was requested") | _TRAINING_ERRORS,
    "train": _responses(_STATUS, status=201, has_body=True) | _TRAINING_ERRORS,
    "is_training": _responses(_object_schema({"is_training": {"type": "boolean"}}), s400="The project is not an id"),
    "versions": _responses(
        _object_schema({"versions": _array_schema(_VERSION), "projects": _object_schema({})}, ("versions",))
    ),
    "metrics": {200: {"description": "Prometheus text", "content": {"text/plain": {}}}},
}
