"""Factorisation of many matrices (SVD-LLM V2; Ruyi2 report, §4.4): those of a kind share a budget of parameters."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ruyi_rl.family.budget import budget, full_ratio_rank
from ruyi_rl.family.options import COMPRESSION_METHODS
from ruyi_rl.family.truncation import Decomposition, Factors, Whitening, tail


@dataclass(frozen=True)
class MatrixReport:
    """What was made of one matrix. Losses are ‖WX - W'X‖_F over all the calibration's tokens."""

    name: str
    group: str
    """The matrices it shared its budget with."""
    rows: int
    columns: int
    rank: int
    ratio: float
    """Share of its parameters to be removed, before the rank is rounded down."""
    predicted: float
    """Loss by the singular values alone."""
    achieved: float
    """Loss of the factors, in the dtype that they are kept in."""
    norm: float
    """‖WX‖_F, what the losses compare with."""
    shift: float
    """What was added to the Gram matrix's eigenvalues; 0 unless it is rank-deficient."""
    tokens: int | None
    """Of the calibration; None: not said."""
    losses: dict[str, float] = field(default_factory=dict)
    """Method -> predicted loss; of all methods where they were compared."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Method -> predicted loss on the held-out inputs, where there are any."""

    @property
    def removed(self) -> float:
        """Share of its parameters that is gone."""
        return 1 - self.rank * (self.rows + self.columns) / (self.rows * self.columns)


@dataclass(frozen=True)
class Compressed:
    """A matrix as factors, in its own dtype, and what they cost."""

    factors: Factors
    report: MatrixReport


def compress_matrices(
    weights: Mapping[str, torch.Tensor],
    grams: Mapping[str, torch.Tensor],
    groups: Mapping[str, str],
    ratio: float,
    method: str,
    progress: Callable[[str], None] | None = None,
    tokens: int | None = None,
    compare: bool = False,
    held_out: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Compressed]:
    """Factorise matrices so that a share of their parameters goes.

    Each matrix is decomposed once, in float64 on its own device, and one group is held at a time; matrices that share a
    Gram tensor share its decomposition.

    Args:
        weights: name -> W (m, n).
        grams: name -> XXᵀ (n, n) of its inputs; the same tensor where the inputs are the same.
        groups: name -> group of same-type matrices, whose mean ratio is `ratio`.
        ratio: R, share of the parameters that is removed.
        method: `svd`: W as it is; `whitened`: for its inputs; `budgeted`: and the budget by loss.
        progress: gets a line of text after each group.
        tokens: of the calibration, to be warned where they are fewer than a matrix's columns.
        compare: also predict the other methods' losses, for another decomposition of each matrix.
        held_out: name -> Gram matrix of inputs that the factors are not made for, to predict the losses on.

    Returns:
        Name -> factors and report, in the order of `weights`.

    Raises:
        ValueError: a ratio outside (0, 1), an unknown method, NaN or infinity in a weight or Gram matrix.
    """
    check_options(ratio, method)
    if tokens is not None:
        _warn_of_few(tokens, weights)
    methods = COMPRESSION_METHODS if compare else (method,)
    pending, whitenings, found = Counter(id(grams[name]) for name in weights), {}, {}
    for group in dict.fromkeys(groups[name] for name in weights):
        names = [name for name in weights if groups[name] == group]
        shapes = {name: tuple(weights[name].shape) for name in names}
        kept, spectra = {}, {}
        for name in names:
            gram = grams[name].to(weights[name].device)
            if (key := id(grams[name])) not in whitenings:
                whitenings[key] = Whitening.of(gram, name)
            unseen = None if held_out is None else held_out[name]
            kept[name], spectra[name] = _decomposed(weights[name], whitenings[key], methods, method, unseen, name)
        ratios = {other: dict.fromkeys(names, ratio) for other in methods}
        if "budgeted" in methods:
            loss_at = [spectra[name]["budgeted"].loss for name in names]
            ratios["budgeted"] = dict(zip(names, budget(list(shapes.values()), loss_at, ratio)))
        for name, (rows, columns) in shapes.items():
            ranks = {other: full_ratio_rank(rows, columns, ratios[other][name]) for other in methods}
            weight, whitening = weights[name].detach(), whitenings[id(grams[name])]
            factors = kept.pop(name).factors(ranks[method]).to(weight.dtype)
            wide = factors.to(torch.float64)
            losses = {other: spectra[name][other].loss(rank) for other, rank in ranks.items()}
            unseen = {other: spectra[name][other].held_out_loss(rank) for other, rank in ranks.items()}
            report = MatrixReport(
                name=name,
                group=group,
                rows=rows,
                columns=columns,
                rank=ranks[method],
                ratio=ratios[method][name],
                predicted=losses[method],
                achieved=whitening.norm(weight.to(torch.float64) - wide.u @ wide.v),
                norm=spectra[name][method].loss(0),
                shift=whitening.shift,
                tokens=tokens,
                losses=losses,
                held_out={} if held_out is None else unseen,
            )
            found[name] = Compressed(factors, report)
            pending[id(grams[name])] -= 1
            if not pending[id(grams[name])]:
                del whitenings[id(grams[name])]
        if progress is not None:
            progress(f"factorised {group}: {len(names)} of {rows} x {columns}")
    return {name: found[name] for name in weights}


def check_options(ratio: float, method: str) -> None:
    """Raise ValueError unless the ratio is in (0, 1) and the method known."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be between 0 and 1, both left out, not {ratio}")
    if method not in COMPRESSION_METHODS:
        raise ValueError(f"method must be one of {COMPRESSION_METHODS}, not {method!r}")


@dataclass(frozen=True)
class _Spectrum:
    """What is left of a decomposition that only losses are asked of."""

    costs: torch.Tensor
    """(k,): squared loss of leaving out each term."""
    held_out: torch.Tensor | None
    """Likewise on the held-out inputs."""

    def loss(self, rank: int) -> float:
        return tail(self.costs, rank)

    def held_out_loss(self, rank: int) -> float | None:
        return None if self.held_out is None else tail(self.held_out, rank)


def _decomposed(
    weight: torch.Tensor,
    whitening: Whitening,
    methods: Sequence[str],
    method: str,
    held_out: torch.Tensor | None,
    name: str,
) -> tuple[Decomposition, dict[str, _Spectrum]]:
    """The decomposition by `method`, and the spectrum by each of the methods; plain SVD and whitened are made once."""
    spectra = {}
    for whitened in (False, True):
        users = [other for other in methods if (other != "svd") == whitened]
        if not users:
            continue
        parts = Decomposition.of(weight, whitening, whitened, name)
        spectrum = _Spectrum(parts.costs, None if held_out is None else parts.costs_under(held_out))
        spectra.update(dict.fromkeys(users, spectrum))
        if method in users:
            kept = parts
    return kept, spectra


def _warn_of_few(tokens: int, weights: Mapping[str, torch.Tensor]) -> None:
    wider = {name: weight.shape[1] for name, weight in weights.items() if weight.shape[1] > tokens}
    if wider:
        widest = max(wider, key=wider.get)
        warnings.warn(
            f"the calibration's {tokens} tokens are fewer than the columns of {len(wider)} of {len(weights)} matrices, "
            f"up to the {wider[widest]} of {widest}: it cannot tell all their inputs' directions apart",
            stacklevel=3,
        )
