"""Truncation against X itself and against the closed form, the budget and its guard, compressed families, refusals."""

import copy
import json
import math

import pytest
import torch

from ruyi_rl.family import Family
from ruyi_rl.family.budget import budget, full_ratio_rank, shares
from ruyi_rl.family.compression import apply_factors
from ruyi_rl.family.factorisation import compress_matrices
from ruyi_rl.family.truncation import Decomposition, Factors, Whitening, activation_loss

EXITS = {"small": 1, "large": 4}
RUYI2 = [
    ((5120, 5120), 1536),
    ((1024, 5120), 512),
    ((17408, 5120), 2373),
    ((5120, 17408), 2373),
    ((151936, 5120), 2971),
]


def method_losses(reports, held_out=False):
    """Method -> group -> loss of the group's matrices together, sqrt(ΣL²); predicted, or on the held-out inputs."""
    squares = {}
    for report in reports:
        for method, loss in (report.held_out if held_out else report.losses).items():
            of_method = squares.setdefault(method, {})
            of_method[report.group] = of_method.get(report.group, 0.0) + loss**2
    return {method: {group: math.sqrt(s) for group, s in of.items()} for method, of in squares.items()}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def anisotropic(columns: int, tokens: int, seed: int) -> torch.Tensor:
    """Inputs (columns, tokens) whose directions differ in size by 10,000; one distribution for all seeds."""
    mixed = torch.linalg.qr(normal(columns, columns, seed=99))[0]
    return mixed @ torch.diag(torch.logspace(0, -4, columns, dtype=torch.float64)) @ normal(columns, tokens, seed=seed)


def loss_on(weight: torch.Tensor, factors: Factors, inputs: torch.Tensor) -> float:
    return torch.linalg.norm(weight @ inputs - factors.u @ (factors.v @ inputs)).item()


def compressed(weight: torch.Tensor, inputs: torch.Tensor, method: str = "whitened", ratio: float = 0.4):
    return compress_matrices({"w": weight}, {"w": inputs @ inputs.T}, {"w": "g"}, ratio, method)["w"]


@pytest.mark.parametrize("shape, rank", RUYI2)
def test_ranks_at_ruyi2_shapes_and_uniform_loss(shape, rank):
    assert full_ratio_rank(*shape, 0.4) == rank
    ratios = budget([shape] * 3, [lambda rank: 1e9 / rank] * 3, 0.4)
    assert [full_ratio_rank(*shape, ratio) for ratio in ratios] == [rank] * 3


@pytest.mark.parametrize("hundredths", range(1, 100))
def test_rank_is_exact_at_whole_numbers(hundredths):
    assert full_ratio_rank(200, 200, hundredths / 100) == 100 - hundredths
    assert full_ratio_rank(3, 2, hundredths / 100) == 1


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
@pytest.mark.parametrize("method", ["svd", "whitened"])
def test_predicted_and_achieved_loss_are_those_of_the_inputs(shape, method):
    weight, inputs = normal(*shape, seed=1), anisotropic(shape[1], 300, seed=2)
    found = compressed(weight, inputs, method)
    factors, report = found.factors, found.report
    assert factors.u.shape == (shape[0], report.rank) and factors.v.shape == (report.rank, shape[1])
    assert report.shift == 0 and (report.rows, report.columns) == shape
    on_inputs = loss_on(weight, factors, inputs)
    assert report.predicted == pytest.approx(on_inputs, rel=1e-6)
    assert report.achieved == pytest.approx(on_inputs, rel=1e-6)
    assert activation_loss(weight, factors, inputs @ inputs.T) == pytest.approx(on_inputs, rel=1e-6)
    assert report.norm == pytest.approx(torch.linalg.norm(weight @ inputs).item(), rel=1e-9)
    # Truth without any Gram matrix: no rank r comes closer to WX than its own truncated SVD, plain SVD to W.
    of = torch.linalg.svdvals(weight @ inputs)[report.rank :] if method == "whitened" else None
    if of is not None:
        assert on_inputs == pytest.approx(torch.linalg.norm(of).item(), rel=1e-6)
    else:
        u, s, vt = torch.linalg.svd(weight)
        closest = u[:, : report.rank] * s[: report.rank] @ vt[: report.rank]
        torch.testing.assert_close(factors.u @ factors.v, closest)


