"""Draw procedural faces: numbers in, pictures out, no photograph anywhere.

A head is a vertical stack of ellipses. Every pixel is cast onto it under yaw and pitch, which gives a position on the
face; an identity's own displacement field bends that position; features are soft shapes there that add height and change
color; the height is shaded; hair, glasses, background and a cheap camera follow. All of it is elementwise arithmetic on
(pictures, height, width) tensors, so a processor's vector units or a GPU do it.

Coordinates: x right, y down, the picture spans [-1, 1]; eyes and mouth lie where the ArcFace template has them.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from fa_utils.data.people import CONDITIONS, FIELDS, TRAITS

__all__ = ["CHUNK", "SIZES", "render"]

CHUNK = 8  # pictures drawn at once: intermediate planes stay in the processor's cache
SIZES = (32, 256)
_GRID = 40  # cells of a field
_MARK_GRID = 96
_WARP, _RELIEF, _PIGMENT, _MARKS = 0.040, 0.030, 0.075, 0.30
_REACH = (0.86, 1.15)  # half width and half height of the face area that fields cover
_TRAIT = {name: i for i, name in enumerate(TRAITS)}
_CONDITION = {name: i for i, name in enumerate(CONDITIONS)}
_FACE_TOP_Y, _MIDDLE_Y = -1.28, -0.10  # top of the skull; widest line of the head


# --- fields -----------------------------------------------------------------------------------------------------------
def _random_field(count: int, size: int, power: float, generator, *, symmetry: float = 0.0, smooth: float = 0.0) -> torch.Tensor:
    """Gaussian random fields (count, size, size) with spectrum f^-power, unit variance, partly mirror symmetric."""
    frequency = torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2
    amplitude = (frequency + (1.0 / size) ** 2) ** (-power / 2) * torch.exp(-frequency * smooth)
    field = torch.fft.irfft2(torch.fft.rfft2(torch.randn(count, size, size, generator=generator)) * amplitude, s=(size, size))
    field = symmetry * (field + field.flip(-1)) / 2 + (1 - symmetry) * field
    return (field - field.mean((1, 2), True)) / field.std((1, 2), keepdim=True)


def _warp_modes(generator) -> torch.Tensor:
    """Displacement modes (modes, 2, grid, grid): three quarters mirror symmetric, the rest (weaker) not."""
    modes = _random_field(2 * FIELDS["warp"], _GRID, 5.0, generator, smooth=300).view(FIELDS["warp"], 2, _GRID, _GRID)
    mirrored = modes.flip(-1) * torch.tensor([-1.0, 1.0])[None, :, None, None]
    symmetric = FIELDS["warp"] * 3 // 4
    modes = torch.cat([((modes + mirrored) / 2)[:symmetric], ((modes - mirrored) / 2)[symmetric:] * 0.5])
    return modes / modes[:symmetric].std()


def _mark_patterns(generator) -> torch.Tensor:
    """Patterns of moles (three large spots) and of freckles (many small ones): (patterns, grid, grid)."""
    count, grid = FIELDS["marks"], _MARK_GRID
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    patterns = torch.zeros(count, grid, grid)
    for k in range(count):
        mole = k < count * 2 // 3
        for _ in range(3 if mole else 40):
            x, y = (torch.rand(2, generator=generator) * torch.tensor([62.0, 60.0]) + torch.tensor([17.0, 24.0])).tolist()
            radius = 1.0 + 0.8 * torch.rand(1, generator=generator).item() if mole else 0.7
            patterns[k] += (0.85 if mole else 0.35) * torch.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * radius**2))
    return patterns


class _Fields:
    """Everything random that all people share: the bases whose coefficients make a person, grain, strands, noise."""

    def __init__(self, device: torch.device):
        g = torch.Generator().manual_seed(20261120)
        half = _GRID * _GRID
        relief = _random_field(FIELDS["relief"], _GRID, 3.0, g, symmetry=0.8)
        pigment = _random_field(FIELDS["pigment"], _GRID, 2.2, g, symmetry=0.5, smooth=60)
        tone = 1 + 0.12 * torch.randn(FIELDS["pigment"], 3, 1, 1, generator=g)
        warp = _warp_modes(g)
        self.warp = (warp.reshape(FIELDS["warp"], 2 * half) * _WARP / math.sqrt(FIELDS["warp"] * 0.75)).to(device)
        self.relief = (relief.reshape(FIELDS["relief"], half) / math.sqrt(FIELDS["relief"])).to(device)
        self.pigment = ((pigment[:, None] * tone).reshape(FIELDS["pigment"], 3 * half) / math.sqrt(FIELDS["pigment"])).to(device)
        self.marks = _mark_patterns(g).reshape(FIELDS["marks"], -1).to(device)
        self.cloud = _random_field(2, 64, 1.6, g)[None].to(device)
        self.fine = _random_field(1, 96, 0.6, g)[None].to(device)
        strands = F.interpolate(_random_field(2, 64, 0.4, g)[:, :6][None], size=(64, 64), mode="bilinear", align_corners=True)
        self.strands = strands.to(device)
        self.grain = torch.randn(3, 512, 512, generator=g).to(device)
        self.dct = _dct_matrix().to(device)


_FIELDS: dict[str, _Fields] = {}


def _fields(device: torch.device) -> _Fields:
    if str(device) not in _FIELDS:
        _FIELDS[str(device)] = _Fields(device)
    return _FIELDS[str(device)]


# --- small tools ------------------------------------------------------------------------------------------------------
def _bump(squared_distance: torch.Tensor) -> torch.Tensor:
    return torch.exp(-squared_distance)


def _edge(signed_distance: torch.Tensor, softness: float) -> torch.Tensor:
    """1 where the distance is positive, 0 where negative, smooth over ``softness``."""
    return torch.sigmoid(signed_distance * (1 / softness))


def _mix(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.lerp(a, b, weight)


def _paint(image: torch.Tensor, color: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Lay ``color`` (B, 3, 1|H, 1|W) over ``image`` (B, 3, H, W) with opacity ``mask`` (B, H, W)."""
    return image + (color - image) * mask[:, None]


