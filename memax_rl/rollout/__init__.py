"""Tapes of whole episodes: how they are written, read and replayed. Arrays and environments, no agents."""
