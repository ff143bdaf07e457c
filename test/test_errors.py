from __future__ import annotations

import pytest

from torchrl_vla.schema import (
    MissingExtraError,
    MissingKeyError,
    VLAError,
    import_extra,
)


def test_a_key_error_prints_a_sentence_without_quotes():
    error = MissingKeyError("expected a key. Add it.")
    assert str(error) == "expected a key. Add it."
    assert isinstance(error, KeyError)
    assert isinstance(error, VLAError)


def test_a_missing_package_names_its_extra():
    with pytest.raises(
        MissingExtraError, match=r"MetaWorldEnv: .* pip install 'torchrl-vla\[sim\]'"
    ):
        import_extra("not_installed_anywhere", "sim", "MetaWorldEnv")


def test_a_present_package_is_returned():
    assert import_extra("json", "any", "This").loads("1") == 1
