"""The published attacks by name, each a composition of parts.

A name with ``e_`` is the same composition: an ensemble is made by passing several encoders to the attack.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass

from fa_utils.attacks.engine import Attack
from fa_utils.attacks.gradients import Momentum
from fa_utils.attacks.inputs import DiverseInput
from fa_utils.attacks.objectives import Impersonate, LabelDodge, LabelImpersonate
from fa_utils.attacks.surrogates import FeatureDropout


@dataclass(frozen=True)
class Recipe:
    """What a published name stands for; ``steps`` None is `paper_steps`, 13 at eps 10 / 255."""

    source: str
    objective: object = Impersonate()
    steps: int | None = 1500
    step_size: float | None = 1 / 255  # None: one step of the whole eps
    dropout: bool = False
    diverse: bool = False
    momentum: bool = False
    random_start: bool = False


_DFANET = "Zhong and Deng 2021"
PRESETS: dict[str, Recipe] = {
    "fgsm": Recipe("Goodfellow et al. 2015", LabelDodge(), steps=1, step_size=None),
    "pgd": Recipe("Madry et al. 2018", LabelDodge(), steps=10, step_size=2 / 255, random_start=True),
    "ftgsm": Recipe(f"{_DFANET}, eq. 2", LabelImpersonate(), steps=1, step_size=None),
    "itgsm": Recipe(f"{_DFANET}, eq. 4", LabelImpersonate(), steps=None),
    "ffm": Recipe(f"{_DFANET}, eq. 11", steps=1, step_size=None),
    "fim": Recipe(f"{_DFANET}, eq. 12", steps=None),
    "m_fim": Recipe(f"{_DFANET}, section IV-C", momentum=True),
    "di_m_fim": Recipe(f"{_DFANET}, section IV-C", momentum=True, diverse=True),
    "dfanet_fim": Recipe(f"{_DFANET}, section III", dropout=True),
    "dfanet_m_fim": Recipe(f"{_DFANET}, algorithm 1", dropout=True, momentum=True),
    "dfanet_di_m_fim": Recipe(f"{_DFANET}, algorithm 2", dropout=True, momentum=True, diverse=True),
    "e_di_m_fim": Recipe(f"{_DFANET}, table V", momentum=True, diverse=True),
    "dfanet_e_di_m_fim": Recipe(f"{_DFANET}, algorithm 3", dropout=True, momentum=True, diverse=True),
}


def preset(
    name: str,
    *,
    eps: float = 10 / 255,
    steps: int | None = None,
    drop: float = 0.1,
    seed: int = 0,
    **overrides,
) -> Attack:
    """A published attack by name.

    Parameters
    ----------
    name : str
        One of ``PRESETS``, e.g. ``"dfanet_di_m_fim"``; hyphens and capitals as in the papers are understood.
    eps : float
        Largest change of a pixel, in (0, 1].
    steps : int, optional
        Number of steps; the paper's by default. One-step attacks take 1 only.
    drop : float
        Drop probability of the ``dfanet_`` attacks; the others have none.
    seed : int
        Seed of every random draw.
    **overrides
        Any other parameter of `Attack`, in place of the composition's own.

    Raises
    ------
    ValueError
        For an unknown name or parameter, with the nearest right one.
    """
    recipe = _lookup("preset", _plain(name), PRESETS)
    one_step = recipe.step_size is None
    if one_step and steps not in (None, 1):
        raise ValueError(f"{name!r} takes one step, got steps={steps!r}; its iterative form takes several")
    attack = Attack(
        objective=recipe.objective,
        eps=eps,
        step_size=eps if one_step else recipe.step_size,
        steps=steps if steps is not None else recipe.steps or paper_steps(eps),
        inputs=[DiverseInput()] if recipe.diverse else [],
        surrogate=[FeatureDropout(drop)] if recipe.dropout else [],
        gradient=[Momentum(1.0)] if recipe.momentum else [],
        random_start=recipe.random_start,
        seed=seed,
    )
    accepted = {field.name: field for field in dataclasses.fields(Attack)}
    for key in overrides:
        _lookup("parameter of Attack", key, accepted)
    return dataclasses.replace(attack, **overrides)


def paper_steps(eps: float) -> int:
    """Iterations of ITGSM and FIM: min(eps + 4, 1.25 eps) in grey levels, rounded up; 13 for 10 / 255."""
    levels = eps * 255
    return max(1, math.ceil(round(min(levels + 4, 1.25 * levels), 6)))


def _plain(name: str) -> str:
    return str(name).lower().replace("-", "_")


def _lookup(what: str, name: str, table: dict):
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(table)})")
    return table[name]
