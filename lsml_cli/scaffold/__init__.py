"""`lsml init` without the command line: the folder of a new model, which runs at once.

The files are in `templates`, with @WORDS@ where the project's own go: "common" for every kind, "own" for a model of
one's own, whose class is MyModel there. What `--model FOLDER` means stands in its `model.toml`; see `registry`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.registry.local_imports import find_local_modules
from lsml_cli.scaffold import samples
from lsml_cli.scaffold.samples import SampleData
from lsml_cli.schema.label_config import LabelConfig

OWN_MODEL = "own"  # a model of one's own
BACKEND_SCRIPT = "script"  # a backend that is there already
PROJECT_NAME_PATTERN = re.compile(
    r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?"
)  # a name that Docker, pip and GitHub can live with


@dataclass(frozen=True)
class ProjectKind:
    """What a project of a built-in model needs besides.

    what      a sentence for its README
    needs     what the model imports, for `requirements.txt`
    params    of the model, for `model.toml`
    sample    what its sample tasks are about
    toolkits  whether it needs MMDetection and MMOCR, which pip alone cannot install
    metric    by which `retrain` judges a version; more is better
    """

    description: str
    requirements: tuple[str, ...] = ()
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    sample: SampleData = samples.TEXTS
    needs_openmmlab: bool = False
    metric: str = "macro-f1"


PROJECT_KINDS: dict[str, ProjectKind] = {
    "text-classifier": ProjectKind("A text classifier (TF-IDF and logistic regression) for Label Studio, by lsml."),
    "image-classifier": ProjectKind(
        "An image classifier (transfer learning with torchvision) for Label Studio, by lsml.",
        ("torch", "torchvision"),
        {"weights": "none", "image_size": 64},
        samples.IMAGES,
    ),
    "object-detector": ProjectKind(
        "An object detector (MMDetection) for Label Studio, by lsml.",
        params={"config_file": "rtmdet_tiny_8xb32-300e_coco", "pretrained": False, "image_size": 128, "lr": 0.004},
        sample=samples.BOXES,
        needs_openmmlab=True,
        metric="map50",
    ),
    "ocr": ProjectKind(
        "Reading text in pictures (MMOCR) for Label Studio, by lsml.",
        sample=samples.WORDS,
        needs_openmmlab=True,
        metric="exact",
    ),
}


@dataclass(frozen=True)
class ProjectOptions:
    """What is to be written.

    folder        where; its name is the project's
    kind          a name in KINDS, OWN, or SCRIPT
    script        the file of a backend, and its class; for SCRIPT
    label_config  a labelling XML to take instead of the sample's; then there are no sample tasks
    force         write over what is there
    """

    folder: Path
    kind: str
    script: tuple[Path, str] | None = None
    label_config: Path | None = None
    force: bool = False

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def write_project(options: ProjectOptions) -> list[str]:
    """Write the folder; the names of its files, in order. Raises UsageError, ModelError or OutputError.

    Everything is read, and looked at, before anything is written.
    """
    _require_usable_folder(options)
    given = options.label_config or _find_label_config(options)
    config = LabelConfig.load(given).xml if given else None
    texts, copied = list(_render_files(options)), list(_files_to_copy(options))
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        for path, content in texts:
            place = options.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, "utf-8")
            if content.startswith("#!"):
                place.chmod(0o755)
        for source in copied:
            _copy_path(source, options.folder / source.name)
        _write_samples(options, config)
    except OSError as error:
        raise OutputError(f"{options.folder} cannot be written: {error.strerror or error}.") from error
    return sorted(
        path.relative_to(options.folder).as_posix()
        for path in options.folder.rglob("*")
        if path.is_file() and path.suffix not in (".png", ".pyc")
    )


def _find_label_config(options: ProjectOptions) -> Path | None:
    """The labelling XML that lies beside a script: the sample's labels would not be those that it knows."""
    found = options.script[0].with_name("label_config.xml") if options.script else None
    return found if found is not None and found.is_file() else None


def _require_usable_folder(options: ProjectOptions) -> None:
    if not PROJECT_NAME_PATTERN.fullmatch(options.name):
        raise UsageError(
            f"{options.name!r} is no good name for a project: image, volumes and versions are called after it.",
            "Use lower-case letters, digits, - and _: lsml init mood-of-messages",
        )
    if options.folder.exists() and not options.folder.is_dir():
        raise UsageError(f"{options.folder} is a file.", "Choose another name.")
    if not options.force and options.folder.is_dir() and any(options.folder.iterdir()):
        raise UsageError(f"{options.folder} is there already, and not empty.", "Choose another name, or --force.")


def _render_files(options: ProjectOptions) -> Iterator[tuple[str, str]]:
    """Every text file: its name, and what is in it."""
    words = _template_values(options)
    for part in ("common", OWN_MODEL) if options.kind == OWN_MODEL else ("common",):
        for path, file in _walk_templates(files(__package__) / "templates" / part):
            name = path.replace("dot-", ".").removesuffix(".txt" if ".py" in path else "")
            if name.startswith("test_"):
                name = f"tests/{name}"
            yield name, _render_template(file.read_text("utf-8"), words, name)
    yield "requirements.txt", words["REQUIREMENTS"]
    yield "model.toml", words["TOML"]


