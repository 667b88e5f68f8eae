"""The text classifier: TF-IDF and logistic regression, for `Choices` over `Text`, `HyperText` and `Paragraphs`.

texts.py        reads an object of a task as one string
tfidf.py        turns strings into sparse rows over n-grams
linear.py       turns rows into a score per class; fits, saves and loads
label_names.py  scores a text by its likeness to the names of labels, for an untrained model
binding.py      binds the classifier to a label config
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lsml_cli.models.base import Model, Progress
from lsml_cli.models.choices.heads import bind_trained_heads, heads_from_state, heads_to_state, scorer_widths
from lsml_cli.models.choices.training_set import build_training_sets
from lsml_cli.models.parameters import Parameter
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.models.text_classifier import linear, texts
from lsml_cli.models.text_classifier.binding import (
    TextBinding,
    TextInput,
    bind_untrained,
    build_untrained_scorers,
    find_text_controls,
)
from lsml_cli.models.text_classifier.label_names import LabelNameScorer
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task

__all__ = ["TextClassifier"]

_MAX_SCORES = 1 << 21  # scores in memory at a time: 16 MiB, of as many texts as the number of classes allows


class TextClassifier(Model[TextBinding]):
    """Classify texts; trains in seconds, and predicts about 100,000 short texts per second and core."""

    batch_size: ClassVar[int] = 256
    params: ClassVar[Mapping[str, Json | Parameter]] = {
        "C": Parameter(30.0, "weight of the data against the regularisation", above=0),
        "ngrams": Parameter(2, "longest run of tokens that is a feature", minimum=1, maximum=5),
        "max_features": Parameter(
            1 << 18,
            "features to keep, the most frequent ones",
            minimum=1,
            nullable=True,
            expected="a whole number from 1, or null for no limit",
        ),
        "min_df": Parameter(1, "texts that a feature must occur in", minimum=1),
        "class_weight": Parameter(None, "balanced: rare classes weigh as much as frequent ones", choices=("balanced",)),
    }
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = {"Choices": texts.TEXT_TAGS}

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._settings = self.default_params() | dict(spec.params)
        self._heads = heads_from_state(spec)
        self._scorers: list[linear.Scorer] = []

    def load(self, device: str) -> None:
        if self.spec.path is not None:
            self._scorers = linear.load(self.spec.path, scorer_widths(self._heads))

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> TextBinding:
        pairs = find_text_controls(config)
        if self.spec.path is None:
            return bind_untrained(TextBinding(config, label_map, project), pairs)
        return bind_trained_heads(TextBinding(config, label_map, project), pairs, self._heads, TextInput)

    def encode(self, task: Task, binding: TextBinding, media: Mapping[str, bytes]) -> tuple[str, ...]:
        """Read one text for each of the binding's scorer inputs."""
        return tuple([scorer_input.text(task.data) for scorer_input in binding.scorer_inputs])

    def forward(self, inputs: Sequence[Sequence[str]], binding: TextBinding) -> Sequence[Any]:
        """Return for each input a tuple with the output of `HeadBinding.probabilities` of each head.

        It is None for the heads over an empty text.
        """
        if not inputs or not binding.head_bindings:
            return [()] * len(inputs)
        scorers = self._scorers or build_untrained_scorers(binding, self._settings)
        classes = sum(len(head_binding.head.classes) for head_binding in binding.head_bindings)
        chunk_size = max(1, _MAX_SCORES // classes)
        outputs: list[Any] = []
        for first in range(0, len(inputs), chunk_size):
            outputs += self._forward_chunk(inputs[first : first + chunk_size], binding, scorers)
        return outputs

    def _forward_chunk(
        self, inputs: Sequence[Sequence[str]], binding: TextBinding, scorers: Sequence[linear.Scorer | LabelNameScorer]
    ) -> list[Any]:
        scores = [
            scorers[scorer_input.scorer].scores([input_texts[i] for input_texts in inputs])
            for i, scorer_input in enumerate(binding.scorer_inputs)
        ]
        head_outputs = []
        for head in binding.head_bindings:
            outputs = zip(inputs, head.probabilities(scores[head.input_index]), strict=True)
            head_outputs.append(
                [None if texts.is_empty(read[head.input_index]) else output for read, output in outputs]
            )
        return list(zip(*head_outputs, strict=True))

    def decode(self, output: Any, task: Task, binding: TextBinding) -> Prediction:
        return Prediction.of(binding.make_regions(task, output), self.version)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: TextBinding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Learn the controls that have annotations. `validation` is not used, because nothing is stopped early."""
        heads: list[Json] = []
        scorers: list[linear.Scorer] = []
        for training_set in build_training_sets(train, find_text_controls(binding.config), _read_text, progress):
            names = " and ".join(f'"{name}"' for name in training_set.targets)
            progress(f"Learning {names} from {len(training_set.inputs)} texts.")
            scorer, notes = linear.fit(training_set.inputs, list(training_set.targets.values()), self._settings)
            for note in notes:
                progress(note)
            heads += heads_to_state(training_set, len(scorers))
            scorers.append(scorer)
        linear.save(out_dir, scorers)
        return {"heads": heads}


def _read_text(object_tag: Object, task: Task) -> str:
    """Read a text to learn from. Raises ValueError with a sentence if there is none, or an empty one."""
    text = texts.read_text(object_tag, task.data)
    if texts.is_empty(text):
        raise ValueError(f'"{object_tag.data_key}" is empty')
    return text
