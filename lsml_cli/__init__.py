"""lsml: pre-annotate Label Studio tasks in bulk, from the command line; and from Python, with what stands here.

    load_model     a model, loaded and bound to a label config: `model.predict(tasks)`
    read_tasks     the tasks of an export, one at a time
    find_model     a name as on the command line -> ModelSpec
    open_replicas  the model of a spec on one or several devices, in one or several processes
    predict_stream tasks in, (task, outcome) out, in order
    check_model    whether a model of your own keeps the contract: for its test

`Model` is what a model of your own inherits from; the other names are what goes in and comes out. Each of them is
imported when it is first used, so that `import lsml_cli` costs nothing.
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
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.schema.predictions import Failure, Prediction, Region
    from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task, UnreadableRecord
    from lsml_cli.testing.check_model import ContractBroken, check_model

__all__ = [
    "AnnotatedTask",
    "Annotation",
    "Binding",
    "ContractBroken",
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
    for module, names in _EXPORTS.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = found  # so that this is asked once for each name
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
