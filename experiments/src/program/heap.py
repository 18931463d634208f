"""A server of words that it holds on its heap; one request, one answer, for each connection."""

import hashlib
import socket
import sys

import numpy

data = numpy.zeros(0, dtype=numpy.uint64)


def answer(request):
    global data
    match request:
        case ["load", words]:
            data = numpy.arange(1, int(words) + 1, dtype=numpy.uint64)
            data *= numpy.uint64(0x9E3779B97F4A7C15)
            return len(data)
        case ["get", index]:
            return data[int(index)]
        case ["state"]:
            return f"{len(data)} words, digest {hashlib.md5(data).hexdigest()}"
    return "unknown request"


with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    while True:
        client, _ = server.accept()
        with client, client.makefile("rw") as stream:
            stream.write(f"{answer(stream.readline().split())}\n")
