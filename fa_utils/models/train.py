"""Train one network of the zoo, or one classifier of an attribute: ``fa train NAME``.

Made for one CPU core and some minutes: pictures are averaged down once, augmentation is a gather of
pixels and a gain, and nothing in the loop is done twice. The same loop runs on a GPU.
"""

import argparse
import dataclasses
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.losses import TrainingLoss
from fa_utils.models.recipes import Recipe, find_recipe
from fa_utils.models.weights import WeightsError, load_part, read_weights, save_weights, write_atomically
from fa_utils.models.whitening import fit_whitening
from fa_utils.paths import CACHE, WEIGHTS

SHIFT = 1  # pixels, at the side that the network sees
GROUP = 4  # pictures of an identity in a batch of triplets
WHITENING_PICTURES = 8000

Perturbation = Callable[[nn.Module, torch.Tensor], torch.Tensor]
Regularizer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def train_network(
    recipe: Recipe,
    faces,
    *,
    out: str | Path = WEIGHTS,
    device: str = "cpu",
    threads: int = 1,
    progress: bool = True,
    bf16: bool | None = None,
    checkpoints: str | Path | None = None,
    perturb: Perturbation | None = None,
    regularize: Regularizer | None = None,
) -> FaceEncoder:
    """Train a network and write ``out/NAME.safetensors``.

    A checkpoint is written after each epoch; called again with the same recipe, training goes on after the
    last complete epoch, to the weights that an uninterrupted run would have reached on the same machine.

    Parameters
    ----------
    recipe : Recipe
        What to train and how.
    faces : FaceSet, or callable of the epoch that returns one
        Training pictures. A callable gives fresh pictures of the same identities for each epoch (rendering
        on the fly).
    out : path
        Folder of the weight file; a recipe's ``start`` is looked up there, then among the
        shipped weights.
    device : str
        Torch device.
    threads : int
        CPU threads; two processes of one thread are faster than one of two.
    progress : bool
        Show a progress bar (on a terminal) and one line an epoch.
    bf16 : bool, optional
        bfloat16 autocast; by default where it is faster (see ``bf16_pays``).
    checkpoints : path, optional
        Folder of the checkpoints, by default the cache.
    perturb : callable, optional
        Called as ``perturb(backbone, images)`` on each batch of network inputs; what it returns is learned
        from (adversarial training). Pictures that it appends after those of the batch go through the network
        with them, but have no labels: they are for ``regularize``.
    regularize : callable, optional
        Called as ``regularize(features, labels)`` with the raw features (n or more, dim) of the batch and of what
        was appended, and the labels (n,); the scalar that it returns is added to the loss.

    Returns
    -------
    FaceEncoder
        The trained network as it would be loaded from the file.

    Raises
    ------
    ValueError
        If there are too few pictures or identities.
    FloatingPointError
        If the loss or a gradient is not finite.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}, must be 1 or more")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    device = torch.device(device)
    start = _read_start(recipe, Path(out))
    backbone = new_backbone(recipe, start)
    side = backbone.input_size
    pictures = Pictures(faces(0) if callable(faces) else faces, recipe, side, device)
    bf16 = bf16_pays(backbone, device) if bf16 is None else bf16
    trainer = Trainer(recipe, backbone, pictures, device=device, bf16=bf16, perturb=perturb, regularize=regularize)
    trainer.loss.start_from(start.get("classifier.weight"))
    checkpoint = Path(checkpoints or CACHE / "training") / f"{recipe.name}.pt"
    trainer.resume(checkpoint, pictures)
    for epoch in range(trainer.epoch, recipe.epochs):
        if callable(faces) and epoch > 0:
            pictures = Pictures(faces(epoch), recipe, side, device)
        line = trainer.run_epoch(pictures, progress=progress)
        trainer.save(checkpoint, pictures)
        if progress:
            print(line, flush=True)
    encoder = finish(recipe, trainer.backbone, trainer.loss.classifier(), pictures)
    save_network(Path(out) / f"{recipe.name}.safetensors", encoder, recipe, pictures)
    checkpoint.unlink(missing_ok=True)
    return encoder


class Pictures:
    """Training pictures in memory at the side that the network sees: uint8 (N, side, side, 3).

    Parameters
    ----------
    faces : FaceSet
        uint8 pictures, square, their side a multiple of ``side``.
    recipe : Recipe
        Sets the batch and the order of pictures.
    side : int
        Pixels a side that the network sees.
    device : torch.device
        Where batches are made.
    """

    def __init__(self, faces, recipe: Recipe, side: int, device: torch.device):
        learned = faces.attributes[recipe.attribute] if recipe.attribute else faces.identity
        names, labels = np.unique(np.asarray(learned), return_inverse=True)
        if len(names) < 2 or len(labels) < recipe.batch:
            raise ValueError(
                f"faces {faces.name!r} have {len(labels)} pictures of {len(names)} identities; training "
                f"{recipe.name} takes 2 identities or more and at least one batch of {recipe.batch}"
            )
        self.name, self.classes, self.count = faces.name, len(names), len(labels)
        self.batch, self.seed, self.grouped = recipe.batch, recipe.seed, recipe.loss == "triplet"
        self.labels = torch.as_tensor(labels).to(device)
        self.pixels = shrink(faces.images, side).to(device)
        self.steps = self.count // self.batch

    def generator(self, epoch: int) -> torch.Generator:
        """Randomness of an epoch: a function of seed and epoch alone, so that resuming is exact."""
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator().manual_seed(seed)

    def batches(self, generator: torch.Generator):
        """Index tensors (batch,) of one epoch; a last incomplete batch is left out."""
        order = (
            self._grouped_order(generator)
            if self.grouped
            else torch.randperm(self.count, generator=generator)
        )
        yield from order[: self.steps * self.batch].split(self.batch)

    def _grouped_order(self, generator: torch.Generator) -> torch.Tensor:
        """Random order in which pictures of one identity come in groups: triplets need positives."""
        shuffled = torch.randperm(self.count, generator=generator)
        by_identity = shuffled[torch.argsort(self.labels.cpu()[shuffled], stable=True)]
        groups = by_identity.split(GROUP)
        return torch.cat([groups[i] for i in torch.randperm(len(groups), generator=generator)])

    def augmented(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Network input (n, 3, side, side), each picture flipped, shifted and recolored on its own."""
        n, side = len(index), self.pixels.shape[1]
        shift = torch.randint(-SHIFT, SHIFT + 1, (2, n, 1), generator=generator)
        flip = torch.rand(n, 1, generator=generator) < 0.5
        line = torch.arange(side)
        rows = (line + shift[0]).clamp(0, side - 1)
        columns = (torch.where(flip, line.flip(0), line) + shift[1]).clamp(0, side - 1)
        gain = 0.85 + 0.3 * torch.rand(n, 1, 1, 1, generator=generator)
        tint = 0.94 + 0.12 * torch.rand(n, 3, 1, 1, generator=generator)
        offset = 0.1 * torch.randn(n, 1, 1, 1, generator=generator)
        device = self.pixels.device
        index, rows, columns = (t.to(device) for t in (index, rows, columns))
        chosen = self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return to_input(chosen).mul_((gain * tint).to(device)).add_(offset.to(device)).clamp_(-1, 1)

    def plain(self, index: torch.Tensor) -> torch.Tensor:
        """Network input of some pictures as they are."""
        return to_input(self.pixels[index.to(self.pixels.device)])


