"""A local stand-in of the Hub's API, on loopback: one repository of files, one commit."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves `folder` as repository `org/name`; use as a context manager.

    Attributes:
        endpoint: to be given as HF_ENDPOINT.
        fetched: paths of the files that were downloaded.
    """

    def __init__(self, folder: Path):
        self.fetched: list[str] = []
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        fetched = self.fetched

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def _send(self, body: bytes, **headers: str) -> None:
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_GET(self):
                path = self.path.split("?")[0]
                api, file = "/api/models/org/name", f"/org/name/resolve/{COMMIT}/"
                if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                    siblings = [{"rfilename": name} for name in files]
                    value = {"id": "org/name", "modelId": "org/name", "sha": COMMIT,
                             "private": False, "tags": [], "siblings": siblings}  # fmt: skip
                    self._send(json.dumps(value).encode(), Content_Type="application/json")
                elif path.startswith(f"{api}/tree/{COMMIT}"):
                    value = [
                        {"type": "file", "path": name, "size": len(body),
                         "oid": hashlib.sha1(body).hexdigest()}
                        for name, body in files.items()
                    ]  # fmt: skip
                    self._send(json.dumps(value).encode(), Content_Type="application/json")
                elif path.startswith(file) and path.removeprefix(file) in files:
                    name = path.removeprefix(file)
                    if self.command == "GET":
                        fetched.append(name)
                    etag = hashlib.sha1(files[name]).hexdigest()
                    self._send(files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
                else:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
