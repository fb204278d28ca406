import pytest
import torch

from stages.runs import Run, best_epoch, keep_epochs, validation_line
from stages.scores import measured
from utils.checkpoints import read_checkpoint, save_checkpoint
from utils.errors import UserError


def epoch(number, head, line=None):
    return {"epoch": number, "val": {"head": {"accuracy": head, "n": 60, "recording_line": line}}}


def test_the_earlier_of_equally_good_epochs_is_the_best_and_without_validation_the_last():
    assert best_epoch([epoch(1, 0.2), epoch(2, 0.5), epoch(3, 0.5), epoch(4, 0.4)], "head")["epoch"] == 2
    assert best_epoch([{"epoch": 1, "val": {}}, {"epoch": 2, "val": {}}], "head")["epoch"] == 2


def test_the_line_of_an_epoch_has_n_and_the_recordings_worth():
    assert validation_line(epoch(1, 0.25)["val"]) == "head 25.0 %, n = 60"
    assert validation_line(epoch(1, 0.25, 0.3)["val"]) == "head 25.0 %, n = 60; the recording alone gives 30.0 %"
    assert validation_line({}) == "none"


SETTINGS = {"resume": False, "lr": 0.1, "epochs": 3, "cuda": 0}


def opened(folder, settings=SETTINGS, free=("epochs",), store="abc"):
    run = Run(folder, ["epoch{}.pth"], "head")
    run.open(settings, set(free), {"store": store})
    return run


def finished(folder, settings=SETTINGS, store="abc"):
    """A run's folder after its first epoch."""
    run = opened(folder, settings, store=store)
    assert run.state == {}
    run.begin()
    save_checkpoint(
        {"epoch": 1, "w": torch.ones(2), "history": [{"phase": "warmup"} | epoch(1, 0.5)]}, folder / "last.pth"
    )


def test_a_run_goes_on_where_it_stopped_and_only_when_asked(tmp_path):
    finished(tmp_path / "run")
    with pytest.raises(UserError, match="holds finished epochs; go on with --resume"):
        opened(tmp_path / "run")
    free = SETTINGS | {"resume": True, "epochs": 9, "cuda": -1}
    run = opened(tmp_path / "run", free)
    assert run.state["epoch"] == 1 and run.state["w"].tolist() == [1, 1]
    assert len(run.history) == 1 and list(run.epochs(3)) == [2, 3]


@pytest.mark.parametrize(
    "changes, store, message", [({"lr": 0.2}, "abc", "lr was 0.1 and is 0.2"), ({}, "xyz", "another store")]
)
def test_a_run_does_not_go_on_with_other_settings_or_other_data(tmp_path, changes, store, message):
    finished(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "run", SETTINGS | {"resume": True} | changes, store=store)


def test_a_run_of_before_a_flag_existed_had_its_default(tmp_path):
    finished(tmp_path / "run")
    new = SETTINGS | {"resume": True, "mixup": 0.0, "defaults": {"mixup": 0.0, "lr": 0.1}}
    assert opened(tmp_path / "run", new).state["epoch"] == 1
    with pytest.raises(UserError, match="mixup was 0.0 and is 0.5"):
        opened(tmp_path / "run", new | {"mixup": 0.5})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fixed": 3}', '{"fixed": {}, "depends_on": []}', "\ud800"])
