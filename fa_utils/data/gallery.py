"""Pictures that explain the procedural faces: one number changed at a time."""

from collections.abc import Sequence

import numpy as np
import torch

from fa_utils.data.domains import get_domain, nearest, render_pictures
from fa_utils.data.people import CONDITIONS, TRAITS, Conditions, sample_pictures
from fa_utils.data.renderer import render

__all__ = ["people_of", "vary"]

# A passport photograph: frontal, evenly lit, calm.
PASSPORT = Conditions(
    geometry=1.0, style=0.6, yaw=0, pitch=0, roll=0, jitter=0, light=0.25, expression=0, glasses=0, blur=0, noise=0.004, jpeg=0
)


def people_of(domain: str, people: int, pictures: int, *, size: int = 112) -> np.ndarray:
    """The first pictures of the first test people of a domain: uint8 (people, pictures, 3, size, size)."""
    who, sample = np.repeat(np.arange(people), pictures), np.tile(np.arange(pictures), people)
    drawn = render_pictures(f"{domain}/test", who, sample, get_domain(domain).conditions, size)
    return drawn.reshape(people, pictures, 3, size, size)


def vary(name: str, values: Sequence[float], *, person: int = 3, size: int = 112) -> np.ndarray:
    """One person with one trait (in standard deviations) or one condition (in its own unit) set to each value.

    Returns
    -------
    uint8 array (len(values), 3, size, size)

    Raises
    ------
    KeyError
        ``name`` is neither a trait nor a condition; the nearest is offered.
    """
    if name not in TRAITS and name not in CONDITIONS:
        raise KeyError(f"{name!r} is neither a trait nor a condition{nearest(name, [*TRAITS, *CONDITIONS])}")
    count = len(values)
    appearance, conditions, _ = sample_pictures("gallery", np.full(count, person), np.zeros(count, int), PASSPORT)
    table, names = (appearance, list(TRAITS)) if name in TRAITS else (conditions, list(CONDITIONS))
    table[:, names.index(name)] = values
    return render(torch.from_numpy(appearance), torch.from_numpy(conditions), size).numpy()
