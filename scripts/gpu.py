"""Measure all that needs a GPU: ``python -m scripts.gpu``, some eight minutes on an H100.

Parts, in this order:

- tests: those marked ``gpu``;
- graphs: one attack with replayed and with launched kernels: are the outcomes equal to the bit, and
  how much faster is it;
- overhead: what ``scripts.overhead`` measures;
- rates: images a second of a training step and of an attack;
- memory: the largest batch, a power of two, of a forward and backward pass;
- precision: the numbers of one model under fp32, tf32 and bf16, less those under fp32;
- nccl: the loss after an epoch of two processes, less that of one.

The results are ``gpu-NAME.csv`` and ``gpu-NAME.md`` in the folder ``--out``, ready to commit. Both
are written after each part, so that a command that is cut off loses one part only. A part for which
the device is wrong, or no time is left, is skipped, and the files say so. ``--tiny --device cpu``
tries the script itself.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
import pandas as pd
import torch

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.common.errors import UserError
from dmlbench.common.progress import QuietReporter
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen, on_device
from dmlbench.compute.provenance import provenance
from dmlbench.core import spec
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses.base import DEFENSES
from dmlbench.evaluation import cuda_graphs
from dmlbench.evaluation.evaluator import evaluation
from dmlbench.models.base import parse_model
from scripts.overhead import bare_step, clock
from scripts.record import save
from scripts.training import Workbench, prepare

ROOT = Path(__file__).resolve().parent.parent
THREAT, TRAINING_THREAT = FashionMini.card.threat, FashionMini.card.training_threat
NETWORKS = (("c2f2", 1, 28), ("resnet18", 3, 224))  # spec, channels, pixels a side
LARGEST = 2**20  # images; no batch is larger
DATA = cache(lambda: FashionMini().load(None))


class SkippedError(Exception):
    """The part cannot be measured here; the message says why."""


@dataclass
class Bench:
    """The device, the size, the time and the results that all parts share.

    Attributes:
        device: that is measured.
        tiny: measure next to nothing.
        end: value of ``time.monotonic`` at which the time is up.
        rows: what was measured: part, setting, quantity, value, unit.
    """

    device: torch.device
    tiny: bool
    end: float
    rows: list[dict[str, str]] = field(default_factory=list)

    @property
    def seconds_left(self) -> float:
        """Seconds until the time is up."""
        return self.end - time.monotonic()

    def size(self, usual: int, tiny: int) -> int:
        """``usual``, or ``tiny`` where next to nothing is measured."""
        return tiny if self.tiny else usual

    def needs_cuda(self) -> None:
        """SkippedError unless the device is a GPU of NVIDIA."""
        if self.device.type != "cuda":
            raise SkippedError(f"it needs CUDA, and the device is {self.device}")

    def command(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run a Python module in the repository; return what it printed.

        Raises:
            RuntimeError: it took longer than is left, or ended with another exit code.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=max(1.0, self.seconds_left),
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{arguments[0]} was stopped: the time was up") from None
        if done.returncode not in codes:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise RuntimeError(f"{arguments[0]} ended with exit code {done.returncode}: {last}")
        return done.stdout


Found = Iterator[tuple[str, str, float, str]]
"""Setting, quantity, value and unit of each number of a part."""


def tests(bench: Bench) -> Found:
    """The counts of tests that passed, failed, and were skipped."""
    bench.needs_cuda()
    printed = bench.command("pytest", "-q", "-n0", "-m", "gpu", codes=(0, 1))
    for number, outcome in re.findall(r"(\d+) (passed|failed|skipped|error)", printed):
        yield "-m gpu", outcome, float(number), "tests"


def graphs(bench: Bench) -> Found:
    """One attack on fashion-mini, its kernels replayed and launched."""
    bench.needs_cuda()
    attack, model = ATTACKS.get("es")().resolve(THREAT), trained(bench)
    queries = bench.size(1000, 8)
    outcomes = []
    for setting in ("replayed", "launched"):
        rule = cuda_graphs.bound_by_launches if setting == "replayed" else lambda *_: False
        with (
            patch.object(cuda_graphs, "bound_by_launches", rule),
            evaluation(model, DATA(), Compute(str(bench.device)), QuietReporter()) as measured,
        ):
            measured.attack(attack, 0, "es", 8)  # a warm-up, which records
            begun = time.perf_counter()
            outcomes.append(measured.attack(attack, 0, "es", queries).outcomes)
            yield setting, f"es of {queries} queries", time.perf_counter() - begun, "s"
            replayed = isinstance(measured.network, cuda_graphs.Replayed)
            yield setting, "kernels were replayed", float(replayed), "(0 or 1)"
    first, second = outcomes
    equal = all(np.array_equal(first[key], second[key], equal_nan=True) for key in first)
    yield "both", "outcomes equal to the bit", float(equal), "(0 or 1)"


def overhead(bench: Bench) -> Found:
    """The ratios of ``scripts.overhead``, for each registered attack."""
    small = ["--gallery", "200", "--batch", "8", "--repeats", "1", "--attack", "ca+"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overhead.csv"
        asked = ["--device", str(bench.device), "--csv", str(path), *(small if bench.tiny else [])]
        bench.command("scripts.overhead", *asked)
        for row in pd.read_csv(path).to_dict("records"):
            ratio = float(row["overhead"].partition(" ")[0])  # its range stands behind it
            yield str(row["attack"]), "PGD step / bare step", ratio, ""
            yield str(row["attack"]), "queries a second at 32 steps", float(row["queries/s"]), "1/s"


def rates(bench: Bench) -> Found:
    """Training steps without defense and with hm, and an attack of 32 steps."""
    for name, channels, side in NETWORKS[: bench.size(2, 1)]:
        model = network(name, channels, side, bench.device)
        for text in ("none", "hm:eta=8"):
            images = torch.rand(bench.size(256, 8), channels, side, side, device=bench.device)
            labels = torch.arange(len(images), device=bench.device) // 2 % 8
            defense = spec.parse(text, DEFENSES).resolve(TRAINING_THREAT, "N")
            step = partial(Workbench(model, images, labels, bench.device).step, defense)
            rate = len(images) / median(step, bench)
            yield f"{name}, {side} px", f"training images a second, {text}", rate, "1/s"
        images = torch.rand(bench.size(512, 8), channels, side, side, device=bench.device)
        index = torch.arange(len(images), device=bench.device)
        with frozen(model), torch.no_grad():
            e = torch.cat([embed(model, part) for part in torch.split(images, 64)])
        gallery = Gallery(e, index // 2, model.metric)
        attack = ATTACKS.get("ca+")().resolve(THREAT)
        run = partial(attack.run, model, images, index, gallery, seed=0)
        yield f"{name}, {side} px", "queries a second, ca+", len(images) / median(run, bench), "1/s"


def memory(bench: Bench) -> Found:
    """The batch is doubled until memory is short; a GPU of 80 GB holds some 2,000 at 224 px."""
    bench.needs_cuda()
    for name, channels, side in NETWORKS:
        model, rows = network(name, channels, side, bench.device), 0
        with frozen(model):
            for count in (2**power for power in range(6, LARGEST.bit_length())):
                try:
                    bare_step(model, torch.rand(count, channels, side, side, device=bench.device))
                except torch.OutOfMemoryError:
                    break
                rows = count
        torch.cuda.empty_cache()
        yield f"{name}, {side} px", "largest batch", float(rows), "images"


def precision(bench: Bench) -> Found:
    """A C2F2 that has seen 30 batches of fashion-mini, on its test split."""
    queries, model = bench.size(500, 4), trained(bench)
    fp32: dict[str, float] = {}
    for name in ("fp32", "tf32", "bf16"):
        try:
            Compute(str(bench.device), precision=name).check()
        except UserError:
            continue  # tf32 needs a GPU
        compute = Compute(str(bench.device), precision=name)
        with evaluation(model, DATA(), compute, QuietReporter()) as measured:
            found = {key: one.value for key, one in measured.benign().metrics.items()}
            for text in ("ca+", "es", "gtm")[: bench.size(3, 1)]:
                attack = ATTACKS.get(text)().resolve(THREAT)
                one = measured.attack(attack, 0, text, queries)
                found |= {key: value.value for key, value in one.metrics.items()}
        fp32 = fp32 or found
        for key, value in found.items():
            yield name, key, value, ""
            if name != "fp32":
                yield name, f"{key}, less fp32", value - fp32[key], ""


def nccl(bench: Bench) -> Found:
    """One epoch of fashion-mini without defense."""
    bench.needs_cuda()
    if torch.cuda.device_count() < 2:
        raise SkippedError(f"it needs two GPUs, and there are {torch.cuda.device_count()}")
    losses = []
    for processes in (1, 2):
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        with tempfile.TemporaryDirectory() as folder:
            asked = ["-m", "dmlbench", "train", "--recipe", "epochs=1", "--defense", "none"]
            printed = bench.command(*launch, *asked, "--results", folder, "--json")
        (manifest,) = json.loads(printed)
        losses.append(manifest["history"][0]["loss"])
        yield f"{processes} processes", "an epoch", float(manifest["seconds"]), "s"
    yield "2 processes", "loss, less that of one", losses[1] - losses[0], ""


PARTS: dict[str, tuple[Callable[[Bench], Found], int]] = {
    "tests": (tests, 60),
    "graphs": (graphs, 20),
    "overhead": (overhead, 60),
    "rates": (rates, 30),
    "memory": (memory, 20),
    "precision": (precision, 30),
    "nccl": (nccl, 60),
}
"""Name -> the function, and the seconds that must be left for it to begin."""


def network(name: str, channels: int, side: int, device: torch.device) -> EmbeddingModel:
    """A network with random weights; none are downloaded."""
    torch.manual_seed(0)
    return on_device(parse_model(name).build(channels, side), device)


def trained(bench: Bench) -> EmbeddingModel:
    """A C2F2 after 30 batches of fashion-mini."""
    return prepare(bench.size(128, 8), bench.device).model


def median(work: Callable[[], object], bench: Bench) -> float:
    """The median of the seconds of some calls, after a warm-up."""
    work()
    times = [clock(work, bench.device) for _ in range(bench.size(5, 1))]
    return statistics.median(times)


def page(bench: Bench, skipped: dict[str, str], seconds: float) -> str:
    """The numbers as a page of Markdown, a table a part."""
    made = provenance(bench.device)
    command = f"python -m scripts.gpu --device {bench.device}{' --tiny' if bench.tiny else ''}"
    lines = [
        f"# {made.device}",
        "",
        f"`{command}`, {seconds:.0f} s; commit {made.git}, torch "
        f"{made.libraries.get('torch', torch.__version__)}. `scripts/gpu.py` says what each part "
        "is.",
    ]
    for part in PARTS:
        rows = [row for row in bench.rows if row["part"] == part]
        lines += ["", f"## {part}", ""]
        if rows:
            lines += ["| setting | quantity | value |", "| --- | --- | ---: |"]
        lines += [
            f"| {row['setting']} | {row['quantity']} | {row['value']} {row['unit']}".rstrip() + " |"
            for row in rows
        ]
        if part in skipped:
            lines += ([""] if rows else []) + [skipped[part]]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--device", "name", default="cuda", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/speed"))
@click.option("--minutes", type=float, default=9, show_default=True, help="No part begins later.")
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="Default: all")
@click.option("--tiny", is_flag=True, help="Measure next to nothing, to try the script.")
def main(name: str, out: Path, minutes: float, parts: tuple[str, ...], tiny: bool) -> None:
    """Measure the parts, and write the results after each."""
    begun = time.monotonic()
    with Compute(name).applied() as device:
        bench, skipped = (
            Bench(device, tiny, begun + 60 * minutes),
            dict.fromkeys(PARTS, "Not measured."),
        )
        slug = re.sub(r"\W+", "-", provenance(device).device.lower()).strip("-")
        out.mkdir(parents=True, exist_ok=True)
        for part in parts or PARTS:
            measure, least = PARTS[part]
            skipped.pop(part)
            try:
                if bench.seconds_left < least:
                    raise SkippedError("no time was left")
                for setting, quantity, value, unit in measure(bench):
                    text = f"{value:.6g}"
                    row = (part, setting, quantity, text, unit)
                    keys = ("part", "setting", "quantity", "value", "unit")
                    bench.rows.append(dict(zip(keys, row, strict=True)))
                    click.echo("  ".join(row))
            except SkippedError as reason:
                skipped[part] = f"Skipped: {reason}."
            except Exception as error:  # the other parts are measured all the same
                skipped[part] = f"Failed: {type(error).__name__}: {error}."
            if part in skipped:
                click.echo(f"{part}  {skipped[part]}", err=True)
            if bench.rows:
                save(out / f"gpu-{slug}.csv", bench.rows, device)
            text = page(bench, skipped, time.monotonic() - begun)
            (out / f"gpu-{slug}.md").write_text(text, encoding="utf-8")
    click.echo(f"{out}/gpu-{slug}.csv and .md")
    if any(reason.startswith("Failed") for reason in skipped.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
