"""What the programs that run adapters do with a file: programs.toml, and what follows from it."""
