// The echo demo of node-cluster, written anew: greets, echoes lines, and ends a session at `bye`.
const worker = require('node-cluster').Worker();

worker.ready((socket) => {
  worker.transact();
  socket.setEncoding('utf8');
  socket.write(`hello from ${process.pid}\n`);
  socket.on('data', (text) => {
    if (text.startsWith('bye')) {
      socket.end('good bye\n');
    } else {
      socket.write(`echo ${text}`);
    }
  });
  socket.on('close', () => worker.release());
});
