"""How hard the procedural faces are, from the published run of ``benchmarks/zoo.py``."""

from pathlib import Path

import pandas as pd

from fa_utils.paths import RESULTS
from fa_utils.report.results import read_results
from fa_utils.report.tables import Table, plain_table

__all__ = ["WANTED", "difficulty", "difficulty_table"]

# column -> what the design asks for
WANTED = {
    "accuracy": (97.0, 99.7),
    "threshold": (-1.0, 0.5),
    "gender": (85.0, 95.0),
    "white_box": (95.0, 100.0),
    "black_box": (10.0, 90.0),
}


def difficulty(source: Path = RESULTS / "zoo-difficulty.csv") -> pd.DataFrame:
    """One row a network: accuracy, threshold, gender, white_box, black_box (percent but for the threshold) and the mean
    black-box similarity. Black-box figures are means over the other networks.
    """
    rows = read_results(source)
    plain = rows[rows["target"].isna() | (rows["target"] == "")]
    cells = rows[(rows["metric"].isin(["hit_rate", "similarity"])) & rows["target"].notna() & (rows["target"] != "")]
    own = cells["source"] == cells["target"]
    hits = cells["metric"] == "hit_rate"

    def by_source(frame: pd.DataFrame) -> pd.Series:
        return frame.groupby("source", sort=False)["value"].mean()

    return pd.DataFrame(
        {
            "accuracy": by_source(plain[plain["method"] == "verification"]),
            "threshold": by_source(plain[plain["metric"] == "threshold"]),
            "gender": by_source(plain[plain["method"] == "gender"]),
            "white_box": by_source(cells[own & hits]),
            "black_box": by_source(cells[~own & hits]),
            "similarity": by_source(cells[~own & ~hits]),
        }
    )


def difficulty_table(source: Path = RESULTS / "zoo-difficulty.csv") -> Table:
    """The four figures of difficulty for the whole zoo, as a table of the book."""
    rows = read_results(source)
    first = rows.iloc[0]
    n_pairs = int(rows.loc[rows["metric"] == "hit_rate", "n_pairs"].iloc[0])
    caption = (
        f"Published: DI-M-FIM on {n_pairs} pairs, {int(first['steps'])} steps, seed {first['seeds']}, {first['device']}, "
        f"{first['date']}. Everything but threshold and similarity in percent."
    )
    percent = dict.fromkeys(("accuracy", "gender", "white_box", "black_box"), 1)
    labels = {
        "source": "network",
        "threshold": "threshold at FAR 1e-3",
        "gender": "attribute read",
        "white_box": "white-box hits",
        "black_box": "black-box hits",
        "similarity": "black-box similarity",
    }
    return plain_table(difficulty(source).reset_index(), caption=caption, labels=labels, digits=percent)
