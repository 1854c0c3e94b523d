"""A server that speaks as much of vLLM as the pool uses, draws tokens by hashing, and fails on demand.

    python fake_server.py --script script.json <vLLM's flags>

The script (JSON) says how to fail: name -> behaviour. A server on a socket is named after its folder (`s0-2`: the
second start of the first server), another by `--name`. A behaviour:

    die_after: n        SIGKILLs itself when so many completion requests have come
    engine_dies_after: n   kills its engine process then
    hang_after: n       answers no completion request after that many, and no /metrics either
    stop_after: n       stops the whole process (SIGSTOP) then
    rubbish_after: n    then answers `rubbish` of a kind
    rubbish: kind
    slow: seconds       for each completion, during which the counters move
    on_load: die | hang | error     what it does when it is to load weights
    exit: text          prints the text and ends with status 1 instead of starting
    delay: seconds      before it listens
    forget: true        says that it holds other weights than it was told
    structure, config   replace parts of what it says of itself
    segment: true       leaves shared memory behind

Each completion request is noted in `<script>.<name>.log` as a JSON line.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

END = 258
STRUCTURE = """{architecture}()(
  (model): Qwen3Model()(
    (embed_tokens): VocabParallelEmbedding(num_embeddings={vocab_size}, num_embeddings_per_partition=320, \
embedding_dim={hidden_size}, org_vocab_size={vocab_size}, num_embeddings_padded=320, tp_size=1)
    (layers): ModuleList()(
      (0{last}): {times}Qwen3DecoderLayer()(
        (self_attn): Qwen3Attention()(
        )
      )
    )
  )
)"""


def weights_digest(folder: Path) -> str:
    """Identity of the weights in a folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def draw(prompt: list[int], seed: int, digest: str, limit: int) -> tuple[list[int], list[float]]:
    """Tokens and log-probs that this prompt, seed and these weights always give."""
    tokens: list[int] = []
    while len(tokens) < limit:
        text = f"{list(prompt)} {seed} {digest} {len(tokens)}"
        value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        if value % 16 == 0:
            tokens.append(END)
            break
        tokens.append(value % 256)
    return tokens, [-1 - token / 1000 for token in tokens]


class State:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.name = options.name or Path(options.uds).parent.name
        self.behaviour = json.loads(Path(options.script).read_text()).get(self.name, {})
        self.log = Path(f"{options.script}.{self.name}.log")
        self.lock = threading.Lock()
        self.requests = 0
        self.counter = 0.0
        self.version = "default"
        self.digest = "none"
        self.hanging = False

    def due(self, what: str) -> bool:
        limit = self.behaviour.get(what)
        return limit is not None and self.requests > limit

    def note(self, **event) -> None:
        with self.lock, open(self.log, "a") as file:
            file.write(json.dumps({"pid": os.getpid(), **event}) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *arguments) -> None:
        pass

    def address_string(self) -> str:
        return "client"

    def reply(self, body, status: int = 200) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        state, path = self.state, self.path.partition("?")[0]
        if path == "/health":
            self.reply({})
        elif path == "/weight_info":
            self.reply({"weight_version": "other" if state.behaviour.get("forget") else state.version})
        elif path == "/metrics":
            if state.hanging:
                time.sleep(1000)
            self.reply(f'vllm:generation_tokens_total{{engine="0"}} {state.counter}\n'.encode())
        elif path == "/server_info" and not state.behaviour.get("no_dev_mode"):
            model = {
                "max_model_len": state.options.max_model_len,
                "logprobs_mode": state.options.logprobs_mode,
                "dtype": f"torch.{state.options.dtype}",
            }
            model |= state.behaviour.get("config", {})
            self.reply({"vllm_config": {"model_config": model, "weight_transfer_config": None}})
        else:
            self.reply({"error": {"message": "Not Found"}}, 404)

    def do_POST(self) -> None:
        state, path = self.state, self.path
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if path == "/v1/completions":
            self.complete(body)
        elif path == "/reset_prefix_cache":
            state.note(event="reset")
            self.reply({"success": True})
        elif path == "/update_weight_version":
            state.version = body["new_version"]
            self.reply({"success": True})
        elif path == "/collective_rpc" and not state.behaviour.get("no_dev_mode"):
            self.reply(*self.rpc(body["method"], body.get("kwargs", {})))
        elif path in (
            "/init_weight_transfer_engine",
            "/start_weight_update",
            "/update_weights",
            "/finish_weight_update",
        ):
            state.note(event=path[1:], body=body)
            self.reply({"message": "done"})
        else:
            self.reply({"error": {"message": "Not Found"}}, 404)

    def rpc(self, method: str, arguments: dict) -> tuple:
        state = self.state
        if method == "get_model_inspection":
            config = json.loads((Path(state.options.model) / "config.json").read_text())
            config |= state.behaviour.get("structure", {})
            layers = config["num_hidden_layers"]
            text = STRUCTURE.format(
                architecture=config["architectures"][0],
                vocab_size=config["vocab_size"],
                hidden_size=config["hidden_size"],
                last=f"-{layers - 1}" if layers > 1 else "",
                times=f"{layers} x " if layers > 1 else "",
            )
            return ({"results": [text]},)
        if method == "reload_weights":
            state.note(event="load")
            what = state.behaviour.get("on_load")
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "hang":
                time.sleep(1000)
            if what == "error":
                return {"error": {"message": "no such weights"}}, 500
            state.digest = weights_digest(Path(arguments["weights_path"]))
        return ({"results": [None]},)

    def complete(self, body: dict) -> None:
        state = self.state
        with state.lock:
            state.requests += 1
        state.note(event="ask", prompt=body["prompt"], seed=body["seed"], n=body["n"])
        if state.due("die_after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if state.due("engine_dies_after"):
            state.engine.kill()
            time.sleep(1000)
        if state.due("stop_after"):
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)  # the stop may reach this thread a moment later
        if state.due("hang_after"):
            state.hanging = True
            time.sleep(1000)
        slow = state.behaviour.get("slow", 0.0)
        for _ in range(int(slow * 20)):
            time.sleep(0.05)
            state.counter += 1
        choices = []
        for index in range(body["n"]):
            tokens, log_probs = draw(body["prompt"], body["seed"] + index, state.digest, body["max_tokens"])
            state.counter += len(tokens)
            finish = "stop" if tokens[-1] in body["stop_token_ids"] else "length"
            choices.append(
                {
                    "index": index,
                    "token_ids": tokens,
                    "finish_reason": finish,
                    "logprobs": {"token_logprobs": log_probs},
                }
            )
        answer = {"choices": choices}
        if state.due("rubbish_after"):
            spoil = RUBBISH[state.behaviour["rubbish"]]
            status, answer = spoil(answer)
            self.reply(answer, status)
            return
        self.reply(answer)
        state.note(event="answer", prompt=body["prompt"], seed=body["seed"], n=body["n"])


