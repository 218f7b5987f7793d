//! What happens in a simulated world: clients, wishes, accidents, and time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::chance::mix;
use super::super::*;
use super::shell::{Temper, World};
use super::worker::{Dice, Said, Workers};

impl World {
    #[expect(clippy::disallowed_methods, reason = "where virtual time begins does not matter")]
    pub fn new(seed: u64, is_loud: bool) -> World {
        let mut dice = Dice(mix(seed ^ 0x5eed));
        let now = Instant::now();
        let generations = 1 + usize::try_from(dice.below(3)).unwrap();
        let idle_exit = dice.one_in(3).then(|| Duration::from_secs(1 + dice.below(60)));
        let mut mind = Supervisor::new(generations, seed);
        if let Some(after) = idle_exit {
            mind = mind.with_idle_exit(after);
        }
        World {
            mind,
            idle_exit,
            used_at: now,
            workers: Workers::new(seed),
            dice,
            begun: now,
            now,
            listeners: BTreeMap::new(),
            held: BTreeMap::new(),
            accepted: 0,
            last_id: 0,
            config: BTreeMap::new(),
            asked: BTreeMap::new(),
            plans: BTreeMap::new(),
            tempers: BTreeMap::new(),
            editions: Default::default(),
            wishes: Default::default(),
            forward: None,
            gave_up: Default::default(),
            replaced: Default::default(),
            admitted: Default::default(),
            ready_at: BTreeMap::new(),
            stillborn: Default::default(),
            seated: Default::default(),
            is_reloading: false,
            has_failed: false,
            failed_at: None,
            sweeps: false,
            exit: None,
            calm: false,
            futile: 0,
            is_loud,
            may_crash: seed % 3 == 0,
            kept: None,
        }
    }

    /// One thing happens.
    pub fn step(&mut self) {
        match self.dice.below(100) {
            0..=24 => self.arrive(),
            25..=49 => _ = self.accept_some(),
            50..=64 => self.work(),
            65..=77 => _ = self.listen(),
            78..=79 => _ = self.hear_silent(),
            80..=89 => {
                let ms = [1, 10, 60, 300, 1200, 8000, 70_000];
                let ms = ms[usize::try_from(self.dice.below(7)).unwrap()];
                self.pass(Duration::from_millis(ms));
            }
            90..=93 => self.accident(),
            94..=95 => _ = self.bury(),
            96..=97 => self.reload(),
            98 => self.resize(),
            _ => {
                match self.dice.below(4) {
                    0 => self.crash(),
                    1 => self.upgrade(),
                    _ => {}
                }
                if self.exit.is_none() && self.dice.one_in(30) {
                    self.stop();
                }
            }
        }
        if self.sweeps && self.dice.one_in(3) {
            self.swept();
        }
    }

    /// Clients come to a listener, accepted or not.
    fn arrive(&mut self) {
        let ids: Vec<ListenerId> = self.listeners.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[usize::try_from(self.dice.below(ids.len() as u64)).unwrap()];
        let burst = if self.dice.one_in(10) { 60 } else { 1 + self.dice.below(4) };
        for _ in 0..burst {
            self.last_id += 1;
            let client = self.last_id;
            self.workers.0.get_mut().queues.entry(id).or_default().push_back(client);
        }
    }

    /// What the shell does with listeners that are readable. Whether it got a client off a queue.
    pub fn accept_some(&mut self) -> bool {
        let mut any = false;
        for id in self.listeners.keys().copied().collect::<Vec<_>>() {
            for _ in 0..64 {
                let Some(listener) = self.listeners.get(&id) else { break };
                let attention = listener.attention;
                let queue = self.workers.0.get_mut().queues.entry(id).or_default();
                let Some(&client) = queue.front() else { break };
                match attention {
                    Attention::Pause => break,
                    Attention::Answer => {
                        queue.pop_front();
                        self.accepted += 1;
                        self.used_at = self.now;
                        self.workers.0.get_mut().end(client, "answered");
                        self.tell(Event::Refused { listener: id });
                    }
                    Attention::Accept => {
                        if !self.accept(id, client) {
                            break;
                        }
                    }
                }
                any = true;
            }
        }
        any
    }

