from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from tiny_options import make_tiny

from torchrl_vla.policies import BackboneConfig, TinyTokenVLA, TinyVLA
from torchrl_vla.policies.policy_folder import read_policy
from torchrl_vla.schema import InstructionTable, SchemaError
from torchrl_vla.tokenizers import UniformActionTokenizer

SMALL = {"action_dim": 2, "chunk_size": 3, "hidden": 16, "text_max_bytes": 16}


def batch(camera: str | None = None) -> TensorDict:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    return TensorDict(
        {
            "observation": {
                "image": {camera: image} if camera else image,
                "state": torch.randn(2, 4),
            },
            "language_instruction": NonTensorStack("pick", "place"),
        },
        [2],
    )


def tokenizer(bins: int = 5, high: float = 1.0) -> UniformActionTokenizer:
    return UniformActionTokenizer(bins, low=-1.0, high=high)


def tiny(**options) -> TinyVLA:
    return make_tiny(TinyVLA, **{**SMALL, "state_dim": 4, **options})


def test_a_policy_answers_as_before_after_a_round_trip(tmp_path):
    table = InstructionTable(["pick", "place"])
    policy = tiny(cameras=("front",), depth=1, text_dim=8, instructions=table)
    policy.to_folder(tmp_path / "deep" / "folder")
    other = TinyVLA.from_folder(str(tmp_path / "deep" / "folder"))
    td = batch("front")
    assert torch.equal(other(td.clone())["action_chunk"], policy(td)["action_chunk"])
    assert other.config == policy.config
    assert other.instructions == table
    ids = td.set("language_instruction", table.encode(["pick", "place"]))
    assert torch.equal(other(ids.clone())["action_chunk"], policy(td)["action_chunk"])


def test_keys_and_absent_inputs_come_back(tmp_path):
    policy = tiny(
        cameras=(),
        state_dim=None,
        state_key=None,
        instruction_key=("task", "text"),
    )
    policy.to_folder(tmp_path)
    assert TinyVLA.from_folder(tmp_path).in_keys == [("task", "text")]
    assert TinyVLA.from_folder(tmp_path).instructions is None


def test_a_token_policy_comes_back_with_the_tokenizer_it_was_trained_with(tmp_path):
    policy = make_tiny(
        TinyTokenVLA,
        **SMALL,
        action_tokenizer=tokenizer(),
        backbone=BackboneConfig(state_dim=4),
    )
    policy.to_folder(tmp_path)
    other = TinyTokenVLA.from_folder(tmp_path)
    td = batch()
    expected, got = policy(td.clone()), other(td)
    for key in policy.out_keys:
        assert torch.equal(got[key], expected[key])


def test_a_policy_of_another_class_is_refused_by_name(tmp_path):
    tiny().to_folder(tmp_path)
    with pytest.raises(
        SchemaError,
        match=r"^TinyTokenVLA\.from_folder: expected a TinyTokenVLA in .*, got a "
        r"TinyVLA\. Read it with TinyVLA\.from_folder, or any policy with load_policy",
    ):
        TinyTokenVLA.from_folder(tmp_path)


@pytest.mark.parametrize("make_folder", [True, False])
def test_a_folder_without_a_policy_is_refused(tmp_path, make_folder):
    folder = tmp_path if make_folder else tmp_path / "none"
    with pytest.raises(
        FileNotFoundError,
        match=r"^TinyVLA\.from_folder: expected config\.json in .*, got none\. Write "
        r"the policy with save_policy; an interrupted write leaves none either\.$",
    ):
        TinyVLA.from_folder(folder)


def test_a_state_dim_that_the_first_call_found_is_written(tmp_path):
    policy = make_tiny(TinyVLA, **SMALL)
    with pytest.raises(
        SchemaError,
        match=r"^save_policy\(TinyVLA\): expected complete parameters, got some whose "
        r"size is still unknown\. Build the policy with state_dim, or call it once\.$",
    ):
        policy.to_folder(tmp_path / "early")
    assert not (tmp_path / "early").exists()
    td = batch()
    expected = policy(td.clone())["action_chunk"]
    policy.to_folder(tmp_path)
    assert TinyVLA.from_folder(tmp_path).backbone_config.state_dim == 4
    assert torch.equal(TinyVLA.from_folder(tmp_path)(td)["action_chunk"], expected)


def test_writing_again_replaces_all_of_the_old_policy(tmp_path):
    tiny(instructions=InstructionTable(["pick"])).to_folder(tmp_path)
    second = tiny(chunk_size=7)
    second.to_folder(tmp_path)
    other = TinyVLA.from_folder(tmp_path)
    assert other.chunk_size == 7
    assert other.instructions is None
    td = batch()
    assert torch.equal(other(td.clone())["action_chunk"], second(td)["action_chunk"])


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    first = tiny()
    first.to_folder(tmp_path)

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        tiny(chunk_size=7).to_folder(tmp_path)
    assert TinyVLA.from_folder(tmp_path).chunk_size == first.chunk_size
    assert not list(tmp_path.glob("*partial*"))
    with pytest.raises(OSError, match="the disk is full"):
        tiny(chunk_size=7).to_folder(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="an interrupted write leaves none"):
        TinyVLA.from_folder(tmp_path / "new")


def test_weights_that_are_code_are_not_run(tmp_path):
    policy = tiny()
    policy.to_folder(tmp_path)
    torch.save({"weights": policy}, tmp_path / "weights.pt")
    with pytest.raises(Exception, match=r"Weights only load failed"):
        TinyVLA.from_folder(tmp_path)


def test_weights_of_another_size_are_refused(tmp_path):
    tiny().to_folder(tmp_path)
    torch.save(tiny(hidden=8).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(
        SchemaError,
        match=r"^TinyVLA\.from_folder: expected weights of the policy that config"
        r"\.json describes, got others in .*weights\.pt\. PyTorch says: "
        r"(.|\n)*size mismatch",
    ):
        read_policy(tmp_path, TinyVLA)
