"""Run scripts for htx (pyheartex): a class that predicts for data items instead of tasks, and a training function."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lsml_cli.errors import UsageError
from lsml_cli.models.legacy_backends import labels
from lsml_cli.models.legacy_backends.import_sandbox import ScriptSandbox
from lsml_cli.models.legacy_backends.module_isolation import make_module
from lsml_cli.models.legacy_backends.sdk_adapter import Params, SdkAdapter, TrainingRequest, accepted_arguments
from lsml_cli.models.legacy_backends.version_folder import MODEL_DIR, require_inside

# Arguments of `init_model_server` that its training function does not get.
SERVER_OPTIONS = {"model_dir", "redis_host", "redis_port", "redis_url", "redis_queue", "port", "debug"}


class BaseModel:
    """Base class of scripts for htx."""

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
        """Return the values of a task's objects."""
        return [task["data"].get(value) for value in self.input_values]

    def get_output(self, task: Mapping[str, Any]) -> Any:
        """Return the annotation of a task with a `result`; scripts override this."""
        raise NotImplementedError

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        """Return a prediction for each data item; scripts override this."""
        raise NotImplementedError

    def load(self, resources: Any, **kwargs: Any) -> None:
        """Do nothing: scripts override this."""

    def get_data_item(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `predict` and `train` get for a task."""
        item = {
            "id": task.get("id"),
            "input": self.get_input(task),
            "input_names": self.input_names,
            "input_types": self.input_types,
            "meta": task.get("meta") or {},
        }
        if task.get("result"):
            item["output"] = self.get_output(task)
        return item

    @classmethod
    def get_valid_schemas(cls, config: str) -> list[dict[str, list[str]]]:
        """Return a schema for each control of one of OUTPUT_TYPES whose objects all are of INPUT_TYPES."""
        parsed = labels.parse_config(config) if isinstance(config, str) else config
        schemas = []
        for name, control in parsed.items():
            types = [object_tag["type"] for object_tag in control["inputs"]]
            if cls.OUTPUT_TYPES and control["type"] not in cls.OUTPUT_TYPES:
                continue
            if cls.INPUT_TYPES and not set(types) <= set(cls.INPUT_TYPES):
                continue
            schemas.append(
                {
                    "input_names": control["to_name"],
                    "output_names": [name],
                    "input_values": [object_tag["value"] for object_tag in control["inputs"]],
                    "input_types": types,
                }
            )
        return schemas


class _SingleChoice(BaseModel):
    """A classifier; `get_input` returns the value of the only object, or a list if there may be several."""

    OUTPUT_TYPES = ("Choices",)
    has_multiple_inputs = False

    def get_input(self, task: Mapping[str, Any]) -> Any:
        values = super().get_input(task)
        return values[0] if len(self.input_values) == 1 and not self.has_multiple_inputs else values

    def get_output(self, task: Mapping[str, Any]) -> Any:
        return _find_result(task, self.output_names[0])["value"]["choices"][0]

    def make_results(
        self, tasks: Sequence[Any], predicted_labels: Sequence[str], scores: Sequence[float]
    ) -> list[dict[str, Any]]:
        """Return a prediction with one choice for each label."""
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
        return [region["value"] for region in task["result"] if region["from_name"] == self.output_names[0]]

    def make_results(
        self, tasks: Sequence[Any], predicted_spans: Sequence[Sequence[Any]], scores: Sequence[float]
    ) -> list[dict[str, Any]]:
        """Return a prediction for each list of spans."""
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
        return [region["value"] for region in task["result"] if region["from_name"] == self.output_names[0]]

    def make_result(self, task: Any, values: Sequence[Any], score: float | None = None) -> dict[str, Any]:
        """Return one prediction with these region values."""
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
    return next(region for region in task["result"] if region["from_name"] == name)


def _make_prediction(model: BaseModel, result_type: str, values: Sequence[Any], score: Any) -> dict[str, Any]:
    common = {"from_name": model.output_names[0], "to_name": model.input_names[0], "type": result_type}
    return {"result": [{**common, "value": value} for value in values], "score": score}


class SklearnModel(_SingleChoice):
    """The model of `htx.adapters.sklearn.serve(pipeline)`; `pipeline` is scikit-learn's."""

    INPUT_TYPES = ("Text", "HyperText")
    pipeline: Any = None

    def load(self, resources: Any, **kwargs: Any) -> None:
        """Unpickle the pipeline, which runs code: of a version for which the user has named the script, and no other.

        Raises:
            UsageError: The version names a file outside of its folder.
        """
        import pickle

        path = Path(resources["model"])
        require_inside(str(path), Path(os.environ[MODEL_DIR]))
        with path.open("rb") as file:
            self.pipeline = pickle.load(file)

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        texts = [task["input"] for task in tasks]
        probabilities = self.pipeline.predict_proba(texts)
        predicted_labels = [str(self.pipeline.classes_[row.argmax()]) for row in probabilities]
        return self.make_results(tasks, predicted_labels, [float(row.max()) for row in probabilities])


class _ServerStub:
    """The functions with which a script starts its server; they record their arguments and start nothing."""

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        self._calls = calls

    def init_model_server(self, create_model_func: Any = None, train_script: Any = None, **server_options: Any) -> None:
        """`htx.init_model_server`."""
        train_kwargs = {name: value for name, value in server_options.items() if name not in SERVER_OPTIONS}
        self._calls.append({"model": create_model_func, "train": train_script, "train_kwargs": train_kwargs})

    def serve(self, model: Any, port: int = 16118, debug: bool = True, **fit_kwargs: Any) -> None:
        """`htx.adapters.sklearn.serve`."""
        import pickle

        class ServedModel(SklearnModel):
            pipeline = model

        def train(items: Iterator[Mapping[str, Any]], output_dir: str, **_: Any) -> dict[str, str]:
            examples = [item for item in items if item.get("output") is not None]
            model.fit([item["input"] for item in examples], [item["output"] for item in examples], **fit_kwargs)
            path = Path(output_dir) / "model.pkl"
            path.write_bytes(pickle.dumps(model))
            return {"model": str(path)}

        self.init_model_server(create_model_func=ServedModel, train_script=train)


class _AppStub:
    """`htx.app`: `app.run(…)` and other calls do nothing, `@app.route(…)` returns the function as it is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: (lambda function: function) if name == "route" else None


BASE_CLASSES = (
    BaseModel,
    SingleClassTextClassifier,
    SingleClassImageClassifier,
    SingleClassAudioClassifier,
    SingleClassImageAndTextClassifier,
    TextTagger,
    AudioTagger,
    ImageObjectDetection,
    ImageSegmentation,
    ListBaseModel,
)


class HtxAdapter(SdkAdapter):
    """Drive scripts for htx."""

    def build_stubs(self, sandbox: ScriptSandbox) -> dict[str, ModuleType]:
        server = _ServerStub(sandbox.server_calls)
        content = {"app": _AppStub(), "init_model_server": server.init_model_server}
        utils = {
            "encode_labels": _encode_labels,
            "download": sandbox.get_local_path,
            "generate_version": lambda: "0",
        }
        return {
            "htx": make_module("htx", content),
            "htx.base_model": make_module("htx.base_model", {base.__name__: base for base in BASE_CLASSES}),
            "htx.utils": make_module("htx.utils", utils),
            "htx.adapters": make_module("htx.adapters", {}),
            "htx.adapters.sklearn": make_module("htx.adapters.sklearn", {"serve": server.serve}),
        }

    def build(
        self, script_class: Any, sandbox: ScriptSandbox, config: str, project: str, params: Params, state: Params
    ) -> Any:
        schemas = script_class.get_valid_schemas(config) if hasattr(script_class, "get_valid_schemas") else [{}]
        if not schemas:
            raise UsageError(
                f"The label config has no control that the script can fill: {', '.join(script_class.OUTPUT_TYPES)} "
                f"over {', '.join(script_class.INPUT_TYPES)}."
            )
        instance = script_class(**schemas[0])
        if state.get("train_output"):
            instance.load(state["train_output"])
        return instance

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        return instance.predict([instance.get_data_item(task) for task in tasks])

    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]:
        server_call = next((call for call in reversed(request.server_calls) if call["train"] is not None), None)
        if server_call is None:
            raise UsageError("The script cannot be trained: it passes no train_script to init_model_server.")

        def items() -> Iterator[dict[str, Any]]:
            for task in request.tasks:
                for annotation in (task.get("annotations") or ())[:1]:
                    yield instance.get_data_item({**task, "result": annotation["result"]})

        train, arguments = server_call["train"], server_call["train_kwargs"] | dict(request.params)
        resources = train(items(), str(request.workdir), **accepted_arguments(train, arguments))
        return {"train_output": dict(resources or {})}


def _encode_labels(values: Sequence[Any]) -> tuple[list[str], list[int]]:
    """Return the sorted labels, and the index of each value among them."""
    names = sorted(set(map(str, values)))
    return names, [names.index(str(value)) for value in values]
