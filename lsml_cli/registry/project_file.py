"""A model that is named by a folder, or by a file alone: somebody's script, or a project that `lsml init` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lsml_cli.errors import ModelError
from lsml_cli.models.legacy_backends.sdk_detection import find_folder_model, find_model_class_name
from lsml_cli.models.spec import Json
from lsml_cli.registry import versions

PROJECT_FILE = "model.toml"  # in a folder that `lsml init` wrote


def find_single_class(name: str) -> str | None:
    """ "path/to/model.py:Class" for a file that has one model, and for a folder with a `model.py` and no versions."""
    path = Path(name)
    found: tuple[Path, str] | None
    if name.endswith(".py") and path.is_file():
        found = path, find_model_class_name(path)
    elif path.is_dir() and not (path / versions.CURRENT_FILE).exists() and not versions.list_versions(path):
        found = find_folder_model(path)
    else:
        return None
    return f"{found[0]}:{found[1]}" if found else None


@dataclass(frozen=True)
class ProjectFile:
    """What the `model.toml` of a folder says: what the model is, its parameters, and where its versions live."""

    folder: Path
    model: str
    params: Mapping[str, Json]
    versions_root: Path


def read_project_file(folder: Path) -> ProjectFile | None:
    """None for a folder without a `model.toml`. Raises ModelError when that is not what it should be."""
    path = folder / PROJECT_FILE
    if not path.is_file():
        return None
    import tomllib

    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    model, params = found.get("model"), found.get("with", {})
    home = found.get("versions", f"models/{folder.resolve().name}")
    if not isinstance(model, str) or not isinstance(params, dict) or not isinstance(home, str):
        raise ModelError(
            f"{path} is not what it should be.", 'It has: model = "…", versions = "…", and a table [with].'
        )
    return ProjectFile(folder, model, params, folder / home)


def runs_user_code(name: str) -> bool:
    """Whether a name that is not obviously a class means somebody's own code all the same."""
    path = Path(name)
    if (project := read_project_file(path)) is not None:
        return ":" in project.model
    return (name.endswith(".py") and path.is_file()) or any(
        (path / file).is_file() for file in ("model.py", "_wsgi.py")
    )
