"""The conformance suite finds each mistake of a data set by the check that is there for it."""

from __future__ import annotations

import dataclasses
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlbench import testing
from dmlbench.common.errors import UserError
from dmlbench.core.protocol import Threat, TrainingThreat
from dmlbench.datasets.base import Answers, Figures, RetrievalData, Split
from dmlbench.datasets.folder import Folder
from dmlbench.metrics.names import benign
from dmlbench.testing.datasets import Subject, classes, disjoint
from dmlbench.testing.findings import FlawError
from tests import trees
from tests.mistakes import CARD, Made, changed, refused


def _with(**changes: Any) -> Any:
    return lambda *_: dataclasses.replace(testing.tiny_data(), **changes)


TRAIN, TEST, OTHER = testing.tiny_data().train, testing.tiny_data().test, testing.make_split(3)


class TestDatasets:
    def test_a_sound_one(self) -> None:
        assert all(finding.passed for finding in testing.check(Made))
        # the same images in both splits, and the note says so
        said = dataclasses.replace(CARD, note="a few images are in both splits")
        testing.check_dataset(changed(Made, card=said, load=_with(test=TRAIN)))
        # fewer images than the recipe's batch: a run takes a smaller one
        testing.check_dataset(changed(Made, load=_with(train=testing.make_split(1, 2, 2))))

    def test_a_remedy_is_one_that_a_user_of_folder_has(self, tmp_path: Path) -> None:
        for part in ("train", "test"):
            trees.folder(tmp_path / part, classes=2, each=2)
        subject = Subject(Folder(root=str(tmp_path), size=32), cache=tmp_path / "cache")
        with warnings.catch_warnings(action="ignore"):
            classes(subject)
        with pytest.raises(FlawError, match=r"4 images are in both splits.* out of one$"):
            disjoint(subject)

    @pytest.mark.parametrize("form", ["classes", "lists"])
    def test_sound_ones_with_a_gallery_apart(self, form: str) -> None:
        """A distractor, a query without an answer, and an image that is in both but hidden."""
        images = np.concatenate([testing.make_split(3).images, TEST.images[:1]])
        labels = np.concatenate([testing.make_split(3).labels, [-1]])
        gallery = Split(images, labels, sources=np.arange(41) // 40 - 1)
        queries = dataclasses.replace(TEST, sources=np.arange(40) * 0 - 1)
        queries.sources[0] = 0
        listed = None
        if form == "lists":
            none = np.full(40, -1)
            queries, gallery = Split(TEST.images, none), Split(images, np.full(41, -1))
            listed = Answers(((), *[(i,) for i in range(1, 40)]), ((40,), *[()] * 39))
        nothing = Split(TRAIN.images[:0], TRAIN.labels[:0])
        for train in (TRAIN, nothing):
            load = _with(train=train, test=queries, gallery=gallery, answers=listed)
            own = {"load": load, "benign": benign(listed=True)} if listed else {"load": load}
            assert all(finding.passed for finding in testing.check(changed(Made, **own)))
        if listed:
            words = (
                "and they are R@1, R@2, mAP, mAP@R, mAP@10, mAP-trapezoid, as answers are listed"
            )
            refused(changed(Made, load=load), "declared", words)

    def test_an_image_that_is_listed_twice(self) -> None:
        for right, hidden in (((3, 3), ()), ((3,), (3,)), ((), (1, 1))):
            with pytest.raises(UserError, match="listed twice for query 1, as an answer or as"):
                Answers(((), right), ((), hidden))

    @pytest.mark.parametrize(
        ("check", "words", "changes"),
        [
            (
                "answers",
                "no query has an answer",
                {"gallery": Split(OTHER.images, OTHER.labels + 9)},
            ),
            ("answers", "40 queries find themselves", {"gallery": TEST}),
            ("answers", "no gallery image", {"gallery": Split(OTHER.images[:0], OTHER.labels[:0])}),
            (
                "answers",
                "one of queries and gallery has sources",
                {"gallery": dataclasses.replace(OTHER, sources=OTHER.labels)},
            ),
            ("answers", "1 lists of positives", {"answers": Answers(((0,),), ((),) * 40)}),
            ("answers", "not below 40", {"answers": Answers(((40,),) * 40, ((),) * 40)}),
            (
                "form",
                "gallery label is below -1",
                {"gallery": Split(OTHER.images, OTHER.labels - 2)},
            ),
            ("form", "make them alike", {"gallery": testing.make_split(3, size=16)}),
        ],
    )
    def test_a_bad_gallery(self, check: str, words: str, changes: dict[str, Any]) -> None:
        refused(changed(Made, load=_with(**{"gallery": OTHER} | changes)), check, words)

    def test_a_wrong_figure_of_the_gallery(self) -> None:
        card = dataclasses.replace(CARD, gallery=Figures(9, 5))
        said = "the gallery split has 9 images"
        refused(changed(Made, card=card, load=_with(gallery=OTHER)), "declared", said)

    @pytest.mark.parametrize(
        ("check", "words", "load"),
        [
            ("load", "return RetrievalData", lambda *_: (TRAIN, TEST)),
            ("load", "division by zero", lambda *_: 1 / 0),
            ("form", "square", _with(train=Split(TRAIN.images[:, :, :4], TRAIN.labels))),
            ("form", "int64", _with(test=Split(TEST.images, TEST.labels.astype(np.int32)))),
            ("form", "is negative", _with(test=Split(TEST.images, TEST.labels - 1))),
            ("form", "make them alike", _with(test=testing.make_split(2, size=16))),
            (
                "form",
                "a test label is 4000, with 120 images in all",
                _with(test=Split(TEST.images, 1000 * TEST.labels)),
            ),
            ("form", "fit into them", lambda *_: RetrievalData(TRAIN, TEST, crop=16)),
            ("classes", "0 classes of two", _with(test=testing.make_split(2, each=1))),
            ("disjoint", "40 images are in both splits", _with(train=TEST)),
        ],
    )
    def test_bad_content(self, check: str, words: str, load: Any) -> None:
        refused(changed(Made, load=load), check, words)

    @pytest.mark.parametrize("draw", [np.random.random, random.random])
    def test_content_that_is_drawn(self, draw: Any) -> None:
        def load(*_: Any) -> RetrievalData:
            return RetrievalData(testing.make_split(int(1e6 * draw())), TEST)

        refused(changed(Made, load=load), "repeatable", "global random generator")

    def test_content_of_another_order(self) -> None:
        count = iter(range(9))
        load = lambda *_: RetrievalData(testing.make_split(next(count), each=16), TEST)  # noqa: E731
        refused(changed(Made, load=load), "repeatable", "two loads give different images")

    def test_a_wrong_digest(self) -> None:
        refused(changed(Made, known_digest="0" * 64), "declared", "write the one that was found")

    @pytest.mark.parametrize(
        ("check", "words", "changes"),
        [
            ("declared", "train split has 9 images", {"train": Figures(9, 5)}),
            ("protocol", "lengths in a pixel range", {"threat": Threat(8, 1, 2)}),
            ("protocol", "eta 0", {"training_threat": TrainingThreat(eps=0.1, eta=0)}),
            ("protocol", "unknown model", {"model": "nonsense"}),
            ("protocol", "source is empty", {"source": ""}),
            ("network", "at least 16x16", {"model": "lenet"}),
        ],
    )
    def test_a_bad_card(self, check: str, words: str, changes: dict[str, Any]) -> None:
        refused(changed(Made, card=dataclasses.replace(CARD, **changes)), check, words)

    def test_files_that_are_not_there_leave_the_rest_out(self) -> None:
        found = testing.check(changed(Made, locate=lambda *_: None))
        assert [f.check for f in found if f.passed] == ["card", "parameters", "protocol"]
        assert {f.passed for f in found} == {True, None}
