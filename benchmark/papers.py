"""The publications that define the methods, for cards, boards and citations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A citation. ``key`` is the BibTeX key, ``url`` where to read it."""

    key: str
    title: str
    authors: str
    venue: str
    year: int
    url: str

    @property
    def short(self) -> str:
        """``Zhou et al., ECCV 2020``."""
        authors = self.authors.split(" and ")
        first = authors[0].split(",")[0]
        return f"{first}{' et al.' if len(authors) > 1 else ''}, {self.venue} {self.year}"

    @property
    def bibtex(self) -> str:
        """The BibTeX entry."""
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
TMA = Paper(
    key="tolias2019targeted",
    title="Targeted Mismatch Adversarial Attack: Query with a Flower to Retrieve the Tower",
    authors="Tolias, Giorgos and Radenovic, Filip and Chum, Ondrej",
    venue="ICCV",
    year=2019,
    url="https://arxiv.org/abs/1908.09163",
)
LTM = Paper(
    key="wang2020transferable",
    title="Transferable, Controllable, and Inconspicuous Adversarial Attacks on Person "
    "Re-identification With Deep Mis-Ranking",
    authors="Wang, Hongjun and Wang, Guangrun and Li, Ya and Zhang, Dongyu and Lin, Liang",
    venue="CVPR",
    year=2020,
    url="https://arxiv.org/abs/2004.04199",
)
FASHION = Paper(
    key="xiao2017fashion",
    title="Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    authors="Xiao, Han and Rasul, Kashif and Vollgraf, Roland",
    venue="arXiv",
    year=2017,
    url="https://arxiv.org/abs/1708.07747",
)
MADRY = Paper(
    key="madry2018towards",
    title="Towards Deep Learning Models Resistant to Adversarial Attacks",
    authors="Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and "
    "Tsipras, Dimitris and Vladu, Adrian",
    venue="ICLR",
    year=2018,
    url="https://arxiv.org/abs/1706.06083",
)
LENET = Paper(
    key="lecun1998gradient",
    title="Gradient-Based Learning Applied to Document Recognition",
    authors="LeCun, Yann and Bottou, Leon and Bengio, Yoshua and Haffner, Patrick",
    venue="Proceedings of the IEEE",
    year=1998,
    url="https://doi.org/10.1109/5.726791",
)
FACENET = Paper(
    key="schroff2015facenet",
    title="FaceNet: A Unified Embedding for Face Recognition and Clustering",
    authors="Schroff, Florian and Kalenichenko, Dmitry and Philbin, James",
    venue="CVPR",
    year=2015,
    url="https://arxiv.org/abs/1503.03832",
)