def shrink(images: np.ndarray, side: int, *, chunk: int = 1024) -> torch.Tensor:
    """Average uint8 (N, 3, H, H) down to uint8 (N, side, side, 3).

    The encoder averages in float; rounding here moves a pixel by half a grey level at most.

    Raises
    ------
    ValueError
        If H is not a multiple of ``side``.
    """
    n, _, height, width = images.shape
    if height != width or height % side:
        raise ValueError(
            f"pictures of {height} x {width} cannot be averaged to {side} x {side}: need a square multiple"
        )
    factor = height // side
    small = torch.empty(n, side, side, 3, dtype=torch.uint8)
    for i in range(0, n, chunk):
        part = torch.from_numpy(np.array(images[i : i + chunk])).float()  # a copy: memory maps are read-only
        mean = nn.functional.avg_pool2d(part, factor) if factor > 1 else part
        small[i : i + chunk] = mean.add_(0.5).clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return small


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (n, side, side, 3) to the range [-1, 1], (n, 3, side, side) in channels-last memory."""
    return pixels.permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1)


class Trainer:
    """State of a training run: backbone, loss, optimizer, and how far it got."""

    def __init__(
        self,
        recipe: Recipe,
        backbone: nn.Module,
        pictures: Pictures,
        *,
        device: torch.device,
        bf16: bool,
        perturb: Perturbation | None = None,
        regularize: Regularizer | None = None,
    ):
        self.perturb, self.regularize = perturb, regularize
        self.recipe, self.device, self.bf16, self.steps = recipe, device, bf16, pictures.steps
        self.epoch = 0
        self.backbone = backbone.to(device, memory_format=torch.channels_last)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed + 1)
            self.loss = TrainingLoss(
                recipe,
                dim=feature_length(backbone, device),
                classes=pictures.classes,
                rectify=getattr(backbone, "rectified_head", False),
            ).to(device)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe, parameters = self.recipe, list(self.backbone.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(self.loss.parameters()), "weight_decay": recipe.weight_decay},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )

    def run_epoch(self, pictures: Pictures, *, progress: bool) -> str:
        """One pass through the pictures; returns the line for the log."""
        generator = pictures.generator(self.epoch)
        batches = tqdm(
            pictures.batches(generator),
            total=self.steps,
            desc=f"{self.recipe.name} {self.epoch + 1}/{self.recipe.epochs}",
            leave=False,
            disable=None if progress else True,
        )
        started, total = time.perf_counter(), torch.zeros((), device=self.device)
        self.backbone.train()
        with torch.random.fork_rng(devices=[]):
            # Dropout inside the network draws from torch's global state.
            torch.manual_seed(generator.initial_seed())
            for step, index in enumerate(batches):
                total += self.train_step(pictures, index, generator, self.epoch * self.steps + step)
        seconds, mean = time.perf_counter() - started, float(total) / self.steps
        if not math.isfinite(mean):
            raise FloatingPointError(f"{self.recipe.name}: the loss of epoch {self.epoch + 1} is {mean}")
        self.epoch += 1
        speed = self.steps * self.recipe.batch / seconds
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"{self.recipe.name} epoch {self.epoch}/{self.recipe.epochs} loss {mean:.3f} "
            f"lr {rate:.4f} {speed:.0f} img/s {seconds:.0f} s"
        )

    def train_step(self, pictures: Pictures, index: torch.Tensor, generator: torch.Generator, step: int):
        """One step of the optimizer; returns the loss, detached."""
        done = step / (self.steps * self.recipe.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.recipe, step, done)
        images = pictures.augmented(index, generator)
        if self.perturb:
            images = self.perturb(self.backbone, images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(images)
        labels = pictures.labels[index.to(self.device)]
        loss = self.loss(features[: len(labels)], labels, done)
        if self.regularize:
            loss = loss + self.regularize(features, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.backbone.parameters(), self.recipe.gradient_clip)
        if self.device.type == "cpu" and not math.isfinite(norm):
            raise FloatingPointError(
                f"{self.recipe.name}: gradient of step {step} is {float(norm)}, loss {float(loss.detach())}"
            )
        self.optimizer.step()
        return loss.detach()

    def save(self, path: Path, pictures: Pictures) -> None:
        """Checkpoint after a complete epoch, atomically."""
        content = io.BytesIO()
        torch.save(
            {
                "key": self._key(pictures),
                "epoch": self.epoch,
                "backbone": self.backbone.state_dict(),
                "loss": self.loss.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            content,
        )
        write_atomically(path, content.getvalue())

    def resume(self, path: Path, pictures: Pictures) -> None:
        """Go on from a checkpoint of the same recipe and pictures; any other is ignored."""
        if not path.is_file():
            return
        saved = torch.load(path, map_location=self.device, weights_only=True)
        if saved["key"] != self._key(pictures):
            print(f"{path} is of another recipe or other pictures: starting anew", flush=True)
            return
        self.backbone.load_state_dict(saved["backbone"])
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epoch = saved["epoch"]

    def _key(self, pictures: Pictures) -> str:
        return json.dumps([dataclasses.asdict(self.recipe), pictures.name, pictures.count, pictures.classes])


def learning_rate_at(recipe: Recipe, step: int, done: float) -> float:
    """Linear warm-up, then half a cosine down to a thousandth of the peak."""
    warm = min(1.0, (step + 1) / recipe.warm_up)
    return recipe.learning_rate * warm * (0.5 * (1 + math.cos(math.pi * done)) + 1e-3)


def feature_length(backbone: nn.Module, device: torch.device) -> int:
    """Length of the feature that a backbone makes of a picture."""
    side = backbone.input_size
    with torch.no_grad():
        return backbone.eval()(torch.zeros(1, 3, side, side, device=device)).shape[1]


def bf16_pays(backbone: nn.Module, device: torch.device) -> bool:
    """Whether bfloat16 is faster: where it is native; on a CPU, not for depth-wise convolutions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in backbone.modules())
    native = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return device.type == "cpu" and native and not depthwise


