"""Data sets with queries and gallery apart: from arrays, from folders, and mistakes in them."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import dmlbench as dml
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS
from dmlbench.testing import make_split

Run = Callable[..., "subprocess.CompletedProcess[str]"]


VIT = "timm:name=vit_tiny_patch16_224,weights=none"


def test_only_a_set_that_gives_them_has_another_digest() -> None:
    images = make_split(0)
    plain = dml.from_arrays(images.images, images.labels).load(None)
    split = (images.images[:20], images.labels[:20])

    def base(**keys: Any) -> str:
        queries = (images.images[20:], images.labels[20:] % 3)
        return dml.from_arrays(*queries, gallery=split, **keys).load(None).digest

    every = [[0]] * 20
    digests = {
        plain.digest,
        base(),
        base(sources=(range(20), range(20))),
        base(positives=every),
        base(positives=every, junk=[[1]] * 20),
    }
    assert len(digests) == 5
    assert "query" not in str(spec.values(spec.parse("folder:root=x", DATASETS)))


def test_from_arrays_refuses_what_makes_no_sense() -> None:
    images, labels = make_split(0).images, make_split(0).labels
    gallery = (images[:20], labels[:20])
    for keys, said in (
        ({"gallery": (images[:0], [])}, "must be"),
        ({"gallery": (images[:5], ["z"] * 5)}, "no query has an answer"),
        ({"gallery": (images[:20], None)}, "20 gallery images need as many labels, got 0"),
        (
            {"train": (images, [None, *labels[1:]])},
            r"1 of 40 train images have no label \(None or NaN\)",
        ),
        ({"labels": [None, *labels[1:]]}, "1 of 40 images have no label"),
        ({"labels": [float("nan"), *map(str, labels[1:])]}, "1 of 40 images have no label"),
        ({"gallery": gallery, "positives": [[0]]}, "need as many lists"),
        ({"gallery": gallery, "positives": [[20]] * 40}, "not in the gallery"),
        (
            {"gallery": gallery, "positives": [[3, 2, 1]] * 40, "junk": [[]] * 39 + [[3, 2]]},
            "query 39: position 2 is in its positives and in its junk",
        ),
        ({"gallery": gallery, "positives": [[0.5]] * 40}, "positives must be a list of gallery"),
        ({"gallery": gallery, "positives": [[np.inf]] * 40}, "positives must be a list of gallery"),
        ({"gallery": gallery, "sources": ([1], [2])}, "as many sources"),
        ({"gallery": gallery, "sources": ([np.nan] * 40, range(20))}, "one for each image"),
        ({"gallery": gallery, "sources": ([None] * 40, range(20))}, "one for each image"),
        ({"name": 5}, "name 5 must be letters"),
        ({"positives": [[0]]}, "go with a gallery"),
    ):
        with pytest.raises(UserError, match=said):
            dml.from_arrays(**{"images": images, "labels": labels} | keys)  # type: ignore[arg-type]


def test_labels_may_be_none_where_none_is_read() -> None:
    """Lists of answers stand in their place; a query of no class has no answer."""
    images, others = make_split(0).images, make_split(1).images[:20]
    every = [[n % 20] for n in range(40)]
    found = [
        dml.from_arrays(images, one, gallery=(others, other), positives=every).load(None)
        for one, other in ((None, None), ([None] * 40, [None] * 20), (range(40), range(20)))
    ]
    assert len({one.digest for one in found}) == 1
    with pytest.warns(UserWarning, match="39 of 40 queries have no answer"):
        data = dml.from_arrays(images, [0] + [None] * 39, gallery=(others, [0] + [None] * 19))
    assert data.load(None).test.labels.tolist() == [0] + [-1] * 39


def test_the_sources_of_both_parts_are_compared_whatever_their_types() -> None:
    images, labels = make_split(0).images, make_split(0).labels % 3
    ids = np.arange(20)
    forms = (ids, ids.astype(float), torch.tensor(ids), [*torch.tensor(ids)], [*map(str, ids)])
    pairs = [(one, other) for one in forms for other in forms]
    found = {
        dml.from_arrays(
            images[20:], labels[20:], gallery=(images[:20], labels[:20]), sources=pair
        ).load(None).digest
        for pair in pairs
    }  # fmt: skip
    assert len(found) == 1


def test_large_numbers_are_other_sources() -> None:
    """2^53 and 2^53 + 1 are one number as float64."""
    ids = [2**53 + n for n in range(20)]
    split = make_split(0)
    images, labels = split.images, split.labels % 3
    data = dml.from_arrays(
        images[20:], labels[20:], gallery=(images[:20], labels[:20]), sources=(ids, ids)
    ).load(None)
    assert data.test.sources is not None
    assert len(set(data.test.sources)) == 20


def test_missing_labels_of_pandas_are_none() -> None:
    """NaN and NA, which a list of texts beside them must not make a text, either."""
    images, others = make_split(0).images, make_split(1).images[:20]
    names = ["0", *[None] * 39]
    digests = set()
    for kind in (object, str, "string"):
        for given in (pd.Series(names, dtype=kind), pd.Series(names, dtype=kind).tolist()):
            with pytest.warns(UserWarning, match="39 of 40 queries have no answer"):
                data = dml.from_arrays(images, given, gallery=(others, given[:20]))
            digests.add(data.load(None).digest)
    floats = np.array([0.0, *[np.nan] * 39])
    with pytest.warns(UserWarning, match="39 of 40 queries have no answer"):
        data = dml.from_arrays(images, floats, gallery=(others, floats[:20]))
    assert digests == {data.load(None).digest}
    assert data.load(None).test.labels.tolist() == [0] + [-1] * 39


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Class folders ``q/a``, ``q/b``, ``g/a``, ``g/b``, and a distractor in ``g``."""
    draw = np.random.default_rng(0)
    for name in ("q/a/1", "q/a/2", "q/b/3", "g/a/4", "g/b/5", "g/b/6", "g/7"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (36, 36, 3), np.uint8)).save(path)
    return tmp_path


