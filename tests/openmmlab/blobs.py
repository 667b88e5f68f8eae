"""A text detector that needs no training: it finds dark areas, scored by their darkness. For configs that import it."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from mmocr.models.textdet.postprocessors import DBPostprocessor
from mmocr.registry import MODELS

MAX_GAP = 13  # pixels within which letters are one word


@MODELS.register_module(force=True)
class Blobs(BaseModel):
    def __init__(self, data_preprocessor: dict[str, Any]) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.postprocessor = DBPostprocessor(text_repr_type="quad", unclip_ratio=0.01)

    def forward(self, inputs: torch.Tensor, data_samples: Any = None, mode: str = "predict") -> Any:
        darkness = 1 - inputs.mean(dim=1, keepdim=True)  # 0..1
        words = torch.nn.functional.max_pool2d(darkness, MAX_GAP, 1, MAX_GAP // 2)
        return self.postprocessor(words[:, 0], data_samples)
