"""The two models of the OCR: the text detector finds text, the recognizer reads it."""

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
DICTIONARY_FILENAME = "dictionary.txt"  # in a version: one character per line

ComponentName = Literal["det", "recog"]


@dataclass(frozen=True)
class OcrComponent:
    """A model of the OCR: of a version, or of a config and a checkpoint.

    Args:
        name: "det" for the text detector, "recog" for the recognizer.
        folder: Of the version that holds it; None if it is in no version.
        config_name_or_path: The path of a config, or the name of a packaged one.
        checkpoint_path: A file of weights; None for random ones.
        trust_checkpoint: Whether reading the checkpoint may run code.
    """

    name: ComponentName
    folder: Path | None
    config_name_or_path: str
    checkpoint_path: str | None
    trust_checkpoint: bool

    @property
    def model_name(self) -> str:
        """The name of its config, for messages."""
        return Path(self.config_name_or_path).stem

    @property
    def is_untrained(self) -> bool:
        """Tell whether its weights are random."""
        return self.folder is None and self.checkpoint_path is None

    @cached_property
    def config(self) -> Config:
        """The config of the model. Raises UsageError or ModelError if there is none."""
        if self.folder is None:
            return configs.read(self.config_name_or_path, SCOPE, f"{self.name}_config")
        config = configs.load(self.folder, config_filename(self.name))
        for part in dictionary_configs(config):
            if part.get("dict_file") != DICTIONARY_FILENAME:
                raise ModelError(
                    f"{self.folder / config_filename(self.name)} names a dictionary outside of its version."
                )
            part["dict_file"] = str(self.folder / DICTIONARY_FILENAME)
        return config

    @cached_property
    def source_config(self) -> Config:
        """The config that says how it is trained; that of its version, if the original one is no longer there."""
        try:
            return configs.read(self.config_name_or_path, SCOPE, f"{self.name}_config")
        except UsageError:
            return self.config

    @cached_property
    def pipeline_steps(self) -> list[dict[str, Any]]:
        """What is done to an image before, without anything that needs annotations."""
        steps = configs.test_pipeline(self.config)
        for step in steps:
            if "meta_keys" in step:
                step["meta_keys"] = tuple(key for key in step["meta_keys"] if key != "instances")
        return steps

    def load_checkpoint(self) -> checkpoints.Checkpoint | None:
        """Read its weights; None if they are random."""
        if self.folder is not None:
            return checkpoints.load(self.folder, weights_filename(self.name))
        path = self.checkpoint_path
        return checkpoints.read(path, trust_pickle=self.trust_checkpoint) if path else None

    def build_model(self) -> nn.Module:
        """Build the model with its weights, on the CPU. Nothing is downloaded."""
        net = inference.build_model(self.config, SCOPE)
        checkpoint = self.load_checkpoint()
        if checkpoint is not None:
            checkpoints.load_into(net, checkpoint, model_name=self.model_name)
        return net


def config_filename(name: ComponentName) -> str:
    """Return the name of a component's config in a version."""
    return f"{name}_{configs.CONFIG_FILENAME}"


def weights_filename(name: ComponentName) -> str:
    """Return the name of a component's weights in a version."""
    return f"{name}.safetensors"


def dictionary_configs(config: Config) -> Sequence[dict[str, Any]]:
    """Return the parts of a config that name a file of characters."""
    return [part for part in configs.iter_dicts(config) if "dict_file" in part]
