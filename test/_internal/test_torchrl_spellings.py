from __future__ import annotations

import inspect

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl import data as their_data
from torchrl import envs as their_envs
from torchrl import modules as their_modules
from torchrl.objectives import ClipPPOLoss

from torchrl_vla import envs, execution, policies, schema, tokenizers, transforms
from torchrl_vla.errors import SettingsError
from torchrl_vla.objectives import ChunkPPOLoss

POLICY = TensorDictModule(
    lambda state: state.unsqueeze(-2).expand(1, 2, 1), ["state"], ["action_chunk"]
)
TOKENIZER = tokenizers.UniformActionTokenizer(4, low=-1.0, high=1.0)
TINY = {
    "action_dim": 2,
    "chunk_size": 3,
    "backbone": policies.BackboneConfig(cameras=(), state_dim=4, hidden=8),
}
STOCHASTIC = policies.TinyTokenVLA(**TINY, action_tokenizer=TOKENIZER)
PAIRS = [
    (
        transforms.ActionChunkTransform,
        their_envs.ActionChunkTransform,
        {"chunk_size": 2},
    ),
    (transforms.ActionScaling, their_envs.ActionScaling, {"loc": 0.0, "scale": 1.0}),
    (
        transforms.ActionTokenizerTransform,
        their_envs.ActionTokenizerTransform,
        {"tokenizer": TOKENIZER},
    ),
    (transforms.SuccessReward, their_envs.SuccessReward, {}),
    (execution.MultiAction, their_envs.MultiAction, {}),
    (
        execution.MultiStepActorWrapper,
        their_modules.MultiStepActorWrapper,
        {"actor": POLICY},
    ),
    (policies.TinyVLA, their_modules.TinyVLA, {"action_dim": 2, "chunk_size": 3}),
    (
        tokenizers.UniformActionTokenizer,
        their_data.UniformActionTokenizer,
        {"num_bins": 4, "low": -1.0, "high": 1.0},
    ),
    (tokenizers.VocabTailActionTokenizer, their_data.VocabTailActionTokenizer, {}),
    (
        schema.RobotDatasetMetadata,
        their_data.RobotDatasetMetadata,
        {"dataset_id": "bridge"},
    ),
    (
        schema.validate_vla_tensordict,
        their_data.validate_vla_tensordict,
        {"tensordict": TensorDict(), "raise_on_error": False},
    ),
    (
        policies.LeRobotPolicyWrapper,
        their_modules.LeRobotPolicyWrapper,
        {"policy": lambda batch: batch["image"], "action_dim": 2, "chunk_size": 3},
    ),
    (envs.ToyVLAEnv, their_envs.ToyVLAEnv, {}),
    (ChunkPPOLoss, ClipPPOLoss, {"actor_network": STOCHASTIC}),
]
CASES = [
    (ours, given, name, parameter.default)
    for ours, theirs, given in PAIRS
    for name, parameter in inspect.signature(
        theirs.__init__ if inspect.isclass(theirs) else theirs
    ).parameters.items()
    if name not in inspect.signature(ours).parameters
    and name != "self"
    and parameter.kind is not parameter.VAR_KEYWORD
]


#: Fields of a record of ours.
RENAMED = {
    *("action_key", "chunk_key", "pad_key", "done_key", "action_keys", "chunk_keys"),
    *("init_key", "hidden_dim", "text_dim"),
}
#: TorchRL's defaults that have no counterpart.
UNLIKE = {
    *("stack_rewards", "default_interaction_type", "log_probs_mode", "vocab_size"),
    *("text_vocab", "image_shape", "instruction", "render_size", "group_id_offset"),
    *("samples_mc_entropy", "gripper_binarize_threshold"),
}


@pytest.mark.parametrize(
    ("ours", "given", "name", "default"),
    CASES,
    ids=[f"{ours.__name__}-{name}" for ours, _, name, _ in CASES],
)
def test_an_argument_of_torchrls_class_is_taken_or_its_replacement_named(
    ours, given, name, default
):
    message = (
        rf"^{ours.__name__}: expected no argument '{name}', got .+\. Instead: .+\.$"
    )
    if default is not inspect.Parameter.empty and name not in UNLIKE:
        ours(**given, **{name: default})
    if name not in RENAMED:
        with pytest.raises(SettingsError, match=message):
            ours(**given, **{name: "of another meaning"})


@pytest.mark.parametrize("name", sorted(UNLIKE))
def test_what_torchrl_does_by_default_and_we_do_not_is_named(name):
    ((ours, given, default),) = {
        (ours, tuple(given.items()), default)
        for ours, given, known, default in CASES
        if known == name
    }
    with pytest.raises(SettingsError, match=rf"expected no argument '{name}', got"):
        ours(**dict(given), **{name: default})


def test_the_cases_cover_what_torchrl_has():
    assert len(CASES) > 50


def test_a_renamed_argument_is_a_field_of_our_record():
    chunks = transforms.ActionChunkTransform(2, done_key="end", action_key="arm")
    assert chunks.done_key == ("next", "end")
    assert chunks.action_key == "arm"
    executor = execution.MultiStepActorWrapper(POLICY, init_key=["begins"])
    assert executor.keys.is_init == "begins"
    sizes = {"action_dim": 2, "chunk_size": 3}
    policy = policies.TinyVLA(**sizes, hidden_dim=16, text_dim=8)
    assert policy.config["backbone"] == policies.BackboneConfig(hidden=16, text_dim=8)


class OneKey(policies.ContinuousVLAWrapper):
    """A policy of a user's own that hands TorchRL's names on."""

    def __init__(self, **keys):
        super().__init__(action_dim=2, chunk_size=3, **keys)

    def predict_chunk(self, tensordict):
        return torch.zeros(*tensordict.batch_size, 3, 2)


def test_the_base_class_takes_torchrls_names_of_what_is_read():
    policy = OneKey(image_key=None, state_key=("robot", "q"), instruction_key=None)
    assert policy.in_keys == [("robot", "q")]
    assert policy.keys == schema.ObservationKeys(None, ("robot", "q"), None)


def test_standard_normal_is_what_scaling_to_the_bounds_means():
    env = their_envs.TransformedEnv(
        envs.ToyVLAEnv(), transforms.ActionScaling(standard_normal=True)
    )
    theirs = their_envs.TransformedEnv(
        envs.ToyVLAEnv(), their_envs.ActionScaling(standard_normal=True)
    )
    assert torch.equal(env.action_spec.space.low, theirs.action_spec.space.low)


def test_several_keys_and_keys_named_twice_are_refused():
    with pytest.raises(SettingsError, match=r"one key in action_keys, got \['a'"):
        execution.MultiStepActorWrapper(POLICY, action_keys=["a", "b"])
    message = (
        r"expected keys= alone, got \['init_key'\] as .* in ExecutorKeys\(\.\.\.\)"
    )
    with pytest.raises(SettingsError, match=message):
        execution.MultiStepActorWrapper(
            POLICY, keys=execution.ExecutorKeys(), init_key="begins"
        )


def test_an_argument_that_nobody_knows_is_pythons_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunksize'"):
        transforms.ActionChunkTransform(2, chunksize=2)


def test_the_signature_remains_ours():
    shown = inspect.signature(transforms.ActionChunkTransform).parameters
    assert list(shown) == ["chunk_size", "storage", "first_step", "keys"]
