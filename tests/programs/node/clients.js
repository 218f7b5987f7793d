// Clients of what needs more than a line of text to be spoken to: `clients.js https|socket-io PORT`. They come
// until standard input ends; then one line of JSON says what became of them.
const [kind, port] = process.argv.slice(2);
const RATE = 300;
const result = { answered: 0, failed: [], pids: new Set() };
let isOver = false, open = 0;

const end = () => {
  if (isOver && open === 0) {
    console.log(JSON.stringify({ ...result, pids: [...result.pids] }));
    process.exit(0);
  }
};
const done = (error, pid) => {
  open -= 1;
  if (error) result.failed.push(String(error.message || error)); else { result.answered += 1; result.pids.add(pid); }
  end();
};

function ask() {
  open += 1;
  const options = { port, host: '127.0.0.1', rejectUnauthorized: false, agent: false, timeout: 60000 };
  const request = require('https').get(options, response => {
    let text = '';
    response.on('data', part => text += part);
    response.on('end', () => response.complete ? done(null, text) : done(new Error('cut')));
  });
  request.on('timeout', () => request.destroy(new Error('timed out')));
  request.on('error', done);
}

// Each from an address of its own, which decides who gets it; a new connection for every request.
function converse(number) {
  if (isOver) return;
  open += 1;
  const agent = new (require('http').Agent)({ localAddress: `127.0.0.${number + 2}`, keepAlive: false });
  const { io } = require('socket.io-client');
  const socket = io(`http://127.0.0.1:${port}`, { transports: ['polling'], agent, reconnection: false, forceNew: true });
  let asked = 0, first;
  const finish = (error, pid) => { socket.disconnect(); done(error, pid); setTimeout(converse, 10, number); };
  socket.on('connect_error', error => finish(error));
  const again = () => socket.timeout(30000).emit('who', (error, pid) => {
    first = first || pid;
    if (error || pid !== first) return finish(error || new Error(`first ${first}, then ${pid}`));
    asked += 1;
    if (asked < 10) again(); else finish(null, pid);
  });
  socket.on('connect', again);
}

process.stdin.resume().on('end', () => { isOver = true; end(); });
if (kind === 'https') {
  const timer = setInterval(() => {
    if (isOver) return clearInterval(timer);
    for (let i = 0; i < RATE / 20; i++) ask();
  }, 50);
} else {
  for (let number = 0; number < 8; number++) converse(number);
}
