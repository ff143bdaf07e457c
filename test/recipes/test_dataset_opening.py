from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_vla.data import (
    DemonstrationDataset,
    LeRobotDemonstrations,
    collect,
    write_lerobot,
)
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.recipes import make_policy, open_dataset
from torchrl_vla.recipes.dataset_opening import image_sizes_of
from torchrl_vla.schema import SchemaError
from torchrl_vla.schema.lerobot_names import is_repo_id


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    env = TabletopEnv(4, image_size=16)
    folder = tmp_path_factory.mktemp("demonstrations")
    where = folder / "ours"
    dataset = collect(env, env.make_expert(), 4, folder=where, progress=False)
    write_lerobot(dataset, folder / "lerobot", images="png", progress=False)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_a_folder_is_opened_as_what_it_is(folders):
    ours = open_dataset(folders / "ours")
    theirs = open_dataset(str(folders / "lerobot"))
    assert type(ours) is DemonstrationDataset
    assert type(theirs) is LeRobotDemonstrations
    assert len(ours) == len(theirs)
    assert image_sizes_of(ours) == image_sizes_of(theirs) == {None: (3, 16, 16)}


def test_a_policy_fits_both(folders):
    for name in ("ours", "lerobot"):
        policy = make_policy(open_dataset(folders / name), chunk_size=2, hidden=8)
        assert ("observation", "image") in policy.in_keys
        assert policy.action_dim == 2


def test_named_cameras_are_listed_in_order(folders):
    dataset = open_dataset(folders / "ours")
    frames = dataset.frames.clone()
    image = frames.pop(("observation", "image"))
    frames["observation", "image"] = {"wrist": image, "front": image[..., :8, :]}
    cameras = DemonstrationDataset(frames, dataset.metadata, dataset.instructions)
    assert list(image_sizes_of(cameras).items()) == [
        ("front", (3, 8, 16)),
        ("wrist", (3, 16, 16)),
    ]


def test_a_folder_wins_over_a_repository_of_its_name(folders, monkeypatch):
    monkeypatch.chdir(folders.parent)
    assert len(open_dataset(f"{folders.name}/ours")) == len(
        open_dataset(folders / "ours")
    )


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("lerobot/pusht", True),
        ("user/name-v1.0_x", True),
        ("pusht", False),
        ("/lerobot/pusht", False),
        ("./lerobot/pusht", False),
        ("runs/demo/policy", False),
        (Path("lerobot/pusht"), False),
    ],
)
def test_a_repository_is_two_names_and_never_a_path(source, is_one):
    assert is_repo_id(source) == is_one


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder at .*nothing"):
        open_dataset(tmp_path / "nothing")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SchemaError, match=r"got \['notes.txt'\]"):
        open_dataset(tmp_path)
