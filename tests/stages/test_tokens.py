"""The cache of a frozen encoder's tokens: fresh tokens or a clear error, never somebody else's."""

import dataclasses

import numpy as np
import pytest
import torch

import models
from datasets.description import load_description
from datasets.splits import split_trials
from datasets.store import open_store, write_store
from datasets.trials import TrialDataset
from models.CSBrain import CSBrain
from models.poolings import EEGTokenReducer, hemisphere
from stages import tokens
from stages.tokens import TokenCache, reducer_for
from tests.conftest import small_store
from tests.utils.test_locks import holder
from utils.errors import UserError

BCIC = load_description("BCICIV2a")
PEOPLE = tuple(f"A0{number}" for number in range(1, 10))
CPU = torch.device("cpu")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    montage = BCIC.montage
    encoder = CSBrain(brain_regions=montage.brain_regions, sorted_indices=montage.sorted_indices, n_layer=1)
    return encoder.eval().requires_grad_(False)


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "store", BCIC, PEOPLE)


@pytest.fixture
def encoded(encoder):
    """Trials in every forward pass of the encoder; the fixed noise trial of each cache is one of its own."""
    batches = []
    encoder.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    return batches


def direct(encoder, dataset, pooling="region") -> torch.Tensor:
    """Tokens without any cache."""
    reducer = reducer_for(encoder, BCIC.montage, pooling)
    x = np.stack([encoder.prepare(dataset.samples(trial), dataset.sfreq) for trial in dataset.trials])
    with torch.no_grad():
        return reducer(CSBrain.forward(encoder, torch.from_numpy(x)))


def served(encoder, dataset, pooling="region") -> torch.Tensor:
    """Tokens from the cache beside the store, as a new run asks for them."""
    return TokenCache(None, encoder, BCIC.montage, pooling).tokens(dataset, CPU)


def same(a, b) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


def files(store):
    return sorted((store.parent / "token_cache").glob("*"))


# ---------------------------------------------------------------- what it is for


@pytest.mark.parametrize("pooling", models.POOLINGS)
def test_tokens_are_what_the_encoder_gives_in_the_splits_order(encoder, store, pooling):
    for mode in ("train", "val", "test"):
        dataset = TrialDataset(store, mode, "published", BCIC)
        assert same(served(encoder, dataset, pooling), direct(encoder, dataset, pooling))
        assert same(served(encoder, dataset, pooling), direct(encoder, dataset, pooling))  # now from the cache


def test_all_folds_of_leave_one_subject_out_run_the_encoder_once_a_trial(encoder, store, encoded, capsys):
    for person in PEOPLE:
        cache = TokenCache(None, encoder, BCIC.montage, "region")
        for mode in ("train", "val", "test"):
            dataset = TrialDataset(store, mode, f"loso:{person}", BCIC)
            assert len(cache.tokens(dataset, CPU)) == len(dataset)
    assert sum(encoded) - 3 * len(PEOPLE) == len(open_store(store).trials) == 36
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "encoder: 24 train trials, 24 trials of 6 people encoded"
    assert out[-1] == "encoder: 4 test trials, from the cache"


def test_another_pooling_needs_no_second_pass(encoder, store, encoded):
    dataset = TrialDataset(store, "train", "published", BCIC)
    served(encoder, dataset)
    n = sum(encoded)
    assert same(served(encoder, dataset, "hemisphere"), direct(encoder, dataset, "hemisphere"))
    assert sum(encoded) == n + 3  # the noise trials


def test_only_people_without_tokens_are_encoded(encoder, store, encoded, capsys):
    small = dataclasses.replace(BCIC, people={"train": ("A01", "A02"), "val": PEOPLE[5:7], "test": PEOPLE[7:]})
    others = {"train": PEOPLE[:3], "val": (), "test": PEOPLE[3:]}
    served(encoder, TrialDataset(store, "test", "published", dataclasses.replace(BCIC, people=others)))
    before = sum(encoded)
    with pytest.raises(UserError, match="A03"):  # in no published split of the small one
        TrialDataset(store, "train", "published", small)
    dataset = TrialDataset(store, "train", "loso:A09", BCIC)  # A03 to A08 are known, none of A01 and A02
    capsys.readouterr()
    assert same(served(encoder, dataset), direct(encoder, dataset))
    assert sum(encoded) == before + 3 + 4 * len({t.subject for t in dataset.trials} & set(PEOPLE[:3]))
    assert f"{len(dataset)} train trials, 4 trials of 1 people encoded" in capsys.readouterr().out


def test_labels_are_no_part_of_it(encoder, store, encoded):
    dataset = TrialDataset(store, "train", "published", BCIC)
    served(encoder, dataset)
    n = sum(encoded)
    served(encoder, dataset.shuffled(seed=0))
    assert sum(encoded) == n + 3


