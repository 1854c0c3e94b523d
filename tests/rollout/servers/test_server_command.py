import itertools
import json
import shlex
import subprocess
import sys

import pytest
import torch
from fakes import small_family, spec_of

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers.command import (
    OWNED,
    address_command,
    check_engine,
    command_line,
    gpu_shares,
    server_arguments,
    server_environment,
    threads_per_server,
)
from ruyi_rl.rollout.servers.exchange import branch_bytes
from ruyi_rl.rollout.servers.plan import check_memory, planned_servers, server_counts
from ruyi_rl.rollout.servers.process import complaint, how_ended
from ruyi_rl.rollout.servers.transport import meeting_point, resolved_transport, run_devices


@pytest.fixture(scope="module")
def family():
    return small_family()


@pytest.fixture
def spec(family, tmp_path):
    return spec_of(family, tmp_path)


def test_arguments_become_flags():
    arguments = {"max_num_seqs": 4, "enforce_eager": False, "a": True, "none": None, "c": {"x": 1}, "d": [1, "b"]}
    words = ["--max-num-seqs", "4", "--no-enforce-eager", "--a", "--c", '{"x": 1}', "--d", "1", "b"]
    assert command_line(arguments, "python") == ["python", "-m", "vllm.entrypoints.openai.api_server", *words]


@pytest.mark.parametrize("key", OWNED)
def test_what_the_run_decides_cannot_be_set(key):
    with pytest.raises(Refusal) as refused:
        check_engine({key: "x"})
    assert refused.value.key == f"rollout.engine.{key}"


def test_engine_arguments_replace_what_is_not_owned(spec):
    options = RolloutOptions(engine={"max_num_seqs": 3, "enforce_eager": False, "swap_space": 2})
    arguments = server_arguments(options, spec, "small", "folder", transport="files", cpu=True)
    assert {key: arguments[key] for key in options.engine} == options.engine
    assert arguments["dtype"] == "float32" and arguments["max_model_len"] == spec.max_model_len
    plain = server_arguments(RolloutOptions(), spec, "small", "folder", transport="files", cpu=True)
    assert plain["kv_cache_memory_bytes"] > arguments["kv_cache_memory_bytes"], "fewer sequences need a smaller cache"
    deeper = server_arguments(RolloutOptions(), spec, "large", "folder", transport="files", cpu=True)
    assert deeper["kv_cache_memory_bytes"] == 3 * plain["kv_cache_memory_bytes"]


def test_servers_that_share_a_gpu_share_its_memory(spec):
    assert gpu_shares([None]) == [1.0]
    assert gpu_shares([None, None, None]) == [1 / 3] * 3
    assert gpu_shares(["0", "1", "1"]) == [1.0, 0.5, 0.5]
    assert gpu_shares(["0,1", "1,2", "3"]) == [0.5, 0.5, 1.0]
    arguments = server_arguments(RolloutOptions(), spec, "small", "folder", transport="nccl", cpu=False, share=0.5)
    assert arguments["gpu_memory_utilization"] == 0.225
    assert arguments["weight_transfer_config"] == {"backend": "nccl"}
    assert "kv_cache_memory_bytes" not in arguments


def test_a_cache_without_room_is_refused(spec):
    options = RolloutOptions(kv_cache_gib=1e-6)
    with pytest.raises(Refusal) as refused:
        server_arguments(options, spec, "large", "folder", transport="files", cpu=True)
    assert refused.value.key == "rollout.kv_cache_gib"


def test_a_server_takes_itself_for_no_rank_of_the_run(tmp_path):
    run = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "x", "VLLM_CPU_KVCACHE_SPACE": "9", "HOME": "/h"}
    arguments = {"enforce_eager": True}
    server = server_environment(arguments, tmp_path, cpu=True, threads=2, devices="5", environment=run)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "VLLM_CPU_KVCACHE_SPACE"} & server.keys()
    assert server["HOME"] == "/h" and server["CUDA_VISIBLE_DEVICES"] == "5" and server["OMP_NUM_THREADS"] == "2"
    assert server["VLLM_SERVER_DEV_MODE"] == "1" and server["TMPDIR"] == str(tmp_path)


def test_threads_of_all_servers_fit_on_the_cores():
    assert [threads_per_server(8, servers, {}) for servers in (1, 2, 3, 20)] == [8, 4, 2, 1]
    assert threads_per_server(8, 2, {"OMP_NUM_THREADS": "1"}) == 1
    assert threads_per_server(8, 1, {"OMP_NUM_THREADS": "2", "WORLD_SIZE": "2"}) == 4


