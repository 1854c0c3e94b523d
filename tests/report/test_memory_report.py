"""The memory estimate in words."""

from dataclasses import replace

import pytest

from ruyi_rl.report.memory import MemoryReport, memory_line, memory_rows, memory_warning
from ruyi_rl.training.memory import TrainingState
from ruyi_rl.training.memory_estimate import Engines, MemoryEstimate

GB = 10**9


def report(bytes=None, device="cuda", checkpointing=False, **changes):
    values = {
        "state": TrainingState(2 * GB, 2 * GB, 4 * GB, 8 * GB),
        "activations": 20 * GB,
        "head": GB,
        "copies": 0,
        "step": 4 * GB,
        "engines": Engines(),
        "overhead": GB,
    }
    return MemoryReport(MemoryEstimate(**values | changes), device, bytes, checkpointing)


def rows(found):
    return {name: (size, what) for name, size, what in memory_rows(found)}


def test_the_parts_add_up_to_the_peak():
    found = report()
    assert found.estimate.peak == (16 + 20 + 1 + 1) * GB
    assert rows(found)["most on a rank, about"] == ("38 GB", "while training; an estimate; fits a GPU of 40 GB")
    assert rows(found)["memory of a rank"] == (
        "16 GB",
        "weights 2 GB, gradients 2 GB, float32 masters 4 GB, AdamW 8 GB",
    )


def test_a_step_may_take_more_than_activations():
    assert report(activations=GB, step=9 * GB).estimate.peak == (16 + 9 + 1) * GB


def test_engines_sleep_while_the_trainer_works():
    asleep, awake = report(engines=Engines(30 * GB, 0)), report(engines=Engines(30 * GB, 30 * GB))
    assert asleep.estimate.peak == asleep.estimate.generating == (14 + 30 + 1) * GB
    assert "while generating" in rows(asleep)["most on a rank, about"][1]
    assert awake.estimate.peak == (38 + 30) * GB


def test_offloaded_states_are_not_on_the_device():
    found = report(offloaded=True)
    assert found.estimate.peak == 22 * GB and rows(found)["memory of a rank"][1].endswith("on the CPU")


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({}, "<stage>.trainer.gradient_checkpointing=true"),
        ({"checkpointing": True}, "fewer rows"),
        ({"state": TrainingState(GB, GB, 40 * GB, 0)}, "a higher deepspeed="),
        ({"engines": Engines(90 * GB, 0)}, "rollout.tensor_parallel"),
        ({"engines": Engines(90 * GB, 90 * GB), "activations": GB}, "rollout.sleep=true"),
    ],
)
def test_what_does_not_fit_is_told_with_the_remedy_first(changes, first):
    assert memory_warning(report(bytes=80 * GB if not changes else None, **changes)) is None
    warning = memory_warning(report(bytes=30 * GB, **changes))
    assert "the GPU has 30 GB" in warning
    if "sleep" not in first:
        assert warning.partition(": ")[2].startswith(first)
    else:
        assert first in warning


def test_on_a_cpu():
    assert "there are 8 GB" in memory_warning(report(bytes=8 * GB, device="cpu"))
    assert "of the CPU's memory" in rows(report(device="cpu"))["most on a rank, about"][1]


def test_gradients_that_stand_are_there_while_completions_are_made():
    found = report(engines=Engines(30 * GB, 0), standing=2 * GB)
    assert found.estimate.generating == (16 + 30 + 1) * GB
    assert rows(found)["+ rollouts"][1] == (
        "weights, while completions are made; 2 GB of gradients then; caches take what rollout.gpu_memory_utilization "
        "leaves"
    )
    assert rows(report(engines=Engines(30 * GB, 0)))["+ rollouts"][1].startswith(
        "weights, while completions are made; no g"
    )


def test_little_of_the_memory_is_one_line():
    found = replace(report(bytes=400 * GB), stage="sft", assumed=True)
    line = "sft: at most about 38 GB on a rank, if rows were as long as they may be; 400 GB are there"
    assert memory_line("sft", found) == line
    assert "sft.trainer.gradient_checkpointing=true" in memory_warning(replace(found, bytes=30 * GB))
    assert "token_budget" not in memory_warning(replace(found, bytes=30 * GB))
