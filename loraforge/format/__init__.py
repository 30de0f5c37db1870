"""How adapters are stored: one file a format."""
