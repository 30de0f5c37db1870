"""Fuzzing: every parser, whole calls, chains of conversions and the Hub's answers, on inputs changed at random.

`make fuzz MINUTES=30` runs it by hand with fresh seeds; test_fuzz.py runs a fixed share of it.
"""
