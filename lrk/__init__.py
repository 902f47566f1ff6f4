"""Long-context Recipe Kernels."""
