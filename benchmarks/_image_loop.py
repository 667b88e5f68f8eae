"""The loop that a user would write instead of `lsml predict`: open an image, transform it, run the network.

python benchmarks/_image_loop.py TASKS ROOT VERSION OUTPUT     with the ResNet-18 of a version that `lsml fit` wrote
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file


def main(tasks: str, root: str, version: str, output: str) -> None:
    classes = json.loads((Path(version) / "model.json").read_text())["state"]["heads"][0]["classes"]
    net = torchvision.models.resnet18(weights=None, num_classes=len(classes))
    weights = load_file(Path(version) / "weights.safetensors")
    net.load_state_dict({name.removeprefix("0."): array for name, array in weights.items()})
    net.eval()
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    records = []
    with torch.inference_mode():
        for task in json.loads(Path(tasks).read_text()):
            image = Image.open(Path(root) / task["data"]["image_url"].partition("?d=")[2]).convert("RGB")
            score, best = net(transform(image)[None]).softmax(1)[0].max(0)
            value = {"choices": [classes[int(best)]]}
            region = {"from_name": "insect", "to_name": "photo", "type": "choices", "value": value}
            records.append(task | {"predictions": [{"result": [region], "score": float(score)}]})
    Path(output).write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:])
