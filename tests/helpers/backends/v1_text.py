# The same in the form of label_studio_ml 1.0.
import os
import pickle

import numpy as np
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.utils import get_choice, is_skipped
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


class SimpleTextClassifier(LabelStudioMLBase):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        assert len(self.parsed_label_config) == 1
        self.from_name, self.info = list(self.parsed_label_config.items())[0]
        assert self.info["type"] == "Choices"
        self.to_name = self.info["to_name"][0]
        self.value = self.info["inputs"][0]["value"]

        if not self.train_output:
            self.labels = self.info["labels"]
            self.reset_model()
            self.model.fit(X=self.labels, y=list(range(len(self.labels))))
        else:
            self.model_file = self.train_output["model_file"]
            with open(self.model_file, mode="rb") as f:
                self.model = pickle.load(f)
            self.labels = self.train_output["labels"]

    def reset_model(self):
        self.model = make_pipeline(TfidfVectorizer(ngram_range=(1, 3)), LogisticRegression(C=10, verbose=False))

    def predict(self, tasks, **kwargs):
        input_texts = [task["data"][self.value] for task in tasks]
        probabilities = self.model.predict_proba(input_texts)
        predicted_label_indices = np.argmax(probabilities, axis=1)
        predicted_scores = probabilities[np.arange(len(predicted_label_indices)), predicted_label_indices]
        predictions = []
        for idx, score in zip(predicted_label_indices, predicted_scores):
            result = [
                {
                    "from_name": self.from_name,
                    "to_name": self.to_name,
                    "type": "choices",
                    "value": {"choices": [self.labels[idx]]},
                }
            ]
            predictions.append({"result": result, "score": score})
        return predictions

    def fit(self, completions, workdir=None, **kwargs):
        input_texts, output_labels, output_labels_idx = [], [], []
        label2idx = {l: i for i, l in enumerate(self.labels)}
        for completion in completions:
            if is_skipped(completion):
                continue
            input_texts.append(completion["data"][self.value])
            output_label = get_choice(completion)
            output_labels.append(output_label)
            output_labels_idx.append(label2idx[output_label])

        new_labels = set(output_labels)
        if len(new_labels) != len(self.labels):
            self.labels = list(sorted(new_labels))
            label2idx = {l: i for i, l in enumerate(self.labels)}
            output_labels_idx = [label2idx[label] for label in output_labels]

        self.reset_model()
        self.model.fit(input_texts, output_labels_idx)

        model_file = os.path.join(workdir, "model.pkl")
        with open(model_file, mode="wb") as fout:
            pickle.dump(self.model, fout)
        return {"labels": self.labels, "model_file": model_file}
