"""The evaluation of a model: its checks, its use of memory, and the queries that it leaves out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.attacks.misranking import LearningToMisrank
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.evaluation.evaluator import evaluation
from dmlbench.metrics.names import benign
from dmlbench.testing import tiny_network
from tests.evaluations import measured
from tests.every_attack import EVERY, NAMES
from tests.fork_server import ForkServer
from tests.reporters import Silent

THREAT = Threat(eps=0.1, alpha=0.03, steps=3)


@pytest.mark.parametrize("name", NAMES)
def test_the_self_checks_are_stored(tiny: RetrievalData, name: str) -> None:
    with measured(tiny) as found:
        attack = EVERY[name].resolve(THREAT)
        one = found.attack(attack, 0, name)
        checks = one.findings
        assert 0 < checks["radius"] <= (attack.eps or 0) + 1e-6
        assert 0 <= checks["flat_start"] < 1
        assert 0 <= checks["passes_saved"] < 1
        columns = {column.name for column in attack.columns}
        assert set(checks["clean"]) == columns
        assert set(one.metrics) == {heading.name for heading in attack.headings()}
        still = dataclasses.replace(attack, eps=0.0, alpha=attack.alpha and 0.1)
        unmoved = found.attack(still, 0, name)
        assert unmoved.findings["radius"] == 0
        for column, clean in unmoved.findings["clean"].items():
            assert unmoved.metrics[column].value == pytest.approx(clean, abs=1e-6)
            if name not in ("radius", "certified"):  # their clean value is eps
                assert clean == checks["clean"][column]


def test_what_ltm_stores_of_the_clean_images_is_r_at_1(tiny: RetrievalData) -> None:
    with measured(tiny) as found:
        benign = found.benign().metrics["R@1"].value
        ltm = found.attack(LearningToMisrank().resolve(THREAT), 0, "ltm")
        assert ltm.findings["clean"]["LTM"] == pytest.approx(benign)


def test_out_of_memory_halves_the_batch_and_changes_no_number(
    tiny: RetrievalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = ATTACKS.get("ca+")().resolve(THREAT)
    with measured(tiny) as found:
        reference = found.attack(attack, 0, "ca+")
    real, limit = Attack.run, 5

    def tight(self: Attack, model: Any, images: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, images, *args, **kwargs)

    monkeypatch.setattr(Attack, "run", tight)
    with measured(tiny) as found:
        halved = found.attack(attack, 0, "ca+")
        warnings = found.reporter.warnings  # type: ignore[attr-defined]
    assert halved.findings["batch_size"] == 4
    assert [w.rsplit(" ", 1)[1] for w in warnings] == ["8", "4"]
    assert np.array_equal(halved.outcomes["CA+"], reference.outcomes["CA+"])
    limit = 0
    with (
        measured(tiny) as found,
        pytest.raises(CellError, match="a single image does not fit"),
    ):
        found.attack(attack, 0, "ca+")


def test_a_part_of_the_queries_meets_what_it_meets_among_all(tiny: RetrievalData) -> None:
    attack = ATTACKS.get("es")().resolve(THREAT)
    with measured(tiny) as found:
        whole = found.attack(attack, 3, "es")
        ten = found.attack(attack, 3, "es", queries=10)
        twenty = found.attack(attack, 3, "es", queries=20)
    for column in ("ES:D", "ES:R", "ES:D clean"):
        few, more, all_ = (one.outcomes[column] for one in (ten, twenty, whole))
        drawn = ~np.isnan(few)
        assert drawn.sum() == 10
        assert (~np.isnan(more)).sum() == 20
        assert not np.isnan(more[drawn]).any()  # fewer are a part of more
        assert len(few) == len(all_)
        assert np.array_equal(few[drawn], all_[drawn])
    assert ten.metrics["ES:D"].n == 10
    assert ten.metrics["ES:D"].value == pytest.approx(np.nanmean(ten.outcomes["ES:D"]))


@pytest.mark.parametrize("queries", [None, 25])
def test_the_first_queries_are_kept_as_they_were_attacked(
    tiny: RetrievalData, queries: int | None
) -> None:
    attack = ATTACKS.get("es")().resolve(THREAT)
    with measured(tiny) as found:  # batches of 16, so that the kept ones span two
        whole = found.attack(attack, 3, "es", queries, keep=20)
        alone = found.attacked_queries(attack, 3, 20, queries)
        assert found.attack(attack, 3, "es", queries).kept == []
        chosen = found.chosen(queries)[:20].tolist()
        e = found.gallery.embeddings
        for kept, again in zip(whole.kept, alone, strict=True):
            assert torch.equal(kept.perturbed, again.perturbed)
            assert kept.after == again.after
            assert 0 < (kept.perturbed - kept.clean).abs().max() <= 0.1 + 1e-6
            assert torch.equal(kept.clean, found.images(torch.tensor([kept.index]))[0])
            for column, value in kept.after.items():
                assert value == whole.outcomes[column][kept.index]
                assert kept.before[column] == whole.outcomes[f"{column} clean"][kept.index]
            after = embed(found.network, kept.perturbed[None])[0]
            for top, query in ((kept.top_before, e[kept.index]), (kept.top_after, after)):
                far = {i: float((e[i] - query).norm()) for i in range(len(e)) if i != kept.index}
                assert list(top) == sorted(far, key=lambda i: far[i])[:5]
    assert [one.index for one in whole.kept] == [one.index for one in alone] == chosen


def test_a_small_gallery_makes_no_small_batches(tiny: RetrievalData) -> None:
    few = Split(tiny.test.images[::8], tiny.test.labels[::8])
    apart = RetrievalData(tiny.train, tiny.test, gallery=few)
    attack = ATTACKS.get("es")().resolve(THREAT)
    with measured(apart, batch_size=30) as found:
        whole = found.attack(attack, 0, "es")
    with measured(apart, batch_size=5) as found:
        parts = found.attack(attack, 0, "es")
    assert (whole.findings["batch_size"], parts.findings["batch_size"]) == (30, 5)
    for name, values in whole.outcomes.items():
        np.testing.assert_array_equal(values, parts.outcomes[name])


def test_a_query_alone_in_its_class_is_counted_and_left_out(tiny: RetrievalData) -> None:
    labels = tiny.test.labels.copy()
    labels[0] = 99
    data = RetrievalData(tiny.train, Split(tiny.test.images, labels))
    with measured(data) as found:
        benign = found.benign()
        ltm = found.attack(LearningToMisrank().resolve(THREAT), 0, "ltm")
    assert benign.findings["queries_left_out"] == 1
    assert benign.metrics["R@1"].n == ltm.metrics["LTM"].n == len(labels) - 1
    assert np.isnan(ltm.outcomes["LTM"][0])
    alone = RetrievalData(tiny.train, Split(tiny.test.images, np.arange(len(labels))))
    with measured(alone) as found, pytest.raises(CellError, match="no class of the test split"):
        found.benign()


class Noisy(torch.nn.Module):
    """Random in eval mode, as dropout applied by hand would be."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x.flatten(1)) + torch.randn(len(x), 8)
        return result


