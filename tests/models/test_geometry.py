import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, sqrtm
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf

from models import GEOMETRIES, choose, geometry
from models.contrastive import ranks_among
from stages.retrieval import hubness


def pair(n=40, d=12, noise=0.6, seed=0, common=0.0):
    """Candidates, and embeddings of them: noisy, with something that all of them share."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, d))
    x = y + noise * rng.standard_normal((n, d)) + common * rng.standard_normal(d)
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def cosine(x, y):
    return 1 - cdist(np.asarray(x, float), np.asarray(y, float), "cosine")


def test_plain_is_the_cosine():
    x, y = pair()
    assert np.allclose(geometry.plain(x, y), cosine(x, y), atol=1e-6)


def test_csls_takes_off_how_near_each_is_to_its_neighbours():
    x, y = pair()
    cos = cosine(x, y)
    near_x, near_y = np.sort(cos, axis=1)[:, -5:].mean(axis=1), np.sort(cos, axis=0)[-5:].mean(axis=0)
    assert np.allclose(geometry.csls(x, y, k=5), 2 * cos - near_x[:, None] - near_y, atol=1e-6)
    assert geometry.csls(x[:3], y[:2]).shape == (3, 2)  # fewer than there are neighbours


def test_whitened_embeddings_have_no_mean_and_no_covariance():
    x, y = pair(n=60, d=6)
    sides = []
    for of in (x.double().numpy(), y.double().numpy()):
        centred = of - of.mean(axis=0)
        sides.append(centred @ np.linalg.inv(sqrtm(ledoit_wolf(centred, assume_centered=True)[0]).real))
    assert np.allclose(geometry.whiten(x, y), cosine(*sides), atol=1e-5)
    assert torch.isfinite(geometry.whiten(x[:5], y[:4])).all()  # fewer than directions


def test_procrustes_turns_embeddings_back_as_scipys_does_where_pairs_are_known():
    x, y = pair(n=200, d=8, noise=0.05)
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(np.eye(8) + 0.25 * rng.standard_normal((8, 8)))[0]
    turn *= np.sign(np.diag(turn))  # near to the identity
    turned = x @ torch.from_numpy(turn).float()
    own = torch.arange(200)
    before, after = (ranks_among(of(turned, y), own).double() for of in (geometry.csls, geometry.procrustes))
    x_unit, y_unit = (of - of.mean(dim=0) for of in (turned, y))
    x_unit, y_unit = (of / of.norm(dim=1, keepdim=True) for of in (x_unit, y_unit))
    known = torch.from_numpy(orthogonal_procrustes(x_unit.numpy(), y_unit.numpy())[0])
    best = ranks_among(geometry.csls(x_unit @ known, y_unit), own).double()
    assert after.mean() < before.mean() and (after == 1).double().mean() >= (best == 1).double().mean() - 0.03


def test_directions_that_few_pairs_say_nothing_of_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(geometry, "ROUNDS", 1)
    x, y = pair(n=4, d=12, noise=1.0)
    x_unit, y_unit = (of.double() - of.double().mean(dim=0) for of in (x, y))
    x_unit, y_unit = (of / of.norm(dim=1, keepdim=True) for of in (x_unit, y_unit))
    like = geometry.csls(x_unit, y_unit)
    mutual = [(k, int(j)) for k, j in enumerate(like.argmax(dim=1)) if int(like[:, j].argmax()) == k]
    pairs = np.mean([np.outer(x_unit[k], y_unit[j]) for k, j in mutual], axis=0)
    shrunk = pairs + 0.5 * np.linalg.norm(pairs, 2) * np.eye(12)
    turn = torch.from_numpy(orthogonal_procrustes(np.eye(12), shrunk)[0])
    assert np.allclose(geometry.procrustes(x, y), geometry.csls(x_unit @ turn, y_unit), atol=1e-6)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_geometry_takes_any_number_of_embeddings_and_no_labels(name):
    x, y = pair()
    like = choose(GEOMETRIES, name)
    for n, k in ((1, 2), (2, 7), (40, 3)):
        assert like(x[:n], y[:k]).shape == (n, k) and torch.isfinite(like(x[:n], y[:k])).all()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(like(x[order], y)[order.argsort()], like(x, y), atol=1e-6)  # whose is whose, it cannot know
    assert torch.allclose(like(x, y[order])[:, order.argsort()], like(x, y), atol=1e-6)


def test_what_is_near_to_everything_is_nearest_less_often():
    x, y = pair(n=120, noise=1.5, common=1.5)
    images = [str(k) for k in range(120)]
    skewness = {}
    for name in GEOMETRIES:
        like = choose(GEOMETRIES, name)(x, y)
        skewness[name] = hubness([[images[k] for k in row] for row in like.topk(5).indices.tolist()], images)
    assert skewness["plain"] > 2 and skewness["csls"] < skewness["plain"] - 0.3
    assert abs(skewness["whiten"]) < 0.5 and abs(skewness["procrustes"]) < 0.5
    own = torch.arange(120)
    ranks = {name: ranks_among(choose(GEOMETRIES, name)(x, y), own).double().mean() for name in GEOMETRIES}
    assert ranks["csls"] < ranks["plain"] and ranks["procrustes"] < ranks["plain"] and ranks["whiten"] < ranks["plain"]


def test_without_anything_to_find_no_geometry_finds_it():
    """1,000 null experiments each: embeddings that have nothing to do with their candidates."""
    rng = np.random.default_rng(0)
    for name in GEOMETRIES:
        hits = 0
        for _ in range(1000):
            x, y = (torch.from_numpy(rng.standard_normal((6, 4)) + rng.standard_normal(4)).float() for _ in range(2))
            hits += int((ranks_among(choose(GEOMETRIES, name)(x, y), torch.arange(6)) == 1).sum())
        assert abs(hits / 6000 - 1 / 6) < 0.02, (name, hits / 6000)
