"""Boards in four formats, from CSVs and from published rows: tables, columns and ranks."""

from __future__ import annotations

import csv
import io
import math
import re
from statistics import stdev

import pytest
from msgspec.structs import replace
from rich.console import Console
from scipy.stats import t as students_t

from dmlbench.analysis.records import tidy, wide
from dmlbench.analysis.seeds import over_seeds
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.papers import HM
from dmlbench.core.protocol import TrainingThreat
from dmlbench.defenses.base import DEFENSES
from dmlbench.defenses.losses import LOSSES
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.report import latex, markdown, page, spreadsheet
from dmlbench.report.board import Board, tables
from dmlbench.report.drawing import named
from dmlbench.report.entries import measured
from dmlbench.report.literature import DOCUMENTATION, published
from dmlbench.report.plots import PLOTS
from dmlbench.report.render import boards
from dmlbench.report.terminal import print_tables
from dmlbench.storage.cell import Cell
from tests.cells import cell, with_facts
from tests.synthetic import FULL, attacked, failed, model, one_board

PAPER = {  # HM, Table 6: the rows by their printed ERS, best first
    "cub": [
        ("HM[S,g_LGA]&ICS", "32", "36.0"),
        ("HM[S,g_LGA]", "32", "35.9"),
        ("ACT[R]", "32", "33.9"),
        ("HM[S,g_LGA]&ICS", "8", "33.5"),
        ("HM[S,g_LGA]", "8", "32.4"),
        ("ACT[R]", "8", "31.3"),
        ("EST[R]", "8", "7.9"),
        ("EST[R]", "32", "5.3"),
        ("N/A[R]", "–", "3.8"),
    ],
    "cars": [
        ("HM[S,g_LGA]&ICS", "8", "47.9"),
        ("HM[S,g_LGA]&ICS", "32", "46.0"),
        ("HM[S,g_LGA]", "32", "44.9"),
        ("HM[S,g_LGA]", "8", "42.4"),
        ("ACT[R]", "8", "39.8"),
        ("ACT[R]", "32", "38.6"),
        ("EST[R]", "32", "7.3"),
        ("EST[R]", "8", "4.4"),
        ("N/A[R]", "–", "3.6"),
    ],
    "sop": [
        ("HM[S,g_LGA]", "32", "61.8"),
        ("HM[S,g_LGA]", "8", "61.7"),
        ("HM[S,g_LGA]&ICS", "32", "61.6"),
        ("HM[S,g_LGA]&ICS", "8", "61.2"),
        ("ACT[R]", "32", "50.8"),
        ("ACT[R]", "8", "49.5"),
        ("EST[R]", "32", "31.7"),
        ("EST[R]", "8", "19.0"),
        ("N/A[R]", "–", "4.0"),
    ],
}


def column(board: Board, name: str) -> list[str]:
    """The texts of a column of the first table."""
    table = board.tables[0]
    place = [c.name for c in table.columns].index(name)
    return [line.cells[place].text for line in table.lines]


@pytest.mark.parametrize("name", PAPER)
def test_the_rank_order_is_that_of_the_papers_table(name: str) -> None:
    found = {board.name: board for board in boards([], where=["source=CVPR 2022 Table 6"])}
    text = markdown.render(found[name])
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    heads, _, *body = lines[:11]  # the few columns; all of them follow, folded
    places = [heads.index(head) for head in ("Defense", "η", "ERS ↑")]
    shown = [tuple(re.sub(r"[*]|</?ins>", "", row[at]) for at in places) for row in body]
    assert shown == PAPER[name]
    assert [row[0] for row in body] == [str(place + 1) for place in range(9)]
    best = "**" + PAPER[name][0][2] + "**"
    assert [row[places[2]] == best for row in body] == [True] + [False] * 8


def test_every_published_row_is_on_a_board_with_its_source() -> None:
    lines = [line for board in boards([]) for table in board.tables for line in table.lines]
    assert len(lines) == len(published()) == 157
    links = {line.cells[-1].link for line in lines}
    assert links == {HM.url, *map(DOCUMENTATION.format, ("cub", "cars", "sop", "fashion"))}
    unranked = [line.entry.label for line in lines if line.entry.score is None]
    # collapsed on CUB; fashion's metrics E and C, without an ERS; RobRank's that were not attacked
    assert len(unranked) == 11 + 6 + 51