def test_nothing_of_the_rank_is_better():
    weight, inputs = normal(20, 16, seed=3), anisotropic(16, 200, seed=4)
    found = compressed(weight, inputs)
    best = loss_on(weight, found.factors, inputs)
    for seed in range(20):
        for size in (1e-4, 1e-2, 1):
            u = found.factors.u + size * normal(*found.factors.u.shape, seed=seed)
            v = found.factors.v + size * normal(*found.factors.v.shape, seed=seed + 1)
            # Each of the two the best there is for the other, perturbed one.
            fitted = torch.linalg.lstsq((v @ inputs).T, (weight @ inputs).T).solution.T
            for rival in (Factors(u, v), Factors(fitted, v), Factors(u, torch.linalg.pinv(u) @ weight)):
                assert loss_on(weight, rival, inputs) >= best * (1 - 1e-12)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("whitened", [True, False])
def test_full_rank_gives_the_matrix_back(shape, whitened):
    weight, inputs = normal(*shape, seed=5), anisotropic(shape[1], 100, seed=6)
    parts = Decomposition.of(weight, Whitening.of(inputs @ inputs.T), whitened)
    factors = parts.factors(12)
    torch.testing.assert_close(factors.u @ factors.v, weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.linalg.norm(factors.u, dim=0), torch.linalg.norm(factors.v, dim=1))


