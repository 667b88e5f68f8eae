"""Classify images with a torchvision backbone."""