    fn accept(&mut self, id: ListenerId, client: u64) -> bool {
        if !self.calm && self.dice.one_in(100) {
            self.failed_at = Some(self.now);
            self.tell(Event::AcceptFailed { listener: id });
            return false;
        }
        let source = self.dice.one_in(2).then(|| self.dice.below(9));
        let chosen = self.mind.choose(id, source, self.now, &self.workers);
        let Some(worker) = chosen else {
            for fact in self.perform() {
                self.tell(fact);
            }
            let attention = self.listeners[&id].attention;
            assert!(attention != Attention::Accept, "nobody takes {id}, and it is not paused");
            return false;
        };
        let queue = self.workers.0.get_mut().queues.entry(id).or_default();
        if queue.front() != Some(&client) {
            // A worker has accepted it meanwhile.
            return false;
        }
        queue.pop_front();
        self.accepted += 1;
        self.used_at = self.now;
        if self.dice.one_in(8) {
            self.say(|| format!("{client} of {id} says nothing yet"));
            let held = self.keep(id, client, Past::Silent);
            self.tell(Event::AcceptedSilent { held });
            return true;
        }
        self.mind.note_dispatched(worker, self.now);
        if !self.calm && self.dice.one_in(60) {
            self.failed_at = Some(self.now);
            let held = self.keep(id, client, Past::New);
            let is_full = self.dice.one_in(3);
            self.tell(Event::Returned { held, worker, is_full });
        } else if !self.calm && self.dice.one_in(40) {
            let held = self.keep(id, client, Past::New);
            self.tell(Event::Declined { held, worker });
        } else {
            self.say(|| format!("{client} of {id} goes to {worker}"));
            self.send(worker, id, client, Past::New);
        }
        true
    }

    /// Workers do something.
    fn work(&mut self) {
        for id in self.ids() {
            for _ in 0..self.dice.below(8) {
                self.workers.0.get_mut().step(id);
            }
        }
    }

    pub fn ids(&mut self) -> Vec<WorkerId> {
        self.workers.0.get_mut().processes.keys().copied().collect()
    }

    /// Everything that workers said is heard, in the order of each. Whether there was anything.
    pub fn listen(&mut self) -> bool {
        let mut any = false;
        for worker in self.ids() {
            if self.with(worker, |it| it.is_absent) {
                if !self.join(worker) {
                    continue;
                }
                any = true;
            }
            while let Some(said) = self
                .workers
                .0
                .get_mut()
                .processes
                .get_mut(&worker)
                .and_then(|process| process.outbox.pop_front())
            {
                any = true;
                let fact = match said {
                    Said::Ready => {
                        let limit = self.with(worker, |it| it.limit);
                        if !self.calm && self.dice.one_in(60) {
                            Event::Unfit { worker, why: "speaks protocol 9".into() }
                        } else {
                            let dies = self.with(worker, |it| {
                                it.is_serving = it.died != Some("was killed by SIGKILL");
                                it.edition
                            });
                            if self.tempers[&dies] == Temper::DiesServing && !self.calm {
                                let at = self.now + Duration::from_millis(self.dice.below(4000));
                                self.with(worker, |it| {
                                    it.alarm = Some((at, Some("was killed by SIGSEGV")));
                                });
                            }
                            let handback = self.with(worker, |it| it.handback);
                            Event::Ready { worker, limit, handback }
                        }
                    }
                    Said::Room => Event::Room { worker },
                    Said::Retire => Event::RetireRequested { worker },
                    Said::Drained => Event::Drained { worker },
                    Said::Probed(verdict) => {
                        // Too late, if the master has lost patience.
                        if self.with(worker, |it| it.probe_ends.take()).is_none() {
                            continue;
                        }
                        let result = verdict.map_err(str::to_owned);
                        Event::Probed { worker, result, is_left: false }
                    }
                    Said::Handback(listener, client, past) => {
                        self.handed_back(worker, listener, client, past)
                    }
                };
                self.tell(fact);
                if self.exit.is_some() {
                    return true;
                }
            }
        }
        any
    }

    /// Some clients who were silent say something, or go. Whether one did.
    pub fn hear_silent(&mut self) -> bool {
        let is_silent =
            |(_, (.., past)): &(&ConnectionId, &(ListenerId, u64, Past))| *past == Past::Silent;
        let silent: Vec<_> =
            self.held.iter().filter(is_silent).map(|(id, it)| (*id, it.1)).collect();
        let mut any = false;
        for (connection, client) in silent {
            // An order may have ended its silence.
            let is_silent = self.held.get(&connection).is_some_and(|it| it.2 == Past::Silent);
            if !is_silent || !self.calm && self.dice.one_in(2) {
                continue;
            }
            any = true;
            if self.dice.one_in(4) {
                self.held.remove(&connection);
                self.workers.0.get_mut().end(client, "hung up");
                self.tell(Event::HungUp { connection });
            } else {
                self.held.entry(connection).and_modify(|it| it.2 = Past::New);
                self.tell(Event::Spoke { connection });
            }
            if self.exit.is_some() {
                break;
            }
        }
        any
    }

    /// A client comes back alive.
    fn handed_back(
        &mut self,
        worker: WorkerId,
        listener: ListenerId,
        client: u64,
        past: Past,
    ) -> Event {
        // Sometimes there is no descriptor for it.
        if !self.calm && self.dice.one_in(30) {
            self.workers.0.get_mut().end(client, "lost");
            self.with(worker, |it| it.handed_back_before += 1);
            return Event::HandedBack { worker, held: None };
        }
        self.with(worker, |it| it.handed_back_before += 1);
        let held = Some(self.keep(listener, client, past));
        Event::HandedBack { worker, held }
    }

