"""The embedded networks: their architectures, recipes and weights."""
