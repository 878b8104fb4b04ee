"""The command ``fa``: list, run and sweep notebooks, register and train networks, show results, build the book."""

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


def _register(arguments) -> int:
    from fa_utils.models import registry

    fed = {"channels": arguments.channels, "input_size": arguments.input_size}
    fed |= {"mean": _one_or_three(arguments.mean), "std": _one_or_three(arguments.std)}
    try:
        entry = registry.register_network(arguments.name, arguments.path, layout=arguments.layout, **fed)
    except ValueError as error:
        raise ParameterError(error) from error
    print(f"{entry.name} is in {registry.networks_file()}: sha256 {entry.sha256}")
    print(f"its accuracy and thresholds: fa networks {entry.name} --faces FOLDER")
    return 0


def _networks(arguments) -> int:
    from fa_utils.models import registry

    try:
        table = registry.network_table()
        names = arguments.names or list(table.index)
        if unknown := [name for name in names if name not in table.index]:
            raise ParameterError(f"no network is called {unknown[0]!r}.{registry.nearest(unknown[0], list(table.index))}")
        print(table.loc[names].to_string())
        if arguments.faces:
            print(_measured(names, arguments.faces).to_string(float_format="{:.4f}".format))
    except ValueError as error:
        raise ParameterError(error) from error
    return 0


def _measured(names: list[str], faces: str) -> pd.DataFrame:
    from fa_utils.data import load_benchmark
    from fa_utils.report.scores import measure_networks

    table = measure_networks(names, load_benchmark(faces=faces)).drop(columns="address")
    print(f"\non {faces}: accuracy, and thresholds of the cosine by false accept rate")
    return table


def _unpack(arguments) -> int:
    from fa_utils.data.archives import unpack

    try:
        unpack(arguments.archive, arguments.folder)
    except ValueError as error:
        raise ParameterError(error) from error
    print(f"unpacked: {arguments.folder}")
    return 0


def _number(text: str) -> float:
    """A number of a command line, fractions such as 128/255 included."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except ZeroDivisionError as error:
        raise ValueError(text) from error


def _one_or_three(values: list[float] | None) -> float | list[float] | None:
    return values[0] if values and len(values) == 1 else values


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
    register = commands.add_parser("register", help="give a network of your own a name")
    register.add_argument("name", help="letters, digits, _ and -")
    register.add_argument("path", help="ONNX file, public checkpoint, or weight file of fa train")
    register.add_argument("--layout", help="of a public checkpoint: ires50, irse50, mobile, incres, ...")
    register.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the input")
    for key in ("mean", "std"):
        register.add_argument(f"--{key}", type=_number, nargs="+", metavar="X",
                              help=f"{key} of pictures in [0, 1], one number or three (RGB); 128/255 is understood")
    register.add_argument("--channels", choices=("rgb", "bgr"), help="order that the network takes")
    register.set_defaults(call=_register)
    networks = commands.add_parser("networks", help="the networks of the zoo, and your own")
    networks.add_argument("names", nargs="*", metavar="NAME", help="only these")
    networks.add_argument("--faces", help="measure accuracy and thresholds: procedural, or a folder of real faces")
    networks.set_defaults(call=_networks)
    unpack = commands.add_parser("unpack", help="unpack an archive of faces")
    unpack.add_argument("archive")
    unpack.add_argument("folder")
    unpack.set_defaults(call=_unpack)
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
