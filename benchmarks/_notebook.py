"""The loop of a notebook with the same fitted pipeline: load all, predict all, dump all.

python benchmarks/_notebook.py fit EXPORT PIPELINE           fit scikit-learn's pipeline on an export
python benchmarks/_notebook.py run PIPELINE TASKS OUTPUT     the loop
python benchmarks/_notebook.py limit PIPELINE TASKS          time `predict_proba` alone; prints seconds
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any


def fit(export: str, pipeline: str) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from lsml_cli.models.text_classifier.model import TextClassifier
    from lsml_cli.models.text_classifier.tfidf import TOKEN

    params: dict[str, Any] = {
        name: parameter.default for name, parameter in (TextClassifier.declared_params() or {}).items()
    }
    tasks = json.loads(Path(export).read_bytes())
    words = TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, params["ngrams"]),
        token_pattern=TOKEN,
        min_df=params["min_df"],
        max_features=params["max_features"],
    )
    model = make_pipeline(words, LogisticRegression(C=params["C"], max_iter=1000))
    key = next(iter(tasks[0]["data"]))
    labels = [task["annotations"][0]["result"][0]["value"]["choices"][0] for task in tasks]
    model.fit([task["data"][key] for task in tasks], labels)
    Path(pipeline).write_bytes(pickle.dumps((key, model)))


def run(pipeline: str, source: str, target: str) -> None:
    key, model = pickle.loads(Path(pipeline).read_bytes())
    with open(source) as file:  # noqa: PTH123 - as in notebooks
        tasks = json.load(file)
    probabilities = model.predict_proba([task["data"][key] for task in tasks])
    best = probabilities.argmax(axis=1)
    for task, row, label in zip(tasks, probabilities, best, strict=True):
        region = {
            "from_name": "label",
            "to_name": "text",
            "type": "choices",
            "value": {"choices": [str(model.classes_[label])]},
        }
        task["predictions"] = [{"result": [region], "score": float(row[label]), "model_version": "notebook"}]
        task.pop("annotations", None)
    with open(target, "w") as file:  # noqa: PTH123
        json.dump(tasks, file)


def limit(pipeline: str, source: str) -> None:
    key, model = pickle.loads(Path(pipeline).read_bytes())
    texts = [task["data"][key] for task in json.loads(Path(source).read_bytes())]
    started_at = time.perf_counter()
    model.predict_proba(texts)
    print(time.perf_counter() - started_at)


if __name__ == "__main__":
    {"fit": fit, "run": run, "limit": limit}[sys.argv[1]](*sys.argv[2:])
