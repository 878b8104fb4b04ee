"""Attacks on face recognition and defenses against them, in parts that compose."""

__version__ = "0.1.0"