def new_backbone(recipe: Recipe, start: dict[str, torch.Tensor]) -> nn.Module:
    """Backbone with the weights that training starts from: random, or those of the recipe's ``start``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        backbone = build_backbone(recipe.layout, width=recipe.width)
    if start:
        load_part(backbone, start, "backbone", path=f"{recipe.start}.safetensors")
    return backbone


@torch.no_grad()
def finish(
    recipe: Recipe, backbone: nn.Module, classifier: nn.Module | None, pictures: Pictures
) -> FaceEncoder:
    """Whitening fitted on training pictures, and all parts in an encoder."""
    backbone.eval()
    whitening = None
    if recipe.whitening:
        generator = pictures.generator(recipe.epochs)
        chosen = torch.randperm(pictures.count, generator=generator)[:WHITENING_PICTURES]
        features = torch.cat([backbone(pictures.plain(part)).float().cpu() for part in chosen.split(128)])
        whitening = fit_whitening(features, alpha=recipe.whitening)
    return FaceEncoder(
        backbone.cpu(),
        name=recipe.name,
        input_size=backbone.input_size,
        whitening=whitening,
        classifier=classifier.cpu() if classifier is not None and recipe.keep_classifier else None,
    )


def save_network(path: Path, encoder: FaceEncoder, recipe: Recipe, pictures: Pictures) -> str:
    """Write an encoder's parts with their recipe; returns the sha256 of the file."""
    parts = {name: getattr(encoder, name) for name in ("backbone", "whitening", "classifier")}
    state = {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        if part is not None
        for key, tensor in part.state_dict().items()
    }
    metadata = {
        "recipe": dataclasses.asdict(recipe),
        "identities": pictures.classes,
        "images": pictures.count,
    }
    return save_weights(path, state, metadata=metadata)


