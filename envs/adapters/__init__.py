"""Environments of other packages behind this package's interface."""
