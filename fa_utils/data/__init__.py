"""Faces: procedural people, real datasets, pairs and protocols."""

from fa_utils.data.benchmarks import load_benchmark
from fa_utils.data.datasets import dataset_name, load_faces
from fa_utils.data.domains import (
    DOMAINS,
    Domain,
    attack_pairs,
    domain_table,
    load_domain,
    protocol_pairs,
    render_pictures,
)
from fa_utils.data.faceset import FaceSet, Pairs, to_float, to_uint8
from fa_utils.data.people import CONDITIONS, FIELDS, TRAITS, Conditions

__all__ = [
    "CONDITIONS", "DOMAINS", "FIELDS", "TRAITS", "Conditions", "Domain", "FaceSet", "Pairs", "attack_pairs", "dataset_name",
    "domain_table", "load_benchmark", "load_domain", "load_faces", "protocol_pairs", "render_pictures", "to_float", "to_uint8",
]
