"""Truncation of one matrix (SVD-LLM V2, eq. 7; Ruyi2 report, §4.4): the best factors for the inputs that it sees.

With `G = XXᵀ = U_s S_s U_sᵀ` of the inputs X and `D = W U_s S_s^½ = U S Vᵀ`, keeping the first r singular values of D
minimises `‖WX - W'X‖_F` over all W' of rank r, and the loss is the norm of those that were cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

RELATIVE_SHIFT = 1e-10
"""Shift of a rank-deficient Gram matrix, as a share of its largest eigenvalue: far above what float64 loses in the
eigenvalues (1e-16), far below what tells directions apart, and whatever the inputs' scale."""


@dataclass(frozen=True)
class Factors:
    """`u @ v` stands for a matrix (m, n)."""

    u: torch.Tensor
    """(m, rank)."""
    v: torch.Tensor
    """(rank, n)."""

    @property
    def rank(self) -> int:
        """Inner size."""
        return self.v.shape[0]

    def to(self, *args, **kwargs) -> Factors:
        """As `torch.Tensor.to`."""
        return Factors(self.u.to(*args, **kwargs), self.v.to(*args, **kwargs))


@dataclass(frozen=True)
class Whitening:
    """Eigendecomposition of a Gram matrix of inputs."""

    basis: torch.Tensor
    """U_s: (n, n) float64, a column per eigenvector."""
    eigenvalues: torch.Tensor
    """(n,) float64, not negative; without the shift."""
    shift: float
    """What is added to each eigenvalue so that S_s can be inverted; 0 unless the Gram matrix is rank-deficient."""

    @classmethod
    def of(cls, gram: torch.Tensor, name: str = "the matrix") -> Whitening:
        """Decompose a Gram matrix.

        Only a rank-deficient one is shifted: the truncation is then a little less than optimal, but leaves the
        directions that the calibration never showed near W. A Gram matrix of zeros says nothing, and any shift makes a
        multiple of the identity of it: plain SVD.

        Args:
            gram: (n, n), XXᵀ of inputs X (n, tokens); any scale.
            name: of whose inputs, for the error.

        Raises:
            ValueError: NaN or infinity in it.
        """
        gram = gram.to(torch.float64)
        if not gram.isfinite().all():
            raise ValueError(f"the Gram matrix of the inputs of {name} holds NaN or infinity")
        if not gram.any():
            identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            return cls(identity, torch.zeros_like(identity[0]), 1.0)
        eigenvalues, basis = torch.linalg.eigh(gram)
        eigenvalues = eigenvalues.clamp(min=0)
        smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
        deficient = smallest <= len(gram) * torch.finfo(gram.dtype).eps * largest
        return cls(basis, eigenvalues, RELATIVE_SHIFT * largest if deficient else 0.0)

    def norm(self, matrix: torch.Tensor) -> float:
        """‖matrix · X‖_F of a float64 matrix (m, n), without the shift."""
        return torch.linalg.norm(matrix @ self.basis * self.eigenvalues.sqrt()).item()


@dataclass(frozen=True)
class Decomposition:
    """`W = left · diag(singular) · right`, in the order in which the terms are kept.

    The columns of `left` are orthonormal, so what leaving out terms costs adds up: for any Gram matrix G,
    `‖(W - W')X‖_F² = Σ_{i>r} singular_i² · right_i G right_iᵀ`. No factors are needed to know it.
    """

    left: torch.Tensor
    """(m, k) float64, k = min(m, n)."""
    singular: torch.Tensor
    """(k,) float64, falling."""
    right: torch.Tensor
    """(k, n) float64."""
    costs: torch.Tensor
    """(k,) float64: squared activation loss, on the calibration's inputs, of leaving out each term. Whitened and
    without a shift these are the squared singular values."""

    @classmethod
    def of(cls, weight: torch.Tensor, whitening: Whitening, whitened: bool, name: str = "the matrix") -> Decomposition:
        """Decompose a weight (m, n) of any dtype for its inputs, or with `whitened=False` as it is (plain SVD).

        Raises:
            ValueError: NaN or infinity in the weight.
        """
        weight = weight.detach().to(torch.float64)
        if not weight.isfinite().all():
            raise ValueError(f"the weight of {name} holds NaN or infinity")
        if not whitened:
            left, singular, right = thin_svd(weight)
            seen = (right @ whitening.basis).square() @ whitening.eigenvalues
            return cls(left, singular, right, singular.square() * seen)
        shifted = whitening.eigenvalues + whitening.shift
        left, singular, right = thin_svd(weight @ whitening.basis * shifted.sqrt())
        seen = right.square() @ (whitening.eigenvalues / shifted) if whitening.shift else torch.ones_like(singular)
        return cls(left, singular, right / shifted.sqrt() @ whitening.basis.T, singular.square() * seen)

    def costs_under(self, gram: torch.Tensor) -> torch.Tensor:
        """(k,): like `costs`, on the inputs of another Gram matrix (n, n), of held-out rows say."""
        gram = gram.to(self.right)
        return self.singular.square() * ((self.right @ gram) * self.right).sum(1).clamp(min=0)

    def factors(self, rank: int) -> Factors:
        """W' of this rank, float64. Each column of u is as long as its row of v, whatever the inputs' scale."""
        right = self.singular[:rank, None] * self.right[:rank]
        half = torch.linalg.norm(right, dim=1).sqrt()
        return Factors(self.left[:, :rank] * half, right / half.where(half > 0, 1.0)[:, None])


def thin_svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(m, n) -> (m, k), (k,), (k, n), k = min(m, n).

    A much taller matrix, an LM head, goes through QR first: LAPACK does so by itself, a GPU's library may not.
    """
    if matrix.shape[0] < 2 * matrix.shape[1]:
        return torch.linalg.svd(matrix, full_matrices=False)
    tall, square = torch.linalg.qr(matrix)
    left, singular, right = torch.linalg.svd(square, full_matrices=False)
    return tall @ left, singular, right


def tail(costs: torch.Tensor, rank: int) -> float:
    """The loss that is left when the first `rank` terms are kept: of squared losses (k,) the root of the rest's sum."""
    return math.sqrt(costs[rank:].sum().item())


def activation_loss(weight: torch.Tensor, factors: Factors, gram: torch.Tensor) -> float:
    """‖(W - u v)X‖_F, in float64.

    Args:
        weight: W (m, n).
        factors: as they are, rounding and tuning included.
        gram: (n, n), XXᵀ of the inputs X, held-out ones say.
    """
    wide = factors.to(torch.float64)
    difference = weight.detach().to(torch.float64) - wide.u @ wide.v
    return math.sqrt(max(0.0, ((difference @ gram.to(difference)) * difference).sum().item()))
