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
from lsml_cli.registry.local_imports import modules_beside
from lsml_cli.scaffold import samples
from lsml_cli.scaffold.samples import Sample
from lsml_cli.schema.label_config import LabelConfig

OWN = "own"  # a model of one's own
SCRIPT = "script"  # a backend that is there already
NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?")  # a name that Docker, pip and GitHub can live with


@dataclass(frozen=True)
class Kind:
    """What a project of a built-in model needs besides.

    what      a sentence for its README
    needs     what the model imports, for `requirements.txt`
    params    of the model, for `model.toml`
    sample    what its sample tasks are about
    toolkits  whether it needs MMDetection and MMOCR, which pip alone cannot install
    metric    by which `retrain` judges a version; more is better
    """

    what: str
    needs: tuple[str, ...] = ()
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    sample: Sample = samples.TEXTS
    toolkits: bool = False
    metric: str = "macro-f1"


KINDS: dict[str, Kind] = {
    "text-classifier": Kind("A text classifier (TF-IDF and logistic regression) for Label Studio, by lsml."),
    "image-classifier": Kind(
        "An image classifier (transfer learning with torchvision) for Label Studio, by lsml.",
        ("torch", "torchvision"),
        {"weights": "none", "image_size": 64},
        samples.PICTURES,
    ),
    "object-detector": Kind(
        "An object detector (MMDetection) for Label Studio, by lsml.",
        params={"config_file": "rtmdet_tiny_8xb32-300e_coco", "pretrained": False, "image_size": 128, "lr": 0.004},
        sample=samples.BOXES,
        toolkits=True,
        metric="map50",
    ),
    "ocr": Kind(
        "Reading text in pictures (MMOCR) for Label Studio, by lsml.",
        sample=samples.WORDS,
        toolkits=True,
        metric="exact",
    ),
}


@dataclass(frozen=True)
class NewProject:
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


def write(asked: NewProject) -> list[str]:
    """Write the folder; the names of its files, in order. Raises UsageError, ModelError or OutputError.

    Everything is read, and looked at, before anything is written.
    """
    _require_free(asked)
    given = asked.label_config or _config_beside(asked)
    config = LabelConfig.load(given).xml if given else None
    texts, copied = list(_texts(asked)), list(_copied(asked))
    try:
        asked.folder.mkdir(parents=True, exist_ok=True)
        for path, content in texts:
            place = asked.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, "utf-8")
            if content.startswith("#!"):
                place.chmod(0o755)
        for source in copied:
            _copy(source, asked.folder / source.name)
        _write_samples(asked, config)
    except OSError as error:
        raise OutputError(f"{asked.folder} cannot be written: {error.strerror or error}.") from error
    return sorted(
        path.relative_to(asked.folder).as_posix()
        for path in asked.folder.rglob("*")
        if path.is_file() and path.suffix not in (".png", ".pyc")
    )


def _config_beside(asked: NewProject) -> Path | None:
    """The labelling XML that lies beside a script: the sample's labels would not be those that it knows."""
    found = asked.script[0].with_name("label_config.xml") if asked.script else None
    return found if found is not None and found.is_file() else None


def _require_free(asked: NewProject) -> None:
    if not NAME.fullmatch(asked.name):
        raise UsageError(
            f"{asked.name!r} is no good name for a project: image, volumes and versions are called after it.",
            "Use lower-case letters, digits, - and _: lsml init mood-of-messages",
        )
    if asked.folder.exists() and not asked.folder.is_dir():
        raise UsageError(f"{asked.folder} is a file.", "Choose another name.")
    if not asked.force and asked.folder.is_dir() and any(asked.folder.iterdir()):
        raise UsageError(f"{asked.folder} is there already, and not empty.", "Choose another name, or --force.")


def _texts(asked: NewProject) -> Iterator[tuple[str, str]]:
    """Every text file: its name, and what is in it."""
    words = _words(asked)
    for part in ("common", OWN) if asked.kind == OWN else ("common",):
        for path, file in _walk(files(__package__) / "templates" / part):
            name = path.replace("dot-", ".").removesuffix(".txt" if ".py" in path else "")
            if name.startswith("test_"):
                name = f"tests/{name}"
            yield name, _filled(file.read_text("utf-8"), words, name)
    yield "requirements.txt", words["REQUIREMENTS"]
    yield "model.toml", words["TOML"]


def _walk(folder: Traversable, above: str = "") -> Iterator[tuple[str, Traversable]]:
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir() and each.name != "__pycache__":
            yield from _walk(each, f"{above}{each.name}/")
        elif each.is_file():
            yield f"{above}{each.name}", each


