"""Words, invariants, ports and the NumPy reference. Imports: the standard library, NumPy, attrs; nothing else."""
