"""Find the model of a folder or of a file: a script, or a project that `lsml init` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lsml_cli.errors import ModelError
from lsml_cli.models.legacy_backends.sdk_detection import find_folder_model, find_model_class_name
from lsml_cli.models.spec import Json
from lsml_cli.registry import versions
from lsml_cli.runtime import read_small_file

PROJECT_FILE = "model.toml"  # in a folder that `lsml init` wrote
LABEL_CONFIG_FILE = "label_config.xml"  # beside it
MAX_PROJECT_FILE_BYTES = 1 << 20

_FORM_HINT = 'It has: model = "...", versions = "...", and a table [with].'


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

    @property
    def path(self) -> Path:
        return self.folder / PROJECT_FILE


def read_project_file(folder: Path) -> ProjectFile | None:
    """Read the `model.toml` of a folder, None if there is none.

    Raises:
        ModelError: The file cannot be read, or has a value of the wrong type.
    """
    path = folder / PROJECT_FILE
    if not path.is_file():
        return None
    content = _parse_toml(path)
    model = _require_text(path, "model", content.get("model"))
    versions_root = _require_text(path, "versions", content.get("versions", f"models/{folder.resolve().name}"))
    params = content.get("with", {})
    if not isinstance(params, dict):
        raise ModelError(f"{path}: with must be a table.", _FORM_HINT)
    if (folder / versions_root).resolve() == folder.resolve():
        raise ModelError(
            f"{path}: versions is the folder of the project itself, which would then be data.",
            f'Name a folder below it, versions = "models/{folder.resolve().name}", or leave it out.',
        )
    return ProjectFile(folder, model, params, folder / versions_root)


def find_project_label_config(name: str) -> Path | None:
    """Return the `label_config.xml` of a project, None if `name` is no project's folder or the file is not there."""
    if not name:
        return None
    folder = Path(name)
    path = folder / LABEL_CONFIG_FILE
    return path if (folder / PROJECT_FILE).is_file() and path.is_file() else None


def find_single_class(name: str) -> str | None:
    """Return "path/to/model.py:Class" for a file with one model, or for a folder with a `model.py` and no versions.

    Raises:
        UnknownModel: The file has no model, or several.
    """
    path = Path(name)
    model: tuple[Path, str] | None
    if name.endswith(".py") and path.is_file():
        model = path, find_model_class_name(path)
    elif path.is_dir() and not versions.is_data_folder(path):
        model = find_folder_model(path)
    else:
        return None
    return f"{model[0]}:{model[1]}" if model else None


def _require_text(path: Path, key: str, value: Json) -> str:
    if not isinstance(value, str):
        raise ModelError(f"{path}: {key} {'is missing' if value is None else 'must be a text'}.", _FORM_HINT)
    if not value or "\0" in value:
        raise ModelError(f"{path}: {key} {'holds a NUL character' if value else 'is empty'}.", _FORM_HINT)
    return value


def _parse_toml(path: Path) -> Mapping[str, Json]:
    import tomllib

    try:
        return tomllib.loads(read_small_file(path, MAX_PROJECT_FILE_BYTES).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from None
    except RecursionError:
        raise ModelError(f"{path} is nested too deeply.", _FORM_HINT) from None
    except ValueError as error:  # of tomllib, of decoding, and of a number with thousands of digits
        raise ModelError(f"{path} is not TOML: {error}.", _FORM_HINT) from None
