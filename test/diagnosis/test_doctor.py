from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from tensordict import NonTensorStack
from torch import nn
from torch.nn.functional import interpolate
from torchrl.envs import Compose, TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.diagnosis import STAGES, Diagnosis, Finding, diagnose
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiStepActorWrapper, PolicyWrapper
from torchrl_vla.recipes import (
    make_policy,
    make_space,
    make_training_transform,
    save_checkpoint,
)
from torchrl_vla.schema import FeatureStatistics, SchemaError
from torchrl_vla.spaces import ModelSpace, chunk_targets
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import ActionTokenizerTransform, ObservationHistory

IMAGE, STATE = ("observation", "image"), ("observation", "state")
HEADS = ("regression", "tokens", "flow")
CHUNK = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    env = TabletopEnv(4, image_size=16)
    folder = tmp_path_factory.mktemp("reach") / "dataset"
    return collect(env, env.make_expert(), 6, folder=folder, progress=False)


@pytest.fixture(scope="module")
def policies(data):
    options = {"chunk_size": CHUNK, "hidden": 16, "depth": 1}
    return {head: make_policy(data, head=head, **options) for head in HEADS}


def changed(key, change):
    """Return what a deployment does to one entry of an observation."""
    return lambda td: td.set(key, change(td[key]))


class Sending(PolicyWrapper):
    """A deployment that changes the chunk on its way to the robot."""

    def __init__(self, policy, change):
        super().__init__(policy)
        self.change = change

    def forward(self, tensordict):
        out = self.policy(tensordict)
        return out.set("action_chunk", self.change(out["action_chunk"]))


class Chain:
    """A policy, what it was trained in, and the ways to break it."""

    def __init__(self, policy, data, head):
        self.policy, self.data, self.head = copy.deepcopy(policy), data, head
        self.space = make_space(data.metadata, head)

    def clean(self):
        return {"policy": self.policy, "dataset": self.data, "space": self.space}

    def observing(self, key, change):
        return {**self.clean(), "observe": changed(key, change)}

    def sending(self, change):
        robot_policy = Sending(self.space.robot_policy(self.policy), change)
        return {**self.clean(), "policy": MultiStepActorWrapper(robot_policy)}

    def declaring(self, **fields):
        space = replace(self.space, metadata=replace(self.data.metadata, **fields))
        return {**self.clean(), "space": space}

    def with_mode(self, mode):
        executor = ModelSpace(self.data.metadata, mode).executor(self.policy)
        return {**self.clean(), "policy": executor}

    def trained_with(self, transform):
        return {**self.clean(), "training": transform}


def other_statistics(chain):
    stats = chain.data.metadata.action_statistics
    moved = {n: getattr(stats, n) * 1.5 + 0.1 for n in ("mean", "min", "max")}
    moved |= {n: getattr(stats, n) * 1.5 + 0.1 for n in ("q01", "q99")}
    moved["std"] = stats.std * 1.5
    return chain.declaring(action_statistics=FeatureStatistics(**moved, count=9))


def other_bins(chain):
    tokenizer = UniformActionTokenizer(64, low=-1.0, high=1.0)
    code = ActionTokenizerTransform(tokenizer, in_key="action_chunk")
    return chain.trained_with(
        Compose(*chain.space.transforms(CHUNK, chain.data.storage), code)
    )


def shorter_targets(chain):
    policy = copy.deepcopy(chain.policy)
    policy.chunk_size = CHUNK - 1
    return chain.trained_with(
        make_training_transform(policy, chain.space, chain.data.storage)
    )


def another_task(ids):
    return torch.where(ids == ids[0], ids[0] + 1, ids)


def in_words(ids):
    return NonTensorStack(*["do it"] * len(ids))


#: Fault, what plants it, the first stage, and a number or name in its message.
FAULTS = {
    "wrong image size": (
        lambda c: c.observing(
            IMAGE, lambda x: interpolate(x.float(), size=24).to(torch.uint8)
        ),
        "image size",
        r"\[3, 16, 16\] in training and \[3, 24, 24\] in acting",
    ),
    "float image 0..255": (
        lambda c: c.observing(IMAGE, lambda x: x.float()),
        "image range",
        r"uint8 in .*, float32 in \d+\.\.2\d\d",
    ),
    "divided by 255 twice": (
        lambda c: c.observing(IMAGE, lambda x: x.float() / 255**2),
        "image range",
        "acting = 0.003922 x",
    ),
    "BGR": (
        lambda c: c.observing(IMAGE, lambda x: x.flip(-3)),
        "channel order",
        "BGR for RGB",
    ),
    "upside down": (
        lambda c: c.observing(IMAGE, lambda x: x.flip(-2)),
        "image orientation",
        "upside down",
    ),
    "frozen camera": (
        lambda c: c.observing(IMAGE, torch.zeros_like),
        "image content",
        "mean difference",
    ),
    "other statistics": (other_statistics, "normalization", r"acting = .*1\.5 x"),
    "other mode": (
        lambda c: c.with_mode("quantile"),
        "normalization",
        r"differ by up to",
    ),
    "other instruction": (
        lambda c: c.observing("language_instruction", in_words),
        "instruction text",
        "is 'do it' in acting",
    ),
    "cumulated actions": (
        lambda c: c.sending(lambda x: x.cumsum(-2)),
        "action representation",
        r"sums of the actions \(absolute\)",
    ),
    "differences of actions": (
        lambda c: c.sending(lambda x: x - torch.cat([x[..., :1, :] * 0, x], -2)[..., :-1, :]),
        "action representation",
        r"\(delta\)",
    ),
    "declared absolute": (
        lambda c: c.declaring(action_reference=("absolute", "absolute")),
        "action representation",
        "action_reference: .*absolute.*delta",
    ),
    "state in degrees": (
        lambda c: c.observing(STATE, lambda x: x * 180 / math.pi),
        "units",
        "degrees against radians",
    ),
    "actions in degrees": (
        lambda c: c.sending(lambda x: x * 180 / math.pi),
        "units",
        r"57\.3 x",
    ),
    "declared degrees": (
        lambda c: c.declaring(action_units=("deg", "deg")),
        "units",
        "action_units: .*deg",
    ),
    "other control rate": (
        lambda c: c.declaring(control_frequency_hz=30.0),
        "control rate",
        r"30\.0 against 10\.0",
    ),
    "cut chunk": (
        lambda c: c.sending(lambda x: x[..., :2, :]),
        "chunk length",
        "policy 3, training 3, acting 2",
    ),
    "other chunk in training": (
        shorter_targets,
        "chunk length",
        "policy 3, training 2, acting 2",
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_nothing_is_found_on_the_clean_chain(policies, data, head):
    diagnosis = diagnose(**Chain(policies[head], data, head).clean())
    assert diagnosis.findings == ()
    assert (diagnosis.first, diagnosis.exit_code) == (None, 0)
    assert diagnosis.frames >= 12
    assert "No difference at any of 16 stages." in str(diagnosis)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(policies, data, head, fault):
    plant, stage, message = FAULTS[fault]
    diagnosis = diagnose(**plant(Chain(policies[head], data, head)))
    assert diagnosis.first is not None
    assert diagnosis.stages == (stage,), str(diagnosis)
    assert re.search(message, diagnosis.first.message), diagnosis.first
    assert diagnosis.exit_code == 1


