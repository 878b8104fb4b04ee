"""What a face recognition system may do against attacks: filter the picture first, or train on attacks."""

from fa_utils.defenses.blur import gaussian_blur
from fa_utils.defenses.jpeg import jpeg

__all__ = ["gaussian_blur", "jpeg"]
