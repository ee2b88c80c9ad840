"""Units and how numbers are written for people. GiB in text is 2**30 bytes."""

KIB = 2**10
MIB = 2**20
GIB = 2**30


def format_bytes(num_bytes: float) -> str:
    """``1536`` -> ``1.5 KiB``."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_count(count: float) -> str:
    """``20_300_000`` -> ``20.30 M``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f}"


def format_seconds(seconds: float) -> str:
    """``3725`` -> ``1:02:05``; ``0.0021`` -> ``2.1 ms``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
