# In the form of label_studio_ml 2.0 without a class: a model in a global, and two decorated functions.
import json
import os

from label_studio_ml.model import predict_fn, update_fn

MODEL_DIR = os.getenv("MODEL_DIR", ".")
COUNTS = {}  # word -> label -> times


def _path():
    return os.path.join(MODEL_DIR, "counts.json")


if os.path.exists(_path()):
    with open(_path()) as f:
        COUNTS = json.load(f)


@predict_fn
def predict_by_words(tasks, context, helper, **kwargs):
    from_name, to_name, value = helper.get_first_tag_occurence("Choices", "Text")
    labels = helper.parsed_label_config[from_name]["labels"]
    predictions = []
    for task in tasks:
        votes = {label: 1.0 for label in labels}
        for word in task["data"][value].lower().split():
            for label, times in COUNTS.get(word, {}).items():
                votes[label] += times
        best = max(votes, key=votes.get)
        region = {"from_name": from_name, "to_name": to_name, "type": "choices", "value": {"choices": [best]}}
        predictions.append({"result": [region], "score": votes[best] / sum(votes.values())})
    return predictions


@update_fn
def learn_words(event, data, helper, **kwargs):
    if event not in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
        return
    _, _, value = helper.get_first_tag_occurence("Choices", "Text")
    label = data["annotation"]["result"][0]["value"]["choices"][0]
    for word in data["task"]["data"][value].lower().split():
        counts = COUNTS.setdefault(word, {})
        counts[label] = counts.get(label, 0) + 1
    with open(_path(), "w") as f:
        json.dump(COUNTS, f)
    helper.set("seen", str(int(helper.get("seen") or 0) + 1))
