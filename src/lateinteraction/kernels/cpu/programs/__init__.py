"""What is compiled. Only `compilation` imports this package, when it has to compile: it needs numba.

`vector` writes LLVM's vector instructions, `products` the micro-kernels made of them; the other modules hold programs:
functions of whole numbers, of which the addresses become typed pointers by `memory`.
"""
