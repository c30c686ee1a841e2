"""One end of a play: takes orders from standard input, a line each, and answers each with a line.

Sockets go by names of the one who orders. No call blocks: waiting is the other's business.
"""
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios

LIBC = ctypes.CDLL(None, use_errno=True)
SIOCATMARK = 0x8905
sockets = {}
listeners = set()


def number(s, request):
    return struct.unpack("i", fcntl.ioctl(s, request, bytes(4)))[0]


def state(name):
    """What the kernel says of a socket: poll's events, and how many bytes wait."""
    s = sockets[name]
    poll = select.poll()
    poll.register(s, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP)
    events = dict(poll.poll(0)).get(s.fileno(), 0)
    return f"{name}={events:x}/{0 if name in listeners else number(s, termios.FIONREAD)}"


def disconnect(s):
    if LIBC.connect(s.fileno(), bytes(16), 16) < 0:
        raise OSError(ctypes.get_errno(), "connect")


def abort(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def obey(verb, name, *rest):
    if verb == "socket":
        sockets[name] = socket.socket()
        sockets[name].setblocking(False)
        return None
    s = sockets.pop(name) if verb in ("close", "abort") else sockets[name]
    if verb == "listen":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", int(rest[0])))
        s.listen(50)
        listeners.add(name)
        return None
    if verb == "accept":
        sockets[rest[0]], _ = s.accept()
        sockets[rest[0]].setblocking(False)
        return None
    return {
        "bind": lambda: s.bind(("", 0)),
        "connect": lambda: s.connect((rest[0], int(rest[1]))),
        "send": lambda: s.send(rest[0].encode() * int(rest[1]), socket.MSG_NOSIGNAL),
        "urgent": lambda: s.send(rest[0].encode(), socket.MSG_NOSIGNAL | socket.MSG_OOB),
        "recv": lambda: s.recv(int(rest[0])),
        "peek": lambda: s.recv(int(rest[0]), socket.MSG_PEEK),
        "oob": lambda: s.recv(1, socket.MSG_OOB),
        "inline": lambda: s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
        "mark": lambda: number(s, SIOCATMARK),
        "shutdown": lambda: s.shutdown(int(rest[0])),
        "error": lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        "peer": lambda: s.getpeername() and None,
        "disconnect": lambda: disconnect(s),
        "close": lambda: s.close(),
        "abort": lambda: abort(s),
    }[verb]()


def answer(words):
    if words[0] == "states":
        return " ".join(["states:"] + [state(name) for name in sorted(sockets)])
    if words[0] == "clear":
        for s in sockets.values():
            s.close()
        sockets.clear()
        listeners.clear()
        return "ok"
    try:
        result = obey(*words)
        return "ok" if result is None else repr(result)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


for line in sys.stdin:
    os.write(1, (answer(line.split()) + "\n").encode())