def test_a_damaged_record_of_a_run_is_one_line(tmp_path, text):
    finished(tmp_path / "run")
    (tmp_path / "run/run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="run.json"):
        opened(tmp_path / "run", SETTINGS | {"resume": True})


@pytest.mark.parametrize("keep, stay", [
    (["best"], {2}), (["last"], {2, 4}), (["best", "last"], {2, 4}), (["all"], {1, 2, 3, 4}), (["last", "all"], {1, 2,
    3, 4}),
])  # fmt: skip
def test_checkpoints_that_nobody_asked_for_go_and_the_best_one_stays(tmp_path, keep, stay):
    for number in range(1, 5):
        (tmp_path / f"projection_epoch{number}.pth").write_bytes(b"x")
        (tmp_path / f"lora_epoch{number}").mkdir()
        (tmp_path / f"lora_epoch{number}/adapter").write_bytes(b"x")
    (tmp_path / "last.pth").write_bytes(b"x")
    history = [epoch(1, 0.2), epoch(2, 0.5), epoch(3, 0.5), epoch(4, 0.4)]
    keep_epochs(tmp_path, history, keep, "head", ("projection_epoch{}.pth", "lora_epoch{}"))
    for pattern in ("projection_epoch{}.pth", "lora_epoch{}"):
        assert {number for number in range(1, 5) if (tmp_path / pattern.format(number)).exists()} == stay
    assert (tmp_path / "last.pth").exists()


def test_a_folder_with_somebody_elses_checkpoints_is_refused_and_an_empty_one_starts_anew(tmp_path, capsys):
    assert (
        opened(tmp_path / "new", SETTINGS | {"resume": True}).state == {} and "starting anew" in capsys.readouterr().out
    )
    (tmp_path / "epoch7.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="checkpoints of another run"):
        opened(tmp_path)


@pytest.mark.parametrize("history", [
    None, [], {}, [3], [{"x": 1}], [{"epoch": 2, "phase": "joint", "val": {}}], [{"epoch": True, "phase": "joint",
    "val": {}}],
    [{"epoch": "1/../../precious", "phase": "joint", "val": {}}], [{"epoch": 1, "phase": "joint", "val": {"head": 3}}],
])  # fmt: skip
def test_a_state_whose_epochs_are_none_is_refused_since_files_are_named_after_them(tmp_path, history):
    finished(tmp_path / "run")
    save_checkpoint({"history": history}, tmp_path / "run/last.pth")
    with pytest.raises(UserError, match="last.pth is not what a run"):
        opened(tmp_path / "run", SETTINGS | {"resume": True})


def whole_run(folder, shuffled=False, epochs=2):
    """A run of two epochs with a measure, from its beginning to its end."""
    run = Run(folder, ["epoch{}.pth"], "cosine")
    run.open(SETTINGS | {"shuffle_labels": shuffled}, set(), {})
    run.begin()
    for number in run.epochs(epochs):
        run.trained(1.0)
        score = measured("cosine", [0.5 / number, 0.1])
        run.save_epoch(1.0, {"cosine": score}, [{"w": torch.full((2,), float(number)), "window": None}], {})
    run.finish([], shuffled, {"cosine": measured("cosine", [0.25, 0.25, 0.1] if not shuffled else [0.0, 0.1])})
    return folder


def test_a_finished_run_leaves_its_best_epoch_as_safetensors_and_a_card_and_both_are_the_same_when_repeated(tmp_path):
    run = whole_run(tmp_path / "run")
    content = read_checkpoint(run / "model.safetensors")
    assert content["w"].tolist() == [1, 1] and content["epoch"] == 1 and content["window"] is None
    card = (run / "README.md").read_text()
    assert "Epoch 1, the best one by cosine" in card and "| test | cosine | cosine 0.200 | 3 |" in card
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "timing.jsonl"}
    again = Run(run, ["epoch{}.pth"], "cosine")
    again.open(SETTINGS | {"shuffle_labels": False, "resume": True}, set(), {})
    again.begin()
    again.finish([], False, {"cosine": measured("cosine", [0.25, 0.25, 0.1])})
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "timing.jsonl"} == before


def test_a_control_that_ends_puts_its_scores_into_its_runs_card_unless_somebody_has_edited_that(tmp_path, capsys):
    run = whole_run(tmp_path / "run")
    assert "No shuffled-label control is known" in (run / "README.md").read_text()
    whole_run(tmp_path / "run_shuffled", shuffled=True)
    card = (run / "README.md").read_text()
    assert "| test, shuffled-label control | cosine | cosine 0.050 | 2 |" in card
    assert "**A shuffled-label control.**" in (tmp_path / "run_shuffled/README.md").read_text()
    edited = whole_run(tmp_path / "edited") / "README.md"
    edited.write_text(edited.read_text() + "ours\n")
    whole_run(tmp_path / "edited_shuffled", shuffled=True)
    assert edited.read_text().endswith("ours\n")
    (whole_run(tmp_path / "damaged") / "run.json").write_text("{")
    assert (whole_run(tmp_path / "damaged_shuffled", shuffled=True) / "results.json").is_file()
    assert "was not renewed" in capsys.readouterr().out


def test_a_run_whose_folder_is_moved_meanwhile_ends_and_makes_no_second_half(tmp_path):
    run = opened(tmp_path / "run")
    run.begin()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was moved or removed"):
        run.save_epoch(0.1, {}, [{}], {})
    assert not (tmp_path / "run").exists()
