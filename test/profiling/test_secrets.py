from __future__ import annotations

import pytest

from torchrl_vla.profiling.secrets import withhold_secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HF_TOKEN=hf_abcdefghij", "HF_TOKEN=[withheld]"),
        ("got hf_abcdefghijklmnop here", "got [withheld] here"),
        ('{"api_key": "abc123"}', '{"api_key": "[withheld]"}'),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [withheld]"),
        ("https://me:pass@host/path", "https://[withheld]@host/path"),
        ("AKIAIOSFODNN7EXAMPLE", "[withheld]"),
        ("step 12: loss 0.5 tokens", "step 12: loss 0.5 tokens"),
        ("https://host/path:8080", "https://host/path:8080"),
    ],
)
def test_what_looks_like_a_secret_is_withheld(text, expected):
    assert withhold_secrets(text, {}) == expected


def test_values_of_secret_variables_are_withheld_wherever_they_are():
    environment = {"MY_PASSWORD": "correct-horse", "HOME": "/home/me", "A_TOKEN": "x"}
    text = "failed with correct-horse in /home/me x"
    expected = "failed with [withheld] in /home/me x"
    assert withhold_secrets(text, environment) == expected
