"""What the operating system knows of this process."""

import psutil


def resident_bytes() -> int:
    """Host memory of this process (resident set size), shared pages included."""
    return int(psutil.Process().memory_info().rss)
