"""What a user would write instead of `lsml predict`: open a picture, transform it, ask the network, one at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torchvision
from PIL import Image


def main(tasks: str, root: str, classes: list[str], output: str) -> None:
    net = torchvision.models.resnet18(weights=None, num_classes=len(classes)).eval()
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    written = []
    with torch.inference_mode():
        for task in json.loads(Path(tasks).read_text()):
            picture = Image.open(Path(root) / task["data"]["image_url"].partition("?d=")[2]).convert("RGB")
            score, best = net(transform(picture)[None]).softmax(1)[0].max(0)
            value = {"choices": [classes[int(best)]]}
            region = {"from_name": "insect", "to_name": "photo", "type": "choices", "value": value}
            written.append(task | {"predictions": [{"result": [region], "score": float(score)}]})
    Path(output).write_text(json.dumps(written))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4])
