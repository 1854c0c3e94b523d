"""Two gloo ranks, a family sharded by ZeRO-3, engines of their own and one that both share."""

import json

import pytest
from transformers import Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from tests.forked_ranks import run_ranks


@pytest.mark.slow
def test_engines_of_two_ranks_agree_with_the_sharded_family(tmp_path):
    problem = vllm_problem() or import_problem()
    if problem:
        pytest.skip(problem)
    backbone = Qwen3Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.15,
    )
    Family.from_scratch(backbone, {"small": 0, "large": 2}).save_pretrained(tmp_path / "family")
    compiled = tmp_path / "compiled"
    run_ranks("vllm_ranks:main", tmp_path, log=tmp_path / "log", environment={"TORCHINDUCTOR_CACHE_DIR": str(compiled)})
    answers = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank, cases in enumerate(answers):
        assert len(cases) == 4
        for case, completions in cases.items():
            assert {completion["exit"] for completion in completions} == {"small", "large"}
            assert len(completions) == 2 * (2 + rank)
            errors = [abs(a - b) for one in completions for a, b in zip(one["engine"], one["family"], strict=True)]
            assert max(errors) <= 1e-4 and sum(errors) / len(errors) <= 1e-5, f"rank {rank}, {case}"
    # The step in between has moved the family, and a shared engine answers as each rank's own.
    for cases in answers:
        assert [c["family"] for c in cases["own, before"]] != [c["family"] for c in cases["own, after"]]
        assert [c["tokens"] for c in cases["own, after"]] == [c["tokens"] for c in cases["shared, before"]]
    assert not list(compiled.rglob("*.so")), "a first generate would wait for a compiler"
