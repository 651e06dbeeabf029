"""Filters: observations one after another to the law of the present state."""
