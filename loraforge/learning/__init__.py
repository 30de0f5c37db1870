"""Layouts inferred from two checkpoints that hold the same weights under two naming schemes."""
