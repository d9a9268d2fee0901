"""The first command of the README: the defense is as much better as the README promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.slow
def test_hm_is_robust_where_the_undefended_model_is_not(tmp_path: Path) -> None:
    """HM under CA+ ranks at least 10 points above the undefended model, CA- 15 below.

    The training is half of the README's, and a quarter of the queries is attacked.
    """
    command = ["run", "--defense", "hm", "--attack", "ca+", "--attack", "ca-", "--threads", "1"]
    command += ["--queries", "250", "--recipe", "epochs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "dmlbench", *command],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # another test runs beside this one
        capture_output=True,
        text=True,
        timeout=7200,  # a minute or two of one core, however many others want it
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "results" / "wide.csv").set_index("defense")
    assert table.loc["hm", "CA+"] >= table.loc["none", "CA+"] + 10
    assert table.loc["hm", "CA-"] <= table.loc["none", "CA-"] - 15
    assert table.loc["hm", "R@1"] > table.loc["none", "R@1"] - 5  # and it still retrieves
    assert not table["collapsed"].any()
