"""What a deployment holds that no machine here could: measured points, a simulation that tells them, and the big sums.

    python -m benchmarks.scaling                   model against measurement, then the sums (a minute)
    python -m benchmarks.scaling measure [GROUP …] measures the points again, on this machine (about 6 minutes, quiet)

`parts` and `whole` measure, `costs` draws lines through the parts, `simulation` puts them together, `deployment` plans.
What follows from it for an operator is written in `deploy/SCALING.md`.
"""
