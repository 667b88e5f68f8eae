"""Pictures and answers -> a net: a new head on frozen features, or every layer."""

from __future__ import annotations

import copy
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from random import Random
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.inference.replica import FETCHERS, cores, reason
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import Wanted, fit_heads
from lsml_cli.models.image_classifier import backbones
from lsml_cli.models.image_classifier.inference import Eye, Question, agreement
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from lsml_cli.models.media_reader import Source
from lsml_cli.models.torch_runtime import Precision, cast, lower_precisions

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lsml_cli.models.image_classifier.inference import Scores
    from lsml_cli.models.image_classifier.preprocessing import Pixels

NAMED = 20  # pictures that are named when they cannot be used
SAMPLE = 500  # pictures by which precisions are compared
AHEAD = 2  # batches that are read and decoded ahead
FIRST_WORD, NEXT_WORDS = 10.0, 60.0  # seconds until it is told how far it is
SAME = 1e-4  # of its mean: a feature that varies less than this is not told apart from one that does not

Read = Callable[[bytes, int], "Pixels"]
Batch = list[tuple[int, "Pixels | str"]]
Batches = Generator[Batch, None, None]  # to be closed


@dataclass(frozen=True)
class Picture:
    """What a task shows: the value that points to it."""

    value: str
    task: int | None
    index: int

    def __str__(self) -> str:
        return f"task {self.task}" if self.task is not None else f"the task at position {self.index + 1}"


@dataclass(frozen=True)
class Recipe:
    """How to learn. See the parameters of `ImageClassifier`."""

    arch: str
    strategy: str
    device: str
    batch_size: int
    epochs: int
    lr: float
    augment: bool
    patience: int
    seed: int
    C: float
    class_weight: str | None


@dataclass(frozen=True)
class Album:
    """Pictures that can be read again and again."""

    pictures: Sequence[Picture]
    preprocessing: Preprocessing
    source: Source

    def pixels(self, content: bytes, position: int) -> Pixels:
        return self.preprocessing.pixels(content)

    def _content(self, position: int) -> bytes:
        picture = self.pictures[position]
        return self.source.content(picture.value, picture.task)

    def batches(self, positions: Sequence[int], size: int, read: Read | None = None) -> Batches:
        """Each position with its pixels, or with the reason why there are none; fetched and read ahead in threads.

        read  the content of a picture and its position -> pixels; as the net will see them if not given
        """
        read = read or self.pixels
        fetchers = ThreadPoolExecutor(FETCHERS, "fetch")  # have nothing to do but wait
        readers = ThreadPoolExecutor(max(2, cores()), "read")
        waiting: deque[tuple[int, Future[Pixels]]] = deque()
        coming = iter(positions)
        try:
            while True:
                for position in islice(coming, AHEAD * size + size - len(waiting)):
                    fetched = fetchers.submit(self._content, position)
                    waiting.append((position, readers.submit(_decoded, read, fetched, position)))
                if not waiting:
                    return
                yield [_result(*waiting.popleft()) for _ in range(min(size, len(waiting)))]
        finally:  # whoever stops half-way, by an error or ctrl-C, waits for nothing
            for pool in (fetchers, readers):
                pool.shutdown(wait=False, cancel_futures=True)


def learn(
    net: nn.Module, album: Album, heads: Sequence[Wanted], seen: Album, checks: Sequence[Wanted], recipe: Recipe,
    progress: Progress,
) -> list[Wanted]:  # fmt: skip
    """Train `net` in place; the heads as they were learned, without what cannot be used.

    heads        what to learn from `album`; the net's outputs are their classes side by side
    seen, checks the hold-out, for early stopping only

    Raises ModelError when no usable picture is left.
    """
    if recipe.strategy == "head":
        return _learn_head(net, album, heads, recipe, progress)
    return _learn_all(net, album, heads, seen, checks, recipe, progress)


