import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.recording import Trial
from datasets.visual_imagery_llm_dataset import DESCRIPTION as VI
from stages.rows import Readout, Row, draw_what, mapper_readouts, new_row, read_rows, text_readouts, write_rows
from utils.errors import UserError


def row(index=0, true=2, **changes):
    content = {"index": index, "subject": "A08", "session": "E", "run": 3, "trial": 12, "true_label": true,
               "true_name": BCIC.classes[true], "text": "a foot — “größe”\nand\ttab \u2028 🦶",
               "readouts": {"keyword": Readout(2, 0.25), "likelihood": Readout(1, 0.25, [0.1, 0.7, 0.15,
               0.05])}}  # fmt: skip
    return draw_what(Row(**content | changes), BCIC, "keyword")


@pytest.fixture
def written(tmp_path):
    """A file of three rows; gives the path of one whose second line is changed: by fields, or as a whole."""

    def run(line=None, **changes):
        lines = [asdict(row(k)) for k in (4, 7, 9)]
        lines[1] |= changes
        lines = [json.dumps(content) for content in lines]
        lines[1] = lines[1] if line is None else line
        (tmp_path / "decoded.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path / "decoded.jsonl"

    return run


def refused(path, *words, line=2):
    with pytest.raises(UserError) as error:
        read_rows(path)
    for word in (path.name, *words, *([f"line {line}"] if line else [])):
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


# ---------------------------------------------------------------- round trip


def test_rows_come_back_as_they_were_written(tmp_path):
    vi = Row(3, "S20", "02", 1, 5, 9, "chair", {"head": Readout(-1, 0.1), "prototype": Readout(9, 0.1, [0.1] * 10)},
             image="Object_chair.jpg", tasks=list(VI.tasks), embedding="ab12", embedding_of="sd")  # fmt: skip
    for rows in ([row(0), row(1, true=0), row(20, text="")], [vi]):
        write_rows(rows, tmp_path / "decoded.jsonl")
        assert read_rows(tmp_path / "decoded.jsonl") == rows
    assert [row.predicted_name for row in read_rows(tmp_path / "decoded.jsonl", VI.classes)] == [None]


def test_a_row_needs_no_more_than_its_trial_label_and_readouts(written):
    least = {"index": 7, "subject": "A01", "true_label": 0, "true_name": "x",
             "readouts": {"keyword": {"label": -1, "chance": 0.25}, "likelihood": {"label": 0,
             "chance": 0.25}}}  # fmt: skip
    assert read_rows(written(json.dumps(least)))[1].predicted_label == -1


# ---------------------------------------------------------------- what is believed of a file: nothing


NAN, HUGE = float("nan"), 10**12
WRONG = {
    "index": ["4", -1, 1.5, True, None, HUGE, NAN, [], "../../etc/passwd"],
    "run": ["3", -1, 1.5, None, NAN], "trial": ["3", -1, True, {}],
    "true_label": ["2", 4, -1, True, 1.0, NAN, None, "../../etc/passwd", "0/../.."],
    "predicted_label": ["2", 4, -2, True, 2.0, NAN, None, "../../etc/passwd"],
    "subject": [5, None, ["A01"], "\ud800", "A" * 5000], "session": [1, None, "\udfff"],
    "true_name": [2, None, "feet\ud83d"], "predicted_name": [3, [], "\ud800"], "text": [None, 3, ["a"], "\udc80",
    "word " * 1000],
    "image": [3, None, "\ud800"], "prompt": [None, {"a": 1}, "\ud800"], "embedding": [3], "embedding_of": [None],
    "tasks": ["abcd", ["AVI"], [1, 2, 3, 4], None, {"a": 1}, ["a", "b", "c", "\ud800"]],
}  # fmt: skip


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_another_type_or_range_is_one_line_that_names_the_files_line(written, name, value):
    refused(written(**{name: value}), "" if "\\ud" in repr(value) else name)


@pytest.mark.parametrize("readout", [
    3, None, [], {}, {"label": 1}, {"chance": 0.25}, {"label": 1, "chance": 0.25, "code": "x"},
    {"label": "1", "chance": 0.25}, {"label": 4, "chance": 0.25}, {"label": -2, "chance": 0.25}, {"label": True,
    "chance": 0.25},
    {"label": 1.0, "chance": 0.25}, {"label": "../x", "chance": 0.25},
    *({"label": 1, "chance": chance} for chance in (0, -0.25, 2, NAN, float("inf"), "0.25", True, None, 5e-324,
    10**400)),
    *({"label": 1, "chance": 0.25, "probabilities": p} for p in (
        [0.5, 0.5], [0.25] * 5, [], "abcd", {"0": 1}, [0.1, 0.2, 0.3, NAN], [0.1, 0.2, 0.3, float("inf")], [0.1, 0.2,
        0.3, "0.4"],
        [0.1, 0.2, 0.3, None], [True, False, False, False], [0.1, 0.2, 0.3, 10**400])),
])  # fmt: skip
def test_a_damaged_readout_is_one_line(written, readout):
    refused(written(readouts={"keyword": readout, "likelihood": {"label": 1, "chance": 0.25}}))


@pytest.mark.parametrize("readouts", [{}, [], 3, None, "text", {"\ud800": {"label": 0, "chance": 0.25}}])
def test_readouts_that_are_none_are_one_line(written, readouts):
    refused(written(readouts=readouts))


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "3", "null", '"text"', "{}", "not JSON", "[" * 100_000, '{"index": 1}', "9" * 5000]
)
def test_a_line_that_is_no_row_is_one_line(written, line):
    refused(written(line))


