"""ASR manifests as NVIDIA NeMo has them: JSON Lines of {"audio_filepath", "duration", "text"}."""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsml_cli.errors import InputError, UsageError, format_list
from lsml_cli.io.formats.config_binding import Need, bind_config, has_control
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, Region, WriteOptions
from lsml_cli.io.formats.image_set import MediaFiles, confine_name
from lsml_cli.io.source import RecordSource
from lsml_cli.runtime import error_reason, install_hint
from lsml_cli.schema import predictions
from lsml_cli.schema.json_codec import dumps, loads
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.tasks import DATA_PREFIX, Task
from lsml_cli.schema.value_checks import is_number

FILE = "manifest.json"
AUDIO_FOLDER = "audio"
AUDIO_TAGS = ("Audio", "AudioPlus")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".webm")

NO_TEXT = "not a text about a sound"
OTHER_CONTROL = "a text of another control"

_SECOND_DIGITS = 4  # digits of seconds that are written
_LINE_KEYS = frozenset({"audio_filepath", "duration", "offset", "text", "pred_text", "score"})
_TEXT_AREA = Need("TextArea", (), "Audio", {"rows": "4", "editable": "true", "maxSubmissions": "1"}, "transcription")


@dataclass(frozen=True)
class _Passage:
    """A text, with the part of the sound that it is about.

    Attributes:
        text: The text.
        score: Probability in 0..1.
        start: Seconds from the beginning; None for the whole sound.
        end: The same.
    """

    text: str
    score: float | None
    start: float | None = None
    end: float | None = None


class AsrWriter(DatasetWriter):
    """Writes `manifest.json`, a line for each sound, or for each part of it that has a text of its own.

    Several texts about a whole sound are joined by spaces. A prediction is `pred_text`, as NeMo's own tools write it.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._media = MediaFiles(options)
        self._object, self._control = _find_control(options)
        super().__init__(folder, options)
        self._file = self.folder.create(FILE)

    def write(self, example: Example) -> None:
        key, value = self._find_value(example.task)
        passages = list(self._passages(example))
        duration = None
        if any(passage.start is None for passage in passages):
            duration = self._find_duration(example, value)
        path = self._place_file(example.task, value)
        extra = {
            DATA_PREFIX + name if name in _LINE_KEYS else name: field
            for name, field in example.task.data.items()
            if name not in (key, "duration")
        }
        for passage in passages:
            self._file.write(dumps(self._line(path, passage, duration, extra)) + b"\n")
        self.written += len(passages)

    def _line(
        self, path: str, passage: _Passage, duration: float | None, extra: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        line: dict[str, Any] = {"audio_filepath": path}
        if passage.start is None or passage.end is None:
            line["duration"] = None if duration is None else round(duration, _SECOND_DIGITS)
        else:
            line["duration"] = round(passage.end - passage.start, _SECOND_DIGITS)
            line["offset"] = round(passage.start, _SECOND_DIGITS)
        is_prediction = self.options.content == "predictions"
        line["pred_text" if is_prediction else "text"] = passage.text
        if is_prediction and passage.score is not None:
            line["score"] = round(passage.score, predictions.SCORE_DIGITS)
        return {**line, **extra}

    def _passages(self, example: Example) -> Iterator[_Passage]:
        """Yield the texts: those of parts in their order, then that of the whole, "" where there is none at all."""
        parts: list[_Passage] = []
        whole: list[str] = []
        scores: list[float] = []
        for region in example.regions:
            texts = _texts(region)
            if texts is None:
                self.left_out[NO_TEXT] += 1
                continue
            self._control = self._control or str(region.get("from_name"))
            if region.get("from_name") != self._control:
                self.left_out[OTHER_CONTROL] += 1
                continue
            score = region.get("score")
            start, end = region["value"].get("start"), region["value"].get("end")
            if is_number(start) and is_number(end) and 0 <= start < end:
                parts.append(_Passage(" ".join(texts), score if is_number(score) else None, start, end))
                continue
            whole += texts
            scores += [score] if is_number(score) else []
        yield from sorted(parts, key=lambda part: part.start or 0.0)
        if whole or not parts:
            yield _Passage(" ".join(whole), min(scores) if scores else example.score)

    def _find_value(self, task: Task) -> tuple[str, str]:
        """Return the key of a task's data that holds its sound, and the value; raise ValueError if there is none."""
        if self._object is not None:
            key = self._object.data_key or ""
            value = self._object.read(task.data)
        else:
            key = self.options.data_key or _guess_key(task)
            value = task.data.get(key)
        if not isinstance(value, str) or not value:
            raise ValueError("the sound of the task is no path and no address")
        return key, value

    def _find_duration(self, example: Example, value: str) -> float:
        """Return the length in seconds: as the regions say, else the data, else the file.

        Raises:
            ValueError: It is not known.
            TransientError: A server fails for the moment.
        """
        lengths = [region.get("original_length") for region in example.regions]
        for length in (*lengths, example.task.data.get("duration")):
            if is_number(length) and length > 0:
                return length
        try:
            return read_duration(self._media.fetch(value, example.task))
        except (ValueError, OSError) as error:
            raise ValueError(f"the length of the sound is not known: {error_reason(error)}") from None

    def _place_file(self, task: Task, value: str) -> str:
        """Put the file into the folder, as the options say; return its path for the manifest."""
        if self.options.images == "none":
            try:
                path = self.options.media.local_path(value)
            except ValueError:
                path = None
            return value if path is None else str(path.absolute())
        name = f"{AUDIO_FOLDER}/{confine_name(value)}"
        self._media.add_file(self.folder, name, value, task)
        return name

    def _close(self) -> None:
        self._file.close()


