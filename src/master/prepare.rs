//! From a configuration to a wish: programs pinned, listeners bound, nothing half-applied.

use std::collections::BTreeMap;

use super::listeners::{Listener, Listeners};
use super::pin::Pinned;
use crate::config::Config;
use crate::supervisor::{Edition, ListenerId, Policy, PoolId};

/// A wish, ready for the mind.
pub(crate) struct Prepared {
    pub(crate) edition: Edition,
    pub(crate) pools: Vec<(PoolId, Option<Policy>)>,
    /// Listeners that nobody had until now.
    pub(crate) opened: Vec<ListenerId>,
    /// What an administrator should know.
    pub(crate) warnings: Vec<String>,
}

/// Pools by name, and what was pinned for each edition.
#[derive(Debug, Default)]
pub(crate) struct Editions {
    pub(super) names: Vec<String>,
    pub(super) pinned: BTreeMap<Edition, BTreeMap<PoolId, Pinned>>,
    /// What each pool's completed rollout was made from.
    pub(super) settled: BTreeMap<PoolId, Edition>,
    pub(super) last: u64,
}

impl Editions {
    /// The pool's id, if it was ever configured.
    pub(crate) fn id(&self, name: &str) -> Option<PoolId> {
        let position = self.names.iter().position(|known| known == name)?;
        u32::try_from(position).ok().map(PoolId)
    }

    /// The pool's name.
    pub(crate) fn name(&self, pool: PoolId) -> &str {
        self.names.get(pool.0 as usize).map_or("?", String::as_str)
    }

