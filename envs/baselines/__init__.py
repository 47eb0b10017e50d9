"""Scripted policies of known strength, and their scores."""