def test_a_field_that_no_row_has_and_one_that_every_row_has_are_named(written):
    refused(written(hacked=1), "hacked")
    for name in ("index", "subject", "true_label", "true_name", "readouts"):
        content = {k: v for k, v in asdict(row(7)).items() if k != name}
        refused(written(json.dumps(content)), name)


def test_files_that_are_missing_empty_or_no_text_are_one_line(tmp_path):
    path = tmp_path / "decoded.jsonl"
    refused(path, "not there", "--stage decode", line=None)
    path.write_text("")
    refused(path, "no trials", line=None)
    path.write_text("\n")
    refused(path, line=1)
    path.write_bytes(b'{"index": 0, "subject": "\xff"}\n')
    refused(path, "UTF-8", line=None)


def test_a_trial_that_comes_twice_is_refused(tmp_path):
    write_rows([row(4), row(5), row(4, true=0)], tmp_path / "decoded.jsonl")
    refused(tmp_path / "decoded.jsonl", "trial 4 twice", line=None)


@pytest.mark.parametrize("other", [
    {"readouts": {"keyword": Readout(2, 0.25)}},  # other read-outs
    {"readouts": {"keyword": Readout(2, 0.1), "likelihood": Readout(1, 0.1)}},  # ten classes after four
    {"readouts": {"keyword": Readout(2, 0.25), "likelihood": Readout(1, 0.5, [0.4, 0.6])}},  # two numbers of classes
    {"tasks": ["a", "a", "b", "b"]},  # recordings that hold some classes, after ones that hold all
])  # fmt: skip
def test_lines_that_do_not_belong_to_one_dataset_are_refused(tmp_path, other):
    path = tmp_path / "decoded.jsonl"
    write_rows([row(4), row(5)], path)
    assert len(read_rows(path)) == 2
    write_rows([row(4), row(5, **other)], path)
    refused(path, line=None)


