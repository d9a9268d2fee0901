"""CSVs of results: what an export writes, and what is read again or refused."""

from __future__ import annotations

import csv
import errno
import io
import re
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from msgspec.structs import replace

from dmlbench.analysis import csv_files
from dmlbench.analysis.csv_files import export, read_folder
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.numbers import LARGEST
from dmlbench.core.naming import split_attack_seed, with_attack_seed
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage.cell import Cell, ColumnInfo
from dmlbench.storage.store import Store
from dmlbench.sweep.weights import check_seeds
from tests.cells import cell, failing
from tests.synthetic import attacked, model, write


def test_exports_are_the_same_bytes_whatever_the_order_of_writing(tmp_path: Path) -> None:
    cells = [cell(m, 10 + i, seed=s) for i, m in enumerate(["CA+", "CA-"]) for s in (0, 1)]
    texts = []
    for name, order in (("a", cells), ("b", cells[::-1])):
        store = Store(tmp_path / name)
        for one in order:
            store.put(one)
        texts.append([path.read_bytes() for path in export(store)])
    assert texts[0] == texts[1]
    tidy = pd.read_csv(tmp_path / "a" / "results.csv")
    assert list(tidy["metric"]) == ["CA+", "CA-", "CA+", "CA-"]
    table = pd.read_csv(tmp_path / "a" / "wide.csv")
    assert table[["seed", "CA+", "CA- low"]].to_numpy().tolist() == [[0, 10, 10], [1, 10, 10]]


def test_a_failed_cell_is_a_row_with_its_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(failing(cell(), 'a "quoted", odd\nerror'))
    tidy, _ = export(store)
    with tidy.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["status"] == "failed"
    assert row["error"] == 'a "quoted", odd\nerror'
    assert row["value"] == ""


def test_a_folder_with_a_failed_cell_or_a_label_of_any_text_stays_usable(tmp_path: Path) -> None:
    """Older versions stored errors and labels as they came."""
    store = Store(tmp_path)
    store.put(failing(cell(), "x\r" + "y" * 200_000 + "\x1b[2J\n"))
    store.put(cell("CA-", label="a\r\x1b[2J\tb"))
    for path in export(store):
        assert b"\r" not in path.read_bytes()
        assert b"\x1b" not in path.read_bytes()
    rows = csv_files.read_folder(tmp_path)
    assert {row["label"] for row in rows} == {cell().about.label, "a  [2J b"}
    assert {len(row["error"]) for row in rows} == {0, 200_007}
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(text.replace("a  [2J b", "a\x1bb"))
    rows = csv_files.read_folder(tmp_path)
    assert {row["label"] for row in rows} == {cell().about.label, "a b"}


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("CA+", "eps=8/255,alpha=abc,steps=3", "attack_resolved is .* alpha=abc is no number"),
        ("Radius", "eps=zz,steps=3", "eps=zz is no number"),
        ("Radius", "eps=8/0", "eps=8/0 is no number"),
        ("Radius", "steps=3", "a curve needs the eps or the budget of its attack"),
        ("Radius", "budget=1e999999999", "budget=1e999999999 is no number"),
        ("CA+", "eps=nan", "eps=nan is no number"),
        ("CA+", "eps=8/255,alpha=0.03019607843137255,steps=32", ""),
        ("Radius", "eps=1e-05,budget=500", ""),
    ],
)
def test_numbers_in_the_spec_of_an_attack_are_checked(
    tmp_path: Path, name: str, keys: str, said: str
) -> None:
    """Boards and plots take them out of it; the file and the line are named."""
    one = attacked(name, 4, curve=[(0, 80), (2.0, 30)] if name == "Radius" else ())
    about = replace(one.about, attack_resolved=f"{one.about.attack}:{keys}")
    path = write(tmp_path / "rows.csv", [replace(one, about=about)])
    with pytest.raises(UserError, match=rf"rows\.csv line 2: .*{said}") if said else nullcontext():
        read_folder(path.parent)


def test_of_runs_that_end_together_the_last_exports_the_cells_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = Store(tmp_path), Store.cells
    store.put(cell("CA+", 1.0))
    other = threading.Thread(target=export, args=[store])

    def cells(self: Store) -> list[Cell]:
        found = real(self)
        if threading.current_thread() is not other:
            self.put(cell("CA-", 2.0))
            other.start()
            other.join(0.2)  # it waits for this export
        return found

    monkeypatch.setattr(Store, "cells", cells)
    export(store)
    other.join()
    assert {row["metric"] for row in read_folder(tmp_path)} == {"CA+", "CA-"}