def test_ties_share_a_rank_and_a_mark() -> None:
    weaker = FULL | {"GTT": 1.0}
    weakest = FULL | {"GTT": 0.0, "LTM": 0.0}
    named = zip("abcd", (weaker, FULL, weakest, weaker), strict=True)
    board = one_board(*(c for label, values in named for c in model(values, label=label)))
    assert column(board, "Defense") == ["b", "a", "d", "c"]
    assert column(board, "Rank") == ["1", "2=", "2=", "4"]
    place = [c.name for c in board.tables[0].columns].index("GTT")
    marks = [line.cells[place].mark for line in board.tables[0].lines]
    assert marks == ["best", "second", "second", ""]


def test_collapsed_failed_and_missing_are_shown_and_not_ranked() -> None:
    fallen = FULL | {"CA+": 50.0, "QA+": 50.0, "ES:R": 99.0}
    broken = model({k: v for k, v in FULL.items() if k != "GTT"}, label="broken")
    broken.append(failed("GTT", "RuntimeError: odd", label="broken"))
    short = model({"CA+": 30.0}, label="short")
    board = one_board(
        *model(label="fine"), *model(fallen, True, label="fallen"), *broken, *short
    )  # fmt: skip
    assert column(board, "Defense") == ["fine", "broken", "short", "fallen †"]
    assert column(board, "Rank") == ["1", "–", "–", "–"]
    assert column(board, "GTT") == ["5.0", "failed", "–", "5.0"]
    assert column(board, "ERS")[1:3] == ["–", "–"]
    assert float(column(board, "ERS")[3]) > float(column(board, "ERS")[0])  # and yet unranked
    marks = {c.mark for line in board.tables[0].lines[3:] for c in line.cells}
    assert marks == {""}  # the collapsed model has the best CA+ and gets no mark for it
    assert "not ranked" in " ".join(board.tables[0].notes)
    for text in (markdown.render(board), latex.render(board), page.render([board])):
        assert "failed" in text
    assert "RuntimeError: odd" in page.render([board])


def test_a_model_that_retrieves_is_not_called_collapsed_whatever_its_cell_says() -> None:
    """As older cells did for a mean cosine above 0.99."""
    right, wrong = model(collapsed=True, label="right"), model(collapsed=True, label="wrong")
    for cells, chance in ((right, 10.0), (wrong, 79.0)):  # R@1 is 80
        cells[0].findings.update({"chance R@1": chance, "mean_cosine": 0.995})
    board = one_board(*right, *wrong)
    assert column(board, "Defense") == ["right", "wrong †"]
    assert column(board, "Rank") == ["1", "–"]
    assert "0.995" in board.tables[0].lines[0].cells[1].note


def test_lines_that_would_read_alike_tell_what_differs() -> None:
    """Weights trained on SOP, whose lambda is another, beside those of the board's own set."""
    label, cells = "HM[S,g_LGA]&ICS", []
    for ics in ("0.5", "0.05"):
        values = {name: value * (1 + float(ics)) / 2 for name, value in FULL.items()}
        resolved = f"hm:eta=8,ics={ics}"
        cells += [
            with_facts(c, checkpoint=ics)
            for c in model(values, label=label, defense="hm", resolved=resolved)
        ]
    cells += model({n: v / 9 for n, v in FULL.items()}, label=label, defense="hm:eta=32")
    board = one_board(*cells)
    assert sorted(column(board, "Defense")) == [
        f"{label} (hm:eta=32)",
        f"{label}, ics=0.05",
        f"{label}, ics=0.5",
    ]


def test_nmi_of_a_newer_definition_counts_and_never_stands_without_its_caveat() -> None:
    cells = model()
    old = next(one for one in cells if one.ok and not one.about.attack)
    old.columns["NMI"], old.metrics["NMI"] = old.columns["R@1"], Estimate(77.2, None, None, 40)
    new = replace(old, id="f" * 16, metrics=old.metrics | {"NMI": Estimate(81.0, 77.2, 82.5, 40)})
    new = replace(new, started=0, findings=old.findings | {"nmi_version": 2})
    board = one_board(new, *cells)
    assert column(board, "NMI") == ["81.0"]
    (cell,) = (c for c in board.tables[0].lines[0].cells if c.text == "81.0")
    assert cell.number is not None
    assert cell.number.range == "[77.2, 82.5]"
    assert any(note.startswith("NMI changes") for note in board.tables[0].notes)
    assert not any("NMI" in note for note in one_board(*model()).tables[0].notes)


def test_a_training_that_failed_is_a_line_of_each_suite() -> None:
    training = failed("", "CellError: diverged", label="diverged", suite="")
    training = replace(training, about=replace(training.about, attack=""), columns={})
    board = one_board(*model(), *model(suite="ers")[1:], training)
    assert [len(table.lines) for table in board.tables] == [2, 2]
    assert column(board, "CA+") == ["10.0", "failed"]
    assert board.tables[0].lines[1].cells[-1].text == "here, training failed"
    assert "CellError: diverged" in page.render([board])
    alone = one_board(training)
    assert alone.tables[0].title == "tiny"
    assert "training failed" in markdown.render(alone)


