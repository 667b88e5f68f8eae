"""Tasks, annotations, predictions, label configs, and the rules of their values."""
