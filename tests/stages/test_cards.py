"""The model card says what was trained on whom, with what score; and equal runs have equal cards."""

import json

import pytest
from huggingface_hub import ModelCard

from stages.cards import model_card, newest_card, read_control, write_card
from utils.errors import UserError

SCORE = {"accuracy": 0.5, "correct": 20, "n": 40, "people": 2, "low": 0.35, "high": 0.65, "chance": 0.25, "p": 0.001}
PEOPLE = {"people": ["A01", "A02"], "sessions": ["E", "T"], "trials": 40, "images": 0}


def a_run(folder, arguments=None, score=SCORE, **record):
    folder.mkdir()
    arguments = {"encoder": "eegnet", "downstream_dataset": "BCICIV2a", "shuffle_labels": False} | (arguments or {})
    data = {"dataset": "BCICIV2a", "protocol": "published", "simulated": False}
    data |= dict.fromkeys(("train", "val", "test"), PEOPLE)
    command = "python finetune_eeg_llm.py --encoder eegnet --model_dir /home/me/run"
    record = {"arguments": arguments, "command": command, "data": data, "environment": {"commit": "abc"}} | record
    (folder / "run.json").write_text(json.dumps(record))
    results = {"best_epoch": 2, "selected_by": "keyword", "val": {"keyword": score}, "test": {"keyword": score}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder, results


def test_a_card_says_who_how_well_and_by_which_command_and_its_head_is_the_hubs(tmp_path):
    folder, results = a_run(tmp_path / "run")
    (folder / "config.json").write_text('{"llm": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}')
    text = model_card(folder, results)
    card = ModelCard(text)
    assert card.data.library_name == "eeg2image" and {"eeg", "eeg-to-text", "encoder-eegnet"} <= set(card.data.tags)
    assert card.data.base_model == "TinyLlama/TinyLlama-1.1B-Chat-v1.0" and card.data.datasets == ["BCICIV2a"]
    (score,) = card.data.eval_results
    assert (score.metric_value, score.dataset_split, score.metric_args["n"], score.metric_args["chance"]) == (
        0.5, "test", 40, 0.25,
    )  # fmt: skip
    assert "| test | 2 | A01, A02 | E, T | 40 |" in text and "--encoder eegnet --model_dir /home/me/run" in text
    assert "| test | keyword | 50.0 % | 40 | 2 | 35.0 % to 65.0 % | 25.0 % | 0.001 |" in text
    assert "No shuffled-label control is known" in text and "simulated" not in text
    assert text == model_card(folder, results)
    used = model_card(folder, results | {"uses": "all trials, unlabelled (transductive)"})
    assert "Used of the test person, besides the trial that is decoded: all trials, unlabelled" in used
    (score,) = ModelCard(used).data.eval_results
    assert score.metric_args["used_of_the_test_person"] == "all trials, unlabelled (transductive)"


def test_simulated_recordings_random_encoders_and_controls_are_said(tmp_path):
    data = {"dataset": "BCICIV2a", "protocol": "published", "simulated": True}
    data |= dict.fromkeys(("train", "val", "test"), PEOPLE)
    folder, results = a_run(tmp_path / "run", {"shuffle_labels": True, "use_pretrained_weights": False}, data=data)
    text = model_card(folder, results)
    assert "**Simulated recordings.**" in text and "**A shuffled-label control.**" in text and "random weights" in text
    assert {"simulated-data", "shuffled-label-control"} <= set(ModelCard(text).data.tags)


def test_measures_and_runs_without_test_trials_have_a_card(tmp_path):
    measure = {"measure": "cosine", "value": 0.25, "low": 0.2, "high": 0.3, "n": 40}
    folder, results = a_run(tmp_path / "run", {"what": "prior"}, measure, command="python train_prior.py --what prior")
    text = model_card(folder, results)
    assert "--prior_dir OWNER/NAME" in text and "--what prior." in text
    assert "| test | keyword | cosine 0.250 | 40 |" in text and ModelCard(text).data.metrics == ["cosine"]
    without = model_card(folder, results | {"test": {}, "val": {}})
    assert "no test score" in without and "the last one, as nothing validates" in without


def test_the_control_beside_a_run_stands_in_its_card_and_an_edited_card_stays(tmp_path):
    folder, results = a_run(tmp_path / "run")
    write_card(folder, model_card(folder, results))
    assert read_control(folder) is None
    a_run(tmp_path / "run_shuffled", {"shuffle_labels": True}, SCORE | {"accuracy": 0.26})
    assert "| test, shuffled-label control | keyword | 26.0 % |" in newest_card(folder)
    assert "No shuffled-label control is known" not in newest_card(folder)
    edited = (folder / "README.md").read_text().replace("# run", "# Our best run")
    write_card(folder, edited)
    assert newest_card(folder) == edited


@pytest.mark.parametrize("name, in_head", [("my data: 2nd try", "my-data-2nd-try"), ("é/é", "own"), ("VI", "VI")])
def test_own_data_sets_may_have_any_name(tmp_path, name, in_head):
    data = {"dataset": name, "protocol": "people:P1/P2", "simulated": False}
    data |= dict.fromkeys(("train", "val", "test"), PEOPLE | {"people": ["P|1", "P2"]})
    folder, results = a_run(tmp_path / "run | #1", data=data)
    text = model_card(folder, results)
    assert ModelCard(text).data.datasets == [in_head] and f"{name}, `--protocol people:P1/P2`" in text
    assert "| train | 2 | P/1, P2 |" in text


def test_a_run_of_before_has_a_card_that_says_what_is_not_known(tmp_path):
    folder, results = a_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({"arguments": record["arguments"]}))
    text = model_card(folder, results)
    assert "does not say whom" in text and "not recorded" in text and "| test | keyword | 50.0 % |" in text


def test_a_folder_of_that_name_that_is_no_control_is_none(tmp_path):
    folder, _ = a_run(tmp_path / "run")
    a_run(tmp_path / "run_shuffled")
    assert read_control(folder) is None


@pytest.mark.parametrize("record", [{"environment": 3}, {"data": {"dataset": "x"}}, {"command": ""}])
def test_a_damaged_record_is_a_line(tmp_path, record):
    folder, results = a_run(tmp_path / "run", **record)
    with pytest.raises(UserError, match="run.json"):
        model_card(folder, results)
