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
from fa_utils.attacks.transfer import network_name, open_network
from fa_utils.data import FaceSet
from fa_utils.models.attributes import load_classifier, untrained_classifier
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.zoo import read_encoder
from fa_utils.report.gender_faces import load_part

BATCH = 60  # pictures attacked at once
SMALL = (0.010, 0.015, 0.020, 0.025, 0.030, 0.035)
LARGE = (0.110, 0.115, 0.120, 0.125, 0.130, 0.135)


@dataclass(frozen=True)
class Backbone:
    """One column of the study: a layout as gender classifier, and the face networks that judge the pictures which it was attacked on.

    Attributes
    ----------
    name : str
        As the paper calls it.
    layout : str
        As ``build_backbone`` does.
    classifier, unrelated : str
        The gender classifier and the classifier of glasses: names, or weight files; no classifier of glasses is "".
    targets : tuple of str
        Addresses of the face networks; the chapter's own is of the same layout.
    grid : tuple of float
        The six eps of FGSM-fixed, on the scale of [0, 1]; the largest is PGD-ATK's ball.
    smallest : bool
        FGSM-variable takes the smallest eps that succeeds, else one by chance.
    faces : str
        Address of the faces, "procedural" or real ones.
    """

    name: str
    layout: str
    classifier: str
    targets: tuple[str, ...]
    unrelated: str
    grid: tuple[float, ...]
    smallest: bool
    faces: str = "procedural"

    @property
    def ball(self) -> float:
        """The L-infinity ball of PGD-ATK."""
        return self.grid[-1]

    @property
    def source(self) -> str:
        """How results on recognition call it: by its name, followed by the face network where that is not the chapter's own."""
        if self.targets == BACKBONES[self.name].targets:
            return self.name
        return f"{self.name}, {'+'.join(network_name(target) for target in self.targets)}"

    def judged_by(self, target: str) -> "Backbone":
        """The same with one face network."""
        return replace(self, targets=(target,))


