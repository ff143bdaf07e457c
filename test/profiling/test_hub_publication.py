from __future__ import annotations

import pytest

from torchrl_vla.profiling.hub_publication import (
    parse_discussion_number,
    plan_publication,
)


@pytest.mark.parametrize(
    ("event", "is_asked", "has_token", "expected"),
    [
        ("pull_request", True, True, ("summary", False)),
        ("pull_request", False, False, ("summary", False)),
        ("schedule", False, True, ("trace", True)),
        ("schedule", False, False, ("trace", False)),
        ("manual", True, True, ("trace", True)),
        ("manual", False, True, ("trace", False)),
        ("manual", True, False, ("trace", False)),
    ],
)
def test_pull_requests_are_summaries_and_only_a_token_publishes(
    event, is_asked, has_token, expected
):
    assert plan_publication(event, is_asked=is_asked, has_token=has_token) == expected


def test_the_number_is_that_of_the_discussion():
    assert parse_discussion_number("https://h/datasets/a/b/discussions/7#x") == 7
    assert parse_discussion_number("https://h/datasets/a/b") is None
    assert parse_discussion_number(None) is None
