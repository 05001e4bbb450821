"""A Hub on loopback for the real client: repositories with commits, branches, tokens, LFS, and a wire that can break."""

# ruff: noqa: RET502, RET503 - what is refused is answered, and answers are none of Python's

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".pt", ".pth")
# By token, whose it is and whether it may write.
TOKENS = {"hf_me": ("me", True), "hf_...": ("me", True), "hf_reader": ("me", False), "hf_you": ("you", True)}


class Repository:
    """The commits of a repository, each a whole tree: names to contents."""

    def __init__(self, private):
        self.private, self.trees, self.log, self.refs = private, {}, [], {}
        self.commit("main", "initial commit", {})

    def commit(self, branch, title, tree):
        sha = hashlib.sha1(f"{title}{len(self.log)}{sorted(tree)}".encode()).hexdigest()
        self.trees[sha] = tree
        self.log.append((sha, branch, title))
        self.refs[branch] = sha
        return sha

    def find(self, revision):
        sha = self.refs.get(revision, revision)
        return sha if sha in self.trees else None


class Hub:
    """The server; ``breaks`` holds what goes wrong, once each: a method with a part of a path, and how."""

    def __init__(self, port=0):
        self.repositories, self.objects, self.breaks, self.requests = {}, {}, [], []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def create(self, name, private=False):
        return self.repositories.setdefault(name, Repository(private))

    def upload(self, name, folder, title="by hand", branch="main"):
        """Commit a folder without a client."""
        tree = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.create(name).commit(branch, title, tree)

    def titles(self, name):
        """Of the commits but the first, the oldest first."""
        return [title for _, _, title in self.repositories[name].log[1:]]

    def environment(self, folder, token="hf_me"):
        """What a client in a process of its own is told; caches lie in a folder."""
        values = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        values |= {
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_CACHE": str(folder / "hub"),
        }
        values |= {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return values | ({"HF_TOKEN": token} if token else {})


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            found = next((one for one in self.hub.breaks if one[0] == self.command and one[1] in path), None)
            if found:
                self.hub.breaks.remove(found)
        self.how, length = found[2] if found else None, int(self.headers.get("Content-Length") or 0)
        if self.how == "drop":  # in the middle of what is sent
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.close()
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if isinstance(self.how, int):
            return self.refuse(self.how, "", "The storage of this account is full")
        for method, pattern, name in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return getattr(self, name)(body, *match.groups())
        return self.refuse(404, "EntryNotFound", f"no route {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # Answers

    def send(self, code, body=b"", headers=()):
        self.send_response(code)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        if self.how != "half" and "Content-Length" not in dict(headers):  # else the client is told of no length
            self.send_header("Content-Length", str(len(body)))
        if self.how in ("half", "cut"):
            self.send_header("Connection", "close")
            body, self.close_connection = body[: len(body) // 2], True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self, value, code=200):
        self.send(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code, kind, message):
        headers = {"X-Error-Code": kind, "X-Error-Message": message, "Content-Type": "application/json"}
        self.send(code, json.dumps({"error": message}).encode(), {k: v for k, v in headers.items() if v})

    # Who asks, and for what

    def user(self):
        """(name, may write), (None, False) for nobody; None once a wrong token is refused."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        return TOKENS.get(token, (None, False))

    def repository(self, name, write=False):
        """The repository, or None once it is refused as the Hub refuses it."""
        user = self.user()
        if user is None:
            return None
        found, owns = self.hub.repositories.get(name), user[0] == name.split("/")[0]
        if found is None or (found.private and not owns):
            return self.refuse(404 if user[0] else 401, "RepoNotFound", "Repository not found")
        if write and not (owns and user[1]):
            return self.refuse(403, "", f"You don't have the rights to write to {name}")
        return found

    def revision(self, name, revision):
        repository = self.repository(name)
        if repository is None:
            return None
        sha = repository.find(revision)
        return (repository, sha) if sha else self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    # Routes

    def create(self, body):
        user, asked = self.user(), json.loads(body)
        if user is None:
            return
        owner = asked.get("organization") or user[0]
        if not user[0]:
            return self.refuse(401, "", "Invalid username or password.")
        if owner != user[0] or not user[1]:
            return self.refuse(403, "", f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{asked['name']}"
        there = name in self.hub.repositories
        self.hub.create(name, asked.get("private") or asked.get("visibility") == "private")
        self.answer({"url": f"{self.hub.url}/{name}", "name": name}, 409 if there else 200)

    def validate(self, _):
        self.answer({"errors": [], "warnings": []})

    def branch(self, body, name, branch):
        if repository := self.repository(name, write=True):
            if branch in repository.refs:
                return self.refuse(409, "", "Reference already exists")
            start = json.loads(body or b"{}").get("startingPoint", "main")
            repository.refs[branch] = repository.find(start)
            self.answer({})

    def preupload(self, body, name, branch):
        if repository := self.repository(name, write=True):
            tree = repository.trees.get(repository.find(branch), {})
            self.answer({"files": [self.mode(file, tree) for file in json.loads(body)["files"]]})

    def mode(self, file, tree):
        lfs = file["path"].endswith(LFS)
        known = {"oid": self.oid(file["path"], tree[file["path"]])} if file["path"] in tree else {}
        return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **known}

    @staticmethod
    def oid(path, content):
        if path.endswith(LFS):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def batch(self, body, name):
        if self.repository(name, write=True):
            objects = []
            for one in json.loads(body)["objects"]:
                action = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
                objects.append(one if one["oid"] in self.hub.objects else one | {"actions": action})
            self.answer({"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "", "The content does not have the hash that it was announced with")
        self.hub.objects[oid] = body
        self.send(200)

    def commit(self, body, name, branch):
        lines = [json.loads(line) for line in body.splitlines()]
        with self.hub.lock:
            if (repository := self.repository(name, write=True)) is None:
                return
            tree, title = dict(repository.trees.get(repository.find(branch), {})), lines[0]["value"]["summary"]
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        return self.refuse(400, "", "An LFS object was not uploaded")
                    tree[value["path"]] = self.hub.objects[value["oid"]]
                else:
                    tree = {path: content for path, content in tree.items() if not path.startswith(value["path"])}
            sha = repository.commit(branch, title, tree)
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def info(self, _, name, revision="main"):
        if found := self.revision(name, revision):
            siblings = [{"rfilename": path} for path in found[0].trees[found[1]]]
            private = found[0].private
            self.answer({"id": name, "sha": found[1], "siblings": siblings, "private": private, "tags": []})

    def refs(self, _, name):
        if repository := self.repository(name):
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repository.refs.items()]
            self.answer({"branches": branches, "converts": [], "tags": []})

    def tree(self, _, name, revision, folder=""):
        if found := self.revision(name, revision):
            whole = "true" in parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower()
            entries = []
            for path, content in found[0].trees[found[1]].items():
                if not path.startswith(folder) or (not whole and "/" in path[len(folder) :].strip("/")):
                    continue
                entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                if path.endswith(LFS):
                    entry["lfs"] = {"oid": self.oid(path, content), "size": len(content), "pointerSize": 130}
                entries.append(entry)
            self.answer(entries)

    def resolve(self, _, name, revision, path):
        if (found := self.revision(name, revision)) is None:
            return
        headers, tree = {"X-Repo-Commit": found[1]}, found[0].trees[found[1]]
        if path not in tree:
            message = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send(404, b"", headers | message)
        content = tree[path]
        headers |= {"ETag": f'"{self.oid(path, content)}"'}
        if self.command == "HEAD":
            return self.send(200, b"", headers | {"Content-Length": len(content)})
        wanted, code = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""), 200
        if wanted:
            headers["Content-Range"] = f"bytes {wanted[1]}-{len(content) - 1}/{len(content)}"
            content, code = content[int(wanted[1]) :], 206
        self.send(code, content, headers)


NAME = "([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", f"/api/models/{NAME}/branch/(.+)", "branch"),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", "preupload"),
    ("POST", f"/api/models/{NAME}/commit/(.+)", "commit"),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", "batch"),
    ("PUT", "/lfs/(.+)", "store"),
    ("GET", f"/api/models/{NAME}", "info"),
    ("GET", f"/api/models/{NAME}/revision/(.+)", "info"),
    ("GET", f"/api/models/{NAME}/refs", "refs"),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)", "tree"),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)/(.+)", "tree"),
    ("HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", "resolve"),
    ("GET", f"/{NAME}/resolve/([^/]+)/(.+)", "resolve"),
]
