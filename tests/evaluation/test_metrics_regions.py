"""Compare metrics of boxes, masks and texts with the packages in common use."""

from __future__ import annotations

import contextlib
import io
import random
import tracemalloc
from typing import Any

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter import brush
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lsml_cli.evaluation.metrics import regions, texts
from lsml_cli.evaluation.metrics.geometry import iou_matrix
from lsml_cli.evaluation.metrics.matching import ScoredRegion
from lsml_cli.evaluation.metrics.regions import RegionCounts
from lsml_cli.evaluation.metrics.texts import TextCounts, Transcription
from lsml_cli.schema import brush_rle
from lsml_cli.schema.shapes import Shape, parse_shape

LABELS = ["car", "cat", "dog"]


def random_box(rng: random.Random) -> Shape:
    x, y = rng.randrange(0, 60), rng.randrange(0, 60)
    return Shape((x, y, rng.randrange(5, 40), rng.randrange(5, 40)))


def jitter(shape: Shape, rng: random.Random) -> Shape:
    assert shape.box
    x, y, width, height = (each + rng.choice([0, 0, 1, 2, 4]) for each in shape.box)
    return Shape((x, y, width, height))


def make_images(seed: int, count: int) -> list[tuple[list[ScoredRegion], list[ScoredRegion]]]:
    """Return (true, predicted) regions of images; some predictions are near true ones, some scores are equal."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        true = [ScoredRegion(rng.choice(LABELS), random_box(rng)) for _ in range(rng.randrange(6))]
        found = [
            ScoredRegion(
                rng.choice([each.label, rng.choice(LABELS)]), jitter(each.shape, rng), rng.randrange(1, 10) / 10
            )
            for each in true
            for _ in range(rng.choice([0, 1, 1, 2]))
        ]
        found += [ScoredRegion(rng.choice(LABELS), random_box(rng), rng.random()) for _ in range(rng.randrange(3))]
        made.append((true, found))
    return made


def evaluate_with_coco(
    made: list[tuple[list[ScoredRegion], list[ScoredRegion]]],
) -> tuple[float, float, dict[str, float]]:
    """Return mAP, mAP50 and AP by class as computed by pycocotools."""
    truth = COCO()
    annotations: list[dict[str, Any]] = [
        {"id": 0, "image_id": i, "category_id": LABELS.index(each.label), "bbox": list(each.shape.box or ())}
        for i, (true, _) in enumerate(made)
        for each in true
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation |= {"id": number, "iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    results = [
        {
            "image_id": i,
            "category_id": LABELS.index(each.label),
            "bbox": list(each.shape.box or ()),
            "score": each.score,
        }
        for i, (_, found) in enumerate(made)
        for each in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {
            "images": [{"id": i} for i in range(len(made))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return evaluation.stats[0], evaluation.stats[1], {name: precision[:, :, i].mean() for i, name in enumerate(LABELS)}


def count_regions(made: list[tuple[list[ScoredRegion], list[ScoredRegion]]], threshold: float = 0.0) -> RegionCounts:
    counts = RegionCounts(threshold)
    for true, found in made:
        counts.add([true], found)
    return counts


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 12))
def test_average_precision_agrees_with_pycocotools(seed: int, count: int) -> None:
    made = make_images(seed, count)
    if not any(true for true, _ in made) or not any(found for _, found in made):
        return
    found = count_regions(made).metrics()
    overall, at_half, by_class = evaluate_with_coco(made)
    assert found.map == pytest.approx(overall, abs=1e-9)
    assert found.map50 == pytest.approx(at_half, abs=1e-9)
    for each in found.classes:
        expected = by_class[each.name]
        assert each.ap == (None if expected == -1 else pytest.approx(expected, abs=1e-9))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_weights_equal_repetition(seed: int) -> None:
    # Equal scores come in the order of their pictures, and within one of its regions: repeating changes that order.
    made = [
        (true, [each._replace(score=1 / (2 + i + 100 * j)) for i, each in enumerate(found)])
        for j, (true, found) in enumerate(make_images(seed, 5))
    ]
    weights = np.random.default_rng(seed).integers(0, 3, (4, 5)).astype(np.int32)
    values = count_regions(made).weighted_values(weights)
    for i, row in enumerate(weights):
        again = count_regions([picture for picture, times in zip(made, row, strict=True) for _ in range(times)])
        for name, value in again.metrics().values().items():
            if value is not None:
                assert values[name][i] == pytest.approx(value, abs=1e-9)


def test_memory_does_not_grow_with_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """40,000 detections of one class, with as many resamples as the bootstrap passes at once."""
    rng = random.Random(0)
    shapes = [Shape((20.0 * i, 0, 10, 10)) for i in range(100)]
    made = [
        ([ScoredRegion("car", shapes[0])], [ScoredRegion("car", each, rng.random()) for each in shapes])
        for _ in range(400)
    ]
    counts = count_regions(made)
    weights = np.random.default_rng(0).integers(0, 3, (500, 400)).astype(np.int32)
    tracemalloc.start()
    values = counts.weighted_values(weights)
    peak = tracemalloc.get_traced_memory()[1] / (1 << 20)
    tracemalloc.stop()
    assert peak < 60, f"{peak:.0f} MB"  # all weights of all detections at once are 160 MB
    monkeypatch.setattr(regions, "MAX_BLOCK_NUMBERS", 10**9)
    for name, at_once in counts.weighted_values(weights[:50]).items():
        assert np.array_equal(values[name][:50], at_once)


def test_threshold_applies_to_precision_and_recall() -> None:
    box, other = Shape((0, 0, 10, 10)), Shape((50, 50, 10, 10))
    made = [([ScoredRegion("car", box)], [ScoredRegion("car", box, 0.9), ScoredRegion("car", other, 0.2)])]
    everything, sure = count_regions(made).metrics(), count_regions(made, 0.5).metrics()
    assert (everything.precision, everything.recall, sure.precision, sure.recall) == (0.5, 1.0, 1.0, 1.0)
    assert (everything.map, sure.map) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (sure.predicted, sure.support) == (1, 1)


def test_rotated_boxes_polygons_and_ellipses_overlap_as_pixels() -> None:
    size = {"original_width": 400, "original_height": 200}
    box = {"x": 50, "y": 25, "width": 20, "height": 20}
    turned = parse_shape({**size, "value": {**box, "rotation": 90}})
    # Turned clockwise around its upper left corner: 80 pixels wide become 80 pixels high.
    flat = parse_shape({**size, "value": {"x": 40, "y": 25, "width": 10, "height": 40}})
    round_one = parse_shape({**size, "value": {"x": 50, "y": 50, "radiusX": 25, "radiusY": 50, "rotation": 0}})
    around = parse_shape({**size, "value": {"x": 25, "y": 0, "width": 50, "height": 100, "rotation": 0}})
    assert turned
    assert flat
    assert round_one
    assert around
    assert iou_matrix([turned], [flat], (400, 200))[0, 0] > 0.95
    assert iou_matrix([round_one], [around], (400, 200))[0, 0] == pytest.approx(np.pi / 4, abs=0.02)
    assert iou_matrix([], [flat], None).shape == (0, 1)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"x": 1},
        {"points": [[1, 2]]},
        {"points": "abc"},
        {"x": 1, "y": 1, "width": "a", "height": 2},
        {"rle": [999]},
    ],
)
def test_invalid_value_has_no_shape(value: dict[str, Any]) -> None:
    assert parse_shape({"value": value, "original_width": 10, "original_height": 10}) is None


def test_brush_masks_match_label_studio() -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((17, 23)) < 0.3).astype(np.uint8)
    mask[4:9, 3:20] = 1
    code = bytes(brush.mask2rle(mask * 255))
    assert (brush_rle.decode_rle(code, 23, 17) == mask).all()
    assert not brush_rle.decode_rle(code, 22, 17).any()  # of another picture
    assert not brush_rle.decode_rle(code[:20], 23, 17).any()
    stroke = Shape(brush_rle=(code, (23, 17)))
    assert iou_matrix([stroke], [stroke], (23, 17))[0, 0] == 1.0


def test_region_agreement() -> None:
    one, other = ScoredRegion("car", Shape((0, 0, 10, 10))), ScoredRegion("cat", Shape((0, 0, 10, 10)))
    assert regions.agreement([one], [one], None) == 1.0
    assert regions.agreement([one], [other], None) == 0.0
    assert regions.agreement([one, other], [one], None) == pytest.approx(2 / 3)
    assert regions.agreement([], [], None) == 1.0


# ---- texts

WORDS = st.lists(st.text("abcé ", min_size=1, max_size=4).map(str.strip).filter(bool), min_size=1, max_size=6).map(
    " ".join
)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_error_rates_agree_with_jiwer(pairs: list[tuple[str, str]]) -> None:
    counts = TextCounts()
    for truth, guess in pairs:
        counts.add([[Transcription(truth)]], [Transcription(guess)])
    found = counts.metrics()
    truths, guesses = (list(side) for side in zip(*pairs, strict=True))
    assert found.cer == pytest.approx(jiwer.cer(truths, guesses))
    assert found.wer == pytest.approx(jiwer.wer(truths, guesses))
    assert found.hmean is None


def test_regions_are_matched_regardless_of_text() -> None:
    first, second, far = Shape((0, 0, 20, 10)), Shape((0, 50, 20, 10)), Shape((70, 70, 20, 10))
    counts = TextCounts()
    counts.add(
        [[Transcription("one", first), Transcription("two", second)]],
        [Transcription("One", first), Transcription("xyz!", far)],
    )
    found = counts.metrics()
    assert (found.precision, found.recall, found.hmean) == (0.5, 0.5, 0.5)
    assert found.cer_found == pytest.approx(1 / 3)
    assert found.cer == pytest.approx((1 + 3 + 4) / 6)
    assert found.exact == 0.0


def test_text_agreement() -> None:
    place = Shape((0, 0, 20, 10))
    assert texts.agreement([Transcription("abcd", place)], [Transcription("abcx", place)], None) == 0.75
    assert texts.agreement([], [], None) == 1.0