    fn accident(&mut self) {
        let ids = self.ids();
        if ids.is_empty() {
            return;
        }
        let id = ids[usize::try_from(self.dice.below(ids.len() as u64)).unwrap()];
        let what = self.dice.below(7);
        self.say(|| format!("accident {what} of {id}"));
        self.with(id, |it| match what {
            0 => _ = it.died.get_or_insert("was killed by SIGSEGV"),
            1 => _ = it.died.get_or_insert("exited with status 0"),
            2 | 3 => it.is_stopped = true,
            4 => it.is_stopped = false,
            _ if it.is_serving => it.outbox.push_back(Said::Retire),
            _ => {}
        });
    }

    /// Those who died are reported. Whether there was one.
    pub fn bury(&mut self) -> bool {
        let mut any = false;
        for worker in self.ids() {
            let Some(how) = self.with(worker, |it| it.died) else { continue };
            any = true;
            if self.with(worker, |it| it.is_absent) {
                self.forget_process(worker, "cut");
                let (how, rescued) = (how.to_owned(), Vec::new());
                self.tell(Event::Exited { worker, how, rescued, answered: 0 });
                if self.exit.is_some() {
                    return true;
                }
                continue;
            }
            // What it said before is heard first, as the channel is read before the pidfd.
            let said = self.with(worker, |it| std::mem::take(&mut it.outbox));
            for said in said {
                match said {
                    Said::Ready => self.with(worker, |it| it.outbox.push_back(said)),
                    Said::Handback(listener, client, past) => {
                        let fact = self.handed_back(worker, listener, client, past);
                        self.tell(fact);
                    }
                    Said::Room | Said::Retire | Said::Drained | Said::Probed(_) => {}
                }
            }
            self.take_back_probe(worker);
            let mut rescued = self.read_back(worker);
            let process = self.workers.0.get_mut().processes.remove(&worker).unwrap();
            // Half of them keep a ledger.
            let has_ledger = worker.0 % 2 == 0 && !process.policy.admits();
            let mut answered = 0;
            for (listener, client) in process.hand {
                match if has_ledger { self.dice.below(3) } else { 0 } {
                    0 => self.workers.0.get_mut().end(client, "cut"),
                    1 => {
                        answered += 1;
                        self.workers.0.get_mut().end(client, "answered");
                    }
                    _ => rescued.push(self.keep(listener, client, Past::Idle)),
                }
            }
            self.tell(Event::Exited { worker, how: how.to_owned(), rescued, answered });
            if self.exit.is_some() {
                return true;
            }
        }
        any
    }

    pub fn stop(&mut self) {
        self.tell(Event::StopRequested);
    }

    pub fn swept(&mut self) {
        self.sweeps = false;
        self.tell(Event::Swept);
    }

    /// Time passes, from one thing that is due to the next.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.futile = 0;
        let mut at_once = 0;
        while self.exit.is_none() {
            let alarms = self.workers.0.get_mut().processes.values().filter(|it| it.lives());
            let alarm = alarms.filter_map(|it| it.alarm.map(|(at, _)| at)).min();
            let patience =
                self.workers.0.get_mut().processes.values().filter_map(|it| it.probe_ends);
            let alarm = alarm.into_iter().chain(patience).min();
            let due = [alarm, self.mind.poll_timeout(), Some(end)].into_iter().flatten().min();
            let before = self.now;
            self.now = due.unwrap_or(end).clamp(self.now, end);
            self.workers.0.get_mut().now = Some(self.now);
            at_once = if self.now == before { at_once + 1 } else { 0 };
            assert!(at_once < 100, "the timer spins");
            self.ring();
            self.time_out();
            if self.now == end && self.mind.poll_timeout().is_none_or(|at| at > end) {
                break;
            }
        }
        // Who looks whether anybody comes, looks for nothing most of the time.
        let looks = self.idle_exit.map_or(0, |after| 9 * time.as_secs() / after.as_secs() + 2);
        let bound = 20 + 8 * time.as_secs() + looks;
        assert!(u64::from(self.futile) < bound, "{} timeouts for nothing", self.futile);
    }

    fn ring(&mut self) {
        for id in self.ids() {
            let now = self.now;
            if self.with(id, |it| it.probe_ends.take_if(|at| *at <= now)).is_some() {
                let result = Err("was not answered".to_owned());
                self.tell(Event::Probed { worker: id, result, is_left: true });
            }
            self.with(id, |it| {
                let Some((_, fate)) = it.alarm.take_if(|(at, _)| *at <= now) else { return };
                match fate {
                    Some(how) => _ = it.died.get_or_insert(how),
                    None => {
                        it.is_up = true;
                        it.outbox.push_back(Said::Ready);
                    }
                }
            });
        }
    }

    pub fn time_out(&mut self) {
        if self.mind.poll_timeout().is_none_or(|at| at > self.now) {
            return;
        }
        self.mind.handle_timeout(self.now, &self.workers);
        let first = self.mind.poll_action();
        self.futile += u32::from(first.is_none());
        if let Some(first) = first {
            self.mind.actions.push_front(first);
        }
        for fact in self.perform() {
            if self.exit.is_none() {
                self.tell(fact);
            }
        }
        self.keep_state();
    }
}
