"""Keep freed memory in the process.

glibc gives every large block back to the system when it is freed. A network frees and allocates its activations at each
step, so up to a third of the processor's time goes into mapping the same pages again.
"""

import ctypes
import os
import sys

# Environment variable and mallopt number of the three limits: no separate mappings, no trimming, growth in large pieces.
_LIMITS = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 2**26),
}


def keep_freed_memory() -> None:
    """Set glibc's limits for this process and, through the environment, for the ones that it starts; elsewhere do nothing."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, (number, value) in _LIMITS.items():
        os.environ.setdefault(name, str(value))
        if mallopt is not None:
            mallopt(number, value)
