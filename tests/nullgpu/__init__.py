"""A pretended GPU: PyTorch's own CUDA code runs, no kernel computes, every launch, copy and wait is counted.

`runtime.c` and `driver.c` stand in for libcudart, cuBLAS and libcuda. They answer questions about the device as an H100
would, hand out memory that is never touched, drop kernels, and count. Values are therefore junk: what is computed is
tested elsewhere, here only what would be asked of a GPU. `library.py` builds them, `meter.py` reads the counters.
"""
