"""Annotated pictures -> a recogniser, or a text detector, that has learned them, in the folder of a version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, listed
from lsml_cli.evaluation.metrics.texts import character_edits
from lsml_cli.inference.replica import cores
from lsml_cli.models.base import Json, Progress
from lsml_cli.models.ocr import config as recipe
from lsml_cli.models.ocr import dataset
from lsml_cli.models.ocr.components import DICTIONARY, SCOPE, Name, Part, config_file, weights_file
from lsml_cli.models.ocr.dataset import Snippet
from lsml_cli.models.ocr.postprocess import Filling
from lsml_cli.models.openmmlab import checkpoints, configs, inference
from lsml_cli.models.openmmlab import train as running
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import Gathered, pixels
from lsml_cli.models.openmmlab.inference import Net

Pages = Sequence[tuple[Gathered, Filling]]  # pictures with the controls about them
Learn = Callable[[], dict[str, Json]]  # trains a part, writes it into the version, returns what is to be known about it

SHOWN = 20  # characters that are named when they cannot be learned
TOGETHER = 256  # crops that are in memory while a recogniser is measured


@dataclass(frozen=True)
class Lesson:
    """What is learned from, and how. See the parameters of `Ocr`.

    train, holdout  the latter only to see which epoch is best
    run             a folder for what training needs; `out` is that of the version
    """

    train: Pages
    holdout: Pages
    run: Path
    out: Path
    device: str
    dictionary: str
    epochs: int
    lr: float | None
    batch_size: int | None
    patience: int
    pretrained: bool
    seed: int
    progress: Progress


def to_read(part: Part, lesson: Lesson) -> Learn:
    """Everything but the training of the recogniser itself, which may take hours: call what comes back.

    Raises ModelError when there is nothing to learn, or nothing to begin with.
    """
    train, held = _cut(lesson, "train", lesson.train), _cut(lesson, "holdout", lesson.holdout)
    if not train:
        raise ModelError(
            "There is nothing to learn to read: no text in the annotations has a transcription.",
            "Transcribe some, or learn where text is, and not what it says: --with train=detection",
        )
    own = lesson.dictionary == "data" or (lesson.dictionary == "auto" and part.begins_random)
    case = "unchanged" if own else recipe.letter_case(part.config)
    texts = [recipe.spelled(each.text, case) for each in train]
    known = "".join(sorted({each for text in texts for each in text})) if own else recipe.characters(part.config)
    recipe.write_characters(known, lesson.out)
    _tell_unknown(texts, known, lesson)
    learned = [each for each, text in zip(train, texts, strict=True) if recipe.known_only(text, known)]
    folder = _folder(lesson, "recog")
    dataset.write_snippets(
        learned, folder / "train.json", lambda text: recipe.known_only(recipe.spelled(text, case), known)
    )
    dataset.write_snippets(held, folder / "holdout.json", lambda text: recipe.spelled(text, case))
    described = recipe.stored(part, own_characters=own)
    train_part = _to_train(part, described, lesson, len(learned), measured=bool(held), new_ends=own)

    def learn() -> dict[str, Json]:
        lesson.progress(
            f"Learning to read {len(known)} characters from {len(learned):,} texts in {len(lesson.train):,} pictures "
            f"({part.who})."
        )
        found: dict[str, Json] = {"characters": known, "epoch": train_part().epoch}
        return found | (_measured(replace(part, folder=lesson.out), held, case, lesson) if held else {})

    return learn


def to_find(part: Part, lesson: Lesson) -> Learn:
    """The same for the text detector."""
    folder = _folder(lesson, "det")
    count, texts = dataset.write_shapes(lesson.train, folder / "train.json")
    held, _ = dataset.write_shapes(lesson.holdout, folder / "holdout.json")
    if not count:
        raise ModelError("There is nothing to learn to find: the annotations have no shape around a text.")
    described = recipe.stored(part, own_characters=False)
    train_part = _to_train(part, described, lesson, count, measured=held > 0, new_ends=False)

    def learn() -> dict[str, Json]:
        lesson.progress(f"Learning to find text from {texts:,} shapes in {count:,} pictures ({part.who}).")
        trained = train_part()
        return {"epoch": trained.epoch, **{name: round(value, 4) for name, value in trained.metrics.items()}}

    return learn


def keep(part: Part, out: Path) -> None:
    """Write a part into a version that is not trained, but has learned something before."""
    checkpoint = part.checkpoint()
    assert checkpoint is not None
    if part.name == "recog":
        recipe.write_characters(recipe.characters(part.config), out)
    _write(part.name, recipe.stored(part, own_characters=False), part.built().state_dict(), out)


def _folder(lesson: Lesson, name: Name) -> Path:
    folder = lesson.run / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cut(lesson: Lesson, side: str, pages: Pages) -> list[Snippet]:
    """The transcribed texts of some pictures, as files; it is told what is left out."""
    left_out: Counter[str] = Counter()
    found = list(dataset.snippets(pages, lesson.run / "crops" / side, left_out))
    if left_out and side == "train":
        lesson.progress(f"Not learned: {listed(f'{count:,} texts {reason}' for reason, count in left_out.items())}.")
    return found


def _tell_unknown(texts: Sequence[str], known: str, lesson: Lesson) -> None:
    if lost := recipe.outside(texts, known):
        count = sum(not set(text) <= set(known) for text in texts)
        lesson.progress(
            f"The dictionary lacks {len(lost)} characters: {' '.join(lost[:SHOWN])}{' …' * (len(lost) > SHOWN)}. "
            f"{count:,} texts are learned without them; --with dictionary=data learns them all."
        )


def _to_train(
    part: Part, described: Config, lesson: Lesson, count: int, *, measured: bool, new_ends: bool
) -> Callable[[], running.Trained]:
    """What trains a part and writes it into the version. count: of the crops or pictures to learn from.

    new_ends  whether the last layers may begin anew, since they are about other characters
    """
    folder = _folder(lesson, part.name).resolve()
    size = recipe.batch_of(part.name, lesson.batch_size, count)
    config = recipe.for_training(
        described,
        part,
        folder=folder,
        dictionary=(lesson.out / DICTIONARY).resolve(),
        batch_size=size,
        lr=lesson.lr,
        warm=not part.begins_random,
        measured=measured,
        workers=min(4, cores()) if lesson.device != "cpu" else 0,
    )
    start = None
    if (checkpoint := part.checkpoint()) is not None:
        start = inference.build(config, SCOPE)
        if anew := checkpoints.fill(start, checkpoint, what=part.who, new_ends=new_ends):
            lesson.progress(f"{len(anew)} of the model's arrays begin anew, since they belong to other characters.")
    elif not lesson.pretrained:
        config["model"] = configs.without_pretrained(config["model"])
    measure, shown = recipe.MEASURES[part.name]
    # One that begins with nothing reads nothing for many epochs, and then everything.
    patience = lesson.epochs if part.begins_random else lesson.patience
    plan = running.Plan(lesson.epochs, patience, measure if measured else "", shown)
    running.scheduled(config, plan, count, size)

    def train() -> running.Trained:
        found = running.train(
            folder,
            config,
            SCOPE,
            plan,
            start,
            device=lesson.device,
            seed=lesson.seed,
            launch=None,
            progress=lesson.progress,
        )
        _write(part.name, described, found.checkpoint.weights, lesson.out)
        return found

    return train


def _write(name: Name, described: Config, weights: Any, out: Path) -> None:
    configs.store(described, out, config_file(name))
    checkpoints.save(weights, out, weights_file(name))


def _measured(part: Part, held: Sequence[Snippet], case: str, lesson: Lesson) -> dict[str, Json]:
    """How well the version reads what was held out: word accuracy and character error rate, told and returned."""
    net = Net(part.built(), SCOPE, part.steps, lesson.device, fuse=False)
    right = edits = length = 0
    for first in range(0, len(held), TOGETHER):
        some = held[first : first + TOGETHER]
        samples = net.found_alike([net.prepare(pixels(each.path.read_bytes())) for each in some])
        for each, sample in zip(some, samples, strict=True):
            wrong, characters = character_edits(recipe.spelled(each.text, case), sample.pred_text.item)
            right, edits, length = right + (wrong == 0), edits + wrong, length + characters
    accuracy, rate = right / len(held), edits / length
    lesson.progress(
        f"{accuracy:.1%} of {len(held):,} held-out texts are read without a mistake; {rate:.2%} of their characters "
        "are wrong (CER)."
    )
    return {"word_accuracy": round(accuracy, 4), "cer": round(rate, 4), "texts": len(held)}
