"""Crafting and embedding for chapter 1: every variant of every picture, in units of people that run in any process.

A *variant* is a picture as it is, attacked, or attacked and denoised. Nothing but its embedding, the classifier's answer and
the size of the change is kept, so memory does not grow with the number of variants times pictures.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fa_utils.attacks import Attack, RandomSigns, preset
from fa_utils.attacks.craft import run_grid
from fa_utils.data import FaceSet, load_domain
from fa_utils.models.attributes import load_classifier, untrained_classifier
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.zoo import load_encoder

BATCH = 60  # pictures attacked at once
SMALL = (0.010, 0.015, 0.020, 0.025, 0.030, 0.035)
LARGE = (0.110, 0.115, 0.120, 0.125, 0.130, 0.135)


@dataclass(frozen=True)
class Backbone:
    """One column of the study: a layout as gender classifier, and the same layout as face recognizer.

    Attributes
    ----------
    name : str
        As the paper calls it.
    layout : str
        As ``build_backbone`` does.
    classifier, target, unrelated : str
        Names of the gender classifier, of the face network, and of the classifier of glasses.
    grid : tuple of float
        The six eps of FGSM-fixed, on the scale of [0, 1]; the largest is PGD-ATK's ball.
    smallest : bool
        FGSM-variable takes the smallest eps that succeeds, else one by chance.
    """

    name: str
    layout: str
    classifier: str
    target: str
    unrelated: str
    grid: tuple[float, ...]
    smallest: bool

    @property
    def ball(self) -> float:
        """The L-infinity ball of PGD-ATK."""
        return self.grid[-1]


BACKBONES = {
    "VGG16": Backbone(
        "VGG16", "vgg16", "vgg16-celeba-gender", "vgg16-vggface2-softmax", "vgg16-celeba-glasses", SMALL, True
    ),
    "ResNet50": Backbone(
        "ResNet50", "resnet50", "resnet50-celeba-gender", "resnet50-ms1m-arcface", "resnet50-celeba-glasses", LARGE, False
    ),
}


def find_backbone(name: str) -> Backbone:
    """The backbone of that name.

    Raises
    ------
    ValueError
        Unknown; the known ones are listed.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown; known: {', '.join(BACKBONES)}")
    return BACKBONES[name]


# ---------------------------------------------------------------- names of variants


def fgsm(eps: float) -> str:
    """Name of FGSM at an eps."""
    return f"FGSM {eps:.3f}"


def rand(eps: float) -> str:
    """Name of RAND-ATK at an eps."""
    return f"RAND-ATK {eps:.3f}"


def rand_blocks(eps: float) -> str:
    """Name of random signs that squares of 2 x 2 pixels share."""
    return f"RAND-ATK 2 x 2 {eps:.3f}"


def denoised(variant: str) -> str:
    """Name of a variant after the denoiser."""
    return f"denoised {variant}"


def control(kind: str, eps: float) -> str:
    """Name of FGSM on another network than the gender classifier: ``"untrained"`` or ``"glasses"``."""
    return f"FGSM on {kind} {eps:.3f}"


CLEAN, PGD, FULL, REACHING = "clean", "PGD-ATK", "PGD-ATK, all ten steps", "PGD, whole ball"
SAME_L2, RAND_L2 = "FGSM, L2 of PGD", "RAND-ATK, L2 of PGD"
BLOCKS = "RAND-ATK 2 x 2, L2 of PGD"
EIGHT_BITS = "{}, 8 bits"


# ---------------------------------------------------------------- attacks


def fgsm_attack(eps: float, *, seed: int = 0) -> Attack:
    """FGSM on the true label (paper, section 4.1)."""
    return preset("fgsm_label", eps=eps, seed=seed)


def pgd_attack(ball: float, *, seed: int = 0, **options) -> Attack:
    """PGD-ATK as printed: steps of 0.001, ten of them, stop at the first misclassification (section 5.4)."""
    return preset("pgd_atk", eps=ball, seed=seed, **options)


def reaching_attack(ball: float, *, seed: int = 0) -> Attack:
    """PGD that can fill its ball: ten steps of a quarter of it, no early stop (sheet 1, item 3b)."""
    return preset("pgd_atk", eps=ball, step_size=ball / 4, early_stop=False, seed=seed)


