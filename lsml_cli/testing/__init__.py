"""Test a model against the contract: `check_model`."""