def test_folders(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    text = "folder:query=q,gallery=g,size=32"
    data = spec.parse(text, DATASETS).load(None)
    assert data.test.labels.tolist() == [0, 0, 1]
    assert data.searched.labels.tolist() == [0, 1, 1, -1]
    (tree / "p.txt").write_text(
        "easy a/1.png a/4.png\nhard a/1.png 7.png\njunk a/2.png a/4.png\n"
        "positive a/2.png b/5.png\npositive b/3.png b/6.png\n"
    )
    listed = spec.parse(f"{text},positives=p.txt,level=hard", DATASETS).load(None)
    assert listed.answers is not None
    assert [len(one) for one in listed.answers.positives] == [1, 1, 1]
    assert [len(one) for one in listed.answers.junk] == [1, 1, 0]
    (tree / "s.txt").write_text(
        "x a/1.png\nx a/4.png\ny a/2.png\nz b/3.png\nw b/5.png\nw b/6.png\nw 7.png\n"
    )
    with pytest.warns(UserWarning, match="1 of 3 queries has no answer"):
        sourced = spec.parse(f"{text},sources=s.txt", DATASETS).load(None)
    assert sourced.relevance().excluded.lengths.tolist() == [1, 0, 0]
    (tree / "g/b/same.png").write_bytes((tree / "q/a/1.png").read_bytes())
    with pytest.warns(UserWarning, match="1 queries find themselves"):
        spec.parse(text, DATASETS).load(None)


def test_a_name_in_both_folders_says_which_is_meant(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query and gallery may both have an ``a/1.png``: two images, each with a source of its own."""
    monkeypatch.chdir(tree)
    (tree / "g/a/1.png").write_bytes((tree / "q/a/1.png").read_bytes())
    text = "folder:query=q,gallery=g,size=32,sources=s.txt"
    rest = "y a/2.png\nz b/3.png\nx a/4.png\nw b/5.png\nw b/6.png\nw gallery/7.png\n"
    for lines, said in (
        ("x a/1.png\n", "line 1: a/1.png is the name of two images: write query/a/1.png or gall"),
        ("x query/a/1.png\n", "no source for 1 images: gallery/a/1.png"),
        ("x gallery/a/1.png\nx query/a/1.png\nv a/2.png\n", "line 4: a/2.png has the source y, "),
    ):
        (tree / "s.txt").write_text(lines + rest)
        with pytest.raises(UserError, match=said):
            spec.parse(text, DATASETS).load(None)
    (tree / "s.txt").write_text("x query/a/1.png\nx gallery/a/1.png\n" + rest)
    with warnings.catch_warnings(record=True) as said_of:
        warnings.simplefilter("always")
        same = spec.parse(text, DATASETS).load(None)
    assert same.relevance().excluded.lengths.tolist() == [2, 0, 0]
    assert not any("find themselves" in str(one.message) for one in said_of)  # it is hidden from it
    (tree / "s.txt").write_text("x query/a/1.png\nv gallery/a/1.png\n" + rest)
    with pytest.warns(UserWarning, match="1 queries find themselves"):
        assert spec.parse(text, DATASETS).load(None).relevance().excluded.lengths[0] == 1


def test_no_query_and_no_gallery_image_trains(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie below the root, and however their folders are spelt."""
    monkeypatch.chdir(tree)
    for name in ("t/1", "t/2", "u/test/q/a/1", "u/test/g/a/2", "u/3"):
        path = tree / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tree / "g" / "7.png").read_bytes())
    (tree / "link").symlink_to(tree / "set" / "u")
    for query, gallery in (
        ("set/u/test/q", "set/u/test/g"),
        ("q/../set/u/test/q", "link/test/g"),
    ):
        chosen = spec.parse(f"folder:root=set,query={query},gallery={gallery}", DATASETS)
        listing = chosen.found(None)  # type: ignore[attr-defined]
        assert [Path(name).name for name, _ in listing.train] == ["1.png", "2.png", "3.png"]


