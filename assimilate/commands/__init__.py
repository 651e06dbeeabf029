"""The commands, one or two a file; `assimilate.cli` puts them together. Like it, they may look at every package."""
