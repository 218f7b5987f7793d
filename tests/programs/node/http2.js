// Who answers, over HTTP/2 in clear text; /slow takes a second and a half.
const http2 = require('http2');

http2.createServer((request, response) => {
  const answer = () => response.end(String(process.pid));
  if (request.url === '/slow') setTimeout(answer, 1500); else answer();
}).listen(8080);
