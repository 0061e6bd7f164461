"""Training Caffe nets in PyTorch, with fake quantization in place or in plain float.

In the order of the data: `feed` reads training batches, `layers` says how each Caffe layer
type computes on tensors, `module` makes a net of them, `fake` puts this project's kernels
into it, `optimizer` applies Caffe's updates, `trainer` runs the iterations, `snapshot` keeps
them and `curve` draws them. `group` spreads them over processes. `job` is one training from
the config to the trained weights.
"""

from __future__ import annotations

import os

# torch's threads that wait sleep soon, as those of the kernels do: they share the cores
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

try:
    import torch  # noqa: F401
except ImportError:
    raise ImportError(
        "training needs PyTorch, which is not installed: pip install 'caffe-quant[retrain]'"
    ) from None
