// Who answers; /slow takes a second and a half.
const fastify = require('fastify')();

fastify.get('/', async () => String(process.pid));
fastify.get('/slow', async () => {
  await new Promise(done => setTimeout(done, 1500));
  return String(process.pid);
});
fastify.listen({ port: 8080, host: '0.0.0.0' });
