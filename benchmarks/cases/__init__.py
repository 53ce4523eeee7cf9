"""One module per case: its figures with their targets, a correctness check, the measurement."""
