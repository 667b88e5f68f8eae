# In the form of label_studio_ml 2.0: a detector that loads its model once, in `setup`, and answers with ModelResponse.
import logging

from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse, PredictionValue
from label_studio_ml.utils import get_image_size
from PIL import Image

logger = logging.getLogger(__name__)


class BrightSpots:
    """What would be a network elsewhere: one box around everything that is bright."""

    names = ["spot", "sun"]

    def __call__(self, path, threshold):
        image = Image.open(path).convert("L")
        box = image.point(lambda level: 255 if level > threshold else 0).getbbox()
        return [] if box is None else [(box, "spot", 0.9)]


class Detector(LabelStudioMLBase):
    def setup(self):
        self.set("model_version", "bright-1")
        self.from_name, self.to_name, self.value = self.get_first_tag_occurence("RectangleLabels", "Image")
        self.model = BrightSpots()
        self.label_map = self.build_label_map(self.from_name, self.model.names)

    def predict(self, tasks, context=None, **kwargs):
        predictions = []
        for task in tasks:
            path = self.get_local_path(task["data"][self.value], task_id=task["id"])
            width, height = get_image_size(path)
            regions = []
            for (left, top, right, bottom), name, score in self.model(path, int(self.extra_params.get("threshold", 128))):
                regions.append(
                    {
                        "from_name": self.from_name,
                        "to_name": self.to_name,
                        "type": "rectanglelabels",
                        "original_width": width,
                        "original_height": height,
                        "image_rotation": 0,
                        "value": {
                            "x": left / width * 100,
                            "y": top / height * 100,
                            "width": (right - left) / width * 100,
                            "height": (bottom - top) / height * 100,
                            "rotation": 0,
                            "rectanglelabels": [self.label_map[name]],
                        },
                        "score": score,
                    }
                )
            predictions.append(PredictionValue(result=regions, score=0.9 if regions else 0.0))
        return ModelResponse(predictions=predictions)
