"""lsml: pre-annotate Label Studio tasks in bulk, from the command line or from Python.

Predict:

    with load_model("models/news") as model:
        for task, outcome in model.predict(read_tasks("tasks.json")):
            ...  # outcome is a Prediction or a Failure

    load_model       load a model and bind it to a label config: a LoadedModel
    read_tasks       read the tasks of an export one at a time
    LabelConfig      the labelling XML of a project: its objects and its Controls
    Task             a task; UnreadableRecord is a place in the input where one was expected
    Prediction       what a model says about a task, made of Regions; Failure says why there is none

Control devices and processes yourself, which is what `load_model` does:

    find_model       resolve a model's name to a ModelSpec
    open_replicas    load the model of a spec on one or several devices, in one or several processes
    predict_stream   predict tasks with these replicas, in order

Write a model of your own:

    Model            the base class; its `params` may hold Parameters
    Binding          the model bound to a label config, passed to each of its methods
    AnnotatedTask    what `Model.fit` learns from: a Task and an Annotation
    TransientError   raise it in `Model.encode` when another try may succeed
    check_model      test that a model keeps the contract; raises ContractBroken

Every error that lsml raises on purpose is an LsmlError, with a `message` and a `hint`. A name is imported when it is
first used, so `import lsml_cli` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lsml_cli._version import __version__

if TYPE_CHECKING:
    from lsml_cli.errors import LsmlError, TransientError
    from lsml_cli.inference.dispatch import predict_stream
    from lsml_cli.inference.loaded_model import LoadedModel, load_model
    from lsml_cli.inference.placement import open_replicas
    from lsml_cli.io.task_reader import read_tasks
    from lsml_cli.models.base import Binding, Model
    from lsml_cli.models.parameters import Parameter
    from lsml_cli.models.spec import ModelSpec
    from lsml_cli.registry.resolve import find_model
    from lsml_cli.schema.controls import Control
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.schema.predictions import Failure, Prediction, Region
    from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task, UnreadableRecord
    from lsml_cli.testing.check_model import ContractBroken, check_model

__all__ = [
    "AnnotatedTask",
    "Annotation",
    "Binding",
    "ContractBroken",
    "Control",
    "Failure",
    "LabelConfig",
    "LoadedModel",
    "LsmlError",
    "Model",
    "ModelSpec",
    "Parameter",
    "Prediction",
    "Region",
    "Task",
    "TransientError",
    "UnreadableRecord",
    "__version__",
    "check_model",
    "find_model",
    "load_model",
    "open_replicas",
    "predict_stream",
    "read_tasks",
]

_EXPORTS = {
    "errors": ("LsmlError", "TransientError"),
    "schema.controls": ("Control",),
    "schema.label_config": ("LabelConfig",),
    "inference.loaded_model": ("LoadedModel", "load_model"),
    "models.base": ("Binding", "Model"),
    "models.parameters": ("Parameter",),
    "models.spec": ("ModelSpec",),
    "inference.dispatch": ("predict_stream",),
    "inference.placement": ("open_replicas",),
    "schema.predictions": ("Failure", "Prediction", "Region"),
    "registry.resolve": ("find_model",),
    "schema.tasks": ("Annotation", "AnnotatedTask", "Task", "UnreadableRecord"),
    "io.task_reader": ("read_tasks",),
    "testing.check_model": ("ContractBroken", "check_model"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    for module, names in _EXPORTS.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value  # so that this function is called once per name
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
