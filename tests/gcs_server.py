"""A local test double of Google Cloud Storage's JSON API, on loopback, with faults on demand.

The requests are those that gcsfs, google-cloud-storage and TensorStore send: objects are uploaded
whole, read in ranges, listed, copied and deleted, with preconditions on their generation.
"""

import base64
import contextlib
import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)(?:/(rewriteTo|copyTo)(.*))?")
_TARGET = re.compile(r"/b/([^/]+)/o/([^/]+)")


class GcsServer:
    """A storage service with one bucket, "bucket"; use as a context manager.

    Attributes:
        address: of the service.
        objects: contents and generations by name, of the bucket.
        requests: method and path of all that was asked.
        fault: called with (method, path); the HTTP status to fail with, or None.
        delay: seconds that every request takes.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.delay = 0.0
        self.lock = threading.Lock()
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self._generation = 0
        service = self
        handler = type("Handler", (_Handler,), {"service": service})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "GcsServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def store(self, name: str, data: bytes, wanted: str | None = None) -> dict[str, Any] | None:
        """Put an object; its description, or None where it is of another generation than wanted."""
        with self.lock:
            if not self._is(name, wanted):
                return None
            self._generation += 1
            self.objects[name] = (data, self._generation)
            return self.describe(name)

    def remove(self, name: str, wanted: str | None) -> bool:
        """Remove an object, unless it is of another generation than wanted: whether it is gone."""
        with self.lock:
            if not self._is(name, wanted):
                return False
            self.objects.pop(name, None)
            return True

    def _is(self, name: str, wanted: str | None) -> bool:
        return wanted is None or int(wanted) == self.objects.get(name, (b"", 0))[1]

    def describe(self, name: str) -> dict[str, Any]:
        """The JSON description of an object."""
        data, generation = self.objects[name]
        crc = struct.pack(">I", google_crc32c.value(data))
        stamp = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object", "id": f"bucket/{name}/{generation}", "name": name,
            "bucket": "bucket", "generation": str(generation), "metageneration": "1",
            "contentType": "application/octet-stream", "size": str(len(data)),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "crc32c": base64.b64encode(crc).decode(), "etag": str(generation),
            "timeCreated": stamp, "updated": stamp, "storageClass": "STANDARD",
        }  # fmt: skip

    def names(self) -> list[str]:
        """Names of the objects, sorted."""
        with self.lock:
            return sorted(self.objects)

    @contextlib.contextmanager
    def failing(self, fault: Callable[[str, str], int | None]) -> Iterator[None]:
        """Fail requests within the block, see `fault`."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda method, path: None


def upload(server: GcsServer, folder: Path, prefix: str) -> None:
    """Put a local folder's files below a prefix."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            server.store(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients end connections as they like."""


