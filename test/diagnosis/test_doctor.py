from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from sending import Sending
from tensordict import NonTensorStack
from torch import nn
from torch.nn.functional import interpolate
from torchrl.envs import Compose

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.diagnosis import STAGES, Diagnosis, Finding, diagnose
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import (
    AsyncExecutor,
    MultiStepActorWrapper,
    RealTimeChunking,
    TemporalEnsemble,
)
from torchrl_vla.recipes import (
    make_policy,
    make_space,
    make_training_transform,
    save_checkpoint,
)
from torchrl_vla.schema import FeatureStatistics, InstructionTable
from torchrl_vla.spaces import ModelSpace
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


def shorter_targets(chain):
    policy = copy.deepcopy(chain.policy)
    policy.chunk_size = CHUNK - 1
    return chain.trained_with(
        make_training_transform(policy, chain.space, chain.data.storage)
    )


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
        lambda c: c.sending(
            lambda x: x - torch.cat([x[..., :1, :] * 0, x], -2)[..., :-1, :]
        ),
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
    absent = ("observation history",)
    if head != "tokens":
        absent = ("action tokens", *absent)
    assert diagnosis.without_data == absent
    count = len(STAGES) - len(absent)
    assert f"No difference at any of {count} stages." in str(diagnosis)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(policies, data, head, fault):
    plant, stage, message = FAULTS[fault]
    diagnosis = diagnose(**plant(Chain(policies[head], data, head)))
    assert diagnosis.first is not None
    assert diagnosis.stages == (stage,), str(diagnosis)
    assert re.search(message, diagnosis.first.message), diagnosis.first
    assert diagnosis.exit_code == 1


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (64, r"expected tokens in \[0, 21\), got \d\d"),
        # Token 15: 15.5 * (2 / 16 - 2 / 21).
        (16, "one token stands for two actions, 0.4613 apart"),
    ],
)
def test_another_tokenizer_in_training_is_named(policies, data, bins, message):
    chain = Chain(policies["tokens"], data, "tokens")
    tokenizer = UniformActionTokenizer(bins, low=-1.0, high=1.0)
    code = ActionTokenizerTransform(tokenizer, in_key="action_chunk")
    targets = chain.space.transforms(CHUNK, data.storage)
    diagnosis = diagnose(**chain.clean(), training=Compose(*targets, code))
    assert diagnosis.stages == ("action tokens",)
    assert re.search(message, diagnosis.first.message), diagnosis.first


def test_a_tokenizer_that_does_not_reach_the_data_is_named(policies, data):
    chain = Chain(policies["tokens"], data, "tokens")
    vocabulary = chain.policy.vocab_size
    narrow = UniformActionTokenizer(vocabulary, low=-0.3, high=0.3)
    chain.policy.action_tokenizer = narrow
    diagnosis = diagnose(**chain.clean())
    assert diagnosis.stages == ("action tokens",)
    # The middle of the outermost of 21 bins: 0.3 - 0.6 / 21 / 2.
    assert "its tokens reach -0.2857..0.2857" in diagnosis.first.message


class Remembering(nn.Module):
    """A user's policy that reads ``history_size`` states."""

    chunk_size, action_dim, history_size = CHUNK, 2, 3
    in_keys = [("observation_history", "state")]

    def __init__(self, provided=3):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.provided = provided

    def make_environment_transform(self):
        return Compose(*[ObservationHistory(self.provided)] if self.provided else [])

    def forward(self, tensordict):
        state = tensordict["observation_history", "state"]
        return state[..., -1:, :2].expand(*state.shape[:-2], CHUNK, 2)


@pytest.mark.parametrize(
    ("provided", "message"),
    [
        (3, None),
        (2, "training reads 3 observations, acting has 2"),
        (0, "training reads 3 observations, acting has 0"),
    ],
)
def test_a_missing_or_short_history_is_named(data, provided, message):
    diagnosis = diagnose(Remembering(provided), data)
    if message is None:
        assert diagnosis.findings == ()
    else:
        assert diagnosis.stages == ("observation history",)
        assert message in diagnosis.first.message


def test_a_checkpoint_and_its_dataset_and_environment_agree(policies, data, tmp_path):
    for head in HEADS:
        chain = Chain(policies[head], data, head)
        folder = save_checkpoint(tmp_path / head, chain.policy, chain.space)
        diagnosis = diagnose(folder, data, TabletopEnv(4, image_size=16, seed=5))
        assert diagnosis.findings == ()


