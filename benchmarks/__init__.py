"""Benchmarks: `make bench CASE=name` runs `benchmarks/cases/name.py`. How, on what and what was learnt: README.md."""
