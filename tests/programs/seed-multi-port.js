// The multi-port demo of node-cluster, written anew: the answer names the port by which the client came.
const http = require('http');

const servers = {};
const serverOf = (port) =>
  (servers[port] ??= http.createServer((request, response) => response.end(`${typeof port} ${port}`)));

require('node-cluster').ready((socket, port) => serverOf(port).emit('connection', socket));
