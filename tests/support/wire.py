"""A TCP proxy in front of the test database: it counts round trips, and can be slow, silent or down."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress


class Wire:
    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.trips = 0
        self.on_trip: Callable[[], object] = lambda: None  # called at the start of each
        self.delay = 0.0  # seconds, each way
        self.flowing = threading.Event()
        self.flowing.set()
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = socket.create_connection(self.target)
                except OSError:  # the server is down, perhaps not for long
                    near.close()
                    continue
                self.pairs.append((near, far))
                last = ["server"]  # the side that sent the last data
                for source, sink, name in ((near, far, "client"), (far, near, "server")):
                    threading.Thread(target=self.pump, args=(source, sink, name, last), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, name: str, last: list[str]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if name == "client" and last[0] == "server":
                    self.trips += 1  # the client sends after the server has sent
                    self.on_trip()
                last[0] = name
                time.sleep(self.delay)
                self.flowing.wait()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        source.close()

    def cut(self) -> None:
        """Cut all connections and take no new ones: the server is down."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for ends in self.pairs:
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.pairs.clear()

    def mend(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, daemon=True).start()
