//! The pools' scoreboards, as the mind sees them.

use std::collections::BTreeMap;
use std::io;

use super::admission::Bells;
use crate::supervisor::{Board, Counts, PoolId, SEATS, Seat};
use crate::wire::scoreboard::{Scoreboard, SeatWords};

// The mind hands out the seats that the board has.
const _: () = assert!(SEATS == crate::wire::scoreboard::SEATS);

/// A board for each pool that ever had a worker. A worker that outlived another master counts on the
/// board of then, as long as it has its seat.
#[derive(Debug, Default)]
pub(crate) struct Boards {
    pub(super) all: BTreeMap<PoolId, (Scoreboard, Vec<SeatWords>)>,
    /// Of those pools whose workers look at each other.
    pub(super) bells: Bells,
}

impl Boards {
    /// The pool's board, made when it is first asked for, and the words of `seat` on it.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left, or the board has no such seat.
    pub(crate) fn seat(&mut self, pool: PoolId, seat: Seat) -> io::Result<(Scoreboard, SeatWords)> {
        let (board, seats) = match self.all.entry(pool) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert((Scoreboard::create()?, Vec::new()))
            }
        };
        let words = board.seat(seat.0)?;
        put(seats, board, seat, words.clone())?;
        Ok((board.clone(), words))
    }

    /// The board of a pool whose workers outlived their master, and the words of `seat` on it.
    ///
    /// # Errors
    /// When the board has no such seat.
    pub(crate) fn take_over(
        &mut self,
        pool: PoolId,
        board: Scoreboard,
        seat: Seat,
    ) -> io::Result<SeatWords> {
        let words = board.seat(seat.0)?;
        let (own, seats) = self.all.entry(pool).or_insert_with(|| (board, Vec::new()));
        put(seats, own, seat, words.clone())?;
        Ok(words)
    }

    fn words(&self, pool: PoolId, seat: Seat) -> Option<&SeatWords> {
        self.all.get(&pool)?.1.get(seat.0 as usize)
    }
}

/// Who sits in a seat is counted there.
fn put(
    seats: &mut Vec<SeatWords>,
    board: &Scoreboard,
    seat: Seat,
    words: SeatWords,
) -> io::Result<()> {
    while seats.len() <= seat.0 as usize {
        let next = u32::try_from(seats.len()).map_err(io::Error::other)?;
        seats.push(board.seat(next)?);
    }
    seats[seat.0 as usize] = words;
    Ok(())
}

impl Board for Boards {
    fn counts(&self, pool: PoolId, seat: Seat) -> Counts {
        let Some(words) = self.words(pool, seat) else { return Counts::default() };
        let crate::wire::scoreboard::Counts { taken, accepted, finished, progress, .. } =
            words.counts();
        Counts { taken, accepted, finished, progress }
    }

    fn set_waiting(&self, pool: PoolId, seat: Seat, waiting: bool) {
        if let Some(words) = self.words(pool, seat) {
            words.set_waiting(waiting);
        }
    }
}
