"""A module imports only from lower floors, or sideways without a cycle; what is heavy stays where it belongs.

The floors are those of docs/architecture.md. Imports inside functions and for types count like all others.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lsml_cli"

# A name that stands here by itself comes before one that only fits a pattern; `*` is one part of a name.
FLOORS = {
    "cli": 7,
    "__main__": 7,
    "commands": 6,
    "commands.*": 6,
    "server": 5,
    "server.*": 5,
    "studio": 4,
    "studio.*": 4,
    "bulk": 4,
    "preflight": 4,
    "retry": 4,
    "run": 4,
    "plan": 4,
    "tuning": 4,
    "job": 4,
    "training": 4,
    "evaluation": 4,
    "ranking": 4,
    "project": 4,
    "project.*": 4,
    "report": 4,
    "report.*": 4,
    "loaded": 4,
    "testing": 4,
    "testing.*": 4,
    "": 4,  # lsml_cli/__init__.py: the Python API, each name of it imported when it is first used
    "pipeline": 3,
    "replica": 3,
    "replica_process": 3,
    "model_folder": 3,
    "registry": 3,
    "catalogue": 3,
    "doctor": 3,
    "models.*": 3,  # a family is a module, or a package that only its own modules look into
    "models.*.*": 3,
    "models": 2,
    "models.base": 2,
    "models.labels": 2,
    "models.choices": 2,  # what the classifiers share
    "models.choices.*": 2,
    "versions": 2,
    "drafts": 2,
    "destination": 2,
    "output": 2,
    "resume": 2,
    "plugins": 2,
    "records": 1,
    "rows": 1,
    "paths": 1,
    "data_key": 1,
    "source": 1,
    "tasks": 1,
    "annotations": 1,
    "holdout": 1,
    "predicted": 1,
    "judges": 1,
    "uncertainty": 1,
    "sorting": 1,
    "gates": 1,
    "predictions": 1,
    "label_config": 1,
    "validation": 1,
    "region_values": 1,
    "siblings": 1,
    "media": 1,
    "media.*": 1,
    "images": 1,
    "strokes": 1,
    "metrics": 1,
    "metrics.*": 1,
    "errors": 0,
    "_version": 0,
}

# What families share; everything else below models/ belongs to one.
SHARED = ("base", "choices", "gathering", "labels", "openmmlab", "pytorch")

# Seconds of import, gigabytes of install, or both: only a model family may need them.
FAMILIES_ONLY = {"torch", "torchvision", "sklearn", "mmcv", "mmengine", "mmdet", "mmocr"}

# Must not be loaded by `import lsml_cli.cli`: `lsml --help` would pay for it.
NOT_AT_START = FAMILIES_ONLY | {
    *("numpy", "scipy", "safetensors", "joblib", "PIL"),
    *("fastapi", "starlette", "uvicorn", "httpx", "ray", "label_studio_sdk", "multiprocessing"),
    *("redis", "rq"),
    *("rich.console", "rich.markdown", "rich.progress", "rich.table", "pygments", "markdown_it"),
}


def floor_of(module: str) -> int | None:
    """The floor of "commands.predict", None when the module is not on the map."""
    first, *rest = module.split(".")
    return FLOORS.get(module, FLOORS.get(".".join([first, *("*" for _ in rest)])))


def modules_of(package: Path) -> dict[str, Path]:
    """Every module below `package` by its dotted name without the package's own; "" is the package itself."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, source: str, known: Iterable[str]) -> tuple[set[str], set[str]]:
    """The modules of the package and the third-party packages that `source` imports.

    `from lsml_cli.models import base` is an import of models.base, not of models, when there is such a module.
    """
    known = set(known)
    inside: set[str] = set()
    outside: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        targets: list[tuple[str, list[str]]] = []
        if isinstance(node, ast.Import):
            targets = [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write `from lsml_cli...` instead of a relative import"
            targets = [(node.module or "", [alias.name for alias in node.names])]
        for target, names in targets:
            top, _, rest = target.partition(".")
            if top != PACKAGE.name:
                outside.add(top)
                continue
            below = {f"{rest}.{name}".lstrip(".") for name in names}
            inside |= below & known
            if not names or below - known:
                inside.add(rest)
    return inside - {module}, outside


def complaints(imports: Mapping[str, set[str]]) -> list[str]:
    """What is wrong with a map of module -> imported modules, as sentences."""
    found = []
    sideways: dict[str, set[str]] = {}
    for module, targets in imports.items():
        own = floor_of(module)
        if own is None:
            found.append(
                f"{spell(module)} has no floor: give it one in FLOORS ({Path(__file__).name}) and docs/architecture.md."
            )
            continue
        for target in sorted(targets):
            other = floor_of(target)
            if other is None:
                continue  # said for the module itself
            if other > own:
                found.append(
                    f"{spell(module)} (floor {own}) imports {spell(target)} (floor {other}), which is above it."
                )
            elif other == own:
                sideways.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(sideways).prepare()
    except CycleError as error:
        found.append(f"These import each other in a circle: {' -> '.join(spell(name) for name in error.args[1])}.")
    return found


def spell(module: str) -> str:
    return f"{PACKAGE.name}.{module}" if module else PACKAGE.name


def family_of(module: str) -> str | None:
    """ "text_classifier" for models.text_classifier and for models.text_classifier.texts."""
    parts = module.split(".")
    return parts[1] if parts[0] == "models" and len(parts) > 1 and parts[1] not in SHARED else None


MODULES = modules_of(PACKAGE)
IMPORTS = {module: imports_of(module, path.read_text("utf-8"), MODULES) for module, path in MODULES.items()}


def test_modules_import_from_lower_floors() -> None:
    wrong = complaints({module: inside for module, (inside, _) in IMPORTS.items()})
    assert not wrong, "\n".join(wrong)


def test_only_families_import_frameworks() -> None:
    wrong = [
        f"{spell(module)} imports {', '.join(sorted(outside & FAMILIES_ONLY))}; only what is below models/ may."
        for module, (_, outside) in IMPORTS.items()
        if outside & FAMILIES_ONLY and not module.startswith("models.")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_needs_label_studios_sdk() -> None:
    """It takes seconds to load and 500 MB of disk; `studio` asks the few questions itself, over plain HTTP."""
    wrong = [spell(module) for module, (_, outside) in IMPORTS.items() if "label_studio_sdk" in outside]
    assert not [module for module in wrong if not module.startswith(spell("models.scripts"))]


def test_nobody_looks_into_a_family() -> None:
    """What is not a family reaches one by its name alone, through the registry; families know nothing of each other."""
    wrong = [
        f"{spell(module)} imports {spell(target)}, which belongs to another family."
        for module, (inside, _) in IMPORTS.items()
        for target in sorted(inside)
        if family_of(target) not in {None, family_of(module)}
    ]
    assert not wrong, "\n".join(wrong)


def test_starting_the_command_loads_nothing_heavy() -> None:
    code = "import sys, lsml_cli.cli; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = NOT_AT_START & set(run.stdout.split())
    assert not heavy, f"`import lsml_cli.cli` loads {', '.join(sorted(heavy))}; import it where it is used."


@pytest.mark.parametrize(
    ("imports", "sentence"),
    [
        (
            {"errors": {"tasks"}},
            "lsml_cli.errors (floor 0) imports lsml_cli.schema.tasks (floor 1), which is above it.",
        ),
        ({"bulk": {"commands.predict"}}, "floor 6"),
        ({"models.base": {"models.text_classifier"}}, "floor 3"),
        ({"tasks": {"predictions"}, "predictions": {"metrics"}, "metrics": {"tasks"}}, "in a circle"),
        (
            {"models.ocr.words": {"bulk"}},
            "lsml_cli.models.ocr.model.words (floor 3) imports lsml_cli.inference.predict (floor 4)",
        ),
        ({"helpers": set()}, "lsml_cli.helpers has no floor"),
        ({"engine.app": set()}, "lsml_cli.engine.app has no floor"),
    ],
)
def test_what_is_wrong_is_found(imports: dict[str, set[str]], sentence: str) -> None:
    (found,) = complaints(imports)
    assert sentence in found


def test_what_is_right_passes() -> None:
    assert not complaints({"cli": {"commands.fit"}, "tasks": {"predictions", "errors"}, "predictions": {"errors"}})


def test_imports_are_seen_wherever_they_stand() -> None:
    source = """
import json, sklearn.linear_model
from lsml_cli import __version__, tasks
from lsml_cli.models import base
from lsml_cli.models.base import Model
def later():
    import lsml_cli.evaluation.metrics
    from torch import nn
"""
    inside, outside = imports_of("bulk", source, {"", "tasks", "models", "models.base", "metrics", "bulk"})
    assert inside == {"", "tasks", "models.base", "metrics"}
    assert outside == {"json", "sklearn", "torch"}