def test_bad_folders_are_one_line_each(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    (tree / "empty").mkdir()
    for number, line in enumerate(
        ["easy a/1.png no.png", "easy no.png a/4.png", "odd a/1.png a/4.png", "easy a/1.png"]
    ):
        (tree / f"p{number}.txt").write_text(line + "\n")
    (tree / "p4.txt").write_text("easy a/1.png a/4.png\n")
    (tree / "p5.txt").write_text(
        "easy a/1.png a/4.png\neasy a/1.png b/5.png\neasy a/1.png a/4.png\njunk a/1.png a/4.png\n"
    )
    (tree / "s.txt").write_text("x a/1.png\n")
    for keys, said in (
        ("gallery=empty", "has no image file in it"),
        ("gallery=none", "is not a folder"),
        ("gallery=g,positives=p0.txt", "no.png is not among the gallery images"),
        ("gallery=g,positives=p1.txt", "no.png is not among the query images"),
        ("gallery=g,positives=p2.txt", "the grade 'odd' is none of"),
        ("gallery=g,positives=p3.txt", "expected 'GRADE QUERY ITEM'"),
        ("gallery=g,positives=p4.txt", "has no line for 2 queries"),
        (
            "gallery=g,positives=p5.txt",
            "p5.txt, line 4: a/4.png is junk for a/1.png, and easy in line 1: leave one out",
        ),
        ("gallery=g,positives=none.txt", "none.txt cannot be read"),
        ("gallery=g,sources=s.txt", "has no source for 6 images"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            spec.parse(f"folder:query=q,{keys},size=32", DATASETS).load(None)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="go together"):
        spec.parse("folder:query=q", DATASETS)


@pytest.mark.parametrize(
    ("keys", "model", "said"),
    [
        ("query=q,gallery=empty", "c2f2", "gallery empty has no image file in it"),
        ("query=empty,gallery=empty", "c2f2", "query empty has no image file in it"),
        ("query=q", "c2f2", "query and gallery go together"),
        ("query=q,gallery=g,positives=gone.txt", "c2f2", "p/gone.png is not among the gallery"),
        ("query=q,gallery=g,positives=odd.txt", "c2f2", "odd.txt, line 3: the grade 'odd' is none"),
        ("query=q,gallery=g,positives=short.txt", "c2f2", "line 2: expected 'GRADE QUERY ITEM'"),
        ("query=q,gallery=g,positives=few.txt", "c2f2", "no line for 2 queries: a/2.png, b/3.png"),
        ("query=q,gallery=other", "c2f2", "no query has an answer in the gallery"),
        ("query=q,gallery=g", VIT, "takes 224x224 images and the data set gives 32x32"),
    ],
)
def test_mistakes_on_the_command_line(
    dmlbench: Run, tree: Path, keys: str, model: str, said: str
) -> None:
    """One line that says what is wrong, exit code 2, and nothing is stored."""
    (tree / "empty").mkdir()
    (tree / "other" / "c").mkdir(parents=True)
    (tree / "other" / "c" / "7.png").write_bytes((tree / "g" / "7.png").read_bytes())
    for name, lines in (
        ("gone", "easy a/1.png p/gone.png"),
        ("odd", "easy a/1.png a/4.png\n\nodd a/1.png a/4.png"),
        ("short", "easy a/1.png a/4.png\neasy a/2.png"),
        ("few", "easy a/1.png a/4.png"),
    ):
        (tree / f"{name}.txt").write_text(lines + "\n")
    asked = ("attack", "--attack", "es", "--cache", "cache", "--model", model)
    done = dmlbench(*asked, "--dataset", f"folder:size=32,{keys}")
    *before, last = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert last.startswith("error: ")
    assert said in last
    assert all(line.startswith("decode folder") or "plugin" in line for line in before)
    assert not list(tree.rglob("*.json"))


def test_an_image_in_both_parts_is_warned_of_on_the_command_line(dmlbench: Run, tree: Path) -> None:
    (tree / "g" / "b" / "same.png").write_bytes((tree / "q" / "a" / "1.png").read_bytes())
    asked = ("attack", "--attack", "es:steps=1", "--cache", "cache", "--model", "c2f2")
    done = dmlbench(*asked, "--threads", "1", "--dataset", "folder:size=32,query=q,gallery=g")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "find themselves" in line]
    assert line.startswith("warning: folder: 1 queries find themselves")