class Broken(Noisy):
    """NaN for every image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x.flatten(1)) * torch.nan
        return result


class Dead(Noisy):
    """One embedding for every image, all zeros."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x.flatten(1)) * 0
        return result


def test_queries_of_which_none_has_an_answer_are_one_clear_line(tiny: RetrievalData) -> None:
    """Of every attack that measures by answers; the others need none."""
    labels = tiny.test.labels.copy()
    labels[:3] = labels.max() + 1 + np.arange(3)
    alone = dataclasses.replace(tiny, test=Split(tiny.test.images, labels))
    refused = {}
    with measured(alone) as found:
        for name, bare in EVERY.items():
            try:
                found.attack(bare.resolve(THREAT), 0, name, [0, 1, 2])
            except CellError as error:
                refused[name] = str(error)
    said = "none of the 3 attacked queries has an answer, so there is no "
    assert all(one.startswith(said) for one in refused.values())
    assert {"es", "ltm", "gtm", "margin", "top1", "radius"} <= refused.keys()
    assert not refused.keys() & {"ca+", "qa+", "oa"}


def test_a_gallery_of_one_image_is_one_clear_line(tiny: RetrievalData) -> None:
    one = Split(tiny.test.images[:1], tiny.test.labels[:1])
    with (
        measured(dataclasses.replace(tiny, gallery=one)) as found,
        pytest.raises(CellError, match="the gallery is a single image"),
    ):
        found.benign()


