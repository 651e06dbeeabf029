"""Settings for all tests."""

from hypothesis import settings

# One fixed set of examples: a failing run can be repeated, and a slow machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")
