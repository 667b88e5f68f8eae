"""Pictures and answers -> a net: a new head on frozen features, or every layer."""

from __future__ import annotations

import copy
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, TypeVar

from lsml_cli.errors import ModelError, TransientError
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import Wanted, fit_heads
from lsml_cli.models.image_classifier import nets
from lsml_cli.models.image_classifier.looking import Eye, Precision, agreement, cast, cores, lower_precisions
from lsml_cli.models.image_classifier.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lsml_cli.models.image_classifier.looking import Scores
    from lsml_cli.models.image_classifier.preprocessing import Pixels

NAMED = 20  # pictures that are named when they cannot be used
SAMPLE = 500  # pictures by which precisions are compared
AHEAD = 4  # batches that are read and decoded ahead

T = TypeVar("T")
Fetch = Callable[[str, int | None], bytes]


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
    delays: tuple[float, ...]


@dataclass(frozen=True)
class Album:
    """Pictures that can be read again and again. `fetch` may fail for a moment; then it is tried again."""

    pictures: Sequence[Picture]
    preprocessing: Preprocessing
    fetch: Fetch
    delays: tuple[float, ...]

    def pixels(self, position: int) -> Pixels:
        return self.preprocessing.pixels(self._content(position))

    def varied(self, position: int, seed: object) -> Pixels:
        return self.preprocessing.varied(self._content(position), Random(repr(seed)))

    def _content(self, position: int) -> bytes:
        picture = self.pictures[position]
        for delay in self.delays:
            try:
                return self.fetch(picture.value, picture.task)
            except (TransientError, ConnectionError, TimeoutError):
                time.sleep(delay)
        return self.fetch(picture.value, picture.task)


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

    eye = Eye(nets.without_end(net, recipe.arch), recipe.device, album.preprocessing, "fp32")
    rows, bad = features(eye, album, recipe.batch_size, progress)
    heads = _without(heads, bad)
    used = rows[[position for position in range(len(album.pictures)) if position not in bad]]
    mean, spread = used.mean(axis=0), used.std(axis=0)
    spread[spread < 1e-6] = 1.0  # a feature that never changes says nothing, whatever it is divided by
    fitted, notes = fit_heads((rows - mean) / spread, heads, recipe.C, recipe.class_weight)
    for note in notes:
        progress(note)
    coef = np.concatenate([coef for coef, _ in fitted], axis=1) / spread[:, None]
    intercept = np.concatenate([each for _, each in fitted]) - mean @ coef
    end = nets.widen(net, recipe.arch, len(intercept))
    with torch.no_grad():
        end.weight.copy_(torch.from_numpy(np.ascontiguousarray(coef.T)))
        if end.bias is None:  # an architecture that ends without one
            end.bias = torch.nn.Parameter(torch.zeros(len(intercept)))
        end.bias.copy_(torch.from_numpy(intercept))
    return heads


def features(
    eye: Eye, album: Album, batch_size: int, progress: Progress
) -> tuple[NDArray[np.float64], Mapping[int, str]]:
    """(n, F) of all pictures, zeros for those that cannot be used; their positions, with the reason."""
    import numpy as np

    total = len(album.pictures)
    rows: NDArray[np.float64] | None = None
    bad: dict[int, str] = {}
    said = time.monotonic()
    for batch in _batched(_ahead(album.pixels, range(total), batch_size), batch_size):
        good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, str)]
        bad |= {position: pixels for position, pixels in batch if isinstance(pixels, str)}
        if good:
            found = eye.scores([pixels for _, pixels in good])
            if rows is None:
                rows = np.zeros((total, found.shape[1]))
            rows[[position for position, _ in good]] = found
        if time.monotonic() - said > 10:
            said = time.monotonic()
            progress(f"Looked at {batch[-1][0] + 1:,} of {total:,} pictures.")
    _tell(bad, album, progress)
    if rows is None:
        raise ModelError("No picture can be used.", "See above what is wrong with them.")
    return rows, bad


