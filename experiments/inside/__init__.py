"""A look inside finished or running runs: their checkpoints, measured."""
