"""Attacks on face recognition: one engine, assembled from parts."""

from fa_utils.attacks.craft import CraftResult, GridError, craft, run_grid
from fa_utils.attacks.engine import Attack, AttackResult, NonFiniteGradient, Scope, SurrogateState, frozen
from fa_utils.attacks.gradients import Momentum
from fa_utils.attacks.inputs import DiverseInput, DiverseResize
from fa_utils.attacks.objectives import Dodge, Impersonate, LabelDodge, LabelImpersonate
from fa_utils.attacks.presets import PRESETS, preset
from fa_utils.attacks.surrogates import FeatureDropout

__all__ = [
    "PRESETS",
    "Attack",
    "AttackResult",
    "CraftResult",
    "DiverseInput",
    "DiverseResize",
    "Dodge",
    "FeatureDropout",
    "GridError",
    "Impersonate",
    "LabelDodge",
    "LabelImpersonate",
    "Momentum",
    "NonFiniteGradient",
    "Scope",
    "SurrogateState",
    "craft",
    "frozen",
    "preset",
    "run_grid",
]
