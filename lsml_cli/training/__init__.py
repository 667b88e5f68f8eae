"""Train a model from annotated tasks: split, fit, measure, gate, promote."""
