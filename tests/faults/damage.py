"""Ways to damage a file: bytes, text, and known formats from the inside."""

import functools
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------- damage to any file


def place(rng: np.random.Generator, n: int) -> int:
    """Somewhere in n bytes: anywhere, or near the beginning or the end, where headers and tables stand."""
    where, near = rng.random(), int(np.exp(rng.uniform(0, np.log(n)))) - 1
    return int(rng.integers(n)) if where < 0.4 else near if where < 0.75 else n - 1 - near


def block(rng: np.random.Generator, data: bytes, most: int = 4096) -> slice:
    """A block of 2 bytes or more, small ones as often as large ones."""
    size = int(np.exp(rng.uniform(np.log(2), np.log(most))))
    start = place(rng, len(data))
    return slice(start, min(start + size, len(data)))


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return (data[:at] + new + data[at + len(new) :])[: len(data)]


def flip_bit(rng, data):
    at = place(rng, len(data))
    return patched(data, at, bytes([data[at] ^ 1 << int(rng.integers(8))]))


def set_byte(rng, data):
    at = place(rng, len(data))
    return patched(data, at, bytes([int(rng.choice([0, 255, data[at] ^ 255, rng.integers(256)]))]))


def set_bytes(rng, data):
    for _ in range(int(rng.integers(2, 17))):
        data = set_byte(rng, data)
    return data


