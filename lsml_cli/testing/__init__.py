"""Test a model against the contract: `check_model`."""

from lsml_cli.testing.check_model import ContractBroken, check_model

__all__ = ["ContractBroken", "check_model"]
