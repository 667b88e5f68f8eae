"""Read defaults of options from lsml.toml."""
