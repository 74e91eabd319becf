"""How gradients and curvature are made."""
