"""``submit``, ``verify`` and ``reproduce``: an honest bundle, cheaters, and hostile files."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec import structs
from safetensors.torch import save_file

import dmlbench as dml
from dmlbench.analysis.csv_files import export
from dmlbench.common.errors import UserError
from dmlbench.common.files import write_json
from dmlbench.common.hashing import file_sha256, identity, sealed
from dmlbench.core import spec
from dmlbench.core.flags import Flag
from dmlbench.core.protocol import SUITE_ATTACKS
from dmlbench.datasets.base import DATASETS
from dmlbench.evaluation.measurement import Measurement, as_finding
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean, deciles
from dmlbench.metrics.ers import ers_per_query
from dmlbench.models.small import C2F2
from dmlbench.storage.cell import Cell
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS, read_manifest
from dmlbench.storage.store import Store
from dmlbench.submission import bundle as bundles
from dmlbench.submission import sample
from dmlbench.submission.agreement import agreement, chance, differs_alone, unexplained
from dmlbench.submission.claims import training_of
from dmlbench.submission.reproduce import Compared, reproduce
from dmlbench.submission.submit import submit
from dmlbench.submission.verify import Verdict, verify
from dmlbench.sweep.session import open_session
from dmlbench.zoo.fetch import zoo_folder
from dmlbench.zoo.registry import model
from tests.test_cli import refused
from tests.zygote import Zygote

QUERIES = 5
Edit = Callable[["Forgery"], None]


@dataclass
class Place:
    """A folder with measured rows and an honest bundle of them."""

    root: Path
    zygote: Zygote
    bundle: Path

    def forged(self, edit: Edit, to: Path) -> Path:
        """The bundle after ``edit``, with every hash made anew, as a cheater would."""
        folder = to / "forged"
        folder.mkdir()
        record = bundles.unpack(self.bundle, folder)
        forgery = Forgery(folder, record)
        edit(forgery)
        forgery.settle()
        bundles.write(to / "forged.zip", forgery.record, folder)
        return to / "forged.zip"


@dataclass
class Forgery:
    """The unpacked bundle of a cheater, who knows the package."""

    folder: Path
    record: bundles.Bundle

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def cell(self, attack: str) -> Cell:
        return next(cell for cell in self.store.read()[0] if cell.about.attack == attack)

    def rename(self, cell: Cell, facts: dict[str, Any], **about: str) -> None:
        """The cell under other facts, with the identity of these; scores name it anew."""
        outcomes = self.store.outcomes(cell.id)
        new = structs.replace(
            cell,
            id=identity(facts),
            facts=facts,
            about=structs.replace(cell.about, **about),  # type: ignore[arg-type]
        )
        for kind in ("json", "parquet"):
            self.store.path(cell.id, kind).unlink()
        self.store.put(new, outcomes)
        for other in self.store.read()[0]:
            if cell.id in other.facts.get("cells", ()) and cell.id != new.id:
                ids = [new.id if one == cell.id else one for one in other.facts["cells"]]
                self.rename(other, other.facts | {"cells": ids})

    def outcomes(self, attack: str, column: str, values: np.ndarray[Any, Any]) -> None:
        """Other outcomes of a column, and the numbers and scores that follow from them."""
        cell = self.cell(attack)
        table = self.store.outcomes(cell.id)
        table[column] = values
        shown = dict(cell.findings)
        shown["deciles"] = shown["deciles"] | {column: deciles(values)}
        numbers = cell.metrics | {column: bootstrap_mean(values)}
        self.store.put(structs.replace(cell, metrics=numbers, findings=shown), table)
        every = self.store.cells()
        tables = {one.id: self.store.outcomes(one.id) for one in every}
        columns = {name: t[name].to_numpy() for t in tables.values() for name in t}
        for score in ("ERS", "worst case"):
            drawn = self.cell(score)
            (name,) = drawn.columns
            inputs = {
                key: tables[one][key].to_numpy()
                for one in drawn.facts["cells"]
                for key in tables[one]
                if not key.endswith(" clean")
            }
            right = [inputs[key] for key in ("R@1", "ES:R", "LTM", "GTM") if key in inputs]
            new = ers_per_query(columns) if score == "ERS" else np.minimum.reduce(right)
            self.store.put(structs.replace(drawn, metrics={name: bootstrap_mean(new)}), {name: new})

    def settle(self) -> None:
        """Bring CSV, list of cells and hashes up to date with the cells."""
        (self.store.root / bundles.ROWS).unlink()
        export(self.store)
        names = [
            path.relative_to(self.folder).as_posix()
            for place in ("cells", "models")
            for path in (self.folder / place).rglob("*.*")
        ]
        self.record = structs.replace(
            self.record,
            cells=tuple(cell.id for cell in self.store.cells()),
            files=bundles.digests(self.folder, [*names, bundles.ROWS]),
        )


@pytest.fixture(scope="module")
def place(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("rows")
    measure = ["attack", "--zoo", "fashion-mini/hm", "--suite", "strict"]
    done = zygote.run([*measure, "--queries", str(QUERIES)], root, 300)
    assert done.returncode == 0, done.stderr
    packed = zygote.run(["submit", "hm", "--by", "Jane Doe", "--out", "hm.zip"], root, 300)
    assert packed.returncode == 0, packed.stderr
    assert "protocol: closed\n" in packed.stdout
    return Place(root, zygote, root / "hm.zip")


def look_at(path: Path, queries: int = 2) -> Verdict:
    return verify(path, queries=queries, seed=5, progress=False)


def test_an_honest_bundle_is_accepted_to_the_last_digit(place: Place) -> None:
    done = place.zygote.run(["verify", "hm.zip", "--queries", "2", "--json"], place.root, 300)
    found = json.loads(done.stdout)
    assert (done.returncode, found["accepted"], found["protocol"]) == (0, True, "closed")
    assert {(one["attack"], one["n"]) for one in found["numbers"]} == {
        ("", 1000),
        *((name, 2) for name in SUITE_ATTACKS["strict"]),
    }
    assert all(one["differing"] == 0 for one in found["numbers"])
    assert all(one["claimed"] == pytest.approx(one["measured"]) for one in found["numbers"])


def test_the_same_rows_give_the_same_file(place: Place, tmp_path: Path) -> None:
    record, left_out = submit("hm", place.root / "results", tmp_path / "again.zip", by="Jane Doe")
    assert left_out == []
    with zipfile.ZipFile(place.bundle) as one, zipfile.ZipFile(tmp_path / "again.zip") as other:
        for name in record.files:
            assert one.read(name) == other.read(name)


def test_an_address_that_nobody_can_ask_is_not_packed(place: Place, tmp_path: Path) -> None:
    for url in ("https://[bad/w", "https://", "https://x:99999/w"):
        with pytest.raises(UserError, match="is no address"):
            submit("hm", place.root / "results", tmp_path / "a.zip", by="Jane Doe", weights_url=url)
    assert not (tmp_path / "a.zip").exists()


def test_an_edited_number_is_refused(place: Place, tmp_path: Path) -> None:
    """With and without its hashes, and with the outcomes edited to fit."""

    def number(forgery: Forgery) -> None:
        cell = forgery.cell("es")
        old = cell.metrics["ES:R"]
        better = structs.replace(old, value=old.value + 1, high=(old.high or 0) + 1)
        new = structs.replace(cell, metrics=cell.metrics | {"ES:R": better})
        forgery.store.put(new, forgery.store.outcomes(cell.id))

    verdict = look_at(place.forged(number, tmp_path))
    assert verdict.reasons == [r for r in verdict.reasons if r.startswith("es: ES:R is ")]
    assert not verdict.accepted

    with zipfile.ZipFile(place.bundle) as whole, zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        for info in whole.infolist():
            content = whole.read(info)
            if info.filename == "results.csv":
                content = content.replace(b",CA+,", b",CA+,9", 1)
            file.writestr(info, content)
    with pytest.raises(UserError, match=r"results\.csv is not what its record says"):
        look_at(tmp_path / "z.zip")


def test_an_outcome_outside_its_column_is_refused(place: Place, tmp_path: Path) -> None:
    """Of one query, however small the mean; none of them need be in the sample."""

    def absurd(forgery: Forgery) -> None:
        values = forgery.store.outcomes(forgery.cell("ca+").id)["CA+"].to_numpy(copy=True)
        there = np.flatnonzero(~np.isnan(values))
        values[there] = [101, 50, 50, 50, 50]
        forgery.outcomes("ca+", "CA+", values)

    verdict = look_at(place.forged(absurd, tmp_path))
    assert verdict.reasons == ["ca+: CA+ is 101 for a query; it is within 0 and 100"]


@pytest.mark.slow
def test_edited_outcomes_are_refused(place: Place, tmp_path: Path) -> None:
    def outcomes(forgery: Forgery) -> None:
        values = forgery.store.outcomes(forgery.cell("ca+").id)["CA+"].to_numpy(copy=True)
        forgery.outcomes("ca+", "CA+", np.where(np.isnan(values), values, 50.0))

    verdict = look_at(place.forged(outcomes, tmp_path))
    assert len(verdict.reasons) == 1
    assert verdict.reasons[0].startswith("ca+: CA+ is claimed as 50 and measured as ")
    (number,) = [one for one in verdict.numbers if one.refused]
    assert (number.n, number.complete) == (QUERIES, True)


@pytest.mark.slow
def test_of_an_attack_whose_sample_differs_alone_all_queries_are_measured(
    place: Place, tmp_path: Path
) -> None:
    """However little it differs: a sample has few of the outcomes that were edited."""

    def outcomes(forgery: Forgery) -> None:
        values = forgery.store.outcomes(forgery.cell("ca+").id)["CA+"].to_numpy(copy=True)
        forgery.outcomes("ca+", "CA+", values + 0.02)

    verdict = look_at(place.forged(outcomes, tmp_path))
    assert verdict.accepted  # it is less than the tolerance
    assert {one.attack for one in verdict.numbers if one.complete} == {"", "ca+"}


@pytest.mark.slow
def test_other_weights_are_refused(place: Place, tmp_path: Path) -> None:
    """Swapped alone, and with each hash and identity made anew."""
    other = zoo_folder("fashion-mini/none")

    def swapped(forgery: Forgery) -> None:
        (folder,) = (forgery.folder / "models").iterdir()
        shutil.copy(other / WEIGHTS, folder / WEIGHTS)

    (tmp_path / "a").mkdir()
    alone = look_at(place.forged(swapped, tmp_path / "a"))
    assert [r.split("checkpoint.safetensors ")[1][:40] for r in alone.reasons] == [
        "is not what its manifest says (SHA-256 d"
    ]

    def anew(forgery: Forgery) -> None:
        swapped(forgery)
        (folder,) = (forgery.folder / "models").iterdir()
        made = read_manifest(folder)
        assert made is not None
        digest = file_sha256(folder / WEIGHTS)
        write_json(folder / MANIFEST, structs.replace(made, sha256=digest).as_json())
        for attack in ("", *SUITE_ATTACKS["strict"], "worst case", "ERS"):
            cell = forgery.cell(attack)
            forgery.rename(cell, cell.facts | {"checkpoint": digest})
        forgery.record = structs.replace(forgery.record, checkpoint=digest)

    (tmp_path / "b").mkdir()
    verdict = look_at(place.forged(anew, tmp_path / "b"))
    assert any(r.startswith("clean images: R@1 is claimed as 79.2 ") for r in verdict.reasons)
    assert any(r.startswith("ca-: CA-") for r in verdict.reasons)


@pytest.mark.parametrize(
    ("key", "value"), [("eps", 4 / 255), ("steps", 2), ("alpha", 1 / 255), ("restarts", 0)]
)
def test_an_easier_attack_under_the_suites_name_is_refused(
    place: Place, tmp_path: Path, key: str, value: float
) -> None:
    def easier(forgery: Forgery) -> None:
        cell = forgery.cell("es")
        values = cell.facts["attack_values"] | {key: value, "other": 1}
        forgery.rename(cell, cell.facts | {"attack_values": values})

    verdict = look_at(place.forged(easier, tmp_path))
    assert len(verdict.reasons) == 1
    assert "its facts are not those of its description" in verdict.reasons[0]


def test_an_easier_attack_that_describes_itself_is_open_and_cannot_claim_closed(
    place: Place, tmp_path: Path
) -> None:
    from dmlbench.attacks.base import ATTACKS
    from dmlbench.sweep import plan

    def easier(forgery: Forgery) -> None:
        cell = forgery.cell("es")
        threat = DATASETS.get("fashion-mini")().protocol.threat
        attack = replace(spec.parse("es:eps=4/255", ATTACKS), suite="strict")
        (planned,) = plan.planned_attacks([attack], threat, QUERIES)
        for score in (forgery.cell("ERS").id, forgery.cell("worst case").id):
            for kind in ("json", "parquet"):
                forgery.store.path(score, kind).unlink()
        facts = cell.facts | planned.facts
        forgery.rename(cell, facts, **{k: planned.about[k] for k in ("attack", "attack_resolved")})

    verdict = look_at(place.forged(easier, tmp_path))
    assert verdict.reasons == [
        "it claims the closed protocol, and changes of it are: suite strict lacks es as it is "
        "published"
    ]


def test_a_claim_of_other_queries_is_refused(place: Place, tmp_path: Path) -> None:
    """The easy queries alone, under the count of the row."""

    def fewer(forgery: Forgery) -> None:
        values = forgery.store.outcomes(forgery.cell("ca+").id)["CA+"].to_numpy(copy=True)
        there = np.flatnonzero(~np.isnan(values))
        values[there[values[there] < np.nanmedian(values)]] = np.nan
        forgery.outcomes("ca+", "CA+", values)

    (reason,) = look_at(place.forged(fewer, tmp_path)).reasons
    assert "CA+ has outcomes of other queries than its row attacks" in reason or "ERS" in reason


def test_a_training_of_another_recipe_is_open(place: Place) -> None:
    made = model("fashion-mini/hm").manifest
    dataset = DATASETS.get("fashion-mini")()
    with open_session(dataset, place.root / "results", progress=False) as session:
        assert training_of(made, dataset, session.digest) is not None
        recipe = made.training["recipe"] | {"epochs": 9}
        longer = structs.replace(made, training=made.training | {"recipe": recipe})
        found = training_of(longer, dataset, session.digest)
        assert found is not None
        assert found.recipe_changes == "epochs=9"
        for wrong in ({}, {"recipe": 3}, {"recipe": {"epochs": "x"}}, {"recipe": {}, "seed": []}):
            broken = structs.replace(made, training=wrong)
            assert training_of(broken, dataset, session.digest) is None


def member(name: str, content: bytes = b"{}", **fields: Any) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


HOSTILE = {
    "zip slip": [member("../../evil.json")],
    "absolute path": [member("/evil.json")],
    "code": [member("cells/evil.py", b"print()")],
    "pickle": [member("models/0123456789abcdef/checkpoint.pt", b"\x80\x04.")],
    "link": [member("bundle.json", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16)],
    "bomb": [member("bundle.json", bytes(1 << 21), compress_type=zipfile.ZIP_DEFLATED)],
    "packed weights": [
        member(f"models/{'0' * 16}/{WEIGHTS}", bytes(1 << 16), compress_type=zipfile.ZIP_DEFLATED)
    ],
    "no record": [member("results.csv", b"")],
    "not JSON": [member("bundle.json", b"\xff")],
    "deep": [member("bundle.json", b"[" * 100_000)],
    "unsealed": [member("bundle.json", b'{"schema": 1}')],
    "another schema": [member("bundle.json", json.dumps(sealed({"schema": 9})).encode())],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_one_line_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        for info, content in HOSTILE[kind]:
            file.writestr(info, content)
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError) as caught:
        bundles.unpack(tmp_path / "evil.zip", tmp_path / "to")
    assert "evil.zip is no bundle of 'dmlbench submit': " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil.json").exists()
    assert not (tmp_path.parent / "evil.json").exists()


def test_a_member_that_is_longer_than_it_says_is_refused(place: Place, tmp_path: Path) -> None:
    content = bytearray(place.bundle.read_bytes())
    size = len(place.bundle.read_bytes())
    with zipfile.ZipFile(place.bundle) as whole:
        info = whole.getinfo("results.csv")
    start = content.rindex(b"results.csv") - 46  # its entry in the central directory
    assert content[start : start + 4] == b"PK\x01\x02"
    content[start + 24 : start + 28] = (10).to_bytes(4, "little")
    assert len(content) == size
    assert info.file_size > 10
    (tmp_path / "short.zip").write_bytes(content)
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match=r"short\.zip"):
        bundles.unpack(tmp_path / "short.zip", tmp_path / "to")
    assert (tmp_path / "to" / "results.csv").stat().st_size <= 10


def test_no_bundle_runs_code(place: Place, tmp_path: Path) -> None:
    """A factory in the manifest, and an attack from a file, are refused before they are loaded."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")

    def network(forgery: Forgery) -> None:
        (folder,) = (forgery.folder / "models").iterdir()
        made = read_manifest(folder)
        assert made is not None
        write_json(folder / MANIFEST, structs.replace(made, model="evil.py:make").as_json())

    def attack(forgery: Forgery) -> None:
        cell = forgery.cell("es")
        forgery.rename(cell, cell.facts, attack_resolved="evil.py:Attack:steps=3")

    def inner(forgery: Forgery) -> None:
        cell = forgery.cell("es")
        forgery.rename(cell, cell.facts, attack_resolved='uap:by="evil.py:Attack:steps=3"')

    for name, edit in (("network", network), ("attack", attack), ("inner", inner)):
        (tmp_path / name).mkdir()
        path = place.forged(edit, tmp_path / name)
        refused(place.zygote.run(["verify", str(path)], tmp_path, 300), "--allow-code")
    assert not (tmp_path / "ran").exists()


