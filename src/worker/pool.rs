//! Threads that run a handler, one connection each.
//!
//! Whoever takes a connection handles it, see `intake`. One thread waits in any case, for the master's
//! sake: the first that is not there any more starts another, up to a bound. The bound is what READY
//! announced, so a connection never waits here unless the system refuses a thread. Who waited for a while
//! in vain ends, unless it is the last. A handler that panics loses its connection and nothing else.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::adopt;
use super::connection::Connection;
use super::intake::{Intake, State};
use super::tell::tell;

/// How long a thread waits for its next connection.
const IDLE: Duration = Duration::from_secs(10);

pub(super) struct Pool {
    intake: Intake,
    threads_max: usize,
    idle: Duration,
    handler: Box<dyn Fn(Connection) + Send + Sync>,
}

impl Pool {
    pub fn new(
        intake: Intake,
        threads_max: usize,
        handler: Box<dyn Fn(Connection) + Send + Sync>,
    ) -> Arc<Pool> {
        Arc::new(Pool { intake, threads_max, idle: IDLE, handler })
    }

    /// Handles connections on this thread, and on others, until nothing more is taken.
    pub fn run(self: &Arc<Pool>) -> io::Result<()> {
        self.serve(self.intake.lock(), None);
        self.intake.lock().end.replace(Ok(())).unwrap_or(Ok(()))
    }

    /// A thread's life. It ends with the pool, or after so long in vain.
    fn serve<'a>(self: &'a Arc<Pool>, mut state: MutexGuard<'a, State>, idle: Option<Duration>) {
        loop {
            state.take();
            if !state.queue.is_empty() && self.may_leave(&mut state) {
                let fresh = state.queue.pop_front();
                drop(state);
                fresh.and_then(adopt).into_iter().for_each(|connection| self.handle(connection));
                state = self.intake.lock();
                continue;
            }
            if state.end.is_some() && state.queue.is_empty() {
                if state.free > 0 {
                    // A drain is told to all, a failure to one.
                    self.intake.call();
                }
                return;
            }
            let (back, is_timeout) = self.intake.wait(state, idle);
            state = back;
            if is_timeout && state.free > 0 && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    /// Whether this thread may go and handle the next connection: another one waits, or takes over.
    fn may_leave(self: &Arc<Pool>, state: &mut State) -> bool {
        // Beside the one that it goes with.
        let has_more = state.is_full || state.queue.len() > 1;
        if state.free > 0 {
            if has_more {
                self.intake.call();
            }
            return true;
        }
        let is_needed = has_more || state.end.is_none();
        if is_needed && state.threads <= self.threads_max {
            match self.start() {
                Ok(()) => {
                    state.threads += 1;
                    // It has not looked yet.
                    state.free += 1;
                    return true;
                }
                Err(error) => tell!("no further thread: {error}"),
            }
        }
        // Who is alone had better answer than listen.
        state.threads == 1 || state.end.is_some()
    }

    fn start(self: &Arc<Pool>) -> io::Result<()> {
        let pool = Arc::clone(self);
        let life = move || {
            let mut state = pool.intake.lock();
            state.free -= 1;
            pool.serve(state, Some(pool.idle));
        };
        std::thread::Builder::new().name("rcluster-handler".into()).spawn(life)?;
        Ok(())
    }

    fn handle(&self, connection: Connection) {
        // What the handler captured may be left as the panic found it; that is the handler's to
        // know, as it is for any thread that panics beside others.
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.handler)(connection))) else {
            return;
        };
        tell!(
            "the handler panicked ({}); its connection is closed, the worker serves on",
            words_of(&*panic)
        );
        // What it panicked with may panic when it is dropped.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(another);
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("without words")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::super::tests::{LONG, cluster, read_all};
    use super::super::watch::Watch;
    use super::*;
    use crate::wire::message::{ToMaster, ToWorker};

    #[test]
    fn who_waits_in_vain_leaves_unless_it_is_the_last() {
        let (master, worker) = cluster();
        let intake = Intake::new(&worker.link, 1024, 8, Watch::several(&worker.link).unwrap());
        let (go, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let handler = Box::new(move |mut connection: Connection| {
            gate.lock().unwrap().recv().unwrap();
            connection.write_all(b"x").unwrap();
        });
        let idle = Duration::from_millis(20);
        let pool = Arc::new(Pool { intake, threads_max: 8, idle, handler });
        let running = Arc::clone(&pool);
        let running = std::thread::spawn(move || running.run());
        for _ in 0..2 {
            let clients: Vec<_> = (0..8).map(|_| master.dispatch()).collect();
            // One each, and one who waits.
            until(|| pool.intake.lock().threads == 9);
            (0..8).for_each(|_| go.send(()).unwrap());
            clients.into_iter().for_each(|client| assert_eq!(read_all(client), "x"));
            until(|| pool.intake.lock().threads <= 2);
        }
        // However long the others answer.
        let clients: Vec<_> = (0..3).map(|_| master.dispatch()).collect();
        master.until(|counts| counts.taken == 19);
        #[expect(
            clippy::disallowed_methods,
            reason = "that nothing comes for so long is the event"
        )]
        std::thread::sleep(idle * 5);
        master.say(&ToWorker::Ping);
        assert_eq!(master.hear(), ToMaster::Room);
        (0..3).for_each(|_| go.send(()).unwrap());
        clients.into_iter().for_each(|client| assert_eq!(read_all(client), "x"));
        master.drain(LONG);
        running.join().unwrap().unwrap();
    }

    fn until(wanted: impl Fn() -> bool) {
        let end = super::super::taker::now() + LONG;
        while !wanted() {
            assert!(super::super::taker::now() < end);
            std::thread::yield_now();
        }
    }
}
