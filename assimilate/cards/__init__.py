"""Cards: one experiment in one TOML file; read, checked, run, judged and written."""
