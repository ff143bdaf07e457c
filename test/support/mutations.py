"""Damage to files and JSON values, reproducible by a seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP: Any = 0
for _ in range(60):
    DEEP = [DEEP]

#: Values that a field of untrusted JSON may hold in place of the right one.
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -(2**63), 2**63, 10**30, 10**400),
    *(1e308, float("nan"), float("inf"), "", " ", "a", "x" * 300, "1", "v2.1"),
    *("../../owned", "/etc/passwd", "a\0b", "a/b", "..", "C:x", "\ud800", "ü"),
    *("{video_key}/../{episode_index}", "{0.__class__}", "{chunk_index:0999999999d}"),
    *("int64", "float32", "image", "video", "string", "bool", "absolute", "cpu"),
    *([], [1], [None], ["a"], [[]], [-1], [0], [10**9], [10**13], [1, 2, 3], DEEP),
    *({}, {"a": 1}, {"dim": 0}, {"mean": [0.0]}, {"$tensor": [0], "dtype": "Tensor"}),
    *({"$module": {}}, {"$dataclass": "os:path", "arguments": {}}, {"$tuple": 1}),
    *({"$factory": {}}, {"class": "subprocess:Popen", "arguments": {"args": "ls"}}),
)


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, delete, insert, zero or repeat bytes."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    size = rng.choice((1, 1, 4, 16, 200))
    match rng.randrange(7):
        case 0:
            del out[at:]
        case 1:
            del out[at : at + size]
        case 2:
            out[at:at] = rng.randbytes(size)
        case 3:
            out[at : at + size] = bytes(len(out[at : at + size]))
        case 4:
            out[at:at] = out[at : at + size]
        case _:
            for _ in range(rng.choice((1, 1, 3, 20))):
                if out:
                    out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def damaged_value(value: Any, rng: random.Random) -> Any:
    """Replace, remove, rename or repeat one or two entries at any depth."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _damage(value, rng)
    return value


def damaged_json(text: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of JSON, or one of its values."""
    if rng.random() < 0.25:
        return damaged_bytes(text, rng)
    value = damaged_value(json.loads(text), rng)
    return json.dumps(value).encode()


def damaged_lines(text: bytes, rng: random.Random) -> bytes:
    """Damage one line of JSON Lines, or their order and number."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        case _:
            lines[at] = damaged_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def _damage(value: Any, rng: random.Random) -> Any:
    inner = list(_children(value))
    if not inner or rng.random() < 0.03:
        return rng.choice(STRANGE)
    node = value
    while True:
        key = rng.choice(list(_children(node)))
        if not list(_children(node[key])) or rng.random() < 0.35:
            break
        node = node[key]
    match rng.randrange(8):
        case 0:
            del node[key]
        case 1 if type(node) is dict:
            names = ("", "a", "../../owned", "a/b", "episode_index", "ü", "\ud800")
            node[rng.choice((*names, f"{key}/../../../owned"))] = node.pop(key)
        case 2 if type(node) is list:
            node.insert(key, node[key])
        case _:
            node[key] = copy.deepcopy(rng.choice(STRANGE))
    return value


def _children(value: Any) -> Any:
    if type(value) is dict:
        return list(value)
    return range(len(value)) if type(value) is list else ()
