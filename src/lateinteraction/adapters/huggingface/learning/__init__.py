"""Models in training: what of them is trained, what stays as it is, and what is small enough to keep apart."""
