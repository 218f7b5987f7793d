// Who answers, by the release of express that EXPRESS names; /slow takes a second and a half. An error of
// a handler is answered by the application's own error handler.
const express = require(process.env.EXPRESS);

const app = express();
app.get('/', (request, response) => response.send(String(process.pid)));
app.get('/slow', (request, response) => setTimeout(() => response.send(String(process.pid)), 1500));
app.get('/error', () => { throw new Error('this handler fails'); });
app.use((error, request, response, next) => response.status(200).send(`caught: ${error.message}`));
app.listen(8080);
