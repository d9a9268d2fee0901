"""Hostile files for ``scripts.faults``: code, paths that lead out, bombs, broken bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from dmlbench.common.hashing import identity, sealed

ROOT = Path(__file__).parent.parent
WEIGHTS = save({"x": torch.zeros(3)})  # beside each manifest
Files = Iterator[tuple[str, bytes]]  # ending and content
VALUES = (
    *("9" * 5000, "nan", "-inf", "1e400", "-1", "0", "1/0", "1/3", "", " ", "~", "null", "%s%n"),
    *("=1+1", "{0}", "[red]x[/red]", "x" * 300, "a" * 5000, "\ud800", "\x00", "é\n", "--", "-x"),
    *("../../x", "/", "/dev/zero", "/dev/null", "folder:root=/proc", "x.py:Y", "a:b", "a:b:c=1"),
    *("sys:exit", "os:_exit", "builtins:print", "builtins:input", "cpu", "none", "hm", "ca+"),
    *("ca+:w=9e9", "hm:eta=", "es:eps=8/255", "fashion-mini", "lenet", "c2f2:dim=0"),
    *("epochs=1", "epochs=0", "label=*", "metric:seed"),
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Text with some bytes changed, doubled or left out, or a value put in."""
    for _ in range(chance.randrange(1, 4)):
        place, other = sorted(chance.choices(range(len(content) + 1), k=2))
        other = min(other, place + 40)
        value, noise = chance.choice(VALUES).encode(errors="replace"), chance.randbytes(3)
        middle = [b"", content[place:other] * 2, value, noise, b"&a [*a]", b"\n- ", b'"', b","]
        content = content[:place] + chance.choice(middle) + content[other:]
    return content


class Evil:
    """Code in a pickle: it leaves a file that tells."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def checkpoints(chance: random.Random) -> Files:
    """Pickles with code, lengths that lie, other types, broken and empty files."""
    good = save({"x": torch.zeros(3)})
    huge = json.dumps(
        {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    complex_ = torch.zeros(3, dtype=torch.complex64)
    states = [{"x": Evil()}, {"state_dict": {"x": Evil()}}, [1], {"x": complex_}, "text"]
    for kind, made in zip(("pt", "ckpt", "pth", "pt", "pt"), states, strict=True):
        buffer = io.BytesIO()
        torch.save(made, buffer)
        yield kind, buffer.getvalue()
    yield "pt", pickle.dumps(Evil())
    yield "pkl", pickle.dumps({"pytorch-lightning_version": Evil()})
    yield "safetensors", len(huge).to_bytes(8, "little") + huge
    yield "safetensors", (2**62).to_bytes(8, "little") + b"{}"
    yield "safetensors", good  # of another network
    while True:
        yield chance.choice(["safetensors", "pt"]), mutated(good, chance)


def archives(chance: random.Random) -> Files:
    """Paths that lead out, links, devices, and broken files."""
    for name, kind, link in (
        ("../out", tarfile.REGTYPE, ""),
        (str(Path(tempfile.gettempdir(), "out")), tarfile.REGTYPE, ""),
        ("set/a", tarfile.SYMTYPE, "/etc/passwd"),
        ("set/a", tarfile.LNKTYPE, "../x"),
        ("set/dev", tarfile.CHRTYPE, ""),
        ("set/fifo", tarfile.FIFOTYPE, ""),
    ):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
        yield "tgz", buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../../out", "x")
        file.writestr("/out", "x")
    yield "zip", buffer.getvalue()
    while True:
        yield "zip", mutated(buffer.getvalue(), chance)


def images(chance: random.Random) -> Files:
    """Sizes that lie, other kinds, broken files."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png")
    good = buffer.getvalue()
    yield "png", good[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + good[24:]  # 2^62 pixels
    yield "jpg", b"<svg onload='x'/>"
    yield "png", b""
    yield "jpg", b"\xff\xd8\xff" + bytes(1000)
    while True:
        yield "png", mutated(good, chance)[: chance.randrange(20, 60)]


def manifests(chance: random.Random) -> Files:
    """Code as the network, paths that lead out, numbers that cannot be, broken ones."""
    path = next((ROOT / "results" / "fashion" / "models").glob("*/manifest.json"))
    good = json.loads(path.read_bytes()) | {"sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    changes: list[dict[str, Any]] = [
        *({"model": "evil.py:make"}, {"model": "os:_exit"}, {"checkpoint": "../../evil.py"}),
        *({"checkpoint": "/etc/passwd"}, {"seconds": -1}, {"schema": 99}, {"history": 3}),
        *({"training": {}, "training_id": identity({})}, {"sha256": "0" * 64}),
    ]
    for change in changes:
        yield "json", json.dumps(good | change).encode()
        yield "json", json.dumps(sealed(good | {"schema": 2} | change)).encode()
    yield "json", b"[" * 100_000
    while True:
        yield "json", mutated(json.dumps(good, indent=1).encode(), chance)


def tables(chance: random.Random) -> Files:
    """Rows of results with bytes changed."""
    text = (ROOT / "results" / "fashion.csv").read_bytes()
    while True:
        yield "csv", mutated(b"".join(text.splitlines(keepends=True)[:8]), chance)


def configs(chance: random.Random) -> Files:
    """Code as tags and as specs, bombs of aliases and depth, and broken ones."""
    yield "yaml", b"defense: !!python/object/apply:os.system ['touch ran']\n"
    yield "yaml", b"defense: evil.py:make\nattack: ca+\n"
    yield "yaml", b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"
    yield "yaml", b"[" * 100_000
    text = (
        b"defense: [none, 'hm:eta=4']\nattack: ca+\nseed: [0, 1]\nrecipe: {epochs: 2, lr: 1e-3}\n"
    )
    while True:
        yield "yaml", mutated(text, chance)


KINDS: dict[str, Callable[[random.Random], Files]] = {
    "checkpoint": checkpoints,
    "archive": archives,
    "image": images,
    "manifest": manifests,
    "csv": tables,
    "yaml": configs,
}
