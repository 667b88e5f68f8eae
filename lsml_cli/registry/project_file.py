"""Find the model of a folder or of a file: a script, or a project that `lsml init` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lsml_cli.errors import ModelError
from lsml_cli.models.legacy_backends.sdk_detection import find_folder_model, find_model_class_name
from lsml_cli.models.spec import Json
from lsml_cli.registry import versions

PROJECT_FILE = "model.toml"  # in a folder that `lsml init` wrote


@dataclass(frozen=True)
class ProjectFile:
    """The content of a `model.toml`.

    Attributes:
        folder: Folder of the file.
        model: Name of the model class: "text-classifier", "model.py:Class".
        params: Parameters of the model.
        versions_root: Folder of its trained versions.
    """

    folder: Path
    model: str
    params: Mapping[str, Json]
    versions_root: Path


def read_project_file(folder: Path) -> ProjectFile | None:
    """Read the `model.toml` of a folder, None if there is none.

    Raises:
        ModelError: The file cannot be read, or has a value of the wrong type.
    """
    path = folder / PROJECT_FILE
    if not path.is_file():
        return None
    import tomllib

    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    model, params = content.get("model"), content.get("with", {})
    versions_root = content.get("versions", f"models/{folder.resolve().name}")
    if not isinstance(model, str) or not isinstance(params, dict) or not isinstance(versions_root, str):
        raise ModelError(
            f"{path} is not what it should be.", 'It has: model = "…", versions = "…", and a table [with].'
        )
    return ProjectFile(folder, model, params, folder / versions_root)


def find_single_class(name: str) -> str | None:
    """Return "path/to/model.py:Class" for a file with one model, or for a folder with a `model.py` and no versions.

    Raises:
        UnknownModel: The file has no model, or several.
    """
    path = Path(name)
    model: tuple[Path, str] | None
    if name.endswith(".py") and path.is_file():
        model = path, find_model_class_name(path)
    elif path.is_dir() and not (path / versions.CURRENT_FILE).exists() and not versions.list_versions(path):
        model = find_folder_model(path)
    else:
        return None
    return f"{model[0]}:{model[1]}" if model else None


def runs_user_code(name: str) -> bool:
    """Tell whether a name without a class, of a file or a folder, nevertheless runs code that lies there."""
    path = Path(name)
    if (project := read_project_file(path)) is not None:
        return ":" in project.model
    return (name.endswith(".py") and path.is_file()) or any(
        (path / file).is_file() for file in ("model.py", "_wsgi.py")
    )
