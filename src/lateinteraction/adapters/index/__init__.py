"""A durable index in a folder: immutable files, atomic commits, readers that keep what they opened."""