BACKBONES = {
    "VGG16": Backbone(
        "VGG16", "vgg16", "vgg16-celeba-gender", ("vgg16-vggface2-softmax",), "vgg16-celeba-glasses", SMALL, True
    ),
    "ResNet50": Backbone(
        "ResNet50", "resnet50", "resnet50-celeba-gender", ("resnet50-ms1m-arcface",), "resnet50-celeba-glasses", LARGE, False
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
def classifier_of(name: str, device: str = "cpu", faces: str = "procedural") -> FaceEncoder:
    """A classifier by name, of a weight file, or ``untrained-LAYOUT`` with the statistics of ``faces``; loaded once in a process."""
    if name.startswith("untrained-"):
        some = load_part(faces, "C", identities=100, pictures=1).batch(slice(None))
        return untrained_classifier(name.removeprefix("untrained-"), images=some).to(device)
    return read_encoder(name).to(device) if name.endswith(".safetensors") else load_classifier(name, device=device)


def target_of(address: str, device: str = "cpu") -> FaceEncoder:
    """A face network by address, loaded once in a process."""
    return open_network(address, device)


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
    label, row, person : int64 (M,): gender, which picture it was, and whose
    eps : float64 (M,)
    images : int
        Pictures that were attacked.
    """

    clean: np.ndarray
    adversarial: np.ndarray
    label: np.ndarray
    row: np.ndarray
    person: np.ndarray
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
        parts = (getattr(self, name)[chosen] for name in ("clean", "adversarial", "label", "row", "person", "eps"))
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
    faces = load_part(backbone.faces, "C", identities=identities, pictures=pictures)
    classifier, labels, kept = classifier_of(backbone.classifier, device), gender_of(faces), []
    for rows in _batches(len(faces)):
        source, truth = faces.batch(rows).to(device), labels[rows]
        right = is_correct(classifier, source, truth)
        for eps, images in _versions(backbone, attack, classifier, source, truth, rows, seed):
            hit = right & ~is_correct(classifier, images, truth)
            adversarial = (images[torch.from_numpy(hit)] * 255).round().to(torch.uint8).cpu().contiguous().numpy()
            own = rows[hit]
            kept.append((np.asarray(faces.images[own]), adversarial, truth.numpy()[hit], own, faces.identity[own], np.full(len(own), eps)))
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
    faces = load_part(backbone.faces, "B", identities=identities, pictures=pictures)
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

    backbone: Backbone
    identities: int
    pictures: int = 15
    audit: int = 0
    fgsm_denoiser: torch.nn.Module | None = None
    pgd_denoiser: torch.nn.Module | None = None
    device: str = "cpu"
    seed: int = 0


@dataclass
class Measured:
    """Variants of the pictures of part B, as one face network sees them.

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


def measure(plan: Plan, *, people: int = 10, workers: int = 1, progress: bool = True) -> dict[str, Measured]:
    """Attack, denoise, classify and embed part B, ``people`` at a time, in ``workers`` processes.

    Returns
    -------
    dict
        By address of the face network; what the classifier answers is the same in all of them.
    """
    # Rendered or decoded once, before there are workers.
    everyone = load_part(plan.backbone.faces, "B", identities=plan.identities, pictures=plan.pictures, progress=progress)
    last = int(everyone.identity.max()) + 1
    units = [(plan, start, min(start + people, last)) for start in range(0, last, people)]
    records = run_grid(units, _measure_unit, workers=workers, progress=progress)
    return {
        target: join_measured([record["measured"][target] for record in records]) for target in plan.backbone.targets
    }


def join_measured(parts: Sequence[Measured]) -> Measured:
    """Pictures after pictures; a variant that some parts lack holds those of the others."""
    joined = Measured(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("identity", "label")))
    for name in ("embedding", "correct", "rms"):
        for variant in dict.fromkeys(variant for part in parts for variant in getattr(part, name)):
            held = [getattr(part, name)[variant] for part in parts if variant in getattr(part, name)]
            getattr(joined, name)[variant] = np.concatenate(held)
    return joined


def _measure_unit(unit: tuple[Plan, int, int]) -> dict:
    plan, first, last = unit
    everyone = load_part(plan.backbone.faces, "B", identities=plan.identities, pictures=plan.pictures)
    rows = np.flatnonzero((everyone.identity >= first) & (everyone.identity < last))
    faces = everyone.subset(rows)
    found = [
        _measure_batch(plan, faces.subset(batch), rows[batch], audit=first < plan.audit) for batch in _batches(len(faces))
    ]
    return {"measured": {target: join_measured([part[target] for part in found]) for target in plan.backbone.targets}}


def _measure_batch(plan: Plan, faces: FaceSet, rows: np.ndarray, *, audit: bool) -> dict[str, Measured]:
    backbone = plan.backbone
    classifier = classifier_of(backbone.classifier, plan.device)
    source, labels = faces.batch(slice(None)).to(plan.device), gender_of(faces)
    correct, rms = {}, {}
    found = {target: Measured(faces.identity, labels.numpy(), {}, correct, rms) for target in backbone.targets}

    def keep(variant: str, images: Tensor, *, embed: bool = True) -> None:
        correct[variant] = is_correct(classifier, images, labels)
        rms[variant] = deviation(images, source)
        for target, measured in found.items() if embed else ():
            measured.embedding[variant] = target_of(target, plan.device).embed(images).numpy()

    keep(CLEAN, source)
    keys = [f"B/{row}" for row in rows]
    makers = [_paper_variants(plan, backbone, classifier, source, labels, keys)]
    if audit:
        glasses = gender_of(faces, "glasses") if backbone.unrelated else None
        makers.append(_audit_variants(plan, backbone, classifier, source, glasses, labels, keys))
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
    controls = [("untrained", f"untrained-{backbone.layout}", labels)]
    if backbone.unrelated:
        controls.append(("glasses", backbone.unrelated, glasses))
    for kind, name, truth in controls:
        network = classifier_of(name, plan.device, backbone.faces)
        for eps, images in attack.sweep(network, source, backbone.grid, labels=truth, keys=keys):
            yield control(kind, eps), images, True


def in_bytes(images: Tensor) -> Tensor:
    """Rounded to 8 bits and back."""
    return (images * 255).round() / 255
