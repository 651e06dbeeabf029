"""Names of the scorecard that tests use together; `assimilate scorecard` runs it."""

from benchmarks.scorecard.problems import PROBLEMS, Problem, gaussian_problem, mixture_problem
from benchmarks.scorecard.sampling import sample
from benchmarks.scorecard.statistics import scores

__all__ = ["PROBLEMS", "Problem", "gaussian_problem", "mixture_problem", "sample", "scores"]
