"""Chapter 5's measurements beside the transfer runs: losses along the way, feature maps, memory, time."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fa_utils.attacks import BeneficialPerturbation, Scope
from fa_utils.attacks.transfer import PairSet, network_name, open_network
from fa_utils.data import to_float
from fa_utils.memory import peak_bytes
from fa_utils.metrics import Interval, two_way_bootstrap
from fa_utils.report.bpfa import ETAS, PLACEMENTS, PLUS, Budget, Cast, placements_of
from fa_utils.report.results import result_row
from fa_utils.verification import percentile_interval

# ---------------------------------------------------------------- Fig. 5: losses


def walk(encoder, source: Tensor, target: Tensor, budget: Budget, eta: float, *, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """FIM with BPFA written out: losses (steps, B) of the plain and of the perturbed network at the same pictures.

    The perturbation raises the second; at the first step there is none.
    """
    scope = Scope(source, tuple(map(str, range(len(source)))), seed, "walk", budget.eps, budget.step_size)
    low, high = (source - budget.eps).clamp(min=0), (source + budget.eps).clamp(max=1)
    with torch.no_grad():
        wanted = encoder(target)
    images, losses = source.clone(), ([], [])
    with BeneficialPerturbation(eta).attach(encoder, scope) as state:
        for step in range(steps):
            state.enabled = False
            with torch.no_grad():
                losses[0].append(_loss(encoder(images), wanted))
            state.begin_step(step)
            state.begin_pass(1)
            state.enabled = True
            leaf = images.clone().requires_grad_()
            loss = _loss(encoder(leaf), wanted)
            gradient = torch.autograd.grad(loss.sum(), leaf)[0]
            losses[1].append(loss.detach())
            images = (images - budget.step_size * gradient.sign()).clamp(low, high)
    return torch.stack(losses[0]).cpu(), torch.stack(losses[1]).cpu()


def _loss(embedding: Tensor, wanted: Tensor) -> Tensor:
    return (embedding - wanted).square().sum(1)


def loss_rows(
    encoder, pairs: PairSet, budget: Budget, *, count: int = 24, steps: int | None = None, etas: Sequence[float] = ETAS
) -> list[dict]:
    """Fig. 5 and claim 8: losses along FIM with BPFA and along FIM; the loss at the second step against eta (column ``x``)."""
    chosen = pairs.first(count)
    source, target = (to_float(side[rows]).to(encoder.device) for side, rows in (
        (chosen.sources, chosen.source), (chosen.targets, chosen.target)
    ))  # fmt: skip
    steps, eta = min(budget.steps, steps or budget.steps), budget.eta(encoder.name)
    plain, perturbed = walk(encoder, source, target, budget, eta, steps=steps)
    alone, _ = walk(encoder, source, target, budget, 0.0, steps=steps)
    shared, rows = {"source": encoder.name}, []
    curves = {"FIM": alone, f"FIM{PLUS}, plain network": plain, f"FIM{PLUS}, perturbed network": perturbed}
    for name, losses in curves.items():
        for step in range(steps):
            place = {"table": "Fig. 5a", "method": name, "x": step + 1, **shared}
            rows.append(result_row("loss", _interval(losses[step], chosen), len(chosen), **place))
    second = {value: walk(encoder, source, target, budget, value, steps=2)[1][1] for value in sorted({*etas, eta, -eta})}
    for value, losses in second.items():
        place = {"table": "Fig. 5b", "method": f"FIM{PLUS}", "x": value, **shared}
        rows.append(result_row("loss", _interval(losses, chosen), len(chosen), **place))
    differences = {
        "perturbed minus plain, steps 2 on": (perturbed - plain)[1:].mean(0),
        f"at step 2: eta {eta:g} minus eta 0": second[eta] - second[0.0],
        f"at step 2: eta 0 minus eta {-eta:g}": second[0.0] - second[-eta],
        f"at step 2: eta {max(etas):g} minus eta {eta:g}": second[max(etas)] - second[eta],
    }
    for name, values in differences.items():
        if name.endswith(f"{max(etas):g} minus eta {eta:g}") and eta == max(etas):
            continue
        rows.append(result_row("loss_difference", _interval(values, chosen), len(chosen), table="claim 8", method=name, **shared))
    return rows


@torch.no_grad()
def median_spread(encoder, images: Tensor) -> float:
    """What an absolute eta compares with: the median over all convolutions of their output's spread.

    The spread is the standard deviation over a picture's map, averaged over the pictures (B, 3, H, W).
    """
    found: list[float] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: found.append(float(output.flatten(1).std(1).mean())))
        for _, layer in encoder.convolutions(squeeze_excite=True)
    ]
    try:
        encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    return float(np.median(found))


def _interval(values: Tensor, pairs: PairSet):
    return two_way_bootstrap(values.double().numpy(), pairs.source_id, pairs.target_id, seed=0)


# ---------------------------------------------------------------- Fig. 6: feature maps


def feature_maps(encoder, source: Tensor, target: Tensor, budget: Budget, *, layer: int = 1) -> dict[str, np.ndarray]:
    """One convolution's maps at the second step of FIM with BPFA: the liveliest channel of each picture, in gray.

    Returns
    -------
    dict
        ``plain``, ``perturbation`` and ``perturbed``, each uint8 (B, 3, H, W), stretched to the full range per picture.
    """
    name, module = encoder.convolutions()[layer]
    eta = budget.eta(encoder.name)
    seen: list[Tensor] = []
    # Hooks run in the order in which they were set: the first sees the output before the perturbation, the last after it.
    first = module.register_forward_hook(lambda m, i, output: seen.append(output.detach().clone()))
    scope = Scope(source, tuple(map(str, range(len(source)))), 0, "maps", budget.eps, budget.step_size)
    with torch.no_grad():
        wanted = encoder(target)
    images = source.clone()
    try:
        with BeneficialPerturbation(eta).attach(encoder, scope) as state:
            last = module.register_forward_hook(lambda m, i, output: seen.append(output.detach().clone()))
            state.enabled = True
            for step in range(2):
                seen.clear()
                state.begin_step(step)
                state.begin_pass(1)
                leaf = images.clone().requires_grad_()
                gradient = torch.autograd.grad(_loss(encoder(leaf), wanted).sum(), leaf)[0]
                images = (images - budget.step_size * gradient.sign()).clamp(0, 1)
            last.remove()
    finally:
        first.remove()
    before, after = seen
    channel = before.flatten(2).std(2).argmax(1)
    rows = torch.arange(len(before))
    maps = {"plain": before[rows, channel], "perturbation": (after - before)[rows, channel], "perturbed": after[rows, channel]}
    return {key: _gray(value) for key, value in maps.items()}


def _gray(maps: Tensor) -> np.ndarray:
    low, high = (end(maps.flatten(1), 1).values.view(-1, 1, 1) for end in (torch.min, torch.max))
    scaled = (maps - low) / (high - low).clamp(min=1e-12)
    return (255 * scaled).round().byte().unsqueeze(1).expand(-1, 3, -1, -1).cpu().numpy()


# ---------------------------------------------------------------- Table X: memory


def memory_rows(cast: Cast, budget: Budget, pairs: PairSet, *, count: int = 8, device: str = "cpu") -> list[dict]:
    """Table X and claim 10: peak memory of FIM and of FIM with BPFA at each kind of layer, three steps on a few pictures."""
    chosen, rows, placements = pairs.first(count), [], placements_of(cast)
    source, target = (to_float(side[index]).to(device) for side, index in (
        (chosen.sources, chosen.source), (chosen.targets, chosen.target)
    ))  # fmt: skip
    for address in cast.encoders:
        encoder, name = open_network(address, device), network_name(address)
        used = {}
        for placement in ("", *placements[address]):
            parts = [BeneficialPerturbation(budget.eta(address), layers=PLACEMENTS[placement])] if placement else []
            attack = budget.attack("FIM", address, steps=3, surrogate=parts)
            attack(encoder, source, target)  # what is allocated once and kept is not the attack's
            used[placement] = peak_bytes(lambda attack=attack, encoder=encoder: attack(encoder, source, target), device)
            method = f"FIM{PLUS}({placement})" if placement else "FIM"
            place = {"source": name, "method": method, "target": device}
            rows.append(result_row("memory", used[placement] / 2**20, len(chosen), table="Table X", **place))
        for placement in placements[address]:
            more = 100 * (used[placement] / used[""] - 1)
            where = {"table": "claim 10", "source": name, "method": f"FIM{PLUS}({placement})", "target": device}
            rows.append(result_row("overhead", more, len(chosen), **where))
    return rows


# ---------------------------------------------------------------- time


def cost_rows(cast: Cast, budget: Budget, pairs: PairSet, *, count: int = 8, rounds: int = 4, device: str = "cpu") -> list[dict]:
    """Time of a step of FIM with BPFA at each kind of layer, in times of a step of FIM; the paper has no such table.

    The contenders take turns, on the CPU by processor time. What disturbs a step only makes it longer, so of all steps
    the lower quartile counts; the interval is the bootstrap's over the rounds.
    """
    chosen, rows, placements = pairs.first(count), [], placements_of(cast)
    source, target = (to_float(side[index]).to(device) for side, index in (
        (chosen.sources, chosen.source), (chosen.targets, chosen.target)
    ))  # fmt: skip
    for address in cast.encoders:
        encoder, name = open_network(address, device), network_name(address)
        parts = {placement: [BeneficialPerturbation(budget.eta(address), layers=PLACEMENTS[placement])] for placement in placements[address]}
        attacks = {placement: budget.attack("FIM", address, steps=_STEPS, surrogate=part) for placement, part in {"": [], **parts}.items()}
        times: dict[str, list[np.ndarray]] = {placement: [] for placement in attacks}
        for turn in range(rounds + 1):  # the first warms up
            for placement, attack in attacks.items():
                seconds = _step_seconds(attack, encoder, source, target, device)
                times[placement] += [seconds] if turn else []
        for placement in parts:
            place = {"table": "Cost", "source": name, "method": f"FIM{PLUS}({placement})", "target": device}
            rows.append(result_row("cost", _ratio_of_times(times[placement], times[""]), len(chosen), **place))
    return rows


_STEPS = 7


def _ratio_of_times(slow: Sequence[np.ndarray], fast: Sequence[np.ndarray]) -> Interval:
    """Ratio of the lower quartiles of two lists of times, each (rounds, steps), and its bootstrap interval over rounds."""
    slow, fast = np.stack(slow), np.stack(fast)

    def ratio(rounds) -> float:
        return float(np.quantile(slow[rounds], 0.25) / np.quantile(fast[rounds], 0.25))

    draws = np.random.default_rng(0).integers(0, len(slow), (500, len(slow)))
    return percentile_interval(ratio(slice(None)), [ratio(drawn) for drawn in draws])


def _step_seconds(attack, encoder, source: Tensor, target: Tensor, device: str) -> np.ndarray:
    """Seconds of each step but the first, at which there is nothing to add yet."""
    cuda, marks = torch.device(device).type == "cuda", []

    def mark(step: int, images: Tensor) -> None:
        if cuda:
            torch.cuda.synchronize()
        marks.append(time.perf_counter() if cuda else time.process_time())

    attack.run(encoder, source, target, on_step=mark)
    return np.diff(marks)
