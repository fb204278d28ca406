"""Models of braindecode as encoders. The library is optional: what needs it is skipped where it is not installed."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.description import load_description
from models import BASELINES, FEATURE_ENCODERS, choose, is_in
from models.token_encoders import load_encoder
from tests.conftest import small_store
from utils import flags
from utils.errors import UserError

MONTAGE = load_description("BCICIV2a").montage
TRIALS = {"electrodes": MONTAGE.electrodes, "brain_regions": MONTAGE.brain_regions,
          "sorted_indices": MONTAGE.sorted_indices, "n_times": 500, "sfreq": 250.0}  # fmt: skip


@pytest.fixture
def library():
    return pytest.importorskip("braindecode.models", exc_type=ImportError)


def test_a_family_of_names_is_one_entry_and_the_rest_of_the_name_is_its_own():
    assert is_in(FEATURE_ENCODERS, "braindecode:BIOT") and is_in(FEATURE_ENCODERS, "eegnet")
    for name in ("braindecode:", "braindecode", "other:BIOT", ":BIOT", ""):
        assert not is_in(FEATURE_ENCODERS, name), name
    parser = flags.new_parser("x")
    parser.add_argument("--encoder", **flags.named_in(FEATURE_ENCODERS), help="x")
    assert parser.parse_args(["--encoder", "braindecode:BIOT@me/biot"]).encoder == "braindecode:BIOT@me/biot"
    for wrong in ("braindecode:", "braindecode", "EEGNET"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--encoder", wrong])


@pytest.mark.parametrize("command, where", [
    (["finetune_eeg_llm.py", "--downstream_dataset", "BCICIV2a", "--encoder", "braindecode:EEGNeX", "--llm", "tiny"],
     "--model_dir"),
    (["baseline.py", "--model", "braindecode:EEGNeX"], "--output_dir"),
])  # fmt: skip
def test_without_the_library_one_line_says_how_to_get_it(script, monkeypatch, tmp_path, command, where):
    for name in [name for name in sys.modules if name.split(".")[0] == "braindecode"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "braindecode", None)
    store = small_store(tmp_path / "store", load_description("BCICIV2a"), ("A01", "A06", "A08"))
    done = script(*command, "--datasets_dir", store, where, tmp_path / "run", "--cuda", -1)
    assert done.code == 2 and "pip install -r requirements-baselines.txt" in done.error_line


@pytest.mark.parametrize("name, shape", [
    ("EEGNet", (1, 8, 16)), ("Deep4Net", None), ("ATCNet", None), ("ShallowFBCSPNet", None), ("CBraMod", (22, 2, 200)),
    ("Labram", (1, 44, 200)), ("BIOT", (1, 1, 256)), ("EEGConformer", (1, 1, 32)), ("AttentionBaseNet", None),
])  # fmt: skip
def test_features_before_the_last_layer_become_tokens_and_train(library, name, shape):
    kind = type("x", (choose(FEATURE_ENCODERS, f"braindecode:{name}"),), {"weights": ""})
    encoder = kind.build(**TRIALS)
    x = np.random.default_rng(0).standard_normal((3, 22, 500)).astype(np.float32) * 20
    x = torch.from_numpy(np.stack([encoder.prepare(one, 250.0) for one in x]))
    features = encoder(x)
    assert features.ndim == 4 and features.shape[-1] == encoder.width and torch.isfinite(features).all()
    assert shape in (None, tuple(features.shape[1:]))
    assert features.shape[1] == (1 if encoder.electrode_order is None else 22)
    features.square().sum().backward()
    assert all(p.grad is not None for p in encoder.trainable_parameters()) and encoder.trainable_parameters()
    again = kind.build(**TRIALS)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(x), encoder.eval()(x))


def stand_in(library, folder, **settings):
    """Weights of a small CBraMod, as save_pretrained leaves them."""
    torch.manual_seed(3)
    model = library.CBraMod(n_outputs=5, n_chans=22, n_times=400, sfreq=200.0, n_layer=1, **settings)
    model.save_pretrained(folder)
    return model


def test_published_weights_come_from_an_address_and_no_class_of_its_config_is_imported(library, local_hub, tmp_path):
    model = stand_in(library, tmp_path / "weights")
    files = {path.name: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    config = json.loads(files["config.json"]) | {"activation": "antigravity.fly"}
    local_hub.add("me/cbramod", files | {"config.json": json.dumps(config).encode()})
    sys.modules.pop("antigravity", None)
    encoder = load_encoder("braindecode:CBraMod@me/cbramod", "pth/CSBrain.pth", **TRIALS)
    assert encoder.pretrained and "antigravity" not in sys.modules and len(encoder.net.encoder.layers) == 1
    assert not any("pytorch_model.bin" in path for path in local_hub.asked)
    given = model.state_dict()
    mine = encoder.net.state_dict()
    assert set(given) - set(mine) == {name for name in given if name.startswith("final_layer.")}
    assert all(torch.equal(mine[name], given[name]) for name in mine)
    x = torch.randn(2, 22, 400)
    expected = model.eval().requires_grad_(False)(x, return_features=True)["features"]
    assert torch.equal(encoder(x), expected)


def test_published_weights_are_not_asked_for_where_random_ones_are(library, capsys):
    encoder = load_encoder("braindecode:BIOT", None, **TRIALS)
    assert encoder.pretrained and "RANDOM weights" in capsys.readouterr().out
    with pytest.raises(UserError, match="braindecode/biot-pretrained-six-datasets-18chs: no such folder here, not in"):
        load_encoder("braindecode:BIOT", "pth/CSBrain.pth", **TRIALS)


def test_weights_that_do_not_fit_are_a_line(library, tmp_path):
    stand_in(library, tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    name = next(iter(kept))
    save_file({key: value for key, value in kept.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is missing"):
        load_encoder(f"braindecode:CBraMod@{tmp_path}", "x", **TRIALS)
    with pytest.raises(UserError, match="there is no such model; there are ATCNet"):
        choose(FEATURE_ENCODERS, "braindecode:Nothing")
    with pytest.raises(UserError, match="braindecode:SSTDPN: cannot be loaded.*are its outputs"):
        choose(FEATURE_ENCODERS, "braindecode:SSTDPN").build(**TRIALS)
    assert choose(BASELINES, "braindecode:EEGNeX")
