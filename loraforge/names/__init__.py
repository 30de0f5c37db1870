"""Which module of which layout stacks which rows; architectures/ has one table each."""
