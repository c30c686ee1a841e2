"""The names of a connection's two ends, for listeners and callers of both families.

serve PORT                            an IPv4 listener at PORT, one for both at PORT + 1, one for IPv6 alone at PORT + 2
call PORT SERVER4 SERVER6 CLIENT4 CLIENT6    a line for each pair: what either end is told of both"""
import errno
import json
import socket
import sys
import threading

port = int(sys.argv[2])


def name(at):
    try:
        return socket.getnameinfo(at, socket.NI_NUMERICSERV)[0]
    except socket.gaierror:
        return "-"


def answer(listener):
    while True:
        connection, accepted = listener.accept()
        told = [accepted, connection.getpeername(), connection.getsockname()]
        connection.sendall(json.dumps([told, name(accepted)]).encode())
        connection.close()


def serve():
    four = socket.create_server(("", port))
    dual = socket.create_server(("", port + 1), family=socket.AF_INET6, dualstack_ipv6=True)
    six = socket.create_server(("", port + 2), family=socket.AF_INET6)
    for listener in (four, dual, six):
        threading.Thread(target=answer, args=(listener,)).start()
    print("ready", flush=True)


def address(name, family):
    return socket.getaddrinfo(name, 0, family, socket.SOCK_STREAM)[0][4][0]


def call():
    families = [socket.AF_INET, socket.AF_INET6] * 2
    s4, s6, c4, c6 = (address(name, family) for name, family in zip(sys.argv[3:], families))
    known = {}
    for end, four, six in (("client", c4, c6), ("server", s4, s6)):
        known |= {four: end + "-4", "::ffff:" + four: end + "-mapped", six: end + "-6"}
    word = lambda at: known.get(at[0], at[0])
    for number, listener in enumerate(["four", "dual", "six"]):
        for way, family, to in [("4", families[0], s4), ("mapped", families[1], "::ffff:" + s4), ("6", families[1], s6)]:
            head = f"{listener} by {way}:"
            caller = socket.socket(family)
            error = caller.connect_ex((to, port + number))
            if error:
                print(head, errno.errorcode[error])
                continue
            (accepted, peer, served), back = json.loads(caller.makefile().read())
            own, other = caller.getsockname(), caller.getpeername()
            ports = own[1] == accepted[1] == peer[1] and other[1] == served[1] == port + number
            print(head, word(own), word(other), "/", word(accepted), word(peer), word(served), ports, name(other), back)


serve() if sys.argv[1] == "serve" else call()
