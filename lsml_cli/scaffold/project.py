"""Write the folder of a project: its files from templates, a wrapped script with its imports, and sample tasks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.registry.local_imports import find_local_modules
from lsml_cli.registry.project_file import LABEL_CONFIG_FILE
from lsml_cli.scaffold.config_samples import MEDIA_FOLDER, make_tasks
from lsml_cli.scaffold.kinds import OWN_MODEL, get_kind
from lsml_cli.scaffold.model_code import choose_class_name, render_model_code
from lsml_cli.scaffold.recipes import ModelPlan, plan_model
from lsml_cli.scaffold.rendering import TemplateValues, render_files
from lsml_cli.schema.label_config import LabelConfig

# Docker, pip and GitHub accept such a name.
PROJECT_NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?")
PICTURE_FOLDER = "pictures"  # of the samples with annotations
REQUIREMENTS_HEADER = "# What the model imports; lsml itself is installed from a checkout or a wheel, see README.md."


@dataclass(frozen=True)
class ProjectOptions:
    """What to write.

    Attributes:
        folder: the new folder; its name is the project's.
        kind: a key of PROJECT_KINDS, OWN_MODEL or BACKEND_SCRIPT.
        script: the file and the class of a script, for BACKEND_SCRIPT.
        label_config: a label config that replaces the sample's; the sample tasks then fit it, without annotations.
        force: overwrite existing files.
    """

    folder: Path
    kind: str
    script: tuple[Path, str] | None = None
    label_config: Path | None = None
    force: bool = False

    @property
    def name(self) -> str:
        return self.folder.resolve().name


@dataclass(frozen=True)
class WrittenProject:
    """What was written.

    Attributes:
        files: paths below the folder, sorted; generated media are not listed.
        plan: what a model of one's own does with the given label config, None without such a model.
        missing_modules: modules that the model needs and that are not installed.
        install_extra: what `lsml doctor` knows them by, None if it has no name for them.
    """

    files: list[str]
    plan: ModelPlan | None
    missing_modules: list[str]
    install_extra: str | None


def write_project(options: ProjectOptions) -> WrittenProject:
    """Write the folder.

    All input is read and checked before anything is written.

    Raises:
        UsageError: the folder cannot be used, or an input file cannot be read.
        ModelError: the script is not Python.
        OutputError: writing fails.
    """
    _require_usable_folder(options)
    config_path = options.label_config or _find_label_config(options)
    config = LabelConfig.load(config_path) if config_path else None
    plan = plan_model(config) if config is not None and options.kind == OWN_MODEL else None
    if plan is not None and not plan.config.controls:
        raise UsageError(f"{config_path} has no control that a prediction could fill.", "Add one, such as <Choices>.")
    text_files, copied = list(render_files(_template_values(options, config, plan))), list(_files_to_copy(options))
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name, content in text_files:
            _write_text_file(options.folder / name, content)
        for source in copied:
            _copy_path(source, options.folder / source.name)
        _write_samples(options, config)
    except OSError as error:
        raise OutputError(f"{options.folder} cannot be written: {error.strerror or error}.") from error
    files = sorted(
        path.relative_to(options.folder).as_posix()
        for path in options.folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.parent.name not in (PICTURE_FOLDER, MEDIA_FOLDER)
    )
    kind = get_kind(options.kind)
    missing = [name for name in kind.required_modules if find_spec(name) is None]
    extra = "openmmlab" if kind.needs_openmmlab else "vision" if kind.required_modules else None
    return WrittenProject(files, plan, missing, extra)


def _write_text_file(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")
    if content.startswith("#!"):
        path.chmod(0o755)


def _find_label_config(options: ProjectOptions) -> Path | None:
    """Return the `label_config.xml` beside a script, if there is one: the script knows its labels."""
    path = options.script[0].with_name(LABEL_CONFIG_FILE) if options.script else None
    return path if path is not None and path.is_file() else None


def _require_usable_folder(options: ProjectOptions) -> None:
    if not PROJECT_NAME_PATTERN.fullmatch(options.name):
        raise UsageError(
            f"{options.name!r} is no good name for a project: its image, volumes and versions get this name.",
            "Use lower-case letters, digits, - and _: lsml init mood-of-messages",
        )
    if options.folder.exists() and not options.folder.is_dir():
        raise UsageError(f"{options.folder} is a file.", "Choose another name.")
    if not options.force and options.folder.is_dir() and any(options.folder.iterdir()):
        raise UsageError(f"{options.folder} is there already, and not empty.", "Choose another name, or --force.")


def _template_values(
    options: ProjectOptions, config: LabelConfig | None = None, plan: ModelPlan | None = None
) -> TemplateValues:
    kind = get_kind(options.kind)
    class_name = choose_class_name(options.name)
    model, script_name = options.kind, None
    if options.kind == OWN_MODEL:
        model = f"model.py:{class_name}"
    elif options.script is not None:
        script_name = options.script[0].name
        model = f"{script_name}:{options.script[1]}"
    names_code = ":" in model
    requirements = [REQUIREMENTS_HEADER, *kind.requirements]
    requirements += [line for line in _read_requirements(options) if line not in requirements]
    return TemplateValues(
        name=options.name,
        description=kind.description,
        model=model,
        class_name=class_name,
        family=model if names_code else ".",
        versions=f"models/{options.name}",
        version_prefix=f"{model}@" if names_code else "",
        metric=kind.metric,
        script_name=script_name,
        is_own_model=options.kind == OWN_MODEL,
        can_train=plan is None,
        has_samples=config is None,
        model_code=render_model_code(plan, class_name) if plan is not None else None,
        filled_controls=plan.filled_controls if plan is not None else [],
        empty_controls=list(plan.empty) if plan is not None else [],
        required_modules=list(kind.required_modules),
        needs_openmmlab=kind.needs_openmmlab,
        requirements=requirements,
        params=dict(kind.params),
        extras=("redis,studio" if plan is None else "redis") + (",openmmlab" if kind.needs_openmmlab else ""),
    )


def _read_requirements(options: ProjectOptions) -> list[str]:
    """Return the lines of the requirements.txt beside a script."""
    path = options.script[0].with_name("requirements.txt") if options.script else None
    if path is None or not path.is_file():
        return []
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None


def _files_to_copy(options: ProjectOptions) -> Iterator[Path]:
    """Yield the script, its `config.json`, and the files and packages beside it that it imports, directly or not."""
    if options.script is None:
        return
    script = options.script[0]
    siblings = {path.relative_to(script.parent).parts[0] for path in find_local_modules(script)}
    names = [script.name, "config.json", *sorted(siblings)]
    yield from (path for path in map(script.with_name, names) if path.exists())


def _copy_path(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _write_samples(options: ProjectOptions, config: LabelConfig | None) -> None:
    """Write the given label config with tasks that fit it, or the sample's with its tasks."""
    if config is not None:
        xml, samples = config.xml, {"tasks.json": make_tasks(config, options.folder)}
    else:
        sample = get_kind(options.kind).sample
        annotated, unlabeled = sample.make_tasks(options.folder / PICTURE_FOLDER)
        xml, samples = sample.label_config, {"annotated.json": annotated, "tasks.json": unlabeled}
    (options.folder / LABEL_CONFIG_FILE).write_text(xml, "utf-8")
    for name, tasks in samples.items():
        lines = ",\n".join(json.dumps(task) for task in tasks)
        (options.folder / name).write_text(f"[\n{lines}\n]\n", "utf-8")