def test_metrics_other_than_n_have_no_score_and_compete_with_none() -> None:
    board = one_board(*model(), *model(FULL | {"CA+": 50.0}, distance="C", label="cosine"))
    assert column(board, "Rank") == ["1", "–"]
    assert column(board, "Loss") == ["triplet-N", "triplet-C"]
    assert "**50.0**" not in markdown.render(board)


def test_the_loss_is_the_one_that_the_model_was_trained_with() -> None:
    """As each defense writes itself down when it is trained, and for weights from elsewhere."""
    threat, expected = TrainingThreat(eps=0.1, eta=2, alpha=0.1), {}
    for text, loss in [
        ("none", "triplet-N"),
        ("none:sampler=semihard", "triplet-N"),
        *((f"none:loss={name}", f"{name}-N") for name in LOSSES),
        ("hm:source=random,ics=0.5", "triplet-N"),
    ]:
        expected[spec.canonical(spec.parse(text, DEFENSES).resolve(threat, "N"))] = loss
    expected[""] = "unknown-N"
    cells = [c for resolved in expected for c in model(label=f"of {resolved}", resolved=resolved)]
    entries = measured(tidy(cells))
    assert {e.label.removeprefix("of "): e.loss for e in entries} == expected


def test_several_seeds_are_a_line_with_mean_and_deviation() -> None:
    runs = [
        model(FULL | {"CA+": value}, seed=seed) for seed, value in enumerate((10.0, 12.0, 17.0))
    ]
    board = one_board(*(c for run in runs for c in run))
    (line,) = board.tables[0].lines
    assert line.entry.numbers["CA+"].text == "13.0"
    assert line.entry.numbers["CA+"].spread == pytest.approx(stdev([10, 12, 17]))
    over_seeds = students_t.interval(0.95, 2, 13, stdev([10, 12, 17]) / math.sqrt(3))
    reach = math.hypot(over_seeds[1] - 13, 1)  # each of them has an interval of 1 either way
    assert line.entry.interval("CA+") == (pytest.approx(13 - reach), pytest.approx(13 + reach))
    assert line.cells[-1].text == "here, n = 40, seeds 0, 1 and 2"
    assert "13.0 <sub>± 3.6</sub>" in markdown.render(board)
    (record,) = csv.DictReader(io.StringIO(spreadsheet.render(board)))
    assert (record["CA+"], record["CA+ sd"], record["seeds"]) == ("13.0", "3.6", "0 1 2")
    assert record["ERS sd"] == "0.7"


@pytest.mark.parametrize("lost", [[], [failed("ES:R", "RuntimeError: odd", seed=1)]])
def test_a_number_that_a_seed_lacks_says_so_in_every_format(lost: list[Cell]) -> None:
    lacking = model({k: v for k, v in FULL.items() if k != "ES:R"}, seed=1)
    weak = model({k: v / 2 for k, v in FULL.items()}, label="weak")
    board = one_board(*model(), *lacking, *lost, *weak)
    (table,) = board.tables
    (line,) = (one for one in table.lines if one.entry.label != "weak")
    cells = dict(zip((c.name for c in table.columns), line.cells, strict=True))
    assert cells["ES:R"].mark == ""  # and yet higher than that of the other line
    assert cells["LTM"].mark == "best"
    assert cells["ERS"].text == "–"
    assert cells["Source"].text == "here, n = 40, seeds 0 and 1"
    assert cells["ES:R"].note.startswith("Of seed 0 only.")
    assert ("RuntimeError: odd" in cells["ES:R"].note) == bool(lost)
    shown = "[19.0, 21.0] seed 0 only"
    assert f"| 20.0 <sub>{shown}</sub> |" in markdown.render(board)
    assert rf"\measured{{20.0}}{{{shown}}}" in latex.render(board)
    assert f'data-range="{shown}"' in page.render([board])
    console = Console(width=1000, record=True, file=io.StringIO())
    print_tables(tidy([*model(), *lacking, *lost]), console)
    assert f"20.0 {shown}" in console.export_text()
    records = {one["spec"]: one for one in csv.DictReader(io.StringIO(spreadsheet.render(board)))}
    assert records["weak"]["ES:R seeds"] == ""
    assert {records[name]["ES:R seeds"] for name in records if name != "weak"} == {"0"}
    assert "LTM seeds" not in records["weak"]
    assert any("of some seeds only" in note for note in table.notes)
    assert not any("of some seeds only" in note for note in one_board(*weak).tables[0].notes)


