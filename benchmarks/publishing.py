"""What the scripts that publish results share: their plain options, where the file goes, and what it says of its making."""

import argparse
import shlex
import sys
from pathlib import Path

from fa_utils.data import dataset_name
from fa_utils.paths import RESULTS
from fa_utils.report.results import provenance


def make_parser(doc: str, *, faces: str, networks: str) -> argparse.ArgumentParser:
    """A parser with the options that all of these scripts have; ``faces`` and ``networks`` explain theirs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", default="procedural", help=faces)
    parser.add_argument("--networks", default="zoo", help=networks)
    parser.add_argument("--profile", default="published", help="name of this size in the results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the file; one in data/results by default")
    return parser


def result_path(options: argparse.Namespace, chapter: str) -> Path:
    """The file that was asked for, else the chapter's for these faces."""
    return options.out or RESULTS / f"{chapter}-{dataset_name(options.faces)}.csv"


def made_by(options: argparse.Namespace, **rest) -> dict:
    """The columns of `fa_utils.report.results.provenance` for this run; ``rest`` is what only the script knows, such as ``steps``."""
    known = {
        "faces": dataset_name(options.faces),
        "networks": "zoo" if options.networks == "zoo" else "onnx",
        "profile": options.profile,
        "device": options.device,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }
    return provenance(**(known | rest))
