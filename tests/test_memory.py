"""Freed memory stays in the process: the same pages are not mapped at each step."""

import subprocess
import sys

import pytest
import torch

from fa_utils.memory import peak_bytes

CODE = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from fa_utils.memory import keep_freed_memory
    keep_freed_memory()
network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 32, 3), torch.nn.Conv2d(32, 32, 3))
images = torch.rand(16, 3, 112, 112, requires_grad=True)
for _ in range(2):
    torch.autograd.grad(network(images).sum(), images)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.autograd.grad(network(images).sum(), images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_blocks_are_not_mapped_again():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True,
                                env={"OMP_NUM_THREADS": "1"}).stdout)
        for how in ("keep", "plain")
    }
    # On some machines the heap still grows by a few pages after the warm-up: five thousand faults against a hundred thousand.
    assert faults["plain"] > 2 * faults["keep"]


def test_peak_counts_what_is_held_at_once():
    def run():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        del first
        held = [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(3)]
        return len(held)

    assert peak_bytes(run) == pytest.approx(3 << 20, rel=0.01)
