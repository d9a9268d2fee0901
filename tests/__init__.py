"""The tests. On x86-64 all of them multiply matrices with AVX2, also where there is AVX-512.

With AVX-512, MKL rounds a row of a product in another way for another number of rows. Tests compare
attacks on a batch with those on single images, and attacks follow the signs of gradients, which a
rounding can turn. Results are measured without this setting.
"""

import os

os.environ.setdefault("MKL_ENABLE_INSTRUCTIONS", "AVX2")  # MKL reads it at its first product
