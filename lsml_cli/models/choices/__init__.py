"""Shared by the classifiers: heads of a model that fill the <Choices> of a label config."""
