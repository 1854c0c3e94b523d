import os
import signal
import subprocess
import sys
import time

import fake_server
import pytest
from fakes import FakePool

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.servers.addresses import Structure, is_here, structure_of
from ruyi_rl.rollout.weights import write_branch_config
from ruyi_rl.rollout.worker import RolloutFailed

slow = pytest.mark.slow

# As vLLM 0.31 prints a Qwen3 of five layers with a vocabulary of 267.
PRINT = """Qwen3ForCausalLM()(
  (model): Qwen3Model()(
    (embed_tokens): VocabParallelEmbedding(num_embeddings=267, num_embeddings_per_partition=320, embedding_dim=128, \
org_vocab_size=267, num_embeddings_padded=320, tp_size=1)
    (layers): ModuleList()(
      (0-4): 5 x Qwen3DecoderLayer()(
        (self_attn): Qwen3Attention()(
          (qkv_proj): QKVParallelLinear(in_features=128, output_features=256, bias=False, tp_size=1)
        )
      )
    )
    (norm): RMSNorm(hidden_size=128, eps=1e-06)
  )
  (lm_head): ParallelLMHead(num_embeddings=267, embedding_dim=128, org_vocab_size=267)
)"""


def test_vllms_print_of_a_model_tells_its_shape():
    assert structure_of(PRINT) == Structure("Qwen3ForCausalLM", 5, 128, 267)
    one = PRINT.replace("(0-4): 5 x Qwen3DecoderLayer", "(0): Qwen3DecoderLayer")
    assert structure_of(one) == Structure("Qwen3ForCausalLM", 1, 128, 267)
    mixed = PRINT.replace("(0-4): 5 x", "(0-2): 3 x").replace(
        "    (norm)", "      (3): Qwen3DecoderLayer()(\n      )\n    (norm)"
    )
    assert structure_of(mixed).layers == 4
    assert structure_of("LlamaForCausalLM()") is None


def test_this_machine():
    assert all(map(is_here, ("localhost", "127.0.0.1", "127.3.4.5", "::1")))
    assert not any(map(is_here, ("10.1.2.3", "gpu-node-7", "")))


