"""dmlbench: the benchmark of adversarial robustness for deep metric learning (image retrieval).

    import dmlbench

    report = dmlbench.evaluate(net, dataset="fashion-mini", suite="strict", queries=100)
    print(report)                      # the table that the command line prints
    report["CA+"].value                # a number, with its 95% interval: .low and .high
    report.to_frame()                  # everything as a pandas DataFrame

``net`` is any ``torch.nn.Module`` that maps images (B, C, H, W) in [0, 1] to embeddings (B, D), a
checkpoint, or the spec of a network. Your own images: ``dmlbench.from_arrays(images, labels)``.

``evaluate``       measure one model, clean and under attacks
``verify_attack``  adversarial images of your own, against a stored row
``train``          train one model with a defense
``run``            train and measure defenses, resumable, as ``dmlbench run``
``compare``        the differences between two models, query by query
``load_model``     a trained model, from the zoo, its folder, a results folder or a row of a CSV
``load_results``   stored results as a ``Report``
``from_arrays``    a data set from images and labels in memory
``Report``         what the measuring functions return

Mistakes in the arguments raise ``UserError``; its text is the line that the command line prints.
Nothing is imported before it is used, so ``import dmlbench`` is quick and needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlbench.api.compare import compare
    from dmlbench.api.evaluate import evaluate
    from dmlbench.api.load import load_model, load_results
    from dmlbench.api.report import Report
    from dmlbench.api.runs import run, train
    from dmlbench.api.verify import verify_attack
    from dmlbench.common.errors import CellError, UserError
    from dmlbench.datasets.arrays import from_arrays

__version__ = "0.2.0"
__all__ = [
    "CellError",
    "Report",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "from_arrays",
    "load_model",
    "load_results",
    "run",
    "train",
    "verify_attack",
]

_HOMES = {
    "CellError": "common.errors",
    "Report": "api.report",
    "UserError": "common.errors",
    "compare": "api.compare",
    "evaluate": "api.evaluate",
    "from_arrays": "datasets.arrays",
    "load_model": "api.load",
    "load_results": "api.load",
    "run": "api.runs",
    "train": "api.runs",
    "verify_attack": "api.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dmlbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dmlbench.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion in an editor or notebook."""
    return sorted({*globals(), *__all__})
