"""What the programs that run adapters do with a file: the table programs.toml, and predictions from it."""
