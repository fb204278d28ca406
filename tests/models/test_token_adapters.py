import pytest
import torch

from models import ADAPTERS, choose


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("n, width", [(7, 200), (31, 16), (1, 15)])
def test_an_adapter_is_small_begins_as_the_identity_and_learns(name, n, width):
    torch.manual_seed(0)
    adapter, tokens = choose(ADAPTERS, name)(n, width), torch.randn(4, n, width)
    assert sum(p.numel() for p in adapter.parameters()) < 1_000_000
    assert torch.allclose(adapter(tokens), tokens)
    optimizer = torch.optim.Adam(adapter.parameters(), 1e-2)
    target = tokens.flip(1).detach()
    first = last = (adapter(tokens) - target).square().mean()
    for _ in range(60):
        last = (adapter(tokens) - target).square().mean()
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
    assert n == 1 or last < 0.8 * first


def test_a_mixer_tells_the_places_of_tokens_apart():
    torch.manual_seed(0)
    mixer = choose(ADAPTERS, "mixer")(5, 8)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    mixer.eval()
    tokens = torch.randn(2, 5, 8)
    order = [1, 0, 2, 3, 4]
    assert not torch.allclose(mixer(tokens[:, order]), mixer(tokens)[:, order], atol=1e-3)
    changed = tokens.clone()
    changed[:, 4] = torch.randn(2, 8)
    assert not torch.allclose(mixer(changed)[:, 0], mixer(tokens)[:, 0], atol=1e-4)  # one token hears of another
