"""Opens a connection, exchanges a line, waits for its end and says what that was: host, port. Then the same again for each line
`HOST PORT` on standard input."""
import socket
import sys


def hold(host, port):
    try:
        connection = socket.create_connection((host, int(port)), 100)
        connection.settimeout(None)
        connection.sendall(b"hello")
        got = b""
        while len(got) < 5:
            part = connection.recv(5)
            if not part:
                print("end of file before the echo", flush=True)
                return
            got += part
        print("echoed", got.decode(), flush=True)
        part = connection.recv(1)
        print("end of file" if not part else "a byte", flush=True)
    except OSError as error:
        print("error", error.errno, error.strerror or error, flush=True)


hold(sys.argv[1], sys.argv[2])
for line in sys.stdin:
    hold(*line.split())
