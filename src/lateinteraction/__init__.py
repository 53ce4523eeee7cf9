"""Late-interaction retrieval."""
