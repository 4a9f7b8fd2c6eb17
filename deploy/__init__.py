"""Ways to run the mesh: on one machine, in containers; and what Triton is given to serve."""
