"""Containers of tensors, read safely and written atomically."""
