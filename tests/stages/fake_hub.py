"""A hub on this machine: as much of its interface as an upload of small files needs, over real HTTP."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_a-token-of-the-fake-hub"


class FakeHub:
    """What was sent."""

    def __init__(self):
        self.private = {}
        """Repository -> whether it was made private."""
        self.files = {}
        """Repository -> path -> content."""
        self.messages = []
        self.asked = []
        """Paths, in order."""
        self.broken = None
        """Requests whose path holds this get a 500."""
        self.endpoint = None


@contextmanager
def fake_hub():
    """A hub that listens; `endpoint` is its address."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer(self.path.partition("?")[0], b"")

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(self.path.partition("?")[0], body)

    def _answer(self, path, body):
        self.hub.asked.append(path)
        if self.hub.broken and self.hub.broken in path:
            return self._send(400, {"error": "the disk of the hub is full"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if path == "/api/whoami-v2":
            return self._send(200, {"type": "user", "name": "me", "orgs": []})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.hub.private
            if not known:
                self.hub.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return self._send(409 if known else 200, {"url": f"{self.hub.endpoint}/{name}"})
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path.endswith("/tree/main"):
            known = self.hub.files.get(name, {})
            return self._send(200, [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in known])
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        if path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    self.hub.messages.append(entry["value"]["summary"])
                elif entry["key"] == "deletedFile":
                    del self.hub.files[name][entry["value"]["path"]]
                else:
                    value, stored = entry["value"], self.hub.files.setdefault(name, {})
                    stored[value["path"]] = base64.b64decode(value["content"])
            commit = {"commitUrl": f"{self.hub.endpoint}/{name}/commit/0", "commitOid": "0" * 40}
            return self._send(200, {**commit, "pullRequestUrl": None, "hookOutput": ""})
        return self._send(404, {"error": f"nothing at {path}"})

    def _send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
