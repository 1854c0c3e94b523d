import pytest
import torch
from trl.trainer.utils import nanstd

from ruyi_rl.training.advantages import dead_groups, group_advantages, normalized_advantages

PROMPTS, EXITS, SAMPLES = 5, 3, 4


@pytest.fixture
def rows():
    """(rewards, prompt ids, exit ids) in a random order of rows."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.arange(PROMPTS).repeat_interleave(EXITS * SAMPLES)
    exits = torch.arange(EXITS).repeat_interleave(SAMPLES).repeat(PROMPTS)
    order = torch.randperm(len(prompts), generator=generator)
    return torch.rand(len(prompts), generator=generator, dtype=torch.float64), prompts[order], exits[order]


def test_group_equals_the_formula_row_by_row(rows):
    rewards, prompts, exits = rows
    for scale in ("group", "exit", "none", "pooled"):
        got = group_advantages(rewards, prompts, exits, scale)
        for row in range(len(rewards)):
            same_prompt, same_exit = prompts == prompts[row], exits == exits[row]
            group = rewards[same_prompt] if scale == "pooled" else rewards[same_prompt & same_exit]
            expected = rewards[row] - group.mean()
            if scale != "none":
                expected = expected / ((rewards[same_exit] if scale == "exit" else group).std() + 1e-4)
            torch.testing.assert_close(got[row], expected)


def test_group_equals_trl():
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(1))
    rewards[3] = torch.nan
    groups = torch.arange(6).repeat_interleave(4)
    grouped = rewards.view(-1, 4)
    mean, std = torch.nanmean(grouped, dim=1, keepdim=True), nanstd(grouped, dim=1).unsqueeze(1)
    expected = torch.nan_to_num(((grouped - mean) / (std + 1e-4)).flatten(), nan=0.0)
    torch.testing.assert_close(group_advantages(rewards, groups, torch.zeros_like(groups)), expected)


@pytest.mark.parametrize("scale", ["group", "exit", "none"])
def test_other_exits_do_not_matter(rows, scale):
    rewards, prompts, exits = rows
    before = group_advantages(rewards, prompts, exits, scale)
    for change in (lambda r: r + 3.0, lambda r: r * 5.0):
        after = group_advantages(torch.where(exits == 1, change(rewards), rewards), prompts, exits, scale)
        assert torch.equal(after[exits != 1], before[exits != 1])


def test_pooled_is_moved_by_other_exits(rows):
    rewards, prompts, exits = rows
    moved = group_advantages(torch.where(exits == 1, rewards + 3.0, rewards), prompts, exits, "pooled")
    assert not torch.allclose(moved[exits != 1], group_advantages(rewards, prompts, exits, "pooled")[exits != 1])


def test_a_constant_shift_of_an_exit_changes_nothing(rows):
    rewards, prompts, exits = rows
    for scale in ("group", "exit", "none"):
        before = group_advantages(rewards, prompts, exits, scale)
        torch.testing.assert_close(group_advantages(rewards + exits, prompts, exits, scale), before)


@pytest.mark.parametrize("scale", ["group", "exit", "none", "pooled"])
def test_missing_rewards_are_left_out(rows, scale):
    rewards, prompts, exits = rows
    missing = rewards.clone()
    missing[7] = torch.nan
    kept = torch.arange(len(rewards)) != 7
    got = group_advantages(missing, prompts, exits, scale)
    assert got[7] == 0
    torch.testing.assert_close(got[kept], group_advantages(rewards[kept], prompts[kept], exits[kept], scale))


def test_groups_without_spread(rows):
    _, prompts, exits = rows
    rewards = torch.where(exits == 2, 1.0, torch.rand(len(exits)))
    assert torch.equal(dead_groups(rewards, prompts, exits), exits == 2)
    assert (group_advantages(rewards, prompts, exits)[exits == 2] == 0).all()
    lonely = torch.full((4,), torch.nan)
    lonely[0] = 1.0
    assert dead_groups(lonely, torch.zeros(4).long(), torch.zeros(4).long()).all()
    assert torch.equal(group_advantages(lonely, torch.zeros(4).long(), torch.zeros(4).long()), torch.zeros(4))


def test_normalized_equals_trl_on_one_exit():
    rewards = torch.rand(12, 2, generator=torch.Generator().manual_seed(2))
    rewards[0, 1] = torch.nan
    weights, groups = torch.tensor([1.0, 0.3]), torch.arange(3).repeat_interleave(4)
    grouped = rewards.view(3, 4, 2)
    scaled = (grouped - torch.nanmean(grouped, 1, keepdim=True)) / (nanstd(grouped, dim=1, keepdim=True) + 1e-4)
    total = (scaled.view(-1, 2) * weights).nansum(1)
    expected = (total - total.nanmean()) / (nanstd(total) + 1e-4)
    torch.testing.assert_close(normalized_advantages(rewards, weights, groups, torch.zeros_like(groups)), expected)


def test_unknown_scale_is_refused(rows):
    with pytest.raises(ValueError, match="group, exit, none, pooled, not 'batch'"):
        group_advantages(*rows, "batch")
