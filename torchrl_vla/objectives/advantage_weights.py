"""Sample weights from advantages (AWR, AWAC)."""

from __future__ import annotations

import math

import torch
from tensordict import NestedKey, TensorDictBase

from torchrl_vla.schema import SAMPLE_WEIGHT_KEY, MissingKeyError, SchemaError


class AdvantageWeights:
    """Turn advantages into the weights of a cloning loss, as AWR and AWAC do.

    ``w = min(exp(a / temperature), max_weight)``: a policy cloned with these weights is
    the best one that stays near the data's, the nearer the higher the temperature. The
    clip bounds the influence of one sample. Cloning losses take the weighted *mean*, so
    a factor common to all samples (AWAC divides by their sum) changes nothing. With
    ``standardize``, ``a = (advantage - mean) / std`` over the batch (the population's
    ``std``; 0 if all are equal), so that temperature and clip have no unit.

    **Reads** ``advantage`` float ``[*B, 1]``. **Writes** ``sample_weight`` float
    ``[*B]`` in place, without gradient; name it to a loss with
    ``set_keys(weight="sample_weight")``.

    Keyword Args:
        temperature: the advantage, in its own unit or in standard deviations, at which
            a sample counts ``e`` times as much.
        max_weight: the largest weight.
        standardize: True = subtract the mean, divide by the standard deviation.
        advantage_key: where the advantages are.
        weight_key: where the weights are written.

    Raises:
        ValueError: ``temperature`` or ``max_weight`` is not a positive number.
        MissingKeyError: there are no advantages.
        SchemaError: they are not float ``[*B, 1]``, not finite, or so low that every
            weight is 0.

    Examples:
        >>> from tensordict import TensorDict
        >>> frames = TensorDict(advantage=torch.tensor([[-0.6931], [0.0], [9.0]]))
        >>> AdvantageWeights(max_weight=20.0)(frames)["sample_weight"]
        tensor([ 0.5000,  1.0000, 20.0000])

    Source: X. B. Peng et al., arXiv:1910.00177 (AWR: weights clipped at 20); A. Nair et
    al., arXiv:2006.09359 (AWAC).
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        max_weight: float = 20.0,
        standardize: bool = False,
        advantage_key: NestedKey = "advantage",
        weight_key: NestedKey = SAMPLE_WEIGHT_KEY,
    ) -> None:
        for name, value in (("temperature", temperature), ("max_weight", max_weight)):
            if not 0 < value < math.inf:
                raise ValueError(
                    f"AdvantageWeights: expected a positive finite {name}, got {value}."
                )
        self.temperature = temperature
        self.max_weight = max_weight
        self.standardize = standardize
        self.advantage_key = advantage_key
        self.weight_key = weight_key

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the weights of the samples."""
        advantage = tensordict.get(self.advantage_key, None)
        if advantage is None:
            raise MissingKeyError(
                f"AdvantageWeights: expected advantages at {self.advantage_key!r}, got "
                f"only {sorted(map(str, tensordict.keys(True, True)))}. DecisionGAE "
                "and GRPOAdvantage write them."
            )
        if not advantage.is_floating_point() or advantage.shape[-1:] != (1,):
            raise SchemaError(
                f"AdvantageWeights: expected float [*B, 1] at {self.advantage_key!r}, "
                f"got {advantage.dtype} {list(advantage.shape)}."
            )
        if not advantage.isfinite().all():
            raise SchemaError(
                "AdvantageWeights: expected finite advantages at "
                f"{self.advantage_key!r}, got others in "
                f"{int((~advantage.isfinite()).sum())} of {advantage.numel()} samples."
            )
        value = advantage.detach().squeeze(-1)
        if self.standardize:
            std = value.std(correction=0)
            value = (value - value.mean()) / torch.where(std > 0, std, 1.0)
        # Clipped before the exponential, which overflows at 1000.
        exponent = (value / self.temperature).clamp_max(math.log(self.max_weight))
        weight = exponent.exp().clamp_max(self.max_weight)
        if weight.numel() and not (weight > 0).any():
            raise SchemaError(
                "AdvantageWeights: expected a weight above 0, got advantages of at "
                f"most {value.max().item():g} at temperature {self.temperature:g}, "
                "which all give 0. Pass standardize=True, or raise the temperature."
            )
        return tensordict.set(self.weight_key, weight)

    def __repr__(self) -> str:
        return (
            f"AdvantageWeights(temperature={self.temperature}, "
            f"max_weight={self.max_weight}, standardize={self.standardize})"
        )