@functools.lru_cache(maxsize=8)
def classifier_of(name: str, device: str = "cpu") -> FaceEncoder:
    """A classifier by name, or ``untrained-LAYOUT``; loaded once in a process."""
    if name.startswith("untrained-"):
        some = load_domain("celeba", "val", identities=100, pictures=1, progress=False).batch(slice(None))
        return untrained_classifier(name.removeprefix("untrained-"), images=some).to(device)
    return load_classifier(name, device=device)


@functools.lru_cache(maxsize=8)
def target_of(name: str, device: str = "cpu") -> FaceEncoder:
    """A face network by name, loaded once in a process."""
    return load_encoder(name, device=device)


def gender_of(faces: FaceSet, attribute: str = "gender") -> Tensor:
    """Labels of a set, int64 (N,)."""
    return torch.from_numpy(faces.attributes[attribute].to_numpy().astype(np.int64))


@torch.no_grad()
def is_correct(classifier: FaceEncoder, images: Tensor, labels: Tensor) -> np.ndarray:
    """Whether the classifier gets each picture right, bool (B,)."""
    return (classifier.logits(images).argmax(1) == labels.to(images.device)).cpu().numpy()


def deviation(images: Tensor, source: Tensor) -> np.ndarray:
    """Root-mean-square change in gray levels, (B,): the L2 norm over the square root of the number of values."""
    return (255 * (images - source).double().square().mean((1, 2, 3)).sqrt()).cpu().numpy()


# ---------------------------------------------------------------- part C: what the denoisers learn from


@dataclass(frozen=True)
class Successes:
    """Successful adversarial pictures of part C and their clean versions.

    Attributes
    ----------
    clean, adversarial : uint8 (M, 3, H, W)
    label, row : int64 (M,): gender and which picture it was
    eps : float64 (M,)
    images : int
        Pictures that were attacked.
    """

    clean: np.ndarray
    adversarial: np.ndarray
    label: np.ndarray
    row: np.ndarray
    eps: np.ndarray
    images: int

    def split(self, *, share: float = 0.8, seed: int = 0) -> tuple["Successes", "Successes"]:
        """Training and test part, 80 to 20 as in Tables 1 and 2.

        All versions of a picture go to one side; the paper does not say so, and mixing them would test on what was learned.
        """
        rows = np.random.default_rng(seed).permutation(np.unique(self.row))
        learned = np.isin(self.row, rows[: max(1, int(round(share * len(rows))))])
        return self.take(learned), self.take(~learned)

    def take(self, chosen: np.ndarray) -> "Successes":
        """The pictures at an index or mask."""
        parts = (getattr(self, name)[chosen] for name in ("clean", "adversarial", "label", "row", "eps"))
        return Successes(*parts, self.images)

    def __len__(self) -> int:
        return len(self.clean)


def collect_successes(
    backbone: Backbone, attack: str, *, identities: int, pictures: int = 5, device: str = "cpu", seed: int = 0
) -> Successes:
    """Attack part C and keep what was right before and is wrong after.

    Parameters
    ----------
    attack : "FGSM-fixed" (each picture at each of the six eps) or "PGD-ATK"
    identities, pictures : int
        People of part C, and pictures of each.

    Raises
    ------
    ValueError
        Unknown attack, or nothing succeeded.
    """
    if attack not in ("FGSM-fixed", "PGD-ATK"):
        raise ValueError(f"attack = {attack!r}: 'FGSM-fixed' or 'PGD-ATK'")
    faces = load_domain("celeba", "val", identities=identities, pictures=pictures, progress=False)
    classifier, labels, kept = classifier_of(backbone.classifier, device), gender_of(faces), []
    for rows in _batches(len(faces)):
        source, truth = faces.batch(rows).to(device), labels[rows]
        right = is_correct(classifier, source, truth)
        for eps, images in _versions(backbone, attack, classifier, source, truth, rows, seed):
            hit = right & ~is_correct(classifier, images, truth)
            adversarial = (images[torch.from_numpy(hit)] * 255).round().to(torch.uint8).cpu().contiguous().numpy()
            kept.append((np.asarray(faces.images[rows[hit]]), adversarial, truth.numpy()[hit], rows[hit], np.full(hit.sum(), eps)))
    found = Successes(*(np.concatenate(part) for part in zip(*kept, strict=True)), images=len(faces))
    if not len(found):
        raise ValueError(f"{attack} fooled {backbone.classifier} on none of {len(faces)} pictures: there is nothing to train on")
    return found


