"""Do our LFW accuracies and thresholds agree with those that the real networks were delivered with?

    python benchmarks/real_networks.py --faces /path/to/lfw --networks ../shared/real/networks [NAME ...]

``networks.csv`` there gives cosine thresholds from a random sample of impostor pairs; ours come from all. Both are of the
pictures that pairs.txt names. The last column has ours of all pictures of LFW, in which a few people with hundreds of pictures
weigh more. For each we print the delivered threshold, ours, and the range that ours would have if the false accept rate
were off by twice the sampling error of the delivered one. Embedding takes minutes a network on one core.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fa_utils import metrics
from fa_utils.data.faceset import FaceSet, Pairs
from fa_utils.data.lfw import load_lfw
from fa_utils.models.onnx import open_session


def embed(path: Path, faces: FaceSet, *, batch_size: int = 64) -> np.ndarray:
    session = open_session(path.read_bytes())
    (entry,) = session.get_inputs()
    starts = tqdm(range(0, len(faces), batch_size), desc=path.stem)
    batches = (faces.batch(slice(start, start + batch_size)).numpy() for start in starts)
    return np.concatenate([session.run(None, {entry.name: batch})[0] for batch in batches])


def compare(row: pd.Series, embeddings: np.ndarray, faces: FaceSet, pairs: Pairs) -> pd.DataFrame:
    """One line a number: delivered, ours, the range within which they agree, and ours of all pictures."""
    scores = metrics.pair_similarity(embeddings[pairs.a], embeddings[pairs.b])
    mean = metrics.verification_accuracy(scores, pairs.same, pairs.fold).mean
    eer = metrics.equal_error_rate(scores, pairs.same)
    # Ties of the best threshold may be broken otherwise (a pair a fold), and the EER be read off a step.
    lines = [
        ("LFW accuracy", row["lfw_acc_10fold"], mean, mean - 1 / 600, mean + 1 / 600, np.nan),
        ("EER", row["lfw_eer"], eer, eer - 1 / 3000, eer + 1 / 3000, np.nan),
    ]
    errors = {far: 2 * np.sqrt(far / row["n_impostor_pairs"]) for far in metrics.FARS}
    asked = [far + shift * error for far, error in errors.items() for shift in (-1, 0, 1)]
    named = np.union1d(pairs.a, pairs.b)
    ours = metrics.impostor_thresholds(embeddings[named], faces.identity[named], asked)
    of_all = metrics.impostor_thresholds(embeddings, faces.identity, list(errors))
    for far, error in errors.items():
        column = f"thr_far{far:.0e}".replace("e-0", "e-")
        low, high = ours[far + error], ours[far - error]
        lines.append((f"threshold at FAR {far:g}", row[column], ours[far], low, high, of_all[far]))
    table = pd.DataFrame(lines, columns=["number", "delivered", "ours", "low", "high", "of all pictures"])
    rounding = 5e-6  # the delivered numbers have five decimals
    table["agrees"] = table["delivered"].between(table["low"] - rounding, table["high"] + rounding)
    return table.assign(network=row.name).set_index("network")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks; all in networks.csv unless given")
    parser.add_argument("--faces", type=Path, required=True, help="LFW in its standard layout")
    parser.add_argument("--networks", type=Path, required=True, help="folder with networks.csv and the files")
    options = parser.parse_args()
    delivered = pd.read_csv(options.networks / "networks.csv", index_col="name")
    if unknown := set(options.names) - set(delivered.index):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(delivered.index)}")
    faces, pairs = load_lfw(options.faces)
    for name in options.names or delivered.index:
        embeddings = embed(options.networks / delivered.at[name, "file"], faces)
        print(compare(delivered.loc[name], embeddings, faces, pairs).to_string(float_format="{:.5f}".format))


if __name__ == "__main__":
    main()
