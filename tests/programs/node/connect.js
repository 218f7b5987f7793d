// Who answers, and files of this folder under /static; /slow takes a second and a half.
const connect = require('connect'), serveStatic = require('serve-static');

const app = connect();
app.use('/static', serveStatic(__dirname));
app.use('/slow', (request, response) => setTimeout(() => response.end(String(process.pid)), 1500));
app.use((request, response) => response.end(String(process.pid)));
app.listen(8080);
