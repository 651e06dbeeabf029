"""Corrections: clean states moved towards the observation without a gradient through the network.

A correction is a `Guidance` that returns the state from which a sampler goes on (`Renoise(clean="given")`): a proximal
point, some steps of an iterative solver, a draw.
"""
