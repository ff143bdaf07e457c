"""The same training with accelerate, on each rank, and without it, alone."""

import torch
from ranked_trainings import make_policy, make_rows

from torchrl_vla.distributed import Ranks, TotalLoss
from torchrl_vla.objectives import BCLoss


def _make():
    policy = make_policy("chunk")
    weights = [p for p in policy.parameters() if p.requires_grad]
    loss = TotalLoss(BCLoss(policy, loss_function="l2"))
    rows = make_rows()
    rows["action_is_pad"] = torch.zeros_like(rows["action_is_pad"])
    rows["action_chunk"] = rows["action_chunk"].clamp(-3, 3)
    return policy, loss, torch.optim.AdamW(weights, lr=0.1), rows


def train_by_accelerate():
    """Return the weights after three steps on every other row."""
    from accelerate import Accelerator

    policy, loss, optimizer, rows = _make()
    first = make_policy("chunk").state_dict()
    accelerator = Accelerator(cpu=True)
    loss, optimizer = accelerator.prepare(loss, optimizer)
    share = rows[Ranks.current().rank :: Ranks.current().count]
    for _ in range(3):
        accelerator.backward(loss(share.copy()))
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(policy.layer.weight, first["layer.weight"])
    return policy.state_dict()


def train_plainly():
    """Return the weights after three steps on all rows."""
    policy, loss, optimizer, rows = _make()
    for _ in range(3):
        loss(rows.copy()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy.state_dict()
