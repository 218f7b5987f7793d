//! What kinds of records there are: one fixed MESSAGE_ID each.
//!
//! `journalctl MESSAGE_ID=…` finds them, and `journalctl -x` explains each with its entry in
//! `systemd/rcluster.catalog`. An id never changes its meaning and is never given again; a new one
//! comes from `systemd-id128 new`.

/// Defines the kinds, so that none can be forgotten where all are meant.
macro_rules! message_ids {
    ($($(#[$doc:meta])* $name:ident = $id:literal,)*) => {
        /// A kind of record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum MessageId {
            $($(#[$doc])* $name,)*
        }

        impl MessageId {
            /// Every kind.
            #[cfg(test)]
            pub(crate) const ALL: &[MessageId] = &[$(MessageId::$name,)*];

            /// 128 bits in lower-case hexadecimal digits.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(MessageId::$name => $id,)*
                }
            }
        }
    };
}

message_ids! {
    /// A worker's process was started.
    Started = "202ff42c5950451692f3c239ea49b2b7",
    /// A worker takes connections.
    Ready = "7d7ec1520d3d445aa3653f0b3348ddf4",
    /// A worker did not get ready.
    StartFailed = "8c1a2badbf3545518f3c021ea5d24391",
    /// A worker of a master that was killed is with this one again.
    Joined = "2feded3c6211498e866eff1d9e896d38",
    /// Such a worker has not come back in time.
    Missing = "dcbf010d30fb4af3a14ef8de14c1b8d8",
    /// After the master was killed, everything is as it was.
    Resumed = "0a708730f4334bd792c1c5a29f16a1f4",
    /// Somebody at the adoption socket was no worker of ours.
    SentAway = "c60fe227e70e44ee988ddea8731eb366",
    /// What a killed master left could not be gone on with.
    StateUnused = "00aff20f32e14a5f916e6437eaf5d39b",
    /// The master has replaced its own image.
    Upgraded = "45fc184da3d24683a3a7c0f27e973fef",
    /// The master has not replaced its own image.
    UpgradeFailed = "04af6dc683bf44ac98ce6f19dd00fdb2",
    /// A serving worker is gone unasked.
    Lost = "30ffe87526084ce897c6fb99e373b978",
    /// A worker takes nothing while connections wait for it; it is killed.
    Stalled = "028c7e6a02704212b5583ec0de492276",
    /// A worker was told to drain.
    Draining = "02e06d80b9d74a00a4c33abdca3fd775",
    /// A draining worker did not finish in time.
    Overdue = "3b88bf869f8c464fb3d723ad9cefd51c",
    /// A drained or abandoned worker is gone.
    Left = "4a07075c1a834eb7a7dd72d3a66916d1",
    /// A worker broke the rules of its channel.
    Misbehaved = "845372f5a24c495e87720bc85f373e62",
    /// A rollout has begun; the first is the boot.
    RolloutBegun = "14f6eafe2ce64d579fd427d97c901f45",
    /// Every slot serves the new generation.
    RolloutDone = "2093df9ac6e042629762d133d8da7c2c",
    /// A rollout failed; its pools go back to what they were.
    RollingBack = "da6758dad79a488d85139d482555ad98",
    /// The pools are what they were before the rollout.
    RolledBack = "884c6eea45134fdbb283a22d509077f7",
    /// A reload changed nothing: its configuration is not valid, or cannot be applied.
    ReloadRefused = "8886548cd8c146ebbf860f6a3df8a3d9",
    /// A new generation's first worker serves beside the old ones, on trial.
    OnTrial = "fe005991676342ed9c0ee4a1789de7a8",
    /// The last worker that a reload retired is gone.
    Accounted = "9678065f48d6421d9b66e50df97a881f",
    /// A pool's generation fails too often and is not started again.
    GaveUp = "a1aabf1114984a0cb4ca1d592d258d58",
    /// A pool has another size.
    Resized = "9920361685274e22bbc8db858f9e0831",
    /// Somebody asked for the end of the service.
    StopAsked = "8b9166574e274f23b6d24b763e687ede",
    /// The service ends; its workers drain.
    Stopping = "fd0eed4aa24445a2b395e6aecd2876f7",
    /// The service ends because nobody uses it.
    Idle = "950443a05a00478caf935185d903c7eb",
    /// The master broke a promise of its own and ends.
    Broken = "599f852c764c4478adf90ac2c80085c5",
    /// Something about the configuration that an administrator should know.
    Warning = "31946107caa740d78fe358010f0a11b8",
    /// A listener's clients cannot be accepted for the moment.
    AcceptFailed = "6e3e48aa49af4d07b9c2658d1ea6973b",
    /// Connections were lost in the master's own hand.
    ConnectionsLost = "68fe5d36c30f4ca387dcc7ea6c047c5e",
    /// Workers' output does not go where it was configured to go.
    OutputInherited = "33f53b26414d4a3c9f697b96b3343fd6",
    /// Records were dropped, and how many.
    Dropped = "c20f5f825231432e9c9c34650bda0234",
    /// Whoever reads what is written took nothing for a while.
    JournalStalled = "3908f72d2b9f412cba148d467167f863",
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn catalog() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/rcluster.catalog")
    }

    /// The entries of the catalog by their ids.
    fn entries() -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(catalog()).unwrap();
        let entries = text.split("\n-- ").skip(1).map(|entry| {
            let (id, rest) = entry.split_once('\n').unwrap();
            (id.to_owned(), rest.to_owned())
        });
        let entries: Vec<(String, String)> = entries.collect();
        let count = entries.len();
        let map = BTreeMap::from_iter(entries);
        assert_eq!(map.len(), count, "an id stands twice in the catalog");
        map
    }

    #[test]
    fn an_id_is_128_bits_and_means_one_kind() {
        let ids: BTreeSet<&str> = MessageId::ALL.iter().map(|id| id.as_str()).collect();
        assert_eq!(ids.len(), MessageId::ALL.len());
        for id in ids {
            let is_good = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            assert!(id.len() == 32 && id.chars().all(is_good), "{id}");
        }
    }

    #[test]
    fn the_catalog_explains_every_kind_and_no_other() {
        let entries = entries();
        for id in MessageId::ALL {
            let entry = entries.get(id.as_str());
            let entry = entry.unwrap_or_else(|| panic!("{id:?} ({}) has no entry", id.as_str()));
            let (head, body) = entry.split_once("\n\n").unwrap();
            let keys: Vec<&str> = head.lines().map(|it| it.split_once(": ").unwrap().0).collect();
            assert_eq!(keys, ["Subject", "Defined-By", "Support", "Documentation"], "{id:?}");
            // What it means, and what to do.
            assert!(body.trim().split("\n\n").count() >= 2, "{id:?}: {body}");
        }
        let known: BTreeSet<&str> = MessageId::ALL.iter().map(|id| id.as_str()).collect();
        for id in entries.keys() {
            assert!(known.contains(id.as_str()), "the catalog explains {id}, which is nothing");
        }
    }

    #[test]
    fn systemd_can_read_the_catalog() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/lib/systemd/catalog");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(root.path().join("var/lib/systemd/catalog")).unwrap();
        std::fs::copy(catalog(), folder.join("rcluster.catalog")).unwrap();
        let journalctl = |verb: &str| {
            let root = format!("--root={}", root.path().display());
            Command::new("journalctl").args([&root, verb]).output()
        };
        let Ok(updated) = journalctl("--update-catalog") else {
            println!("LEFT OUT: there is no journalctl to read the catalog");
            return;
        };
        assert!(updated.status.success() && updated.stderr.is_empty(), "{updated:?}");
        let listed = journalctl("--list-catalog").unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let ids: BTreeSet<&str> = listed.lines().filter_map(|it| it.split(' ').next()).collect();
        assert_eq!(ids, entries().keys().map(String::as_str).collect::<BTreeSet<&str>>());
    }
}
