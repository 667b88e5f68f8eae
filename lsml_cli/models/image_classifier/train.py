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
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import HeadTargets, fit_heads
from lsml_cli.models.image_classifier import backbones
from lsml_cli.models.image_classifier.inference import HeadColumns, Predictor, agreement
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.torch_runtime import Precision, autocast, lower_precisions
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, available_cores, error_reason

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lsml_cli.models.image_classifier.inference import Scores
    from lsml_cli.models.image_classifier.preprocessing import Pixels

MAX_NAMED_IMAGES = 20  # pictures that are named when they cannot be used
AGREEMENT_SAMPLE_SIZE = 500  # pictures by which precisions are compared
PREFETCH_BATCHES = 2  # batches that are read and decoded ahead
FIRST_PROGRESS_SECONDS, PROGRESS_INTERVAL_SECONDS = 10.0, 60.0  # seconds until it is told how far it is
MIN_RELATIVE_STD = 1e-4  # of its mean: a feature that varies less than this is not told apart from one that does not

ReadPixels = Callable[[bytes, int], "Pixels"]
Batch = list[tuple[int, "Pixels | str"]]
Batches = Generator[Batch, None, None]  # to be closed


@dataclass(frozen=True)
class ImageRef:
    """What a task shows: the value that points to it."""

    value: str
    task_id: int | None
    task_index: int

    def __str__(self) -> str:
        return f"task {self.task_id}" if self.task_id is not None else f"the task at position {self.task_index + 1}"


@dataclass(frozen=True)
class TrainConfig:
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
class ImageDataset:
    """Pictures that can be read again and again."""

    images: Sequence[ImageRef]
    preprocessing: Preprocessing
    media_reader: MediaReader

    def pixels(self, content: bytes, position: int) -> Pixels:
        return self.preprocessing.pixels(content)

    def _fetch_content(self, position: int) -> bytes:
        picture = self.images[position]
        return self.media_reader.read(picture.value, picture.task_id)

    def batches(self, positions: Sequence[int], size: int, read_pixels: ReadPixels | None = None) -> Batches:
        """Each position with its pixels, or with the reason why there are none; fetched and read ahead in threads.

        read  the content of a picture and its position -> pixels; as the net will see them if not given
        """
        read_pixels = read_pixels or self.pixels
        fetchers = ThreadPoolExecutor(DEFAULT_FETCH_THREADS, "fetch")  # have nothing to do but wait
        readers = ThreadPoolExecutor(max(2, available_cores()), "read")
        waiting: deque[tuple[int, Future[Pixels]]] = deque()
        coming = iter(positions)
        try:
            while True:
                for position in islice(coming, PREFETCH_BATCHES * size + size - len(waiting)):
                    fetched = fetchers.submit(self._fetch_content, position)
                    waiting.append((position, readers.submit(_decode, read_pixels, fetched, position)))
                if not waiting:
                    return
                yield [_pixels_or_error(*waiting.popleft()) for _ in range(min(size, len(waiting)))]
        finally:  # whoever stops half-way, by an error or ctrl-C, waits for nothing
            for pool in (fetchers, readers):
                pool.shutdown(wait=False, cancel_futures=True)


def train_net(
    net: nn.Module, dataset: ImageDataset, targets: Sequence[HeadTargets], validation: ImageDataset, validation_targets: Sequence[HeadTargets], config: TrainConfig,
    progress: Progress,
) -> list[HeadTargets]:  # fmt: skip
    """Train `net` in place; the heads as they were learned, without what cannot be used.

    heads        what to learn from `album`; the net's outputs are their classes side by side
    seen, checks the hold-out, for early stopping only

    Raises ModelError when no usable picture is left.
    """
    if config.strategy == "head":
        return _train_head(net, dataset, targets, config, progress)
    return _train_all_layers(net, dataset, targets, validation, validation_targets, config, progress)


def _train_head(
    net: nn.Module, dataset: ImageDataset, targets: Sequence[HeadTargets], config: TrainConfig, progress: Progress
) -> list[HeadTargets]:
    """Every picture goes through the net once; what comes out below its last layer is kept, and the layer fitted."""
    import numpy as np
    import torch

    eye = Predictor(backbones.remove_last_layer(net, config.arch), config.device, dataset.preprocessing, "fp32")
    rows, bad = extract_features(eye, dataset, config.batch_size, progress)
    targets = _drop_unusable(targets, bad)
    used = np.delete(rows, list(bad), axis=0) if bad else rows
    mean = used.mean(axis=0, dtype=np.float64)
    spread = used.std(axis=0, dtype=np.float64)
    del used
    if not np.isfinite(mean).all():
        raise ModelError(
            f"{config.arch} gives no numbers with these weights.", "Begin with others: --with weights=none"
        )
    # How large features are says nothing: those of some nets with random weights are of the order of 1e-14.
    spread[spread <= MIN_RELATIVE_STD * np.abs(mean)] = np.inf
    standard = rows - mean
    standard /= spread
    del rows
    fitted, notes = fit_heads(standard, targets, config.C, config.class_weight)
    for note in notes:
        progress(note)
    # What was learned about (row - mean) / spread, as weights of the row itself.
    coef = np.concatenate([coef for coef, _ in fitted], axis=1) / spread[:, None]
    intercept = np.concatenate([each for _, each in fitted]) - mean @ coef
    end = backbones.resize_last_layer(net, config.arch, len(intercept))
    with torch.no_grad():
        end.weight.copy_(torch.from_numpy(np.ascontiguousarray(coef.T)))
        end.bias.copy_(torch.from_numpy(intercept))
    return targets


