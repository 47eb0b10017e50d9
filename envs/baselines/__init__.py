"""Scripted players of known strength, and what they score."""