def test_an_export_of_the_same_cells_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So boards can be rendered from results on a read-only disk."""
    store = Store(tmp_path)
    store.put(cell())
    export(store)
    (tmp_path / csv_files.LOCK).unlink()

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    monkeypatch.setattr(FileLock, "acquire", read_only)
    export(store)
    monkeypatch.setattr(Store, "cells", lambda _: [])
    with pytest.raises(UserError, match=r"cannot write .*results.csv: Read-only"):
        export(store)


def test_an_export_ends_while_other_runs_store_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, seeds = Store(tmp_path), Store.cells, iter(range(5))

    def cells(self: Store) -> list[Cell]:
        self.put(cell(seed=next(seeds)))
        found = real(self)
        self.put(cell(seed=next(seeds)))
        return found

    monkeypatch.setattr(Store, "cells", cells)
    export(store)
    assert next(seeds) == 2  # the cells were read once


def test_the_largest_seed_is_read_again(tmp_path: Path) -> None:
    attack = with_attack_seed("ca+", LARGEST)
    assert split_attack_seed(attack) == ("ca+", LARGEST)
    assert split_attack_seed(f"ca+:attack_seed={2**63}") == (f"ca+:attack_seed={2**63}", None)
    store = Store(tmp_path)
    store.put(cell(seed=LARGEST, attack=attack))
    export(store)
    assert [row["seed"] for row in read_folder(tmp_path)] == [LARGEST]
    with pytest.raises(UserError, match=r"seed must be below 2\*\*63"):
        check_seeds([LARGEST + 1])


def test_a_mark_of_utf_8_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    """Excel writes one."""
    store = Store(tmp_path)
    store.put(cell())
    tidy, _ = export(store)
    tidy.write_bytes(b"\xef\xbb\xbf" + tidy.read_bytes())
    assert [row["cell"] for row in read_folder(tmp_path)] == [cell().id]


def test_hidden_files_of_an_editor_or_a_mac_are_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(cell())
    export(store)
    (tmp_path / ".#results.csv").symlink_to("jane@host.1234")  # Emacs' lock: it leads nowhere
    for file in (tmp_path / "results.csv", store.path(cell().id)):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    assert [row["cell"] for row in read_folder(tmp_path)] == [cell().id]
    assert store.read() == ([cell()], [])


def test_rows_of_the_user_in_results_csv_are_kept_in_another_file(tmp_path: Path) -> None:
    store, theirs = Store(tmp_path / "a"), Store(tmp_path / "b")
    own, gone, other = cell("CA+"), cell("CA-"), cell("LTM", label="theirs")
    for one in (own, gone):
        store.put(one)
    for one in (own, other):
        theirs.put(one)
    export(store)
    store.remove(gone.id)
    export(store)  # silent: the row of a deleted cell goes with it
    copied, _ = export(theirs)
    (store.root / "results.csv").write_bytes(copied.read_bytes())
    with pytest.warns(UserWarning, match="has rows of no cell") as said:
        export(store)
    (kept,) = store.root.glob("results-*.csv")
    assert str(kept) in str(said[0].message)
    assert [row["cell"] for row in csv_files.read_tidy(kept)] == [other.id]
    assert [row["cell"] for row in csv_files.read_tidy(store.root / "results.csv")] == [own.id]
    export(store)  # silent, and the row is still there
    assert {row["cell"] for row in read_folder(store.root)} == {own.id, other.id}


@pytest.mark.parametrize("content", [b"", b"a;cell\n1;2\n", b"a,cell\n1\n", b"\xff,cell\n"])
def test_a_results_csv_that_is_none_is_kept_whole(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    store.put(cell())
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.warns(UserWarning, match="it is kept as"):
        export(store)
    (kept,) = tmp_path.glob("*.bak")
    assert kept.read_bytes() == content
    assert [row["cell"] for row in read_folder(tmp_path)] == [cell().id]


@pytest.mark.parametrize("text", [str(2**63), "9" * 5000, "-1", "1.0", "\u0663", ""])
def test_a_count_in_a_csv_is_a_whole_number_below_2_to_the_63(text: str) -> None:
    assert csv_files._count(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(ValueError, match="whole number"):
        csv_files._count(text)


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("value", "12,5", "line 3: value is '12,5', which is not a number"),
        ("value", "nan", "not a finite number"),
        ("value", "", "needs metric, value, n and better"),
        ("value", "250", "line 3: value 250 is not within its interval"),
        ("low", "95", "not within its interval"),
        ("high", "", "not within its interval"),
        ("n", "4.5", "n is '4.5', which is not a whole number"),
        ("seed", "first", "seed is 'first'"),
        ("better", "up", "not one of higher, lower, nothing"),
        ("distance", "L2", "not one of N, E, C"),
        ("suite", "strictly", "not one of strict, ers, auto, nothing"),
        ("status", "fine", "not one of ok, failed"),
        ("collapsed", "maybe", "not one of True, False"),
        ("dataset", "", "dataset is '', which is not the name of a data set"),
        ("dataset", "../tiny", "which is not the name of a data set"),
        ("label", " ", "label is ' ', which is empty"),
        ("deciles", "1 2 3", "not eleven rising numbers"),
        ("curve", "0.0:50.0 1.0:60.0", "not points x:share with rising x and falling shares"),
        ("curve", "0.0:120.0 1.0:0.0", "not points with shares from 0 to 100"),
        ("versions", "one", "versions is 'one'"),
    ],
)
def test_nonsense_in_a_csv_is_named_with_file_and_line(
    tmp_path: Path, column: str, text: str, words: str
) -> None:
    path = write(tmp_path / "results.csv", model())
    rows = list(csv.reader(io.StringIO(path.read_text(), newline="")))
    rows[2][rows[0].index(column)] = text
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    path.write_text(out.getvalue())
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read_folder(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "findings",
    [
        {"deciles": {"CA+": [1.0, 2.0, 3.0]}},
        {"curves": {"CA+": [(0.0, 50.0), (1.0, 60.0)]}},
        {"curves": {"CA+": [(0.0, 120.0), (1.0, 0.0)]}},
    ],
)
def test_a_cell_whose_export_would_be_refused_is_not_stored(
    tmp_path: Path, findings: dict[str, Any]
) -> None:
    with pytest.raises(CellError, match=r"of CA\+ .* not "):
        Store(tmp_path).put(replace(cell(), findings=findings))


@pytest.mark.parametrize(
    ("name", "unit", "distance", "value", "words"),
    [
        ("ES:D", "", "N", 2.00005, ""),
        ("TMA", "", "C", -1.1, "TMA is -1.1; it is within -1 and 1"),
        ("ES:D", "", "N", 2.5, "ES:D is 2.5; it is within 0 and 2"),
        ("ES:D", "", "E", 2.5, ""),
        ("TMA", "", "E", 1.5, "TMA is 1.5; it is within -1 and 1"),
        ("LTM", "%", "E", 150, "LTM is 150; it is within 0 and 100"),
        ("UNHEARD", "%", "N", 150, "UNHEARD is 150; it is within 0 and 100"),
        ("UNHEARD", "", "N", 150, ""),
    ],
)
def test_a_value_outside_the_attacks_bounds_is_refused(
    tmp_path: Path, name: str, unit: str, distance: str, value: float, words: str
) -> None:
    one = attacked(name, value, distance=distance)
    estimate = Estimate(value, value - 1, value, 40)
    one = replace(one, metrics={name: estimate}, columns={name: ColumnInfo(unit, "higher")})
    write(tmp_path / "results.csv", [one])
    with pytest.raises(UserError, match=words) if words else nullcontext():
        assert read_folder(tmp_path)[0]["value"] == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lacks the columns dataset"),
        (b"a,b\n1,2\n", "lacks the columns dataset"),
        (b"\xff\xfe\x00", "cannot be read as a CSV"),
        (None, "fewer cells than the header"),
    ],
)
def test_a_file_that_is_no_tidy_csv_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = write(tmp_path / "results.csv", model())
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(UserError, match=words):
        read_folder(tmp_path)


def test_a_folder_without_results_is_empty_and_a_file_is_refused(tmp_path: Path) -> None:
    assert read_folder(tmp_path / "absent") == []
    (tmp_path / "wide.csv").write_text("not looked at")
    assert read_folder(tmp_path) == []
    with pytest.raises(UserError, match="is not a folder"):
        read_folder(tmp_path / "wide.csv")
