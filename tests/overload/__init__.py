"""Overload: three times what the mesh can do, for minutes, in an open loop. `make overload` runs it whole."""
