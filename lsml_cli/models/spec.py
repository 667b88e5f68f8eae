"""Describe a model so that any process can build it: `ModelSpec`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.errors import LsmlError, ModelError, UsageError

if TYPE_CHECKING:
    from lsml_cli.models.base import Model

MAX_SHOWN_VALUE = 80  # characters of a parameter's value in a message

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class ModelSpec:
    """Everything that a process needs to build a model. Small and picklable; nothing heavy is imported.

    `find_model` makes one from a name.

    Attributes:
        name: What the model is called: "text-classifier", or the name of its folder.
        target: Its class: "package.module:Class", or "/path/to/file.py:Class".
        digest: Identity, hexadecimal; a run that is resumed and cached results are keyed by it.
        version: Name of the trained version, None for an untrained model.
        params: The model's own parameters (`--with NAME=VALUE`).
        path: Folder with the weights of the version, None for an untrained model.
        state: What the model's `fit` returned, as stored in the version's model.json.
        model_version_override: The `model_version` of predictions, instead of the model's name and version.
        init_from: The trained version whose weights `fit` starts from (`lsml fit --init-from`), None to start from
            scratch: `init_from.open(device)` is its model.
        notes: Sentences shown to the user once, such as that the model's code has changed since its training.
        trained_params: The parameters that the version was trained with, before any that override them.
        unconfirmed_params: The parameters of the version that may run code or open a file, and that the user has not
            given for this run. They are among `params` as well; `Model.param` refuses to return them.
        file_digests: Digest of each file that the parameters of an untrained model name, by path; see
            `Model.file_params`.

    Example:
        spec = find_model("models/news")
        model = spec.open("cpu")
    """

    name: str
    target: str
    digest: str
    version: str | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    path: Path | None = None
    state: Mapping[str, Json] = field(default_factory=dict)
    model_version_override: str | None = None
    init_from: ModelSpec | None = None
    notes: tuple[str, ...] = ()
    trained_params: Mapping[str, Json] = field(default_factory=dict)
    unconfirmed_params: Mapping[str, Json] = field(default_factory=dict)
    file_digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def model_version(self) -> str:
        """Return the `model_version` of the predictions: `news@20261120T213015`."""
        return self.model_version_override or f"{self.name}@{self.version or self.digest[:8]}"

    def require_confirmed(self, *names: str) -> None:
        """Refuse parameters that only the version has set, although they may run code or open a file.

        Args:
            names: The parameters that are about to be used; all where none is given.

        Raises:
            UsageError: One of them is in `unconfirmed_params`.
        """
        refused = {name: value for name, value in self.unconfirmed_params.items() if not names or name in names}
        if refused:
            listed = " and ".join(f"{name} = {format_value(value)}" for name, value in refused.items())
            options = " ".join(f"--with {shlex.quote(f'{name}={_to_text(value)}')}" for name, value in refused.items())
            raise UsageError(
                f"{self.model_version} was trained with {listed}, which may run code or open a file; a version may not "
                "decide that.",
                f"If you trust it, give it for this run: {options}",
            )

    def model_class(self) -> type[Model]:
        """Import the class.

        Raises:
            ModelError: It cannot be imported, or is not a complete subclass of `Model`.
        """
        from lsml_cli.models.loading import load_class  # it imports Model, and so this module

        return load_class(self.target)

    def build(self) -> Model:
        """Build the model without its weights: it can be bound to a label config, but not predict yet.

        Raises:
            ModelError: The class cannot be imported, or its constructor fails.
        """
        from lsml_cli.models.loading import error_location

        model_class = self.model_class()
        try:
            return model_class(self)
        except LsmlError:
            raise
        except (Exception, SystemExit) as error:  # the constructor may be anybody's code
            raise ModelError(f"{self.name} cannot be built: {error_location(error)}.") from error

    def open(self, device: str) -> Model:
        """Build the model and load its weights.

        Args:
            device: "cpu", "cuda:0", "mps".

        Raises:
            ModelError: The weights are missing or damaged, or the model has to be trained first.
        """
        model = self.build()
        model.load(device)
        return model


def _to_text(value: Json) -> str:
    """Return a parameter's value as `--with NAME=VALUE` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def format_value(value: object) -> str:
    """Return a parameter's value as JSON for a message, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "a value that is nested too deeply"
    return text if len(text) <= MAX_SHOWN_VALUE else f"{text[:MAX_SHOWN_VALUE]}..."
