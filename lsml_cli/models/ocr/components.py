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
DICTIONARY_FILENAME = "dictionary.txt"  # in a version: a character in each line

ComponentName = Literal["det", "recog"]


@dataclass(frozen=True)
class OcrComponent:
    """The text detector ("det") or the recogniser ("recog").

    folder   of the version that holds it; None where config and checkpoint say what it is
    config   the path of a config, or the name of a packaged one; a checkpoint is the path of a file
    trusted  whether the checkpoint may run code
    """

    name: ComponentName
    folder: Path | None
    config_name_or_path: str
    checkpoint_path: str | None
    trust_checkpoint: bool

    @property
    def model_name(self) -> str:
        return Path(self.config_name_or_path).stem

    @property
    def is_untrained(self) -> bool:
        """Whether nobody has trained it."""
        return self.folder is None and self.checkpoint_path is None

    @cached_property
    def config(self) -> Config:
        """Raises UsageError or ModelError where there is none."""
        if self.folder is None:
            return configs.read(self.config_name_or_path, SCOPE, f"{self.name}_config")
        found = configs.load(self.folder, config_filename(self.name))
        for each in dictionary_configs(found):
            if each.get("dict_file") != DICTIONARY_FILENAME:
                raise ModelError(
                    f"{self.folder / config_filename(self.name)} names a dictionary outside of its version."
                )
            each["dict_file"] = str(self.folder / DICTIONARY_FILENAME)
        return found

    @cached_property
    def source_config(self) -> Config:
        """How it is trained: as it was asked for, or as its version says, where that config is no longer there."""
        try:
            return configs.read(self.config_name_or_path, SCOPE, f"{self.name}_config")
        except UsageError:
            return self.config

    @cached_property
    def pipeline_steps(self) -> list[dict[str, Any]]:
        """What is done to a picture before; without what only annotations have."""
        steps = configs.test_pipeline(self.config)
        for step in steps:
            if "meta_keys" in step:
                step["meta_keys"] = tuple(key for key in step["meta_keys"] if key != "instances")
        return steps

    def load_checkpoint(self) -> checkpoints.Checkpoint | None:
        """Whose weights it begins with; None for random ones."""
        if self.folder is not None:
            return checkpoints.load(self.folder, weights_filename(self.name))
        given = self.checkpoint_path
        return checkpoints.read(given, trust_pickle=self.trust_checkpoint) if given else None

    def build_model(self) -> nn.Module:
        """The model with its weights, on the CPU. Nothing is fetched."""
        net = inference.build_model(self.config, SCOPE)
        found = self.load_checkpoint()
        if found is not None:
            checkpoints.load_into(net, found, model_name=self.model_name)
        return net


def config_filename(name: ComponentName) -> str:
    return f"{name}_{configs.CONFIG_FILENAME}"


def weights_filename(name: ComponentName) -> str:
    return f"{name}.safetensors"


def dictionary_configs(config: Config) -> Sequence[dict[str, Any]]:
    """The places of a config that name a file of characters."""
    return [each for each in configs.iter_dicts(config) if "dict_file" in each]
