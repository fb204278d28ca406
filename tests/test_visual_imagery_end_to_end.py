"""Pipelines 2 and 3, from the raw files to the pictures, on real recordings in three containers (9 trials a split)."""

import json

from tests.conftest import read_jsonl


def test_both_pipelines_run_on_real_recordings(shared, vi_demo, script, tmp_path):
    raw, store = shared / "real/visual_imagery_raw", tmp_path / "store"
    done = script("prepare_data_vi.py", "--skip_download", "--raw_dir", raw, "--lmdb_dir", store, "--workers", 1)
    assert done.code == 0, done.err
    flags = {"datasets_dir": store, "epochs": 2, "warmup_epochs": 1}
    text = {"downstream_dataset": "VI", "token_pooling": "region"}
    done = script("finetune_eeg_llm.py", *vi_demo.training(tmp_path / "text", **flags, **text))
    assert done.code == 0, done.err
    done = script("finetune_eeg_to_image.py", *vi_demo.mapping(tmp_path / "direct", **flags))
    assert done.code == 0, done.err
    for run in ("text", "direct"):
        results = json.loads((tmp_path / run / "results.json").read_text())
        assert all(result["n"] == 9 and result["p"] <= 1 for result in results["test"].values())

    flags = {"datasets_dir": store, "num_samples": 3, "num_inference_steps": 2}
    text = {"projection_path": tmp_path / "text", "image_model": vi_demo.pth / "amused"}
    done = script("generate_vi.py", *vi_demo.vi_generation(tmp_path / "vi", **flags, **text))
    assert done.code == 0, done.err
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(
        tmp_path / "vi_direct", **flags, mapper_path=tmp_path / "direct", conditioning="blend"
    ))  # fmt: skip
    assert done.code == 0, done.err
    for folder in ("vi", "vi_direct"):
        assert len(read_jsonl(tmp_path / folder / "decoded.jsonl")) == 3
        assert len(list((tmp_path / folder).glob("comparison_*.png"))) == 3
        assert (tmp_path / folder / "summary_grid.png").exists()
    done = script("evaluate.py", tmp_path / "text", tmp_path / "direct", "--output_dir", tmp_path / "tables")
    assert done.code == 0 and "| direct | head |" in done.out and "| text | keyword |" in done.out
    assert sum("(trials of these people)" in line for line in done.out.splitlines()) == 5  # three read-outs, and two
    assert (tmp_path / "tables/confusion_direct.png").exists()
