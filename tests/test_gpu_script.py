"""The command for people with a GPU, as far as it goes without one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from scripts import gpu
from tests.accelerator import NAME, install, strict_generators


def test_what_needs_no_cuda_is_measured_and_the_rest_is_said(tmp_path: Path) -> None:
    install()
    asked = ["--device", NAME, "--tiny", "--out", str(tmp_path), "--part", "memory"]
    with strict_generators():
        done = CliRunner().invoke(gpu.main, [*asked, "--part", "rates"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (table,), (page,) = tmp_path.glob("gpu-*.csv"), tmp_path.glob("gpu-*.md")
    rows = pd.read_csv(table)
    assert set(rows["part"]) == {"rates"}
    assert len(rows) == 3
    assert (rows["value"] > 0).all()
    assert rows["device"].str.startswith(NAME).all()
    text = page.read_text()
    assert "Skipped: it needs CUDA" in text
    assert text.count("Not measured.") == len(gpu.PARTS) - 2


def test_a_part_that_fails_or_comes_too_late_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(bench: gpu.Bench) -> gpu.Found:
        yield "a setting", "a number", 1 / 3, "s"
        raise RuntimeError("no luck")

    monkeypatch.setitem(gpu.PARTS, "rates", (fails, 0))
    monkeypatch.setitem(gpu.PARTS, "nccl", (fails, 3600))
    asked = ["--device", "cpu", "--out", str(tmp_path)]
    for part in ("rates", "nccl"):
        asked += ["--part", part]
    assert CliRunner().invoke(gpu.main, asked).exit_code == 1
    (page,) = tmp_path.glob("gpu-*.md")
    text = page.read_text()
    assert "| a setting | a number | 0.333333 s |" in text
    assert "Failed: RuntimeError: no luck." in text
    assert "Skipped: no time was left." in text
