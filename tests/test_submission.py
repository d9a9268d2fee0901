"""``submit``, ``verify`` and ``reproduce``: an honest bundle, cheaters, and hostile files."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.torch import save_file, save_model

import dmlbench as dml
from dmlbench.analysis.external import Contributor
from dmlbench.common.errors import UserError
from dmlbench.common.files import write_json
from dmlbench.common.hashing import file_sha256
from dmlbench.core import spec
from dmlbench.core.protocol import SUITE_ATTACKS
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.models.small import C2F2
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS, read_manifest
from dmlbench.storage.store import Store
from dmlbench.submission import bundle as bundles
from dmlbench.submission.claims import training_of
from dmlbench.submission.outcomes import wrong_number
from dmlbench.submission.submit import _weights_of, submit
from dmlbench.submission.verify import verify
from dmlbench.sweep.external import verify_file
from dmlbench.sweep.session import open_session
from dmlbench.sweep.tasks import Combine
from dmlbench.zoo.fetch import zoo_folder
from dmlbench.zoo.registry import model
from tests import trees
from tests.bundles import QUERIES, Forgery, Place, look_at
from tests.networks import OWN


def test_an_honest_bundle_is_accepted_to_the_last_digit(place: Place) -> None:
    done = place.fork_server.run(["verify", "hm.zip", "--queries", "2", "--json"], place.root, 300)
    found = json.loads(done.stdout)
    assert (done.returncode, found["accepted"], found["protocol"]) == (0, True, "closed")
    assert {(one["attack"], one["n"]) for one in found["numbers"]} == {
        ("", 1000),
        *((name, 2) for name in SUITE_ATTACKS["strict"]),
    }
    assert all(one["differing"] == 0 for one in found["numbers"])
    attacked = [one for one in found["numbers"] if one["attack"]]  # with a column of clean outcomes
    assert {one["compared"] for one in found["numbers"]} == {len(found["numbers"]) + len(attacked)}
    assert all(one["claimed"] == pytest.approx(one["measured"]) for one in found["numbers"])


def test_the_same_rows_give_the_same_file(place: Place, tmp_path: Path) -> None:
    packed = submit("hm", place.root / "results", tmp_path / "again.zip", by="Jane Doe")
    record = packed.record
    assert (packed.left_out, packed.runs_code) == ([], False)
    with zipfile.ZipFile(place.bundle) as one, zipfile.ZipFile(tmp_path / "again.zip") as other:
        for name in record.files:
            assert one.read(name) == other.read(name)


def test_a_damaged_cell_is_named_where_rows_are_packed_or_compared(
    place: Place, tmp_path: Path
) -> None:
    shutil.copytree(place.root / "results", tmp_path / "results")
    store = Store(tmp_path / "results")
    (cell,) = [one for one in store.cells() if one.about.attack == "es"]
    store.path(cell.id).write_text("{}")
    for command in (["submit", "hm", "--by", "Jane Doe"], ["compare", "hm", "hm"]):
        done = place.fork_server.run(command, tmp_path, 300)
        assert done.returncode == 0, done.stderr
        assert f"{cell.id}.json is damaged and left out" in done.stderr


def test_weights_of_the_zoo_are_named_where_a_row_needs_them(place: Place, tmp_path: Path) -> None:
    store = Store(place.root / "results")
    first = store.cells()[0]
    assert _weights_of(store, first, None) == zoo_folder("fashion-mini/hm")
    file = structs.replace(first, facts={k: v for k, v in first.facts.items() if k != "training"})
    with pytest.raises(UserError, match=r"are not in .*: name them with --checkpoint"):
        _weights_of(store, file, None)
    options = {"device": "cpu", "progress": False}
    with pytest.raises(UserError, match=r"are not in .*: name them with --zoo fashion-mini/hm"):
        verify_file(tmp_path / "x.npz", "hm", Contributor("Jane Doe"), store.root, **options)


def test_an_address_that_nobody_can_ask_is_not_packed(place: Place, tmp_path: Path) -> None:
    for url in ("https://[bad/w", "https://", "https://x:99999/w"):
        with pytest.raises(UserError, match="is no address"):
            submit("hm", place.root / "results", tmp_path / "a.zip", by="Jane Doe", weights_url=url)
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"by": " "}, "--by must be a name"),
        ({"by": "Jane\nDoe"}, "--by must be a name"),
        ({"link": "javascript:x"}, "--link must be an address"),
        ({"weights_url": "http://example.org/w"}, "--weights-url must begin with https://"),
        ({"checkpoint": Path("nope")}, "--checkpoint nope does not exist"),
        (
            {"where": ["suite=auto"]},
            "nothing but clean images was measured of 'hm' with suite=auto in ",
        ),
    ],
)
def test_what_cannot_be_handed_in_is_said_first(
    place: Place, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        submit("hm", place.root / "results", tmp_path / "a.zip", **{"by": "Jane Doe"} | changed)
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


def test_the_ers_of_a_query_may_be_above_100(place: Place, tmp_path: Path) -> None:
    """As it is where a rank stays high: 110.7 of one query of the committed HM[R,M]."""
    forgery = Forgery(tmp_path, bundles.unpack(place.bundle, tmp_path))
    best = dict(zip(ERS_COLUMNS, (100, 0, 100, 0, -1, 0, 100, 100, 100, 100), strict=True))
    for cell in forgery.store.cells():
        for column in best.keys() & cell.metrics.keys():
            values = forgery.store.outcomes(cell.id)[column].to_numpy(copy=True)
            values[np.flatnonzero(~np.isnan(values))[0]] = best[column]
            forgery.outcomes(cell.about.attack, column, values)
    found = {
        cell.id: {str(k): v.to_numpy(copy=True) for k, v in forgery.store.outcomes(cell.id).items()}
        for cell in forgery.store.cells()
    }
    score = forgery.cell("ERS")
    sources = [(one, column) for one in score.facts["cells"] for column in found[one]]
    task = Combine(Mock(), Mock(), tuple(one for one in sources if one[1] in ERS_COLUMNS))
    asked = ~np.isnan(found[score.id]["ERS"])
    assert np.nanmax(found[score.id]["ERS"]) == 130
    assert wrong_number(score, task, found[score.id], found, asked) == ""
    found[score.id]["ERS"][asked] += 1
    wrong = wrong_number(score, task, found[score.id], found, asked)
    assert wrong == "ERS: its outcomes do not follow from those of its attacks"
    found[forgery.cell("tma").id]["TMA"][:] = np.nan
    wrong = wrong_number(score, task, found[score.id], found, asked)
    assert wrong == "ERS: no query has an outcome of TMA, so there is no ERS"


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


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_are_handed_in_as_safetensors_with_code_if_they_need_it(
    tmp_path: Path, small: Dataset, ending: str
) -> None:
    """The rows of another file cannot be handed in with it: they hold the file's SHA-256."""
    (tmp_path / "nets.py").write_text(OWN.replace("784", "64"))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
    weights, network = tmp_path / f"w.{ending}", f"{tmp_path / 'nets.py'}:make"
    if ending == "pt":
        torch.save(net.state_dict(), weights)
    else:
        save_model(net, str(weights))
    given = {"results": tmp_path / "results", "progress": False}
    dml.evaluate(weights, small, attacks="es:steps=1", network=network, queries=2, **given)
    asked = ("w", tmp_path / "results", tmp_path / "b.zip")
    if ending == "safetensors":
        assert submit(*asked, by="Doe", dataset=small, checkpoint=weights).runs_code
        return
    said = r"w\.pt is no safetensors .*save_model\(net, 'w.*nets.py:make'$"
    with pytest.raises(UserError, match=said):
        submit(*asked, by="Doe", dataset=small, checkpoint=weights)


