"""The training run: state, step, loop, and what it writes."""
