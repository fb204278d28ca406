"""CLIP embeddings that others have computed: their layouts, and the check against the images."""

import pickle

import numpy as np
import pytest
import torch

from stages.clip_features import identity, read_clip_features, sentence_vectors
from utils.errors import UserError

ORDER = {
    "training": [f"training_images/{k:05d}_thing{k}/thing{k}_{j:02d}b.jpg" for k in range(8) for j in range(3)],
    "test": [f"test_images/{k:05d}_other{k}/other{k}_01b.jpg" for k in range(5)],
}


@pytest.fixture
def rows():
    """Images of a concept are alike, as in CLIP's space."""
    rng = np.random.default_rng(0)
    concepts = np.repeat(rng.standard_normal((8, 16)), 3, axis=0)
    training = concepts + 0.5 * rng.standard_normal((24, 16))
    return {"training": training.astype(np.float32), "test": rng.standard_normal((5, 16)).astype(np.float32)}


def atm(folder, rows):
    """ViT-H-14_features_train.pt and _test.pt; sentences of concepts."""
    paths = []
    for part, name in (("training", "train"), ("test", "test")):
        paths.append(folder / f"ViT-H-14_features_{name}.pt")
        text = torch.from_numpy(rows[part][:: 3 if part == "training" else 1].copy())
        torch.save({"img_features": torch.from_numpy(rows[part]), "text_features": text}, paths[-1])
    return paths


def nice(folder, rows):
    """One .npy a part, with an axis of concepts and of ones."""
    for part, of in rows.items():
        np.save(folder / f"clip_feature_{part}.npy", of.reshape(-1, 3 if part == "training" else 1, 1, 16))
    return sorted(folder.glob("*.npy"))


def by_name(folder, rows):
    """UBP's: a vector an image, under its own name for the folder, in any order."""
    named = {
        image.replace("training_", "train_"): row
        for part in rows
        for image, row in zip(ORDER[part], rows[part], strict=True)
    }
    torch.save({"img_features": {name: torch.from_numpy(named[name]) for name in sorted(named)[::-1]}}, folder / "x.pt")
    return [folder / "x.pt"]


@pytest.mark.parametrize("layout", [atm, nice, by_name])
def test_each_layout_gives_every_image_its_own_row(tmp_path, rows, layout):
    files = [str(path) for path in layout(tmp_path, rows)]
    found, sentences = read_clip_features(files, ORDER)
    assert set(found) == {*ORDER["training"], *ORDER["test"]}
    for part, images in ORDER.items():
        assert np.allclose(torch.stack([found[image] for image in images]), rows[part], atol=1e-2)
    assert bool(sentences) == (layout == atm)
    for k, image in enumerate(ORDER["training"] if sentences else ()):
        assert np.allclose(sentences[image], rows["training"][k - k % 3], atol=1e-2)
    assert identity("nowhere", files) != identity("nowhere", files[:1] if files[1:] else [__file__])


def test_rows_in_another_order_or_number_are_refused(tmp_path, rows):
    def said(training, name="a.npy", order=ORDER, **more):
        np.save(tmp_path / name, training)
        with pytest.raises(UserError) as error:
            read_clip_features([str(tmp_path / name)], order)
        return str(error.value)

    shuffled = np.random.default_rng(1).permutation(rows["training"])
    assert "are no more alike than any others" in said(shuffled)
    assert "has 23 rows, and names no images; expected 24 (training) or 5 (test)" in said(rows["training"][1:])
    assert "names no images; expected names" in said(rows["training"], order={})
    assert "row 3 is NaN" in said(np.where(np.arange(24)[:, None] == 2, np.nan, rows["training"]))
    assert "int64 (3, 2)" in said(np.ones((3, 2), int))
    test = {
        "img_features": torch.from_numpy(rows["test"]),
        "text_features": torch.from_numpy(rows["test"][::-1].copy()),
    }
    torch.save(test, tmp_path / "test.pt")
    with pytest.raises(UserError, match="images are no more like their sentences than others"):
        read_clip_features([str(tmp_path / "test.pt")], ORDER)
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"weights": "x"}))
    with pytest.raises(UserError, match="has weights; expected img_features"):
        read_clip_features([str(tmp_path / "b.pt")], ORDER)
    strange = {"nobody/knows.jpg": rows["test"][0]}
    (tmp_path / "c.pt").write_bytes(pickle.dumps(strange))
    with pytest.raises(UserError, match="row of nobody/knows.jpg, which is none"):
        read_clip_features([str(tmp_path / "c.pt")], ORDER)
    np.save(tmp_path / "train.npy", rows["training"])
    np.save(tmp_path / "test.npy", rows["test"][:, :8])
    with pytest.raises(UserError, match="rows of 8 and 16 numbers"):
        read_clip_features([str(tmp_path / "train.npy"), str(tmp_path / "test.npy")], ORDER)


def test_without_sentences_the_model_makes_them(tmp_path, rows):
    class Store:
        meta = {"options": {"images": ORDER}}

    assert sentence_vectors(ORDER["test"], Store, [str(path) for path in nice(tmp_path, rows)]) is None
    assert sentence_vectors(ORDER["test"], Store, None) is None
