//! How things are, for `rcluster status` and for systemd's STATUS.

use super::Daemon;
use crate::supervisor::{PhaseName, PoolStatus, Status, WorkerStatus};
use crate::wire::control as wire;

impl Daemon {
    /// One sentence.
    pub(super) fn summary(&self) -> String {
        let status = self.supervisor.status(self.now, &self.boards);
        summary_of(&status)
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
            summary: summary_of(&status),
            rollout: status.progress.as_ref().map(|progress| wire::Rollout {
                generation: progress.generation.0,
                done: progress.done,
                total: progress.total,
                going_back: progress.going_back.clone(),
            }),
            reload_waiting: status.is_reload_waiting,
            last_reload: self.last_reload.as_ref().map(|last| wire::LastReload {
                ok: last.is_ok,
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
            accepted: pool.accounts.accepted,
            finished: pool.accounts.finished,
            in_hand: pool.in_hand,
            held: pool.held,
            refused: pool.accounts.refused,
            cut: pool.accounts.cut,
            redispatched: pool.accounts.redispatched,
            workers: pool.workers.iter().map(|worker| self.wire_worker(worker)).collect(),
        }
    }

    fn wire_worker(&self, worker: &WorkerStatus) -> wire::Worker {
        let process = self.workers.get(&worker.worker);
        let state = match worker.phase {
            PhaseName::Serving if worker.is_stuck => "stalled",
            PhaseName::Starting => "starting",
            PhaseName::Serving => "serving",
            PhaseName::Draining => "draining",
            PhaseName::Ending => "ending",
        };
        wire::Worker {
            slot: worker.slot.0,
            pid: process.map_or(0, |process| process.process.id()),
            generation: worker.generation.0,
            state: state.to_owned(),
            serving_for: worker.serving_for.map(|time| time.as_secs_f64()),
            connections: worker.dispatched,
            in_hand: worker.in_hand,
            requests: process.map_or(0, |process| process.words.counts().requests),
        }
    }
}

fn state_of(status: &Status) -> &'static str {
    let is_ready = status.pools.iter().any(|pool| pool.generation.is_some() && pool.serving > 0);
    match &status.progress {
        _ if status.is_stopping => "stopping",
        Some(progress) if progress.going_back.is_some() => "rolling back",
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
    let serving: u32 = status.pools.iter().map(|pool| pool.serving).sum();
    let trouble = troubles.concat();
    if status.is_stopping {
        let leaving: usize = status.pools.iter().map(|pool| pool.workers.len()).sum();
        return format!("Stopping: {leaving} workers drain");
    }
    if let Some(progress) = &status.progress {
        let (done, total) = (progress.done, progress.total);
        let generation = progress.generation.0;
        return match (&progress.going_back, state_of(status)) {
            (Some(why), _) => format!("Rolling back generation {generation}: {why}"),
            (None, "starting") => format!("Starting {done}/{total} workers{trouble}"),
            (None, _) => {
                format!("Rolling restart {done}/{total}, generation {generation}{trouble}")
            }
        };
    }
    let generation = status.pools.iter().filter_map(|pool| pool.generation).max();
    let generation = generation.map_or(0, |generation| generation.0);
    let workers = if serving == 1 { "worker" } else { "workers" };
    format!("Running {serving} {workers}, generation {generation}{trouble}")
}
