"""Real vLLM servers: log-probs, tokens, seeds, and real processes killed in the middle of their work."""

import os
import signal
import threading
import time

import pytest
import torch
from fakes import children, gone
from transformers import Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers import guardian
from ruyi_rl.rollout.vllm_server import VllmServerRollout
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.rollout.worker import Request, RolloutSpec, Sampling

pytestmark = pytest.mark.slow
END = 258


@pytest.fixture
def family():
    """Tied heads: vLLM's CPU build keeps a packed copy of them, which a sync has to renew."""
    torch.manual_seed(0)
    backbone = Qwen3Config(
        vocab_size=267,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        pad_token_id=256,
        eos_token_id=END,
        initializer_range=0.15,
        tie_word_embeddings=True,
    )
    return Family.from_scratch(backbone, {"small": 1, "large": 3})


@pytest.fixture
def rollout(family, tmp_path):
    if problem := vllm_problem() or import_problem():
        pytest.skip(problem)
    spec = RolloutSpec(family.config, tuple(family.exits), (END,), 256, torch.float32, 512, tmp_path)
    # Other tests of this process may have left children that live as long as it does, such as multiprocessing's.
    before = set(guardian.children(os.getpid()))
    rollout = VllmServerRollout(RolloutOptions(workers={"small": 2}), spec)
    rollout.update_weights(family)
    yield rollout
    started = [process for pid in set(guardian.children(os.getpid())) - before for process in (pid, *children(pid))]
    segments = guardian.shared_memory(started)
    rollout.close()
    assert len(started) >= 9 and gone(started)
    assert not any(folder.exists() for folder in rollout._exchange.folders)
    assert segments and not any(segment.exists() for segment in segments)


def requests_of(family, prompts=6, samples=4):
    return [
        Request(exit, (65 + prompt, 66, 70 + prompt), seed=10**12 * prompt + sample)
        for exit in family.exits
        for prompt in range(prompts)
        for sample in range(samples)
    ]


def check_log_probs(family, requests, completions, temperature=1.0):
    """The engine's against the family's own, both of the distribution that was sampled from."""
    errors = []
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = (family(ids, exits=request.exit).logits[request.exit][0] / temperature).log_softmax(-1)
        first = len(request.prompt_ids) - 1
        for place, (token, reported) in enumerate(zip(completion.token_ids, completion.log_probs, strict=True)):
            errors.append(abs(logits[first + place, token].item() - reported))
    assert max(errors) <= 1e-4 and sum(errors) / len(errors) <= 1e-5


def log_probs_are_the_familys_before_and_after_a_sync(rollout, family):
    requests = requests_of(family)
    before = rollout.generate(requests, Sampling(24))
    check_log_probs(family, requests, before)
    assert {completion.finished for completion in before} == {True, False}
    for _ in range(2):
        with torch.no_grad():
            for parameter in family.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        rollout.update_weights(family)
        after = rollout.generate(requests, Sampling(24))
        check_log_probs(family, requests, after)
    assert after != before


def greedy_tokens_are_the_stock_branchs(rollout, family):
    requests = requests_of(family, samples=1)
    for request, completion in zip(requests, rollout.generate(requests, Sampling(16, temperature=0)), strict=True):
        ids = torch.tensor([request.prompt_ids])
        stock = family.branch(request.exit)
        alone = stock.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=END)[0, ids.shape[1] :].tolist()
        assert completion.token_ids == alone
        assert completion.finished == (alone[-1] == END)


def a_seed_decides_whichever_worker_and_batch(rollout, family):
    """Also a sample's place among the samples of its prompt."""
    requests = requests_of(family)
    together = rollout.generate(requests, Sampling(16))
    order = torch.randperm(len(requests)).tolist()
    shuffled = rollout.generate([requests[place] for place in order], Sampling(16))
    alone = [rollout.generate([request], Sampling(16))[0] for request in requests[::7]]
    assert [together[place].token_ids for place in order] == [completion.token_ids for completion in shuffled]
    assert [completion.token_ids for completion in together[::7]] == [completion.token_ids for completion in alone]
    assert len({tuple(completion.token_ids) for completion in together}) > len(requests) // 2


def processes(rollout, worker, name):
    """The processes of a worker whose command line holds `name`."""
    (mine,) = (each for each in rollout._pool.workers if each.name == worker)
    return [pid for pid in children(mine.server._guardian.pid) if name in guardian.process_name(pid)]


def killed_processes_cost_no_sample(rollout, family):
    """The engine of one exit's only server, and a server with a mate, in the middle of long completions."""
    requests = requests_of(family, samples=8)
    # Draws that end late, so that the kill comes before the answers.
    sampling = Sampling(500, temperature=0.3)
    expected = rollout.generate(requests, sampling)
    rollout.statistics()
    (engine,) = processes(rollout, "large-0", "VLLM::EngineCore")
    (server,) = processes(rollout, "small-1", "vllm.entrypoints")

    def kill() -> None:
        time.sleep(0.3)
        os.kill(engine, signal.SIGKILL)
        os.kill(server, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    completions = rollout.generate(requests, sampling)
    killer.join()
    statistics = rollout.statistics()
    assert statistics["large"].failures == statistics["small"].failures == 1
    assert len(completions) == len(requests)
    check_log_probs(family, requests[::8], completions[::8], temperature=0.3)
    # Rounding may move a draw on the edge between two tokens where a batch is another.
    same = sum(new.token_ids == old.token_ids for new, old in zip(completions, expected, strict=True))
    assert same >= 0.9 * len(requests)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    rollout.update_weights(family)
    requests = requests_of(family)
    check_log_probs(family, requests, rollout.generate(requests, Sampling(24)))
    deadline = time.monotonic() + 120  # a mate has answered: the server that was started anew may not be up yet
    while not all(worker.alive for worker in rollout.health()):
        assert time.monotonic() < deadline, rollout.health()
        time.sleep(0.5)


def test_a_pool_of_real_servers(rollout, family):
    """One test, because each further worker of the test run would start servers of its own."""
    log_probs_are_the_familys_before_and_after_a_sync(rollout, family)
    greedy_tokens_are_the_stock_branchs(rollout, family)
    a_seed_decides_whichever_worker_and_batch(rollout, family)
    killed_processes_cost_no_sample(rollout, family)
