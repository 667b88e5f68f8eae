"""The base class of what reads texts with labelled spans."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.formats.config_binding import DEFAULT_NAME, Need, Target, bind_config, make_config
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.formats.text_spans import TextSpan
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Region

MAX_CONTROLS = 100  # whose names come from spans
_TAG = "Labels"


@dataclass(frozen=True)
class FoundText:
    """A text of a data set. The fields are those of `Item`, with spans and the text itself.

    Attributes:
        spans: None if the text is not labelled, not even as one without spans.
        data: Further data of the task.
    """

    location: str
    text: str = ""
    spans: Sequence[TextSpan] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    share: float = 0.0


class SpanSource(DatasetSource):
    """Reads texts with spans: a task for each text, a region of a <Labels> for each span.

    The file is read twice: first for its labels, which the label config has to have.
    """

    title: ClassVar[str]

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        if not (self.path.is_file() or self.path.is_dir()):
            raise UsageError(f"{path} is a pipe or a device, and {self.title} is read twice.", "Name a file.")
        self._bind(self._find_labels())

    def _bind(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Find the control for each of those that the spans name, by its name where the label config has it."""
        needs = {name: Need(_TAG, tuple(found), "Text", name=_make_name(name)) for name, found in labels.items()}
        config = self.options.config or LabelConfig.parse(make_config(list(needs.values()), self.options.data_key))
        self._targets: dict[str, Target] = {}
        data_keys = set()
        for name, need in needs.items():
            control = config.controls.get(need.name if self.options.config is None else name)
            is_known = control is not None and control.tag == _TAG
            searched = replace(config, controls={control.name: control}) if control and is_known else config
            binding = bind_config([need], searched, self.options.data_key, title=self.title)
            self._targets[name] = binding.targets[_TAG]
            data_keys.add(binding.data_key)
        if len(data_keys) > 1:
            raise UsageError(f"{self.title} has one text for a task, and the controls are about several.")
        self._data_key = data_keys.pop()
        self.label_config = config

    @abstractmethod
    def _iter_texts(self) -> Iterator[FoundText]:
        """Yield the texts. What is wrong with one costs this one only, see `FoundText.problem`."""

    def _find_labels(self) -> dict[str, list[str]]:
        """Return the labels of all texts, by the names of their controls; "" where spans name none.

        Raises:
            InputError: There is no text at all.
        """
        labels: dict[str, dict[str, None]] = {}
        has_texts, problem = False, "It is empty"
        for found in self._iter_texts():
            if found.problem and not has_texts:
                problem = f"{found.location}: {found.problem}"
            has_texts |= not found.problem
            for span in found.spans or ():
                labels.setdefault(span.control, {})[span.label] = None
            if len(labels) > MAX_CONTROLS:
                raise InputError(f"{self.name} names more than {MAX_CONTROLS} controls.")
        if not has_texts:
            raise InputError(f"{self.name} holds no text of {self.title}. {problem}.")
        return {name: list(names) for name, names in labels.items()} or {"": []}

    def _iter_items(self) -> Iterator[Item]:
        for index, found in enumerate(self._iter_texts()):
            problem = found.problem or self._find_problem(found)
            if problem:
                yield Item(found.location, {}, problem=problem, share=found.share)
                continue
            data = {**found.data, self._data_key: found.text}
            regions = None if found.spans is None else list(self._regions(index, found.text, found.spans))
            yield Item(found.location, data, regions, share=found.share)

    def _find_problem(self, found: FoundText) -> str:
        if "\0" in found.text:
            return "the text holds a NUL character, which no database of Label Studio's stores"
        for span in found.spans or ():
            if not 0 <= span.start < span.end <= len(found.text):
                place = f"{span.start}..{span.end}"
                return f"a span is at {place}, and the text has {len(found.text):,} characters"
            if self.options.content == "predictions" and span.score is not None and not 0 <= span.score <= 1:
                return f"a score is {span.score!r}, which is not in 0..1"
        return ""

    def _regions(self, index: int, text: str, spans: Sequence[TextSpan]) -> Iterator[Region]:
        factory = RegionFactory(index)
        for span in spans:
            target = self._targets[span.control]
            marked = text[span.start : span.end]
            value = {"start": span.start, "end": span.end, "text": marked, "labels": [target.label_names[span.label]]}
            score = span.score if self.options.content == "predictions" else None
            yield factory.make(target.control, value, score=score, to_name=target.object.name)


def _make_name(name: str) -> str:
    """Return the name of a control that is made, which must not be that of the text."""
    return DEFAULT_NAME if name.lower() in ("", "text") else name


def list_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix in a folder, sorted; links, which may lead out of it, are none."""
    return sorted(file for file in folder.glob(f"*{suffix}") if file.is_file() and not file.is_symlink())
