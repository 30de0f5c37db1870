"""Base models: reading, fusing into them, converting them."""
