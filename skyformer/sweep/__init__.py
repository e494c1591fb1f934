"""A grid of runs: `python run.py sweep`."""
