// A primary of Node's cluster as one would write it by hand: SIGUSR2 replaces the workers one by
// one, each successor listening before its predecessor is disconnected.
const cluster = require("cluster");
const path = require("path");

// `disconnect` waits for the clients; as in Node's own example, not forever.
const PATIENCE_MS = 10_000;

cluster.setupPrimary({ exec: path.join(__dirname, "node.js") });

function fork() {
    return new Promise((resolve, reject) => {
        const worker = cluster.fork();
        worker.once("listening", () => resolve(worker));
        worker.once("exit", () => reject(new Error("the worker ended before it listened")));
    });
}

function retire(worker) {
    const timer = setTimeout(() => worker.process.kill("SIGKILL"), PATIENCE_MS);
    worker.once("exit", () => clearTimeout(timer));
    worker.disconnect();
}

let reloading = false;

async function reload() {
    if (reloading) return;
    reloading = true;
    try {
        for (const old of Object.values(cluster.workers)) {
            await fork();
            retire(old);
        }
    } catch (error) {
        console.error(error.message);
    } finally {
        reloading = false;
    }
}

process.on("SIGUSR2", reload);
for (let count = 0; count < 2; count++) fork();