def _learn_head(
    net: nn.Module, album: Album, heads: Sequence[Wanted], recipe: Recipe, progress: Progress
) -> list[Wanted]:
    """Every picture goes through the net once; what comes out below its last layer is kept, and the layer fitted."""
    import numpy as np
    import torch

    eye = Eye(backbones.without_end(net, recipe.arch), recipe.device, album.preprocessing, "fp32")
    rows, bad = features(eye, album, recipe.batch_size, progress)
    heads = _without(heads, bad)
    used = np.delete(rows, list(bad), axis=0) if bad else rows
    mean = used.mean(axis=0, dtype=np.float64)
    spread = used.std(axis=0, dtype=np.float64)
    del used
    if not np.isfinite(mean).all():
        raise ModelError(
            f"{recipe.arch} gives no numbers with these weights.", "Begin with others: --with weights=none"
        )
    # How large features are says nothing: those of some nets with random weights are of the order of 1e-14.
    spread[spread <= SAME * np.abs(mean)] = np.inf
    standard = rows - mean
    standard /= spread
    del rows
    fitted, notes = fit_heads(standard, heads, recipe.C, recipe.class_weight)
    for note in notes:
        progress(note)
    # What was learned about (row - mean) / spread, as weights of the row itself.
    coef = np.concatenate([coef for coef, _ in fitted], axis=1) / spread[:, None]
    intercept = np.concatenate([each for _, each in fitted]) - mean @ coef
    end = backbones.widen(net, recipe.arch, len(intercept))
    with torch.no_grad():
        end.weight.copy_(torch.from_numpy(np.ascontiguousarray(coef.T)))
        end.bias.copy_(torch.from_numpy(intercept))
    return heads


def features(
    eye: Eye, album: Album, batch_size: int, progress: Progress
) -> tuple[NDArray[np.float32], Mapping[int, str]]:
    """(n, F) of all pictures, zeros for those that cannot be used; their positions, with the reason."""
    import numpy as np

    total = len(album.pictures)
    rows: NDArray[np.float32] | None = None
    bad: dict[int, str] = {}
    begun = time.monotonic()
    due = begun + FIRST_WORD
    with closing(album.batches(range(total), batch_size)) as batches:
        for batch in batches:
            good, unusable = _sorted(batch)
            bad |= unusable
            if good:
                found = eye.scores([pixels for _, pixels in good])
                if rows is None:
                    rows = np.zeros((total, found.shape[1]), dtype=np.float32)
                rows[[position for position, _ in good]] = found
            if (now := time.monotonic()) > due:
                due = now + NEXT_WORDS
                done = batch[-1][0] + 1
                left = (now - begun) / done * (total - done)
                progress(f"Looked at {done:,} of {total:,} pictures; about {_duration(left)} to go.")
    _tell(bad, album, progress)
    if rows is None:
        raise ModelError("No picture can be used.", _LOOK_ABOVE)
    return rows, bad


