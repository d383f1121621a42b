"""A small hub on loopback: what Hugging Face's clients ask for to list, download, create and upload models.

Model repositories only, all in memory: their files are git blobs or, by their
names, LFS objects. As on the hub an object lies on another host (here: another
port) and is reached by a redirect. There is no xet, so clients use plain HTTP.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".safetensors", ".bin", ".gguf", ".pt")
PART = 400_000  # an object of more bytes than this is uploaded in parts
TOKEN = "hf_loopback"
BRANCH = "main"
SECONDS = 60


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a revision."""

    path: str
    data: bytes

    @property
    def large(self):
        return self.path.endswith(LARGE)

    @property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self):
        return (f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
                f"size {len(self.data)}\n").encode()

    @property
    def oid(self):
        return git_hash(self.pointer if self.large else self.data)

    @property
    def etag(self):
        """What clients name their blob by."""
        return self.sha256 if self.large else self.oid

    def entry(self):
        found = {"type": "file", "path": self.path, "size": len(self.data), "oid": self.oid}
        if self.large:
            found["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return found


@dataclass
class Repository:
    revisions: dict = field(default_factory=dict)  # commit: {path: File}
    head: str | None = None

    def commit(self, files):
        text = json.dumps([self.head, sorted((file.path, file.oid) for file in files)])
        self.head = hashlib.sha1(text.encode()).hexdigest()
        self.revisions[self.head] = {file.path: file for file in files}
        return self.head

    def resolve(self, revision):
        """The commit of a revision, None where there is none."""
        commit = self.head if revision == BRANCH else revision
        return commit if commit in self.revisions else None


class Held:
    """A download that stops after some bytes until it is let go."""

    def __init__(self, after):
        self.after = after
        self.reached = threading.Event()
        self.let_go = threading.Event()


class Hub:
    """Serves until close(). `endpoint` is for HF_ENDPOINT; `requests` was asked: (method, path, range)."""

    def __init__(self):
        self.repositories = {}
        self.objects = {}
        self.parts = {}
        self.requests = []
        self.cuts = {}
        self.holds = {}
        self.served = {}
        self.lock = threading.Lock()
        self.servers = [self._serve() for _ in range(2)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def _serve(self):
        handler = type("Handler", (Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def close(self):
        for held in self.holds.values():
            held.let_go.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    # ---- what the test says and asks ----

    def publish(self, name, files):
        """A new revision of a model that has exactly these files ({path: bytes}); its commit."""
        with self.lock:
            made = [File(path, data) for path, data in files.items()]
            self.objects.update((file.sha256, file.data) for file in made if file.large)
            return self.repositories.setdefault(name, Repository()).commit(made)

    def files(self, name):
        """{path: bytes} of the newest revision."""
        repository = self.repositories[name]
        return {path: file.data for path, file in repository.revisions[repository.head].items()}

    def cut(self, data, after):
        """The next download of this object loses its connection after so many bytes."""
        self.cuts[hashlib.sha256(data).hexdigest()] = after

    def hold(self, data, after):
        """Downloads of this object wait after so many bytes."""
        return self.holds.setdefault(hashlib.sha256(data).hexdigest(), Held(after))

    def count(self, method, data):
        """How often this object was asked for by GET or sent by PUT."""
        path = "/" + hashlib.sha256(data).hexdigest()
        return sum(request[:2] == (method, path) for request in self.requests)

    def bytes_served(self):
        """Bytes of objects that were downloaded since the last call."""
        with self.lock:
            total = sum(self.served.values())
            self.served.clear()
            return total


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status, code, **headers):
        super().__init__(code)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": code} | headers


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits for the client's acknowledgement of its headers
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        body = self._body()
        address = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(address.query)
        path = urllib.parse.unquote(address.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range")))
        try:
            for methods, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in methods:
                    return answer(self, body, **found.groupdict())
            raise Refused(404, "NoSuchRoute")
        except Refused as error:
            self._send(error.status, json.dumps({"error": str(error)}).encode(), error.headers)

    do_HEAD = do_POST = do_PUT = do_GET

    # ---- requests and answers ----

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, data, headers):
        """The range that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        if not wanted or not data:
            return self._send_slowly(200, data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            raise Refused(416, "RangeNotSatisfiable")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send_slowly(206, data[first:last + 1], headers)

    def _send_slowly(self, status, body, headers):
        """As _send(), cut or held where the test wants it."""
        name = headers["ETag"].strip('"')
        with self.hub.lock:
            cut = self.hub.cuts.pop(name, None) if self.command == "GET" else None
            held = self.hub.holds.get(name) if self.command == "GET" else None
            if self.command == "GET":
                self.hub.served[self.path] = self.hub.served.get(self.path, 0) + len(body)
        stop = cut if cut is not None else held.after if held else None
        if stop is None:
            return self._send(status, body, headers)
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:stop])
        self.wfile.flush()
        if held:
            held.reached.set()
            held.let_go.wait(SECONDS)
        if cut is None:
            try:
                self.wfile.write(body[stop:])
            except OSError:
                pass  # the client was killed
        self.close_connection = self.close_connection or cut is not None

    def _repository(self, name):
        if name not in self.hub.repositories:
            raise Refused(404, "RepoNotFound")
        return self.hub.repositories[name]

    def _revision(self, name, revision):
        """(commit, {path: File})"""
        repository = self._repository(name)
        commit = repository.resolve(revision or BRANCH)
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        return commit, repository.revisions[commit]

    def _check_token(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized")

    # ---- reading ----

    def model(self, _, name, revision=None):
        commit, files = self._revision(name, revision)
        self._json({"_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "tags": [],
                    "gated": False, "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, _, name, revision, folder):
        _, files = self._revision(name, revision)
        inside = [file for file in files.values() if not folder or file.path.startswith(folder + "/")]
        folders = {"/".join(parts[:n]) for parts in (file.path.split("/") for file in inside)
                   for n in range(1, len(parts))} - {folder}
        entries = [file.entry() for file in inside]
        entries += [{"type": "directory", "path": path, "size": 0, "oid": git_hash(path.encode())}
                    for path in folders]
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            depth = folder.count("/") + 1 if folder else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        self._json(sorted(entries, key=lambda entry: entry["path"]))

    def paths_info(self, body, name, revision):
        commit, files = self._revision(name, revision)
        last = {"lastCommit": {"id": commit, "title": "commit", "date": "2026-01-01T00:00:00.000Z"}}
        self._json([files[path].entry() | last for path in json.loads(body)["paths"] if path in files])

    def resolve(self, _, name, revision, path):
        commit, files = self._revision(name, revision)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            raise Refused(404, "EntryNotFound", **headers)
        file = files[path]
        headers["ETag"] = f'"{file.oid}"'
        if not file.large:
            return self._send_file(file.data, headers)
        headers |= {"X-Linked-Size": str(len(file.data)), "X-Linked-ETag": f'"{file.etag}"',
                    "Location": f"{self.hub.storage}/{file.sha256}"}
        return self._send(302, b"", headers)

    def raw(self, _, name, revision, path):
        _, files = self._revision(name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound")
        file = files[path]
        self._send(200, file.pointer if file.large else file.data, {"ETag": f'"{file.oid}"'})

    def download(self, _, oid):
        if oid not in self.hub.objects:
            raise Refused(404, "NoSuchObject")
        self._send_file(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    # ---- writing ----

    def create(self, body):
        self._check_token()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        with self.hub.lock:
            status = 409 if name in self.hub.repositories else 200
            repository = self.hub.repositories.setdefault(name, Repository())
            if repository.head is None:
                repository.commit([File(".gitattributes", b"".join(b"*%s filter=lfs\n" % suffix.encode()
                                                                   for suffix in LARGE))])
        self._json({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": "0"}, status)

    def validate(self, _):
        self._json({"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        self._check_token()
        _, files = self._revision(name, revision)
        answers = []
        for asked in json.loads(body)["files"]:
            there = files.get(asked["path"])
            oid = there and (there.sha256 if there.large else there.oid)
            answers.append({"path": asked["path"], "shouldIgnore": False, "oid": oid,
                            "uploadMode": "lfs" if asked["path"].endswith(LARGE) else "regular"})
        self._json({"files": answers})

    def batch(self, body, name):
        self._check_token()
        self._repository(name)
        answers = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                answer["actions"] = self._upload_actions(**asked)
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def _upload_actions(self, oid, size):
        address = f"{self.hub.storage}/{oid}"
        upload = {"href": address}
        if size > PART:
            count = -(-size // PART)
            upload["header"] = {"chunk_size": str(PART)} | {
                str(number): f"{address}/{number}" for number in range(1, count + 1)}
            upload["href"] = f"{self.hub.endpoint}/complete/{oid}"
        return {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/verify"}}

    def upload(self, body, oid, number=None):
        with self.hub.lock:
            if number is None:
                self._keep(oid, body)
            else:
                self.hub.parts.setdefault(oid, {})[int(number)] = body
        self._send(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, body, oid):
        with self.hub.lock:
            parts = self.hub.parts.pop(oid)
            listed = [(part["partNumber"], part["etag"].strip('"')) for part in json.loads(body)["parts"]]
            if listed != [(number, hashlib.md5(parts[number]).hexdigest()) for number in sorted(parts)]:
                raise Refused(400, "WrongParts")
            self._keep(oid, b"".join(parts[number] for number in sorted(parts)))
        self._json({"success": True})

    def _keep(self, oid, data):
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "WrongContent")
        self.hub.objects[oid] = data

    def verify(self, body):
        asked = json.loads(body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(400, "NotUploaded")
        self._json({"success": True})

    def commit(self, body, name, revision):
        self._check_token()
        with self.hub.lock:
            _, there = self._revision(name, revision)
            files = dict(there)
            for line in body.splitlines():
                self._apply(files, **json.loads(line))
            commit = self.hub.repositories[name].commit(list(files.values()))
        self._json({"success": True, "commitOid": commit, "hookOutput": "",
                    "commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}"})

    def _apply(self, files, key, value):
        if key == "file":
            files[value["path"]] = File(value["path"], base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[value["path"]] = File(value["path"], self.hub.objects[value["oid"]])
        elif key == "deletedFile":
            del files[value["path"]]
        elif key != "header":
            raise Refused(400, "UnknownOperation")


NAME = r"(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
MODELS = "/api/models/" + NAME
OID = r"/(?P<oid>[0-9a-f]{64})"
READ, POST, PUT = ("GET", "HEAD"), ("POST",), ("PUT",)

ROUTES = [
    (POST, "/api/repos/create", Handler.create),
    (POST, "/api/validate-yaml", Handler.validate),
    (READ, MODELS + f"(?:/revision/{REVISION})?", Handler.model),
    (READ, f"{MODELS}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    (POST, f"{MODELS}/paths-info/{REVISION}", Handler.paths_info),
    (POST, f"{MODELS}/preupload/{REVISION}", Handler.preupload),
    (POST, f"{MODELS}/commit/{REVISION}", Handler.commit),
    (POST, f"/{NAME}" + r"\.git/info/lfs/objects/batch", Handler.batch),
    (READ, f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
    (READ, f"/{NAME}/raw/{REVISION}/(?P<path>.+)", Handler.raw),
    (POST, "/complete" + OID, Handler.complete),
    (POST, "/verify", Handler.verify),
    (READ, OID, Handler.download),
    (PUT, OID + r"(?:/(?P<number>\d+))?", Handler.upload),
]