def _read_start(recipe: Recipe, out: Path) -> dict[str, torch.Tensor]:
    """Weights that training starts from; empty for a recipe that starts at random."""
    if not recipe.start:
        return {}
    paths = [folder / f"{recipe.start}.safetensors" for folder in (out, WEIGHTS)]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise WeightsError(
            f"{recipe.name} starts from {recipe.start}, which is neither in {out} nor in {WEIGHTS}: "
            f"run `fa train {recipe.start}` first"
        )
    return read_weights(path)[0]


def main(argv: list[str] | None = None) -> int:
    """``fa train NAME``: train a network of the zoo, measure it, and write its row of the zoo table."""
    parser = argparse.ArgumentParser(prog="fa train", description=main.__doc__)
    parser.add_argument("name", help="a network of the zoo, such as ires-webface-arcface")
    parser.add_argument("--epochs", type=int, help="passes through the pictures (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights and of zoo.csv")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    try:
        recipe = find_recipe(options.name)
        if options.epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=options.epochs)
    except ValueError as error:
        parser.error(str(error))
    from fa_utils.data import load_benchmark, load_domain
    from fa_utils.models.attributes import evaluate_classifier, register_classifier
    from fa_utils.models.zoo import evaluate_network, register

    faces = load_domain(recipe.domain)
    progress = not options.quiet
    encoder = train_network(
        recipe, faces, out=options.out, device=options.device, threads=options.threads, progress=progress
    )
    path = options.out / f"{recipe.name}.safetensors"
    if recipe.attribute:
        row = register_classifier(path, evaluate_classifier(encoder, load_domain(recipe.domain, "val"), recipe.attribute))
    else:
        row = register(path, evaluate_network(encoder, load_benchmark()))
    print(json.dumps(row, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
