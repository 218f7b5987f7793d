//! The whole run of a master, and how it ends: well, with a failure, or by a mistake of its own.
//!
//! When a promise of our own is broken, the thread that dispatches panics. That is caught here and
//! said in one line with its place. Whoever waits for a reload is let go, systemd is told to replace
//! this process, and it ends. The workers finish what they have, as after the death of the master
//! by any other cause.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Mutex, PoisonError};

use super::journal::{CAUSE, Entry, Level, MessageId};
use super::{Daemon, Error};

impl Daemon {
    /// Boots, serves, and says the last words.
    pub(super) fn run(mut self) -> Result<(), Error> {
        match guard(|| self.boot().and_then(|()| self.serve())) {
            Ok(Ok(())) => {
                self.discard_state();
                self.keep_listeners();
                self.notify.finish(self.now);
                Ok(())
            }
            Ok(Err(why)) => {
                self.discard_state();
                self.keep_listeners();
                self.notify.fail(&why);
                Err(Error::Failed(why))
            }
            Err(why) => Err(self.break_down(&why)),
        }
    }

    fn break_down(mut self, why: &str) -> Error {
        let text = format!("the master has made a mistake of its own and ends: {why}");
        let entry = Entry::new(Level::Error, &text).id(MessageId::Broken);
        self.journal.say(entry.with(CAUSE, why));
        let (mut notify, now) = (std::mem::take(&mut self.notify), self.now);
        if self.adoption.has_door() {
            self.listeners.abandon();
        }
        // The line is written, and the workers know, before systemd strikes.
        drop(self);
        notify.broken(now);
        Error::Broken(text)
    }
}

/// Runs `what`; a panic in it is answered as a sentence.
///
/// # Errors
/// The sentence: what was broken, and where.
fn guard<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    let seen: Arc<Mutex<Option<String>>> = Arc::default();
    let note = Arc::clone(&seen);
    let this = std::thread::current().id();
    let before: Arc<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = Arc::from(take_hook());
    let others = Arc::clone(&before);
    set_hook(Box::new(move |panic| {
        if std::thread::current().id() == this {
            *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(describe(panic));
        } else {
            others(panic);
        }
    }));
    let result = catch_unwind(AssertUnwindSafe(what));
    set_hook(Box::new(move |panic| before(panic)));
    result.map_err(|_| {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        seen.unwrap_or_else(|| "nothing is known about it".to_owned())
    })
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    match panic.location() {
        Some(place) => format!("{message} ({}:{})", place.file(), place.line()),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_sentence_with_its_place() {
        let number = 7;
        let why = guard(|| assert_eq!(number, 8, "the sum")).unwrap_err();
        assert!(why.contains("the sum") && why.contains("breakdown.rs:"), "{why}");
        assert_eq!(guard(|| 5), Ok(5));
    }
}
