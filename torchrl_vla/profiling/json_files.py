"""JSON of a profile's files: indented, with sorted keys."""

from __future__ import annotations

import json


def sorted_json(value: object) -> str:
    """Return indented JSON with sorted keys.

    Examples:
        >>> print(sorted_json({"b": 1, "a": None}))
        {
            "a": null,
            "b": 1
        }
    """
    return json.dumps(value, indent=4, sort_keys=True, ensure_ascii=False)
