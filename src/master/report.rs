//! How things are, for `rcluster status` and for systemd's STATUS.

use super::Daemon;
use crate::supervisor::{Accept, PhaseName, PoolId, PoolStatus, Progress, Status, WorkerStatus};
use crate::sys::process::Process;
use crate::wire::control as wire;

/// A sentence names so many pools at most.
const POOLS_NAMED: usize = 3;

impl Daemon {
    /// One sentence.
    pub(super) fn summary(&self) -> String {
        self.summary_of(&self.supervisor.status(self.now, &self.boards))
    }

    fn summary_of(&self, status: &Status) -> String {
        let summary = summary_of(status);
        match &self.last_reload {
            // What is under way says more, and a rollback its reason.
            Some(last) if last.errno != 0 && status.progress.is_none() && !status.is_stopping => {
                format!("Reload failed: {}; {summary}", last.message)
            }
            _ => summary,
        }
    }

    pub(super) fn wire_status(&self) -> wire::Status {
        let status = self.supervisor.status(self.now, &self.boards);
        let mut warnings = self.warnings.clone();
        warnings.extend(self.editions.warnings());
        wire::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.now.saturating_duration_since(self.started).as_secs_f64(),
            state: state_of(&status).to_owned(),
            summary: self.summary_of(&status),
            rollout: status.progress.as_ref().map(|progress| wire::Rollout {
                generation: progress.generation.0,
                done: progress.done,
                total: progress.total,
                going_back: progress.going_back.clone(),
            }),
            reload_waiting: status.is_reload_waiting,
            last_reload: self.last_reload.as_ref().map(|last| wire::LastReload {
                ok: last.errno == 0,
                message: last.message.clone(),
                ago: self.now.saturating_duration_since(last.at).as_secs_f64(),
            }),
            pools: status.pools.iter().map(|pool| self.wire_pool(pool)).collect(),
            warnings,
        }
    }

    fn wire_pool(&self, pool: &PoolStatus) -> wire::Pool {
        let listen = self
            .config
            .pool(&pool.name)
            .map(|config| config.listen.iter().map(|entry| entry.text.clone()).collect::<Vec<_>>());
        wire::Pool {
            name: pool.name.clone(),
            state: pool_state(pool).to_owned(),
            listen: listen.unwrap_or_default(),
            workers_wanted: pool.size,
            workers_serving: pool.serving,
            generation: pool.generation.map(|generation| generation.0),
            good_generation: pool.good.map(|generation| generation.0),
            gave_up: pool.gave_up.clone(),
            accept: match pool.accept {
                Accept::Master => "master".to_owned(),
                Accept::Workers => "workers".to_owned(),
            },
            counted: pool.is_seen,
            accepted: pool.accounts.accepted,
            finished: pool.accounts.finished,
            in_hand: pool.in_hand,
            held: pool.held,
            silent: pool.silent,
            refused: pool.accounts.refused,
            cut: pool.accounts.cut,
            redispatched: pool.accounts.redispatched,
            answered: pool.accounts.answered,
            handed_back: pool.accounts.handed_back,
            workers: pool.workers.iter().map(|worker| self.wire_worker(worker)).collect(),
        }
    }

    fn wire_worker(&self, worker: &WorkerStatus) -> wire::Worker {
        let process = self.workers.get(&worker.worker);
        let state = match worker.phase {
            PhaseName::Serving if worker.is_stuck => "stalled",
            PhaseName::Starting => "starting",
            PhaseName::Absent => "absent",
            PhaseName::Serving => "serving",
            PhaseName::Draining => "draining",
            PhaseName::Ending => "ending",
        };
        wire::Worker {
            slot: worker.slot.0,
            pid: self.process(worker.worker).map_or(0, Process::id),
            generation: worker.generation.0,
            state: state.to_owned(),
            serving_for: worker.serving_for.map(|time| time.as_secs_f64()),
            connections: worker.dispatched,
            in_hand: worker.in_hand,
            requests: process.map_or(0, |process| process.words.counts().requests),
            said: process
                .and_then(|process| process.inherit())
                .map_or_else(String::new, |link| link.status.clone()),
        }
    }
}

fn state_of(status: &Status) -> &'static str {
    let is_ready = status.pools.iter().any(|pool| pool.generation.is_some() && pool.serving > 0);
    match &status.progress {
        _ if status.is_stopping => "stopping",
        Some(progress) if progress.going_back.is_some() => "rolling back",
        Some(progress) if progress.is_resuming => "resuming",
        Some(_) if status.pools.iter().all(|pool| pool.good.is_none()) => "starting",
        Some(_) => "reloading",
        None if is_ready => "running",
        None => "starting",
    }
}

fn pool_state(pool: &PoolStatus) -> &'static str {
    match pool.gave_up {
        Some(_) => "gave up",
        None if pool.serving >= pool.size => "serving",
        None if pool.serving == 0 => "starting",
        None => "degraded",
    }
}

