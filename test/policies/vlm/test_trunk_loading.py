"""What goes wrong with a model's files or inputs is said by name."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from patch_encoder import PatchEncoder
from tensordict import NonTensorStack, TensorDict
from tiny_vlms import TRUNK, make_observations, tiny_trunk, tiny_vlm_folder

from torchrl_vla.errors import MissingExtraError
from torchrl_vla.policies import load_policy, save_policy
from torchrl_vla.policies.vlm.parallel_head import VLMChunkPolicy
from torchrl_vla.policies.vlm.trunk_config import TrunkConfig
from torchrl_vla.policies.vlm.trunk_loading import load_trunk
from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    SchemaError,
    UnknownInstructionError,
)

CONFIG = TrunkConfig(**TRUNK)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(tiny_vlm_folder("smolvlm"), tmp_path / "model"))


def test_a_folder_without_processor_files_is_named(folder):
    (folder / "processor_config.json").unlink()
    with pytest.raises(SchemaError, match=r"processor.*Copy the model's own files"):
        load_trunk(folder, CONFIG)


def test_a_folder_without_tokenizer_files_is_named(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SchemaError, match=r"tokenizer files in .* got none"):
        load_trunk(folder, CONFIG)


def test_what_is_no_folder_and_no_repo_id_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a folder, a file .* or a repo id"):
        load_trunk("no_such_folder", CONFIG)
    with pytest.raises(FileNotFoundError, match="There is no such folder"):
        load_trunk(tmp_path / "no" / "such", CONFIG)


def test_smollm2_of_its_package_is_a_trunk_that_is_saved_and_read_back(tmp_path):
    blind = TrunkConfig(cameras=(), state_dim=None, text_length=8)
    trunk = load_trunk("smollm2", blind)
    # One layer is enough to write, and 100 million weights less.
    trunk.model.model.layers = trunk.model.model.layers[:1]
    trunk.model.config.num_hidden_layers = 1
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}
    policy = VLMChunkPolicy(trunk, action_dim=2, chunk_size=2).eval()
    folder = save_policy(tmp_path / "policy", policy)
    data = TensorDict({"language_instruction": NonTensorStack("reach", "push")}, [2])
    again = load_policy(folder).eval()
    assert torch.equal(policy(data)["action_chunk"], again(data)["action_chunk"])
    shutil.rmtree(folder)  # 130 MB


def test_a_model_that_reads_text_alone_is_given_no_images():
    with pytest.raises(
        SchemaError, match=r"which reads text alone, for 2 images.*image_"
    ):
        load_trunk(tiny_vlm_folder("causal"), CONFIG)
    load_trunk(tiny_vlm_folder("causal"), TrunkConfig(cameras=()))


def test_a_model_with_eyes_takes_no_others():
    with pytest.raises(SchemaError, match=r"no image_encoder .* has its own"):
        load_trunk(tiny_vlm_folder("smolvlm"), CONFIG, image_encoder=PatchEncoder())


def test_weights_that_would_stay_random_are_named(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.connector.modality_projection.proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SchemaError, match=r"missing_keys.*connector.*stay random"):
        load_trunk(folder, CONFIG)


def test_a_prompt_that_is_too_long_says_by_how_much():
    trunk = tiny_trunk("smolvlm", text_length=8)
    words = " block" * 30
    with pytest.raises(SchemaError, match=r"at most 8 text tokens, got \d\d for"):
        trunk.encode_text(f"push{words}")


def test_a_prompt_beyond_the_context_is_refused_at_once():
    with pytest.raises(SchemaError, match="at most 512 tokens, the model's context"):
        tiny_trunk("smolvlm", text_length=600)


def test_a_processor_that_does_not_take_the_cameras_is_named():
    trunk = tiny_trunk("smolvlm")

    def one_image(text, images):
        raise ValueError("one image per prompt")

    one_image.image_token = "<image>"
    trunk.processor.processor = one_image
    with pytest.raises(SchemaError, match=r"takes 2 images .* one image per prompt"):
        trunk.encode_text("push")


def test_an_image_of_another_size_is_not_resized_silently():
    trunk, data = tiny_trunk("smolvlm"), make_observations(2)
    data["observation", "image", "b"] = torch.zeros(2, 3, 20, 20, dtype=torch.uint8)
    with pytest.raises(
        SchemaError, match=r"\[2, 3, 16, 16\] of 'b'.*got \[2, 3, 20, 20\]"
    ):
        trunk.encode(data)


def test_cameras_are_neither_dropped_nor_made_up():
    trunk, data = tiny_trunk("smolvlm"), make_observations(2)
    del data["observation", "image", "b"]
    with pytest.raises(SchemaError, match=r"cameras \('a', 'b'\).*got cameras \['a'\]"):
        trunk.encode(data)


def test_missing_entries_and_unknown_instructions_are_named():
    trunk, data = (
        tiny_trunk("smolvlm", state="token", state_dim=3),
        make_observations(2),
    )
    table = InstructionTable(["open it"])
    ids = table.encode(["open it"] * 2)
    with pytest.raises(
        UnknownInstructionError, match="a table for the instruction ids"
    ):
        trunk.encode(data.clone().set("language_instruction", ids))
    trunk.instructions = table
    trunk.encode(data.clone().set("language_instruction", ids))
    with pytest.raises(SchemaError, match=r"a float state \[2, 3\].*got .*\[2, 4\]"):
        trunk.encode(data.clone().set(("observation", "state"), torch.zeros(2, 4)))
    with pytest.raises(MissingKeyError, match="expected an instruction"):
        trunk.encode(data.exclude("language_instruction"))


def test_ids_and_texts_are_encoded_alike_and_each_text_once():
    trunk, data = tiny_trunk("smolvlm"), make_observations(3)
    texts = data["language_instruction"]
    expected = trunk.encode(data).states
    trunk.instructions = InstructionTable(texts)
    data.set("language_instruction", trunk.instructions.encode(list(texts)))
    calls = []
    encode = trunk.rows._encode
    trunk.rows._encode = lambda text: calls.append(text) or encode(text)
    trunk.rows._of_text.clear()
    for _ in range(3):
        assert torch.equal(trunk.encode(data).states, expected)
    assert sorted(calls) == sorted(texts)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cameras": ("a",)}, "expected 1 image_sizes"),
        ({"prompt": "go"}, "expected one '{instruction}'"),
        ({"state": "nowhere"}, "expected state of"),
        ({"attention": "flash"}, "expected attention of"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        TrunkConfig(**{**TRUNK, **options})


def test_a_policy_of_another_transformers_version_is_refused(tmp_path):
    policy = VLMChunkPolicy(tiny_trunk("smolvlm"), action_dim=2, chunk_size=4)
    path = save_policy(tmp_path / "policy", policy) / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "transformers": "3.0.2"}))
    with pytest.raises(
        SchemaError, match=r"got 3\.0\.2.*install 'transformers==3\.0\.2'"
    ):
        load_policy(tmp_path / "policy")


def test_a_damaged_or_foreign_folder_is_refused(tmp_path):
    policy = VLMChunkPolicy(tiny_trunk("smolvlm"), action_dim=2, chunk_size=4)
    folder = save_policy(tmp_path / "policy", policy)
    with pytest.raises(
        SchemaError, match=r"expected a VLMGaussianPolicy .* VLMChunkPolicy"
    ):
        type(policy.to_stochastic()).from_folder(folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["arguments"]["action_dim"] = 3
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(SchemaError, match=r"weights of the head .*readout\.out"):
        load_policy(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
        load_policy(folder)


def test_without_transformers_the_extra_is_named(monkeypatch):
    folder = tiny_vlm_folder("smolvlm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[vlm\]"):
        load_trunk(folder, CONFIG)
