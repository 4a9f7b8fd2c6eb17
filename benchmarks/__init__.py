"""Measurements of the mesh beside its neighbours on one machine. Nothing here is installed; `make bench` runs the ladder."""