def test_the_check_by_noise_takes_no_more_memory_than_the_attack(
    tiny: RetrievalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = spec.parse("ca+:steps=1", ATTACKS).resolve(dataclasses.replace(THREAT, eps=0.01))
    attack = dataclasses.replace(attack, suite="auto")
    sizes: list[int] = []
    goal = type(attack).goal

    def counted(self: Any, gallery: Gallery, index: torch.Tensor, seed: int) -> Any:
        sizes.append(len(index))
        return goal(self, gallery, index, seed)

    monkeypatch.setattr(type(attack), "goal", counted)
    monkeypatch.setattr(type(attack), "most_rows", lambda *_: 7)
    with measured(tiny) as found:
        found.attack(attack, 0, "ca+", queries=20)
    assert max(sizes) == 7


@pytest.mark.parametrize(
    ("network", "message"), [(Noisy, "not deterministic"), (Broken, "not finite|not determin")]
)
def test_a_broken_model_is_refused(
    tiny: RetrievalData, network: type[torch.nn.Module], message: str
) -> None:
    with (
        measured(tiny, EmbeddingModel(network(), "N")) as found,
        pytest.raises(CellError, match=message),
    ):
        found.benign()


class NotANumber(torch.nn.Module):
    """NaN for images between the grey levels, as most adversarial ones are; honest otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_network().backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        between = ((255 * x - (255 * x).round()).abs() > 1e-3).flatten(1).any(1)
        e: torch.Tensor = self.inner(x).clone()
        e[between] = torch.nan
        return e


@pytest.mark.parametrize(
    "text",
    [
        *("ltm:steps=1", "gtm:steps=1", "gtt:steps=1", "qa-:steps=1", "tma:steps=1"),
        *("es:steps=1", "es:steps=2,suite=ers", "fna:steps=1", "margin:steps=4", "radius:steps=2"),
        *("square:budget=20", "qair:budget=20,n=3", "oa-list:budget=40", "top1:steps=2"),
        "certified:samples=4,judges=4,draws=2,steps=2",
    ],
)
def test_an_adversarial_image_without_an_embedding_is_no_success_of_the_defense(
    tiny: RetrievalData, text: str
) -> None:
    attack = spec.parse(text, ATTACKS).resolve(dataclasses.replace(THREAT, eps=0.1013))
    with measured(tiny, EmbeddingModel(NotANumber(), "N")) as found:
        assert found.benign().metrics["R@1"].value > 50
        with pytest.raises(CellError, match="not finite"):
            found.attack(attack, 0, text)
        with pytest.raises(CellError, match="of 3 shown images are not finite"):
            found.moved(
                moved_query.columns("External"),
                found.images(found.index[:3]) * 0.999,
                found.index[:3],
            )


def test_clean_images_have_the_recalls_of_their_data_set(tiny: RetrievalData) -> None:
    with measured(dataclasses.replace(tiny, recalls=(1, 4, 10))) as found:
        one, more = found.benign(), found.benign(["R@1", "R@2", "mAP"])
        e = found.gallery.embeddings
    assert tuple(one.metrics) == benign((1, 4, 10))
    assert more.metrics.items() > one.metrics.items()  # also those of a cell that is stored
    assert {*more.metrics} - {*one.metrics} == {"R@2"}
    labels = tiny.test.labels
    distance = torch.cdist(e.double(), e.double()).fill_diagonal_(torch.inf)
    nearest = labels[distance.argsort(dim=1).numpy()]
    for k in (1, 4, 10):
        right = [labels[i] in nearest[i, :k] for i in range(len(labels))]
        assert one.metrics[f"R@{k}"].value == pytest.approx(100 * np.mean(right))


def test_a_dead_model_is_collapsed_and_earns_nothing(tiny: RetrievalData) -> None:
    with measured(tiny, EmbeddingModel(Dead(), "N")) as found:
        benign = found.benign()
        rank = found.attack(ATTACKS.get("ca-")().resolve(THREAT), 0, "ca-").metrics["CA-"].value
    assert benign.findings["collapsed"]
    assert benign.findings["effective_rank"] == 0
    assert benign.metrics["R@1"].value == 0
    assert rank == 50


def test_bfloat16_is_close_and_tf32_needs_a_gpu(tiny: RetrievalData) -> None:
    attack = ATTACKS.get("ca-")().resolve(THREAT)
    values = []
    for precision in ("fp32", "bf16"):
        with measured(tiny, precision=precision) as found:
            values.append(found.attack(attack, 0, "ca-").metrics["CA-"].value)
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=3)
    with pytest.raises(UserError, match="tf32 needs a GPU"):
        Compute("cpu", precision="tf32").check()


def test_compute_restores_what_it_sets() -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    with Compute("cpu", threads=2).applied():
        assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == (2, True)
    assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == before


@pytest.mark.parametrize(
    "given",
    [
        'torch.set_float32_matmul_precision("medium")',
        pytest.param('torch.backends.fp32_precision = "tf32"', marks=pytest.mark.slow),
    ],
)
def test_float32_is_float32_whatever_the_user_has_set(
    given: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    """By the older switches of PyTorch or the newer ones, which must not be mixed."""
    code = f"""
import torch
{given}
from dmlbench.compute.device import Compute, precision_switches
def now():
    return [switch.fp32_precision for switch in precision_switches()]
before = now()
with Compute("cpu").applied():
    assert set(now()) == {{"ieee"}}, now()
assert now() == before
if "set_float32" in {given!r}:
    assert torch.get_float32_matmul_precision() == "medium"
"""
    done = fork_server.python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpu_finds_what_the_cpu_finds(tiny: RetrievalData, name: str) -> None:
    attack, values = EVERY[name].resolve(THREAT), []
    for device in ("cpu", "cuda"):
        with evaluation(tiny_network(), tiny, Compute(device), Silent()) as found:
            measured_ = found.attack(attack, 0, name).metrics
            values.append([estimate.value for estimate in measured_.values()])
    assert values[0] == pytest.approx(values[1], abs=1)
