"""The most memory that a process has held."""

import sys
from pathlib import Path


def peak_megabytes() -> int:
    """Of this process alone: `getrusage` begins with what the one that started it had held."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 2**10
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
