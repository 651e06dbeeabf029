"""Variational methods: the most probable state or trajectory, found by minimising its misfit."""
