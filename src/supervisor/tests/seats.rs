//! Seats go round.

use super::super::SEATS;
use super::super::Seat;
use super::super::seats::Seats;

/// Takes a seat and leaves it, as a worker does that crashes at once.
fn visit(seats: &mut Seats) -> u32 {
    let seat = seats.take();
    seats.leave(seat);
    seat.0
}

#[test]
fn a_seat_waits_for_its_turn() {
    let mut seats = Seats::default();
    let stays = seats.take();
    let visited: Vec<u32> = (0..63).map(|_| visit(&mut seats)).collect();
    assert_eq!(visited, (1..64).collect::<Vec<_>>());
    assert_eq!((stays, visit(&mut seats)), (Seat(0), 1), "round, past the one that is taken");
}

#[test]
fn the_ring_grows_with_the_pool_and_shrinks_with_it() {
    let mut seats = Seats::default();
    let crew: Vec<Seat> = (0..99).map(|_| seats.take()).collect();
    let visited: Vec<u32> = (0..302).map(|_| visit(&mut seats)).collect();
    assert_eq!(visited[..301], (99..400).collect::<Vec<_>>(), "four for each of a hundred");
    assert_eq!(visited[301], 99);
    for seat in crew {
        seats.leave(seat);
    }
    assert_eq!(visit(&mut seats), 0, "100 is outside of a ring of 64");
}

#[test]
fn nobody_shares_a_seat_on_a_full_board() {
    let mut seats = Seats::default();
    let taken: std::collections::BTreeSet<u32> = (0..SEATS).map(|_| seats.take().0).collect();
    assert_eq!(taken, (0..SEATS).collect());
    assert_eq!(seats.take(), Seat(SEATS), "which the board does not have");
    seats.leave(Seat(7));
    assert_eq!(seats.take(), Seat(7));
}
