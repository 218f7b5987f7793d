//! Who of many has the fewest connections in hand, as far as is known.
//!
//! Nobody says when a connection is closed: that is read off a counter, and reading everybody's for
//! every connection would cost more the more there are. So here is what was known last, which errs on one
//! side only: what a worker is sent is counted at once, what it finishes when its counter is next
//! read. Whoever is known to be idle is idle. See `choice` for whose counters are read when.
//!
//! A knock-out tournament of four players a match: who wins is known at once, and a change costs one
//! match on each level. Not the winner's place moves up but all that is compared, so that a match waits for
//! nothing but the one before it. Of equals, the one wins to whom nothing was sent, and who was not looked
//! at, for the longest.

/// What is known of a worker, in a number that is least for who is first: the connections in hand, at
/// most (20 bits); the turn when something was sent to it last, or it was looked at (32); its place
/// (12). Two of these are compared without a branch, which would be foreseen half of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u64);

const PLACE_BITS: u32 = 12;
const TURN_BITS: u32 = 32;
/// Of those who have more in hand, nobody is first for that.
const MANY: u64 = FULL - 1;
/// It had no room when it was last looked at.
const FULL: u64 = 0xf_ffff;

/// Nobody sits there.
const VACANT: Rank = Rank(u64::MAX);

impl Rank {
    fn new(known: Option<u64>, turn: u64, place: usize) -> Rank {
        Rank(turn << PLACE_BITS | place as u64).with(known)
    }

    /// The same with so many in hand, or no room.
    fn with(self, known: Option<u64>) -> Rank {
        let in_hand = known.map_or(FULL, |in_hand| in_hand.min(MANY));
        let shift = PLACE_BITS + TURN_BITS;
        Rank(in_hand << shift | self.0 & ((1 << shift) - 1))
    }

    fn place(self) -> usize {
        (self.0 & ((1 << PLACE_BITS) - 1)) as usize
    }

    fn turn(self) -> u64 {
        self.0 >> PLACE_BITS & ((1 << TURN_BITS) - 1)
    }

    /// `None`: no room.
    fn known(self) -> Option<u64> {
        Some(self.0 >> (PLACE_BITS + TURN_BITS)).filter(|&in_hand| in_hand != FULL)
    }
}

/// The ranks of a pool's candidates, by their places among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranks {
    /// The winner of each match: of the final in 1, of those before it in 4 to 7, and so on. The second
    /// half are the players.
    winners: Vec<Rank>,
    last_turn: u64,
}

impl Ranks {
    /// As many places as `in_hand` has, with what is known of each. Of equals the one after `cursor` is
    /// first.
    pub(super) fn new(in_hand: &[Option<u64>], cursor: usize) -> Ranks {
        let count = in_hand.len();
        let size = count.next_power_of_two();
        // A power of four.
        let size = size << (size.trailing_zeros() % 2);
        let mut winners = vec![VACANT; 2 * size];
        for (place, known) in in_hand.iter().enumerate() {
            let turn = (place + 2 * count - cursor % count - 1) % count;
            winners[size + place] = Rank::new(*known, turn as u64, place);
        }
        let mut ranks = Ranks { winners, last_turn: count as u64 };
        ranks.play_all();
        ranks
    }

    /// The place of the one with the fewest, and how many that are at most. `None`: nobody is known to
    /// have room.
    pub(super) fn first(&self) -> Option<(usize, u64)> {
        let first = self.winners.get(1)?;
        Some((first.place(), first.known()?))
    }

    /// What is known of a place; `None`: it has no room.
    pub(super) fn known(&self, place: usize) -> Option<u64> {
        self.rank(place).known()
    }

    fn rank(&self, place: usize) -> Rank {
        self.winners.get(self.winners.len() / 2 + place).copied().unwrap_or(VACANT)
    }

    /// It was looked at: so many, or no room.
    pub(super) fn learn(&mut self, place: usize, known: Option<u64>) {
        let rank = self.rank(place);
        if rank.with(known) != rank {
            self.put(rank.with(known));
        }
    }

    /// The same, and its turn comes after that of its equals.
    pub(super) fn learn_last(&mut self, place: usize, known: Option<u64>) {
        self.last_turn += 1;
        if self.last_turn >> TURN_BITS > 0 {
            self.count_anew();
        }
        self.put(Rank::new(known, self.last_turn, place));
    }

