"""What ``tools/bench_kernels`` measures."""
