//! The clients' sockets that are kept beside the workers, over an upgrade.
//!
//! Only the next image of the same process can be given them; a master that was killed leaves none.

use super::carry::{gather_held, resume_held};
use super::{Luggage, Number, Packing};
use crate::master::ledger::{Book, Kept, Ledgers};
use crate::supervisor::{ConnectionId, WorkerId};
use crate::wire::ledger::Ledger;

use serde::{Deserialize, Serialize};

/// What is kept of one worker's connections.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct KeptBook {
    worker: WorkerId,
    ledger: Number,
    is_kept: bool,
    sent: u64,
    /// How many entries have been in use at once.
    places: usize,
    entries: Vec<KeptEntry>,
}

/// A client's socket.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct KeptEntry {
    index: usize,
    connection: super::Connection,
    base: Option<u64>,
}

pub(super) fn gather<'a>(ledgers: &'a Ledgers, packing: &mut Packing<'a>) -> Vec<KeptBook> {
    let mut books = Vec::new();
    for (&worker, book) in &ledgers.books {
        let Some(ledger) = packing.pack(&book.ledger) else { continue };
        let entries = book.places.iter().enumerate().filter_map(|(index, place)| {
            let Kept { listener, client, base } = place.as_ref()?;
            // It has no number of its own while a worker has it.
            let connection = gather_held(ConnectionId(0), *listener, client, packing)?;
            Some(KeptEntry { index, connection, base: *base })
        });
        let entries = entries.collect();
        let (is_kept, sent, places) = (book.is_kept, book.sent, book.places.len());
        books.push(KeptBook { worker, ledger, is_kept, sent, places, entries });
    }
    books
}

/// # Errors
/// A sentence: something was not carried over.
pub(super) fn resume(
    books: Vec<KeptBook>,
    ledgers: &mut Ledgers,
    luggage: &mut Luggage,
) -> Result<(), String> {
    for KeptBook { worker, ledger, is_kept, sent, places, entries } in books {
        let ledger = Ledger::open(luggage.unpack(ledger)?)
            .map_err(|error| format!("the crash ledger of worker {worker}: {error}"))?;
        let mut book = Book::new(ledger);
        (book.is_kept, book.sent) = (is_kept, sent);
        book.places.resize_with(places, || None);
        for KeptEntry { index, connection, base } in entries {
            let (listener, client) = resume_held(&connection, luggage)?;
            if let Some(place) = book.places.get_mut(index) {
                *place = Some(Kept { listener, client, base });
            }
        }
        let free = (0..).zip(&book.places).filter(|(_, place)| place.is_none());
        book.free = free.map(|(index, _)| index).collect();
        ledgers.books.insert(worker, book);
    }
    Ok(())
}
