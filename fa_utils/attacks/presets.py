"""The published attacks by name, each a composition of parts.

A name with ``e_`` is the same composition: an ensemble is made by passing several encoders to the attack.
"""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fa_utils.attacks.beneficial import BeneficialPerturbation
from fa_utils.attacks.copies import NoiseCopies, ScaleCopies
from fa_utils.attacks.engine import Attack
from fa_utils.attacks.eroding import GhostNetwork, GradientEroding
from fa_utils.attacks.gradients import CopyNorm, Momentum, Nesterov, TranslationInvariant, VarianceTuning
from fa_utils.attacks.inputs import DiverseInput, DiverseResize, TranslateScale
from fa_utils.attacks.objectives import Impersonate, LabelDodge, LabelImpersonate, Misclassify, RandomSigns
from fa_utils.attacks.spectrum import SpectrumCopies
from fa_utils.attacks.surrogates import FeatureDropout

PAPER4_EPS = 0.08  # 20.4 gray levels


@dataclass(frozen=True)
class Recipe:
    """What a published name stands for; ``steps`` None is `paper_steps`, 13 at eps 10 / 255."""

    source: str
    objective: object = Impersonate()
    eps: float = 10 / 255
    steps: int | None = 1500
    step_size: float | None = 1 / 255  # None: one step of the whole eps
    inputs: tuple = ()
    gradient: tuple = ()
    surrogate: tuple = ()  # FeatureDropout gets the drop rate that is asked for, BeneficialPerturbation the eta
    random_start: bool = False
    early_stop: bool = False


_DFANET = "Zhong and Deng 2021"
_MOMENTUM = (Momentum(1.0),)
_DROPOUT, _DIVERSE = (FeatureDropout(),), (DiverseInput(),)
_DFANET_PRESETS = {
    "fgsm": Recipe("Goodfellow et al. 2015", LabelDodge(), steps=1, step_size=None),
    "pgd": Recipe("Madry et al. 2018", LabelDodge(), steps=10, step_size=2 / 255, random_start=True),
    "ftgsm": Recipe(f"{_DFANET}, eq. 2", LabelImpersonate(), steps=1, step_size=None),
    "itgsm": Recipe(f"{_DFANET}, eq. 4", LabelImpersonate(), steps=None),
    "ffm": Recipe(f"{_DFANET}, eq. 11", steps=1, step_size=None),
    "fim": Recipe(f"{_DFANET}, eq. 12", steps=None),
    "m_fim": Recipe(f"{_DFANET}, section IV-C", gradient=_MOMENTUM),
    "di_m_fim": Recipe(f"{_DFANET}, section IV-C", gradient=_MOMENTUM, inputs=_DIVERSE),
    "dfanet_fim": Recipe(f"{_DFANET}, section III", surrogate=_DROPOUT),
    "dfanet_m_fim": Recipe(f"{_DFANET}, algorithm 1", surrogate=_DROPOUT, gradient=_MOMENTUM),
    "dfanet_di_m_fim": Recipe(f"{_DFANET}, algorithm 2", surrogate=_DROPOUT, gradient=_MOMENTUM, inputs=_DIVERSE),
    "e_di_m_fim": Recipe(f"{_DFANET}, table V", gradient=_MOMENTUM, inputs=_DIVERSE),
    "dfanet_e_di_m_fim": Recipe(f"{_DFANET}, algorithm 3", surrogate=_DROPOUT, gradient=_MOMENTUM, inputs=_DIVERSE),
}


