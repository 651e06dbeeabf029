"""Training: networks, objectives, checkpoints, shipped weights, learned transitions and window priors."""