def extract_features(
    predictor: Predictor, dataset: ImageDataset, batch_size: int, progress: Progress
) -> tuple[NDArray[np.float32], Mapping[int, str]]:
    """(n, F) of all pictures, zeros for those that cannot be used; their positions, with the reason."""
    import numpy as np

    total = len(dataset.images)
    rows: NDArray[np.float32] | None = None
    bad: dict[int, str] = {}
    begun = time.monotonic()
    due = begun + FIRST_PROGRESS_SECONDS
    with closing(dataset.batches(range(total), batch_size)) as batches:
        for batch in batches:
            good, unusable = _split_usable(batch)
            bad |= unusable
            if good:
                found = predictor.scores([pixels for _, pixels in good])
                if rows is None:
                    rows = np.zeros((total, found.shape[1]), dtype=np.float32)
                rows[[position for position, _ in good]] = found
            if (now := time.monotonic()) > due:
                due = now + PROGRESS_INTERVAL_SECONDS
                done = batch[-1][0] + 1
                left = (now - begun) / done * (total - done)
                progress(f"Looked at {done:,} of {total:,} pictures; about {_format_duration(left)} to go.")
    _report_unusable(bad, dataset, progress)
    if rows is None:
        raise ModelError("No picture can be used.", _UNUSABLE_HINT)
    return rows, bad


_UNUSABLE_HINT = "What is wrong with them stands above; `lsml predict --check` looks for all that is missing."


