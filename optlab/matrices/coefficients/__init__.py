"""Coefficients of Newton-Schulz: presets, tables and fits by shape."""
