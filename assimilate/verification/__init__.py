"""Verification: scores of an analysis against the truth."""