def _sample(field: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if field.shape[0] != x.shape[0]:
        field = field.expand(x.shape[0], -1, -1, -1)
    grid = torch.stack((x, y), -1)
    return F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _rgb(red, green, blue) -> torch.Tensor:
    return torch.stack(torch.broadcast_tensors(red, green, blue), 1)


def _constant(like: torch.Tensor, values) -> torch.Tensor:
    return torch.tensor(values, device=like.device)[:, None, None]


def _dct_matrix() -> torch.Tensor:
    k = torch.arange(8.0)
    matrix = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) * 0.5
    matrix[0] /= math.sqrt(2)
    return matrix


# --- the head ---------------------------------------------------------------------------------------------------------
def _head_profile(s: SimpleNamespace, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half width and half depth of the head at height ``y``."""
    above = ((_MIDDLE_Y - y) / s.height_above).clamp(0, 1)
    below = ((y - _MIDDLE_Y) / s.height_below).clamp(1e-4, 1)
    crown = torch.sqrt((1 - above * above).clamp_min(1e-4))
    jaw = torch.sqrt((1 - torch.exp(s.jaw_power * torch.log(below))).clamp_min(1e-4)) * (1 - s.jaw_taper * below)
    shape = torch.where(y < _MIDDLE_Y, crown, jaw)
    width = s.half_width * shape * (
        1 + s.jaw_gain * _bump(((y - 0.66) * (1 / 0.28)) ** 2) + s.cheek_gain * _bump(((y - 0.16) * (1 / 0.2)) ** 2)
    )
    return width, s.half_depth * torch.sqrt(shape)


def _cast(s: SimpleNamespace, x: torch.Tensor, y: torch.Tensor):
    """Where the ray through (x, y) meets the head turned by yaw: position across, depth, silhouette, cosine of azimuth."""
    width, depth = _head_profile(s, y)
    a, c = width * s.cos_yaw, depth * s.sin_yaw
    silhouette = torch.sqrt(a * a + c * c)
    u = (x / silhouette).clamp(-0.9995, 0.9995)
    v = torch.sqrt(1 - u * u)
    cos_shift, sin_shift = a / silhouette, c / silhouette
    across = u * cos_shift - v * sin_shift
    front = v * cos_shift + u * sin_shift
    return width * across, depth * front, silhouette, across


def _setup(appearance: torch.Tensor, conditions: torch.Tensor, size: int) -> SimpleNamespace:
    def trait(name: str) -> torch.Tensor:
        return appearance[:, _TRAIT[name], None, None]

    def condition(name: str) -> torch.Tensor:
        return conditions[:, _CONDITION[name], None, None]

    s = SimpleNamespace(z=trait, q=condition, size=size, pixel=2.0 / size, device=appearance.device)
    s.fields = _fields(appearance.device)
    s.coefficients = dict(zip(FIELDS, torch.split(appearance[:, len(TRAITS) :], list(FIELDS.values()), 1), strict=True))
    s.cos_yaw, s.sin_yaw = torch.cos(condition("yaw")), torch.sin(condition("yaw"))
    s.cos_pitch, s.sin_pitch = torch.cos(condition("pitch")), torch.sin(condition("pitch"))
    age = condition("age")
    s.old, s.very_old = torch.sigmoid((age - 50) / 8), torch.sigmoid((age - 64) / 6)
    s.smile, s.open = condition("smile"), condition("mouth_open")
    s.half_width = 0.745 * (1 + 0.035 * trait("face_width"))
    s.half_depth = 0.80 * (1 + 0.035 * trait("head_depth"))
    s.height_above = _MIDDLE_Y - _FACE_TOP_Y
    s.height_below = (1.16 * (1 + 0.025 * trait("face_height") + 0.025 * trait("chin_length"))) * (1 + 0.04 * s.open)
    s.jaw_power = (2.7 * torch.exp(0.13 * trait("jaw_square"))).clamp(1.8, 4.5)
    s.jaw_taper = (0.13 - 0.03 * trait("jaw_width")).clamp(0.0, 0.26)
    s.jaw_gain, s.cheek_gain = 0.028 * trait("jaw_width"), 0.020 * trait("cheekbone") + 0.018 * trait("cheek_full")
    # where the features sit
    s.eye_x = 0.312 * (1 + 0.060 * trait("eye_distance"))
    s.eye_y = -0.080 + 0.026 * trait("eye_height")
    s.nose_y = 0.300 + 0.040 * trait("nose_length")
    s.mouth_y = 0.620 + 0.028 * trait("mouth_height") + 0.012 * trait("nose_length")
    s.nose_half = 0.140 * torch.exp(0.13 * trait("nose_width"))
    s.bridge_half = 0.058 * torch.exp(0.15 * trait("nose_bridge"))
    s.nose_relief = 0.150 * torch.exp(0.20 * trait("nose_height"))
    return s


def _place(s: SimpleNamespace) -> None:
    """Screen -> face position (X, Y) with the nose's parallax and the person's own displacement field."""
    line = torch.linspace(-1 + 1 / s.size, 1 - 1 / s.size, s.size, device=s.device)
    s.screen_y, s.screen_x = (axis[None] for axis in torch.meshgrid(line, line, indexing="ij"))
    x0 = (s.screen_x - s.q("shift_x")) / s.q("zoom")
    y0 = (s.screen_y - s.q("shift_y")) / s.q("zoom")
    cos_roll, sin_roll = torch.cos(s.q("roll")), torch.sin(s.q("roll"))
    s.x, s.y = cos_roll * x0 + sin_roll * y0, cos_roll * y0 - sin_roll * x0
    level = s.y / s.cos_pitch
    across, front, s.silhouette, _ = _cast(s, s.x, level)
    depth = front * s.cos_yaw - across * s.sin_yaw
    y = (s.y + depth * s.sin_pitch) / s.cos_pitch
    x, front, _, s.azimuth = _cast(s, s.x, y)
    s.depth = front * s.cos_yaw - x * s.sin_yaw
    soft = 0.6 * s.pixel
    s.head = _edge(s.silhouette - s.x.abs(), soft) * _edge(_MIDDLE_Y + s.height_below - y, soft)
    lift = _nose_ridge(s, x, y)
    x, y = x - s.sin_yaw * lift * s.cos_yaw, y + s.sin_pitch * lift
    s.level = level
    texture = torch.cat(
        [
            (s.coefficients["warp"] @ s.fields.warp).view(-1, 2, _GRID, _GRID),
            (s.coefficients["relief"] @ s.fields.relief).view(-1, 1, _GRID, _GRID),
            (s.coefficients["pigment"] @ s.fields.pigment).view(-1, 3, _GRID, _GRID),
        ],
        1,
    )
    own = _sample(texture, x / _REACH[0], y / _REACH[1])
    s.X, s.Y = x + own[:, 0], y + own[:, 1]
    s.side = s.X.abs()
    s.own_relief, s.own_pigment = own[:, 2], own[:, 3:6]


def _nose_ridge(s: SimpleNamespace, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    along = ((y - s.eye_y) / (s.nose_y - s.eye_y)).clamp(0, 1)
    width = s.bridge_half + (0.60 * s.nose_half - s.bridge_half) * along * along
    return s.nose_relief * (0.20 + 0.80 * along) * _bump((x / width) ** 2) * _edge(s.nose_y + 0.03 - y, 0.016) * _edge(
        y - s.eye_y + 0.06, 0.045
    )


# --- shapes on the face ----------------------------------------------------------------------------------------------
def _mouth(s: SimpleNamespace) -> None:
    z = s.z
    half = 0.250 * (1 + 0.075 * z("mouth_width")) * (1 + 0.14 * s.smile)
    u = s.X / half
    uu = u * u
    inside = _edge(1 - u.abs(), 0.04)
    taper = torch.sqrt((1 - uu).clamp_min(0) + 1e-4)
    middle = s.mouth_y - (0.045 * s.smile + 0.007 * z("mouth_curve")) * (uu - 0.3) + 0.006 * _bump(uu * 12)
    upper = 0.056 * torch.exp(0.22 * z("upper_lip")) * (1 - 0.2 * s.smile) * (1 - 0.2 * s.old)
    lower = 0.074 * torch.exp(0.20 * z("lower_lip")) * (1 - 0.12 * s.smile) * (1 - 0.15 * s.old)
    gap = 0.10 * s.open * (1 - uu).clamp_min(0)
    s.lip_line_top, s.lip_line_low = middle - 0.3 * gap, middle + 0.7 * gap
    bow = 1 - (0.20 + 0.05 * z("cupid_bow")) * _bump(uu * 40) + 0.10 * _bump(((u.abs() - 0.28) * 6) ** 2)
    s.lip_top, s.lip_low = s.lip_line_top - upper * taper * bow, s.lip_line_low + lower * taper
    s.lips = _edge(s.Y - s.lip_top, 0.013) * _edge(s.lip_low - s.Y, 0.016) * inside
    s.gape = _edge(s.Y - s.lip_line_top, 0.009) * _edge(s.lip_line_low - s.Y, 0.009) * inside * _edge(s.open - 0.1, 0.03)
    s.lip_line = _bump(((s.Y - middle) / 0.013) ** 2) * inside * (1 - 0.6 * s.open)
    s.lip_corner = _bump(((u.abs() - 1.0) / 0.10) ** 2 + ((s.Y - middle) / 0.030) ** 2)
    s.mouth_u, s.mouth_half = u, half
    s.lip_relief = s.lips * (1 - ((s.Y - middle) * (1 / 0.085)).abs()).clamp_min(0)


def _eyes(s: SimpleNamespace) -> None:
    z, q = s.z, s.q
    half = 0.138 * torch.exp(0.07 * z("eye_width"))
    opening = 0.066 * torch.exp(0.15 * z("eye_open")) * (1 - q("blink")) * (1 - 0.22 * s.smile.clamp_min(0)) * (1 - 0.1 * s.old)
    outward = s.side - s.eye_x
    u = outward / half
    dy = s.Y - s.eye_y + (0.10 + 0.055 * z("eye_tilt")) * outward
    inside = (1 - u * u).clamp_min(0)
    lid = -opening * 1.15 * torch.sqrt(inside + 1e-4) * (1 - 0.12 * u)
    low = opening * 0.85 * inside * (1 + 0.10 * u)
    s.eye = _edge(dy - lid, 0.010) * _edge(low - dy, 0.011) * _edge(1 - u.abs(), 0.05)
    s.lash = _bump(((dy - lid) / (0.013 + 0.003 * z("lash").clamp(-1, 2))) ** 2) * _edge(1.08 - u.abs(), 0.06)
    crease = lid - 0.030 - 0.009 * z("lid_crease")
    s.crease = _bump(((dy - crease) / 0.013) ** 2) * _edge(1.05 - u.abs(), 0.12)
    s.low_lid = _bump(((dy - low) / 0.011) ** 2) * _edge(1.0 - u.abs(), 0.10)
    s.eye_u, s.eye_dy = u, dy
    iris_x = torch.sign(s.X) * s.eye_x + 0.036 * q("gaze_x") - 0.03 * s.sin_yaw
    iris_y = s.eye_y - 0.006 + 0.016 * q("gaze_y")
    s.iris_distance = torch.sqrt((s.X - iris_x) ** 2 + (s.Y - iris_y) ** 2 + 1e-6)
    s.spark = _bump(((s.X - iris_x - 0.02 * torch.sign(q("light_x"))) / 0.013) ** 2 + ((s.Y - iris_y + 0.018) / 0.013) ** 2)
    s.bag = _bump((u * 0.85) ** 2 + ((dy - opening - 0.062) / 0.030) ** 2)


def _brows(s: SimpleNamespace) -> None:
    z = s.z
    half = 0.178 * (1 + 0.06 * z("brow_length"))
    u = (s.side - s.eye_x * 1.03) / half
    line = s.eye_y - 0.185 - 0.020 * z("brow_height") - 0.035 * s.q("brow_raise")
    line = line - (0.028 + 0.013 * z("brow_arch")) * (1 - (u - 0.25) ** 2) + (0.010 - 0.011 * z("brow_tilt")) * u
    thick = 0.030 * torch.exp(0.22 * z("brow_thick")) * (1 - 0.38 * (u + 0.2).clamp(-0.4, 1.2))
    s.brow = _edge(thick - (s.Y - line).abs(), 0.012) * _edge(1 - u.abs(), 0.07)


def _relief(s: SimpleNamespace) -> torch.Tensor:
    """Height of the face above the bare head."""
    z = s.z
    side, y = s.side, s.Y
    height = _nose_ridge(s, s.X, y)
    height = height + 0.35 * s.nose_relief * torch.exp(0.2 * z("nose_tip")) * _bump(((s.X) ** 2 + (y - s.nose_y + 0.03) ** 2) / 0.0062)
    height = height + 0.048 * _bump(((side - 0.74 * s.nose_half) / 0.050) ** 2 + ((y - s.nose_y + 0.005) / 0.050) ** 2)
    height = height + 0.030 * (1 + 0.25 * z("eye_depth")) * _bump(((y - s.eye_y + 0.17) / 0.085) ** 2) * _edge(0.50 - side, 0.07)
    height = height - 0.055 * (1 + 0.25 * z("eye_depth")) * _bump(((side - s.eye_x) / 0.19) ** 2 + ((y - s.eye_y) / 0.095) ** 2)
    height = height + (0.035 + 0.017 * z("cheekbone") + 0.040 * s.smile) * _bump(((side - 0.40) / 0.18) ** 2 + ((y - 0.20) / 0.16) ** 2)
    height = height + 0.050 * (1 + 0.3 * z("chin_relief")) * _bump((s.X / 0.22) ** 2 + ((y - 0.95) / 0.11) ** 2)
    height = height - 0.020 * _bump((s.X / 0.20) ** 2 + ((y - s.mouth_y - 0.16) / 0.05) ** 2)
    height = height + 0.035 * _bump((s.X / 0.30) ** 2 + ((y - s.mouth_y) / 0.12) ** 2) + 0.026 * s.lip_relief
    philtrum = _bump((s.X / 0.028) ** 2) * _edge(y - s.nose_y - 0.05, 0.02) * _edge(s.lip_top - y, 0.02)
    height = height - (0.010 + 0.004 * z("philtrum")) * philtrum + _RELIEF * s.own_relief
    run = s.nose_half + 0.06 + (y - s.nose_y) * 0.45
    s.fold = _bump(((side - run) / 0.030) ** 2) * _edge(y - s.nose_y, 0.04) * _edge(s.mouth_y + 0.06 - y, 0.06)
    s.fold = s.fold * ((0.22 + 0.12 * z("fold")).clamp_min(0) + 0.8 * s.old + 0.5 * s.smile.clamp_min(0))
    lines = torch.sin((y + 0.06 * s.X * s.X) * 52 + 4 * s.own_relief) * _edge(s.eye_y - 0.28 - y, 0.04) * _edge(0.44 - side, 0.09)
    s.wrinkle = lines * (0.7 * s.old + 0.4 * s.very_old + 0.15 * s.q("brow_raise").clamp_min(0))
    return height + 0.005 * s.wrinkle - 0.012 * s.fold + 0.010 * s.bag * (0.2 + 0.2 * z("eye_bag").clamp(-1, 2) + s.old)


def _shade(s: SimpleNamespace, height: torch.Tensor) -> None:
    q = s.q
    z = F.pad((s.depth + height)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = ((z[:, 1:-1, 2:] - z[:, 1:-1, :-2]) * (0.5 / s.pixel)).clamp(-3, 3)
    dy = ((z[:, 2:, 1:-1] - z[:, :-2, 1:-1]) * (0.5 / s.pixel)).clamp(-3, 3)
    nz = torch.rsqrt(dx * dx + dy * dy + 1)
    nx, ny = -dx * nz, -dy * nz
    lx, ly = q("light_x"), q("light_y")
    lz = torch.sqrt((1 - lx * lx - ly * ly).clamp_min(0.05))
    wrapped = ((nx * lx + ny * ly + nz * lz + 0.25) * (1 / 1.25)).clamp_min(0)
    bounce = (0.3 * ny + 0.5 * nz - 0.8 * lx * nx).clamp_min(0)
    s.plain_shade = q("ambient") * (0.75 + 0.25 * nz - 0.12 * ny) + q("direct") * wrapped + q("fill") * bounce
    y, side = s.Y, s.side
    hidden = 0.22 * _bump(((side - s.eye_x + 0.02) / 0.18) ** 2 + ((y - s.eye_y + 0.05) / 0.06) ** 2)
    hidden = hidden + 0.30 * _bump((s.X / (1.05 * s.nose_half)) ** 2 + ((y - s.nose_y - 0.060) / 0.030) ** 2)
    hidden = hidden + 0.16 * _bump((s.X / 0.15) ** 2 + ((s.Y - s.lip_low - 0.025) / 0.035) ** 2)
    cast = _bump(((s.X + lx.sign() * s.nose_half) / 0.09) ** 2 + ((y - s.nose_y + 0.10) / 0.13) ** 2)
    s.shade = s.plain_shade * (1 - hidden) * (1 - 0.35 * lx.abs() * q("direct") * cast)
    gleam = (0.9 * nz + 0.45 * (lx * nx + ly * ny)).clamp(0, 1)
    s.gloss = q("gloss") * 0.30 * torch.exp(20 * (gleam - 1))
    warmth, tint = q("warmth"), q("tint")
    s.light_color = 1 + torch.stack([warmth + 0.3 * tint, -0.5 * tint, 0.3 * tint - warmth], 1)


# --- colors -----------------------------------------------------------------------------------------------------------
def _skin_color(s: SimpleNamespace) -> torch.Tensor:
    """From light to dark through a warm middle, shifted in red and yellow: (B, 3, 1, 1)."""
    z = s.z
    dark = torch.sigmoid(1.0 * z("skin_melanin") - 0.7)
    red, yellow = 0.030 * z("skin_red"), 0.028 * z("skin_yellow")
    warm = dark * (1 - dark)
    return _rgb(0.95 - 0.56 * dark + 0.10 * warm + 0.6 * red, 0.755 - 0.52 * dark - 0.5 * red, 0.645 - 0.48 * dark - 0.06 * warm - yellow)


def _hair_color(s: SimpleNamespace) -> torch.Tensor:
    z = s.z
    dark = torch.sigmoid(1.7 * z("hair_dark") + 1.0 + 0.8 * z("skin_melanin"))
    red = torch.sigmoid(1.5 * z("hair_red") - 1.7)
    color = _rgb(
        0.80 - 0.72 * dark + 0.40 * red * dark * (1 - dark),
        0.62 - 0.565 * dark - 0.14 * red * (1 - dark),
        0.40 - 0.355 * dark - 0.16 * red * (1 - dark),
    )
    grey = torch.sigmoid((s.q("age") - 57 - 6 * z("grey")) / 5)
    return color + (0.62 - color) * (0.85 * grey)[:, None]


def _face_color(s: SimpleNamespace) -> torch.Tensor:
    z, q = s.z, s.q
    color = s.skin * (1 + _PIGMENT * s.own_pigment)
    cheeks = _bump(((s.side - 0.42) / 0.17) ** 2 + ((s.Y - 0.26) / 0.16) ** 2) * (0.5 + 0.3 * z("blush") + 0.4 * q("makeup")).clamp(0, 1.6)
    marks = (s.coefficients["marks"] - 0.7).clamp(0, 1.5) @ s.fields.marks
    marks = _sample(marks.view(-1, 1, _MARK_GRID, _MARK_GRID), s.X / _REACH[0], s.Y / _REACH[1])[:, 0]
    s.fine = _sample(s.fields.fine, s.X, s.Y)[:, 0]
    across_nose = _bump((s.side / 0.45) ** 2 + ((s.Y - 0.14) / 0.22) ** 2)
    speckle = (0.012 + 0.030 * (z("freckles") - 0.5).clamp_min(0) * across_nose + 0.022 * s.old) * s.fine
    dull = 0.07 * s.fold.clamp_max(1.5) + 0.04 * s.wrinkle.clamp_min(0) + speckle
    dull = dull + s.bag * (0.05 + 0.04 * z("eye_bag") + 0.07 * s.old).clamp(0, 0.25) + 0.10 * s.crease + 0.06 * s.low_lid
    color = color * (1 - dull[:, None])
    color = color * (1 - cheeks[:, None] * _constant(color, [0.0, 0.09, 0.07]))
    color = color * (1 - (_MARKS * marks.clamp(0, 1.2))[:, None] * _constant(color, [0.40, 0.52, 0.58]))
    shadow = _bump(((s.side - s.eye_x) / 0.17) ** 2 + ((s.Y - s.eye_y + 0.06) / 0.06) ** 2) * 0.22 * q("makeup")
    color = color * (1 - shadow[:, None])
    rouge = (0.06 * z("lip_red") + 0.14 * q("makeup")).clamp(-0.1, 0.3)
    lips = s.skin * _rgb(0.93 * torch.ones_like(rouge), 0.69 - rouge, 0.70 - 0.8 * rouge)
    color = _paint(color, lips, 0.85 * s.lips)
    color = color * (1 - (0.55 * s.lip_line + 0.18 * s.lip_corner + 0.10 * z("dimple").clamp_min(0) * s.lip_corner)[:, None])
    teeth = _edge(s.lip_line_top + 0.045 - s.Y, 0.012) * _edge(s.smile + 0.1, 0.2)
    throat = _constant(color, [0.22, 0.06, 0.06]) + (teeth * 0.62)[:, None]
    color = _paint(color, throat, s.gape)
    nostril_x = 0.44 * s.nose_half
    nostrils = _bump(((s.side - nostril_x) / 0.034) ** 2 + ((s.Y - s.nose_y - 0.030) / 0.018) ** 2)
    return color * (1 - ((0.62 + 0.05 * z("nostril")) * nostrils)[:, None])


def _paint_eyes(s: SimpleNamespace, color: torch.Tensor) -> torch.Tensor:
    z = s.z
    white = 0.86 - 0.16 * _bump(((s.eye_dy + 0.055) / 0.045) ** 2) - 0.10 * (s.eye_u.abs() - 0.5).clamp_min(0)
    eye = white[:, None] * _constant(color, [1.0, 0.965, 0.94])
    light, hue = torch.sigmoid(1.2 * z("iris_light") - 1.0), torch.sigmoid(1.5 * z("iris_hue"))
    iris = _rgb(0.20 + 0.22 * light, 0.12 + 0.34 * light, 0.07 + (0.18 + 0.34 * hue) * light)
    radius = 0.064
    ring = iris * (0.65 + 0.5 * _edge(radius * 0.8 - s.iris_distance, 0.012))[:, None]
    eye = _paint(eye, ring, _edge(radius - s.iris_distance, 0.007))
    eye = eye * (1 - 0.92 * _edge(0.024 - s.iris_distance, 0.006))[:, None]
    eye = eye + 0.55 * s.spark[:, None]
    color = _paint(color, eye, s.eye)
    darkness = (0.70 + 0.10 * z("lash") + 0.25 * s.q("makeup")).clamp(0.35, 1.0) * s.lash
    return color * (1 - 0.85 * darkness.clamp(0, 1))[:, None]


def _paint_brows_and_beard(s: SimpleNamespace, color: torch.Tensor) -> torch.Tensor:
    z = s.z
    strength = (0.66 + 0.11 * z("brow_dark")).clamp(0.2, 0.95) * (1 - 0.25 * s.old)
    color = _paint(color, s.hair * 0.75, (s.brow * strength * (1 + 0.15 * s.fine)).clamp(0, 1))
    grain = _sample(s.fields.fine, s.X * 2.7, s.Y * 2.7)[:, 0]
    grown = 1 - s.q("shaved")
    beard, moustache = torch.sigmoid(3 * (z("beard") - 0.9)) * grown, torch.sigmoid(3 * (z("moustache") - 0.9)) * grown
    stubble = 0.16 * torch.sigmoid(2 * (z("beard") - 0.1))
    edge = 0.60 - 0.62 * s.azimuth.abs() ** 3
    cheek = _edge(s.Y - edge, 0.05) * _edge(s.side - 0.02 - s.mouth_half * 1.05 + (s.Y - s.mouth_y - 0.10).clamp_min(0) * 2, 0.05)
    chin = torch.maximum(cheek, _edge(s.Y - s.lip_low - 0.07, 0.04))
    lip = _edge(0.032 - (s.Y - s.lip_top + 0.05 - 0.03 * s.mouth_u**2).abs(), 0.016) * _edge(1.15 - s.mouth_u.abs(), 0.09)
    s.hairy = (torch.maximum(chin * torch.maximum(beard, stubble), lip * torch.maximum(moustache, 0.8 * stubble))) * (1 - s.lips)
    s.hairy = (s.hairy * (1 + 0.20 * grain)).clamp(0, 0.93)
    return _paint(color, s.hair * 0.8, s.hairy)


# --- hair, background, glasses -----------------------------------------------------------------------------------------
def _hairstyle(s: SimpleNamespace) -> None:
    z = s.z
    s.long = torch.sigmoid(1.3 * z("hair_length") - 0.2)
    receding = (0.5 * s.old + 0.3 * s.very_old) * torch.sigmoid(z("beard") + 0.3)
    side = s.azimuth.abs()
    line = -0.80 - 0.040 * z("forehead") + 0.045 * z("hairline") - 0.14 * receding
    line = line + 0.12 * torch.tanh(1.5 * z("parting")) * s.azimuth + 0.045 * z("hair_peak") * (_bump((s.azimuth / 0.25) ** 2) - 0.5)
    fringe = torch.sigmoid(1.8 * z("fringe") - 1.8)
    line = line + 0.30 * fringe * (1 - 0.25 * side)
    line = line + 0.22 * side**4 + (side - 0.84 + 0.06 * s.long).clamp_min(0) * (4.0 + 6.0 * s.long)
    wave = 0.08 * z("curl") * torch.sin(s.Y * 12)
    strands = _sample(s.fields.strands, s.azimuth * 0.9 + wave, (s.Y * 0.55).clamp(-1, 1))
    line = line + 0.020 * strands[:, 0] * (1 + 0.5 * fringe)
    end = 0.04 + 1.36 * s.long
    thin = torch.sigmoid((receding - 0.45) / 0.06) * torch.sigmoid(z("hair_peak"))
    s.scalp = _edge(line - s.Y, 0.022) * _edge(end - s.Y, 0.06) * (1 - 0.9 * thin * _edge(-0.55 - s.Y, 0.1))
    s.strand_tone = 1 + 0.14 * strands[:, 0] + 0.09 * strands[:, 1]


def _behind(s: SimpleNamespace) -> torch.Tensor:
    """Background, shoulders, back hair, neck and ears: what the face is painted over."""
    z, q = s.z, s.q
    cloud = _sample(s.fields.cloud, s.screen_x * 0.5 + q("back_x"), s.screen_y * 0.5 + q("back_y"))
    blend = torch.sigmoid(2.5 * (2 * q("back_x") * s.screen_x + 2 * q("back_y") * s.screen_y) + 1.2 * cloud[:, 0])
    first, second = (_rgb(*(q(f"{side}_{c}") for c in "rgb")) for side in ("back", "back2"))
    image = (first + (second - first) * blend[:, None]) * (1 + (q("back_texture") * cloud[:, 1])[:, None])
    volume = 0.06 + 0.030 * torch.tanh(z("hair_volume")) + 0.05 * s.long
    above = ((_MIDDLE_Y - s.level) / (s.height_above + volume)).clamp(0, 1)
    wide = (s.half_width + 0.03) * (1 + 0.8 * volume) * torch.sqrt((1 - above * above).clamp_min(1e-4))
    wide = wide * (1 + (0.16 + 0.04 * z("hair_volume")) * s.long * (s.level - _MIDDLE_Y).clamp_min(0))
    wide = wide + 0.012 * torch.sin(s.level * 13 + 3 * z("curl")) * torch.sigmoid(2 * z("curl") - 1)
    hair = _edge(wide - (s.x + 0.08 * s.sin_yaw).abs(), 0.014) * _edge(0.05 + 1.4 * s.long - s.level, 0.07)
    strands = _sample(s.fields.strands, s.x * 1.1 + 0.07 * z("curl") * torch.sin(s.level * 12), s.level * 0.55)
    lit = q("ambient") * 0.75 + q("direct") * (0.42 + 0.35 * q("light_x") * s.x).clamp_min(0.1)
    hair_color = s.hair * ((1 + 0.16 * strands[:, 0] + 0.08 * strands[:, 1]) * lit * 0.92)[:, None] * s.light_color
    image = _paint(image, hair_color, hair)
    neck = _edge(0.46 * (1 + 0.07 * z("neck_width")) - (s.x - 0.10 * s.sin_yaw).abs(), 0.02) * _edge(s.y - 0.55, 0.03)
    neck_light = q("ambient") * 0.6 + q("direct") * (0.26 + 0.5 * q("light_x") * s.x).clamp_min(0.02)
    image = _paint(image, s.skin * neck_light[:, None] * s.light_color, neck)
    collar = _edge(s.y - 1.10 + 0.20 * (s.x.abs() - 0.25).clamp_min(0), 0.02)
    cloth = _rgb(*(q(f"cloth_{c}") for c in "rgb")) * (q("ambient") + 0.5 * q("direct"))[:, None]
    image = _paint(image, cloth, collar)
    image = _paint(image, hair_color, hair * _edge(s.x.abs() - 0.52, 0.035) * _edge(s.long - 0.5, 0.08))
    size = 0.062 * (1 + 0.10 * z("ear_size"))
    reach = ((s.x.abs() - s.half_width * s.cos_yaw - 0.012) / size) ** 2 + ((s.level - 0.02 - 0.03 * z("ear_height")) / (2.7 * size)) ** 2
    ear = _edge(1 - reach, 0.18) * _edge(0.85 - s.long, 0.08)
    ear_light = q("ambient") * 0.75 + q("direct") * (0.4 + 0.5 * q("light_x") * torch.sign(s.x)).clamp_min(0.02)
    ear_light = ear_light * (1 - 0.30 * _bump(((reach - 0.35) / 0.2) ** 2))
    return _paint(image, s.skin * ear_light[:, None] * s.light_color * _constant(image, [1.0, 0.93, 0.92]), ear)


def _glasses(s: SimpleNamespace, image: torch.Tensor) -> torch.Tensor:
    q = s.q
    wide, high, frame = q("lens_width"), q("lens_height"), q("frame")
    u, v = (s.side - s.eye_x - 0.01) / wide, (s.Y - s.eye_y - 0.02) / high
    radius = torch.sqrt(torch.sqrt(u**4 + v**4 + 1e-8))
    ring = _bump(((radius - 1) / frame) ** 2)
    bar = _bump(((v + 0.25) / (0.6 * frame)) ** 2)
    bridge = bar * _edge(s.eye_x + 0.01 - wide - s.side, 0.012)
    arm = bar * _edge(s.side - s.eye_x - 0.01 - wide, 0.012)
    worn = q("glasses") * s.head
    lens = _edge(1 - radius, 0.04) * worn * q("lens_dark")
    image = image * (1 - lens)[:, None] + (0.05 * lens)[:, None]
    color = _rgb(q("frame_tone"), 0.8 * q("frame_tone"), 0.7 * q("frame_tone")) * s.plain_shade.clamp(0.3, 1.2)[:, None]
    return _paint(image, color, (torch.maximum(torch.maximum(ring, bridge), arm) * worn).clamp(0, 1))


# --- camera -----------------------------------------------------------------------------------------------------------
def _develop(s: SimpleNamespace, image: torch.Tensor) -> torch.Tensor:
    q = s.q
    image = torch.exp(torch.log((image * q("exposure")[:, None]).clamp(1e-4, 1.4)) * q("gamma")[:, None])
    image = (image - 0.5) * q("contrast")[:, None] + 0.5
    image = _blur(image, q("blur")[:, None])
    image = image + _grain(s) * (q("noise")[:, None] * (0.4 + 0.6 * image.clamp(0, 1)))
    return _compress(s, image.clamp(0, 1))


def _blur(image: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Blend with a binomial blur of five taps, separable, by shifted sums."""
    taps = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
    size = image.shape[-1]
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    rows = sum(tap * padded[:, :, i : i + size] for i, tap in enumerate(taps))
    return torch.lerp(image, sum(tap * rows[:, :, :, i : i + size] for i, tap in enumerate(taps)), amount)


def _grain(s: SimpleNamespace) -> torch.Tensor:
    """Camera noise cut from one fixed sheet at a place of the picture's own: the same on every device."""
    room = s.fields.grain.shape[-1] - s.size
    left, top = (s.q("grain_x") * room).long().flatten().tolist(), (s.q("grain_y") * room).long().flatten().tolist()
    cut = [s.fields.grain[:, y : y + s.size, x : x + s.size] for x, y in zip(left, top, strict=True)]
    return torch.stack(cut)


def _compress(s: SimpleNamespace, image: torch.Tensor) -> torch.Tensor:
    """JPEG-like loss: 8 x 8 cosine transform of each channel, coarser steps for higher frequencies."""
    b, c, h, w = image.shape
    room = (-h) % 8
    padded = F.pad(image, (0, room, 0, room), mode="replicate") if room else image
    rows = padded.shape[-1] // 8
    blocks = padded.view(b, c, rows, 8, rows, 8).permute(0, 1, 2, 4, 3, 5)
    spectrum = s.fields.dct @ blocks @ s.fields.dct.T
    k = torch.arange(8.0, device=s.device)
    step = (0.004 + s.q("jpeg")[..., None, None, None] * (0.02 + 0.016 * (k[:, None] + k[None])))
    spectrum = torch.round(spectrum / step) * step
    blocks = s.fields.dct.T @ spectrum @ s.fields.dct
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(b, c, rows * 8, rows * 8)[:, :, :h, :w].clamp(0, 1)


# --- the whole --------------------------------------------------------------------------------------------------------
def _draw(appearance: torch.Tensor, conditions: torch.Tensor, size: int) -> torch.Tensor:
    s = _setup(appearance, conditions, size)
    _place(s)
    _mouth(s)
    _eyes(s)
    _brows(s)
    _shade(s, _relief(s))
    s.skin, s.hair = _skin_color(s), _hair_color(s)
    color = _paint_brows_and_beard(s, _paint_eyes(s, _face_color(s)))
    _hairstyle(s)
    color = _paint(color, s.hair * s.strand_tone[:, None], s.scalp)
    shade = _mix(s.shade, s.plain_shade, s.scalp)
    gloss = s.gloss * (1 - 0.6 * s.scalp) * (1 - 0.7 * s.hairy)
    face = (color * shade[:, None] + gloss[:, None]) * s.light_color
    image = _glasses(s, _paint(_behind(s), face, s.head))
    return torch.round(_develop(s, image) * 255).to(torch.uint8)


@torch.no_grad()
def render(appearance: torch.Tensor, conditions: torch.Tensor, size: int = 112) -> torch.Tensor:
    """Draw pictures.

    Parameters
    ----------
    appearance : float tensor (N, traits + fields)
        From :func:`fa_utils.data.people.sample_pictures`, on the device that shall draw.
    conditions : float tensor (N, len(CONDITIONS))
    size : int in [32, 256]
        Height and width in pixels.

    Returns
    -------
    uint8 tensor (N, 3, size, size), RGB
        A picture depends on its own row alone, not on its neighbors.
    """
    if not (isinstance(size, int) and SIZES[0] <= size <= SIZES[1]):
        raise ValueError(f"size = {size!r}: pictures are drawn at {SIZES[0]} to {SIZES[1]} pixels")
    if len(appearance) != len(conditions) or appearance.ndim != 2:
        raise ValueError(f"appearance {tuple(appearance.shape)} and conditions {tuple(conditions.shape)}: one row a picture in each")
    out = torch.empty(len(appearance), 3, size, size, dtype=torch.uint8, device=appearance.device)
    for start in range(0, len(appearance), CHUNK):
        rows = torch.arange(start, start + CHUNK).clamp_max(len(appearance) - 1)  # chunks of one size: the same arithmetic
        drawn = _draw(appearance[rows], conditions[rows], size)
        count = min(CHUNK, len(appearance) - start)
        out[start : start + count] = drawn[:count]
    return out
