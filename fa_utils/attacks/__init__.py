"""Attacks on face recognition: one engine, assembled from parts."""

from fa_utils.attacks.beneficial import BeneficialPerturbation
from fa_utils.attacks.copies import NoiseCopies, ScaleCopies
from fa_utils.attacks.craft import CraftResult, GridError, craft, run_grid
from fa_utils.attacks.engine import Attack, AttackResult, NonFiniteGradient, Scope, SurrogateState, frozen
from fa_utils.attacks.eroding import GhostNetwork, GradientEroding, SkipGradient
from fa_utils.attacks.gradients import CopyNorm, Momentum, Nesterov, TranslationInvariant, VarianceTuning
from fa_utils.attacks.inputs import DiverseInput, DiversePad, DiverseResize, TranslateScale
from fa_utils.attacks.objectives import (
    ClubInformation,
    Dodge,
    Impersonate,
    LabelDodge,
    LabelImpersonate,
    Misclassify,
    RandomSigns,
)
from fa_utils.attacks.presets import PRESETS, corrasion, preset
from fa_utils.attacks.spectrum import SpectrumCopies
from fa_utils.attacks.surrogates import FeatureDropout

__all__ = [
    "PRESETS",
    "Attack",
    "AttackResult",
    "BeneficialPerturbation",
    "ClubInformation",
    "CopyNorm",
    "CraftResult",
    "DiverseInput",
    "DiversePad",
    "DiverseResize",
    "Dodge",
    "FeatureDropout",
    "GhostNetwork",
    "GradientEroding",
    "GridError",
    "Impersonate",
    "LabelDodge",
    "LabelImpersonate",
    "Misclassify",
    "Momentum",
    "Nesterov",
    "NoiseCopies",
    "NonFiniteGradient",
    "RandomSigns",
    "ScaleCopies",
    "Scope",
    "SkipGradient",
    "SpectrumCopies",
    "SurrogateState",
    "TranslateScale",
    "TranslationInvariant",
    "VarianceTuning",
    "corrasion",
    "craft",
    "frozen",
    "preset",
    "run_grid",
]