def test_the_command_for_an_address_can_be_typed(spec):
    options = RolloutOptions(engine={"max_num_seqs": 7})
    words = shlex.split(shlex.join(address_command(options, spec, "large", "exported/large", transport="nccl")))
    assert words[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    given = dict(itertools.pairwise(words))
    assert given["--model"] == "exported/large" and given["--logprobs-mode"] == "processed_logprobs"
    assert json.loads(given["--weight-transfer-config"]) == {"backend": "nccl"} and given["--max-num-seqs"] == "7"


def test_counts_of_servers(spec):
    assert server_counts(RolloutOptions(), spec) == {"small": 1, "large": 1}
    assert server_counts(RolloutOptions(workers={"large": 3}), spec) == {"small": 1, "large": 3}
    assert server_counts(RolloutOptions(addresses={"small": ["http://x"]}), spec) == {"small": 0, "large": 1}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"workers": {"smal": 2}}, "rollout.workers.smal"),
        ({"addresses": {"huge": ["http://x"]}}, "rollout.addresses.huge"),
        ({"workers": {"small": 0}}, "rollout.workers.small"),
        ({"workers": {"small": 2}, "addresses": {"small": ["http://x"]}}, "rollout.workers.small"),
        ({"devices": {"small": ["0", "1"]}}, "rollout.devices.small"),
    ],
)
def test_contradictions_are_refused(spec, options, key):
    with pytest.raises(Refusal) as refused:
        server_counts(RolloutOptions(**options), spec)
    assert refused.value.key == key


def test_more_servers_than_the_memory_holds_are_refused(spec):
    models = dict.fromkeys(spec.exits, spec.folder)
    counts = {"small": 2, "large": 1}
    plans = planned_servers(RolloutOptions(), spec, counts, models, transport="files", cpu=True)
    assert [plan.name for plan in plans] == ["small-0", "small-1", "large-0"]
    check_memory(spec, plans, 2**40)
    with pytest.raises(Refusal, match=r"3 servers take about 3\.\d GiB of memory, and 2\.0 are free"):
        check_memory(spec, plans, 2**31)


def test_the_size_of_a_branch_is_that_of_its_parameters(family, spec):
    for exit in family.exits:
        stock = family.branch(exit)
        assert branch_bytes(spec, exit) == sum(p.numel() * p.element_size() for p in stock.parameters())


def test_transport(monkeypatch):
    servers = {"small": 1, "large": 1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolved_transport(RolloutOptions(), servers) == "files"
    with pytest.raises(Refusal, match="has none"):
        resolved_transport(RolloutOptions(transport="nccl"), servers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    apart, shared = {"small": ["2"], "large": ["3"]}, {"small": ["2"], "large": ["1"]}
    assert resolved_transport(RolloutOptions(devices=apart), servers) == "nccl"
    assert resolved_transport(RolloutOptions(devices=apart, transport="files"), servers) == "files"
    assert resolved_transport(RolloutOptions(devices=shared), servers) == "files"
    assert resolved_transport(RolloutOptions(), servers) == "files"
    with pytest.raises(Refusal, match=r"rollout\.devices\.large"):
        resolved_transport(RolloutOptions(devices=shared, transport="nccl"), servers)
    given = RolloutOptions(addresses={"small": ["http://x"], "large": ["http://y"]})
    assert resolved_transport(given, {"small": 0, "large": 0}) == "files"
    given.transport = "nccl"
    assert resolved_transport(given, {"small": 0, "large": 0}) == "nccl"


def test_the_gpus_of_a_run():
    assert run_devices({}) == {"0"}
    assert run_devices({"LOCAL_WORLD_SIZE": "2"}) == {"0", "1"}
    assert run_devices({"CUDA_VISIBLE_DEVICES": "4,5,6", "LOCAL_WORLD_SIZE": "2"}) == {"4", "5"}


def test_a_meeting_point_is_on_this_machine():
    assert meeting_point(None)[0] == "127.0.0.1"
    address, port = meeting_point("127.0.0.1")
    assert address == "127.0.0.1" and port > 1023


@pytest.mark.slow
def test_importing_the_back_end_imports_no_vllm():
    code = "import sys, ruyi_rl.rollout.vllm_server; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LOG = """\
(APIServer pid=12) INFO 11-22 04:05:23 [launcher.py:69] Route: /pause, Methods: POST
(EngineCore pid=34) ERROR 11-22 04:18:59 [core.py:1673] Traceback (most recent call last):
(EngineCore pid=34) ERROR 11-22 04:18:59 [core.py:1673]     raise ValueError("x")
(EngineCore pid=34) ERROR 11-22 04:18:59 [core.py:1673] ValueError: no attention for heads of 8
Traceback (most recent call last):
  File "entry.py", line 1, in main
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_a_log_tells_its_root_cause():
    assert complaint(LOG) == "ValueError: no attention for heads of 8"
    assert complaint("usage: x\napi_server.py: error: unrecognized arguments: --foo\n").endswith("--foo")
    assert complaint("guardian: VLLM::EngineCore (7) died\n") == "guardian: VLLM::EngineCore (7) died"
    assert complaint("all is well\nError rates are low") == ""


def test_how_a_server_ended():
    assert how_ended(137) == "it was killed by SIGKILL"
    assert how_ended(1) == "it ended with status 1"
    assert how_ended(-15) == "its guardian was killed by SIGTERM"
    assert how_ended(99) == "a part of it died"
