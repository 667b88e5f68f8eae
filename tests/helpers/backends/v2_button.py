# In the form of label_studio_ml 2.0: one answer to every event, which looks for the project in the annotation; the model
# is a global that is loaded when it is first needed.
import os
import pickle

import label_studio_sdk
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse
from label_studio_ml.utils import DATA_UNDEFINED_NAME
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

pipeline = None


class NaiveBayes(LabelStudioMLBase):
    HOST = os.getenv("LABEL_STUDIO_HOST", "http://localhost:8080")
    API_KEY = os.getenv("LABEL_STUDIO_API_KEY")
    EVERY = int(os.getenv("START_TRAINING_EACH_N_UPDATES", 10))
    MODEL_DIR = os.getenv("MODEL_DIR", ".")

    def setup(self):
        self.set("model_version", f"{self.__class__.__name__}-v0.0.1")

    @property
    def file(self):
        return os.path.join(self.MODEL_DIR, "pipeline.pkl")

    def loaded(self):
        global pipeline
        if pipeline is None:
            if os.path.exists(self.file):
                with open(self.file, "rb") as f:
                    pipeline = pickle.load(f)
            else:
                labels = self.names()[3]
                pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit(labels, labels)
        return pipeline

    def names(self):
        from_name, to_name, value = self.label_interface.get_first_tag_occurence("Choices", "Text")
        return from_name, to_name, value, sorted(self.label_interface.get_tag(from_name).labels)

    def predict(self, tasks, context=None, **kwargs):
        from_name, to_name, value, _ = self.names()
        model = self.loaded()
        texts = [task["data"].get(value) or task["data"].get(DATA_UNDEFINED_NAME) for task in tasks]
        predictions = []
        for row in model.predict_proba(texts):
            region = {"from_name": from_name, "to_name": to_name, "type": "choices"}
            region["value"] = {"choices": [model.classes_[row.argmax()]]}
            predictions.append({"result": [region], "score": row.max(), "model_version": self.get("model_version")})
        return ModelResponse(predictions=predictions, model_version=self.get("model_version"))

    def fit(self, event, data, **kwargs):
        global pipeline
        if event not in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "START_TRAINING"):
            return
        project = label_studio_sdk.Client(self.HOST, self.API_KEY).get_project(id=data["annotation"]["project"])
        tasks = project.get_labeled_tasks()
        if data["annotation"]["task"] not in [task["id"] for task in tasks]:
            raise ValueError("the annotation is of another project")
        if len(tasks) % self.EVERY != 0 and event != "START_TRAINING":
            return
        texts, labels = [], []
        for task in tasks:
            for annotation in task["annotations"]:
                if annotation.get("result") and not annotation.get("was_cancelled"):
                    texts.append(task["data"][self.names()[2]])
                    labels.append(annotation["result"][0]["value"]["choices"][0])
        pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit(texts, labels)
        with open(self.file, "wb") as f:
            pickle.dump(pipeline, f)
