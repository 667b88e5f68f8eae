"""The models that come with lsml, one module per family, and the contract they share (`base`)."""
