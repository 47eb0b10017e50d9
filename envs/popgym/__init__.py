"""The POPGym suite in JAX."""
