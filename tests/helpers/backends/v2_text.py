# In the form of label_studio_ml 2.0: asks Label Studio for the annotations when somebody presses "Start Training".
import os
import pickle

import label_studio_sdk
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

LABEL_STUDIO_HOST = os.getenv("LABEL_STUDIO_HOST", "http://localhost:8080")
LABEL_STUDIO_API_KEY = os.getenv("LABEL_STUDIO_API_KEY")


class TextClassifier(LabelStudioMLBase):
    MODEL_DIR = os.getenv("MODEL_DIR", ".")

    def setup(self):
        self.set("model_version", "0.0.1")
        path = os.path.join(self.MODEL_DIR, "model.pkl")
        if os.path.exists(path):
            with open(path, "rb") as f:
                self._model = pickle.load(f)
        else:
            self._model = None

    def predict(self, tasks: list[dict], context: dict | None = None, **kwargs) -> ModelResponse:
        from_name, to_name, value = self.label_interface_or_first()
        predictions = []
        if self._model is None:
            return ModelResponse(predictions=[{"result": [], "score": 0.0} for _ in tasks])
        texts = [self.preload_task_data(task, task["data"][value]) for task in tasks]
        for label, probabilities in zip(self._model.predict(texts), self._model.predict_proba(texts)):
            region = {
                "from_name": from_name,
                "to_name": to_name,
                "type": "choices",
                "value": {"choices": [label]},
                "score": max(probabilities),
            }
            predictions.append(
                {"result": [region], "score": max(probabilities), "model_version": self.get("model_version")}
            )
        return ModelResponse(predictions=predictions, model_version=self.get("model_version"))

    def label_interface_or_first(self):
        return self.get_first_tag_occurence("Choices", "Text")

    def _get_tasks(self, project_id):
        ls = label_studio_sdk.Client(LABEL_STUDIO_HOST, LABEL_STUDIO_API_KEY)
        project = ls.get_project(id=project_id)
        return project.get_labeled_tasks()

    def fit(self, event, data, **additional_params):
        if event not in ("START_TRAINING",):
            return
        _, _, value = self.label_interface_or_first()
        texts, labels = [], []
        for task in self._get_tasks(data["project"]["id"]):
            for annotation in task["annotations"]:
                if annotation.get("was_cancelled") or not annotation["result"]:
                    continue
                texts.append(task["data"][value])
                labels.append(annotation["result"][0]["value"]["choices"][0])
        model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10))
        model.fit(texts, labels)
        with open(os.path.join(self.MODEL_DIR, "model.pkl"), "wb") as f:
            pickle.dump(model, f)
        self.set("examples", str(len(texts)))
        self.bump_model_version()
