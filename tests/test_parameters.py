"""Notebook parameters: declarations, command-line text, checks inside a notebook."""

import math

import nbformat
import pytest

from fa_utils.parameters import (
    ParameterError,
    check_parameters,
    coerce,
    parse_parameters,
    profile_settings,
    read_parameters,
    validate,
)

CELL = '''
profile: str = "laptop"  # how much is run; one of smoke, laptop
eps: float = 10 / 255  # L-infinity budget; in (0, 1]
drop: float = 0.1  # share dropped; in [0, 1)
n_pairs: int | None = None  # pairs attacked, None: the profile's; in [1, 3000]
networks: list[str] = ["a", "b"]  # names
steps: list[int] = [
    13,
    100,
]  # counts; in [1, inf)
audit: bool = True  # run the controls
note: str = ""  # any text; written on figures
'''


@pytest.fixture
def known():
    return parse_parameters(CELL)


def test_declarations_are_read(known):
    assert list(known) == ["profile", "eps", "drop", "n_pairs", "networks", "steps", "audit", "note"]
    assert known["eps"].default == 10 / 255
    assert known["eps"].bounds == (0, 1, True, False)
    assert known["drop"].bounds == (0, 1, False, True)
    assert known["steps"].bounds == (1, math.inf, False, True)
    assert known["steps"].default == [13, 100]
    assert known["profile"].choices == ("smoke", "laptop")
    assert known["note"].text == "any text; written on figures"
    assert known["eps"].accepts == "float in (0, 1]"


