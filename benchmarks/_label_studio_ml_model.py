"""A model for label-studio-ml 1.0.9: the pipeline that `_notebook.py` fitted, for all tasks of a request at once.

`benchmarks/serve.py` passes it to that package's own `label-studio-ml init`; LSML_PIPELINE names the fitted pipeline.
"""

import os
import pickle
from pathlib import Path

from label_studio_ml.model import LabelStudioMLBase  # type: ignore[import-not-found]


class PipelineModel(LabelStudioMLBase):  # type: ignore[misc]
    def __init__(self, **kwargs):  # type: ignore[no-untyped-def]
        super().__init__(**kwargs)
        self.key, self.pipeline = pickle.loads(Path(os.environ["LSML_PIPELINE"]).read_bytes())
        (self.from_name, control), *_ = self.parsed_label_config.items() if self.parsed_label_config else ((None, {}),)
        self.to_name = control["to_name"][0] if control else None

    def predict(self, tasks, **kwargs):  # type: ignore[no-untyped-def]
        probabilities = self.pipeline.predict_proba([task["data"][self.key] for task in tasks])
        best = probabilities.argmax(axis=1)
        return [
            {
                "result": [
                    {
                        "from_name": self.from_name,
                        "to_name": self.to_name,
                        "type": "choices",
                        "value": {"choices": [str(self.pipeline.classes_[label])]},
                    }
                ],
                "score": float(row[label]),
                "model_version": "baseline",
            }
            for row, label in zip(probabilities, best, strict=True)
        ]
