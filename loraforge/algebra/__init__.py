"""Numbers only: low-rank updates and element types."""
