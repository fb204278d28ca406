"""What holds for the repository as a whole: who may import whom, and that scripts start from anywhere."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def imported(path):
    tree = ast.parse(path.read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    return {
        n.split(".")[0]
        for n in [*names, *(a.name for i in ast.walk(tree) if isinstance(i, ast.Import) for a in i.names)]
    }


def test_rooms_import_only_what_they_may():
    forbidden = {"datasets": {"models"}, "models": {"datasets"}, "utils": {"models", "datasets"}}
    for room, others in forbidden.items():
        for path in (ROOT / room).glob("*.py"):
            assert not imported(path) & (others | {s.removesuffix(".py") for s in SCRIPTS}), path


def test_no_script_imports_another():
    for script in SCRIPTS:
        assert not imported(ROOT / script) & {s.removesuffix(".py") for s in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_from_another_folder_and_explains_every_flag(script, tmp_path):
    (tmp_path / "datasets.py").write_text("raise RuntimeError('the wrong datasets')")
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "python " + script in done.stdout
    flags = [line for line in done.stdout.splitlines() if line.startswith("  --")]
    assert flags


def test_our_datasets_package_wins_over_the_library_of_that_name(tmp_path):
    """As if the library were installed: a package of its name, with its version, in site-packages."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/__init__.py").write_text("Dataset = IterableDataset = object\n__version__ = '5.2.0'\n")
    (tmp_path / "datasets-5.2.0.dist-info").mkdir()
    (tmp_path / "datasets-5.2.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: datasets\nVersion: 5.2.0\n"
    )
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); sys.path.insert(0, {str(ROOT)!r}); "
        "from accelerate.utils import is_datasets_available; assert is_datasets_available(); "
        "import runpy; sys.argv = ['finetune_eeg_llm.py', '--help']; "
        f"runpy.run_path({str(ROOT / 'finetune_eeg_llm.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_shell_scripts_are_well_formed():
    for path in (*(ROOT / "sh").glob("*.sh"), ROOT / ".ci/run"):
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0, path
