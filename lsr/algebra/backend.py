"""Decompositions that converge: TensorLy's NumPy backend, and torch's SVD, with a second LAPACK driver.

LAPACK's fast driver, gesdd, does not converge for some finite matrices, often of low rank. Which ones depends on the
BLAS and the processor. The slower gesvd does, so it takes over when gesdd gives up.

Reports: numpy/numpy#12941, OpenMathLib/OpenBLAS#3044.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import scipy.linalg
import tensorly as tl
import torch
from tensorly.backend.numpy_backend import NumpyBackend
from torch import Tensor


class _ConvergingBackend(NumpyBackend, backend_name="numpy-converging"):  # type: ignore[call-arg, misc]
    @staticmethod
    def svd(matrix: np.ndarray, full_matrices: bool = True) -> tuple[np.ndarray, ...]:
        try:
            return np.linalg.svd(matrix, full_matrices=full_matrices)
        except np.linalg.LinAlgError:
            return scipy.linalg.svd(matrix, full_matrices=full_matrices, lapack_driver="gesvd")


_BACKEND = _ConvergingBackend()


@contextmanager
def converging_numpy() -> Iterator[None]:
    """Let TensorLy work on NumPy arrays in this thread, whatever backend is set elsewhere."""
    with tl.backend_context(_BACKEND, local_threadsafe=True):
        yield


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (M, N), on the CPU -> (M, k), (k,), (k, N), k = min(M, N)
    """Return the singular value decomposition `U diag(S) Vh`."""
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        parts = scipy.linalg.svd(matrix.numpy(), full_matrices=False, lapack_driver="gesvd")
        left, values, right = (torch.from_numpy(part.copy()) for part in parts)
        return left, values, right
