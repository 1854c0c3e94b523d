"""Two gloo ranks and a family sharded by ZeRO-3: rank 0 speaks with the servers for both."""

import json

import fake_server
import pytest
import torch
from fakes import SAMPLING, small_family

from ruyi_rl.rollout.weights import branch_layout, write_branch_weights
from tests.forked_ranks import run_ranks


@pytest.mark.slow
def test_ranks_share_the_servers(tmp_path):
    family = small_family()
    family.save_pretrained(tmp_path / "family")
    (tmp_path / "healthy.json").write_text("{}")
    (tmp_path / "sick.json").write_text(json.dumps({"s0-1": {"die_after": 0}}))
    run_ranks("server_ranks:main", tmp_path, log=tmp_path / "log")
    digests = {}
    for exit in family.exits:
        write_branch_weights(family, branch_layout(family.config, exit), tmp_path / exit, torch.float32)
        digests[exit] = fake_server.weights_digest(tmp_path / exit)
    answers = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for answer in answers:
        for request, completion in zip(answer["requests"], answer["completions"], strict=True):
            drawn = fake_server.draw(
                request["prompt_ids"], request["seed"], digests[request["exit"]], SAMPLING.max_new_tokens
            )
            assert (completion["token_ids"], completion["log_probs"]) == drawn
        assert "small-0: it was killed by SIGKILL" in answer["failed"]
        assert answer["refused"] == "rollout.addresses.small"
    assert [answer["again"] for answer in answers] == [len(answers[0]["requests"]), 0]
    assert [answer["statistics"] for answer in answers] == [["large", "small"], []]
    assert [answer["health"] for answer in answers] == [3, 0]
