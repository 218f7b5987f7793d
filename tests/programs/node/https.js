// Who answers, over TLS, with the key and certificate in TLS_FOLDER.
const fs = require('fs'), https = require('https');

const read = name => fs.readFileSync(`${process.env.TLS_FOLDER}/${name}.pem`);
https.createServer({ key: read('key'), cert: read('cert') }, (request, response) => {
  const answer = () => response.end(String(process.pid));
  if (request.url === '/slow') setTimeout(answer, 1500); else answer();
}).listen(8080);
