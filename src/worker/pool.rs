//! Threads that run a handler, one connection each.
//!
//! A thread is started when a connection comes and none is idle, up to a bound, and ends when
//! nothing came for a while. The bound is what READY announced, so a connection never waits here
//! unless the system refuses a thread. A handler that panics loses its connection and nothing else.
//! Should a thread end otherwise than of itself, its [`Place`] is given back all the same.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::Connection;
use super::tell::tell;

/// How long a thread waits for its next connection.
const IDLE: Duration = Duration::from_secs(10);

pub(super) struct Pool {
    shared: Arc<Shared>,
    threads_max: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    handler: Box<dyn Fn(Connection) + Send + Sync>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Connection>,
    threads: usize,
    idle: usize,
}

impl Pool {
    pub fn new(threads_max: usize, handler: Box<dyn Fn(Connection) + Send + Sync>) -> Pool {
        let shared = Shared { queue: Mutex::default(), arrived: Condvar::new(), handler };
        Pool { shared: Arc::new(shared), threads_max }
    }

    /// Has the connection handled.
    pub fn give(&self, connection: Connection) {
        let mut queue = self.shared.lock();
        queue.waiting.push_back(connection);
        // An idle thread that was woken but has not run yet still counts as idle, and its
        // connection as waiting.
        if queue.waiting.len() <= queue.idle || queue.threads == self.threads_max {
            self.shared.arrived.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        start(&self.shared);
    }
}

/// Starts a thread that is counted already.
fn start(shared: &Arc<Shared>) {
    let theirs = Arc::clone(shared);
    let started = std::thread::Builder::new()
        .name("rcluster-handler".into())
        .spawn(move || Place(theirs).0.serve());
    if let Err(error) = started {
        shared.do_without(&error);
    }
}

/// A running thread's place among `threads`, given back however the thread ends.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        if queue.waiting.is_empty() {
            queue.threads -= 1;
            return;
        }
        // Somebody may have counted on this thread: another one has its place.
        drop(queue);
        start(&self.0);
    }
}

impl Shared {
    /// The system refused a thread: another one takes the connection in its time, or, when there
    /// is none, this one.
    fn do_without(&self, error: &std::io::Error) {
        tell!("no further thread: {error}");
        let mut queue = self.lock();
        queue.threads -= 1;
        while queue.threads == 0 {
            let Some(connection) = queue.waiting.pop_front() else { return };
            drop(queue);
            self.handle(connection);
            queue = self.lock();
        }
        self.arrived.notify_one();
    }

    /// A thread's life.
    fn serve(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(connection) = queue.waiting.pop_front() {
                drop(queue);
                self.handle(connection);
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            let waited = self.arrived.wait_timeout(queue, IDLE);
            let (back, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = back;
            queue.idle -= 1;
            if timeout.timed_out() && queue.waiting.is_empty() {
                return;
            }
        }
    }

    fn handle(&self, connection: Connection) {
        // What the handler captured may be left as the panic found it; that is the handler's to
        // know, as it is for any thread that panics beside others.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.handler)(connection))) {
            tell!(
                "the handler panicked ({}); its connection is closed, the worker serves on",
                words_of(&*panic)
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The handler never runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("without words")
}
