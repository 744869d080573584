"""Triton kernels run interpreted in the tests: set before any kernel is decorated. Compiled forms: `fr_kernels.aot`."""

import os

os.environ["TRITON_INTERPRET"] = "1"
