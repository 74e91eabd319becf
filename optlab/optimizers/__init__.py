"""One file an optimizer; `optlab` gathers their names."""
