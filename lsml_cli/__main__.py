"""`python -m lsml_cli` is `lsml`."""

import os
import sys


def _drop_working_folder() -> None:
    """Remove the working folder, which `python -m` puts in front of everything, from the import path.

    It may hold data, and among them a `sklearn.py`. The installed command does not import from there either.
    """
    checkout = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    try:
        folder = os.path.realpath(os.getcwd())  # noqa: PTH109
    except OSError:  # it was removed
        return
    if sys.path and os.path.realpath(sys.path[0]) == folder != checkout and not sys.flags.safe_path:
        del sys.path[0]


if __name__ == "__main__":
    _drop_working_folder()
    from lsml_cli.cli import main

    main()
