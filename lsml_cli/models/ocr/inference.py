"""Find and read the text of pages: text detector, crops, recognizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsml_cli.models.ocr import crops
from lsml_cli.models.ocr.crops import Size
from lsml_cli.models.ocr.postprocess import extract_lines, sort_in_reading_order, with_text
from lsml_cli.models.ocr.text_lines import TextLine
from lsml_cli.models.openmmlab.inference import Input, Predictor

if TYPE_CHECKING:
    from lsml_cli.models.openmmlab.image_files import ImageArray


@dataclass(frozen=True)
class PageInput:
    """An image that is to be read.

    Args:
        size: (width, height) in pixels.
        image: For the crops of what will be found; None where the lines are known.
        detector_input: What the text detector takes; None where the lines are known.
        lines: The known lines.
        crops: What the recognizer takes of each line; None for one that is too small to be read.
    """

    size: Size
    image: ImageArray | None = None
    detector_input: Input | None = None
    lines: Sequence[TextLine] = ()
    crops: Sequence[Input | None] = ()


@dataclass(frozen=True)
class PageText:
    """The text of an image of (width, height)."""

    size: Size
    lines: Sequence[TextLine]


class PageReader:
    """Find and read text with two loaded models; without a text detector, only read known lines."""

    def __init__(self, detector: Predictor | None, recognizer: Predictor) -> None:
        self.detector = detector
        self.recognizer = recognizer

    def prepare_whole_image(self, image: ImageArray) -> PageInput:
        """Prepare an image that is a single line of text."""
        crop = crops.fit_crop(image)
        return PageInput(
            _size_of(image), lines=[TextLine()], crops=[None if crop is None else self.recognizer.prepare(crop)]
        )

    def prepare_page(self, image: ImageArray) -> PageInput:
        """Prepare an image in which text has to be found."""
        assert self.detector is not None
        return PageInput(_size_of(image), image, self.detector.prepare(image))

    def prepare_lines(self, image: ImageArray, lines: Sequence[TextLine]) -> PageInput:
        """Prepare an image with known lines."""
        return PageInput(_size_of(image), lines=lines, crops=[self._prepare_crop(image, line) for line in lines])

    def read(self, pages: Sequence[PageInput], min_score: float) -> Iterator[PageText]:
        """Find the text of all pages in one batch, then read the crops of all pages in one batch.

        Args:
            pages: What the methods above returned.
            min_score: Of the text detector; lines below are dropped.

        Yields:
            The text of each page, found lines in reading order.
        """
        return self._recognize(self._detect(pages, min_score))

    def _detect(self, pages: Sequence[PageInput], min_score: float) -> list[PageInput]:
        """Return the pages with their lines and crops."""
        inputs = [page.detector_input for page in pages if page.detector_input is not None]
        samples = iter(self.detector.predict(inputs) if self.detector is not None and inputs else ())
        return [
            page if page.detector_input is None else self._with_lines(page, next(samples), min_score) for page in pages
        ]

    def _with_lines(self, page: PageInput, sample: Any, min_score: float) -> PageInput:
        assert page.image is not None
        lines = [line for line in extract_lines(sample) if line.score is None or line.score >= min_score]
        return self.prepare_lines(page.image, sort_in_reading_order(lines))

    def _recognize(self, pages: Sequence[PageInput]) -> Iterator[PageText]:
        """Yield the text of pages whose lines are known."""
        inputs = [crop for page in pages for crop in page.crops if crop is not None]
        samples = iter(self.recognizer.predict_same_shape(inputs) if inputs else ())
        for page in pages:
            lines = [
                line if crop is None else with_text(line, next(samples))
                for line, crop in zip(page.lines, page.crops, strict=True)
            ]
            yield PageText(page.size, lines)

    def _prepare_crop(self, image: ImageArray, line: TextLine) -> Input | None:
        crop = crops.rectify(image, line.points, has_reading_order=line.has_reading_order)
        return None if crop is None else self.recognizer.prepare(crop)


def _size_of(image: ImageArray) -> Size:
    return image.shape[1], image.shape[0]
