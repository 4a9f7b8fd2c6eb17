"""Chaos: thousands of jobs while everything around them is killed, stopped, restarted and cut. `make chaos` runs it whole."""