def _versions(backbone, attack, classifier, source, labels, rows, seed) -> Iterator[tuple[float, Tensor]]:
    keys = [f"C/{row}" for row in rows]
    if attack == "PGD-ATK":
        yield backbone.ball, pgd_attack(backbone.ball, seed=seed)(classifier, source, labels=labels, keys=keys)
    else:
        yield from fgsm_attack(backbone.ball, seed=seed).sweep(classifier, source, backbone.grid, labels=labels, keys=keys)


def _batches(count: int, size: int = BATCH) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


# ---------------------------------------------------------------- accuracy over eps


def sweep_correct(
    backbone: Backbone,
    epsilons: Sequence[float],
    *,
    identities: int,
    pictures: int,
    denoisers: dict[str, torch.nn.Module] | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Figures 4 to 6: is the classifier right on each picture of part B, at each eps, after each denoiser?

    One gradient a picture serves all eps.

    Returns
    -------
    correct : dict of bool (eps, N)
        By defense; ``"none"`` is without.
    identity : int64 (N,)
    """
    faces = load_domain("celeba", "test", identities=identities, pictures=pictures, progress=False)
    classifier, labels, parts = classifier_of(backbone.classifier, device), gender_of(faces), []
    denoisers = {name: model.to(device) for name, model in (denoisers or {}).items()}
    for rows in _batches(len(faces)):
        source, truth, keys = faces.batch(rows).to(device), labels[rows], [f"B/{row}" for row in rows]
        found: dict[str, list] = {"none": [], **{name: [] for name in denoisers}}
        for _, images in fgsm_attack(backbone.ball, seed=seed).sweep(classifier, source, epsilons, labels=truth, keys=keys):
            found["none"].append(is_correct(classifier, images, truth))
            for name, model in denoisers.items():
                found[name].append(is_correct(classifier, clean_up(model, images), truth))
        parts.append({name: np.stack(value) for name, value in found.items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}, faces.identity


@torch.no_grad()
def clean_up(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Denoised pictures in [0, 1]."""
    return model(images).clamp(0, 1)


# ---------------------------------------------------------------- part B: all variants


@dataclass(frozen=True)
class Plan:
    """What is made of each picture of part B. Picklable; the denoisers travel along.

    ``audit`` is the number of people, from the first, for whom the audit's variants are made too.
    """

    backbone: str
    identities: int
    pictures: int = 15
    audit: int = 0
    fgsm_denoiser: torch.nn.Module | None = None
    pgd_denoiser: torch.nn.Module | None = None
    device: str = "cpu"
    seed: int = 0


@dataclass
class Measured:
    """Variants of the pictures of part B.

    Attributes
    ----------
    identity, label : int64 (N,)
    embedding : dict of float32 (N, D), by variant; audit variants hold the first rows only
    correct : dict of bool (N,)
    rms : dict of float64 (N,), gray levels
    """

    identity: np.ndarray
    label: np.ndarray
    embedding: dict[str, np.ndarray] = field(default_factory=dict)
    correct: dict[str, np.ndarray] = field(default_factory=dict)
    rms: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.identity)


def measure(plan: Plan, *, people: int = 10, workers: int = 1, progress: bool = True) -> Measured:
    """Attack, denoise, classify and embed part B, ``people`` at a time, in ``workers`` processes."""
    load_domain("celeba", "test", identities=plan.identities, pictures=plan.pictures)  # rendered once, before there are workers
    starts = range(0, plan.identities, people)
    units = [(plan, start, min(start + people, plan.identities)) for start in starts]
    records = run_grid(units, _measure_unit, workers=workers, progress=progress)
    parts = [record["measured"] for record in records]
    joined = Measured(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("identity", "label")))
    for name in ("embedding", "correct", "rms"):
        variants = dict.fromkeys(variant for part in parts for variant in getattr(part, name))
        for variant in variants:
            held = [getattr(part, name)[variant] for part in parts if variant in getattr(part, name)]
            getattr(joined, name)[variant] = np.concatenate(held)
    return joined


def _measure_unit(unit: tuple[Plan, int, int]) -> dict:
    plan, first, last = unit
    everyone = load_domain("celeba", "test", identities=plan.identities, pictures=plan.pictures, progress=False)
    rows = np.flatnonzero((everyone.identity >= first) & (everyone.identity < last))
    faces, found = everyone.subset(rows), []
    for batch in _batches(len(faces)):
        found.append(_measure_batch(plan, faces.subset(batch), rows[batch], audit=first < plan.audit))
    joined = Measured(faces.identity, gender_of(faces).numpy())
    for name in ("embedding", "correct", "rms"):
        for variant in getattr(found[0], name):
            getattr(joined, name)[variant] = np.concatenate([getattr(part, name)[variant] for part in found])
    return {"measured": joined}


