"""Losses against hand-computed cases, ranks, and the k-way formula against drawn distractors."""

import numpy as np
import pytest
import torch

from models.contrastive import LogitScale, info_nce, k_way, retrieval_ranks


def by_hand(logits, wanted):
    """Mean over rows of −Σ wanted · log softmax."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -(wanted * np.log(p)).sum(axis=1).mean()


def test_the_loss_is_the_one_computed_by_hand():
    eeg = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    unit = np.array([[1, 0], [0, 1], [0.5**0.5, 0.5**0.5]])
    like = unit @ np.array([[1, 0], [0, 1], [0, 1]]).T
    expected = (by_hand(2 * like, np.eye(3)) + by_hand(2 * like.T, np.eye(3))) / 2
    assert info_nce(eeg, targets, 2.0).item() == pytest.approx(expected, abs=1e-6)
    same = np.array([[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])  # rows 1 and 2 saw one image
    expected = (by_hand(2 * like, same) + by_hand(2 * like.T, same)) / 2
    assert info_nce(eeg, targets, 2.0, torch.tensor([7, 4, 4])).item() == pytest.approx(expected, abs=1e-6)
    raw = eeg.numpy() @ np.array([[1, 0], [0, 1], [0, 1]]).T
    expected = (by_hand(2 * raw, np.eye(3)) + by_hand(2 * raw.T, np.eye(3))) / 2
    assert info_nce(eeg, targets, 2.0, unit_eeg=False).item() == pytest.approx(expected, abs=1e-6)


def test_different_images_are_as_published_and_copies_are_no_negatives():
    torch.manual_seed(0)
    eeg, targets = torch.randn(2, 6, 8)
    assert info_nce(eeg, targets, 5.0, torch.arange(6)).item() == pytest.approx(
        info_nce(eeg, targets, 5.0).item(), abs=1e-6
    )
    twice = torch.cat([targets[:3], targets[:3]])
    right = torch.cat([twice[:3], twice[:3]])
    ids = torch.tensor([0, 1, 2, 0, 1, 2])
    assert info_nce(100 * right, twice, 100.0, ids).item() == pytest.approx(
        np.log(2), abs=1e-3
    )  # nothing better is possible


def test_the_scale_begins_at_its_published_value_and_ends_at_100():
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    scale.logarithm.data.fill_(9.0)
    assert scale().item() == 100
    torch.manual_seed(0)
    eeg = torch.randn(4, 3, requires_grad=True)
    scale = LogitScale()
    info_nce(eeg, torch.randn(4, 3), scale()).backward()
    assert scale.logarithm.grad is not None and eeg.grad.abs().sum() > 0


def test_ranks_count_who_is_at_least_as_like_and_a_tie_is_no_win():
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    eeg = torch.tensor([[5.0, 1.0], [0.1, 3.0], [1.0, 1.0]])
    assert retrieval_ranks(eeg, candidates, torch.tensor([0, 1, 3])).tolist() == [2, 1, 1]
    assert retrieval_ranks(torch.ones(1, 2), torch.ones(4, 2), torch.tensor([2])).tolist() == [4]


@pytest.mark.parametrize(
    "rank, k, top", [(1, 2, 1), (7, 2, 1), (7, 10, 1), (7, 10, 5), (60, 4, 1), (60, 50, 5), (200, 2, 1), (15, 100, 5)]
)
def test_the_formula_is_what_a_million_drawn_sets_give(rank, k, top):
    n, draws = 200, 1_000_000
    # how many of the rank − 1 better candidates are among k − 1 drawn ones: hypergeometric
    better = np.random.default_rng(0).hypergeometric(rank - 1, n - rank, k - 1, draws)
    found, exact = (better < top).mean(), k_way(rank, n, k, top)
    assert abs(found - exact) <= 3 * max((exact * (1 - exact) / draws) ** 0.5, 1e-9)


def test_the_formula_at_its_ends():
    assert [k_way(r, 200, 200) for r in (1, 2, 200)] == [1, 0, 0] and k_way(5, 200, 200, top=5) == 1
    assert k_way(1, 200, 2) == 1 and k_way(200, 200, 2) == 0 and k_way(200, 200, 1) == 1
    assert np.mean([k_way(r, 50, 10) for r in range(1, 51)]) == pytest.approx(0.1)  # guessing
    for wrong in ((0, 200, 2), (201, 200, 2), (1, 200, 0), (1, 200, 201)):
        with pytest.raises(ValueError, match="out of range"):
            k_way(*wrong)