def test_an_environment_that_differs_is_named(policies, data, tmp_path):
    chain = Chain(policies["regression"], data, "regression")
    folder = save_checkpoint(tmp_path / "policy", chain.policy, chain.space)

    def stages(env):
        return diagnose(folder, data, env).stages

    def declaring(**fields):
        env = TabletopEnv(4, image_size=16)
        env.metadata = replace(env.metadata, **fields)
        return env

    assert stages(TabletopEnv(4, image_size=24)) == ("image size",)
    assert stages(declaring(control_frequency_hz=5.0)) == ("control rate",)
    assert stages(declaring(action_units="deg")) == ("units",)
    assert stages(declaring(action_reference="absolute")) == ("action representation",)
    bounds = {"action_low": (-0.01, -0.01), "action_high": (0.01, 0.01)}
    assert stages(declaring(**bounds)) == ("units",)
    bounds = {"action_low": (-0.5, -0.5), "action_high": (0.5, 0.5)}
    assert stages(declaring(**bounds)) == ("action bounds",)


def test_a_tinted_table_tells_the_channel_order_of_an_environment(
    policies, data, tmp_path
):
    frames = data.frames.clone()
    tint = torch.tensor([200, 120, 40], dtype=torch.uint8)[:, None, None]
    frames[IMAGE] = tint.expand(frames[IMAGE].shape).clone()
    tinted = copy.copy(data)
    tinted.__init__(frames, data.metadata, data.instructions)
    chain = Chain(policies["regression"], data, "regression")

    class Tinted(TabletopEnv):
        colour = tint

        def _reset(self, tensordict=None, **options):
            out = super()._reset(tensordict, **options)
            return out.set(IMAGE, self.colour.expand(out[IMAGE].shape).clone())

    same, swapped = Tinted(4, image_size=16), Tinted(4, image_size=16)
    swapped.colour = tint.flip(0)
    options = {"space": chain.space}
    assert diagnose(chain.policy, tinted, same, **options).stages == ()
    found = diagnose(chain.policy, tinted, swapped, **options)
    assert found.stages == ("channel order",)


def test_findings_come_in_the_order_of_the_stages(policies, data):
    chain = Chain(policies["regression"], data, "regression")
    planted = {**chain.observing(IMAGE, lambda x: x.flip(-3))}
    planted["space"] = chain.declaring(control_frequency_hz=30.0)["space"]
    diagnosis = diagnose(**planted)
    assert diagnosis.stages == ("channel order", "control rate")
    assert diagnosis.first.stage == "channel order"
    text = str(diagnosis)
    assert "They part at: channel order" in text
    assert "Reverse the channels before the policy: images are RGB." in text


def test_the_json_holds_findings_error_and_latency(policies, data):
    planted = FAULTS["BGR"][0](Chain(policies["regression"], data, "regression"))
    first, second = data.split(0.5)
    diagnosis = diagnose(**{**planted, "dataset": first}, held_out=second)
    values = json.loads(diagnosis.to_json())
    assert values["parity"] is False
    assert values["findings"][0]["stage"] == "channel order"
    assert values["findings"][0]["remedy"] == STAGES["channel order"]
    assert values["error"]["held_out"] is True
    assert values["error"]["episodes"] == 3
    assert [row["name"] for row in values["error"]["dimensions"]] == ["dx", "dy"]
    assert len(values["error"]["positions"]) == CHUNK
    assert values["latency"]["rate_hz"] == 10.0
    assert values["latency"]["call_s"] > 0


def test_the_policy_and_its_mode_are_as_they_were(policies, data):
    chain = Chain(policies["flow"], data, "flow")
    policy = chain.policy.train()
    before = copy.deepcopy(policy.state_dict())
    diagnose(**chain.clean())
    assert policy.training
    assert not policy._forward_hooks
    assert not policy._forward_pre_hooks
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_empty_diagnosis_is_clean():
    assert Diagnosis((), 1).exit_code == 0
    finding = Finding("units", "57.3 x")
    assert Diagnosis((finding,), 1).exit_code == 1


def test_an_environment_that_sends_bgr_is_named(policies, data):
    class Swapped(TabletopEnv):
        def _reset(self, tensordict=None, **options):
            out = super()._reset(tensordict, **options)
            return out.set(IMAGE, out[IMAGE].flip(-3))

    chain = Chain(policies["regression"], data, "regression")
    found = diagnose(**chain.clean(), env=Swapped(4, image_size=16))
    assert found.stages == ("channel order",)
    assert "with reversed channels" in found.first.message


@pytest.fixture
def checkpoint(policies, data, tmp_path):
    chain = Chain(policies["regression"], data, "regression")
    return save_checkpoint(tmp_path / "policy", chain.policy, chain.space)


def test_a_dataset_of_another_size_than_the_policys_is_named(checkpoint, tmp_path):
    env = TabletopEnv(4, image_size=24)
    folder = tmp_path / "other"
    other = collect(env, env.make_expert(), 6, folder=folder, progress=False)
    diagnosis = diagnose(checkpoint, other)
    assert diagnosis.first.stage == "image size"
    assert "TinyBackbone: expected images" in diagnosis.first.message
    assert diagnosis.error is None


