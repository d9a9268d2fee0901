"""``verify-attack``: images from outside lower the row of a model, and name who made them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import dmlbench as dml
from dmlbench.analysis import external
from dmlbench.analysis.external import Contributor
from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.embedding import embed
from dmlbench.core import spec
from dmlbench.datasets.fashion import FashionMini
from dmlbench.models.small import LeNet
from dmlbench.storage.store import Store
from dmlbench.sweep import external_rows
from dmlbench.sweep.external import verify_file
from dmlbench.testing.tiny import tiny_data
from tests.command import Run, refused
from tests.fork_server import ForkServer

pytestmark = pytest.mark.usefixtures("registries")  # what a test loads is forgotten after it

EPS = 4 / 255
MINI = """
from dataclasses import dataclass, replace
from dmlbench.core.protocol import Threat
from dmlbench.datasets.fashion import FashionMini

@dataclass(frozen=True, kw_only=True)
class Mini(FashionMini):
    card = replace(
        FashionMini.card, name="mini", threat=Threat(eps=4 / 255, alpha=1 / 255, steps=2)
    )
"""
ROW = ["--row", "Mine", "--dataset", "mini.py:Mini", "--checkpoint", "w.safetensors"]
EVIL = 'Jane [x](y) <b>& $_% "Doe", | =1+1'
LINK = "https://example.org/a_b?c=1&d=2"


@dataclass
class Place:
    """A folder with a measured row, and the data of it."""

    root: Path
    fork_server: ForkServer
    images: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.fork_server.run(arguments, self.root, 300)

    def verify(self, file: str, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("verify-attack", file, *ROW, "--by", "Jane Doe", *more)

    @property
    def worst(self) -> float:
        """The row's Robust R@1, as tables have it."""
        return float(dml.load_results(self.root / "results")["Robust R@1"].value)


