"""Where the project keeps its files.

``FA_CACHE`` moves the cache (rendered faces, checkpoints of attacks) to another disk.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
WEIGHTS = DATA / "weights"
RESULTS = DATA / "results"
PAPER_TABLES = DATA / "paper_tables"
CACHE = Path(os.environ.get("FA_CACHE", ROOT / ".cache"))
