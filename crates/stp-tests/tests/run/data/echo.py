"""Echoes on a port until it is killed; says on standard output what ends how. `PORT again` opens a second port when told
by a line on standard input."""
import socket
import sys
import threading


def serve(connection):
    try:
        while part := connection.recv(1 << 16):
            connection.sendall(part)
        print("end of file", flush=True)
    except OSError as error:
        print("error", error.errno, error.strerror, flush=True)


def accept(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            print("accept", error.errno, error.strerror, flush=True)
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def listen(port):
    listener = socket.create_server(("", port))
    print("listens", port, flush=True)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()


listen(int(sys.argv[1]))
for line in sys.stdin:
    listen(int(line))
threading.Event().wait()
