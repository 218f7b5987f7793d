// The http demo of node-cluster, written anew: the kind `ipc`, dialect `node-cluster`.
const server = require('http').createServer((request, response) => {
  const answer = () => response.end(String(process.pid));
  if (request.url === '/slow') {
    setTimeout(answer, 1500);
  } else {
    answer();
  }
});

const worker = require('node-cluster').Worker();
worker.ready((socket) => server.emit('connection', socket));
