"""A publication, and those that several methods come from; others stand beside their method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """The citation of a publication.

    Attributes:
        key: the BibTeX key.
        authors: as in BibTeX: ``Last, First and Last, First``.
        url: a page where the publication can be read.
    """

    key: str
    title: str
    authors: str
    venue: str
    year: int
    url: str

    @property
    def short(self) -> str:
        """First author, venue and year, e.g. ``Zhou et al., ECCV 2020``."""
        authors = self.authors.split(" and ")
        first = authors[0].split(",")[0]
        return f"{first}{' et al.' if len(authors) > 1 else ''}, {self.venue} {self.year}"

    @property
    def bibtex(self) -> str:
        """The BibTeX entry, with line breaks."""
        return (
            f"@inproceedings{{{self.key},\n  title = {{{self.title}}},\n"
            f"  author = {{{self.authors}}},\n  booktitle = {{{self.venue}}},\n"
            f"  year = {{{self.year}}},\n  url = {{{self.url}}}\n}}"
        )


ADVRANK = Paper(
    key="zhou2020advrank",
    title="Adversarial Ranking Attack and Defense",
    authors="Zhou, Mo and Niu, Zhenxing and Wang, Le and Zhang, Qilin and Hua, Gang",
    venue="ECCV",
    year=2020,
    url="https://arxiv.org/abs/2002.11293",
)
BOUNIOT = Paper(
    key="bouniot2020vulnerability",
    title="Vulnerability of Person Re-Identification Models to Metric Adversarial Attacks",
    authors="Bouniot, Quentin and Audigier, Romaric and Loesch, Angelique",
    venue="CVPR Workshops",
    year=2020,
    url="https://openaccess.thecvf.com/content_CVPRW_2020/html/w47/"
    "Bouniot_Vulnerability_of_Person_Re-Identification_Models_to_Metric_Adversarial_Attacks_"
    "CVPRW_2020_paper.html",
)
HM = Paper(
    key="zhou2022hm",
    title="Enhancing Adversarial Robustness for Deep Metric Learning",
    authors="Zhou, Mo and Patel, Vishal M.",
    venue="CVPR",
    year=2022,
    url="https://arxiv.org/abs/2203.01439",
)
ROBRANK = Paper(
    key="zhou2024robrank",
    title="Adversarial Attack and Defense in Deep Ranking",
    authors="Zhou, Mo and Wang, Le and Niu, Zhenxing and Zhang, Qilin and Zheng, Nanning and "
    "Hua, Gang",
    venue="TPAMI",
    year=2024,
    url="https://arxiv.org/abs/2106.03614",
)