def set_number(rng, data):
    """An integer or a float of 2 to 8 bytes, where one may stand."""
    value = int(rng.choice([0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 10**6]))
    value = -value if rng.random() < 0.3 else value
    floats = [np.nan, np.inf, -np.inf, 1e30, 5e-324, -1.0]
    kinds = {
        "H": value & 0xFFFF,
        "I": value & 0xFFFFFFFF,
        "Q": value & 2**64 - 1,
        "f": rng.choice(floats),
        "d": rng.choice(floats),
    }
    code = str(rng.choice(list(kinds)))
    with np.errstate(over="ignore"):
        new = struct.pack(str(rng.choice(["<", ">"])) + code, kinds[code])
    return patched(data, place(rng, len(data)) // 4 * 4, new)


def overwrite(rng, data):
    part = block(rng, data)
    size = part.stop - part.start
    return patched(data, part.start, [bytes(size), b"\xff" * size, rng.bytes(size)][rng.integers(3)])


def truncate(rng, data):
    return data[: place(rng, len(data))]


def extend(rng, data):
    size = int(np.exp(rng.uniform(0, np.log(200_000))))
    return data + [bytes(size), rng.bytes(size), data[:size], data][rng.integers(4)]


def prepend(rng, data):
    return rng.bytes(int(rng.integers(1, 64))) + data


def delete_block(rng, data):
    part = block(rng, data)
    return data[: part.start] + data[part.stop :]


def duplicate_block(rng, data):
    part = block(rng, data)
    return data[: part.stop] + data[part.start :]


def move_block(rng, data):
    part, to = block(rng, data), place(rng, len(data))
    return patched(data, to, data[part])


def replace_all(rng, data):
    """What a failed download, or another program, may leave under the name."""
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
    return [b"", page, bytes(len(data)), rng.bytes(len(data)), b"\n", b"version https://git-lfs.github.com/spec/v1\n"][
        rng.integers(6)
    ]


BINARY = (flip_bit, set_byte, set_bytes, set_number, overwrite, truncate, extend, prepend, delete_block,
    duplicate_block,
          move_block, replace_all)  # fmt: skip

# ---------------------------------------------------------------- damage to text

NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
WORD = re.compile(rb"true|false|null|None|True|False")
TOKEN = re.compile(rb"[A-Za-z_0-9.]+|\S")


def changed(rng, data: bytes, pattern: re.Pattern, new: Sequence[bytes]) -> bytes:
    """One place that fits the pattern replaced; {} in the new text stands for the old one."""
    found = list(pattern.finditer(data))
    if not found:
        return data
    match = found[rng.integers(len(found))]
    return data[: match.start()] + new[rng.integers(len(new))].replace(b"{}", match[0]) + data[match.end() :]


def change_digit(rng, data):
    return changed(rng, data, re.compile(rb"\d"), [b"%d" % k for k in range(10)])


def change_number(rng, data):
    new = (b"0", b"-1", b"1", b"1.5", b"-{}", b"{}0", b"1e999", b"-1e999", b"NaN", b"Infinity", b"1e-320",
        b"4294967296",
           b"9223372036854775808", b"9" * 40, b"9" * 400, b"9" * 4200, b"9" * 5000, b'"{}"', b"[{}]")  # fmt: skip
    return changed(rng, data, NUMBER, new)


def change_word(rng, data):
    return changed(rng, data, WORD, (b"true", b"false", b"null", b"0", b'"{}"', b"[]", b"{}{}"))


def change_token(rng, data):
    return changed(
        rng, data, TOKEN, (b"", b"{}{}", b"{} {}", b"null", b"{}x", b"\x00", b"\xff\xfe", b"\\ud800", b"../../{}")
    )


def swap_tokens(rng, data):
    found = list(TOKEN.finditer(data))
    if len(found) < 2:
        return data
    a, b = sorted(rng.choice(len(found), 2, replace=False))
    a, b = found[a], found[b]
    return data[: a.start()] + b[0] + data[a.end() : b.start()] + a[0] + data[b.end() :]


def change_line(rng, data):
    """A line deleted, twice there, in another place, or cut off."""
    lines = data.splitlines(keepends=True)
    k, other = rng.integers(len(lines)), rng.integers(len(lines))
    new = [[], [lines[k]] * 2, [lines[other]], [lines[k][: len(lines[k]) // 2]], [b"\n", lines[k]]][rng.integers(5)]
    return b"".join([*lines[:k], *new, *lines[k + 1 :]])


def insert_surrogate(rng, data):
    return changed(rng, data, re.compile(rb'"'), (b'"\\ud800', b'"\\udfff\\ud800', b'"\\u0000'))


def nest(rng, data):
    depth = int(rng.choice([50, 900, 5000, 100_000]))
    new = (b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"(" * depth)
    return changed(rng, data, TOKEN, new)


def change_encoding(rng, data):
    return [b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), data.decode("utf-8", "replace").encode("utf-16"),
            data.replace(b'"', b"'"), b" " * 70_000 + data][rng.integers(5)]  # fmt: skip


def lengthen(rng, data):
    return changed(rng, data, TOKEN, (b"{}" + b"A" * 300, b"{}" + b"A" * 100_000, b"{}" + b"\xc3\xa9" * 5000))


def nested(depth: int) -> list:
    """A list in a list, …"""
    return functools.reduce(lambda inner, _: [inner], range(depth), [])


ODD = (None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 1e308, float("nan"), float("inf"), 0.5, -0.0, "",
    "x",
       "\ud800", "../../../x", "/etc/passwd", "A" * 5000, "\x1b[2J", "LlamaModel", [], [[]], {}, {"a": None}, [1, "a"],
       [-1, 0],
       nested(200), {"__class__": "x"})  # fmt: skip


def with_one_changed(rng, value, odd: Callable):
    """A tree of dicts and lists with one leaf or branch changed, removed, or there under another name."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        made, what = value.copy(), rng.random()
        if what < 0.75:
            made[key] = with_one_changed(rng, value[key], odd)
        elif what < 0.9:
            del made[key]
        elif isinstance(value, dict):
            made[f"{key}x"] = made.pop(key)
        else:
            made.insert(key, value[key])
        return made
    return odd(rng, value)


def change_value(rng, data):
    """A value of a JSON file, or of one line of it, of another type or range."""
    lines = data.splitlines(keepends=True)
    try:
        content, before, behind = json.loads(data), [], []
    except ValueError:
        k = int(rng.integers(len(lines)))
        try:
            content, before, behind = json.loads(lines[k]), lines[:k], [b"\n", *lines[k + 1 :]]
        except ValueError:
            return data
    made = with_one_changed(rng, content, lambda rng, _: ODD[rng.integers(len(ODD))])
    return b"".join([*before, json.dumps(made).encode(), *behind])


TEXT = (change_digit, change_number, change_word, change_token, swap_tokens, change_line, insert_surrogate, nest,
        change_encoding, lengthen, change_value, change_value, change_value)  # fmt: skip
TEXTS = {".json", ".jsonl", ".jinja", ".tsv", ".vhdr", ".vmrk", ".txt"}

# ---------------------------------------------------------------- damage to a known format


def in_header(rng, data):
    """A safetensors file with one value of its header changed and the header's length right."""
    size = struct.unpack_from("<Q", data)[0]
    header = [change_value, change_value, change_number, change_token][rng.integers(4)](rng, data[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def in_tree(rng, data):
    """An LMDB with some bytes changed where it keeps its trees, of records and of free pages: facts, headers, nodes."""
    pages = [at for at in range(0, len(data) - 4095, 4096) if struct.unpack_from("<H", data, at + 10)[0] in (1, 2)]
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.choice(pages)) if pages and rng.random() < 0.6 else int(rng.choice([0, 4096]))
        lower, upper = struct.unpack_from("<HH", data, at + 12) if at > 4096 else (152, 152)
        nodes = rng.random() < 0.5 and 16 < upper < 4096 and at > 4096
        at += int(rng.integers(upper, 4096) if nodes else rng.integers(0, min(max(lower, 16), 4096)))
        data = patched(data, at, bytes([int(rng.choice([*range(16), 255, rng.integers(256)]))]))
    return data


def in_json(rng, data):
    """A digit changed in JSON that stands among other bytes."""
    return changed(rng, data, re.compile(rb'(?<=": )\d'), [b"%d" % k for k in range(10)])


def odd_tensor(rng, value):
    """Another tensor, or something else."""
    import torch

    if not isinstance(value, torch.Tensor):
        return ODD[rng.integers(len(ODD))]
    ways = (lambda t: t.double(), lambda t: t.half(), lambda t: t.int(), lambda t: t * float("nan"), lambda t: t[:0],
        lambda t: t[None],
            lambda t: t.flatten(), lambda t: t.to(torch.complex64), lambda t: t.to_sparse(), lambda t: t.reshape(-1)[0],
            lambda t: t.T,
            lambda t: t.to("meta"), lambda t: torch.cat([t, t]), lambda t: t.tolist(), lambda t: t.bool())  # fmt: skip
    return ways[rng.integers(len(ways))](value)


RAN = "ran"  # a folder that a file's code makes, where it is run
# what a pickle says to call a function: the same in protocols 0 to 5
CODE = b"cbuiltins\neval\n(V__import__('os').mkdir('%s')\ntR0" % RAN.encode()


def odd_array(rng, value):
    """Another array or tensor than it was, or something else; also what is small as a pickle and endless outside."""
    import torch

    if isinstance(value, torch.Tensor) and rng.random() < 0.7:
        return odd_tensor(rng, value)
    if isinstance(value, np.ndarray) and value.size and rng.random() < 0.7:
        ways = (lambda x: x.astype(np.longdouble), lambda x: x.astype(complex), lambda x: x.astype(object),
                lambda x: x[:0], lambda x: x[None], lambda x: x * np.nan, lambda x: x * 1e308, lambda x: x.tolist(),
                lambda x: x.astype(str), lambda x: x.ravel(), lambda x: x.T, lambda x: np.zeros_like(x),
                lambda x: np.ma.masked_array(x), lambda x: x.view(np.uint8),
                lambda x: np.datetime64("2020") + x.astype(int))  # fmt: skip
        return ways[rng.integers(len(ways))](value)
    more = (doubled(28), int("9" * 5000), np.zeros((0, 3)), np.float32(1), b"x", (1, "a"), {1, 2}, [[1], [1, 2]], 10**7)
    chosen = more if rng.random() < 0.4 else ODD
    return chosen[rng.integers(len(chosen))]


def doubled(times: int) -> list:
    """A list that holds itself twice, and so on: small in a pickle, 2 ** times entries when it is walked."""
    return functools.reduce(lambda inner, _: [inner, inner], range(times), ["x"])


def unpickled(data: bytes) -> tuple[object, Callable[[object], bytes]]:
    """The content of a pickle, a .npy, or a file of torch.save that the tests have written; and how to write one."""
    import torch

    def saved(write: Callable, content: object) -> bytes:
        write(content, out := io.BytesIO())
        return out.getvalue()

    if data[:6] == b"\x93NUMPY":
        content = np.load(io.BytesIO(data), allow_pickle=True)
        content = content.item() if content.shape == () else content
        return content, lambda made: saved(lambda x, out: np.save(out, np.array(x, dtype=object)), made)
    if data[:2] == b"PK":
        return torch.load(io.BytesIO(data), weights_only=False), lambda made: saved(torch.save, made)
    return pickle.loads(data), pickle.dumps


def smuggle(rng, data):
    """The same content, and a function that is called on the way to it."""
    return with_code(data)


def repickle(rng, data):
    """A right pickle of wrong content, or one that calls a function: what a stranger may hand over."""
    if rng.random() < 0.15:
        return with_code(data)
    content, write = unpickled(data)
    return write(wrong_inside(rng, content))


def wrong_inside(rng, value, depth=0):
    """A tree of dicts and lists with the names that are expected, of which one holds something odd."""
    if isinstance(value, dict | list) and value and (depth == 0 or rng.random() < 0.5):
        keys, made = list(value) if isinstance(value, dict) else list(range(len(value))), value.copy()
        key = keys[rng.integers(len(keys))]
        made[key] = wrong_inside(rng, value[key], depth + 1)
        return made
    return odd_array(rng, value)


def with_code(data):
    """A pickle, a .npy or a file of torch.save that makes a folder when it is unpickled as Python does."""
    if data[:2] == b"PK":
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as parts, zipfile.ZipFile(out, "w") as made:
            for name in parts.namelist():
                part = parts.read(name)
                made.writestr(name, with_code(part) if name.endswith("data.pkl") else part)
        return out.getvalue()
    start = 10 + struct.unpack_from("<H", data, 8)[0] if data[:6] == b"\x93NUMPY" else 0
    start += 2 if data[start : start + 1] == b"\x80" else 0  # the protocol stands first
    return data[:start] + CODE + data[start:]


HUGE = (40_000, 10**6, 10**7, 2**31 - 1)  # layers, widths, edges of pictures: what no machine here can make


def enlarge(rng, data):
    """A JSON file or a checkpoint, one of whose whole numbers is huge."""
    import torch

    is_checkpoint = data[:2] == b"PK"
    content = torch.load(io.BytesIO(data), weights_only=True) if is_checkpoint else json.loads(data)
    found, waiting = [], [content]
    while waiting:
        of = waiting.pop()
        for key in list(of) if isinstance(of, dict) else range(len(of)):
            if isinstance(of[key], dict | list):
                waiting.append(of[key])
            elif isinstance(of[key], int) and not isinstance(of[key], bool):
                found.append((of, key))
    of, key = found[rng.integers(len(found))] if found else (content, "model_max_length")
    of[key] = HUGE[rng.integers(len(HUGE))]
    if not is_checkpoint:
        return json.dumps(content).encode()
    torch.save(content, out := io.BytesIO())
    return out.getvalue()


def long_picture(rng, data):
    """A picture of few bytes and of more pixels, or of a longer side, than anybody has seen."""
    from PIL import Image

    sizes = ((1, 150_000), (150_000, 1), (16_000, 16_000), (3, 60_000), (9000, 9000))
    mode = ("1", "L", "RGB")[rng.integers(3)]
    Image.new(mode, sizes[rng.integers(len(sizes))]).save(out := io.BytesIO(), format="PNG")
    return out.getvalue()


def repack(rng, data):
    """A checkpoint of other content whose checksums are right: what a stranger may hand over."""
    import torch

    if (what := rng.random()) < 0.1:
        return with_code(data)
    if what < 0.6:
        content = torch.load(io.BytesIO(data), weights_only=True)
        out = io.BytesIO()
        torch.save(with_one_changed(rng, content, odd_tensor), out)
        return out.getvalue()
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as parts, zipfile.ZipFile(out, "w") as made:
        names = [part.filename for part in parts.infolist()]
        chosen = (
            next(n for n in names if n.endswith("data.pkl")) if rng.random() < 0.7 else names[rng.integers(len(names))]
        )
        for name in names:
            part = parts.read(name)
            made.writestr(name, BINARY[rng.integers(len(BINARY))](rng, part) if name == chosen and part else part)
    return out.getvalue()


def damage(rng: np.random.Generator, data: bytes, name: str, of_format: Callable | None = None) -> tuple[str, bytes]:
    """The name of what was done, and other bytes than `data`."""
    suffix = Path(name).suffix
    for _ in range(1000):
        if of_format:
            way = of_format
        elif suffix in TEXTS and rng.random() < 0.75:
            way = TEXT[rng.integers(len(TEXT))]
        elif suffix == ".safetensors" and rng.random() < 0.35:
            way = in_header
        elif suffix == ".mdb" and rng.random() < 0.5:
            way = (in_tree, in_tree, in_json)[rng.integers(3)]
        else:
            way = BINARY[rng.integers(len(BINARY))]
        with np.errstate(all="ignore"):
            try:
                other = way(rng, data) if data else rng.bytes(8)
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, OverflowError):
                continue  # this way cannot be gone with this value
        if other != data:
            return way.__name__, other
    raise RuntimeError(f"nothing damages {name}")
