"""Memory stays bounded with a gallery of the size of Stanford Online Products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

N, CLASSES = 60_502, 11_316
LIMIT = 2 << 30  # bytes above the embeddings; all distances at once would be 14 GB
PRELUDE = f"""
import json, resource, torch
from dmlbench.attacks.base import Gallery
from dmlbench.attacks.query import QueryDown, QueryUp
from dmlbench.metrics.bootstrap import bootstrap_mean
from dmlbench.metrics.collapse import effective_rank, mean_cosine
from dmlbench.metrics.relevance import Relevance
from dmlbench.metrics.retrieval import retrieval
from dmlbench.core.protocol import Threat

torch.manual_seed(0)
x = torch.nn.functional.normalize(torch.randn({N}, dim), dim=1)
labels = torch.arange({N}) % {CLASSES}
index = torch.arange({N})
gallery = Gallery(x, labels, "N")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
"""
RETRIEVAL = """
some = index[::32]  # 15 blocks; one more query adds a number per metric
found = retrieval(x[some], some, x, Relevance.leave_one_out(labels), "N")
means = {name: bootstrap_mean(values.numpy()).value for name, values in found.scores.items()}
means |= {"cosine": float(mean_cosine(x, torch.float64)), "effective rank": effective_rank(x)}
"""
QUERY_ATTACKS = """
batch, means = index[:1024], {}
for cls in (QueryUp, QueryDown):
    goal = cls().resolve(Threat(8 / 255, 3 / 255, 32)).goal(gallery, batch, seed=0)
    loss, gradient = goal.value_and_grad(x[batch], 0)
    assert gradient.isfinite().all()
    means |= {name: float(value.mean()) for name, value in goal.outcome(x[batch]).items()}
"""


def measured(code: str, dim: int, tmp_path: Path) -> tuple[dict[str, float], int]:
    """Run ``code``; return its result and its peak memory beyond the embeddings, in bytes."""
    script = tmp_path / "child.py"
    script.write_text(
        f"dim = {dim}\n" + PRELUDE + code + "print(json.dumps([means, peak() - before]))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    means, rise = json.loads(done.stdout)
    print(means, f"{rise / 2**20:.0f} MiB above the embeddings")
    return means, rise


@pytest.mark.slow
def test_retrieval_metrics(tmp_path: Path) -> None:
    means, rise = measured(RETRIEVAL, 512, tmp_path)
    assert rise < LIMIT
    assert 0 <= means["R@1"] < 1  # the embeddings are random
    assert abs(means["cosine"]) < 0.01
    assert 500 < means["effective rank"] <= 512


@pytest.mark.slow
def test_a_pass_of_the_query_attacks(tmp_path: Path) -> None:
    """QA- looks for the nearest 1% of every item: with 64 dimensions that takes an eighth."""
    means, rise = measured(QUERY_ATTACKS, 64, tmp_path)
    assert rise < LIMIT
    assert 45 < means["QA+"] < 55
    assert means["QA-"] < 1
