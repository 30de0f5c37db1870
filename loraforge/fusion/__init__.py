"""How updates are added to base weights: backends."""
