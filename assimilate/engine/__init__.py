"""From what a run is given to what it delivers: observations, the cycle, results, and how they survive a kill."""
