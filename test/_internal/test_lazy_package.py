from __future__ import annotations

import pytest

from torchrl_vla._internal.lazy_package import lazy_names


def test_a_name_that_is_not_listed_is_an_attribute_error():
    load = lazy_names("example", {"fractions": ["Fraction"]})
    with pytest.raises(
        AttributeError, match="module 'example' has no attribute 'Decim"
    ):
        load("Decimal")
