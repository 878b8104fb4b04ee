"""Who is in a picture and how it was taken, as numbers.

A person is a vector of traits and of field coefficients; a picture of that person is a vector of conditions. Both are
drawn from a Philox stream keyed by the SHA-256 of (pool, identity, sample), so they depend on nothing else: not on the
batch, the order, the device or the other people.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

__all__ = ["CONDITIONS", "FIELDS", "TRAITS", "Conditions", "People", "sample_people", "sample_pictures"]

# Trait -> (shift, reliability). The shift is the mean difference between the two values of the gender-like attribute,
# in standard deviations; the reliability is the correlation of the trait between two pictures of one person: bone does
# not change (1), hair and make-up do.
TRAITS: dict[str, tuple[float, float]] = {
    # shape and proportions
    "face_width": (0.25, 1), "face_height": (0.20, 1), "jaw_width": (0.90, 1), "jaw_square": (0.70, 1),
    "chin_length": (0.35, 1), "chin_relief": (0.30, 1), "cheekbone": (-0.30, 1), "cheek_full": (-0.10, 1),
    "head_depth": (0.00, 1), "forehead": (0.20, 1), "neck_width": (0.70, 1), "ear_size": (0.30, 1), "ear_height": (0.00, 1),
    # eyes
    "eye_distance": (0.00, 1), "eye_width": (-0.35, 1), "eye_open": (-0.50, 1), "eye_tilt": (-0.20, 1), "eye_height": (0.00, 1),
    "eye_depth": (0.40, 1), "iris_hue": (0.00, 1), "iris_light": (0.00, 1), "lid_crease": (-0.30, 1), "lash": (-1.00, 0.5),
    "eye_bag": (0.15, 0.5),
    # brows
    "brow_thick": (0.90, 0.9), "brow_height": (-0.60, 1), "brow_tilt": (0.20, 1), "brow_arch": (-0.50, 1), "brow_length": (0.00, 1),
    "brow_dark": (0.40, 0.8),
    # nose
    "nose_length": (0.30, 1), "nose_width": (0.45, 1), "nose_bridge": (0.40, 1), "nose_height": (0.40, 1), "nose_tip": (0.20, 1),
    "nostril": (0.15, 1),
    # mouth
    "mouth_width": (0.25, 1), "upper_lip": (-0.50, 1), "lower_lip": (-0.45, 1), "mouth_height": (0.15, 1), "mouth_curve": (0.00, 1),
    "cupid_bow": (-0.20, 1), "lip_red": (-0.60, 0.4), "philtrum": (0.10, 1),
    # skin
    "skin_melanin": (0.15, 0.6), "skin_red": (0.00, 0.5), "skin_yellow": (0.00, 0.5), "blush": (-0.35, 0.4), "freckles": (0.00, 0.6),
    "fold": (0.20, 0.8), "dimple": (0.00, 1),
    # hair and beard
    "hair_dark": (0.15, 0.45), "hair_red": (-0.10, 0.45), "hair_length": (-1.60, 0.45), "hair_volume": (-0.50, 0.3),
    "hairline": (0.30, 0.7), "hair_peak": (0.40, 0.6), "parting": (0.00, 0.3), "fringe": (-0.50, 0.35), "curl": (-0.10, 0.4),
    "beard": (1.40, 0.5), "moustache": (0.90, 0.5), "grey": (0.00, 0.8),
}
# Coefficients of smooth random fields over the face: displacement, relief, pigment, and patterns of marks. What a few
# named traits cannot give - that no two noses are the same nose - comes from these.
FIELDS: dict[str, int] = {"warp": 32, "relief": 12, "pigment": 20, "marks": 14}

CONDITIONS: tuple[str, ...] = (
    "yaw", "pitch", "roll", "zoom", "shift_x", "shift_y",
    "light_x", "light_y", "direct", "ambient", "fill", "gloss", "warmth", "tint", "exposure", "gamma", "contrast",
    "blur", "noise", "jpeg",
    "smile", "mouth_open", "blink", "brow_raise", "gaze_x", "gaze_y", "age",
    "glasses", "lens_width", "lens_height", "frame", "frame_tone", "lens_dark", "shaved", "makeup",
    "back_r", "back_g", "back_b", "back2_r", "back2_g", "back2_b", "back_x", "back_y", "back_texture",
    "cloth_r", "cloth_g", "cloth_b", "grain_x", "grain_y",
)
_TRAIT = {name: i for i, name in enumerate(TRAITS)}
_CONDITION = {name: i for i, name in enumerate(CONDITIONS)}
_SHIFT = np.array([shift for shift, _ in TRAITS.values()])
_RELIABILITY = np.array([reliability for _, reliability in TRAITS.values()])
_BEARDED = [_TRAIT["beard"], _TRAIT["moustache"]]
_GENDERED_FIELDS = 10  # the first coefficients of every field shift with the attribute too


@dataclass(frozen=True)
class Conditions:
    """How far pictures of a domain differ from a passport photograph (standard deviations unless said otherwise)."""

    geometry: float = 1.45  # gain of everything that bone decides
    gender_shift: float = 1.0  # gain of the attribute's shifts
    style: float = 0.85  # gain of hair, colour and beard
    yaw: float = 0.14  # radians
    pitch: float = 0.055
    roll: float = 0.04
    jitter: float = 1.0  # of the crop
    light: float = 0.45  # 0: frontal and even, 1: hard and from anywhere
    expression: float = 0.5
    age_mean: float = 36.0  # years, between people
    age_spread: float = 10.0
    age_within: float = 3.0  # years, between pictures of one person
    glasses: float = 0.06  # share of pictures
    blur: float = 0.2
    noise: float = 0.010  # of full scale
    jpeg: float = 0.3  # 0: none, 1: quality of about 30


@dataclass(frozen=True)
class People:
    """Persons as numbers.

    Attributes
    ----------
    traits : float array (n, len(TRAITS)), about standard normal plus the attribute's shift
    fields : float array (n, sum(FIELDS.values())), about standard normal
    gender : int array (n,), 0 or 1: the gender-like attribute
    age : float array (n,), years
    """

    traits: np.ndarray
    fields: np.ndarray
    gender: np.ndarray
    age: np.ndarray
    wears_glasses: np.ndarray


def _stream(*key) -> np.random.Generator:
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _trait_mean(gender: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Mean of each trait given the attribute (n, traits); nearly no beard on one side."""
    mean = (gender[:, None] - 0.5) * _SHIFT * conditions.gender_shift
    mean[:, _BEARDED] += (gender[:, None] - 1) * 1.2
    return mean


