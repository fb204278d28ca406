import json

import numpy as np
import pytest

from datasets.visual_imagery_llm_dataset import DESCRIPTION as VI
from stages.rows import Readout, Row
from stages.scores import accuracy, score_rows


def test_an_accuracy_carries_n_people_interval_chance_and_p():
    score = accuracy([True] * 30 + [False] * 70, chance=0.25, people=3)
    assert (score.correct, score.n, score.people, score.accuracy, score.chance) == (30, 100, 3, 0.3, 0.25)
    assert (score.low, score.high) == pytest.approx((0.2189, 0.3958), abs=1e-4)  # Wilson, by hand
    assert score.p == pytest.approx(0.1495, abs=1e-3)  # P(X ≥ 30), X ~ B(100, 0.25)
    text = str(score)
    assert (
        "30.0 % (n = 100, 3 people" in text
        and "21.9 to 39.6 %" in text
        and "chance 25.0 %" in text
        and "p = 0.15" in text
    )
    assert score.task is score.within_task is score.recording_line is None and score.by_task == ""


def test_p_is_of_doing_this_well_and_not_of_doing_this_badly():
    assert accuracy([True] * 100, 0.25, 1).p < 1e-50 and "p < 0.0001" in str(accuracy([True] * 100, 0.25, 1))
    assert accuracy([False] * 100, 0.25, 1).p == 1
    assert accuracy([True, True], 0.5, 1).p == pytest.approx(0.25)


# ---------------------------------------------------------------- rows


def rows_of(true, tasks=(), people=("A08", "A09"), **labels):
    """A row a trial; `labels` by read-out: a label, or (label, probabilities)."""
    made = []
    for k, label in enumerate(true):
        said = {name: of[k] if isinstance(of[k], tuple) else (of[k], None) for name, of in labels.items()}
        n_classes = len(tasks) or 4
        readouts = {name: Readout(value, 1 / n_classes, p) for name, (value, p) in said.items()}
        made.append(
            Row(k, people[k % len(people)], "E", 1, k + 1, label, f"class {label}", readouts, tasks=list(tasks))
        )
    return made


def test_rows_are_scored_by_readout_and_no_class_counts_as_wrong():
    scores = score_rows(rows_of([0, 1, 2, 3], keyword=[0, -1, -1, 3], likelihood=[0, 1, 2, 0]))
    assert {name: score.correct for name, score in scores.items()} == {"keyword": 2, "likelihood": 3}
    assert all((score.n, score.people, score.chance) == (4, 2, 0.25) for score in scores.values())
    assert all(score.recording_line is None for score in scores.values())


def test_no_trials_give_no_accuracy():
    assert score_rows([]) == {}
    with pytest.raises(ValueError, match="no trials"):
        accuracy([], 0.25, 0)


# ---------------------------------------------------------------- Visual Imagery: recordings hold some classes only

TRUE = range(10)  # one trial a class: 0–2 animals, 3–5 figures, 6–9 objects
SAID = [0, 0, -1, 0, 4, 9, 6, 9, 8, 3]  # right: 0, 4, 6, 8; the right task besides: 1 and 7


def spoken(label, best_in_task):
    """Probabilities whose largest is at `label`, and of a trial's own task at `best_in_task`."""
    p = np.full(10, 0.02)
    p[best_in_task] = 0.2
    p[label] = 0.5
    return label, p.tolist()


def test_task_class_within_the_task_and_recording_line_are_what_is_counted_by_hand():
    said = [0, 0, 7, 0, 4, 9, 6, 9, 8, 3]  # as above, where trial 2 is taken for a watch
    best_in_task = [0, 0, 2, 3, 4, 4, 6, 9, 8, 9]  # right in 0, 2, 3, 4, 6, 8, 9
    scores = score_rows(
        rows_of(TRUE, VI.tasks, ("S20", "S21", "S22"), keyword=SAID, head=list(map(spoken, said, best_in_task)))
    )
    for score in scores.values():
        assert (score.correct, score.n, score.people, score.chance) == (4, 10, 3, 0.1)
        assert (score.task.correct, score.task.n, score.task.people) == (6, 10, 3)
        assert score.task.chance == pytest.approx(1 / 3)
        assert score.recording_line == pytest.approx(0.3)  # 3 × 1/3 + 3 × 1/3 + 4 × 1/4 of 10
    # a read-out without probabilities is asked on the six trials whose task it has right
    within = scores["keyword"].within_task
    assert (within.correct, within.n) == (4, 6) and within.chance == pytest.approx((3 / 3 + 3 / 4) / 6)
    # one with probabilities is asked among the classes of every trial's own task
    within = scores["head"].within_task
    assert (within.correct, within.n) == (7, 10) and within.chance == pytest.approx(0.3)
    text = str(scores["head"])
    assert "task 60.0 % (chance 33.3 %), within the task 70.0 % (n = 10, chance 30.0 %)" in text
    assert "knowing the recording alone gives 30.0 %" in text


def test_the_recording_line_follows_the_trials_that_there_are():
    for true, line in (([6, 9], 1 / 4), ([0, 5], 1 / 3), ([0, 1, 9], (2 / 3 + 1 / 4) / 3)):
        (score,) = score_rows(rows_of(true, VI.tasks, keyword=true)).values()
        assert score.recording_line == pytest.approx(line)


def test_knowing_the_recording_and_nothing_else_scores_its_line():
    """A read-out that knows the task and guesses inside it: far above 10 %, and no better than its line."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, 6000)
    of = np.array([VI.tasks.index(VI.tasks[label]) for label in true])
    guessed = [int(rng.integers(start, start + (4 if start == 6 else 3))) for start in of]
    (score,) = score_rows(rows_of(true.tolist(), VI.tasks, keyword=guessed)).values()
    assert score.task.accuracy == 1 and score.p < 1e-10
    assert score.accuracy == pytest.approx(score.recording_line, abs=0.025)
    assert score.within_task.accuracy == score.accuracy and score.within_task.p > 0.001


def test_where_no_task_is_right_nothing_is_said_about_the_class_within_it():
    (score,) = score_rows(rows_of([0, 3, 6], VI.tasks, keyword=[9, -1, 0])).values()
    assert score.task.correct == 0 and score.within_task is None and "within the task no trials" in str(score)


def test_scores_can_be_kept_as_json():
    scores = score_rows(rows_of(TRUE, VI.tasks, keyword=SAID))
    kept = json.loads(json.dumps(scores["keyword"].as_dict()))
    assert (
        kept["n"] == 10
        and kept["people"] == 2
        and kept["task"]["correct"] == 6
        and kept["recording_line"] == pytest.approx(0.3)
    )
