"""Training on Accelerate: which examples are together, how gradients are made, and a loop that resumes exactly."""
