"""Public filters beside ours: the systems, our side, and one script a peer that runs in an interpreter of its own.

`run_dapper`, `run_particles` and `run_filterpy` import nothing of this project, only NumPy and their peer: truth,
observations and settings come in one .npz file, estimates and CPU times go back in another.
"""
