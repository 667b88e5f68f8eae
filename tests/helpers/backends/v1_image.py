# The same in the form of label_studio_ml 1.0: transfer learning with a ResNet on Choices over Image.
import os

import torch
import torch.nn as nn
import torch.optim as optim
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.utils import get_choice, get_image_local_path, get_single_tag_keys, is_skipped
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

image_size = 64
transformer = transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])


class ImageClassifierDataset(Dataset):
    def __init__(self, image_urls, image_classes):
        self.classes = list(set(image_classes))
        self.class_to_label = {c: i for i, c in enumerate(sorted(self.classes))}
        self.images, self.labels = [], []
        for image_url, image_class in zip(image_urls, image_classes):
            image = Image.open(get_image_local_path(image_url)).convert("RGB")
            self.images.append(transformer(image))
            self.labels.append(self.class_to_label[image_class])

    def __getitem__(self, index):
        return self.images[index], self.labels[index]

    def __len__(self):
        return len(self.images)


class ImageClassifier(object):
    def __init__(self, num_classes):
        self.model = models.resnet18(weights=None)
        self.model.fc = nn.Linear(self.model.fc.in_features, num_classes)

    def save(self, path):
        torch.save(self.model.state_dict(), path)

    def load(self, path):
        self.model.load_state_dict(torch.load(path))
        self.model.eval()

    def predict(self, image_urls):
        images = torch.stack([transformer(Image.open(get_image_local_path(url)).convert("RGB")) for url in image_urls])
        with torch.no_grad():
            return torch.softmax(self.model(images), dim=1).numpy()

    def train(self, dataloader, num_epochs=1):
        criterion = nn.CrossEntropyLoss()
        optimizer = optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.model.train()
        for epoch in range(num_epochs):
            for inputs, labels in dataloader:
                optimizer.zero_grad()
                loss = criterion(self.model(inputs), labels)
                loss.backward()
                optimizer.step()


class ImageClassifierAPI(LabelStudioMLBase):
    def __init__(self, **kwargs):
        super(ImageClassifierAPI, self).__init__(**kwargs)
        self.from_name, self.to_name, self.value, self.classes = get_single_tag_keys(
            self.parsed_label_config, "Choices", "Image"
        )
        if self.train_output:
            self.classes = self.train_output["classes"]
            self.model = ImageClassifier(len(self.classes))
            self.model.load(self.train_output["model_path"])
        else:
            self.model = ImageClassifier(len(self.classes))

    def predict(self, tasks, **kwargs):
        image_urls = [task["data"][self.value] for task in tasks]
        scores = self.model.predict(image_urls)
        predictions = []
        for row in scores:
            predictions.append(
                {
                    "result": [
                        {
                            "from_name": self.from_name,
                            "to_name": self.to_name,
                            "type": "choices",
                            "value": {"choices": [self.classes[row.argmax()]]},
                        }
                    ],
                    "score": float(row.max()),
                }
            )
        return predictions

    def fit(self, annotations, workdir=None, batch_size=8, num_epochs=1, **kwargs):
        image_urls, image_classes = [], []
        for completion in annotations:
            if is_skipped(completion):
                continue
            image_urls.append(completion["data"][self.value])
            image_classes.append(get_choice(completion))
        dataset = ImageClassifierDataset(image_urls, image_classes)
        self.model = ImageClassifier(len(dataset.classes))
        self.model.train(DataLoader(dataset, shuffle=True, batch_size=batch_size), num_epochs=num_epochs)
        model_path = os.path.join(workdir, "model.pt")
        self.model.save(model_path)
        return {"model_path": model_path, "classes": sorted(dataset.classes)}
