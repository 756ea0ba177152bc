"""Experiments: each module is a command, `python -m experiments.NAME`."""
