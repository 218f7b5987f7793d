// Says who it is to every WebSocket, a second and a half later at /slow, and closes it.
const { WebSocketServer } = require('ws');

new WebSocketServer({ port: 8080 }).on('connection', (socket, request) => {
  const answer = () => { socket.send(String(process.pid)); socket.close(); };
  if (request.url === '/slow') setTimeout(answer, 1500); else answer();
});