def sample_people(pool: str, indices: np.ndarray, conditions: Conditions) -> People:
    """Draw the people with these indices from a pool; another pool holds other people."""
    indices = np.asarray(indices)
    count = len(TRAITS) + sum(FIELDS.values())
    normal = np.empty((len(indices), count + 1))
    uniform = np.empty((len(indices), 2))
    for row, index in enumerate(indices):
        stream = _stream(pool, int(index))
        normal[row] = stream.standard_normal(count + 1)
        uniform[row] = stream.random(2)
    normal = np.clip(normal, -2.3, 2.3)
    gender = (uniform[:, 0] < 0.5).astype(np.int64)
    fields = normal[:, len(TRAITS) : count].copy()
    start = 0
    for size in FIELDS.values():
        shift = np.where(np.arange(min(_GENDERED_FIELDS, size)) % 2, 0.35, -0.35) * conditions.gender_shift
        fields[:, start : start + len(shift)] += (gender[:, None] - 0.5) * shift
        start += size
    return People(
        traits=_trait_mean(gender, conditions) + normal[:, : len(TRAITS)],
        fields=fields,
        gender=gender,
        age=np.clip(conditions.age_mean + conditions.age_spread * normal[:, count], 18, 75),
        wears_glasses=uniform[:, 1] < 0.15,
    )


def sample_pictures(
    pool: str, indices: np.ndarray, samples: np.ndarray, conditions: Conditions, people: People | None = None
) -> tuple[np.ndarray, np.ndarray, People]:
    """Draw pictures: picture ``i`` is sample ``samples[i]`` of person ``indices[i]``.

    Returns
    -------
    appearance : float32 array (n, traits + fields)
        The person as they look in this picture: bone as ever, hair, skin tone and beard partly of the day.
    conditions : float32 array (n, len(CONDITIONS))
    people : People
        The person behind each picture, row by row.
    """
    indices, samples = np.asarray(indices), np.asarray(samples)
    if people is None:
        unique, inverse = np.unique(indices, return_inverse=True)
        once = sample_people(pool, unique, conditions)
        people = People(*(getattr(once, field)[inverse] for field in ("traits", "fields", "gender", "age", "wears_glasses")))
    draws = np.empty((len(indices), len(TRAITS) + 2 * len(CONDITIONS)))
    for row, (index, sample) in enumerate(zip(indices, samples, strict=True)):
        stream = _stream(pool, int(index), int(sample))
        draws[row, : len(TRAITS) + len(CONDITIONS)] = stream.standard_normal(len(TRAITS) + len(CONDITIONS))
        draws[row, len(TRAITS) + len(CONDITIONS) :] = stream.random(len(CONDITIONS))
    fresh, normal, uniform = np.split(draws, [len(TRAITS), len(TRAITS) + len(CONDITIONS)], axis=1)
    traits = _todays_traits(people, fresh, conditions)
    appearance = np.concatenate([traits, people.fields * conditions.geometry], axis=1)
    return appearance.astype(np.float32), _todays_conditions(people, normal, uniform, conditions), people


