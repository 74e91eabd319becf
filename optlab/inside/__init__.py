"""A look inside a run."""