    fn intern(&mut self, name: &str) -> PoolId {
        self.id(name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            PoolId(u32::try_from(self.names.len() - 1).unwrap_or(u32::MAX))
        })
    }

    /// What a pool's workers of an edition are started from.
    pub(crate) fn get(&self, edition: Edition, pool: PoolId) -> Option<&Pinned> {
        self.pinned.get(&edition)?.get(&pool)
    }

    /// The rollout of this edition is complete.
    pub(crate) fn settle(&mut self, edition: Edition) {
        if let Some(pools) = self.pinned.get(&edition) {
            self.settled.extend(pools.keys().map(|&pool| (pool, edition)));
        }
    }

    /// Whether the pool's program, arguments, working directory and environment are still what
    /// its workers were started from: a new release may stand under the same names.
    pub(crate) fn is_as_settled(&self, pool: &crate::config::Pool) -> bool {
        let settled = self.id(&pool.name).and_then(|id| {
            let edition = self.settled.get(&id)?;
            self.get(*edition, id)
        });
        let now = Pinned::new(pool);
        settled.is_some_and(|settled| now.is_ok_and(|now| now.is_same(settled)))
    }

    /// Why one of the pools of an edition cannot be started: its program is not to be had. A boot
    /// does not ask: its other pools serve.
    pub(crate) fn missing(&self, edition: Edition) -> Option<String> {
        let pinned = self.pinned.get(&edition)?.iter();
        let missing = pinned.filter_map(|(&id, pinned)| Some((id, pinned.missing()?)));
        let missing: Vec<String> =
            missing.map(|(id, why)| format!("pool {}: {why}", self.name(id))).collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// Nobody is started from this edition any more.
    pub(crate) fn forget(&mut self, edition: Edition) {
        self.pinned.remove(&edition);
    }

    /// Files that were overwritten in place and can therefore not be started as they were.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .pinned
            .values()
            .flatten()
            .filter_map(|(&pool, pinned)| {
                let what = pinned.overwritten()?;
                let name = self.name(pool);
                Some(format!(
                    "{name}: {what}: a lost worker of an older generation cannot be started again \
                     as it was; deploy each release into a folder of its own behind a symlink, or \
                     reload now"
                ))
            })
            .collect();
        warnings.dedup();
        warnings
    }

    /// Pins and binds all that `config` wants for `names` (none: all pools; then pools that are
    /// not in it any more are to go).
    ///
    /// # Errors
    /// A sentence; nothing has changed then.
    pub(crate) fn prepare(
        &mut self,
        config: &Config,
        names: &[String],
        active: &[PoolId],
        listeners: &mut Listeners,
    ) -> Result<Prepared, String> {
        let mut opened = Vec::new();
        match self.try_prepare(config, names, active, listeners, &mut opened) {
            Ok(prepared) => Ok(Prepared { opened, ..prepared }),
            Err(why) => {
                opened.into_iter().for_each(|id| listeners.close(id));
                Err(why)
            }
        }
    }

    /// # Errors
    /// A sentence about a name that no pool has.
    pub(crate) fn refuse_unknown(
        &self,
        config: &Config,
        names: &[String],
        active: &[PoolId],
    ) -> Result<(), String> {
        for name in names {
            let is_active = self.id(name).is_some_and(|id| active.contains(&id));
            if config.pool(name).is_none() && !is_active {
                let known: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
                return Err(format!("there is no pool {name}; there are: {}", known.join(", ")));
            }
        }
        Ok(())
    }

    fn try_prepare(
        &mut self,
        config: &Config,
        names: &[String],
        active: &[PoolId],
        listeners: &mut Listeners,
        opened: &mut Vec<ListenerId>,
    ) -> Result<Prepared, String> {
        self.refuse_unknown(config, names, active)?;
        let is_named = |name: &str| names.is_empty() || names.iter().any(|other| other == name);
        let mut pinned = BTreeMap::new();
        let mut pools = Vec::new();
        for pool in config.pools.iter().filter(|pool| is_named(&pool.name)) {
            let before = opened.len();
            let ids = listeners.open_all(pool, opened)?;
            // Those that serve already keep what holds for them until the rollout is over.
            listeners.configure(&opened[before..], pool);
            let held = Pinned::new(pool).map_err(|why| format!("pool {}: {why}", pool.name))?;
            let id = self.intern(&pool.name);
            pinned.insert(id, held);
            let is_ours = |id: &ListenerId| listeners.get(*id).is_some_and(Listener::is_ours);
            let is_bound_here = ids.iter().any(is_ours);
            let policy = Policy { listeners: ids, is_bound_here, ..pool.policy.clone() };
            pools.push((id, Some(policy)));
        }
        let gone = active.iter().filter(|&&id| {
            let name = self.name(id);
            is_named(name) && config.pool(name).is_none()
        });
        pools.extend(gone.map(|&id| (id, None)));
        self.last += 1;
        let edition = Edition(self.last);
        self.pinned.insert(edition, pinned);
        let unclaimed = listeners.inheritance.unclaimed();
        let warnings = unclaimed.iter().map(|socket| {
            format!("no pool uses the inherited socket {socket}: its clients will hang")
        });
        let mut warnings: Vec<String> = warnings.collect();
        warnings.extend(resident(config, &pools));
        Ok(Prepared { edition, pools, opened: Vec::new(), warnings })
    }
}

/// What keeps a service up that is to end when nobody uses it.
fn resident(config: &Config, pools: &[(PoolId, Option<Policy>)]) -> Option<String> {
    let after = config.master.idle_exit?;
    let policies = pools.iter().filter_map(|(_, policy)| policy.as_ref());
    let unseen = "so that nobody sees whether it is used; write idle-exit = \"never\"";
    let lost = "so that no client could start it again; use sockets of a .socket unit only, or write \
                idle-exit = \"never\"";
    let why = |policy: &Policy| match policy.listeners.is_empty() {
        true => Some(("has no listener", lost)),
        false if !policy.is_seen() => Some(("has workers that accept by themselves", unseen)),
        false if policy.is_bound_here => {
            Some(("listens on an address that rcluster binds itself", lost))
        }
        false => None,
    };
    let (name, (why, so)) = policies.filter_map(|it| Some((&it.name, why(it)?))).next()?;
    let after = humantime::format_duration(after);
    Some(format!("idle-exit of {after} never comes: pool {name} {why}, {so}"))
}
