"""Measurements, each a module of its own; `python -m benchmarks` runs them all, `python -m benchmarks NAME` one.

A benchmark is one file here. It says in its docstring what is measured and how, prints what it found, and exits with 1
when a stated limit is broken. Its figures mean something only with the machine, the versions and the commit they were
taken with: the runner prints these first and keeps the whole output in `runs/benchmarks/NAME.txt`. A figure in the
documentation is a figure that one of these commands prints.
"""
