"""The whole mesh on one machine, with a real Valkey and a real Triton."""
