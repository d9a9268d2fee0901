"""Time and memory against the size of the gallery: ``python -m scripts.scale [options]``.

A gallery of random embeddings of unit length, a tenth of them distractors and the others in classes
of five, is searched by queries that do not lie in it. No image is embedded, so every number is the
cost of the search alone. Each size is measured in a process of its own; the rows are

- metrics: R@K, mAP and the others of all queries, and chance R@1;
- collapse: the signs of a collapse, mean cosine and effective rank;
- the set-up of an attack (choice of its targets: neighbours and sorted distances) and one step of
  it (loss and gradient in the embeddings, then the outcome), in batches as the harness takes them.

The columns are seconds (on a CPU those of its processor time, which other programs on the machine
hardly change) and ``MiB``, the peak of memory beyond the embeddings.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.compute.device import Compute
from dmlbench.datasets.mnist import THREAT
from dmlbench.metrics.collapse import chance_recall, effective_rank, mean_cosine
from dmlbench.metrics.relevance import Groups, Lists, Relevance
from dmlbench.metrics.retrieval import retrieval
from scripts.overhead import clock, peak_mib
from scripts.record import CSV, NEEDS_A_SECOND, save

SIZES = "10000,60502,1000000"
CLASS_SIZE = 5
COLUMNS = ("gallery", "queries", "what", "set-up s", "step s", "MiB")


@click.command()
@click.option("--sizes", default=SIZES, show_default=True, help="Items in the gallery.")
@click.option("--queries", default=64, show_default=True)
@click.option("--dim", default=512, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--attack", "names", multiple=True, help="Default: every registered one.")
@CSV
def main(
    sizes: str,
    queries: int,
    dim: int,
    threads: int,
    device_name: str,
    names: tuple[str, ...],
    path: Path | None,
) -> None:
    """Print a row for each attack and size."""
    rows: list[dict[str, str]] = []
    many = [int(size) for size in sizes.split(",")]
    if len(many) > 1:  # each in a fresh process, whose memory no other size has used
        for size in many:
            command = [sys.executable, "-m", "scripts.scale", "--sizes", str(size)]
            command += ["--queries", str(queries), "--dim", str(dim), "--threads", str(threads)]
            command += ["--device", device_name]
            command += [word for name in names for word in ("--attack", name)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows += csv.DictReader(io.StringIO(done.stdout))
            click.echo(done.stdout)
        with Compute(device_name, threads=threads).applied() as device:
            save(path, rows, device)
        return
    torch.manual_seed(0)
    with Compute(device_name, threads=threads).applied() as device:
        gallery = made(many[0], queries, dim, device)
        index = torch.arange(queries, device=device)
        writer = csv.DictWriter(sys.stdout, COLUMNS)
        writer.writeheader()
        for what, ready, step, peak in measured(gallery, index, names, device):
            values = (str(many[0]), str(queries), what, ready, step, f"{peak:.0f}")
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            writer.writerow(rows[-1])
            sys.stdout.flush()
        save(path, rows, device)


def made(size: int, queries: int, dim: int, device: torch.device) -> Gallery:
    """The gallery, and its queries, which are of the classes of the first items."""
    x = torch.randn(size, dim, device=device)
    x /= x.norm(dim=1, keepdim=True)
    labels = torch.arange(size, device=device) // CLASS_SIZE
    labels[-size // 10 :] = -1
    own = torch.arange(queries, device=device)
    nothing = Lists(own.new_full((1, 1), -1), torch.zeros_like(own))
    relevance = Relevance(Groups.of_ids(labels, own), nothing)
    seeking = torch.nn.functional.normalize(torch.randn(queries, dim, device=device), dim=1)
    return Gallery(x, labels, "N", queries=seeking, relevance=relevance, apart=True)


def measured(
    gallery: Gallery, index: torch.Tensor, names: tuple[str, ...], device: torch.device
) -> Iterator[tuple[str, str, str, float]]:
    """(what, seconds of the set-up, seconds of a step, MiB) of the metrics and each attack."""
    e, x = gallery.queries, gallery.embeddings
    seconds = {"set-up": 0.0, "step": 0.0}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        """The result of ``work``, whose time is added to that of its part."""
        results: list[Any] = []
        begun = time.process_time()
        wall = clock(lambda: results.append(work()), device)
        seconds[part] += time.process_time() - begun if device.type == "cpu" else wall
        return results[0]

    def metrics() -> None:
        retrieval(e, index, x, gallery.relevance, "N")
        chance_recall(gallery.relevance, len(gallery))

    def collapse() -> None:
        mean_cosine(x, torch.float64)
        effective_rank(x)

    for name, work in (("metrics", metrics), ("collapse", collapse)):
        seconds["step"] = 0.0
        peak = peak_mib(partial(timed, "step", work), device)
        yield name, "", f"{seconds['step']:.3f}", peak

    def attacked(attack: Any) -> None:
        for rows in torch.split(index, attack.most_rows(gallery)):
            goal = timed("set-up", partial(attack.goal, gallery, rows, seed=0))
            timed("step", partial(goal.value_and_grad, e[rows], 0))
            timed("step", partial(goal.outcome, e[rows]))

    for name in names or [name for name in ATTACKS.names() if name not in NEEDS_A_SECOND]:
        attack = ATTACKS.get(name)().resolve(THREAT)
        seconds |= {"set-up": 0.0, "step": 0.0}
        peak = peak_mib(partial(attacked, attack), device)
        yield name, f"{seconds['set-up']:.3f}", f"{seconds['step']:.3f}", peak


if __name__ == "__main__":
    main()