def spoiled(change):
    """An answer whose first sample is changed."""

    def spoil(answer: dict) -> tuple[int, dict]:
        change(answer["choices"][0])
        return 200, answer

    return spoil


RUBBISH = {
    "status": lambda answer: (500, {"error": {"message": "EngineCore encountered an issue"}}),
    "page": lambda answer: (200, b"<html>It works!</html>"),
    "list": lambda answer: (200, [answer]),
    "no choices": lambda answer: (200, {}),
    "too few": lambda answer: (200, {"choices": answer["choices"][1:]}),
    "too many": lambda answer: (200, {"choices": answer["choices"] * 2}),
    "order": spoiled(lambda choice: choice.update(index=7)),
    "outside": spoiled(lambda choice: choice["token_ids"].__setitem__(0, 10**6)),
    "negative": spoiled(lambda choice: choice["token_ids"].__setitem__(0, -1)),
    "text": spoiled(lambda choice: choice["token_ids"].__setitem__(0, "a")),
    "empty": spoiled(lambda choice: choice.update(token_ids=[], logprobs={"token_logprobs": []})),
    "no tokens": spoiled(lambda choice: choice.pop("token_ids")),
    "too long": spoiled(lambda choice: choice.update(token_ids=[1] * 99, logprobs={"token_logprobs": [-1.0] * 99})),
    "log-probs missing": spoiled(lambda choice: choice.pop("logprobs")),
    "log-probs short": spoiled(lambda choice: choice["logprobs"]["token_logprobs"].pop()),
    "not a number": spoiled(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, float("nan"))),
    "positive": spoiled(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, 0.01)),
    "aborted": spoiled(lambda choice: choice.update(finish_reason="abort")),
    "cut": spoiled(
        lambda choice: choice.update(token_ids=[1], logprobs={"token_logprobs": [-1.0]}, finish_reason="length")
    ),
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def server_bind(self) -> None:
        if self.address_family == socket.AF_UNIX:
            self.socket.bind(self.server_address)
            self.server_name, self.server_port = "socket", 0
        else:
            super().server_bind()

    def get_request(self):
        connection, address = super().get_request()
        return connection, address or ("client", 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", required=True)
    parser.add_argument("--name")
    parser.add_argument("--model", required=True)
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--max-model-len", type=int, default=64)
    parser.add_argument("--logprobs-mode", default="processed_logprobs")
    parser.add_argument("--dtype", default="float32")
    options, _ = parser.parse_known_args()
    state = Handler.state = State(options)
    if "exit" in state.behaviour:
        print(state.behaviour["exit"], flush=True)
        sys.exit(1)
    state.engine = subprocess.Popen(["VLLM::EngineCore", "1000"], executable="/bin/sleep")
    if state.behaviour.get("segment"):
        from multiprocessing.shared_memory import SharedMemory

        state.segment = SharedMemory(create=True, size=4096)
    time.sleep(state.behaviour.get("delay", 0.0))
    Server.address_family = socket.AF_UNIX if options.uds else socket.AF_INET
    server = Server(options.uds or ("127.0.0.1", options.port), Handler)
    state.note(event="up", port=server.server_port, segment=getattr(getattr(state, "segment", None), "name", None))
    print("listening", server.server_port, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: (state.engine.kill(), os._exit(0)))
    server.serve_forever()


if __name__ == "__main__":
    main()
