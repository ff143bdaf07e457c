"""Public readers meet damaged and hostile files with errors of ours, and no others.

Every input is made from a whole file by a seeded mutation. Whatever comes of it, no
exception of another library escapes, nothing is written outside of the given folder and
no memory is taken for sizes that a file only declares.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import warnings
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_folders import record, write_folder
from mutations import (
    STRANGE,
    damaged_bytes,
    damaged_json,
    damaged_lines,
    damaged_value,
)
from tiny_options import make_tiny

from torchrl_vla.data import (
    DemonstrationDataset,
    Hdf5Demonstrations,
    LeRobotDemonstrations,
    LeRobotExperienceReplay,
    LeRobotWriter,
    collect,
)
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import Comparison, EpisodeRecord, EvaluationResult, compare
from torchrl_vla.policies import TinyVLA, load_policy
from torchrl_vla.recipes import load_executor, save_checkpoint
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
    VLAError,
)
from torchrl_vla.spaces import ModelSpace

#: Bytes that a damaged input of a few kilobytes may take.
MOST_BYTES = 600 << 20


class Outcomes(Counter):
    """Read damaged inputs, and count how each ended."""

    def __init__(self, outside: Path) -> None:
        super().__init__()
        self._outside = outside
        self._there = self._listing()
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _listing(self) -> set[Path]:
        paths = [*self._outside.iterdir(), *self._outside.parent.iterdir()]
        return {path for path in paths if not path.name.startswith("pytest-")}

    def read(self, read, seed: object) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
            self["read"] += 1
        except (VLAError, FileNotFoundError):
            self["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{seed}: {type(error)} escaped: {error}") from error

    def check(self, inputs: int, refused: int) -> None:
        assert self.total() == inputs
        assert self["refused"] >= refused, self
        assert self._listing() == self._there
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._before
        assert grown * 1024 < MOST_BYTES


def damage_files(root: Path, damage, inputs: int, read, outcomes: Outcomes) -> None:
    """Damage one file of a folder at a time, read, and put it back.

    Args:
        root: of the whole folder.
        damage: pattern of files to how their bytes are damaged.
        inputs: how many.
        read: is called with the number of the input.
        outcomes: takes the results.
    """
    files = [
        (path, how)
        for pattern, how in damage.items()
        for path in sorted(root.glob(pattern))
        if path.is_file()
    ]
    for seed in range(inputs):
        rng = random.Random(seed)
        path, how = files[seed % len(files)]
        whole = path.read_bytes()
        path.write_bytes(how(whole, rng))
        outcomes.read(lambda seed=seed: read(seed), (seed, path.name))
        path.write_bytes(whole)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # takes most of the time
    root = tmp_path / "deep" / "er" / "root"
    root.mkdir(parents=True)
    return root


def damaged_table(data: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of a parquet file, or write it again with strange values."""
    if rng.random() < 0.5:
        return damaged_bytes(data, rng)
    table = pq.read_table(pa.BufferReader(data))
    name = rng.choice(table.column_names)
    rows = damaged_value(table.column(name).to_pylist(), rng)
    if rng.random() < 0.3:
        rows = [rng.choice(STRANGE) for _ in range(len(table))]
    try:
        column = pa.array((list(rows) + [None] * len(table))[: len(table)])
        where = table.column_names.index(name)
        table = table.set_column(where, rng.choice((name, name, "a")), column)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        table = table.drop_columns([name])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("version", "images", "inputs"),
    [("v3.0", "image", 500), ("v2.1", "image", 260), ("v3.0", "video", 160)],
)
def test_lerobot_folders(root, version, images, inputs):
    recording = record((3, 2), cameras=("front",))
    folder = write_folder(root / "d", recording, version=version, images=images)
    cache = root / "cache"

    def read(seed):
        shutil.rmtree(cache, ignore_errors=True)
        options = {"cache_folder": cache, "decoder": "pyav"}
        options["statistics"] = "stored" if seed % 2 else "exact"
        if seed % 5:
            dataset = LeRobotDemonstrations.from_folder(folder, **options)
            dataset.replay_buffer(2)[:]
        else:
            LeRobotExperienceReplay(folder, 2, chunk_size=2, **options).sample()

    read(0)
    read(1)
    outcomes = Outcomes(root.parent)
    damage = {
        "meta/*.json": damaged_json,
        "meta/*.jsonl": damaged_lines,
        "**/*.parquet": damaged_table,
        "**/*.mp4": damaged_bytes,
        "meta/i*.json": damaged_json,  # twice as often
    }
    damage_files(folder, damage, inputs, read, outcomes)
    outcomes.check(inputs, refused=inputs // 3)
    read(2)  # all is as it was


def test_copies_in_the_cache(root):
    folder = write_folder(root / "d", record((3, 2), cameras=("front",)))
    cache = root / "cache"

    def read(seed):
        dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=cache)
        dataset.replay_buffer(2)[:]

    read(0)
    outcomes = Outcomes(root.parent)
    damage_files(cache, {"**/*.*": damaged_bytes}, 80, read, outcomes)
    outcomes.check(80, refused=70)


