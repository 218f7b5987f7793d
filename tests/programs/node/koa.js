// Who answers; /slow takes a second and a half.
const koa = require('koa');
const Koa = koa.default || koa;

const app = new Koa();
app.use(async context => {
  if (context.path === '/slow') await new Promise(done => setTimeout(done, 1500));
  context.body = String(process.pid);
});
app.listen(8080);
