// Loaded before a Node application whose pool has `drain-preload = true`.
//
// It tells the master when connections end, and makes a drain quick: connections that have nothing under way
// are closed, and no other is kept for a next request. The application is not touched. What it
// builds on came and went between releases, so each part does without the others.
'use strict';

const cluster = require('cluster');
const isMainThread = (() => { try { return require('worker_threads').isMainThread; } catch { return true; } })();

if (isMainThread && cluster.isWorker && process.connected) {
  // So long a client may have said nothing before it is taken for one that has nothing to say.
  const SILENT_MS = 500;
  const sockets = new Map(), responses = new Set(), servers = new Set();
  const send = process.send.bind(process);
  let ended = 0, told = 0, drains = false, isTelling = false;

  const report = () => send({ cmd: 'NODE_RCLUSTER', ended }, undefined, undefined, () => {});
  const tell = () => {
    isTelling = false;
    if (told === ended || !process.connected) return;
    told = ended;
    report();
  };

  // What is declined is answered so before it is closed, and has not ended here.
  let handed = null;
  process.send = function (message, ...rest) {
    if (handed && message && message.cmd === 'NODE_CLUSTER' && message.ack === handed.seq) {
      if (message.accepted === false) handed.counts = false;
      handed = null;
    }
    return send(message, ...rest);
  };

  const count = (handle, seq) => {
    const close = handle.close, own = { seq, counts: true };
    handed = own;
    handle.close = function (...args) {
      if (own.counts) {
        own.counts = false;
        ended += 1;
        // A drain ends with the last connection, and the channel with it.
        if (drains) tell();
        else if (!isTelling) { isTelling = true; setImmediate(tell); }
      }
      return close.apply(this, args);
    };
  };

  const sweep = () => {
    for (const response of responses) if (!response.headersSent) response.shouldKeepAlive = false;
    for (const server of servers) if (server.closeIdleConnections) server.closeIdleConnections();
    const now = Date.now();
    for (const [socket, since] of sockets) {
      if (socket.bytesRead === 0 && socket.bytesWritten === 0 && now - since >= SILENT_MS) socket.destroy();
    }
  };

  // Before the cluster module hears it, which hands the connection to the application at once.
  process.prependListener('internalMessage', (message, handle) => {
    if (!message || message.cmd !== 'NODE_CLUSTER') return;
    if (message.act === 'newconn' && handle) count(handle, message.seq);
    if (message.act === 'disconnect' && !drains) {
      drains = true;
      setImmediate(sweep);
      setInterval(sweep, 100).unref();
    }
  });

  report();
  try {
    const channels = require('diagnostics_channel');
    const on = (name, listener) =>
      channels.subscribe ? channels.subscribe(name, listener) : channels.channel(name).subscribe(listener);
    on('net.server.socket', ({ socket }) => {
      sockets.set(socket, Date.now());
      socket.once('close', () => sockets.delete(socket));
    });
    on('http.server.request.start', ({ response, server }) => {
      servers.add(server);
      responses.add(response);
      response.once('close', () => responses.delete(response));
      if (drains) response.shouldKeepAlive = false;
    });
  } catch {
    // Node 14 has no such channels.
  }
}
