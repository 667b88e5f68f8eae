"""Describe a model so that any process can build it: `ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.errors import LsmlError, ModelError

if TYPE_CHECKING:
    from lsml_cli.models.base import Model

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a model somewhere else. Small and picklable; nothing heavy is imported.

    target   "package.module:Class", or "/path/to/file.py:Class"
    version  name of the trained version, None for a model that has none
    params   the model's own parameters (`--with KEY=VALUE`)
    path     folder with the version's weights, None for an untrained model
    state    what the model's `fit` returned, as stored in the version's model.json
    earlier  the trained version that `fit` should continue from (`lsml fit --from`), None to start afresh:
             `earlier.open(device)` is its model, `earlier.path` and `earlier.state` what it consists of
    digest   identity, hexadecimal: resuming and finished work are keyed by it
    shown_as what predictions carry as `model_version` instead of the model's own name and version
    notes    sentences to read once about the model itself: its code is not the one that it was trained with
    trained_params  the parameters that a version was trained with, before any that override them
    files    {path: digest of its content}, of what the parameters of an untrained model name; see `Model.files`
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
    file_digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def model_version(self) -> str:
        """What predictions carry as `model_version`: `news@20261120T213015`."""
        return self.model_version_override or f"{self.name}@{self.version or self.digest[:8]}"

    def model_class(self) -> type[Model]:
        from lsml_cli.models.loading import load_class  # which imports Model, and so this module

        return load_class(self.target)

    def build(self) -> Model:
        """The model without its weights: can be bound to a label config, cannot predict yet."""
        from lsml_cli.models.loading import error_location

        family = self.model_class()
        try:
            return family(self)
        except LsmlError:
            raise
        except (Exception, SystemExit) as error:  # somebody else's code may raise anything
            raise ModelError(f"{self.name} cannot be built: {error_location(error)}.") from error

    def open(self, device: str) -> Model:
        """The model with its weights on `device` ("cpu", "cuda:0", "mps")."""
        model = self.build()
        model.load(device)
        return model