def _texts(region: Region) -> list[str] | None:
    value = region.get("value")
    if region.get("type") != "textarea" or not isinstance(value, Mapping):
        return None
    texts = value.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    return texts


def _find_control(options: WriteOptions) -> tuple[Object | None, str | None]:
    """Return the <Audio> and the name of the <TextArea> about it: that about all of it, else that about its parts.

    Raises:
        UsageError: The label config has none, or several.
    """
    config = options.config
    if config is None:
        return None, None
    pairs = [
        (control, config.objects[name])
        for control in config.controls.values()
        if control.type == "textarea"
        for name in control.to_names
        if config.objects[name].tag in AUDIO_TAGS and options.data_key in (None, config.objects[name].data_key)
    ]
    whole = [pair for pair in pairs if not pair[0].per_region] or pairs
    if len(whole) == 1:
        control, obj = whole[0]
        return obj, control.name
    controls: list[Control] = [control for control, _ in whole] or list(config.controls.values())
    known = format_list(map(str, controls)) or "no control at all"
    if whole:
        raise UsageError(f"The label config has several texts about sounds: {known}.", "Give one with one of them.")
    raise UsageError(f"An ASR manifest needs a <TextArea> about an <Audio>, and the label config has {known}.")


def _guess_key(task: Task) -> str:
    """Return the key of the only value that may be a sound; raise ValueError if there is none, or several."""
    texts = {key: value for key, value in task.data.items() if isinstance(value, str)}
    keys = [key for key, value in texts.items() if value.partition("?")[0].lower().endswith(AUDIO_SUFFIXES)]
    keys = keys or list(texts)
    if len(keys) != 1:
        raise ValueError("which value of the task is its sound? Name the label config with --label-config")
    return keys[0]