@pytest.mark.parametrize(("name", "text", "value"), [
    ("eps", "1e-3", 1e-3), ("eps", "8/255", 8 / 255), ("eps", 1, 1.0), ("eps", "1", 1.0),
    ("audit", "false", False), ("audit", "True", True), ("n_pairs", "100", 100), ("n_pairs", "None", None),
    ("n_pairs", "null", None), ("networks", "a,b", ["a", "b"]), ("networks", "[a, 'c d']", ["a", "c d"]),
    ("steps", "13,50", [13, 50]), ("steps", (13,), [13]), ("note", "1e-3", "1e-3"), ("note", "false", "false"),
])
def test_text_means_what_it_says(known, name, text, value):
    result = coerce(known[name], text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(("name", "value"), [
    ("eps", 0), ("eps", 1.5), ("eps", "nan"), ("eps", math.nan), ("eps", "small"), ("eps", True), ("eps", None),
    ("drop", 1.0), ("n_pairs", 0), ("n_pairs", 2.0), ("n_pairs", "2.5"), ("n_pairs", True), ("n_pairs", "1/0"),
    ("networks", 3), ("networks", [3]), ("steps", [13, 0]), ("steps", "13,x"), ("audit", 1), ("audit", "yes"),
    ("note", 3), ("profile", "paper"), ("eps", "__import__('os')"), ("eps", "1 +"),
])
def test_what_is_not_accepted_is_an_error_that_says_what_is(known, name, value):
    with pytest.raises(ParameterError) as error:
        coerce(known[name], value)
    assert name in str(error.value)
    assert known[name].accepts in str(error.value)


def test_an_unknown_name_gets_the_nearest_right_one(known):
    with pytest.raises(ParameterError, match="unknown parameter n_pair; did you mean n_pairs"):
        validate(known, {"n_pair": 3})


def test_an_unknown_choice_gets_the_nearest_right_one(known):
    with pytest.raises(ParameterError, match="did you mean laptop"):
        coerce(known["profile"], "labtop")


@pytest.mark.parametrize("line", [
    "eps: float = 2.0  # budget; in [0, 1]", "eps: float = 'a'", "eps: complex = 1", "eps: float = f()",
    "n: int = 1  # count; in [one, 2]", "p: str = 'c'  # way; one of a, b", "n: int = None",
])
def test_a_declaration_that_contradicts_itself_is_an_error(line):
    with pytest.raises(ParameterError):
        parse_parameters(line)


def test_numbers_can_be_choices():
    known = parse_parameters("power: int = 2  # exponent; one of 1, 2")
    assert coerce(known["power"], "1") == 1
    with pytest.raises(ParameterError, match="one of 1, 2"):
        coerce(known["power"], 3)


def test_only_the_tagged_cell_is_read():
    other = nbformat.v4.new_code_cell("x: int = 1")
    tagged = nbformat.v4.new_code_cell("y: int = 2", metadata={"tags": ["parameters"]})
    assert list(read_parameters(nbformat.v4.new_notebook(cells=[other, tagged]))) == ["y"]
    assert read_parameters(nbformat.v4.new_notebook(cells=[other])) == {}


# ------------------------------------------------------------------------------------------------ inside a notebook


def _namespace(*cells: str) -> dict:
    """What globals() holds after IPython ran the cells."""
    namespace = {"In": ["", *cells, "check_parameters(globals())"]}
    for cell in cells:
        exec(cell, namespace)
    return namespace


def test_inside_a_notebook_papermills_strings_become_what_they_mean():
    namespace = _namespace("import math", CELL, "# Parameters\naudit = 'false'\neps = '1e-3'\nn_pairs = 5\n")
    check_parameters(namespace)
    assert (namespace["audit"], namespace["eps"], namespace["n_pairs"]) == (False, 1e-3, 5)


@pytest.mark.parametrize(("injected", "message"), [
    ("# Parameters\nepss = 0.1\n", "unknown parameter epss; did you mean eps"),
    ("# Parameters\neps = 3\n", r"accepted is float in \(0, 1\]"),
    ("# Parameters\nn_pairs = 'many'\n", "accepted is int | None in"),
])
def test_inside_a_notebook_what_papermill_injects_is_checked(injected, message):
    with pytest.raises(ParameterError, match=message):
        check_parameters(_namespace(CELL, injected))


def test_an_edited_and_rerun_parameters_cell_counts_in_its_last_form():
    later = CELL.replace("in (0, 1]", "in (0, 0.5]").replace("10 / 255", "0.4")
    namespace = _namespace(CELL, "x: int = 3", later)
    assert check_parameters(namespace)["eps"] == 0.4
    namespace["eps"] = 0.9
    with pytest.raises(ParameterError, match=r"\(0, 0.5\]"):
        check_parameters(namespace)


def test_what_papermill_injected_before_an_edit_no_longer_counts():
    namespace = _namespace(CELL, "# Parameters\nn_pairs = 5\n", CELL.replace("n_pairs", "pairs"))
    assert "pairs" in check_parameters(namespace)


def test_outside_a_notebook_the_check_says_where_it_belongs():
    with pytest.raises(RuntimeError, match="in the cell after the one tagged parameters"):
        check_parameters({"eps": 1})
    with pytest.raises(ParameterError, match="no parameters are declared"):
        check_parameters(_namespace("x = 1"))


# ------------------------------------------------------------------------------------------------------------ profiles

TABLE = {"smoke": {"pairs": 4, "steps": 2}, "laptop": {"pairs": 100, "steps": 50}}


def test_a_profile_gives_what_is_not_overridden():
    settings = profile_settings("laptop", TABLE, {"pairs": 7, "steps": None})
    assert (settings.profile, settings.pairs, settings.steps) == ("laptop", 7, 50)
    assert TABLE["laptop"]["pairs"] == 100


@pytest.mark.parametrize(("profile", "overrides", "message"), [
    ("laptp", {}, "did you mean laptop"), ("laptop", {"pair": 1}, "did you mean pairs"),
])
def test_unknown_profiles_and_settings_are_errors(profile, overrides, message):
    with pytest.raises(ParameterError, match=message):
        profile_settings(profile, TABLE, overrides)


def test_profiles_must_set_the_same_names():
    with pytest.raises(ParameterError, match="do not both set steps"):
        profile_settings("a", {"a": {"pairs": 1}, "b": {"pairs": 1, "steps": 2}})
