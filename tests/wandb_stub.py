"""A local server that speaks enough of W&B's protocol for its online mode, and keeps all."""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4
ENTITY = "painters"


@dataclass
class StubRun:
    """What the server knows of one run.

    Attributes:
        rows: The history, in the order of arrival.
        summary: The newest summary.
        config: The config.
        names: The display names that were sent.
        uploads: The content of each uploaded file by its path in the run.
        system: The rows of W&B's own system metrics.
        exits: The exit codes of the ends that were reported.
        project: Name of the project.
        sweep: Id of the sweep; empty without one.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    system: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    project: str = ""
    sweep: str = ""

    @property
    def steps(self) -> list[int]:
        """The steps of the history in the order of arrival."""
        return [row["_step"] for row in self.rows]

    @property
    def last_step(self) -> int:
        """The last step of the history; -1 without one."""
        return max(self.steps, default=-1)


@dataclass
class StubArtifact:
    """An artifact: its name and type, the aliases, the entries of its manifest, and its users."""

    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    digest: str
    of_run: str
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    is_committed: bool = False
    used_by: list[str] = field(default_factory=list)


class WandbStub:
    """The server, on a port of the loopback interface that the system chooses.

    Attributes:
        runs: The runs by id.
        artifacts: The artifacts by the id that the server gave them.
        alerts: Title and text of each alert.
        operations: The names of all GraphQL operations, in order.
        is_down: Refuse everything with status 503, as in an outage.
        wrong_key: Refuse everything with status 401.
        refused: Number of requests that were refused.
        delay_s: Time before each answer.
        sweep_yaml: The config of the one sweep.
        trials: The parameters of each of its trials, by the id of the run.
    """

    def __init__(self):
        self.runs: dict[str, StubRun] = {}
        self.artifacts: dict[str, StubArtifact] = {}
        self.alerts: list[tuple[str, str]] = []
        self.operations: list[str] = []
        self.is_down = self.wrong_key = False
        self.refused = 0
        self.delay_s = 0.0
        self.sweep_yaml = ""
        self.trials: dict[str, dict[str, Any]] = {}
        self._started: list[str] = []
        self.lock = threading.RLock()
        handler = type("StubHandler", (_Handler,), {"stub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "WandbStub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables with which W&B uses this server."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # second, instead of 15
        }

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL operation."""
        match = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = match[1] if match else "anonymous"
        with self.lock:
            self.operations.append(name)
            method = getattr(self, f"_on_{_snake(name)}", None)
            return method(variables) if method else {}

    def add_rows(self, run_id: str, body: dict[str, Any]) -> None:
        """Store what a file stream sends: parts of files at offsets, and the end of the run."""
        with self.lock:
            run = self.runs[run_id]
            for name, part in body.get("files", {}).items():
                if name == "wandb-history.jsonl":
                    at = part["offset"]
                    assert at <= len(run.rows), "rows are missing"
                    run.rows[at : at + len(part["content"])] = map(json.loads, part["content"])
                elif name == "wandb-summary.json":
                    run.summary = json.loads(part["content"][-1])
                elif name == "wandb-events.jsonl":
                    run.system += part["content"]
            if body.get("complete"):
                run.exits.append(body["exitcode"])

    def _on_viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "username": ENTITY, "entity": ENTITY, "email": "",
                           "flags": "{}", "teams": {"edges": []}, "name": ENTITY}}  # fmt: skip

    def _on_run_resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": None}
        return {"model": {
            "id": "model", "name": run.project, "entity": {"id": "e", "name": ENTITY},
            "bucket": {
                "id": f"id-{variables['name']}", "name": variables["name"],
                "displayName": run.names[-1] if run.names else "", "tags": [],
                "summaryMetrics": json.dumps(run.summary),
                "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
                "historyLineCount": len(run.rows),
                "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
                "eventsLineCount": len(run.system),
                "eventsTail": json.dumps(run.system[-1:]),
                "logLineCount": 0, "wandbConfig": "{\"t\": 1}",
            },
        }}  # fmt: skip

    def _on_upsert_bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        is_new = name not in self.runs
        run = self.runs.setdefault(name, StubRun())
        if config := variables.get("config"):
            parsed = {k: v.get("value") for k, v in json.loads(config).items()}
            run.config |= {k: v for k, v in parsed.items() if k != "_wandb"}
        if variables.get("displayName"):
            run.names.append(variables["displayName"])
        run.project = variables.get("project") or run.project
        run.sweep = variables.get("sweep") or run.sweep
        return {"upsertBucket": {"inserted": is_new, "bucket": {
            "id": f"id-{name}", "name": name, "displayName": run.names[-1] if run.names else name,
            "description": "", "config": "{}", "sweepName": run.sweep or None,
            "historyLineCount": len(run.rows),
            "project": {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}},
        }}}  # fmt: skip

    def _on_create_run_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables.get("run") or variables.get("runName")
        return {"createRunFiles": {
            "runID": f"id-{run}", "uploadHeaders": [],
            "files": [
                {"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"}
                for name in variables["files"]
            ],
        }}  # fmt: skip

    def _on_notify_scriptable_run_alert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append((variables["title"], variables["text"]))
        return {"notifyScriptableRunAlert": {"success": True}}

    def _on_create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        fields = variables.get("input", variables)
        found = [
            (known, artifact) for known, artifact in self.artifacts.items()
            if (artifact.digest, artifact.name)
            == (fields["digest"], fields["artifactCollectionName"])
        ]  # fmt: skip
        if found:
            number = found[0][0]
        else:
            number = base64.b64encode(f"artifact-{len(self.artifacts)}".encode()).decode()
            self.artifacts[number] = StubArtifact(
                name=fields["artifactCollectionName"],
                type=fields["artifactTypeName"],
                aliases=[alias["alias"] for alias in fields.get("aliases") or []],
                metadata=json.loads(fields.get("metadata") or "{}"),
                digest=fields["digest"],
                of_run=fields["runName"],
            )
        state = "COMMITTED" if self.artifacts[number].is_committed else "PENDING"
        return {"createArtifact": {"artifact": {
            "id": number, "state": state,
            "artifactSequence": {"id": "s", "latestArtifact": None},
        }}}  # fmt: skip

    def _on_create_artifact_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        fields = variables.get("input", variables)
        number = fields["artifactID"]
        return {"createArtifactManifest": {"artifactManifest": {"id": f"m-{number}", "file": {
            "id": "f", "name": "wandb_manifest.json", "displayName": "wandb_manifest.json",
            "uploadUrl": f"{self.url}/manifest/{number}", "uploadHeaders": [],
        }}}}  # fmt: skip

    _on_update_artifact_manifest = _on_create_artifact_manifest

    def _on_create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "name": file["name"], "displayName": file["name"], "storagePath": file["name"],
                "uploadUrl": f"{self.url}/blob/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [], "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in variables["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _on_commit_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables["artifactID"]
        self.artifacts[number].is_committed = True
        return {"commitArtifact": {"artifact": {"id": number, "digest": "d"}}}

    def _on_artifact_type(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _on_artifact_by_i_d(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[variables["id"]]
        project = {"id": "p", "internalId": "p", "name": "p", "entity": {"name": ENTITY}}
        return {"artifact": {
            "__typename": "Artifact", "id": variables["id"], "versionIndex": 0,
            "artifactSequence": {
                "__typename": "ArtifactSequence", "name": artifact.name, "project": project,
            },
            "artifactType": {"name": artifact.type}, "description": None, "metadata": "{}",
            "ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [], "historyStep": None,
            "state": "COMMITTED", "size": 0, "digest": artifact.digest, "commitHash": "0",
            "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": [],
        }}  # fmt: skip

    def _on_use_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        fields = variables.get("input", variables)
        self.artifacts[fields["artifactID"]].used_by.append(fields["runName"])
        return {"useArtifact": {"artifact": {"id": fields["artifactID"]}}}

    def _on_sweep_with_runs(self, _: dict[str, Any]) -> dict[str, Any]:
        sweep = {"config": self.sweep_yaml, "state": "RUNNING", "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _on_create_agent(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _on_heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Give the agent the next trial once it has no other, and end it after the last one."""
        left = [trial for trial in self.trials if trial not in self._started]
        command: dict[str, Any] = {"type": "exit"}
        if left:
            args = {name: {"value": value} for name, value in self.trials[left[0]].items()}
            command = {"type": "run", "run_id": left[0], "program": "launch.sh", "args": args}
        is_busy = json.loads(variables["runState"])
        self._started += [] if is_busy else left[:1]
        commands = json.dumps([] if is_busy else [command])
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": commands}}


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; the type that is made of it has the `stub`."""

    protocol_version = "HTTP/1.1"
    stub: WandbStub

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._reply(200, b"{}")

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client was killed
            super().handle()

    def do_POST(self) -> None:
        body = self._body()
        if self._refuses():
            return
        if self.path == "/graphql":
            request = json.loads(body)
            data = self.stub.answer(request["query"], request.get("variables") or {})
            self._reply(200, json.dumps({"data": data}).encode())
        elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.stub.add_rows(match[1], json.loads(body))
            self._reply(200, b"{}")
        else:
            self._reply(200, b"{}")

    def do_PUT(self) -> None:
        body = self._body()
        if self._refuses():
            return
        _, kind, name, *rest = self.path.split("/", 3)
        with self.stub.lock:
            if kind == "upload":
                self.stub.runs[name].uploads[rest[0]] = body
            elif kind == "manifest":
                self.stub.artifacts[name].manifest = json.loads(body)["contents"]
            elif kind == "blob":
                self.stub.artifacts[name].files[rest[0]] = body
        etag = base64.b64encode(hashlib.md5(body).digest()).decode()
        self._reply(200, b"", {"ETag": etag})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _refuses(self) -> bool:
        time.sleep(self.stub.delay_s)
        if self.stub.is_down:
            self._reply(503, b"down")
        elif self.stub.wrong_key:
            self._reply(401, b'{"errors": [{"message": "permission denied"}]}')
        is_refused = self.stub.is_down or self.stub.wrong_key
        self.stub.refused += is_refused
        return is_refused

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
