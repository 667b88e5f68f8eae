"""The shapes of bodies and answers, for /docs and /openapi.json. The server itself reads bodies with more patience."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _described(kind: str, text: str, **more: Any) -> Schema:
    return {"type": kind, "description": text, **more}


_PROJECT = _described(
    "string",
    'The project\'s id, alone or as Label Studio sends it: "2.1795192449"',
    pattern=r"^[0-9]{1,12}(\.[0-9]+)?$",
    example="2",
)
_CONFIG = _described("string", "Labelling XML", example='<View><Text name="text" value="$text"/></View>')
_VERSION = _described("string", "What predictions carry as model_version", example="news@20261120T213015")
_TASK = _object({"id": {"type": "integer"}, "data": _object({})}, ("data",))
_REGION = _object(
    {name: {"type": "string"} for name in ("id", "from_name", "to_name", "type")}
    | {"value": _object({}), "score": {"type": "number"}},
    ("from_name", "to_name", "type", "value"),
)
_RESULT = _object(
    {"result": _list(_REGION), "score": {"type": ["number", "null"]}, "model_version": _VERSION},
) | {"description": "A prediction, or an empty object for a task that has none"}


def _body(schema: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


BODIES: dict[str, Schema] = {
    "setup": _body(
        _object({"project": _PROJECT, "schema": _CONFIG, "hostname": {"type": "string"}, "extra_params": {}})
    ),
    "predict": _body(
        _object(
            {
                "tasks": _list(_TASK),
                "project": _PROJECT,
                "label_config": _CONFIG,
                "params": _object({"context": {"type": ["object", "null"], "description": "Of an interactive editor"}}),
            },
            ("tasks",),
        )
    ),
    "webhook": _body(
        _object(
            {
                "action": _described("string", "START_TRAINING, or an event", example="ANNOTATION_CREATED"),
                "project": _object({"id": {"type": "integer"}}),
                "annotation": _object({}),
                "annotations": _list(_object({})),
            },
            ("action",),
        )
    ),
    "train": _body(_object({"project": _PROJECT}, ("project",))),
}

Answers = dict[int | str, dict[str, Any]]


def _answers(schema: Schema, *, status: int = 200, body: bool = False, **more: str) -> Answers:
    found: Answers = {status: {"description": "Fine", "content": {"application/json": {"schema": schema}}}}
    if body:
        found |= {
            400: {"description": "The body is not what it should be, or the model cannot fill the label config"},
            413: {"description": "The body has too many bytes"},
        }
    found[401] = {"description": "User and password are missing or wrong"}
    for code, text in more.items():
        found[code.removeprefix("s")] = {"description": text}
    return found


_STATUS = _object({"status": {"type": "string"}, "job": _described("string", "The training job, if there is one")})

ANSWERS: dict[str, Answers] = {
    "health": _answers(
        _object({name: {"type": "string"} for name in ("status", "model_class", "model_version", "lsml")})
    ),
    "setup": _answers(_object({"model_version": _VERSION}, ("model_version",)), body=True),
    "predict": _answers(
        _object({"results": _list(_RESULT), "model_version": _VERSION}, ("results",)),
        body=True,
    ),
    "webhook": _answers(_STATUS, body=True, s201="Training has been asked for", s409="Training is off"),
    "train": _answers(_STATUS, status=201, body=True, s409="Training is off"),
    "is_training": _answers(_object({"is_training": {"type": "boolean"}}), s400="The project is no id"),
    "versions": _answers(_object({"versions": _list(_VERSION), "projects": _object({})}, ("versions",))),
    "metrics": {200: {"description": "Prometheus text", "content": {"text/plain": {}}}},
}
