"""Low-rank adapters on an encoder's attention, and learning rates by depth."""

import pytest
import torch

from models.encoder_lora import adapter_parameters, merged_state
from models.token_encoders import AfterEncoder, training_of
from tests.models.test_token_encoders import make, trials
from utils.errors import UserError


class Reader(AfterEncoder, torch.nn.Module):
    """What reads tokens, without the reading: all features are the tokens."""

    def __init__(self, encoder, train_encoder):
        super().__init__()
        self.encoder, self.train_encoder, self.reducer = encoder, train_encoder, torch.nn.Identity()


def adapted(rank=2, seed=0) -> Reader:
    encoder = make("csbrain")
    return Reader(encoder, training_of(encoder, False, rank, 1.0, seed))


def trained_for_some_steps(reader, steps=3) -> torch.Tensor:
    """Train what the joint phase trains; returns the trials."""
    x, parameters = trials(reader.encoder), reader.set_encoder_phase(joint=True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(steps):
        reader.train().encode(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    reader.eval().requires_grad_(False)
    return x


def test_adapters_change_nothing_at_first_and_no_weight_but_their_own_later():
    plain, reader = make("csbrain"), adapted()
    x = trials(plain)
    with torch.no_grad():
        assert torch.equal(plain(x), reader.encode(x))
    assert reader.set_encoder_phase(joint=False) == [] and not any(p.requires_grad for p in reader.parameters())
    before = {name: value.clone() for name, value in reader.encoder.state_dict().items()}
    trained_for_some_steps(reader)
    after = reader.encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith((".0.a", ".0.b"))}
    assert len(changed) == 12 * 2 * 2 * 2  # layers, attentions of each, weights of each, A and B
    n_params = sum(p.numel() for p in adapter_parameters(reader.encoder))
    assert n_params == 12 * 2 * 2 * ((600 + 200) + (200 + 200))  # rank 2


def test_a_merged_encoder_is_a_plain_one_that_gives_the_same_tokens():
    reader = adapted()
    x = trained_for_some_steps(reader)
    state, beside = reader.encoder_state(), reader.encoder_state(merge=False)
    plain = make("csbrain")
    with torch.no_grad():
        tokens = reader.encode(x)
        assert not torch.allclose(tokens, plain(x), atol=1e-2)
        plain.load_state_dict(state)
        assert torch.allclose(tokens, plain(x), atol=1e-5)
        assert torch.equal(tokens, reader.encode(x))  # merging changes nothing of it
        goes_on = adapted(seed=1)
        goes_on.load_encoder(beside)  # as --resume does
        assert torch.equal(tokens, goes_on.encode(x)) and adapter_parameters(goes_on.encoder)
        goes_on.load_encoder(state)  # as the test of the best epoch does
        assert torch.equal(plain(x), goes_on.encode(x)) and not adapter_parameters(goes_on.encoder)
    assert list(merged_state(plain)) == list(plain.state_dict())


def test_another_seed_draws_other_adapters():
    first, same, other = ([p.clone() for p in adapter_parameters(adapted(seed=k).encoder)] for k in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name, whole, message", [
    ("eegnet", False, "--encoder csbrain"), ("csbrain", True, "--train_encoder"),
])  # fmt: skip
def test_adapters_where_they_cannot_be_are_one_line(name, whole, message):
    with pytest.raises(UserError, match=message):
        training_of(make(name), whole, 2, 1.0, 0)


# ---------------------------------------------------------------- learning rates by depth


@pytest.mark.parametrize("name", ["csbrain", "eegnet"])
def test_a_decay_over_blocks_that_are_not_trained_is_refused(name):
    with pytest.raises(UserError, match="--layer_decay is of csbrain's blocks"):
        training_of(make(name), False, 0, 0.5, 0)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_learning_rate_decays_from_the_last_block_to_the_embeddings(rank):
    encoder = make("csbrain")
    reader = Reader(encoder, training_of(encoder, not rank, rank, 1.0, 0))
    trained = reader.set_encoder_phase(joint=True)
    (one,) = reader.encoder_groups(trained, 1e-3, 1.0)
    assert one["lr"] == 1e-3 and list(map(id, one["params"])) == list(map(id, trained))
    groups = reader.encoder_groups(trained, None, 0.5)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, trained))  # each once, and nothing that is frozen
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            block = int(name.split(".")[2]) + 1 if name.startswith("encoder.layers.") else 0
            assert rates[id(parameter)] == pytest.approx(1e-4 * 0.5 ** (12 - block)), name
    assert reader.encoder_groups(reader.set_encoder_phase(joint=False), None, 0.5) == []


def test_an_encoder_without_blocks_has_one_depth():
    encoder = make("eegnet")
    reader = Reader(encoder, training_of(encoder, False, 0, 1.0, 0))
    (group,) = reader.encoder_groups(reader.set_encoder_phase(joint=False), None, 0.5)
    assert group["lr"] == encoder.lr and len(group["params"]) == len(list(encoder.parameters()))


def test_a_plain_csbrain_has_every_weight_at_one_depth():
    from models.CSBrain import CSBrain

    model = CSBrain(brain_regions=[0, 4], sorted_indices=[0, 1], n_layer=2)
    depths = model.parameters_by_depth()
    assert len(depths) == 3 and sorted(id(p) for d in depths for p in d) == sorted(map(id, model.parameters()))
    assert {id(p) for p in model.proj_out.parameters()} <= {id(p) for p in depths[-1]}
