from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import nn

from torchrl_vla.policies import GaussianVLAWrapper
from torchrl_vla.schema import MissingKeyError, ObservationKeys
from torchrl_vla.testing import check_log_prob_consistency

H, A, N = 2, 3, 12


class Gaussian(GaussianVLAWrapper):
    """A mean that is elementwise in the state: no product rounds by its batch."""

    def __init__(self):
        super().__init__(action_dim=A, chunk_size=H, keys=ObservationKeys(image=None))
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, H * A).reshape(H, A))

    def predict_mean_and_log_std(self, td):
        mean = td["observation", "state"].unsqueeze(-1) * self.weight
        return mean, torch.full((A,), 0.2).log()


class Dropout(Gaussian):
    def predict_mean_and_log_std(self, td):
        mean, log_std = super().predict_mean_and_log_std(td)
        return nn.functional.dropout(mean, training=self.training), log_std


class Rounding(Gaussian):
    """Rounds otherwise for a row that is asked about alone."""

    def predict_mean_and_log_std(self, td):
        mean, log_std = super().predict_mean_and_log_std(td)
        return mean * (1 + 1e-6 * (len(td) == 1)), log_std


def decisions(policy) -> TensorDict:
    torch.manual_seed(0)
    td = TensorDict({"observation": {"state": torch.randn(N, 1)}}, [N])
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        return policy(td)


def test_unchanged_weights_give_ratio_one():
    policy = Gaussian()
    report = check_log_prob_consistency(policy, decisions(policy))
    assert report.n_decisions == N
    assert report.n_different == 0
    assert report.ratio_error == report.element_error == 0.0
    assert report.kl == report.clip_fraction == 0.0


def test_the_report_counts_what_is_known():
    policy = Gaussian()
    td = decisions(policy)
    # One element of three rows was half as likely when they were chosen: ratio 2.
    td["element_log_probs"][:3, 1, 2] -= torch.tensor(2.0).log()
    td["log_probs"] = td["element_log_probs"].sum((-2, -1))
    with pytest.raises(
        AssertionError,
        match=r"^Gaussian: expected unchanged weights to give ratio 1, got 3 of 12 "
        r"decisions that differ: ratio off by up to 1(\.0\d*)?, KL -0\.17\d*, clip "
        r"fraction 0\.25\. The others are exact",
    ):
        check_log_prob_consistency(policy, td)
    report = check_log_prob_consistency(policy, td, tolerance=1.1, clip_epsilon=1.5)
    assert report.n_different == 3
    assert report.ratio_error == pytest.approx(1.0, abs=1e-4)
    assert report.element_error == pytest.approx(0.6931, abs=1e-3)
    assert report.kl == pytest.approx(-0.6931 * 3 / 12, abs=1e-4)
    assert report.clip_fraction == 0.0


def test_a_nan_is_a_difference():
    policy = Gaussian()
    td = decisions(policy)
    td["chunk_sample"][4, 0, 0] = torch.nan
    for tolerance in (0.0, 1.0):
        with pytest.raises(AssertionError, match="1 of 12 decisions that differ"):
            check_log_prob_consistency(policy, td, tolerance=tolerance)


def changed_weights(policy, td):
    with torch.no_grad():
        policy.weight += 0.1


def clipped_sample(policy, td):
    td["chunk_sample"] = 10 * td["chunk_sample"]


def stale_rows(policy, td):
    td["observation", "state"][::2] = td["observation", "state"][1::2]


def steps_between_decisions(policy, td):
    stale_rows(policy, td)
    td["is_decision"] = torch.arange(N).unsqueeze(-1) % 2 == 1


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (changed_weights, "All differ, so look for what changed .*: the weights"),
        (clipped_sample, r"the choice itself \(clipped or denormalized in place\)"),
        (stale_rows, "The others are exact, so weights and settings are the same"),
        (steps_between_decisions, r"6 rows are no decisions: .* select_decisions\(ro"),
    ],
)
def test_the_usual_causes_are_named(spoil, cause):
    policy = Gaussian()
    td = decisions(policy)
    spoil(policy, td)
    with pytest.raises(AssertionError, match=cause):
        check_log_prob_consistency(policy, td)


def test_noise_of_the_policy_is_named_and_gone_with_eval():
    policy = Dropout()
    with pytest.raises(AssertionError, match=r"says two things: is there dropout"):
        check_log_prob_consistency(policy, decisions(policy))
    policy.eval()
    check_log_prob_consistency(policy, decisions(policy))


def test_rounding_by_the_batch_is_found_named_and_tolerated_if_one_says_so():
    policy = Rounding()
    td = decisions(policy)
    with pytest.raises(AssertionError, match=r"So little is rounding, or a small step"):
        check_log_prob_consistency(policy, td)
    report = check_log_prob_consistency(policy, td, tolerance=1e-3)
    assert 0 < report.ratio_error < 1e-3
    assert (
        check_log_prob_consistency(policy, td, batch_sizes=(None, 3)).n_different == 0
    )


def test_half_precision_is_allowed_more_rounding_in_the_diagnosis():
    policy = Gaussian()
    td = decisions(policy)
    td["element_log_probs"][0, 0, 0] += 0.3
    with pytest.raises(AssertionError, match="The others are exact"):
        check_log_prob_consistency(policy, td)
    policy.bfloat16()
    td["log_probs"], td["element_log_probs"] = (
        policy.log_prob(td).detach(),
        policy.element_log_probs(td).detach(),
    )
    td["element_log_probs"][0, 0, 0] += 0.3
    with pytest.raises(AssertionError, match="more so in half precision"):
        check_log_prob_consistency(policy, td)


def test_decisions_lie_in_one_dimension():
    policy = Gaussian()
    td = decisions(policy)
    for wrong in (td.reshape(3, 4), td[:0]):
        with pytest.raises(ValueError, match=r"decisions \[N\] with N >= 1, got batch"):
            check_log_prob_consistency(policy, wrong)


@pytest.mark.parametrize("key", ["log_probs", "element_log_probs"])
def test_decisions_hold_what_the_policy_wrote(key):
    policy = Gaussian()
    with pytest.raises(MissingKeyError, match=rf"at '{key}', got only \[.*'action_ch"):
        check_log_prob_consistency(policy, decisions(policy).exclude(key))


def test_keys_can_be_others():
    policy = Gaussian()
    td = decisions(policy)
    td.rename_key_("log_probs", "old").rename_key_("element_log_probs", "terms")
    check_log_prob_consistency(
        policy, td, log_probs_key="old", element_log_probs_key="terms"
    )
