"""Removal of secrets from the output of a program."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_?KEY|AUTH", re.I)
_MASK = "[withheld]"
_SHORTEST = 6
_PATTERNS = (
    (re.compile(r"\b(hf|ghp|gho|ghs|github_pat|sk|xox[abp])[_-][\w-]{8,}"), _MASK),
    (re.compile(r"\bAKIA[0-9A-Z]{12,}"), _MASK),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.I), rf"\1 {_MASK}"),
    (re.compile(r"(://)[^/\s:@]+:[^/\s@]+@"), rf"\1{_MASK}@"),
    (
        re.compile(
            r"(\w*(?:token|secret|passw(?:or)?d|credential|api[_-]?key|private[_-]?key)"
            r"\w*[\"']?\s*[=:]\s*[\"']?)[^\s\"',;}]+",
            re.I,
        ),
        rf"\1{_MASK}",
    ),
)


def withhold_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a text without what looks like a secret.

    Values of environment variables whose name marks them as secret are removed, and so
    are tokens of known forms, passwords in addresses, and values after ``token=``,
    ``password:`` and the like.

    Args:
        text: output of a program.
        environment: variables of the process; None = those of this one.

    Examples:
        >>> withhold_secrets("login password=abc at https://me:abc@host", {})
        'login password=[withheld] at https://[withheld]@host'
    """
    variables = os.environ if environment is None else environment
    for name, value in variables.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, _MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
