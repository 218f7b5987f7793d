// Is handed its connections by process.on('message'): the kind `ipc`, dialect `plain`.
const http = require('http');

const server = http.createServer((request, response) => {
  const answer = () => response.end(String(process.pid));
  if (request.url === '/slow') {
    setTimeout(answer, 1500);
  } else {
    answer();
  }
});

process.on('message', (message, socket) => {
  // The client may have gone on the way.
  if (message.type === 'connection' && socket) {
    server.emit('connection', socket);
  }
});

process.send('ready');