def read_duration(content: bytes) -> float:
    """Return the length in seconds of a file of sound.

    Raises:
        ValueError: It is none, or a package is missing that reads it.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            return float(file.getnframes() / file.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        pass  # no WAV, or one that is compressed
    try:
        import tinytag
    except ModuleNotFoundError:
        raise ValueError(f"only WAV is read without the package tinytag: {install_hint('lsml[audio]')}") from None
    try:
        duration = tinytag.TinyTag.get(file_obj=io.BytesIO(content)).duration
    except tinytag.TinyTagException as error:
        raise ValueError(f"it is no file of sound that can be read: {error}") from None
    if not duration:
        raise ValueError("the file does not say how long it is")
    return float(duration)


class AsrSource(DatasetSource):
    """Reads an ASR manifest, a task for each line. Keys of a line beside its text are data of the task."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        if self.path.is_dir():
            self.path = self.path / FILE
        if not self.path.is_file():
            raise UsageError(f"There is no file {self.path}.", "Name the manifest.")
        first = next((line for _, line, problem, _ in self._iter_lines() if not problem), {})
        if "audio_filepath" not in first:
            raise InputError(
                f"{self.path} is no ASR manifest.",
                'Expected lines such as {"audio_filepath": "a.wav", "duration": 3.2, "text": "hello"}.',
            )
        self._binding = bind_config([_need(options.config)], options.config, options.data_key, title="An ASR manifest")
        self.label_config = self._binding.config
        self._target = self._binding.targets["TextArea"]

    def _iter_lines(self) -> Iterator[tuple[str, Mapping[str, Any], str, float]]:
        """Yield (location, line, problem, share)."""
        with RecordSource(str(self.path)) as source:
            for record in source:
                share = source.share(record.end) or 0.0
                try:
                    if record.problem:
                        raise ValueError(record.problem)
                    line = loads(record.body)
                    if not isinstance(line, dict):
                        raise ValueError("the line is no object")
                except ValueError as error:
                    yield record.location, {}, str(error), share
                    continue
                yield record.location, line, "", share

    def _iter_items(self) -> Iterator[Item]:
        for index, (location, line, problem, share) in enumerate(self._iter_lines()):
            try:
                if problem:
                    raise ValueError(problem)
                data = self._data(line)
                regions = self._regions(index, line)
            except ValueError as error:
                yield Item(location, {}, problem=str(error), share=share)
                continue
            yield Item(location, data, regions, share=share)

    def _data(self, line: Mapping[str, Any]) -> dict[str, Any]:
        path = line.get("audio_filepath")
        if not isinstance(path, str) or not path:
            raise ValueError('there is no "audio_filepath"')
        if line.get("offset"):
            raise ValueError(f"it is a part of {path}, from {line['offset']} s, and a task is a whole file")
        data = {self._binding.data_key: self._locate(path)}
        if "duration" in line:
            data["duration"] = line["duration"]
        extra = {name.removeprefix(DATA_PREFIX): field for name, field in line.items() if name not in _LINE_KEYS}
        return extra | data

    def _locate(self, path: str) -> str:
        """Return the value for a path: relative to the manifest, or absolute; an address stays one."""
        if "://" in path:
            return path
        if not Path(path).is_absolute():
            return self.media_value(path)
        root = Path(os.path.abspath(self.root))  # noqa: PTH100 - without looking at links
        return self.media_value(str(Path(path).relative_to(root))) if Path(path).is_relative_to(root) else path

    def _regions(self, index: int, line: Mapping[str, Any]) -> list[predictions.Region] | None:
        is_prediction = self.options.content == "predictions"
        text = line.get("pred_text", line.get("text")) if is_prediction else line.get("text")
        if text is None:
            return None
        if not isinstance(text, str):
            raise ValueError("its text is no text")
        if not text:
            return []
        score = line.get("score")
        region = RegionFactory(index).make(
            self._target.control,
            {"text": [text]},
            score=score if is_prediction and is_number(score) and 0 <= score <= 1 else None,
            to_name=self._target.object.name,
        )
        return [region]


def _need(config: LabelConfig | None) -> Need:
    """Return the control that is needed, about the tag for sounds that the label config has."""
    if config is None:
        return _TEXT_AREA
    needs = [Need("TextArea", (), tag) for tag in AUDIO_TAGS]
    return next((need for need in needs if has_control(config, need)), needs[0])