def test_no_text_of_a_bundle_moves_the_cursor(place: Place, tmp_path: Path) -> None:
    def label(forgery: Forgery) -> None:
        for cell in forgery.store.read()[0]:
            about = structs.replace(cell.about, label="HM\x1b[2J\raccepted")
            forgery.store.put(structs.replace(cell, about=about), forgery.store.outcomes(cell.id))

    path = place.forged(label, tmp_path)
    done = place.zygote.run(["verify", str(path), "--queries", "2"], tmp_path, 300)
    assert "HM [2J accepted" in done.stdout, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"CA+": ["x"] * 1000}),
        pd.DataFrame({"CA+": np.zeros(999)}),
        pd.DataFrame({"CA+": np.zeros(1000, dtype=np.float32)}),
        None,
    ],
    ids=["text", "rows", "float32", "no parquet"],
)
def test_a_file_that_holds_no_outcomes_is_one_line(
    place: Place, tmp_path: Path, table: pd.DataFrame | None
) -> None:
    def other(forgery: Forgery) -> None:
        cell = forgery.cell("ca+")
        path = forgery.store.path(cell.id, "parquet")
        path.write_bytes(b"PAR1") if table is None else table.to_parquet(path)
        new = structs.replace(cell, outcomes=file_sha256(path))
        write_json(forgery.store.path(cell.id), new.as_json())

    with pytest.raises(UserError, match="is no file of outcomes: "):
        look_at(place.forged(other, tmp_path))


