"""``reproduce``: numbers found again from their weights or by training, and those that differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from dmlbench.analysis.records import tidy
from dmlbench.common.errors import UserError
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage.checkpoint import WEIGHTS
from dmlbench.submission.reproduce import Compared, _compared, reproduce
from dmlbench.zoo.fetch import zoo_folder
from tests.bundles import Place
from tests.cells import cell
from tests.command import refused


def test_reproduce_finds_the_numbers_again_and_says_which_differ(
    place: Place, tmp_path: Path
) -> None:
    """The row of a CSV with the weights of the zoo; then a CSV in which a number was edited."""
    rows = place.root / "results" / "results.csv"
    few = ["--where", "attack=es|ca-"]
    done = place.fork_server.run(["reproduce", "hm", "--from", str(rows), *few], tmp_path, 300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("identical") == 6 + 3, done.stdout
    assert "the zoo's fashion-mini/hm; those of the row" in done.stdout
    text = pd.read_csv(rows, dtype={"queries": str})
    edited = text["metric"] == "CA-"
    text.loc[edited, ["value", "low", "high"]] = [1.0, 0.5, 1.5]
    text.to_csv(tmp_path / "edited.csv", index=False)
    done = place.fork_server.run(["reproduce", "hm", "--from", "edited.csv", *few], tmp_path, 300)
    assert done.returncode == 1, done.stderr
    assert "differs in CA-\n" in done.stdout
    unknown = place.fork_server.run(["reproduce", "nobody", "--from", str(rows)], tmp_path, 300)
    refused(unknown, "no measured row is 'nobody'")
    with pytest.raises(UserError, match="no measured row is 'hm' with attack=nosuch"):
        reproduce("hm", tmp_path, source=rows, where=["attack=nosuch"])
    with pytest.raises(UserError, match="no measured row is 'hm' with queries="):
        reproduce("hm", tmp_path, source=rows, where=["queries="])  # all attacks are on a few
    clean = reproduce("hm", tmp_path, source=rows, where=["attack="])
    assert {one.suite for one in clean.numbers} == {""}
    assert clean.equal


def test_reproduce_refuses_a_score_without_its_attacks_and_two_sources_of_weights(
    place: Place, tmp_path: Path
) -> None:
    rows = place.root / "results" / "results.csv"
    with pytest.raises(UserError, match=r"drawn from es, ltm, gtm.*'attack=worst case\|es\|ltm\|"):
        reproduce("hm", tmp_path, source=rows, where=["attack=worst case"])
    with pytest.raises(UserError, match=r"ERS is drawn from .*es, "):
        reproduce("hm", tmp_path, source=rows, where=["attack=ers|es"])
    with pytest.raises(UserError, match=r"--from nosuch\.csv does not exist"):
        reproduce("hm", tmp_path, source=Path("nosuch.csv"))
    with pytest.raises(UserError, match="--checkpoint names weights and --retrain makes new ones"):
        reproduce("hm", tmp_path, source=rows, checkpoint=tmp_path, retrain=True)
    assert not list(tmp_path.iterdir())


def test_each_number_of_queries_is_compared() -> None:
    records = tidy([cell("CA+", 50), cell("CA+", 60, queries="7")])
    found = [(one.queries, one.stated.value) for one in _compared(records, records)]
    assert found == [("", 50), ("7", 60)]


def test_the_network_of_a_file_of_weights_is_that_of_the_row(place: Place, tmp_path: Path) -> None:
    text = pd.read_csv(place.root / "results" / "results.csv", dtype={"queries": str})
    text.assign(model="c2f2").to_csv(tmp_path / "rows.csv", index=False)
    weights = Path(shutil.copy(zoo_folder("fashion-mini/hm") / WEIGHTS, tmp_path))
    where = ["attack=es", "defense=hm"]
    with pytest.raises(UserError, match="does not fit the network c2f2"):
        reproduce("hm", tmp_path, source=tmp_path / "rows.csv", where=where, checkpoint=weights)


def test_recalls_are_measured_again_and_images_from_outside_are_left_out(
    place: Place, tmp_path: Path
) -> None:
    """In a CSV with a second model of that name, whose digest tells it apart."""
    text = pd.read_csv(place.root / "results" / "results.csv", dtype={"queries": str})
    span = {"value": 50.0, "low": 0.0, "high": 100.0}
    recall = text[text["metric"] == "ES:R"].assign(metric="ES:R@4", **span)
    outside = text[text["metric"] == "ES:R"].assign(
        metric="External:R@1", attack="external:file=ab", attack_resolved='external:by="x",file=ab'
    )
    joined = text[text["metric"] == "Robust R@1"].assign(value=0.0, low=0.0, high=0.0)
    other = text.assign(checkpoint_sha256="f" * 64)
    rows = tmp_path / "rows.csv"
    pd.concat([text, recall, outside, joined, other]).to_csv(rows, index=False)
    outside.to_csv(tmp_path / "outside.csv", index=False)
    (digest,) = set(text["checkpoint_sha256"].dropna())
    chosen = f"checkpoint_sha256={digest[:12]}*"
    with pytest.raises(UserError, match="is 2 models in") as error:
        reproduce("hm", tmp_path, source=rows)
    assert f"({chosen}; checkpoint_sha256=ffffffffffff*)" in str(error.value)
    with pytest.raises(UserError, match=r"nothing to measure again but External:R@1 \("):
        reproduce("hm", tmp_path, source=tmp_path / "outside.csv")
    where = ["--where", chosen, "--where", "attack=es|external*|worst case"]
    done = place.fork_server.run(["reproduce", "hm", "--from", "rows.csv", *where], tmp_path, 300)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "ES:R@4" in done.stdout
    assert done.stderr.count("note: left out: Robust R@1, External:R@1 (") == 1, done.stderr


def test_reproduce_trains_where_no_weights_are_to_be_had(place: Place, tmp_path: Path) -> None:
    tiny = ["run", "--dataset", "tiny", "--defense", "none", "--attack", "ca+", "--threads", "1"]
    assert place.fork_server.run(tiny, tmp_path, 300).returncode == 0
    done = place.fork_server.run(["reproduce", "none", "--threads", "1"], tmp_path, 300)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "trained by the row's recipe, in reproduced/models/" in done.stdout
    assert "those of the row" in done.stdout
    assert "differs" not in done.stdout


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
    assert Compared("NMI", "", "", stated, measured, True).equal is equal