def _learn_all(
    net: nn.Module, album: Album, heads: Sequence[Wanted], seen: Album, checks: Sequence[Wanted], recipe: Recipe,
    progress: Progress,
) -> list[Wanted]:  # fmt: skip
    """Fine-tune every layer: SGD with momentum, a step down after each third, the best epoch is kept."""
    import torch

    torch.manual_seed(recipe.seed)
    device = torch.device(recipe.device)
    bad = _unusable(album, recipe, progress)
    heads = _without(heads, bad)
    nets.widen(net, recipe.arch, sum(len(head.classes) for head in heads))
    lessons = _Targets(heads, device)
    positions = [position for position in range(len(album.pictures)) if position not in bad]
    eye = Eye(net, recipe.device, album.preprocessing, "fp32")
    precision: Precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, -(-recipe.epochs // 3)), gamma=0.1)
    best, best_epoch, kept = float("-inf"), 0, copy.deepcopy(net.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        begun = time.monotonic()
        order = list(positions)
        Random(f"{recipe.seed} {epoch}").shuffle(order)
        net.train()
        losses = []
        for batch in _train_batches(album, order, epoch, recipe):
            with cast(device.type, precision):
                found = net(eye.prepared([pixels for _, pixels in batch]))
            loss = lessons.loss(found.float(), [position for position, _ in batch])
            if loss is None:
                continue
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        schedule.step()
        net.eval()
        lost = float(torch.stack(losses).mean()) if losses else float("nan")
        if lost != lost:  # NaN
            raise ModelError("Training has diverged.", f"A smaller step helps: --with lr={recipe.lr / 10:g}")
        quality = _quality(eye, seen, checks, recipe) if seen.pictures else -lost
        shown = f", hold-out accuracy {quality:.4f}" if seen.pictures else ""
        progress(f"Epoch {epoch} of {recipe.epochs}: loss {lost:.4f}{shown} ({time.monotonic() - begun:.1f} s)")
        if quality > best:
            best, best_epoch, kept = quality, epoch, copy.deepcopy(net.state_dict())
        elif epoch - best_epoch >= recipe.patience:
            progress(f"No better for {recipe.patience} epochs.")
            break
    net.load_state_dict(kept)
    progress(f"Epoch {best_epoch} is kept.")
    return heads


def agreements(net: nn.Module, album: Album, recipe: Recipe) -> dict[str, float]:
    """{"bf16": share of pictures with the same first choice as in fp32}, on up to `SAMPLE` of them."""
    picked = range(0, len(album.pictures), max(1, -(-len(album.pictures) // SAMPLE)))
    read = _ahead(album.pixels, picked, recipe.batch_size)
    sample = [pixels for _, pixels in read if not isinstance(pixels, str)]
    if not sample:
        return {}
    plain = Eye(net, recipe.device, album.preprocessing, "fp32")
    truth = _all_scores(plain, sample, recipe.batch_size)
    return {
        precision: agreement(
            truth, _all_scores(plain.with_precision(precision, album.preprocessing), sample, recipe.batch_size)
        )
        for precision in lower_precisions(plain.device.type)
    }


def _all_scores(eye: Eye, sample: Sequence[Pixels], size: int) -> Scores:
    import numpy as np

    return np.concatenate([eye.scores(sample[first : first + size]) for first in range(0, len(sample), size)])


class _Targets:
    """The answers of all heads by position of the picture, and how far a net's outputs are from them."""

    def __init__(self, heads: Sequence[Wanted], device: torch.device) -> None:
        self.heads = heads
        self.device = device
        self.answers = [dict(zip(head.rows, head.chosen, strict=True)) for head in heads]

    def loss(self, outputs: torch.Tensor, positions: Sequence[int]) -> torch.Tensor | None:
        """Mean over the heads of cross entropy, or of binary cross entropy where several classes may apply."""
        import torch
        from torch.nn import functional

        losses, first = [], 0
        for head, answers in zip(self.heads, self.answers, strict=True):
            rows = [row for row, position in enumerate(positions) if position in answers]
            mine = outputs[rows, first : first + len(head.classes)]
            first += len(head.classes)
            if not rows:
                continue
            chosen = [answers[positions[row]] for row in rows]
            if head.multi:
                truth = torch.tensor([[float(name in each) for name in head.classes] for each in chosen])
                losses.append(functional.binary_cross_entropy_with_logits(mine, truth.to(self.device)))
            else:
                number = torch.tensor([head.classes.index(each[0]) for each in chosen])
                losses.append(functional.cross_entropy(mine, number.to(self.device)))
        return torch.stack(losses).mean() if losses else None


def _quality(eye: Eye, seen: Album, checks: Sequence[Wanted], recipe: Recipe) -> float:
    """Share of right answers on the hold-out, the mean over the heads; pictures that cannot be used count for none."""
    right: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    answers = [dict(zip(check.rows, check.chosen, strict=True)) for check in checks]
    positions = range(len(seen.pictures))
    for batch in _batched(_ahead(seen.pixels, positions, recipe.batch_size), recipe.batch_size):
        good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, str)]
        if not good:
            continue
        for (position, _), row in zip(good, eye.scores([pixels for _, pixels in good]), strict=True):
            first = 0
            for number, check in enumerate(checks):
                mine = row[first : first + len(check.classes)]
                first += len(check.classes)
                if position in answers[number]:
                    asked[number] += 1
                    guess = {name for name, score in zip(check.classes, mine, strict=True) if score > 0}
                    if not check.multi:
                        guess = {check.classes[int(mine.argmax())]}
                    right[number] += guess == set(answers[number][position])
    shares = [right[number] / asked[number] for number in asked]
    return sum(shares) / len(shares) if shares else 0.0


def _train_batches(
    album: Album, order: Sequence[int], epoch: int, recipe: Recipe
) -> Iterator[list[tuple[int, Pixels]]]:
    def read(position: int) -> Pixels:
        return album.varied(position, (recipe.seed, epoch, position)) if recipe.augment else album.pixels(position)

    for batch in _batched(_ahead(read, order, recipe.batch_size), recipe.batch_size):
        good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, str)]
        if len(good) > 1:  # batch normalisation has nothing to go by with a single picture
            yield good


def _unusable(album: Album, recipe: Recipe, progress: Progress) -> dict[int, str]:
    """Positions of the pictures that cannot be decoded, with the reason: told once, before the first epoch."""
    read = _ahead(album.pixels, range(len(album.pictures)), recipe.batch_size)
    bad = {position: pixels for position, pixels in read if isinstance(pixels, str)}
    _tell(bad, album, progress)
    return bad


def _without(heads: Sequence[Wanted], bad: Mapping[int, str]) -> list[Wanted]:
    """The heads without those pictures, and without the classes that only they had."""
    found = [head if not bad else _used(head, bad) for head in heads]
    for head in found:
        if not head.classes or (len(head.classes) == 1 and not head.multi):
            raise ModelError("Too few pictures can be used: two different answers are needed.")
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
    for position, reason in list(bad.items())[:NAMED]:
        progress(f"Not learned from {album.pictures[position]}: {reason}.")
    if len(bad) > NAMED:
        progress(f"Nor from {len(bad) - NAMED:,} more.")


def _ahead(
    read: Callable[[int], Pixels], positions: Sequence[int], batch_size: int
) -> Iterator[tuple[int, Pixels | str]]:
    """Each position with its pixels, or the reason why there are none; read in threads ahead of who asks."""
    waiting: deque[tuple[int, Future[Pixels]]] = deque()
    coming = iter(positions)
    with ThreadPoolExecutor(max(2, cores()), "pictures") as pool:
        try:
            for position in coming:
                waiting.append((position, pool.submit(read, position)))
                if len(waiting) >= AHEAD * batch_size:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(position: int, pixels: Future[Pixels]) -> tuple[int, Pixels | str]:
    from lsml_cli.replica import reason

    try:
        return position, pixels.result()
    except Exception as error:  # one bad picture costs one example
        return position, reason(error)


def _batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
