"""How plugins are found and checked."""
