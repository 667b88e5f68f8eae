"""Classify texts with TF-IDF and logistic regression."""
