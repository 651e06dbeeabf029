"""Imaging inverse problems on the posterior core of `assimilate`: image instruments, priors and solvers."""

DISTRIBUTION = "assimilate-da"