def _walk_templates(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir() and each.name != "__pycache__":
            yield from _walk_templates(each, f"{prefix}{each.name}/")
        elif each.is_file():
            yield f"{prefix}{each.name}", each


def _render_template(text: str, values: Mapping[str, str], name: str) -> str:
    if name.endswith("retrain.yml"):  # this one and the next run as they are in examples/ci-retrain: no @WORDS@
        project = "      PROJECT: ${{ vars.LABEL_STUDIO_PROJECT }}\n"
        own = f"      FAMILY: {values['FAMILY']}\n      MODEL: models/{values['NAME']}\n"
        versions = "      # The versions of before."
        return text.replace(project, project + own).replace(versions, values["STEPS"] + versions)
    if name == "retrain":
        text = text.replace("{FAMILY:-text-classifier}       #", f"{{FAMILY:-{values['FAMILY']}}} #")
        text = text.replace("{MODEL:-models/project-$PROJECT}", f"{{MODEL:-models/{values['NAME']}}}")
        return text.replace("{METRIC:-macro-f1}", f"{{METRIC:-{values['METRIC']}}}")
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], text.replace("MyModel", values["CLASS"]))


def _template_values(options: ProjectOptions) -> dict[str, str]:
    kind = PROJECT_KINDS.get(options.kind, ProjectKind(""))
    class_name = "".join(part.capitalize() for part in re.split(r"[-_]", options.name))
    class_name = class_name if class_name[0].isalpha() else f"Model{class_name}"
    model, file_row = options.kind, ""
    what = kind.description
    if options.kind == OWN_MODEL:
        model, what = f"model.py:{class_name}", "A model of one's own for Label Studio, by lsml."
        file_row = "| `model.py` | the model: a class with four methods, and `fit` |\n"
    elif options.script is not None:
        script, class_name = options.script
        model, what = f"{script.name}:{class_name}", "A backend that was written for an older SDK, run by lsml."
        file_row = f"| `{script.name}` | the backend, unmodified, with what it imports |\n"
    own_code = ":" in model
    needs = ["# What the model imports; lsml itself is installed from a checkout or a wheel, see README.md."]
    needs += kind.requirements
    needs += [line for line in _read_requirements(options) if line not in needs]
    params = "".join(f"{name} = {json.dumps(value)}\n" for name, value in kind.params.items())
    return {
        "NAME": options.name,
        "CLASS": class_name,
        "FAMILY": model if own_code else ".",  # with the parameters of model.toml; code has to be named
        "METRIC": kind.metric,
        "TRAINED": f"{model}@" if own_code else "",
        "WHAT": what,
        "FILES": file_row,
        "EXTRAS": "redis,openmmlab" if kind.needs_openmmlab else "redis",
        "INSTALL": _DOCKERFILE_STEP if kind.needs_openmmlab else "",
        "STEPS": _WORKFLOW_STEPS if kind.needs_openmmlab else "",
        "TOOLKITS": _README_STEP if kind.needs_openmmlab else "",
        "REQUIREMENTS": "\n".join(needs) + "\n",
        "TOML": (
            "# What `--model` means when it names this folder.\n"
            f'model = "{model}"\n'
            f'versions = "models/{options.name}"  # once there is a promoted version in it, that one\n'
            + (f"\n[with]\n{params}" if params else "")
        ),
    }


_OPENMMLAB_FOLDER = "$(python -c 'import lsml_cli.models.openmmlab as here; print(here.__path__[0])')"
_INSTALL_COMMAND = f'bash "{_OPENMMLAB_FOLDER}/install" --python python'
_README_STEP = f"""\
    # MMDetection and MMOCR: compiles the ops of mmcv, a quarter of an hour the first time
    {_INSTALL_COMMAND}
"""
_DOCKERFILE_STEP = f"""# Compiles the ops of mmcv, a quarter of an hour; the layer is kept until the wheel changes.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \\
    && {_INSTALL_COMMAND}
"""
_WORKFLOW_STEPS = f"""\
      # MMDetection and MMOCR. The ops of mmcv are compiled the first time, a quarter of an hour, and kept.
      - uses: actions/cache@v4
        with:
          path: ~/.cache/lsml/wheels
          key: mmcv-${{{{ runner.os }}}}-${{{{ github.run_id }}}}
          restore-keys: mmcv-${{{{ runner.os }}}}-
      - run: {_INSTALL_COMMAND}
"""


def _read_requirements(options: ProjectOptions) -> list[str]:
    """The lines of the requirements.txt that lies beside a script."""
    path = options.script[0].with_name("requirements.txt") if options.script else None
    if path is None or not path.is_file():
        return []
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None


def _files_to_copy(options: ProjectOptions) -> Iterator[Path]:
    """The script, its `config.json`, and the files and packages beside it that it imports, directly or not."""
    if options.script is None:
        return
    script = options.script[0]
    beside = {path.relative_to(script.parent).parts[0] for path in find_local_modules(script)}
    names = [script.name, "config.json", *sorted(beside)]
    yield from (path for path in map(script.with_name, names) if path.exists())


def _copy_path(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _write_samples(options: ProjectOptions, config: str | None) -> None:
    if config is not None:
        (options.folder / "label_config.xml").write_text(config, "utf-8")
        return
    sample = PROJECT_KINDS.get(options.kind, ProjectKind("")).sample
    annotated, fresh = sample.make_tasks(options.folder / "pictures")
    (options.folder / "label_config.xml").write_text(sample.label_config, "utf-8")
    for name, tasks in (("annotated.json", annotated), ("tasks.json", fresh)):
        lines = ",\n".join(json.dumps(task) for task in tasks)
        (options.folder / name).write_text(f"[\n{lines}\n]\n", "utf-8")
