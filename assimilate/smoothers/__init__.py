"""Smoothers: whole windows of observations to trajectories."""