def test_labels_mean_the_classes_that_they_should(tmp_path):
    path = tmp_path / "decoded.jsonl"
    write_rows([row(0), row(1, text="nothing")], path)
    assert [r.predicted_name for r in read_rows(path, BCIC.classes)] == ["feet", None]
    with pytest.raises(UserError, match="line 1.*'feet'.*dog"):
        read_rows(path, VI.classes)
    for changes in ({"true_name": "tongue"}, {"predicted_name": "tongue"}, {"predicted_name": None},
        {"predicted_label": -1},
                    {"predicted_label": 1}):  # fmt: skip
        path.write_text(json.dumps(asdict(row(0)) | changes) + "\n")
        with pytest.raises(UserError, match="line 1"):
            read_rows(path, BCIC.classes)


# ---------------------------------------------------------------- read-outs and what is drawn


def test_a_text_is_read_by_its_keywords_and_by_likelihood():
    readouts = text_readouts(BCIC, "the left hand", {"likelihood": [0.1, 0.2, 0.6000001234, 0.1]})
    assert readouts == {"keyword": Readout(0, 0.25), "likelihood": Readout(2, 0.25, [0.1, 0.2, 0.6, 0.1])}
    both = text_readouts(BCIC, "nothing", {"likelihood": [0.4, 0.2, 0.2, 0.2], "head": [0.1, 0.2, 0.1, 0.6]})
    assert both["keyword"].label == -1 and both["head"] == Readout(3, 0.25, [0.1, 0.2, 0.1, 0.6])
    assert text_readouts(VI, "a cup", {"likelihood": [0.1] * 10})["keyword"] == Readout(8, 0.1)


def test_what_is_drawn_comes_from_the_readout_and_never_from_the_true_label():
    for true in range(4):
        drawn = draw_what(row(true=true, text="the tongue"), BCIC, "keyword")
        assert (drawn.predicted_label, drawn.predicted_name, drawn.prompt) == (3, "tongue", BCIC.image_prompts[3])
        drawn = draw_what(row(true=true, text="the tongue"), BCIC, "likelihood")
        assert (drawn.predicted_label, drawn.predicted_name, drawn.prompt) == (1, "right hand", BCIC.image_prompts[1])
        drawn = draw_what(row(true=true, text="green ideas"), BCIC, "keyword")
        assert (drawn.predicted_label, drawn.predicted_name, drawn.prompt) == (-1, None, "green ideas")


def test_a_mappers_outputs_are_read_by_its_head_and_by_the_nearest_prototype():
    pooled = torch.tensor([[3.0, 0.1], [-0.1, 5.0]], requires_grad=True)
    logits = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    prototypes = torch.tensor([[10.0, 0.0], [0.0, 0.1], [-1.0, -1.0]])
    first, second = mapper_readouts((pooled, pooled, logits), prototypes)
    assert (first["head"].label, second["head"].label) == (1, 2)
    assert (first["prototype"].label, second["prototype"].label) == (0, 1)  # by direction, whatever the length
    for readout in (*first.values(), *second.values()):
        assert readout.chance == pytest.approx(1 / 3) and sum(readout.probabilities) == pytest.approx(1, abs=1e-5)
    assert first["head"].probabilities == pytest.approx(torch.tensor([0.0, 2.0, 0.0]).softmax(0).tolist(), abs=1e-6)


def test_a_new_row_tells_the_trial_and_the_label_that_the_dataset_gives_it():
    trial = Trial("S01-02-r3-t007", 8, "S01", "02", 3, 7, "Object_cup.jpg")
    dataset = SimpleNamespace(
        trials=[None, trial], labels=[0, 6], description=VI, simulated=True, uses="nothing"
    )  # labels may be shuffled
    made = new_row(dataset, 1, {"head": Readout(2, 0.1)}, "a text")
    assert (made.index, made.subject, made.session, made.run, made.trial) == (1, "S01", "02", 3, 7)
    assert (made.true_label, made.true_name, made.image, made.text) == (6, "scissor", "Object_cup.jpg", "a text")
    assert made.simulated
    assert made.tasks == ["AVI"] * 3 + ["FVI"] * 3 + ["OVI"] * 4