@pytest.fixture(scope="module")
def measured(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A row of fashion-mini, and images by attacks that are stronger and weaker than its own."""
    place = Place(tmp_path_factory.mktemp("row"), fork_server)
    torch.manual_seed(0)
    net = LeNet().build(1, 28, initial=True).eval().requires_grad_(False)
    (place.root / "mini.py").write_text(MINI)
    (place.root / "w.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
    done = place.run(
        *["attack", "--checkpoint", "w.safetensors", "--dataset", "mini.py:Mini", "--queries"],
        *["60", "--suite", "strict", "--label", "Mine", "--attack", "es", "--attack", "ltm"],
        *["--attack", "gtm"],
    )
    assert done.returncode == 0, done.stderr
    data = FashionMini().load(None)
    x = data.evaluation_pixels(torch.from_numpy(data.test.images))
    gallery = Gallery(embed(net, x), torch.from_numpy(data.test.labels), "N")
    frame = Store(place.root / "results")
    (worst,) = [c for c in frame.cells() if c.about.attack == "worst case"]
    index = frame.outcomes(worst.id)["Robust R@1"].dropna().index.to_numpy(copy=True)
    rows = torch.from_numpy(index)
    for name, eps, steps in (("strong", EPS, 12), ("weak", EPS / 4, 2)):
        attack = ATTACKS.get("margin")(eps=eps, steps=steps, alpha=2 * eps, suite="auto")
        found = attack.run(net, x[rows], rows, gallery, seed=0)
        place.images[name] = found.perturbed.images.numpy()
        place.images[f"{name} right"] = found.outcomes["Margin"].numpy()
        np.savez(place.root / f"{name}.npz", index=index, images=place.images[name])
    place.images |= {"index": index, "clean": x.numpy()}
    return place


@pytest.fixture
def place(measured: Place, tmp_path: Path) -> Place:
    """A copy of it that a test may change."""
    shutil.copytree(measured.root, tmp_path / "copy")
    return Place(tmp_path / "copy", measured.fork_server, measured.images)


def test_images_that_break_more_lower_the_row_and_name_who_made_them(place: Place) -> None:
    before = place.worst
    done = place.run("verify-attack", "strong.npz", *ROW, "--by", EVIL, "--link", LINK)
    assert done.returncode == 0, done.stderr
    assert "verified: 60 images within 4/255 of their queries" in done.stdout
    store = Store(place.root / "results")
    cells = {c.about.attack.partition(":")[0]: c for c in store.cells()}
    assert len(cells) == 6  # clean, es, ltm, gtm, external, worst case (the joined one is last)
    plain = store.outcomes(cells["worst case"].facts["cells"][0])  # the clean outcomes
    names = ["ES:R", "LTM", "GTM"]
    columns = [store.outcomes(cells[n.lower()[:3].rstrip(":")].id)[n] for n in names]
    index = place.images["index"]
    expected = np.minimum.reduce(
        [*(c[index] for c in columns), plain["R@1"][index], place.images["strong right"]]
    )
    assert place.worst == pytest.approx(expected.mean())
    assert place.worst < before
    broken = round((before - place.worst) * 60 / 100)
    assert f"{broken} queries fell that had stood" in done.stdout
    assert cells["external"].metrics["External:R@1"].value == pytest.approx(
        place.images["strong right"].mean()
    )
    facts = cells["external"].facts
    assert (facts["by"], facts["link"], facts["eps"]) == (EVIL, LINK, EPS)

    shown = place.run("show")
    assert f"Robust R@1 of Mine includes adversarial images by {EVIL} ({LINK})." in shown.stdout
    assert place.run("leaderboard", "--format", "md", "--format", "tex", "--format", "csv",
                     "--format", "html", "--against", "nothing").returncode == 0  # fmt: skip
    address = LINK.replace("://", ":&#47;/")  # hosts show it, and make no link of it
    boards = {p.suffix: p.read_text() for p in (place.root / "leaderboards").iterdir()}
    assert all("includes adversarial images by" in boards[k] for k in (".md", ".tex", ".html"))
    assert (
        f'Jane \\[x\\](y) &lt;b&gt;& <span>$</span>\\_% "Doe", \\| =1+1 ({address}).'
        in boards[".md"]
    )
    assert r"Jane [x](y) \textless{}b\textgreater{}\& \$\_\% \textquotedbl{}Doe" in boards[".tex"]
    assert "<b>" not in boards[".html"].replace("<body>", "")
    assert 'href="https://example.org/a_b?c=1&amp;d=2"' in boards[".html"]
    board = pd.read_csv(io.StringIO(boards[".csv"]))
    assert board["worst case includes"].tolist() == [f"images by {EVIL} ({LINK})"]
    assert board["Robust R@1"].tolist() == [pytest.approx(place.worst, abs=0.05)]
    assert not any("External" in name for name in board)

    again = place.run("verify-attack", "strong.npz", *ROW, "--by", EVIL, "--link", LINK, "--json")
    said = json.loads(again.stdout)
    assert (said["stored"], said["broken"]) == (True, 0)
    assert said["after"]["value"] == place.worst
    other = json.loads(place.verify("strong.npz", "--json").stdout)
    assert (other["stored"], other["broken"]) == (False, 0)  # the same images by someone else


def test_images_from_outside_join_the_row_of_their_ball_alone(place: Place) -> None:
    smaller = [word for name in ("es", "ltm", "gtm") for word in ("--attack", f"{name}:eps=2/255")]
    done = place.run(
        *["attack", "--checkpoint", "w.safetensors", "--dataset", "mini.py:Mini", "--queries"],
        *["60", "--suite", "strict", "--label", "Mine", *smaller],
    )
    assert done.returncode == 0, done.stderr
    store = Store(place.root / "results")
    worst = {c.about.attack: c for c in store.cells() if c.facts["kind"] == "worst case"}
    assert worst.keys() == {"worst case", "worst case:eps=2/255"}
    done = place.run("verify-attack", "strong.npz", *ROW, "--by", EVIL)
    assert done.returncode == 0, done.stderr
    joined = [c.about.attack for c in store.cells() if "external_files" in c.facts]
    assert joined == ["worst case"]
    assert place.run("leaderboard", "--format", "csv", "--against", "nothing",
                     "--column", "Robust R@1 (eps=2/255)").returncode == 0  # fmt: skip
    (board,) = (place.root / "leaderboards").glob("*.csv")
    (value,) = pd.read_csv(board)["Robust R@1 (eps=2/255)"]
    found = worst["worst case:eps=2/255"].metrics["Robust R@1"].value
    assert value == pytest.approx(found, abs=0.05)


def test_images_that_break_less_change_nothing(place: Place) -> None:
    stronger = {p.name: p.read_bytes() for p in (place.root / "results" / "cells").iterdir()}
    right = place.images["weak right"]
    store = Store(place.root / "results")
    (worst,) = [c for c in store.cells() if c.about.attack == "worst case"]
    stood = store.outcomes(worst.id)["Robust R@1"][place.images["index"]].to_numpy()
    held = right >= stood  # of the weak images those that break nothing more
    np.savez(
        place.root / "less.npz",
        index=place.images["index"][held],
        images=place.images["weak"][held],
    )
    done = place.verify("less.npz")
    assert done.returncode == 0, done.stderr
    assert "no query fell that had stood, so nothing is stored" in done.stdout
    now = {p.name: p.read_bytes() for p in (place.root / "results" / "cells").iterdir()}
    assert now == stronger


def test_a_few_images_count_for_their_queries_and_are_kept_by_later_runs_and_merges(
    place: Place, tmp_path: Path
) -> None:
    store = Store(place.root / "results")
    (worst,) = [c for c in store.cells() if c.about.attack == "worst case"]
    stood = store.outcomes(worst.id)["Robust R@1"][place.images["index"]].to_numpy()
    fell = np.flatnonzero((place.images["strong right"] == 0) & (stood > 0))
    assert len(fell) >= 4
    files = {}
    for name, part in (("a", fell[:1]), ("b", fell[1:3])):
        files[name] = place.root / f"{name}.npz"
        index = [*place.images["index"][part], 999 if 999 not in place.images["index"] else 998]
        images = np.concatenate([place.images["strong"][part], place.images["clean"][[index[-1]]]])
        np.savez_compressed(files[name], index=np.array(index, np.uint16), images=images)
    before = place.worst
    found = [
        dml.verify_attack(
            *(files[name], "Mine"), by=name, results=place.root / "results", progress=False,
            dataset=f"{place.root}/mini.py:Mini", checkpoint=place.root / "w.safetensors",
        )
        for name in ("a", "b")
    ]  # fmt: skip
    assert [(one.images, one.others, one.broken) for one in found] == [(1, 1, 1), (2, 1, 2)]
    assert place.worst == pytest.approx(before - 100 * 3 / 60) == found[1].after.value
    joined = [c for c in store.cells() if "external_files" in c.facts]
    assert [c.facts["external_files"] for c in joined] == [2]  # that of one file is gone

    # merged with a folder that has the row alone, and measured again
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    shutil.copytree(place.root / "results" / "cells", tmp_path / "one" / "cells")
    alone = tmp_path / "two" / "results"
    shutil.copytree(tmp_path / "one" / "cells", alone / "cells")
    for cell in store.cells():
        if cell.facts["kind"] == "external" or "external_files" in cell.facts:
            (alone / "cells" / f"{cell.id}.json").unlink()
    merged = place.run("merge", str(tmp_path / "one"), "--results", str(alone))
    assert merged.returncode == 0, merged.stderr
    for joint in joined:
        Store(alone).remove(joint.id)
    assert [c.id for c in external_rows.join(Store(alone))][-1] == joined[0].id
    again = place.run(
        *["attack", "--checkpoint", "w.safetensors", "--dataset", "mini.py:Mini", "--queries"],
        *["60", "--suite", "strict", "--label", "Mine", "--attack", "es", "--attack", "ltm"],
        *["--attack", "gtm"],
    )
    assert again.returncode == 0
    assert "includes adversarial images by a, b." in again.stdout
    assert place.worst == found[1].after.value


def test_a_pixel_outside_the_ball_is_refused_and_named(place: Place) -> None:
    images = place.images["clean"][place.images["index"]].copy()
    query = int(place.images["index"][7])
    pixel = images[7, 0, 3, 5]
    images[7, 0, 3, 5] = pixel + 5 / 255 if pixel < 0.5 else pixel - 5 / 255
    np.savez(place.root / "out.npz", index=place.images["index"], images=images)
    done = place.verify("out.npz")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: out.npz: the image of query {query} is 5/255 from the clean one in a pixel; the "
        "ball of this row has eps 4/255"
    )
    images[7, 0, 3, 5] = pixel + 4 / 255 if pixel < 0.5 else pixel - 4 / 255
    np.savez(place.root / "in.npz", index=place.images["index"], images=images)
    assert place.verify("in.npz").returncode == 0
    eight = (255 * images).round().astype(np.uint8)
    np.savez(place.root / "eight.npz", index=place.images["index"], images=eight)
    assert place.verify("eight.npz").returncode == 0


def test_embeddings_that_are_no_numbers_are_refused_in_one_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(place.root / "in.npz", index=place.images["index"], images=place.images["clean"])

    def fail(*_: object) -> None:
        raise CellError("the embeddings are not finite")

    monkeypatch.setattr("dmlbench.sweep.external.verify", fail)
    monkeypatch.chdir(place.root)
    with pytest.raises(UserError, match=r"^in\.npz: the embeddings are not finite$"):
        verify_file(
            *(Path("in.npz"), "Mine", Contributor("a", ""), Path("results")),
            dataset="mini.py:Mini",
            checkpoint=Path("w.safetensors"),
            progress=False,
        )


def test_rows_weights_and_people_that_cannot_be_are_refused(measured: Place) -> None:
    refused(measured.run("verify-attack", "strong.npz", "--row", "hm", "--by", "x"),
            "nothing was measured of 'hm'", "measured there: Mine")  # fmt: skip
    refused(measured.verify("strong.npz", "--where", "suite=auto"), "with suite=auto")
    refused(measured.verify("strong.npz", "--where", "color=red"), "key of --where")
    refused(measured.verify("absent.npz"), "absent.npz does not exist")
    refused(measured.verify("strong.npz", "--link", "javascript:alert(1)"), "--link must be")
    refused(measured.verify("strong.npz", "--model", "c2f2"), "name it with --model")
    refused(measured.verify("strong.npz", "--dataset", "fashion"), "--dataset is given 2 times")
    other = ("--row", "Mine", "--by", "x", "--dataset", "fashion-mini:x=1")
    refused(measured.run("verify-attack", "strong.npz", *other), "unknown key")


@pytest.mark.parametrize("by", ["", "  ", "a\nb", "a\u202eb", "x" * 101, "\x1b[31mred"])
def test_a_name_is_one_printable_line(by: str) -> None:
    with pytest.raises(UserError, match="--by must be a name"):
        Contributor(by).check()


@pytest.mark.parametrize(
    "link",
    ["javascript:alert(1)", "ftp://a.b", "http://", "https://a b", 'https://a"onload=', "//a.b",
     "https://a.b/<x>", "https://a.b/)[x](javascript:y", "https://[", "https://a.b/" + "x" * 300],
)  # fmt: skip
def test_a_link_is_a_plain_address(link: str) -> None:
    with pytest.raises(UserError, match="--link must be an address"):
        Contributor("x", link).check()
    read = external.read(f"external:by=x,link={spec.quoted(link)},eps=1,file=0")
    assert read is not None
    assert read.link == ""


def test_a_contributor_is_read_back_from_a_row() -> None:
    for one in (Contributor(EVIL, LINK), Contributor("Zoë \\ Ünal"), Contributor("a,b=c")):
        one.check()
        assert external.read(one.spelt("4/255", "0" * 64)) == one
    assert external.read("es:steps=4") is None
    assert external.read("external:nonsense") == Contributor("someone")


def test_what_was_found_is_json() -> None:
    found = msgspec.to_builtins(Contributor("x", LINK))
    assert found == {"by": "x", "link": LINK}


def test_a_row_of_a_randomised_network_is_verified_with_its_own_draws(
    attacked: Run, dmlbench: Run, tmp_path: Path
) -> None:
    attacks = [word for name in ("es", "ltm", "gtm") for word in ("--attack", name)]
    assert attacked("noisy", "--eot", "2", "--label", "Mine", *attacks).returncode == 0
    images = tiny_data().test.images[:3]
    np.savez(tmp_path / "clean.npz", index=np.arange(3), images=images)
    row = ("--row", "Mine", "--by", "Jane", "--model", "nets.py:noisy", "--checkpoint", "w.pt")
    done = dmlbench("verify-attack", "clean.npz", *row)
    assert done.returncode == 0, done.stderr
    assert "verified: 3 images" in done.stdout