    /// One more was sent to it.
    pub(super) fn note_sent(&mut self, place: usize) {
        let known = self.known(place).map(|in_hand| in_hand + 1);
        self.learn_last(place, known);
    }

    /// Takes it in, and plays the matches of its place again, from the first round to the final.
    fn put(&mut self, rank: Rank) {
        let mut node = self.winners.len() / 2 + rank.place();
        let Some(player) = self.winners.get_mut(node).filter(|it| **it != VACANT) else { return };
        *player = rank;
        let mut winner = rank;
        while node > 1 {
            let [one, two, three] = [1, 2, 3].map(|other| self.winners[node ^ other]);
            winner = winner.min(one.min(two).min(three));
            node /= 4;
            self.winners[node] = winner;
        }
    }

    /// The turns are used up, after some billions: the same order in lower numbers.
    fn count_anew(&mut self) {
        let size = self.winners.len() / 2;
        let mut players: Vec<Rank> = self.winners.split_off(size);
        players.retain(|it| *it != VACANT);
        players.sort_by_key(|it| it.turn());
        self.winners.resize(2 * size, VACANT);
        self.last_turn = 0;
        for player in players {
            self.last_turn += 1;
            let place = player.place();
            self.winners[size + place] = Rank::new(player.known(), self.last_turn, place);
        }
        self.last_turn += 1;
        self.play_all();
    }

    /// Plays every match.
    fn play_all(&mut self) {
        let size = self.winners.len() / 2;
        for place in (0..size).step_by(4) {
            self.put(self.rank(place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_who_has_the_fewest_whatever_has_happened() {
        let mut number = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |limit: u64| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (number >> 33) % limit
        };
        for count in 1..40_usize {
            let mut ranks = Ranks::new(&vec![Some(0); count], 0);
            for _ in 0..2000 {
                let place = usize::try_from(below(count as u64)).unwrap();
                match below(4) {
                    0 => ranks.note_sent(place),
                    1 => ranks.learn(place, Some(below(4))),
                    2 => ranks.learn_last(place, Some(below(4))),
                    _ => ranks.learn(place, (below(5) > 0).then(|| below(9))),
                }
                let least = (0..count).map(|place| ranks.rank(place)).min().unwrap();
                let first = least.known().map(|known| (least.place(), known));
                assert_eq!(ranks.first(), first, "of {count}");
            }
        }
    }

    #[test]
    fn when_the_turns_are_used_up_the_order_stays() {
        let mut ranks = Ranks::new(&[Some(3); 5], 0);
        ranks.last_turn = (1 << TURN_BITS) - 3;
        let turns = (0..20).map(|_| {
            let (place, _) = ranks.first().unwrap();
            ranks.note_sent(place);
            ranks.learn(place, Some(3));
            place
        });
        let from_the_second_on = (0..20).map(|turn| (turn + 1) % 5);
        assert_eq!(turns.collect::<Vec<_>>(), from_the_second_on.collect::<Vec<_>>());
        assert!(ranks.last_turn < 40);
    }

    #[test]
    fn however_many_somebody_has_he_has_room() {
        let mut ranks = Ranks::new(&[Some(u64::MAX), None, Some(MANY)], 0);
        assert_eq!(ranks.first(), Some((2, MANY)));
        ranks.note_sent(2);
        assert_eq!(ranks.first(), Some((0, MANY)));
    }

    #[test]
    fn equals_take_turns() {
        for count in 1..20 {
            let mut ranks = Ranks::new(&vec![Some(3); count], 0);
            let turns = (0..2 * count).map(|_| {
                let (place, _) = ranks.first().unwrap();
                ranks.note_sent(place);
                ranks.learn(place, Some(3));
                place
            });
            let from_the_second_on = (0..2 * count).map(|turn| (turn + 1) % count);
            assert_eq!(turns.collect::<Vec<_>>(), from_the_second_on.collect::<Vec<_>>());
        }
    }

    #[test]
    fn without_anybody_there_is_no_first() {
        assert_eq!(Ranks::new(&[], 0).first(), None);
        assert_eq!(Ranks::default().first(), None);
        assert_eq!(Ranks::new(&[None, None, None], 1).first(), None);
        assert_eq!(Ranks::new(&[None, Some(7), None], 1).first(), Some((1, 7)));
    }
}
