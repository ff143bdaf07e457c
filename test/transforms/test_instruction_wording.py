from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.schema import InstructionTable, MissingKeyError, Wordings
from torchrl_vla.transforms import InstructionWording

WORDINGS = Wordings({"pick": ["grasp", "take"], "place": ["put", "set down"]})
IDS = InstructionTable(["pick", "place"]).ids


def test_each_frame_gets_a_wording_of_its_own_and_the_data_stays():
    data = TensorDict(language_instruction=IDS.repeat(100), batch_size=[200])
    out = InstructionWording(WORDINGS)(data)
    texts = WORDINGS.table.decode(out["language_instruction"])
    assert set(texts[::2]) == {"grasp", "take"}
    assert set(texts[1::2]) == {"put", "set down"}
    assert torch.equal(data["language_instruction"], IDS.repeat(100))


def test_the_same_seed_draws_the_same_wordings():
    data = TensorDict(language_instruction=IDS.repeat(10), batch_size=[20])
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(InstructionWording(WORDINGS)(data)["language_instruction"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_text_is_refused_with_the_remedy():
    data = TensorDict(batch_size=[2])
    with pytest.raises(MissingKeyError, match=r"int64 ids at .*encode"):
        InstructionWording(WORDINGS)(data)
