"""Sleeping engines: on a GPU where there is one, and everywhere by the order of their calls."""

import copy
import inspect
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.rollout import vllm as vllm_rollout
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.vllm import VllmRollout
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.rollout.worker import Request, RolloutSpec, Sampling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vllm():
    problem = vllm_problem() or import_problem()
    if problem:
        pytest.skip(problem)


class FakeEngine:
    """Writes down what is asked of it."""

    model = torch.nn.Module()

    def __init__(self, exit: str, log: list[str]):
        self.exit, self.log = exit, log

    def load(self, weights):
        self.log.append(f"load {self.exit}")

    def generate(self, prompts, arguments):
        self.log.append(f"generate {self.exit}")
        sample = SimpleNamespace(token_ids=[5], logprobs=[{5: SimpleNamespace(logprob=-1.0)}], finish_reason="stop")
        return [SimpleNamespace(outputs=[sample]) for _ in prompts]

    def sleep(self):
        self.log.append(f"sleep {self.exit}")

    def wake(self, tag):
        self.log.append(f"wake {tag} {self.exit}")

    def shut_down(self):
        self.log.append(f"shut down {self.exit}")


@pytest.fixture(scope="module")
def family():
    backbone = Qwen3Config(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
    )
    return Family.from_scratch(backbone, {"small": 0, "large": 1})


@pytest.mark.gpu
def test_engines_on_a_gpu(vllm, family, tmp_path):
    """Two syncs with sleep in between: right log-probs (in bfloat16), and memory that comes back."""
    family = copy.deepcopy(family).to("cuda", torch.bfloat16)
    spec = RolloutSpec(family.config, ("small", "large"), (1,), 0, torch.bfloat16, 64, tmp_path)
    rollout = VllmRollout(RolloutOptions(kv_cache_gib=1), spec)
    requests = [Request(exit, [3 + i, 5], i) for i in range(8) for exit in family.exits]
    free = torch.cuda.mem_get_info()[0]
    for _ in range(2):
        with torch.no_grad():
            for parameter in family.parameters():
                parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
        rollout.update_weights(family)
        rollout._wake("kv_cache")
        assert free - torch.cuda.mem_get_info()[0] > 2**30  # two caches
        completions = rollout.generate(requests, Sampling(8))
        assert abs(free - torch.cuda.mem_get_info()[0]) < 2**28
        for request, completion in zip(requests, completions, strict=True):
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]], device="cuda")
            with torch.no_grad():
                logits = family(ids, exits=request.exit).logits[request.exit][0, 1:-1].float()
            expected = logits.log_softmax(-1).gather(-1, ids[0, 2:, None])[:, 0]
            assert (expected.cpu() - torch.tensor(completion.log_probs)).abs().max() < 0.1
    rollout.close()


def test_completions_arrive_engine_by_engine(vllm, family, monkeypatch, tmp_path):
    monkeypatch.setattr(VllmRollout, "_engine", lambda self, exit, arguments, share: FakeEngine(exit, []))
    monkeypatch.setattr(vllm_rollout, "leave_groups", lambda: None)
    rollout = VllmRollout(
        RolloutOptions(), RolloutSpec(family.config, ("small", "large"), (1,), 0, torch.float32, 64, tmp_path)
    )
    seen = []
    requests = [Request(exit, [3], 1) for exit in ("small", "large", "small")]
    completions = rollout.generate(requests, Sampling(4), lambda places, done: seen.append((places, done)))
    assert [places for places, _ in seen] == [[1], [0, 2]]
    assert all(completions[place] is completion for places, done in seen for place, completion in zip(places, done))
    rollout.close()


def test_engines_sleep_but_while_they_work(vllm, family, monkeypatch, tmp_path):
    log: list[str] = []

    def taken() -> list[str]:
        lines = log.copy()
        log.clear()
        return lines

    monkeypatch.setattr(VllmRollout, "_engine", lambda self, exit, arguments, share: FakeEngine(exit, log))
    monkeypatch.setattr(vllm_rollout, "leave_groups", lambda: log.append("leave groups"))
    spec = RolloutSpec(family.config, ("small", "large"), (1,), 0, torch.float32, 64, tmp_path)
    rollout = VllmRollout(RolloutOptions(), spec)
    assert taken() == []  # on a CPU nothing sleeps
    rollout._sleeps = True
    rollout._sleep()
    assert taken() == ["sleep large", "sleep small"]
    rollout.update_weights(family)
    assert taken() == ["wake weights large", "wake weights small", "load large", "load small"]
    requests = [Request(exit, [3], 1) for exit in ("small", "large", "small")]
    rollout.generate(requests, Sampling(4))
    works = ["generate large", "generate small"]
    sleeps = ["sleep large", "sleep small"]
    assert taken() == ["wake kv_cache large", "wake kv_cache small", *works, *sleeps]
    rollout.generate(requests, Sampling(4))
    wakes = [f"wake {tag} {exit}" for tag in ("weights", "kv_cache") for exit in ("large", "small")]
    assert taken() == [*wakes, *works, *sleeps]

    @contextmanager
    def held():
        log.append("hold pools")
        yield
        log.append("put pools back")

    from ruyi_rl.rollout import gpu_worker

    monkeypatch.setattr(gpu_worker, "pools_held", held)
    rollout.close()
    rollout.close()
    assert taken() == [*wakes, "hold pools", "shut down large", "shut down small", "put pools back", "leave groups"]


class FakeAllocator:
    """Keeps the books as vLLM's: a pool replaces another of the same tag."""

    def __init__(self):
        self.allocator_and_pools: dict[str, object] = {}
        self.released: list[object] = []

    @contextmanager
    def use_memory_pool(self, tag):
        self.allocator_and_pools[tag] = object()
        yield

    def release_pools(self):
        self.released += self.allocator_and_pools.values()
        self.allocator_and_pools.clear()


def test_pools_of_several_engines(vllm, monkeypatch):
    from ruyi_rl.rollout import gpu_worker

    allocator = FakeAllocator()
    monkeypatch.setattr(gpu_worker, "get_mem_allocator_instance", lambda: allocator)
    worker = gpu_worker.SleepingWorker.__new__(gpu_worker.SleepingWorker)
    worker.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=True))
    made = []
    for _ in range(3):
        for tag in ("weights", "kv_cache"):
            with worker._maybe_get_memory_pool_context(tag):
                made.append(allocator.allocator_and_pools[tag])
    assert len(made) == 6 and set(allocator.allocator_and_pools.values()) == set(made)
    with gpu_worker.pools_held():
        for _ in range(3):
            allocator.release_pools()  # as each engine does when it shuts down
        assert allocator.released == []
    assert set(allocator.allocator_and_pools.values()) == set(made)


def test_the_worker_overrides_what_vllm_has(vllm):
    """Another version of vLLM may name it otherwise; the assertion that it replaces would then come back."""
    from vllm.device_allocator.cumem import CuMemAllocator
    from vllm.v1.worker.gpu_worker import Worker

    from ruyi_rl.rollout.gpu_worker import SleepingWorker

    theirs, ours = (cls._maybe_get_memory_pool_context for cls in (Worker, SleepingWorker))
    assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)
    assert "_maybe_get_memory_pool_context" in inspect.getsource(Worker.load_model)
    assert "allocator_and_pools[tag]" in inspect.getsource(CuMemAllocator.use_memory_pool)
