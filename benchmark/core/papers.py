"""The publications that define the methods, for cards, boards and citations."""

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
MNIST = Paper(
    key="lecun1998mnist",
    title="The MNIST Database of Handwritten Digits",
    authors="LeCun, Yann and Cortes, Corinna and Burges, Christopher J. C.",
    venue="online",
    year=1998,
    url="http://yann.lecun.com/exdb/mnist",
)
CIFAR = Paper(
    key="krizhevsky2009learning",
    title="Learning Multiple Layers of Features from Tiny Images",
    authors="Krizhevsky, Alex",
    venue="University of Toronto",
    year=2009,
    url="https://www.cs.toronto.edu/~kriz/cifar.html",
)
CUB = Paper(
    key="wah2011cub",
    title="The Caltech-UCSD Birds-200-2011 Dataset",
    authors="Wah, Catherine and Branson, Steve and Welinder, Peter and Perona, Pietro and "
    "Belongie, Serge",
    venue="Caltech",
    year=2011,
    url="https://data.caltech.edu/records/65de6-vp158",
)
CARS = Paper(
    key="krause2013cars",
    title="3D Object Representations for Fine-Grained Categorization",
    authors="Krause, Jonathan and Stark, Michael and Deng, Jia and Fei-Fei, Li",
    venue="ICCV Workshops",
    year=2013,
    url="https://doi.org/10.1109/ICCVW.2013.77",
)
SOP = Paper(
    key="song2016deep",
    title="Deep Metric Learning via Lifted Structured Feature Embedding",
    authors="Song, Hyun Oh and Xiang, Yu and Jegelka, Stefanie and Savarese, Silvio",
    venue="CVPR",
    year=2016,
    url="https://arxiv.org/abs/1511.06452",
)
RESNET = Paper(
    key="he2016deep",
    title="Deep Residual Learning for Image Recognition",
    authors="He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
    venue="CVPR",
    year=2016,
    url="https://arxiv.org/abs/1512.03385",
)
MNASNET = Paper(
    key="tan2019mnasnet",
    title="MnasNet: Platform-Aware Neural Architecture Search for Mobile",
    authors="Tan, Mingxing and Chen, Bo and Pang, Ruoming and Vasudevan, Vijay and "
    "Sandler, Mark and Howard, Andrew and Le, Quoc V.",
    venue="CVPR",
    year=2019,
    url="https://arxiv.org/abs/1807.11626",
)
SWIN = Paper(
    key="liu2021swin",
    title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    authors="Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and "
    "Zhang, Zheng and Lin, Stephen and Guo, Baining",
    venue="ICCV",
    year=2021,
    url="https://arxiv.org/abs/2103.14030",
)
TIMM = Paper(
    key="wightman2019timm",
    title="PyTorch Image Models",
    authors="Wightman, Ross",
    venue="GitHub",
    year=2019,
    url="https://doi.org/10.5281/zenodo.4414861",
)
