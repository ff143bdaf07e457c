"""Tiny policies from flat options, sorted into the records of their constructors."""

from __future__ import annotations

from dataclasses import fields, replace

from torchrl_vla.policies import (
    BackboneConfig,
    DiffusionConfig,
    StdConfig,
    TinyDiffusionVLA,
    TinyGaussianVLA,
)
from torchrl_vla.schema import ObservationKeys

KEYS = {
    "image_key": "image",
    "state_key": "state",
    "instruction_key": "instruction",
}
STD = {
    "initial_std": "initial",
    "std_reads_inputs": "reads_inputs",
    "min_std": "min",
    "max_std": "max",
}


def make_tiny(cls, **options):
    """Make a tiny policy; sizes, keys, std and diffusion options may be flat."""
    names = {field.name: field.name for field in fields(BackboneConfig)}
    records = {"backbone": (BackboneConfig(), names), "keys": (ObservationKeys(), KEYS)}
    if cls is TinyGaussianVLA:
        records["std"] = (StdConfig(), STD)
    if cls is TinyDiffusionVLA:
        names = {field.name: field.name for field in fields(DiffusionConfig)}
        records["diffusion"] = (DiffusionConfig(num_steps=4), names)
    for argument, (default, names) in records.items():
        flat = {names[n]: options.pop(n) for n in list(options) if n in names}
        if flat:
            options[argument] = replace(options.get(argument, default), **flat)
    return cls(**options)
