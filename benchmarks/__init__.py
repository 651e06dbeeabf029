"""Experiments as data: each card in `cards/` is one experiment with its expected scores and their source."""

DISTRIBUTION = "assimilate-da"
