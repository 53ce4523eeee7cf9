"""Use-cases: ports in, results out. They know no model, no file and no device."""
