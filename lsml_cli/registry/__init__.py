"""Resolve model names to specs; read and write trained versions."""
