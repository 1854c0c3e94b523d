"""One vLLM engine for one branch, in this process, which is left as it was found.

Importing this module does not import vLLM.
"""

from __future__ import annotations

import gc
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import numpy
import torch

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.vllm_version import set_environment
from ruyi_rl.rollout.worker import RolloutFailed

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

SHORTAGES = (
    "No available memory for the cache blocks",
    "larger than the available KV cache",
    "is less than requested memory for kv",
    "is less than desired GPU memory utilization",
    "out of memory",
)
"""Parts of what vLLM and CUDA say where an engine does not fit."""


class Engine:
    """A vLLM engine whose calls leave this process's random states, threads, dtype and environment alone.

    Args:
        exit: the exit's name, for messages.
        arguments: of vLLM's `LLM`.
        beat: called with every step.

    Raises:
        Refusal: the engine does not fit into the memory that it is given.
    """

    living: ClassVar[WeakSet[Engine]] = WeakSet()
    """This process's engines that were not shut down: they share vLLM's groups of processes."""

    def __init__(self, exit: str, arguments: Mapping[str, Any], beat: Callable[[], None] = lambda: None):
        set_environment()
        from vllm import LLM

        self.beat = beat
        # Without a compiled model only small functions of the sampler would be compiled: 20 seconds for nothing.
        self.eager = bool(arguments.get("enforce_eager")) and not torch.cuda.is_available()
        self.threads: int | None = None
        with undisturbed(self.eager), in_process(), nothing_frozen(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
            try:
                self.llm: LLM = LLM(**arguments)
            except (ValueError, RuntimeError) as error:
                if not any(part in str(error) for part in SHORTAGES):
                    raise
                fixed = "kv_cache_memory_bytes" in arguments
                raise Refusal(
                    "rollout.kv_cache_gib" if fixed else "rollout.gpu_memory_utilization",
                    f"the engine of the exit {exit} does not fit: {error}",
                    "give it more, or set a smaller rollout.max_model_len",
                ) from error
            # What vLLM has chosen: compiled functions expect it, and it is what generates fastest.
            self.threads = torch.get_num_threads()
        # At the end of its life an engine would destroy the default process group, which is the trainer's.
        self.llm.llm_engine.engine_core._finalizer.detach()
        self.living.add(self)

    @property
    def model(self) -> torch.nn.Module:
        """vLLM's model of the branch."""
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes weights under their stock names, layer by layer, and forgets cached prefixes.

        Weights that do not come keep their values. The iterator is run to its end.

        Raises:
            RolloutFailed: requests are still running.
        """
        weights = iter(weights)
        with undisturbed(self.eager, self.threads):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            for _ in weights:
                pass
            forgotten = self.llm.reset_prefix_cache()
        if not forgotten:
            raise RolloutFailed("an engine still has unfinished requests, and cannot take new weights")

    def generate(self, prompts: Sequence[Sequence[int]], arguments: Sequence[Mapping[str, Any]]) -> list[RequestOutput]:
        """vLLM's outputs in the prompts' order.

        Args:
            prompts: (requests,) token ids.
            arguments: (requests,) of `SamplingParams`.
        """
        from vllm import SamplingParams

        with undisturbed(self.eager, self.threads), beating(self.llm.llm_engine, self.beat):
            return self.llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [SamplingParams(**each) for each in arguments],
                use_tqdm=False,
            )

    def sleep(self) -> None:
        """Moves the weights to host memory and drops the cache; GPUs alone."""
        self.llm.sleep(level=1)

    def wake(self, tag: str) -> None:
        """Brings back what sleeps under `weights` or `kv_cache`."""
        self.llm.wake_up(tags=[tag])

    def shut_down(self) -> None:
        """Ends the engine; after the last, `leave_groups` can end what they shared."""
        from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO

        for module in self.model.modules():
            LAYERWISE_INFO.pop(module, None)  # once reloaded, an entry holds its module, and would for ever
        core = self.llm.llm_engine.engine_core.engine_core
        core.structured_output_manager.clear_backend()
        with nothing_frozen():
            core.model_executor.shutdown()
        core.scheduler.shutdown()
        del self.llm
        self.living.discard(self)


@contextmanager
def beating(engine: Any, beat: Callable[[], None]) -> Iterator[None]:
    """Inside, each `engine.step()` is followed by a beat."""
    step = engine.step

    def stepped() -> Any:
        done = step()
        beat()
        return done

    engine.step = stepped
    try:
        yield
    finally:
        del engine.step  # its own again; an engine that holds itself would keep its memory when it is given up


def leave_groups() -> None:
    """Destroys the groups of processes that vLLM has made, and gives memory back; the default group stays."""
    from vllm.distributed import parallel_state

    parallel_state.destroy_model_parallel()
    if parallel_state._WORLD is not None:
        parallel_state._WORLD.destroy()
    parallel_state._WORLD = parallel_state._NODE_COUNT = None
    gc.collect()
    if torch.cuda.is_available():
        from vllm.device_allocator.cumem import CuMemAllocator

        if CuMemAllocator.instance is not None:
            CuMemAllocator.instance.release_pools()
        torch.cuda.empty_cache()


def enter_default_group() -> None:
    """Makes the default process group of a single process, which vLLM needs, where there is none.

    It stays for the rest of the process: another library may have come to use it when the engines are closed.
    """
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


@contextmanager
def in_process() -> Iterator[None]:
    """vLLM without processes of its own; afterwards the environment is as before, so that no child inherits vLLM's."""
    before = dict(os.environ)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the size that the engine is given
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def nothing_frozen() -> Iterator[None]:
    """What the garbage collector leaves out stays as it is.

    A new engine would freeze all objects of this process, the trainer's too, which then were never collected; one that
    ends would unfreeze also what the process has frozen for itself.
    """
    freeze, unfreeze = gc.freeze, gc.unfreeze
    gc.freeze = gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.freeze, gc.unfreeze = freeze, unfreeze


@contextmanager
def undisturbed(eager: bool, threads: int | None = None) -> Iterator[None]:
    """Restores what vLLM changes in the whole process.

    Args:
        eager: nothing is compiled inside.
        threads: torch's threads inside; None: as they are.
    """
    python, arrays, dtype = random.getstate(), numpy.random.get_state(), torch.get_default_dtype()
    set_threads, count = torch.set_num_threads, torch.get_num_threads()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    stance = torch.compiler.set_stance("force_eager") if eager else nullcontext()
    if threads is not None:
        set_threads(threads)
    try:
        with torch.random.fork_rng(devices=devices), stance:
            yield
    finally:
        torch.set_num_threads = set_threads  # the CPU worker replaces it by a function that does nothing
        if torch.get_num_threads() != count:
            set_threads(count)
        torch.set_default_dtype(dtype)
        numpy.random.set_state(arrays)
        random.setstate(python)
