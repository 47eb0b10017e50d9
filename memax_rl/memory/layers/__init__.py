"""Layers and helpers that several memory models share."""
