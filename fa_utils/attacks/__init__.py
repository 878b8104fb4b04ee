"""Attacks on face recognition: one engine, assembled from parts."""

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
    "Dodge",
    "DiverseInput",
    "DiverseResize",
    "FeatureDropout",
    "Impersonate",
    "LabelDodge",
    "LabelImpersonate",
    "Momentum",
    "NonFiniteGradient",
    "Scope",
    "SurrogateState",
    "frozen",
    "preset",
]
