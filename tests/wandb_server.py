"""A loopback stand-in for the W&B backend: enough for init, log, resume and finish of wandb 0.31.

Standard library only.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

ENTITY = {"id": "e", "name": "someone"}
NEW = {"upserts": 0, "exit_code": None, "preempting": False}


class WandbServer:
    """A context. `runs` holds what arrived, by run id; `bodies` every byte.

    `fault` spoils every answer: an HTTP status, "gone" (the connection is closed without a word) or
    "mute" (no answer comes).
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.bodies: list[bytes] = []
        self.unknown: list[str] = []
        self.fault: int | Literal["gone", "mute"] | None = None
        self.stop_pressed = False
        self.closing = threading.Event()
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                """Says nothing."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = (
                    gzip.decompress(body)
                    if self.headers.get("Content-Encoding") == "gzip"
                    else body
                )
                fault = server.fault
                if fault == "mute":
                    server.closing.wait()
                if isinstance(fault, str):
                    self.close_connection = True
                    return
                with server.lock:
                    server.bodies.append(self.path.encode() + body)
                    code, reply = (
                        (fault, {})
                        if fault
                        else server.reply(self.path, body, self.headers["Host"])
                    )
                text = json.dumps(reply).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The rows that were logged, in their order."""
        return [json.loads(line) for line in self.runs[run_id]["files"]["wandb-history.jsonl"]]

    def reply(self, path: str, body: bytes, host: str) -> tuple[int, dict[str, Any]]:
        if path.endswith("/graphql"):
            question = json.loads(body)
            name = (
                question.get("operationName")
                or re.findall(r"(?:query|mutation)\s+(\w+)", question["query"])[0]
            )
            answer = self.graphql(name, question.get("variables") or {}, host)
            if answer is None:
                self.unknown.append(name)
                return 400, {"errors": [{"message": f"no answer to {name}"}]}
            return 200, {"data": answer}
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            self.stream(self.runs[found[1]], json.loads(body))
            return 200, {"stopped": self.stop_pressed}
        return 200, {}

    def stream(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            lines, offset = run["files"][name], part.get("offset", 0)
            # a chunk sent again overwrites
            lines[offset : offset + len(part["content"])] = part["content"]
        run["preempting"] = sent.get("preempting") or run["preempting"]
        if sent.get("complete"):
            run["exit_code"] = sent.get("exitcode")

    def graphql(self, name: str, given: dict[str, Any], host: str) -> dict[str, Any] | None:
        if name == "Viewer":
            teams = {"edges": [{"node": {"name": "someone"}}]}
            return {
                "viewer": {
                    **ENTITY,
                    "entity": "someone",
                    "username": "someone",
                    "flags": "{}",
                    "teams": teams,
                    "admin": False,
                    "email": None,
                    "apiKeys": {"edges": []},
                }
            }
        if name in ("ServerInfo", "ServerFeaturesQuery", "ServerFeatures"):
            versions = {
                "cliVersionInfo": {"max_cli_version": "9.9.9"},
                "latestLocalVersionInfo": None,
                "features": [],
            }
            return {"viewer": ENTITY, "serverInfo": versions}
        if name == "UpsertBucket":
            run = self.runs.setdefault(given["name"], dict(NEW, config={}, files=defaultdict(list)))
            run["upserts"] += 1
            run["config"].update(json.loads(given.get("config") or "{}"))
            run.update({k: v for k, v in given.items() if k not in ("config",) and v is not None})
            return {
                "upsertBucket": {
                    "bucket": self.bucket(given["name"]),
                    "inserted": run["upserts"] == 1,
                }
            }
        if name in ("RunResumeStatus", "RunStatus"):
            bucket = self.bucket(given["name"]) if given.get("name") in self.runs else None
            return {
                "model": {
                    "id": "p",
                    "name": given.get("project"),
                    "entity": ENTITY,
                    "bucket": bucket,
                }
            }
        if name == "RunStoppedStatus":
            return {"project": {"run": {"stopped": self.stop_pressed}}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"http://{host}/blob/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        return {"entity": {"organization": None}} if name.startswith("Organization") else None

    def bucket(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        history, events, log = (
            run["files"][f] for f in ("wandb-history.jsonl", "wandb-events.jsonl", "output.log")
        )
        return {
            "id": base64.b64encode(run_id.encode()).decode(),
            "name": run_id,
            "displayName": run_id,
            "projectId": "1",
            "config": json.dumps(run["config"]),
            "sweepName": None,
            "summaryMetrics": "{}",
            "stopped": False,
            "state": "running",
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": len(log),
            "tags": [],
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "wandbConfig": '{"t": 1}',
            "project": {"id": "p", "name": run.get("project", "p"), "entity": ENTITY},
        }
