"""The libraries that ours is compared with, each in a process and an environment of its own: `make peers`.

The `*_worker` modules run with the interpreters of the peers and import nothing of ours; `serving` is their side of the
requests, `process` this side. `cases` and `exchange` hand checkpoints and embeddings to and fro; `__main__` prints it.
"""
