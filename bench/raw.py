"""What the machine itself takes for a number of bytes, as a process of its own: a socket's one end, or a memcpy.

    python bench/raw.py receive tcp           # prints its address; then its seconds and CPU seconds
    python bench/raw.py send 127.0.0.1:4711 480000000
    python bench/raw.py memcpy 480000000

Nothing here knows of Arrow or DuckDB. One buffer of 1 MiB is sent again and again, so that it stays warm.
"""

import ctypes
import json
import socket
import sys
import time

CHUNK = 1 << 20


def receive(address):
    listener = socket.create_server(("127.0.0.1", 0)) if address == "tcp" else bound_to(address)
    with listener:
        name = listener.getsockname()
        say({"address": name if isinstance(name, str) else f"{name[0]}:{name[1]}"})
        connection, _ = listener.accept()
    buffer = bytearray(CHUNK)
    with connection, Measured():
        while connection.recv_into(buffer):
            pass


def send(address, size):
    if address.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
    else:
        host, _, port = address.rpartition(":")
        connection = socket.create_connection((host, int(port)))
    buffer = memoryview(bytes(CHUNK))
    with connection, Measured():
        for start in range(0, size, CHUNK):
            connection.sendall(buffer[: size - start])


def memcpy(size):
    source, target = (ctypes.create_string_buffer(size) for _ in range(2))
    # A page exists once it has been written to.
    for buffer in (source, target):
        ctypes.memset(buffer, 1, size)
    with Measured():
        ctypes.memmove(target, source, size)


def bound_to(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


class Measured:
    def __enter__(self):
        self.cpu, self.start = time.process_time(), time.perf_counter()

    def __exit__(self, *_):
        say({"seconds": time.perf_counter() - self.start, "cpu_seconds": time.process_time() - self.cpu})


def say(what):
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive", address]:
            receive(address)
        case ["send", address, size]:
            send(address, int(size))
        case ["memcpy", size]:
            memcpy(int(size))
        case _:
            sys.exit(__doc__)
