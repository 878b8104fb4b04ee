"""Pictures a second of the procedural renderer at 112 x 112 (wanted: 150 or more on two cores).

    python benchmarks/render.py --pictures 2000 --workers 2
"""

import argparse
import time

import numpy as np

from fa_utils.data.domains import DOMAINS, _fill

SIZE = 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    conditions = DOMAINS["webface"].conditions
    out = np.empty((options.pictures, 3, SIZE, SIZE), dtype=np.uint8)
    for _ in range(2):  # the first round starts the processes
        who, sample = np.divmod(np.arange(options.pictures), 10)
        started = time.perf_counter()
        _fill(out, "benchmark", who, sample, conditions, SIZE, options.workers, False, "benchmark")
        seconds = time.perf_counter() - started
    print(f"{options.pictures} pictures, {options.workers} workers: {options.pictures / seconds:.0f} pictures/s")


if __name__ == "__main__":
    main()