def test_hdf5_files(root):
    path = root / "demo.hdf5"
    with h5py.File(path, "w") as file:
        args = {"env_kwargs": {"robots": ["Panda"], "control_freq": 20}}
        file.create_group("data").attrs["env_args"] = json.dumps(args)
        for i in range(2):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = np.full((3, 2), 0.5 * i)
            demo["rewards"] = np.zeros(3)
            demo["obs/pos"] = np.ones((3, 1))
            demo.create_dataset(
                "obs/image", data=np.zeros((3, 4, 4, 3), np.uint8), compression="gzip"
            )

    def read(seed):
        dataset = Hdf5Demonstrations.from_file(
            path,
            layout="robomimic",
            instruction="lift",
            state_keys=["pos"],
            cameras={"front": "image"},
            flip_images="none",
        )
        dataset.replay_buffer(2)[:]

    read(0)
    outcomes = Outcomes(root.parent)
    damage_files(root, {"demo.hdf5": damaged_bytes}, 250, read, outcomes)
    outcomes.check(250, refused=30)


def test_our_own_datasets(root):
    env = TabletopEnv(2, image_size=16, seed=0)
    collect(env, env.make_expert(), 2, folder=root / "d", progress=False)

    def read(seed):
        dataset = DemonstrationDataset.from_folder(root / "d", verify=bool(seed % 2))
        dataset.replay_buffer(2)[:]

    read(0)
    outcomes = Outcomes(root.parent)
    damage = {"d/**/*.json": damaged_json, "d/**/*.memmap": damaged_bytes}
    damage_files(root, damage, 150, read, outcomes)
    (root / "d" / "files.json").unlink()  # as in folders of older versions
    damage_files(root, damage, 150, read, outcomes)
    outcomes.check(300, refused=150)


def test_checkpoints(root):
    env = TabletopEnv(1, image_size=16)
    low = torch.tensor(env.metadata.action_low).double()
    statistics = FeatureStatistics(low, low.abs(), low, -low, low, -low, count=9)
    metadata = RobotDatasetMetadata.from_json(env.metadata.to_json())
    object.__setattr__(metadata, "action_statistics", statistics)
    object.__setattr__(metadata, "state_statistics", None)
    options = {"chunk_size": 2, "hidden": 8, "state_dim": metadata.state_dim}
    options["instructions"] = env.instructions
    policy = make_tiny(TinyVLA, action_dim=metadata.action_dim, **options)
    save_checkpoint(root / "p", policy, ModelSpace(metadata, "min_max"))

    def read(seed):
        if seed % 3:
            load_executor(root / "p", metadata=env.metadata)
        else:
            load_policy(root / "p" / "policy")

    read(0)
    read(1)
    outcomes = Outcomes(root.parent)
    damage = {"p/**/*.json": damaged_json, "p/**/*.pt": damaged_bytes}
    damage_files(root, damage, 250, read, outcomes)
    outcomes.check(250, refused=120)


def test_recordings(root):
    env = TabletopEnv(2, image_size=16, seed=0)
    steps = env.rollout(3, env.make_expert(), break_when_any_done=False)
    writer = LeRobotWriter(
        root / "w", metadata=env.metadata, instructions=env.instructions, images="png"
    )
    writer.add_episode(steps[0])
    writer.release()
    shutil.copytree(root / "w", root / "whole")

    def read(seed):
        shutil.copytree(root / "w", root / "r")
        try:
            LeRobotWriter.resume(root / "r").close()
        finally:
            shutil.rmtree(root / "r")

    read(0)
    outcomes = Outcomes(root.parent)
    damage = {"w/recording/**/*.json": damaged_json, "w/**/*.parquet": damaged_table}
    damage_files(root, damage, 90, read, outcomes)
    outcomes.check(90, refused=40)


def test_texts_of_json(root):
    records = [EpisodeRecord(i, "pick", i % 2 == 0, 1.0, 5) for i in range(3)]
    result = EvaluationResult(records, {"purpose": "evaluation", "seed": 1})
    statistics = FeatureStatistics.from_samples(torch.rand(5, 2))
    metadata = RobotDatasetMetadata(
        "d",
        action_names=("x", "y"),
        action_statistics=statistics,
        action_low=(0.0, 0.0),
        action_high=(1.0, 1.0),
        control_frequency_hz=10.0,
    )
    readers = {
        EvaluationResult.from_json: result.to_json(),
        Comparison.from_json: compare(result, result).to_json(),
        RobotDatasetMetadata.from_json: metadata.to_json(),
        InstructionTable.from_json: InstructionTable(["pick", "place"]).to_json(),
        lambda text: FeatureStatistics.from_dict(json.loads(text)): json.dumps(
            statistics.to_dict()
        ),
    }
    outcomes = Outcomes(root.parent)
    for seed in range(100):
        for read, text in readers.items():
            value = damaged_value(json.loads(text), random.Random(seed))
            damaged = json.dumps(value)
            outcomes.read(lambda r=read, d=damaged: str(r(d)), (seed, damaged))
    outcomes.check(500, refused=250)
