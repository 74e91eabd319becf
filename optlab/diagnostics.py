"""`optlab.inside.diagnostics` under its public name."""

from optlab.inside.diagnostics import layer_diagnostics

__all__ = ["layer_diagnostics"]