def test_a_folder_that_cannot_be_written_is_a_notice(encoder, store, tmp_path, capsys):
    (tmp_path / "afile").write_text("x")
    dataset = TrialDataset(store, "test", "published", BCIC)
    tokens = TokenCache(tmp_path / "afile/cache", encoder, BCIC.montage, "region").tokens(dataset, CPU)
    assert same(tokens, direct(encoder, dataset)) and "--cache_dir names another" in capsys.readouterr().out


def test_an_empty_split_has_no_tokens(encoder, store, encoded):
    dataset = TrialDataset(store, "val", "published", BCIC)
    dataset.trials = []
    assert len(served(encoder, dataset)) == 0 and encoded == []


# ---------------------------------------------------------------- what must not come out of it


def test_people_who_change_splits_keep_their_own_tokens(encoder, store):
    served(encoder, TrialDataset(store, "train", "published", BCIC))
    people = {"train": PEOPLE[4:], "val": PEOPLE[2:4], "test": PEOPLE[:2]}
    swapped = dataclasses.replace(BCIC, people=people)
    for mode in ("train", "val", "test"):
        dataset = TrialDataset(store, mode, "published", swapped)
        assert [t.key for t in dataset.trials] == [
            t.key for t in split_trials(open_store(store), swapped)[mode]
        ] and same(served(encoder, dataset), direct(encoder, dataset))


def rewritten(store, change):
    """The store written anew with its rows changed."""
    opened = open_store(store)
    rows = change([(trial, opened.read(trial).copy()) for trial in opened.trials])
    write_store(store, {"sfreq": opened.sfreq, "dataset": "BCICIV2a"}, [rows])


def test_people_who_change_names_in_a_new_store_get_fresh_tokens(encoder, store):
    served(encoder, TrialDataset(store, "train", "published", BCIC))

    def change(rows):  # A01 and A02 under each other's name
        names = {"A01": "A02", "A02": "A01"}
        return [(dataclasses.replace(t, subject=names.get(t.subject, t.subject)), x) for t, x in rows]

    rewritten(store, change)
    dataset = TrialDataset(store, "train", "published", BCIC)
    assert same(served(encoder, dataset), direct(encoder, dataset))


def test_samples_that_change_places_in_a_new_store_get_fresh_tokens(encoder, store):
    before = served(encoder, TrialDataset(store, "train", "published", BCIC))

    def change(rows):
        samples = [x for _, x in rows]
        samples[0], samples[1] = samples[1], samples[0]
        return [(t, x) for (t, _), x in zip(rows, samples, strict=True)]

    rewritten(store, change)
    dataset = TrialDataset(store, "train", "published", BCIC)
    after = served(encoder, dataset)
    assert same(after, direct(encoder, dataset)) and not same(after, before)


def test_the_same_samples_at_another_rate_get_fresh_tokens(encoder, store):
    before = served(encoder, TrialDataset(store, "train", "published", BCIC))
    opened = open_store(store)
    rows = [(trial, opened.read(trial).copy()) for trial in opened.trials]
    write_store(store, {"sfreq": 100.0, "dataset": "BCICIV2a"}, [rows])
    dataset = TrialDataset(store, "train", "published", BCIC)
    after = served(encoder, dataset)
    assert same(after, direct(encoder, dataset)) and after.shape != before.shape


def test_a_pooling_defined_anew_under_its_name_gets_fresh_tokens(encoder, store, monkeypatch):
    dataset = TrialDataset(store, "train", "published", BCIC)
    before = served(encoder, dataset)
    monkeypatch.setitem(models.POOLINGS, "region", hemisphere)
    assert same(served(encoder, dataset), direct(encoder, dataset)) and len(before[0]) == 3

    def other_regions(electrodes, regions):  # the same names and sizes, other electrodes
        return {"frontal": [1], "parietal": [0, 2, 3, 4], "central": list(range(5, len(electrodes)))}

    monkeypatch.setitem(models.POOLINGS, "region", other_regions)
    after = served(encoder, dataset)
    assert same(after, direct(encoder, dataset)) and after.shape == before.shape and not same(after, before)


def test_a_pooling_that_computes_something_else_gets_fresh_tokens(encoder, store, monkeypatch, capsys):
    dataset = TrialDataset(store, "train", "published", BCIC)
    before = served(encoder, dataset)
    plain = EEGTokenReducer.forward
    monkeypatch.setattr(EEGTokenReducer, "forward", lambda self, features: plain(self, features).square())
    after = served(encoder, dataset)
    assert same(after, before.square()) and "computes something else" in capsys.readouterr().out


