"""Faults of instructions and tokens, planted around a small SmolVLM."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from sending import Sending
from tensordict import NonTensorStack
from tiny_vlms import tiny_vlm_folder
from torchrl.envs import Compose

from torchrl_vla.data import collect
from torchrl_vla.diagnosis import diagnose
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.recipes import VLMSettings, make_space, make_vlm_policy
from torchrl_vla.schema import InstructionTable
from torchrl_vla.tokenizers import FlatActionTokenizer, UniformActionTokenizer
from torchrl_vla.transforms import ActionTokenizerTransform

HEADS = ("flow", "parallel", "tokens")
CHUNK = 3
TEXT = "language_instruction"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    env = TabletopEnv(4, image_size=16)
    folder = tmp_path_factory.mktemp("reach") / "dataset"
    return collect(env, env.make_expert(), 6, folder=folder, progress=False)


@pytest.fixture(scope="module")
def policies(data):
    settings = VLMSettings(
        tiny_vlm_folder("smolvlm"), text_length=16, num_steps=2, expert_hidden=16
    )
    torch.manual_seed(0)
    return {
        head: make_vlm_policy(data, settings, chunk_size=CHUNK, head=head)
        for head in HEADS
    }


def clean(policies, data, head):
    space = make_space(data.metadata, head)
    return {"policy": policies[head], "dataset": data, "space": space}


@pytest.mark.parametrize("head", HEADS)
def test_nothing_is_found_on_the_clean_chain(policies, data, head):
    diagnosis = diagnose(**clean(policies, data, head))
    assert diagnosis.findings == (), str(diagnosis)
    assert ("action tokens" in diagnosis.without_data) == (head != "tokens")
    assert "instruction text" not in diagnosis.without_data


def all_are(text):
    return lambda ids, table: NonTensorStack(*[text] * len(ids))


def rewritten(change):
    return lambda ids, table: NonTensorStack(*map(change, table.decode(ids)))


INSTRUCTIONS = {
    "another text": (all_are("do it"), "'reach the .* block' in training is 'do it'"),
    "no text": (all_are(""), "'reach the .* block' in training is '' in acting"),
    "capitals": (
        rewritten(str.capitalize),
        "'reach the .* block' in training is 'Reach the .* block'",
    ),
    "a newline behind": (
        rewritten(lambda text: f"{text}\n"),
        r"'reach the .* block' in training is 'reach the .* block\\n'",
    ),
    "a prompt in front": (
        rewritten(lambda text: f"What should the robot do to {text}?"),
        r"is 'What should the robot do to reach the .* block\?' in acting",
    ),
    "cut off": (rewritten(lambda text: text[:9]), "block' in training is 'reach the'"),
    "the text of another episode": (
        lambda ids, table: ids.roll(1),
        "'reach the .* block' in training is 'reach the .* block' in acting",
    ),
}


@pytest.mark.parametrize("head", ["flow", "tokens"])
@pytest.mark.parametrize("fault", INSTRUCTIONS)
def test_a_fault_of_the_instruction_is_named(policies, data, head, fault):
    change, message = INSTRUCTIONS[fault]

    def observe(tensordict):
        return tensordict.set(TEXT, change(tensordict[TEXT], data.instructions))

    diagnosis = diagnose(**clean(policies, data, head), observe=observe)
    assert diagnosis.stages == ("instruction text",), str(diagnosis)
    assert re.search(message, diagnosis.first.message), diagnosis.first


def test_an_instruction_that_the_policy_does_not_know_is_named(policies, data):
    def observe(tensordict):
        ids = InstructionTable(["open the drawer"]).ids.repeat(len(tensordict))
        return tensordict.set(TEXT, ids)

    diagnosis = diagnose(**clean(policies, data, "flow"), observe=observe)
    assert diagnosis.stages == ("instruction text",), str(diagnosis)


def test_a_dataset_of_other_texts_is_named(policies, data):
    other = copy.copy(data)
    other.frames = data.frames.copy()
    table = InstructionTable(["push the block"])
    other.frames[TEXT] = table.ids.expand(len(data))
    other.instructions = table
    other.storage = type(data.storage)(other.frames)
    chain = {**clean(policies, data, "flow"), "dataset": other}
    diagnosis = diagnose(**chain)
    assert diagnosis.stages == ("instruction text",), str(diagnosis)


def bins(count, reach):
    steps = UniformActionTokenizer(count, low=-reach, high=reach)
    return FlatActionTokenizer(steps, CHUNK, 2)


def tokenized_by(tokenizer):
    def plant(policies, data):
        chain = clean(policies, data, "tokens")
        targets = chain["space"].transforms(CHUNK, data.storage)
        code = ActionTokenizerTransform(tokenizer, in_key="action_chunk")
        return {**chain, "training": Compose(*targets, code)}

    return plant


def decoded_by(tokenizer):
    def plant(policies, data):
        chain = clean(policies, data, "tokens")
        policy = copy.deepcopy(chain["policy"])
        policy.action_tokenizer = tokenizer
        return {**chain, "policy": policy}

    return plant


def shifted(policies, data):
    chain = clean(policies, data, "tokens")
    policy = chain["space"].robot_policy(chain["policy"])
    late = Sending(policy, lambda chunk: chunk.roll(1, -2))
    return {**chain, "policy": MultiStepActorWrapper(late)}


TOKENS = {
    "fewer bins in training": (
        tokenized_by(bins(16, 1.0)),
        "action tokens",
        "one token stands for two actions",
    ),
    "more bins in training": (
        tokenized_by(bins(512, 1.0)),
        "action tokens",
        r"expected tokens in \[0, 256\)|one token stands for two actions",
    ),
    "another range in training": (
        tokenized_by(bins(256, 2.0)),
        "action tokens",
        "one token stands for two actions",
    ),
    "bins that do not reach the data": (
        decoded_by(bins(256, 0.3)),
        "action tokens",
        r"its tokens reach -0\.2988\.\.0\.2988",
    ),
    "tokens decoded one step late": (shifted, "action representation", "actions"),
}


@pytest.mark.parametrize("fault", TOKENS)
def test_a_fault_of_the_tokens_is_named(policies, data, fault):
    plant, stage, message = TOKENS[fault]
    diagnosis = diagnose(**plant(policies, data))
    assert diagnosis.first is not None
    assert diagnosis.first.stage == stage, str(diagnosis)
    assert re.search(message, diagnosis.first.message), diagnosis.first
