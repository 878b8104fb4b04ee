"""What all-against-all scoring costs beside the bare similarity products, and whether it agrees with scikit-learn.

    python benchmarks/verification.py [--identities 1000] [--images 15] [--dims 128 512 4096] [--ordered] [--rounds 5]
                                      [--threads 1]

1,000 identities of 15 images are the paper's scale: 1.1e8 comparisons, 2.2e8 ordered; 2,667 identities give 8e8.
The bare products are the same pairs' scores, computed and overwritten: by tiles as the scorer takes them, and by blocks of
rows; the faster of the two counts. Contenders take turns and the fastest round counts, since what disturbs a run only ever
makes it longer; with one thread it is processor time that counts, with more the clock on the wall. Memory is the most
that the process ever held until the comparison was done, with Python, libraries and the embeddings in it.
The embeddings overlap as those of a network under attack do, so that no shortcut for well-separated sets helps.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from fa_utils import verification
from fa_utils.verification import GRID, bootstrap_errors, compare_all

BLOCK = 1024
TIME_LIMIT, MEMORY_LIMIT = 1.5, 1.5e9
CHECKED = 95  # identities of 15 images: 10^6 pairs
RESAMPLED = 100


def embeddings(identities: int, images: int, dim: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """People in 24 directions, images scattered around them; float32 (N, dim) and identity (N,)."""
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(identities), images)
    directions = np.linalg.qr(rng.normal(size=(dim, 24)))[0].astype(np.float32).T
    people = rng.standard_normal((identities, 24), dtype=np.float32)
    found = rng.standard_normal((len(identity), dim), dtype=np.float32)
    for rows in np.array_split(np.arange(len(identity)), 16):  # in place, for memory's sake
        part = found[rows[0]:rows[-1] + 1]
        part *= (16 / dim) ** 0.5
        part += (people[identity[rows]] + rng.standard_normal((len(rows), 24), dtype=np.float32)) @ directions
    return found, identity


def bare_products(images, tiles) -> None:
    buffer = torch.empty(0)
    for rows, columns in tiles:
        a, b = images.a[rows], images.b[columns]
        torch.mm(a, b.T, out=buffer.resize_(len(a) * len(b)).view(len(a), len(b)))


def by_rows(images) -> list[tuple[slice, slice]]:
    size = len(images.identity)
    return [(slice(row, row + BLOCK), slice(row if images.symmetric else 0, size)) for row in range(0, size, BLOCK)]


def fastest(runs: dict[str, Callable[[], object]], *, rounds: int, threads: int) -> dict[str, float]:
    clock = time.process_time if threads == 1 else time.perf_counter
    times = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begin = clock()
            run()
            times[name] = min(times[name], clock() - begin)
    return times


def show_cost(dim: int, options: argparse.Namespace) -> None:
    a, identity = embeddings(options.identities, options.images, dim)
    b = embeddings(options.identities, options.images, dim, seed=1)[0] if options.ordered else None
    if options.ordered:
        b *= 0.2
        b += a
    found = compare_all(a, identity, b, block=BLOCK)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = verification._prepare(a, identity, b, None)
    tiles = list(verification._tiles(images, BLOCK))
    runs = {
        "all against all": lambda: compare_all(a, identity, b, block=BLOCK),
        "bare products, tiles": lambda: bare_products(images, tiles),
        "bare products, rows": lambda: bare_products(images, by_rows(images)),
    }
    times = fastest(runs, rounds=options.rounds, threads=options.threads)
    ours = times.pop("all against all")
    bare = min(times.values())
    print(f"{dim} dimensions: {found.mated:.4g} mated, {found.impostors:.4g} impostor pairs; EER {100 * found.eer:.2f} %, "
          f"FNMR at FMR 0.1 % {100 * found.fnmr_at(1e-3):.2f} %, AUC-DET {100 * found.auc_det:.2f} %")
    print(f"  time    {ours:6.2f} s / {bare:6.2f} s of bare products = {ours / bare:.2f}   (at most {TIME_LIMIT})")
    print(f"  memory  {memory / 1e9:6.2f} GB / {MEMORY_LIMIT / 1e9} GB = {memory / MEMORY_LIMIT:.2f}   (at most 1)", flush=True)


def show_agreement(dim: int) -> None:
    """Against scikit-learn on the same scores: on the grid, where rounding is all that may differ, and before rounding."""
    a, identity = embeddings(CHECKED, 15, dim)
    found = compare_all(a, identity)
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    upper = np.triu_indices(len(a), 1)
    plain, same = (unit @ unit.T)[upper], identity[upper[0]] == identity[upper[1]]
    counted = np.append(np.repeat(found.scores, found.mated_counts), np.repeat(found.scores, found.impostor_counts))
    kinds = np.arange(len(counted)) < found.mated
    print(f"scikit-learn on {len(plain):.3g} scores of {dim} dimensions, differences in percentage points")
    for name, scores, mated in (("the same scores", counted, kinds), ("scores before rounding", plain, same)):
        eer, fnmr = by_sklearn(scores, mated, 1e-3)
        area = 1 - roc_auc_score(mated, scores)
        gaps = (found.eer - eer, found.fnmr_at(1e-3) - fnmr, found.auc_det - area)
        print(f"  {name:23} EER {100 * gaps[0]:+.2e}  FNMR at FMR 0.1 % {100 * gaps[1]:+.2e}  AUC-DET {100 * gaps[2]:+.2e}")
    moved = np.abs(np.sort(counted) - np.sort(plain)).max()
    print(f"  rounding moved a score by at most {moved:.2e} (half a step of the grid is {0.5 / GRID:.2e})")


def by_sklearn(scores: np.ndarray, same: np.ndarray, fmr: float) -> tuple[float, float]:
    """EER between the ROC's points, and the FNMR at the last point that does not exceed ``fmr``."""
    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = false + true - 1
    eer = np.interp(0, gap, false)
    return float(eer), float(1 - true[np.flatnonzero(false <= fmr)[-1]])


def show_bootstrap() -> None:
    a, identity = embeddings(RESAMPLED, 15, 512)
    begin = time.process_time()
    found = bootstrap_errors(a, identity, a[:, ::-1].copy(), seed=0)
    print(f"bootstrap, {RESAMPLED} people, ordered, 200 resamples: {time.process_time() - begin:.1f} s of processor time, "
          f"{len(found)} error rates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=1000)
    parser.add_argument("--images", type=int, default=15)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512, 4096])
    parser.add_argument("--ordered", action="store_true", help="images against variants: twice the pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.identities} identities, {options.images} images each, {options.threads} thread(s)")
    for dim in options.dims:
        show_cost(dim, options)
    for dim in options.dims:
        show_agreement(dim)
    show_bootstrap()


if __name__ == "__main__":
    main()
