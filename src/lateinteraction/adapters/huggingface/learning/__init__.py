"""Parts of training that a learner can do without: frozen layers run apart, and low-rank adapters kept apart."""
