"""Turn an image into the square of pixels that a network's weights were made for."""

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

_MAX_CROP_TRIES = 10  # random crops that are tried before the center is taken
_ASPECT_RATIOS = (3 / 4, 4 / 3)  # width / height of a random crop
_MIN_AREA_SHARE = 0.35  # of the image's area, of a random crop
# Shorter side of a decoded image, in sides of the square, so that the narrowest random crop is not scaled up.
_MIN_SIDE_FACTOR = 2


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the center, and normalize, as torchvision's `ImageClassification` does.

    Args:
        resize: Shorter side after resizing, in pixels.
        crop: Side of the square at the center, in pixels; at most `resize`.
        interpolation: As Pillow names it: "bilinear", "bicubic".
        mean: Of red, green and blue, in 0..1.
        std: The same.
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def from_preset(cls, preset: Any, size: int | None = None) -> Preprocessing:
        """Read a torchvision preset; `size` replaces its crop, and scales the resize accordingly."""
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        if size is not None:
            resize, crop = round(resize * size / crop), size
        return cls(resize, crop, preset.interpolation.value, tuple(preset.mean), tuple(preset.std))

    @classmethod
    def from_json(cls, stored: Any) -> Preprocessing:
        """Read what `to_json` returned. Raises TypeError or KeyError if it is something else."""
        return cls(**(stored | {"mean": tuple(stored["mean"]), "std": tuple(stored["std"])}))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def pixels(self, content: bytes, fast: bool = False) -> Pixels:
        """Return (crop, crop, 3), bit for bit what torchvision's transform has before it converts to float.

        Args:
            content: An image file.
            fast: Decode a JPEG no larger than needed: several times as fast, slightly different pixels.

        Raises:
            ValueError: The file is no usable image; the sentence says why.
        """
        import numpy as np

        image = images.decode(content, min_side=self.resize if fast else None)
        return np.asarray(self._center_crop(self._resize(image)))

    def augmented_pixels(self, content: bytes, random: Random) -> Pixels:
        """Return (crop, crop, 3) of a random crop, mirrored half of the time, for training.

        A JPEG is decoded no larger than needed for the smallest crop. Raises ValueError like `pixels`.
        """
        import numpy as np
        from PIL.Image import Transpose

        image = images.decode(content, min_side=_MIN_SIDE_FACTOR * self.crop)
        crop = image.resize((self.crop, self.crop), self._filter(), box=_random_crop_box(*image.size, random))
        return np.asarray(crop.transpose(Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop)

    def _resize(self, image: Image) -> Image:
        width, height = image.size
        if min(width, height) == self.resize:
            return image
        longer_side = int(self.resize * max(width, height) / min(width, height))
        if self.resize * longer_side > images.MAX_PIXELS:
            raise ValueError(
                f"the image is too long and narrow: {width:,} x {height:,} pixels would be scaled to {self.resize} x "
                f"{longer_side:,}, and the limit is {images.MAX_PIXELS:,} pixels"
            )
        size = (self.resize, longer_side) if width <= height else (longer_side, self.resize)
        return image.resize(size, self._filter())

    def _center_crop(self, image: Image) -> Image:
        width, height = image.size
        left, top = round((width - self.crop) / 2.0), round((height - self.crop) / 2.0)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _filter(self) -> Any:
        from PIL.Image import Resampling

        return Resampling[self.interpolation.upper()]


def _random_crop_box(width: int, height: int, random: Random) -> tuple[float, float, float, float]:
    """Choose a random crop as torchvision's RandomResizedCrop does: (left, top, right, bottom)."""
    for _ in range(_MAX_CROP_TRIES):
        area = width * height * random.uniform(_MIN_AREA_SHARE, 1.0)
        aspect_ratio = random.uniform(*_ASPECT_RATIOS)
        crop_width, crop_height = round((area * aspect_ratio) ** 0.5), round((area / aspect_ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = random.randint(0, width - crop_width), random.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
