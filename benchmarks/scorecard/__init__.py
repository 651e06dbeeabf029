"""Scorecards: what a solver's samples are worth, measured on posteriors that are known in closed form.

    problems.py      five priors, measurements and exact posteriors        laws.py        mixtures of Gaussians
    statistics.py    how far samples are from a posterior                  stein.py       kernel Stein discrepancy
    recipes.py       the solvers and their settings                        assimilation.py   filters, as samplers
    run.py           the table, solver by solver                           expected.py    what should come out
    terminal.py      how it is printed                                     sampling.py    one guidance, sampler, path

`assimilate scorecard` runs it.
"""