def _filled(text: str, words: Mapping[str, str], name: str) -> str:
    if name.endswith("retrain.yml"):  # this one and the next run as they are in examples/ci-retrain: no @WORDS@
        project = "      PROJECT: ${{ vars.LABEL_STUDIO_PROJECT }}\n"
        own = f"      FAMILY: {words['FAMILY']}\n      MODEL: models/{words['NAME']}\n"
        versions = "      # The versions of before."
        return text.replace(project, project + own).replace(versions, words["STEPS"] + versions)
    if name == "retrain":
        text = text.replace("{FAMILY:-text-classifier}       #", f"{{FAMILY:-{words['FAMILY']}}} #")
        text = text.replace("{MODEL:-models/project-$PROJECT}", f"{{MODEL:-models/{words['NAME']}}}")
        return text.replace("{METRIC:-macro-f1}", f"{{METRIC:-{words['METRIC']}}}")
    return re.sub(r"@([A-Z_]+)@", lambda found: words[found[1]], text.replace("MyModel", words["CLASS"]))


def _words(asked: NewProject) -> dict[str, str]:
    kind = KINDS.get(asked.kind, Kind(""))
    class_name = "".join(part.capitalize() for part in re.split(r"[-_]", asked.name))
    class_name = class_name if class_name[0].isalpha() else f"Model{class_name}"
    model, file_row = asked.kind, ""
    what = kind.what
    if asked.kind == OWN:
        model, what = f"model.py:{class_name}", "A model of one's own for Label Studio, by lsml."
        file_row = "| `model.py` | the model: a class with four methods, and `fit` |\n"
    elif asked.script is not None:
        script, class_name = asked.script
        model, what = f"{script.name}:{class_name}", "A backend that was written for an older SDK, run by lsml."
        file_row = f"| `{script.name}` | the backend, unmodified, with what it imports |\n"
    own_code = ":" in model
    needs = ["# What the model imports; lsml itself is installed from a checkout or a wheel, see README.md."]
    needs += kind.needs
    needs += [line for line in _requirements_beside(asked) if line not in needs]
    params = "".join(f"{name} = {json.dumps(value)}\n" for name, value in kind.params.items())
    return {
        "NAME": asked.name,
        "CLASS": class_name,
        "FAMILY": model if own_code else ".",  # with the parameters of model.toml; code has to be named
        "METRIC": kind.metric,
        "TRAINED": f"{model}@" if own_code else "",
        "WHAT": what,
        "FILES": file_row,
        "EXTRAS": "redis,openmmlab" if kind.toolkits else "redis",
        "INSTALL": _INSTALL if kind.toolkits else "",
        "STEPS": _STEPS if kind.toolkits else "",
        "TOOLKITS": _README if kind.toolkits else "",
        "REQUIREMENTS": "\n".join(needs) + "\n",
        "TOML": (
            "# What `--model` means when it names this folder.\n"
            f'model = "{model}"\n'
            f'versions = "models/{asked.name}"  # once there is a promoted version in it, that one\n'
            + (f"\n[with]\n{params}" if params else "")
        ),
    }


_FOLDER = "$(python -c 'import lsml_cli.models.openmmlab as here; print(here.__path__[0])')"
_TOOLKITS = f'bash "{_FOLDER}/install" --python python'
_README = f"""\
    # MMDetection and MMOCR: compiles the ops of mmcv, a quarter of an hour the first time
    {_TOOLKITS}
"""
_INSTALL = f"""# Compiles the ops of mmcv, a quarter of an hour; the layer is kept until the wheel changes.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \\
    && {_TOOLKITS}
"""
_STEPS = f"""\
      # MMDetection and MMOCR. The ops of mmcv are compiled the first time, a quarter of an hour, and kept.
      - uses: actions/cache@v4
        with:
          path: ~/.cache/lsml/wheels
          key: mmcv-${{{{ runner.os }}}}-${{{{ github.run_id }}}}
          restore-keys: mmcv-${{{{ runner.os }}}}-
      - run: {_TOOLKITS}
"""


def _requirements_beside(asked: NewProject) -> list[str]:
    """The lines of the requirements.txt that lies beside a script."""
    path = asked.script[0].with_name("requirements.txt") if asked.script else None
    if path is None or not path.is_file():
        return []
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None


def _copied(asked: NewProject) -> Iterator[Path]:
    """The script, its `config.json`, and the files and packages beside it that it imports, directly or not."""
    if asked.script is None:
        return
    script = asked.script[0]
    beside = {path.relative_to(script.parent).parts[0] for path in modules_beside(script)}
    names = [script.name, "config.json", *sorted(beside)]
    yield from (path for path in map(script.with_name, names) if path.exists())


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _write_samples(asked: NewProject, config: str | None) -> None:
    if config is not None:
        (asked.folder / "label_config.xml").write_text(config, "utf-8")
        return
    sample = KINDS.get(asked.kind, Kind("")).sample
    annotated, fresh = sample.tasks(asked.folder / "pictures")
    (asked.folder / "label_config.xml").write_text(sample.config, "utf-8")
    for name, tasks in (("annotated.json", annotated), ("tasks.json", fresh)):
        lines = ",\n".join(json.dumps(task) for task in tasks)
        (asked.folder / name).write_text(f"[\n{lines}\n]\n", "utf-8")
