"""Which functions of the project open a file: found in its text, to compare with those that the harness reaches."""

import ast
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.paths import ROOT

# rooms that read; demo/ and benchmarks/ read what they or the project have made
ROOMS = ("utils", "readers", "datasets", "models", "stages", "evaluation")
# what opens a file or a folder of a model, however it is called: builtins, Path's methods, libraries' readers
OPENERS = {"open", "read_bytes", "read_text", "memmap", "mmap", "fromfile", "loadmat", "whosmat", "safe_open",
           "load_file", "from_pretrained", "_from_pretrained", "get_config_dict", "load_config", "ZipFile", "FileIO",
           "hf_hub_download", "plain_bytes"}  # fmt: skip
OF_LIBRARIES = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("json", "load"), ("pickle", "load")}
OWN = {("self", "open"), ("run", "open")}  # a training's life begins with `run.open`
WRITING = set("wax+")


def opens(node: ast.AST) -> bool:
    """Whether this names something that opens a file to read it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        modes += [k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        if name == "open" and any(set(mode) & WRITING for mode in modes if len(mode) <= 3):
            return False
        return opens(node.func)
    if isinstance(node, ast.Attribute):
        of = node.value.id if isinstance(node.value, ast.Name) else ""
        return (node.attr in OPENERS and (of, node.attr) not in OWN) or (of, node.attr) in OF_LIBRARIES
    return isinstance(node, ast.Name) and node.id in OPENERS


def functions(tree: ast.AST, place: str) -> Iterator[tuple[str, ast.AST]]:
    """Functions and methods, each by its name in full; one inside another belongs to the outer one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{place}.{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{place}.{node.name}", node


def that_open_files(root: Path = ROOT) -> dict[str, tuple[str, int, int]]:
    """Functions that open a file: name in full, `readers.matlab.check_mat`, → file, first line, last line."""
    files = [path for room in ROOMS for path in sorted((root / room).glob("*.py"))]
    found = {}
    for path in [*files, *root.glob("*.py")]:
        place = ".".join(path.relative_to(root).with_suffix("").parts)
        for name, function in functions(ast.parse(path.read_text(encoding="utf-8")), place):
            body = [node for part in function.body for node in ast.walk(part)]
            called = [node for node in body if not isinstance(node, ast.Name)]  # a variable may be called `open`
            if any(map(opens, called)):
                found[name] = str(path), function.lineno, function.end_lineno
    return found


def reached_by(call: Callable[[], object], reached: set[tuple[str, int]]) -> object:
    """What a call gives; file and first line of all code that it runs are added to `reached`."""
    seen = set()

    def note(frame, event: str, _) -> None:  # of calls alone: nothing is traced inside them, which would take long
        seen.add(frame.f_code)

    before = sys.gettrace()
    sys.settrace(note)
    try:
        return call()
    finally:
        sys.settrace(before)
        reached |= {(code.co_filename, code.co_firstlineno) for code in seen}


def not_reached(reached: set[tuple[str, int]]) -> set[str]:
    """Names of the functions that open a file and that no code in `reached` is, or is part of."""
    reached = {(os.path.realpath(file), line) for file, line in reached}

    def is_reached(file: str, first: int, last: int) -> bool:
        return any(of == file and first - 3 <= line <= last for of, line in reached)  # decorators stand above

    return {name for name, place in that_open_files().items() if not is_reached(*place)}