def test_reproduce_finds_the_numbers_again_and_says_which_differ(
    place: Place, tmp_path: Path
) -> None:
    """The row of a CSV with the weights of the zoo; then a CSV in which a number was edited."""
    rows = place.root / "results" / "results.csv"
    few = ["--where", "attack=es|ca-"]
    done = place.zygote.run(["reproduce", "hm", "--from", str(rows), *few], tmp_path, 300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("identical") == 6 + 3, done.stdout
    assert "the zoo's fashion-mini/hm; those of the row" in done.stdout
    text = pd.read_csv(rows, dtype={"queries": str})
    edited = text["metric"] == "CA-"
    text.loc[edited, ["value", "low", "high"]] = [1.0, 0.5, 1.5]
    text.to_csv(tmp_path / "edited.csv", index=False)
    done = place.zygote.run(["reproduce", "hm", "--from", "edited.csv", *few], tmp_path, 300)
    assert done.returncode == 1, done.stderr
    assert "differs in CA-\n" in done.stdout
    unknown = place.zygote.run(["reproduce", "nobody", "--from", str(rows)], tmp_path, 300)
    refused(unknown, "no measured row is 'nobody'")


def test_reproduce_refuses_a_score_without_its_attacks_and_two_sources_of_weights(
    place: Place, tmp_path: Path
) -> None:
    rows = place.root / "results" / "results.csv"
    with pytest.raises(UserError, match=r"drawn from es, ltm, gtm.*'attack=worst case\|es\|ltm\|"):
        reproduce("hm", tmp_path, source=rows, where=["attack=worst case"])
    with pytest.raises(UserError, match=r"ERS is drawn from .*es, "):
        reproduce("hm", tmp_path, source=rows, where=["attack=ers|es"])
    with pytest.raises(UserError, match="--checkpoint names weights and --retrain makes new ones"):
        reproduce("hm", tmp_path, source=rows, checkpoint=tmp_path, retrain=True)
    assert not list(tmp_path.iterdir())


def test_reproduce_trains_where_no_weights_are_to_be_had(place: Place, tmp_path: Path) -> None:
    tiny = ["run", "--dataset", "tiny", "--defense", "none", "--attack", "ca+", "--threads", "1"]
    assert place.zygote.run(tiny, tmp_path, 300).returncode == 0
    done = place.zygote.run(["reproduce", "none", "--threads", "1"], tmp_path, 300)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "trained by the row's recipe, in reproduced/models/" in done.stdout
    assert "those of the row" in done.stdout
    assert "differs" not in done.stdout


def exact(differences: list[float]) -> float:
    """Share of all signs that give a sum as large: the slow, obvious twin of ``chance``."""
    target = abs(sum(differences)) - 1e-9
    every = list(product((-1, 1), repeat=len(differences)))
    return sum(
        abs(sum(s * abs(d) for s, d in zip(signs, differences, strict=True))) >= target
        for signs in every
    ) / len(every)


@pytest.mark.parametrize(
    "differences", [[1.0] * 9, [1.0] * 8 + [-1.0], [3, -1, 2, 2, 1, -1], [1, -1], [100.0, 0.1, 5]]
)
def test_the_chance_bounds_that_of_random_signs(differences: list[float]) -> None:
    assert exact(differences) <= chance(np.array(differences)) <= 1


def test_one_sided_differences_have_little_chance() -> None:
    assert chance(np.full(20, 100.0)) < 1e-4
    assert chance(np.zeros(5)) == 1
    assert chance(np.array([1.0, -1.0] * 50)) == 1


def row(place: Place, attack: str, to: Path) -> tuple[Cell, Measurement]:
    """A cell of the honest bundle, and the measurement that finds it again to the last digit."""
    bundles.unpack(place.bundle, to)
    cell = next(cell for cell in Store(to).cells() if cell.about.attack == attack)
    table = Store(to).outcomes(cell.id)
    outcomes = {str(name): table[name].to_numpy() for name in table}
    return cell, Measurement(cell.metrics, cell.findings, outcomes)


def finds(cell: Cell, **findings: Any) -> Cell:
    return structs.replace(cell, findings=cell.findings | findings)


def test_a_note_does_not_stand_for_a_flag(place: Place, tmp_path: Path) -> None:
    cell, again = row(place, "es", tmp_path)
    flag = Flag("gradients", "none", "other gradients")
    again = replace(again, findings=again.findings | as_finding([flag]))
    note = structs.replace(flag, note=True)
    lacks = ["es: it lacks the flag 'gradients'"]
    for flags, reasons in (([], lacks), ([note], lacks), ([note, flag], [])):
        given = finds(cell, **as_finding(flags))
        assert sample._other_findings(given, again) == reasons


def test_a_collapsed_model_does_not_pass_as_another(place: Place, tmp_path: Path) -> None:
    """By a wrong chance, by the word alone, or by an R@1 that is just within the tolerance."""
    cell, again = row(place, "", tmp_path)
    assert sample._other_findings(cell, again) == []
    old = {k: v for k, v in cell.findings.items() if k != "chance R@1"}
    assert sample._other_findings(structs.replace(cell, findings=old), again) == []
    (lower,) = sample._other_findings(finds(cell, **{"chance R@1": -50.0}), again)
    assert lower == "clean images: chance R@1 is claimed as -50, it is 9.91"
    collapsed = replace(again, findings=again.findings | {"collapsed": True})
    said = ["clean images: the model is collapsed, and its rows do not say so"]
    for claim in (cell, finds(cell, collapsed=True), structs.replace(cell, findings=old)):
        assert sample._other_findings(claim, collapsed) == said


def test_a_clean_value_without_outcomes_is_refused(place: Place, tmp_path: Path) -> None:
    """Where the clean outcomes are left out: with the value beside the number, and without."""

    def dropped(forgery: Forgery, clean: dict[str, float]) -> None:
        cell = forgery.cell("ca+")
        table = forgery.store.outcomes(cell.id).drop(columns="CA+ clean")
        forgery.store.put(finds(cell, clean=clean), {str(name): table[name] for name in table})

    for clean, said in (
        ({"CA+": 99.0}, "ca+: it has no outcomes of CA+ clean, and the clean value of it"),
        ({}, "ca+: no outcomes of 'CA+ clean' in it"),
    ):
        (to := tmp_path / str(len(clean))).mkdir()
        verdict = look_at(place.forged(lambda f, clean=clean: dropped(f, clean), to))
        assert verdict.reasons == [said]


@pytest.mark.parametrize(
    ("changed", "accepted"),
    [
        ({}, True),
        ({"low": None, "high": None}, True),  # of a single start, by an older version
        ({"low": 1.0}, False),
        ({"high": 99.0}, False),
        ({"n": 999_999}, False),
        ({"value": 1.0, "low": None, "high": None}, False),
    ],
)
def test_the_range_of_nmi_is_held_against_the_new_starts(
    place: Place, tmp_path: Path, changed: dict[str, Any], accepted: bool
) -> None:
    cell, again = row(place, "", tmp_path)
    claimed = structs.replace(cell.metrics["NMI"], **changed)
    reasons = sample._other_findings(
        structs.replace(cell, metrics=cell.metrics | {"NMI": claimed}), again
    )
    assert [one.partition(" is ")[0] for one in reasons] == ["clean images: NMI"] * (not accepted)


def held(
    claimed: Any,
    measured: Any,
    stated: Estimate,
    complete: bool,
    bounds: tuple[float, float] = (0, 100),
) -> Any:
    names = {"metric": "ES:R", "attack": "es", "suite": "strict"}
    return agreement(np.array(claimed), np.array(measured), stated, complete, bounds, **names)


def test_noise_is_accepted_and_a_shift_is_not() -> None:
    generator = np.random.default_rng(0)
    truth = 100.0 * (generator.random(1000) < 0.4)
    noisy = truth.copy()
    flipped = generator.choice(1000, 40, replace=False)  # a tenth of the attacks' doubtful queries
    noisy[flipped] = 100 - noisy[flipped]
    stated = bootstrap_mean(truth)
    assert not held(truth, noisy, stated, True).refused
    better = truth.copy()
    better[np.flatnonzero(truth == 0)[:20]] = 100  # two points
    found = held(better, truth, bootstrap_mean(better), True)
    assert found.refused
    assert found.differing == 20
    assert not held(better[:10], better[:10], stated, False).refused
    hidden = truth.copy()
    hidden[3] = np.nan
    assert held(hidden, truth, stated, False).refused


def test_one_absurd_outcome_is_refused_however_wide_it_makes_its_own_interval() -> None:
    """In a column without a range; where every query was measured again, and one differs."""
    truth = np.random.default_rng(0).random(200)
    claimed = truth.copy()
    claimed[0] += 100
    found = held(claimed, truth, bootstrap_mean(claimed), True, (0, float("inf")))
    assert (found.differing, found.refused) == (1, True)
    assert found.tolerance < 0.02


def test_a_query_of_many_that_were_all_the_same_may_end_elsewhere() -> None:
    """On another machine: outcomes that are all the same have an interval without a width."""
    none, one = np.zeros(1000), np.zeros(1000)
    one[7] = 100
    assert not held(one, none, bootstrap_mean(one), True).refused
    assert not held(none, one, bootstrap_mean(none), True).refused
    one[:5] = 100
    assert held(one, none, bootstrap_mean(one), True).refused


def test_what_differs_alone_is_no_rounding() -> None:
    """Five of 200 queries made right: too few for a test of signs, and all else is the same."""
    truth = np.repeat([0.0, 100.0], 100)
    claimed = truth.copy()
    claimed[:5] = 100
    edited = held(claimed, truth, bootstrap_mean(claimed), True)
    assert not edited.refused
    same = [replace(held(truth, truth, bootstrap_mean(truth), False), attack=a) for a in "abc"]
    assert unexplained([edited, *same]) == [edited]
    assert replace(edited, alone=True).refused  # as the table of the verdict says it
    moved = held(truth + 0.01, truth, bootstrap_mean(truth), False)  # as on another machine
    assert unexplained([edited, replace(moved, attack="a"), *same[1:]]) == []
    (one, none) = (replace(edited, differing=n, n=100) for n in (1, 0))
    assert [differs_alone(x, [x, *same]) for x in (one, none)] == [True, False]


@pytest.mark.parametrize(
    ("stated", "measured", "equal"),
    [
        (Estimate(5, 4, 6, 9), Estimate(5.9, 1, 9, 9), True),
        (Estimate(5, 4, 6, 9), Estimate(6.1, 1, 9, 9), False),
        (Estimate(5, None, None, 9), Estimate(6, 4, 7, 9), True),
        (Estimate(5, None, None, 9), Estimate(6, 5.5, 7, 9), False),
        (Estimate(5, None, None, 9), Estimate(5, None, None, 9), True),
        (Estimate(5, None, None, 9), Estimate(5.1, None, None, 9), False),
        (Estimate(5, 4, 6, 9), None, False),
    ],
)
def test_a_number_is_reproduced_within_an_interval(
    stated: Estimate, measured: Estimate | None, equal: bool
) -> None:
    assert Compared("NMI", "", stated, measured, True).equal is equal


def test_a_bundle_of_a_set_with_listed_answers_is_verified(tmp_path: Path) -> None:
    """Such a set has no NMI."""
    draw = np.random.default_rng(3)
    pixels = [draw.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8) for n in (9, 23)]
    none = [[None] * n for n in (9, 23)]
    positives = [[i, i + 9] for i in range(9)]
    dataset = dml.from_arrays(
        pixels[0], none[0], gallery=(pixels[1], none[1]), positives=positives, name="listed"
    )
    save_file(C2F2(dim=4).build(1, 8).state_dict(), tmp_path / "w.safetensors")
    results, bundle = tmp_path / "results", tmp_path / "b.zip"
    report = dml.evaluate(
        tmp_path / "w.safetensors", dataset, attacks=["es:steps=2"], network="c2f2:dim=4",
        results=results, progress=False, seed=0,
    )  # fmt: skip
    assert not report.failed
    weights = tmp_path / "w.safetensors"
    submit("w", results, bundle, by="Doe", dataset=dataset, checkpoint=weights)
    verdict = verify(bundle, dataset=dataset, seed=0, queries=4)
    assert verdict.accepted, verdict.reasons
    assert "NMI" not in {one.metric for one in verdict.numbers}