fn summary_of(status: &Status) -> String {
    let troubles: Vec<String> = status
        .pools
        .iter()
        .filter(|pool| pool.gave_up.is_some())
        .map(|pool| {
            format!("; {} gave up with {} of {} serving", pool.name, pool.serving, pool.size)
        })
        .collect();
    let trouble = troubles.concat();
    if status.is_stopping {
        let left: usize = status.pools.iter().map(|pool| pool.workers.len()).sum();
        return format!("Stopping: {left} {} left", workers(left));
    }
    if let Some(progress) = &status.progress {
        let generation = progress.generation.0;
        let done = done_of(progress, status);
        return match (&progress.going_back, state_of(status)) {
            (Some(why), _) => format!("Rolling back generation {generation}, {done}: {why}"),
            (None, "starting") => format!("Starting {done}{trouble}"),
            (None, "resuming") => {
                format!("Going on where a master was killed: {done} are back{trouble}")
            }
            (None, _) => {
                format!("Rolling restart of {done}, generation {generation}{trouble}")
            }
        };
    }
    let serving: usize = status.pools.iter().map(|pool| pool.serving as usize).sum();
    let generation = status.pools.iter().filter_map(|pool| pool.generation).max();
    let generation = generation.map_or(0, |generation| generation.0);
    format!("Running {serving} {}, generation {generation}{trouble}", workers(serving))
}

fn workers(count: usize) -> &'static str {
    if count == 1 { "worker" } else { "workers" }
}

/// How far a rollout is, pool by pool: `web 3/8, api 1/2`; many pools in one sum.
fn done_of(progress: &Progress, status: &Status) -> String {
    let Progress { done, total, pools, .. } = progress;
    let name = |id: PoolId| {
        let pool = status.pools.iter().find(|pool| pool.pool == id);
        pool.map_or("", |pool| pool.name.as_str())
    };
    if pools.len() > POOLS_NAMED {
        return format!("{} pools {done}/{total}", pools.len());
    }
    let pools = pools.iter().map(|pool| match pool.total {
        0 => format!("{} (removed)", name(pool.pool)),
        total => format!("{} {}/{total}", name(pool.pool), pool.done),
    });
    pools.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{Accounts, Generation, PoolProgress};

    fn pool(id: u32, name: &str, serving: u32) -> PoolStatus {
        PoolStatus {
            pool: PoolId(id),
            name: name.to_owned(),
            size: 8,
            serving,
            generation: Some(Generation(5)),
            good: Some(Generation(4)),
            gave_up: None,
            accept: Accept::Master,
            is_seen: true,
            accounts: Accounts::default(),
            held: 0,
            silent: 0,
            in_hand: 0,
            workers: Vec::new(),
        }
    }

    fn rolling(done: &[(&str, u32, u32)]) -> Status {
        let ids = || (1..).map(PoolId);
        let pools = ids().zip(done);
        let progress = Progress {
            generation: Generation(5),
            done: done.iter().map(|it| it.1).sum(),
            total: done.iter().map(|it| it.2).sum(),
            pools: pools
                .map(|(pool, &(_, done, total))| PoolProgress { pool, done, total })
                .collect(),
            going_back: None,
            is_resuming: false,
        };
        Status {
            pools: ids().zip(done).map(|(id, it)| pool(id.0, it.0, 8)).collect(),
            progress: Some(progress),
            is_stopping: false,
            is_reload_waiting: false,
        }
    }

    #[test]
    fn the_sentence_names_the_pools_that_roll() {
        let one = rolling(&[("web", 3, 8)]);
        assert_eq!(summary_of(&one), "Rolling restart of web 3/8, generation 5");
        let two = rolling(&[("web", 3, 8), ("api", 1, 2)]);
        assert_eq!(summary_of(&two), "Rolling restart of web 3/8, api 1/2, generation 5");
        let four = rolling(&[("a", 1, 1), ("b", 1, 2), ("c", 0, 1), ("d", 0, 1)]);
        assert_eq!(summary_of(&four), "Rolling restart of 4 pools 2/5, generation 5");
        let gone = rolling(&[("web", 3, 8), ("old", 0, 0)]);
        assert_eq!(summary_of(&gone), "Rolling restart of web 3/8, old (removed), generation 5");
    }

    #[test]
    fn the_sentence_says_what_happens() {
        let mut status = rolling(&[("web", 1, 4)]);
        let progress = status.progress.as_mut().unwrap();
        progress.going_back = Some("web/2: exited with status 3".into());
        let text = "Rolling back generation 5, web 1/4: web/2: exited with status 3";
        assert_eq!(summary_of(&status), text);
        status.progress.as_mut().unwrap().going_back = None;
        status.pools[0].good = None;
        assert_eq!(summary_of(&status), "Starting web 1/4");
        status.progress.as_mut().unwrap().is_resuming = true;
        let text = "Going on where a master was killed: web 1/4 are back";
        assert_eq!(summary_of(&status), text);
        status.progress = None;
        assert_eq!(summary_of(&status), "Running 8 workers, generation 5");
        status.is_stopping = true;
        assert_eq!(summary_of(&status), "Stopping: 0 workers left");
    }
}
