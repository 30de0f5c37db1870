"""Trainers' own LoRA networks and saving functions, run on tiny models: who wrote the files of tests/data/trainers."""
