# In the form of htx: a class that answers, a function that trains, and a server that is told of both.
import os
import pickle

from htx import app, init_model_server
from htx.base_model import SingleClassTextClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


class TextClassifier(SingleClassTextClassifier):
    def load(self, resources):
        with open(resources["model"], "rb") as f:
            self.model = pickle.load(f)

    def predict(self, tasks, **kwargs):
        texts = [task["input"] for task in tasks]
        labels = self.model.predict(texts)
        scores = self.model.predict_proba(texts).max(axis=1)
        return self.make_results(tasks, labels, scores)


def train(input_iterator, output_dir, C=1.0):
    texts, labels = [], []
    for item in input_iterator:
        texts.append(item["input"])
        labels.append(item["output"])
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=C))
    model.fit(texts, labels)
    path = os.path.join(output_dir, "model.pkl")
    with open(path, "wb") as f:
        pickle.dump(model, f)
    return {"model": path}


init_model_server(create_model_func=TextClassifier, train_script=train, C=10.0, redis_queue="text")

if __name__ == "__main__":
    app.run(host="0.0.0.0", port=9090)
