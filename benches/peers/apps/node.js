// The worker: plain Node, and as PM2 documents a graceful stop, SIGINT closes the server first.
const http = require("http");

const server = http.createServer((request, response) => response.end(`${process.pid}\n`));
server.keepAliveTimeout = 75_000;
server.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });

process.on("SIGINT", () => server.close(() => process.exit(0)));
