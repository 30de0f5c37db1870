"""Films and pictures."""
