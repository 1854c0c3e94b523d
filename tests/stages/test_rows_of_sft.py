"""What sft finds out about its rows before it trains."""

import io
from types import SimpleNamespace

import pytest
from datasets import Dataset
from rich.console import Console
from trl import SFTConfig

from ruyi_rl.config import RunConfig
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.stages import sft
from ruyi_rl.stages.joint import row_limit
from ruyi_rl.training.options import StageTwoOptions

CHAT = Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}], "completion": [], "answer": "1"}])
MESSAGES = Dataset.from_list([{"messages": [{"role": "user", "content": "q"}]}])


@pytest.fixture
def context():
    functions = {"math_answer": RewardFunctionOptions(path="rewards/math_answer.py")}
    config = RunConfig(name="x", reward=RewardOptions(functions=functions))
    step = SimpleNamespace(stage="sft")
    return SimpleNamespace(config=config, step=step, console=Console(file=io.StringIO(), width=200))


def test_rows_without_what_the_reward_reads_are_not_judged_and_it_is_said(context):
    assert sft.can_judge(context, CHAT)
    assert context.console.file.getvalue() == ""
    assert not sft.can_judge(context, CHAT.remove_columns("answer"))
    assert "the rows have no answer" in context.console.file.getvalue()


@pytest.mark.parametrize("stage", ["sft", "expanded_sft"])
def test_a_second_stage_of_another_form_is_refused(context, monkeypatch, stage):
    context.step.stage = stage
    monkeypatch.setattr(sft, "load_data", lambda *arguments: SimpleNamespace(train=MESSAGES))
    stage_two = StageTwoOptions(data=DataOptions(path="unread"))
    said = f"{stage}.stage_two.data.*rows of messages, but the first stage's are of completion"
    with pytest.raises(Refusal, match=said):
        sft.mixture(context, stage_two, CHAT)


@pytest.mark.parametrize(
    "packing, strategy, limit",
    [(False, "bfd", 64), (True, "bfd", 64), (True, "bfd_split", None), (True, "wrapped", None)],
)
def test_a_row_that_packing_would_cut_counts_as_too_long(tmp_path, packing, strategy, limit):
    args = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=64, packing=packing, packing_strategy=strategy
    )
    assert row_limit(args) == limit
