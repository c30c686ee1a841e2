// Four workers behind one port: echo, counted answers, an upgrade to a raw echo.
const cluster = require('cluster');
const http = require('http');

if (cluster.isPrimary) {
  for (let i = 0; i < 4; i++) cluster.fork();
  cluster.on('exit', (worker, code, signal) => {
    console.error(`worker ${worker.id} ended: ${code} ${signal}`);
    process.exit(1);
  });
} else {
  const server = http.createServer((request, response) => {
    if (request.method === 'POST') {
      response.writeHead(200, { 'content-type': 'application/octet-stream' });
      request.pipe(response);
      return;
    }
    const body = `${request.url} from ${cluster.worker.id} to ${request.socket.remoteAddress}`;
    response.writeHead(200, { 'content-length': Buffer.byteLength(body) });
    response.end(body);
  });
  server.on('upgrade', (request, socket, head) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
    socket.write(head);
    socket.pipe(socket);
  });
  server.listen(Number(process.argv[2]), () => console.log(`worker ${cluster.worker.id} listens`));
}
