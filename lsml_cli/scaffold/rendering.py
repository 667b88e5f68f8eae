"""Render the Jinja2 templates of a project.

The templates are in `templates`: "common" for every kind of project, "own" for one with a model class to edit. A
template is called like its file with `.jinja` at the end, and `dot-` instead of a leading dot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable

OPENMMLAB_FOLDER = "$(python -c 'import lsml_cli.models.openmmlab as here; print(here.__path__[0])')"


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
    needs_openmmlab: bool = False
    requirements: list[str] = field(default_factory=list)
    params: dict[str, str | int | float | bool] = field(default_factory=dict)
    sets_model: bool = True
    extras: str = "redis"
    openmmlab_install: str = f'bash "{OPENMMLAB_FOLDER}/install" --python python'


def render_files(values: TemplateValues) -> Iterator[tuple[str, str]]:
    """Yield (path below the project's folder, content) of every text file."""
    for part in ("common", "own") if values.is_own_model else ("common",):
        for path, template in _walk_templates(files(__package__) / "templates" / part):
            yield path.removesuffix(".jinja").replace("dot-", "."), render(template.read_text("utf-8"), values)


def render(template: str, values: TemplateValues) -> str:
    """Render the text of one template."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template).render(asdict(values))


def _walk_templates(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk_templates(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".jinja"):
            yield f"{prefix}{entry.name}", entry
