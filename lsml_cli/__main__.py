"""`python -m lsml_cli` is `lsml`."""

from lsml_cli.cli import main

if __name__ == "__main__":
    main()
