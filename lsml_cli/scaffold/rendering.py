"""Render the Jinja2 templates of a project.

The templates are in `templates`: "common" for every kind of project, "own" for a model class that can be trained,
"filled" for one that fills a given label config, made of the fragments in "recipes" and "objects". A template is called
like its file with `.jinja` at the end, and `dot-` instead of a leading dot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from lsml_cli.schema.controls import Control

if TYPE_CHECKING:
    import jinja2

OPENMMLAB_FOLDER = "$(python -c 'import lsml_cli.models.openmmlab as here; print(here.__path__[0])')"


TRAINING_TEMPLATES = {"retrain.jinja", "dot-github/workflows/retrain.yml.jinja", "tests/test_round_trip.py.jinja"}


@dataclass(frozen=True)
class TemplateValues:
    """The variables of the templates.

    Attributes:
        name: of the project.
        description: one sentence for the README.
        model: what `--model FOLDER` stands for: a built-in model, or "file.py:Class".
        class_name: the class in `model.py`.
        family: what `retrain` trains; ".", the project with its parameters, unless `model` names code.
        versions: the folder of the versions.
        version_prefix: what precedes a version's folder in a model name: "" or "file.py:Class@".
        metric: the metric by which `retrain` compares versions.
        script_name: the file of a wrapped script, else None.
        is_own_model: whether `model.py` holds a class to edit.
        can_train: whether the model has a `fit`; without, there is nothing to retrain.
        has_samples: whether there are sample tasks with annotations.
        model_code: `model.py` for a given label config, else None.
        filled_controls: the controls that this model fills.
        empty_controls: those that it leaves empty, each with the reason.
        required_modules: modules that the model imports and that may not be installed.
        requirements: lines of requirements.txt.
        params: the model's parameters in `model.toml`.
        sets_model: whether the workflow tells `retrain` what to train.
        extras: of lsml, for the Dockerfile.
        openmmlab_install: the command that installs MMDetection and MMOCR.
    """

    name: str
    description: str
    model: str
    class_name: str
    family: str
    versions: str
    version_prefix: str
    metric: str
    script_name: str | None = None
    is_own_model: bool = False
    can_train: bool = True
    has_samples: bool = True
    model_code: str | None = None
    filled_controls: list[Control] = field(default_factory=list)
    empty_controls: list[tuple[Control, str]] = field(default_factory=list)
    required_modules: list[str] = field(default_factory=list)
    needs_openmmlab: bool = False
    requirements: list[str] = field(default_factory=list)
    params: dict[str, str | int | float | bool] = field(default_factory=dict)
    sets_model: bool = True
    extras: str = "redis,studio"
    openmmlab_install: str = f'bash "{OPENMMLAB_FOLDER}/install" --python python'


def render_files(values: TemplateValues) -> Iterator[tuple[str, str]]:
    """Yield (path below the project's folder, content) of every text file."""
    parts = ["common"]
    if values.is_own_model:
        parts.append("own" if values.model_code is None else "filled")
    for part in parts:
        for path, template in _walk_templates(files(__package__) / "templates" / part):
            if path in TRAINING_TEMPLATES and not values.can_train:
                continue
            yield path.removesuffix(".jinja").replace("dot-", "."), render(template.read_text("utf-8"), values)


def render(template: str, values: TemplateValues) -> str:
    """Render the text of one template."""
    return _make_environment().from_string(template).render(vars(values))


def render_template(path: str, values: Mapping[str, Any]) -> str:
    """Render the template at a path below `templates`."""
    return _make_environment().get_template(path).render(values)


def quote(text: str) -> str:
    """Return a text as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def quote_tuple(texts: Sequence[str]) -> str:
    """Return texts as the literal of a tuple."""
    return f"({', '.join(map(quote, texts))}{',' * (len(texts) == 1)})"


@cache
def _make_environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files(__package__) / "templates" / name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quote": quote, "quote_tuple": quote_tuple}
    return environment


def _walk_templates(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk_templates(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".jinja"):
            yield f"{prefix}{entry.name}", entry
