"""A picture -> the square of pixels that a net looks at, as the net's weights were made for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from lsml_cli.media import images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels = NDArray[np.uint8]

_MAX_CROP_TRIES = 10  # random pieces that are tried before the middle one is taken
_ASPECT_RATIOS = (3 / 4, 4 / 3)  # width / height of a random piece
_MIN_AREA_SHARE = 0.35  # share of the picture's area that a random piece has at least
_MIN_SIDE_FACTOR = (
    2  # times the square's side: what a picture's shorter side needs for the narrowest such piece to fill it
)


@dataclass(frozen=True)
class Preprocessing:
    """What torchvision's `ImageClassification` does: resize, cut the middle out, normalise.

    resize         pixels of the shorter side, before
    crop           pixels of the square that is cut out of the middle; no more than `resize`
    interpolation  as Pillow names it: "bilinear", "bicubic"
    mean, std      of each channel, red, green, blue, where 1 is the brightest
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def from_preset(cls, preset: Any, size: int | None = None) -> Preprocessing:
        """Of a torchvision preset; `size` asks for another square than the weights were made for."""
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        if size is not None:
            resize, crop = round(resize * size / crop), size
        return cls(resize, crop, preset.interpolation.value, tuple(preset.mean), tuple(preset.std))

    @classmethod
    def from_json(cls, stored: Any) -> Preprocessing:
        """What `to_json` gave. Raises TypeError or KeyError when it is none."""
        return cls(**(stored | {"mean": tuple(stored["mean"]), "std": tuple(stored["std"])}))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def pixels(self, content: bytes, fast: bool = False) -> Pixels:
        """(crop, crop, 3), the same to the bit as torchvision's transform before it makes floats of them.

        fast  decode a JPEG no larger than needed: several times as fast, and not quite the same pixels

        Raises ValueError with a sentence when there is no picture.
        """
        import numpy as np

        picture = images.decode(content, min_side=self.resize if fast else None)
        return np.asarray(self._center_crop(self._resize(picture)))

    def augmented_pixels(self, content: bytes, random: Random) -> Pixels:
        """(crop, crop, 3) of a random piece of the picture, half of them mirrored: for training.

        A JPEG is decoded no larger than needed for the smallest piece. Raises ValueError like `pixels`.
        """
        import numpy as np
        from PIL.Image import Transpose

        picture = images.decode(content, min_side=_MIN_SIDE_FACTOR * self.crop)
        piece = picture.resize((self.crop, self.crop), self._filter(), box=_random_crop_box(*picture.size, random))
        return np.asarray(piece.transpose(Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else piece)

    def _resize(self, image: Image) -> Image:
        width, height = image.size
        if min(width, height) == self.resize:
            return image
        long = int(self.resize * max(width, height) / min(width, height))
        if self.resize * long > images.MAX_PIXELS:
            raise ValueError(
                f"the picture is too long and narrow: {width:,} x {height:,} pixels would be scaled to {self.resize} x "
                f"{long:,}, and no more than {images.MAX_PIXELS:,} pixels are"
            )
        size = (self.resize, long) if width <= height else (long, self.resize)
        return image.resize(size, self._filter())

    def _center_crop(self, image: Image) -> Image:
        width, height = image.size
        left, top = round((width - self.crop) / 2.0), round((height - self.crop) / 2.0)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _filter(self) -> Any:
        from PIL.Image import Resampling

        return Resampling[self.interpolation.upper()]


def _random_crop_box(width: int, height: int, random: Random) -> tuple[float, float, float, float]:
    """A random piece of a picture, as torchvision's RandomResizedCrop takes it: (left, top, right, bottom)."""
    for _ in range(_MAX_CROP_TRIES):
        area = width * height * random.uniform(_MIN_AREA_SHARE, 1.0)
        shape = random.uniform(*_ASPECT_RATIOS)
        wide, high = round((area * shape) ** 0.5), round((area / shape) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left, top = random.randint(0, width - wide), random.randint(0, height - high)
            return left, top, left + wide, top + high
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
