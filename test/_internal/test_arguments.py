from __future__ import annotations

import pytest

from torchrl_vla.schema import check_positive_int


def test_ints_from_one_on_pass():
    for value in (1, 2, 10**9):
        assert check_positive_int("Owner", "size", value) is None


@pytest.mark.parametrize("value", [0, -3, 2.0, "4", None])
def test_anything_else_is_refused_with_owner_name_and_value(value):
    message = rf"^Owner: expected a positive int at argument 'size', got {value!r}\.$"
    with pytest.raises(ValueError, match=message):
        check_positive_int("Owner", "size", value)
