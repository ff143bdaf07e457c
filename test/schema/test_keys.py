from __future__ import annotations

import re

from torchrl_vla.schema import keys

CONSTANTS = {
    value if isinstance(value, str) else value[-1]
    for name, value in vars(keys).items()
    if name.endswith("_KEY")
}


def test_the_table_and_the_constants_name_the_same_keys():
    rows = [
        line
        for line in keys.__doc__.partition("=====")[2].splitlines()
        if line.startswith("``")
    ]
    named = {re.findall(r"\w+", row.split("``")[1])[-1] for row in rows}
    # The sub-tensordict itself has no row of its own; its entries have.
    assert named == CONSTANTS - {"observation"}
