"""What ``tools/compile_kernels`` does."""
