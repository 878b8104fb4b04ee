"""The command ``fa``: list, run and sweep notebooks, train networks, show results, build the book."""

import argparse
import itertools
import sys
from pathlib import Path

import pandas as pd
import yaml

from fa_utils import parameters as declared
from fa_utils import runs
from fa_utils.memory import keep_freed_memory
from fa_utils.parameters import ParameterError
from fa_utils.paths import RESULTS, ROOT

_PROVENANCE = ("faces", "networks", "profile", "seeds", "pairs", "device", "version", "commit", "date", "command")


def _mapping(text: str, origin: str) -> dict:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ParameterError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{origin} must hold lines 'name: value', not {type(values).__name__}")
    return values


def _given(arguments: argparse.Namespace, known: dict) -> dict:
    """The parameters of a command line. As in papermill, -f yields to -y, and -y to -p and -r; --profile comes first."""
    given = {"profile": arguments.profile} if arguments.profile else {}
    for path in arguments.parameters_file:
        try:
            given.update(_mapping(Path(path).read_text(), path))
        except OSError as error:
            raise ParameterError(f"cannot read the parameter file {path}: {error.strerror}") from error
    for text in arguments.parameters_yaml:
        given.update(_mapping(text, "the text after -y"))
    given.update(arguments.parameters)
    given = declared.validate(known, given)
    return given | declared.validate(known, _raw(arguments.parameters_raw, known))


def _raw(pairs: list, known: dict) -> dict:
    for name, value in pairs:
        if name in known and str not in declared.members(known[name].type):
            raise ParameterError(f"-r passes {name} = {value!r} as text, and accepted is {known[name].accepts}; use -p")
    return dict(pairs)


def _run(arguments) -> int:
    notebook = runs.find_notebook(arguments.notebook)
    given = _given(arguments, declared.read_parameters(notebook))
    output = Path(arguments.output or ROOT / "runs" / runs.output_name(notebook, given))
    ran = runs.execute(notebook, output, given)
    print(f"{'done' if ran else 'up to date'}: {output}")
    return 0


def _sweep(arguments) -> int:
    notebook = runs.find_notebook(arguments.notebook)
    known = declared.read_parameters(notebook)
    fixed = _given(arguments, known)
    axes = {axis[0]: axis[1:] for axis in arguments.grid}
    if empty := [name for name, values in axes.items() if not values]:
        raise ParameterError(f"-g {empty[0]} has no values: say -g {empty[0]} VALUE [VALUE ...]")
    folder = Path(arguments.output or ROOT / "runs")
    points = [fixed | declared.validate(known, dict(zip(axes, values, strict=True)))
              for values in itertools.product(*axes.values())]
    specs = [{"notebook": str(notebook), "parameters": point, "output": str(folder / runs.output_name(notebook, point))}
             for point in points]
    records = pd.DataFrame(_in_parallel(specs, arguments.jobs))
    print(records.to_string(index=False))
    return int((records["status"] == "failed").any())


def _in_parallel(specs: list[dict], jobs: int) -> list[dict]:
    from joblib import Parallel, delayed
    from tqdm import tqdm

    finished = Parallel(n_jobs=jobs, return_as="generator")(delayed(runs.run_one)(spec) for spec in specs)
    return list(tqdm(finished, total=len(specs), desc="runs"))


def _list(arguments) -> int:
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        print(notebook.stem)
        for parameter in declared.read_parameters(notebook).values():
            print(f"    {parameter.name} = {parameter.default!r}  ({parameter.accepts})  {parameter.text}".rstrip())
    return 0


def _results(arguments) -> int:
    rows = []
    for path in sorted(RESULTS.rglob("*.csv")):
        table = pd.read_csv(path)
        row = {"file": path.relative_to(RESULTS).as_posix(), "rows": len(table)}
        row |= {name: ", ".join(sorted(set(table[name].dropna().astype(str)))) for name in _PROVENANCE if name in table}
        rows.append(row)
    print(pd.DataFrame(rows).fillna("").to_string(index=False) if rows else f"no results in {RESULTS}")
    return 0


def _train(arguments) -> int:
    from fa_utils.models import train  # torch takes seconds to import, and no other command needs it

    return train.main(arguments.arguments)


def _book(arguments) -> int:
    runs.build_book(arguments.profile)
    return 0


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("notebook", help="a name of notebooks/, such as 3_dfanet, or a path")
    parser.add_argument("-p", "--parameters", help="one parameter, read as its declared type", **pair)
    parser.add_argument("-r", "--parameters_raw", help="one parameter, taken as text", **pair)
    parser.add_argument("-f", "--parameters_file", action="append", default=[], metavar="FILE", help="YAML file")
    parser.add_argument("-y", "--parameters_yaml", action="append", default=[], metavar="YAML", help="YAML text")
    parser.add_argument("--profile", help="the same as -p profile NAME")


def parser() -> argparse.ArgumentParser:
    """The command line of ``fa``."""
    top = argparse.ArgumentParser(prog="fa", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a notebook with other parameters")
    _add_parameters(run)
    run.add_argument("-o", "--output", help="executed notebook (default: runs/, named after the parameters)")
    run.set_defaults(call=_run)
    sweep = commands.add_parser("sweep", help="run a notebook at every point of a grid")
    _add_parameters(sweep)
    sweep.add_argument("-g", "--grid", nargs="+", action="append", required=True, metavar="NAME VALUE",
                       help="a parameter and its values")
    sweep.add_argument("-j", "--jobs", type=int, default=1, help="notebooks run at once")
    sweep.add_argument("-o", "--output", help="folder of the executed notebooks (default: runs)")
    sweep.set_defaults(call=_sweep)
    commands.add_parser("list", help="notebooks and their parameters").set_defaults(call=_list)
    commands.add_parser("results", help="the published results, with provenance").set_defaults(call=_results)
    train = commands.add_parser("train", help="train a network of the zoo", add_help=False)
    train.add_argument("arguments", nargs=argparse.REMAINDER)
    train.set_defaults(call=_train)
    book = commands.add_parser("book", help="execute the notebooks that are out of date, build the book")
    book.add_argument("--profile", default="laptop", choices=runs.PROFILES)
    book.set_defaults(call=_book)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0, 1 where something that ran failed, 2 where the command makes no sense."""
    argv = sys.argv[1:] if argv is None else argv
    keep_freed_memory()
    # argparse's REMAINDER would take a leading option for its own, so training gets its arguments untouched.
    arguments = argparse.Namespace(call=_train, arguments=argv[1:]) if argv[:1] == ["train"] else parser().parse_args(argv)
    try:
        return arguments.call(arguments)
    except ParameterError as error:
        print(f"fa: {error}", file=sys.stderr)
        return 2
    except (runs.UnfinishedNotebook, OSError, RuntimeError) as error:
        print(f"fa: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
