"""Read tasks from files and streams, write predictions, and resume after an interruption."""