class _Handler(BaseHTTPRequestHandler):
    service: GcsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        with contextlib.suppress(ConnectionError):  # Of a client that no longer waits.
            self._send(status, data, {"Content_Type": kind} | headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, text: str = "") -> None:
        self._answer(status, {"error": {"code": status, "message": text or f"status {status}"}})

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        else:
            body = self.rfile.read(size)
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.service.requests.append((self.command, self.path))
        if self.service.delay:
            time.sleep(self.service.delay)
        status = self.service.fault(self.command, self.path)
        if status is not None:
            self._error(status)
        elif parts.path.startswith("/upload/"):
            self._upload(parts.path, query, body)
        elif parts.path.startswith("/batch/"):
            self._batch(body)
        elif match := _OBJECT.fullmatch(parts.path):
            self._object(unquote(match[1]), unquote(match[2]), match[4], query)
        else:
            self._bucket(parts.path, query)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _handle

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _bucket(self, path: str, query: dict[str, str]) -> None:
        if path.rstrip("/") == "/storage/v1/b/bucket":
            self._answer(200, {"kind": "storage#bucket", "name": "bucket", "id": "bucket"})
        elif path == "/storage/v1/b/bucket/o":
            self._list(query)
        else:
            self._error(404, "The specified bucket does not exist.")

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name in self.service.names():
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.service.describe(name))
        most = int(query.get("maxResults", "1000"))
        self._answer(
            200, {"kind": "storage#objects", "items": items[:most], "prefixes": sorted(prefixes)}
        )

    def _upload(self, path: str, query: dict[str, str], body: bytes) -> None:
        if "/b/bucket/" not in path:
            return self._error(404, "The specified bucket does not exist.")
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self._resume(query["upload_id"], body)
        if kind == "resumable":
            name = query.get("name") or json.loads(body or b"{}")["name"]
            key = f"{len(self.service.uploads)}"
            self.service.uploads[key] = (name, b"")
            place = f"{self.service.address}{path}?uploadType=resumable&upload_id={key}"
            return self._answer(200, {}, Location=place)
        if kind == "multipart":
            match = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert match is not None
            pieces = body.split(b"--" + match[1].encode())
            line = b"\r\n" if b"\r\n\r\n" in pieces[1] else b"\n"
            about = json.loads(pieces[1].split(line * 2, 1)[1])
            data = pieces[2].split(line * 2, 1)[1][: -len(line)]
            name = query.get("name") or about["name"]
        else:
            name, data = query["name"], body
        about = self.service.store(name, data, query.get("ifGenerationMatch"))
        return self._answer(200, about) if about else self._error(412, "Precondition Failed")

    def _resume(self, key: str, body: bytes) -> None:
        name, before = self.service.uploads[key]
        span = self.headers.get("Content-Range", "")
        data = before + body
        if span.endswith("/*"):
            self.service.uploads[key] = (name, data)
            headers = {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
            return self._answer(308, b"", **headers)
        return self._answer(200, self.service.store(name, data) or {})

    def _refused(self, name: str, query: dict[str, str]) -> bool:
        """Answer with 412 where the object is of another generation than asked."""
        wanted = query.get("ifGenerationMatch")
        generation = self.service.objects.get(name, (b"", 0))[1]
        if wanted is None or int(wanted) == generation:
            return False
        self._error(412, "Precondition Failed")
        return True

    def _object(self, bucket: str, name: str, target: str | None, query: dict[str, str]) -> None:
        if bucket != "bucket":
            return self._error(404, "The specified bucket does not exist.")
        if target is not None:
            match = _TARGET.fullmatch(target)
            assert match is not None
            if name not in self.service.objects:
                return self._error(404, "No such object")
            data = self.service.objects[name][0]
            resource = self.service.store(unquote(match[2]), data)
            size = str(len(data))
            return self._answer(200, {"done": True, "resource": resource, "objectSize": size,
                                      "totalBytesRewritten": size})  # fmt: skip
        if name not in self.service.objects:
            return self._error(404, "No such object")
        if self.command == "DELETE":
            if self.service.remove(name, query.get("ifGenerationMatch")):
                return self._answer(204)
            return self._error(412, "Precondition Failed")
        if query.get("alt") != "media":
            return self._answer(200, self.service.describe(name))
        return self._media(name, query)

    def _media(self, name: str, query: dict[str, str]) -> None:
        data, generation = self.service.objects[name]
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        if self._refused(name, query):
            return None
        about = {"x_goog_generation": str(generation), "ETag": str(generation)}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return self._answer(200, data, **about)
        first = int(match[1]) if match[1] else len(data) - int(match[2])
        last = int(match[2]) if match[1] and match[2] else len(data) - 1
        if first >= len(data):
            return self._error(416, "range not satisfiable")
        span = data[first : last + 1]
        place = f"bytes {first}-{first + len(span) - 1}/{len(data)}"
        return self._answer(206, span, Content_Range=place, **about)

    def _batch(self, body: bytes) -> None:
        answers = []
        for number, match in enumerate(re.finditer(rb"DELETE (/storage/v1/b/\S+)", body)):
            found = _OBJECT.fullmatch(urlsplit(match[1].decode()).path)
            assert found is not None
            with self.service.lock:
                gone = self.service.objects.pop(unquote(found[2]), None)
            status = "204 No Content" if gone else "404 Not Found"
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>"
                f"\r\n\r\nHTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(answers) + "--batch--\r\n"
        self._answer(200, text.encode(), Content_Type="multipart/mixed; boundary=batch")
