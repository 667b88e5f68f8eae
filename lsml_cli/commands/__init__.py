"""One module per command: parse options, call one function that knows no command line, report."""
