from __future__ import annotations

import pytest
import torch

from torchrl_vla.policies.encoders.text_feature_cache import (
    default_text_cache,
    read_features,
    write_features,
)
from torchrl_vla.schema import SchemaError


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_features_are_read_back_by_key_and_add_up():
    write_features("a", {"red": torch.tensor([1.0])})
    write_features("a", {"green": torch.tensor([2.0])})
    assert read_features("a") == {
        "red": torch.tensor([1.0]),
        "green": torch.tensor(2.0),
    }
    assert read_features("another model") == {}


def test_a_damaged_file_is_named_with_the_remedy():
    write_features("a", {"red": torch.ones(3)})
    (path,) = default_text_cache().iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SchemaError, match=rf"{path.name}.*Delete the file"):
        read_features("a")