def test_a_dataset_with_texts_that_the_policy_does_not_know_is_named(
    checkpoint, tmp_path
):
    env = TabletopEnv(4, image_size=16, tasks=("push",))
    folder = tmp_path / "other"
    other = collect(env, env.make_expert(), 4, folder=folder, progress=False)
    diagnosis = diagnose(checkpoint, other)
    assert "instruction text" in diagnosis.stages


def test_a_space_that_is_not_the_policys_is_named(checkpoint):
    space = checkpoint / "model_space.json"
    space.write_text(space.read_text().replace("mean_std", "min_max"))
    env = TabletopEnv(4, image_size=16)
    other = collect(
        env, env.make_expert(), 2, folder=checkpoint / "data", progress=False
    )
    diagnosis = diagnose(checkpoint, other)
    assert diagnosis.stages == ("normalization",)
    assert "SpaceError" not in diagnosis.first.message
    assert "load_checkpoint: expected the space of the policy" in (
        diagnosis.first.message
    )


def converted(data, actions):
    """Return the dataset with other actions, and statistics of them."""
    frames = data.frames.clone()
    frames["action"] = actions
    metadata = replace(data.metadata, **frame_statistics(frames))
    return DemonstrationDataset(frames, metadata, data.instructions)


def test_undeclared_data_in_another_reference_or_unit_are_named(policies, data):
    chain = Chain(policies["regression"], data, "regression")
    bare = {"action_reference": None, "action_units": None}
    metadata = replace(data.metadata, **bare, action_low=None, action_high=None)
    space = ModelSpace(metadata)
    state = data.frames[STATE][:, :2]
    for actions, stage, text in (
        (data.frames["action"] + state, "action representation", "(relative)"),
        (data.frames["action"] * 57.29578, "units", "degrees against radians"),
    ):
        other = converted(data, actions)
        other.metadata = replace(
            other.metadata, **bare, action_low=None, action_high=None
        )
        diagnosis = diagnose(chain.policy, other, space=space)
        assert diagnosis.stages == (stage,), str(diagnosis)
        assert text in str(diagnosis)


def test_an_environment_may_ask_for_more_but_not_for_other_texts(checkpoint, data):
    env = TabletopEnv(4, image_size=16)
    seen = data.select_episodes(data.episodes)
    seen.instructions = InstructionTable(list(env.instructions.texts)[:2])
    keep = torch.isin(seen.frames["language_instruction"], seen.instructions.ids)
    seen = DemonstrationDataset(seen.frames[keep], data.metadata, seen.instructions)
    assert diagnose(checkpoint, seen, env).stages == ()
    env.instructions = InstructionTable(["reach it", *env.instructions.texts[1:]])
    found = diagnose(checkpoint, seen, env)
    assert "instruction text" in found.stages
    assert "reach it" in str(found)


@pytest.mark.parametrize(
    ("executor", "options"),
    [
        (TemporalEnsemble, {"action_reference": "absolute"}),
        (MultiStepActorWrapper, {"replan_interval": 2}),
        (
            RealTimeChunking,
            {
                "replan_interval": 2,
                "inference_delay": 1,
                "action_reference": "absolute",
            },
        ),
        (AsyncExecutor, {"request_at": 1, "action_reference": "absolute"}),
    ],
)
def test_every_executor_is_clean(policies, data, executor, options):
    chain = Chain(policies["flow"], data, "flow")
    acting = chain.space.executor(chain.policy, executor, **options)
    diagnosis = diagnose(**{**chain.clean(), "policy": acting})
    assert diagnosis.findings == (), str(diagnosis)


def test_a_policy_that_reads_no_image_does_not_care_for_the_environments(data):
    frames = data.frames.clone()
    del frames[IMAGE]
    blind = DemonstrationDataset(frames, data.metadata, data.instructions)
    policy = make_policy(blind, chunk_size=CHUNK, hidden=8, depth=1)
    env = TabletopEnv(4, image_size=16)
    diagnosis = diagnose(policy, blind, env, space=ModelSpace(data.metadata))
    assert diagnosis.findings == ()
    assert {"cameras", "image size", "channel order"} <= set(diagnosis.without_data)


def test_a_nan_in_the_data_is_no_difference_of_the_paths(policies, data):
    frames = data.frames.clone()
    frames[STATE][0, 0] = float("nan")
    broken = DemonstrationDataset(frames, data.metadata, data.instructions)
    chain = Chain(policies["regression"], broken, "regression")
    assert "normalization" not in diagnose(**chain.clean()).stages


def test_one_frame_is_enough(policies, data):
    one = DemonstrationDataset(data.frames[:1], data.metadata, data.instructions)
    diagnosis = diagnose(**Chain(policies["regression"], one, "regression").clean())
    assert (diagnosis.findings, diagnosis.frames) == ((), 1)
