"""Calls the listener of listener.c in every way that a TCP program has, and says what it sees: HOST PORT."""
import errno
import fcntl
import select
import socket
import struct
import sys

host, port = sys.argv[1], int(sys.argv[2])
family, kind, protocol, _, at = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)[0]


def say(*words):
    print(*words, flush=True)


def name(text):
    """An address by what it is, so that it reads the same for each."""
    return "the address" if text == at[0] else text


def ends(connection):
    peer, own = connection.getpeername(), connection.getsockname()
    say("peer", name(peer[0]), peer[1] == port, "own", name(own[0]), own[1] != port and own[1] > 0)


def read_all(connection):
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
        end = "end of file"
    except OSError as error:
        end = errno.errorcode[error.errno]
    return b"".join(parts), end


def echo(connection):
    text = bytes(range(256)) * 1000
    connection.setblocking(True)
    connection.sendall(b"e" + text)
    connection.shutdown(socket.SHUT_WR)
    got, end = read_all(connection)
    say("echo", got == text, end)
    connection.close()


blocking = socket.socket(family)
blocking.settimeout(100)
blocking.connect(at)
blocking.settimeout(None)
ends(blocking)
echo(blocking)

# One that is watched, and has its options, before it connects.
waits = socket.socket(family)
waits.setblocking(False)
waits.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
watch = select.epoll()
watch.register(waits, select.EPOLLOUT | select.EPOLLIN | select.EPOLLET)
watch.poll(0)
say("begun", errno.errorcode.get(waits.connect_ex(at)))
seen = 0
while not seen & select.EPOLLOUT or seen & select.EPOLLHUP:
    seen = next((event for _, event in watch.poll(100)), select.EPOLLOUT)
say("seen", seen, "error", waits.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
say("nodelay", waits.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
waits.connect_ex(at)
say("again", errno.errorcode.get(waits.connect_ex(at)))
ends(waits)
echo(waits)

urgent = socket.create_connection(at[:2])
urgent.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
urgent.sendall(b"u")
urgent.sendall(b"AB")
urgent.send(b"?", socket.MSG_OOB)
urgent.sendall(b"CD")
told = []
while len(told) < 5:
    select.select([urgent], [], [])
    mark = struct.unpack("i", fcntl.ioctl(urgent, 0x8905, struct.pack("i", 0)))[0]
    told.append((urgent.recv(1), mark))
urgent.shutdown(socket.SHUT_WR)
say("urgent", told, read_all(urgent)[1])

reset = socket.create_connection(at[:2])
reset.sendall(b"r")
reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
reset.close()

crash = socket.create_connection(at[:2])
crash.sendall(b"dmore")
say("crash", *read_all(crash))
# Its descriptors end one after the other.
while (error := socket.socket(family).connect_ex(at)) in (0, errno.ECONNRESET):
    pass
say("nobody", errno.errorcode.get(error))
