"""Stands between a stage and MLflow's server: lets requests through, refuses them, leaves them unanswered, drops answers."""

import socket
import threading
from contextlib import closing, suppress

PASS, REFUSE, HANG, DROP = "pass", "refuse", "hang", "drop the answers"


class Proxy:
    """Listens on a port of its own; `mode` says what becomes of a connection. After `limit` connections it refuses."""

    def __init__(self, target: int):
        self.target, self.mode, self.limit = target, PASS, 10**9
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _listen(self) -> None:
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):
            client.settimeout(60)
            while head := self._head(client):
                self.limit -= 1
                if self.mode == HANG:
                    threading.Event().wait(30)
                if self.mode in (REFUSE, HANG) or self.limit < 0:
                    return
                if b"100-continue" in head:
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = self._body(client, head)
                with closing(socket.create_connection(("127.0.0.1", self.target), 60)) as server:
                    server.sendall(self._closing(head) + body)
                    answer = b"".join(iter(lambda server=server: server.recv(65536), b""))
                if self.mode == DROP:
                    return
                client.sendall(answer)
                return

    @staticmethod
    def _head(client: socket.socket) -> bytes:
        found = b""
        while not found.endswith(b"\r\n\r\n"):
            part = client.recv(1)
            if not part:
                return b""
            found += part
        return found

    @staticmethod
    def _closing(head: bytes) -> bytes:
        """The head of a request after whose answer the server closes the connection."""
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
        return b"\r\n".join([*lines[:-2], b"Connection: close", b"", b""])

    @staticmethod
    def _body(client: socket.socket, head: bytes) -> bytes:
        sizes = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        size, found = next(iter(sizes), 0), b""
        while len(found) < size:
            found += client.recv(65536)
        return found
