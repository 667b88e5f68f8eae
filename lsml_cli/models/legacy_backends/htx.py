"""htx (pyheartex): a class that gets data items instead of tasks, and a function that trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lsml_cli.errors import UsageError
from lsml_cli.models.legacy_backends import labels
from lsml_cli.models.legacy_backends.import_sandbox import get_local_path, make_module
from lsml_cli.models.legacy_backends.v0_v1 import TrainingRequest, accepted_arguments

recorded_server_calls: list[dict[str, Any]] = []  # what the script that is being imported tells `init_model_server`


class BaseModel:
    """What a script of htx derives from."""

    INPUT_TYPES: tuple[str, ...] = ()
    OUTPUT_TYPES: tuple[str, ...] = ()

    def __init__(
        self,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        input_values: Sequence[str] | None = None,
        input_types: Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        self.input_names = list(input_names or ())
        self.output_names = list(output_names or ())
        self.input_values = list(input_values or ())
        self.input_types = list(input_types or ())

    def get_input(self, task: Mapping[str, Any]) -> Any:
        return [task["data"].get(value) for value in self.input_values]

    def get_output(self, task: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        raise NotImplementedError

    def load(self, resources: Any, **kwargs: Any) -> None:
        """For scripts to override."""

    def get_data_item(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """What `predict` and `train` get of a task."""
        found = {
            "id": task.get("id"),
            "input": self.get_input(task),
            "input_names": self.input_names,
            "input_types": self.input_types,
            "meta": task.get("meta") or {},
        }
        if task.get("result"):
            found["output"] = self.get_output(task)
        return found

    @classmethod
    def get_valid_schemas(cls, config: str) -> list[dict[str, list[str]]]:
        """A schema for each control of a type that the class fills, about objects of the types that it takes."""
        parsed = labels.parse_config(config) if isinstance(config, str) else config
        found = []
        for name, control in parsed.items():
            types = [shown["type"] for shown in control["inputs"]]
            if cls.OUTPUT_TYPES and control["type"] not in cls.OUTPUT_TYPES:
                continue
            if cls.INPUT_TYPES and not set(types) <= set(cls.INPUT_TYPES):
                continue
            found.append(
                {
                    "input_names": control["to_name"],
                    "output_names": [name],
                    "input_values": [shown["value"] for shown in control["inputs"]],
                    "input_types": types,
                }
            )
        return found


class _SingleChoice(BaseModel):
    OUTPUT_TYPES = ("Choices",)

    def get_input(self, task: Mapping[str, Any]) -> Any:
        found = super().get_input(task)
        return found[0] if len(self.input_values) == 1 and not self.has_multiple_inputs else found

    has_multiple_inputs = False

    def get_output(self, task: Mapping[str, Any]) -> Any:
        return _find_result(task, self.output_names[0])["value"]["choices"][0]

    def make_results(
        self, tasks: Sequence[Any], predicted_labels: Sequence[str], scores: Sequence[float]
    ) -> list[dict[str, Any]]:
        return [
            _make_prediction(self, "choices", [{"choices": [label]}], score)
            for label, score in zip(predicted_labels, scores, strict=True)
        ]


class SingleClassTextClassifier(_SingleChoice):
    INPUT_TYPES = ("Text", "HyperText")


class SingleClassImageClassifier(_SingleChoice):
    INPUT_TYPES = ("Image",)


class SingleClassAudioClassifier(_SingleChoice):
    INPUT_TYPES = ("Audio", "AudioPlus")


class SingleClassImageAndTextClassifier(_SingleChoice):
    INPUT_TYPES = ("Image", "Text")
    has_multiple_inputs = True


class _Tagger(BaseModel):
    OUTPUT_TYPES = ("Labels",)

    def get_input(self, task: Mapping[str, Any]) -> Any:
        return super().get_input(task)[0]

    def get_output(self, task: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [each["value"] for each in task["result"] if each["from_name"] == self.output_names[0]]

    def make_results(
        self, tasks: Sequence[Any], predicted_spans: Sequence[Sequence[Any]], scores: Sequence[float]
    ) -> list[dict[str, Any]]:
        return [
            _make_prediction(self, "labels", spans, score) for spans, score in zip(predicted_spans, scores, strict=True)
        ]


class TextTagger(_Tagger):
    INPUT_TYPES = ("Text",)


class AudioTagger(_Tagger):
    INPUT_TYPES = ("Audio", "AudioPlus")


class _Regions(BaseModel):
    INPUT_TYPES = ("Image",)
    result_type = "rectanglelabels"

    def get_input(self, task: Mapping[str, Any]) -> Any:
        return super().get_input(task)[0]

    def get_output(self, task: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [each["value"] for each in task["result"] if each["from_name"] == self.output_names[0]]

    def make_result(self, task: Any, values: Sequence[Any], score: float | None = None) -> dict[str, Any]:
        return _make_prediction(self, self.result_type, values, score)


class ImageObjectDetection(_Regions):
    OUTPUT_TYPES = ("RectangleLabels",)


class ImageSegmentation(_Regions):
    OUTPUT_TYPES = ("PolygonLabels",)
    result_type = "polygonlabels"


class ListBaseModel(_Regions):
    INPUT_TYPES = ("List",)
    OUTPUT_TYPES = ("Ranker",)
    result_type = "ranker"


def _find_result(task: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(each for each in task["result"] if each["from_name"] == name)


def _make_prediction(model: BaseModel, result_type: str, values: Sequence[Any], score: Any) -> dict[str, Any]:
    common = {"from_name": model.output_names[0], "to_name": model.input_names[0], "type": result_type}
    return {"result": [{**common, "value": value} for value in values], "score": score}


class SklearnModel(_SingleChoice):
    """What `htx.adapters.sklearn.serve(model)` makes of a pipeline of scikit-learn."""

    INPUT_TYPES = ("Text", "HyperText")
    pipeline: Any = None

    def load(self, resources: Any, **kwargs: Any) -> None:
        import pickle

        with open(resources["model"], "rb") as file:  # noqa: PTH123 - the version's own file, which lsml checks
            self.pipeline = pickle.load(file)

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        texts = [task["input"] for task in tasks]
        sure = self.pipeline.predict_proba(texts)
        found = [str(self.pipeline.classes_[row.argmax()]) for row in sure]
        return self.make_results(tasks, found, [float(row.max()) for row in sure])


def _serve_sklearn(model: Any, port: int = 16118, debug: bool = True, **fit_kwargs: Any) -> None:
    import pickle

    class Served(SklearnModel):
        pipeline = model

    def train(items: Iterator[Mapping[str, Any]], output_dir: str, **_: Any) -> dict[str, str]:
        learned = [item for item in items if item.get("output") is not None]
        model.fit([item["input"] for item in learned], [item["output"] for item in learned], **fit_kwargs)
        path = Path(output_dir) / "model.pkl"
        path.write_bytes(pickle.dumps(model))
        return {"model": str(path)}

    init_model_server(create_model_func=Served, train_script=train)


def init_model_server(create_model_func: Any = None, train_script: Any = None, **server_options: Any) -> None:
    """Recorded; no server starts."""
    not_for_training = {"model_dir", "redis_host", "redis_port", "redis_url", "redis_queue", "port", "debug"}
    recorded_server_calls.append(
        {
            "model": create_model_func,
            "train": train_script,
            "train_kwargs": {name: value for name, value in server_options.items() if name not in not_for_training},
        }
    )


class _AppStub:
    """`from htx import app`, and what a script does with it: `app.run(…)`, `@app.route(…)`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: (lambda function: function) if name == "route" else None


