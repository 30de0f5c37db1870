"""Adapters in a running pipeline."""