def test_an_encoder_that_computes_something_else_with_the_same_weights_gets_fresh_tokens(encoder, store, monkeypatch):
    dataset = TrialDataset(store, "train", "published", BCIC)
    before = served(encoder, dataset)
    plain = CSBrain.forward
    monkeypatch.setattr(CSBrain, "forward", lambda self, x, mask=None: 1.01 * plain(self, x, mask))
    assert same(served(encoder, dataset), 1.01 * before)
    monkeypatch.setattr(CSBrain, "forward", plain)
    assert same(served(encoder, dataset), before)
    prepare = CSBrain.prepare
    monkeypatch.setattr(CSBrain, "prepare", lambda self, x, sfreq: prepare(self, x, sfreq)[:, :, ::-1].copy())
    after = served(encoder, dataset)
    assert same(after, direct(encoder, dataset)) and not same(after, before)


@pytest.mark.parametrize("change", [0.1, 2e-4], ids=["plain to see", "too small for the noise trial to show"])
def test_other_weights_get_fresh_tokens(encoder, store, change):
    dataset = TrialDataset(store, "train", "published", BCIC)
    before = served(encoder, dataset)
    encoder.proj_out[0].bias += change
    after = served(encoder, dataset)
    assert same(after, direct(encoder, dataset)) and not same(after, before)


@pytest.mark.parametrize("place", [0.0, 0.01, 0.02, 0.05, 0.3, 0.6, 0.9, 1.0])
def test_a_flipped_byte_in_a_cache_file_is_noticed(encoder, store, place):
    """In its length, its header, its tokens and its noise trial."""
    dataset = TrialDataset(store, "test", "published", BCIC)
    before = served(encoder, dataset)
    for path in files(store):
        raw = bytearray(path.read_bytes())
        raw[round(place * (len(raw) - 1))] ^= 0x10
        path.write_bytes(raw)
    assert same(served(encoder, dataset), before)
    assert same(served(encoder, dataset), before)  # and what was kept in its place is whole


def test_a_cache_file_of_other_trials_or_of_nothing_is_not_believed(encoder, store):
    dataset = TrialDataset(store, "test", "published", BCIC)
    before = served(encoder, dataset)
    for path in files(store):
        path.write_bytes(b"")
    assert same(served(encoder, dataset), before)


def test_a_flipped_byte_in_the_stored_samples_is_an_error(encoder, store):
    dataset = TrialDataset(store, "test", "published", BCIC)
    served(encoder, dataset)
    trial = dataset.trials[2]
    raw = bytearray((store / "data.mdb").read_bytes())
    place = raw.index(dataset.store.read(trial).tobytes()[:64])
    raw[place + 1001] ^= 1
    with open(store / "data.mdb", "r+b") as file:
        file.seek(place + 1001)
        file.write(raw[place + 1001 : place + 1002])
    message = f"damaged: the samples of trial {trial.key}"
    with pytest.raises(UserError, match=message):
        served(encoder, dataset)  # a store that was opened, and read, while the samples were whole
    with pytest.raises(UserError, match=message):
        served(encoder, TrialDataset(store, "test", "published", BCIC))
    with pytest.raises(UserError, match=message):
        served(encoder, TrialDataset(store, "test", "loso:A08", BCIC))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_encoder_that_gives_no_numbers_is_an_error_and_nothing_is_kept(encoder, store, monkeypatch, bad):
    dataset = TrialDataset(store, "test", "published", BCIC)
    plain = CSBrain.forward

    def spoilt(self, x, mask=None):
        features = plain(self, x, mask)
        features[1:2, 3, 0, 7] = bad  # the second trial of a batch
        return features

    monkeypatch.setattr(CSBrain, "forward", spoilt)
    with pytest.raises(UserError, match=f"NaN or infinity for trial {dataset.trials[1].key}"):
        served(encoder, dataset)
    assert files(store) == []


def test_a_preparation_that_clips_large_samples_gives_fresh_tokens(encoder, store, encoded, monkeypatch):
    """Noise of the usual amplitude does not reach the limit; trials with artefacts do."""
    dataset = TrialDataset(store, "train", description=BCIC)
    served(encoder, dataset)
    before = sum(encoded)
    original = CSBrain.prepare
    monkeypatch.setattr(CSBrain, "prepare", lambda self, x, sfreq: original(self, np.clip(x, -300, 300), sfreq))
    assert same(served(encoder, dataset), direct(encoder, dataset))
    assert sum(encoded) == before + 3 + len(dataset)


def test_a_run_that_dies_loses_one_files_work(encoder, store, encoded, monkeypatch):
    monkeypatch.setattr(tokens, "FILE", 2)
    dataset = TrialDataset(store, "train", "published", BCIC)  # five people of four trials: ten files
    plain, kept = tokens.keep, []

    def dies(tensors, path):
        if len(kept) == 12:  # region and hemisphere of six files
            raise KeyboardInterrupt
        kept.append(path)
        plain(tensors, path)

    monkeypatch.setattr(tokens, "keep", dies)
    with pytest.raises(KeyboardInterrupt):
        served(encoder, dataset)
    monkeypatch.setattr(tokens, "keep", plain)
    encoded.clear()
    assert same(served(encoder, dataset), direct(encoder, dataset))
    assert sum(encoded) == len(tokens.PROBES) + 2 * 4  # and not the twelve trials that were kept
    assert not [path for path in store.parent.glob("token_cache/.*")]


