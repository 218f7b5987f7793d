//! Plays transcripts: each file of `transcripts/` is one story, a promise to users.
//!
//! A line is a fact, what is indented below it are the orders that follow, `#` tells the story.
//! `UPDATE=1 cargo test transcripts` writes the orders anew; the diff is the review. The player is
//! a shell with ideal channels: it takes back, sends and rescues as ordered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::*;
use super::stage::{Boards, Message};

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/supervisor/tests/transcripts");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 30, "where are the transcripts?");
    let mut complaints = String::new();
    for file in files {
        let written = std::fs::read_to_string(&file).unwrap();
        let played = play(&file, &written);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &played).unwrap();
        } else if let Some(complaint) = compare(&file, &written, &played) {
            complaints.push_str(&complaint);
        }
    }
    assert!(complaints.is_empty(), "{complaints}\nUPDATE=1 accepts what happened.");
}

/// The first difference, with what surrounds it.
fn compare(file: &Path, written: &str, played: &str) -> Option<String> {
    let (written, played): (Vec<_>, Vec<_>) = (written.lines().collect(), played.lines().collect());
    let at = (0..written.len().max(played.len())).find(|&at| written.get(at) != played.get(at))?;
    let fact = written[..at.min(written.len())]
        .iter()
        .rfind(|line| !line.starts_with([' ', '#']) && !line.is_empty());
    let show = |lines: &[&str], sign: char| -> String {
        lines.iter().skip(at).take(6).map(|line| format!("  {sign}{line}\n")).collect()
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Some(format!(
        "\n{name}:{}: after `{}`\n{}{}",
        at + 1,
        fact.unwrap_or(&""),
        show(&written, '-'),
        show(&played, '+'),
    ))
}

fn play(file: &Path, script: &str) -> String {
    let mut player = Player::new();
    let mut out = String::new();
    for (number, line) in script.lines().enumerate() {
        if line.starts_with("    ") {
            continue;
        }
        out.push_str(line);
        out.push('\n');
        let fact = line.split('#').next().unwrap_or_default().trim();
        if !fact.is_empty() {
            let words: Vec<&str> = fact.split_whitespace().collect();
            let known = player.act(words[0], &words[1..]);
            assert!(known.is_some(), "{}:{}: what is `{fact}`?", file.display(), number + 1);
            out.push_str(&std::mem::take(&mut player.said));
        }
    }
    out
}

/// A mind on the stage, with what a shell would hold.
pub struct Player {
    pub supervisor: Supervisor,
    pub boards: Boards,
    pub begun: Instant,
    pub now: Instant,
    pub config: BTreeMap<PoolId, Option<Policy>>,
    pub wishes: u64,
    pub connections: u64,
    pub seats: BTreeMap<WorkerId, (PoolId, Seat)>,
    pub channels: BTreeMap<WorkerId, VecDeque<Message>>,
    pub held: BTreeMap<ConnectionId, (ListenerId, Past, Option<u64>)>,
    /// Of those in the hand of a worker: who can go on, and how many are told, when it dies.
    pub ledgers: BTreeMap<WorkerId, (Vec<ListenerId>, u64)>,
    /// Workers to whom nothing can be sent.
    pub broken: BTreeSet<WorkerId>,
    /// Their queues are full.
    pub full: BTreeSet<WorkerId>,
    pub said: String,
}

impl Player {
    #[expect(clippy::disallowed_methods, reason = "where virtual time begins does not matter")]
    fn new() -> Player {
        let now = Instant::now();
        Player {
            supervisor: Supervisor::new(3, 7),
            boards: Boards::default(),
            begun: now,
            now,
            config: BTreeMap::new(),
            wishes: 0,
            connections: 0,
            seats: BTreeMap::new(),
            channels: BTreeMap::new(),
            held: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            broken: BTreeSet::new(),
            full: BTreeSet::new(),
            said: String::new(),
        }
    }

    /// One line. `None`: not understood.
    fn act(&mut self, verb: &str, words: &[&str]) -> Option<()> {
        let first = words.first().copied();
        match verb {
            "generations" => self.supervisor = Supervisor::new(first?.parse().ok()?, 7),
            "pool" => self.configure(words)?,
            "without" => _ = self.config.insert(PoolId(id(first?)?), None),
            "reload" => self.reload(words)?,
            "scale" => {
                let scale = match words[1] {
                    "more" => Scale::More,
                    "fewer" => Scale::Fewer,
                    workers => Scale::To(workers.parse().ok()?),
                };
                self.tell(Event::ScaleRequested { pool: PoolId(id(first?)?), scale });
            }
            "resize" => {
                let (pool, workers) = (PoolId(id(first?)?), words[1].parse().ok()?);
                self.tell(Event::Resized { pool, workers });
            }
            "idle-exit" => {
                self.supervisor = Supervisor::new(3, 7).with_idle_exit(time(first?)?);
            }
            "refused" => self.tell(Event::ReloadRefused),
            "stop" => self.tell(Event::StopRequested),
            "swept" => self.tell(Event::Swept),
            "accept-failed" => self.tell(Event::AcceptFailed { listener: ListenerId(id(first?)?) }),
            "answered" => self.tell(Event::Refused { listener: ListenerId(id(first?)?) }),
            "connect" => self.connect(words)?,
            // `silent l1`, `silent l1 x40`: accepted, and nothing to read yet
            "silent" => {
                let listener = ListenerId(id(first?)?);
                let times =
                    words.get(1).map_or(Some(1), |word| word.strip_prefix('x')?.parse().ok());
                for _ in 0..times? {
                    let held = self.keep(listener, Past::Silent, None);
                    self.tell(Event::AcceptedSilent { held });
                }
            }
            "speaks" => self.tell(Event::Spoke { connection: ConnectionId(id(first?)?) }),
            "hangs-up" => {
                let connection = ConnectionId(id(first?)?);
                self.held.remove(&connection)?;
                self.tell(Event::HungUp { connection });
            }
            "wait" => self.wait(first?)?,
            "status" => self.status(),
            "upgrade" => self.upgrade(),
            "crash" => self.crash(words)?,
            _ => {
                let ids: Vec<WorkerId> =
                    words.iter().map_while(|word| Some(WorkerId(id(word)?))).collect();
                let rest = words[ids.len()..].join(" ");
                for worker in ids {
                    self.report(verb, worker, &rest)?;
                }
            }
        }
        Some(())
    }

    /// A fact about one worker.
    fn report(&mut self, verb: &str, worker: WorkerId, rest: &str) -> Option<()> {
        if !self.seats.contains_key(&worker) {
            _ = writeln!(self.said, "    (there is no {worker})");
            return Some(());
        }
        match verb {
            "ready" => {
                // `ready w1`, `ready w1 limit=2`, `ready w1 handback`
                let limit = rest.strip_prefix("limit=").map_or(Some(0), |n| n.parse().ok())?;
                self.tell(Event::Ready { worker, limit, handback: rest == "handback" });
            }
            // `probed w1`, `probed w1 was answered 500`, `probed w1 left was not answered`
            "probed" => {
                let (is_left, why) = match rest.strip_prefix("left ") {
                    Some(why) => (true, why),
                    None => (false, rest),
                };
                let result = if why.is_empty() { Ok(()) } else { Err(why.to_owned()) };
                self.tell(Event::Probed { worker, result, is_left });
            }
            "unfit" => self.tell(Event::Unfit { worker, why: rest.to_owned() }),
            "spawn-failed" => self.tell(Event::SpawnFailed { worker, why: rest.to_owned() }),
            "exited" => {
                let how = if rest.is_empty() { "exited with status 0" } else { rest };
                self.take_back_probe(worker);
                let rescued = self.read_back(worker);
                self.note_came_back("rescued", &rescued, worker);
                let (alive, answered) = self.ledgers.remove(&worker).unwrap_or_default();
                let alive: Vec<Held> =
                    alive.into_iter().map(|from| self.keep(from, Past::Idle, None)).collect();
                self.note_came_back("the ledger saves", &alive, worker);
                let rescued = [rescued, alive].concat();
                self.tell(Event::Exited { worker, how: how.to_owned(), rescued, answered });
            }
            // What its ledger will say: `clean w1 from l1`, `asking w1 2`
            "clean" => {
                let listener = ListenerId(id(rest.strip_prefix("from ")?)?);
                self.ledgers.entry(worker).or_default().0.push(listener);
            }
            "asking" => self.ledgers.entry(worker).or_default().1 += rest.parse::<u64>().ok()?,
            // `joined w1`, `joined w1 handback`, `joined w1 handed-back=2`, `joined w1 draining`
            "joined" => {
                let draining = rest == "draining";
                let rescued = self.read_back(worker);
                self.note_came_back("rescued", &rescued, worker);
                let handed_back =
                    rest.strip_prefix("handed-back=").map_or(Some(0), |n| n.parse().ok())?;
                let (limit, handback) = (0, !rest.is_empty());
                self.tell(Event::Joined {
                    worker,
                    limit,
                    handback,
                    draining,
                    handed_back,
                    rescued,
                });
            }
            "retire" => self.tell(Event::RetireRequested { worker }),
            // `hand-back w1 from l1`, `hand-back w1 from l1 leftover`, `hand-back w1 from l1 of 7`,
            // `hand-back w1 lost`
            "hand-back" if rest == "lost" => self.tell(Event::HandedBack { worker, held: None }),
            "hand-back" => {
                let from = rest.strip_prefix("from ")?;
                let (listener, past) = match from.strip_suffix(" leftover") {
                    Some(listener) => (listener, Past::Leftover),
                    None => (from, Past::Idle),
                };
                let (listener, source) = match listener.split_once(" of ") {
                    Some((listener, source)) => (listener, Some(source.parse().ok()?)),
                    None => (listener, None),
                };
                let held = Some(self.keep(ListenerId(id(listener)?), past, source));
                self.tell(Event::HandedBack { worker, held });
            }
            "passed-on" => self.tell(Event::PassedOn { worker }),
            "drained" => self.tell(Event::Drained { worker }),
            "leaves" => self.tell(Event::Leaving { worker }),
            "needs" => {
                let time = time(rest)?;
                self.tell(Event::Extended { worker, time });
            }
            "broken" => self.tell(Event::Broken { worker, why: rest.to_owned() }),
            // `declines w1`, `opens w1 of l2`, `shuts w1 of l2`
            "declines" => match self.channels.get_mut(&worker)?.pop_front() {
                Some(Message::Connection(listener, past)) => {
                    let held = self.keep(listener, past, None);
                    _ = writeln!(self.said, "    ({worker} declines {})", held.connection);
                    self.tell(Event::Declined { held, worker });
                }
                _ => _ = writeln!(self.said, "    (nothing for {worker})"),
            },
            "opens" => {
                let listener = ListenerId(id(rest.strip_prefix("of ")?)?);
                self.tell(Event::Opened { worker, listener });
            }
            "shuts" => {
                let listener = ListenerId(id(rest.strip_prefix("of ")?)?);
                self.tell(Event::Closed { worker, listener });
            }
            "room" => self.tell(Event::Room { worker }),
            "breaks" => _ = self.broken.insert(worker),
            "fills" => _ = (self.broken.insert(worker), self.full.insert(worker)),
            "mends" => _ = self.broken.remove(&worker),
            "take" => {
                for _ in 0..rest.parse().unwrap_or(1) {
                    let Some(message) = self.channels.get_mut(&worker)?.pop_front() else {
                        _ = writeln!(self.said, "    (nothing for {worker})");
                        break;
                    };
                    let is_ping = matches!(message, Message::Ping);
                    self.count(worker, is_ping, |counts| {
                        counts.progress += 1;
                        counts.taken += u64::from(!is_ping);
                    });
                }
            }
            // A worker that accepts by itself: `accept w1`, `accept w1 3`
            "accept" => {
                for _ in 0..rest.parse().unwrap_or(1) {
                    self.count(worker, false, |counts| counts.accepted += 1);
                }
            }
            "finish" => {
                for _ in 0..rest.parse().unwrap_or(1) {
                    self.count(worker, false, |counts| counts.finished += 1);
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// A worker stores a counter, then looks whether the master awaits ROOM.
    fn count(&mut self, worker: WorkerId, always: bool, change: impl FnOnce(&mut Counts)) {
        let waits = {
            let mut boards = self.boards.0.borrow_mut();
            let words = boards.entry(self.seats[&worker]).or_default();
            change(&mut words.counts);
            std::mem::take(&mut words.waiting)
        };
        if waits || always {
            _ = writeln!(self.said, "    ({worker} says ROOM)");
            self.tell(Event::Room { worker });
        }
    }

    /// `pool p1 web workers=2 listen=l1,l2 surge=2 …`: configures it for the next reload.
    fn configure(&mut self, words: &[&str]) -> Option<()> {
        let pool = PoolId(id(words[0])?);
        let known = self.config.get(&pool).cloned().flatten();
        let mut policy = known.unwrap_or_default();
        for word in &words[1..] {
            let Some((key, value)) = word.split_once('=') else {
                (*word).clone_into(&mut policy.name);
                continue;
            };
            match key {
                "workers" => policy.workers = value.parse().ok()?,
                "listen" => {
                    let listeners = value.split(',').filter(|it| !it.is_empty());
                    policy.listeners =
                        listeners.map(|it| Some(ListenerId(id(it)?))).collect::<Option<_>>()?;
                }
                "bound-here" => policy.is_bound_here = value == "yes",
                "balance" => {
                    policy.balance = match value {
                        "round-robin" => Balance::RoundRobin,
                        "source-hash" => Balance::SourceHash,
                        _ => return None,
                    }
                }
                "accept" if value == "workers" => policy.accept = Accept::Workers,
                "accept" if value == "master" => policy.accept = Accept::Master,
                "counted" => policy.counted = value == "yes",
                "window" => policy.window = value.parse().ok()?,
                "canary" => policy.canary = time(value)?,
                "probe" => policy.probe = value == "yes",
                "watchdog" => policy.watchdog = Some(time(value)?),
                "surge" => policy.surge = value.parse().ok()?,
                "max-connections" => policy.max_connections = value.parse().ok()?,
                "max-requests" => policy.max_requests = value.parse().ok()?,
                "restart-limit" => policy.restart_limit = value.parse().ok()?,
                "restart-window" => policy.restart_window = time(value)?,
                "drain-timeout" => policy.drain_timeout = time(value)?,
                "answer-after" => policy.unavailable = Unavailable::AnswerAfter(time(value)?),
                _ => return None,
            }
        }
        self.config.insert(pool, Some(policy));
        Some(())
    }

    fn reload(&mut self, words: &[&str]) -> Option<()> {
        let named: Vec<PoolId> =
            words.iter().map(|word| Some(PoolId(id(word)?))).collect::<Option<_>>()?;
        let is_named = |pool: &PoolId| named.is_empty() || named.contains(pool);
        let pools: Vec<(PoolId, Option<Policy>)> = self
            .config
            .iter()
            .filter(|(pool, _)| is_named(pool))
            .map(|(&pool, policy)| (pool, policy.clone()))
            .collect();
        self.config.retain(|pool, policy| policy.is_some() || !is_named(pool));
        self.wishes += 1;
        let (wish, edition) = (WishId(self.wishes), Edition(self.wishes));
        self.tell(Event::ReloadRequested { wish, edition, pools });
        Some(())
    }

    /// `connect l1`, `connect l1 x40`, `connect l1 from 7`.
    fn connect(&mut self, words: &[&str]) -> Option<()> {
        let listener = ListenerId(id(words[0])?);
        let times = words.get(1).and_then(|word| word.strip_prefix('x')?.parse().ok()).unwrap_or(1);
        let source = words.get(2).and_then(|word| word.parse().ok());
        let mut got: Vec<String> = Vec::new();
        for _ in 0..times {
            let Some(worker) = self.supervisor.choose(listener, source, self.now, &self.boards)
            else {
                got.push("nobody".to_owned());
                break;
            };
            self.supervisor.note_dispatched(worker, self.now);
            got.push(worker.to_string());
            if self.broken.contains(&worker) {
                let held = self.keep(listener, Past::New, source);
                _ = writeln!(self.said, "    ({worker} could not be sent {})", held.connection);
                let is_full = self.full.contains(&worker);
                self.tell(Event::Returned { held, worker, is_full });
                break;
            }
            self.channels
                .entry(worker)
                .or_default()
                .push_back(Message::Connection(listener, Past::New));
        }
        got.dedup();
        _ = writeln!(self.said, "    -> {}", got.join(" "));
        self.perform();
        Some(())
    }

    /// Lets time pass from deadline to deadline.
    fn wait(&mut self, word: &str) -> Option<()> {
        let end = self.now + time(word)?;
        for _ in 0..10_000 {
            let next = self.supervisor.poll_timeout().filter(|&at| at <= end);
            self.now = next.unwrap_or(end).max(self.now);
            self.supervisor.handle_timeout(self.now, &self.boards);
            let before = std::mem::take(&mut self.said);
            self.perform();
            let orders = std::mem::replace(&mut self.said, before);
            if !orders.is_empty() {
                let since = self.now.duration_since(self.begun).as_secs_f64();
                _ = writeln!(self.said, "    {since:.2} s\n{orders}");
                self.said.truncate(self.said.trim_end().len());
                self.said.push('\n');
            }
            if next.is_none() {
                return Some(());
            }
        }
        panic!("the timer spins");
    }
}

fn id<T: std::str::FromStr>(word: &str) -> Option<T> {
    word.strip_prefix(['p', 'w', 'l', 'c'])?.parse().ok()
}

fn time(word: &str) -> Option<Duration> {
    let (number, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit())?);
    let number = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        _ => None,
    }
}