def test_a_bundle_of_images_that_were_moved_is_verified(tmp_path: Path) -> None:
    """Its record says where they lay when it was packed; a verifier may have them elsewhere."""
    here, there, yours = (tmp_path / name for name in ("here", "there", "yours"))
    trees.folder(here, 6, 3, (32, 32))
    save_file(C2F2(dim=4).build(3, 32).state_dict(), tmp_path / "w.safetensors")
    weights, results, bundle = tmp_path / "w.safetensors", tmp_path / "results", tmp_path / "b.zip"
    report = dml.evaluate(
        weights, f"folder:root={here},size=32", attacks=["es:steps=2"], network="c2f2:dim=4",
        results=results, progress=False, seed=0,
    )  # fmt: skip
    assert not report.failed
    here.rename(there)
    moved = f"folder:size=32,root={there}"
    record = submit("w", results, bundle, by="Doe", dataset=moved, checkpoint=weights).record
    assert record.dataset == moved
    for given in (None, moved):
        verdict = verify(bundle, dataset=given, seed=0, queries=4, progress=False)
        assert verdict.accepted, verdict.reasons
    there.rename(yours)
    verdict = verify(bundle, dataset=f"folder:root={yours},size=32", queries=4, progress=False)
    assert verdict.accepted, verdict.reasons
