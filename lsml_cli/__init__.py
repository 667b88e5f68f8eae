"""lsml: pre-annotate Label Studio tasks in bulk, from the command line."""

__version__ = "0.1.0"
