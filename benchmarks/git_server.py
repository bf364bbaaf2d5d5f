"""`git http-backend` behind Python's own HTTP server: python -m benchmarks.git_server FOLDER PORT.

What Git's documentation calls smart HTTP: each request runs the program as CGI. Its bytes are
passed on as they come; the processor time of Git is that of this process's children.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_COPY_BYTES = 1 << 20


class _Handler(BaseHTTPRequestHandler):
    root = ""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        environ = os.environ | {
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        command = ["git", "http-backend"]
        with subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as git:
            assert git.stdin is not None
            assert git.stdout is not None
            git.stdin.write(body)
            git.stdin.close()
            self._head([line.rstrip() for line in iter(git.stdout.readline, b"\r\n")])
            shutil.copyfileobj(git.stdout, self.wfile, _COPY_BYTES)

    def _head(self, lines: list[bytes]) -> None:
        headers = dict(line.decode().split(": ", 1) for line in lines)
        self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_POST = _answer  # noqa: N815  the library's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


def main() -> None:
    """Serve until killed."""
    _Handler.root = sys.argv[1]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), _Handler).serve_forever()


if __name__ == "__main__":
    main()
