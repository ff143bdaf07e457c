from __future__ import annotations

import pytest

from torchrl_vla._internal.named_objects import (
    call_with_accepted,
    import_named,
    is_named_object,
)
from torchrl_vla.errors import NamedObjectError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("robot:make_env", True),
        ("my.robot:make_env", True),
        ("tabletop", False),
        ("owner/name", False),
        ("runs/a:b", False),
        ("C:/runs", False),
    ],
)
def test_a_named_object_is_told_from_a_folder_and_a_repo_id(text, expected):
    assert is_named_object(text) is expected


def test_the_current_directory_is_importable(tmp_path, monkeypatch):
    (tmp_path / "robot_of_mine.py").write_text("def make_env(): return 7\n")
    monkeypatch.chdir(tmp_path)
    assert import_named("--env", "robot_of_mine:make_env")() == 7


def test_a_module_or_a_name_that_is_not_there_is_explained():
    with pytest.raises(NamedObjectError, match=r"--env: .* 'nowhere:make', got Module"):
        import_named("--env", "nowhere:make")
    with pytest.raises(
        NamedObjectError, match=r"got nothing\. Did you mean 'Fraction'"
    ):
        import_named("--env", "fractions:Fracton")


def test_only_declared_arguments_are_passed():
    def make(num_envs, seed=0, **others):
        return num_envs, seed, others

    assert call_with_accepted(make, num_envs=2, tasks=("a",)) == (
        2,
        0,
        {"tasks": ("a",)},
    )
    assert call_with_accepted(lambda seed: seed, num_envs=2, seed=3) == 3
