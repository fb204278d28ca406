"""Decoded batches of a run that died are taken over, and nobody else's."""

import pytest
import torch
from torch import nn

from datasets.description import load_description
from datasets.trials import TrialDataset
from stages.decoding import DecodedPieces
from stages.runs import remove_pieces
from tests.conftest import small_store

BCIC = load_description("BCICIV2a")


class Model(nn.Module):
    """What pieces need to know of a text model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)
        self.before_ids, self.after_ids, self.mirror = torch.tensor([[1, 2]]), torch.tensor([[3]]), None


@pytest.fixture
def dataset(tmp_path):
    return TrialDataset(small_store(tmp_path / "store", BCIC, ["A08", "A09"]), "test", "published", BCIC)


BATCHES = [[["a left hand", [0.1, 0.9]], ["µ ×", [0.5, 0.5]]], [["feet", [1.0, 0.0]]]]


def died(folder, dataset, **settings):
    """A run that decoded two batches and died."""
    pieces = DecodedPieces(folder, Model(), dataset, [0, 1, 2, 3], **{"batch_size": 2} | settings)
    for batch in BATCHES:
        pieces.add(batch)
    return pieces.path


def found(folder, dataset, model=None, chosen=(0, 1, 2, 3), **settings):
    pieces = DecodedPieces(folder, model or Model(), dataset, chosen, **{"batch_size": 2} | settings)
    return [pieces.get(number) for number in range(3)]


def test_the_next_run_goes_on_behind_what_was_decoded_and_nothing_is_left(dataset, tmp_path, capsys):
    died(tmp_path / "out", dataset)
    assert found(tmp_path / "out", dataset) == [*BATCHES, None]
    assert "2 batches were decoded by a run that was interrupted" in capsys.readouterr().out
    pieces = DecodedPieces(tmp_path / "out", Model(), dataset, (0, 1, 2, 3), batch_size=2)
    pieces.add(["third"])
    assert found(tmp_path / "out", dataset)[2] == ["third"]
    remove_pieces(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_other_weights_prompts_trials_tokens_or_settings_are_decoded_anew(dataset, tmp_path):
    died(tmp_path / "out", dataset)

    def nothing(**changes):
        return found(tmp_path / "out", dataset, **changes) == [None] * 3

    other = Model()
    other.layer.bias.data += 1e-6
    assert nothing(model=other)
    died(tmp_path / "out", dataset)
    other = Model()
    other.after_ids = torch.tensor([[4]])
    assert nothing(model=other)
    died(tmp_path / "out", dataset)
    assert nothing(chosen=(0, 1, 2, 4))
    died(tmp_path / "out", dataset)
    assert nothing(batch_size=3)
    died(tmp_path / "out", dataset)
    assert found(tmp_path / "out", dataset.with_tokens(torch.zeros(8, 2, 3))) == [None] * 3
    assert len(list((tmp_path / "out").iterdir())) == 0  # what others left is gone


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_being_written_is_cut_off(dataset, tmp_path, cut):
    path = died(tmp_path / "out", dataset)
    path.write_bytes(path.read_bytes()[:-cut])
    assert found(tmp_path / "out", dataset) == [BATCHES[0], None, None]
    assert path.read_bytes().count(b"\n") == 1


def test_a_flipped_byte_is_decoded_anew(dataset, tmp_path):
    path = died(tmp_path / "out", dataset)
    path.write_bytes(path.read_bytes().replace(b"left", b"lent"))
    assert found(tmp_path / "out", dataset) == [None] * 3
