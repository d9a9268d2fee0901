# %% [markdown]
# # The robustness of a network of your own

# %%
import torch
from torch import nn

import dmlbench

torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16))

# %%
report = dmlbench.evaluate(net, suite="strict", queries=20)
report  # noqa: B018  # shown by the notebook

# %%
print(repr(report["ERS"].value))