class Given:
    """Servers that somebody else has started."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        self.script = folder / "script.json"

    def start(self, exit, name, *flags, port=0):
        config = self.folder / exit
        words = ["--script", str(self.script), "--name", name, "--model", str(config), "--port", str(port), *flags]
        process = subprocess.Popen(
            [sys.executable, fake_server.__file__, *words], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.processes[name] = process
        port = int(process.stdout.readline().split()[1])
        return f"http://127.0.0.1:{port}"

    def kill(self, name):
        os.killpg(self.processes.pop(name).pid, signal.SIGKILL)


@pytest.fixture
def given(tmp_path):
    from fakes import small_family, spec_of

    spec = spec_of(small_family(), tmp_path)
    for exit in spec.exits:
        write_branch_config(spec.config, exit, tmp_path / exit, spec.dtype)
    servers = Given(tmp_path)
    servers.script.write_text("{}")
    yield servers
    for name in list(servers.processes):
        servers.kill(name)


def opened(given, open_pool, script=None, start=(), **options):
    """A pool whose exit `small` is served by given servers."""
    import json

    given.script.write_text(json.dumps(script or {}))
    urls = [given.start("small", name, *flags) for name, flags in start]
    return open_pool(script, addresses={"small": urls}, **options)


@slow
def test_given_servers_are_used_and_left_running(given, open_pool):
    pool = opened(given, open_pool, start=[("a", ()), ("b", ())])
    pool.sync()
    pool.check()
    pool.step()
    pool.sync()
    pool.check()
    assert pool.events("a") and pool.events("b")
    pool.rollout.close()
    assert all(process.poll() is None for process in given.processes.values())


@slow
@pytest.mark.parametrize(
    ("behaviour", "flags", "words"),
    [
        ({"structure": {"num_hidden_layers": 4}}, (), ("another model", "4 layers", "1 layers")),
        ({"structure": {"hidden_size": 17}}, (), ("another model", "hidden size 17", "hidden size 16")),
        ({"structure": {"architectures": ["LlamaForCausalLM"]}}, (), ("another model", "Llama")),
        ({"no_dev_mode": True}, (), ("take no weights", "VLLM_SERVER_DEV_MODE=1")),
        ({}, ("--max-model-len", "63"), ("takes 63 tokens", "may have 64", "--max-model-len 64")),
        ({}, ("--logprobs-mode", "raw_logprobs"), ("raw_logprobs", "--logprobs-mode processed_logprobs")),
        ({}, ("--dtype", "bfloat16"), ("torch.bfloat16 instead of float32", "--dtype float32")),
    ],
)
def test_a_server_that_cannot_serve_the_exit_is_refused(given, open_pool, behaviour, flags, words):
    with pytest.raises(Refusal) as refused:
        opened(given, open_pool, {"a": behaviour}, [("a", flags)])
    assert refused.value.key == "rollout.addresses.small"
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (["http://127.0.0.1:9"], ("does not answer", "VLLM_SERVER_DEV_MODE=1 python -m vllm", "--max-model-len 64")),
        (["127.0.0.1:9"], ("no base URL",)),
        (["http://127.0.0.1:9", "http://127.0.0.1:9/"], ("already",)),
    ],
)
def test_an_address_that_is_none_is_refused(open_pool, urls, words):
    with pytest.raises(Refusal) as refused:
        open_pool(addresses={"small": urls, "large": ["http://127.0.0.1:10"]})
    assert refused.value.key == "rollout.addresses.small"
    assert all(word in str(refused.value) for word in words), refused.value


def test_weights_for_another_machine_need_a_shared_folder(tmp_path):
    with pytest.raises(Refusal) as refused:
        FakePool(tmp_path, addresses={"small": ["http://10.0.0.1:8000"]})
    assert refused.value.key == "rollout.exchange"


@slow
def test_a_given_server_that_restarts_by_itself_gets_the_current_weights(given, open_pool):
    pool = opened(given, open_pool, start=[("a", ())])
    pool.sync()
    pool.check()
    port = int(pool.rollout._pool.workers[-1].address.rpartition(":")[2])
    given.kill("a")
    time.sleep(0.1)
    given.start("small", "b", port=port)
    pool.check()
    assert pool.failures() == 1
    assert "it has restarted: it holds the weights default" in pool.lines[0]


@slow
def test_another_model_behind_an_address_is_not_used(given, open_pool):
    pool = opened(given, open_pool, {"b": {"structure": {"num_hidden_layers": 4}}}, [("a", ())], start_timeout=1.5)
    pool.sync()
    port = int(pool.rollout._pool.workers[-1].address.rpartition(":")[2])
    given.kill("a")
    time.sleep(0.1)
    given.start("small", "b", port=port)
    with pytest.raises(RolloutFailed, match=r"no worker of the exit small is left(?s:.*)serves another model"):
        pool.check()


@slow
def test_a_given_server_that_dies_leaves_its_requests_to_the_other(given, open_pool):
    pool = opened(given, open_pool, {"a": {"die_after": 1}}, [("a", ()), ("b", ())], start_timeout=2.0)
    pool.sync()
    pool.check()
    assert pool.failures() == 1
    for _ in range(2):
        pool.step()
        pool.sync()
        pool.check()
    assert pool.failures() == 0


@slow
def test_the_last_given_server_is_waited_for(given, open_pool):
    pool = opened(given, open_pool, {"a": {"die_after": 1}}, [("a", ())], start_timeout=1.5)
    pool.sync()
    started = time.monotonic()
    with pytest.raises(RolloutFailed, match=r"no worker of the exit small is left(?s:.*)does not answer"):
        pool.check()
    assert 1.5 < time.monotonic() - started < 10
