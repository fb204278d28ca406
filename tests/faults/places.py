"""Where healthy files and finished runs are, and what readers and commands need that is in no file."""

import functools
from pathlib import Path


class Places:
    """What `tests/faults/conftest.py` makes. Paths come as JSON to the processes that damage and kill.

    raw, pth, store, few, trained : Path. Of BCIC-IV-2a: the recordings, the tiny models, the store,
        a small one, a run.
    vi_raw, vi_store, vi_few, stimuli, vi_trained, mapped : Path. Of Visual Imagery: recordings, stores, photos, runs.
    things, imagenet : Path. Folders of seen images, each with a store and photos.
    runs, steps, models : Path. Runs on `things`, what stands between them and a picture, the image models.
    """

    NAMES = ("raw", "pth", "store", "few", "trained", "vi_raw", "vi_store", "vi_few", "stimuli", "vi_trained", "mapped",
             "things", "imagenet", "runs", "steps", "models")  # fmt: skip

    def __init__(self, **places: str):
        for name in self.NAMES:
            setattr(self, name, Path(places[name]).resolve())
        self.fresh: dict[str, object] = {}  # what a cache must give; filled in where it is made

    @functools.cached_property
    def bcic(self):
        from datasets.description import load_description

        return load_description("BCICIV2a")

    @functools.cached_property
    def vi(self):
        from datasets.description import load_description

        return load_description("VI")

    @functools.cached_property
    def small_encoder(self):
        """CSBrain of one layer, random and always the same."""
        import torch

        from models.CSBrain import CSBrain

        torch.manual_seed(0)
        montage = self.bcic.montage
        encoder = CSBrain(brain_regions=montage.brain_regions, sorted_indices=montage.sorted_indices, n_layer=1)
        return encoder.eval().requires_grad_(False)

    @functools.cached_property
    def pictures(self) -> list:
        """Three photos."""
        from stages.pictures import read_photo

        return [read_photo(path) for path in sorted(self.stimuli.glob("*.jpg"))[:3]]

    @functools.cached_property
    def seen_pictures(self) -> list[Path]:
        """Four images that were seen."""
        return sorted((self.things / "images/test_images").rglob("*.png"))[:4]
