import pytest
import torch

from models import AUGMENTATIONS, choose
from models.augmentations import shift


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(6, 3, 500), (6, 3, 4, 200)])
def test_an_augmentation_changes_trials_and_keeps_their_shape_and_repeats_with_the_seed(name, shape):
    x, labels = torch.randn(shape), torch.arange(6)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(choose(AUGMENTATIONS, name)(x.clone(), labels))
    assert made[0][0].shape == x.shape and torch.equal(made[0][1], labels)
    assert torch.equal(made[0][0], made[1][0]) and not torch.equal(made[0][0], x)


def test_a_shift_moves_all_electrodes_and_patches_of_a_trial_together():
    signal = torch.arange(800.0).expand(20, 2, 800)
    torch.manual_seed(0)
    moved, _ = shift(signal.reshape(20, 2, 4, 200), torch.zeros(20))
    moved = moved.reshape(20, 2, 800)
    steps = -moved[:, 0, 0] % 800
    assert steps.minimum(800 - steps).max() <= 40 and len(set(steps.tolist())) > 5
    for trial, step in zip(moved, steps.long().tolist(), strict=True):
        assert torch.equal(trial, signal[0].roll(step, dims=-1))