def _measure_batch(plan: Plan, faces: FaceSet, rows: np.ndarray, *, audit: bool) -> Measured:
    backbone = find_backbone(plan.backbone)
    classifier, target = classifier_of(backbone.classifier, plan.device), target_of(backbone.target, plan.device)
    source, labels = faces.batch(slice(None)).to(plan.device), gender_of(faces)
    found = Measured(faces.identity, labels.numpy())

    def keep(variant: str, images: Tensor, *, embed: bool = True) -> None:
        found.correct[variant] = is_correct(classifier, images, labels)
        found.rms[variant] = deviation(images, source)
        if embed:
            found.embedding[variant] = target.embed(images).numpy()

    keep(CLEAN, source)
    keys = [f"B/{row}" for row in rows]
    makers = [_paper_variants(plan, backbone, classifier, source, labels, keys)]
    if audit:
        makers.append(_audit_variants(plan, backbone, classifier, source, gender_of(faces, "glasses"), labels, keys))
    for maker in makers:
        for variant, images, embed in maker:
            keep(variant, images, embed=embed)
    return found


def _paper_variants(plan, backbone, classifier, source, labels, keys) -> Iterator[tuple[str, Tensor, bool]]:
    given = {"labels": labels, "keys": keys}
    for eps, images in fgsm_attack(backbone.ball, seed=plan.seed).sweep(classifier, source, backbone.grid, **given):
        yield fgsm(eps), images, True
        if plan.fgsm_denoiser is not None:
            yield denoised(fgsm(eps)), clean_up(plan.fgsm_denoiser.to(plan.device), images), True
    images = pgd_attack(backbone.ball, seed=plan.seed)(classifier, source, **given)
    yield PGD, images, True
    if plan.pgd_denoiser is not None:
        yield denoised(PGD), clean_up(plan.pgd_denoiser.to(plan.device), images), True
    random = preset("rand_atk", eps=backbone.ball, seed=plan.seed)
    for eps, images in random.sweep(classifier, source, backbone.grid, keys=keys):
        yield rand(eps), images, True


def _audit_variants(plan, backbone, classifier, source, glasses, labels, keys) -> Iterator[tuple[str, Tensor, bool]]:
    given = {"labels": labels, "keys": keys}
    attack, random = fgsm_attack(backbone.ball, seed=plan.seed), preset("rand_atk", eps=backbone.ball, seed=plan.seed)
    other = [eps for eps in (*SMALL, *LARGE) if eps not in backbone.grid]
    for eps, images in attack.sweep(classifier, source, other, **given):
        yield fgsm(eps), images, True
    for eps, images in random.sweep(classifier, source, [eps for eps in other if eps in (SMALL[0], LARGE[-1])], keys=keys):
        yield rand(eps), images, True
    stopped = pgd_attack(backbone.ball, seed=plan.seed)
    yield FULL, replace(stopped, early_stop=False)(classifier, source, **given), True
    reaching = reaching_attack(backbone.ball, seed=plan.seed)(classifier, source, **given)
    yield REACHING, reaching, True
    # A sign step of eps has the root-mean-square eps, but for the pixels that the box stops.
    same = torch.from_numpy(deviation(reaching, source) / 255).clamp(1e-6, 1)
    yield SAME_L2, attack(classifier, source, eps=same, **given), True
    yield RAND_L2, random(classifier, source, eps=same, keys=keys), True
    blocks = replace(random, objective=RandomSigns(block=2))
    yield BLOCKS, blocks(classifier, source, eps=same, keys=keys), True
    for eps, images in blocks.sweep(classifier, source, backbone.grid, keys=keys):
        yield rand_blocks(eps), images, True
    for eps, images in attack.sweep(classifier, source, (backbone.grid[0], backbone.ball), **given):
        yield EIGHT_BITS.format(fgsm(eps)), in_bytes(images), False
    yield EIGHT_BITS.format(PGD), in_bytes(stopped(classifier, source, **given)), False
    for kind, name, truth in (("untrained", f"untrained-{backbone.layout}", labels), ("glasses", backbone.unrelated, glasses)):
        network = classifier_of(name, plan.device)
        for eps, images in attack.sweep(network, source, backbone.grid, labels=truth, keys=keys):
            yield control(kind, eps), images, True


def in_bytes(images: Tensor) -> Tensor:
    """Rounded to 8 bits and back."""
    return (images * 255).round() / 255
