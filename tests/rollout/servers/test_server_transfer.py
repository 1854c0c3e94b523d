"""What goes into vLLM's NCCL sender and what it says to the servers; the sending itself needs GPUs."""

import threading

import fake_server
import pytest
import torch
from fakes import SAMPLING, requests_of, small_family

from ruyi_rl.rollout.servers.transfer import BranchSource, Sender
from ruyi_rl.rollout.servers.worker import Worker
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.rollout.weights import branch_layout, branch_tensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nccl():
    if problem := vllm_problem() or import_problem():
        pytest.skip(problem)
    return pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")


def fed(source, family, layout):
    """A thread that feeds a source as a rank does."""

    def feed():
        for item in branch_tensors(family, layout):
            assert source.put(item, 10)
        assert source.put(None, 10)

    source.begin()
    thread = threading.Thread(target=feed)
    thread.start()
    return thread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metadata_agrees_with_what_comes(nccl, dtype):
    """vLLM sizes the receiver's buffers from one and sends the other: checked with vLLM's own comparison."""
    family = small_family()
    for exit in family.exits:
        layout = branch_layout(family.config, exit)
        source = BranchSource(layout, dtype)
        stock = dict(family.branch(exit).named_parameters())
        for _ in range(2):
            thread = fed(source, family, layout)
            checked = nccl.NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata())
            sent = {name: tensor.clone() for name, tensor in checked}
            thread.join()
            assert list(sent) == [tensor.name for tensor in layout]
            assert all(torch.equal(sent[name], stock[name].to(dtype)) for name in sent)
    thread = fed(source, family, layout[:-1])
    with pytest.raises(ValueError, match="declared"):
        list(nccl.NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata()))
    thread.join()


def test_nobody_waits_for_a_worker_that_takes_nothing(nccl, monkeypatch):
    family = small_family()
    layout = branch_layout(family.config, "large")

    class Stuck:
        @classmethod
        def trainer_init(cls, info, client, source):
            threading.Event().wait()

    monkeypatch.setattr(nccl, "NCCLTrainerWeightTransferEngine", Stuck)
    sender = Sender(Worker("large", "large-0", address="http://127.0.0.1:9"), layout, torch.float32, 0.5)
    sender.begin()
    for item in branch_tensors(family, layout):
        sender.feed(item)
    sender.end()
    assert "took no weights for 0.5 s" in sender.problem


def fake_sender(nccl, monkeypatch, refusing=()):
    """vLLM's sender with everything but NCCL: it runs the same calls, and drops the tensors.

    Args:
        refusing: numbers of the transfers that fail.
    """
    sent = []

    class FakeSender(nccl.NCCLTrainerWeightTransferEngine):
        def _broadcast(self, source, meta):
            if len(sent) in refusing:
                sent.append(None)
                raise RuntimeError("NCCL error: remote process exited")
            sent.append({name: tensor.clone() for name, tensor in self._checked_iter(source, meta)})

    class Group:
        def destroy(self):
            pass

    monkeypatch.setattr(nccl, "open_trainer_endpoint", lambda info: Group())
    monkeypatch.setattr(nccl, "NCCLTrainerWeightTransferEngine", FakeSender)
    monkeypatch.setattr("ruyi_rl.rollout.vllm_server.resolved_transport", lambda options, servers: "nccl")
    return sent


def test_servers_are_told_in_vllms_order(nccl, monkeypatch, open_pool):
    sent = fake_sender(nccl, monkeypatch)
    pool = open_pool(workers={"small": 2})
    for _ in range(2):
        pool.step()
        pool.sync()
        pool.rollout.generate(requests_of(("small", "large")), SAMPLING)
    assert len(sent) == 6
    stock = dict(pool.family.branch("large").named_parameters())
    latest = max((weights for weights in sent), key=len)
    assert set(latest) == set(stock)
    for name in ("s0-1", "s1-1", "s2-1"):
        assert len(pool.events(name, "init_weight_transfer_engine")) == 1
        info = pool.events(name, "init_weight_transfer_engine")[0]["body"]["init_info"]
        assert info["rank_offset"] == 1 and info["world_size"] == 2 and info["master_address"] == "127.0.0.1"
        for step in ("start_weight_update", "update_weights", "finish_weight_update", "reset"):
            assert len(pool.events(name, step)) == 2
        assert not pool.events(name, "load")
    names = pool.events("s2-1", "update_weights")[0]["body"]["update_info"]["names"]
    assert names == [tensor.name for tensor in branch_layout(pool.family.config, "large")]


def test_a_worker_that_fails_to_take_weights_is_started_anew(nccl, monkeypatch, open_pool):
    sent = fake_sender(nccl, monkeypatch, refusing={2})
    pool = open_pool()
    pool.sync()
    pool.sync()
    assert "NCCL error: remote process exited" in pool.lines[0]
    pool.rollout.generate(requests_of(("small", "large")), SAMPLING)
    assert pool.failures() == 1 and len(sent) == 5
    assert len(pool.events("s0-2", "init_weight_transfer_engine")) == 1, "its group died with it"


def test_the_only_worker_of_an_exit_gets_weights_in_the_middle_of_generating(nccl, monkeypatch, open_pool):
    sent = fake_sender(nccl, monkeypatch)
    pool = open_pool({"s0-1": {"die_after": 2}})
    pool.sync()
    requests = requests_of(("small", "large"))
    completions = pool.rollout.generate(requests, SAMPLING)
    assert len(sent) == 3 and pool.failures() == 1
    # The tensors have not come to the fakes, so they draw as they were started.
    for request, completion in zip(requests, completions, strict=True):
        drawn = fake_server.draw(list(request.prompt_ids), request.seed, "none", SAMPLING.max_new_tokens)
        assert (completion.token_ids, completion.log_probs) == drawn