def _todays_traits(people: People, fresh: np.ndarray, conditions: Conditions) -> np.ndarray:
    mean = _trait_mean(people.gender, conditions)
    own = _RELIABILITY * (people.traits - mean) + np.sqrt(1 - _RELIABILITY**2) * fresh
    bone = _RELIABILITY == 1
    return np.where(bone, (mean + own) * conditions.geometry, mean + own * conditions.style)


def _todays_conditions(people: People, normal: np.ndarray, uniform: np.ndarray, c: Conditions) -> np.ndarray:
    out = np.zeros((len(normal), len(CONDITIONS)))

    def n(name: str) -> np.ndarray:
        return normal[:, _CONDITION[name]]

    def u(name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return low + (high - low) * uniform[:, _CONDITION[name]]

    def put(name: str, value: np.ndarray) -> None:
        out[:, _CONDITION[name]] = value

    put("yaw", np.clip(c.yaw * n("yaw"), -0.6, 0.6))
    put("pitch", np.clip(c.pitch * n("pitch"), -0.3, 0.3))
    put("roll", c.roll * n("roll"))
    put("zoom", 1.0 + 0.03 * c.jitter * n("zoom"))
    put("shift_x", 0.022 * c.jitter * n("shift_x"))
    put("shift_y", 0.022 * c.jitter * n("shift_y"))

    angle, reach = 2 * np.pi * u("light_x"), u("light_y", 0, 0.85) * min(c.light, 1)
    direct, ambient = u("direct", 0.45, 1.0) * min(1, 0.6 + 0.4 * c.light), u("ambient", 0.34, 0.66) + 0.2 * max(0, 1 - c.light)
    put("light_x", reach * np.cos(angle))
    put("light_y", -np.clip(0.25 + 0.6 * reach * np.sin(angle), -0.4, 0.7))
    put("direct", direct)
    put("ambient", ambient)
    put("fill", u("fill", 0, 0.25) * c.light)
    put("gloss", u("gloss", 0.1, 1.0))
    put("warmth", (0.04 + 0.05 * c.light) * n("warmth"))
    put("tint", (0.02 + 0.04 * c.light) * n("tint"))
    # an automatic exposure that is not quite right
    put("exposure", np.exp(0.12 * c.light * n("exposure")) * 1.02 / (ambient + 0.62 * direct) ** 0.8)
    put("gamma", np.exp(0.12 * c.light * n("gamma")) * 0.9)
    put("contrast", np.exp(0.10 * c.light * n("contrast")))
    put("blur", np.clip(np.abs(c.blur * n("blur")), 0, 1))
    put("noise", u("noise", 0.2, 1.6) * c.noise)
    put("jpeg", u("jpeg") * c.jpeg)

    put("smile", np.clip(0.45 * c.expression * n("smile") + 0.2 * c.expression, -0.4, 1.0))
    put("mouth_open", np.clip(0.35 * c.expression * n("mouth_open") - 0.12, 0, 1))
    put("blink", np.clip(0.13 * c.expression * n("blink") - 0.02, 0, 0.8))
    put("brow_raise", np.clip(0.4 * c.expression * n("brow_raise"), -1, 1.5))
    put("gaze_x", np.clip(0.35 * n("gaze_x"), -1, 1))
    put("gaze_y", np.clip(0.3 * n("gaze_y"), -1, 1))
    put("age", np.clip(people.age + c.age_within * n("age"), 16, 85))

    usual = np.where(people.wears_glasses, min(1.0, 4 * c.glasses), 0.5 * c.glasses)
    put("glasses", u("glasses") < usual)
    put("lens_width", u("lens_width", 0.19, 0.25))
    put("lens_height", u("lens_height", 0.13, 0.19))
    put("frame", u("frame", 0.06, 0.13))
    put("frame_tone", u("frame_tone", 0.02, 0.5))
    put("lens_dark", 0.25 * u("lens_dark") + 0.4 * (u("lens_width") < 0.08))
    put("shaved", (u("shaved") < 0.35) + (u("shaved") >= 0.35) * 0.4 * u("frame"))
    put("makeup", (1 - people.gender) * (u("makeup") < 0.35) * u("jpeg"))

    grey, grey2, cloth = u("back_r", 0.1, 0.9), u("back2_r", 0.1, 0.9), u("cloth_r", 0.08, 0.75)
    for channel in "rgb":
        put(f"back_{channel}", np.clip(grey + 0.10 * n(f"back_{channel}"), 0.03, 0.97))
        put(f"back2_{channel}", np.clip(grey2 + 0.10 * n(f"back2_{channel}"), 0.03, 0.97))
        put(f"cloth_{channel}", np.clip(cloth + 0.12 * n(f"cloth_{channel}"), 0.02, 0.95))
    put("back_x", u("back_x", -0.5, 0.5))
    put("back_y", u("back_y", -0.5, 0.5))
    put("back_texture", u("back_texture", 0, 0.18))
    put("grain_x", u("grain_x"))
    put("grain_y", u("grain_y"))
    return out.astype(np.float32)