_LOOK_ABOVE = "What is wrong with them stands above; `lsml predict --check` looks for all that is missing."


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _learn_all(
    net: nn.Module, album: Album, heads: Sequence[Wanted], seen: Album, checks: Sequence[Wanted], recipe: Recipe,
    progress: Progress,
) -> list[Wanted]:  # fmt: skip
    """Fine-tune every layer: SGD with momentum, a step down after each third, the best epoch is kept."""
    import torch

    torch.manual_seed(recipe.seed)
    device = torch.device(recipe.device)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # what it would choose otherwise depends on how quick it just was
    bad = _unusable(album, recipe, progress)
    heads = _without(heads, bad)
    checks = [_asked(check, head) for check, head in zip(checks, heads, strict=True)]
    backbones.widen(net, recipe.arch, sum(len(head.classes) for head in heads))
    targets = _Targets(heads, device, recipe.class_weight)
    positions = [position for position in range(len(album.pictures)) if position not in bad]
    eye = Eye(net, recipe.device, album.preprocessing, "fp32")
    precision = _training_precision(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # its small gradients would become zero
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, -(-recipe.epochs // 3)), gamma=0.1)
    best, best_epoch, kept = float("-inf"), 0, copy.deepcopy(net.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        begun = time.monotonic()
        order = list(positions)
        Random(f"{recipe.seed} {epoch}").shuffle(order)
        net.train()
        losses = []
        lacking = 0
        with closing(_training_batches(album, order, epoch, recipe)) as batches:
            for batch in batches:
                good, unusable = _sorted(batch)
                lacking += len(unusable)
                if len(good) < 2:  # batch normalisation has nothing to go by with a single picture
                    continue
                with cast(device.type, precision):
                    found = net(eye.prepared([pixels for _, pixels in good]))
                loss = targets.loss(found.float(), [position for position, _ in good])
                if loss is None:
                    continue
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                losses.append(loss.detach())
        if not losses:
            raise ModelError(f"No picture could be read in epoch {epoch}.", "Try again when they are there.")
        schedule.step()
        net.eval()
        lost = float(torch.stack(losses).mean())
        quality = _quality(eye, seen, checks, recipe) if seen.pictures and isfinite(lost) else -lost
        if not isfinite(lost) or not isfinite(quality):
            raise ModelError(
                f"Training has diverged in epoch {epoch}.", f"A smaller step helps: --with lr={recipe.lr / 10:g}"
            )
        shown = f", hold-out accuracy {quality:.4f}" if seen.pictures else ""
        less = f", {lacking:,} pictures could not be read" if lacking else ""
        progress(f"Epoch {epoch} of {recipe.epochs}: loss {lost:.4f}{shown}{less} ({time.monotonic() - begun:.1f} s)")
        if quality > best:
            best, best_epoch, kept = quality, epoch, copy.deepcopy(net.state_dict())
        elif epoch - best_epoch >= recipe.patience:
            progress(f"No better for {recipe.patience} epochs.")
            break
    net.load_state_dict(kept)
    progress(f"Epoch {best_epoch} is kept.")
    return heads


def _training_precision(device: torch.device) -> Precision:
    """bf16 where the device has it, fp16 on older GPUs, fp32 elsewhere."""
    import torch

    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def _training_batches(album: Album, order: Sequence[int], epoch: int, recipe: Recipe) -> Batches:
    def varied(content: bytes, position: int) -> Pixels:
        return album.preprocessing.varied(content, Random(f"{recipe.seed} {epoch} {position}"))

    return album.batches(order, recipe.batch_size, varied if recipe.augment else None)


def agreements(net: nn.Module, album: Album, heads: Sequence[Wanted], recipe: Recipe) -> dict[str, float]:
    """{"bf16": share of pictures with the same answers as in fp32}, on up to `SAMPLE` of them."""
    import numpy as np

    plain = Eye(net, recipe.device, album.preprocessing, "fp32")
    others = {name: plain.with_precision(name, album.preprocessing) for name in lower_precisions(plain.device.type)}
    picked = range(0, len(album.pictures), max(1, -(-len(album.pictures) // SAMPLE)))
    truth: list[Scores] = []
    found: dict[str, list[Scores]] = {name: [] for name in others}
    with closing(album.batches(picked, recipe.batch_size)) as batches:
        for batch in batches:
            if sample := [pixels for _, pixels in _sorted(batch)[0]]:
                truth.append(plain.scores(sample))
                for name, eye in others.items():
                    found[name].append(eye.scores(sample))
    if not truth:
        return {}
    every = np.concatenate(truth)
    return {name: agreement(every, np.concatenate(scores), questions(heads)) for name, scores in found.items()}


def questions(heads: Sequence[Wanted]) -> list[Question]:
    """What a net answers whose outputs are the classes of these heads side by side."""
    found, first = [], 0
    for head in heads:
        found.append(Question(first, len(head.classes), head.multi))
        first += len(head.classes)
    return found


class _Targets:
    """The answers of all heads by position of the picture, and how far a net's outputs are from them."""

    def __init__(self, heads: Sequence[Wanted], device: torch.device, class_weight: str | None) -> None:
        self.heads = heads
        self.device = device
        self.answers = [dict(zip(head.rows, head.chosen, strict=True)) for head in heads]
        self.weights = [_balanced(head) if class_weight else None for head in heads]

    def loss(self, outputs: torch.Tensor, positions: Sequence[int]) -> torch.Tensor | None:
        """Mean over the heads of cross entropy, or of binary cross entropy where several classes may apply."""
        losses = []
        for number, (head, question) in enumerate(zip(self.heads, questions(self.heads), strict=True)):
            answers = self.answers[number]
            rows = [row for row, position in enumerate(positions) if position in answers]
            if rows:
                mine = outputs[rows, question.first : question.first + question.count]
                losses.append(self._loss(mine, head, [answers[positions[row]] for row in rows], self.weights[number]))
        return sum(losses[1:], losses[0]) / len(losses) if losses else None

    def _loss(
        self, mine: torch.Tensor, head: Wanted, chosen: Sequence[Sequence[str]], weights: NDArray[np.float32] | None
    ) -> torch.Tensor:
        import torch
        from torch.nn import functional

        each = None if weights is None else torch.from_numpy(weights).to(self.device)  # (2, K) for multi, else (K,)
        if not head.multi:
            number = torch.tensor([head.classes.index(names[0]) for names in chosen], device=self.device)
            return functional.cross_entropy(mine, number, weight=each)
        truth = torch.tensor([[float(name in names) for name in head.classes] for names in chosen], device=self.device)
        if each is not None:
            each = torch.where(truth > 0, each[1], each[0])
        return functional.binary_cross_entropy_with_logits(mine, truth, weight=each)


def _balanced(head: Wanted) -> NDArray[np.float32]:
    """What an example of each class counts, by scikit-learn's formula, so that rare ones count as much as others: (K,).

    Where several classes may apply, of an example without the class and of one with it: (2, K).
    """
    import numpy as np

    seen = Counter(name for names in head.chosen for name in names)
    with_it = np.array([seen[name] for name in head.classes])
    total = len(head.chosen)
    if not head.multi:
        return np.asarray(total / (len(head.classes) * with_it), dtype=np.float32)
    return np.asarray(total / (2 * np.maximum(np.stack([total - with_it, with_it]), 1)), dtype=np.float32)


def _quality(eye: Eye, seen: Album, checks: Sequence[Wanted], recipe: Recipe) -> float:
    """Share of right answers on the hold-out, the mean over the heads; pictures that cannot be used do not count.

    NaN when the net gives scores that are no numbers.
    """
    import numpy as np

    right: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    answers = [dict(zip(check.rows, check.chosen, strict=True)) for check in checks]
    with closing(seen.batches(range(len(seen.pictures)), recipe.batch_size)) as batches:
        for batch in batches:
            good, _ = _sorted(batch)
            if not good:
                continue
            scores = eye.scores([pixels for _, pixels in good])
            if not np.isfinite(scores).all():
                return float("nan")
            for number, (check, question) in enumerate(zip(checks, questions(checks), strict=True)):
                for (position, _), guess in zip(good, question.answers(scores), strict=True):
                    if position in answers[number]:
                        asked[number] += 1
                        right[number] += set(answers[number][position]) == _named(check, guess)
    shares = [right[number] / asked[number] for number in asked]
    return sum(shares) / len(shares) if shares else 0.0


def _named(head: Wanted, guess: Any) -> set[str]:
    """The classes that `Question.answers` says of one row."""
    if head.multi:
        return {name for name, applies in zip(head.classes, guess, strict=True) if applies}
    return {head.classes[int(guess)]}


def _asked(check: Wanted, head: Wanted) -> Wanted:
    """What the hold-out asks, as far as the head, which may have lost classes since, can answer it."""
    every = zip(check.rows, check.chosen, strict=True)
    pairs = [(row, names) for row, names in every if set(names) <= set(head.classes)]
    return Wanted([row for row, _ in pairs], [names for _, names in pairs], head.classes, head.multi)


def _unusable(album: Album, recipe: Recipe, progress: Progress) -> dict[int, str]:
    """Positions of the pictures that cannot be decoded, with the reason: told once, before the first epoch."""
    bad: dict[int, str] = {}
    with closing(album.batches(range(len(album.pictures)), recipe.batch_size)) as batches:
        for batch in batches:
            bad |= _sorted(batch)[1]
    _tell(bad, album, progress)
    if len(bad) == len(album.pictures):
        raise ModelError("No picture can be used.", _LOOK_ABOVE)
    return bad


def _without(heads: Sequence[Wanted], bad: Mapping[int, str]) -> list[Wanted]:
    """The heads without those pictures, and without the classes that only they had."""
    found = [head if not bad else _used(head, bad) for head in heads]
    for head in found:
        if not head.classes or (len(head.classes) == 1 and not head.multi):
            raise ModelError("Too few pictures can be used: two different answers are needed.", _LOOK_ABOVE)
    return found


def _used(head: Wanted, bad: Mapping[int, str]) -> Wanted:
    pairs = [(row, chosen) for row, chosen in zip(head.rows, head.chosen, strict=True) if row not in bad]
    there = {name for _, chosen in pairs for name in chosen}
    return replace(
        head,
        rows=[row for row, _ in pairs],
        chosen=[chosen for _, chosen in pairs],
        classes=[name for name in head.classes if name in there],
    )


def _tell(bad: Mapping[int, str], album: Album, progress: Progress) -> None:
    for position, why in list(bad.items())[:NAMED]:
        progress(f"Not learned from {album.pictures[position]}: {why}.")
    if len(bad) > NAMED:
        progress(f"Nor from {len(bad) - NAMED:,} more: {len(bad):,} of {len(album.pictures):,} pictures are no use.")


def _sorted(batch: Batch) -> tuple[list[tuple[int, Pixels]], dict[int, str]]:
    """Those that can be used, and why the others cannot."""
    good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, str)]
    return good, {position: pixels for position, pixels in batch if isinstance(pixels, str)}


def _decoded(read: Read, fetched: Future[bytes], position: int) -> Pixels:
    return read(fetched.result(), position)


def _result(position: int, pixels: Future[Pixels]) -> tuple[int, Pixels | str]:
    try:
        return position, pixels.result()
    except Exception as error:  # one bad picture costs one example
        return position, reason(error)