class HtxAdapter:
    """How a script of htx is built, asked and taught."""

    annotations_key = "annotations"

    def modules(self) -> dict[str, ModuleType]:
        bases = {
            each.__name__: each
            for each in (
                *(BaseModel, SingleClassTextClassifier, SingleClassImageClassifier, SingleClassAudioClassifier),
                *(SingleClassImageAndTextClassifier, TextTagger, AudioTagger, ImageObjectDetection),
                *(ImageSegmentation, ListBaseModel),
            )
        }
        app = {"app": _AppStub(), "init_model_server": init_model_server}
        tools = {"encode_labels": _encode_labels, "download": get_local_path, "generate_version": lambda: "0"}
        return {
            "htx": make_module("htx", app),
            "htx.base_model": make_module("htx.base_model", bases),
            "htx.utils": make_module("htx.utils", tools),
            "htx.adapters": make_module("htx.adapters", {}),
            "htx.adapters.sklearn": make_module("htx.adapters.sklearn", {"serve": _serve_sklearn}),
        }

    def build(
        self, script_class: Any, config: str, project: str, params: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Any:
        schemas = script_class.get_valid_schemas(config) if hasattr(script_class, "get_valid_schemas") else [{}]
        if not schemas:
            raise UsageError(
                f"The label config does not have what the script fills: {', '.join(script_class.OUTPUT_TYPES)} over "
                f"{', '.join(script_class.INPUT_TYPES)}."
            )
        instance = script_class(**schemas[0])
        if state.get("train_output"):
            instance.load(state["train_output"])
        return instance

    def convert_tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(task) for task in raw]

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        return instance.predict([instance.get_data_item(task) for task in tasks])

    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]:
        told = next((each for each in reversed(request.server_calls) if each["train"] is not None), None)
        if told is None:
            raise UsageError("The script does not say how it is trained: it gives init_model_server no train_script.")

        def items() -> Iterator[dict[str, Any]]:
            for task in request.tasks:
                for annotation in (task.get("annotations") or ())[:1]:
                    yield instance.get_data_item({**task, "result": annotation["result"]})

        given = told["train_kwargs"] | dict(request.params)
        resources = told["train"](items(), str(request.workdir), **accepted_arguments(told["train"], given))
        return {"train_output": dict(resources or {})}


def _encode_labels(values: Sequence[Any]) -> tuple[list[str], list[int]]:
    """(the labels in order, the position of each one among them)."""
    names = sorted(set(map(str, values)))
    return names, [names.index(str(each)) for each in values]
