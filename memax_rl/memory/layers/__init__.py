"""Parts that several memory models share."""
