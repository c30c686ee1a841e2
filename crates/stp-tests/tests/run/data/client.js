// Asks the server of server.js: host, port.
const assert = require('assert');
const crypto = require('crypto');
const http = require('http');
const net = require('net');

const [host, port] = [process.argv[2], Number(process.argv[3])];
const agent = new http.Agent({ keepAlive: true, maxSockets: 20 });

function ask(path) {
  return new Promise((resolve, reject) => {
    http.get({ host, port, path, agent }, (response) => {
      let text = '';
      response.on('data', (part) => { text += part; });
      response.on('end', () => resolve(text));
    }).on('error', reject);
  });
}

async function many() {
  let answers = 0;
  const lane = async (first) => {
    for (let i = first; i < 2000; i += 20) {
      const text = await ask(`/page${i}`);
      assert(text.startsWith(`/page${i} from `), text);
      answers++;
    }
  };
  await Promise.all(Array.from({ length: 20 }, (_, first) => lane(first)));
  return answers;
}

function echo() {
  const bytes = crypto.randomBytes(20 << 20);
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, method: 'POST', path: '/echo', agent }, (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('end', () => {
        const got = Buffer.concat(parts);
        assert(got.equals(bytes), 'the echo differs');
        resolve(got.length);
      });
    });
    request.on('error', reject);
    request.end(bytes);
  });
}

function upgrade() {
  return new Promise((resolve, reject) => {
    const headers = { Connection: 'Upgrade', Upgrade: 'echo' };
    const request = http.request({ host, port, headers });
    request.on('error', reject);
    request.on('upgrade', (response, socket, head) => {
      let text = head.toString();
      socket.on('data', (part) => { text += part; });
      socket.on('end', () => {
        assert.strictEqual(text, 'ping'.repeat(1000));
        resolve();
      });
      for (let i = 0; i < 1000; i++) socket.write('ping');
      socket.end();
    });
    request.end();
  });
}

function refused() {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host, port: 9 });
    socket.on('connect', () => reject(new Error('port 9 is served')));
    socket.on('error', (error) => (error.code === 'ECONNREFUSED' ? resolve() : reject(error)));
  });
}

(async () => {
  const answers = await many();
  const back = await echo();
  await upgrade();
  await refused();
  agent.destroy();
  console.log(`${answers} answers, ${back} bytes back, upgraded, refused`);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
