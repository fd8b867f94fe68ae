"""The optimisation loop of trained erasers and the pieces that it is put together from."""
