"""Preset configurations, one YAML file each."""