def _format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _train_all_layers(
    net: nn.Module, dataset: ImageDataset, head_targets: Sequence[HeadTargets], validation: ImageDataset, validation_targets: Sequence[HeadTargets], config: TrainConfig,
    progress: Progress,
) -> list[HeadTargets]:  # fmt: skip
    """Fine-tune every layer: SGD with momentum, a step down after each third, the best epoch is kept."""
    import torch

    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # what it would choose otherwise depends on how quick it just was
    bad = _find_unusable(dataset, config, progress)
    head_targets = _drop_unusable(head_targets, bad)
    validation_targets = [
        _restrict_to_head(check, head) for check, head in zip(validation_targets, head_targets, strict=True)
    ]
    backbones.resize_last_layer(net, config.arch, sum(len(head.classes) for head in head_targets))
    targets = _MultiHeadLoss(head_targets, device, config.class_weight)
    positions = [position for position in range(len(dataset.images)) if position not in bad]
    eye = Predictor(net, config.device, dataset.preprocessing, "fp32")
    precision = _training_precision(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # its small gradients would become zero
    optimizer = torch.optim.SGD(net.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, -(-config.epochs // 3)), gamma=0.1)
    best, best_epoch, kept = float("-inf"), 0, copy.deepcopy(net.state_dict())
    for epoch in range(1, config.epochs + 1):
        begun = time.monotonic()
        order = list(positions)
        Random(f"{config.seed} {epoch}").shuffle(order)
        net.train()
        losses = []
        lacking = 0
        with closing(_training_batches(dataset, order, epoch, config)) as batches:
            for batch in batches:
                good, unusable = _split_usable(batch)
                lacking += len(unusable)
                if len(good) < 2:  # batch normalisation has nothing to go by with a single picture
                    continue
                with autocast(device.type, precision):
                    found = net(eye.to_tensor([pixels for _, pixels in good]))
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
        quality = (
            _validation_accuracy(eye, validation, validation_targets, config)
            if validation.images and isfinite(lost)
            else -lost
        )
        if not isfinite(lost) or not isfinite(quality):
            raise ModelError(
                f"Training has diverged in epoch {epoch}.", f"A smaller step helps: --with lr={config.lr / 10:g}"
            )
        shown = f", hold-out accuracy {quality:.4f}" if validation.images else ""
        less = f", {lacking:,} pictures could not be read" if lacking else ""
        progress(f"Epoch {epoch} of {config.epochs}: loss {lost:.4f}{shown}{less} ({time.monotonic() - begun:.1f} s)")
        if quality > best:
            best, best_epoch, kept = quality, epoch, copy.deepcopy(net.state_dict())
        elif epoch - best_epoch >= config.patience:
            progress(f"No better for {config.patience} epochs.")
            break
    net.load_state_dict(kept)
    progress(f"Epoch {best_epoch} is kept.")
    return head_targets


def _training_precision(device: torch.device) -> Precision:
    """bf16 where the device has it, fp16 on older GPUs, fp32 elsewhere."""
    import torch

    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def _training_batches(dataset: ImageDataset, order: Sequence[int], epoch: int, config: TrainConfig) -> Batches:
    def varied(content: bytes, position: int) -> Pixels:
        return dataset.preprocessing.augmented_pixels(content, Random(f"{config.seed} {epoch} {position}"))

    return dataset.batches(order, config.batch_size, varied if config.augment else None)


def precision_agreement(
    net: nn.Module, dataset: ImageDataset, targets: Sequence[HeadTargets], config: TrainConfig
) -> dict[str, float]:
    """{"bf16": share of pictures with the same answers as in fp32}, on up to `SAMPLE` of them."""
    import numpy as np

    plain = Predictor(net, config.device, dataset.preprocessing, "fp32")
    others = {name: plain.with_precision(name, dataset.preprocessing) for name in lower_precisions(plain.device.type)}
    picked = range(0, len(dataset.images), max(1, -(-len(dataset.images) // AGREEMENT_SAMPLE_SIZE)))
    truth: list[Scores] = []
    found: dict[str, list[Scores]] = {name: [] for name in others}
    with closing(dataset.batches(picked, config.batch_size)) as batches:
        for batch in batches:
            if sample := [pixels for _, pixels in _split_usable(batch)[0]]:
                truth.append(plain.scores(sample))
                for name, eye in others.items():
                    found[name].append(eye.scores(sample))
    if not truth:
        return {}
    every = np.concatenate(truth)
    return {name: agreement(every, np.concatenate(scores), head_columns(targets)) for name, scores in found.items()}


def head_columns(targets: Sequence[HeadTargets]) -> list[HeadColumns]:
    """What a net answers whose outputs are the classes of these heads side by side."""
    found, first = [], 0
    for head in targets:
        found.append(HeadColumns(first, len(head.classes), head.is_multi_label))
        first += len(head.classes)
    return found


class _MultiHeadLoss:
    """The answers of all heads by position of the picture, and how far a net's outputs are from them."""

    def __init__(self, head_targets: Sequence[HeadTargets], device: torch.device, class_weight: str | None) -> None:
        self.head_targets = head_targets
        self.device = device
        self.row_classes = [dict(zip(head.rows, head.row_classes, strict=True)) for head in head_targets]
        self.weights = [_balanced_weights(head) if class_weight else None for head in head_targets]

    def loss(self, outputs: torch.Tensor, positions: Sequence[int]) -> torch.Tensor | None:
        """Mean over the heads of cross entropy, or of binary cross entropy where several classes may apply."""
        losses = []
        for number, (head, question) in enumerate(zip(self.head_targets, head_columns(self.head_targets), strict=True)):
            answers = self.row_classes[number]
            rows = [row for row, position in enumerate(positions) if position in answers]
            if rows:
                mine = outputs[rows, question.first : question.first + question.count]
                losses.append(
                    self._head_loss(mine, head, [answers[positions[row]] for row in rows], self.weights[number])
                )
        return sum(losses[1:], losses[0]) / len(losses) if losses else None

    def _head_loss(
        self,
        outputs: torch.Tensor,
        head: HeadTargets,
        row_classes: Sequence[Sequence[str]],
        weights: NDArray[np.float32] | None,
    ) -> torch.Tensor:
        import torch
        from torch.nn import functional

        each = None if weights is None else torch.from_numpy(weights).to(self.device)  # (2, K) for multi, else (K,)
        if not head.is_multi_label:
            number = torch.tensor([head.classes.index(names[0]) for names in row_classes], device=self.device)
            return functional.cross_entropy(outputs, number, weight=each)
        truth = torch.tensor(
            [[float(name in names) for name in head.classes] for names in row_classes], device=self.device
        )
        if each is not None:
            each = torch.where(truth > 0, each[1], each[0])
        return functional.binary_cross_entropy_with_logits(outputs, truth, weight=each)


def _balanced_weights(head: HeadTargets) -> NDArray[np.float32]:
    """What an example of each class counts, by scikit-learn's formula, so that rare ones count as much as others: (K,).

    Where several classes may apply, of an example without the class and of one with it: (2, K).
    """
    import numpy as np

    seen = Counter(name for names in head.row_classes for name in names)
    with_it = np.array([seen[name] for name in head.classes])
    total = len(head.row_classes)
    if not head.is_multi_label:
        return np.asarray(total / (len(head.classes) * with_it), dtype=np.float32)
    return np.asarray(total / (2 * np.maximum(np.stack([total - with_it, with_it]), 1)), dtype=np.float32)


def _validation_accuracy(
    predictor: Predictor, validation: ImageDataset, targets: Sequence[HeadTargets], config: TrainConfig
) -> float:
    """Share of right answers on the hold-out, the mean over the heads; pictures that cannot be used do not count.

    NaN when the net gives scores that are no numbers.
    """
    import numpy as np

    right: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    answers = [dict(zip(check.rows, check.row_classes, strict=True)) for check in targets]
    with closing(validation.batches(range(len(validation.images)), config.batch_size)) as batches:
        for batch in batches:
            good, _ = _split_usable(batch)
            if not good:
                continue
            scores = predictor.scores([pixels for _, pixels in good])
            if not np.isfinite(scores).all():
                return float("nan")
            for number, (check, question) in enumerate(zip(targets, head_columns(targets), strict=True)):
                for (position, _), guess in zip(good, question.predicted_classes(scores), strict=True):
                    if position in answers[number]:
                        asked[number] += 1
                        right[number] += set(answers[number][position]) == _predicted_names(check, guess)
    shares = [right[number] / asked[number] for number in asked]
    return sum(shares) / len(shares) if shares else 0.0


def _predicted_names(head: HeadTargets, guess: Any) -> set[str]:
    """The classes that `Question.answers` says of one row."""
    if head.is_multi_label:
        return {name for name, applies in zip(head.classes, guess, strict=True) if applies}
    return {head.classes[int(guess)]}


def _restrict_to_head(targets: HeadTargets, head: HeadTargets) -> HeadTargets:
    """What the hold-out asks, as far as the head, which may have lost classes since, can answer it."""
    every = zip(targets.rows, targets.row_classes, strict=True)
    pairs = [(row, names) for row, names in every if set(names) <= set(head.classes)]
    return HeadTargets([row for row, _ in pairs], [names for _, names in pairs], head.classes, head.is_multi_label)


def _find_unusable(dataset: ImageDataset, config: TrainConfig, progress: Progress) -> dict[int, str]:
    """Positions of the pictures that cannot be decoded, with the reason: told once, before the first epoch."""
    bad: dict[int, str] = {}
    with closing(dataset.batches(range(len(dataset.images)), config.batch_size)) as batches:
        for batch in batches:
            bad |= _split_usable(batch)[1]
    _report_unusable(bad, dataset, progress)
    if len(bad) == len(dataset.images):
        raise ModelError("No picture can be used.", _UNUSABLE_HINT)
    return bad


def _drop_unusable(heads: Sequence[HeadTargets], unusable: Mapping[int, str]) -> list[HeadTargets]:
    """The heads without those pictures, and without the classes that only they had."""
    found = [head if not unusable else _drop_rows(head, unusable) for head in heads]
    for head in found:
        if not head.classes or (len(head.classes) == 1 and not head.is_multi_label):
            raise ModelError("Too few pictures can be used: two different answers are needed.", _UNUSABLE_HINT)
    return found


def _drop_rows(head: HeadTargets, unusable: Mapping[int, str]) -> HeadTargets:
    pairs = [(row, chosen) for row, chosen in zip(head.rows, head.row_classes, strict=True) if row not in unusable]
    there = {name for _, chosen in pairs for name in chosen}
    return replace(
        head,
        rows=[row for row, _ in pairs],
        row_classes=[chosen for _, chosen in pairs],
        classes=[name for name in head.classes if name in there],
    )


def _report_unusable(unusable: Mapping[int, str], dataset: ImageDataset, progress: Progress) -> None:
    for position, why in list(unusable.items())[:MAX_NAMED_IMAGES]:
        progress(f"Not learned from {dataset.images[position]}: {why}.")
    if len(unusable) > MAX_NAMED_IMAGES:
        progress(
            f"Nor from {len(unusable) - MAX_NAMED_IMAGES:,} more: {len(unusable):,} of {len(dataset.images):,} pictures are no use."
        )


def _split_usable(batch: Batch) -> tuple[list[tuple[int, Pixels]], dict[int, str]]:
    """Those that can be used, and why the others cannot."""
    good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, str)]
    return good, {position: pixels for position, pixels in batch if isinstance(pixels, str)}


def _decode(read_pixels: ReadPixels, content: Future[bytes], position: int) -> Pixels:
    return read_pixels(content.result(), position)


def _pixels_or_error(position: int, pixels: Future[Pixels]) -> tuple[int, Pixels | str]:
    try:
        return position, pixels.result()
    except Exception as error:  # one bad picture costs one example
        return position, error_reason(error)
