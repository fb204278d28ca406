"""Healthy files and finished runs, made once for all tests; none is trained for this folder alone."""

import json
from inspect import unwrap

import pytest

from tests import test_pictures_of_seen_images as drawn
from tests import test_seen_images as seen
from tests.faults.places import Places


@pytest.fixture(scope="session")
def places(demo, few, trained, vi_demo, vi_few, vi_trained, mapped, tmp_path_factory):
    """A JSON file of where they are, see `Places`. Other tests' fixtures are called, since some share a name."""
    things, imagenet = unwrap(drawn.things)(tmp_path_factory), unwrap(seen.imagenet)(tmp_path_factory)
    runs, models = unwrap(drawn.trained)(things, tmp_path_factory), unwrap(drawn.models)(tmp_path_factory)
    steps = unwrap(drawn.steps)(things, runs, models, tmp_path_factory)
    found = {"raw": demo.raw, "pth": demo.pth, "store": demo.store, "few": few, "trained": trained,
             "vi_raw": vi_demo.raw, "vi_store": vi_demo.store, "vi_few": vi_few, "stimuli": vi_demo.stimuli,
             "vi_trained": vi_trained, "mapped": mapped, "things": things, "imagenet": imagenet, "runs": runs,
             "steps": steps,
             "models": models}  # fmt: skip
    assert set(found) == set(Places.NAMES)
    path = tmp_path_factory.mktemp("places") / "places.json"
    path.write_text(json.dumps(found, default=str))
    return path
