"""What holds for the repository as a whole: who may import whom, and that scripts start from anywhere."""

import argparse
import ast
import runpy
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
ROOMS = ("utils", "readers", "datasets", "models", "stages", "evaluation", "demo")
# arrows run down only: a room may import itself and these
MAY_IMPORT = {
    "utils": set(),
    "readers": {"utils"},
    "datasets": {"readers", "utils"},
    "models": {"readers", "utils"},
    "stages": {"readers", "datasets", "models", "utils"},
    "evaluation": {"stages", "readers", "datasets", "models", "utils"},
    "demo": {"datasets", "models", "utils"},
}
JUDGES = ("evaluate.py", "retrieve.py", "draw_true_class.py", "attribute.py")  # scripts that may import evaluation/


def imported(path):
    """Top-level names of all modules that a file imports, inside functions as well."""
    tree = ast.parse(path.read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree)), f"{path}: a relative import"
    return {
        n.split(".")[0]
        for n in [*names, *(a.name for i in ast.walk(tree) if isinstance(i, ast.Import) for a in i.names)]
    }


def files_of(room):
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, room
    return found


def test_rooms_are_what_there_is():
    here = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert here == set(ROOMS) | (here & {"tests"})


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_that_it_may(room):
    forbidden = set(ROOMS) - MAY_IMPORT[room] - {room} | {script.removesuffix(".py") for script in SCRIPTS} | {"tests"}
    for path in files_of(room):
        assert not imported(path) & forbidden, path


def test_no_script_but_its_own_imports_the_demo():
    for path in (ROOT / script for script in SCRIPTS):
        if path.name not in ("prepare_demo.py", "train_demo_images.py"):
            assert "demo" not in imported(path), path


def test_training_and_drawing_know_nothing_of_evaluation():
    assert {script for script in SCRIPTS if "evaluation" in imported(ROOT / script)} <= set(JUDGES)


def modules_imported(path):
    """Names of the project's modules that a file imports, inside functions as well."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names]
    names += [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    return {name for whole in names for name in (whole, whole.rpartition(".")[0])}


def test_no_circle_of_imports():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for room in ROOMS for path in files_of(room)}
    arrows = {name: (modules_imported(path) & set(files)) - {name} for name, path in files.items()}
    assert sum(map(len, arrows.values())) > 100
    while leaves := [name for name, to in arrows.items() if not to]:
        arrows = {name: to - set(leaves) for name, to in arrows.items() if name not in leaves}
    assert not arrows, f"a circle among {', '.join(sorted(arrows))}"


def test_no_script_imports_another():
    for script in SCRIPTS:
        assert not imported(ROOT / script) & {s.removesuffix(".py") for s in SCRIPTS}, script


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "demo"])
def test_no_room_knows_the_command_line(room):
    """Functions take what they need, by name; a bag of flags goes no further than a script."""
    for path in files_of(room):
        if path != ROOT / "utils/flags.py":
            tree = ast.parse(path.read_text())
            names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
                n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)
            }
            assert "args" not in names, path
            assert room == "utils" or "argparse" not in imported(path), path


def test_nothing_is_executed_that_a_file_says():
    """No pickle but the safe one, no torch.load with code, no eval, no shell."""
    for path in (*(ROOT / script for script in SCRIPTS), *(path for room in ROOMS for path in files_of(room))):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads"), f"{path}: {name}"
            assert name != "torch.load" or keywords.get("weights_only") == "True", f"{path}: {name}"
            assert "shell" not in keywords and keywords.get("allow_pickle") != "True", f"{path}: {name}"


# ---------------------------------------------------------------- what keeps a script readable


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_asks_its_flags_seldom(script):
    text = (ROOT / script).read_text()
    (main,) = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    asks = [
        n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.If) and any(isinstance(x, ast.Name) and x.id == "args" for x in ast.walk(n.test))
    ]
    assert text.count("\n") <= 360 and main.end_lineno - main.lineno < 110 and len(asks) <= 12


def test_lines_are_short_and_the_formatter_lays_them_out():
    files = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    assert len(files) > 150
    scripts = [*files, *(ROOT / "sh").glob("*.sh"), ROOT / ".ci/run"]
    long = [f"{path}:{n}" for path in scripts for n, line in enumerate(path.open(), 1) if len(line) > 121]
    assert not long, long[:10]
    code = [path.read_text() for path in files if "tests" not in path.parts]
    assert sum(text.count("# fmt: skip") for text in code) <= 60
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    blocks = "".join(readme.split("```")[1::2]).splitlines()
    assert max(map(len, blocks)) <= 110


def parser_of(script, monkeypatch):
    """The parser with which a script reads its arguments, and what it does with it left out."""
    caught = []

    def parse_args(parser, *_, **__):
        caught.append(parser)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    (parser,) = caught
    return parser


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_explained_and_shows_the_default_that_it_has(script, monkeypatch):
    parser = parser_of(script, monkeypatch)
    assert script in parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        formatter = parser._get_formatter()
        formatter.add_argument(action)
        text = " ".join(formatter.format_help().split())
        assert action.help and len(action.help) > 3, action.dest
        if action.default is None or action.default is False or action.default is argparse.SUPPRESS:
            continue
        assert text.count("(default") == 1, text
        if "(default" not in action.help:
            assert f"(default: {action.default})" in text.replace("- ", "-"), text


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
