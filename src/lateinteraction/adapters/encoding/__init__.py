"""What is the same for every runtime of an encoder: texts to ids, ids to batches, and the loop around the model."""