def corrasion(
    *,
    eps: float = PAPER4_EPS,
    step_size: float = 1 / 255,
    steps: int = 100,
    copies: int = 3,
    sigma: float = 15 / 255,
    noise: str = "before",
    base: float = 2.0,
    origin: float = 0.0,
    p: float = 0.7,
    normalize: str = "each",
    kernel: int = 15,
    smooth: str = "after",
    mu: float = 1.0,
    surrogate: Sequence = (),
    seed: int = 0,
) -> Attack:
    """The corrasion attack, with algorithm 1's open choices as parameters.

    Parameters
    ----------
    eps, step_size, steps, seed : as in `Attack`.
    copies, sigma, noise, base, origin : as in `ScaleCopies`; the paper's m, its unstated noise, where it is added (algorithm
        1 "before", eq. 16 "after"), and the scales.
    p : float
        Probability of the random translation and scaling of each copy.
    normalize : {"each", "mean"}
        Each copy's gradient by its L1 norm (algorithm 1), or their average only (eq. 15).
    kernel : int
        Side of the smoothing window, odd; 1 for none.
    smooth : {"after", "before"}
        Smooth the momentum (algorithm 1), or the gradient before it enters it (TI's own code).
    mu : float
        Decay of the momentum.
    surrogate : sequence of parts
        ``[GradientEroding()]`` for the form with GE.

    Notes
    -----
    Zhou H. et al. (2023), algorithm 1 as resolved in the sheet 4-gradient-eroding, section 3 (items b to j and m).
    """
    for name, value, known in (("normalize", normalize, ("each", "mean")), ("smooth", smooth, ("after", "before"))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    window = TranslationInvariant(kernel)
    # Algorithm 1 adds the mean of normalized gradients as it is; eq. 15 normalizes the mean.
    memory = [Momentum(mu, norm="none" if normalize == "each" else "l1")]
    return Attack(
        objective=Impersonate(distance="cosine"),
        eps=eps,
        step_size=step_size,
        steps=steps,
        inputs=[ScaleCopies(copies, base=base, origin=origin, sigma=sigma, noise=noise), TranslateScale(p)],
        surrogate=surrogate,
        gradient=([CopyNorm()] if normalize == "each" else [])
        + ([*memory, window] if smooth == "after" else [window, *memory]),
        seed=seed,
    )


_ERODING = "Zhou H. et al. 2023"
_BASES = {
    "mi_fgsm": ("Dong et al. 2018", (), _MOMENTUM),
    "ti_fgsm": ("Dong et al. 2019", (), (TranslationInvariant(15), *_MOMENTUM)),
    "di_fgsm": ("Xie et al. 2019, as face benchmarks do", (DiverseResize(0.7),), _MOMENTUM),
    "vr_fgsm": ("Wu L. et al. 2018", (NoiseCopies(3),), _MOMENTUM),
    "si_fgsm": ("Lin et al. 2020, without Nesterov", (ScaleCopies(5),), _MOMENTUM),
}
_ERODED = {
    "ghost": GhostNetwork(0.22),
    "ge_c": GradientEroding(branch="shortcut"),
    "ge_d": GradientEroding(branch="residual"),
}


def _eroding_presets() -> dict[str, Recipe]:
    """The five attacks of Tables I and II, each plain, with Ghost, with GE(c) and with GE(d); corrasion, plain and with GE(d)."""
    plain = corrasion()
    bases = {**_BASES, "corrasion": ("algorithm 1", plain.inputs, plain.gradient)}
    found = {}
    for name, (source, inputs, gradient) in bases.items():
        how = {"objective": plain.objective, "eps": PAPER4_EPS, "steps": 100, "inputs": inputs, "gradient": gradient}
        found[name] = Recipe(f"{source}; {_ERODING}", **how)
        for suffix, part in _ERODED.items():
            found[f"{name}_{suffix}"] = Recipe(f"{_ERODING}, Tables I to III", **how, surrogate=(part,))
    return found


_BENEFICIAL = "Zhou F. et al. 2023"
_CLEAN_DROPOUT = (FeatureDropout(target="clean"),)  # their second term is the clean network's
_PLAIN_FIM = {"objective": Impersonate()}  # that of `fim`: with one copy, L2 and squared L2 have the same signs
_COMBINED = {
    "fim": ("FIM", _PLAIN_FIM),
    "mi": ("FIM with MI", {"gradient": _MOMENTUM}),
    "di": ("FIM with DI", {"inputs": _DIVERSE}),
    "dfanet": ("FIM with DFANet", {"surrogate": _CLEAN_DROPOUT}),
    "ssa": ("FIM with SSA of Long et al. 2022", {"inputs": (SpectrumCopies(),)}),
    "fmd": ("FIM, MI and DI", {"inputs": _DIVERSE, "gradient": _MOMENTUM}),
    "fmdn": ("FIM, MI, DI and DFANet", {"inputs": _DIVERSE, "gradient": _MOMENTUM, "surrogate": _CLEAN_DROPOUT}),
    "sni": ("SI and NI of Lin et al. 2020", {"inputs": (ScaleCopies(5),), "gradient": (Nesterov(),)}),
    "vmi": ("VT of Wang and He 2021 and MI", {"gradient": (VarianceTuning(), *_MOMENTUM)}),
}


def _beneficial_presets() -> dict[str, Recipe]:
    """The attacks of Tables I to IV, plain and with BPFA; the plain FIM is `fim`, with the steps that are asked for."""
    found = {}
    for name, (source, parts) in _COMBINED.items():
        recipe = Recipe(f"{_BENEFICIAL}: {source}", **{"objective": Impersonate("squared_l2"), **parts})
        surrogate = (*recipe.surrogate, BeneficialPerturbation())
        found[name] = recipe
        found[f"{name}_bpfa"] = dataclasses.replace(recipe, source=f"{recipe.source}, and BPFA", surrogate=surrogate)
    del found["fim"]
    return found


_REZGUI = "Rezgui et al. 2022"
_LABELED_PRESETS = {
    "fgsm_label": Recipe(f"{_REZGUI}, section 4.2; Goodfellow et al. 2015", Misclassify(), eps=0.035, steps=1, step_size=None),
    "pgd_atk": Recipe(f"{_REZGUI}, section 4.2", Misclassify(), eps=0.035, steps=10, step_size=0.001, early_stop=True),
    "rand_atk": Recipe(f"{_REZGUI}, section 5.6", RandomSigns(), eps=0.035, steps=1, step_size=None),
}
PRESETS: dict[str, Recipe] = _DFANET_PRESETS | _LABELED_PRESETS | _eroding_presets() | _beneficial_presets()


def preset(
    name: str,
    *,
    eps: float | None = None,
    steps: int | None = None,
    drop: float = 0.1,
    eta: float = 8e-4,
    seed: int = 0,
    **overrides,
) -> Attack:
    """A published attack by name.

    Parameters
    ----------
    name : str
        One of ``PRESETS``, e.g. ``"dfanet_di_m_fim"``; hyphens and capitals as in the papers are understood.
    eps : float, optional
        Largest change of a pixel, in (0, 1]; the paper's by default.
    steps : int, optional
        Number of steps; the paper's by default. One-step attacks take 1 only.
    drop : float
        Drop probability of the attacks with DFANet; the others have none.
    eta : float
        Size of the feature perturbation of the ``_bpfa`` attacks; negative for APFA, 0 for the attack without.
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
    eps = recipe.eps if eps is None else eps
    attack = Attack(
        objective=recipe.objective,
        eps=eps,
        step_size=eps if one_step else recipe.step_size,
        steps=steps if steps is not None else recipe.steps or paper_steps(eps),
        inputs=recipe.inputs,
        surrogate=[_with_sizes(part, drop=drop, eta=eta) for part in recipe.surrogate],
        gradient=recipe.gradient,
        random_start=recipe.random_start,
        early_stop=recipe.early_stop,
        seed=seed,
    )
    accepted = {field.name: field for field in dataclasses.fields(Attack)}
    for key in overrides:
        _lookup("parameter of Attack", key, accepted)
    return dataclasses.replace(attack, **overrides)


def _with_sizes(part, *, drop: float, eta: float):
    sizes = {FeatureDropout: {"p": drop}, BeneficialPerturbation: {"eta": eta}}
    return dataclasses.replace(part, **sizes.get(type(part), {}))


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
