"""Face-recognition networks. ``zoo`` and ``onnx`` are imported on their own, as they need more packages."""

from fa_utils.models.backbones import build_backbone, load_public_state_dict
from fa_utils.models.encoder import FaceEncoder

__all__ = ["FaceEncoder", "build_backbone", "load_public_state_dict"]
