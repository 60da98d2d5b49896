"""Plots of what kivi writes as JSON: python -m libkivi.plots FILE.json (needs matplotlib)."""
