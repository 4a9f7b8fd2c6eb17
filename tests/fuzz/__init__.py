"""Bad pictures: suites of other projects and seeded mutants, through the decoders and the mesh. `make fuzz` runs it whole."""
