"""Check that the first step of a training trains what it should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer

from torchrl_vla.distributed.sharding import local
from torchrl_vla.errors import NoTrainingError, SchemaError

#: Attribute of a module: pattern of its parameters' names to the reason why a training
#: may give them no gradient.
REASONS = "without_gradient"
_SHOWN = 5


class FirstStepCheck:
    """Check that the first optimizer step of a training is no silent no-op.

    Every parameter that requires a gradient has to belong to the optimizer and to have
    a gradient after the first backward pass, unless a module names it in
    ``without_gradient``; and the step has to change weights. Once that has happened,
    the check costs nothing.

    Args:
        caller: opens the error message.
        module: that is trained.
        optimizer: that trains it; it may train other modules too.
        may_be_flat: True = gradients that are all exactly zero are no error but wait
            for another step, e.g. where all episodes of a batch end alike.
    """

    def __init__(
        self,
        caller: str,
        module: nn.Module,
        optimizer: Optimizer,
        may_be_flat: bool = False,
    ) -> None:
        self.caller, self.module, self.optimizer = caller, module, optimizer
        self.may_be_flat = may_be_flat
        self.is_done = False
        self._before: list[tuple[str, nn.Parameter, int, float]] = []

    def after_backward(self) -> None:
        """Check the gradients of the first backward pass.

        Raises:
            NoTrainingError: nothing requires a gradient; a parameter that does got
                none, or does not belong to the optimizer.
        """
        if self.is_done:
            return
        trained = {
            name: p for name, p in self.module.named_parameters() if p.requires_grad
        }
        if not trained:
            raise NoTrainingError(
                f"{self.caller}: expected parameters that require a gradient in "
                f"{type(self.module).__name__}, got none. Call requires_grad_() on "
                "those that are to be trained."
            )
        excused = set(excused_parameters(self.module))
        missing = [
            name
            for name, p in trained.items()
            if p.grad is None and name not in excused
        ]
        if missing:
            raise NoTrainingError(
                f"{self.caller}: expected a gradient for every parameter that requires "
                f"one, got none for {_listed(missing)} after the first backward pass: "
                "the loss does not depend on them, or the path from them is detached "
                "(or sharded so that the backward pass does not reach them). Connect "
                "them; or freeze them with requires_grad_(False); or, if that is as "
                f"it should be, say why in the attribute {REASONS} = "
                "{'name': 'reason'} of the module that holds them."
            )
        known = {id(p) for g in self.optimizer.param_groups for p in g["params"]}
        left_out = [
            name
            for name, p in trained.items()
            if id(p) not in known and name not in excused
        ]
        if left_out:
            raise NoTrainingError(
                f"{self.caller}: expected every parameter that requires a gradient in "
                f"the optimizer, got {_listed(left_out)} outside it. Make the "
                f"{type(self.optimizer).__name__} from the parameters of the module as "
                "it is now, or freeze those with requires_grad_(False)."
            )
        self._before = list(_largest_gradients(trained))

    def after_step(self) -> None:
        """Check that the optimizer step changed weights.

        While a schedule is below its peak, a step that is too small for the weights'
        precision proves nothing, and the next one is checked.

        Raises:
            NoTrainingError: no weight changed.
        """
        if self.is_done:
            return
        self.is_done = any(
            _own_part(p)[index].item() != value for _, p, index, value in self._before
        )
        if self.is_done:
            return
        gradients = [
            _own_part(p.grad) for _, p, _, _ in self._before if p.grad is not None
        ]
        is_flat = not any(gradient.count_nonzero() for gradient in gradients)
        groups = self.optimizer.param_groups
        is_low = any(g["lr"] < g.get("initial_lr", g["lr"]) for g in groups)
        if (is_flat and self.may_be_flat) or (is_low and not is_flat):
            return
        rates = sorted({group["lr"] for group in groups})
        why = "all gradients are 0" if is_flat else f"with lr {rates}"
        raise NoTrainingError(
            f"{self.caller}: expected the first step of "
            f"{type(self.optimizer).__name__} to change weights, got none changed "
            f"of {_listed([name for name, *_ in self._before])}: {why}. Pass a "
            "larger lr or weights in float32, and check that the loss depends on "
            "what the policy reads."
        )


def excused_parameters(module: nn.Module) -> Mapping[str, str]:
    """Return the parameters that may get no gradient, with the reasons.

    Args:
        module: it or a part of it may have ``without_gradient``: a mapping from
            patterns of its own parameters' names to reasons.

    Examples:
        >>> class Head(nn.Linear):
        ...     without_gradient = {"bias": "the targets are centered"}
        >>> excused_parameters(nn.Sequential(Head(1, 1)))
        {'0.bias': 'the targets are centered'}
    """
    found = {}
    for prefix, part in module.named_modules():
        reasons: Mapping[str, str] = getattr(part, REASONS, {})
        for pattern, reason in reasons.items():
            for name, _ in part.named_parameters():
                if fnmatchcase(name, pattern):
                    found[f"{prefix}.{name}" if prefix else name] = reason
    return found


def check_training_step(
    policy: nn.Module, loss: nn.Module, tensordict: TensorDictBase, lr: float = 1e-3
) -> None:
    """Check that one step on a loss trains every parameter that requires a gradient.

    The trainings of this library check their first step themselves; this is the same
    check for a policy and a loss of your own, in any loop, or on every rank of a
    distributed one. Weights, buffers, gradients, modes and random numbers get their
    values back.

    Args:
        policy: that is trained, or a critic.
        loss: takes a tensordict, returns one with entries that begin with ``loss``;
            ``policy`` itself if it does.
        tensordict: a batch.
        lr: learning rate of the step.

    Raises:
        NoTrainingError: a parameter gets no gradient, or no weight changes; names them.
        SchemaError: there is no loss in what ``loss`` returns.

    Examples:
        >>> from tensordict import TensorDict
        >>> class Detached(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk, self.head = nn.Linear(2, 2), nn.Linear(2, 1)
        ...     def forward(self, td):
        ...         hidden = self.trunk(td["x"]).detach()
        ...         return TensorDict(loss=self.head(hidden).square().mean())
        >>> policy = Detached()
        >>> check_training_step(policy, policy, TensorDict(x=torch.ones(3, 2)))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.NoTrainingError: check_training_step: expected a gradient \
for every parameter that requires one, got none for ['trunk.weight', 'trunk.bias'] ...
    """
    with torch.random.fork_rng(), _restored(policy, loss):
        policy.train()
        loss.train()
        optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
        optimizer.zero_grad()
        out = loss(tensordict.copy())
        names = [name for name, _ in out.items() if str(name).startswith("loss")]
        if not names:
            raise SchemaError(
                "check_training_step: expected entries that begin with 'loss' from "
                f"{type(loss).__name__}, got {sorted(map(str, out.keys()))}."
            )
        check = FirstStepCheck("check_training_step", policy, optimizer)
        total: Tensor = sum(out[name] for name in names)
        if total.requires_grad:
            total.backward()
        check.after_backward()
        optimizer.step()
        check.after_step()


@contextmanager
def _restored(*owners: nn.Module) -> Iterator[None]:
    """Give weights, buffers, gradients and modes their values back."""
    modules = {id(m): m for owner in owners for m in owner.modules()}.values()
    modes = [(module, module.training) for module in modules]
    parameters = {id(p): p for owner in owners for p in owner.parameters()}.values()
    gradients = [(p, p.grad) for p in parameters]
    for parameter in parameters:  # else zero_grad() would change what is kept
        parameter.grad = None
    buffers = [buffer for owner in owners for buffer in owner.buffers()]
    before = [(value, value.detach().clone()) for value in [*parameters, *buffers]]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, kept in before:
                value.copy_(kept)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training


def _largest_gradients(
    trained: Mapping[str, nn.Parameter],
) -> Iterator[tuple[str, nn.Parameter, int, float]]:
    """Yield where the gradient of each parameter is largest, and the weight there."""
    for name, parameter in trained.items():
        if parameter.grad is not None and len(gradient := _own_part(parameter.grad)):
            index = int(gradient.abs().argmax())
            yield name, parameter, index, _own_part(parameter)[index].item()


def _own_part(tensor: Tensor) -> Tensor:
    """Return the elements that this rank holds, flat."""
    return local(tensor.detach()).reshape(-1)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{names[:_SHOWN]}{more}"