def test_of_two_processes_each_begins_with_its_own_half_and_finds_the_others(encoder, store, encoded, monkeypatch):
    monkeypatch.setattr(tokens, "FILE", 2)
    dataset = TrialDataset(store, "train", "published", BCIC)  # ten files
    plain, kept = tokens.keep, []

    def half(tensors, path):
        plain(tensors, path)
        kept.append(path)
        if len(kept) % 10 == 0:  # region and hemisphere of five files
            raise KeyboardInterrupt

    monkeypatch.setattr(tokens, "keep", half)
    for rank in range(2):  # which know nothing of one another
        with pytest.raises(KeyboardInterrupt):
            TokenCache(store.parent / str(rank), encoder, BCIC.montage, "region", (rank, 2)).tokens(dataset, CPU)
    assert len({path.name for path in kept}) == 20
    (store.parent / "token_cache").mkdir()
    for path in kept:
        path.rename(store.parent / "token_cache" / path.name)
    encoded.clear()
    for rank in range(2):
        found = TokenCache(None, encoder, BCIC.montage, "region", (rank, 2)).tokens(dataset, CPU)
        assert same(found, direct(encoder, dataset))
    assert sum(encoded) == 2 * len(tokens.PROBES)


def test_a_cache_file_under_another_files_name_is_not_believed(encoder, store, encoded):
    dataset = TrialDataset(store, "val", "published", BCIC)
    right = served(encoder, dataset)
    one, other = sorted(store.parent.glob("token_cache/*.safetensors"))[:2]
    one.write_bytes(other.read_bytes())
    assert same(served(encoder, dataset), right)
    assert same(served(encoder, dataset, "hemisphere"), direct(encoder, dataset, "hemisphere"))


def test_two_processes_with_one_cache_encode_once(encoder, store, encoded):
    dataset = TrialDataset(store, "val", "published", BCIC)
    cache = TokenCache(None, encoder, BCIC.montage, "region")
    person = [trial for trial in dataset.store.trials if trial.subject == dataset.trials[0].subject]
    cache._probes = cache._encode([cache._probe(dataset)], CPU)
    path = cache._path(dataset, person, "region")
    path.parent.mkdir()
    other = holder(path.with_name(f".{path.stem}.lock"), 1.5)  # who is encoding these trials right now
    ready = TokenCache(store.parent / "elsewhere", encoder, BCIC.montage, "region")
    ready.tokens(dataset, CPU)
    for file in (store.parent / "elsewhere").iterdir():
        file.rename(path.parent / file.name)
    encoded.clear()
    assert same(cache.tokens(dataset, CPU), direct(encoder, dataset)) and sum(encoded) == 0
    other.wait()


@pytest.mark.parametrize("part", [((0.0, 1.0), None), ((1.0, 2.0), None), (None, ["frontal", "central"])])
def test_another_part_of_the_trials_gets_tokens_of_its_own(tmp_path, part):
    store = small_store(tmp_path / "store", BCIC, PEOPLE, seconds=2.0)
    whole = TrialDataset(store, "val", description=BCIC)
    some = whole.part(*part)
    made = {}
    for name, dataset in (("whole", whole), ("some", some), ("again", some)):
        encoder = tokens.encoder_for(dataset, "csbrain", None)
        splits, _ = tokens.with_features({"val": dataset}, encoder, True, "region", None, CPU)
        made[name] = splits["val"].tokens
        with torch.no_grad():
            x = torch.from_numpy(np.stack([encoder.prepare(dataset.samples(t), dataset.sfreq) for t in dataset.trials]))
            direct_ones = reducer_for(encoder, dataset.montage, "region")(encoder(x))
        assert torch.allclose(made[name], direct_ones, atol=1e-5 * direct_ones.abs().max().item())
    assert torch.equal(made["some"], made["again"])
    assert made["whole"].shape != made["some"].shape or not same(made["whole"], made["some"])


def test_a_random_preparation_is_refused_before_its_tokens_are_kept(encoder, store):
    plain, rng = encoder.prepare, np.random.default_rng(0)
    encoder.prepare = lambda x, sfreq: plain(x + rng.standard_normal(x.shape).astype(np.float32), sfreq)
    dataset = TrialDataset(store, "val", "published", BCIC)
    with pytest.raises(UserError, match="random, and what it gives is kept"):
        tokens.with_features({"val": dataset}, encoder, True, "region", None, CPU)
    assert not files(store)
