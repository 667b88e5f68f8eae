"""The two models behind the OCR: one finds text, the other reads it. Either is of a version, or as it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.models.openmmlab import checkpoints, configs, inference, toolkit
from lsml_cli.models.openmmlab.configs import Config

if TYPE_CHECKING:
    from torch import nn

SCOPE: toolkit.Scope = "mmocr"
DICTIONARY = "dictionary.txt"  # in a version: a character in each line

Name = Literal["det", "recog"]


@dataclass(frozen=True)
class Part:
    """The text detector ("det") or the recogniser ("recog").

    folder   of the version that holds it; None where config and checkpoint say what it is
    config   the path of a config, or the name of a packaged one; a checkpoint is the path of a file
    trusted  whether the checkpoint may run code
    """

    name: Name
    folder: Path | None
    given_config: str
    given_checkpoint: str | None
    trusted: bool

    @property
    def who(self) -> str:
        return Path(self.given_config).stem

    @property
    def begins_random(self) -> bool:
        """Whether nobody has trained it."""
        return self.folder is None and self.given_checkpoint is None

    @cached_property
    def config(self) -> Config:
        """Raises UsageError or ModelError where there is none."""
        if self.folder is None:
            return configs.read(self.given_config, SCOPE, f"{self.name}_config")
        found = configs.stored(self.folder, config_file(self.name))
        for each in dictionaries(found):
            if each.get("dict_file") != DICTIONARY:
                raise ModelError(f"{self.folder / config_file(self.name)} names a dictionary outside of its version.")
            each["dict_file"] = str(self.folder / DICTIONARY)
        return found

    @cached_property
    def training(self) -> Config:
        """How it is trained: as it was asked for, or as its version says, where that config is no longer there."""
        try:
            return configs.read(self.given_config, SCOPE, f"{self.name}_config")
        except UsageError:
            return self.config

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """What is done to a picture before; without what only annotations have."""
        steps = configs.test_pipeline(self.config)
        for step in steps:
            if "meta_keys" in step:
                step["meta_keys"] = tuple(key for key in step["meta_keys"] if key != "instances")
        return steps

    def checkpoint(self) -> checkpoints.Checkpoint | None:
        """Whose weights it begins with; None for random ones."""
        if self.folder is not None:
            return checkpoints.load(self.folder, weights_file(self.name))
        given = self.given_checkpoint
        return checkpoints.read(given, trusted=self.trusted) if given else None

    def built(self) -> nn.Module:
        """The model with its weights, on the CPU. Nothing is fetched."""
        net = inference.build(self.config, SCOPE)
        found = self.checkpoint()
        if found is not None:
            checkpoints.fill(net, found, what=self.who)
        return net


def config_file(name: Name) -> str:
    return f"{name}_{configs.CONFIG}"


def weights_file(name: Name) -> str:
    return f"{name}.safetensors"


def dictionaries(config: Config) -> Sequence[dict[str, Any]]:
    """The places of a config that name a file of characters."""
    return [each for each in configs.parts(config) if "dict_file" in each]
