import pytest
import torch

from models import AUGMENTATIONS, choose
from models.augmentations import Mirror, cutmix, mirrored_labels, shift
from utils.errors import UserError

OF_TRIALS = ["C3", "Cz", "C4"], [("C3", "C4")], ["left hand", "right hand", "feet"]


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(9, 3, 500), (9, 3, 4, 200)])
def test_an_augmentation_changes_trials_and_keeps_their_shape_and_repeats_with_the_seed(name, shape):
    x, labels = torch.randn(shape), torch.arange(9) % 3
    change, made = choose(AUGMENTATIONS, name), []
    change = change.of_trials(*OF_TRIALS) if hasattr(change, "of_trials") else change
    for _ in range(2):
        torch.manual_seed(3)
        made.append(change(x.clone(), labels))
    assert made[0][0].shape == x.shape and made[0][0].dtype == x.dtype and made[0][1].shape == labels.shape
    assert name == "mirror" or torch.equal(made[0][1], labels)
    assert torch.equal(made[0][0], made[1][0]) and not torch.equal(made[0][0], x)


@pytest.mark.parametrize("shape", [(200, 3, 50), (200, 3, 2, 25)])
def test_mirrored_trials_exchange_sides_and_the_classes_that_have_one(shape):
    x, labels = torch.randn(shape), torch.arange(200) % 3
    torch.manual_seed(0)
    changed, others = Mirror.of_trials(*OF_TRIALS)(x, labels)
    kept = (changed == x).flatten(1).all(dim=1)
    assert 60 < kept.sum() < 140
    assert torch.equal(others[kept], labels[kept])
    assert torch.equal(changed[~kept], x[~kept][:, [2, 1, 0]])
    assert torch.equal(others[~kept], torch.tensor([1, 0, 2])[labels[~kept]])


@pytest.mark.parametrize("classes, becomes", [
    (["left hand", "right hand", "feet", "tongue"], [1, 0, 2, 3]), (["LEFT", "Right"], [1, 0]),
    (["arrow left", "cup", "arrow right"], [2, 1, 0]), (["dog", "bright star", "leftover"], [0, 1, 2]),
    (["LeftHand", "RightHand"], [1, 0]), (["lefthand", "righthand", "rest"], [1, 0, 2]), (["T1", "T2"], [0, 1]),
])  # fmt: skip
def test_a_class_becomes_the_one_of_the_other_side(classes, becomes):
    assert mirrored_labels(classes) == becomes


def test_which_classes_change_places_is_said(capsys):
    Mirror.of_trials(*OF_TRIALS)
    assert "1 pair(s) of electrodes change places, and of the classes left hand ↔ right hand" in capsys.readouterr().out
    Mirror.of_trials(["C3", "C4"], [("C3", "C4")], ["T1", "T2"])
    assert "of the classes none" in capsys.readouterr().out


def test_what_has_no_other_side_is_not_mirrored():
    with pytest.raises(UserError, match="'left hand' would become 'right hand', which is none"):
        mirrored_labels(["left hand", "feet"])
    with pytest.raises(UserError, match="'LeftHand' would become 'righthand', which is none"):
        mirrored_labels(["LeftHand", "Feet"])
    with pytest.raises(UserError, match="no two of the electrodes Fz, Cz mirror each other"):
        Mirror.of_trials(["Fz", "Cz"], [], ["left", "right"])


def test_pieces_come_from_the_same_moment_of_a_trial_of_the_same_class():
    labels = torch.arange(30) % 2
    x = (labels * 1000 + torch.arange(30.0))[:, None, None] + torch.arange(100.0) / 1000 + torch.zeros(30, 2, 1)
    torch.manual_seed(0)
    mixed, _ = cutmix(x, labels)
    source = torch.floor(mixed + 1e-3)
    assert torch.equal(source[:, 0], source[:, 1]) and torch.equal(
        (source[:, 0] >= 1000).long(), labels[:, None].expand(-1, 100)
    )
    assert torch.allclose(mixed - source, torch.arange(100.0) / 1000, atol=2e-3)
    share = (source[:, 0] != (labels * 1000 + torch.arange(30))[:, None]).float().mean(dim=1)
    assert share.max() <= 0.5 and 0.05 < share.mean() < 0.4


def test_a_shift_moves_all_electrodes_and_patches_of_a_trial_together():
    signal = torch.arange(800.0).expand(20, 2, 800)
    torch.manual_seed(0)
    moved, _ = shift(signal.reshape(20, 2, 4, 200), torch.zeros(20))
    moved = moved.reshape(20, 2, 800)
    steps = -moved[:, 0, 0] % 800
    assert steps.minimum(800 - steps).max() <= 40 and len(set(steps.tolist())) > 5
    for trial, step in zip(moved, steps.long().tolist(), strict=True):
        assert torch.equal(trial, signal[0].roll(step, dims=-1))
