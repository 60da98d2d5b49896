"""Plots of what kivi writes as JSON."""
