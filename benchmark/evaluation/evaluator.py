"""Evaluation of a model: its clean metrics, and its metrics under each attack."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import Attack, Attacked, Column, Gallery
from dmlbench.attacks.engine.outcomes import mean_outcomes
from dmlbench.common.errors import CellError
from dmlbench.common.hashing import derived_seed, file_sha256
from dmlbench.common.progress import QuietReporter, Reporter
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, frozen, on_device
from dmlbench.compute.randomness import global_seeds
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.attacked_queries import AttackedQuery, first_of_batch
from dmlbench.evaluation.collected import Collected, Progress, image_file
from dmlbench.evaluation.cuda_graphs import Replayed
from dmlbench.evaluation.embedded import EmbeddedTest
from dmlbench.evaluation.measurement import Measurement, as_finding
from dmlbench.evaluation.self_checks import attack_flags
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean, bootstrap_median
from dmlbench.metrics.clustering import NMI_VERSION, kmeans_nmi
from dmlbench.metrics.collapse import chance_recall, effective_rank, is_collapsed, mean_cosine
from dmlbench.metrics.names import RECALLS_AT, benign
from dmlbench.metrics.retrieval import retrieval
from dmlbench.storage.interrupted import Interrupted


@dataclass
class Evaluation(EmbeddedTest):
    """Measures a frozen model on a data set."""

    def benign(self, columns: Collection[str] = ()) -> Measurement:
        """Measure the metrics of ``RetrievalData.benign`` and the signs of a collapse.

        NMI is that of the gallery images that have a class.

        Args:
            columns: R@K among them are measured too, where the card of the data set has other K.

        Raises:
            CellError: no query has an answer, or the gallery is a single image.
        """
        more = (k for k in RECALLS_AT if f"R@{k}" in columns and k not in self.data.recalls)
        recalls = (*self.data.recalls, *more)
        gallery, names = self.gallery, benign(recalls, listed=self.data.answers is not None)
        if len(gallery) < 2:
            raise CellError("the gallery is a single image: there is nothing to rank")
        e, relevance = gallery.embeddings, gallery.relevance
        # queries of a randomised model are drawn anew, and not from the gallery's means
        numbers = range(self.draws, 2 * self.draws) if self.draws > 1 else ()
        queries = (
            (self.drawn(number, "queries") for number in numbers) if numbers else (gallery.queries,)
        )
        every = [retrieval(q, self.index, e, relevance, gallery.metric, recalls) for q in queries]
        found = every[0]
        if not found.valid.any():
            raise CellError(
                "no class of the test split has two images: there is no R@K"
                if self.data.gallery is None
                else "no query has an answer in the gallery: there is no R@K"
            )
        scores = {n: [one.scores[n] for one in every] for n in found.scores if n in names}
        outcomes = {
            name: (torch.stack(drawn).mean(0) if self.draws > 1 else drawn[0]).cpu().numpy()
            for name, drawn in scores.items()
        }
        metrics = {name: bootstrap_mean(value) for name, value in outcomes.items()}
        if self.most_passes is not None:  # the first numbers of a run that takes long
            shown = "  ".join(f"{name} {one.value:.3g}" for name, one in metrics.items())
            self.reporter.say(f"clean images: {shown}")
        findings: dict[str, Any] = {"queries_left_out": int((~found.valid).sum())}
        if "NMI" in names:
            known = gallery.labels >= 0
            labels = gallery.labels[known].cpu().numpy()
            nmi = kmeans_nmi(e[known].float().cpu().numpy(), labels)
            metrics["NMI"] = Estimate(nmi.value, nmi.low, nmi.high, len(labels))
            findings |= {"nmi_version": NMI_VERSION, "nmi_starts": nmi.starts}
        chance = chance_recall(relevance, len(gallery))
        cosine = float(mean_cosine(e, torch.float64))
        findings |= {
            "chance R@1": chance,
            "mean_cosine": cosine,
            "effective_rank": effective_rank(e),
            "collapsed": is_collapsed(metrics["R@1"].value, chance, cosine),
            "cuda_graphs": isinstance(self.network, Replayed),
            "folded": self.folded is not self.model,
            **as_finding(self.checked),
        }
        return Measurement(metrics, findings, outcomes)

    def chosen(self, queries: int | Sequence[int] | None) -> torch.Tensor:
        """Numbers of the queries to attack: all, those named, or that many drawn at random.

        Drawn ones are the same for every model, attack and seed; a smaller number is a part of a
        larger.
        """
        if queries is None:
            return self.index
        if not isinstance(queries, int):
            return torch.tensor(sorted(queries), device=self.device)
        return torch.from_numpy(drawn_queries(len(self.index), queries)).to(self.device)

    def attack(
        self,
        attack: Attack,
        seed: int,
        title: str,
        queries: int | Sequence[int] | None = None,
        keep: int = 0,
        *,
        recalls: bool = False,
        save: Path | None = None,
        interrupted: Interrupted | None = None,
    ) -> Measurement:
        """Attack each chosen query in turn, or the candidate of its number.

        Args:
            attack: resolved.
            seed: decides the targets.
            title: of the progress bar.
            queries: number of queries (``chosen``); the outcomes of the others are NaN.
            keep: so many queries, the first ones, stay with their images in the result.
            recalls: also measure R@K and the distance moved (``attacks.moved_query``), if it is the
                query that is perturbed.
            save: .npz file for the adversarial images (``storage.adversarial``); None: none.
            interrupted: file in which what is found is kept, batch by batch. If it holds something,
                the attack goes on there, and ``keep`` is 0. None: no file. Not with ``save``.
        """
        index, gallery = self.chosen(queries), self.gallery
        extra = moved_query.columns_of(type(attack)) if recalls else ()
        columns = (*attack.columns, *extra)
        kept: list[AttackedQuery] = []
        before = interrupted.read(self.rows) if interrupted else {}
        collected = Collected.restored(before, attack.norm, self.device)
        if collected.queries:
            keep = 0
            self.reporter.say(f"{title}: {collected.queries} of {len(index)} queries are stored")
        left = index[collected.queries :]
        with (
            self.reporter.task(title, len(index), collected.queries) as bar,
            image_file(save, attack, self._places(attack, index)) as write,
        ):
            progress = Progress(bar, self._passes(attack))
            for batch, images, attacked in self._attacked(attack, gallery, left, seed, progress):
                want, adversarial = keep - len(kept), attacked.perturbed.images
                kept += self._kept(attack, batch, images, attacked, want)
                write(adversarial)
                unmoved = self._unmoved(extra, images, batch)
                after = attacked.outcomes | self.moved(extra, adversarial, batch)
                collected.add(images, attacked, after, attacked.clean | unmoved)
                progress.finish(collected.so_far(attack.columns))
                if interrupted is not None and interrupted.rows == self.rows:  # memory sufficed
                    interrupted.save(collected.arrays, last=collected.queries == len(index))
        outcomes = collected.outcomes(index, len(self.index))
        empty = [c.name for c in columns if np.isnan(outcomes[c.name]).all()]
        if empty and not gallery.relevance.answers[index].any():
            raise CellError(
                f"none of the {len(index)} attacked queries has an answer, so there is no "
                f"{empty[0]}: attack more queries"
            )
        metrics = {c.name: bootstrap_mean(outcomes[c.name]) for c in columns}
        metrics |= {
            c.median: bootstrap_median(outcomes[c.name]) for c in attack.columns if c.median
        }
        findings = collected.findings(attack, columns, outcomes, len(index)) | {
            "batch_size": self._most_rows(attack, gallery),
            "cuda_graphs": isinstance(self.network, Replayed),
            "folded": self.folded is not self.model,
        }
        if save is not None:
            findings["adversarial_sha256"] = file_sha256(save)
        flags = attack_flags(self, attack, index, seed, outcomes, findings)
        seconds = interrupted.seconds_before if interrupted else 0.0
        return Measurement(metrics, findings | as_finding(flags), outcomes, kept, seconds)

    def moved(
        self, wanted: tuple[Column, ...], images: torch.Tensor, index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Retrieval with queries that are shown as adversarial images.

        Of a randomised network it is the mean over its draws.

        Args:
            wanted: columns of ``attacks.moved_query``; nothing is computed if there are none.
            images: (B, C, H, W) the adversarial images.
            index: (B,) the numbers of their queries.
        """
        if not wanted:
            return {}

        def drawn() -> dict[str, torch.Tensor]:
            return moved_query.outcomes(wanted, self.embed(images), index, self.gallery)

        seed = derived_seed(0, "moved", int(index[0]))
        with torch.no_grad(), global_seeds(seed, self.device):
            return mean_outcomes(self.draws, drawn)

    def _unmoved(
        self, wanted: tuple[Column, ...], images: torch.Tensor, index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The columns ``wanted`` of the clean ``images`` of queries, whose embeddings are known."""
        if self.draws > 1:
            return self.moved(wanted, images, index)
        return moved_query.outcomes(wanted, self.gallery.queries[index], index, self.gallery)

    def attacked_queries(
        self, attack: Attack, seed: int, count: int, queries: int | None = None
    ) -> list[AttackedQuery]:
        """Attack only the first ``count`` of the queries that ``attack`` would perturb."""
        index, gallery = self.chosen(queries)[:count], self.gallery
        with QuietReporter().task("", len(index)) as bar:
            unseen = Progress(bar, self._passes(attack))
            return [
                one
                for batch, images, attacked in self._attacked(attack, gallery, index, seed, unseen)
                for one in self._kept(attack, batch, images, attacked, count)
            ]

    def _kept(
        self,
        attack: Attack,
        batch: torch.Tensor,
        images: torch.Tensor,
        attacked: Attacked,
        count: int,
    ) -> list[AttackedQuery]:
        """The first ``count`` queries of a batch; a candidate searches the queries."""
        searched, candidates = self.gallery, None
        if attack.perturbs == "candidate":
            searched, candidates = searched.turned, searched.candidates[batch]
        look = self.expected
        return first_of_batch(look, searched, batch, images, attacked, count, candidates)

    def _places(self, attack: Attack, index: torch.Tensor) -> torch.Tensor:
        """(B,) positions of the perturbed images: among the test images, or in the gallery."""
        return index if attack.perturbs == "query" else self.gallery.candidates[index]

    def _most_rows(self, attack: Attack, gallery: Gallery) -> int:
        """The number of queries in a batch."""
        rows = min(self.rows, attack.most_rows(gallery))
        if self.most_passes is None or self.draws > 1:  # a batch decides what its images draw
            return rows
        return min(rows, max(1, self.most_passes // self._passes(attack)))

    def _passes(self, attack: Attack) -> int:
        """The most passes, of either kind, that a query takes; at least 1."""
        return max(1, attack.most_passes * self.draws + attack.most_forward_passes)

    def _attacked(
        self,
        attack: Attack,
        gallery: Gallery,
        index: torch.Tensor,
        seed: int,
        progress: Progress,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Attacked]]:
        """Yield each batch: positions, clean images, and the result of the attack.

        When memory is short, the batch size is halved and the batch tried again.
        """
        done = 0
        while done < len(index):
            batch = index[done : done + self._most_rows(attack, gallery)]
            images = self.perturbed_by(attack, batch)
            progress.left = len(batch)
            try:
                attacked = attack.run(
                    self.network,
                    images,
                    batch,
                    gallery,
                    seed=seed,
                    draws=self.draws,
                    on_pass=progress.passed,
                )
            except torch.OutOfMemoryError:
                if self.rows == 1 or self.draws > 1:
                    what = f"{self.rows} images do" if self.draws > 1 else "a single image does"
                    raise CellError(
                        f"{what} not fit into the device's memory: use another --device, or a "
                        "smaller network"
                    ) from None
                self.rows = max(1, min(self.rows, len(batch)) // 2)
                self.__dict__.pop("network", None)  # recorded CUDA graphs hold memory too
                torch.cuda.empty_cache()
                self.reporter.warn(f"out of memory: the batch size is now {self.rows}")
                continue
            done += len(batch)
            yield batch, images, attacked


def drawn_queries(images: int, queries: int | None) -> npt.NDArray[np.int64]:
    """Positions, rising, of ``queries`` of the test images drawn at random; None: of all."""
    if queries is None:
        return np.arange(images)
    drawn = np.random.default_rng(derived_seed(0, "queries")).permutation(images)
    return np.sort(drawn[:queries])


@contextmanager
def evaluation(
    model: EmbeddingModel, data: RetrievalData, compute: Compute, reporter: Reporter
) -> Iterator[Evaluation]:
    """An ``Evaluation`` of the model: frozen, on the device and at the precision of ``compute``.

    The model is put in eval mode by ``eval()``, which a network may have replaced by its own.
    """
    model.eval()
    model.use_bfloat16 = compute.precision == "bf16"
    with compute.applied() as device, frozen(on_device(model, device)):
        yield Evaluation(
            model,
            data,
            device,
            compute.rows(data.size),
            reporter,
            compute.precision,
            compute.eot,
            compute.passes(data.size),
        )
