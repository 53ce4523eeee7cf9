"""Encoders from the Hugging Face world: tokenisation, the model's forward pass, and reading both from disk or hub."""
