// Who answers; /slow takes a second and a half.
const http = require('http');

http.createServer((request, response) => {
  const answer = () => response.end(String(process.pid));
  if (request.url === '/slow') setTimeout(answer, 1500); else answer();
}).listen(8080);
