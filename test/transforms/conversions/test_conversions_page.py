from __future__ import annotations

import doctest
from pathlib import Path

from torchrl_vla.transforms.torchrl_names import TORCHRL_NAMES

PAGE = Path(__file__).parents[3] / "docs" / "conversions.md"


def test_the_examples_of_the_page_run():
    found = doctest.testfile(
        str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert (found.failed, found.attempted) == (0, 10)


def test_the_page_names_every_key_of_torchrl():
    text = PAGE.read_text(encoding="utf-8")
    for ours, (group, name) in TORCHRL_NAMES.items():
        assert f'| `{ours}` | `("{group}", "{name}")` |' in text
