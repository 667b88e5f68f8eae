"""Resolve model names to specs; read, write and promote trained versions."""
