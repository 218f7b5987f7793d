// Says who it is to whoever asks, by socket.io. Long polling needs every request of a client at one worker.
const { Server } = require('socket.io');

const server = require('http').createServer().listen(8080);
new Server(server, { transports: ['polling'] }).on('connection', socket => {
  socket.on('who', answer => answer(process.pid));
});
