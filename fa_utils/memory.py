"""Keep freed memory in the process, and measure how much of it a run takes.

glibc gives every large block back to the system when it is freed. A network frees and allocates its activations at each
step, so up to a third of the processor's time goes into mapping the same pages again.
"""

import ctypes
import os
import sys
from collections.abc import Callable

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


def peak_bytes(run: Callable[[], object], device="cpu") -> int:
    """The most memory that tensors took at once while ``run()`` ran, above what they took before, in bytes.

    On a CPU every allocation and release is recorded by torch's profiler; on a GPU the allocator tells.
    """
    import torch  # seconds that a command which only lists results should not pay

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
