"""A web server that serves a folder and stores what is put there."""
import http.server
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        with open("." + self.path, "wb") as file:
            while left:
                part = self.rfile.read(min(left, 1 << 16))
                if not part:
                    raise EOFError(left)
                file.write(part)
                left -= len(part)
        body = self.headers["Content-Length"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
