"""HNSW: a graph over all document tokens, which proposes documents for an index that scores them."""
