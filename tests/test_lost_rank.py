"""A rank that ends, and what the other one sees of it."""

import os

import pytest

from ruyi_rl.lost_rank import is_lost_rank
from tests.forked_ranks import run_ranks


def one_ends():
    import torch

    from ruyi_rl import ranks
    from ruyi_rl.execution import last_line
    from ruyi_rl.heart import Heart
    from ruyi_rl.lost_rank import lost_rank

    heart = Heart()
    heart.enter("update")
    heart.at_step(3)
    with ranks.connected():
        ranks.barrier()
        if ranks.rank() == 1:
            os._exit(0)
        with pytest.raises(Exception) as caught:
            for _ in range(100):
                torch.distributed.all_reduce(torch.zeros(1))
        assert is_lost_rank(caught.value)
        print(lost_rank(last_line(caught.value), heart), flush=True)
        os._exit(0)


def test_the_end_of_another_rank_is_told_with_rank_and_phase(tmp_path):
    shown = run_ranks(f"{__name__}:one_ends", log=tmp_path / "log")
    line = next(line for line in shown.splitlines() if "lost another rank" in line)
    assert line.startswith("rank 0 (host ") and ") lost another rank in update after step 3; " in line


def test_other_errors_are_not_taken_for_it():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError("No space left on device")):
        assert not is_lost_rank(error)