def several(columns: int = 24, count: int = 4) -> tuple[dict, dict, dict]:
    """Weights of different size, their groups (two), and which of three inputs each has (two share one)."""
    weights = {f"m{i}": normal(32, columns, seed=i) * 30.0 ** -(i // 2) for i in range(count)}
    groups = {name: "even" if i % 2 == 0 else "odd" for i, name in enumerate(weights)}
    return weights, groups, {name: min(i, 2) for i, name in enumerate(weights)}


def test_each_step_of_the_method_is_worth_something_on_held_out_inputs_too():
    weights, groups, seeds = several()
    sets = {}
    for offset in (0, 100):
        by_seed = {seed: anisotropic(24, 4000, seed=seed + offset) for seed in set(seeds.values())}
        sets[offset] = {name: by_seed[seed] for name, seed in seeds.items()}
    grams, unseen = ({n: x @ x.T for n, x in inputs.items()} for inputs in sets.values())
    found = {
        m: compress_matrices(weights, grams, groups, 0.4, m, compare=True, held_out=unseen)
        for m in ("svd", "whitened", "budgeted")
    }
    for held_out, inputs in ((False, sets[0]), (True, sets[100])):
        totals = method_losses([c.report for c in found["budgeted"].values()], held_out)
        for group in ("even", "odd"):
            names = [n for n in weights if groups[n] == group]
            for method, matrices in found.items():
                direct = math.hypot(*(loss_on(weights[n], matrices[n].factors, inputs[n]) for n in names))
                assert totals[method][group] == pytest.approx(direct, rel=1e-6)
            assert totals["budgeted"][group] < totals["whitened"][group] < totals["svd"][group]
    for method, matrices in found.items():
        for group in ("even", "odd"):
            reports = [c.report for c in matrices.values() if c.report.group == group]
            assert sum(r.ratio for r in reports) / len(reports) == pytest.approx(0.4, abs=1e-9)
            assert all(r.losses[method] == r.predicted for r in reports)
            # A rank rounded down costs at most one row of u and column of v a matrix.
            assert 0 <= sum(r.removed - 0.4 for r in reports) / len(reports) < 56 / (32 * 24)
    assert any(c.report.ratio != 0.4 for c in found["budgeted"].values())


def test_what_is_shared_is_decomposed_once(monkeypatch):
    calls = {"eigh": 0, "svd": 0}
    for name in calls:
        real = getattr(torch.linalg, name)

        def counted(*args, name=name, real=real, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, counted)
    weights = {name: normal(8, 6, seed=i) for i, name in enumerate(("q", "k", "v", "o"))}
    shared, other = torch.eye(6, dtype=torch.float64), 2 * torch.eye(6, dtype=torch.float64)
    grams = {"q": shared, "k": shared, "v": shared, "o": other}
    lines = []
    compress_matrices(weights, grams, {n: n for n in weights}, 0.4, "budgeted", lines.append)
    assert calls == {"eigh": 2, "svd": 4} and len(lines) == 4


def test_budget_is_equation_6_where_losses_are_large():
    losses = [5.0, 80.0, 3000.0]
    ratios = shares(losses, [0.99] * 3, 0.4)
    g = [1 / math.log(loss) for loss in losses]
    assert ratios == pytest.approx([3 * 0.4 * part / sum(g) for part in g])


@pytest.mark.parametrize(
    "losses",
    [
        [1.0, 1.0 + 1e-12, 0.999],
        [1e-30, 3e-30, 2e-30],
        [1e-300, 1e300, 1.0],
        [0.0, 0.0, 0.0],
        [0.0, 1e-20, 5.0],
        [2.0, 2.8, 1e9],
        [7.0, 7.0, 7.0],
    ],
)
@pytest.mark.parametrize("ratio", [0.05, 0.4, 0.95])
def test_shares_keep_their_mean_limits_and_order(losses, ratio):
    limits = [0.97] * 3
    ratios = shares(losses, limits, ratio)
    assert sum(ratios) / 3 == pytest.approx(ratio, abs=1e-9)
    assert all(0 <= r <= 0.97 + 1e-12 for r in ratios)
    for a, first in zip(losses, ratios):
        for b, second in zip(losses, ratios):
            assert a < b or first <= second + 1e-12  # who loses more gives up no more
    assert losses[0] != losses[1] or ratios == pytest.approx([ratio] * 3)


def test_budget_does_no_harm():
    # Below the uniform rank 30 the first one's loss, though the smaller, rises steeply: the formula alone would cut it.
    shapes = [(100, 100)] * 2
    loss_at = [lambda rank: 10 if rank >= 30 else 1e6, lambda rank: 1000.0 - rank / 100]
    losses = [loss(30) for loss in loss_at]
    alone = [full_ratio_rank(100, 100, r) for r in shares(losses, [0.98] * 2, 0.4)]
    assert math.hypot(*(loss(r) for loss, r in zip(loss_at, alone))) > math.hypot(*losses)
    assert budget(shapes, loss_at, 0.4) == [0.4, 0.4]
    # Where a part of the way is harmless, that part is gone.
    loss_at[0] = lambda rank: 10 if rank >= 25 else 1e6
    ratios = budget(shapes, loss_at, 0.4)
    assert 0.4 < ratios[0] < 0.5 and sum(ratios) == pytest.approx(0.8, abs=1e-9)
    assert math.hypot(*(f(full_ratio_rank(100, 100, r)) for f, r in zip(loss_at, ratios))) < math.hypot(*losses)


def test_random_groups_never_lose_more_than_uniformly():
    for seed in range(30):
        spectra = normal(4, 12, seed=seed).mul(3).exp().sort(descending=True).values * 10.0 ** (seed - 15)
        shapes, loss_at = [(12, 12)] * 4, [lambda rank, s=s: torch.linalg.norm(s[rank:]).item() for s in spectra]
        ratios = budget(shapes, loss_at, 0.4)
        assert sum(ratios) / 4 == pytest.approx(0.4, abs=1e-9)
        ranks = [full_ratio_rank(12, 12, r) for r in ratios]
        assert min(ranks) >= 1
        assert math.hypot(*(f(r) for f, r in zip(loss_at, ranks))) <= math.hypot(*(f(3) for f in loss_at))


def test_rank_deficient_calibration():
    weight = normal(24, 16, seed=7)
    inputs = normal(16, 6, seed=8) @ normal(6, 200, seed=9)
    gram = inputs @ inputs.T
    whitening = Whitening.of(gram)
    assert 0 < whitening.shift < 1e-8 * whitening.eigenvalues[-1]
    parts = Decomposition.of(weight, whitening, whitened=True)
    for rank in (2, 5):
        factors = parts.factors(rank)
        on_inputs = loss_on(weight, factors, inputs)
        assert parts.costs[rank:].sum().sqrt().item() == pytest.approx(on_inputs, rel=1e-6)
        assert on_inputs == pytest.approx(torch.linalg.norm(torch.linalg.svdvals(weight @ inputs)[rank:]).item(), 1e-6)
        shifted = on_inputs**2 + whitening.shift * torch.linalg.norm(weight - factors.u @ factors.v).item() ** 2
        assert parts.singular[rank:].square().sum().item() == pytest.approx(shifted, rel=1e-6)
    # Ranks that the inputs leave over go to the directions they never showed, not to noise.
    report = compressed(weight, inputs, ratio=0.1).report
    assert report.rank == 8 and report.achieved < 1e-6 * report.norm
    everything = parts.factors(16)
    torch.testing.assert_close(everything.u @ everything.v, weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
@pytest.mark.parametrize("deficient", [True, False])
def test_scale_of_the_inputs_does_not_matter(scale, deficient):
    weight = normal(24, 16, seed=7)
    inputs = normal(16, 6, seed=8) @ normal(6, 200, seed=9) if deficient else anisotropic(16, 200, seed=9)
    plain, scaled = compressed(weight, inputs, ratio=0.6), compressed(weight, inputs * scale, ratio=0.6)
    torch.testing.assert_close(
        scaled.factors.u @ scaled.factors.v, plain.factors.u @ plain.factors.v, rtol=1e-5, atol=1e-5
    )
    assert scaled.factors.u.abs().max() == pytest.approx(plain.factors.u.abs().max().item(), rel=1e-3)
    assert scaled.report.achieved == pytest.approx(plain.report.achieved * scale, rel=1e-6)
    assert (plain.report.shift > 0) == (scaled.report.shift > 0) == deficient


def test_tiny_inputs_share_a_budget():
    weights, groups, seeds = several()
    inputs = {seed: 1e-30 * anisotropic(24, 200, seed=seed) for seed in set(seeds.values())}
    grams = {name: inputs[seed] @ inputs[seed].T for name, seed in seeds.items()}
    reports = [c.report for c in compress_matrices(weights, grams, groups, 0.4, "budgeted", compare=True).values()]
    totals = method_losses(reports)
    for group in ("even", "odd"):
        mine = [r for r in reports if r.group == group]
        assert sum(r.ratio for r in mine) / len(mine) == pytest.approx(0.4, abs=1e-9)
        assert 0 < totals["budgeted"][group] <= totals["whitened"][group] < 1e-20


def test_constant_and_zero_inputs():
    weight = normal(24, 16, seed=7)
    constant = compressed(weight, torch.ones(16, 50, dtype=torch.float64))
    assert constant.report.achieved < 1e-6 * constant.report.norm and constant.report.shift > 0
    silent, plain = compressed(weight, torch.zeros(16, 50, dtype=torch.float64)), compressed(weight, weight.T, "svd")
    torch.testing.assert_close(silent.factors.u @ silent.factors.v, plain.factors.u @ plain.factors.v)
    assert silent.report.predicted == silent.report.achieved == silent.report.norm == 0
    nothing = compressed(torch.zeros(24, 16), anisotropic(16, 50, seed=1), "budgeted")
    assert not nothing.factors.u.any() and not nothing.factors.v.any() and nothing.report.achieved == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(value):
    weight, gram = normal(4, 4, seed=1), torch.eye(4, dtype=torch.float64)
    bad = gram.clone()
    bad[1, 1] = value
    for weights, grams in (({"w.7": weight}, {"w.7": bad}), ({"w.7": weight * value}, {"w.7": gram})):
        with pytest.raises(ValueError, match=r"w\.7 holds NaN or infinity"):
            compress_matrices(weights, grams, {"w.7": "g"}, 0.4, "whitened")


def random_family(backbone, kind: str = "qwen3", shared: bool = False, exit: str = "small") -> Family:
    """Expanded, every tensor with weights of its own, biases too."""
    family = Family.from_scratch(backbone(kind), EXITS, shared).expand(exit, 2)
    generator = torch.Generator().manual_seed(7)
    for parameter in family.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return family


def rows(seed: int = 0, count: int = 6) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(2, 97, (4, 16), generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("kind, exit", [("qwen2", "small"), ("qwen3", "small"), ("qwen3", "large")])
def test_compressed_family(backbone, padded_batch, tmp_path, kind, exit):
    family, (ids, mask) = random_family(backbone, kind, exit=exit).train(), padded_batch
    before = copy.deepcopy(family)
    reports = family.compress(exit, 0.4, rows())
    assert len(reports) == 15 and all(r.tokens == 6 * 64 for r in reports)
    assert family.config.factor_ranks == {r.name: r.rank for r in reports}
    assert family.training and all(m.training for m in family.modules())
    removed = sum(r.rows * r.columns - r.rank * (r.rows + r.columns) for r in reports)
    assert sum(p.numel() for p in before.parameters()) - sum(p.numel() for p in family.parameters()) == removed
    assert 0.4 <= removed / sum(r.rows * r.columns for r in reports) < 0.46
    for r in reports:
        linear, old = family.get_submodule(r.name), before.get_submodule(r.name)
        assert linear.rank == r.rank and (linear.u.bias is None) == (old.bias is None)
        assert old.bias is None or torch.equal(linear.u.bias, old.bias)
    other = "large" if exit == "small" else "small"
    assert torch.equal(family(ids, mask).logits[other], before(ids, mask).logits[other])
    logits = family.eval()(ids, mask, exits=exit).logits[exit]
    assert not torch.allclose(logits, before.eval()(ids, mask, exits=exit).logits[exit], atol=1e-2)
    merged = family.branch(exit)(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], merged[mask.bool()], atol=1e-4, rtol=1e-4)
    for folder, model in (("before", before), ("after", family)):
        model.save_pretrained(tmp_path / folder)
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("before", "after")]
    assert sizes[0] - sizes[1] == pytest.approx(4 * removed, rel=0.05)
    assert json.loads((tmp_path / "after" / "config.json").read_text())["factor_ranks"] == family.config.factor_ranks
    loaded = Family.from_pretrained(tmp_path / "after")
    assert torch.equal(loaded(ids, mask, exits=exit).logits[exit], logits)


def test_methods_are_ordered_on_a_family(backbone):
    # Heads and inputs of a random family have no structure to speak of; skewed norms give the inputs some, and a skew
    # of its own in each block makes the losses of blocks differ.
    family = random_family(backbone).to(torch.float64)
    for number, block in enumerate(family.model.expansions[0]):
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data = torch.logspace(0.5, -3 + number, 32, dtype=torch.float64)
    totals = {}
    for method in ("svd", "whitened", "budgeted"):
        reports = copy.deepcopy(family).compress("small", 0.4, rows(), method)
        assert all(r.achieved == pytest.approx(r.predicted, rel=1e-6) for r in reports)
        totals[method] = method_losses(reports)[method]
    for group in totals["svd"]:
        assert totals["budgeted"][group] <= totals["whitened"][group] < totals["svd"][group]
    assert sum(totals["budgeted"].values()) < sum(totals["whitened"].values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_factors_take_the_familys_dtype(backbone, dtype):
    family = random_family(backbone).to(dtype)
    family.freeze_except(["small"], only_expansion=True)
    reports = family.compress("small", 0.4, rows(), "whitened")
    assert {p.dtype for p in family.parameters()} == {dtype}
    assert all(family.get_parameter(f"{r.name}.{part}.weight").requires_grad for r in reports for part in "uv")
    for r in reports:
        assert r.achieved == pytest.approx(r.predicted, rel=1e-6 if dtype == torch.float64 else 1e-2)
    # Achieved is what the factors as they are kept cost, their rounding included.
    rounded = any(r.achieved != pytest.approx(r.predicted, rel=1e-7) for r in reports)
    assert rounded == (dtype == torch.bfloat16)


def test_factors_are_trained_and_run_as_what_they_replace(backbone):
    family = random_family(backbone).train()
    family.freeze_except(["large"])
    family.model.expansions[0][1].mlp.up_proj.weight.requires_grad_()
    family.compress("small", 0.4, rows())
    trained = {name for name, parameter in family.model.expansions.named_parameters() if parameter.requires_grad}
    assert trained == {"0.1.mlp.up_proj.u.weight", "0.1.mlp.up_proj.v.weight"}
    assert all(module.training for module in family.modules())


def test_shared_head_is_left_alone(backbone, padded_batch):
    family = random_family(backbone, shared=True)
    head = family.lm_head.weight.clone()
    reports = family.compress("small", 0.4, rows())
    assert len(reports) == 14 and torch.equal(family.lm_head.weight, head)
    assert family(*padded_batch).logits["small"].isfinite().all()


def test_fewer_tokens_than_columns_warns_with_the_numbers(backbone):
    family, few = random_family(backbone), [{"input_ids": torch.arange(2, 52).view(2, 25)}]
    with pytest.warns(UserWarning, match=r"50 tokens are fewer .* columns of 4 of 15 .* 64 of model\.expansions\.0\.0"):
        reports = family.compress("small", 0.4, few)
    assert all(math.isfinite(r.achieved) and r.achieved <= r.norm for r in reports)
    assert {r.name.rpartition(".")[2] for r in reports if r.shift} == {"o_proj", "down_proj"}


def test_full_rank_factors_change_nothing(backbone, padded_batch):
    family = random_family(backbone).to(torch.float64)
    before = family(*padded_batch).logits["small"]
    names = ["model.expansions.0.1.mlp.down_proj", "lm_head.0"]
    factors = {}
    for name in names:
        weight = family.get_submodule(name).weight
        gram = torch.eye(weight.shape[1], dtype=torch.float64)
        factors[name] = Decomposition.of(weight, Whitening.of(gram), True).factors(min(weight.shape))
    apply_factors(family, "small", factors)
    assert list(family.config.factor_ranks) == names
    torch.testing.assert_close(family(*padded_batch).logits["small"], before, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="could get factors"):
        apply_factors(family, "small", {names[0]: factors[names[0]]})
    own = "model.eelayers.0.mlp.down_proj"
    with pytest.raises(ValueError, match=own):
        apply_factors(family, "small", {own: factors[names[0]]})
    with pytest.raises(ValueError, match="do not fit"):
        apply_factors(family, "small", {"model.expansions.0.0.mlp.up_proj": factors[names[0]]})


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"exit": "tiny"}, "no such exit: 'tiny'"),
        ({"exit": "large"}, "large is not expanded"),
        *[({"ratio": ratio}, f"between 0 and 1.* not {ratio}") for ratio in (0, 1, -0.4, 1.5, float("nan"))],
        ({"method": "pca"}, "method must be one of .* not 'pca'"),
        ({"calibration": []}, "no calibration"),
    ],
)
def test_refusals_leave_the_family_as_it_was(backbone, changes, match):
    family = random_family(backbone)
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        family.compress(**{"exit": "small", "calibration": rows(), **changes})
    assert not family.config.factor_ranks
    after = family.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_compressing_twice_is_refused(backbone):
    family = random_family(backbone)
    family.compress("small", 0.4, rows())
    with pytest.raises(ValueError, match="small is compressed already"):
        family.compress("small", 0.4, rows())


def test_inputs_that_are_not_finite_are_refused_by_module(backbone):
    family = random_family(backbone)
    family.model.expansions[0][1].input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"model\.layers\.3\.self_attn\.q_proj hold NaN"):
        family.compress("small", 0.4, rows())