def test_a_measured_number_carries_interval_n_and_seed_in_every_format() -> None:
    board = one_board(*model())
    assert "| 10.0 <sub>[9.0, 11.0]</sub> |" in markdown.render(board)
    assert "0.500 <sub>[0.490, 0.510]</sub>" in markdown.render(board)
    assert r"\measured{10.0}{[9.0, 11.0]}" in latex.render(board)
    assert 'data-range="[9.0, 11.0]"' in page.render([board])
    (record,) = csv.DictReader(io.StringIO(spreadsheet.render(board)))
    assert (record["CA+"], record["CA+ low"], record["CA+ high"]) == ("10.0", "9.0", "11.0")
    for text in (markdown.render(board), latex.render(board), page.render([board])):
        assert "here, n = 40, seed 0" in text
        assert "eps 77/255, 32 steps of 3/255" in text


def test_suites_and_data_sets_are_tables_of_their_own() -> None:
    cells = [*model(), *model(suite="ers")[1:], *model(dataset="tiny:size=8")]
    board = one_board(*cells)
    titles = [table.title for table in board.tables]
    assert titles == ["tiny, suite ers", "tiny, suite strict", "tiny:size=8, suite strict"]
    (mini, *_) = boards(tidy(model(dataset="fashion-mini")))
    titles = [table.title for table in mini.tables]
    assert titles == ["fashion-mini, suite strict", "fashion, suite ers"]  # and the literature


def test_models_on_other_images_than_the_last_have_a_table_of_their_own() -> None:
    """A folder whose images have changed; a cell that does not know its images is in the usual."""
    old, new = (
        [
            replace(with_facts(one, data=digest), started=started)
            for one in (*model(label=f"{digest} A"), *model({"CA+": 50.0}, label=f"{digest} B"))
        ]
        for digest, started in (("before", 0.0), ("after", 9.0))
    )
    board = one_board(*old, *new, *model({"CA+": 60.0}, label="unknown"))
    assert [(t.title, [line.entry.label for line in t.lines]) for t in board.tables] == [
        ("tiny, suite strict", ["after A", "after B", "unknown"]),
        ("tiny (other images, before), suite strict", ["before A", "before B"]),
    ]
    assert [line.cells[0].text for t in board.tables for line in t.lines] == [*"1––", *"1–"]
    names = [name for name, _, _ in named(board)]
    assert len(names) == len(set(names)) == 2 * len(one_board(*new).tables) * (len(PLOTS) + 1)
    rows = csv.DictReader(io.StringIO(spreadsheet.render(board)))
    assert {row["dataset"] for row in rows} == {"tiny", "tiny (other images, before)"}


def test_a_sweep_is_for_plots_but_a_lone_variant_is_shown() -> None:
    sweep = [attacked("CA+", 20, changed=f"eps={eps}/255") for eps in (4, 16)]
    wide = attacked("CA+", 25, changed="w=5")
    heads = [c.name for c in one_board(*model(), *sweep, wide).tables[0].columns]
    assert "CA+ (w=5)" in heads
    assert not [head for head in heads if "eps" in head]
    assert column(one_board(sweep[0]), "CA+ (eps=4/255)") == ["20.0"]
    (chosen,) = tables(measured(tidy([*model(), *sweep])), ["CA+ (eps=4/255)", "ERS"])
    metrics = [c.label for c in chosen.columns if c.better]
    assert metrics == ["CA+ (eps=4/255) ↑", "ERS ↑"]


def test_filters_choose_lines_and_say_what_they_do_not_know() -> None:
    (board,) = boards([], where=["defense=hm[s,*", "eta=8", "source=*Table 6"])[:1]
    assert column(board, "Defense") == ["HM[S,g_LGA]&ICS", "HM[S,g_LGA]"]
    for where, words in [
        ("defense", "is not key=value"),
        ("modell=x", "did you mean 'model'"),
        ("model=nothing", "no line of any board meets model=nothing"),
    ]:
        with pytest.raises(UserError, match=words):
            boards([], where=[where])
    with pytest.raises(UserError, match=r"unknown column 'CA'.*did you mean"):
        boards([], columns=["CA"])


def test_of_weights_trained_again_the_last_to_be_measured_count() -> None:
    old, new = cell("CA+", 10), cell("CA+", 30)
    new = replace(with_facts(new, checkpoint="other"), started=old.started + 60)
    (entry,) = measured(tidy([new, old]))
    assert (entry.numbers["CA+"].text, entry.seeds) == ("30.0", (0,))
    assert entry.numbers["CA+"].range == "[29.0, 31.0]"
    (record,) = over_seeds(wide([new, old]))
    assert (record["CA+"], record["CA+ n"]) == (30, 1)
